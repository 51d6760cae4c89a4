"""The inside of an STM node: native nodes only, so that a saved script renders where the plug-in is missing.

With a live matte, `live.py` adds the OpenFX effect; it is never saved.

plate ------------+--> to_channel --> (objects_1..4) --> overlay --> shown --> Output1
mask, fix         |        |                              |           |
matte --> guard --|--------+------------------------------+           |
                  +--> note ------------------------------------------+

The panel reads `mask` and `fix`. `guard` fails where there can be no matte: outside the range and between two
frames. In Nuke's window, `shown` passes `note`, the plate with a line of text, where there is no matte; never
in a render. There are ten nodes, as Python reaches no more in some editions of Nuke. The `objects` nodes are
added with a second object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import nuke
from stm_nuke import knobs, releases

PLATE, MASK, FIX = 0, 1, 2
"""Numbers of the group's inputs."""
INPUTS = 3

PLATE_INPUT = "plate"
MATTE_READ = "matte"
GUARD = "guard"
NOTE, SHOWN = "note", "shown"
OVERLAY = "overlay"
TO_CHANNEL = "to_channel"
OBJECTS_PER_COPY = 4
OBJECT_COPIES = tuple(f"objects_{number}" for number in range(1, 5))

CONFIDENCE_CHANNEL = "stm.confidence"
FOREGROUND_LAYER = "fg"
NODES = (PLATE_INPUT, "mask", "fix", MATTE_READ, GUARD, TO_CHANNEL, OVERLAY, NOTE, SHOWN, "Output1")
"""All nodes inside a new STM node."""
_TINT = ("Br*(1-0.5*Aa)+0.5*Aa", "Bg*(1-0.5*Aa)", "Bb*(1-0.5*Aa)")
_STEP = 60
_SEVERAL = "a second object"
_ON_WHOLE_FRAMES = "abs(frame - rint(frame)) < 0.001"
"""Curves of a retime reach whole frames up to rounding."""
_NO_MATTE_HERE = (
    "NO MATTE HERE - the shot has the whole frames {first} to {last}. Between two frames there is none: "
    "retime above the STM node or take the nearest frame"
)
IN_THE_WINDOW = "$gui && ![python int(nuke.executing())]"
"""Whether a picture is shown in the window, not rendered."""
_HAS_NO_MATTE = f"(parent.{knobs.TIMELINE} < 1 || !({_ON_WHOLE_FRAMES}))"


def build(name: str = "STM1") -> nuke.Group:
    """A new STM node with its knobs and nodes, unconnected, without id and cache."""
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


def rebuild(group: nuke.Group) -> None:
    """Replace the inside by that of a new node, for a node of an older release of the plug-in."""
    sources = [group.input(number) for number in range(group.inputs())]
    old = group.node(TO_CHANNEL)
    channel = "rgba.alpha" if old is None else str(old["to0"].value())
    with unnoticed(group):
        for node in group.nodes():
            nuke.delete(node)
        _build_inside()
        inner(group, TO_CHANNEL)["to0"].setValue(channel)
    for number, source in enumerate(sources):
        group.setInput(number, source)


def _build_inside() -> None:
    plate = make("Input", PLATE_INPUT, [], 0, 0)
    mask = make("Input", "mask", [], 300, 0)
    fix = make("Input", "fix", [], 450, 0)
    for number, one in ((FIX, fix), (MASK, mask), (PLATE, plate)):
        one["number"].setValue(number)
    matte = make("Read", MATTE_READ, [], -300, 0)
    matte["on_error"].setValue("error")
    matte["raw"].setValue(True)
    if matte.knob("localizationPolicy") is not None:
        matte["localizationPolicy"].setValue("off")  # a local copy may be old
    guard = make("Assert", GUARD, [matte], -300, 1)
    to_channel = make("Copy", TO_CHANNEL, [plate, guard], 0, 2)
    to_channel["from0"].setValue("rgba.alpha")
    to_channel["to0"].setValue("rgba.alpha")
    for knob in ("from1", "to1"):
        to_channel[knob].setValue("none")
    overlay = make("MergeExpression", OVERLAY, [to_channel, guard], 0, 7)
    for number, expression in enumerate(_TINT):
        overlay[f"expr{number}"].setValue(expression)
    overlay["channel3"].setValue("none")
    overlay["disable"].setExpression(f"!parent.{knobs.OVERLAY}")
    note = make("Text2", NOTE, [plate], -150, 7)
    note["message"].setValue("STM: no matte on this frame")
    shown = make("Switch", SHOWN, [overlay, note], 0, 8)
    shown["which"].setExpression(f"{IN_THE_WINDOW} && {_HAS_NO_MATTE}")
    make("Output", "Output1", [shown], 0, 9)


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
    """Work in the group without undo and without changing the script's modified flag."""
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


