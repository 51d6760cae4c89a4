"""Rounds of keys on stored passes: any rule of fusion, any keys, without the network.

    python benchmarks/stored_passes.py compute FOLDER DATA [--sequence NAME ...] [--objects] [--size 480]
    python benchmarks/stored_passes.py play FOLDER [--clip NAME ...] [--choose advised even ...]
    python benchmarks/stored_passes.py second FOLDER
    python benchmarks/stored_passes.py compare FOLDER [--choose even hidden random random2] [--every 2]

`compute` runs the passes of some frames of each clip (17 of them, evenly spread, the first and the last among
them) from their true masks to both ends, and stores them; a run that was stopped goes on where it was.

`play` plays the rounds of `corrections.py` among these frames, before finishing, with the product's plan
(which passes reach a frame), fusion and advice; forward begins with the first frame as key, backward with the
last one. Prints mean J of all frames after each key (a key counts as 1), the bound (the best pass that
reaches each frame), and the largest loss that one more key caused on one clip. `second` prints for the second
and the third key what the advised frame gains, and what the best one would. `compare` prints for each clip
the mean J of two and more keys, and the largest loss by one more key, with the simple weights
(`simple_fuse`), with the product's fusion and with the best pass of each frame.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.data.pictures import read_labels, read_picture, working_scale
from model.evaluation.metrics import region_similarity
from model.inference.fast_network import FastNetwork, Query
from model.network.memory import MemoryEntry, MemoryRule
from stm_plugin.planning.plan import make_plan
from stm_plugin.planning.quality import Quality, advise, agreement
from stm_plugin.planning.values import Candidate, Direction, Facts, Key, KeyMask
from stm_plugin.propagation import fusion
from stm_plugin.propagation.feature_cache import as_halves, from_halves
from stm_plugin.propagation.networks import ready_network
from stm_plugin.settings import Settings
from stm_plugin.store.store import dequantise, quantise
from stm_plugin.windows import FloatArray

WAYS = ("advised", "random", "random2", "hidden", "even")
EVEN = (1.0, 0.5, 0.25, 0.75, 0.125, 0.375)
Bytes = npt.NDArray[np.uint8]
Fuse = Callable[[Sequence[fusion.PassAtFrame]], fusion.Fusion]


# ---- passes ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Material:
    """A clip at working size.

    Attributes:
        pictures: (3, h, w) in [0, 1].
        masks: (K, h, w) in [0, 1], zero where an object is not.
        plate_masks: (K, H, W), bytes, what is scored.
    """

    name: str
    pictures: list[FloatArray]
    masks: list[FloatArray]
    plate_masks: list[Bytes]


def material_of(sequence: VideoSequence, objects: bool, size: int) -> Material:
    """The annotated frames of a sequence."""
    frames = sequence.annotated_frames
    labels = [read_labels(sequence.annotations[frame]) for frame in frames]
    names = sorted({int(label) for one in labels for label in np.unique(one)} - {0})
    pictures, masks, plate_masks = [], [], []
    for frame, one in zip(frames, labels, strict=True):
        picture = read_picture(sequence.pictures[frame]).permute(1, 2, 0).numpy()
        truth = np.stack([one == name for name in names] if objects else [one > 0]).astype(np.uint8)
        pictures.append(np.ascontiguousarray(_resized(picture, size).transpose(2, 0, 1)))
        masks.append(np.stack([_resized(mask.astype(np.float32), size) for mask in truth]))
        plate_masks.append(truth)
    return Material(sequence.name, pictures, masks, plate_masks)


def _resized(values: FloatArray, size: int) -> FloatArray:
    height, width = values.shape[:2]
    scale = working_scale(min(height, width), size)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    found = cv2.resize(values, (round(width * scale), round(height * scale)), interpolation=method)
    return np.asarray(found, np.float32)


class PassMaker:
    """Runs passes as the engine does: what is remembered is what would be stored."""

    def __init__(self, network: FastNetwork, material: Material) -> None:
        settings = Settings()
        self._network, self._material = network, material
        self._rule, self._cap = MemoryRule.parse(settings.memory_rule), settings.memory_cap
        self._queries: dict[int, dict[str, torch.Tensor]] = {}

    def run(self, key: int, step: int, masks: FloatArray) -> FloatArray:
        """The pass of a key in one direction to the end: (frames, K, h, w).

        Args:
            step: 1 or -1.
            masks: (K, h, w) of the objects that the key shows.
        """
        end = len(self._material.pictures) if step > 0 else -1
        entry = self._entry(key, dequantise(quantise(masks)))
        bank = self._network.new_bank(self._rule, entry, capacity=self._cap, permanent=0)
        bank.restore(0, entry)
        found: list[FloatArray] = []
        for number, frame in enumerate(range(key + step, end, step)):
            if found:
                bank.write(number, self._entry(frame - step, found[-1]))
            result = self._network.segment(self._query(frame), bank)[1:].float().numpy()
            found.append(dequantise(quantise(result)))
        return np.stack(found) if found else np.empty((0, *masks.shape), np.float32)

    def _query(self, frame: int) -> Query:
        picture = self._material.pictures[frame]
        if frame not in self._queries:
            query = self._network.encode_query(torch.from_numpy(picture))
            self._queries[frame] = as_halves(query.state())
        state = from_halves(self._queries[frame], self._network.device)
        return Query.from_state(state, *picture.shape[1:])

    def _entry(self, frame: int, probabilities: FloatArray) -> MemoryEntry:
        picture = torch.from_numpy(self._material.pictures[frame])
        entry = self._network.encode_memory(picture, torch.from_numpy(probabilities))
        return MemoryEntry(**from_halves(as_halves(entry.state()), self._network.device))


def candidates_among(count: int, number: int) -> list[int]:
    """Frames spread evenly, the first and the last among them."""
    return sorted({round(place * (count - 1) / (number - 1)) for place in range(number)})


def compute(material: Material, network: FastNetwork, number: int, folder: Path) -> None:
    """Stores all passes of a clip that are not there yet."""
    place = folder / material.name
    place.mkdir(parents=True, exist_ok=True)
    maker = PassMaker(network, material)
    for key in candidates_among(len(material.pictures), number):
        masks = material.masks[key]
        shown = [one for one in range(len(masks)) if masks[one].max() > 0.5]
        for direction, step in (("forward", 1), ("backward", -1)):
            file = place / f"{key:04}-{direction}.npz"
            if file.exists() or not shown:
                continue
            found = maker.run(key, step, masks[shown])
            _save(file, probabilities=_bytes(found), objects=np.array(shown))
            print(f"{material.name} {key} {direction} {len(found)}", flush=True)
    masks = np.stack([_bytes(one) for one in material.masks])
    _save(place / "truth.npz", masks=masks, plate_masks=np.stack(material.plate_masks))


def _bytes(values: FloatArray) -> Bytes:
    return np.asarray(np.rint(values * np.float32(255)), np.uint8)


def _save(file: Path, **arrays: npt.NDArray[Any]) -> None:
    partial = file.with_suffix(".part.npz")
    np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(file)


# ---- clips -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Clip:
    """The stored passes of a clip, and its true masks."""

    folder: Path
    passes: dict[tuple[int, Direction], tuple[Bytes, list[int]]] = field(default_factory=dict)
    arrivals: dict[tuple[int, Direction, int, int], fusion.Arrival] = field(default_factory=dict)
    single: dict[tuple[int, Direction, int, int], float] = field(default_factory=dict)
    played: dict[tuple[Fuse, frozenset[int]], Scored] = field(default_factory=dict)
    every: int = 1  # how many frames apart are those that are scored

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def masks(self) -> Bytes:
        """(frames, K, h, w)."""
        return np.load(self.folder / "truth.npz")["masks"]  # type: ignore[no-any-return]

    @cached_property
    def plate_masks(self) -> npt.NDArray[np.bool_]:
        """(frames, K, H, W)."""
        return np.load(self.folder / "truth.npz")["plate_masks"] > 0  # type: ignore[no-any-return]

    @cached_property
    def areas(self) -> npt.NDArray[np.int64]:
        """(frames, K): pixels of the plate."""
        found: npt.NDArray[np.int64] = self.plate_masks.sum(axis=(2, 3))
        return found

    @cached_property
    def candidates(self) -> list[int]:
        """Frames whose passes are stored."""
        return sorted({int(file.name[:4]) for file in self.folder.glob("*-forward.npz")})

    def probability(self, key: int, direction: Direction, frame: int, one: int) -> FloatArray:
        """(h, w) of an object that the key shows."""
        if (key, direction) not in self.passes:
            with np.load(self.folder / f"{key:04}-{direction}.npz") as file:
                self.passes[key, direction] = file["probabilities"], [*file["objects"]]
        found, objects = self.passes[key, direction]
        return _floats(found[abs(frame - key) - 1, objects.index(one)])

    def truth(self, frame: int, one: int) -> FloatArray:
        """(h, w) at working size."""
        return _floats(self.masks[frame, one])

    def score(self, frame: int, one: int, probability: FloatArray) -> float:
        """J at the plate's size."""
        truth = self.plate_masks[frame, one]
        enlarged = cv2.resize(probability, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return region_similarity(truth, enlarged > 0.5)

    def arrival(self, name: tuple[int, Direction], met: int, one: int) -> fusion.Arrival:
        """How a pass fits a key that it meets."""
        if (*name, met, one) not in self.arrivals:
            truth, result = self.truth(met, one), self.probability(*name, met, one)
            area = fusion.area_of(self.truth(name[0], one))
            self.arrivals[*name, met, one] = fusion.arrival_at(abs(met - name[0]), result, truth, area)
        return self.arrivals[*name, met, one]

    def single_score(self, one: Candidate, frame: int, which: int) -> float:
        """J of one pass."""
        if (*one.name, frame, which) not in self.single:
            found = self.score(frame, which, self.probability(*one.name, frame, which))
            self.single[*one.name, frame, which] = found
        return self.single[*one.name, frame, which]


def _floats(values: Bytes) -> FloatArray:
    return values.astype(np.float32) / np.float32(255)


def clips_in(folder: Path, names: Sequence[str] = (), every: int = 1) -> Iterator[Clip]:
    """The clips of a folder whose passes are all stored."""
    for file in sorted(folder.glob("*/truth.npz")):
        if not names or file.parent.name in names:
            yield Clip(file.parent, every=every)


# ---- rounds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A clip with certain keys.

    Attributes:
        scores: mean J of the objects, by frame; 1 on keys.
        bound: mean J of the best pass of each frame and object.
        error: mean of the sum of |probability - mask| over the true area, of the frames without a key.
        qualities: what `advise` reads.
    """

    scores: list[float]
    bound: float
    error: float
    qualities: Mapping[int, Quality]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def play_keys(clip: Clip, keys: Sequence[int], fuse: Fuse = fusion.fuse) -> Scored:
    """The scored frames with these keys, by the product's plan; computed once for a set of keys."""
    name = fuse, frozenset(keys)
    if name not in clip.played:
        clip.played[name] = _play_keys(clip, keys, fuse)
    return clip.played[name]


def _play_keys(clip: Clip, keys: Sequence[int], fuse: Fuse) -> Scored:
    count, objects = clip.areas.shape
    names = tuple(str(one) for one in range(objects))
    given = tuple(
        Key(
            key,
            {
                name: KeyMask(f"{key} {name}", not area, float(area))
                for name, area in zip(names, clip.areas[key], strict=True)
            },
        )
        for key in keys
    )
    frames = tuple(range(count))
    plan = make_plan(Facts(frames, names, given, {}, {frame: str(frame) for frame in frames}))
    scores, bounds, errors, qualities = [], [], [], {}
    for frame in frames[:: clip.every]:
        if frame in keys:
            scores.append(1.0)
            bounds.append(1.0)
            continue
        by_object, best, error, areas = [], [], [], 0.0
        confidences, agreed = [], []
        for name, source in plan.by_frame[frame].sources.items():
            one = int(name)
            passes = [passed(clip, candidate, frame, one) for candidate in source.candidates]
            best.append(max([clip.single_score(each, frame, one) for each in source.candidates], default=0.0))
            if passes:
                found = fuse(passes)
                probability = found.probability
                if len(passes) > 1:
                    first, second = (passes[place] for place in found.most_trusted())
                    counts = fusion.known_alike(first, second)
                    agreed.append(agreement(first.probability, second.probability, counts))
            else:
                probability = np.zeros(clip.masks.shape[2:], np.float32)
                best[-1] = clip.score(frame, one, probability)
            by_object.append(clip.score(frame, one, probability))
            truth = clip.truth(frame, one)
            either = np.abs(probability - truth).sum() / max(1.0, float(truth.sum()))
            error.append(float(min(either, 2.0)))
            confidences.append(fusion.mean_confidence(probability))
            areas += fusion.area_of(probability)
        scores.append(statistics.mean(by_object))
        bounds.append(statistics.mean(best))
        errors.append(statistics.mean(error))
        qualities[frame] = Quality(frame, "", min(confidences), min(agreed, default=None), areas)
    return Scored(scores, statistics.mean(bounds), statistics.mean(errors or [0.0]), qualities)


def passed(clip: Clip, candidate: Candidate, frame: int, one: int) -> fusion.PassAtFrame:
    """A candidate of an object on a frame."""
    way = abs(frame - candidate.key) * (1 if candidate.direction is Direction.FORWARD else -1)
    probability = clip.probability(*candidate.name, frame, one)
    arrivals = tuple(clip.arrival(candidate.name, met, one) for met in candidate.met)
    area = fusion.area_of(clip.truth(candidate.key, one))
    return fusion.PassAtFrame(probability, way, area, arrivals)


def simple_fuse(passes: Sequence[fusion.PassAtFrame]) -> fusion.Fusion:
    """The passes of the two nearest keys by simple weights, with which every other rule is compared.

    The weight of a pass is its share by distance, times (J with which it arrives at the other key)^2, times
    (area on its own key over the largest that either finds here, at most 1)^2, times |p - 0.5| of the pixel.
    Beyond the outer keys the nearest pass is the result.
    """
    sides = ([one for one in passes if one.distance * way > 0] for way in (1, -1))
    two = [min(side, key=lambda one: abs(one.distance)) for side in sides if side]
    if len(two) == 1:
        return _fusion_of(passes, two, two[0].probability, [1.0])
    span = sum(abs(one.distance) for one in two)
    largest = max(fusion.area_of(one.probability) for one in two)
    weights = []
    for one in two:
        arrives = next(each.similarity for each in one.arrivals if each.distance == span)
        visible = min(1.0, one.key_area / max(largest, 1.0))
        weights.append((1 - abs(one.distance) / span) * (max(arrives, 0.03) * max(visible, 0.03)) ** 2)
    planes = [(np.abs(one.probability - 0.5) + 1e-3) * w for one, w in zip(two, weights, strict=True)]
    total = sum(plane * one.probability for plane, one in zip(planes, two, strict=True))
    return _fusion_of(passes, two, np.asarray(total / sum(planes), np.float32), weights)


def _fusion_of(
    passes: Sequence[fusion.PassAtFrame],
    used: Sequence[fusion.PassAtFrame],
    probability: FloatArray,
    weights: Sequence[float],
) -> fusion.Fusion:
    """With shares by the weights of the passes that are used; the others have none."""
    by_pass = {id(one): weight / sum(weights) for one, weight in zip(used, weights, strict=True)}
    return fusion.Fusion(probability, tuple(by_pass.get(id(one), 0.0) for one in passes))


def free_frames(clip: Clip, keys: Sequence[int]) -> list[int]:
    """Frames that may become a key: their passes are stored and they show an object."""
    return [frame for frame in clip.candidates if frame not in keys and clip.areas[frame].sum()]


def next_key(clip: Clip, how: str, keys: Sequence[int], scored: Scored) -> int | None:
    """The frame of the next key; None where there is none."""
    free = free_frames(clip, keys)
    count = len(clip.areas)
    if not free:
        return None
    if how == "hidden":
        return min(free, key=lambda frame: int(clip.areas[frame].sum()))
    if how.startswith("random"):
        seed = len(keys) + (100 if how == "random2" else 0)
        return int(np.random.default_rng(seed).choice(free))
    if how == "even":
        share = EVEN[len(keys) - 1]
        wanted = (share if keys[0] == 0 else 1 - share) * (count - 1)
    else:
        advice = advise(scored.qualities, keys)
        if advice is None:
            return None
        wanted = advice.frame
    return min(free, key=lambda frame: abs(frame - wanted))


@dataclass(frozen=True)
class Played:
    """The rounds of one clip: keys, and J, bound and error after each key."""

    keys: list[int]
    means: list[float]
    bounds: list[float]
    errors: list[float]

    @property
    def worst(self) -> float:
        """The largest loss that one more key caused."""
        return max([0.0, *(before - after for before, after in pairwise(self.means))])


def play(clip: Clip, how: str, backward: bool, rounds: int, fuse: Fuse = fusion.fuse) -> Played:
    """The rounds of one clip. Where no further key is advised it stays as it is."""
    shown = [frame for frame in clip.candidates if clip.areas[frame].sum()]
    keys = [shown[-1 if backward else 0]]
    played = Played(keys, [], [], [])
    while True:
        scored = play_keys(clip, keys, fuse)
        played.means.append(scored.mean)
        played.bounds.append(scored.bound)
        played.errors.append(scored.error)
        following = next_key(clip, how, keys, scored) if len(keys) < rounds else None
        if following is None:
            break
        keys.append(following)
    for column in (played.means, played.bounds, played.errors):
        column += [column[-1]] * (rounds - len(column))
    return played


def show(name: str, rows: Sequence[Played]) -> None:
    """Prints the means of some clips after each key."""

    def told(column: str) -> str:
        means = zip(*(getattr(row, column) for row in rows), strict=True)
        return " ".join(f"{statistics.mean(one):.3f}" for one in means)

    worst = max(row.worst for row in rows)
    print(
        f"{name:28} J {told('means')}  bound {told('bounds')}  error {told('errors')}  worst {worst:.3f}",
        flush=True,
    )


def play_all(clips: Iterator[Clip], ways: Sequence[str], rounds: int) -> None:
    """Prints the rounds of each clip, and their means by way of choosing."""
    played: dict[str, list[Played]] = {}
    for clip in clips:
        for how in ways:
            for backward in (False, True):
                row = play(clip, how, backward, rounds)
                played.setdefault(how, []).append(row)
                words = "backward" if backward else "forward"
                show(f"{clip.name} {how} {words}", [row])
                print(f"    keys {row.keys}", flush=True)
    for how, rows in played.items():
        show(f"= {how}", rows)


def compare(clips: Iterator[Clip], ways: Sequence[str], rounds: int) -> None:
    """Prints a table of two rules and the bound, with the keys that the product's rule chooses."""
    print("| clip | simple weights | worst | product | worst | bound |\n| --- |" + " --- |" * 5)
    rows: list[tuple[float, ...]] = []
    for clip in clips:
        product = [play(clip, how, backward, rounds) for how in ways for backward in (False, True)]
        simple = []
        for one in product:
            scored = [play_keys(clip, one.keys[: number + 1], simple_fuse) for number in range(len(one.keys))]
            means = [each.mean for each in scored] + [scored[-1].mean] * (rounds - len(scored))
            simple.append(Played(one.keys, means, one.bounds, one.errors))
        row: list[float] = []
        for rule in (simple, product):
            row.append(statistics.mean(mean for one in rule for mean in one.means[1:]))
            row.append(max(one.worst for one in rule))
        row.append(statistics.mean(bound for one in product for bound in one.bounds[1:]))
        rows.append(tuple(row))
        print(f"| `{clip.name}` | " + " | ".join(f"{one:.3f}" for one in row) + " |", flush=True)
    columns = list(zip(*rows, strict=True))
    found = [max(one) if place in (1, 3) else statistics.mean(one) for place, one in enumerate(columns)]
    print("| mean, worst | " + " | ".join(f"{one:.4f}" for one in found) + " |")


def second_keys(clips: Iterator[Clip]) -> None:
    """Prints what the advised second and third key give, beside the best and the mean of all frames."""
    for clip in clips:
        for backward in (False, True):
            keys = [clip.candidates[-1 if backward else 0]]
            for number in ("second", "third"):
                before = play_keys(clip, keys)
                advised = next_key(clip, "advised", keys, before)
                gains = {frame: play_keys(clip, [*keys, frame]).mean for frame in free_frames(clip, keys)}
                best = max(gains, key=lambda frame: gains[frame])
                chosen = before.mean if advised is None else gains[advised]
                told = f"{before.mean:.3f}, advised {advised} {chosen:.3f}, best {best} {gains[best]:.3f}"
                mean = statistics.mean(gains.values())
                print(f"{clip.name:16} {number:6} after {keys}: {told}, mean {mean:.3f}", flush=True)
                if advised is None:
                    break
                keys.append(advised)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("compute", "play", "second", "compare"))
    parser.add_argument("folder", type=Path, help="where the passes are stored")
    parser.add_argument("data", type=Path, nargs="?", help="a folder in DAVIS layout, or one sequence")
    parser.add_argument("--sequence", nargs="*", default=[])
    parser.add_argument("--clip", nargs="*", default=[])
    parser.add_argument("--choose", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--step", type=int, default=1, help="every how many frames of a clip")
    parser.add_argument("--every", type=int, default=1, help="score every how many frames")
    parser.add_argument("--candidates", type=int, default=17, help="frames of a clip that may become keys")
    parser.add_argument("--size", type=int, default=480, help="short side for the network")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--objects", action="store_true", help="each label is an object; else all are one")
    given = parser.parse_args()
    clips = clips_in(given.folder, given.clip, given.every)
    if given.task == "play":
        play_all(clips, given.choose, given.keys)
    elif given.task == "compare":
        compare(clips, given.choose, given.keys)
    elif given.task == "second":
        second_keys(clips)
    else:
        network = ready_network(Settings().weights, "cpu", given.precision)
        for sequence in find_sequences(given.data, given.sequence):
            if (given.folder / sequence.name / "truth.npz").exists():
                continue
            material = material_of(sequence.stepped(given.step), given.objects, given.size)
            compute(material, network, given.candidates, given.folder)


if __name__ == "__main__":
    main()
