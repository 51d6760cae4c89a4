"""An engine that follows a script: it behaves like a broken or a silent engine, which the real one cannot."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.ofx_fixtures import HEIGHT, WIDTH, EngineHome

TOKEN, ANSWER = "1" * 64, "2" * 64
PREFIX = struct.Struct("<4sB3xIIQ")
MAGIC = b"STM\x01"
REPLY, ERROR = 2, 3

Conversation = Callable[[socket.socket, int, dict[str, Any]], None]


def message(kind: int, number: int, header: object, payload: bytes = b"") -> bytes:
    """The bytes of a message; `header` may be bytes that are not JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return PREFIX.pack(MAGIC, kind, number, len(text), len(payload)) + text + payload


def receive(link: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes."""
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


class ScriptedEngine:
    """Answers hello correctly, unless the script does that too, and then follows the script."""

    def __init__(
        self,
        folder: Path,
        script: Conversation,
        answer: str = ANSWER,
        is_mute_from_the_start: bool = False,
        map_folder: str | None = None,
        engine: str = "0.0.0",
    ) -> None:
        self._map_folder, self._engine = map_folder, engine
        self._script, self._answer, self._greets = script, answer, not is_mute_from_the_start
        self._refuses = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = folder / "engine.sock"
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self.asked: list[str] = []
        self.payloads: dict[str, int] = {}  # operation -> bytes that came with the last one
        endpoint = {"protocol": [1, 0], "transport": "unix", "path": str(self.path), "port": 0}
        endpoint |= {"token": TOKEN, "answer": ANSWER, "pid": os.getpid(), "engine": "script"}
        (folder / "endpoint.json").write_text(json.dumps(endpoint))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._refuses.is_set():
                if not select.select([self._listener], [], [], 0.05)[0] or self._refuses.is_set():
                    continue
                link, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(link,), daemon=True).start()

    def _talk(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError, ConnectionError):
            while True:
                _, kind, number, header_bytes, payload_bytes = PREFIX.unpack(receive(link, PREFIX.size))
                assert kind == 1
                header = json.loads(receive(link, header_bytes))
                receive(link, payload_bytes)
                self.payloads[header["op"]] = payload_bytes
                self.asked.append(header["op"])
                if header["op"] == "hello" and self._greets:
                    greeting = {"protocol": [1, 0], "answer": self._answer, "map_folder": self._map_folder}
                    greeting |= {"map_prefix": "c1-", "engine": self._engine}
                    link.sendall(message(REPLY, number, greeting))
                else:
                    self._script(link, number, header)

    def stop_accepting(self) -> None:
        """Accept no more connections; new ones wait in the queue."""
        self._refuses.set()
        self._thread.join()

    def close(self) -> None:
        """Stop listening."""
        self.stop_accepting()
        self._listener.close()


@dataclass
class BusyEngine:
    """A script: an engine that answers correctly, lacks every plate frame, and never finishes a job.

    Attributes:
        mute_at: operations that it never answers.
        keys: frames for which it reports keys and returns mattes.
        cancelled: whether it was asked to cancel its job; the job then ends as cancelled.
        stale: ranges that it reports as stale.
        goes_on: whether its job makes progress between two questions.
        waits_for: when this is set, the job finishes and mattes exist.
    """

    mute_at: frozenset[str] = frozenset()
    keys: tuple[int, ...] = ()
    stale: tuple[tuple[int, int], ...] = ()
    cancelled: bool = False
    goes_on: bool = False
    steps: int = 1
    waits_for: threading.Event = field(default_factory=threading.Event)

    def __call__(self, link: socket.socket, number: int, header: dict[str, Any]) -> None:
        """Answer one request."""
        operation = header["op"]
        if operation == "cancel":
            self.cancelled = True
        if operation in self.mute_at:
            return
        if operation == "get_matte" and not (self.waits_for.is_set() or header["frame"] in self.keys):
            missing = {"code": "matte_missing", "text": "There is no matte.", "details": {"state": "missing"}}
            link.sendall(message(ERROR, number, missing))
            return
        payload = b""
        answer = self._answer(operation, header)
        if operation == "get_matte":
            _, _, width, height = header["window"]
            payload = bytes(4 * width * height)
        link.sendall(message(REPLY, number, answer, payload))

    def _answer(self, operation: str, header: dict[str, Any]) -> dict[str, Any]:
        state = "cancelled" if self.cancelled else "finished" if self.waits_for.is_set() else "running"
        self.steps += self.goes_on
        job = {"job": "j1", "state": state, "version": self.steps, "done": 0, "total": 9, "error": None}
        done = [[frame, frame] for frame in self.keys]
        image = {"format": "float", "channels": ["A"], "data_window": header.get("window")}
        answers: dict[str, dict[str, Any]] = {
            "open_shot": {"shot": "s1"},
            "close_shot": {},
            "get_settings": {"settings": {}},
            "set_settings": {"settings": {}},
            "list_keys": {"keys": [{"frame": frame, "digest": None} for frame in self.keys]},
            "push_key": {},
            "plate_needed": {"needed": [header.get("frames")]},
            "push_plate": {"dirty": []},
            "plan": {"plate_needed": [], "frames": []},
            "propagate": job,
            "job": job,
            "cancel": job,
            "status": {"text": "at work", "jobs": ["j1"], "done": done, "stale": list(self.stale)},
            "get_matte": {
                "frame": header.get("frame"),
                "image": image,
                "display_window": [0, 0, WIDTH, HEIGHT],
            },
        }
        return answers[operation]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, engine: EngineHome) -> Iterator[Callable[..., ScriptedEngine]]:
    """A function that starts a scripted engine instead of the real one, which cannot be started."""
    folder = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
    monkeypatch.setenv("STM_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("STM_ENGINE_PYTHON", "/bin/false")
    engines: list[ScriptedEngine] = []

    def put(script: Conversation, **options: Any) -> ScriptedEngine:
        engines.append(ScriptedEngine(folder, script, **options))
        return engines[-1]

    yield put
    for one in engines:
        one.close()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
