"""Training reads the same folders and the same label pictures as evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import ClipDataset, ClipOptions, davis_sources, still_sources
from model.pictures import Labels, write_labels

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
