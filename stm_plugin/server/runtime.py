"""The runtime of a user's engine: folder, lock, endpoint file, listening socket, parent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import lock_descriptor

from stm_plugin.errors import StmError
from stm_plugin.protocol import VERSION

Transport = Literal["unix", "tcp"]

LOCK_NAME = "engine.lock"
ENDPOINT_NAME = "endpoint.json"
SOCKET_NAME = "engine.sock"
LOG_NAME = "engine.log"
PRODUCT = "stm-for-nuke"
PRODUCT_ON_WINDOWS = "STM for Nuke"

_SECRET_BYTES = 32
_BACKLOG = 64
_SHARED_MEMORY = Path("/dev/shm")


class EngineRunningError(StmError):
    """Another engine of this user has the lock."""

    exit_code = 0


class RuntimeFolderError(StmError):
    """The runtime folder cannot be used safely."""


def runtime_folder() -> Path:
    """The user's runtime folder by PROTOCOL.md section 1; it may not exist yet."""
    given = os.environ.get("STM_RUNTIME_DIR")
    if given:
        if not os.path.isabs(given):
            raise RuntimeFolderError("STM_RUNTIME_DIR must be an absolute path.", path=given)
        return Path(given)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(local) / PRODUCT_ON_WINDOWS / "run"
    uid = os.geteuid()
    session = Path(f"/run/user/{uid}")
    if sys.platform == "linux" and session.is_dir() and session.stat().st_uid == uid:
        return session / PRODUCT
    return Path(f"/tmp/{PRODUCT}-{uid}")


def map_folder(runtime: Path) -> Path:
    """The folder for exchanging pixels: in shared memory if there is any, else inside `runtime`.

    Engines with separate runtime folders (`STM_RUNTIME_DIR`) have separate map folders.
    """
    if sys.platform == "linux" and _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK):
        if os.environ.get("STM_RUNTIME_DIR"):
            private = runtime.resolve().stat()
            return _SHARED_MEMORY / f"{PRODUCT}-{os.geteuid()}-{private.st_dev:x}-{private.st_ino:x}"
        return _SHARED_MEMORY / f"{PRODUCT}-{os.geteuid()}"
    return runtime / "map"


