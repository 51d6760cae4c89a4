"""Keeps the resident memory of a run at its forecast.

Blocks that live for a moment leave gaps between those that live longer. The heap grows by these gaps, faster
or slower as threads meet. So the memory of a run is watched: where it reaches the forecast, freed memory is
returned to the system, gaps too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

from model.inference.allocator import release_freed_memory

_BEGIN_AT = 0.95
"""Share of the limit at which memory is returned: until the next call it grows by a few hundredths."""
_LEAST_GROWTH = 0.05
"""Share of the limit by which memory must have grown since it was last returned. Where the limit is too low,
this bounds the time that is lost."""


def resident_memory() -> int:
    """Bytes of this process in main memory."""
    return int(psutil.Process().memory_info().rss)


class ResidentLimit:
    """Returns freed memory to the system where a limit is near. Thread-safe.

    Args:
        limit: bytes.
        resident: the present resident memory, in bytes.
        release: returns freed memory to the system.
    """

    def __init__(
        self,
        limit: int,
        resident: Callable[[], int] = resident_memory,
        release: Callable[[], object] = release_freed_memory,
    ) -> None:
        self.limit = limit
        self._begin_at = int(limit * _BEGIN_AT)
        self._next = self._begin_at
        self._resident, self._release = resident, release
        self._mutex = threading.Lock()

    def hold(self) -> bool:
        """To be called after each frame's work; True where memory was returned."""
        if self._resident() < self._next or not self._mutex.acquire(blocking=False):
            return False
        try:
            self._release()
            self._next = max(self._begin_at, self._resident() + int(self.limit * _LEAST_GROWTH))
        finally:
            self._mutex.release()
        return True
