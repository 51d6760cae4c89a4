"""Helper of the full-disk test: fills a real disk while a shot is computed, frees it, compares the results.

    unshare --user --map-root-user --mount python full_disk_rounds.py PLATE MASK FRAME FOLDER WAY

Mounts a small disk of its own, which is gone when the process ends. Computes a shot undisturbed; then, for
one amount of free space after another, does the same on a disk that has just so much: it must be said which
frame and file did not fit and what to do, nothing half may be left, and what is finished must be right. Then
the space is freed, and going on must end with the bytes of the undisturbed run.

WAY: `propagate` (`stm propagate`), `shot` (`stm shot ...`), or `server` (a server and a client).
Exits with 0 when all of this held; prints a JSON line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from stm_nuke.wire import Connection, EngineError, Image

torch.set_num_threads(1)
cv2.setNumThreads(1)

from stm_plugin.cli import main as stm  # noqa: E402
from stm_plugin.images.mask import MaskPlace, read_mask  # noqa: E402
from stm_plugin.images.plate import Plate  # noqa: E402
from stm_plugin.propagation.networks import ready_network  # noqa: E402
from stm_plugin.settings import Settings  # noqa: E402
from tests.stm_plugin.server_process import a_server  # noqa: E402

WORKING_SIZE = 32
DISK = 24 << 20
PAGE = 4096
STEPS = 14
"""Amounts of free space that are tried."""
ENOUGH = 1.5
"""Of what cannot be done without: then what can be computed again gives way, and everything is done."""
COLOUR_SPACE = "lin_rec709_scene"


@dataclass(frozen=True)
class Ended:
    """The end of a try: whether everything was done, and the output."""

    done: bool
    said: str


Try = Callable[[Path], Ended]


def main() -> int:
    plate, mask, key, place, way = sys.argv[1:6]
    if way == "server":
        with a_server(module="stm_plugin.server") as server:
            return rounds(Path(place), by_server(plate, mask, int(key), server.connect))
    ways = {"propagate": by_propagate, "shot": by_shot}
    return rounds(Path(place), ways[way](plate, mask, int(key)))


def rounds(folder: Path, attempt: Try) -> int:
    """All tries."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    ready_network(Settings.weights, "cpu", "float32")
    undisturbed = folder / "undisturbed"
    ended = attempt(undisturbed)
    assert ended.done, ended.said
    expected = contents(undisturbed)
    assert len(expected) > 10

    tries = stopped = 0
    for room in rooms(undisturbed):
        target = disk / "job"
        fill(disk, room)
        ended = attempt(target)
        tries, stopped = tries + 1, stopped + (not ended.done)
        if not ended.done:
            check_words(ended.said, disk)
        check_left(target, expected)
        (disk / "ballast").unlink()
        ended = attempt(target)
        assert ended.done, f"with {room} bytes at first, and then enough: {ended.said}"
        found = contents(target)
        assert found == expected, f"with {room} bytes: {sorted(found)} against {sorted(expected)}"
        shutil.rmtree(target)
    print(json.dumps({"tries": tries, "stopped": stopped}))
    return 0


def rooms(undisturbed: Path) -> Iterator[int]:
    """Amounts of free space in bytes, from 0 to almost the required minimum."""
    needed = sum(
        -(-path.stat().st_size // PAGE) * PAGE
        for path in undisturbed.rglob("*")
        if path.is_file() and path.suffix != ".cache"
    )
    for step in range(STEPS):
        yield step * needed // STEPS // PAGE * PAGE
    yield round(ENOUGH * needed)


def fill(disk: Path, room: int) -> None:
    """Fill the disk except for `room` bytes."""
    free = shutil.disk_usage(disk).free
    with (disk / "ballast").open("wb") as stream:
        for _ in range((free - room) // PAGE):
            stream.write(bytes(PAGE))


def check_words(said: str, disk: Path) -> None:
    """Check that the message says what happened, where, and what to do."""
    assert re.search(r"frame 10\d\d", said) or "shot.json" in said or "hero.stmshot:" in said, said
    assert "The disk is full." in said, said
    assert str(disk) in said, said
    assert "Free some space" in said, said
    assert "Traceback" not in said, said


def contents(folder: Path) -> dict[str, bytes]:
    """Mattes, results and masks, by name."""
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".exr", ".prob", ".mask") and not path.name.startswith(".")
    }


