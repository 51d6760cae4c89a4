"""The formats of shape files, and the text of each file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stm_plugin.errors import MatteError
from stm_plugin.images.sequence import output_sequence
from stm_plugin.shapes.json_file import shapes_json_text
from stm_plugin.shapes.natron import natron_script
from stm_plugin.shapes.nuke import nuke_script
from stm_plugin.shapes.options import SUFFIXES, ShapeFormat
from stm_plugin.shapes.svg import svg_text
from stm_plugin.shapes.values import ShapeSet


def format_of(out: str | Path, wanted: ShapeFormat | None = None) -> ShapeFormat:
    """The requested format, else that of the file's name. MatteError where neither states one."""
    if wanted is not None:
        return wanted
    suffix = Path(out).suffix.lower()
    if suffix not in SUFFIXES:
        raise MatteError(
            "The name does not show which format the shapes should have.",
            path=str(out),
            hint="Name it .nk, .py (Natron), .json or .####.svg, or give --format.",
        )
    return SUFFIXES[suffix]


def paths_of(frames: Iterable[int], out: str | Path, form: ShapeFormat) -> list[Path]:
    """The files that the shapes of these frames are written to."""
    if form == "svg":
        sequence = output_sequence(out, default_name="shapes.####.svg")
        return [sequence.path(frame) for frame in frames]
    return [Path(out)]


def files_of(shapes: ShapeSet, out: str | Path, form: ShapeFormat) -> dict[Path, str]:
    """Every file with its text; SVG has one per frame (`hero.####.svg`)."""
    if form == "svg":
        sequence = output_sequence(out, default_name="shapes.####.svg")
        return {sequence.path(frame): svg_text(shapes, frame) for frame in shapes.frames}
    path = Path(out)
    name = "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in path.stem) or "STMShapes"
    name = name if name[0].isalpha() else f"STM_{name}"
    if form == "nuke":
        return {path: nuke_script(shapes, name)}
    if form == "natron":
        return {path: natron_script(shapes, name)}
    return {path: shapes_json_text(shapes)}
