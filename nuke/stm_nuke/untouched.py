"""Plates that the engine reads from their files, because Nuke would only pass the files' values on.

A plate is *untouched* where all of this holds; in any doubt Nuke renders it (`capture.py`):

- A Read is connected to the plate input. Only Dots and the inputs of Groups are between.
- The Read is on, and no knob that is looked at here has an expression or a curve.
- Its file has a plain name: absolute, one frame number, no TCL, not changed by a filter of the studio.
- Nothing converts its colours: `raw` is on, or its colour space is the working space. `premultiplied` is off.
- Each frame is the file of its number: no `frame` expression, offset or start, and the frame is within the
  Read's range. So `before`, `after` and `on_error` have no part in it.
- No local copy stands in for the file.
- The file is a plain OpenEXR picture (`exr.read_facts`): one part in scanlines, R, G and B as half or float,
  losslessly compressed, and no other channel that Nuke could take for them.
- Data window, display window and Nuke's format are the same. Nuke treats the edges of others by a choice of
  its EXR reader.

Proxy files and proxy mode have no part in it, as the plate is always taken at full size. `auto_alpha` changes
the alpha only, which is not used.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import nuke
from stm_nuke import exr
from stm_nuke.frames import Range
from stm_nuke.releases import root_value

_NUMBER = re.compile(r"#+|%0\d+d")
_DOUBTFUL = re.compile(r"[\[\]$\\{}]|%v")
"""TCL, variables, and the first letter of a view's name."""
_LINEAR = "linear"
_DEFAULT = re.compile(r"default \((.+)\)")
_KNOBS = (
    *("file", "first", "last", "frame", "frame_mode", "raw", "colorspace", "premultiplied", "disable"),
    *("useLifetime", "localizationPolicy", "sequence", "in_colorspace", "out_colorspace", "format"),
)
"""Of a Read; a release need not have all of them."""
_LOSSLESS = frozenset(("none", "rle", "zips", "zip", "piz", "pxr24"))
"""Other compressions may be decoded differently by another release of OpenEXR."""
_OTHER_LAYERS = frozenset(("rgba", "rgb", "ci", "main", "left", "right"))
"""Layers that Nuke's EXR reader may take for the main one."""
_ASPECT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Source:
    """The files of an untouched plate. Thread-safe: nothing in it needs Nuke."""

    pattern: str
    frames: Range
    size: tuple[int, int]
    pixel_aspect: float
    views: tuple[str, ...]

    def file(self, frame: int) -> Path | None:
        """The file of a frame; None where Nuke is to render it."""
        if frame < 0 or not self.frames[0] <= frame <= self.frames[1]:
            return None
        path = Path(_NUMBER.sub(lambda match: _numbered(match[0], frame), self.pattern))
        facts = exr.read_facts(path)
        return path if facts is not None and self._is_plain(facts) else None

    def _is_plain(self, facts: exr.Facts) -> bool:
        whole = (0, 0, *self.size)
        return (
            facts.data_window == facts.display_window == whole
            and math.isclose(facts.pixel_aspect, self.pixel_aspect, rel_tol=_ASPECT_TOLERANCE)
            and facts.is_plain
            and facts.compression in _LOSSLESS
            and {"R", "G", "B"} <= set(facts.channels)
            and all(facts.channels[name] in ("half", "float") for name in "RGB")
            and all(self._is_harmless(name) for name in facts.channels)
        )

    def _is_harmless(self, channel: str) -> bool:
        layer, dot, _ = channel.partition(".")
        others = _OTHER_LAYERS | {view.lower() for view in self.views}
        return layer.lower() not in others if dot else channel in ("R", "G", "B", "A")


def source_of(plate: nuke.Node | None, view: str) -> Source | None:
    """The files of a plate input in a view; None where Nuke is to render it. For the main thread, at full
    size."""
    read = _above_dots(plate)
    if read is None or read.Class() != "Read" or not _passes_values_on(read):
        return None
    text = str(read["file"].value() or "")
    filtered = str(nuke.filenameFilter(text) or text)  # type: ignore[no-untyped-call]
    is_plain = len(_NUMBER.findall(text)) == 1 and not _DOUBTFUL.search(text) and os.path.isabs(text)
    if not is_plain or filtered != text or not text.lower().endswith(".exr"):
        return None
    shape = read.format()
    return Source(
        text.replace("%V", view),
        (int(read["first"].value()), int(read["last"].value())),
        (shape.width(), shape.height()),
        float(shape.pixelAspect()),
        tuple(nuke.views()),
    )


def may_read(read: nuke.Node, path: Path, view: str) -> bool:
    """Whether a Read has this file in its sequence, at whatever frame it is. For the main thread."""
    text = str(read["file"].value() or "")
    text = str(nuke.filenameFilter(text) or text)  # type: ignore[no-untyped-call]
    pattern = Path(text.replace("%V", view).replace("%v", view[:1]))
    name = "-?[0-9]+".join(re.escape(part) for part in _NUMBER.split(pattern.name))
    if os.path.realpath(pattern.parent) == os.path.realpath(path.parent):
        return re.fullmatch(name, path.name, re.IGNORECASE) is not None
    return False


def _above_dots(node: nuke.Node | None) -> nuke.Node | None:
    """The first node above that may change the picture, outside of Groups too."""
    while node is not None and node.Class() in ("Dot", "Input"):
        if node.Class() == "Dot":
            node = node.input(0)
            continue
        number = node.knob("number")
        outer = node.parent()
        node = outer.input(0 if number is None else int(number.value()))
    return node


def _passes_values_on(read: nuke.Node) -> bool:
    """Whether the knobs of a Read leave values and frame numbers as they are in the file."""
    if any(_varies(read.knob(name)) for name in _KNOBS):
        return False
    must_be_off = ("disable", "useLifetime", "premultiplied", "frame", "sequence")
    if any(_value(read, name) for name in must_be_off):
        return False
    if _value(read, "frame_mode") not in (None, "expression"):
        return False
    if _value(read, "in_colorspace") != _value(read, "out_colorspace") or _has_local_copy(read):
        return False
    return bool(_value(read, "raw")) or _is_in_working_space(str(_value(read, "colorspace") or ""))


def _value(node: nuke.Node, name: str) -> object:
    knob = node.knob(name)
    return None if knob is None else knob.value()


def _varies(knob: nuke.Knob | None) -> bool:
    """Whether a knob has an expression or a curve."""
    if knob is None:
        return False
    return bool(knob.hasExpression()) or str(knob.toScript()).lstrip("{ ").startswith("curve")


def _is_in_working_space(text: str) -> bool:
    """Whether a Read's colour space is the one of the script's pixels."""
    match = _DEFAULT.fullmatch(text)
    space = text if match is None else match[1]
    working = str(root_value("workingSpaceLUT") or "")
    if root_value("colorManagement") == "OCIO":
        return bool(working) and space == working
    if space == "default":
        space = str(root_value("floatLut") or "")
    return space == _LINEAR and working in ("", _LINEAR)


def _has_local_copy(read: nuke.Node) -> bool:
    """Whether Nuke may read a copy of the file on a local disk."""
    policy = _value(read, "localizationPolicy")
    if policy in (None, "off"):
        return False
    preferences = nuke.toNode("preferences")
    places = [] if preferences is None else [_value(preferences, "autoLocalCachePath")]
    return policy != "fromAutoLocalizePath" or any(places)


def _numbered(token: str, frame: int) -> str:
    digits = len(token) if token.startswith("#") else int(token[1:-1])
    return f"{frame:0{digits}d}"
