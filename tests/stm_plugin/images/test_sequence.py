"""Sequences are found by every common notation, with the host's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from stm_plugin.errors import MatteError, PlateError
from stm_plugin.images.movie import MovieReader
from stm_plugin.images.sequence import (
    describe_frames,
    output_sequence,
    parse_frame_range,
    parse_sequence,
)

MOVIE_FRAMES = 40


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder of empty files."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return make


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A movie of 40 frames; the grey value is the frame."""
    path = tmp_path_factory.mktemp("movie") / "plate.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (64, 48))
    for number in range(MOVIE_FRAMES):
        writer.write(np.full((48, 64, 3), 20 + 5 * number, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    "text",
    [
        "plate.####.exr",
        "plate.#.exr",
        "plate.@@@@.exr",
        "plate.%04d.exr",
        "plate.%d.exr",
        "plate.$F4.exr",
        "plate.1001-1003#.exr",
        "plate.1001-1003@.exr",
        "plate.1001-1003x1####.exr",
        "plate.1001-1003%04d.exr",
        "plate.1001,1002-1003#.exr",
        "plate.1002.exr",
        "",
    ],
)
def test_every_way_to_write_a_sequence_finds_the_same_files(folder: Callable[..., Path], text: str) -> None:
    root = folder("plate.1001.exr", "plate.1002.exr", "plate.1003.exr", "notes.txt")
    sequence = parse_sequence(f"{root}/{text}")
    assert sequence.frames == (1001, 1002, 1003)
    assert sequence.missing == ()
    assert [sequence.path(frame).name for frame in sequence.frames] == [
        f"plate.{n}.exr" for n in (1001, 1002, 1003)
    ]
    assert str(sequence) == f"{root}/{text}"


def test_gaps_are_named_and_never_dropped(folder: Callable[..., Path]) -> None:
    root = folder("p.1001.exr", "p.1002.exr", "p.1005.exr", "p.1007.exr")
    sequence = parse_sequence(root / "p.####.exr")
    assert sequence.frames == tuple(range(1001, 1008))
    assert sequence.missing == (1003, 1004, 1006)
    assert sequence.path(1003) == root / "p.1003.exr"
    assert describe_frames(sequence.missing) == "1003-1004, 1006"
    assert parse_sequence(root / "p.1001-1007x2#.exr").missing == (1003,)


def test_a_frame_range_restricts_the_sequence(folder: Callable[..., Path]) -> None:
    root = folder(*(f"p.{n:04d}.exr" for n in range(8, 13)))
    assert parse_sequence(root / "p.####.exr", frame_range="9-11").frames == (9, 10, 11)
    assert parse_sequence(root / "p.####.exr", frame_range=(11, 14)).missing == (13, 14)
    with pytest.raises(PlateError, match=r"13-14 are not in the range 8-12"):
        parse_sequence(root / "p.8-12#.exr", frame_range="11-14")
    with pytest.raises(PlateError, match=r"None of the frames 50-60 exists\. On disk are the frames 8-12"):
        parse_sequence(root / "p.####.exr", frame_range="50-60")


@pytest.mark.parametrize(
    ("names", "text", "frames"),
    [
        (("00000.jpg", "00001.jpg"), "#####.jpg", (0, 1)),
        (("frame_v002.0007.png",), "frame_v002.####.png", (7,)),
        (("sh010_v03_0009.tif", "sh010_v03_0010.tif"), "sh010_v03_0009.tif", (9, 10)),
        (("p.8.dpx", "p.9.dpx", "p.10.dpx"), "p.%d.dpx", (8, 9, 10)),
        (("p.99999.exr", "p.100000.exr"), "p.%04d.exr", (99999, 100000)),
        (("p-1001.exr", "p-1002.exr"), "p-1001-1002#.exr", (1001, 1002)),
        (("v2_0010.exr", "v2_0011.exr"), "v2_####.exr", (10, 11)),
        (("a####b.exr", "a0003b.exr"), "a####b.exr", (3,)),
    ],
)
def test_awkward_names(
    folder: Callable[..., Path], names: tuple[str, ...], text: str, frames: tuple[int, ...]
) -> None:
    root = folder(*(name for name in names if "#" not in name))
    assert parse_sequence(root / text).frames == frames


def test_the_padding_that_was_asked_for_wins_over_another(folder: Callable[..., Path]) -> None:
    root = folder("p.7.exr", "p.0007.exr")
    assert parse_sequence(root / "p.####.exr").path(7).name == "p.0007.exr"
    assert parse_sequence(root / "p.@.exr").path(7).name == "p.7.exr"


def test_a_folder_with_several_sequences_is_refused_with_their_names(folder: Callable[..., Path]) -> None:
    root = folder("bg.1.exr", "bg.2.exr", "fg.1.exr", "fg.2.exr")
    with pytest.raises(PlateError, match=r"2 sequences: bg\.1-2#\.exr, fg\.1-2#\.exr\. State which"):
        parse_sequence(root)


def test_a_folder_of_one_sequence_may_hold_other_files(folder: Callable[..., Path]) -> None:
    root = folder("bg.1.exr", "bg.2.exr", "readme.txt", "thumbnail.jpg", ".hidden.1.exr")
    assert parse_sequence(root).frames == (1, 2)


def test_an_empty_folder_and_a_missing_one_are_named_errors(folder: Callable[..., Path]) -> None:
    root = folder("readme.txt")
    with pytest.raises(PlateError, match="no pictures and no movie"):
        parse_sequence(root)
    with pytest.raises(PlateError, match=r"No file fits this sequence\. The folder holds readme\.txt"):
        parse_sequence(root / "plate.####.exr")
    with pytest.raises(PlateError, match=r"folder cannot be read.*Correct the path"):
        parse_sequence(root / "nowhere" / "plate.####.exr")
    with pytest.raises(PlateError, match="no such file or folder, and the name has no frame token"):
        parse_sequence(root / "plate.exr")
    with pytest.raises(PlateError, match="The plate is empty"):
        parse_sequence(" ")


def test_negative_frames_are_refused_in_words(folder: Callable[..., Path]) -> None:
    root = folder("p.-001.exr", "p.0000.exr", "p.0001.exr")
    with pytest.raises(PlateError, match=r"frame -1.*Negative frame numbers cannot be used"):
        parse_sequence(root / "p.####.exr")
    with pytest.raises(PlateError, match="Negative"):
        parse_sequence(root / "p.-1-1#.exr")
    with pytest.raises(PlateError, match="Negative"):
        parse_sequence(root / "p.####.exr", frame_range=(-1, 1))
    assert parse_sequence(root / "p.####.exr", frame_range=(0, 1)).frames == (0, 1)
    with pytest.raises(PlateError, match="Negative"):
        output_sequence("m.####.exr").path(-3)


def test_numbers_that_are_no_frame_numbers_are_refused(folder: Callable[..., Path]) -> None:
    root = folder("scan.1.jpg", "scan.20260101.jpg")
    with pytest.raises(PlateError, match="do not look like frame numbers"):
        parse_sequence(root / "scan.#.jpg")


def test_view_tokens_take_the_view(folder: Callable[..., Path]) -> None:
    root = folder("p.left.1.exr", "p.right.1.exr", "q.l.1.exr")
    assert parse_sequence(root / "p.%V.#.exr", view="right").path(1).name == "p.right.1.exr"
    assert parse_sequence(root / "q.%v.#.exr", view="left").path(1).name == "q.l.1.exr"
    assert output_sequence("m.%V.%04d.exr", view="left").path(7) == Path("m.left.0007.exr")
    with pytest.raises(PlateError, match="no view is given"):
        parse_sequence(root / "p.%V.#.exr")


def test_a_still_without_a_number_is_one_frame(folder: Callable[..., Path]) -> None:
    root = folder("still.jpg")
    assert parse_sequence(root / "still.jpg").frames == (1,)
    assert parse_sequence(root / "still.jpg", movie_first_frame=1001).path(1001) == root / "still.jpg"
    with pytest.raises(PlateError, match="frame 1 only"):
        parse_sequence(root / "still.jpg", frame_range="1-5")


def test_a_movie_counts_from_the_stated_frame(movie: Path) -> None:
    assert parse_sequence(movie).frames == tuple(range(1, MOVIE_FRAMES + 1))
    sequence = parse_sequence(movie.parent, movie_first_frame=1001)
    assert (sequence.frames[0], sequence.frames[-1]) == (1001, 1000 + MOVIE_FRAMES)
    assert sequence.path(1005) == movie
    with pytest.raises(PlateError, match=r"41 are not in the movie\. It holds the frames 1-40"):
        parse_sequence(movie, frame_range="30-41")


def test_a_movie_gives_the_same_frames_forwards_backwards_and_in_jumps(movie: Path) -> None:
    capture = cv2.VideoCapture(str(movie))
    truth = [capture.read()[1][:, :, ::-1] for _ in range(MOVIE_FRAMES)]
    capture.release()
    assert all(int(truth[n + 1].mean()) > int(truth[n].mean()) for n in range(MOVIE_FRAMES - 1))
    reader = MovieReader(movie)
    for number in [*range(MOVIE_FRAMES), 0, *reversed(range(MOVIE_FRAMES)), 3, 37, 20]:
        assert np.array_equal(reader.read(number), truth[number])
    reader.close()
    fresh = MovieReader(movie)
    for number in [39, 38, 20, 19, 3]:
        assert np.array_equal(fresh.read(number), truth[number])
    with pytest.raises(PlateError, match="has 40 frames"):
        fresh.read(MOVIE_FRAMES)
    fresh.close()


def test_broken_movies_are_named_errors(tmp_path: Path, movie: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(movie.read_bytes()[:700])
    with pytest.raises(PlateError, match=r"broken\.mp4.*cannot be opened"):
        parse_sequence(broken)
    whole = tmp_path / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 24.0, (64, 48))
    for _ in range(MOVIE_FRAMES):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    assert len(parse_sequence(whole).frames) == MOVIE_FRAMES
    short = tmp_path / "short.avi"
    short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(PlateError, match=r"states 40 frames but holds \d+: it is truncated"):
        parse_sequence(short)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("1001-1003", (1001, 1002, 1003)),
        ("1001-1005x2", (1001, 1003, 1005)),
        ("7", (7,)),
        ("1,5-6", (1, 5, 6)),
        ((3, 4), (3, 4)),
    ],
)
def test_frame_ranges(text: str | tuple[int, int], frames: tuple[int, ...]) -> None:
    assert parse_frame_range(text) == frames


