"""Fixtures for tests of the OpenFX effect: its binary, a separate engine, and a small clip with its matte.

They need no conftest, so the same tests can also run with sanitizers preloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from filelock import FileLock

from tests.hosts.ofx_host import ALPHA, FLOAT, RGBA, Clip, Effect, FloatArray, OfxHost

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY_VARIABLE = "STM_OFX_BINARY"
ENGINE_END_SECONDS = 30.0
WIDTH, HEIGHT, RADIUS = 64, 48, 12.0
FIRST, LAST = 1001, 1008


def load_build() -> ModuleType:
    """`ofx_bridge/build.py` as a module: the folder is no package."""
    found = importlib.util.spec_from_file_location("ofx_build", REPOSITORY / "ofx_bridge" / "build.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["ofx_build"] = module
    found.loader.exec_module(module)
    return module


def once_for_all_workers(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is filled once for all test processes.

    Args:
        name: of the folder, the same in every process.
        make: fills the folder that it is given.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # what all workers share
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def effect_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The effect: the one that $STM_OFX_BINARY names, else one built now as the installer builds it."""
    if named := os.environ.get(BINARY_VARIABLE):
        return Path(named)
    if sys.platform != "linux":
        pytest.skip("the test host knows the calling conventions of Linux only")
    build = load_build()
    try:
        build.find_compiler(build.host_target())
    except build.BuildError as error:
        pytest.skip(str(error))
    folder = once_for_all_workers(tmp_path_factory, "ofx", build.build)
    binary: Path = folder / build.BUNDLE_NAME / "Contents" / build.host_target().folder / build.BINARY_NAME
    return binary


@dataclass
class EngineHome:
    """The folders of these tests' engine. The effect starts the engine."""

    runtime: Path
    home: Path

    def process(self) -> int | None:
        """The engine's process id; None if no engine runs."""
        try:
            return int(json.loads((self.runtime / "endpoint.json").read_text("utf-8"))["pid"])
        except (OSError, ValueError):
            return None

    def kill(self) -> None:
        """Kill the engine as the system does when memory is short."""
        process = self.process()
        assert process is not None
        os.kill(process, signal.SIGKILL)

    def end(self) -> None:
        """Ask the engine to end and wait for it."""
        process = self.process()
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        end = time.monotonic() + ENGINE_END_SECONDS
        while self.process() == process and time.monotonic() < end:
            time.sleep(0.05)


@pytest.fixture(scope="session")
def engine_home() -> Iterator[EngineHome]:
    """A runtime folder with a short name (a socket's path has at most 107 bytes) and a folder for shots."""
    runtime = Path(tempfile.mkdtemp(prefix="stm-", dir="/tmp"))
    home = Path(tempfile.mkdtemp(prefix="stm-home-", dir="/tmp"))
    engine = EngineHome(runtime, home)
    yield engine
    engine.end()
    shutil.rmtree(runtime, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def engine(engine_home: EngineHome, monkeypatch: pytest.MonkeyPatch) -> EngineHome:
    """The environment in which the effect finds, or starts, the engine of these tests."""
    for name in ("STM_PREFIX", "OCIO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(engine_home.runtime))
    monkeypatch.setenv("STM_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("STM_ENGINE_ROOT", str(REPOSITORY))
    monkeypatch.setenv("HOME", str(engine_home.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("STM_OFX_KEY_SECONDS", "300")
    return engine_home


@pytest.fixture
def host(effect_binary: Path) -> OfxHost:
    """A host that offers every suite and property of the effect."""
    return OfxHost(effect_binary)


def disc(frame: int) -> FloatArray:
    """The true matte (h, w, 1): a soft disc that moves to the right."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    centre = WIDTH * (0.3 + 0.05 * (frame - FIRST))
    distance = np.hypot(columns - centre, rows - HEIGHT / 2) - RADIUS
    soft: FloatArray = np.clip(0.5 - distance, 0, 1)[..., None]
    return soft.astype(np.float32)


def picture(frame: int) -> FloatArray:
    """Scene-linear (h, w, 4): the disc, brighter than white, over a smooth background; opaque."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    inside = disc(frame)
    back = np.stack([columns / WIDTH, rows / HEIGHT, np.full_like(rows, 0.5)], axis=-1) * 0.2
    colour = inside * np.array([1.6, 0.5, 0.1], np.float32) + (1 - inside) * back
    return np.concatenate([colour, np.ones_like(inside)], axis=-1).astype(np.float16).astype(np.float32)


@dataclass
class Rig:
    """A node with a source and a mask."""

    host: OfxHost
    node: Effect
    source: Clip
    mask: Clip
    others: list[Effect] = field(default_factory=list)


def make_rig(host: OfxHost, *, depth: str = FLOAT, **source_options: object) -> Rig:
    """A node on the small clip."""
    options = {"frames": (FIRST, LAST), "size": (WIDTH, HEIGHT), "components": RGBA, "depth": depth}
    source = Clip(picture, **{**options, **source_options})  # type: ignore[arg-type]
    mask = Clip(disc, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=ALPHA, depth=depth)
    mask.origin, mask.aspect = source.origin, source.aspect
    host.options.project = (float(WIDTH), float(HEIGHT))
    node = host.create({"Source": source, "Mask": mask})
    node.set("workingSize", WIDTH)
    return Rig(host, node, source, mask)


def overlap(matte: FloatArray, truth: FloatArray) -> float:
    """Intersection over union of two soft masks."""
    return float(np.minimum(matte, truth).sum() / np.maximum(matte, truth).sum())
