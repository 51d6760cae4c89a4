"""Nuke's Roto node as text: a `.nk` file that opens in Nuke, or is pasted into a script.

The syntax is that of published scripts. Numbers are single floats in hexadecimal after an `x`. A shape is a
`curvegroup` of two `cc` curves, the outline and its feather. A point is three pairs: incoming handle, centre
and outgoing handle; the handles are relative to the centre, and the feather's centre to the outline's. A
value that changes is a list of `{frame value}`. `ltt 4` with `ltn` and `ltm` is a lifetime from frame to
frame. Colour 0 cuts out. Earlier elements lie on top. x and y are pixels from the lower left corner of the
format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stm_plugin.errors import MatteError
from stm_plugin.shapes.values import Points, PointTrack, Shape, ShapeSet
from stm_plugin.windows import Window

_VERSION = "x3f99999a"
_OUTLINE_FLAGS = 8192
_SHAPE_FLAGS = 512
_LIFETIME_RANGE = 4


def nuke_script(shapes: ShapeSet, name: str = "STMShapes") -> str:
    """The text of a `.nk` file with one Roto node: a layer for each object, in it its shapes."""
    width, height = shapes.display_window.width, shapes.display_window.height
    middle = f"{number(width / 2)} {number(height / 2)}"
    layers = []
    for one in shapes.objects:
        inside = " ".join(_shape(shape, shapes.display_window) for shape in reversed(shapes.of(one)))
        layers.append(f"{{layer {_word(one)} {{f 0}} {{t {middle}}} {{a}} {inside}}}")
    body = " ".join(layers)
    form = f"{width} {height} 0 0 {width} {height} {shapes.pixel_aspect:.9g}"
    return (
        f'Roto {{\n inputs 0\n output alpha\n format "{form} "\n cliptype none\n'
        f" curves {{{{{{v {_VERSION}}} {{f 0}} {{n {{layer Root {{f 0}} {{t {middle}}} {{a}} "
        f"{body}}}}}}}}}\n name {name}\n}}\n"
    )


def number(value: float) -> str:
    """A number in the syntax of Nuke's curves."""
    single = struct.unpack(">f", struct.pack(">f", value))[0]
    if single == int(single) and abs(single) < 1e6:
        return str(int(single))
    return "x" + struct.pack(">f", single).hex()


def host_points(points: Points, display: Window) -> Points:
    """Plate pixels in a host's coordinates: from the lower left corner of the format, y up."""
    return np.stack([points[:, 0] - display.x, display.bottom - points[:, 1]], axis=1)


def _word(text: str) -> str:
    return "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in text) or "object"


def _shape(shape: Shape, display: Window) -> str:
    outline = " ".join(_outline_point(point, display) for point in shape.points)
    feather = " ".join(_feather_point(point) for point in shape.points)
    centres = np.concatenate([host_points(point.centre, display) for point in shape.points]).mean(axis=0)
    colour = 0 if shape.hole else 1
    life = f"ltn {number(shape.first)} ltm {number(shape.last)} ltt {_LIFETIME_RANGE}"
    return (
        f"{{curvegroup {shape.name} {_SHAPE_FLAGS} bezier "
        f"{{{_cubic(outline)} {_cubic(feather)}}} "
        f"{{t {number(centres[0])} {number(centres[1])}}} "
        f"{{a r {colour} g {colour} b {colour} a {colour} {life}}}}}"
    )


def _cubic(points: str) -> str:
    return f"{{cc {{f {_OUTLINE_FLAGS}}} {{p {points}}}}}"


def _outline_point(point: PointTrack, display: Window) -> str:
    flip = np.array([1.0, -1.0])
    return " ".join(
        _pair(point, values)
        for values in (point.incoming * flip, host_points(point.centre, display), point.outgoing * flip)
    )


def _feather_point(point: PointTrack) -> str:
    flip = np.array([1.0, -1.0])
    return " ".join(_pair(point, values * flip) for values in (point.incoming, point.feather, point.outgoing))


def _pair(point: PointTrack, values: Points) -> str:
    return f"{{{_curve(point.frames, values[:, 0])} {_curve(point.frames, values[:, 1])}}}"


