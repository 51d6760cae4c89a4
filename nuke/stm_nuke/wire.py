"""The wire to the engine: messages, pixels, errors; one connection (ofx_bridge/PROTOCOL.md, sections 2 to 7).

Standard library only, Python 3.9 or newer, no `nuke` module.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import secrets
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Union

VERSION, OLDEST = (1, 3), (1, 1)
"""The protocol spoken here, and the oldest that an engine may speak."""
CALL_SECONDS = 60.0
HELLO_SECONDS = 20.0
ABORT_SECONDS = 0.05
MAPPED_FROM_BYTES = 1 << 16
"""Smaller images go through the socket: a mapped file costs more than it saves."""
SAMPLE_BYTES = {"byte": 1, "short": 2, "half": 2, "float": 4}

_MAGIC = b"STM\x01"
_PREFIX = struct.Struct("<4sB3sIIQ")
_REQUEST, _REPLY, _ERROR, _EVENT = 1, 2, 3, 4
_MAX_HEADER = 4 << 20
_MAX_PAYLOAD = 1 << 30
_MAX_REQUEST_ID = (1 << 32) - 1
_MAX_EVENTS = 4096
_CHUNK = 1 << 20

Header = dict[str, Any]
Window = tuple[int, int, int, int]
Bytes = Union[bytes, bytearray, memoryview]
Aborted = Callable[[], bool]
Received = tuple[int, int, Header, memoryview]
"""Kind, request id, header, payload."""


def never() -> bool:
    """False: do not abort."""
    return False


class EngineError(Exception):
    """An error of the engine or of the connection. `str()` is for people; `code` is the protocol's."""

    def __init__(self, code: str, text: str, header: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.code = code
        values = header or {}
        self.frame: int | None = values.get("frame")
        self.path: str | None = values.get("path")
        self.hint: str | None = values.get("hint")
        self.details: dict[str, Any] = values.get("details") or {}

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> EngineError:
        """The error in an error message or a failed job."""
        text = str(header.get("text", "The engine has failed."))
        return cls(str(header.get("code", "internal")), text, header)


class EngineGoneError(EngineError):
    """The connection ended during a call: the engine died or was stopped."""

    def __init__(self, text: str = "The engine has stopped.") -> None:
        super().__init__("gone", text)


class EngineStartError(EngineError):
    """There is no engine and none can be started."""

    def __init__(self, text: str) -> None:
        super().__init__("start", text)


class DeadlineError(EngineError):
    """No answer in time. The connection can still be used."""

    def __init__(self, text: str = "The engine does not answer in time.") -> None:
        super().__init__("deadline", text)


class AbortedError(EngineError):
    """The host or the user asked to stop waiting."""

    def __init__(self) -> None:
        super().__init__("aborted", "Stopped.")


@dataclass(frozen=True)
class Image:
    """Pixels and their layout in memory (PROTOCOL.md section 5).

    Attributes:
        format: byte, short, half or float.
        data_window: x, y, width, height; y DOWN from the top of the display window.
        data: the bytes; `offset` is where the TOP row begins in them.
        row_bytes: from a row to the one below it; negative where the bottom row comes first. None: tight.
    """

    format: str
    channels: tuple[str, ...]
    data_window: Window
    data: Bytes = field(repr=False)
    layout: str = "interleaved"
    offset: int = 0
    row_bytes: int | None = None
    plane_bytes: int = 0
    premultiplied: bool = False

    @classmethod
    def bottom_up(
        cls,
        format: str,
        channels: Sequence[str],
        data_window: Window,
        data: Bytes,
        premultiplied: bool = False,
    ) -> Image:
        """A tight interleaved image with the bottom row first, as from hosts whose y points up."""
        stride = data_window[2] * len(channels) * SAMPLE_BYTES[format]
        return cls(
            format,
            tuple(channels),
            data_window,
            data,
            offset=(data_window[3] - 1) * stride,
            row_bytes=-stride,
            premultiplied=premultiplied,
        )

    def to_json(self) -> Header:
        """The description for a header, without `mapped`."""
        sample = SAMPLE_BYTES[self.format]
        values = 1 if self.layout == "planar" else len(self.channels)
        tight = self.data_window[2] * values * sample
        stride = tight if self.row_bytes is None else self.row_bytes
        plane = self.plane_bytes
        if self.layout == "planar" and plane == 0 and len(self.channels) > 1:
            plane = self.data_window[3] * abs(stride)
        return {
            "format": self.format,
            "channels": list(self.channels),
            "data_window": list(self.data_window),
            "layout": self.layout,
            "offset": self.offset,
            "row_bytes": stride,
            "plane_bytes": plane,
            "premultiplied": self.premultiplied,
        }


class MappedFile:
    """A private file in the engine's map folder, mapped into this process and reused."""

    def __init__(self, folder: str, prefix: str, size: int) -> None:
        """Raises OSError where the folder cannot be used or is full."""
        self.name = prefix + secrets.token_hex(8)
        self.size = size
        self._path = os.path.join(folder, self.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
            flags |= getattr(os, flag, 0)
        file = os.open(self._path, flags, 0o600)
        try:
            _preallocate(file, size)
            self._map = mmap.mmap(file, size)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            raise
        finally:
            os.close(file)

    def write(self, data: Bytes) -> None:
        """Copy bytes to the beginning of the file."""
        view = memoryview(data).cast("B")
        self._map[: len(view)] = view

    def read(self, size: int) -> bytes:
        """Copy bytes from the beginning of the file."""
        return self._map[:size]

    def close(self) -> None:
        """Unmap and remove it."""
        self._map.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _preallocate(file: int, size: int) -> None:
    """Allocate the space of a new file, so that a full disk is an error here, not a crash later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(min(size, _CHUNK))
    left = size
    while left:
        left -= os.write(file, zeros[: min(left, len(zeros))])


class Connection:
    """One connection after hello. Calls of several threads are done in order."""

    def __init__(self, link: socket.socket, token: str, answer: str, name: str, events: bool = False) -> None:
        """Say hello over a connected socket.

        Raises:
            EngineError: the versions or the token do not fit; EngineGoneError: the connection ended.
        """
        self.is_open = True
        self._socket = link
        self._turn = _Turn()
        self._received = bytearray()
        self._next_id = 1
        self._events: deque[Header] = deque(maxlen=_MAX_EVENTS)
        self._files: list[MappedFile] = []
        self._files_lock = threading.Lock()
        self._map_folder: str | None = None
        self._map_prefix = ""
        request = {
            "op": "hello",
            "protocol": list(VERSION),
            "token": token,
            "client": name,
            "pid": os.getpid(),
            "events": events,
        }
        try:
            hello, _ = self.call(request, seconds=HELLO_SECONDS)
            if hello.get("answer") != answer:
                raise EngineError(
                    "impostor", "Another program answers instead of the engine. Restart the host."
                )
        except EngineError:
            self.close()
            raise
        self.engine = str(hello.get("engine", ""))
        major, minor = hello.get("protocol", (1, 0))
        self.protocol = int(major), int(minor)
        self.engine_pid = int(hello.get("pid", 0))
        self._map_folder = hello.get("map_folder")
        self._map_prefix = str(hello.get("map_prefix", ""))

    def check_version(self) -> None:
        """Raises EngineError (code version), and ends the connection, where the engine is too old."""
        if self.protocol < OLDEST:
            self.close()
            spoken, needed = (f"{major}.{minor}" for major, minor in (self.protocol, OLDEST))
            raise EngineError(
                "version",
                f"The engine {self.engine} speaks protocol {spoken}, and this plug-in needs {needed}. "
                "Run install.py again, close every program that uses the old engine, then try again.",
            )

    def close(self) -> None:
        """End the connection; the engine closes its shots."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._socket.close()
        with self._files_lock:
            for file in self._files:
                file.close()
            self._files.clear()

    def call(
        self,
        header: Mapping[str, Any],
        payload: Bytes = b"",
        *,
        seconds: float = CALL_SECONDS,
        aborted: Aborted = never,
    ) -> tuple[Header, memoryview]:
        """Send one request and wait for its reply: header and payload.

        Raises:
            EngineError: the engine's error; EngineGoneError, DeadlineError, AbortedError.
        """
        deadline = time.monotonic() + seconds
        with self._turn.taken(deadline, aborted):
            if not self.is_open:
                raise EngineGoneError()
            number = self._next_id
            self._next_id = number % _MAX_REQUEST_ID + 1
            self._send(number, header, payload, deadline)
            while True:
                kind, answered, reply, data = self._receive(deadline, aborted)
                if kind == _EVENT:
                    self._events.append(reply)
                elif kind == _ERROR and (answered == 0 or reply.get("code") == "shutting_down"):
                    self.close()
                    raise _connection_error(reply)
                elif answered == number and kind == _ERROR:
                    raise EngineError.from_header(reply)
                elif answered == number:
                    return reply, data
                # else: the reply to an earlier call that was aborted

    def events(self) -> list[Header]:
        """The received events, oldest first; does not wait for more."""
        with self._turn.taken(time.monotonic() + CALL_SECONDS, never):
            while self.is_open:
                message = self._take_message()
                if message is not None and message[0] == _EVENT:
                    self._events.append(message[2])
                elif message is None and not self._receive_some(0.0, _CHUNK):
                    break
            taken = list(self._events)
            self._events.clear()
            return taken

    # ---- pixels

    def call_with_image(
        self,
        header: Mapping[str, Any],
        image: Image,
        *,
        seconds: float = CALL_SECONDS,
        aborted: Aborted = never,
    ) -> Header:
        """Send a request with an image, by a mapped file if possible."""
        described = image.to_json()
        view = memoryview(image.data).cast("B")
        file = self._borrow(len(view))
        if file is not None:
            file.write(view)
            mapped = dict(described, mapped={"name": file.name, "bytes": len(view)})
            try:
                with self._using(file):
                    return self.call(dict(header, image=mapped), seconds=seconds, aborted=aborted)[0]
            except EngineError as error:
                if error.code != "map":
                    raise
                self._map_folder = None
        return self.call(dict(header, image=described), view, seconds=seconds, aborted=aborted)[0]

    def call_for_image(
        self,
        header: Mapping[str, Any],
        expected_bytes: int,
        *,
        seconds: float = CALL_SECONDS,
        aborted: Aborted = never,
    ) -> tuple[Header, bytes]:
        """Send a request whose reply is an image, by a mapped file if possible."""
        file = self._borrow(expected_bytes)
        if file is not None:
            into = {"name": file.name, "offset": 0, "bytes": file.size}
            try:
                with self._using(file):
                    reply, _ = self.call(dict(header, into=into), seconds=seconds, aborted=aborted)
                    return reply, file.read(_image_bytes(reply["image"]))
            except EngineError as error:
                if error.code != "map":
                    raise
        reply, data = self.call(header, seconds=seconds, aborted=aborted)
        return reply, bytes(data)

    @contextlib.contextmanager
    def _using(self, file: MappedFile) -> Iterator[None]:
        """Return a file for reuse afterwards; after an aborted call it is not reused."""
        reusable = False
        try:
            yield
            reusable = True
        except (DeadlineError, AbortedError, EngineGoneError):
            raise
        except EngineError:
            reusable = True
            raise
        finally:
            self._give_back(file, reusable)

    def _borrow(self, size: int) -> MappedFile | None:
        """A mapped file of at least `size` bytes that no other thread uses, or None."""
        if not self._map_folder or not MAPPED_FROM_BYTES <= size <= _MAX_PAYLOAD:
            return None
        with self._files_lock:
            for file in self._files:
                if file.size >= size:
                    self._files.remove(file)
                    return file
            while self._files:  # all too small
                self._files.pop().close()
            try:
                return MappedFile(self._map_folder, self._map_prefix, size)
            except (OSError, ValueError):
                self._map_folder = None
                return None

    def _give_back(self, file: MappedFile, reusable: bool) -> None:
        with self._files_lock:
            if reusable and self.is_open:
                self._files.append(file)
            else:
                file.close()

    # ---- bytes

    def _send(self, number: int, header: Mapping[str, Any], payload: Bytes, deadline: float) -> None:
        text = json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
        if len(text) > _MAX_HEADER or len(payload) > _MAX_PAYLOAD:
            raise EngineError("bad_request", "The request is too long for the engine.")
        prefix = _PREFIX.pack(_MAGIC, _REQUEST, b"\0\0\0", number, len(text), len(payload))
        try:
            self._send_all(prefix + text, deadline)
            if payload:
                self._send_all(payload, deadline)
        except OSError as error:  # half a message may have been sent: no other can follow
            reason = self._last_words()
            self.close()
            raise reason or EngineGoneError() from error

    def _send_all(self, data: Bytes, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        self._socket.sendall(data)

    def _last_words(self) -> EngineError | None:
        """The engine's last message before it closed the connection, if any."""
        with contextlib.suppress(EngineError):
            while True:
                kind, answered, reply, _ = self._receive(time.monotonic() + ABORT_SECONDS, never)
                if kind == _ERROR and answered == 0:
                    return _connection_error(reply)
        return None

    def _receive(self, deadline: float, aborted: Aborted) -> Received:
        """The next message. Its received part is kept when the wait ends early."""
        while True:
            message = self._take_message()
            if message is not None:
                return message
            if aborted():
                raise AbortedError()
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineError()
            self._receive_some(min(left, ABORT_SECONDS), _CHUNK)

    def _take_message(self) -> Received | None:
        """The first message in the buffer, if it is whole."""
        if len(self._received) < _PREFIX.size:
            return None
        magic, kind, zero, number, header_bytes, payload_bytes = _PREFIX.unpack_from(self._received)
        legal = magic == _MAGIC and kind in (_REPLY, _ERROR, _EVENT) and zero == b"\0\0\0"
        if not legal or header_bytes > _MAX_HEADER or payload_bytes > _MAX_PAYLOAD:
            raise self._nonsense()
        body = _PREFIX.size + header_bytes
        end = body + payload_bytes
        if len(self._received) < end:
            return None
        message, self._received = self._received, self._received[end:]
        try:
            header = json.loads(message[_PREFIX.size : body].decode("utf-8"))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise self._nonsense()
        return kind, number, header, memoryview(message)[body:end]

    def _nonsense(self) -> EngineGoneError:
        self.close()
        return EngineGoneError("The engine has sent something that is not a message.")

    def _receive_some(self, seconds: float, most: int) -> bool:
        """Wait for bytes; whether any came."""
        try:
            self._socket.settimeout(seconds)
            part = self._socket.recv(most)
        except (socket.timeout, BlockingIOError):
            return False
        except OSError as error:
            self.close()
            raise EngineGoneError() from error
        if not part:
            self.close()
            raise EngineGoneError()
        self._received += part
        return True


class _Turn:
    """A lock that is given in the order of requests, so that a polling thread does not block others."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, deadline: float, aborted: Aborted) -> Iterator[None]:
        """Wait for the turn. Raises DeadlineError or AbortedError instead of waiting longer."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
        try:
            with self._changed:
                while self._waiting[0] is not ticket:
                    if aborted():
                        raise AbortedError()
                    if time.monotonic() >= deadline:
                        raise DeadlineError()
                    self._changed.wait(ABORT_SECONDS)
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def _connection_error(header: Mapping[str, Any]) -> EngineError:
    if header.get("code") == "shutting_down":
        return EngineGoneError()
    return EngineError.from_header(header)


def _image_bytes(image: Mapping[str, Any]) -> int:
    stride = abs(int(image["row_bytes"])) * int(image["data_window"][3])
    return stride * len(image["channels"])
