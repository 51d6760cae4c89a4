"""Fixtures for every test: given data, repeatable random numbers, and small EXR plates."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA_VARIABLE = "STM_SHARED_DATA"
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # processes among which the tests are divided
TEST_THREADS = max(1, min(2, (os.cpu_count() or 1) // WORKERS))
SEED = 20190404
NO_ENGINE = "/tests/that/need/an/engine/name/one"
SLOW_FIXTURES = frozenset(
    (
        *("effect_binary", "driver"),  # are compiled
        *("miniature", "shared", "made_bundle"),  # are installed
        *("published", "published_file"),  # the network of the released weights
        "shown",  # a demo that has run
        "engine",  # the real engine, which loads torch
    )
)
"""Fixtures that take seconds to make."""

LONGEST_FILES = (
    "tests/test_install.py",
    "tests/ofx_bridge/test_effect.py",
    "tests/stm_plugin/store/test_full_disk.py",
    "tests/nuke/test_workflow.py",
    "tests/model/inference/test_equals_reference.py",
    "tests/ofx_bridge/test_sanitized.py",
    "tests/stm_plugin/review/test_browser.py",
    "tests/stm_plugin/farm/test_openjd.py",
    "tests/stm_plugin/shot/test_propagate.py",
    "tests/stm_plugin/server/test_server.py",
)
"""They run first, so that no process works alone on one of them at the end."""

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]
PlateMaker = Callable[..., str]


def pytest_configure(config: pytest.Config) -> None:
    """Limit the threads of the suite, for small and busy machines."""
    torch.set_num_threads(TEST_THREADS)
    os.environ.pop("STM_CONFIG", None)  # the configuration of whoever runs the tests is not what is tested
    os.environ["STM_USER_CONFIG"] = ""
    os.environ["STM_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="stm-", dir="/tmp")  # nor is the user's engine
    os.environ["STM_ENGINE_PYTHON"] = NO_ENGINE  # tests that need an engine name one
    if WORKERS > 1:  # for the programs that tests start; threads that spin would starve each other
        os.environ["OMP_NUM_THREADS"] = str(TEST_THREADS)
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def pytest_unconfigure() -> None:
    """Remove the runtime folder of tests without an engine."""
    shutil.rmtree(os.environ["STM_RUNTIME_DIR"], ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with a slow fixture as slow, and move the longest files to the front."""
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    rank = {REPOSITORY / file: number for number, file in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Give every test the same random numbers, independent of the tests before it."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(SEED)
    yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of given footage, or a skip that says where it was looked for."""
    named = os.environ.get(SHARED_DATA_VARIABLE)
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "clips").is_dir():
        pytest.skip(f"no given footage at {folder} (${SHARED_DATA_VARIABLE} may name the folder of clips/)")
    return folder


def write_exr(
    path: Path,
    pixels: Pixels,
    *,
    origin: tuple[int, int] = (0, 0),
    display: tuple[int, int, int, int] | None = None,
    channels: tuple[str, ...] = ("R", "G", "B"),
    attributes: dict[str, object] | None = None,
) -> Path:
    """Write one half-float EXR.

    Args:
        path: the file to write.
        pixels: float32 (h, w, c), the data window.
        origin: x and y of the data window's first pixel (y down, may be negative).
        display: x, y, width and height of the display window; the data window if None.
        channels: c channel names.
        attributes: header attributes by OpenImageIO's names.
    """
    given = {"compression": "zip", **(attributes or {})}
    return write_image(
        path, pixels, "half", channels=channels, data=origin, display=display, attributes=given
    )


def write_image(
    path: Path,
    pixels: Pixels,
    kind: str = "half",
    *,
    channels: tuple[str, ...] | None = None,
    data: tuple[int, int] = (0, 0),
    display: tuple[int, int, int, int] | None = None,
    attributes: dict[str, object] | None = None,
) -> Path:
    """Write one image file of any kind that OpenImageIO writes.

    Args:
        path: the file to write.
        pixels: float32 (h, w, c), the data window; integers from 0 to 1.
        kind: of the stored values: half, float, uint8, uint16.
        channels: c channel names; OpenImageIO's if None.
        data: x and y of the data window's first pixel (y down, may be negative).
        display: x, y, width and height of the display window; the data window if None.
        attributes: header attributes by OpenImageIO's names.
    """
    height, width, count = pixels.shape
    spec = oiio.ImageSpec(width, height, count, kind)
    if channels:
        spec.channelnames = channels
    spec.x, spec.y = data
    spec.full_x, spec.full_y, spec.full_width, spec.full_height = display or (*data, width, height)
    for name, value in (attributes or {}).items():
        spec.attribute(name, value)
    output = oiio.ImageOutput.create(str(path))
    assert output is not None, oiio.geterror()
    assert output.open(str(path), spec), output.geterror()
    assert output.write_image(np.ascontiguousarray(pixels, dtype=np.float32)), output.geterror()
    assert output.close(), output.geterror()
    return path


@pytest.fixture
def make_plate(tmp_path: Path) -> PlateMaker:
    """A function that writes a small scene-linear EXR plate and returns its pattern.

    `make_plate(frames=range(1001, 1005), size=(width, height), overscan=0, name="plate", attributes=None)`:
    a bright disc goes from left to right over a smooth background. Beside it, `NAME.mask.####.png` holds
    the disc's true mask for every frame, over the display window.
    """

    def make(
        frames: range = range(1001, 1005),
        size: tuple[int, int] = (64, 48),
        overscan: int = 0,
        name: str = "plate",
        attributes: dict[str, object] | None = None,
    ) -> str:
        width, height = size
        corners = np.s_[-overscan : height + overscan, -overscan : width + overscan]
        rows, columns = np.mgrid[corners].astype(np.float32)
        for index, frame in enumerate(frames):
            centre = width * (0.3 + 0.4 * index / max(1, len(frames) - 1))
            distance = np.hypot(columns - centre, rows - height / 2) - min(size) / 4
            disc = np.clip(0.5 - distance, 0.0, 1.0)[..., None]  # (h, w, 1)
            back = np.stack([columns / width, rows / height, np.full_like(rows, 0.5)], axis=-1) * 0.2
            picture = disc * np.array([1.6, 0.5, 0.1], np.float32) + (1 - disc) * back
            write_exr(
                tmp_path / f"{name}.{frame:04d}.exr",
                picture.astype(np.float32),
                origin=(-overscan, -overscan),
                display=(0, 0, width, height),
                attributes=attributes,
            )
            inside = disc[overscan : overscan + height, overscan : overscan + width]
            mask = oiio.ImageBuf(np.ascontiguousarray(inside, dtype=np.float32))
            assert mask.write(str(tmp_path / f"{name}.mask.{frame:04d}.png"), "uint8"), mask.geterror()
        return str(tmp_path / f"{name}.####.exr")

    return make
