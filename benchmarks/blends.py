"""How the two passes of a span are best blended: J of several blends, on clips with annotations.

    python benchmarks/blends.py DATA [--sequence NAME ...] [--keys-in-memory own span]

Each clip (every third frame) is computed with keys on its first and last frame, and on its middle one too.
The passes are computed once and blended in each way; J is the mean over the frames that are no keys, at the
size of the annotations, before finishing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.corrections import FIRST, truth_of
from model.data.davis import VideoSequence, find_sequences
from model.evaluation.metrics import region_similarity
from stm_plugin.planning.plan import position_in
from stm_plugin.planning.values import Direction
from stm_plugin.propagation.fusion import confidence, distance_weight, fuse
from stm_plugin.propagation.results import Results
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray

OBJECT = "object"
Blend = Callable[[FloatArray, FloatArray, int, int], FloatArray]


def by_pixel(forward: FloatArray, backward: FloatArray, from_left: int, from_right: int) -> FloatArray:
    """By distance and confidence of each pixel alone."""
    weight = np.float32(distance_weight(from_left, from_right))
    left, right = (1 - weight) * confidence(forward), weight * confidence(backward)
    blended: FloatArray = forward + right / (left + right) * (backward - forward)
    return blended


def by_distance(forward: FloatArray, backward: FloatArray, from_left: int, from_right: int) -> FloatArray:
    """By distance alone."""
    weight = np.float32(distance_weight(from_left, from_right))
    blended: FloatArray = forward + weight * (backward - forward)
    return blended


BLENDS: dict[str, Blend] = {
    "shipped": fuse,
    "distance and pixel": by_pixel,
    "distance alone": by_distance,
    "the nearer pass": lambda forward, backward, left, right: forward if left <= right else backward,
    "forward pass alone": lambda forward, backward, left, right: forward,
    "backward pass alone": lambda forward, backward, left, right: backward,
}


def similarity(probability: FloatArray, truth: FloatArray) -> float:
    """J of a probability at the size of the truth."""
    size = (truth.shape[1], truth.shape[0])
    return 100 * region_similarity(truth > 0.5, cv2.resize(probability, size) > 0.5)


def measured(sequence: VideoSequence, step: int, keys_wanted: int, settings: Settings) -> dict[str, float]:
    """Mean J of each blend."""
    frames = [frame for frame in sequence.frames[::step] if frame in sequence.annotations]
    truths = {FIRST + place: truth_of(sequence.annotations[frame]) for place, frame in enumerate(frames)}
    last = FIRST + len(frames) - 1
    keys = {2: [FIRST, last], 3: [FIRST, FIRST + len(frames) // 2, last]}[keys_wanted]
    scores: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for place, frame in enumerate(frames):
            picture = sequence.pictures[frame]
            (Path(name) / f"plate.{FIRST + place}{picture.suffix}").symlink_to(picture.resolve())
        plate = PlateDescription("files", f"{name}/plate.####{picture.suffix}")
        with Shot.create(Path(name) / "clip", plate, settings) as shot:
            for key in keys:
                shot.add_key(key, {OBJECT: truths[key]})
            shot.propagate()
            plan = shot.plan()
            results = Results(shot._working.context(), plan)
            passes = {one.name: one for one in plan.passes}
            for left, right in pairwise(keys):
                both = passes[left, Direction.FORWARD], passes[right, Direction.BACKWARD]
                for frame in range(left + 1, right):
                    forward, backward = (results.pass_result(one, position_in(one, frame))[0] for one in both)
                    for name_of, blend in BLENDS.items():
                        blended = blend(forward, backward, frame - left, right - frame)
                        scores[name_of].append(similarity(blended, truths[frame]))
    return {name_of: statistics.mean(values) for name_of, values in scores.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints J by sequence, keys and blend, and the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder in DAVIS layout, or one sequence")
    parser.add_argument("--sequence", nargs="*", default=[])
    parser.add_argument("--keys-in-memory", nargs="+", default=["own"], choices=["own", "span", "all"])
    parser.add_argument("--step", type=int, default=3, help="every how many frames of a clip")
    parser.add_argument("--size", type=int, default=384, help="short side for the network")
    parser.add_argument("--precision", default="bfloat16")
    given = parser.parse_args(arguments)
    sequences = find_sequences(given.data, given.sequence)
    for memory in given.keys_in_memory:
        settings = Settings(working_size=given.size, precision=given.precision, keys_in_memory=memory)
        for keys in (2, 3):
            found = {one.name: measured(one, given.step, keys, settings) for one in sequences}
            for blend in BLENDS:
                row = "  ".join(f"{name} {scores[blend]:.1f}" for name, scores in found.items())
                mean = statistics.mean(scores[blend] for scores in found.values())
                print(f"{memory:4} {keys} keys  {blend:20} {mean:.2f}   {row}", flush=True)


if __name__ == "__main__":
    main()