def _curve(frames: tuple[int, ...], values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """One number over time; a single number if it never changes."""
    if len(frames) == 1 or not np.ptp(values):
        return number(float(values[0]))
    keys = " ".join(
        f"{{{frame} {number(float(value))}}}" for frame, value in zip(frames, values, strict=True)
    )
    return f"{{{keys}}}"


# ---- reading ----

Tree = list["str | Tree"]


@dataclass(frozen=True)
class _Reader:
    """Converts numbers of a script to plate pixels."""

    display: Window


def read_nuke_script(text: str, display: Window, frames: tuple[int, ...]) -> ShapeSet:
    """The shapes of the first Roto node of a `.nk` text.

    Args:
        display: the plate's display window, whose lower left corner is the origin.
        frames: all frames of the shot.

    Raises:
        MatteError: the text holds no Roto node that can be read.
    """
    tree = _tree(_tokens(text))
    try:
        node = tree[tree.index("Roto") + 1]
        curves = node[node.index("curves") + 1]
        aspect = float(str(node[node.index("format") + 1]).split()[6])
        root = _child(_child(curves[0], "n"), "layer")
        reader = _Reader(display)
        shapes = [
            shape
            for layer in root
            if isinstance(layer, list) and layer and layer[0] == "layer"
            for shape in _read_layer(layer, reader, frames)
        ]
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise MatteError(
            "The text holds no Roto node that can be read.", hint="Write the shapes again."
        ) from error
    return ShapeSet(tuple(reversed(shapes)), frames, display, aspect)


def _read_layer(layer: Tree, reader: _Reader, frames: tuple[int, ...]) -> Iterator[Shape]:
    for one in layer:
        if isinstance(one, list) and one and one[0] == "curvegroup":
            yield _read_shape(one, str(layer[1]), reader, frames)


def _read_shape(one: Tree, name: str, reader: _Reader, frames: tuple[int, ...]) -> Shape:
    curves = [part for part in one[4] if isinstance(part, list)]
    outline, feather = (_child(curve, "p")[1:] for curve in curves)
    attributes = _child(one, "a")
    values = {str(key): value for key, value in zip(attributes[1::2], attributes[2::2], strict=True)}
    first, last = int(_number(str(values["ltn"]))), int(_number(str(values["ltm"])))
    points = tuple(
        _read_point(outline[index : index + 3], feather[index + 1], first, reader)
        for index in range(0, len(outline), 3)
    )
    return Shape(str(one[1]), name, values["a"] == "0", first, last, points, 0.0)


def _read_point(outline: Tree, feather: str | Tree, first: int, reader: _Reader) -> PointTrack:
    pairs = [_read_pair(pair, first) for pair in (*outline, feather)]
    times = tuple(sorted({time for pair in pairs for time in pair[0]}))
    incoming, centre, outgoing, off = (
        np.stack([np.interp(times, *curve) for curve in pair[1]], axis=1) for pair in pairs
    )
    flip = np.array([1.0, -1.0])
    display = reader.display
    centre = np.stack([centre[:, 0] + display.x, display.bottom - centre[:, 1]], axis=1)
    return PointTrack(times, centre, incoming * flip, outgoing * flip, off * flip, False)


def _read_pair(pair: str | Tree, first: int) -> tuple[list[int], list[tuple[list[int], list[float]]]]:
    curves = []
    for curve in pair:
        if isinstance(curve, str):
            curves.append(([first], [_number(curve)]))
        else:
            curves.append(([int(str(key[0])) for key in curve], [_number(str(key[1])) for key in curve]))
    return sorted({time for curve in curves for time in curve[0]}), curves


def _number(text: str) -> float:
    if text.startswith("x"):
        return float(struct.unpack(">f", bytes.fromhex(text[1:].zfill(8)))[0])
    return float(text)


def _child(tree: str | Tree, name: str) -> Tree:
    for one in tree:
        if isinstance(one, list) and one and one[0] == name:
            return one
    raise ValueError(name)


def _tokens(text: str) -> Iterator[str]:
    word, quoted = "", False
    for sign in text:
        if sign == '"':
            quoted = not quoted
        elif quoted:
            word += sign
        elif sign in "{} \n\t":
            if word:
                yield word
            word = ""
            if sign in "{}":
                yield sign
        else:
            word += sign
    if word:
        yield word


def _tree(tokens: Iterator[str]) -> Tree:
    result: Tree = []
    for token in tokens:
        if token == "{":
            result.append(_tree(tokens))
        elif token == "}":
            return result
        else:
            result.append(token)
    return result
