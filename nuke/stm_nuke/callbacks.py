"""Nuke's callbacks: a node is made, a knob is changed, the script is saved or closed, a render begins.

Every callback returns at once if there is no STM node. None edits the graph, because Nuke may raise or crash
there; work is done when Nuke is idle again. None raises, because an error would stop other callbacks; the
exception is `before_render`. The rest of the package is imported when it is needed, so that Nuke starts as
fast as without it.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Callable

import nuke
from stm_nuke import knobs

if TYPE_CHECKING:
    from stm_nuke.node import StmNode

_RANGE_KNOBS = frozenset((knobs.FIRST, knobs.LAST))
_FINISH_KNOBS = frozenset((knobs.CONFIDENCE, knobs.FOREGROUND, knobs.EDGES, knobs.EDGE_WIDTH))
_LISTENED = _RANGE_KNOBS | {
    *(knobs.MATTE_FROM, knobs.MISSING, knobs.COMPARE),
    *_FINISH_KNOBS,
    *("inputChange", "showPanel"),
}
_CREATED = "created"
PANEL_SECONDS = 0.25
"""The most seconds for checking changed masks when a panel is opened."""
_waiting: list[tuple[str, str]] = []
"""Node and event of work for when Nuke is idle."""
_is_busy = False
"""Newer releases call `knobChanged` for this package's changes of knobs, too."""
_is_installed = False


def install() -> None:
    """Register the callbacks, once."""
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


def when_idle(work: Callable[[], object]) -> None:
    """Call it in Nuke's main thread after its present work. Only where there is a window."""
    threading.Thread(target=nuke.executeInMainThread, args=(work,), name="STM when idle", daemon=True).start()


def _remember(node: nuke.Node, event: str) -> None:
    entry = node.fullName(), event
    if entry not in _waiting:
        _waiting.append(entry)
    if len(_waiting) == 1:
        when_idle(_work_off)


def _work_off() -> None:
    """Do the work that callbacks have queued."""
    global _is_busy
    waiting = list(_waiting)
    _waiting.clear()
    from stm_nuke.node import StmNode

    for name, event in waiting:
        node = nuke.toNode(name)
        if node is None or not knobs.is_stm_node(node):
            continue  # deleted meanwhile
        _is_busy = True
        try:
            _catch_up(StmNode(node), event)
        except Exception:  # a bug here must not disturb Nuke's window
            sys.excepthook(*sys.exc_info())
        finally:
            _is_busy = False


def _catch_up(node: StmNode, event: str) -> None:
    from stm_nuke import verbs
    from stm_nuke.errors import StmNodeError

    try:
        if event == _CREATED:
            if node.id and node.twin() is not None:
                node.claim()
            if node.id and node.is_live:
                _put_effect_in(node)
        elif event == "inputChange":
            if node.frames == (0, 0) and node.plate is not None:
                node.take_range_from_input()
                node.claim()
        elif event == knobs.MATTE_FROM:
            verbs.take_matte_from(node, node[knobs.MATTE_FROM])
        elif event in _FINISH_KNOBS:
            verbs.take_finish(node, node.view())
        elif event == knobs.COMPARE:
            node.claim()
            node.show_timeline(node.view())
        elif event == knobs.MISSING:
            node.show_timeline(node.view())
        else:
            node.claim()
    except (StmNodeError, LookupError) as error:
        verbs.show_text(node, str(error))
        if event == knobs.MATTE_FROM:
            nuke.message(str(error))


def on_create() -> None:
    """A node was pasted, read from a script, or made: a copy gets a separate cache first.

    The nodes inside the group may not exist yet.
    """
    try:
        node = nuke.thisNode()
        if nuke.GUI and knobs.is_stm_node(node):
            _remember(node, _CREATED)
    except Exception:
        sys.excepthook(*sys.exc_info())


def on_knob_changed() -> None:
    """Called when the range is changed, the panel is opened, or an input is connected."""
    if _is_busy or not nuke.GUI:
        return  # while a script is read, too, this is called for every knob
    try:
        node, name = nuke.thisNode(), nuke.thisKnob().name()
        if name not in _LISTENED or not knobs.is_stm_node(node):
            return
        if name == "showPanel":
            from stm_nuke import verbs
            from stm_nuke.node import StmNode

            found = StmNode(node)
            verbs.show_keys(found, found.view(), PANEL_SECONDS)
        elif node[knobs.NODE_ID].value():  # not while it is being built
            _remember(node, name)
    except Exception:
        sys.excepthook(*sys.exc_info())


