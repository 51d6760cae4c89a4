"""What adapting to a shot gains: the same keys with the weights as they are, and adapted to those keys.

    python benchmarks/adapt.py DAVIS                          # the table of docs/model-card.md
    python benchmarks/adapt.py DAVIS --sequence bus --keys 1  # a part of it
    python benchmarks/adapt.py DAVIS --every 1 --working-size 480

DAVIS is a folder with JPEGImages/ and Annotations/ of sequences that the weights were never trained on. Each
sequence becomes a shot of the product with true masks as keys: on its first frame; on its first and last; or
on its first, middle and last. J and F (definitions of DAVIS) are means over the frames that are no keys, and
so the same frames with and without.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.data.pictures import read_labels
from model.evaluation.metrics import contour_accuracy, region_similarity
from model.training.adapt import PARTS, AdaptOptions
from stm_plugin.planning.quality import typical_uncertainty
from stm_plugin.propagation.adaptation import default_options
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray

HELD_OUT = ("bus", "dance-jump", "hockey", "mallard-water", "rollerblade")
OBJECT = "object"


@dataclass(frozen=True)
class Scores:
    """Means over the frames that are no keys, in percent."""

    region: float
    contour: float


@dataclass(frozen=True)
class Row:
    """One sequence with so many keys."""

    sequence: str
    keys: int
    frames: int
    plain: Scores
    adapted: Scores
    seconds: float
    """That adapting took."""
    uncertainty: float
    """Of the frames before it, as `stm shot status` reckons when it offers to adapt, in [0, 1]."""

    @property
    def cells(self) -> tuple[str, ...]:
        plain, adapted = self.plain, self.adapted
        gains = adapted.region - plain.region, adapted.contour - plain.contour
        scores = (plain.region, adapted.region, gains[0], plain.contour, adapted.contour, gains[1])
        signed = [f"{one:+.1f}" if place in (2, 5) else f"{one:.1f}" for place, one in enumerate(scores)]
        row = (self.sequence, str(self.keys), str(self.frames), *signed)
        return (*row, f"{self.seconds:.0f}", f"{self.uncertainty:.3f}")


COLUMNS = (
    *("sequence", "keys", "frames", "J", "J adapted", "gain"),
    *("F", "F adapted", "gain", "seconds", "uncertainty"),
)


def key_places(count: int, keys: int) -> list[int]:
    """Evenly spread from the first frame; the last one is a key where there are two or more."""
    return [0] if keys == 1 else [round(number * (count - 1) / (keys - 1)) for number in range(keys)]


def measure(sequence: VideoSequence, keys: int, every: int, settings: Settings, options: AdaptOptions) -> Row:
    """One sequence as a shot: propagated, adapted, propagated again."""
    names = sequence.annotated_frames[::every]
    truth = {frame: mask_of(sequence, name) for frame, name in enumerate(names, 1)}
    places = [place + 1 for place in key_places(len(names), keys)]
    with tempfile.TemporaryDirectory() as folder:
        for frame, name in enumerate(names, 1):
            picture = sequence.pictures[name]
            shutil.copy(picture, Path(folder) / f"plate.{frame:04d}{picture.suffix}")
        suffix = sequence.pictures[names[0]].suffix
        plate = PlateDescription("files", str(Path(folder) / f"plate.####{suffix}"))
        with Shot.create(Path(folder) / "shot", plate, settings) as shot:
            for frame in places:
                shot.add_key(frame, {OBJECT: truth[frame].astype(np.float32)}, allow_empty=True)
            plain = scores_of(shot, truth, places)
            uncertainty = typical_uncertainty([*shot.status().qualities.values()])
            began = time.monotonic()
            shot.adapt(options)
            seconds = time.monotonic() - began
            adapted = scores_of(shot, truth, places)
    return Row(sequence.name, keys, len(names) - keys, plain, adapted, seconds, uncertainty)


def mask_of(sequence: VideoSequence, name: str) -> np.ndarray:
    """Every object of the annotation as one, (H, W) bool."""
    return np.asarray(read_labels(sequence.annotations[name]) > 0)


def scores_of(shot: Shot, truth: dict[int, np.ndarray], keys: Sequence[int]) -> Scores:
    """Propagates, and measures every frame that is no key."""
    shot.propagate()
    region, contour = [], []
    for frame, mask in truth.items():
        if frame not in keys:
            matte: FloatArray = shot.matte(frame).mattes[OBJECT]
            region.append(region_similarity(mask, matte > 0.5))
            contour.append(contour_accuracy(mask, matte > 0.5))
    return Scores(100 * float(np.mean(region)), 100 * float(np.mean(contour)))


def mean_row(rows: Sequence[Row], keys: int) -> Row:
    """Each sequence counts the same."""
    chosen = [row for row in rows if row.keys == keys]

    def mean(which: str) -> Scores:
        scores = [getattr(row, which) for row in chosen]
        return Scores(
            float(np.mean([one.region for one in scores])), float(np.mean([one.contour for one in scores]))
        )

    frames = sum(row.frames for row in chosen)
    seconds = float(np.mean([row.seconds for row in chosen]))
    uncertainty = float(np.mean([row.uncertainty for row in chosen]))
    return Row("mean", keys, frames, mean("plain"), mean("adapted"), seconds, uncertainty)


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with JPEGImages/ and Annotations/")
    parser.add_argument("--sequence", action="append", help="only these; repeatable")
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 2, 3], help="numbers of keys")
    parser.add_argument("--every", type=int, default=3, help="take every Nth frame")
    parser.add_argument("--working-size", type=int, default=Settings.working_size)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--weights", default=Settings.weights)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--csv", type=Path, help="write the rows here too")
    chosen = parser.parse_args()
    settings = Settings(working_size=chosen.working_size, precision=chosen.precision, weights=chosen.weights)
    changes = {
        "steps": chosen.steps,
        "learning_rate": chosen.learning_rate,
        "parts": None if chosen.parts is None else tuple(chosen.parts),
        "seed": chosen.seed,
    }
    options = replace(
        default_options(settings), **{name: value for name, value in changes.items() if value is not None}
    )
    print(f"{options}\n")
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    rows = []
    for sequence in find_sequences(chosen.data, chosen.sequence or HELD_OUT):
        for keys in chosen.keys:
            rows.append(measure(sequence, keys, chosen.every, settings, options))
            print_row(rows[-1].cells)
    rows += [mean_row(rows, keys) for keys in chosen.keys]
    for row in rows[-len(chosen.keys) :]:
        print_row(row.cells)
    if chosen.csv is not None:
        with chosen.csv.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([COLUMNS, *(row.cells for row in rows)])


if __name__ == "__main__":
    main()