def check_left(folder: Path, expected: dict[str, bytes]) -> None:
    """Check that no partial file is left and files with their final names are correct."""
    for name, data in contents(folder).items():
        assert expected[name] == data, f"{name} is not what an undisturbed run writes"
    leftovers = [str(path) for path in folder.rglob("*.part*")]
    assert not leftovers, leftovers


# ---- the ways ----


def by_propagate(plate: str, mask: str, key: int) -> Try:
    """`stm propagate`."""

    def attempt(folder: Path) -> Ended:
        out = folder / "matte.####.exr"
        options = ["--working-size", WORKING_SIZE, "--colour-space", COLOUR_SPACE]
        return command("propagate", plate, "--key", f"{key}={mask}", "--out", out, *options)

    return attempt


def by_shot(plate: str, mask: str, key: int) -> Try:
    """`stm shot`: all steps that are not done yet."""

    def attempt(folder: Path) -> Ended:
        shot = folder / "hero"
        settings = ["--set", f"working_size={WORKING_SIZE}", "--set", f"colour_space={COLOUR_SPACE}"]
        steps: list[tuple[object, ...]] = []
        if not (folder / "hero.stmshot" / "shot.json").exists():
            steps.append(("new", shot, plate, *settings))
        steps.append(("key", "add", shot, key, mask))
        steps.append(("propagate", shot))
        steps.append(("export", shot, folder / "matte.####.exr"))
        for words in steps:
            ended = command("shot", *words)
            if not ended.done:
                return ended
        return ended

    return attempt


def command(*words: object) -> Ended:
    """The `stm` command in a separate process, without the time of a start."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["stm", *map(str, words)]
        os.environ["COLUMNS"] = "1000"
        code = 1
        try:
            stm()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), status
    return Ended(os.WEXITSTATUS(status) == 0, said)


def by_server(plate: str, mask: str, key: int, connect: Callable[[], Connection]) -> Try:
    """One server for all tries, with pushed pixels. Another client must not be disturbed."""
    frames = Plate.open(plate)
    pictures = {frame: frames.read(frame) for frame in frames.frames}
    window = (0, 0, frames.canvas.width, frames.canvas.height)
    first = pictures[frames.frames[0]]
    place = MaskPlace(frames.canvas, first.display_window, first.data_window)
    (drawn,) = read_mask(Path(mask), place).objects.values()
    bystander = connect()

    def work(client: Connection, folder: Path) -> None:
        geometry = {"kind": "pushed", "frames": [frames.frames[0], frames.frames[-1]]}
        shot = client.call(
            {
                "op": "open_shot",
                "folder": str(folder / "hero.stmshot"),
                "create": True,
                "plate": {**geometry, "display_window": list(window), "colour_space": COLOUR_SPACE},
                "settings": {"working_size": WORKING_SIZE, "device": "cpu"},
            }
        )[0]["shot"]
        needed = client.call({"op": "plate_needed", "shot": shot})[0]["needed"]
        for frame in (one for start, stop in needed for one in range(start, stop + 1)):
            pixels = pictures[frame].pixels.astype("<f4")
            image = Image("float", ("R", "G", "B"), window, pixels.tobytes())
            client.call_with_image({"op": "push_plate", "shot": shot, "frame": frame}, image)
        image = Image("float", ("A",), window, drawn.astype("<f4").tobytes())
        objects = [{"name": "disc", "channel": "A"}]
        client.call_with_image({"op": "push_key", "shot": shot, "frame": key, "objects": objects}, image)
        finish(client, client.call({"op": "propagate", "shot": shot})[0]["job"])
        order = {"op": "export", "shot": shot, "pattern": str(folder / "matte.####.exr")}
        finish(client, client.call(order)[0]["job"])

    def attempt(folder: Path) -> Ended:
        client = connect()
        try:
            work(client, folder)
        except EngineError as error:
            return Ended(False, str(error))
        finally:
            client.close()
            assert bystander.call({"op": "ping"})[0]["clients"] >= 1
        return Ended(True, "")

    return attempt


def finish(client: Connection, job: str) -> None:
    """Wait for a job's end. EngineError where it failed."""
    state: dict[str, Any] = {"state": "queued", "version": 0}
    while state["state"] in ("queued", "running"):
        state = client.call({"op": "job", "job": job, "seen": state["version"], "wait_ms": 1000})[0]
    if state["state"] != "finished":
        raise EngineError.from_header(state["error"])


if __name__ == "__main__":
    sys.exit(main())
