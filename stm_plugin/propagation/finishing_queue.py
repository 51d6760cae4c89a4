"""Finishing and writing beside the network: frames are submitted, and are finished in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from stm_plugin.errors import PlateError, StmError
from stm_plugin.propagation.workers import Workers, begin_worker

ONE = Workers()
T = TypeVar("T")


class FinishingQueue(Generic[T]):
    """Does the work on frames in separate threads, which start in the order of the frames.

    `then` is called in the thread that calls `submit` and `finish`, in the order of the frames. The first
    error is raised by the next call of these, and no frame after it is worked on.

    Args:
        work: what to do with a frame, in one of the threads.
        then: is told of each frame whose work is done, and what the work gave.
        workers: how many threads (`finishers`), and how many frames may wait.
    """

    def __init__(
        self, work: Callable[[int], T], then: Callable[[int, T], None], workers: Workers = ONE
    ) -> None:
        self._work, self._then, self._most = work, then, workers.frames_waiting
        self._pool = ThreadPoolExecutor(
            workers.finishers, thread_name_prefix="stm-finish", initializer=begin_worker
        )
        self._waiting: deque[tuple[int, Future[T]]] = deque()

    def submit(self, frame: int) -> None:
        """Take a frame; waits while there are too many. Raises the error of the work on an earlier frame."""
        self._waiting.append((frame, self._pool.submit(self._work, frame)))
        while len(self._waiting) > self._most or (self._waiting and self._waiting[0][1].done()):
            self._collect()

    def finish(self) -> None:
        """Wait for all frames. Raises the first error of the work on them."""
        while self._waiting:
            self._collect()

    def close(self) -> None:
        """End the threads. Frames that were not started are left out; finished ones are reported."""
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
        if isinstance(error, PlateError):  # frames before the missing one are computed: they get their mattes
            with suppress(StmError):
                self.finish()
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
