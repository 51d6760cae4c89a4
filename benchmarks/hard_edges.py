"""What learned edges do to hard ones: J and F against annotations, and the jump beside a key.

    python benchmarks/hard_edges.py DAVIS --sequences bus dance-jump hockey mallard-water rollerblade
    python benchmarks/hard_edges.py CHAIR --beside-key 5 10

Both folders are in DAVIS layout, with one object. The key is the first frame's annotation; frames 2 to 9 are
scored, cut at a half, or at the values of `--cut`.

`--beside-key` prints instead the mean change of the matte from the frame before the key to the key, and from
the key to the frame after it, over the median change of the clip's first 19 frames. Both for a hard key and
for one with a feather of 3 pixels.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.edges import WAYS, Shown, blurred, hard, shown_of, soft_pixels
from model.data.davis import VideoSequence, find_sequences
from model.data.pictures import read_labels
from model.evaluation.metrics import contour_accuracy, region_similarity
from stm_plugin.settings import FinishSettings, Settings
from stm_plugin.windows import FloatArray

FRAMES = 9
NEAR_A_KEY = 19
"""Frames of the clip in which the change beside a key is measured."""


def truths_of(sequence: VideoSequence, count: int) -> list[FloatArray]:
    """The first annotations, (H, W) each, 0 or 1."""
    frames = sequence.frames[:count]
    return [(read_labels(sequence.annotations[one]) > 0).astype(np.float32) for one in frames]


def plate_of(sequence: VideoSequence, count: int, folder: Path) -> Path:
    """A folder with the first pictures only, numbered from 1."""
    for number, frame in enumerate(sequence.frames[:count], 1):
        picture = sequence.pictures[frame]
        (folder / f"{number:04d}{picture.suffix}").symlink_to(picture.resolve())
    return folder


def print_accuracy(sequence: VideoSequence, ways: list[str], cuts: list[float], settings: Settings) -> None:
    """J and F in per cent of each way, and the share of soft pixels in what is above 0.02."""
    with tempfile.TemporaryDirectory() as folder:
        plate = plate_of(sequence, FRAMES, Path(folder))
        shown = list(shown_of(plate, truths_of(sequence, FRAMES), settings=settings))
        for way in ways:
            mattes = [WAYS[way](one) for one in shown]
            soft = sum(map(soft_pixels, mattes)) / sum(int(np.count_nonzero(one > 0.02)) for one in mattes)
            for cut in cuts:
                print(f"{sequence.name:16} {way:14} {cut:4.2f} {_scores(mattes, shown, cut)} {soft:6.2f}")
    sys.stdout.flush()


def _scores(mattes: list[FloatArray], shown: list[Shown], cut: float) -> str:
    pairs = [(one.truth > 0.5, matte > cut) for one, matte in zip(shown, mattes, strict=True)]
    j = 100 * statistics.mean(region_similarity(*pair) for pair in pairs)
    f = 100 * statistics.mean(contour_accuracy(*pair) for pair in pairs)
    return f"{j:6.2f} {f:6.2f}"


def print_changes(sequence: VideoSequence, ways: list[str], place: int, settings: Settings) -> None:
    """The change beside a key on a frame, counted from 1, over the median change."""
    truths = truths_of(sequence, NEAR_A_KEY)
    for kind, key_of in (("hard", hard), ("blurred", blurred)):
        with tempfile.TemporaryDirectory() as folder:
            plate = plate_of(sequence, NEAR_A_KEY, Path(folder))
            shown = list(shown_of(plate, truths, key_of, place - 1, settings))
            for way in ways:
                mattes = [WAYS[way](one) for one in shown]
                mattes.insert(place - 1, key_of(truths[place - 1]))
                changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(mattes)]
                median = statistics.median(changes)
                before, after = changes[place - 2] / median, changes[place - 1] / median
                print(f"key on {place:2d}, {kind:8} {way:14} {before:5.2f} {after:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", nargs="*", default=[], help="names; all by default")
    parser.add_argument("--methods", nargs="*", choices=list(WAYS), default=["off", "guided", "learned"])
    parser.add_argument("--cut", nargs="*", type=float, default=[0.5])
    parser.add_argument("--beside-key", nargs="*", type=int, help="frames of the key, from 2")
    parser.add_argument("--edge-weights", default=FinishSettings().edge_weights, help="a name or a file")
    options = parser.parse_args()
    settings = Settings(finish=FinishSettings(edge_weights=options.edge_weights))
    for sequence in find_sequences(options.folder, options.sequences):
        if options.beside_key:
            for place in options.beside_key:
                print_changes(sequence, options.methods, place, settings)
        else:
            print_accuracy(sequence, options.methods, options.cut, settings)


if __name__ == "__main__":
    main()
