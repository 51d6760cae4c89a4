"""Movie files as plates: an exact count of their frames, and exact frames in any order."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.errors import PlateError, memory_errors, speaks_of_memory

_MOVIES = "mov mp4 m4v avi mkv mxf mpg mpeg webm wmv"
MOVIE_EXTENSIONS = frozenset(f".{kind}" for kind in _MOVIES.split())

_CHUNK = 16
"""Frames that are decoded together when a movie is read backwards."""
_CACHE_BYTES = 256 << 20
"""Decoded frames kept for reading backwards (8 bits a channel)."""
_SKIP_AHEAD = 64
"""Up to this many frames are decoded and dropped rather than jumped over."""
_CONVERT = "Convert it to an image sequence (EXR, DPX, PNG or JPEG)."
_AGAIN = "Copy or render it again."
_TIME_TOLERANCE_MS = 0.5
_RATE_TOLERANCE = 2e-3
_COUNT_TOLERANCE = 2
"""Frames that a container may promise and not hold (edit lists, delayed pictures) without being truncated."""
_ERROR, _INFORMATION = 16, 32
"""FFmpeg's levels of what it says: the lower, the worse."""
_DAMAGE = re.compile(
    r"conceal|corrupt|damaged|overread|bad vlc|truncat|\bcrc\b|checksum|md5|error while decoding",
    re.IGNORECASE,
)
"""What damage sounds like where FFmpeg does not call it an error."""
_HARMLESS = re.compile(
    r"mmco|co located|POCs? unavailable|deprecated|\bSEI\b|monoton|timestamp|\bdts\b|hardware|hwaccel",
    re.IGNORECASE,
)
"""Complaints about the order of frames, which stand in files that show as they should."""
_GAP = 1.5
"""Of the usual time between frames: more is another rate, or a missing frame, where one is promised."""

ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MovieIndex:
    """The frames of a movie, found by decoding it once.

    Attributes:
        times: presentation time of every frame, in milliseconds.
        width, height: pixels.
        fps: frames per second, or None where the file does not state it.
        pixel_aspect: width over height of one pixel.
    """

    times: tuple[float, ...]
    width: int
    height: int
    fps: float | None
    pixel_aspect: float

    @property
    def count(self) -> int:
        """How many frames the movie holds."""
        return len(self.times)

    @property
    def is_even(self) -> bool:
        """Whether the frames come at a constant rate."""
        steps = [after - before for before, after in pairwise(self.times)]
        usual = median(steps) if steps else 0.0
        return all(usual / _GAP < step < usual * _GAP for step in steps)


def is_movie(path: str | Path) -> bool:
    """Whether a file name is that of a movie."""
    return Path(path).suffix.lower() in MOVIE_EXTENSIONS


def index_movie(path: Path) -> MovieIndex:
    """Decode a movie and index its frames. The result is kept until the file changes.

    Raises:
        PlateError: the file cannot be opened, holds no frames, or holds fewer frames than it states.
    """
    try:
        signs = signs_of(path)
    except OSError as error:
        raise PlateError(f"The movie cannot be opened ({error.strerror}).", path=path) from error
    index = known_index(path, signs)
    if index is None:
        index = _index_movie(path)
        remember_index(path, signs, index)
    return index


