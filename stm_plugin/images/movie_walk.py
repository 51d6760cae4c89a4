"""Decodes a movie in a separate process and reports the decoder's complaints.

OpenCV returns frames that FFmpeg repaired, without an error: FFmpeg only writes a line to standard error.
Here standard error is a file. What the file gains while a frame is decoded belongs to that frame.

    python -I movie_walk.py MOVIE THREADS

prints one line of JSON. It imports nothing of the product.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from itertools import pairwise

for _name in ("OPENCV_FFMPEG_LOGLEVEL", "OPENCV_FFMPEG_DEBUG", "OPENCV_LOG_LEVEL"):
    os.environ.pop(_name, None)  # OpenCV reads these when it is loaded: they hide or redirect the complaints

import cv2  # noqa: E402


def walk(path: str, threads: int) -> dict[str, object]:
    """Decode the movie.

    Returns:
        `opened`; and if so `promised`, `times` in milliseconds, `width`, `height`, `fps`, `aspect` (x, y),
        and `complaints`: the decoder's lines as [frame counted from 0, text].
    """
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        if not capture.isOpened():
            return {"opened": False}
        times: list[float] = []
        marks = [os.fstat(2).st_size]
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            marks.append(os.fstat(2).st_size)
        marks.append(os.fstat(2).st_size)
        complaints: list[tuple[int, str]] = []
        for frame, (start, end) in enumerate(pairwise(marks)):
            if end > start:
                text = os.pread(log.fileno(), end - start, start).decode("utf-8", "replace")
                complaints += [(frame, line) for line in text.splitlines()]
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


if __name__ == "__main__":
    found = walk(sys.argv[1], int(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
