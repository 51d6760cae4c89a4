"""Nodes, groups and the root: their knobs, their connections, their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import _knobs as k
from . import _ofx
from ._host import host
from ._roto import CurveKnob

INPUTS, HIDDEN_INPUTS, EXPRESSIONS, LINKINPUTS = 1, 4, 2, 8

_COMPRESSIONS = ["none", "ZIP (1 scanline)", "ZIP (16 scanlines)", "PIZ Wavelet (32 scanlines)"]
_METADATA = [
    "no metadata",
    "default metadata",
    "default metadata and exr/*",
    "all metadata except input/*",
    "all metadata",
]
_TIME_FILTERS = ["none", "nearest"]
"""Those of the real ones' that blend no frames."""
_INTERLEAVE = ["channels, layers and views", "channels and layers", "channels"]
_COMMON = (
    ("name", k.String_Knob, ""), ("help", k.Multiline_Eval_String_Knob, ""),
    ("label", k.Multiline_Eval_String_Knob, ""),
    ("selected", k.Boolean_Knob, False), ("xpos", k.Int_Knob, 0), ("ypos", k.Int_Knob, 0),
    ("tile_color", k.Unsigned_Knob, 0), ("disable", k.Boolean_Knob, False),
)  # fmt: skip
_CHANNELS = tuple((f"{end}{number}", k.Channel_Knob, "none") for number in range(4) for end in ("from", "to"))
_NATIVE: dict[str, tuple[int, tuple[tuple[str, Any, Any], ...]]] = {
    # class: (inputs, knobs with their defaults; a list is the choices of a menu)
    "Read": (0, (
        ("file", k.File_Knob, ""),
        ("first", k.Int_Knob, 1), ("last", k.Int_Knob, 1),
        ("origfirst", k.Int_Knob, 1), ("origlast", k.Int_Knob, 1),
        ("before", k.Enumeration_Knob, ["hold", "loop", "bounce", "black"]),
        ("after", k.Enumeration_Knob, ["hold", "loop", "bounce", "black"]),
        ("on_error", k.Enumeration_Knob, ["error", "black", "checkerboard", "nearest frame"]),
        ("localizationPolicy", k.Enumeration_Knob, ["fromAutoLocalizePath", "on", "onDemand", "off"]),
        ("frame_mode", k.Enumeration_Knob, ["expression", "start at", "offset"]),
        ("frame", k.String_Knob, ""),
        ("raw", k.Boolean_Knob, False), ("auto_alpha", k.Boolean_Knob, False), ("reload", k.Script_Knob, ""),
        ("colorspace", k.String_Knob, "default"), ("premultiplied", k.Boolean_Knob, False),
        ("useLifetime", k.Boolean_Knob, False), ("sequence", k.Multiline_Eval_String_Knob, ""),
        ("in_colorspace", k.String_Knob, "scene_linear"), ("out_colorspace", k.String_Knob, "scene_linear"),
    )),
    "Write": (1, (
        ("file", k.File_Knob, ""), ("channels", k.Channel_Knob, "rgb"), ("raw", k.Boolean_Knob, False),
        ("file_type", k.Enumeration_Knob, ["exr", "png"]), ("create_directories", k.Boolean_Knob, False),
        ("datatype", k.Enumeration_Knob, ["16 bit half", "32 bit float"]),
        ("compression", k.Enumeration_Knob, _COMPRESSIONS), ("autocrop", k.Boolean_Knob, False),
        ("use_limit", k.Boolean_Knob, False), ("first", k.Int_Knob, 1), ("last", k.Int_Knob, 1),
        ("beforeRender", k.String_Knob, ""), ("truncateChannelNames", k.Boolean_Knob, False),
        ("metadata", k.Enumeration_Knob, _METADATA), ("interleave", k.Enumeration_Knob, _INTERLEAVE),
    )),
    "Copy": (2, (*_CHANNELS, ("channels", k.Channel_Knob, "none"))),
    "Switch": (2, (("which", k.Double_Knob, 0.0),)),
    "Assert": (1, (("expression", k.Double_Knob, 1.0), ("message", k.Multiline_Eval_String_Knob, ""))),
    "MergeExpression": (2, (
        *((f"expr{number}", k.EvalString_Knob, "") for number in range(4)),
        *((f"channel{number}", k.Channel_Knob, name) for number, name in enumerate(
            ("rgba.red", "rgba.green", "rgba.blue", "rgba.alpha"))),
    )),
    "Text2": (1, (("message", k.Multiline_Eval_String_Knob, ""),)),
    "Roto": (1, (
        ("curves", CurveKnob, ""), ("output", k.Channel_Knob, "alpha"),
        ("cliptype", k.Enumeration_Knob, ["no clip", "bbox", "format", "union", "intersect"]),
    )),
    "RotoPaint": (4, (
        ("curves", CurveKnob, ""), ("output", k.Channel_Knob, "rgba"),
        ("premultiply", k.Channel_Knob, "rgb"),
        ("toolbar_lifetime_type", k.Enumeration_Knob, ["all", "start", "single", "end", "range"]),
    )),
    "FrameRange": (1, (("first_frame", k.Int_Knob, 1), ("last_frame", k.Int_Knob, 1))),
    "Expression": (1, tuple((f"expr{number}", k.EvalString_Knob, "") for number in range(4))),
    "Grade": (1, (("multiply", k.Double_Knob, 1.0), ("add", k.Double_Knob, 0.0))),
    "TimeOffset": (1, (("time_offset", k.Int_Knob, 0),)),
    "TimeWarp": (1, (("lookup", k.Double_Knob, 0.0), ("filter", k.Enumeration_Knob, _TIME_FILTERS))),
    "Retime": (1, (
        ("input.first", k.Double_Knob, 1.0), ("output.first", k.Double_Knob, 1.0),
        ("speed", k.Double_Knob, 1.0), ("filter", k.Enumeration_Knob, _TIME_FILTERS),
    )),
    "Crop": (1, (("box", k.BBox_Knob, (0.0, 0.0, 0.0, 0.0)),)),
    "NoOp": (1, ()),
    "Dot": (1, ()),
    "Input": (1, (("number", k.Int_Knob, 0),)),
    "Output": (1, ()),
    "Group": (0, ()),
}  # fmt: skip