def signs_of(path: Path) -> tuple[int, ...]:
    """What changes with the file: its size, its times and its inode. OSError where there is none."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def known_index(path: Path, signs: tuple[int, ...]) -> MovieIndex | None:
    """The index of a movie with these signs, if this process has it."""
    with _indexes_lock:
        return _indexes.get((path, signs))


def remember_index(path: Path, signs: tuple[int, ...], index: MovieIndex) -> None:
    """Keep the index of a movie with these signs for `index_movie`."""
    with _indexes_lock:
        _indexes[path, signs] = index
        _indexes.move_to_end((path, signs))
        while len(_indexes) > _INDEXES_KEPT:
            _indexes.popitem(last=False)


_INDEXES_KEPT = 16
_indexes: OrderedDict[tuple[Path, tuple[int, ...]], MovieIndex] = OrderedDict()
_indexes_lock = threading.Lock()


def _index_movie(path: Path) -> MovieIndex:
    walked = _walked(path, threads=0)
    times = tuple(float(time) for time in walked["times"])
    if not times:
        raise PlateError("The movie holds no frames that can be decoded.", path=path, hint=_CONVERT)
    _check_whole(path, walked, times)
    aspect_x, aspect_y = walked["aspect"]
    return MovieIndex(
        times=times,
        width=int(walked["width"]),
        height=int(walked["height"]),
        fps=walked["fps"] if walked["fps"] > 0 else None,
        pixel_aspect=aspect_x / aspect_y if aspect_x > 0 and aspect_y > 0 else 1.0,
    )


def _check_whole(path: Path, walked: Mapping[str, Any], times: Sequence[float]) -> None:
    """PlateError where the movie is not all that it was: frames are lost, or the decoder complains."""
    promised = int(walked["promised"])
    if promised - len(times) > max(_COUNT_TOLERANCE, promised // 100):
        raise PlateError(
            f"The movie states {promised} frames but holds {len(times)}: it is truncated or damaged.",
            path=path,
            hint=f"{_AGAIN} If it was cut without being encoded anew, encode it anew.",
        )
    if any(is_damage(level, text) for _, level, text in walked["complaints"]):
        # Several threads decode ahead of the returned frame; with one thread the damaged frame is known.
        alone = _walked(path, threads=1).get("complaints", [])
        frame, _, text = next(one for one in (*alone, *walked["complaints"]) if is_damage(one[1], one[2]))
        raise PlateError(
            f"Frame {int(frame) + 1} of the movie is damaged (the decoder says: {_plain(text)}).",
            path=path,
            hint=_AGAIN,
        )
    lost = _lost_frame(times) if promised > len(times) else None
    if lost is not None:
        raise PlateError(
            f"The movie states {promised} frames but holds {len(times)}: frame {lost} is missing.",
            path=path,
            hint=_AGAIN,
        )


def _lost_frame(times: Sequence[float]) -> int | None:
    """The number, from 1, of the first frame that the times (ms) of the others leave room for."""
    steps = [after - before for before, after in pairwise(times)]
    usual = median(steps) if steps else 0.0
    return next((number for number, step in enumerate(steps, start=2) if step > _GAP * usual > 0), None)


def _walked(path: Path, threads: int) -> dict[str, Any]:
    """The result of `movie_walk.py` in a separate process. PlateError where the movie cannot be opened."""
    program = Path(__file__).with_name("movie_walk.py")
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(path.absolute()), str(threads)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        found = {}
    if speaks_of_memory(f"{found.get('failed', '')} {done.stderr.decode(errors='replace')}"):
        with memory_errors(path):
            raise MemoryError
    if not found.get("opened"):
        raise _cannot_open(path)
    return found


def is_damage(level: int, line: str) -> bool:
    """Whether a message of the decoder means that a picture differs from the encoded one.

    >>> is_damage(16, "slice CRC mismatch AC!at 458"), is_damage(16, "mmco: unref short failure")
    (True, False)
    >>> is_damage(32, "concealing 183 DC errors in B frame"), is_damage(32, "Reinit context")
    (True, False)
    """
    if _HARMLESS.search(line) is not None or level > _INFORMATION:
        return False
    return level <= _ERROR or _DAMAGE.search(line) is not None


def _plain(line: str) -> str:
    return re.sub(r"^\[[^]]*\] *", "", line).rstrip(". ")


def rational_rate(fps: float) -> tuple[int, int]:
    """Frames per second as a fraction, as EXR stores them; NTSC's rates exactly.

    >>> rational_rate(23.976), rational_rate(25.0), rational_rate(7.3)
    ((24000, 1001), (25, 1), (73, 10))
    """
    whole = round(fps * 1.001)
    if whole % 6 == 0 and abs(whole / 1.001 - fps) < _RATE_TOLERANCE:
        return whole * 1000, 1001
    exact = Fraction(fps).limit_denominator(1000)
    return exact.numerator, exact.denominator


class MovieReader:
    """Reads frames of one movie, forwards or backwards, and checks where each jump landed.

    Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = index_movie(path)
        self._lock = threading.Lock()
        self._capture: cv2.VideoCapture | None = None
        self._next = 0  # the number of the frame that the decoder returns next
        self._recent: OrderedDict[int, ByteArray] = OrderedDict()

    def read(self, number: int) -> ByteArray:
        """Frame `number`, counted from 0, as uint8 (height, width, 3) in R, G, B.

        Raises:
            PlateError: the frame cannot be decoded.
        """
        if not 0 <= number < self.index.count:
            raise PlateError(f"The movie has {self.index.count} frames, no number {number}.", path=self.path)
        with self._lock:
            if number not in self._recent:
                self._decode(number)
            self._recent.move_to_end(number)
            return self._recent[number]

    def close(self) -> None:
        """Close the file and forget the kept frames."""
        with self._lock:
            self._release()
            self._recent.clear()

    def _decode(self, number: int) -> None:
        if self._capture is not None and 0 <= number - self._next <= _SKIP_AHEAD:
            if self._walk(self._next, number, keep_from=number):
                return
        else:
            first = max(0, number - _CHUNK + 1)
            self._jump(first)
            if self._walk(first, number, keep_from=first):
                return
        self._release()  # the jump landed elsewhere: decode from the start, which is exact
        self._jump(0)
        if not self._walk(0, number, keep_from=number):
            raise PlateError(f"Frame {number + 1} of the movie cannot be decoded.", path=self.path)

    def _jump(self, number: int) -> None:
        if self._capture is None:
            self._capture = self._opened()
            self._next = 0
        if number != self._next:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            self._next = number

    def _opened(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture.release()
            raise PlateError(
                "The movie cannot be opened any more: it has changed, or the memory of the machine does not "
                "suffice.",
                path=self.path,
                hint="Look at the file, close other programs or raise the limit (ulimit -v), and run again.",
            )
        return capture

    def _walk(self, first: int, last: int, *, keep_from: int) -> bool:
        """Decode frames `first` to `last`; False when one is not the frame of the index."""
        assert self._capture is not None
        for number in range(first, last + 1):
            if not self._capture.grab():
                return False
            self._next = number + 1
            if abs(self._capture.get(cv2.CAP_PROP_POS_MSEC) - self.index.times[number]) > _TIME_TOLERANCE_MS:
                return False
            if number >= keep_from:
                decoded, picture = self._capture.retrieve()
                if not decoded:
                    return False
                self._keep(number, np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8))
        return True

    def _keep(self, number: int, picture: ByteArray) -> None:
        self._recent[number] = picture
        self._recent.move_to_end(number)
        most = max(1, _CACHE_BYTES // picture.nbytes)
        while len(self._recent) > most:
            self._recent.popitem(last=False)

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _cannot_open(path: Path) -> PlateError:
    return PlateError(
        "The movie cannot be opened: it is damaged, or of a kind that OpenCV's FFmpeg cannot decode.",
        path=path,
        hint=_CONVERT,
    )
