"""How the C library hands out memory, tuned for inference on the CPU.

A feature map of a large picture is tens of megabytes. glibc gives each such block back to the system as soon
as it is freed and asks for fresh, zeroed pages for the next: up to half the time of a light network goes into
page faults. Kept blocks are used again instead. And a processor that looks up where each 4 KB lie waits for
that as long as for the numbers themselves, so memory is asked for in pages of 2 MB where the kernel has them.
With another C library nothing is changed.
"""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache

# From glibc's malloc.h (mallopt(3)).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEEP_UP_TO = 2**31 - 1
"""Bytes: the largest that mallopt takes. Freed blocks below it stay with the process."""

_MADV_HUGEPAGE = 14  # from <sys/mman.h>, madvise(2)
_HUGE_PAGE = 2**21
_IN_HUGE_PAGES = 2**30
"""Bytes of the heap, from where it ends, that the kernel is asked to give in large pages. Addresses alone:
memory is taken when it is written."""


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Makes the process keep freed memory for later use, in all threads; the first call does it.

    One arena serves all threads, because only the first one can hold large blocks. Best called before threads
    begin.

    Returns:
        Whether the C library has it.
    """
    glibc = _glibc()
    if glibc is None:
        return False
    options = ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, _KEEP_UP_TO), (_M_MMAP_THRESHOLD, _KEEP_UP_TO))
    taken = [glibc.mallopt(*option) for option in options]
    _prefer_huge_pages(glibc)
    return all(one == 1 for one in taken)


def _prefer_huge_pages(glibc: ctypes.CDLL) -> None:
    """Lets the heap grow, tells the kernel that its new part is better given in large pages, and leaves it to
    the blocks to come. Where anything is refused, pages stay small."""
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.free.restype, glibc.free.argtypes = None, [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = glibc.malloc(_IN_HUGE_PAGES)
    if block:
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        glibc.madvise(first, (block + _IN_HUGE_PAGES - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
        glibc.free(block)


def release_freed_memory() -> bool:
    """Gives freed memory back to the system, for a process that will idle; later work asks for it again.

    Takes some milliseconds per gigabyte, and the next work is slower once.

    Returns:
        Whether any was given back.
    """
    glibc = _glibc()
    if glibc is None:
        return False
    released = bool(glibc.malloc_trim(0))
    if keep_freed_memory.cache_info().currsize:
        _prefer_huge_pages(glibc)  # the heap's end, and what was said of it, went back too
    return released
