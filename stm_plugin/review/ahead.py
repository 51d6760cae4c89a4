"""Small pictures made ahead: a thread makes them in order from the frame that is looked at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from stm_plugin.errors import StmError

_NICE: Final = 10
_BUSY_SECONDS: Final = 0.5


class MadeAhead:
    """Makes the small picture of every frame, the nearest to the frame that is looked at first.

    The thread starts with the first `look_at`. On Linux it has a low priority.

    Args:
        frames: returns all frames, ascending.
        make: makes a frame's picture and keeps it. A frame that raises an StmError is left out.
        is_busy: whether the machine is needed for something else; nothing is made meanwhile.
    """

    def __init__(
        self, frames: Callable[[], Sequence[int]], make: Callable[[int], object], is_busy: Callable[[], bool]
    ) -> None:
        self._frames, self._make, self._is_busy = frames, make, is_busy
        self._frame: int | None = None
        self._done: set[int] = set()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pictures ahead", daemon=True)
        self._mutex = threading.Lock()

    def look_at(self, frame: int) -> None:
        """State which frame is looked at."""
        with self._mutex:
            self._frame = frame
            if not self._thread.is_alive() and not self._ended.is_set():
                self._thread.start()
        self._wake.set()

    @property
    def left(self) -> int:
        """How many frames have not been made or left out."""
        return len(set(self._frames()) - self._done)

    def close(self) -> None:
        """Stop after the current frame."""
        with self._mutex:
            self._ended.set()
            started = self._thread.is_alive()
        self._wake.set()
        if started:
            self._thread.join()

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            with suppress(OSError):  # of this thread on Linux; elsewhere of no thread, which is an error
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._ended.is_set():
            if self._is_busy():
                self._ended.wait(_BUSY_SECONDS)
                continue
            self._wake.clear()
            frame = self._next()
            if frame is None:
                self._wake.wait()
                continue
            with suppress(StmError):  # the page states it when it asks for the frame
                self._make(frame)
            self._done.add(frame)

    def _next(self) -> int | None:
        centre = self._frame or 0
        missing = set(self._frames()) - self._done
        return min(missing, key=lambda one: (abs(one - centre), -one), default=None)
