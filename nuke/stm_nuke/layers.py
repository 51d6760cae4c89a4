"""Names of layers that are the same in the node, in the EXR file and in Nuke's Read of the file.

Nuke's EXR reader renames layers: it removes leading digits, replaces other signs by underscores, and takes
some names for channels of `rgba` or for views. The node would then request a missing layer and get black
without an error. So only names that the reader does not change are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset(
    [
        *("rgba", "rgb", "alpha", "red", "green", "blue", "ci", "none", "all"),
        *("depth", "forward", "backward", "motion", "disparity", "disparityl", "disparityr", "deep"),
        *("mask", "rotopaint_mask", "mask_planartrack", "mask_splinewarp", "stm", "fg"),
    ]
)
"""In lower case: names with a fixed meaning in Nuke or its EXR reader."""


def why_no_layer(name: str, views: Iterable[str] = ()) -> str:
    """Why a layer cannot have this name, for people; empty if it can."""
    if not _PLAIN.fullmatch(name):
        return "a name has letters, digits and _ only, and begins with no digit"
    if name.lower() in _RESERVED:
        return "it is a layer of Nuke's own"
    if name.lower() in {one.lower() for one in views}:
        return "it is the name of a view"
    return ""
