"""Settings of the C library's allocator for inference on the CPU.

A feature map of a large picture has tens of megabytes. By default glibc returns such a block to the system as
soon as it is freed, and gets new, zeroed pages for the next one: a light network spends up to half its time
in page faults. So freed blocks are kept and used again. Looking up the address of each page of 4 KB takes as
long as reading its numbers, so pages of 2 MB are requested where the kernel has them. Other C libraries are
not changed.
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
"""Bytes after the end of the heap for which large pages are requested. Only addresses: memory is taken when
it is written."""


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Makes the process keep freed memory for later use, in all threads. Further calls do nothing.

    One arena serves all threads, because only the first arena can hold large blocks. Call it before threads
    start.

    Returns:
        Whether the C library has these settings.
    """
    glibc = _glibc()
    if glibc is None:
        return False
    options = ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, _KEEP_UP_TO), (_M_MMAP_THRESHOLD, _KEEP_UP_TO))
    taken = [glibc.mallopt(*option) for option in options]
    _prefer_huge_pages(glibc)
    return all(one == 1 for one in taken)


def _prefer_huge_pages(glibc: ctypes.CDLL) -> None:
    """Extends the heap and requests large pages for its new part, which later blocks use.

    Where the system refuses, pages stay small.
    """
    glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    glibc.free.restype, glibc.free.argtypes = None, [ctypes.c_void_p]
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = glibc.malloc(_IN_HUGE_PAGES)
    if block:
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        glibc.madvise(first, (block + _IN_HUGE_PAGES - first) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
        glibc.free(block)


def release_freed_memory() -> bool:
    """Returns freed memory to the system, for a process that will idle.

    It takes some milliseconds per gigabyte, and the next work is slower once.

    Returns:
        Whether any memory was returned.
    """
    glibc = _glibc()
    if glibc is None:
        return False
    released = bool(glibc.malloc_trim(0))
    if keep_freed_memory.cache_info().currsize:
        _prefer_huge_pages(glibc)  # the end of the heap was returned too, with its setting
    return released
