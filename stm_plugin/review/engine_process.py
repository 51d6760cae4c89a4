"""The user's engine for the page: found, or started, as hosts do (PROTOCOL.md, sections 1 and 9)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import stm_plugin
from stm_plugin.errors import StmError
from stm_plugin.server.main import engine_version
from stm_plugin.server.runtime import (
    ENDPOINT_NAME,
    LOG_NAME,
    Endpoint,
    make_private_folder,
    peer_is_user,
    runtime_folder,
)

START_SECONDS: Final = 60.0
START_DELAYS: Final = (0.0, 1.0, 4.0)
HEALTHY_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 30.0
_MAX_ENDPOINT: Final = 4096
_UNKNOWN_VERSION: Final = "0.0.0"


class EngineStartError(StmError):
    """The engine cannot be started."""


@dataclass(frozen=True)
class Reached:
    """A connection to an engine that has not said hello, and what the engine says of itself."""

    link: socket.socket
    endpoint: Endpoint


class EngineProcess:
    """Finds the user's engine or starts it, at most three times in a row, with increasing delays."""

    def __init__(self) -> None:
        self._failures = 0
        self._started_at = -HEALTHY_SECONDS
        self._started: list[subprocess.Popen[bytes]] = []

    def reach(self, is_given_up: Callable[[], bool] = lambda: False) -> Reached:
        """A connection to the engine of this version and this configuration.

        Raises:
            EngineStartError: it does not start, or the caller gave up.
            RuntimeFolderError: the runtime folder is not private to the user.
        """
        self._started = [process for process in self._started if process.poll() is None]
        folder = engine_folder()
        found = _try_to_reach(folder)
        if found is not None:
            return found
        if time.monotonic() - self._started_at > HEALTHY_SECONDS:
            self._failures = 0
        while self._failures < len(START_DELAYS):
            time.sleep(START_DELAYS[self._failures])
            self._failures += 1
            self._started_at = time.monotonic()
            found = self._start(folder, is_given_up)
            if found is not None:
                return found
            if is_given_up():
                raise EngineStartError("The page was closed.")
        raise EngineStartError(
            f"The engine was started {len(START_DELAYS)} times and did not come up.",
            hint=f"Its log is {folder / LOG_NAME}.",
        )

    def let_go(self) -> None:
        """Do not wait for engines any more: they go on for others, or end by themselves."""
        for process in self._started:
            if process.poll() is None:
                process.returncode = 0  # else Python warns that it is still running
        self._started.clear()

    def _start(self, folder: Path, is_given_up: Callable[[], bool]) -> Reached | None:
        make_private_folder(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(folder / LOG_NAME, flags, 0o600), "ab") as log:
            process = subprocess.Popen(
                [*engine_command(), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=folder,
                env={**_environment(), "STM_RUNTIME_DIR": str(folder)}
                if folder != runtime_folder()
                else _environment(),
                start_new_session=sys.platform != "win32",
                creationflags=_windows_flags(),
            )
        self._started.append(process)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not is_given_up():
            found = _try_to_reach(folder)
            if found is not None:
                return found
            if process.poll() not in (None, 0):  # 0: another engine was first
                return None
            time.sleep(_POLL_SECONDS)
        return None


def engine_folder() -> Path:
    """The runtime folder: the user's, or one beside it if another version or configuration uses that one."""
    folder = runtime_folder()
    endpoint = _read_endpoint(folder)
    mine = os.environ.get("STM_CONFIG", "")
    if endpoint is None or (
        endpoint.configuration == mine and endpoint.engine in (engine_version(), _UNKNOWN_VERSION)
    ):
        return folder
    named = hashlib.sha256(f"{engine_version()}\n{mine}".encode("utf-8", "surrogateescape")).hexdigest()
    return folder.with_name(f"{folder.name}-{named[:8]}")


def engine_command() -> list[str]:
    """The command that starts an engine of this installation."""
    return [sys.executable, "-I" if _root() is None else "-sP", "-m", "stm_plugin.server"]


def _root() -> Path | None:
    """The folder that holds `stm_plugin` where that is a checkout; None where it is installed."""
    root = Path(stm_plugin.__file__).resolve().parents[1]
    return None if root == Path(sysconfig.get_path("purelib")).resolve() else root


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("PYTHON") and name.upper() != "LD_PRELOAD"
    }
    kept["PYTHONNOUSERSITE"] = "1"
    root = _root()
    return kept if root is None else {**kept, "PYTHONPATH": str(root)}


def _try_to_reach(folder: Path) -> Reached | None:
    endpoint = _read_endpoint(folder)
    if endpoint is None:
        return None
    is_unix = endpoint.transport == "unix"
    link = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, socket.SOCK_STREAM)
    try:
        link.settimeout(_CONNECT_SECONDS)
        link.connect(endpoint.path if is_unix else ("127.0.0.1", endpoint.port))
        if not is_unix:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not peer_is_user(link):
            raise OSError("the engine runs as another user")
    except OSError:
        link.close()
        return None
    return Reached(link, endpoint)


def _read_endpoint(folder: Path) -> Endpoint | None:
    """What a running engine says of itself; None where there is none.

    Raises:
        RuntimeFolderError: the folder is not private to the user.
    """
    if not os.path.lexists(folder):
        return None
    make_private_folder(folder)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with os.fdopen(os.open(folder / ENDPOINT_NAME, flags), "rb") as file:
            values = json.loads(file.read(_MAX_ENDPOINT))
        return Endpoint(**{one.name: values[one.name] for one in fields(Endpoint)})
    return None


def _windows_flags() -> int:
    if sys.platform != "win32":
        return 0
    return subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
