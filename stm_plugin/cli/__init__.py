"""The `stm` command: all functions of the node, in a terminal."""

from stm_plugin.cli.main import main

__all__ = ["main"]
