"""An artist's rounds of corrections: what each costs and what it brings, on a clip with annotations.

    python benchmarks/corrections.py DATA [--sequence NAME ...] [--rounds 5] [--choose advice worst]

One key on the first frame, then a round for each correction: a frame is chosen, its true mask becomes a key,
and the shot is propagated again. `advice` takes the frame that `stm shot status` names; `worst` the one whose
matte is worst, as an artist who looks at everything would; `middle` the middle of the longest span. Prints by
round: the key, the frames that became stale, the calls of the network, the seconds, and mean J.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.evaluation.metrics import region_similarity
from stm_plugin.planning.values import State
from stm_plugin.propagation.networks import ready_network
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.small_network import CountingNetwork

FIRST = 1001


def truth_of(path: Path) -> npt.NDArray[np.float32]:
    """(h, w): 1 on any object."""
    labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert labels is not None
    return (labels > 0).astype(np.float32)


def scores_of(shot: Shot, truths: dict[int, npt.NDArray[np.float32]]) -> dict[int, float]:
    """J of every annotated frame."""
    scores = {}
    for frame, truth in truths.items():
        (matte,) = shot.matte(frame).mattes.values()
        scores[frame] = region_similarity(truth > 0.5, matte > 0.5)
    return scores


def chosen(how: str, shot: Shot, scores: dict[int, float], keys: Sequence[int]) -> int | None:
    """The frame of the next key, one that is annotated; None where there is nothing to correct."""
    free = {frame: score for frame, score in scores.items() if frame not in keys}
    if not free:
        return None
    if how == "worst":
        return min(free, key=lambda frame: free[frame])
    if how == "middle":
        return max(free, key=lambda frame: min(abs(frame - key) for key in keys))
    advice = shot.status().next_key
    return None if advice is None else min(free, key=lambda frame: abs(frame - advice.frame))


def play(sequence: VideoSequence, how: str, rounds: int, step: int, settings: Settings) -> list[float]:
    """All rounds on one clip; mean J after each."""
    network = CountingNetwork(inner=ready_network(settings.weights, "cpu", settings.precision))
    means: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truths: dict[int, npt.NDArray[np.float32]] = {}
        for number, frame in enumerate(sequence.frames[::step], start=FIRST):
            picture = sequence.pictures[frame]
            (folder / f"plate.{number}{picture.suffix}").symlink_to(picture.resolve())
            if frame in sequence.annotations:
                truths[number] = truth_of(sequence.annotations[frame])
        plate = PlateDescription("files", f"{folder}/plate.####{picture.suffix}")
        with Shot.create(folder / "clip", plate, settings, network=network.factory) as shot:
            keys = [FIRST]
            while True:
                shot.add_key(keys[-1], {"object": truths[keys[-1]]})
                stale = shot.status().count(State.STALE) + shot.status().count(State.MISSING)
                network.calls.clear()
                started = time.perf_counter()
                done = shot.propagate()
                seconds = time.perf_counter() - started
                scores = scores_of(shot, truths)
                means.append(statistics.mean(scores.values()))
                calls = f"query {network.calls['query']:3}  memory {network.calls['memory']:3}"
                did = f"dirty {stale:3}  computed {done.computed:3}  {calls}  {seconds:6.1f} s"
                print(f"{sequence.name:16} {how:7} key {keys[-1]}  {did}  J {means[-1]:.3f}", flush=True)
                assert network.calls["read and decode"] == done.computed
                following = chosen(how, shot, scores, keys) if len(keys) <= rounds else None
                if following is None:
                    return means
                keys.append(following)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rounds, and what each way of choosing reaches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder in DAVIS layout, or one sequence")
    parser.add_argument("--sequence", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--choose", nargs="+", default=["advice", "worst", "middle"])
    parser.add_argument("--step", type=int, default=1, help="every how many frames of a clip")
    parser.add_argument("--size", type=int, default=240, help="short side for the network")
    parser.add_argument("--precision", default="bfloat16")
    given = parser.parse_args(arguments)
    settings = Settings(working_size=given.size, precision=given.precision)
    reached: dict[str, list[float]] = {}
    for sequence in find_sequences(given.data, given.sequence):
        for how in given.choose:
            reached.setdefault(how, []).append(play(sequence, how, given.rounds, given.step, settings)[-1])
    for how, means in reached.items():
        print(f"{how:7} J {statistics.mean(means):.3f} after {given.rounds} corrections")


if __name__ == "__main__":
    main()
