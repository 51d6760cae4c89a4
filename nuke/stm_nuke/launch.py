"""Finds the engine, or starts it (ofx_bridge/PROTOCOL.md, sections 1 and 9).

Standard library only, Python 3.9 or newer, no `nuke` module.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm_nuke.wire import ABORT_SECONDS, CALL_SECONDS, Aborted, AbortedError, EngineStartError

ENDPOINT_NAME = "endpoint.json"
LOG_NAME = "engine.log"
CONFIGURATION_VARIABLE = "STM_CONFIG"
PRODUCT = "stm-for-nuke"
PRODUCT_FOR_PEOPLE = "STM for Nuke"

START_SECONDS = 60.0
START_DELAYS = (0.0, 1.0, 4.0)
HEALTHY_SECONDS = 60.0

_MAX_ENDPOINT = 4096


def runtime_folder() -> Path:
    """The user's runtime folder (PROTOCOL.md section 1); it may not exist."""
    given = os.environ.get("STM_RUNTIME_DIR")
    if given:
        if not os.path.isabs(given):
            raise EngineStartError("STM_RUNTIME_DIR must be an absolute path.")
        return Path(given)
    if sys.platform == "win32":
        return _local_app_data() / PRODUCT_FOR_PEOPLE / "run"
    uid = os.geteuid()
    session = Path(f"/run/user/{uid}")
    if sys.platform == "linux" and session.is_dir() and session.stat().st_uid == uid:
        return session / PRODUCT
    return Path(f"/tmp/{PRODUCT}-{uid}")


def own_folder(base: Path, version: str | None) -> Path:
    """The runtime folder of an engine beside another one: of this version, with this show's configuration."""
    configuration = os.environ.get(CONFIGURATION_VARIABLE, "")
    told = hashlib.sha256(f"{version or ''}\n{configuration}".encode("utf-8", "surrogateescape"))
    return base.with_name(f"{base.name}-{told.hexdigest()[:8]}")


def check_private(folder: Path) -> None:
    """Raises EngineStartError if the folder is a link, another user's, or open to others."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EngineStartError(f"{folder} is not a folder. Remove it and try again.")
    if sys.platform != "win32" and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
        raise EngineStartError(
            f"{folder} is not private to you. Run chmod 700 on it, remove it, or set STM_RUNTIME_DIR."
        )


@dataclass(frozen=True)
class Endpoint:
    """How to reach a running engine."""

    transport: str
    path: str
    port: int
    token: str = field(repr=False)
    answer: str = field(repr=False)
    configuration: str | None = None

    @property
    def is_of_this_show(self) -> bool:
        """Whether the engine has the configuration that this process has; an older one does not say."""
        return self.configuration in (None, os.environ.get(CONFIGURATION_VARIABLE, ""))

    @classmethod
    def read(cls, folder: Path) -> Endpoint | None:
        """The endpoint of a running engine, or None.

        Raises:
            EngineStartError: the folder is not safe.
        """
        if not os.path.lexists(folder):
            return None
        check_private(folder)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            with os.fdopen(os.open(str(folder / ENDPOINT_NAME), flags), "rb") as file:
                values = json.loads(file.read(_MAX_ENDPOINT).decode("utf-8"))
            transport, path, port = str(values["transport"]), str(values["path"]), int(values["port"])
            configuration = values.get("configuration")
            known = None if configuration is None else str(configuration)
            return cls(transport, path, port, str(values["token"]), str(values["answer"]), known)
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Installation:
    """The engine's Python, from the installer's record."""

    python: str
    version: str | None = None
    root: str | None = None

    @classmethod
    def find(cls) -> Installation:
        """Search the places of PROTOCOL.md section 9, in their order.

        Raises:
            EngineStartError: it is in none of them.
        """
        python = os.environ.get("STM_ENGINE_PYTHON")
        if python:
            return cls(python, None, os.environ.get("STM_ENGINE_ROOT") or None)
        places = [Path(__file__).resolve().parents[2], default_prefix()]
        if os.environ.get("STM_PREFIX"):
            places.insert(0, Path(os.environ["STM_PREFIX"]))
        for place in places:
            found = cls._read(place / "engine.json")
            if found is not None:
                return found
        looked = " or ".join(str(one) for one in places)
        raise EngineStartError(
            f"The engine of {PRODUCT_FOR_PEOPLE} is not installed: there is no engine.json in {looked}. "
            "Run install.py."
        )

    @classmethod
    def _read(cls, path: Path) -> Installation | None:
        try:
            values = json.loads(path.read_text("utf-8"))
        except OSError:
            return None
        except ValueError as error:
            raise EngineStartError(f"{path} is damaged. Run install.py again.") from error
        if not isinstance(values, dict) or not isinstance(values.get("python"), str):
            raise EngineStartError(f"{path} names no Python. Run install.py again.")
        version, root = values.get("version"), values.get("root")
        return cls(values["python"], str(version) if version else None, str(root) if root else None)


def default_prefix() -> Path:
    """The installer's default folder."""
    if sys.platform == "win32":
        return _local_app_data() / PRODUCT_FOR_PEOPLE
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / PRODUCT_FOR_PEOPLE
    return Path.home() / ".local" / "share" / PRODUCT


def _local_app_data() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")


_UNWANTED = (
    "NUKE_PATH",
    "OFX_PLUGIN_PATH",
    "LD_PRELOAD",
    "DYLD_INSERT_LIBRARIES",
    "TCL_LIBRARY",
    "TK_LIBRARY",
)
_UNWANTED_PREFIXES = ("PYTHON", "QT_", "QML")
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_")


