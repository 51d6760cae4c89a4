"""Storing results and features beside the network: compressing, checksums and the disk take no time of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from stm_plugin.propagation.workers import begin_worker


class Storing:
    """Does work on files in separate threads, a bounded number of pieces at a time. Use it in a `with`
    statement: at its end all pieces are done. What a killed process had not stored is computed again.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int = 1) -> None:
        self.most = 2 * threads
        """Pieces that wait or are worked on, at most."""
        self._room = threading.BoundedSemaphore(self.most)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stm-store", initializer=begin_worker)

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Take a piece of work; waits while there are too many. Its error is in the result."""
        self._room.acquire()
        try:
            future = self._pool.submit(work)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def __enter__(self) -> Storing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
