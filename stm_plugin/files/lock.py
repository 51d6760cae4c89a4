"""One writer per shot: a lock between processes that ends with its holder and says who that is."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from stm_plugin.errors import StoreBusyError
from stm_plugin.files.whole import store_error

_POLL_SECONDS = 0.1
_LOCKED_BYTE = 1 << 30
"""Windows locks this byte, far beyond the text, so that others can read who holds the lock."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    pid: int
    host: str
    user: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


class StoreLock:
    """The lock of one store; re-entrant in one thread, and other threads of the process wait as processes do.

    The operating system frees it when the holder dies, however it dies: a lock is never stale.

    Args:
        path: the file LOCK. It stays; only its being locked counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.RLock()
        self._depth = 0
        self._descriptor = -1

    def acquire(self, wait: float | None = 0.0, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take the lock.

        Args:
            wait: seconds to wait for another holder; None waits for ever.
            cancelled: stops waiting when it gives True.

        Raises:
            StoreBusyError: it is held by another; the message says by whom.
            StoreError: the folder cannot be written.
        """
        end = None if wait is None else time.monotonic() + wait
        while not self._try():
            if cancelled() or (end is not None and time.monotonic() >= end):
                holder = self.holder()
                raise StoreBusyError(
                    f"The shot is held by {holder or 'another process'}.",
                    path=self._path.parent,
                    hint="Wait for it, or stop it; waiting is an option (--wait SECONDS).",
                )
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the lock back; the last of several nested releases frees it."""
        self._depth -= 1
        if self._depth == 0:
            descriptor, self._descriptor = self._descriptor, -1
            _unlock(descriptor)
            os.close(descriptor)
        self._thread.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._depth > 0

    def holder(self) -> Holder | None:
        """Who last took the lock, as far as it can be read."""
        try:
            return Holder(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def held_by_another(self) -> Holder | None:
        """Who holds the lock at this moment, if it is not this object; for showing only."""
        if self._depth:
            return None
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except OSError:
            return None
        try:
            if _lock(descriptor):
                _unlock(descriptor)
                return None
            return self.holder() or Holder(0, "an unknown host", "an unknown user", "an unknown time")
        finally:
            os.close(descriptor)

    def __enter__(self) -> StoreLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self) -> bool:
        if not self._thread.acquire(blocking=False):
            return False
        if self._depth:
            self._depth += 1
            return True
        try:
            descriptor = self._open()
        except BaseException:
            self._thread.release()
            raise
        if not _lock(descriptor):
            os.close(descriptor)
            self._thread.release()
            return False
        with suppress(OSError):  # a full disk: then it cannot say whose it is, and is ours all the same
            _leave_note(descriptor)
        self._descriptor, self._depth = descriptor, 1
        return True

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise store_error(error, self._path) from error


def _leave_note(descriptor: int) -> None:
    text = json.dumps(asdict(_myself())).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0) if hasattr(os, "pwrite") else os.write(descriptor, text)


def _myself() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = f"user {os.getuid()}" if hasattr(os, "getuid") else "an unnamed user"
    return Holder(os.getpid(), socket.gethostname(), user, datetime.now().isoformat(" ", "seconds"))


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
