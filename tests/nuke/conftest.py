"""A host for the code that runs inside Nuke: the stand-in `nuke` module, and the real engine beside it."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HOSTS = Path(__file__).resolve().parents[1] / "hosts" / "nuke_stand_in"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def nuke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in, as a new process without a window finds it. Whatever used it before is imported anew."""
    monkeypatch.syspath_prepend(str(HOSTS))
    monkeypatch.setenv("STM_CACHE", str(tmp_path / "unsaved"))
    monkeypatch.delenv("OCIO", raising=False)
    forgotten = _forget_modules()
    import nuke as stand_in

    stand_in._new_process()  # type: ignore[attr-defined]
    yield stand_in
    _forget_modules()
    sys.modules.update(forgotten)


def _forget_modules() -> dict[str, ModuleType]:
    """Take `nuke` and what has imported it out of sys.modules; what was taken."""
    mine = [
        name
        for name in sys.modules
        if name == "nuke"
        or name.startswith("nuke.")
        or (name.startswith("stm_nuke") and name.split(".")[-1] not in ("client", "wire", "launch"))
    ]
    return {name: sys.modules.pop(name) for name in mine}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The real engine, started by whoever needs it, with a runtime folder of its own; ended afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))  # short: the name of a socket is limited
    monkeypatch.setenv("STM_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("STM_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("STM_ENGINE_ROOT", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield folder
    _end_engine(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _end_engine(folder: Path) -> None:
    from stm_nuke.client import Engine
    from stm_nuke.wire import EngineError

    try:
        Engine("test", may_start=False).shutdown()
    except EngineError:
        return


def engine_pid(folder: Path) -> int:
    """The process of the engine that runs with this runtime folder."""
    import json

    return int(json.loads((folder / "endpoint.json").read_text("utf-8"))["pid"])


@pytest.fixture
def kill_engine(engine: Path) -> Callable[[], None]:
    """Kills the engine as a crash would."""
    import os

    return lambda: os.kill(engine_pid(engine), signal.SIGKILL)
