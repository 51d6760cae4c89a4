"""DAVIS- and YouTube-VOS-style folders are found, with the frames on which their objects enter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.davis import entering_masks, find_sequences, first_frames, read_split
from model.data.pictures import Labels, write_labels

LABELS: Labels = np.repeat(np.array([[0, 1, 2], [3, 0, 1]], dtype=np.uint8), 6, axis=1)


def touch_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (18, 2)).save(path)


@pytest.mark.parametrize("resolution", ["", "480p"])
def test_sequences_are_found_with_and_without_a_resolution_folder(tmp_path: Path, resolution: str) -> None:
    for frame in ("9", "10", "8"):
        touch_picture(tmp_path / "JPEGImages" / resolution / "bear" / f"{frame}.jpg")
    write_labels(tmp_path / "Annotations" / resolution / "bear" / "9.png", LABELS)
    (sequence,) = find_sequences(tmp_path)
    assert sequence.name == "bear"
    assert sequence.frames == ("8", "9", "10")  # by number, not by letter
    assert sequence.annotated_frames == ("9",)


def test_a_folder_of_one_sequence_is_found(tmp_path: Path) -> None:
    touch_picture(tmp_path / "JPEGImages" / "frame_1.jpg")
    write_labels(tmp_path / "Annotations" / "frame_1.png", LABELS)
    (sequence,) = find_sequences(tmp_path)
    assert sequence.name == tmp_path.name and list(sequence.pictures) == ["frame_1"]


def test_a_bare_folder_of_annotations_is_found(tmp_path: Path) -> None:
    write_labels(tmp_path / "bear" / "1.png", LABELS)
    write_labels(tmp_path / "bus" / "1.png", LABELS)
    assert [sequence.name for sequence in find_sequences(tmp_path)] == ["bear", "bus"]
    assert [sequence.name for sequence in find_sequences(tmp_path, ["bus"])] == ["bus"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_sequences(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no annotations"):
        find_sequences(tmp_path)
    write_labels(tmp_path / "Annotations" / "bear" / "1.png", LABELS)
    with pytest.raises(FileNotFoundError, match="no annotations of camel"):
        find_sequences(tmp_path, ["bear", "camel"])
    touch_picture(tmp_path / "JPEGImages" / "bear" / "2.jpg")
    with pytest.raises(ValueError, match="no picture for the annotation of frame 1"):
        find_sequences(tmp_path)


def test_splits_are_read_in_both_writings_of_davis(tmp_path: Path) -> None:
    (tmp_path / "2017.txt").write_text("bike-packing\nblackswan\n\n")
    line = "/JPEGImages/480p/{0}/{1}.jpg /Annotations/480p/{0}/{1}.png\n"
    (tmp_path / "2016.txt").write_text(
        line.format("bear", "00000") + line.format("bear", "00001") + line.format("bus", "00000")
    )
    (tmp_path / "empty.txt").write_text("\n")
    assert read_split(tmp_path / "2017.txt") == ["bike-packing", "blackswan"]
    assert read_split(tmp_path / "2016.txt") == ["bear", "bus"]
    with pytest.raises(ValueError, match="names no sequence"):
        read_split(tmp_path / "empty.txt")


def test_objects_enter_on_the_frame_of_their_first_annotation(tmp_path: Path) -> None:
    write_labels(tmp_path / "bear" / "1.png", np.where(LABELS == 1, LABELS, 0).astype(np.uint8))
    write_labels(tmp_path / "bear" / "2.png", LABELS)
    (sequence,) = find_sequences(tmp_path)
    assert first_frames(sequence) == {1: "1", 2: "2", 3: "2"}
    given = entering_masks(sequence)
    assert sorted(given) == [0, 1]
    assert set(np.unique(given[0])) == {0, 1}
    assert set(np.unique(given[1])) == {0, 2, 3}  # object 1 is on this annotation too, and is not given away


def test_the_second_object_of_a_given_clip_enters_late(shared_data: Path) -> None:
    (sequence,) = find_sequences(shared_data / "clips" / "caps")
    assert len(sequence.frames) == 87
    assert first_frames(sequence) == {1: "frame_000000", 2: "frame_000033"}
    assert {number: set(np.unique(labels)) for number, labels in entering_masks(sequence).items()} == {
        0: {0, 1},
        33: {0, 2},
    }
