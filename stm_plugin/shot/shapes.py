"""The shapes of a shot: its finished mattes as splines, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from stm_plugin.errors import MatteError, PropagationCancelled, SettingsError
from stm_plugin.files.outputs import WrittenList, check_outputs
from stm_plugin.files.whole import write_atomically
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.values import Request
from stm_plugin.shapes.formats import files_of, paths_of
from stm_plugin.shapes.making import ShapeMaker
from stm_plugin.shapes.options import TOLERANCE, ShapeFormat
from stm_plugin.shapes.values import ShapeSet
from stm_plugin.shot.inputs import inputs_of
from stm_plugin.shot.opening import check_frames
from stm_plugin.shot.reader import ShotReader
from stm_plugin.windows import FloatArray

Progress = Callable[[int, int], None]
"""Is called with the number of steps done and of all steps."""


def make_shapes(
    shot: ShotReader,
    request: Request | None = None,
    *,
    objects: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    on_progress: Progress = lambda done, count: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ShapeSet:
    """Shapes of the finished mattes of a range.

    Args:
        objects: names; all of the shot's if None.
        tolerance: distance from the matte's contour in pixels of the plate, 95th percentile along it.
        on_progress: is called after every frame and every part.
        cancelled: is called before every frame.

    Raises:
        PlateError: the plate lacks a frame of the range.
        SettingsError: an object is not in the shot, or the tolerance cannot be used.
        MatteError: a frame is not done (the text names it; nothing was computed), the mattes are empty on all
            frames, or an object is in too many pieces.
        PropagationCancelled: the work was stopped.
    """
    shot.check_allowed()
    names = _known(objects, shot.objects)
    maker = ShapeMaker(tolerance)
    if request is not None:
        check_frames(shot.plate, (request.first, request.last))
    plan = shot.finished_plan(request)
    for one in plan.frames:
        if not one.is_done:
            raise MatteError(
                f"The frame is not done, so it has no shapes: {one.why}.",
                frame=one.frame,
                hint="Run `stm shot propagate` first, or choose other frames with --frames.",
            )
    for index, one in enumerate(plan.frames):
        if cancelled():
            raise PropagationCancelled("Making shapes was stopped; nothing was written.")
        finished = shot.matte(one.frame)
        mattes = _chosen(finished.mattes, names)
        maker.add(one.frame, mattes, finished.plate_frame.data_window, shot.display(one.frame))
        on_progress(index + 1, len(plan.frames))
    return maker.finish(shot.plate.display_window, shot.plate.pixel_aspect, on_shape=on_progress)


def check_shape_files(
    shot: ShotReader, request: Request, out: str | Path, form: ShapeFormat, *, overwrite: bool = False
) -> None:
    """Check the files that `write_shapes` would write, before the work. OutputError as there."""
    _check_files(shot, paths_of(frames_in_range(tuple(shot.plate.frames), request), out, form), overwrite)


def write_shapes(
    shot: ShotReader, shapes: ShapeSet, out: str | Path, form: ShapeFormat, *, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write shapes, each file atomically.

    Args:
        overwrite: whether files that this product did not make may be replaced. An input is never replaced.

    Returns:
        The files.

    Raises:
        OutputError: a file must not be written; nothing was written.
        StoreError: the disk is full, or the folder cannot be written.
    """
    files = files_of(shapes, out, form)
    _check_files(shot, files, overwrite)
    for folder, paths in _by_folder(files):
        folder.mkdir(parents=True, exist_ok=True)
        made = WrittenList(folder)
        made.begin(paths)
        for path in paths:
            write_atomically(path, files[path].encode("utf-8"), durable=False)
        made.finish(paths)
    return tuple(files)


def _check_files(shot: ShotReader, files: Iterable[Path], overwrite: bool) -> None:
    paths = list(files)
    inputs = inputs_of(shot.plate, shot.settings, shot.folder)
    ours = {path for folder, some in _by_folder(paths) for path in WrittenList(folder).has(some)}
    check_outputs(
        [(None, path) for path in paths],
        inputs.given,
        given_rows=inputs.rows,
        overwrite=overwrite,
        is_ours=lambda frame, path: path in ours,
    )


def _by_folder(paths: Iterable[Path]) -> list[tuple[Path, list[Path]]]:
    ordered = sorted(paths, key=lambda path: str(path.parent))
    return [(folder, list(group)) for folder, group in groupby(ordered, key=lambda path: path.parent)]


def _known(wanted: Sequence[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    there = tuple(known)
    for name in wanted or ():
        if name not in there:
            raise SettingsError(
                f"The shot has no object “{name}”.",
                hint=f"It has {', '.join(there) or 'none yet: give a key'}.",
            )
    return tuple(wanted) if wanted else there


def _chosen(mattes: Mapping[str, FloatArray], names: Sequence[str]) -> dict[str, FloatArray]:
    return {name: mattes[name] for name in names if name in mattes}
