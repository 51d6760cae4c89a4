"""Small pictures made ahead: threads make them in order from the frame that is looked at."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from stm_plugin.errors import StmError

MOST_THREADS: Final = 4
"""More do not help: a part of reading a file is done by one thread at a time."""
_BUSY_SECONDS: Final = 0.5


class MadeAhead:
    """Makes the small picture of every frame, the nearest to the frame that is looked at first.

    The threads start with the first `look_at`. Their priority is the usual one: who asks for a frame that is
    being made waits for them.

    Args:
        frames: returns all frames, ascending.
        make: makes a frame's picture and keeps it. A frame that raises an StmError is left out.
        is_busy: whether the machine is needed for something else; nothing is made meanwhile.
        threads: how many; one for each processor core if None, at most MOST_THREADS.
    """

    def __init__(
        self,
        frames: Callable[[], Sequence[int]],
        make: Callable[[int], object],
        is_busy: Callable[[], bool],
        threads: int | None = None,
    ) -> None:
        self._frames, self._make, self._is_busy = frames, make, is_busy
        self._frame: int | None = None
        self._begun: set[int] = set()
        self._done: set[int] = set()
        self._ended = False
        count = min(os.cpu_count() or 1, MOST_THREADS) if threads is None else threads
        self._threads = tuple(
            threading.Thread(target=self._run, name="pictures ahead", daemon=True) for _ in range(count)
        )
        self._changed = threading.Condition()

    def look_at(self, frame: int) -> None:
        """State which frame is looked at."""
        with self._changed:
            is_first, self._frame = self._frame is None, frame
            if is_first and not self._ended:
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()

    @property
    def left(self) -> int:
        """How many frames have not been made or left out."""
        return len(set(self._frames()) - self._done)

    def close(self) -> None:
        """Stop after the current frames."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        while (frame := self._wait_for_next()) is not None:
            with suppress(StmError):  # the page states it when it asks for the frame
                self._make(frame)
            with self._changed:
                self._done.add(frame)

    def _wait_for_next(self) -> int | None:
        """The next frame to make, when there is one; None at the end."""
        with self._changed:
            while not self._ended:
                if self._is_busy():
                    self._changed.wait(_BUSY_SECONDS)
                    continue
                frame = self._next()
                if frame is not None:
                    self._begun.add(frame)
                    return frame
                self._changed.wait()
            return None

    def _next(self) -> int | None:
        centre = self._frame or 0
        missing = set(self._frames()) - self._begun
        return min(missing, key=lambda one: (abs(one - centre), -one), default=None)
