"""Labels are read from pictures exactly, and ambiguous label pictures are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.pictures import Labels, label_colour, read_labels, read_picture, write_labels

LABELS: Labels = np.repeat(np.array([[0, 1, 2], [3, 0, 1]], dtype=np.uint8), 6, axis=1)
MASK = (LABELS > 0).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_pictures_give_their_indices_at_any_depth(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(tmp_path / "labels.png", bits=bits)
    assert np.array_equal(read_labels(tmp_path / "labels.png"), LABELS)


def test_void_pixels_of_a_palette_picture_are_background(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.png", np.where(LABELS == 3, 255, LABELS).astype(np.uint8))
    assert np.array_equal(read_labels(tmp_path / "labels.png"), np.where(LABELS == 3, 0, LABELS))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_labels_give_their_values(tmp_path: Path, dtype: type[np.integer]) -> None:
    Image.fromarray(LABELS.astype(dtype)).save(tmp_path / "labels.png")
    assert np.array_equal(read_labels(tmp_path / "labels.png"), LABELS)


def test_masks_of_one_object_give_one_label(tmp_path: Path) -> None:
    white = Image.fromarray(MASK * np.uint8(255))
    Image.fromarray(MASK > 0).save(tmp_path / "one_bit.png")
    Image.fromarray(MASK.astype(np.uint16) * np.uint16(65535)).save(tmp_path / "sixteen_bits.png")
    for mode in ("L", "LA", "RGB", "RGBA"):
        white.convert(mode).save(tmp_path / f"{mode}.png")
    found = sorted(tmp_path.iterdir())
    assert len(found) == 6
    for path in found:
        assert np.array_equal(read_labels(path), MASK), path.name


@pytest.mark.parametrize("white", [255, 65535])
def test_a_soft_mask_is_cut_at_one_half(tmp_path: Path, white: int) -> None:
    soft = (np.linspace(0, 1, 12)[None] * white).astype(np.uint8 if white == 255 else np.uint16)
    Image.fromarray(np.repeat(soft, 2, axis=0)).save(tmp_path / "soft.png")
    assert read_labels(tmp_path / "soft.png")[0].tolist() == [0] * 6 + [1] * 6


def test_colours_without_a_palette_are_refused(tmp_path: Path) -> None:
    write_labels(tmp_path / "palette.png", LABELS)
    with Image.open(tmp_path / "palette.png") as image:
        image.convert("RGB").save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"colours\.png has colours but no palette"):
        read_labels(tmp_path / "colours.png")


def test_grey_values_that_are_neither_labels_nor_a_mask_are_refused(tmp_path: Path) -> None:
    Image.fromarray(LABELS.astype(np.uint16) * np.uint16(20000)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png has grey values up to 60000"):
        read_labels(tmp_path / "grey.png")


def test_labels_are_written_with_the_palette_of_davis(tmp_path: Path) -> None:
    write_labels(tmp_path / "deep" / "labels.png", LABELS)
    with Image.open(tmp_path / "deep" / "labels.png") as image:
        assert image.mode == "P"
        palette = image.getpalette()
        colours = image.convert("RGB")
    assert palette is not None
    assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert colours.getpixel((6, 0)) == (128, 0, 0) == label_colour(1)
    assert np.array_equal(read_labels(tmp_path / "deep" / "labels.png"), LABELS)


def test_pictures_are_read_as_rgb_between_0_and_1(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (255, 0, 51, 9)).save(tmp_path / "picture.png")
    picture = read_picture(tmp_path / "picture.png")
    assert picture.shape == (3, 2, 3)
    assert picture[:, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