class Format:
    """A picture's size; its left and bottom are 0."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._width, self._height = int(args[0]), int(args[1])
        self._aspect = float(args[6]) if len(args) > 6 else 1.0
        self._name = str(args[7]) if len(args) > 7 else ""

    def width(self) -> int:
        return self._width

    def height(self) -> int:
        return self._height

    def r(self) -> int:
        return self._width

    def t(self) -> int:
        return self._height

    def pixelAspect(self) -> float:
        return self._aspect

    def name(self) -> str:
        return self._name

    def _key(self) -> tuple[Any, ...]:
        return self._width, self._height, self._aspect

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Format) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


class Info:
    """A bounding box, y up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._box = tuple(float(one) for one in args)

    def x(self) -> float:
        return self._box[0]

    def y(self) -> float:
        return self._box[1]

    def w(self) -> float:
        return self._box[2]

    def h(self) -> float:
        return self._box[3]


class FrameRange:
    """First and last frame."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._first, self._last = int(args[0]), int(args[1])

    def first(self) -> int:
        return self._first

    def last(self) -> int:
        return self._last


class Node:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._class = str(args[0])
        self._parent: Group | None = args[1]
        self._knobs: dict[str, k.Knob] = {}
        self._inputs: list[Node | None] = []
        self._maximum, native = _NATIVE.get(self._class, (1, ()))
        self._is_shown = False
        self._clones = [0]
        """How many clones there are of it: one list for all of them."""
        for name, kind, default in (*_COMMON, *native):
            self._add_native(name, kind, default)
        effect = _ofx.plugin_of(self._class)
        if effect is not None:
            self._maximum = _ofx.inputs_of(effect)
            _ofx.add_knobs(self, effect)

    def _add_native(self, name: str, kind: Any, default: Any) -> None:
        knob = kind(name, name, default) if isinstance(default, list) else kind(name, name)
        if not isinstance(default, list):
            knob._value = knob._original = default
        knob._owner = self
        self._knobs[name] = knob

    # ---- knobs

    def Class(self) -> str:
        return self._class

    def addKnob(self, knob: k.Knob) -> None:
        if knob.name() in self._knobs:
            raise ValueError(f"{self.name()} has a knob {knob.name()} already")
        knob._owner, knob._is_user = self, True
        self._knobs[knob.name()] = knob

    def removeKnob(self, knob: k.Knob) -> None:
        del self._knobs[knob.name()]

    def knob(self, p: str | int, follow_link: bool = False) -> k.Knob | None:
        return self._knobs.get(p) if isinstance(p, str) else list(self._knobs.values())[p]

    def knobs(self) -> dict[str, k.Knob]:
        return dict(self._knobs)

    def allKnobs(self) -> list[k.Knob]:
        return list(self._knobs.values())

    def __getitem__(self, name: str) -> k.Knob:
        self._check_alive()
        if name not in self._knobs:
            raise NameError(f"knob {name} does not exist on node {self.name()}")
        return self._knobs[name]

    def _changed(self, knob: k.Knob) -> None:
        if host.root is not None:
            host.root.setModified(True)
        host.tell("knobChanged", self, knob)

    # ---- its place

    def name(self) -> str:
        self._check_alive()
        return str(self._knobs["name"]._value)

    def fullName(self) -> str:
        parent = self._parent
        inside = parent is not None and not isinstance(parent, Root)
        return f"{parent.fullName()}.{self.name()}" if parent is not None and inside else self.name()

    def setName(self, name: str, uncollide: bool = True, updateExpressions: bool = False) -> None:
        taken = {one.name() for one in self.parent().nodes() if one is not self}
        self._knobs["name"]._value = uncollided(name, taken)

    def parent(self) -> Group:
        self._check_alive()
        assert self._parent is not None
        return self._parent

    def _check_alive(self) -> None:
        if self._class != "Root" and (self._parent is None or self not in self._parent._nodes):
            raise ValueError("A PythonObject is not attached to a node")

    def setXYpos(self, x: int, y: int) -> None:
        self._knobs["xpos"]._value, self._knobs["ypos"]._value = x, y

    def xpos(self) -> int:
        return int(self._knobs["xpos"]._value)

    def ypos(self) -> int:
        return int(self._knobs["ypos"]._value)

    def setSelected(self, selected: bool) -> None:
        self._knobs["selected"]._value = selected

    def isSelected(self) -> bool:
        return bool(self._knobs["selected"]._value)

    def showControlPanel(self, forceFloat: bool = False) -> None:
        self._is_shown = True
        shown = k.Boolean_Knob("showPanel", "showPanel")
        shown._owner = self
        host.tell("knobChanged", self, shown)

    def shown(self) -> bool:
        return self._is_shown

    # ---- connections

    def clones(self) -> int:
        return self._clones[0]

    def inputs(self) -> int:
        return len(self._inputs)

    def input(self, index: int) -> Node | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def maxInputs(self) -> int:
        return self._maximum

    def setInput(self, i: int, node: Node | None) -> bool:
        host.edit_graph()
        if i >= self.maxInputs():
            return False
        while len(self._inputs) <= i:
            self._inputs.append(None)
        self._inputs[i] = node
        while self._inputs and self._inputs[-1] is None:
            self._inputs.pop()
        if host.root is not None:
            host.root.setModified(True)
        changed = k.String_Knob("inputChange", "inputChange")
        changed._owner = self
        host.tell("knobChanged", self, changed)
        return True

    def connectInput(self, i: int, node: Node | None) -> bool:
        return self.setInput(i, node)

    def dependencies(self, mask: int) -> list[Node]:
        found = [one for one in self._inputs if one is not None] if mask & (INPUTS | HIDDEN_INPUTS) else []
        if mask & EXPRESSIONS and any("parent." in str(one._expression) for one in self._knobs.values()):
            found.append(self.parent())
        return found

    # ---- its picture

    def format(self) -> Format:
        from ._pixels import format_of

        return format_of(self, host.frame, host.viewer_view)

    def pixelAspect(self) -> float:
        return self.format().pixelAspect()

    def width(self) -> int:
        return self.format().width()

    def height(self) -> int:
        return self.format().height()

    def bbox(self) -> Info:
        from ._pixels import render

        picture = render(self, host.frame, host.viewer_view)
        x, y, width, height = picture.window
        return Info(x, picture.format.height() - y - height, width, height)

    def channels(self) -> list[str]:
        from ._pixels import channels_of

        return channels_of(self, host.frame, host.viewer_view)

    def frameRange(self) -> FrameRange:
        from ._pixels import range_of

        return FrameRange(*range_of(self))

    def firstFrame(self) -> int:
        return self.frameRange().first()

    def lastFrame(self) -> int:
        return self.frameRange().last()

    def metadata(self, *args: Any, **kwargs: Any) -> Any:
        from ._pixels import render

        key = next((one for one in args if isinstance(one, str) and "/" in one), None)
        times = [one for one in args if isinstance(one, (int, float))]
        frame = times[0] if times else host.frame
        found = dict(render(self, frame, host.viewer_view).metadata)
        return found if key is None else found.get(key)


class Group(Node):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._nodes: list[Node] = []
        super().__init__(*args)

    def maxInputs(self) -> int:
        return sum(one.Class() == "Input" for one in self._nodes)

    def begin(self) -> Group:
        host.groups.append(self)
        return self

    def end(self) -> None:
        assert host.groups.pop() is self

    def __enter__(self) -> Group:
        return self.begin()

    def __exit__(self, type: Any, value: Any, traceback: Any) -> Any:
        self.end()

    def nodes(self) -> list[Node]:
        """In some editions Python can use only the first ones."""
        return list(self._nodes[: host.reach])

    def numNodes(self) -> int:
        return len(self._nodes)

    def node(self, s: str) -> Node | None:
        head, _, rest = s.partition(".")
        found = next((one for one in self.nodes() if one.name() == head), None)
        return found.node(rest) if rest and isinstance(found, Group) else None if rest else found


class _TimeKnob(k.Double_Knob):
    """The script's current time. Not undone, and no change to the script."""

    def setValue(self, *args: Any, **kwargs: Any) -> Any:
        host.frame = float(args[0])
        return True

    def _evaluated(self, frame: float | None = None) -> Any:
        return float(host.frame)


