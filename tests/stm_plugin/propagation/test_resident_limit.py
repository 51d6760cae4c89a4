"""A run's memory is held at its forecast, however its threads meet."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from stm_plugin.propagation.resident_limit import ResidentLimit

GAPS = """
import ctypes
from model.inference.allocator import keep_freed_memory
from stm_plugin.propagation.resident_limit import ResidentLimit, resident_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = resident_memory()
blocks = [libc.malloc(1 << 20) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[::2]:
    libc.free(block)
full = resident_memory() - before
held = ResidentLimit(resident_memory()).hold()
print(int(kept), full >> 20, int(held), (resident_memory() - before) >> 20)
"""


class Heap:
    """Memory that grows by gaps; releasing leaves what lives."""

    def __init__(self, live: int) -> None:
        self.live, self.resident, self.releases = live, live, 0

    def work(self, gaps: int) -> None:
        self.resident += gaps

    def release(self) -> None:
        self.releases += 1
        self.resident = self.live

    def limit(self, limit: int) -> ResidentLimit:
        return ResidentLimit(limit, lambda: self.resident, self.release)


@pytest.mark.parametrize("gaps", [3, 17, 40])
def test_memory_stays_below_the_forecast_at_any_speed_of_growth(gaps: int) -> None:
    heap = Heap(live=800)
    limit = heap.limit(1000)
    for _ in range(200):
        heap.work(gaps)
        assert heap.resident <= 1000
        limit.hold()
    assert heap.releases <= 200 * gaps / 100, "no more often than necessary"


def test_a_limit_that_is_too_low_costs_no_release_in_every_frame() -> None:
    heap = Heap(live=1200)
    limit = heap.limit(1000)
    for _ in range(100):
        heap.work(10)
        limit.hold()
    assert heap.releases <= 21


def test_threads_do_not_wait_for_each_other() -> None:
    heap = Heap(live=990)
    limit: ResidentLimit
    again: list[bool] = []

    def release() -> None:
        other = threading.Thread(target=lambda: again.append(limit.hold()))
        other.start()
        other.join(5)
        heap.release()

    limit = ResidentLimit(1000, lambda: heap.resident, release)
    assert limit.hold()
    assert again == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="the settings of glibc's allocator")
def test_gaps_of_the_heap_are_returned_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    kept, full, held, left = (int(one) for one in run.stdout.split())
    if not kept:
        pytest.skip("this C library has no such settings")
    assert full >= 190, "freed memory stays with the process"
    assert held
    assert left < 130, "half of the blocks live"
