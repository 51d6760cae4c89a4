"""The differences between releases and editions of Nuke.

Nuke 13.2 has Python 3.7. `init.py` and `stm_batch.py` report that it is too old, before they import anything
of this package. Saved scripts render there: they have native nodes only.
"""

from __future__ import annotations

import contextlib
from typing import Any

import nuke
from stm_nuke.errors import StmNodeError

OCIO_CONFIG_KNOBS = ("OCIO_config", "OCIOConfig")
"""The root's knob for its OCIO config: up to Nuke 14, and from 15 on."""
REACH = 10
"""How many nodes Python reaches in Nuke Indie and Nuke Non-commercial."""
_EDITIONS = {"nc": "Nuke Non-commercial", "indie": "Nuke Indie"}


def root_value(*names: str) -> Any:
    """The value of the first of these knobs that the script's root has and that is not empty."""
    for name in names:
        knob = nuke.root().knob(name)
        value = None if knob is None else knob.value()
        if value:
            return value
    return None


def edition() -> str:
    """The name of an edition in which Python reaches few nodes; empty in all others."""
    for name, words in _EDITIONS.items():
        with contextlib.suppress(KeyError, TypeError):
            if nuke.env[name]:
                return words
    return ""


def check_room(group: nuke.Group, more: int, what: str) -> None:
    """Check whether a group may get more nodes.

    Args:
        what: their purpose, followed by "needs more" in the text.

    Raises:
        StmNodeError: this edition would not let Python reach them.
    """
    name = edition()
    if name and len(group.nodes()) + more > REACH:
        raise StmNodeError(f"In {name} Python reaches {REACH} nodes, and {what} needs more.")


def check_reach(group: nuke.Group, names: tuple[str, ...]) -> None:
    """Check that Python reaches the nodes of a new group. StmNodeError where it does not."""
    if any(group.node(name) is None for name in names):
        raise StmNodeError(
            f"{edition() or 'This Nuke'} does not let Python reach the nodes inside an STM node.",
            hint="Use it in a script with fewer nodes, or in another edition. A saved STM node renders here.",
        )
