"""The engine's client: the engine and its shots for a host, reconnected after a crash.

Standard library only, Python 3.9 or newer, no `nuke` module: it runs in a host, in a terminal and in tests.

    engine = Engine("nuke 15.1")
    shot = engine.shot({"folder": "/shots/a.stmshot", "create": True, "plate": {...}})
    shot.push_plate(1001, Image("float", ("R", "G", "B"), (0, 0, 1920, 1080), pixels))
    shot.push_key(1001, Image("half", ("A",), (0, 0, 1920, 1080), mask), {"hero": "A"})
    engine.wait(shot.propagate(), on_progress=print)
    matte = shot.matte(1010)
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from stm_nuke.launch import (
    LOG_NAME,
    Endpoint,
    Installation,
    Launcher,
    own_folder,
    reap,
    runtime_folder,
    try_to_connect,
)
from stm_nuke.wire import (
    ABORT_SECONDS,
    CALL_SECONDS,
    SAMPLE_BYTES,
    Aborted,
    AbortedError,
    Connection,
    DeadlineError,
    EngineError,
    EngineGoneError,
    EngineStartError,
    Header,
    Image,
    Window,
    never,
)

__all__ = [
    "AbortedError",
    "DeadlineError",
    "Engine",
    "EngineError",
    "EngineGoneError",
    "EngineStartError",
    "Image",
    "Launcher",
    "Matte",
    "Shot",
]

_NOT_REPEATED = frozenset(("propagate", "export", "shapes", "close_shot"))
"""Requests that must not be repeated: a second one would be harmful or useless."""
_UNKNOWN_VERSION = "0.0.0"
_CONNECT_TRIES = 3


@dataclass(frozen=True)
class Matte:
    """The finished matte of one frame. `image` is planar, one plane per object asked for.

    Attributes:
        source: key or propagated.
        state: done or stale.
        content: identifies the pixels: the same content means the same pixels.
    """

    frame: int
    image: Image
    display_window: Window
    source: str
    state: str
    content: str
    confidence: float | None


class Engine:
    """The engine for a host: connected when needed, started if it does not run, reconnected after a crash."""

    def __init__(
        self, name: str, *, launcher: Launcher | None = None, events: bool = False, may_start: bool = True
    ) -> None:
        """`name`: the host's name for people, for example `nuke 15.1v2`. Nothing is started yet."""
        self.name = name
        self.generation = 0
        self._launcher = launcher or Launcher()
        self._events = events
        self._may_start = may_start
        self._has_replaced = False
        self._connection: Connection | None = None
        self._lock = threading.RLock()
        self._own: Path | None = None

    @property
    def folder(self) -> Path:
        """The engine's runtime folder: the user's, or one beside it where an engine of another version or
        of another show is at work there."""
        return self._own or runtime_folder()

    def connection(self, aborted: Aborted = never) -> Connection:
        """The present connection; a new one, and an engine, if there is none.

        Raises:
            EngineStartError, EngineError (version, token), AbortedError.
        """
        with self._lock:
            if self._connection is None or not self._connection.is_open:
                self._connection = self._connect(aborted)
                self.generation += 1
            return self._connection

    def _connect(self, aborted: Aborted) -> Connection:
        for attempt in range(_CONNECT_TRIES):
            endpoint = Endpoint.read(self.folder)
            if endpoint is not None and not endpoint.is_of_this_show and self._may_start:
                self._stand_beside()
            link = self._reach(aborted)
            endpoint = Endpoint.read(self.folder)
            if endpoint is None:
                link.close()
                continue
            try:
                connection = Connection(link, endpoint.token, endpoint.answer, self.name, self._events)
            except EngineGoneError:
                continue  # it ended just now
            except EngineError as error:
                # Another engine may have written the endpoint file meanwhile.
                if error.code != "token" or attempt == _CONNECT_TRIES - 1:
                    raise
                continue
            if not self._replace_if_older(connection):
                connection.check_version()
                return connection
        raise EngineStartError(f"The engine ends as soon as it is reached. See {self.folder / LOG_NAME}.")

    def _reach(self, aborted: Aborted) -> socket.socket:
        link = try_to_connect(self.folder)
        if link is not None:
            return link
        if not self._may_start:
            raise EngineStartError("No engine is running.")
        return self._launcher.connect(self.folder, aborted)

    def _stand_beside(self) -> None:
        """Have an engine of one's own from now on."""
        self._own = own_folder(runtime_folder(), _installed_version())

    def _replace_if_older(self, connection: Connection) -> bool:
        """Leave an engine of another version than the installed one.

        It is ended, once, if nobody else uses it; else this client gets a separate one beside it.
        """
        if not self._may_start or self._own is not None:  # its own engine is what this installation starts
            return False
        installed = _installed_version()
        if installed is None or connection.engine in (installed, _UNKNOWN_VERSION):
            return False
        state, _ = connection.call({"op": "ping"})
        if self._has_replaced or state["clients"] > 1 or state["jobs"] > 0:
            self._stand_beside()
            connection.close()
            return True
        self._has_replaced = True
        connection.call({"op": "shutdown"})
        connection.close()
        return True

    def call(
        self, header: Mapping[str, Any], *, seconds: float = CALL_SECONDS, aborted: Aborted = never
    ) -> Header:
        """One request that needs no shot."""
        return self.connection(aborted).call(header, seconds=seconds, aborted=aborted)[0]

    def ping(self) -> Header:
        """The engine's state: running jobs and clients."""
        return self.call({"op": "ping"})

    def info(self, aborted: Aborted = never) -> Header:
        """Devices, weights, settings."""
        return self.call({"op": "info"}, aborted=aborted)

    def shot(self, opening: Mapping[str, Any]) -> Shot:
        """A shot; `opening` has the fields of `open_shot`. It is opened with its first call."""
        return Shot(self, opening)

    def job(self, job: str, wait_ms: int = 0, seen: int = 0, aborted: Aborted = never) -> Header:
        """The state of a job."""
        request = {"op": "job", "job": job, "wait_ms": wait_ms, "seen": seen}
        return self.call(request, seconds=CALL_SECONDS + wait_ms / 1000, aborted=aborted)

    def cancel(self, job: str) -> Header:
        """Stop a job; it ends after its current frame."""
        return self.call({"op": "cancel", "job": job})

    def wait(
        self,
        job: str,
        *,
        on_progress: Callable[[Header], None] = lambda state: None,
        aborted: Aborted = never,
        cancel_on_abort: bool = True,
    ) -> Header:
        """Wait for the end of a job, reporting every step.

        Raises:
            EngineError: the job failed or was cancelled.
            EngineGoneError: the engine died; propagate again, finished frames are kept.
            AbortedError: `aborted` returned True; the job is being stopped.
        """
        seen = 0
        while True:
            if aborted():
                if cancel_on_abort:
                    self.cancel(job)
                raise AbortedError()
            state = self.job(job, wait_ms=int(ABORT_SECONDS * 1000), seen=seen)
            if state["version"] > seen:
                seen = state["version"]
                on_progress(state)
            if state["state"] == "failed":
                raise EngineError.from_header(state["error"])
            if state["state"] == "cancelled":
                raise EngineError("cancelled", str(state["text"]))
            if state["state"] == "finished":
                return state

    def events(self) -> list[Header]:
        """The received events (if the engine was made with events=True)."""
        with self._lock:
            connection = self._connection
        if connection is None or not connection.is_open:
            return []
        try:
            return connection.events()
        except EngineGoneError:
            return []

    def shutdown(self) -> None:
        """Stop the engine for all hosts. Does nothing if none is running."""
        self._may_start, may_start = False, self._may_start
        try:
            with contextlib.suppress(EngineError):
                self.call({"op": "shutdown"})
        finally:
            self._may_start = may_start
            self.close()

    def close(self) -> None:
        """Disconnect; the engine keeps running for others."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            reap()


def _installed_version() -> str | None:
    """The version that this side belongs to; None where nobody says."""
    try:
        return Installation.find().version
    except EngineStartError:
        return None


class Shot:
    """One shot of the engine. After a crash of the engine it is opened again automatically."""

    def __init__(self, engine: Engine, opening: Mapping[str, Any]) -> None:
        self.engine = engine
        self.opening = dict(opening)
        self.status_at_opening: Header = {}
        self._matte_bytes = 0
        self._handle = ""
        self._generation = 0
        self._lock = threading.RLock()

    def open(self, aborted: Aborted = never) -> str:
        """Open the shot if necessary; returns its handle on this connection."""
        with self._lock:
            connection = self.engine.connection(aborted)
            if not self._handle or self._generation != self.engine.generation:
                request = dict(self.opening, op="open_shot")
                reply, _ = connection.call(request, aborted=aborted)
                self._handle, self._generation = str(reply["shot"]), self.engine.generation
                self.status_at_opening = reply["status"]
            return self._handle

    def close(self) -> None:
        """Close the shot in the engine."""
        with self._lock, contextlib.suppress(EngineError):
            if self._handle and self._generation == self.engine.generation:
                self.engine.call({"op": "close_shot", "shot": self._handle})
            self._handle = ""

    def call(
        self, op: str, *, seconds: float = CALL_SECONDS, aborted: Aborted = never, **fields: Any
    ) -> Header:
        """One request about this shot; fields that are None are left out."""
        given = {name: value for name, value in fields.items() if value is not None}

        def once(connection: Connection, handle: str) -> Header:
            request = dict(given, op=op, shot=handle)
            return connection.call(request, seconds=seconds, aborted=aborted)[0]

        reply: Header = self._with_recovery(op, once, aborted)
        return reply

    def _with_recovery(self, op: str, once: Callable[[Connection, str], Any], aborted: Aborted) -> Any:
        """Call `work`; again on a new engine if the engine died meanwhile and a repetition does no harm."""
        try:
            return once(self.engine.connection(aborted), self.open(aborted))
        except EngineGoneError:
            if op in _NOT_REPEATED:
                raise
        return once(self.engine.connection(aborted), self.open(aborted))

    # ---- the verbs

    def status(self, frames: tuple[int, int] | None = None) -> Header:
        """The state of all frames, and why."""
        return self.call("status", frames=_pair(frames))

    def plan(self, frames: tuple[int, int] | None = None, direction: str = "both") -> Header:
        """The plan of `propagate`."""
        return self.call("plan", frames=_pair(frames), direction=direction)

    def plate_needed(
        self, frames: tuple[int, int] | None = None, digests: Mapping[int, str] | None = None
    ) -> list[tuple[int, int]]:
        """Ranges of plate frames that the engine needs."""
        named = None if digests is None else {str(frame): digest for frame, digest in digests.items()}
        reply = self.call("plate_needed", frames=_pair(frames), digests=named)
        return [(int(first), int(last)) for first, last in reply["needed"]]

    def push_plate(self, frame: int, image: Image, aborted: Aborted = never, **fields: Any) -> Header:
        """Send one plate frame; `fields`: display_window, pixel_aspect, digest, metadata."""
        return self._push("push_plate", image, aborted, dict(fields, frame=frame))

    def push_key(
        self, frame: int, image: Image, objects: Mapping[str, str], aborted: Aborted = never, **fields: Any
    ) -> Header:
        """Send the masks of a key.

        Args:
            objects: object name -> channel of the image.
            fields: digest, replace, interrupt, as in the protocol.
        """
        named = [{"name": name, "channel": channel} for name, channel in objects.items()]
        return self._push("push_key", image, aborted, dict(fields, frame=frame, objects=named))

    def push_plate_file(self, frame: int, name: str, aborted: Aborted = never, **fields: Any) -> Header:
        """Send one plate frame as a file of the `scratch` folder; `fields`: digest, metadata."""
        return self.call("push_plate", aborted=aborted, frame=frame, file={"name": name}, **fields)

    def push_plate_path(self, frame: int, path: str, aborted: Aborted = never, **fields: Any) -> Header:
        """Let the engine read one plate frame from the plate's own file; `fields`: digest, metadata."""
        return self.call("push_plate", aborted=aborted, frame=frame, path=path, **fields)

    def push_key_file(
        self, frame: int, name: str, objects: Mapping[str, str], aborted: Aborted = never, **fields: Any
    ) -> Header:
        """Send the masks of a key as a file of the `scratch` folder; the rest as in `push_key`."""
        named = [{"name": one, "channel": channel} for one, channel in objects.items()]
        return self.call(
            "push_key", aborted=aborted, frame=frame, objects=named, file={"name": name}, **fields
        )

    def _push(self, op: str, image: Image, aborted: Aborted, fields: Mapping[str, Any]) -> Header:
        given = {name: value for name, value in fields.items() if value is not None}

        def once(connection: Connection, handle: str) -> Header:
            return connection.call_with_image(dict(given, op=op, shot=handle), image, aborted=aborted)

        result: Header = self._with_recovery(op, once, aborted)
        return result

    def list_keys(self) -> list[Header]:
        """The keys, ascending."""
        keys: list[Header] = self.call("list_keys")["keys"]
        return keys

    def remove_key(self, frame: int, interrupt: bool = False) -> Header:
        """Remove a key."""
        return self.call("remove_key", frame=frame, interrupt=interrupt)

    def settings(self) -> Header:
        """All settings."""
        settings: Header = self.call("get_settings")["settings"]
        return settings

    def set_settings(self, settings: Mapping[str, Any], interrupt: bool = False) -> Header:
        """Change some settings."""
        reply = self.call("set_settings", settings=dict(settings), interrupt=interrupt)
        self.opening["settings"] = {**self.opening.get("settings", {}), **settings}
        return reply

    def set_objects(
        self, rename: Mapping[str, str] | None = None, remove: Sequence[str] = (), interrupt: bool = False
    ) -> Header:
        """Rename or remove objects."""
        return self.call("set_objects", rename=rename, remove=list(remove), interrupt=interrupt)

    def propagate(
        self, frames: tuple[int, int] | None = None, direction: str = "both", detach: bool = False
    ) -> str:
        """Start a propagation; returns the job for `Engine.wait`."""
        reply = self.call("propagate", frames=_pair(frames), direction=direction, detach=detach)
        return str(reply["job"])

    def shapes(
        self,
        file: str,
        format_: str = "nuke",
        frames: tuple[int, int] | None = None,
        objects: Sequence[str] = (),
        tolerance: float = 0.75,
    ) -> str:
        """Start writing the mattes as splines; returns the job for `Engine.wait`."""
        reply = self.call(
            "shapes",
            file=file,
            format=format_,
            frames=_pair(frames),
            objects=list(objects),
            tolerance=tolerance,
        )
        return str(reply["job"])

    def export(
        self,
        pattern: str,
        frames: tuple[int, int] | None = None,
        channel: str | None = None,
        objects: Sequence[str] = (),
        detach: bool = False,
    ) -> str:
        """Start writing matte files; returns the job for `Engine.wait`."""
        reply = self.call(
            "export",
            pattern=pattern,
            frames=_pair(frames),
            channel=channel,
            objects=list(objects),
            detach=detach,
        )
        return str(reply["job"])

    def matte(
        self,
        frame: int,
        *,
        objects: Sequence[str] = (),
        window: Window | None = None,
        format: str = "half",
        rows: str = "down",
        wait_ms: int = 0,
        stale: bool = False,
        aborted: Aborted = never,
    ) -> Matte:
        """The finished matte of a frame: all objects together, or a plane for each of `objects`.

        Args:
            window: the pixels wanted (y down); None: the plate frame's data window.
            rows: `up` puts the bottom row first in memory.
            wait_ms: how long to wait for a job that will make it.
            stale: accept a stale matte.
        """
        request: Header = {
            "op": "get_matte",
            "frame": frame,
            "objects": list(objects),
            "format": format,
            "rows": rows,
            "wait_ms": wait_ms,
            "stale": stale,
        }
        expected_bytes = self._matte_bytes  # a matte usually has the size of the one before it
        if window is not None:
            request["window"] = list(window)
            expected_bytes = window[2] * window[3] * SAMPLE_BYTES[format] * max(1, len(objects))
        seconds = CALL_SECONDS + wait_ms / 1000

        def once(connection: Connection, handle: str) -> tuple[Header, bytes]:
            asked = dict(request, shot=handle)
            return connection.call_for_image(asked, expected_bytes, seconds=seconds, aborted=aborted)

        reply, data = self._with_recovery("get_matte", once, aborted)
        self._matte_bytes = len(data)
        return _matte_of(reply, data)


def _matte_of(reply: Mapping[str, Any], data: bytes) -> Matte:
    described = reply["image"]
    image = Image(
        format=described["format"],
        channels=tuple(described["channels"]),
        data_window=tuple(described["data_window"]),
        data=data,
        layout=described["layout"],
        offset=described["offset"],
        row_bytes=described["row_bytes"],
        plane_bytes=described["plane_bytes"],
    )
    return Matte(
        frame=reply["frame"],
        image=image,
        display_window=tuple(reply["display_window"]),
        source=reply["source"],
        state=reply["state"],
        content=reply["content"],
        confidence=reply["confidence"],
    )


def _pair(frames: tuple[int, int] | None) -> list[int] | None:
    return None if frames is None else [int(frames[0]), int(frames[1])]
