"""The Reads beside an STM node that show copies of its mattes, for corrections (`fixes.py`)."""

from __future__ import annotations

import nuke
from stm_nuke import cache, fingerprint, group


def reads_of(node: nuke.Node, folder: str) -> list[nuke.Node]:
    """The Reads above a node's fix input that read the copies in this cache folder."""
    paint = node.input(group.FIX)
    if paint is None:
        return []
    above = [one for one in fingerprint.depends_on(paint) if one.Class() == "Read"]
    return [one for one in above if str(one["file"].value() or "").startswith(f"{folder}/{cache.HELD}/")]


def follow_cache(node: nuke.Node, before: str, after: str) -> None:
    """Update these Reads after the cache has moved from one folder to another."""
    for read in reads_of(node, before):
        read["file"].setValue(after + str(read["file"].value())[len(before) :])
