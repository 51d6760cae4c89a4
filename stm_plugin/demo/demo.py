"""The demo: mattes of a plate whose true matte is known, with scores.

It works as an artist would: a key on the first frame, mattes, a correction key where the shot's status
advises one, mattes again. The scores are measured on the written files.

    python -m stm_plugin.demo --out DIR
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from model.evaluation.metrics import region_similarity
from stm_plugin.configuration import configuration
from stm_plugin.demo.plate import PLATE_SPACE, DemoPlate, PlateSettings, build_plate, frame_path
from stm_plugin.errors import OutputError, StmError
from stm_plugin.files.whole import store_error
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.mask import MaskReading
from stm_plugin.images.matte import read_matte
from stm_plugin.images.overlay import (
    Colour,
    contact_sheet,
    object_colours,
    overlay_picture,
    pick_frames,
    write_picture,
)
from stm_plugin.images.plate import Plate
from stm_plugin.licences import note_of_licence
from stm_plugin.propagation.events import Event, PlanMade, Progress
from stm_plugin.review.serving import serve_review
from stm_plugin.settings import Settings
from stm_plugin.shot.propagate import RunOptions, propagate
from stm_plugin.shot.shot import NetworkFactory, Shot
from stm_plugin.windows import FloatArray

OBJECT = "cup"
VISIBLE = 0.5  # of the true matte: above it the cup counts as visible
DEFAULT_OUT = Path("stm-demo")
_MARK = ".stm-demo"
"""An empty file that marks the folder of a demo."""


@dataclass(frozen=True)
class FrameScore:
    """One frame against its true matte.

    Attributes:
        region: J, the overlap of both mattes above one half, in [0, 1].
        error: mean absolute difference of the soft mattes over the pixels where either is above 0.
    """

    frame: int
    is_key: bool
    region: float
    error: float


@dataclass(frozen=True)
class Round:
    """One propagation of the demo: its keys, its cost, and its results."""

    keys: tuple[int, ...]
    mattes: str
    sheet: Path
    network_frames: int
    seconds: float
    scores: tuple[FrameScore, ...]
    advised: int | None = None
    """The frame of the next key, by the shot's status after the round."""

    def means(self, without: Collection[int]) -> tuple[float, float]:
        """Mean J and mean error, leaving out some frames (the keys, so that rounds can be compared)."""
        kept = [score for score in self.scores if score.frame not in without]
        return float(np.mean([one.region for one in kept])), float(np.mean([one.error for one in kept]))

    @property
    def worst(self) -> FrameScore:
        """The frame with the lowest J."""
        return min((score for score in self.scores if not score.is_key), key=lambda score: score.region)


def run_demo(
    out: Path,
    plate_settings: PlateSettings | None = None,
    settings: Settings | None = None,
    console: Console | None = None,
    network: NetworkFactory | None = None,
) -> tuple[Round, Round]:
    """Build the plate, make its mattes from one key, correct the advised frame, and make them again.

    If the status advises no frame, the worst one is corrected.

    Args:
        out: the folder of all files; those of an earlier demo are replaced.
        plate_settings, settings: of the plate and of the shot; the defaults if None.
        console: for progress and results.
        network: makes the network; that of the settings' weights if None.

    Returns:
        The round with one key and the round with two.

    Raises:
        StmError: what happened, and what to do.
    """
    console = console or Console()
    _check_folder(out)
    console.print("Building a plate with a known true matte ...")
    built = build_plate(out, plate_settings)
    frames = built.frames
    console.print(f"  {built.plate} {frames[0]}-{frames[-1]}, {PLATE_SPACE}, with overscan")
    shot = out / f"{OBJECT}.stmshot"
    if (shot / "shot.json").is_file():
        shutil.rmtree(shot)
    job = Job(built, shot, settings or configuration().settings(), network, console)
    note = note_of_licence(job.settings.weights)
    if note is not None:
        console.print(note, markup=False, highlight=False)
    keys = {frames[0]: built.key}
    console.print(f"One key on {frames[0]}")
    one = job.run(keys, out / "one_key")
    if one.advised is None:
        frame, why = one.worst.frame, f"the worst frame (J {one.worst.region:.3f})"
    else:
        frame, why = one.advised, "which `stm shot status` advises"
    keys[frame] = frame_path(built.truth, frame)
    console.print(f"A correction key on {frame}, {why}", highlight=False)
    two = job.run(keys, out / "two_keys")
    scores = out / "scores.csv"
    _write_scores(scores, one, two)
    _print_scores(console, one, two, scores)
    return one, two


def _check_folder(out: Path) -> None:
    """Check that the folder is empty or of a demo, as its files will be replaced.

    Raises:
        OutputError: it holds a file that no demo made.
    """
    mark = out / _MARK
    try:
        is_foreign = not mark.is_file() and out.exists() and (not out.is_dir() or any(out.iterdir()))
        if not is_foreign:
            out.mkdir(parents=True, exist_ok=True)
            mark.touch()
    except OSError as error:
        raise store_error(error, out) from error
    if is_foreign:
        raise OutputError(
            "The folder holds files that the demo did not make, so nothing is written.",
            path=out,
            hint="Give --out a folder that is new or empty.",
        )


