"""A host for the code that runs inside Nuke: the stand-in `nuke` module, and the real engine beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import PlateMaker
from tests.hosts.ofx_fixtures import effect_binary
from tests.nuke.comps import FRAMES, read_node
from tests.stm_plugin.server_process import wait_for

__all__ = ["effect_binary"]

HOSTS = Path(__file__).resolve().parents[1] / "hosts" / "nuke_stand_in"
ENGINE_END_SECONDS = 90.0
"""Longer than an engine that was told to end may take (`ServeOptions.end_seconds`), on a busy machine."""
TASK_END_SECONDS = 120.0
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def nuke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in as in a new process without a window. Modules that used it are imported again."""
    monkeypatch.syspath_prepend(str(HOSTS))
    monkeypatch.setenv("STM_CACHE", str(tmp_path / "unsaved"))
    monkeypatch.delenv("OCIO", raising=False)
    forgotten = _forget_modules()
    import nuke as stand_in

    stand_in._new_process()  # type: ignore[attr-defined]
    yield stand_in
    _end_tasks(stand_in)  # before the environment of the test ends: a task could start an engine elsewhere
    if session := sys.modules.get("stm_nuke.session"):
        session.leave_engine()
    _forget_modules()
    sys.modules.update(forgotten)


def _end_tasks(stand_in: Any) -> None:
    """Stop the tasks that a test left running, and run the calls that their threads wait for."""
    if tasks := sys.modules.get("stm_nuke.tasks"):
        tasks.stop_all()
    threads = [one for one in threading.enumerate() if one.name.startswith("STM ")]
    stand_in._host.pump(lambda: not any(one.is_alive() for one in threads), TASK_END_SECONDS)


def _forget_modules() -> dict[str, ModuleType]:
    """Take `nuke` and the modules that imported it out of sys.modules; returns them."""
    mine = [
        name
        for name in sys.modules
        if name == "nuke"
        or name.startswith("nuke.")
        or (name.startswith("stm_nuke") and name.split(".")[-1] not in ("client", "wire", "launch"))
    ]
    return {name: sys.modules.pop(name) for name in mine}


@pytest.fixture
def comp(nuke: Any, make_plate: PlateMaker, tmp_path: Path) -> Iterator[Any]:
    """A saved script with an STM node on a small EXR plate with overscan; the plug-in is installed."""
    import stm_nuke.callbacks

    stm_nuke.callbacks.install()
    plate = read_node(nuke, make_plate(FRAMES, overscan=4), FRAMES)
    mask = read_node(nuke, str(tmp_path / "plate.mask.%04d.png"), FRAMES, raw=True)
    node = stm_nuke.create(plate, mask)
    node.set("objects", "disc = rgba.red")
    nuke.scriptSave(str(tmp_path / "shot_v001.nk"))
    yield node


@pytest.fixture(scope="module")
def runtime_folder() -> Iterator[Path]:
    """The runtime folder of a module's tests; its engine is ended after the last of them."""
    folder = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))  # short: the name of a socket is limited
    yield folder
    from stm_nuke import launch

    troubles = []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STM_RUNTIME_DIR", str(folder))
        answer = _tell_to_end()
        if not wait_for(lambda: _nobody_answers(folder), ENGINE_END_SECONDS):
            troubles.append(f"An engine still runs. It was told to end: {answer}")
    for process in launch._started:
        try:
            process.wait(ENGINE_END_SECONDS)
        except subprocess.TimeoutExpired:
            troubles.append(_describe(process.pid, folder))
            process.kill()
            process.wait()
    launch.reap()
    log = launch.last_lines(folder / launch.LOG_NAME, 60)
    shutil.rmtree(folder, ignore_errors=True)
    assert not troubles, "\n".join([*troubles, f"The end of {folder / launch.LOG_NAME}:", log])


def _nobody_answers(folder: Path) -> bool:
    """Whether no engine takes connections in a runtime folder. A killed one leaves its files."""
    from stm_nuke import launch

    link = launch.try_to_connect(folder)
    if link is None:
        return True
    link.close()
    return False


def _tell_to_end() -> str:
    """Tell the engine of the runtime folder to end; what came back."""
    from stm_nuke.client import Engine
    from stm_nuke.wire import EngineError

    engine = Engine("test", may_start=False)
    try:
        engine.call({"op": "shutdown"}, seconds=ENGINE_END_SECONDS)
    except EngineError as error:  # it may be ending, or have ended, already
        return f"{error.code}: {error}"
    finally:
        engine.close()
    return "yes"


def _describe(pid: int, folder: Path) -> str:
    """An engine that did not end, and whether it is the one that was told."""
    try:
        told = engine_pid(folder)
    except (OSError, ValueError):
        told = 0
    place = Path(f"/proc/{pid}/cwd")
    where = os.readlink(place) if place.exists() else "unknown"
    return f"Process {pid}, an engine in {where}, still ran. Told was process {told} in {folder}."


@pytest.fixture
def engine(runtime_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real engine in a separate runtime folder; the first test that needs it starts it."""
    monkeypatch.setenv("STM_RUNTIME_DIR", str(runtime_folder))
    monkeypatch.setenv("STM_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("STM_ENGINE_ROOT", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return runtime_folder


def engine_pid(folder: Path) -> int:
    """The process of the engine that runs with this runtime folder."""
    return int(json.loads((folder / "endpoint.json").read_text("utf-8"))["pid"])


@pytest.fixture
def kill_engine(engine: Path) -> Callable[[], None]:
    """Kills the engine as a crash would."""
    return lambda: os.kill(engine_pid(engine), signal.SIGKILL)
