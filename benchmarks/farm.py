"""How a shot scales on a farm: makespan and cost of N machines, by simulation from measured times per step.

    python benchmarks/farm.py                               # tables for 100 to 2000 frames and 1 to 20 keys
    python benchmarks/farm.py --frames 240 --keys 1,120,240 --deadline 600     # which key to add
    python benchmarks/farm.py --measure SHOT --processes 2  # runs the tasks here, and says how far it is off

The tasks are those of the real plan. Each machine takes the next task of a step as soon as it is free, in the
order of the bundle; a step begins when the one before it is done, as in the open job format. Times are those
of `Times`; --measure takes them from runs of single tasks. A measured shot must be a copy: it is emptied.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stm_plugin.farm.parts import DEFAULT_CHUNK, Parts, parts_of
from stm_plugin.planning.plan import make_plan
from stm_plugin.planning.values import Facts, Key, KeyMask

MACHINES = (1, 2, 4, 8, 16, 32, 64)
MOST_KEYS = 40
GAIN = 1.1
"""Twice the machines that are not this much quicker are not worth their start."""


@dataclass(frozen=True)
class Times:
    """Seconds: start of a task, reading a frame, a frame of a pass, finishing a frame, checking a frame."""

    start: float = 4.0
    read: float = 0.05
    step: float = 0.45
    finish: float = 0.35
    check: float = 0.1


@dataclass(frozen=True)
class Run:
    """How long a job takes, and how long machines are busy with it, in seconds."""

    makespan: float
    cost: float


def parts_for(frames: int, keys: Sequence[int], chunk: int = DEFAULT_CHUNK) -> Parts:
    """The tasks of a shot with frames 1 to `frames` and one object."""
    made = tuple(Key(frame, {"o1": KeyMask(str(frame))}) for frame in keys)
    return parts_of(make_plan(Facts(tuple(range(1, frames + 1)), ("o1",), made, {}, {})), chunk)


def spread(frames: int, count: int) -> list[int]:
    """Evenly spread keys; one alone is the first frame."""
    if count == 1:
        return [1]
    return sorted({1 + round(place * (frames - 1) / (count - 1)) for place in range(count)})


def simulate(parts: Parts, machines: int, times: Times) -> Run:
    """A job on machines that are all alike."""
    frames = sum(one.last - one.first + 1 for one in parts.chunks)
    steps = [
        [times.start + times.read * frames],
        [times.start + times.step * one.frames for one in parts.passes],
        [times.start + times.finish * (one.last - one.first + 1) for one in parts.chunks],
        [times.start + times.check * frames],
    ]
    return Run(sum(_makespan(step, machines) for step in steps), sum(map(sum, steps)))


def _makespan(tasks: Iterable[float], machines: int, slowdown: float = 1.0) -> float:
    """How long tasks take in their order. `slowdown`: while more than one runs on shared cores."""
    waiting, running, now = deque(tasks), list[float](), 0.0
    while waiting or running:
        while waiting and len(running) < machines:
            running.append(waiting.popleft())
        shortest = min(running)
        now += shortest * (slowdown if len(running) > 1 else 1.0)
        running = [left - shortest for left in running if left > shortest]
    return now


def enough(parts: Parts, times: Times) -> int:
    """The machines from which on twice as many gain less than a tenth."""
    for machines in MACHINES:
        one, two = simulate(parts, machines, times), simulate(parts, 2 * machines, times)
        if one.makespan < GAIN * two.makespan:
            return machines
    return MACHINES[-1]


def advise(frames: int, keys: list[int], deadline: float, machines: int, times: Times) -> None:
    """Say which keys to add, one after the other in the middle of the widest gap, until a job is in time.

    A pass runs up to the second further key, so the first keys that are added may gain nothing.
    """
    keys = sorted(keys)
    while True:
        run = simulate(parts_for(frames, keys), machines, times)
        words = f"{run.makespan:.0f} s on {machines} machines, {run.cost:.0f} s of work"
        print(f"keys {', '.join(map(str, keys))}: {words}")
        if run.makespan <= deadline:
            return
        gaps = [(two - one, (one + two) // 2) for one, two in pairwise([1, *keys, frames])]
        width, middle = max(gaps)
        if width < 2 or len(keys) >= MOST_KEYS:
            print("Keys alone do not do it: give it more machines, or fewer frames.")
            return
        keys = sorted([*keys, middle])


def table(times: Times, machines: Sequence[int]) -> None:
    """Makespans in minutes, cost on one machine, and where it stops to scale."""
    columns = [f"minutes_on_{one}" for one in machines]
    print(",".join(["frames", "keys", "passes", *columns, "machine_minutes", "enough"]))
    for frames in (100, 240, 500, 1000, 2000):
        for count in (1, 2, 3, 5, 10, 20):
            parts = parts_for(frames, spread(frames, count))
            runs = [simulate(parts, one, times) for one in machines]
            minutes = ",".join(f"{one.makespan / 60:.1f}" for one in runs)
            cost = f"{runs[0].cost / 60:.1f}"
            print(f"{frames},{count},{len(parts.passes)},{minutes},{cost},{enough(parts, times)}")


def measure(shot: Path, processes: int, chunk: int) -> None:
    """Run a shot's tasks here, one at a time and `processes` at once, and compare with the simulation.

    Each process gets its share of the cores, and the same share when it runs alone: it stands for a machine.
    """
    from stm_plugin.farm.work import FarmShot
    from stm_plugin.planning.values import Request

    with FarmShot(shot, Request()) as opened:
        parts = parts_of(opened.propagation.plan(), chunk)
    with tempfile.TemporaryDirectory() as name:
        out = f"{name}/matte.####.exr"
        shares = _shares(processes)
        took: dict[str, list[float]] = {}
        slowdown = 1.0
        for count in (1, processes):
            _empty(shot, Path(name))
            started = time.monotonic()
            found = _run_job(shot, out, parts, shares[:count])
            real = time.monotonic() - started
            if count == 1:
                took = _fitted_job(found, parts)
                slowdown = _slowdown(shot, Path(name), parts, shares, found["pass"])
            said = sum(_makespan(seconds, count, slowdown) for seconds in took.values())
            off = f"{100 * (said / real - 1):+.0f} %"
            print(f"{count} processes: {real:.1f} s, simulated {said:.1f} s, {off}", flush=True)
        print(f"tasks that run together here take {slowdown:.2f} times as long as alone", flush=True)


def _empty(shot: Path, mattes: Path) -> None:
    """Remove all results of a shot."""
    shutil.rmtree(shot / "mattes", ignore_errors=True)
    for path in [*mattes.glob("*.exr"), shot / "plate.jsonl"]:
        path.unlink(missing_ok=True)


def _run_job(shot: Path, out: str, parts: Parts, shares: list[set[int]]) -> dict[str, list[float]]:
    """Run all tasks of a job; seconds of each, by step."""
    return {
        "plan": _tasks([("plan", shot, "--out", out)], shares[:1]),
        "pass": _tasks([("pass", shot, one.text) for one in parts.passes], shares),
        "finish": _tasks([("finish", shot, one.text, "--out", out) for one in parts.chunks], shares),
        "check": _tasks([("check", shot, "--out", out)], shares[:1]),
    }


def _slowdown(
    shot: Path, mattes: Path, parts: Parts, shares: list[set[int]], alone: Sequence[float]
) -> float:
    """How much longer the first passes take together than alone; 1 if each has its own computer."""
    if len(shares) < 2 or len(parts.passes) < 2:
        return 1.0
    _empty(shot, mattes)
    first = parts.passes[: len(shares)]
    together = _tasks([("pass", shot, one.text) for one in first], shares)
    return max(1.0, sum(together) / sum(alone[: len(first)]))


def _fitted_job(found: dict[str, list[float]], parts: Parts) -> dict[str, list[float]]:
    """The seconds of tasks that ran one at a time, made smooth."""
    lengths = [one.last - one.first + 1 for one in parts.chunks]
    passes = _fitted(found["pass"], [one.frames for one in parts.passes])
    return {**found, "pass": passes, "finish": _fitted(found["finish"], lengths)}


def _fitted(seconds: Sequence[float], frames: Sequence[int]) -> list[float]:
    """What tasks take by one time to start and one per frame, fitted to runs of one task at a time."""
    if len(set(frames)) < 2:
        return [sum(seconds) / len(seconds)] * len(seconds)
    per_frame, start = np.polyfit(frames, seconds, 1)
    return [float(start + per_frame * one) for one in frames]


def _shares(processes: int) -> list[set[int]]:
    """The cores of each process: equal shares of this machine's, or no choice where the system gives none."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * processes
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // processes)
    return [set(cores[size * one % len(cores) :][:size]) for one in range(processes)]


