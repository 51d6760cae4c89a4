"""How many processors torch uses for what one thread computes.

`torch.set_num_threads` changes the thread that calls it, and also what threads begin with that start later.
A program in which several threads compute wants the first alone.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_changing = threading.Lock()


def use_threads(count: int) -> None:
    """Let torch use so many threads for what this one computes. Threads that start later begin as before.

    Nothing changes where the system has no memory for one more thread: results are the same with any number.
    """
    with _changing, ThreadPoolExecutor(1) as fresh:
        try:
            before = fresh.submit(torch.get_num_threads).result()
        except (RuntimeError, MemoryError):
            return
        torch.get_num_threads()  # else its first question would set the thread to what others begin with
        torch.set_num_threads(count)
        fresh.submit(torch.set_num_threads, before).result()
