"""The page's side of the engine protocol: one shot in the user's engine, as any other client opens it."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from stm_plugin.errors import PropagationCancelled, StmError
from stm_plugin.protocol import (
    PREFIX,
    VERSION,
    Kind,
    Message,
    RequestError,
    decode_header,
    decode_prefix,
    encode_message,
)
from stm_plugin.review.engine_process import EngineProcess, Reached

CLIENT: Final = "stm review"
RESTARTED: Final = "The engine had ended. It was started again; nothing that was finished is lost."
_CALL_SECONDS: Final = 300.0
_JOB_WAIT_MS: Final = 250
_MOST_RESTARTS: Final = 3
_TRIES: Final = 3
_NEW_ENGINE_SECONDS: Final = 0.5

Header = dict[str, Any]
IsStopped = Callable[[], bool]


class EngineGoneError(StmError):
    """The engine ended, or closed the connection."""


class ShotClient:
    """One shot, opened in the user's engine. Thread-safe: one request at a time.

    The engine is found or started with the first request, and again where it has ended. A request that the
    engine did not answer is repeated once.

    Args:
        folder: the shot store.
        process: finds or starts the engine.
        on_restart: is called after a connection to a new engine took the place of an earlier one.
    """

    def __init__(
        self, folder: Path, process: EngineProcess, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        self.pid = 0
        """The engine's process; 0 before the first connection."""
        self._folder, self._process, self._on_restart = folder, process, on_restart
        self._mutex = threading.RLock()
        self._closed = threading.Event()
        self._link: socket.socket | None = None
        self._shot = ""
        self._number = 0

    @property
    def has_been_connected(self) -> bool:
        """Whether an engine was ever reached."""
        return self.pid != 0

    def connect(self) -> None:
        """Connect and open the shot, unless that is done.

        Raises:
            StmError: the engine does not start, or cannot open the shot.
        """
        with self._mutex:
            if self._link is None:
                self._open()

    def has_ended(self) -> bool:
        """Whether the engine has closed a connection that was open; the connection is given up then."""
        if not self._mutex.acquire(blocking=False):
            return False  # a request under way finds out by itself
        try:
            if self._link is None:
                return self.has_been_connected
            readable, _, _ = select.select([self._link], [], [], 0)
            if readable and not self._link.recv(1, socket.MSG_PEEK):
                self._drop()
                return True
            return False
        except OSError:
            self._drop()
            return True
        finally:
            self._mutex.release()

    def call(self, op: str, payload: bytes = b"", **given: Any) -> Header:
        """One request about the shot; returns the reply.

        Raises:
            RequestError: the engine refuses it.
            EngineGoneError: the engine ended twice.
            StmError: the engine does not start.
        """
        with self._mutex:
            try:
                return self._about_shot(op, payload, given)
            except EngineGoneError:
                return self._about_shot(op, payload, given)

    def start(self, op: str, **given: Any) -> Header:
        """A request that starts a job, not repeated.

        Raises:
            RequestError, EngineGoneError, StmError: as `call`.
        """
        with self._mutex:
            return self._about_shot(op, b"", given)

    def follow(self, job: str, on_state: Callable[[Header], None], is_stopped: IsStopped) -> Header:
        """Wait for the end of a job; returns its last state.

        Args:
            on_state: is called with every new state.
            is_stopped: whether to cancel the job.

        Raises:
            PropagationCancelled: the job was cancelled.
            RequestError: it failed.
            EngineGoneError: the engine ended.
        """
        seen, cancelled = 0, False
        while True:
            if is_stopped() and not cancelled:
                self._request({"op": "cancel", "job": job})
                cancelled = True
            state = self._request({"op": "job", "job": job, "wait_ms": _JOB_WAIT_MS, "seen": seen})
            if state["version"] > seen:
                seen = state["version"]
                on_state(state)
            if state["state"] == "finished":
                return state
            if state["state"] == "cancelled":
                raise PropagationCancelled(str(state["text"]))
            if state["state"] == "failed":
                raise _error_of(state["error"])

    def run(
        self,
        op: str,
        given: Mapping[str, Any],
        on_state: Callable[[Header], None],
        is_stopped: IsStopped,
    ) -> list[Header]:
        """Start a job and wait for its end; where the engine ends, start it again.

        Returns:
            The replies that started it: one, and one more for every engine that ended.

        Raises:
            PropagationCancelled, RequestError, StmError: as `follow` and `start`.
        """
        replies: list[Header] = []
        while True:
            try:
                replies.append(self.start(op, **given))
                self.follow(str(replies[-1]["job"]), on_state, is_stopped)
                return replies
            except EngineGoneError:
                if len(replies) > _MOST_RESTARTS or is_stopped():
                    raise

    def close(self) -> None:
        """Disconnect, also during a request. The engine goes on for others."""
        self._closed.set()
        link = self._link
        if link is not None:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # a request that waits ends now
        with self._mutex:
            self._drop()

    # ---- the connection

    def _about_shot(self, op: str, payload: bytes, given: Mapping[str, Any]) -> Header:
        self.connect()
        return self._request({"op": op, "shot": self._shot, **given}, payload)

    def _open(self) -> None:
        is_again = self.has_been_connected
        for attempt in range(_TRIES):
            reached = self._process.reach(self._closed.is_set)
            self._link = reached.link
            self._link.settimeout(_CALL_SECONDS)
            try:
                self._hello(reached)
                self._shot = str(self._request({"op": "open_shot", "folder": str(self._folder)})["shot"])
                break
            except EngineGoneError:  # it ended just now
                if attempt == _TRIES - 1 or self._closed.is_set():
                    raise
            except BaseException as error:
                self._drop()
                is_new = isinstance(error, RequestError) and error.code == "token"  # its file comes soon
                if not is_new or attempt == _TRIES - 1:
                    raise
                self._closed.wait(_NEW_ENGINE_SECONDS)
        if is_again:
            self._on_restart()

    def _hello(self, reached: Reached) -> None:
        hello = {
            "op": "hello",
            "protocol": list(VERSION),
            "token": reached.endpoint.token,
            "client": CLIENT,
            "pid": os.getpid(),
        }
        answer = self._request(hello)
        if not secrets.compare_digest(str(answer["answer"]), reached.endpoint.answer):
            raise StmError("What answers is not the engine.", hint="Start `stm review` again.")
        self.pid = int(answer["pid"])

    def _request(self, header: Header, payload: bytes = b"") -> Header:
        with self._mutex:
            if self._link is None:
                raise EngineGoneError("The engine has ended.")
            self._number += 1
            number = self._number
            message = encode_message(Message(Kind.REQUEST, number, header, payload))
            try:
                self._link.sendall(message)
                if payload:
                    self._link.sendall(payload)
                while (answer := self._receive()).request_id not in (number, 0):
                    continue
            except (OSError, StmError) as error:
                self._drop()
                raise EngineGoneError("The engine has ended.") from error
            if answer.kind is Kind.ERROR:
                refusal = _error_of(answer.header)
                if refusal.code == "shutting_down":
                    self._drop()
                    raise EngineGoneError("The engine has ended.")
                raise refusal
            return answer.header

    def _receive(self) -> Message:
        prefix = decode_prefix(self._exactly(PREFIX.size))
        header = decode_header(self._exactly(prefix.header_bytes))
        return Message(prefix.kind, prefix.request_id, header, self._exactly(prefix.payload_bytes))

    def _exactly(self, count: int) -> bytes:
        assert self._link is not None
        data = bytearray()
        while len(data) < count:
            part = self._link.recv(min(count - len(data), 1 << 20))
            if not part:
                raise OSError("the engine has closed the connection")
            data += part
        return bytes(data)

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None


def _error_of(header: Header) -> RequestError:
    """The error that the engine sent; its text for people is the engine's."""
    return RequestError(
        str(header["code"]),
        str(header["what"]),
        frame=header.get("frame"),
        path=header.get("path"),
        hint=header.get("hint"),
    )
