"""A full disk: an error that names it, no partial files, and a resumed run ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MakePlate = Callable[..., str]

SMALL_DISK = ["unshare", "--user", "--map-root-user", "--mount"]
"""A process that may mount a disk of its own, which nobody else sees."""


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The prefix of a command that may mount a small disk, or a skip with the reason."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` to mount a small disk with")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path_factory.mktemp("disk"))]
    tried = subprocess.run([*SMALL_DISK, *mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system lets nobody mount a small disk: {tried.stderr.strip()}")
    return SMALL_DISK


@pytest.mark.slow
@pytest.mark.parametrize("way", ["propagate", "shot", "server"])
def test_a_disk_that_fills_up_anywhere_costs_nothing_but_time(
    way: str, small_disk: list[str], tmp_path: Path, make_plate: MakePlate
) -> None:
    """A helper process tries one amount of free space after another."""
    plate = make_plate(frames=range(1001, 1007))
    helper = Path(__file__).with_name("full_disk_rounds.py")
    mask = tmp_path / "plate.mask.1003.png"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [*small_disk, sys.executable, str(helper), plate, str(mask), "1003", str(tmp_path / "tries"), way],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'nuke'}", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["stopped"] == told["tries"] - 1 > 10, "only the last disk had room for everything"


PICTURE_ON_A_FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
import numpy as np
from stm_plugin.errors import MatteFullError
from stm_plugin.images.overlay import OverlayWriter, write_picture
disk, kind, in_memory = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
if not in_memory and hasattr(os, "memfd_create"):
    del os.memfd_create
noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
if kind == "mp4":  # its writer finds no room for the header
    with open(disk / "fill", "wb", buffering=0) as fill:
        while fill.write(bytes(1024)) == 1024 and os.statvfs(disk).f_bavail:
            pass
try:
    if kind == "mp4":
        with OverlayWriter(disk / f"x.{kind}") as movie:
            movie.write(7, noise)
    else:
        write_picture(disk / f"x.{kind}", noise, frame=7)
except MatteFullError as error:
    print(error, [name for name in os.listdir(disk) if name != "fill"])
"""


@pytest.mark.parametrize(("kind", "in_memory"), [("png", True), ("jpg", True), ("jpg", False), ("mp4", True)])
def test_a_picture_on_a_full_disk_is_an_error_and_not_the_end_of_the_process(
    kind: str, in_memory: bool, small_disk: list[str], tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PICTURE_ON_A_FULL_DISK, str(tmp_path), kind, str(in_memory)]
    done = subprocess.run([*small_disk, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"x.{kind}: The disk is full" in done.stdout and "frame 7" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), "no partial file"


@pytest.mark.slow
def test_the_review_page_goes_on_while_the_disk_is_full(
    small_disk: list[str], tmp_path: Path, make_plate: MakePlate
) -> None:
    """A helper process works on the page as a person does."""
    root = Path(__file__).resolve().parents[3]
    helper = root / "tests" / "stm_plugin" / "review" / "full_disk.py"
    done = subprocess.run(
        [*small_disk, sys.executable, str(helper), make_plate(), str(tmp_path / "disk")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'nuke'}", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
