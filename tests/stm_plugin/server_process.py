"""A server in a separate process with a separate runtime folder, and functions to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stm_nuke.wire import Connection, Image

from stm_plugin import protocol

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0


class ServerProcess:
    """One server."""

    def __init__(
        self, module: str = "tests.stm_plugin.toy_engine", transport: str = "unix", umask: int = -1
    ) -> None:
        # Short, because the name of a unix socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
        self.module = module
        self.umask = umask
        self.environment = {
            **os.environ,
            "STM_RUNTIME_DIR": str(self.folder),
            "STM_TRANSPORT": transport,
            "OMP_NUM_THREADS": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a server; does not wait for it."""
        process = subprocess.Popen(
            [sys.executable, "-m", self.module, *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            umask=self.umask,
        )
        self.processes.append(process)
        return process

    def start_and_wait(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a server and wait until it can be reached."""
        process = self.start(*arguments)
        self.wait_until_reachable(process)
        return process

    def wait_until_reachable(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the endpoint file of `process`."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                if self.endpoint()["pid"] == process.pid:
                    return
            assert process.poll() is None, f"the server ended with {process.returncode}"
            time.sleep(0.02)
        raise AssertionError("the server did not come up")

    def endpoint(self) -> dict[str, Any]:
        """The server's endpoint file."""
        found: dict[str, Any] = json.loads((self.folder / "endpoint.json").read_text("utf-8"))
        return found

    def raw(self) -> socket.socket:
        """A connected socket without a hello."""
        endpoint = self.endpoint()
        if endpoint["transport"] == "unix":
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.connect(endpoint["path"])
        else:
            link = socket.create_connection(("127.0.0.1", endpoint["port"]))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(30)
        return link

    def connect(self, name: str = "test", events: bool = False) -> Connection:
        """A connection that has said hello."""
        endpoint = self.endpoint()
        return Connection(self.raw(), endpoint["token"], endpoint["answer"], name, events)

    def greeted(self) -> socket.socket:
        """A connected socket that has said hello and read the answer."""
        link = self.raw()
        hello = {
            "op": "hello",
            "protocol": list(protocol.VERSION),
            "token": self.endpoint()["token"],
            "client": "raw",
            "pid": 0,
        }
        link.sendall(request(1, hello))
        assert receive(link).kind is protocol.Kind.REPLY
        return link

    def clean(self) -> None:
        """End what still runs and remove the folder."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def a_server(
    *arguments: str, module: str = "tests.stm_plugin.toy_engine", transport: str = "unix", umask: int = -1
) -> Iterator[ServerProcess]:
    """A running server for the length of a block."""
    server = ServerProcess(module, transport, umask)
    try:
        server.start_and_wait(*arguments)
        yield server
    finally:
        server.clean()


def request(number: int, header: dict[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of a request."""
    return protocol.encode_message(protocol.Message(protocol.Kind.REQUEST, number, header, payload)) + payload


def receive(link: socket.socket) -> protocol.Message:
    """The next message. ConnectionError at the end of the stream."""
    prefix = protocol.decode_prefix(receive_exactly(link, protocol.PREFIX.size))
    header = protocol.decode_header(receive_exactly(link, prefix.header_bytes))
    return protocol.Message(
        prefix.kind, prefix.request_id, header, receive_exactly(link, prefix.payload_bytes)
    )


def receive_exactly(link: socket.socket, count: int) -> bytes:
    """`count` bytes."""
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise ConnectionError("the server has closed the connection")
        data += part
    return data


def ended_by_server(link: socket.socket) -> bool:
    """Whether the server closes the connection; messages before that are skipped."""
    try:
        while link.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def grey(width: int = 4, height: int = 3, value: float = 0.5) -> Image:
    """A plate frame of one value, as bytes."""
    level = round(value * 255)
    return Image("byte", ("R", "G", "B"), (0, 0, width, height), bytes([level]) * (width * height * 3))


def mask(width: int = 4, height: int = 3, value: int = 255) -> Image:
    """A mask of one value, as bytes."""
    return Image("byte", ("A",), (0, 0, width, height), bytes([value]) * (width * height))


def opening(
    folder: str, first: int = 1001, last: int = 1010, width: int = 4, height: int = 3
) -> dict[str, Any]:
    """The fields of `open_shot` for a new pushed shot."""
    return {
        "folder": folder,
        "create": True,
        "plate": {"kind": "pushed", "frames": [first, last], "display_window": [0, 0, width, height]},
    }


def wait_for(condition: Any, seconds: float = 30.0) -> bool:
    """Wait until `condition()`; whether it came true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
