"""An artist's rounds of corrections: what each key costs and what it brings, on clips with annotations.

    python benchmarks/corrections.py DATA [--sequence NAME ...] [--keys 5] [--choose advised random ...]

One key on the first frame, then a round for each further key: a frame is chosen, its true mask becomes a key,
and the shot is propagated again. `advised` takes the frame that `stm shot status` names; `random` any frame;
`hidden` the one on which the object is smallest; `even` the last, the middle, the quarters. `worst` takes the
frame whose matte is worst, as an artist who looks at everything would.

Prints by round: the key, the frames that became stale, the calls of the network, the seconds, mean J of all
frames (a key counts as 1, as its matte is the mask), and the bound: the best pass of each frame, if one knew
which. At the end, by way of choosing: mean J after each key, and the largest loss that one more key caused on
one clip. With `--objects` each label is an object, and J is the mean of all objects. With `--adapt` the
network is also adapted to the keys of each round: J with it, and whether `stm shot status` offered it.

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
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.data.pictures import read_labels
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
Masks = dict[str, npt.NDArray[np.float32]]
Truths = dict[int, Masks]
"""The true masks of every annotated frame, by object, (h, w) each."""


@dataclass(frozen=True)
class Way:
    """How the rounds are played: how many keys, and what is measured beside them."""

    rounds: int
    objects: bool
    adapt: bool


def truth_of(path: Path, objects: bool) -> Masks:
    """Each label as an object, or all of them as one."""
    labels = read_labels(path)
    if not objects:
        return {"object": (labels > 0).astype(np.float32)}
    return {f"object{label}": (labels == label).astype(np.float32) for label in np.unique(labels) if label}


def truths_of(sequence: VideoSequence, objects: bool) -> Truths:
    """The true masks; an object that a frame does not show has an empty mask there."""
    found = {
        number: truth_of(sequence.annotations[frame], objects)
        for number, frame in enumerate(sequence.frames, start=FIRST)
        if frame in sequence.annotations
    }
    names = sorted({name for masks in found.values() for name in masks})
    empty = np.zeros_like(next(iter(found[min(found)].values())))
    return {frame: {name: masks.get(name, empty) for name in names} for frame, masks in found.items()}


def scores_of(shot: Shot, truths: Truths) -> dict[int, float]:
    """J of every annotated frame, the mean of its objects."""
    scores = {}
    for frame, masks in truths.items():
        mattes = shot.matte(frame).mattes
        scores[frame] = statistics.mean(
            region_similarity(truth > 0.5, mattes[name] > 0.5) for name, truth in masks.items()
        )
    return scores


def bound_of(shot: Shot, truths: Truths, keys: Sequence[int]) -> float:
    """Mean J of the best pass of each frame and object, before finishing; 1 on keys."""
    plan = shot.plan()
    results = shot._working.finisher(plan).results
    names = shot.store.description().names
    best = {(frame, name): float(frame in keys) for frame, masks in truths.items() for name in masks}
    for passed in plan.passes:
        for frame in set(passed.frames) & set(truths) - set(keys):
            found = results.pass_result(passed, position_in(passed, frame))
            for probability, one in zip(found, passed.objects, strict=True):
                truth = truths[frame][names[one]]
                resized = cv2.resize(probability, (truth.shape[1], truth.shape[0]))
                score = region_similarity(truth > 0.5, resized > 0.5)
                best[frame, names[one]] = max(best[frame, names[one]], score)
    return statistics.mean(best.values())


def adapted_mean(shot: Shot, truths: Truths) -> float:
    """Mean J with the network adapted to the present keys; afterwards the shot has the unchanged weights."""
    shot.adapt()
    shot.propagate()
    score = statistics.mean(scores_of(shot, truths).values())
    shot.set_settings(replace(shot.settings, adapt=False))
    return score


def shown(masks: Masks) -> float:
    """The area of all objects in pixels."""
    return float(sum(mask.sum() for mask in masks.values()))


def chosen(how: str, shot: Shot, scores: dict[int, float], keys: Sequence[int], truths: Truths) -> int | None:
    """The frame of the next key, one that is annotated and shows the object; None where there is none."""
    free = {frame: score for frame, score in scores.items() if frame not in keys and shown(truths[frame]) > 0}
    if not free:
        return None
    frames = sorted(truths)
    if how == "worst":
        return min(free, key=lambda frame: free[frame])
    if how == "hidden":
        return min(free, key=lambda frame: shown(truths[frame]))
    if how == "random":
        return int(np.random.default_rng(len(keys)).choice(sorted(free)))
    if how == "even":
        places = (1.0, 0.5, 0.25, 0.75, 0.125, 0.375)
        wanted = frames[round(places[len(keys) - 1] * (len(frames) - 1))]
        return min(free, key=lambda frame: abs(frame - wanted))
    advice = shot.status().next_key
    return None if advice is None else min(free, key=lambda frame: abs(frame - advice.frame))


def play(
    sequence: VideoSequence, how: str, way: Way, settings: Settings
) -> tuple[list[float], list[float], list[float]]:
    """All rounds on one clip; mean J, the bound and J of the adapted network after each key."""
    # Adapting needs the network's file, so its calls are not counted then.
    network = CountingNetwork(inner=ready_network(settings.weights, "cpu", settings.precision))
    truths = truths_of(sequence, way.objects)
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, frame in enumerate(sequence.frames, start=FIRST):
            picture = sequence.pictures[frame]
            (folder / f"plate.{number}{picture.suffix}").symlink_to(picture.resolve())
        plate = PlateDescription("files", f"{folder}/plate.####{picture.suffix}")
        factory = None if way.adapt else network.factory
        with Shot.create(folder / "clip", plate, settings, network=factory) as shot:
            keys = [FIRST]
            while True:
                shot.add_key(keys[-1], truths[keys[-1]])
                network.calls.clear()
                did, computed, scores = one_round(shot, truths)
                found[0].append(statistics.mean(scores.values()))
                found[1].append(bound_of(shot, truths, keys))
                calls = f"query {network.calls['query']:3}  memory {network.calls['memory']:3}"
                said = f"J {found[0][-1]:.3f}  bound {found[1][-1]:.3f}"
                following = chosen(how, shot, scores, keys, truths) if len(keys) < way.rounds else None
                if way.adapt:
                    offered = any("stm adapt" in sentence for sentence in shot.status().advice)
                    calls = "adapting offered" if offered else "adapting not offered"
                    found[2].append(adapted_mean(shot, truths))
                    said += f"  adapted {found[2][-1]:.3f}"
                print(f"{sequence.name:16} {how:7} key {keys[-1]}  {did}  {calls}  {said}", flush=True)
                assert way.adapt or network.calls["read and decode"] == computed
                if following is None:
                    return found
                keys.append(following)


def one_round(shot: Shot, truths: Truths) -> tuple[str, int, dict[int, float]]:
    """Propagates; what that did in words, the frames computed, and J of every frame."""
    status = shot.status()
    stale = status.count(State.STALE) + status.count(State.MISSING)
    started = time.perf_counter()
    done = shot.propagate()
    seconds = time.perf_counter() - started
    words = f"dirty {stale:3}  computed {done.computed:3}  {seconds:6.1f} s"
    return words, done.computed, scores_of(shot, truths)


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


def summarise(played: dict[str, list[tuple[list[float], list[float], list[float]]]]) -> None:
    """Prints by way of choosing the means after each key, the bounds, and the worst loss."""
    for how, clips in played.items():
        rounds = max(len(means) for means, _, _ in clips)
        # Where no further key was advised, the shot stays as it is.
        filled = [
            [[*row, *[row[-1]] * (rounds - len(row))] for row in column if row]
            for column in zip(*clips, strict=True)
        ]
        losses = [after - before for row in filled[0] for before, after in pairwise(row)]
        told, best, adapted = (
            " ".join(f"{statistics.mean(column):.3f}" for column in zip(*rows, strict=True))
            for rows in filled
        )
        with_adapting = f"  adapted {adapted}" if adapted else ""
        print(f"{how:7} J {told}  bound {best}  worst loss {min([0.0, *losses]):+.3f}{with_adapting}")


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
    parser.add_argument("--objects", action="store_true", help="each label is an object; else all are one")
    parser.add_argument("--adapt", action="store_true", help="measure adapting in each round too")
    parser.add_argument("--cost", action="store_true", help="count the calls of the network, play nothing")
    given = parser.parse_args(arguments)
    if given.cost:
        cost()
        return
    if given.data is None:
        parser.error("give the data")
    settings = Settings(working_size=given.size, precision=given.precision)
    played: dict[str, list[tuple[list[float], list[float], list[float]]]] = {}
    way = Way(given.keys, given.objects, given.adapt)
    for sequence in find_sequences(given.data, given.sequence):
        clip = (sequence.backward if given.backward else sequence).stepped(given.step)
        clip = replace(clip, frames=clip.frames[: given.frames or None])
        for how in given.choose:
            played.setdefault(how, []).append(play(clip, how, way, settings))
    summarise(played)


if __name__ == "__main__":
    main()
