"""One writer per shot: a lock between processes. It is freed when its holder ends, and names the holder.

The lock itself is filelock's `lock_descriptor`: `flock`, or `LockFileEx` of byte 0 on Windows. Its class
`FileLock` is not used. It does not name its holder, and where `flock` is missing it uses a lock that
outlives its holder.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor, unlock_descriptor

from stm_plugin.errors import SettingsError, StoreBusyError, StoreError
from stm_plugin.files.whole import store_error

_POLL_SECONDS = 0.1
_NOTE_AT = 1
"""Offset of the holder's name: after byte 0, which Windows does not let others read while it is locked."""
_NOTE_BYTES = 4096


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
    """The lock of one store. It is re-entrant in one thread; other threads wait like other processes.

    The operating system frees it when the holder ends for any reason, so a lock is never stale.

    Args:
        path: the file LOCK. It is never deleted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.RLock()
        self._depth = 0
        self._descriptor = -1

    def acquire(self, wait: float | None = 0.0, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take the lock.

        Args:
            wait: seconds to wait for another holder; None waits without limit.
            cancelled: stops waiting when it returns True.

        Raises:
            SettingsError: `wait` is no time.
            StoreBusyError: another process holds it; the text names the process.
            StoreError: the folder cannot be written, or its file system has no locks.
        """
        check_wait(wait)
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
        """Release the lock; the last of several nested releases frees it."""
        self._depth -= 1
        if self._depth == 0:
            descriptor, self._descriptor = self._descriptor, -1
            unlock_descriptor(descriptor)
            os.close(descriptor)
        self._thread.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._depth > 0

    def holder(self) -> Holder | None:
        """The last holder of the lock, if it can be read."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(_NOTE_AT)
                note = file.read(_NOTE_BYTES)
            return Holder(**json.loads(note))
        except (OSError, ValueError, TypeError):
            return None

    def held_by_another(self) -> Holder | None:
        """The present holder of the lock, unless it is this object; for display only."""
        if self._depth:
            return None
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except OSError:
            return None
        try:
            if self._lock(descriptor):
                unlock_descriptor(descriptor)
                return None
            return self.holder() or Holder(0, "an unknown host", "an unknown user", "an unknown time")
        except StoreError:  # a file system without locks: none can be held
            return None
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
        descriptor = -1
        try:
            descriptor = self._open()
            is_ours = self._lock(descriptor)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            self._thread.release()
            raise
        if not is_ours:
            os.close(descriptor)
            self._thread.release()
            return False
        with suppress(OSError):  # a full disk: the lock is held, without the holder's name
            _leave_note(descriptor)
        self._descriptor, self._depth = descriptor, 1
        return True

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise store_error(error, self._path) from error

    def _lock(self, descriptor: int) -> bool:
        try:
            return lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            raise StoreError(
                f"The folder cannot be locked: {error.strerror or error}.",
                path=self._path.parent,
                hint="Its file system has no locks. Put the shot on another one.",
            ) from error


def check_wait(wait: float | None) -> None:
    """Check a time to wait, in seconds; None waits without limit. SettingsError for an invalid time."""
    if wait is not None and not 0 <= wait < math.inf:
        raise SettingsError(
            f"A wait of {wait:g} seconds is not possible.", hint="Give a number from 0 up: --wait 60."
        )


def _leave_note(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b" " * _NOTE_AT + json.dumps(asdict(_myself())).encode())


def _myself() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        user = f"user {os.getuid()}" if hasattr(os, "getuid") else "an unnamed user"
    return Holder(os.getpid(), socket.gethostname(), user, datetime.now().isoformat(" ", "seconds"))
