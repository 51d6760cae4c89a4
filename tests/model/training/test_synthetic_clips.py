"""Synthetic clips: labels are exact, a seed gives one clip, and objects turn, deform and blur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.davis import find_sequences
from model.data.pictures import write_labels
from model.training.clips import ClipDataset, ClipOptions, davis_sources
from model.training.synthetic_clips import SceneOptions, synthetic_clip, write_clips

SMALL = SceneOptions(height=96, width=128, frames=4)


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_gives_one_clip_with_objects_that_are_seen(seed: int) -> None:
    clip = synthetic_clip(seed, SMALL)
    again = synthetic_clip(seed, SMALL)
    assert clip.pictures.shape == (4, 96, 128, 3) and clip.labels.shape == (4, 96, 128)
    assert np.array_equal(clip.pictures, again.pictures) and np.array_equal(clip.labels, again.labels)
    objects = int(clip.labels.max())
    assert 1 <= objects <= SMALL.most_objects
    assert all((clip.labels[0] == label).sum() >= 0.004 * 96 * 128 for label in range(1, objects + 1))


def test_scenes_differ_and_move() -> None:
    clips = [synthetic_clip(seed, SMALL) for seed in range(12)]
    assert len({clip.pictures.tobytes() for clip in clips}) == 12
    moved = [np.abs(np.diff(clip.pictures.astype(np.int32), axis=0)).mean() for clip in clips]
    assert min(moved) > 0.1
    assert {int(clip.labels.max()) for clip in clips} >= {1, 2}
    changed = [(clip.labels[0] != clip.labels[-1]).mean() for clip in clips]
    assert np.median(changed) > 0.005


def test_a_thing_that_turns_shows_another_side() -> None:
    """Colours inside the object, first frame against last, with and without turning."""

    def change(turn: float) -> float:
        options = SceneOptions(
            96,
            128,
            frames=6,
            most_objects=1,
            look_alike_chance=0,
            turn_chance=turn,
            smoke_chance=0,
            cover_chance=0,
        )
        clips = [synthetic_clip(seed, options) for seed in range(8)]
        return float(np.mean([
            np.abs(np.subtract(*(
                np.median(clip.pictures[frame][clip.labels[frame] == 1], axis=0) for frame in (0, 5)
            ))).mean()
            for clip in clips
            if (clip.labels[5] == 1).sum() > 50
        ]))  # fmt: skip

    assert change(1.0) > 1.5 * change(0.0)


def test_clips_are_written_as_videos_to_train_on_and_made_once(tmp_path: Path) -> None:
    picture, labels = tmp_path / "cat.png", tmp_path / "labels.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (80, 80, 3), np.uint8)).save(picture)
    marked = np.zeros((80, 80), np.uint8)
    marked[20:60, 20:60] = 1
    write_labels(labels, marked)
    root = tmp_path / "made"
    names = list(write_clips(root, range(3), SMALL, pictures=[picture], cut_outs=[(picture, labels)]))
    assert [sequence.name for sequence in find_sequences(root)] == names
    written = root / "JPEGImages" / names[0] / "00000.jpg"
    before = written.stat().st_mtime_ns
    list(write_clips(root, range(4), SMALL))
    assert written.stat().st_mtime_ns == before and len(find_sequences(root)) == 4
    sample = ClipDataset(davis_sources(root), [], ClipOptions(size=64, frames=3)).sample(0)
    assert sample.objects >= 1
