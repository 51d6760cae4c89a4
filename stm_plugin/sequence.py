"""Image sequences in the ways people write them, with the host's own frame numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FrameSequence:
    """A row of frames: image files, or the frames of one movie file.

    Attributes:
        text: the sequence as the artist wrote it.
        frames: every frame number of the range, ascending, the missing ones included.
        missing: the frames of the range that have no file (empty for a movie and for an output).
        movie: the movie file, or None when every frame is a file of its own.
    """

    text: str
    frames: tuple[int, ...]
    missing: tuple[int, ...]
    movie: Path | None
    files: Mapping[int, Path]

    def path(self, frame: int) -> Path:
        """The file of one frame, whether it exists or not (for a movie always the movie)."""
        raise NotImplementedError


def parse_frame_range(text: str) -> tuple[int, ...]:
    """Frame numbers from `1001-1100`, `1001-1100x2` or `1001,1005-1010`; PlateError for anything else or below 0."""
    raise NotImplementedError


def describe_frames(frames: Iterable[int]) -> str:
    """Frames in the short form that people write: `1001-1003, 1007`."""
    raise NotImplementedError


def parse_sequence(
    text: str | Path, *, frame_range: str | tuple[int, int] | None = None, view: str | None = None,
    movie_first_frame: int = 1,
) -> FrameSequence:
    """A sequence that exists on disk. PlateError where nothing fits the text."""
    raise NotImplementedError


def output_sequence(text: str | Path, *, view: str | None = None) -> FrameSequence:
    """A sequence to be written: only `path(frame)` counts; `frames` is empty unless the text states a range."""
    raise NotImplementedError