@dataclass(frozen=True)
class Job:
    """The common values of both rounds."""

    built: DemoPlate
    shot: Path
    settings: Settings
    network: NetworkFactory | None
    console: Console

    def run(self, keys: Mapping[int, Path], folder: Path) -> Round:
        """Propagate from the keys, write mattes and a contact sheet, and score them."""
        folder.mkdir(parents=True, exist_ok=True)
        pattern = str(folder / "matte.####.exr")
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with ProgressBar(*columns, console=self.console) as bar:
            task = bar.add_task("propagating", total=None)

            def show(event: Event) -> None:
                if isinstance(event, PlanMade):
                    for dirty in event.plan.dirty:
                        bar.console.print(f"  {dirty}", highlight=False)
                elif isinstance(event, Progress):
                    bar.update(task, completed=event.done, total=event.total)

            summary = propagate(
                self.built.plate,
                keys,
                pattern,
                settings=self.settings,
                reading=MaskReading(objects=[OBJECT]),
                run=RunOptions(self.shot, on_event=show, network=self.network),
            ).propagation
        with Shot.open(self.shot, network=self.network) as shot:
            next_key = shot.status().next_key
        result = Round(
            keys=tuple(keys),
            mattes=pattern,
            sheet=folder / "contact_sheet.png",
            network_frames=summary.computed,
            seconds=summary.seconds,
            scores=tuple(_score(self.built, pattern, frame, frame in keys) for frame in self.built.frames),
            advised=None if next_key is None else next_key.frame,
        )
        _draw_sheet(self.built, result)
        return result


def _score(built: DemoPlate, pattern: str, frame: int, is_key: bool) -> FrameScore:
    """Compare one written matte with the truth."""
    truth = _read_alpha(frame_path(built.truth, frame), frame)
    matte = _read_alpha(frame_path(pattern, frame), frame)
    either = (truth > 0) | (matte > 0)
    return FrameScore(
        frame=frame,
        is_key=is_key,
        region=region_similarity(truth > VISIBLE, matte > VISIBLE),
        error=float(np.abs(truth - matte)[either].mean()) if either.any() else 0.0,
    )


def _read_alpha(path: Path, frame: int) -> FloatArray:
    """The channel A of an EXR over its data window, float32 (h, w)."""
    return np.asarray(read_matte(path, frame=frame).channels["A"], np.float32)


def _draw_sheet(built: DemoPlate, result: Round) -> None:
    """Draw the mattes over the working picture of the plate, and below them each matte alone."""
    plate = Plate.open(built.plate)
    config = load_config()
    transform: ColourTransform | None = None
    colours: tuple[Colour, ...] = ()
    pictures = {}
    for frame in pick_frames(tuple(built.frames), result.keys):
        read = plate.read(frame)
        transform = transform or ColourTransform(config, find_input_space(read, config).name)
        matte = _read_alpha(frame_path(result.mattes, frame), frame)
        display = transform.to_display(read.pixels)
        colours = colours or object_colours(display, {OBJECT: matte})
        overlay = overlay_picture(display, {OBJECT: matte}, colours)
        grey = np.repeat(np.round(matte * 255).astype(np.uint8)[..., None], 3, axis=2)
        pictures[frame] = np.vstack([overlay, grey])
    write_picture(result.sheet, contact_sheet(pictures, result.keys))


def _write_scores(path: Path, one: Round, two: Round) -> None:
    """Both rounds, a line per frame."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["frame", "one_key_j", "one_key_error", "two_keys_j", "two_keys_error", "key"])
        for first, second in zip(one.scores, two.scores, strict=True):
            figures = (first.region, first.error, second.region, second.error)
            rows.writerow([first.frame, *(f"{figure:.4f}" for figure in figures), int(second.is_key)])


def _print_scores(console: Console, one: Round, two: Round, scores: Path) -> None:
    """Print the scores side by side, and the paths of all files."""
    table = Table(title="Against the true matte, on the frames that are never keys")
    for heading in ("keys", "mean J", "worst J", "mean abs. error", "network frames", "seconds"):
        table.add_column(heading, justify="right")
    for result in (one, two):
        region, error = result.means(without=two.keys)
        table.add_row(
            ", ".join(str(key) for key in result.keys),
            f"{region:.3f}",
            f"{result.worst.region:.3f} ({result.worst.frame})",
            f"{error:.3f}",
            str(result.network_frames),
            f"{result.seconds:.0f}",
        )
    console.print(table)
    for words, place in (
        ("mattes, one key", one.mattes),
        ("mattes, two keys", two.mattes),
        ("to look at", one.sheet),
        ("", two.sheet),
        ("scores per frame", scores),
    ):
        console.print(f"{words:>18}  {place}", soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from a terminal; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stm_plugin.demo", description="Mattes of a plate it builds."
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help=f"the folder (default: ./{DEFAULT_OUT})"
    )
    parser.add_argument(
        "--review", action="store_true", help="then open the page of `stm review` on its shot"
    )
    given = parser.parse_args(arguments)
    out = given.out.expanduser().absolute()
    try:
        run_demo(out)
        if given.review:
            serve_review(str(out / f"{OBJECT}.stmshot"))
    except StmError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
