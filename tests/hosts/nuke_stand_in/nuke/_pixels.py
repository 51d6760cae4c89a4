"""Pictures: the operation of each native node, and files through OpenImageIO."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from . import _ofx
from ._graph import Format, Group, Node
from ._host import host
from ._roto import CurveKnob
from ._text import without_tcl

Plane = npt.NDArray[np.float32]
Window = tuple[int, int, int, int]
"""x, y (down), width, height."""

_TO_NUKE = {"R": "red", "G": "green", "B": "blue", "A": "alpha", "Z": "Z", "Y": "red", "I": "red"}
_TO_FILE = {"red": "R", "green": "G", "blue": "B", "alpha": "A"}


class ReadError(RuntimeError):
    """A file that cannot be read; the message names the node."""


@dataclass(frozen=True)
class Picture:
    """Channels by their Nuke names over one window."""

    planes: dict[str, Plane]
    window: Window
    format: Format
    metadata: dict[str, Any] = field(default_factory=dict)

    def plane(self, channel: str) -> Plane:
        """A channel; black if it is missing, as in Nuke."""
        found = self.planes.get(channel)
        return np.zeros((self.window[3], self.window[2]), np.float32) if found is None else found

    def over(self, window: Window) -> Picture:
        """The same picture over another window, black outside the old one."""
        if window == self.window:
            return self
        planes = {}
        for name, plane in self.planes.items():
            whole = np.zeros((window[3], window[2]), np.float32)
            left, top = max(window[0], self.window[0]), max(window[1], self.window[1])
            right = min(window[0] + window[2], self.window[0] + self.window[2])
            bottom = min(window[1] + window[3], self.window[1] + self.window[3])
            if left < right and top < bottom:
                whole[top - window[1] : bottom - window[1], left - window[0] : right - window[0]] = plane[
                    top - self.window[1] : bottom - self.window[1],
                    left - self.window[0] : right - self.window[0],
                ]
            planes[name] = whole
        return replace(self, planes=planes, window=window)


def render(node: Node, frame: float, view: str) -> Picture:
    """The picture of a node. RuntimeError in the cases where Nuke fails."""
    if node["disable"]._evaluated(frame) and node.Class() != "Read":
        return _input(node, 0, frame, view)
    if isinstance(node, Group):
        output = next((one for one in node._nodes if one.Class() == "Output"), None)
        if output is None:
            raise RuntimeError(f"{node.fullName()} has no Output")
        return render(output, frame, view)
    kind = _ofx.render if node.Class().startswith("OFX") else _RENDER.get(node.Class(), _pass)
    return kind(node, frame, view)


def _above(node: Node, number: int) -> Node | None:
    if node.Class() == "Input":
        group = node.parent()
        return group.input(int(node["number"].value()))
    return node.input(number)


def _input(node: Node, number: int, frame: float, view: str) -> Picture:
    above = _above(node, number)
    if above is None:
        whole = _root_format()
        return Picture({}, (0, 0, whole.width(), whole.height()), whole)
    return render(above, frame, view)


def _root_format() -> Format:
    assert host.root is not None
    found = host.root["format"].value()
    assert isinstance(found, Format)
    return found


def _pass(node: Node, frame: float, view: str) -> Picture:
    return _input(node, 0, frame, view)


def _read(node: Node, frame: float, view: str) -> Picture:
    first, last = node["first"].value(), node["last"].value()
    ends = {"hold": first if frame < first else last, "black": None, "loop": None, "bounce": None}
    if not first <= frame <= last:
        held = ends[node["before" if frame < first else "after"].value()]
        if held is None:
            return Picture({}, (0, 0, 1, 1), _root_format())
        frame = held
    text = str(node["frame"].value())
    if text and node["frame_mode"].value() == "expression":
        frame = float(node["frame"]._worked_out(text, frame))
    path = file_of(str(node["file"].value() or ""), frame, view)
    if not Path(path).is_file():
        if node["on_error"].value() != "error":
            return Picture({}, (0, 0, 1, 1), _root_format())
        raise ReadError(f"{node.fullName()}: Read error: No such file or directory: {path}")
    picture = _load(Path(path), _is_linear(node, Path(path)))
    assert host.root is not None
    return _halved(picture) if host.root["proxy"].value() else picture


def _is_linear(read: Node, path: Path) -> bool:
    """Whether a Read leaves a file's values as they are; files with floats are linear by default."""
    space = str(read["colorspace"].value())
    default = path.suffix.lower() == ".exr"
    return bool(read["raw"].value()) or (default if space.startswith("default") else space == "linear")


