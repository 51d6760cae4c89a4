"""Training reads the same folders and the same label pictures as evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from model.data.pictures import Labels, write_labels
from model.training import augment
from model.training.clips import (
    ClipDataset,
    ClipOptions,
    LoadedSource,
    davis_sources,
    still_sources,
)
from model.training.edge_clips import EdgeClip, make_clip
from model.training.recipe import training_clips
from model.training.synthetic_clips import SceneOptions
from model.training.trainer import TrainingConfig

SHAPE = (80, 80)


def labels(left: int = 20) -> Labels:
    picture = np.zeros(SHAPE, dtype=np.uint8)
    picture[20:60, left : left + 40] = 1
    return picture


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SHAPE[::-1], (90, 60, 30)).save(path)


@pytest.mark.parametrize("resolution", ["", "480p", "Full-Resolution"])
def test_videos_are_found_where_evaluation_finds_them(tmp_path: Path, resolution: str) -> None:
    for frame in ("9", "10", "11"):
        write_picture(tmp_path / "JPEGImages" / resolution / "bear" / f"{frame}.jpg")
        write_picture(tmp_path / "JPEGImages" / resolution / "bus" / f"{frame}.jpg")
    for frame in ("9", "11"):  # YouTube-VOS has masks on some of its pictures
        write_labels(tmp_path / "Annotations" / resolution / "bear" / f"{frame}.png", labels())
    write_labels(tmp_path / "Annotations" / resolution / "bus" / "10.png", labels())
    bear, bus = davis_sources(tmp_path)
    assert (bear.name, bus.name) == ("bear", "bus")
    assert [path.stem for path in bear.pictures] == [path.stem for path in bear.labels] == ["9", "11"]
    assert [source.name for source in davis_sources(tmp_path, leave_out=["bear"])] == ["bus"]
    assert [source.name for source in davis_sources(tmp_path, only=["bear"])] == ["bear"]


def test_of_a_folder_with_several_licences_only_named_pictures_are_used(tmp_path: Path) -> None:
    for name in ("cat_1", "catf_2", "balloon_3"):
        write_picture(tmp_path / "images" / f"{name}.jpg")
        write_labels(tmp_path / "labels" / f"{name}.png", labels())
    config = TrainingConfig(instances=(str(tmp_path),), only=("cat_*", "catf_*"))
    used = [source.name for group in training_clips(config).stills for source in group]
    assert used == [f"{tmp_path.name}/cat_1", f"{tmp_path.name}/catf_2"]
    with pytest.raises(FileNotFoundError, match=r"no picture is called dog_\*"):
        still_sources(tmp_path, only=["dog_*"])


def test_made_up_clips_need_no_files_and_take_things_from_stills(tmp_path: Path) -> None:
    options = ClipOptions(size=64, wide=1.5, frames=3, max_objects=3, made_up_share=1)
    alone = training_clips(TrainingConfig(clip=options))
    clips = [alone.sample(index) for index in range(4)]
    assert all(clip.pictures.shape == (3, 64, 96, 3) and clip.objects >= 1 for clip in clips)
    assert np.array_equal(clips[1].pictures, alone.sample(1).pictures)
    write_picture(tmp_path / "images" / "cat_1.jpg")
    write_labels(tmp_path / "labels" / "cat_1.png", labels())
    mixed = training_clips(TrainingConfig(clip=options, instances=(str(tmp_path),)))
    assert any(
        not np.array_equal(mixed.sample(index).pictures, clip.pictures) for index, clip in enumerate(clips)
    )
    with pytest.raises(ValueError, match="there is no training data"):
        training_clips(TrainingConfig(clip=ClipOptions(made_up_share=0.5)))


def test_soft_clips_have_labels_where_alpha_is_above_a_half(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EdgeClip] = []

    def remembered(*arguments: Any) -> EdgeClip:
        made.append(make_clip(*arguments))
        return made[-1]

    monkeypatch.setattr("model.training.clips.make_clip", remembered)
    options = ClipOptions(size=256, frames=7, max_objects=2, made_up_share=1, soft_share=1)
    clip = training_clips(TrainingConfig(clip=options)).sample(0)
    assert clip.pictures.shape == (7, 256, 256, 3)
    alpha = made[-1].alpha[:, 0].astype(np.float32)
    for step, frame in enumerate([0, 1, 2, 3, 4, 3, 2]):  # five frames, and back again
        small = cv2.resize(alpha[frame], (256, 256), interpolation=cv2.INTER_AREA)
        sure = np.abs(small - 127.5) > 1
        assert np.array_equal((clip.labels[step] == 1)[sure], (small > 127.5)[sure])


def test_annotations_without_pictures_are_no_training_data(tmp_path: Path) -> None:
    write_labels(tmp_path / "Annotations" / "bear" / "1.png", labels())
    with pytest.raises(FileNotFoundError, match="no pictures of bear"):
        davis_sources(tmp_path)


def test_training_refuses_colours_without_a_palette_as_evaluation_does(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "1.jpg")
    write_labels(tmp_path / "masks" / "1.png", labels())
    stills = ClipDataset([], [still_sources(tmp_path)], ClipOptions(size=64, region_chance=0))
    assert stills.sample(0).objects >= 1
    with Image.open(tmp_path / "masks" / "1.png") as image:
        coloured = image.convert("RGB")
    coloured.save(tmp_path / "masks" / "1.png")
    with pytest.raises(ValueError, match="colours but no palette"):
        stills.sample(0)


def test_a_crop_shows_what_torch_would_sample_there() -> None:
    rng = np.random.default_rng(0)
    picture = np.asarray(cv2.resize(rng.integers(0, 256, (20, 24, 3), np.uint8), (120, 100)), np.uint8)
    labels = np.zeros((100, 120), np.uint8)
    labels[30:70, 40:90] = 3
    matrix = augment.affine_matrix(
        centre=(70, 45), size=(90, 60), shape=(48, 80), angle=11, shear=0.1, flip=True
    )
    maps = augment.affine_maps(matrix, (48, 80))
    warped = augment.warp(picture, maps, (48, 80), mirror=True)
    warped_labels = augment.warp_labels(labels, maps, (48, 80), mirror=False)
    by_matrix = augment.warp(picture, matrix, (48, 80), mirror=True)
    assert np.abs(by_matrix.astype(np.int32) - warped).max() < 8
    for way in (matrix, maps):
        part = augment.warp(picture, augment.part_of(way, 30, 9, (20, 33)), (20, 33), mirror=True)
        assert np.abs(part.astype(np.int32) - warped[9:29, 30:63]).max() < 8
    grid = torch.from_numpy(np.stack([(2 * maps.x + 1) / 120 - 1, (2 * maps.y + 1) / 100 - 1], axis=-1))[None]
    source = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    sampled = F.grid_sample(source, grid, padding_mode="reflection", align_corners=False)
    assert np.abs(sampled[0].permute(1, 2, 0).numpy() - warped).max() < 6  # bilinear in 32nds of a pixel
    assert set(np.unique(warped_labels)) == {0, 3}
    # the middle of the output shows the centre that was asked for
    assert maps.x[23:25, 39:41].mean() == pytest.approx(70 - 0.5, abs=1e-3)
    assert maps.y[23:25, 39:41].mean() == pytest.approx(45 - 0.5, abs=1e-3)


def square(brightness: float) -> LoadedSource:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    picture = np.repeat(mask[..., None], 3, axis=-1) * np.uint8(255 * brightness)
    return LoadedSource(str(brightness), ((picture, mask),))


def test_the_configured_number_of_objects_is_pasted() -> None:
    """Grey squares of different brightness on black: the brightness shows which ones were pasted."""
    sources = [square(0.2 + number / 20) for number in range(12)]

    def objects(pastes: int, size: tuple[float, float]) -> tuple[list[int], list[float]]:
        options = ClipOptions(
            size=64, max_objects=9, pastes=pastes, paste_chance=1.0, paste_is_object=1.0, paste_same_chance=0,
            paste_size=size, region_chance=0, blur_chance=0,
        )  # fmt: skip
        clips = [ClipDataset([], [sources], options, seed=3).sample(index) for index in range(30)]
        shares = [float((clip.labels[0] == clip.objects).mean()) for clip in clips]
        return [clip.objects for clip in clips], shares

    small = (0.2, 0.3)
    counts = {pastes: objects(pastes, small)[0] for pastes in (0, 1, 3)}
    assert set(counts[0]) == {1} and max(counts[1]) == 2 and max(counts[3]) == 4
    assert np.mean(counts[3]) > 2.5  # some lie outside the crop or before one another
    assert max(objects(1, small)[1]) < 0.15 < max(objects(1, (0.5, 0.6))[1])


def test_a_late_passer_by_is_no_object_and_not_there_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "colour_jitter", lambda clip, rng: clip)
    options = ClipOptions(
        size=64, frames=4, pastes=1, paste_chance=1.0, paste_same_chance=0.0, paste_is_object=0.0,
        paste_late_chance=1.0, region_chance=0, blur_chance=0,
    )  # fmt: skip
    clips = [
        ClipDataset([], [[square(0.3), square(0.9)]], options, seed=1).sample(index) for index in range(40)
    ]
    dark = [
        clip for clip in clips if clip.pictures[0].max() < 0.35 * 255
    ]  # a bright square can only come later
    bright = [clip.pictures[..., 0] > 0.85 * 255 for clip in dark]
    assert len(dark) > 10
    assert sum(bool(there.any()) for there in bright) > 5
    assert not any((there & (clip.labels > 0)).any() for clip, there in zip(dark, bright, strict=True))


def test_light_flickers_on_the_background_alone() -> None:
    clip, rng = np.full((3, 48, 64, 3), 128, np.uint8), np.random.default_rng(0)
    background = np.ones((3, 48, 64), np.bool_)
    background[:, 10:30, 20:40] = False
    changed = augment.flicker(clip, background, rng).astype(np.int32)
    assert (changed[:, 11:29, 21:39] == 128).all()
    outside = changed[:, 34:]
    assert outside.std() > 5 and np.abs(outside[0] - outside[1]).mean() > 2


def test_of_things_of_one_kind_some_are_objects_and_the_others_look_alikes(tmp_path: Path) -> None:
    """WebP photographs with a label for each thing."""
    picture = np.full((96, 128, 3), 30, np.uint8)
    things = np.zeros((96, 128), np.uint8)
    for number, left in enumerate((4, 44, 88), start=1):
        things[30:66, left : left + 34] = number
        picture[30:66, left : left + 34] = (200, 40 + 60 * number, 20)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "1.webp", lossless=True)
    write_labels(tmp_path / "labels" / "1.png", things)
    options = ClipOptions(size=64, frames=2, region_chance=0, pastes=0, max_objects=2, scale=(1.0, 1.1))
    sources = still_sources(tmp_path, instances=True)
    clips = [ClipDataset([], [sources], options, seed=5).sample(index) for index in range(40)]
    assert {clip.objects for clip in clips} == {1, 2}
    bright = [(clip.pictures[0].max(axis=-1) > 110) & (clip.labels[0] == 0) for clip in clips]
    assert sum(int(there.sum()) > 60 for there in bright) > 10  # look-alikes that are no object


def test_a_worn_part_and_its_wearer_are_two_objects(tmp_path: Path) -> None:
    """A photograph with the labels of two garments: one becomes an object, and the rest of the person
    another."""
    parts = np.zeros((96, 128), np.uint8)
    parts[20:80, 40:90], parts[30:60, 50:70] = 7, 9
    write_picture(tmp_path / "images" / "1.jpg")
    write_labels(tmp_path / "labels" / "1.png", parts)
    plain = ClipOptions(size=64, frames=2, region_chance=0, pastes=0, max_objects=2, scale=(1.0, 1.1))
    sources = [still_sources(tmp_path)]
    always = ClipDataset([], sources, replace(plain, worn_chance=1))
    assert {always.sample(index).objects for index in range(12)} == {2}
    never = ClipDataset([], sources, plain)
    assert 1 in {never.sample(index).objects for index in range(12)}


def test_what_made_up_clips_show_is_an_option() -> None:
    options = ClipOptions(size=64, frames=2, made_up_share=1)
    clips = [
        training_clips(TrainingConfig(clip=replace(options, scene=SceneOptions(turn_chance=chance)))).sample(
            1
        )
        for chance in (0.4, 0.4, 1.0)
    ]
    assert np.array_equal(clips[0].pictures, clips[1].pictures)
    assert not np.array_equal(clips[0].pictures, clips[2].pictures)


def test_the_colours_of_a_clip_change_alike_and_a_little_by_frame() -> None:
    clip = np.full((3, 8, 8, 3), (100, 120, 140), np.uint8)
    changed = augment.colour_jitter(clip, np.random.default_rng(2), grey_chance=0.0).astype(np.float64)
    means = changed.mean(axis=(1, 2))
    assert np.abs(means[0] - (100, 120, 140)).max() > 3  # the clip's own light
    assert 0 < np.abs(means[1:] - means[:-1]).max() < 25  # auto exposure
    grey = augment.colour_jitter(clip, np.random.default_rng(2), grey_chance=1.0)
    assert (np.ptp(grey.astype(np.int32), axis=-1) <= 1).all()
