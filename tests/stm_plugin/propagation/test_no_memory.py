"""Without enough memory a run ends with a message and a non-zero code, and keeps finished frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.errors import DeviceError, StoreError, as_stm_error
from stm_plugin.exit_codes import ExitCode
from stm_plugin.propagation.memory_forecast import _free_in_group, device_errors

REPOSITORY = Path(__file__).resolve().parents[3]
LIMITED = """
import resource, sys
import psutil
import stm_plugin.shot.propagate
from stm_plugin.cli import main
if {blind}:
    from stm_plugin.propagation import propagation
    propagation.free_memory = lambda device: 1 << 45
room = {room} << 20
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["stm", "propagate", "{plate}", "--key", "1001={mask}", "--out", "{out}"]
main()
"""


def picture(path: Path, values: object) -> Path:
    pixels = np.asarray(values, np.uint8)
    height, width, channels = pixels.shape
    output = oiio.ImageOutput.create(str(path))
    assert output is not None
    output.open(str(path), oiio.ImageSpec(width, height, channels, "uint8"))
    output.write_image(pixels)
    output.close()
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
@pytest.mark.parametrize(("room", "blind"), [(40, False), (40, True), (250, True)])
def test_a_run_without_memory_ends_in_words(tmp_path: Path, room: int, blind: bool) -> None:
    plate = np.random.default_rng(1).integers(0, 255, (480, 854, 3))
    for frame in (1001, 1002, 1003):
        picture(tmp_path / f"plate.{frame}.png", plate)
    mask = np.zeros((480, 854, 1))
    mask[100:300, 200:400] = 255
    program = LIMITED.format(
        room=room,
        blind=blind,
        plate=tmp_path / "plate.####.png",
        mask=picture(tmp_path / "mask.png", mask),
        out=tmp_path / "out" / "matte.####.exr",
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == ExitCode.ENGINE, said
    assert "Traceback" not in said and "memory" in said.lower(), said
    assert said.rstrip().splitlines()[-1].startswith("Error: "), said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
    ],
)
def test_every_librarys_way_to_say_that_there_is_no_memory_is_understood(error: Exception) -> None:
    known = as_stm_error(error)
    assert isinstance(known, DeviceError) and known.hint and "memory" in str(known)


def test_a_layer_that_the_device_does_not_know_is_not_taken_for_too_little_memory() -> None:
    unknown = "could not create a primitive descriptor for the matmul primitive. Run workload with ..."
    assert as_stm_error(RuntimeError(unknown)) is None
    with pytest.raises(DeviceError, match="descriptor for the matmul"), device_errors("cpu", 1001):
        raise RuntimeError(unknown)


def test_errors_of_the_system_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    for name, words in (("a" * 300, "shorter"), ("absent", "Check the name")):
        try:
            (tmp_path / name).read_bytes()
        except OSError as error:
            known = as_stm_error(error)
            assert isinstance(known, StoreError) and name in str(known) and words in str(known)
    assert as_stm_error(ZeroDivisionError()) is None


def test_the_memory_of_a_container_is_what_its_group_leaves(tmp_path: Path) -> None:
    assert _free_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 150\n")
    assert _free_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _free_in_group(tmp_path) == 550
