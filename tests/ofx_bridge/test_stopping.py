"""The effect obeys a host's stop immediately, during every wait and every work.

Nothing is timed here. The engine is silent from a chosen point on, so an effect that waited without
checking would never return. The host counts each call after its stop as a violation.
`benchmarks/ofx_abort.py` measures times.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.ofx_fixtures import FIRST, HEIGHT, LAST, WIDTH, EngineHome, Rig, make_rig
from tests.hosts.ofx_host import ALPHA, OK, REPLY_NO, Clip, OfxHost, nodes_of
from tests.hosts.ofx_scripted_engine import BusyEngine, ScriptedEngine

Scripted = Callable[..., ScriptedEngine]

LOOK_EVERY_BYTES = 4 << 20
"""After about so many bytes of pixels the effect looks whether it is still wanted."""
BIG_WIDTH, BIG_HEIGHT = 2048, 1024
UNTOUCHED = 0xCD
BIG_BYTES = BIG_WIDTH * BIG_HEIGHT * 4 * 4  # RGBA float


def keyed_rig(host: OfxHost, folder: Path) -> Rig:
    """A node with a store and a key, as loaded from a script."""
    rig = make_rig(host)
    rig.node.set("shotStore", str(folder / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    return rig


# ---- renders


@pytest.mark.parametrize(
    "operation",
    [
        "hello",
        "open_shot",
        "list_keys",
        "push_key",
        "plate_needed",
        "push_plate",
        "get_matte",
        "propagate",
        "job",
    ],
)
def test_an_abort_ends_a_render_whatever_the_engine_keeps_to_itself(
    host: OfxHost, scripted: Scripted, tmp_path: Path, operation: str
) -> None:
    script = BusyEngine(mute_at=frozenset({operation}), keys=(FIRST,))
    engine = scripted(script, is_mute_from_the_start=operation == "hello")
    rig = keyed_rig(host, tmp_path)
    rig.node.abort_answer = lambda: int(operation in engine.asked)
    with nodes_of(host, rig.node):
        status, image = rig.node.render(FIRST + 2, in_order=True)
        assert status != OK
        assert (image.memory == UNTOUCHED).all()
        assert host.messages == []


def test_an_abort_ends_a_render_that_the_engine_computes_and_the_computation(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    script = BusyEngine(keys=(FIRST,))
    engine = scripted(script)
    rig = keyed_rig(host, tmp_path)
    rig.node.abort_answer = lambda: int(engine.asked.count("job") > 3)
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST + 2, in_order=True)[0] != OK
        rig.node.abort_answer = lambda: 0
        assert rig.node.render(FIRST)[0] == OK, rig.node.persistent
        assert "cancel" in engine.asked


def test_an_abort_ends_a_wait_for_an_engine_that_lets_nobody_in(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    engine = scripted(BusyEngine())
    with full_queue(engine):
        rig = keyed_rig(host, tmp_path)
        asked = iter(range(1000))
        rig.node.abort_answer = lambda: int(next(asked) > 4)
        with nodes_of(host, rig.node):
            assert rig.node.render(FIRST)[0] != OK
            assert engine.asked == []


@contextlib.contextmanager
def full_queue(engine: ScriptedEngine) -> Iterator[None]:
    """The engine accepts no more connections, and its queue is full."""
    engine.stop_accepting()
    waiting: list[socket.socket] = []
    try:
        while True:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            waiting.append(link)
            link.setblocking(False)
            if link.connect_ex(str(engine.path)) != 0:
                break
        yield
    finally:
        for link in waiting:
            link.close()


SLOW_STARTER = """#!/bin/sh
touch "{folder}/started"
exec sleep 60
"""


def test_an_abort_ends_the_wait_for_an_engine_that_starts(
    host: OfxHost, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starter = tmp_path / "python"
    starter.write_text(SLOW_STARTER.format(folder=tmp_path))
    starter.chmod(0o755)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("STM_ENGINE_PYTHON", str(starter))
    rig = keyed_rig(host, tmp_path)
    rig.node.abort_answer = lambda: int((tmp_path / "started").exists())
    with nodes_of(host, rig.node):
        assert rig.node.render(FIRST)[0] != OK
        assert host.messages == []


@pytest.mark.parametrize("look", [1, BIG_BYTES // LOOK_EVERY_BYTES * 3 // 2])
def test_an_abort_ends_the_work_on_a_big_frame(
    host: OfxHost, scripted: Scripted, tmp_path: Path, look: int
) -> None:
    """The effect checks for a stop once per part of the frame, while it hashes and while it copies."""
    engine = scripted(BusyEngine(keys=(FIRST,)))
    big = np.zeros((BIG_HEIGHT, BIG_WIDTH, 4), np.float32)
    source = Clip(lambda frame: big, frames=(FIRST, LAST), size=(BIG_WIDTH, BIG_HEIGHT))
    node = host.create({"Source": source})
    node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    node.set("keyFrames", str(FIRST))
    looks = 0

    def abort() -> int:
        nonlocal looks
        looks += bool(source.reads)
        return int(looks > look)

    node.abort_answer = abort
    with nodes_of(host, node):
        assert node.render(FIRST, window=(0, 0, 8, 8))[0] != OK
        assert ("plate_needed" in engine.asked) == (look > 1)
        assert "push_plate" not in engine.asked


def test_an_abort_ends_the_writing_of_a_big_picture(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    scripted(BusyEngine(keys=(FIRST,)))
    big = np.zeros((BIG_HEIGHT, BIG_WIDTH, 4), np.float32)
    node = host.create(
        {"Source": Clip(lambda frame: big, frames=(FIRST, LAST), size=(BIG_WIDTH, BIG_HEIGHT))}
    )
    node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    node.set("keyFrames", str(FIRST))
    node.abort_answer = lambda: int(node.output is not None and node.output.memory[0] != UNTOUCHED)
    with nodes_of(host, node):
        status, image = node.render(FIRST)
        assert status != OK
        assert image.memory[0] != UNTOUCHED and image.memory[-1] == UNTOUCHED


# ---- buttons


@pytest.mark.parametrize("operation", ["open_shot", "plan", "propagate", "job", "cancel"])
def test_cancel_ends_a_propagation_whatever_the_engine_keeps_to_itself(
    host: OfxHost, scripted: Scripted, tmp_path: Path, operation: str
) -> None:
    engine = scripted(BusyEngine(mute_at=frozenset({operation}), keys=(FIRST,)))
    rig = keyed_rig(host, tmp_path)
    until = "job" if operation == "cancel" else operation
    rig.node.progress_answer = lambda part: REPLY_NO if until in engine.asked else OK
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert rig.node.value("status").startswith("Stopped")
        assert rig.node.persistent is None


@pytest.mark.parametrize("from_another_thread", [False, True])
def test_the_stop_button_ends_a_propagation_that_is_under_way(
    host: OfxHost, scripted: Scripted, tmp_path: Path, from_another_thread: bool
) -> None:
    """Hosts send Stop from the interface's thread, or during a progress call."""
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rig = keyed_rig(host, tmp_path)
    computing = threading.Event()
    stopped: list[int] = []

    def progress(part: float) -> int:
        if engine.asked.count("job") == 3:
            computing.set()
            if not from_another_thread and not stopped:
                stopped.append(rig.node.press("stop", FIRST))
        return OK

    rig.node.progress_answer = progress
    with nodes_of(host, rig.node), ThreadPoolExecutor(1) as pool:
        propagation = pool.submit(rig.node.press, "propagateForward", FIRST)
        assert computing.wait(60)
        if from_another_thread:
            stopped.append(rig.node.press("stop", FIRST))
        assert propagation.result(60) == OK, rig.node.persistent
        assert stopped == [OK]
        assert rig.node.value("status").startswith("Stopped")


