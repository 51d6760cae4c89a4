"""What decides between weights and reads: which clips count, how, and that a stopped measurement goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from model.data.pictures import Labels, write_labels
from model.training.validation import (
    DECIDING,
    FIVE,
    KINDS,
    REPORTED,
    VIEWS,
    Row,
    Score,
    choice_score,
    measure,
    measured,
    part_scores,
    validation_clips,
)

FRAMES = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as the project's own, with tiny clips; two objects in each of `clips/`."""
    for folder, names, objects in (("davis2016_train", FIVE, 1), ("clips", ("schoolgirls", *REPORTED), 2)):
        for name in names:
            root = tmp_path / folder / (name if folder == "clips" else "")
            inner = "" if folder == "clips" else name
            for frame in range(FRAMES):
                labels = np.zeros((24, 32), np.uint8)
                for label in range(1, objects + 1):
                    labels[4 : 12 * label, 2 + frame : 12 + frame] = label
                write_labels(root / "Annotations" / inner / f"{frame:02d}.png", labels)
                picture = root / "JPEGImages" / inner / f"{frame:02d}.jpg"
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.repeat(labels[..., None] * np.uint8(80), 3, axis=-1)).save(picture)
    return tmp_path


class FirstMask:
    """A segmenter that repeats the first mask, and counts its clips."""

    def __init__(self) -> None:
        self.clips = 0

    def __call__(self, pictures: Iterable[Tensor], given: Mapping[int, Labels]) -> Iterator[Labels]:
        self.clips += 1
        return (given[0] for _ in pictures)


def test_the_five_have_four_views_and_every_part_is_there(data: Path, tmp_path: Path) -> None:
    clips = validation_clips(data, tmp_path / "made-up", count=2)
    assert [clip.part for clip in clips].count("five") == len(FIVE) * len(VIEWS)
    assert {clip.part for clip in clips} == {*DECIDING, *REPORTED}
    bus = {clip.view: clip.sequence.frames for clip in clips if clip.sequence.name == "bus"}
    assert bus["backward"] == bus["forward"][::-1]
    assert bus["backward, step 2"] == bus["forward"][::-1][::2]
    assert len({clip.sequence.name for clip in clips if clip.part == "made-up"}) == 2


def test_clips_of_one_difficulty_only_report(data: Path, tmp_path: Path) -> None:
    clips = validation_clips(data, tmp_path / "made-up", count=1, of_a_kind=1)
    kinds = [clip for clip in clips if clip.part in KINDS]
    assert [clip.part for clip in kinds] == list(KINDS)
    row = Row("one", "one-0", FirstMask)
    measure(kinds, [row], tmp_path / "out")
    results = measured(clips, row, tmp_path / "out")
    assert set(results) == set(kinds), "clips of one seed and of several kinds have a result each"
    assert set(part_scores(results)) == set(KINDS)
    with pytest.raises(ValueError, match="not measured"):
        choice_score(part_scores(results))


def test_a_stopped_measurement_goes_on_and_ends_with_the_same_scores(data: Path, tmp_path: Path) -> None:
    clips = validation_clips(data, tmp_path / "made-up", count=1)
    segmenter = FirstMask()
    rows = [Row("one", "one-0", lambda: segmenter), Row("other", "other-0", lambda: segmenter)]

    class Stopped(Exception):
        pass

    def stop(clip: object, row: object) -> None:
        if segmenter.clips == 5:
            raise Stopped

    with pytest.raises(Stopped):
        measure(clips, rows, tmp_path / "out", stop)
    assert len(measured(clips, rows[0], tmp_path / "out")) == 3
    assert len(measured(clips, rows[1], tmp_path / "out")) == 2, "each clip is measured with all rows in turn"
    measure(clips, rows, tmp_path / "out")
    assert segmenter.clips == 2 * len(clips), "no clip is measured twice"
    results = measured(clips, rows[0], tmp_path / "out")
    parts = part_scores(results)
    assert set(parts) == {*DECIDING, *REPORTED}
    assert results.keys() == set(clips)
    one = next(results[clip] for clip in clips if clip.part == "schoolgirls")
    assert parts["schoolgirls"].region == pytest.approx(one.region.mean, abs=1e-5)


def test_the_deciding_parts_count_the_same_and_what_only_reports_does_not_count() -> None:
    parts = {"five": Score(0.9, 0.8), "schoolgirls": Score(0.3, 0.5), "made-up": Score(0.6, 0.5)}
    score = choice_score({**parts, "chair": Score(0.0, 0.0), "caps": Score(1.0, 1.0)})
    assert score == pytest.approx((0.6, 0.6)) and score.mean == pytest.approx(0.6)
    del parts["schoolgirls"]
    with pytest.raises(ValueError, match="not measured: schoolgirls"):
        choice_score(parts)
