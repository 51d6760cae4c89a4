"""The index of a movie in a file, so that the next process need not decode the movie to find its frames."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import cv2

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import DamagedFileError, read_sealed, write_sealed
from stm_plugin.images.movie import MovieIndex, known_index, remember_index, signs_of

_METHOD = f"walk-1 of OpenCV {cv2.__version__}"
"""Another way of decoding may find other frames: then the movie is decoded again."""


def recall_index(notes: Path) -> Path | None:
    """Read the index that `keep_index` wrote.

    Returns:
        The movie whose index is known now; None where there is none, or the movie has changed since.
    """
    try:
        body = read_sealed(notes)
        if body is None:
            return None
        noted = json.loads(body)
        movie, found = Path(noted["movie"]), noted["index"]
        if noted["method"] != _METHOD or tuple(noted["signs"]) != signs_of(movie):
            return None
        index = MovieIndex(
            times=tuple(float(time) for time in found["times"]),
            width=int(found["width"]),
            height=int(found["height"]),
            fps=None if found["fps"] is None else float(found["fps"]),
            pixel_aspect=float(found["pixel_aspect"]),
        )
    except (DamagedFileError, StoreError, OSError, ValueError, KeyError, TypeError):
        return None
    remember_index(movie, tuple(noted["signs"]), index)
    return movie


def keep_index(notes: Path, movie: Path) -> None:
    """Write the index of a movie, if this process has one, and the file does not hold it already."""
    with suppress(OSError, StoreError):  # a read-only store: the next process decodes the movie again
        signs = signs_of(movie)
        index = known_index(movie, signs)
        if index is None:
            return
        noted = {
            "movie": str(movie),
            "signs": signs,
            "method": _METHOD,
            "index": {
                "times": index.times,
                "width": index.width,
                "height": index.height,
                "fps": index.fps,
                "pixel_aspect": index.pixel_aspect,
            },
        }
        body = json.dumps(noted).encode()
        with suppress(DamagedFileError):
            if read_sealed(notes) == body:
                return
        write_sealed(notes, body, durable=False)
