"""The engine process: takes the lock, listens, writes the endpoint file, serves until no client needs it."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final

from stm_plugin.logs import start_log
from stm_plugin.server.backend import Backend
from stm_plugin.server.connection import ByteBudget, Connection
from stm_plugin.server.mapped import MapFolder
from stm_plugin.server.options import ServeOptions
from stm_plugin.server.runtime import (
    ENDPOINT_NAME,
    LOG_NAME,
    SOCKET_NAME,
    Endpoint,
    Parent,
    default_transport,
    engine_lock,
    keep_fresh,
    listen,
    make_private_folder,
    map_folder,
    peer_is_user,
    runtime_folder,
)
from stm_plugin.server.service import Service

log = logging.getLogger("stm.server")

MAX_STRANGERS: Final = 64
"""The most connections without hello. With one more, the oldest of them is ended."""
_WATCH_SECONDS: Final = 0.5
_LOAD_SECONDS: Final = 2.0
"""The engine is loaded at the first hello, or after this time."""
_TIDY_SECONDS: Final = 30.0
_STREAM_LIMIT: Final = 1 << 18


def serve(options: ServeOptions, load_backend: Callable[[], Backend] | None = None) -> None:
    """Be the user's engine until no client needs it.

    From the order to end, the process has `options.end_seconds`. Then it is ended, and the log says what each
    of its threads was doing.

    Args:
        load_backend: loads the engine; it runs in a thread after the reply to the first hello.

    Raises:
        EngineRunningError: another engine runs already.
        RuntimeFolderError: the runtime folder cannot be used safely.
    """
    parent = None if options.parent is None else Parent(options.parent)
    folder = runtime_folder()
    make_private_folder(folder)
    with engine_lock(folder):
        _start_log(folder, options.to_log)
        transport = default_transport()
        maps = MapFolder(map_folder(folder))
        listener = listen(folder, transport)
        path, port = ("", listener.getsockname()[1]) if transport == "tcp" else (str(folder / SOCKET_NAME), 0)
        endpoint = Endpoint.new(transport, path, port, engine_version())
        endpoint.publish(folder)
        log.info("engine %s, process %d, serves %s", endpoint.engine, endpoint.pid, path or port)
        try:
            server = _Server(load_backend or _load_engine, folder, endpoint, maps, parent, options)
            asyncio.run(server.run(listener))
        finally:
            if endpoint.is_published(folder):
                (folder / ENDPOINT_NAME).unlink(missing_ok=True)
                (folder / SOCKET_NAME).unlink(missing_ok=True)
            maps.close()
            log.info("the engine has ended")


def engine_version() -> str:
    """The version of the installed plug-in."""
    try:
        return metadata.version("stm-nuke")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def _load_engine() -> Backend:
    from stm_plugin.server.shot_service import EngineBackend

    return EngineBackend()


class _Server:
    def __init__(
        self,
        load_backend: Callable[[], Backend],
        folder: Path,
        endpoint: Endpoint,
        maps: MapFolder,
        parent: Parent | None,
        options: ServeOptions,
    ) -> None:
        self._load_backend = load_backend
        self._folder = folder
        self._endpoint = endpoint
        self._maps = maps
        self._parent = parent
        self._options = options
        self._connections: dict[Connection, None] = {}  # oldest first

    async def run(self, listener: socket.socket) -> None:
        self._service = Service(self._load_backend, self._maps)
        self._budget = ByteBudget()
        loop = asyncio.get_running_loop()
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.add_signal_handler(number, self._service.stop.set)
        if self._endpoint.transport == "tcp":
            server = await asyncio.start_server(self._serve_client, sock=listener, limit=_STREAM_LIMIT)
        else:
            server = await asyncio.start_unix_server(self._serve_client, sock=listener, limit=_STREAM_LIMIT)
        watch = asyncio.ensure_future(self._watch())
        try:
            await self._service.stop.wait()
        finally:
            log.info("the engine ends")
            _end_process_in(self._options.end_seconds, self._folder if self._options.to_log else None)
            server.close()
            watch.cancel()
            await self._service.end()
            for connection in list(self._connections):
                connection.abort()

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        if not peer_is_user(peer):
            log.warning("a connection was refused")
            writer.close()
            return
        strangers = [one for one in self._connections if not one.said_hello]
        if len(strangers) >= MAX_STRANGERS:
            log.warning("a connection that has not said hello is ended: there are %d", len(strangers))
            strangers[0].abort()
        connection = Connection(
            self._service, self._endpoint, self._budget, self._count_clients, reader, writer
        )
        self._connections[connection] = None
        try:
            await connection.run()
        except asyncio.CancelledError:
            return
        except Exception:
            log.exception("the connection of %s failed", connection.name)
        finally:
            self._connections.pop(connection, None)

    def _count_clients(self) -> int:
        return sum(one.said_hello for one in self._connections)

    async def _watch(self) -> None:
        """End the engine when no client needs it; tidy at intervals."""
        started_at = needed_at = tidied_at = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            if now - started_at > _LOAD_SECONDS:
                self._service.begin_loading()
            clients = self._count_clients()
            if clients or self._service.is_working:
                needed_at = now
            idle = now - needed_at > self._options.idle_seconds
            if idle or (self._parent_has_gone() and not self._has_other_clients()):
                log.info("nobody needs the engine any more")
                self._service.stop.set()
            worked_at = self._service.worked_at
            if worked_at is not None and now - worked_at > self._options.rest_seconds:
                await self._service.rest()
            if now - tidied_at > _TIDY_SECONDS:
                tidied_at = now
                await self._service.tidy()
                keep_fresh(self._folder)
                if not self._endpoint.is_published(self._folder) and not clients:
                    log.warning("the endpoint file has gone; the engine ends")
                    self._service.stop.set()

    def _parent_has_gone(self) -> bool:
        return self._parent is not None and not self._parent.is_alive()

    def _has_other_clients(self) -> bool:
        parent = self._parent.pid if self._parent is not None else 0
        return any(one.said_hello and one.pid != parent for one in self._connections)


def _end_process_in(seconds: float, folder: Path | None) -> None:
    """End this process after `seconds`, whatever its threads do, and write their stacks.

    Args:
        folder: the folder of the log; None for standard error.
    """
    if folder is None:
        faulthandler.dump_traceback_later(seconds, exit=True)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    written = os.open(folder / LOG_NAME, flags, 0o600)  # stays open: it is needed until the process ends
    faulthandler.dump_traceback_later(seconds, exit=True, file=written)


def _start_log(folder: Path, to_log: bool) -> None:
    start_log(folder / LOG_NAME if to_log else None, None if to_log else sys.stderr)