class Root(Group):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("Root", None)
        self._modified = False
        for name, kind, default in (
            ("first_frame", k.Int_Knob, 1), ("last_frame", k.Int_Knob, 100), ("fps", k.Double_Knob, 24.0),
            ("format", k.Format_Knob, Format(2048, 1556, 0, 0, 2048, 1556, 1.0, "2K_Super_35(full-ap)")),
            ("proxy", k.Boolean_Knob, False), ("colorManagement", k.Enumeration_Knob, ["Nuke", "OCIO"]),
            ("OCIO_config", k.Enumeration_Knob, ["nuke-default", "aces_1.2", "custom"]),
            ("customOCIOConfigPath", k.File_Knob, ""), ("workingSpaceLUT", k.String_Knob, "linear"),
            ("views", k.String_Knob, "main"), ("frame", _TimeKnob, 1.0),
            ("project_directory", k.File_Knob, ""), ("floatLut", k.String_Knob, "linear"),
        ):  # fmt: skip
            self._add_native(name, kind, default)

    def modified(self) -> bool:
        return self._modified

    def setModified(self, modified: bool) -> None:
        self._modified = modified

    def firstFrame(self) -> int:
        return int(self["first_frame"].value())

    def lastFrame(self) -> int:
        return int(self["last_frame"].value())


