"""Finishing and writing beside the network: frames are handed over, and come back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

FRAMES_WAITING = 2
"""Frames that wait for their matte at most, besides the one at work: what they hold in memory is bounded."""


class FinishingQueue(Generic[T]):
    """Does the work on frames in a thread of its own, one after the other.

    What follows on it (`then`) happens in the thread that calls `hand_over` and `finish`, in the order of the
    frames, and so do errors: the first one comes out of the next call, and nothing after it is done.

    Args:
        work: what to do with a frame, in the other thread.
        then: is told of each frame whose work is done, and what the work gave.
    """

    def __init__(self, work: Callable[[int], T], then: Callable[[int, T], None]) -> None:
        self._work, self._then = work, then
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stm-deliver")
        self._waiting: deque[tuple[int, Future[T]]] = deque()

    def submit(self, frame: int) -> None:
        """Take a frame; waits while there are too many. Raises what the work on an earlier frame raised."""
        self._waiting.append((frame, self._pool.submit(self._work, frame)))
        while len(self._waiting) > FRAMES_WAITING or (self._waiting and self._waiting[0][1].done()):
            self._collect()

    def finish(self) -> None:
        """Wait for all frames. Raises what the work on one of them raised."""
        while self._waiting:
            self._collect()

    def close(self) -> None:
        """End the thread. Frames that are not begun are left; those that are done are told of."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        while self._waiting:
            frame, future = self._waiting.popleft()
            if future.cancelled() or future.exception() is not None:
                self._waiting.clear()
            else:
                self._then(frame, future.result())

    def __enter__(self) -> FinishingQueue[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self) -> None:
        frame, future = self._waiting.popleft()
        try:
            result = future.result()
        except BaseException:
            for _, later in self._waiting:
                later.cancel()
            self._waiting.clear()
            raise
        self._then(frame, result)
