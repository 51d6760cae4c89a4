"""Scores of result pictures, or of a network that is run, against annotations in DAVIS or YouTube-VOS layout.

`model.data.davis.find_sequences` lists the sequences, `evaluate_results` or `evaluate_network` measures them,
and an `Evaluation` writes the scores as text and CSV. `model.evaluation.tables` makes the paper's tables of
them. For benchmarks with secret masks, `write_submission` writes the files for their server.

Two protocols define which frames count for an object:

- `davis`: the annotated frames without the sequence's first and last (the semi-supervised protocol of
  DAVIS), and none up to the object's own first one.
- `youtube-vos`: all annotated frames after the object's first one.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.davis import (
    ANNOTATION_FOLDER,
    PICTURE_FOLDER,
    VideoSequence,
    entering_masks,
    first_frames,
    resolution_folder,
)
from model.data.pictures import Labels, read_labels, read_picture, working_scale, write_labels
from model.evaluation.metrics import (
    Statistics,
    contour_accuracy,
    mean_statistics,
    region_similarity,
    statistics,
)
from model.evaluation.protocol import WORKING_SHORT_SIDE as WORKING_SHORT_SIDE
from model.evaluation.protocol import EvaluationProtocol as EvaluationProtocol
from model.inference.fast_network import FastNetwork, Query
from model.network.memory import DEFAULT_CAPACITY, MemoryBank, MemoryEntry, MemoryRule
from model.network.stm import soft_aggregate

SCORE_COLUMNS = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")

Progress = Callable[[str, int, int], None]
"""Called with (sequence, frames done, frames in all) after every frame of a run."""


@dataclass(frozen=True)
class ObjectScores:
    """J and F of one object on each frame that counts for it, in order."""

    sequence: str
    label: int
    frames: tuple[str, ...]
    region: tuple[float, ...]
    contour: tuple[float, ...]

    @cached_property
    def region_statistics(self) -> Statistics:
        return statistics(self.region)

    @cached_property
    def contour_statistics(self) -> Statistics:
        return statistics(self.contour)

    @property
    def mean(self) -> float:
        """J&F of the object."""
        return (self.region_statistics.mean + self.contour_statistics.mean) / 2


@dataclass(frozen=True)
class Evaluation:
    """The result of a measurement.

    Args:
        protocol: which frames count.
        objects: every object with at least one frame that counts.
        not_scored: (sequence, label) of the other objects, such as those that enter on the last frame.
        seconds_per_frame: of a network run: its time without reading and scoring, per segmented frame.
    """

    protocol: EvaluationProtocol
    objects: tuple[ObjectScores, ...]
    not_scored: tuple[tuple[str, int], ...] = ()
    seconds_per_frame: float | None = None

    @cached_property
    def region(self) -> Statistics:
        """J over all objects, each counting the same."""
        return mean_statistics([scores.region_statistics for scores in self.objects])

    @cached_property
    def contour(self) -> Statistics:
        """F over all objects, each counting the same."""
        return mean_statistics([scores.contour_statistics for scores in self.objects])

    @property
    def mean(self) -> float:
        """J&F: the mean of J mean and F mean."""
        return (self.region.mean + self.contour.mean) / 2

    @property
    def scores(self) -> tuple[float, ...]:
        """All scores in the order of `SCORE_COLUMNS`, in [0, 1]."""
        j, f = self.region, self.contour
        return (self.mean, j.mean, j.recall, j.decay, f.mean, f.recall, f.decay)

    def by_sequence(self) -> dict[str, Evaluation]:
        """The evaluation of each sequence."""
        grouped: dict[str, list[ObjectScores]] = {}
        for scores in self.objects:
            grouped.setdefault(scores.sequence, []).append(scores)
        return {name: Evaluation(self.protocol, tuple(objects)) for name, objects in grouped.items()}

    def sorted_region(self) -> list[float]:
        """J of all frames of all objects, ascending (figure 7)."""
        return sorted(value for scores in self.objects for value in scores.region)

    def table(self) -> str:
        """The scores in percent, for a terminal: one line per sequence and the mean over objects."""
        parts = {**self.by_sequence(), "mean": self}
        width = max(len(name) for name in parts)
        lines = ["  ".join([" " * width, *(name.rjust(8) for name in SCORE_COLUMNS)])]
        for name, part in parts.items():
            lines.append("  ".join([name.ljust(width), *(f"{100 * score:8.1f}" for score in part.scores)]))
        return "\n".join(lines)

    def write_csv(self, folder: Path) -> list[Path]:
        """Writes `global.csv`, `per_sequence.csv`, `per_object.csv` and `per_frame.csv`; values in [0, 1].

        Returns:
            the files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        overall = (self.protocol, len(self.objects), self.seconds_per_frame, *self.scores)
        sequences = [(name, *part.scores) for name, part in self.by_sequence().items()]
        objects = [
            (each.sequence, each.label, len(each.frames), *Evaluation(self.protocol, (each,)).scores)
            for each in self.objects
        ]
        frames = [
            (each.sequence, each.label, *values)
            for each in self.objects
            for values in zip(each.frames, each.region, each.contour, strict=True)
        ]
        first = ("protocol", "objects", "seconds per frame", *SCORE_COLUMNS)
        return [
            write_table(folder / "global.csv", [first, overall]),
            write_table(folder / "per_sequence.csv", [("sequence", *SCORE_COLUMNS), *sequences]),
            write_table(
                folder / "per_object.csv", [("sequence", "object", "frames", *SCORE_COLUMNS), *objects]
            ),
            write_table(folder / "per_frame.csv", [("sequence", "object", "frame", "J", "F"), *frames]),
        ]