def make_private_folder(folder: Path) -> None:
    """Make a private folder of the user, or check an existing one.

    Raises:
        RuntimeFolderError: it is a link, another user's, or open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise RuntimeFolderError(f"The folder cannot be made: {error.strerror}.", path=folder) from error
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise RuntimeFolderError("This is not a folder.", path=folder)
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            raise RuntimeFolderError(
                "The folder belongs to another user.",
                path=folder,
                hint="Set STM_RUNTIME_DIR to one of your own.",
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise RuntimeFolderError(
                "The folder is open to other users.", path=folder, hint="Run chmod 700 on it, or remove it."
            )


@contextlib.contextmanager
def engine_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the user's only engine.

    Raises:
        EngineRunningError: another process holds it.
        RuntimeFolderError: the folder's file system has no locks.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(folder / LOCK_NAME, flags, 0o600), "r+b", buffering=0) as file:
        try:
            is_ours = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise RuntimeFolderError(
                f"The folder cannot be locked: {error.strerror or error}.",
                path=folder,
                hint="Set STM_RUNTIME_DIR to a folder on a file system that has locks.",
            ) from error
        if not is_ours:
            raise EngineRunningError("An engine of this user is running already.", path=folder)
        yield


@dataclass(frozen=True)
class Endpoint:
    """How a client reaches the engine, as `endpoint.json` says it."""

    transport: Transport
    path: str
    port: int
    token: str
    answer: str
    pid: int
    engine: str
    configuration: str = ""
    """`STM_CONFIG` as the engine has it: a client of another show does not use this engine."""

    @classmethod
    def new(cls, transport: Transport, path: str, port: int, engine: str) -> Endpoint:
        """An endpoint of this process with fresh secrets."""
        return cls(
            transport,
            path,
            port,
            secrets.token_hex(_SECRET_BYTES),
            secrets.token_hex(_SECRET_BYTES),
            os.getpid(),
            engine,
            os.environ.get("STM_CONFIG", ""),
        )

    def to_json(self) -> dict[str, object]:
        """The content of the file."""
        return {
            "protocol": list(VERSION),
            "transport": self.transport,
            "path": self.path,
            "port": self.port,
            "token": self.token,
            "answer": self.answer,
            "pid": self.pid,
            "engine": self.engine,
            "configuration": self.configuration,
        }

    def publish(self, folder: Path) -> None:
        """Write the file atomically, readable by the user only."""
        beside = folder / f"{ENDPOINT_NAME}.{self.pid}"
        beside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(beside, flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(self.to_json(), file)
        os.replace(beside, folder / ENDPOINT_NAME)

    def is_published(self, folder: Path) -> bool:
        """Whether the file still exists and names this engine."""
        try:
            found = json.loads((folder / ENDPOINT_NAME).read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("token") == self.token


def default_transport() -> Transport:
    """`unix` where available, unless `STM_TRANSPORT` is `tcp`."""
    asked = os.environ.get("STM_TRANSPORT")
    if asked not in (None, "", "unix", "tcp"):
        raise RuntimeFolderError(f"STM_TRANSPORT cannot be {asked!r}.", hint="Use unix or tcp.")
    return "tcp" if sys.platform == "win32" or asked == "tcp" else "unix"


def listen(folder: Path, transport: Transport) -> socket.socket:
    """A listening socket for this user. A stale socket file is removed: the caller holds the lock."""
    if transport == "tcp":
        listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    else:
        path = folder / SOCKET_NAME
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
        except OSError as error:
            listener.close()
            raise RuntimeFolderError(
                f"The engine cannot listen: {error}.",
                path=path,
                hint="Set STM_RUNTIME_DIR to a shorter path.",
            ) from error
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def peer_is_user(connection: socket.socket) -> bool:
    """Whether a unix socket's peer runs as this user, as far as the system says."""
    if connection.family != getattr(socket, "AF_UNIX", None):
        return True
    if hasattr(socket, "SO_PEERCRED"):  # Linux: pid, uid, gid
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return bool(struct.unpack("3i", credentials)[1] == os.geteuid())
    if sys.platform == "darwin":  # struct xucred: version, uid, ...
        credentials = connection.getsockopt(0, 0x001, 76)
        return bool(struct.unpack_from("II", credentials)[1] == os.geteuid())
    return True


class Parent:
    """The process with which the engine ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._is_direct = hasattr(os, "getppid") and os.getppid() == pid
        self._started = _start_time(pid)

    def is_alive(self) -> bool:
        """Whether it still runs. A new process with the same number does not count."""
        if self._is_direct and sys.platform != "win32":
            return os.getppid() == self.pid
        if sys.platform == "win32":
            return _windows_process_is_alive(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return _start_time(self.pid) == self._started


def _start_time(pid: int) -> str | None:
    """When a process began, where the system says so in /proc; None elsewhere or once it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started = after_name[0], after_name[19]
    return None if state in "ZX" else started


def _windows_process_is_alive(pid: int) -> bool:
    if sys.platform != "win32":
        raise AssertionError("asked on another system")
    import ctypes

    synchronize, wait_timeout = 0x00100000, 0x102
    kernel = ctypes.windll.kernel32
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:
        return False
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == wait_timeout)
    finally:
        kernel.CloseHandle(handle)


def keep_fresh(folder: Path) -> None:
    """Touch the files of the folder, so that cleaners of temporary folders do not delete them."""
    now = time.time()
    for name in (LOCK_NAME, ENDPOINT_NAME, SOCKET_NAME, ""):
        with contextlib.suppress(OSError):
            os.utime(folder / name, (now, now))
