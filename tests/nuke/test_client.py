"""The client finds or starts the engine, never hangs, and survives a crash of the engine."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stm_nuke import launch, wire
from stm_nuke.client import (
    AbortedError,
    DeadlineError,
    Engine,
    EngineError,
    EngineGoneError,
    EngineStartError,
    Image,
)
from stm_nuke.wire import Connection

from stm_plugin import protocol
from tests.stm_plugin.server_process import REPOSITORY, ServerProcess, a_server, receive, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc")

PATIENCE = 120.0
"""Seconds for what another process does on a busy machine."""
MODULES = ("client", "wire", "launch")
ANSWER = "a" * 64


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A separate runtime folder without an engine."""
    server = ServerProcess("stm_plugin.server")
    for name in ("STM_RUNTIME_DIR", "STM_TRANSPORT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, server.environment[name])
    monkeypatch.setenv("STM_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("STM_ENGINE_ROOT", str(REPOSITORY))
    yield server
    with suppress(EngineError):
        Engine("the end", may_start=False).shutdown()
    assert wait_for(lambda: not (server.folder / "endpoint.json").exists(), PATIENCE)
    assert wait_for(lambda: all(one.poll() is not None for one in launch._started), PATIENCE)
    launch.reap()
    server.clean()


@pytest.fixture
def engine(runtime: ServerProcess) -> Iterator[Engine]:
    """An engine that is started when it is needed."""
    one = Engine("test")
    yield one
    one.close()


# ---- what it is made of


@pytest.mark.parametrize("module", MODULES)
def test_the_client_is_python_3_9_and_standard_library_only(module: str) -> None:
    text = (REPOSITORY / "nuke" / "stm_nuke" / f"{module}.py").read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - {"stm_nuke"} <= set(sys.stdlib_module_names)


def test_client_and_server_agree_on_every_number() -> None:
    assert wire.VERSION[0] == protocol.VERSION[0] and wire.VERSION <= protocol.VERSION
    assert wire._PREFIX.format == protocol.PREFIX.format
    assert wire._MAGIC == protocol.MAGIC
    assert (wire._MAX_HEADER, wire._MAX_PAYLOAD) == (protocol.MAX_HEADER, protocol.MAX_PAYLOAD)
    assert wire.SAMPLE_BYTES == protocol.SAMPLE_BYTES
    assert tuple(protocol.Kind) == (wire._REQUEST, wire._REPLY, wire._ERROR, wire._EVENT)


def test_images_are_described_as_the_server_reads_them() -> None:
    data = bytes(range(48))
    for image in (
        Image("byte", ("R", "G", "B", "A"), (0, 0, 4, 3), data),
        Image.bottom_up("byte", ("R", "G", "B", "A"), (0, 0, 4, 3), data),
        Image("short", ("R", "G"), (-2, 5, 3, 4), data, layout="planar"),
    ):
        layout = protocol.ImageLayout.read(image.to_json())
        layout.check_inside(len(data))
        assert layout.extent() == (0, 48)
    upward = protocol.ImageLayout.read(Image.bottom_up("byte", ("A",), (0, 0, 4, 3), data[:12]).to_json())
    assert (upward.offset, upward.row_bytes) == (8, -4)


# ---- finding and starting


def test_the_engine_is_started_on_demand_and_lives_on_for_others(
    runtime: ServerProcess, engine: Engine
) -> None:
    assert engine.ping()["clients"] == 1
    engine.close()
    other = Engine("other", may_start=False)
    assert wait_for(lambda: other.ping()["clients"] == 1)
    other.close()


def test_nothing_is_started_where_that_is_not_wanted(runtime: ServerProcess) -> None:
    with pytest.raises(EngineStartError, match="No engine is running"):
        Engine("test", may_start=False).ping()
    assert not (runtime.folder / "endpoint.json").exists()


def test_the_engine_gets_a_scrubbed_environment_and_none_of_the_hosts_files(
    runtime: ServerProcess, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = {
        "PYTHONHOME": "/nowhere",
        "PYTHONSTARTUP": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "NUKE_PATH": "/nowhere",
        "LD_PRELOAD": "/nowhere",
        "TCL_LIBRARY": "/nowhere",
        "QT_PLUGIN_PATH": "/nowhere",
        "STM_KEPT": "yes",
    }
    for name, value in spoiled.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join([f"{launch.host_folder()}/lib", "/studio/lib"]))
    with socket.socket() as inheritable:
        inheritable.set_inheritable(True)
        link = os.readlink(f"/proc/self/fd/{inheritable.fileno()}")
        engine.ping()
    process = Path("/proc") / str(runtime.endpoint()["pid"])
    lines = (process / "environ").read_bytes().split(b"\0")
    variables = dict(line.decode().split("=", 1) for line in lines if line)
    assert not {name for name in spoiled if variables.get(name) == "/nowhere"}
    assert variables["STM_KEPT"] == "yes"
    assert variables["LD_LIBRARY_PATH"] == "/studio/lib", "what a studio needs stays"
    assert variables["PYTHONNOUSERSITE"] == "1"
    assert variables["PYTHONPATH"] == str(REPOSITORY)
    open_files = {os.readlink(one) for one in (process / "fd").iterdir() if one.is_symlink()}
    assert link not in open_files


def test_two_hosts_that_start_the_engine_at_once_share_one(runtime: ServerProcess) -> None:
    script = (
        "from stm_nuke.client import Engine; e = Engine('host'); e.ping(); print(e.connection().engine_pid)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "nuke")}
    hosts = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    pids = {host.communicate()[0] for host in hosts}
    assert [host.returncode for host in hosts] == [0, 0]
    assert len(pids) == 1


def test_an_engine_that_does_not_come_up_is_started_three_times_and_its_log_is_shown(
    runtime: ServerProcess, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module: torch >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("STM_ENGINE_PYTHON", str(broken))
    monkeypatch.setattr(launch, "START_DELAYS", (0.0, 0.0, 0.0))
    for _ in range(2):
        with pytest.raises(EngineStartError, match=r"3 times(.|\n)*no such module: torch"):
            engine.ping()
    assert (runtime.folder / "engine.log").read_text().count("no such module") == 3, (
        "not again within a minute"
    )


def test_a_missing_or_damaged_installation_is_told_in_words(
    runtime: ServerProcess, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STM_ENGINE_PYTHON")
    monkeypatch.setenv("STM_PREFIX", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(EngineStartError, match=r"no engine.json in .*Run install.py"):
        engine.ping()
    (tmp_path / "engine.json").write_text("{")
    with pytest.raises(EngineStartError, match=r"damaged"):
        engine.ping()
    (tmp_path / "engine.json").write_text(json.dumps({"python": str(tmp_path / "gone"), "version": "1"}))
    with pytest.raises(EngineStartError, match=r"cannot be started"):
        engine.ping()


def test_the_installation_is_found_through_its_prefix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STM_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("STM_PREFIX", str(tmp_path))
    (tmp_path / "engine.json").write_text(json.dumps({"python": "/a/python", "version": "1.2", "root": "/b"}))
    assert launch.Installation.find() == launch.Installation("/a/python", "1.2", "/b")


def test_a_runtime_folder_that_others_could_write_is_refused(runtime: ServerProcess, engine: Engine) -> None:
    runtime.folder.chmod(0o777)
    with pytest.raises(EngineStartError, match="not private"):
        engine.ping()
    runtime.folder.chmod(0o700)


def test_a_stale_endpoint_is_no_obstacle(runtime: ServerProcess, engine: Engine) -> None:
    engine.ping()
    old = runtime.endpoint()
    engine.close()
    os.kill(old["pid"], signal.SIGKILL)
    assert wait_for(lambda: not is_reachable(runtime.folder))
    assert engine.ping()["clients"] == 1
    assert runtime.endpoint()["token"] != old["token"]


def is_reachable(folder: Path) -> bool:
    """Whether an engine accepts connections."""
    link = launch.try_to_connect(folder)
    if link is not None:
        link.close()
    return link is not None


def test_the_engine_ends_with_the_host_that_started_it(runtime: ServerProcess) -> None:
    script = "import time; from stm_nuke.client import Engine; e = Engine('host'); e.ping(); time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "nuke")}
    host = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert wait_for(lambda: (runtime.folder / "endpoint.json").exists(), PATIENCE)
    host.kill()
    host.wait()
    assert wait_for(lambda: not (runtime.folder / "endpoint.json").exists(), PATIENCE)


# ---- against an engine that behaves badly


class BadEngine:
    """A server in the engine's place that follows a script."""

    def __init__(
        self,
        folder: Path,
        script: Callable[[socket.socket], None],
        answer: str = ANSWER,
        spoken: tuple[int, int] = wire.VERSION,
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.hello = {"protocol": spoken, "answer": answer, "engine": "1.0"}
        self.script = script
        self.seen: list[protocol.Message] = []
        endpoint = {
            "protocol": [1, 0], "transport": "tcp", "path": "", "port": self.listener.getsockname()[1],
            "token": "0" * 64, "answer": ANSWER, "pid": os.getpid(), "engine": "0.0.0",
        }  # fmt: skip
        (folder / "endpoint.json").write_text(json.dumps(endpoint))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        link, _ = self.listener.accept()
        with link:
            link.settimeout(30)
            hello = self._read(link)
            send(link, 2, hello.request_id, self.hello)
            with suppress(OSError):
                self.script(link)

    def _read(self, link: socket.socket) -> protocol.Message:
        message = receive(link)
        self.seen.append(message)
        return message

    def close(self) -> None:
        self.listener.close()
        self.thread.join()


def send(link: socket.socket, kind: int, number: int, header: dict[str, Any]) -> None:
    """One message from the engine's side."""
    link.sendall(protocol.encode_message(protocol.Message(protocol.Kind(kind), number, header)))


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., BadEngine]]:
    """Makes a bad engine that the client finds."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path))
    made: list[BadEngine] = []

    def make(script: Callable[[socket.socket], None], **answers: Any) -> BadEngine:
        made.append(BadEngine(tmp_path, script, **answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def connect() -> Connection:
    return Engine("test", may_start=False).connection()


def test_something_that_does_not_know_the_answer_gets_nothing_but_hello(
    bad: Callable[..., BadEngine],
) -> None:
    impostor = bad(lambda link: None, answer="b" * 64)
    with pytest.raises(EngineError, match="instead of the engine"):
        connect()
    impostor.close()
    assert [message.header["op"] for message in impostor.seen] == ["hello"]


def test_an_engine_that_cannot_read_pictures_from_files_is_refused_in_words(
    bad: Callable[..., BadEngine],
) -> None:
    older = bad(lambda link: None, spoken=(1, 0))
    words = r"engine 1\.0 speaks protocol 1\.0, .*needs 1\.1.*install\.py"
    with pytest.raises(EngineError, match=words) as caught:
        connect()
    assert caught.value.code == "version"
    older.close()
    assert [message.header["op"] for message in older.seen] == ["hello"]


def test_a_late_answer_is_dropped_and_the_next_one_is_the_right_one(bad: Callable[..., BadEngine]) -> None:
    def script(link: socket.socket) -> None:
        first = receive(link)
        second = receive(link)
        send(link, 2, first.request_id, {"which": "first"})
        send(link, 2, second.request_id, {"which": "second"})

    bad(script)
    connection = connect()
    with pytest.raises(DeadlineError):
        connection.call({"op": "ping"}, seconds=0.2)
    assert connection.call({"op": "ping"})[0] == {"which": "second"}
    connection.close()


def test_a_wait_can_be_aborted(bad: Callable[..., BadEngine]) -> None:
    bad(lambda link: (receive(link), receive(link), None)[2])
    connection = connect()
    asked: list[int] = []

    def aborted() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(AbortedError):
        connection.call({"op": "ping"}, aborted=aborted)
    connection.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\0" * 24, b"STM\1\2\0\0\0" + b"\xff" * 16,
     protocol.PREFIX.pack(b"STM\1", 2, b"\0\0\0", 2, 2, 0) + b"[]"],
)  # fmt: skip
def test_nonsense_from_the_engine_is_an_error_in_words(
    bad: Callable[..., BadEngine], nonsense: bytes
) -> None:
    def script(link: socket.socket) -> None:
        receive(link)
        link.sendall(nonsense)

    bad(script)
    connection = connect()
    with pytest.raises(EngineGoneError, match="not a message"):
        connection.call({"op": "ping"})
    assert not connection.is_open


def test_an_engine_that_ends_in_the_middle_of_a_reply_is_gone(bad: Callable[..., BadEngine]) -> None:
    def script(link: socket.socket) -> None:
        number = receive(link).request_id
        whole = protocol.encode_message(protocol.Message(protocol.Kind.REPLY, number, {"text": "long" * 99}))
        link.sendall(whole[:100])

    bad(script)
    connection = connect()
    with pytest.raises(EngineGoneError):
        connection.call({"op": "ping"})


def test_an_error_for_the_whole_connection_is_shown_and_ends_it(bad: Callable[..., BadEngine]) -> None:
    def script(link: socket.socket) -> None:
        receive(link)
        send(link, 3, 0, {"code": "framing", "text": "Too long."})

    bad(script)
    connection = connect()
    with pytest.raises(EngineError, match=r"Too long\.") as caught:
        connection.call({"op": "ping"})
    assert caught.value.code == "framing"
    assert not connection.is_open


def test_an_older_engine_that_nobody_else_uses_is_ended_and_the_installed_one_is_started(
    bad: Callable[..., BadEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def script(link: socket.socket) -> None:
        for answer in ({"clients": 1, "jobs": 0}, {}):
            message = receive(link)
            asked.append(message.header["op"])
            send(link, 2, message.request_id, answer)

    class Started(Exception):
        """The launcher was asked to start an engine."""

    class RecordingLauncher(launch.Launcher):
        def connect(self, folder: Path, aborted: Callable[[], bool]) -> socket.socket:
            raise Started

    monkeypatch.setattr(launch.Installation, "find", lambda: launch.Installation("/python", "2.0"))
    older = bad(script)
    with pytest.raises(Started):
        engine = Engine("test", launcher=RecordingLauncher())
        monkeypatch.setattr(engine, "_reach", reach_once_then(engine._reach, older.close))
        engine.ping()
    assert asked == ["ping", "shutdown"]


def reach_once_then(
    reach: Callable[..., socket.socket], after: Callable[[], None]
) -> Callable[..., socket.socket]:
    """`reach`, with `after` called before the second call."""
    calls = 0

    def wrapped(aborted: Callable[[], bool]) -> socket.socket:
        nonlocal calls
        calls += 1
        if calls == 2:
            after()
        return reach(aborted)

    return wrapped


# ---- versions and shows side by side


@pytest.fixture
def beside(runtime: ServerProcess) -> Iterator[Engine]:
    """A second host's engine, beside a running one; it ends with the test."""
    one = Engine("beside")
    yield one
    one.shutdown()
    assert wait_for(lambda: not (one.folder / "endpoint.json").exists(), PATIENCE)
    if one.folder != runtime.folder:
        shutil.rmtree(one.folder)


@pytest.mark.slow
def test_a_host_of_another_show_gets_an_engine_of_its_own(
    runtime: ServerProcess, beside: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = Engine("first")
    first.ping()
    show = tmp_path / "show.toml"
    show.write_text("locked = ['device']\ndevice = 'cpu'")
    monkeypatch.setenv("STM_CONFIG", str(show))
    assert beside.info()["settings"]["device"]["locked"]
    assert beside.folder != runtime.folder and first.folder == runtime.folder
    assert first.info()["settings"]["device"]["locked"] is None, "the first show keeps its engine"
    again = Engine("same show")
    again.ping()
    assert again.folder == beside.folder and beside.ping()["clients"] == 2
    again.close()
    first.close()


def test_a_host_of_another_version_gets_an_engine_of_its_own(
    runtime: ServerProcess, beside: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Engine("first")
    pid = first.connection().call({"op": "ping"}) and runtime.endpoint()["pid"]
    found = launch.Installation(sys.executable, "99.0", str(REPOSITORY))
    monkeypatch.setattr(launch.Installation, "find", lambda: found)
    assert beside.ping()["clients"] == 1
    assert beside.folder != runtime.folder and runtime.endpoint()["pid"] == pid
    assert first.ping()["clients"] == 1, "nobody's engine was ended"
    first.close()


# ---- with threads and mapped files


def test_threads_share_a_connection_without_mixing_answers() -> None:
    with a_server("900") as server:
        connection = server.connect()
        wrong: list[object] = []

        def work(number: int) -> None:
            opening = {
                "op": "open_shot", "folder": f"/toy/thread{number}.stmshot", "create": True,
                "plate": {"kind": "pushed", "frames": [number, number], "display_window": [0, 0, 2, 2]},
            }  # fmt: skip
            shot = connection.call(opening)[0]["shot"]
            for _ in range(50):
                status, _ = connection.call({"op": "status", "shot": shot})
                if status["frames"] != [number, number]:
                    wrong.append(status)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        connection.close()
        assert wrong == []


def test_pixels_go_inline_where_mapped_files_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with a_server("900") as server:
        connection = server.connect()
        monkeypatch.setattr(os, "posix_fallocate", full)
        plate = {"kind": "pushed", "frames": [1, 1], "display_window": [0, 0, 200, 200]}
        opening = {"op": "open_shot", "folder": "/toy/full.stmshot", "create": True, "plate": plate}
        shot = connection.call(opening)[0]["shot"]
        image = Image("half", ("R", "G", "B"), (0, 0, 200, 200), bytes(240_000))
        reply = connection.call_with_image({"op": "push_plate", "shot": shot, "frame": 1}, image)
        assert reply["changed"] is True
        assert connection._files == []
        assert list(Path(connection_folder(server)).iterdir()) == []
        connection.close()


def connection_folder(server: ServerProcess) -> str:
    """The server's folder of mapped files."""
    connection = server.connect()
    folder = connection._map_folder
    connection.close()
    assert folder is not None
    return folder


def test_an_engine_that_has_ended_leaves_no_zombie(runtime: ServerProcess, engine: Engine) -> None:
    engine.ping()
    (process,) = launch._started
    engine.shutdown()
    assert wait_for(lambda: process.poll() == 0, PATIENCE)
    engine.close()
    assert launch._started == []
