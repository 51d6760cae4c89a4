"""The buttons of the panel: each runs a verb and shows its error."""

from __future__ import annotations

from typing import Callable

import nuke
from stm_nuke import tasks, verbs
from stm_nuke.errors import StmNodeError, Stopped
from stm_nuke.frames import counted, in_words
from stm_nuke.node import StmNode, current_frame, current_time


def press(node: nuke.Node, button: str) -> None:
    """Run a button's verb. Errors are shown, in a dialog if there is a window."""
    if not nuke.GUI:
        _BUTTONS[button](StmNode(node))
        return
    try:
        _BUTTONS[button](StmNode(node))
    except Stopped:
        verbs.show_text(StmNode(node), "Stopped.")
    except (StmNodeError, LookupError) as error:
        text = str(error)
        verbs.show_text(StmNode(node), text)
        nuke.message(text)


def _set_key(node: StmNode) -> None:
    verbs.set_key(node, current_frame(), node.view())
    verbs.show_keys(node, node.view())


def _correct(node: StmNode) -> None:
    paint = verbs.correct(node, current_frame(), node.view())
    verbs.show_text(
        node,
        f"Paint or erase in {paint.fullName()}, in the channel of the object; overlay shows it here. "
        "Then press Set key from fix.",
    )
    if nuke.GUI:
        paint.showControlPanel()


def _set_key_from_fix(node: StmNode) -> None:
    verbs.set_key_from_fix(node, current_frame(), node.view())
    verbs.show_keys(node, node.view())


def _keys_from_roto(node: StmNode) -> None:
    frames = verbs.roto_frames(node, node.view())
    if nuke.GUI and not nuke.ask(f"Set {counted(len(frames), 'keyframe')}: {in_words(frames)}?"):
        return
    verbs.keys_from_roto(node, node.view(), frames)
    verbs.show_keys(node, node.view())


def _delete_key(node: StmNode) -> None:
    verbs.delete_key(node, current_frame(), node.view())
    verbs.show_keys(node, node.view())


def _previous_key(node: StmNode) -> None:
    nuke.frame(verbs.neighbouring_key(node, current_time(), node.view(), -1))


def _next_key(node: StmNode) -> None:
    nuke.frame(verbs.neighbouring_key(node, current_time(), node.view(), 1))


def _go_to_advised(node: StmNode) -> None:
    nuke.frame(verbs.advised_frame(node))


def _update_keys(node: StmNode) -> None:
    verbs.update_keys(node, node.view())


def _backward(node: StmNode) -> None:
    verbs.propagate(node, node.view(), (_range(node)[0], current_frame()), "backward")


def _both(node: StmNode) -> None:
    verbs.propagate(node, node.view())


def _forward(node: StmNode) -> None:
    verbs.propagate(node, node.view(), (current_frame(), _range(node)[1]), "forward")


def _span(node: StmNode) -> None:
    verbs.propagate(node, node.view(), verbs.span_around(node, current_frame(), node.view()))


def _range(node: StmNode) -> tuple[int, int]:
    return node.snapshot(node.view()).frames


def _stop(node: StmNode) -> None:
    verbs.show_text(node, "Stopping." if verbs.stop(node) else "No task is running.")


def _refresh(node: StmNode) -> None:
    verbs.refresh(node, node.view())


def _check_plate(node: StmNode) -> None:
    verbs.check_plate(node, node.view())


def _shapes(node: StmNode) -> None:
    verbs.shapes_from_matte(node, node.view())


def _farm_bundle(node: StmNode) -> None:
    verbs.farm_bundle(node, node.view())


def _range_from_input(node: StmNode) -> None:
    first, last = node.take_range_from_input()
    node.claim()
    verbs.show_text(node, f"The range is {first}-{last}.")


def _move_cache(node: StmNode) -> None:
    if tasks.running(node.id) is not None:
        raise StmNodeError(f"{node.name} has a running task.", hint="Stop it first.")
    verbs.show_text(node, f"The cache is {node.move_cache()}.")


_BUTTONS: dict[str, Callable[[StmNode], None]] = {
    "set_key": _set_key,
    "correct": _correct,
    "set_key_from_fix": _set_key_from_fix,
    "keys_from_roto": _keys_from_roto,
    "delete_key": _delete_key,
    "previous_key": _previous_key,
    "next_key": _next_key,
    "go_to_advised": _go_to_advised,
    "update_keys": _update_keys,
    "backward": _backward,
    "both": _both,
    "forward": _forward,
    "span": _span,
    "stop": _stop,
    "refresh": _refresh,
    "check_plate": _check_plate,
    "shapes": _shapes,
    "farm_bundle": _farm_bundle,
    "range_from_input": _range_from_input,
    "move_cache": _move_cache,
}