def scrubbed_environment(root: str | None = None) -> dict[str, str]:
    """The host's environment without variables that would disturb another Python.

    From library paths only entries in the host's own folder are removed; a studio's entries are kept.
    """
    host = host_folder()
    kept = {}
    for name, value in os.environ.items():
        upper = name.upper()
        if upper in _UNWANTED or upper.startswith(_UNWANTED_PREFIXES):
            continue
        if upper.startswith(_LIBRARY_PATHS):
            value = os.pathsep.join(one for one in value.split(os.pathsep) if one and not _is_in(one, host))
            if not value:
                continue
        kept[name] = value
    kept["PYTHONNOUSERSITE"] = "1"
    if root:
        kept["PYTHONPATH"] = root
    return kept


def host_folder() -> str:
    """The folder of the running program."""
    program = getattr(sys.modules.get("nuke"), "EXE_PATH", None) or sys.executable
    return os.path.dirname(os.path.realpath(program))


def _is_in(path: str, folder: str) -> bool:
    found = os.path.realpath(path)
    return found == folder or found.startswith(folder.rstrip(os.sep) + os.sep)


class Launcher:
    """Starts the engine, at most three times, with increasing delays."""

    def __init__(self, arguments: Sequence[str] = (), die_with_host: bool = True) -> None:
        self.arguments = list(arguments)
        self.die_with_host = die_with_host
        self._failures = 0
        self._started_at = -HEALTHY_SECONDS

    def connect(self, folder: Path, aborted: Aborted) -> socket.socket:
        """A connection to the running engine, started if there is none.

        Raises:
            EngineStartError: it does not start; AbortedError: `aborted` returned True.
        """
        reap()
        connection = try_to_connect(folder)
        if connection is not None:
            return connection
        installation = Installation.find()
        if time.monotonic() - self._started_at > HEALTHY_SECONDS:
            self._failures = 0
        while self._failures < len(START_DELAYS):
            _sleep(START_DELAYS[self._failures], aborted)
            self._failures += 1
            self._started_at = time.monotonic()
            connection = self._start(installation, folder, aborted)
            if connection is not None:
                return connection
        raise EngineStartError(
            f"The engine was started {len(START_DELAYS)} times and did not come up. "
            f"The end of its log, {folder / LOG_NAME}:\n{last_lines(folder / LOG_NAME)}"
        )

    def _start(self, installation: Installation, folder: Path, aborted: Aborted) -> socket.socket | None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
        isolated = "-I" if installation.root is None else "-sP"  # only a checkout needs PYTHONPATH
        command = [installation.python, isolated, "-m", "stm_plugin.server"]
        if self.die_with_host:
            command += ["--parent", str(os.getpid())]
        with _log_of(folder) as log:
            try:
                process = subprocess.Popen(
                    command + self.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd=str(folder),
                    env={**scrubbed_environment(installation.root), **_place_of(folder)},
                    close_fds=True,
                    start_new_session=sys.platform != "win32",
                    creationflags=_windows_flags(),
                )
            except OSError as error:
                raise EngineStartError(
                    f"The engine's Python cannot be started: {installation.python}: {error.strerror}. "
                    "Run install.py again."
                ) from error
        _started.append(process)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            connection = try_to_connect(folder)
            if connection is not None:
                return connection
            if process.poll() not in (None, 0):  # 0: another engine was first
                return None
            _sleep(ABORT_SECONDS, aborted)
        return None


def _place_of(folder: Path) -> dict[str, str]:
    """What tells an engine its runtime folder, where that is not the usual one."""
    return {} if folder == runtime_folder() else {"STM_RUNTIME_DIR": str(folder)}


_started: list[subprocess.Popen[bytes]] = []
"""Engines that this process started, and whose exit codes it has not collected yet."""


def reap() -> None:
    """Collect the exit codes of ended engines, so that no zombies stay."""
    _started[:] = [process for process in _started if process.poll() is None]


def _let_go() -> None:
    """At the end of the host, stop waiting for engines, which continue for others or end themselves.

    Otherwise Python would warn that they are still running.
    """
    reap()
    for process in _started:
        process.returncode = 0
    _started.clear()


atexit.register(_let_go)


def try_to_connect(folder: Path) -> socket.socket | None:
    """A connection to the engine that the endpoint file names, or None."""
    endpoint = Endpoint.read(folder)
    if endpoint is None:
        return None
    if endpoint.transport == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address: Any = endpoint.path
    else:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        address = ("127.0.0.1", endpoint.port)
    try:
        connection.settimeout(CALL_SECONDS)
        connection.connect(address)
        if endpoint.transport != "unix":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif hasattr(socket, "SO_PEERCRED"):
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", peer)[1] != os.geteuid():
                raise OSError("the engine runs as another user")
    except OSError:
        connection.close()
        return None
    return connection


def last_lines(path: Path, count: int = 5) -> str:
    """The end of a log, for an error text."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "(there is none)"
    return "\n".join(lines[-count:])


@contextlib.contextmanager
def _log_of(folder: Path) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    log = os.open(str(folder / LOG_NAME), flags, 0o600)
    try:
        yield log
    finally:
        os.close(log)


def _windows_flags() -> int:
    if sys.platform != "win32":
        return 0
    return subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP


def _sleep(seconds: float, aborted: Aborted) -> None:
    end = time.monotonic() + seconds
    while True:
        if aborted():
            raise AbortedError()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, ABORT_SECONDS))
