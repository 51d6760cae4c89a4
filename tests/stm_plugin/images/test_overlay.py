"""Overlays show each object, and the frame number."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.errors import MatteError
from stm_plugin.files.outputs import LIST_NAME
from stm_plugin.images.overlay import (
    OBJECT_COLOURS,
    ByteArray,
    OverlayWriter,
    contact_sheet,
    object_colours,
    overlay_picture,
    pick_frames,
    write_picture,
)
from stm_plugin.windows import FloatArray

GREY = 0.5


def disc(x: int, y: int = 24, radius: int = 10, size: tuple[int, int] = (48, 64)) -> FloatArray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside: FloatArray = np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1).astype(np.float32)
    return inside


@pytest.fixture
def picture() -> FloatArray:
    return np.full((48, 64, 3), GREY, np.float32)


def test_objects_are_tinted_and_outlined_in_different_colours(picture: FloatArray) -> None:
    result = overlay_picture(picture, {"left": disc(16), "right": disc(48)})
    assert result.shape == (48, 64, 3)
    assert result.dtype == np.uint8
    assert tuple(result[24, 32]) == (128, 128, 128), "the background stays"
    first, second = result[24, 16].astype(int), result[24, 48].astype(int)
    assert first[0] > first[2]
    assert second[2] > second[0]
    for colour, x in zip(OBJECT_COLOURS, (16, 48), strict=False):
        row = result[24, x - 12 : x].astype(int)
        assert np.abs(row - colour).sum(axis=1).min() < 90, "an outline in the object's colour"
    assert picture.min() == picture.max() == GREY, "the input is left alone"


def test_an_objects_colour_stands_out_from_it(picture: FloatArray) -> None:
    mattes = {"left": disc(16), "right": disc(48), "nowhere": np.zeros((48, 64), np.float32)}
    assert object_colours(picture, mattes) == OBJECT_COLOURS[:3]
    picture[mattes["left"] > 0] = (0.8, 0.15, 0.1)  # as red as the first colour
    picture[mattes["right"] > 0] = (0.2, 0.5, 0.95)  # as blue as the second
    left, right, nowhere = object_colours(picture, mattes)
    assert left not in (OBJECT_COLOURS[0], OBJECT_COLOURS[5]) and right != OBJECT_COLOURS[1]
    assert len({left, right, nowhere}) == 3
    shown = overlay_picture(picture, mattes, (left, right, nowhere))
    assert np.abs(shown[24, 16].astype(float) - 255 * picture[24, 16]).max() > 60


def test_a_tint_of_the_objects_own_hue_is_not_taken(picture: FloatArray) -> None:
    """An orange thing with highlights, in front of blue: yellow and red would hide on it."""
    picture[:] = (0.25, 0.33, 0.5)
    cup = disc(32)
    picture[cup > 0] = (0.8, 0.3, 0.08)
    picture[20:24, 28:36] = (0.98, 0.8, 0.55)
    (colour,) = object_colours(picture, {"cup": cup})
    assert colour in ((64, 224, 96), (224, 96, 255), (0, 224, 224))


def test_a_soft_matte_gives_a_soft_tint(picture: FloatArray) -> None:
    ramp = np.tile(np.linspace(0, 0.45, 64, dtype=np.float32), (48, 1))
    red = overlay_picture(picture, {"a": ramp})[10, :, 0].astype(int)
    assert np.all(np.diff(red) >= 0)
    assert red[-1] > red[0] + 15


def test_a_matte_of_another_size_is_refused(picture: FloatArray) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        overlay_picture(picture, {"a": np.zeros((4, 4), np.float32)})


@pytest.mark.parametrize(
    ("frames", "keys", "count", "expected"),
    [
        (range(1001, 1011), [1001], 4, (1001, 1004, 1007, 1010)),
        (range(1, 4), [2], 12, (1, 2, 3)),
        (range(1, 101), [37], 3, (1, 37, 100)),
        (range(1, 101), [5, 6, 7], 2, (5, 6, 7)),
        ([], [], 5, ()),
    ],
)
def test_a_contact_sheet_shows_the_keys_and_the_ends_and_spreads_the_rest(
    frames: list[int], keys: list[int], count: int, expected: tuple[int, ...]
) -> None:
    picked = pick_frames(frames, keys, count)
    assert len(picked) == len(expected)
    assert set(keys) <= set(picked)
    if len(frames) > count >= 2 > len(keys):
        assert {frames[0], frames[-1]} <= set(picked)
        assert max(np.diff(picked)) <= 2 * (frames[-1] - frames[0]) / (count - 1)
    else:
        assert picked == expected


def test_a_contact_sheet_numbers_every_frame_and_marks_the_keys() -> None:
    pictures: dict[int, ByteArray] = {
        frame: np.full((48, 64, 3), 40 * index, np.uint8) for index, frame in enumerate(range(1001, 1006))
    }
    sheet = contact_sheet(pictures, keys=[1003], columns=3, cell_width=128)
    cell_height = 96
    assert sheet.shape[1] == 3 * 134 + 6
    for index in range(5):
        x, y = 6 + index % 3 * 134, 6 + index // 3 * (cell_height + 32)
        assert abs(int(sheet[y + 48, x + 64, 0]) - 40 * index) <= 1
        label = sheet[y + cell_height + 4 : y + cell_height + 26, x : x + 120].astype(int)
        assert label.max() > 150, "a number below the picture"
        yellow = (label[..., 0] - label[..., 2]) > 100
        assert yellow.any() == (index == 2), "the key's label has a colour of its own"


def test_a_contact_sheet_has_square_pixels() -> None:
    anamorphic = {1: np.zeros((50, 50, 3), np.uint8)}
    wide = contact_sheet(anamorphic, cell_width=200, pixel_aspect=2.0)
    square = contact_sheet(anamorphic, cell_width=200)
    assert square.shape[0] - wide.shape[0] == 100
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet({})


@pytest.mark.parametrize("name", ["o.png", "o.jpg"])
def test_pictures_are_written_whole(tmp_path: Path, picture: FloatArray, name: str) -> None:
    written = overlay_picture(picture, {"a": disc(30)})
    write_picture(tmp_path / "new" / name, written)
    back = oiio.ImageBuf(str(tmp_path / "new" / name)).get_pixels(oiio.UINT8)
    assert back is not None
    assert np.abs(back.astype(int) - written).mean() < (1e-9 if name == "o.png" else 6)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [name]


def test_pictures_that_cannot_be_written_are_named_errors(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    (tmp_path / "file").touch()
    with pytest.raises(MatteError, match=r"frame 7, .*o\.png: The file cannot be written"):
        write_picture(tmp_path / "file" / "o.png", picture, frame=7)
    with pytest.raises(MatteError, match="PNG or JPEG"):
        write_picture(tmp_path / "o.gif", picture)
    with pytest.raises(MatteError, match="PNG or JPEG"):
        OverlayWriter(tmp_path / "o.####.exr")
    with pytest.raises(MatteError, match="kind of movie cannot be written"):
        OverlayWriter(tmp_path / "o.webm")


def test_an_overlay_sequence_has_the_hosts_frame_numbers(tmp_path: Path, picture: FloatArray) -> None:
    for target in (tmp_path / "a.####.png", tmp_path / "folder"):
        with OverlayWriter(target) as writer:
            for frame in (1001, 1002):
                writer.write(frame, overlay_picture(picture, {"a": disc(frame - 980)}))
    assert sorted(entry.name for entry in tmp_path.glob("*.png")) == ["a.1001.png", "a.1002.png"]
    assert (tmp_path / "folder" / "overlay.1002.jpg").is_file()


@pytest.mark.parametrize("name", ["o.mp4", "o.mov", "o.avi"])
def test_an_overlay_movie_holds_every_frame(tmp_path: Path, name: str) -> None:
    with OverlayWriter(tmp_path / name, fps=25, pixel_aspect=2.0) as writer:
        for frame in range(1, 7):
            writer.write(frame, np.full((49, 33, 3), (40 * frame, 0, 0), np.uint8))
            assert not (tmp_path / name).exists(), "half a movie is never seen under its name"
    capture = cv2.VideoCapture(str(tmp_path / name))
    assert capture.get(cv2.CAP_PROP_FPS) == 25
    for frame in range(1, 7):
        decoded, picture = capture.read()
        assert decoded
        assert picture.shape == (48, 66, 3)
        assert abs(float(picture[..., 2].mean()) - 40 * frame) < 12, "red is red"
    assert not capture.read()[0]
    capture.release()
    assert {entry.name for entry in tmp_path.iterdir()} == {name, LIST_NAME}


def test_a_movie_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    with (
        pytest.raises(MatteError, match=r"frame 2, .*o\.mp4: The frame is 32x48, but the movie"),
        OverlayWriter(tmp_path / "o.mp4") as writer,
    ):
        writer.write(1, picture)
        writer.write(2, picture[:, :32])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(MatteError, match="frame 1, "), OverlayWriter(tmp_path / "file" / "o.mp4") as writer:
        writer.write(1, picture)