def _tasks(tasks: Sequence[tuple[object, ...]], shares: list[set[int]]) -> list[float]:
    """Run tasks, one at a time on each share of the cores; returns the seconds of each."""
    free: SimpleQueue[set[int]] = SimpleQueue()
    for share in shares:
        free.put(share)

    def take_cores() -> None:
        if share := free.get():
            os.sched_setaffinity(0, share)  # of this thread, and of the processes that it starts

    def run(words: tuple[object, ...]) -> float:
        started = time.monotonic()
        command = [sys.executable, "-m", "stm_plugin", "farm", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        return time.monotonic() - started

    with ThreadPoolExecutor(len(shares), initializer=take_cores) as pool:
        return list(pool.map(run, tasks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--keys", default="1", help="frames with a key, from 1")
    parser.add_argument("--deadline", type=float, help="seconds")
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--measure", type=Path, metavar="SHOT")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=DEFAULT_CHUNK)
    for name, value in vars(Times()).items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"seconds; {value}")
    given = parser.parse_args()
    times = Times(given.start, given.read, given.step, given.finish, given.check)
    if given.measure is not None:
        measure(given.measure, given.processes, given.chunk)
    elif given.deadline is not None:
        keys = [int(one) for one in given.keys.split(",")]
        advise(given.frames, keys, given.deadline, given.machines, times)
    else:
        table(times, MACHINES)


if __name__ == "__main__":
    main()
