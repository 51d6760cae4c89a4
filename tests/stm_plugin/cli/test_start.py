"""Help, options and the first answers of a server do not import the packages that compute."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stm_plugin.server.mapped import MapFolder
from stm_plugin.server.service import Service
from tests.stm_plugin.toy_engine import ToyBackend

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = {
    *("torch", "torchvision", "numpy", "cv2", "OpenImageIO", "PyOpenColorIO", "PIL", "pymatting", "fileseq"),
}
MAIN = "from stm_plugin.cli.main import main"


def heavy_after(program: str, *arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    """The packages of `HEAVY` that a new interpreter has loaded after `program`."""
    wrapped = (
        f"import sys\nsys.argv = ['stm', *{list(arguments)!r}]\n"
        f"try:\n    exec({program!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", wrapped],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.rpartition("LOADED")[2].split()
    assert "stm_plugin" in loaded
    return HEAVY & set(loaded)


@pytest.mark.parametrize(
    "command",
    ["", "propagate", "shot", "shot key add", "adapt", "info", "eval table5", "train video", "weights"],
)
def test_help_waits_for_nothing_that_computes(command: str) -> None:
    assert heavy_after(f"{MAIN}; main()", *command.split(), "--help") == set()


def test_completion_waits_for_nothing_that_computes() -> None:
    asked = {"_STM_COMPLETE": "complete_bash", "COMP_WORDS": "stm propagate --work", "COMP_CWORD": "2"}
    assert heavy_after(f"{MAIN}; main()", environment=asked) == set()


def test_info_does_not_wait_for_torch_where_there_is_no_gpu() -> None:
    without_gpu = "from stm_plugin.cli import info; info._may_have_gpu = lambda: False; "
    assert not heavy_after(f"{without_gpu}{MAIN}; main()", "info") & {"torch", "torchvision"}


def test_the_server_answers_without_what_computes() -> None:
    assert not heavy_after("import stm_plugin.server.__main__") - {"numpy"}


@pytest.mark.slow
def test_the_shipped_network_needs_no_torchvision() -> None:
    program = (
        "from model.inference.fast_network import FastNetwork; from model.weights_file import load_network; "
        "import stm_plugin.server.shot_service; FastNetwork(load_network()[0])"
    )
    loaded = heavy_after(program)
    assert "torch" in loaded and "torchvision" not in loaded


def test_an_engine_loads_what_computes_behind_its_first_hello(tmp_path: Path) -> None:
    loaded: list[str] = []

    def load() -> ToyBackend:
        loaded.append("engine")
        return ToyBackend()

    async def live() -> None:
        service = Service(load, MapFolder(tmp_path / "map"))
        await asyncio.sleep(0.05)
        assert not loaded
        service.begin_loading()
        await service.begin_loading()
        await service.end()

    asyncio.run(live())
    assert loaded == ["engine"]
