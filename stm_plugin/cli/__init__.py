"""The `stm` command: everything that the node does, from a terminal."""

from stm_plugin.cli.main import main

__all__ = ["main"]