def _load(path: Path, linear: bool) -> Picture:
    source = oiio.ImageInput.open(str(path))
    if source is None:
        raise ReadError(f"{path}: {oiio.geterror()}")
    spec = source.spec()
    values = source.read_image("float")
    source.close()
    if values is None:
        raise ReadError(f"{path}: {source.geterror()}")
    pixels = np.asarray(values, np.float32).reshape(spec.height, spec.width, spec.nchannels)
    if not linear:
        pixels = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4).astype(
            np.float32
        )
    names = list(spec.channelnames)
    planes = {}
    for index, name in enumerate(names):
        planes[_nuke_name(name)] = np.ascontiguousarray(pixels[:, :, index])
    if names == ["Y"] or names == ["I"]:
        planes["rgba.green"] = planes["rgba.blue"] = planes["rgba.red"]
    aspect = float(spec.getattribute("PixelAspectRatio") or 1.0)
    whole = Format(spec.full_width, spec.full_height, 0, 0, spec.full_width, spec.full_height, aspect)
    metadata = {
        "input/filename": path.as_posix(),
        "input/width": spec.full_width,
        "input/height": spec.full_height,
    }
    code = spec.getattribute("smpte:TimeCode")
    if code is not None:
        metadata["input/timecode"] = spec.get_string_attribute("smpte:TimeCode")
    return Picture(planes, (spec.x, spec.y, spec.width, spec.height), whole, metadata)


def _nuke_name(name: str) -> str:
    """The EXR reader's name: no leading digits, other signs as underscores, `Ci` as `rgba`."""
    layer, _, channel = name.rpartition(".")
    layer = re.sub(r"\W", "_", re.sub(r"^\d+", "", layer))
    layer = "" if layer == "Ci" or layer in host.views else layer
    return f"{layer or 'rgba'}.{_TO_NUKE.get(channel, channel)}"


def file_of(text: str, frame: float, view: str) -> str:
    """The file of a frame, from a name with TCL, `%V`, `%04d` or `####`. Only whole frames have files."""
    frame = math.floor(frame)
    text = without_tcl(text)
    for one in host.listeners.get("filenameFilter", []):
        text = one.call(text) or text
    text = text.replace("%V", view).replace("%v", view[:1])
    text = re.sub(r"%0?(\d*)d", lambda match: f"{frame:0{int(match[1] or 1)}d}", text)
    return re.sub(r"#+", lambda match: f"{frame:0{len(match[0])}d}", text)


