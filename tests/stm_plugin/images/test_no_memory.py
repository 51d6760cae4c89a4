"""If memory for a picture is short, the error names the file and the frame and says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stm_plugin.errors import DeviceError, memory_errors
from stm_plugin.images import movie as movies
from stm_plugin.images.movie import index_movie
from tests.conftest import write_exr, write_image

WIDTH, HEIGHT = 3000, 2000
ROOM = 8 << 20
READING = """
import json, resource, sys
import psutil, numpy as np, OpenImageIO as oiio
from pathlib import Path
from stm_plugin.cli.main import _in_words
from stm_plugin.images.mask import MaskPlace, read_mask
from stm_plugin.images.matte import read_matte, write_matte
from stm_plugin.images.plate import Plate
from stm_plugin.windows import Window
oiio.attribute("threads", 1)
folder, room = Path(sys.argv[1]), int(sys.argv[2])
canvas = Window(0, 0, 3000, 2000)
plate = Plate.open(folder / "plate.####.exr")
still = Plate.open(folder / "jpeg.####.jpg")
read = plate.read(1001)
matte = {"cup": np.full((2000, 3000), 2, np.float32)}
asked = {
    "mask.exr": lambda: read_mask(folder / "mask.exr", MaskPlace(canvas, canvas), frame=1001),
    "mask.png": lambda: read_mask(folder / "mask.png", MaskPlace(canvas, canvas), frame=1001),
    "plate.1001.exr": lambda: plate.read(1001),
    "jpeg.1001.jpg": lambda: still.read(1001),
    "plate.1002.exr": lambda: read_matte(folder / "plate.1002.exr", frame=1001),
    "new.1001.exr": lambda: write_matte(folder / "new.1001.exr", matte, read),
}
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, ask in asked.items():
    try:
        ask()
    except Exception as error:
        print(json.dumps([name, type(error).__name__, _in_words(error)]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its address space")
def test_memory_that_a_picture_cannot_have_is_said_with_its_file(tmp_path: Path, repository: Path) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    picture[500:900, 500:900] = 0.5
    for frame in (1001, 1002):
        write_exr(tmp_path / f"plate.{frame}.exr", picture)
    write_image(tmp_path / "jpeg.1001.jpg", picture, "uint8")
    write_image(tmp_path / "mask.exr", picture[..., :1], channels=("A",))
    write_image(tmp_path / "mask.png", picture[..., :1], "uint8", channels=("Y",))
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path), str(ROOM)],
        cwd=repository,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    told = {name: (kind, words) for name, kind, words in map(json.loads, done.stdout.splitlines())}
    assert set(told) >= {"mask.exr", "mask.png", "plate.1001.exr", "jpeg.1001.jpg", "plate.1002.exr"}, told
    for name, (kind, words) in told.items():
        assert kind == "DeviceError", (name, words)
        assert "frame 1001" in words and name in words and "memory" in words and "ulimit -v" in words
    assert not list(tmp_path.glob(".*part*"))


def test_a_movie_for_which_there_is_no_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A movie is checked in a separate process; the error states why that process died."""
    movie = tmp_path / "plate.mp4"
    movie.write_bytes(b"never read")
    walker = tmp_path / "movie_walk.py"
    monkeypatch.setattr(movies, "__file__", str(tmp_path / "movie.py"))
    for dying in (
        "raise MemoryError",
        "raise ImportError('cv2.so: failed to map segment from shared object')",
    ):
        walker.write_text(dying)
        os.utime(movie, ns=(1, len(dying)))
        with pytest.raises(DeviceError, match=r"plate\.mp4: The machine has too little memory"):
            index_movie(movie)


def test_other_errors_pass_and_our_own_are_left_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError), memory_errors(Path("a.exr"), 7):
        raise ZeroDivisionError
    with pytest.raises(DeviceError, match="cuda") as known, memory_errors(Path("a.exr"), 7):
        raise DeviceError("The memory of cuda did not suffice.")
    assert known.value.path is None
