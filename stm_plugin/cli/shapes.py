"""`stm shot shapes`: the matte as splines for Nuke, Natron, JSON or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stm_plugin.cli.console import counted, output, progress_bar
from stm_plugin.cli.propagate import parse_range
from stm_plugin.planning.values import Request
from stm_plugin.shapes.options import LEAST_AREA, TOLERANCE, ShapeFormat

if TYPE_CHECKING:  # heavy modules are imported in the functions: help must not wait for them
    from stm_plugin.shapes.values import ShapeSet


def shapes(
    shot: Annotated[Path, typer.Argument(help="The shot store, NAME.stmshot.")],
    out: Annotated[str, typer.Option(help="hero.nk, hero.py (Natron), hero.json or hero.####.svg.")],
    form: Annotated[ShapeFormat | None, typer.Option("--format", help="Else from the name.")] = None,
    objects: Annotated[list[str] | None, typer.Option("--object", help="All if not given.")] = None,
    frames: Annotated[str | None, typer.Option(help="FIRST-LAST; the whole plate if not given.")] = None,
    tolerance: Annotated[float, typer.Option(help="Pixels from the matte's edge.")] = TOLERANCE,
    overwrite: Annotated[bool, typer.Option(help="Replace files that STM did not make.")] = False,
) -> None:
    """Turn the mattes into splines that an artist can edit."""
    from stm_plugin.shapes.formats import format_of
    from stm_plugin.shot.shapes import check_shape_files, make_shapes, write_shapes
    from stm_plugin.shot.shot import Shot
    from stm_plugin.store.store import with_suffix

    chosen = format_of(out, form)
    first, last = parse_range(frames) or (None, None)
    with Shot.open(with_suffix(shot)) as opened, progress_bar() as bar:
        check_shape_files(opened, Request(first, last), out, chosen, overwrite=overwrite)
        task = bar.add_task("shapes", total=None)
        made = make_shapes(
            opened,
            Request(first, last),
            objects=objects or None,
            tolerance=tolerance,
            on_progress=lambda done, count: bar.update(task, completed=done, total=count),
        )
        written = write_shapes(opened, made, out, chosen, overwrite=overwrite)
    output.print(describe_shapes(made), highlight=False, markup=False)
    end = f" to {written[-1].name}" if len(written) > 1 else ""
    output.print(f"{written[0]}{end}", highlight=False, soft_wrap=True)


def describe_shapes(made: ShapeSet) -> str:
    """One sentence with the numbers of shapes, points and keys, and of omitted parts."""
    points = sum(len(shape.points) for shape in made.shapes)
    keys = sum(shape.keys for shape in made.shapes)
    parts = counted(made.left_out, "part")
    left = f", {parts} below {LEAST_AREA:g} pixels left out" if made.left_out else ""
    return f"{counted(len(made.shapes), 'shape')}, {counted(points, 'point')}, {counted(keys, 'key')}{left}"
