"""The inside of an STM node: native nodes only, so that a saved script renders where the plug-in is missing.
(`live.py` puts the OpenFX effect in while the node's switch says so; it is never saved.)

plate ------------------------------+--> to_channel --> objects_1..4 --+--> overlay_switch --> Output1
mask (looked at by the panel)       |        |                         |    |
matte --> matte_range --+--> whole_frames ---+--> overlay_matte --> overlay_tint
        between_frames -+

Between two frames there is no matte: there `whole_frames` takes `between_frames`, a Read whose file is never
there and whose name says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import nuke
from stm_nuke import knobs

PLATE, MASK = 0, 1
"""Numbers of the group's inputs."""

PLATE_INPUT = "plate"
MATTE_READ = "matte"
MATTE_RANGE = "matte_range"
WHOLE_FRAMES, BETWEEN_FRAMES = "whole_frames", "between_frames"
BETWEEN_FRAMES_FILE = "NO MATTE BETWEEN TWO FRAMES - retime above the STM node or take the nearest frame.exr"
"""No file: what Nuke says of it tells what to do."""
TO_CHANNEL = "to_channel"
OBJECTS_PER_COPY = 4
OBJECT_COPIES = tuple(f"objects_{number}" for number in range(1, 5))

_ALWAYS_FIRST, _ALWAYS_LAST = -1000000, 1000000
"""The Read is told that it has every frame: a frame outside the range, too, fails for want of its file.
Within a range of its own a Read would hold or loop its ends, or give black."""
_TINT = ("r*(1-0.5*a)+0.5*a", "g*(1-0.5*a)", "b*(1-0.5*a)")
_STEP = 60
_IS_BETWEEN_FRAMES = "abs(frame - rint(frame)) > 0.001"
"""Curves of a retime reach whole frames by way of rounding."""


def build(name: str = "STM1") -> nuke.Group:
    """A new STM node with its knobs and nodes, connected to nothing; it has no id and no cache yet."""
    group = nuke.nodes.Group()
    group.setName(name)
    for knob in knobs.all_knobs():
        group.addKnob(knob)
    group.begin()
    try:
        _build_inside()
    finally:
        group.end()
    channel = nuke.Link_Knob(knobs.CHANNEL, "output channel")
    channel.makeLink(TO_CHANNEL, "to0")
    channel.setTooltip("The channel of the output that gets the matte.")
    group.addKnob(channel)
    group["help"].setValue("Makes a matte for the whole shot from a mask on one or a few keyframes.")
    return group


def _build_inside() -> None:
    plate = make("Input", PLATE_INPUT, [], 0, 0)
    mask = make("Input", "mask", [], 300, 0)
    mask["number"].setValue(MASK)
    plate["number"].setValue(PLATE)
    matte = make("Read", MATTE_READ, [], -300, 0)
    matte["on_error"].setValue("error")
    matte["raw"].setValue(True)
    if matte.knob("localizationPolicy") is not None:
        matte["localizationPolicy"].setValue("off")  # a local copy may be an old one
    for knob in ("first", "origfirst"):
        matte[knob].setValue(_ALWAYS_FIRST)
    for knob in ("last", "origlast"):
        matte[knob].setValue(_ALWAYS_LAST)
    matte_range = make("FrameRange", MATTE_RANGE, [matte], -300, 1)
    between = make("Read", BETWEEN_FRAMES, [], -450, 0)
    between["on_error"].setValue("error")
    between["file"].setValue(BETWEEN_FRAMES_FILE)
    shown = make("Switch", WHOLE_FRAMES, [matte_range, between], -300, 2)
    shown["which"].setExpression(_IS_BETWEEN_FRAMES)
    to_channel = make("Copy", TO_CHANNEL, [plate, shown], 0, 2)
    to_channel["from0"].setValue("rgba.alpha")
    to_channel["to0"].setValue("rgba.alpha")
    last = to_channel
    for row, name in enumerate(OBJECT_COPIES, 3):
        last = make("Copy", name, [last, shown], 0, row)
        for number in range(OBJECTS_PER_COPY):
            last[f"from{number}"].setValue("none")
            last[f"to{number}"].setValue("none")
    overlay = make("Copy", "overlay_matte", [plate, shown], -150, 7)
    overlay["from0"].setValue("rgba.alpha")
    overlay["to0"].setValue("rgba.alpha")
    tint = make("Expression", "overlay_tint", [overlay], -150, 8)
    for number, expression in enumerate(_TINT):
        tint[f"expr{number}"].setValue(expression)
    switch = make("Switch", "overlay_switch", [last, tint], 0, 9)
    switch["which"].setExpression(f"parent.{knobs.OVERLAY}")
    make("Output", "Output1", [switch], 0, 10)


def make(class_name: str, name: str, inputs: Sequence[nuke.Node], x: int, row: int) -> nuke.Node:
    """A node in the current group. RuntimeError where Nuke has no such class."""
    node = getattr(nuke.nodes, class_name)()
    node.setName(name)
    for number, one in enumerate(inputs):
        node.setInput(number, one)
    node.setXYpos(x, row * _STEP)
    return cast(nuke.Node, node)


def inner(group: nuke.Group, name: str) -> nuke.Node:
    """A node of the inside. LookupError where somebody has removed it."""
    node = group.node(name)
    if node is None:
        raise LookupError(f"{group.fullName()} has lost its inner node {name}. Make a new STM node.")
    return node


@contextlib.contextmanager
def unnoticed(group: nuke.Group) -> Iterator[None]:
    """Work in the group, leaving no trace: nothing to undo, the script as modified as it was."""
    root = nuke.root()
    was_modified = root.modified()
    nuke.Undo.disable()
    group.begin()
    try:
        yield
    finally:
        group.end()
        nuke.Undo.enable()
        root.setModified(was_modified)


def matte_pattern(cache: Path) -> str:
    """The matte sequence in a node's cache, as the Read has it."""
    return (cache / "mattes" / "matte.%V.%04d.exr").as_posix()


def point_to(group: nuke.Group, pattern: str, first: int, last: int) -> None:
    """Let the matte come from these files, and report this frame range."""
    read, shown = inner(group, MATTE_READ), inner(group, MATTE_RANGE)
    if read["file"].value() != pattern:
        read["file"].setValue(pattern)
        for knob, frame in (("first", _ALWAYS_FIRST), ("last", _ALWAYS_LAST)):
            read[knob].setValue(frame)
    for knob, frame in (("first_frame", first), ("last_frame", last)):
        if shown[knob].value() != frame:
            shown[knob].setValue(frame)


def reload_matte(group: nuke.Group) -> None:
    """Let Nuke look at the matte files again."""
    cast(nuke.Script_Knob, inner(group, MATTE_READ)["reload"]).execute()


def offer_objects(group: nuke.Group, names: Sequence[str]) -> None:
    """Give each object a layer of its own in the output.

    With a single object there is none beside the channel.
    """
    layered = list(names) if len(names) > 1 else []
    for name in layered:
        nuke.Layer(name, [f"{name}.alpha"])
    places = [(copy, number) for copy in OBJECT_COPIES for number in range(OBJECTS_PER_COPY)]
    for index, (copy, number) in enumerate(places):
        channel = f"{layered[index]}.alpha" if index < len(layered) else "none"
        node = inner(group, copy)
        for knob in (f"from{number}", f"to{number}"):
            if node[knob].value() != channel:
                node[knob].setValue(channel)
