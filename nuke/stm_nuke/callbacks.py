"""What Nuke calls: a node was made, a knob changed, the script is saved or closed, a render begins.

Every callback looks for STM nodes first and leaves at once where there is none: scripts are full of other
groups.
The rest of the package is imported when it is needed, so that Nuke starts as fast as without it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import nuke
from stm_nuke import knobs

if TYPE_CHECKING:
    from stm_nuke.node import StmNode

_RANGE_KNOBS = frozenset((knobs.FIRST, knobs.LAST))
_is_busy = False
"""Our own changes to knobs call `knobChanged` too, in newer releases."""
_is_installed = False


def install() -> None:
    """Tell Nuke, once."""
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    nuke.addOnCreate(on_create, nodeClass="Group")
    nuke.addKnobChanged(on_knob_changed, nodeClass="Group")
    nuke.addOnScriptLoad(on_script_load)
    nuke.addOnScriptSave(on_script_save)
    nuke.addOnScriptClose(on_script_close)
    nuke.addBeforeRender(before_render, nodeClass="Write")


def on_create() -> None:
    """A node was pasted, read from a script, or made.

    A copy gets a cache of its own before anything can happen.
    """
    node = nuke.thisNode()
    if not knobs.is_stm_node(node) or not nuke.GUI:
        return
    from stm_nuke.errors import StmNodeError
    from stm_nuke.node import StmNode

    found = StmNode(node)
    try:
        if found.id and found.twin() is not None:
            found.claim()
        if found.id and found.is_live:
            _put_effect_in(found)
    except StmNodeError as error:
        found.set(knobs.STATUS, str(error))


def on_knob_changed() -> None:
    """The range was changed, the panel was opened, an input was connected."""
    global _is_busy
    node, knob = nuke.thisNode(), nuke.thisKnob()
    name = knob.name()
    if _is_busy or name not in _LISTENED or not knobs.is_stm_node(node):
        return
    from stm_nuke import verbs
    from stm_nuke.errors import StmNodeError
    from stm_nuke.node import StmNode

    found = StmNode(node)
    _is_busy = True
    try:
        if name in _RANGE_KNOBS:
            found.claim()
        elif name == "inputChange" and found.frames == (0, 0) and found.plate is not None:
            found.take_range_from_input()
            found.claim()
        elif name == knobs.MATTE_FROM and found.id:
            verbs.take_matte_from(found, found[knobs.MATTE_FROM])
        elif name == "showPanel":
            verbs.show_keys(found, found.view())
    except (StmNodeError, LookupError) as error:
        verbs.tell(found, str(error))
        if name == knobs.MATTE_FROM and nuke.GUI:
            nuke.message(str(error))
    finally:
        _is_busy = False


_LISTENED = _RANGE_KNOBS | {knobs.MATTE_FROM, "inputChange", "showPanel"}


def on_script_load() -> None:
    """A script was read: nodes whose matte is live get the effect, which is never saved."""
    put_effects_in()


def put_effects_in() -> None:
    """Give every node whose matte is live the effect."""
    from stm_nuke.node import find_all

    for node in find_all():
        if node.id and node.is_live:
            _put_effect_in(node)


def _put_effect_in(node: StmNode) -> None:
    """Where it cannot be the status line says so; the switch stays, and a render fails."""
    from stm_nuke import live, verbs
    from stm_nuke.errors import StmNodeError

    try:
        problem = node.arrange_live()
    except (StmNodeError, LookupError) as error:
        problem = str(error)
    if problem:
        verbs.tell(node, f"{problem} {live.INSTEAD}")


def on_script_save() -> None:
    """A cache of an unsaved script moves next to it; one of another script is left to that script.

    The OpenFX effect is taken out, for it must not be in the file, and put back when Nuke has saved.
    """
    from stm_nuke import live
    from stm_nuke.errors import StmNodeError
    from stm_nuke.node import find_all

    was_in = False
    for node in find_all():
        try:
            node.settle_after_save()
            was_in = was_in or live.is_in(node.group)
            live.take_out(node.group)
        except (StmNodeError, LookupError, RuntimeError) as error:  # saving must not fail for it
            nuke.tprint(f"STM for Nuke: {node.name}: {error}")
    if was_in and nuke.GUI:  # from another thread: then it waits until Nuke is idle, and so has saved
        threading.Thread(target=nuke.executeInMainThread, args=(put_effects_in,), daemon=True).start()


def on_script_close() -> None:
    """The nodes are going: stop what is at work for them."""
    from stm_nuke import tasks

    tasks.stop_all()


def before_render() -> None:
    """Refuse to render what would be wrong in silence.

    Raises:
        RuntimeError: an STM node above the Write shows its overlay, or has mattes of other keys or another
        plate.
    """
    from stm_nuke import capture

    if capture.is_capturing():
        return
    from stm_nuke import fingerprint
    from stm_nuke.node import StmNode

    write = nuke.thisNode()
    for node in fingerprint.depends_on(write):
        if knobs.is_stm_node(node):
            problem = what_is_wrong(StmNode(node))
            if problem:
                raise RuntimeError(problem)


def what_is_wrong(node: StmNode) -> str:
    """Why this node must not be rendered now; empty where it may."""
    from stm_nuke import cache, live
    from stm_nuke.keys import format_keys

    if node[knobs.OVERLAY]:
        return f"{node.name} shows its overlay. Switch it off to render."
    if not node.id:
        return f"{node.name} has no matte yet. Set a keyframe and propagate."
    if node.is_live or live.is_in(node.group):
        problem = node.arrange_live()
        if problem:
            return f"{problem} {live.INSTEAD}"
    for view in nuke.views():
        noted = cache.noted_keys(node.cache, view)
        if noted is not None and noted != format_keys(node.keys_in_range(view)):
            return f"The keyframes of {node.name} have changed since its mattes were made. Propagate again."
    print_ = str(node[knobs.PLATE_PRINT])
    if nuke.GUI and node[knobs.STRICT] and print_ and print_ != node.plate_print():
        return (
            f"Nodes or files above the plate of {node.name} have changed since its mattes were made. Press "
            "Check plate (frames that look the same stay), then propagate."
        )
    return ""
