"""Training reads the same folders and the same label pictures as evaluation."""

from __future__ import annotations

from pathlib import Path

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


def test_an_affine_grid_is_that_of_torch() -> None:
    matrix = augment.affine_matrix(
        centre=(100, 80), size=(200, 150), source_size=(384, 500), angle=11, shear=0.1, flip=True
    )
    grid = F.affine_grid(matrix.unsqueeze(0), [1, 1, 48, 80], align_corners=False)[0]
    torch.testing.assert_close(augment.affine_grid(matrix, 48, 80), grid)


def square(brightness: float) -> LoadedSource:
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[16:48, 16:48] = 1
    return LoadedSource(str(brightness), (((mask * brightness).expand(3, -1, -1), mask),))


def test_so_many_objects_are_pasted_as_was_asked_for() -> None:
    """Grey squares of one brightness each on black: what is in a clip shows which were pasted."""
    sources = [square(0.2 + number / 20) for number in range(12)]

    def objects(pastes: int, size: tuple[float, float]) -> tuple[list[int], list[float]]:
        options = ClipOptions(
            size=64, max_objects=9, pastes=pastes, paste_chance=1.0, paste_is_object=1.0, paste_same_chance=0,
            paste_size=size, region_chance=0, blur_chance=0,
        )  # fmt: skip
        clips = [ClipDataset([], [sources], options, seed=3).sample(index) for index in range(30)]
        shares = [float((clip.labels[0] == clip.objects).float().mean()) for clip in clips]
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
    dark = [clip for clip in clips if clip.pictures[0].max() < 0.35]  # a bright square can only come later
    bright = [clip.pictures[:, 0] > 0.85 for clip in dark]
    assert len(dark) > 10
    assert sum(bool(there.any()) for there in bright) > 5
    assert not any((there & (clip.labels > 0)).any() for clip, there in zip(dark, bright, strict=True))


def test_light_flickers_on_the_background_alone() -> None:
    clip, rng = torch.full((3, 3, 48, 64), 0.5), np.random.default_rng(0)
    background = torch.ones(3, 48, 64, dtype=torch.bool)
    background[:, 10:30, 20:40] = False
    changed = augment.flicker(clip, background, rng)
    assert torch.equal(changed[:, :, 11:29, 21:39], clip[:, :, 11:29, 21:39])
    outside = changed[:, :, 34:, :]
    assert outside.std() > 0.02 and (outside[0] - outside[1]).abs().mean() > 0.01
    assert changed.min() >= 0 and changed.max() <= 1
