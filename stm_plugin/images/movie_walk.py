"""Decodes a movie in a separate process and reports the decoder's complaints.

OpenCV returns frames that FFmpeg repaired, without an error: FFmpeg only writes a line to the output of the
process. Here the output is a file. What the file gains while a frame is decoded belongs to that frame. FFmpeg
reports some repairs as mere information, so information is requested, too.

    python -I movie_walk.py MOVIE THREADS

prints one line of JSON. It imports nothing of the product.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from itertools import pairwise

for _name in ("OPENCV_FFMPEG_SKIP_LOG_CALLBACK", "OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_CAPTURE_OPTIONS"):
    os.environ.pop(_name, None)  # read when OpenCV is loaded: they would send complaints away
_INFORMATION, _ERROR = 32, 16  # FFmpeg's levels: the lower, the worse
os.environ |= {"OPENCV_FFMPEG_DEBUG": "1", "OPENCV_FFMPEG_LOGLEVEL": str(_INFORMATION)}

import cv2  # noqa: E402

_LEVEL = re.compile(r"\[OPENCV:FFMPEG:(\d+)\] ?")


def walk(path: str, threads: int) -> dict[str, object]:
    """Decode the movie.

    Returns:
        `opened`; and if so `promised`, `times` in milliseconds, `width`, `height`, `fps`, `aspect` (x, y),
        and `complaints`: what the decoder said, as [frame counted from 0, FFmpeg's level, text].
    """
    with tempfile.TemporaryFile() as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        if not capture.isOpened():
            return {"opened": False}
        times: list[float] = []
        marks = [0]
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            marks.append(_said(log.fileno()))
        marks.append(_said(log.fileno()))
        complaints: list[tuple[int, int, str]] = []
        for frame, (start, end) in enumerate(pairwise(marks)):
            if end > start:
                text = os.pread(log.fileno(), end - start, start).decode("utf-8", "replace")
                complaints += [(frame, level, line) for level, line in _lines(text)]
        return {
            "opened": True,
            "promised": int(capture.get(cv2.CAP_PROP_FRAME_COUNT)),
            "times": times,
            "width": int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            "height": int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            "fps": capture.get(cv2.CAP_PROP_FPS),
            "aspect": [capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)],
            "complaints": complaints,
        }


def _said(log: int) -> int:
    """How much FFmpeg has said so far: what the C library still holds back is written first."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
    return os.fstat(log).st_size


def _lines(text: str) -> list[tuple[int, str]]:
    """FFmpeg's lines with their levels; without a level a line of FFmpeg's own form is an error."""
    found: list[tuple[int, str]] = []
    level = _ERROR
    for line in text.splitlines():
        *_, last = (None, *_LEVEL.finditer(line))
        if last is not None:
            level = int(last[1])
            found.append((level, line[last.end() :]))
        elif re.match(r"\[\w.,]+ @ 0x", line):
            found.append((_ERROR, line))
    return found


if __name__ == "__main__":
    answer = os.dup(1)
    try:
        found = walk(sys.argv[1], int(sys.argv[2]))
    except (MemoryError, cv2.error) as error:  # reported as a text, as the log holds FFmpeg's lines
        found = {"opened": False, "failed": f"{type(error).__name__}: {error}"}
    os.write(answer, (json.dumps(found) + "\n").encode())
