"""Videos with annotations in DAVIS or YouTube-VOS layout: the sequences of a folder, and where objects
enter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model.data.pictures import PICTURE_SUFFIXES, Labels, read_labels

PICTURE_FOLDER, ANNOTATION_FOLDER = "JPEGImages", "Annotations"
RESOLUTION_FOLDERS = ("480p", "Full-Resolution", "1080p")
"""DAVIS has one folder of sequences per resolution; the first existing one of these is used."""


@dataclass(frozen=True)
class VideoSequence:
    """The files of one sequence.

    Args:
        name: the folder's name.
        frames: frame names (file names without ending), in order: all pictures, or all annotations where
            there are no pictures.
        pictures: of some or all frames.
        annotations: of some or all frames.
    """

    name: str
    frames: tuple[str, ...]
    pictures: Mapping[str, Path] = field(repr=False)
    annotations: Mapping[str, Path] = field(repr=False)

    @property
    def annotated_frames(self) -> tuple[str, ...]:
        return tuple(frame for frame in self.frames if frame in self.annotations)

    @property
    def backward(self) -> VideoSequence:
        """The sequence from its last frame to its first."""
        return replace(self, frames=self.frames[::-1])

    def stepped(self, step: int) -> VideoSequence:
        """Every n-th frame, starting with the first: the sequence with faster motion."""
        return replace(self, frames=self.frames[::step])


def find_sequences(root: Path, names: Sequence[str] = ()) -> list[VideoSequence]:
    """The annotated sequences below a folder, by name.

    The folder may hold `JPEGImages[/480p]/NAME` and `Annotations[/480p]/NAME` (DAVIS, YouTube-VOS), or
    `JPEGImages` and `Annotations` of one sequence; without `JPEGImages`, or where the folder itself holds
    `NAME/*.png`, annotations alone are found, which suffice to measure results.

    Args:
        root: the folder.
        names: only these sequences, in this order; all if empty. `read_split` returns those of a DAVIS split.

    Raises:
        FileNotFoundError: if there are no annotations, or if a named sequence does not exist.
        ValueError: if an annotation has no picture although the sequence has pictures.
    """
    annotation_root = resolution_folder(root / ANNOTATION_FOLDER)
    picture_root = resolution_folder(root / PICTURE_FOLDER)
    if not annotation_root.is_dir():
        annotation_root = root
    if not annotation_root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. Give the root of a DAVIS-style data set.")
    if any(annotation_root.glob("*.png")):
        found = {root.name: (annotation_root, picture_root)}
    else:
        found = {
            folder.name: (folder, picture_root / folder.name)
            for folder in sorted(annotation_root.iterdir())
            if folder.is_dir() and any(folder.glob("*.png"))
        }
    if not found:
        raise FileNotFoundError(
            f"{annotation_root}: no annotations. Each sequence needs a folder with PNG files."
        )
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{annotation_root}: no annotations of {', '.join(missing)}.")
    return [_sequence(name, *found[name]) for name in names or found]


def read_split(path: Path) -> list[str]:
    """The sequence names of an `ImageSets` file: a name per line, or a frame's path per line (DAVIS 2016).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it names nothing.
    """
    names: dict[str, None] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words:
            parts = words[0].strip("/").split("/")
            names[parts[-2] if len(parts) > 1 else parts[0]] = None
    if not names:
        raise ValueError(f"{path} names no sequence.")
    return list(names)


def first_frames(sequence: VideoSequence) -> dict[int, str]:
    """Each object's label and the first frame on which it is annotated, by label."""
    first: dict[int, str] = {}
    for frame in sequence.annotated_frames:
        for label in np.unique(read_labels(sequence.annotations[frame])).tolist():
            if label > 0:
                first.setdefault(label, frame)
    return dict(sorted(first.items()))


def entering_masks(sequence: VideoSequence) -> dict[int, Labels]:
    """The labels (H, W) by frame (index into `sequence.frames`) of objects that are first annotated there.

    Raises:
        ValueError: if no annotation has an object.
    """
    first = first_frames(sequence)
    if not first:
        raise ValueError(f"{sequence.name}: no object in any annotation. Is this a folder of masks?")
    given = {}
    for frame in dict.fromkeys(first.values()):
        labels = read_labels(sequence.annotations[frame])
        entering = [label for label in first if first[label] == frame]
        given[sequence.frames.index(frame)] = np.where(np.isin(labels, entering), labels, 0).astype(np.uint8)
    return given


def resolution_folder(folder: Path) -> Path:
    """The folder of one resolution below the given one, or the given one if it has none."""
    return next((folder / name for name in RESOLUTION_FOLDERS if (folder / name).is_dir()), folder)


def _sequence(name: str, annotation_folder: Path, picture_folder: Path) -> VideoSequence:
    annotations = {path.stem: path for path in annotation_folder.glob("*.png")}
    pictures: dict[str, Path] = {}
    if picture_folder.is_dir():
        pictures = {p.stem: p for p in picture_folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES}
        without = sorted(set(annotations) - set(pictures))
        if without:
            raise ValueError(f"{picture_folder}: no picture for the annotation of frame {without[0]}.")
    frames = tuple(sorted(pictures or annotations, key=_natural_order))
    return VideoSequence(name, frames, pictures, annotations)


def _natural_order(frame: str) -> list[tuple[int, str]]:
    """Sorts by the numbers in a name, so that frame 10 follows frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", frame)]