@pytest.mark.parametrize("text", ["", "abc", "1-", "5-1", (5, 1), "1-5x0", "1..5", "1-5x-2"])
def test_bad_frame_ranges_are_errors(text: str | tuple[int, int]) -> None:
    with pytest.raises(PlateError):
        parse_frame_range(text)


def test_outputs_are_padded_as_written() -> None:
    assert output_sequence("out/m.####.exr").path(7) == Path("out/m.0007.exr")
    assert output_sequence("out/m.#.exr").path(1001) == Path("out/m.1001.exr")
    assert output_sequence("out/m.%06d.exr").path(7) == Path("out/m.000007.exr")
    assert output_sequence("out/m.@.exr").path(7) == Path("out/m.7.exr")
    assert output_sequence("out/m_####_left.exr").path(7) == Path("out/m_0007_left.exr")
    stated = output_sequence("out/m.1001-1003#.exr")
    assert stated.frames == (1001, 1002, 1003)
    assert stated.path(1002) == Path("out/m.1002.exr")


def test_an_output_folder_gets_a_default_name_and_a_single_file_is_refused(tmp_path: Path) -> None:
    assert output_sequence(tmp_path).path(12) == tmp_path / "matte.0012.exr"
    assert output_sequence(tmp_path / "new").path(12) == tmp_path / "new" / "matte.0012.exr"
    with pytest.raises(MatteError, match=r"overwrite the one before\. Write matte\.####\.exr"):
        output_sequence(tmp_path / "matte.exr")