def uncollided(name: str, taken: set[str]) -> str:
    """`name`, with the next free number if it is taken."""
    if name not in taken:
        return name
    stem = re.sub(r"\d+$", "", name)
    number = 1
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def new_node(class_name: str, parent: Group, knobs: dict[str, Any]) -> Node:
    """A node in `parent`; its callbacks are not called yet."""
    host.edit_graph()
    if class_name not in _NATIVE and _ofx.plugin_of(class_name) is None:
        raise RuntimeError(f"{class_name}: Unknown command")
    node = Group(class_name, parent) if class_name == "Group" else Node(class_name, parent)
    taken = {one.name() for one in parent._nodes}
    parent._nodes.append(node)
    node._knobs["name"]._value = uncollided(f"{class_name}1", taken)
    for place, value in host.knob_defaults.items():
        if place.startswith(f"{class_name}."):
            node[place.partition(".")[2]].setValue(value)
    inputs = knobs.pop("inputs", None)
    for name, value in knobs.items():
        if name == "name":
            node.setName(value)
        else:
            node[name].setValue(value)
    for number, one in enumerate(inputs or ()):
        node.setInput(number, one)
    if host.root is not None:
        host.root.setModified(True)
    return node


def delete_node(node: Node) -> None:
    """Take a node out, and out of the inputs of others."""
    host.edit_graph()
    parent = node.parent()
    parent._nodes.remove(node)
    for other in parent._nodes:
        for number, one in enumerate(other._inputs):
            if one is node:
                other.setInput(number, None)
    if host.root is not None:
        host.root.setModified(True)


def every_node(parent: Group) -> Iterator[Node]:
    """All nodes, also those inside groups."""
    for node in parent._nodes:
        yield node
        if isinstance(node, Group):
            yield from every_node(node)