def _halved(picture: Picture) -> Picture:
    x, y, width, height = picture.window
    planes = {name: np.ascontiguousarray(plane[::2, ::2]) for name, plane in picture.planes.items()}
    one = picture.format
    half = Format(one.width() // 2, one.height() // 2, 0, 0, 0, 0, one.pixelAspect())
    return Picture(planes, (x // 2, y // 2, (width + 1) // 2, (height + 1) // 2), half, picture.metadata)


def _copy(node: Node, frame: float, view: str) -> Picture:
    base, other = _input(node, 0, frame, view), _input(node, 1, frame, view)
    planes = dict(base.planes)
    shown = other.over(base.window)
    for number in range(4):
        source, target = node[f"from{number}"].value(), node[f"to{number}"].value()
        if source != "none" and target != "none":
            planes[target] = shown.plane(source)
    layer = f"{node['channels'].value()}."
    planes |= {name: plane for name, plane in shown.planes.items() if name.startswith(layer)}
    return replace(base, planes=planes)


def _switch(node: Node, frame: float, view: str) -> Picture:
    which = int(node["which"]._evaluated(frame))
    return _input(node, max(0, min(which, node.inputs() - 1)), frame, view)


def _expression(node: Node, frame: float, view: str) -> Picture:
    above = _input(node, 0, frame, view)
    functions = {"__builtins__": {}, "max": np.maximum}
    letters = {letter: above.plane(f"rgba.{name}") for letter, name in zip("rgba", _TO_FILE, strict=True)}
    planes = dict(above.planes)
    for number, name in enumerate(_TO_FILE):
        text = str(node[f"expr{number}"].value())
        if text:
            planes[f"rgba.{name}"] = np.asarray(eval(text, functions, letters), np.float32)
    return replace(above, planes=planes)


def _merge_expression(node: Node, frame: float, view: str) -> Picture:
    """B is input 0; it passes through if there is no expression."""
    base = _input(node, 0, frame, view)
    other = _input(node, 1, frame, view).over(base.window)
    letters = {
        f"{side}{letter}": picture.plane(f"rgba.{name}")
        for side, picture in (("A", other), ("B", base))
        for letter, name in zip("rgba", _TO_FILE, strict=True)
    }
    planes = dict(base.planes)
    for number in range(4):
        text, channel = str(node[f"expr{number}"].value()), str(node[f"channel{number}"].value())
        if text and channel != "none":
            planes[channel] = np.asarray(eval(text, {"__builtins__": {}}, letters), np.float32)
    return replace(base, planes=planes)


def _assert(node: Node, frame: float, view: str) -> Picture:
    if not node["expression"]._evaluated(frame):
        raise RuntimeError(f"{node.fullName()}: {without_tcl(str(node['message'].value()))}")
    return _input(node, 0, frame, view)


def _roto(node: Node, frame: float, view: str) -> Picture:
    """Shapes over the output channels."""
    above = _input(node, 0, frame, view)
    is_alpha = node["output"].value() == "alpha"
    channels = ["rgba.alpha"] if is_alpha else [f"rgba.{name}" for name in _TO_FILE]
    planes = dict(above.planes)
    curves = node["curves"]
    assert isinstance(curves, CurveKnob)
    x, y = above.window[:2]
    for channel in channels:
        plane = above.plane(channel).copy()
        for (left, top, right, bottom), value in curves.boxes_at(frame):
            plane[top - y : bottom - y, left - x : right - x] = value
        planes[channel] = plane
    return replace(above, planes=planes)


def _text(node: Node, frame: float, view: str) -> Picture:
    """Text on the picture: a white bar at its top."""
    above = _input(node, 0, frame, view)
    planes = {name: plane.copy() for name, plane in above.planes.items()}
    for name in ("rgba.red", "rgba.green", "rgba.blue"):
        if name in planes and node["message"].value():
            planes[name][:2] = 1.0
    return replace(above, planes=planes)


def _grade(node: Node, frame: float, view: str) -> Picture:
    above = _input(node, 0, frame, view)
    scale, offset = np.float32(node["multiply"].value()), np.float32(node["add"].value())
    planes = {name: plane * scale + offset for name, plane in above.planes.items()}
    return replace(above, planes=planes)


def _time_offset(node: Node, frame: float, view: str) -> Picture:
    return _input(node, 0, frame - int(node["time_offset"].value()), view)


def _time_warp(node: Node, frame: float, view: str) -> Picture:
    return _input(node, 0, _filtered(node, node["lookup"]._evaluated(frame)), view)


def _retime(node: Node, frame: float, view: str) -> Picture:
    begin, speed = node["output.first"].value(), node["speed"].value()
    return _input(node, 0, _filtered(node, node["input.first"].value() + (frame - begin) * speed), view)


def _filtered(node: Node, frame: float) -> float:
    return float(round(frame)) if node["filter"].value() == "nearest" else frame


def _crop(node: Node, frame: float, view: str) -> Picture:
    above = _input(node, 0, frame, view)
    left, bottom, right, top = (round(one) for one in node["box"]._value)
    return above.over((left, above.format.height() - top, right - left, top - bottom))


_RENDER = {
    "Read": _read, "Copy": _copy, "Switch": _switch, "Expression": _expression, "Grade": _grade,
    "TimeOffset": _time_offset, "Crop": _crop, "TimeWarp": _time_warp, "Retime": _retime,
    "Roto": _roto, "RotoPaint": _roto, "Assert": _assert, "Text2": _text,
    "MergeExpression": _merge_expression,
}  # fmt: skip


def format_of(node: Node, frame: float, view: str) -> Format:
    """The format of a node's picture: that of a Read is its first file's, on every frame."""
    source = _source_of(node)
    if source is None:
        return _root_format()
    first = int(source["first"].value())
    for one in (frame, first):
        try:
            return render(source, one, view).format
        except RuntimeError:
            continue
    return _root_format()


def channels_of(node: Node, frame: float, view: str) -> list[str]:
    """The channels of a node's picture; of its first frame if the present one cannot be read."""
    for one in (frame, range_of(node)[0]):
        try:
            return sorted(render(node, one, view).planes)
        except RuntimeError:
            continue
    return []


def range_of(node: Node) -> tuple[float, float]:
    """The frame range that a node reports."""
    assert host.root is not None
    if node.Class() == "Read":
        return int(node["first"].value()), int(node["last"].value())
    if node.Class() == "FrameRange":
        return int(node["first_frame"].value()), int(node["last_frame"].value())
    if isinstance(node, Group):
        node = next(one for one in node._nodes if one.Class() == "Output")
    above = _above(node, 0)
    if above is None:
        return host.root.firstFrame(), host.root.lastFrame()
    first, last = range_of(above)
    if node.Class() == "Retime":
        begin = node["output.first"].value()
        return begin, begin + (last - node["input.first"].value()) / node["speed"].value()
    offset = int(node["time_offset"].value()) if node.Class() == "TimeOffset" else 0
    return first + offset, last + offset


def _source_of(node: Node) -> Node | None:
    """The Read that gives a node its format."""
    while node.Class() != "Read":
        if isinstance(node, Group):
            node = next(one for one in node._nodes if one.Class() == "Output")
        above = _above(node, 0)
        if above is None:
            return None
        node = above
    return node


def write(node: Node, frame: float, view: str) -> None:
    """Write one frame, as a Write does."""
    picture = _input(node, 0, frame, view)
    names = _channels_to_write(str(node["channels"].value()), picture)
    path = Path(file_of(str(node["file"].value() or ""), frame, view))
    if not path.parent.is_dir():
        raise RuntimeError(f"{node.fullName()}: {path.parent}: No such file or directory")
    x, y, width, height = picture.window
    depth = (
        "uint8"
        if node["file_type"].value() == "png"
        else "float"
        if "32" in node["datatype"].value()
        else "half"
    )
    spec = oiio.ImageSpec(width, height, len(names), depth)
    spec.channelnames = [_file_name(name) for name in names]
    spec.x, spec.y = x, y
    spec.full_x, spec.full_y = 0, 0
    spec.full_width, spec.full_height = picture.format.width(), picture.format.height()
    spec.attribute("PixelAspectRatio", picture.format.pixelAspect())
    kind = str(node["compression"].value())
    spec.attribute("compression", {"none": "none", "ZIP (1 scanline)": "zips"}.get(kind, "zip"))
    pixels = np.stack([picture.plane(name) for name in names], axis=-1)
    output = oiio.ImageOutput.create(str(path))
    if (
        output is None
        or not output.open(str(path), spec)
        or not output.write_image(np.ascontiguousarray(pixels))
    ):
        raise RuntimeError(f"{node.fullName()}: {path}: {output.geterror() if output else oiio.geterror()}")
    output.close()


def _channels_to_write(text: str, picture: Picture) -> list[str]:
    rgb = ["rgba.red", "rgba.green", "rgba.blue"]
    sets = {"rgb": rgb, "rgba": [*rgb, "rgba.alpha"], "alpha": ["rgba.alpha"], "all": sorted(picture.planes)}
    return sets.get(text) or [text]


def _file_name(channel: str) -> str:
    layer, _, name = channel.rpartition(".")
    return _TO_FILE.get(name, name) if layer == "rgba" else f"{layer}.{_TO_FILE.get(name, name)}"
