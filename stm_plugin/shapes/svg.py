"""Shapes as SVG, one file per frame: a path for each object, its parts and holes as subpaths."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from stm_plugin.errors import MatteError
from stm_plugin.shapes.values import Outline, ShapeSet

_NAMESPACE = "http://www.w3.org/2000/svg"


def svg_text(shapes: ShapeSet, frame: int) -> str:
    """One frame. Units are plate pixels from the upper left corner of the display window, y down.

    Shapes are drawn in order, holes in black over parts in white, as in the other formats.
    """
    display = shapes.display_window
    wide = display.width * shapes.pixel_aspect
    rows = [
        f'<svg xmlns="{_NAMESPACE}" width="{wide:.6g}" height="{display.height}" '
        f'viewBox="0 0 {display.width} {display.height}" preserveAspectRatio="none">'
    ]
    for name in shapes.objects:
        rows.append(f'<g id="{_word(name)}">')
        for shape in shapes.of(name):
            if shape.lives(frame):
                fill = "#000000" if shape.hole else "#ffffff"
                path = _path(shape.at(frame), (display.x, display.y))
                rows.append(f'<path id="{shape.name}" fill="{fill}" d="{path}"/>')
        rows.append("</g>")
    return "\n".join([*rows, "</svg>", ""])


def read_svg(text: str) -> list[tuple[str, bool, Outline]]:
    """Name, whether it is a hole, and outline of each path of a file by `svg_text`, in drawing order."""
    try:
        root = ElementTree.fromstring(text)
        return [
            (path.attrib["id"], path.attrib["fill"] == "#000000", _outline(path.attrib["d"]))
            for path in root.iter(f"{{{_NAMESPACE}}}path")
        ]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise MatteError(
            "The SVG holds no shapes that can be read.", hint="Write the shapes again."
        ) from error


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def _path(outline: Outline, origin: tuple[int, int]) -> str:
    segments = outline.segments() - np.array(origin, dtype=np.float64)
    first = segments[0, 0]
    parts = [f"M{first[0]:.5f},{first[1]:.5f}"]
    for segment in segments:
        parts.append("C" + " ".join(f"{x:.5f},{y:.5f}" for x, y in segment[1:]))
    return "".join([*parts, "Z"])


def _outline(path: str) -> Outline:
    numbers = np.array([float(one) for one in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", path)]).reshape(-1, 2)
    centre = np.concatenate([numbers[:1], numbers[3:-1:3]])
    out = numbers[1::3] - centre
    incoming = np.roll(numbers[2::3], 1, axis=0) - centre
    return Outline(centre, incoming, out, np.zeros_like(centre))