def read_scores(folder: Path) -> Evaluation:
    """The evaluation that `Evaluation.write_csv` wrote to a folder, to six decimals.

    Raises:
        FileNotFoundError: if there is none.
    """
    with (folder / "global.csv").open(newline="", encoding="utf-8") as file:
        overall = next(csv.DictReader(file))
    frames: dict[tuple[str, int], list[tuple[str, float, float]]] = {}
    with (folder / "per_frame.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = frames.setdefault((row["sequence"], int(row["object"])), [])
            values.append((row["frame"], float(row["J"]), float(row["F"])))
    objects = []
    for (sequence, label), values in frames.items():
        names, region, contour = zip(*values, strict=True)
        objects.append(ObjectScores(sequence, label, names, region, contour))
    protocol: EvaluationProtocol = "davis" if overall["protocol"] == "davis" else "youtube-vos"
    seconds = float(overall["seconds per frame"]) if overall["seconds per frame"] else None
    return Evaluation(protocol, tuple(objects), seconds_per_frame=seconds)


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Writes rows as CSV; numbers with six decimals, nothing for None."""
    with path.open("w", newline="", encoding="utf-8") as file:
        for row in rows:
            csv.writer(file).writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row])
    return path


def evaluate_sequence(
    sequence: VideoSequence, predicted: Callable[[str], Labels], protocol: EvaluationProtocol = "davis"
) -> Evaluation:
    """Measures one sequence.

    Args:
        sequence: the annotations.
        predicted: returns the predicted labels (H, W) of a frame name; called for frames that count only.
        protocol: which frames count.

    Raises:
        ValueError: if a prediction has another size than its annotation.
    """
    first = first_frames(sequence)
    annotated = sequence.annotated_frames
    entered = {label: annotated.index(frame) for label, frame in first.items()}
    last = len(annotated) - 1 if protocol == "davis" else len(annotated)
    frames: dict[int, list[str]] = {label: [] for label in first}
    region: dict[int, list[float]] = {label: [] for label in first}
    contour: dict[int, list[float]] = {label: [] for label in first}
    for number, frame in enumerate(annotated[:last]):
        labels = [label for label in first if entered[label] < number]
        if not labels:
            continue
        truth, prediction = read_labels(sequence.annotations[frame]), predicted(frame)
        if truth.shape != prediction.shape:
            raise ValueError(
                f"{sequence.name}, frame {frame}: the result is {_size(prediction)}, its annotation "
                f"{_size(truth)}. Results must have the size of the annotations."
            )
        for label in labels:
            frames[label].append(frame)
            region[label].append(region_similarity(truth == label, prediction == label))
            contour[label].append(contour_accuracy(truth == label, prediction == label))
    objects = [
        ObjectScores(sequence.name, label, tuple(frames[label]), tuple(region[label]), tuple(contour[label]))
        for label in first
        if frames[label]
    ]
    without = [(sequence.name, label) for label in first if not frames[label]]
    return Evaluation(protocol, tuple(objects), tuple(without))


def evaluate_results(
    sequences: Sequence[VideoSequence], results: Path, protocol: EvaluationProtocol = "davis"
) -> Evaluation:
    """Measures result pictures `results/NAME/FRAME.png` against the annotations.

    Raises:
        FileNotFoundError: if the result of a frame that counts is missing (it never counts as black).
        ValueError: if a result has another size than its annotation, or if nothing could be measured.
    """
    root = resolution_folder(results / ANNOTATION_FOLDER)
    root = root if root.is_dir() else results

    def measure(sequence: VideoSequence) -> Evaluation:
        folder = root / sequence.name
        if not folder.is_dir() and len(sequences) == 1:
            folder = root

        def predicted(frame: str) -> Labels:
            path = folder / f"{frame}.png"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: the result of {sequence.name}, frame {frame}.")
            return read_labels(path)

        return evaluate_sequence(sequence, predicted, protocol)

    return _joined(protocol, [measure(sequence) for sequence in sequences])


def _joined(
    protocol: EvaluationProtocol, parts: Sequence[Evaluation], seconds_per_frame: float | None = None
) -> Evaluation:
    objects = tuple(scores for part in parts for scores in part.objects)
    if not objects:
        raise ValueError(
            "Nothing to measure: every object needs an annotated frame after its first"
            + (", and the sequence's last frame does not count." if protocol == "davis" else ".")
        )
    return Evaluation(
        protocol, objects, tuple(each for part in parts for each in part.not_scored), seconds_per_frame
    )


def _size(labels: Labels) -> str:
    return f"{labels.shape[1]} x {labels.shape[0]}"


class VideoSegmenter(Protocol):
    """Propagates given masks through a video."""

    def __call__(self, pictures: Iterable[Tensor], given: Mapping[int, Labels]) -> Iterator[Labels]:
        """Labels of every picture, in order.

        Args:
            pictures: (3, H, W) RGB in [0, 1], all of one size.
            given: for picture 0, and for later pictures on which objects enter: the masks of the objects that
                enter there, as labels.

        Yields:
            (H, W) labels; given masks are kept.
        """


@dataclass
class ObjectGroup:
    """Objects that entered on the same picture, and their memory. `first` is that picture's number."""

    labels: list[int]
    first: int
    bank: MemoryBank


class Step(NamedTuple):
    """One picture of a run, with the memory in the state in which the picture read it.

    labels (H, W); query: of the picture, or None where the memory was empty; groups: all objects that entered
    before; their banks change when the run continues.
    """

    labels: Labels
    query: Query | None
    groups: Sequence[ObjectGroup]


@dataclass(frozen=True)
class NetworkSegmenter:
    """Runs a network over a video (paper section 3.6), each object from the picture on which it enters.

    Args:
        engine: the network.
        rule: which past frames are read.
        short_side: pictures are scaled to this short side, in pixels (`working_picture`); None does not
            scale.
        capacity: stored frames besides the first and the previous one.
    """

    engine: FastNetwork
    rule: MemoryRule
    short_side: int | None = WORKING_SHORT_SIDE
    capacity: int = DEFAULT_CAPACITY

    def __call__(self, pictures: Iterable[Tensor], given: Mapping[int, Labels]) -> Iterator[Labels]:
        return (step.labels for step in self.steps(pictures, given))

    def steps(self, pictures: Iterable[Tensor], given: Mapping[int, Labels]) -> Iterator[Step]:
        """The run as steps, with the memory that each picture read."""
        groups: list[ObjectGroup] = []
        for number, picture in enumerate(pictures):
            size = picture.shape[-2:]
            working = working_picture(picture, self.short_side)
            labels = [label for group in groups for label in group.labels]
            inside = working.shape[-2:]
            objects = torch.zeros((0, *inside), device=self.engine.device)  # (K, h, w), in the groups' order
            result = np.zeros(size, dtype=np.uint8)
            query: Query | None = None
            if groups:
                query = self.engine.encode_query(working)
                alone = torch.cat([self.engine.segment_alone(query, group.bank) for group in groups])
                merged = soft_aggregate(alone[None])[0]  # (K + 1, h, w)
                objects = merged[1:]
                full = F.interpolate(merged[None], size, mode="bilinear", align_corners=False)[0]
                result = np.array([0, *labels], dtype=np.uint8)[full.max(dim=0).indices.cpu().numpy()]
            if number in given:
                entering, masks = _masks(given[number], size)
                result = np.where(given[number] > 0, given[number], result)
                masks = F.interpolate(masks[None], inside, mode="bilinear", antialias=True)[0]  # (k, h, w)
                masks = masks.to(objects.device)
                objects = torch.cat([objects * (1 - masks.sum(dim=0).clamp(0, 1)), masks])
                labels = [*labels, *entering]
            yield Step(result, query, groups)
            if number in given or any(self._reads_again(number - group.first) for group in groups):
                entry = self.engine.encode_memory(working, objects)
                self._write(groups, entry, number, labels)

    def _reads_again(self, step: int) -> bool:
        """Whether any later picture reads the one at `step` of a group."""
        return step in self.rule.steps_in_memory(step + 1, self.capacity)

    def _write(self, groups: list[ObjectGroup], entry: MemoryEntry, number: int, labels: list[int]) -> None:
        """Writes each group's part of the entry to its bank; objects without a group start a new one."""
        start = 0
        for group in groups:
            group.bank.write(number - group.first, entry.of(slice(start, start + len(group.labels))))
            start += len(group.labels)
        if start < len(labels):
            begin = entry.of(slice(start, len(labels)))
            bank = self.engine.new_bank(self.rule, begin, capacity=self.capacity)
            bank.write(0, begin)
            groups.append(ObjectGroup(labels[start:], number, bank))


def evaluate_network(
    sequences: Sequence[VideoSequence],
    segmenter: VideoSegmenter,
    protocol: EvaluationProtocol = "davis",
    *,
    results: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs a network from each sequence's first annotated frame on, and measures it.

    An object with a later first annotation is given to the network on that frame.

    Args:
        sequences: pictures and annotations.
        segmenter: the network: a `NetworkSegmenter`, or another `VideoSegmenter`.
        protocol: which frames count.
        results: a folder for the predictions, as `results/NAME/FRAME.png`.
        progress: called after every frame.

    Raises:
        ValueError: if a sequence has no pictures or no object, or if nothing could be measured.
    """
    parts, spent = [], _Spent()
    for sequence in sequences:
        predictions: dict[str, Labels] = {}
        annotated = set(sequence.annotated_frames)
        for frame, labels in _run(sequence, segmenter, progress, spent):
            if frame in annotated:
                predictions[frame] = labels
            if results is not None:
                write_labels(results / sequence.name / f"{frame}.png", labels)
        parts.append(evaluate_sequence(sequence, predictions.__getitem__, protocol))
    return _joined(protocol, parts, spent.seconds / spent.frames if spent.frames else None)


def write_submission(
    sequences: Sequence[VideoSequence],
    segmenter: VideoSegmenter,
    folder: Path,
    *,
    frames: Mapping[str, Collection[str]] | None = None,
    progress: Progress | None = None,
) -> int:
    """Runs a network and writes `folder/NAME/FRAME.png`, without measuring: for data whose masks are secret.

    Args:
        sequences: pictures, and the annotation of each object's first frame.
        segmenter: as of `evaluate_network`.
        folder: of the results.
        frames: names of the frames to write, by sequence (`submission_frames`); all if None. The others are
            segmented too.
        progress: called after every frame.

    Returns:
        how many label pictures were written.

    Raises:
        ValueError: if a sequence has no pictures or no object, or if `frames` does not know it.
    """
    unknown = [sequence.name for sequence in sequences if frames is not None and sequence.name not in frames]
    if unknown:
        raise ValueError(f"{unknown[0]}: not among the videos whose frames are to be submitted.")
    written = 0
    for sequence in sequences:
        for frame, labels in _run(sequence, segmenter, progress, _Spent()):
            if frames is None or frame in frames[sequence.name]:
                write_labels(folder / sequence.name / f"{frame}.png", labels)
                written += 1
    return written


def submission_frames(meta: Path) -> dict[str, set[str]]:
    """The frames that a YouTube-VOS `meta.json` names for each video: those that its server needs."""
    videos = json.loads(meta.read_text(encoding="utf-8"))["videos"]
    return {
        name: {frame for thing in video["objects"].values() for frame in thing["frames"]}
        for name, video in videos.items()
    }


@dataclass
class _Spent:
    """The network's time over one or several sequences, and the number of segmented frames."""

    seconds: float = 0.0
    frames: int = 0


def _run(
    sequence: VideoSequence, segmenter: VideoSegmenter, progress: Progress | None, spent: _Spent
) -> Iterator[tuple[str, Labels]]:
    """Frame names and labels from the first annotated frame on; the network's time is added to `spent`."""
    given = entering_masks(sequence)
    frames = sequence.frames[min(given) :]
    pictures = _TimedPictures([picture_path(sequence, frame) for frame in frames])
    started = time.perf_counter()
    run = segmenter(iter(pictures), {number - min(given): labels for number, labels in given.items()})
    outside = 0.0  # time between the yields, which is not the network's
    for done, (frame, labels) in enumerate(zip(frames, run, strict=True), start=1):
        paused = time.perf_counter()
        yield frame, labels
        if progress is not None:
            progress(sequence.name, done, len(frames))
        outside += time.perf_counter() - paused
    spent.seconds += time.perf_counter() - started - outside - pictures.seconds
    spent.frames += len(frames) - 1


class _TimedPictures:
    """Reads pictures one by one and adds up the time that it takes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        for path in self.paths:
            started = time.perf_counter()
            picture = read_picture(path)
            self.seconds += time.perf_counter() - started
            yield picture


def picture_path(sequence: VideoSequence, frame: str) -> Path:
    """The picture of a frame.

    Raises:
        ValueError: if there is none.
    """
    try:
        return sequence.pictures[frame]
    except KeyError:
        raise ValueError(
            f"{sequence.name}, frame {frame}: no picture. A network is run on a folder with {PICTURE_FOLDER}."
        ) from None


def working_picture(picture: Tensor, short_side: int | None) -> Tensor:
    """The picture (3, H, W) for the network: scaled to a short side (within the limit of `working_scale`), or
    unchanged where that is None."""
    height, width = picture.shape[-2:]
    if short_side is None:
        return picture
    scale = working_scale(min(height, width), short_side)
    size = (round(height * scale), round(width * scale))
    if size == (height, width):
        return picture
    return F.interpolate(picture[None], size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(
        0, 1
    )


def _masks(labels: Labels, size: torch.Size) -> tuple[list[int], Tensor]:
    """The labels that occur, and a mask (k, H, W) of each."""
    if labels.shape != tuple(size):
        raise ValueError(f"a mask of {_size(labels)} was given for a picture of {size[1]} x {size[0]}.")
    present = [int(label) for label in np.unique(labels) if label > 0]
    masks = torch.stack([torch.from_numpy(labels == label) for label in present]).float()
    return present, masks
