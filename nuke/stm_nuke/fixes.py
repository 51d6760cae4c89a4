"""Correcting a matte: its files in a Read beside the node, a RotoPaint on top, and a new key.

    plate --> copy of the mattes --> RotoPaint --> the input `fix` of the STM node

The Read shows copies of the mattes from when the correction began, so that the picture under the paint does
not change while the mattes are made anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nuke
from stm_nuke import cache, copies, group, knobs
from stm_nuke.errors import KeyframeError, UsageError

if TYPE_CHECKING:
    from stm_nuke.node import MaskObject, StmNode

_SINGLE_FRAME = "single"
"""The setting of a RotoPaint's tools for strokes on their frame only."""
_LETTERS = {"rgba.red": "r", "rgba.green": "g", "rgba.blue": "b", "rgba.alpha": "a"}
_BESIDE, _STEP = 220, 60


def frames_in_hand(node: StmNode) -> list[int]:
    """The frames that are being corrected."""
    knob = node.group[knobs.FIXING]
    return [frame for frame in knob.getKeyList() if knob.getValueAt(frame)]


def take_in_hand(node: StmNode, frame: int, view: str) -> nuke.Node:
    """Prepare a frame for painting: make the missing nodes beside the STM node.

    Returns:
        The node to paint in.

    Raises:
        KeyframeError: the frame has no matte. UsageError: the mattes are in no files.
    """
    if node.is_live:
        raise UsageError(
            f"{node.name} takes its matte live, and files are painted on.",
            hint="Choose 'files' under 'matte from'.",
        )
    held_before = cache.matte_frames(node.cache, view, cache.HELD)
    if frame not in cache.matte_frames(node.cache, view) | held_before:
        raise KeyframeError(
            "There is no matte to correct.",
            frame=frame,
            hint="Propagate first. Set key takes a mask that is drawn anew.",
        )
    held = cache.hold_mattes(node.cache, view, frame)
    paint = node.group.input(group.FIX)
    frames = {frame}
    if paint is None:
        paint = _build(node)  # of a pasted node, the curve has frames whose paint is not here
    else:
        frames.update(frames_in_hand(node))
    for read in copies.reads_of(node.group, node.cache.as_posix()):
        for name, value in (("first", held[0]), ("last", held[1])):
            for knob in (name, f"orig{name}"):
                read[knob].setValue(value)
        read["reload"].execute()  # type: ignore[attr-defined]
    _record_frames(node, sorted(frames))
    group.show_fix(node.group, _alpha_of(node.objects))
    return paint


def check_in_hand(node: StmNode, frame: int) -> None:
    """Raises KeyframeError where this frame is not being corrected."""
    frames = frames_in_hand(node)
    if frame not in frames:
        known = ", ".join(str(one) for one in frames)
        raise KeyframeError(
            "This frame is not being corrected.",
            frame=frame,
            hint=f"Press Correct this frame first{f' (being corrected: {known})' if frames else ''}.",
        )


def _build(node: StmNode) -> nuke.Node:
    plate = node.connected_plate()
    x, y = node.group.xpos() + _BESIDE, node.group.ypos()
    parent = node.group.parent()
    parent.begin()
    try:
        read = nuke.nodes.Read(file=cache.held_pattern(node.cache))
        read.setName(f"{node.group.name()}_matte")
        read.setXYpos(x + _BESIDE, y - 3 * _STEP)
        for name, value in (("raw", True), ("on_error", "black"), ("localizationPolicy", "off")):
            if read.knob(name) is not None:
                read[name].setValue(value)
        last = plate
        for number in range(0, len(node.objects), group.OBJECTS_PER_COPY):
            some = node.objects[number : number + group.OBJECTS_PER_COPY]
            last = _copy(last, read, some, len(node.objects) > 1)
            last.setXYpos(x, y - 3 * _STEP + number * _STEP // group.OBJECTS_PER_COPY)
        paint = nuke.nodes.RotoPaint()
        paint.setName(f"{node.group.name()}_fix")
        paint.setInput(0, last)
        paint.setXYpos(x, y - _STEP)
        channel = node.objects[0].channel
        for name, value in (
            ("output", "alpha" if channel == "rgba.alpha" and len(node.objects) == 1 else "rgba"),
            ("premultiply", "none"),
            ("toolbar_lifetime_type", _SINGLE_FRAME),
        ):
            with contextlib.suppress(TypeError, ValueError):  # another name in this release
                if paint.knob(name) is not None:
                    paint[name].setValue(value)
    finally:
        parent.end()
    node.group.setInput(group.FIX, paint)
    return paint


def _copy(source: nuke.Node, read: nuke.Node, objects: Sequence[MaskObject], layered: bool) -> nuke.Node:
    """Copy the mattes of up to four objects into the channels in which the mask input has them."""
    copy = nuke.nodes.Copy()
    copy.setInput(0, source)
    copy.setInput(1, read)
    for number in range(group.OBJECTS_PER_COPY):
        one = objects[number] if number < len(objects) else None
        shown = "rgba.alpha" if one is None or not layered else f"{one.name}.alpha"
        copy[f"from{number}"].setValue("none" if one is None else shown)
        copy[f"to{number}"].setValue("none" if one is None else one.channel)
    return copy


def _alpha_of(objects: Sequence[MaskObject]) -> str:
    """All objects together, as an expression of their painted channels."""
    letters = [_LETTERS[one.channel] for one in objects if one.channel in _LETTERS] or ["a"]
    expression = letters[0]
    for letter in letters[1:]:
        expression = f"max({expression}, {letter})"
    return expression


def _record_frames(node: StmNode, frames: Sequence[int]) -> None:
    """Write the frames that are being corrected into the node's curve: 1 on each of them, 0 elsewhere."""
    steps = {frames[0] - 1: 0}
    for frame in frames:
        steps[frame] = 1
        steps.setdefault(frame + 1, 0)
    text = " ".join(f"x{frame} {steps[frame]}" for frame in sorted(steps))
    node.group[knobs.FIXING].fromScript("{{curve K " + text + "}}")
