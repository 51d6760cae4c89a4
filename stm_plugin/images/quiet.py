"""What a library prints on standard output of its own accord, kept out of what the commands print."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_lock = threading.Lock()
_calling: list[int] = []
"""The threads inside `no_prints`."""


class _Sieve:
    """A standard output that drops what the threads of `_calling` write, and passes on all else."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in _calling else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def no_prints() -> Iterator[None]:
    """Drop what Python code of a library prints in this thread. Other threads print as before."""
    with _lock:
        _calling.append(threading.get_ident())
        if sys.stdout is not None and not isinstance(sys.stdout, _Sieve):
            sys.stdout = _Sieve(sys.stdout)
    try:
        yield
    finally:
        with _lock:
            _calling.remove(threading.get_ident())
            if not _calling and isinstance(sys.stdout, _Sieve):
                sys.stdout = sys.stdout.stream
