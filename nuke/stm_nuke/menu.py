"""The entry in Nuke's node menu."""

from __future__ import annotations

import nuke
from stm_nuke.errors import StmNodeError

NODE_MENU = "STM"


def install() -> None:
    """Add the entry."""
    menu = nuke.menu("Nodes").addMenu(NODE_MENU)
    menu.addCommand("STM", create_from_selection)


def create_from_selection() -> None:
    """A new node below the selection: the plate, and the mask if a second node is selected."""
    from stm_nuke import node

    # The last selected node comes first; artists select the plate, then the mask.
    selected = list(reversed(nuke.selectedNodes()))
    for one in selected:
        one.setSelected(False)
    plate = selected[0] if selected else None
    mask = selected[1] if len(selected) > 1 else None
    try:
        made = node.create(plate, mask)
    except StmNodeError as error:
        nuke.message(str(error))
        return
    made.group.setSelected(True)
    made.group.showControlPanel()
