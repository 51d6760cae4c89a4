"""Shapes against the mattes that they were made of.

    python benchmarks/shapes.py DATA [--sequence NAME ...] [--tolerance 0.75] [--frames 40]

DATA is a folder of sequences in DAVIS layout (`JPEGImages/`, `Annotations/`), a clip that holds both, or a
folder of
clips with `plate/` and `alpha/`. Annotations stand for mattes. Prints for each sequence and over all:

- J and F at one pixel of the rasterised shapes, mean and lowest over frames and objects
- shapes, median points of a shape, keyed frames of a point (in shapes that live at least ten frames)
- jitter: the second difference of a point over time along the contour's normal, over that of the raw
  contour at the
  same place
- seconds of processor time a frame, without reading files
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from stm_plugin.errors import StmError
from stm_plugin.shapes.contour import contours, normals
from stm_plugin.shapes.making import ShapeMaker
from stm_plugin.shapes.raster import rasterised
from stm_plugin.shapes.values import Shape, ShapeSet
from stm_plugin.windows import FloatArray, Window

LONG_LIFE = 10
"""Frames from which on sparse keys can be asked for."""


@dataclass(frozen=True)
class Frame:
    number: int
    picture: FloatArray
    mattes: dict[str, FloatArray]


@dataclass(frozen=True)
class Score:
    region: list[float]
    boundary: list[float]
    shapes: int
    points: list[int]
    keyed: list[float]
    jitter: float
    seconds: float


def sequences(data: Path, names: list[str] | None) -> Iterator[tuple[str, list[tuple[Path, Path]]]]:
    """Name, and pairs of picture and annotation."""
    found: dict[str, tuple[Path, Path]] = {}
    for pictures in sorted(data.rglob("JPEGImages")):
        masks = pictures.parent / "Annotations"
        inner = [folder for folder in sorted(pictures.iterdir()) if folder.is_dir()]
        for folder in inner:
            found[folder.name] = (folder, masks / folder.name)
        if not inner:
            found[pictures.parent.name] = (pictures, masks)
    for plate in sorted(data.rglob("plate")):
        alpha = plate.parent / "alpha"
        found[plate.parent.name] = (plate, alpha if alpha.is_dir() else data / "furball" / "alpha")
    for name, (pictures, masks) in found.items():
        if names and name not in names:
            continue
        annotated = {_number(path): path for path in masks.glob("*.png")}
        pairs = [
            (path, annotated[_number(path)])
            for path in sorted(pictures.iterdir())
            if _number(path) in annotated
        ]
        if pairs:
            yield name, pairs


def _number(path: Path) -> int:
    return int("".join(sign for sign in path.stem.rsplit(".", 1)[-1] if sign.isdigit()) or -1)


def read(pairs: list[tuple[Path, Path]]) -> list[Frame]:
    """The frames; an object for each label of a palette picture, one for any other."""
    frames = []
    for number, (picture, mask) in enumerate(pairs, 1001):
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"), np.float32) / 255
        with Image.open(mask) as opened:
            labels = opened.mode == "P"
            values = np.asarray(opened if labels else opened.convert("L"))
        mattes = (
            {f"object{label}": (values == label).astype(np.float32) for label in np.unique(values) if label}
            if labels
            else {"object1": values.astype(np.float32) / 255}
        )
        frames.append(Frame(number, pixels, mattes))
    return frames


def measure(frames: list[Frame], tolerance: float) -> Score:
    """Shapes of a sequence, and how good they are."""
    window = Window(0, 0, frames[0].picture.shape[1], frames[0].picture.shape[0])
    begin = time.process_time()
    maker = ShapeMaker(tolerance)
    for frame in frames:
        maker.add(frame.number, frame.mattes, window, frame.picture)
    made = maker.finish(window)
    seconds = (time.process_time() - begin) / len(frames)
    region, boundary = [], []
    for frame in frames:
        for name, matte in frame.mattes.items():
            drawn, truth = rasterised(made, name, frame.number, window) >= 0.5, matte >= 0.5
            region.append(float((drawn & truth).sum() / max((drawn | truth).sum(), 1)))
            boundary.append(boundary_at_one_pixel(drawn, truth))
    long = [shape for shape in made.shapes if shape.last - shape.first + 1 >= LONG_LIFE]
    keyed = [shape.keys / len(shape.points) / (shape.last - shape.first + 1) for shape in long]
    points = [len(shape.points) for shape in made.shapes]
    return Score(region, boundary, len(made.shapes), points, keyed, jitter(made, frames, long), seconds)


def boundary_at_one_pixel(one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_]) -> float:
    """F of two outlines: what lies at most one pixel beside the other."""
    square = np.ones((3, 3), np.uint8)
    lines = [mask & (cv2.erode(mask.astype(np.uint8), square) == 0) for mask in (one, two)]
    near = [cv2.dilate(line.astype(np.uint8), square) > 0 for line in lines]
    if not lines[0].any() or not lines[1].any():
        return float(lines[0].any() == lines[1].any())
    precision, recall = (
        (lines[0] & near[1]).sum() / lines[0].sum(),
        (lines[1] & near[0]).sum() / lines[1].sum(),
    )
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def jitter(made: ShapeSet, frames: list[Frame], shapes: list[Shape]) -> float:
    """Second difference of the points over that of the raw contour beside them, along the normal; median."""
    window = Window(0, 0, frames[0].picture.shape[1], frames[0].picture.shape[0])
    raw: dict[tuple[int, str], npt.NDArray[np.float64]] = {}
    for frame in frames:
        for name, matte in frame.mattes.items():
            found = contours(matte, window)[0]
            if found:
                raw[frame.number, name] = np.concatenate([one.points for one in found])
    ratios = []
    for shape in shapes:
        outlines = {frame: shape.at(frame) for frame in range(shape.first, shape.last + 1)}
        across = {frame: normals(outline.centre) for frame, outline in outlines.items()}
        beside = {frame: _beside(raw[frame, shape.object], outlines[frame].centre) for frame in outlines}
        own, other = [], []
        for frame in range(shape.first + 1, shape.last):
            for values, into in (({f: o.centre for f, o in outlines.items()}, own), (beside, other)):
                second = values[frame - 1] - 2 * values[frame] + values[frame + 1]
                into.append(np.abs(np.sum(second * across[frame], axis=1)))
        ratios.append(float(np.mean(own) / max(float(np.mean(other)), 1e-9)))
    return statistics.median(ratios) if ratios else float("nan")


def _beside(contour: npt.NDArray[np.float64], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The contour's point closest to each point."""
    distance = np.linalg.norm(points[:, None] - contour[None], axis=2)
    closest: npt.NDArray[np.float64] = contour[distance.argmin(axis=1)]
    return closest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--sequence", nargs="+")
    parser.add_argument("--tolerance", type=float, default=0.75)
    parser.add_argument("--frames", type=int, default=1000)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        f"{'sequence':16}{'J':>7}{'low':>7}{'F':>7}{'low':>7}{'shapes':>8}{'points':>8}{'keyed':>7}{'jitter':>8}{'s':>7}"
    )
    scores = []
    for data in args.data:
        for name, pairs in sequences(data, args.sequence):
            try:
                scores.append(measure(read(pairs[: args.frames]), args.tolerance))
            except StmError as error:
                print(f"{name:16}{error}")
                continue
            report(name, scores[-1])
    if len(scores) > 1:
        report("all", joined(scores))


def joined(scores: list[Score]) -> Score:
    """Of all sequences together."""
    jitters = [one.jitter for one in scores if one.jitter == one.jitter]
    return Score(
        [value for one in scores for value in one.region],
        [value for one in scores for value in one.boundary],
        sum(one.shapes for one in scores),
        [value for one in scores for value in one.points],
        [value for one in scores for value in one.keyed],
        statistics.fmean(jitters) if jitters else float("nan"),
        statistics.fmean(one.seconds for one in scores),
    )


def report(name: str, score: Score) -> None:
    keyed = statistics.fmean(score.keyed) if score.keyed else float("nan")
    values = (
        f"{statistics.fmean(score.region):.3f}",
        f"{min(score.region):.3f}",
        f"{statistics.fmean(score.boundary):.3f}",
        f"{min(score.boundary):.3f}",
        f"{score.shapes:.0f}",
        f"{statistics.median(score.points):.0f}",
        f"{keyed:.2f}",
        f"{score.jitter:.2f}",
        f"{score.seconds:.2f}",
    )
    print(f"{name:16}" + "".join(f"{value:>8}" for value in values), flush=True)


if __name__ == "__main__":
    main()
