"""Nuke runs this where it has a window: the entry in the node menu, which the Tab search finds too."""

import sys

if sys.version_info >= (3, 9):  # noqa: UP036 - Nuke 13 has an older one
    import stm_nuke.menu

    stm_nuke.menu.install()
