"""Helper of the kill test: runs a propagation again and again, kills it at random, compares the end.

    kill_rounds.py PLATE MASK_1003 MASK_1008 FOLDER KILLS SEED TURNS

It imports everything once and forks, so a kill costs no new start. Exits with 0 if every finished
series of runs left exactly the bytes of an undisturbed run; prints a JSON line. TURNS passes are computed
side by side in the runs that are killed, one at a time in the undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import cv2
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)

from stm_plugin.propagation import propagation  # noqa: E402
from stm_plugin.settings import Settings  # noqa: E402
from stm_plugin.shot.propagate import RunOptions, propagate  # noqa: E402
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork, random_network  # noqa: E402

SETTINGS = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")


def main() -> int:
    plate, first, second, place, kills_wanted, seed, turns = sys.argv[1:8]
    folder, chance = Path(place), random.Random(int(seed))
    random_network()

    def start(target: Path) -> int:
        """Fork a propagation; returns the child's process id."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            run(plate, first, second, target)
            status = 0
        finally:
            os._exit(status)

    began = time.monotonic()
    child = start(folder / "undisturbed")
    assert os.waitpid(child, 0)[1] == 0, "the undisturbed run failed"
    duration = time.monotonic() - began
    expected = contents(folder / "undisturbed")
    setattr(propagation, "passes_in_turn", lambda device: int(turns))  # noqa: B010 (what a module imports)

    kills = finished = died_with_work_done = 0
    statuses: set[int] = set()
    target = folder / "killed"
    while kills < int(kills_wanted) or finished == 0:
        child = start(target)
        # Once enough were killed, the last series may run to its end.
        seconds = chance.uniform(0, 1.2 * duration) if kills < int(kills_wanted) else 60 * duration + 60
        status = wait(child, seconds)
        statuses.add(status)
        if status == -signal.SIGKILL:
            kills += 1
            died_with_work_done += any(target.rglob("*.prob"))
            check_partial(target, expected)
        elif status == 0:
            finished += 1
            found = contents(target)
            assert found == expected, f"after {kills} kills these differ: {differing(found, expected)}"
            leftovers = [str(path) for path in target.rglob("*.part*")]
            assert not leftovers, leftovers
            shutil.rmtree(target)
        else:
            print(f"a run ended with {status}")
            return 1
    print(
        json.dumps(
            {
                "kills": kills,
                "finished": finished,
                "died_with_work_done": died_with_work_done,
                "statuses": sorted(statuses),
            }
        )
    )
    return 0


def run(plate: str, first: str, second: str, target: Path) -> None:
    """One propagation from two keys."""
    network = CountingNetwork()
    out = target / "matte.####.exr"
    options = RunOptions(network=network.factory)
    propagate(plate, {1003: first, 1008: second}, out, settings=SETTINGS, run=options)


def wait(child: int, seconds: float) -> int:
    """Wait for a child and kill it after `seconds`; returns its exit code (-9: killed)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    """Mattes and results, by name."""
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".exr", ".prob") and not path.name.startswith(".")
    }


def check_partial(folder: Path, expected: dict[str, bytes]) -> None:
    """Check that files with their final names are whole and correct."""
    for name, data in contents(folder).items():
        assert expected[name] == data, f"{name} is not what an undisturbed run writes"


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


if __name__ == "__main__":
    sys.exit(main())
