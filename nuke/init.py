"""Nuke runs this at its start, with or without a window: it registers the callbacks.

This folder is on the plug-in path by NUKE_PATH or by nuke.pluginAddPath in ~/.nuke/init.py.
"""

import sys

import nuke

if sys.version_info >= (3, 9):  # noqa: UP036 - Nuke 13 has an older one
    import stm_nuke.callbacks

    stm_nuke.callbacks.install()
else:
    nuke.tprint("STM for Nuke needs Nuke 14.0 or newer. Scripts with STM nodes still render.")
