"""Synthetic clips: labels are exact, a seed gives one clip, and objects turn, deform and blur."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from model.data.davis import find_sequences
from model.data.pictures import write_labels
from model.training.clips import ClipDataset, ClipOptions, davis_sources
from model.training.synthetic_clips import (
    HELD_OUT,
    SceneOptions,
    synthetic_clip,
    write_clips,
    write_held_out,
)
from model.training.textures import PHOTOGRAPHS
from model.training.validation import KINDS

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


PLAIN = replace(KINDS["plain"], height=96, width=128, frames=8, most_objects=1, thin_share=0.16)
"""A scene in which nothing special happens."""


def areas(options: SceneOptions, seeds: range = range(16)) -> tuple[float, float]:
    """Mean area of the object on the first and on the last frame, as shares of the picture."""
    shares = np.stack([(synthetic_clip(seed, options).labels == 1).mean(axis=(1, 2)) for seed in seeds])
    return float(shares[:, 0].mean()), float(shares[:, -1].mean())


def test_a_thing_that_comes_near_grows() -> None:
    first, last = areas(replace(PLAIN, grow_chance=1))
    before, after = areas(PLAIN)
    assert last / first > 1.5 > after / before


def test_a_thing_that_enters_touches_the_border_at_first_and_more_of_it_is_seen_later() -> None:
    first, last = areas(replace(PLAIN, enter_chance=1))
    assert last > 1.3 * first

    def at_the_border(options: SceneOptions) -> float:
        firsts = [synthetic_clip(seed, options).labels[0] == 1 for seed in range(16)]
        return float(np.mean([one[:, [0, -1]].any() for one in firsts]))

    assert at_the_border(replace(PLAIN, enter_chance=1)) > 0.8 > at_the_border(PLAIN)


def test_look_alikes_change_places() -> None:
    """Of two objects, how often the first ends nearer to where the second began than to its own beginning."""

    def changed(chance: float) -> float:
        options = replace(PLAIN, most_objects=2, look_alike_chance=chance)
        results = []
        for seed in range(60):
            labels = synthetic_clip(seed, options).labels
            first = [np.argwhere(labels[0] == label) for label in (1, 2)]
            last = np.argwhere(labels[-1] == 1)
            if all(len(places) > 30 for places in (*first, last)):
                own, other = (np.linalg.norm(last.mean(0) - places.mean(0)) for places in first)
                results.append(other < own)
        assert len(results) > 8
        return float(np.mean(results))

    assert changed(1.0) > 0.4 > 0.2 > changed(0.0)


def test_a_carried_thing_stays_on_its_carrier() -> None:
    """Of clips with two objects from one chance to two: how often they touch on the first and the last
    frame."""

    def touching(carry: float) -> tuple[int, float]:
        options = replace(PLAIN, most_objects=2, carry_chance=carry, thin_share=0)
        found = []
        for seed in range(40):
            labels = synthetic_clip(seed, options).labels[[0, -1]]
            near = [cv2.dilate((one == 1).astype(np.uint8), np.ones((5, 5), np.uint8)) for one in labels]
            both = [(one == 2).sum() > 20 and (one == 1).sum() > 20 for one in labels]
            if all(both):
                found.append(all((one[at == 2] > 0).any() for one, at in zip(near, labels, strict=True)))
        return len(found), float(np.mean(found))

    pairs, share = touching(1)
    apart_pairs, apart = touching(0)
    assert pairs > apart_pairs > 5, "a carried thing is an object more"
    assert share > 0.6 > 0.3 > apart


def test_sometimes_only_the_carried_thing_is_an_object() -> None:
    """Then the object is smaller."""
    first, _ = areas(replace(PLAIN, carry_chance=1), range(40))
    before, _ = areas(PLAIN, range(40))
    assert first < 0.9 * before


def test_smoke_changes_the_picture_and_no_label() -> None:
    clear, smoky = (
        [synthetic_clip(seed, replace(PLAIN, smoke_chance=chance)) for seed in range(6)] for chance in (0, 1)
    )
    for one, other in zip(clear, smoky, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert not np.array_equal(one.pictures, other.pictures)


def test_a_cut_out_that_turns_shows_a_back_of_other_colours(tmp_path: Path) -> None:
    """Red things in front of anything: with turning, some of them are not red on some frame."""
    picture, labels = tmp_path / "thing.png", tmp_path / "labels.png"
    Image.fromarray(np.full((80, 80, 3), (230, 20, 20), np.uint8)).save(picture)
    marked = np.zeros((80, 80), np.uint8)
    marked[20:60, 20:60] = 1
    write_labels(labels, marked)

    def least_red(turn: float) -> float:
        """Of clips that begin with a red object: the smallest share of red in it, over all frames."""
        shares = []
        for seed in range(40):
            clip = synthetic_clip(seed, replace(PLAIN, turn_chance=turn), cut_outs=[(picture, labels)])
            red = (clip.pictures[..., 0] > 1.6 * clip.pictures[..., 1:].max(axis=-1)) & (clip.labels == 1)
            share = red.sum(axis=(1, 2)) / np.maximum((clip.labels == 1).sum(axis=(1, 2)), 1)
            if share[0] > 0.9 and (clip.labels[-1] == 1).sum() > 40:
                shares.append(share.min())
        assert len(shares) > 3
        return float(np.mean(shares))

    assert least_red(1.0) < 0.7 < 0.9 < least_red(0.0)


def test_thin_lines_are_labelled() -> None:
    """Some object loses much of its area where everything of less than five pixels is taken away."""
    thin = 0.0
    for seed in range(40):
        mask = (synthetic_clip(seed, replace(PLAIN, height=192, width=256, frames=2)).labels[0] == 1).astype(
            np.uint8
        )
        solid = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        thin = max(thin, 1 - solid.sum() / mask.sum())
    assert thin > 0.4


def test_the_share_of_thin_things_is_kept() -> None:
    def opened(share: float) -> float:
        """Share of the objects' area that is wider than eight pixels."""
        found = []
        for seed in range(12):
            options = replace(PLAIN, height=192, width=256, frames=2, thin_share=share)
            mask = (synthetic_clip(seed, options).labels[0] == 1).astype(np.uint8)
            found.append(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8)).sum() / mask.sum())
        return float(np.mean(found))

    assert opened(1) < 0.5 < 0.8 < opened(0)


def test_held_out_clips_have_several_objects_and_are_no_training_clips(tmp_path: Path) -> None:
    names = write_held_out(tmp_path, 3, SMALL)
    seeds = [int(name.removeprefix("made-")) for name in names]
    assert len(set(seeds)) == 3 and all(seed in HELD_OUT for seed in seeds)
    assert all(synthetic_clip(seed, SMALL).labels[0].max() > 1 for seed in seeds)
    assert [sequence.name for sequence in find_sequences(tmp_path)] == names
    last = tmp_path / "Annotations" / names[-1] / "00003.png"
    last.unlink()
    assert write_held_out(tmp_path, 3, SMALL) == names and last.exists()
    assert write_held_out(tmp_path, 2, SMALL) == names[:2]


def test_every_photograph_of_textures_allows_commercial_use() -> None:
    names = {Path(name).stem for name in PHOTOGRAPHS}
    for name in names:
        said = getattr(skimage.data, "cat" if name == "chelsea" else name).__doc__
        assert re.search(r"CC0|public domain", said), name


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