def test_the_stop_button_ends_a_computation_that_a_render_has_begun(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rig = keyed_rig(host, tmp_path)
    computing = threading.Event()

    def abort() -> int:
        if "job" in engine.asked:
            computing.set()
        return 0

    rig.node.abort_answer = abort
    with nodes_of(host, rig.node), ThreadPoolExecutor(1) as pool:
        render = pool.submit(rig.node.render, FIRST + 2, in_order=True)
        assert computing.wait(60)
        assert rig.node.press("stop", FIRST) == OK
        assert render.result(60)[0] != OK
        assert rig.node.persistent is not None and "stopped" in rig.node.persistent


def test_the_stop_button_starts_no_engine(
    host: OfxHost, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    rig = keyed_rig(host, tmp_path)
    with nodes_of(host, rig.node):
        assert rig.node.press("stop", FIRST) == OK, rig.node.persistent
        assert list(tmp_path.iterdir()) == []


# ---- while a propagation runs


def test_finished_frames_are_shown_while_a_propagation_runs(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    """The propagation ends only after the picture of the key was rendered ten times."""
    script = BusyEngine(keys=(FIRST,))
    engine = scripted(script)
    rig = keyed_rig(host, tmp_path)
    with nodes_of(host, rig.node), ThreadPoolExecutor(1) as pool:
        propagation = pool.submit(rig.node.press, "propagateForward", FIRST)
        while "job" not in engine.asked and not propagation.done():
            time.sleep(0.01)
        for _ in range(10):
            assert rig.node.render(FIRST)[0] == OK, rig.node.persistent
            assert not propagation.done()
        script.waits_for.set()
        assert propagation.result(60) == OK, rig.node.persistent


def test_a_node_that_is_called_in_the_middle_of_its_own_work_says_so(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    """Some hosts draw their viewer and accept clicks during a progress call, on the same thread."""
    script = BusyEngine(keys=(FIRST,))
    engine = scripted(script)
    rig = keyed_rig(host, tmp_path)
    said: list[str | None] = []

    def progress(part: float) -> int:
        if "job" in engine.asked and not said:
            assert rig.node.render(FIRST)[0] != OK
            said.append(rig.node.persistent)
            assert rig.node.press("setKey", FIRST) != OK
            said.append(rig.node.persistent)
            script.waits_for.set()
        return OK

    rig.node.progress_answer = progress
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert all(text is not None and "at work" in text for text in said) and len(said) == 2


def test_two_nodes_render_at_the_same_time(host: OfxHost, engine: EngineHome) -> None:
    rigs = [make_rig(host), make_rig(host)]
    rigs[1].mask.read = lambda frame: np.full((HEIGHT, WIDTH, 1), 0.25, np.float32)
    with nodes_of(host, *(rig.node for rig in rigs)), ThreadPoolExecutor(2) as pool:
        for rig in rigs:
            assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent

        def mattes(rig: Rig) -> list[float]:
            found = []
            for _ in range(20):
                status, image = rig.node.render(FIRST, components=ALPHA)
                assert status == OK, rig.node.persistent
                found.append(float(image.picture().mean()))
            return found

        one, two = pool.map(mattes, rigs)
        assert set(two) == {0.25} and len(set(one)) == 1 and set(one) != set(two)