def matte_pattern(cache: Path, folder: str = "mattes") -> str:
    """The matte sequence in a folder of a node's cache, for the Read."""
    return (cache / folder / "matte.%V.%04d.exr").as_posix()


def point_to(group: nuke.Group, pattern: str, first: int, last: int) -> None:
    """Read the matte from these files of this frame range. On other frames the node fails."""
    read, guard = inner(group, MATTE_READ), inner(group, GUARD)
    if (read["file"].value() or "") != pattern:
        read["file"].setValue(pattern)
    for knob, frame in (("first", first), ("last", last), ("origfirst", first), ("origlast", last)):
        if read[knob].value() != frame:
            read[knob].setValue(frame)
    _let(
        guard,
        f"frame >= {first} && frame <= {last} && {_ON_WHOLE_FRAMES}",
        _NO_MATTE_HERE.format(first=first, last=last),
    )


def forbid(group: nuke.Group, words: str) -> None:
    """Make every frame fail with this text."""
    _let(inner(group, GUARD), "frame < frame", words)


def _let(guard: nuke.Node, expression: str, message: str) -> None:
    """Set the condition for a frame to be rendered, and the error text where it is false."""
    if guard["message"].value() != message:
        guard["message"].setValue(message)
        guard["expression"].setExpression(expression)


def reload_matte(group: nuke.Group) -> None:
    """Make Nuke read the matte files again."""
    cast(nuke.Script_Knob, inner(group, MATTE_READ)["reload"]).execute()


def offer_objects(group: nuke.Group, names: Sequence[str]) -> None:
    """Give each object a layer in the output. A single object has the channel only."""
    layered = list(names) if len(names) > 1 else []
    for name in layered:
        nuke.Layer(name, [f"{name}.alpha"])
    wanted = -(-len(layered) // OBJECTS_PER_COPY)
    releases.check_room(group, wanted - sum(group.node(copy) is not None for copy in OBJECT_COPIES), _SEVERAL)
    for number, copy in enumerate(OBJECT_COPIES):
        node = group.node(copy)
        if node is None and number < wanted:
            node = _add_copy(group, number)
        for place in range(OBJECTS_PER_COPY if node is not None else 0):
            index = number * OBJECTS_PER_COPY + place
            channel = f"{layered[index]}.alpha" if index < len(layered) else "none"
            for knob in (f"from{place}", f"to{place}"):
                if node is not None and node[knob].value() != channel:
                    node[knob].setValue(channel)


def show_layers(group: nuke.Group, confidence: bool, foreground: bool) -> None:
    """Add layers of the matte files to the output, or remove them.

    No node is added, as editions with ten nodes have no room for one: the Copy of the matte has a second pair
    of knobs for one channel, and `channels` for a whole layer.

    Args:
        confidence: the network's confidence in each pixel.
        foreground: the plate's colours without the background.
    """
    copy = inner(group, TO_CHANNEL)
    channel = CONFIDENCE_CHANNEL if confidence else "none"
    layer = FOREGROUND_LAYER if foreground else "none"
    if confidence:
        nuke.Layer(CONFIDENCE_CHANNEL.partition(".")[0], [CONFIDENCE_CHANNEL])
    if foreground:
        nuke.Layer(FOREGROUND_LAYER, [f"{FOREGROUND_LAYER}.{one}" for one in ("red", "green", "blue")])
    for knob, value in (("from1", channel), ("to1", channel), ("channels", layer)):
        if copy[knob].value() != value:
            copy[knob].setValue(value)


FIX_ALPHA, LOOKED_AT = "fix_alpha", "looked_at"


def show_fix(group: nuke.Group, alpha: str) -> None:
    """Show the paint in the overlay on frames that are being corrected.

    Args:
        alpha: the paint, as an expression of the channels r, g, b and a.
    """
    if group.node(FIX_ALPHA) is None:
        if releases.edition():
            return  # two more nodes would be out of reach: the paint is visible in the paint node only
        with unnoticed(group):
            painted = make("Expression", FIX_ALPHA, [inner(group, "fix")], 450, 1)
            source = make("Switch", LOOKED_AT, [inner(group, GUARD), painted], 300, 6)
            source["which"].setExpression(f"{IN_THE_WINDOW} && parent.{knobs.FIXING}")
            inner(group, OVERLAY).setInput(1, source)
    inner(group, FIX_ALPHA)["expr3"].setValue(alpha)


def _add_copy(group: nuke.Group, number: int) -> nuke.Node:
    """Add a Copy for the layers of objects after the existing ones."""
    above = inner(group, OBJECT_COPIES[number - 1] if number else TO_CHANNEL)
    with unnoticed(group):
        copy = make("Copy", OBJECT_COPIES[number], [above, inner(group, GUARD)], 0, 3 + number)
        for place in range(OBJECTS_PER_COPY):
            copy[f"from{place}"].setValue("none")
            copy[f"to{place}"].setValue("none")
        inner(group, OVERLAY).setInput(0, copy)
    return copy
