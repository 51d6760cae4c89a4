"""The query features of the next frame, computed beside the network's other work.

Of a frame's time the query takes a good third, and it depends on the picture alone. On a CPU it is computed
in a separate thread, and the processors are divided between both. Two calls side by side with half of the
processors each take less time than one after the other with all: threads of one call wait for each other at
every layer. A graphics card gets its work in one queue: there the next query is put behind the results of
this frame, so that the card has work while they are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from model.inference.fast_network import Query
from model.inference.threads import use_threads


class QueriesAhead:
    """Computes queries, the next one ahead of time. Use it in a `with` statement, in one thread.

    Args:
        compute: the query of a frame; called in this thread or another.
    """

    def __init__(self, compute: Callable[[int], Query]) -> None:
        self._compute = compute
        self._coming: tuple[int, Future[Query]] | None = None
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> QueriesAhead:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool, self._coming = None, None
            use_threads(self._threads)

    def begin(self, frame: int) -> None:
        """Begin with a frame of the CPU's that will be asked for next. Its errors come out of `take`. Nothing
        where there is one processor."""
        if self._threads < 2 or self._coming is not None:
            return
        if self._pool is None:
            ahead = self._threads // 2
            self._pool = ThreadPoolExecutor(
                1, thread_name_prefix="stm-query", initializer=use_threads, initargs=(ahead,)
            )
            use_threads(self._threads - ahead)
        self._coming = frame, self._pool.submit(self._compute, frame)

    def begin_here(self, frame: int) -> None:
        """Begin with a frame of a graphics card's in this thread, which does not wait for the card. The
        errors come out of `take`."""
        coming: Future[Query] = Future()
        try:
            coming.set_result(self._compute(frame))
        except BaseException as error:
            coming.set_exception(error)
        self._coming = frame, coming

    def take(self, frame: int) -> Query:
        """The query of a frame. What was begun for another one is forgotten."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == frame:
            return coming[1].result()
        return self._compute(frame)
