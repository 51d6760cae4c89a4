"""How many threads read frames before the network, and finish and store them behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass

MOST_WORKERS = 16
"""Of each kind: more would hold more frames than they bring."""


@dataclass(frozen=True)
class Workers:
    """Threads of each kind; what they do gives the same bytes, however many they are.

    Attributes:
        readers: decode, hash, convert and narrow frames that the network will look at.
        finishers: fuse, finish and write frames whose results are complete.
    """

    readers: int = 1
    finishers: int = 1

    @property
    def storers(self) -> int:
        """Threads that store what the network found: one for four finishers keeps up with them."""
        return max(1, self.finishers // 4)

    @property
    def frames_waiting(self) -> int:
        """Frames that are at a finisher or wait for one, at most."""
        return self.finishers + 1

    @property
    def foregrounds(self) -> int:
        """Frames whose foreground is solved at once, at most: it takes more memory than all other finishing.
        Half of the finishers, as the others have work beside it."""
        return max(1, self.finishers // 2)

    @property
    def frames_held(self) -> int:
        """Plate frames in memory: read ahead, at the network, with finishers, and those that wait."""
        return self.readers + 2 + self.frames_waiting


def begin_worker() -> None:
    """To be called first in a thread of a pool: torch computes in that thread alone, as there are as many
    threads as processors."""
    from model.inference.threads import use_threads  # with torch, which a plan does not need

    use_threads(1)


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_workers() -> int:
    """Threads of each kind that this machine has processors for."""
    return min(MOST_WORKERS, processors())
