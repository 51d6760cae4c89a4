"""Clips to choose a rule of keys on: training sequences that are disturbed, and made-up clips.

    python benchmarks/hard_clips.py FOLDER DAVIS

Writes them to FOLDER in DAVIS layout, short side 240, 24 frames at most: every training sequence of DAVIS but
the five that are held out, by turns with two upright bars of foreign texture in front, with a blob of it that
passes, at low contrast and a third to a half of the resolution, or with every sixth frame only; and made-up
clips with one object, in most of which something passes in front. The mask is cut out where the object is
hidden. The weights saw the undisturbed sequences, so J here says which rule is better, not how good it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.adapt import HELD_OUT
from model.data.davis import ANNOTATION_FOLDER, PICTURE_FOLDER, VideoSequence, find_sequences
from model.data.pictures import read_labels, read_picture_bytes, write_labels
from model.training import synthetic_clips
from model.training.synthetic_clips import SceneOptions, synthetic_clip
from model.training.textures import ByteArray, texture

KINDS = ("bars", "blob", "weak", "fast")
FRAMES, SHORT_SIDE, MADE_UP = 24, 240, 12

Rng = np.random.Generator


def disturbed(sequence: VideoSequence, kind: str, rng: Rng) -> tuple[list[ByteArray], list[ByteArray]]:
    """Pictures (h, w, 3) and labels (h, w) of a disturbed sequence."""
    frames = sequence.annotated_frames
    step = 6 if kind == "fast" else max(1, len(frames) // FRAMES)
    pictures, labels = [], []
    for frame in frames[::step][:FRAMES]:
        picture = read_picture_bytes(sequence.pictures[frame])
        label = (read_labels(sequence.annotations[frame]) > 0).astype(np.uint8)
        scale = SHORT_SIDE / min(label.shape)
        size = round(label.shape[1] * scale), round(label.shape[0] * scale)
        pictures.append(np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8))
        labels.append(np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), np.uint8))
    if kind == "weak":
        return _weak(pictures, rng), labels
    if kind in ("bars", "blob"):
        _hide(pictures, labels, kind, rng)
    return pictures, labels


def _weak(pictures: Sequence[ByteArray], rng: Rng) -> list[ByteArray]:
    scale, contrast = rng.uniform(0.33, 0.5), rng.uniform(0.3, 0.5)
    found = []
    for picture in pictures:
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        grey = 128 + (small.astype(np.float32) - 128) * contrast + rng.normal(0, 4, small.shape)
        large = cv2.resize(grey, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        found.append(np.clip(large, 0, 255).astype(np.uint8))
    return found


def _hide(pictures: Sequence[ByteArray], labels: Sequence[ByteArray], kind: str, rng: Rng) -> None:
    """Paste foreign texture over pictures, and cut it out of the labels."""
    height, width = labels[0].shape
    foreign = texture(rng, height, width)
    places = rng.uniform(0.15, 0.45), rng.uniform(0.55, 0.85)
    widths = rng.uniform(0.05, 0.16, 2)
    way = rng.choice([-1, 1])
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        cover: npt.NDArray[np.bool_] = np.zeros((height, width), bool)
        if kind == "bars":
            for place, wide in zip(places, widths, strict=True):
                left = round((place - wide / 2) * width)
                cover[:, left : left + round(wide * width)] = True
        else:
            share = number / max(1, len(pictures) - 1)
            x = (share if way > 0 else 1 - share) * 1.4 - 0.2
            rows, columns = np.mgrid[:height, :width]
            inside = ((columns / width - x) / (1.5 * widths[0])) ** 2 + ((rows / height - 0.5) / 0.45) ** 2
            cover = inside < 1
        picture[cover] = foreign[cover]
        label[cover] = 0


def made_up(number: int) -> tuple[list[ByteArray], list[ByteArray]]:
    """Pictures and labels of a made-up clip whose object is shown on the first and the last frame."""
    options = SceneOptions(
        height=SHORT_SIDE, width=320, frames=FRAMES, most_objects=1, cover_chance=0.8, enter_chance=0.3
    )
    seed = synthetic_clips.HELD_OUT.start + 100 * number
    while True:
        clip = synthetic_clip(seed, options)
        labels = (clip.labels > 0).astype(np.uint8)
        if labels[0].any() and labels[-1].any():
            return [*clip.pictures], [*labels]
        seed += 1


def write(folder: Path, name: str, pictures: Sequence[ByteArray], labels: Sequence[ByteArray]) -> None:
    """Writes a clip in DAVIS layout."""
    for kind in (PICTURE_FOLDER, ANNOTATION_FOLDER):
        (folder / kind / name).mkdir(parents=True, exist_ok=True)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        bgr = np.ascontiguousarray(picture[..., ::-1])
        cv2.imwrite(str(folder / PICTURE_FOLDER / name / f"{number:05}.png"), bgr)
        write_labels(folder / ANNOTATION_FOLDER / name / f"{number:05}.png", label)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path, help="a folder in DAVIS layout")
    given = parser.parse_args()
    sequences = [one for one in find_sequences(given.data) if one.name not in HELD_OUT]
    for number, sequence in enumerate(sequences):
        kind = KINDS[number % len(KINDS)]
        pictures, labels = disturbed(sequence, kind, np.random.default_rng(number))
        shown = [place for place, label in enumerate(labels) if label.sum() > 30]
        if len(shown) > FRAMES // 3:
            part = slice(shown[0], shown[-1] + 1)
            write(given.folder, f"{sequence.name}-{kind}", pictures[part], labels[part])
    for number in range(MADE_UP):
        write(given.folder, f"made-up-{number:02}", *made_up(number))


if __name__ == "__main__":
    main()
