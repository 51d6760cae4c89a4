"""The clips by which weights, means of weights and rules of the read are chosen, and the score of a choice.

A choice made on a score is not measured by that score. So there are parts that decide and parts that only
report. Those that decide are five videos in four views, one clip with several look-alikes, and made-up clips
whose seeds are never trained on. Each of the three counts the same.

Results are written clip by clip, so an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from model.data.davis import VideoSequence, find_sequences
from model.evaluation.evaluate import Evaluation, VideoSegmenter, evaluate_network, read_scores
from model.training.synthetic_clips import SceneOptions, write_held_out

FIVE = ("bus", "dance-jump", "hockey", "mallard-water", "rollerblade")
"""The DAVIS sequences that are never trained on."""
VIEWS = ("forward", "backward", "forward, step 2", "backward, step 2")
MADE_UP = 30
"""Made-up clips, each with several objects."""
MADE_UP_SCENES = SceneOptions(frames=24)

DECIDING = ("five", "schoolgirls", "made-up")
REPORTED = ("chair", "caps")

_PLAIN = SceneOptions(
    height=240,
    width=320,
    most_objects=2,
    look_alike_chance=0,
    turn_chance=0,
    grow_chance=0,
    enter_chance=0,
    smoke_chance=0,
    cover_chance=0,
    thin_share=0,
)
KINDS: Mapping[str, SceneOptions] = {
    "plain": _PLAIN,
    "turning": replace(_PLAIN, turn_chance=1),
    "entering": replace(_PLAIN, enter_chance=1),
    "growing": replace(_PLAIN, grow_chance=1),
    "look-alikes": replace(_PLAIN, look_alike_chance=1),
    "smoke": replace(_PLAIN, smoke_chance=1),
    "thin": replace(_PLAIN, thin_share=1),
    "carried": replace(_PLAIN, carry_chance=1),
}
"""Parts of made-up clips that show one difficulty each. They say what a kind of training clip gains."""


@dataclass(frozen=True, eq=False)
class ValidationClip:
    """A sequence as it is measured. view: of `VIEWS`; fingerprint: of its annotations."""

    part: str
    view: str
    sequence: VideoSequence
    fingerprint: str


class Read(NamedTuple):
    """Rules of the memory read, as in `NetworkConfig`."""

    previous_frame_cap: float
    key_weight: float
    shrink_guard: float


READS: Mapping[str, Read] = {
    "paper": Read(1.0, 0.0, 1.0),
    "cap": Read(0.5, 0.0, 1.0),
    "cap, keys": Read(0.5, 0.3, 1.0),
    "cap, guard": Read(0.5, 0.0, 0.15),
    "cap, keys, guard": Read(0.5, 0.3, 0.15),
}
"""Simplest first."""


def validation_clips(
    data: Path, made_up: Path, count: int = MADE_UP, of_a_kind: int = 0
) -> list[ValidationClip]:
    """All clips: those of the data folder, and made-up ones, which are written to a folder.

    Args:
        data: with `davis2016_train/` and `clips/`.
        made_up: for the made-up clips; existing ones are kept.
        count: of made-up clips.
        of_a_kind: number of made-up clips of each of `KINDS`.

    Raises:
        FileNotFoundError: if a sequence is not there.
    """
    clips = [
        _clip("five", view, sequence)
        for view in VIEWS
        for sequence in find_sequences(data / "davis2016_train", FIVE)
    ]
    clips += [
        _clip(name, VIEWS[0], find_sequences(data / "clips" / name)[0]) for name in ("schoolgirls", *REPORTED)
    ]
    if count:
        names = write_held_out(made_up, count, MADE_UP_SCENES)
        clips += [_clip("made-up", VIEWS[0], one) for one in find_sequences(made_up, names)]
    for kind, scene in KINDS.items() if of_a_kind else ():
        least = 2 if kind in ("look-alikes", "carried") else 1
        names = write_held_out(made_up / kind, of_a_kind, scene, least_objects=least)
        clips += [_clip(kind, VIEWS[0], one) for one in find_sequences(made_up / kind, names)]
    return clips


def _clip(part: str, view: str, sequence: VideoSequence) -> ValidationClip:
    digest = hashlib.sha256()
    for frame in sequence.annotated_frames:
        digest.update(sequence.annotations[frame].read_bytes())
    seen = sequence.backward if view.startswith("backward") else sequence
    return ValidationClip(part, view, seen.stepped(2 if "step 2" in view else 1), digest.hexdigest()[:8])


@dataclass(frozen=True)
class Row:
    """What is compared: a network with a read.

    name: shown to people; identity: in the names of files, another for every network, read and size;
    segmenter: makes the network's segmenter, when a clip has to be measured.
    """

    name: str
    identity: str
    segmenter: Callable[[], VideoSegmenter]


def measure(
    clips: Iterable[ValidationClip],
    rows: Sequence[Row],
    out: Path,
    progress: Callable[[ValidationClip, Row], None] | None = None,
) -> None:
    """Measures each clip with all rows in turn. What `out` has is kept.

    Args:
        clips: from `validation_clips`.
        rows: what is compared.
        out: folder of the results.
        progress: called after each measurement.
    """
    for clip in clips:
        for row in rows:
            place = _place(out, row, clip)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                scores = evaluate_network([clip.sequence], row.segmenter())
                with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial:
                    scores.write_csv(Path(partial) / "scores")
                    os.replace(Path(partial) / "scores", place)
            if progress is not None:
                progress(clip, row)


def measured(clips: Iterable[ValidationClip], row: Row, out: Path) -> dict[ValidationClip, Evaluation]:
    """The results of a row that `out` has."""
    places = [(clip, _place(out, row, clip)) for clip in clips]
    return {clip: read_scores(place) for clip, place in places if place.exists()}


def _place(out: Path, row: Row, clip: ValidationClip) -> Path:
    kind = f"{clip.part}, " if clip.part in KINDS else ""
    return out / row.identity / f"{kind}{clip.sequence.name}, {clip.view}, {clip.fingerprint}"


class Score(NamedTuple):
    """J and F in [0, 1]."""

    region: float
    contour: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.region + self.contour) / 2


def part_scores(results: Mapping[ValidationClip, Evaluation]) -> dict[str, Score]:
    """The score of each part: the mean over its objects; of the five, the mean of the views."""
    scores = {}
    for part in (*DECIDING, *REPORTED, *KINDS):
        objects = [thing for clip, one in results.items() if clip.part == part for thing in one.objects]
        if objects:
            scores[part] = Score(
                statistics.fmean(thing.region_statistics.mean for thing in objects),
                statistics.fmean(thing.contour_statistics.mean for thing in objects),
            )
    return scores


def choice_score(parts: Mapping[str, Score]) -> Score:
    """The score that decides: the mean of the deciding parts, each counting the same.

    Raises:
        ValueError: if one of them is missing.
    """
    missing = [part for part in DECIDING if part not in parts]
    if missing:
        raise ValueError(f"not measured: {', '.join(missing)}; no choice can be made")
    return Score(*(statistics.fmean(parts[part][which] for part in DECIDING) for which in (0, 1)))
