"""An artist's rounds of corrections: what each key costs and what it brings, on clips with annotations.

    python benchmarks/corrections.py DATA [--sequence NAME ...] [--keys 5] [--choose advised random ...]

One key on the first frame, then a round for each further key: a frame is chosen, its true mask becomes a key,
and the shot is propagated again. `advised` takes the frame that `stm shot status` names; `random` any frame;
`hidden` the one on which the object is smallest; `even` the last, the middle, the quarters. `worst` takes the
frame whose matte is worst, as an artist who looks at everything would.

Prints by round: the key, the frames that became stale, the calls of the network, the seconds, mean J of all
frames (a key counts as 1, as its matte is the mask), and the bound: the best pass of each frame, if one knew
which. At the end, by way of choosing: mean J after each key, and the largest loss that one more key caused on
one clip.

    python benchmarks/corrections.py --cost

prints how often the network runs for a first run and for a correction, by keys and frames, from plans alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.evaluation.metrics import region_similarity
from stm_plugin.planning.plan import make_plan, position_in
from stm_plugin.planning.values import Facts, Key, KeyMask, Plan, State
from stm_plugin.propagation.networks import ready_network
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.small_network import CountingNetwork

FIRST = 1001
WAYS = ("advised", "random", "hidden", "even", "worst")
Truths = dict[int, npt.NDArray[np.float32]]


def truth_of(path: Path) -> npt.NDArray[np.float32]:
    """(h, w): 1 on any object."""
    labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert labels is not None
    return (labels > 0).astype(np.float32)


def scores_of(shot: Shot, truths: Truths) -> dict[int, float]:
    """J of every annotated frame."""
    scores = {}
    for frame, truth in truths.items():
        (matte,) = shot.matte(frame).mattes.values()
        scores[frame] = region_similarity(truth > 0.5, matte > 0.5)
    return scores


def bound_of(shot: Shot, truths: Truths, keys: Sequence[int]) -> float:
    """Mean J of the best pass of each frame, before finishing; 1 on keys."""
    plan = shot.plan()
    results = shot._working.finisher(plan).results
    best = dict.fromkeys(truths, 0.0) | dict.fromkeys(keys, 1.0)
    for passed in plan.passes:
        for frame in set(passed.frames) & set(truths) - set(keys):
            truth = truths[frame]
            found = results.pass_result(passed, position_in(passed, frame))[0]
            resized = cv2.resize(found, (truth.shape[1], truth.shape[0]))
            best[frame] = max(best[frame], region_similarity(truth > 0.5, resized > 0.5))
    return statistics.mean(best.values())


def chosen(how: str, shot: Shot, scores: dict[int, float], keys: Sequence[int], truths: Truths) -> int | None:
    """The frame of the next key, one that is annotated and shows the object; None where there is none."""
    free = {frame: score for frame, score in scores.items() if frame not in keys and truths[frame].any()}
    if not free:
        return None
    frames = sorted(truths)
    if how == "worst":
        return min(free, key=lambda frame: free[frame])
    if how == "hidden":
        return min(free, key=lambda frame: truths[frame].sum())
    if how == "random":
        return int(np.random.default_rng(len(keys)).choice(sorted(free)))
    if how == "even":
        places = (1.0, 0.5, 0.25, 0.75, 0.125, 0.375)
        wanted = frames[round(places[len(keys) - 1] * (len(frames) - 1))]
        return min(free, key=lambda frame: abs(frame - wanted))
    advice = shot.status().next_key
    return None if advice is None else min(free, key=lambda frame: abs(frame - advice.frame))


def play(
    sequence: VideoSequence, how: str, rounds: int, settings: Settings
) -> tuple[list[float], list[float]]:
    """All rounds on one clip; mean J and the bound after each key."""
    network = CountingNetwork(inner=ready_network(settings.weights, "cpu", settings.precision))
    means: list[float] = []
    bounds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder, truths = Path(name), Truths()
        for number, frame in enumerate(sequence.frames, start=FIRST):
            picture = sequence.pictures[frame]
            (folder / f"plate.{number}{picture.suffix}").symlink_to(picture.resolve())
            if frame in sequence.annotations:
                truths[number] = truth_of(sequence.annotations[frame])
        plate = PlateDescription("files", f"{folder}/plate.####{picture.suffix}")
        with Shot.create(folder / "clip", plate, settings, network=network.factory) as shot:
            keys = [FIRST]
            while True:
                shot.add_key(keys[-1], {"object": truths[keys[-1]]})
                status = shot.status()
                stale = status.count(State.STALE) + status.count(State.MISSING)
                network.calls.clear()
                started = time.perf_counter()
                done = shot.propagate()
                seconds = time.perf_counter() - started
                scores = scores_of(shot, truths)
                means.append(statistics.mean(scores.values()))
                bounds.append(bound_of(shot, truths, keys))
                calls = f"query {network.calls['query']:3}  memory {network.calls['memory']:3}"
                did = f"dirty {stale:3}  computed {done.computed:3}  {calls}  {seconds:6.1f} s"
                said = f"J {means[-1]:.3f}  bound {bounds[-1]:.3f}"
                print(f"{sequence.name:16} {how:7} key {keys[-1]}  {did}  {said}", flush=True)
                assert network.calls["read and decode"] == done.computed
                following = chosen(how, shot, scores, keys, truths) if len(keys) < rounds else None
                if following is None:
                    return means, bounds
                keys.append(following)


def cost() -> None:
    """Prints the calls of the network by keys and frames, first run and correction in the middle."""
    for count in (100, 1000):
        frames = tuple(range(1, count + 1))
        for number in (1, 3, 10):
            places = [round((place + 0.5) * count / number) for place in range(number)]
            facts = _facts(frames, places)
            first = make_plan(facts)
            stored = {address for row in first.addresses.values() for address in row}
            correction = _facts(frames, [*places, places[number // 2] + count // (2 * number) - 1])
            second = make_plan(correction, known=stored.__contains__)
            calls = f"first run {_calls(first):5}  one key more {_calls(second):5}"
            print(f"{count:5} frames  {number:2} keys  {calls}")


def _facts(frames: tuple[int, ...], keys: Sequence[int]) -> Facts:
    given = tuple(Key(key, {"o1": KeyMask(str(key))}) for key in keys)
    return Facts(frames, ("o1",), given, {}, {frame: str(frame) for frame in frames})


def _calls(plan: Plan) -> int:
    return len(plan.compute_steps)


def summarise(played: dict[str, list[tuple[list[float], list[float]]]]) -> None:
    """Prints by way of choosing the means after each key, the bounds, and the worst loss."""
    for how, clips in played.items():
        rounds = max(len(means) for means, _ in clips)
        # Where no further key was advised, the shot stays as it is.
        filled = [[*means, *[means[-1]] * (rounds - len(means))] for means, _ in clips]
        bounds = [[*of, *[of[-1]] * (rounds - len(of))] for _, of in clips]
        losses = [after - before for row in filled for before, after in pairwise(row)]
        told = " ".join(f"{statistics.mean(column):.3f}" for column in zip(*filled, strict=True))
        best = " ".join(f"{statistics.mean(column):.3f}" for column in zip(*bounds, strict=True))
        print(f"{how:7} J {told}  bound {best}  worst loss {min([0.0, *losses]):+.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rounds, and what each way of choosing reaches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="a folder in DAVIS layout, or one sequence")
    parser.add_argument("--sequence", nargs="*", default=[])
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--choose", nargs="+", default=["advised", "random", "hidden", "even"], choices=WAYS)
    parser.add_argument("--backward", action="store_true", help="from the last frame to the first")
    parser.add_argument("--step", type=int, default=1, help="every how many frames of a clip")
    parser.add_argument("--frames", type=int, default=0, help="so many frames of it at most")
    parser.add_argument("--size", type=int, default=480, help="short side for the network")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--cost", action="store_true", help="count the calls of the network, play nothing")
    given = parser.parse_args(arguments)
    if given.cost:
        cost()
        return
    if given.data is None:
        parser.error("give the data")
    settings = Settings(working_size=given.size, precision=given.precision)
    played: dict[str, list[tuple[list[float], list[float]]]] = {}
    for sequence in find_sequences(given.data, given.sequence):
        clip = (sequence.backward if given.backward else sequence).stepped(given.step)
        clip = replace(clip, frames=clip.frames[: given.frames or None])
        for how in given.choose:
            played.setdefault(how, []).append(play(clip, how, given.keys, settings))
    summarise(played)


if __name__ == "__main__":
    main()