def on_script_load() -> None:
    """A script was read: put the effect, which is never saved, into nodes with a live matte."""
    if nuke.GUI:
        when_idle(put_effects_in)
    else:
        put_effects_in()


def put_effects_in() -> None:
    """Put the effect into every node with a live matte, and remove it from all others."""
    from stm_nuke import live
    from stm_nuke.node import find_all

    for node in find_all():
        if node.id and (node.is_live or live.is_in(node.group)):
            _put_effect_in(node)


def _put_effect_in(node: StmNode) -> None:
    """Put the effect into a node. If it cannot be, the status line says so, the switch stays, and renders
    fail."""
    from stm_nuke import live, verbs
    from stm_nuke.errors import StmNodeError

    try:
        problem = node.arrange_live()
    except (StmNodeError, LookupError) as error:
        problem = str(error)
    if problem:
        verbs.show_text(node, f"{problem} {live.INSTEAD}")


def on_script_save() -> None:
    """Move the cache of an unsaved script next to it; a cache of another script is not moved.

    The OpenFX effect is removed, as it must not be in the file, and put back after saving.
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
        except (StmNodeError, LookupError, RuntimeError) as error:  # saving must not fail because of it
            nuke.tprint(f"STM for Nuke: {node.name}: {error}")
    if was_in and nuke.GUI:
        when_idle(put_effects_in)  # then Nuke has saved


def on_script_close() -> None:
    """The nodes are deleted: stop their tasks."""
    from stm_nuke import tasks

    tasks.stop_all()


def before_render() -> None:
    """Refuse renders that would be wrong without notice.

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
    is_flipbook = is_in_flipbook(write)
    for node in fingerprint.depends_on(write):
        if knobs.is_stm_node(node):
            problem = what_is_wrong(StmNode(node), is_flipbook)
            if problem and nuke.GUI:
                _remember(node, "beforeRender")  # an undo does not restore the inside: repaired later
            if problem:
                raise RuntimeError(problem)


def is_in_flipbook(write: nuke.Node) -> bool:
    """Whether a Write is the one that Nuke makes for a flipbook, in a group of that name."""
    if "." not in write.fullName() or not nuke.GUI:
        return False
    outer = write.parent()
    is_small = {node.Class() for node in outer.nodes()} <= {"Input", "Output", "Shuffle", "Shuffle2", "Write"}
    return is_small and outer.name().startswith("Flipbook")


def is_switched_off(node: StmNode) -> bool:
    """Whether the artist has disabled the node on all frames, so that it passes the plate on."""
    knob = node.group.knob("disable")
    return knob is not None and bool(knob.value()) and not (knob.isAnimated() or knob.hasExpression())


def what_is_wrong(node: StmNode, is_flipbook: bool = False) -> str:
    """Why this node must not be rendered now; empty where it may. A flipbook may show the overlay."""
    from stm_nuke import cache, live, verbs
    from stm_nuke.keys import format_keys

    if is_switched_off(node):
        return ""
    if node[knobs.OVERLAY] and not is_flipbook:
        return f"{node.name} shows its overlay. Switch it off to render."
    if node.shows_old and not is_flipbook:
        return f"{node.name} shows its old mattes. Choose 'new' under 'look at mattes' to render."
    if not node.id:
        return f"{node.name} has no matte yet. Set a keyframe and propagate."
    if node.is_live or live.is_in(node.group):
        problem = node.live_problem()
        if problem:
            return f"{problem} {live.INSTEAD}"
        if node.has_foreground:
            return verbs.FOREGROUND_IN_FILES.format(name=node.name)
    for view in nuke.views():
        if not node.is_live and not node.finish.fits(node.cache, view):
            return f"Edges or layers of {node.name} have changed since its mattes were made. Propagate again."
        noted = cache.recorded_keys(node.cache, view)
        if noted is not None and noted != format_keys(node.keys_in_range(view)):
            return f"The keyframes of {node.name} have changed since its mattes were made. Propagate again."
    recorded = str(node[knobs.PLATE_FINGERPRINT])
    if nuke.GUI and node[knobs.STRICT] and recorded and recorded != node.plate_fingerprint():
        return (
            f"Nodes or files above the plate of {node.name} have changed since its mattes were made. Press "
            "Check plate (frames that look the same stay), then propagate."
        )
    return ""
