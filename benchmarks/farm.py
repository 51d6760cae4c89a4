"""How a shot scales on a farm: makespan and cost of N machines, by simulation from measured times per step.

    python benchmarks/farm.py                               # tables for 100 to 2000 frames and 1 to 20 keys
    python benchmarks/farm.py --frames 240 --keys 1,120,240 --deadline 600     # which key to add
    python benchmarks/farm.py --measure SHOT --processes 2  # runs the tasks here, and says how far it is off

The tasks are those of the real plan. Each machine takes the next task of a step as soon as it is free, in the
order of the bundle; a step begins when the one before it is done, as in the open job format. Times are those
of `Times`; --measure takes them from the tasks that it runs. A measured shot must be a copy: it is emptied.
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from stm_plugin.farm.parts import DEFAULT_CHUNK, Parts, parts_of
from stm_plugin.planning.plan import make_plan
from stm_plugin.planning.values import Facts, Key, KeyMask

Words = tuple[object, ...]
"""The words of a task after `stm farm`."""

STEPS = ("read", "step", "finish", "check")
"""The times of a frame in the plan, the passes, the chunks and the check."""
MACHINES = (1, 2, 4, 8, 16, 32, 64)
MOST_KEYS = 40
GAIN = 1.1
"""Twice the machines that are not this much quicker are not worth their start."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Times:
    """Seconds: start of a task, reading a frame, a frame of a pass, finishing a frame, checking a frame.

    transfer: of a task's input and results where machines share no disk.
    starts: of single steps' tasks where measured: a pass loads the network, finishing does not.
    """

    start: float = 4.0
    read: float = 0.05
    step: float = 0.45
    finish: float = 0.35
    check: float = 0.1
    transfer: float = 0.0
    starts: Mapping[str, float] = field(default_factory=dict)

    def phases(self, step: str, frames: int) -> tuple[float, float]:
        """Of a task: its start, and its frames."""
        return self.transfer + self.starts.get(step, self.start), frames * float(getattr(self, step))


@dataclass(frozen=True)
class Phase:
    """A part of a task: seconds while its hardware does nothing else, and while other tasks run on it."""

    alone: float
    beside: float


Task = tuple[Phase, Phase]
"""The start, and the frames."""


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


def simulate(parts: Parts, machines: int, times: Times, beside: Times | None = None) -> Run:
    """A job on machines that are all alike.

    Args:
        beside: times while several tasks run, where the machines are processes on the same hardware.
    """
    steps = _steps(parts, times, beside or times)
    cost = sum(phase.alone for step in steps for task in step for phase in task)
    return Run(sum(_makespan(step, machines) for step in steps), cost)


def _steps(parts: Parts, times: Times, beside: Times) -> list[list[Task]]:
    """The tasks of the plan, the passes, the chunks and the check."""
    frames = sum(one.last - one.first + 1 for one in parts.chunks)

    def task(count: int, name: str) -> Task:
        (start, work), (late_start, late_work) = times.phases(name, count), beside.phases(name, count)
        return Phase(start, late_start), Phase(work, late_work)

    return [
        [task(frames, "read")],
        [task(one.frames, "step") for one in parts.passes],
        [task(one.last - one.first + 1, "finish") for one in parts.chunks],
        [task(frames, "check")],
    ]


def _makespan(tasks: Iterable[Task], machines: int) -> float:
    """How long tasks take in their order."""
    waiting, now = deque(tasks), 0.0
    running: list[list[tuple[Phase, float]]] = []  # of each task: its phases, and the share left of each
    while waiting or running:
        while waiting and len(running) < machines:
            running.append([(phase, 1.0) for phase in waiting.popleft()])
        speed = "beside" if len(running) > 1 else "alone"
        shortest = min(getattr(task[0][0], speed) * task[0][1] for task in running)
        now += shortest
        for task in running:
            phase, left = task[0]
            whole = getattr(phase, speed)
            task[0] = (phase, left - shortest / whole if whole > 0 else 0.0)
            if task[0][1] <= _ROUNDING:
                del task[0]
        running = [task for task in running if task]
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


def measure(shot: Path, processes: int, chunk: int, repeats: int) -> None:
    """Run a shot's tasks here, one at a time and `processes` at once, and compare with the simulation.

    Each process gets its share of the cores, and the same share when it runs alone: it stands for a machine.
    Each job is simulated twice: from the first tasks of its own steps, which say how quick the machine is at
    this moment, and from the medians of the other repeats.
    """
    from stm_plugin.farm.work import FarmShot
    from stm_plugin.planning.values import Request

    with FarmShot(shot, Request()) as opened:
        parts = parts_of(opened.propagation.plan(), chunk)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(shot, Path(name), parts, _shares(processes))
        bench.empty()
        bench.run([bench.plan, bench.passes[-1]], 1)  # the first runs read programs from the disk
        pairs: list[Pair] = []
        own, others = [], []
        for _ in range(repeats):
            pairs.append((bench.job(1), bench.job(processes)))
            own.append(_compare(parts, processes, pairs[-1], _first_times(pairs[-1], processes)))
    for number, pair in enumerate(pairs):
        rest = pairs[:number] + pairs[number + 1 :]
        if rest:
            others.append(_compare(parts, processes, pair, _median_times(rest), words="other repeats"))
    for words, errors in (("its own first tasks", own), ("the other repeats", others)):
        for place, count in enumerate((1, processes)):
            if errors:
                middle = median(one[place] for one in errors)
                print(f"{count} processes, from {words}: median error {middle:+.0f} %")


@dataclass(frozen=True)
class Taken:
    """What a task took: seconds around its frames, its frames, and their seconds."""

    start: float
    frames: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """A job that was run: seconds of each step, and what its tasks took, by step."""

    seconds: Mapping[str, float]
    tasks: Mapping[str, Sequence[Taken]]


Pair = tuple[Job, Job]
"""The same job by one process and by several."""


def _compare(
    parts: Parts, processes: int, pair: Pair, times: tuple[Times, Times], words: str = "own first tasks"
) -> list[float]:
    """Print what a pair of jobs took and what the simulation says; returns the errors in percent."""
    errors = []
    for count, job in zip((1, processes), pair, strict=True):
        said = [_makespan(step, count) for step in _steps(parts, *times)]
        real = [job.seconds[step] for step in STEPS]
        errors.append(100 * (sum(said) / sum(real) - 1))
        rows = zip(STEPS, real, said, strict=True)
        steps = ", ".join(f"{step} {one:.1f} ({other:.1f})" for step, one, other in rows)
        total = f"{sum(real):.1f} s, by {words} {sum(said):.1f} s, {errors[-1]:+.0f} %"
        print(f"{count} processes: {total}: {steps}", flush=True)
    return errors


def _first_times(pair: Pair, processes: int) -> tuple[Times, Times]:
    """Times of the job by one process and by several, from the first tasks of each step.

    The plan and the check are one task each, so theirs are those of the other job of the pair.
    """
    found = []
    for job, other, count in ((*pair, 1), (pair[1], pair[0], processes)):
        tasks = {step: job.tasks[step][:count] for step in ("step", "finish")}
        found.append(_times({**tasks, **{step: other.tasks[step] for step in ("read", "check")}}))
    return found[0], found[1]


def _median_times(pairs: Sequence[Pair]) -> tuple[Times, Times]:
    """The medians of all tasks of these jobs."""
    found = []
    for place in (0, 1):
        tasks = {step: [one for pair in pairs for one in pair[place].tasks[step]] for step in STEPS}
        found.append(_times(tasks))
    return found[0], found[1]


def _times(found: Mapping[str, Sequence[Taken]]) -> Times:
    """The median start of each step's tasks, and the median time of its frames."""
    starts = {step: median(one.start for one in found[step]) for step in STEPS}
    rates = {step: median(one.seconds / one.frames for one in found[step]) for step in STEPS}
    return Times(**rates, starts=starts)


@dataclass(frozen=True)
class Bench:
    """Runs the tasks of one shot on this computer. shares: the cores of each process."""

    shot: Path
    mattes: Path
    parts: Parts
    shares: Sequence[set[int]]

    @property
    def plan(self) -> Words:
        return ("plan", self.shot, "--out", self._out)

    @property
    def passes(self) -> list[Words]:
        return [("pass", self.shot, one.text) for one in self.parts.passes]

    @property
    def chunks(self) -> list[Words]:
        return [("finish", self.shot, one.text, "--out", self._out) for one in self.parts.chunks]

    @property
    def check(self) -> Words:
        return ("check", self.shot, "--out", self._out)

    @property
    def _out(self) -> str:
        return f"{self.mattes}/matte.####.exr"

    def empty(self) -> None:
        """Remove all results."""
        shutil.rmtree(self.shot / "mattes", ignore_errors=True)
        (self.shot / "plate.jsonl").unlink(missing_ok=True)
        for path in self.mattes.glob("*.exr"):
            path.unlink()

    def job(self, processes: int) -> Job:
        """A whole job, from nothing."""
        self.empty()
        seconds, taken = {}, {}
        for step, tasks in zip(STEPS, ([self.plan], self.passes, self.chunks, [self.check]), strict=True):
            started = time.monotonic()
            taken[step] = self.run(tasks, processes)
            seconds[step] = time.monotonic() - started
        return Job(seconds, taken)

    def run(self, tasks: Sequence[Words], processes: int) -> list[Taken]:
        """Run tasks, `processes` at once, each on its share of the cores."""
        free: SimpleQueue[set[int]] = SimpleQueue()
        for share in self.shares[:processes]:
            free.put(share)

        def take_cores() -> None:
            if share := free.get():
                os.sched_setaffinity(0, share)  # of this thread, and of the processes that it starts

        with ThreadPoolExecutor(processes, initializer=take_cores) as pool:
            return list(pool.map(_timed, tasks))


def _timed(words: Words) -> Taken:
    """Run a task, and take the time of each frame that it reports."""
    command = [sys.executable, "-m", "stm_plugin", "farm", *map(str, words)]
    started = time.monotonic()
    reported: list[float] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        for line in process.stdout or ():
            if line.startswith("frame "):
                reported.append(time.monotonic())
    ended = time.monotonic()
    if process.returncode != 0 or len(reported) < 2:
        raise SystemExit(f"{' '.join(command)} failed, or has fewer than two frames to do.")
    frames = len(reported)
    seconds = (reported[-1] - reported[0]) * frames / (frames - 1)
    return Taken(ended - started - seconds, frames, seconds)


def _shares(processes: int) -> list[set[int]]:
    """The cores of each process: equal shares of this machine's, or no choice where the system gives none."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * processes
    cores = sorted(os.sched_getaffinity(0))
    size = max(1, len(cores) // processes)
    return [set(cores[size * one % len(cores) :][:size]) for one in range(processes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--keys", default="1", help="frames with a key, from 1")
    parser.add_argument("--deadline", type=float, help="seconds")
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--measure", type=Path, metavar="SHOT")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of each job that is measured")
    parser.add_argument("--chunk", type=int, default=DEFAULT_CHUNK)
    for name, value in list(vars(Times()).items())[:-1]:
        parser.add_argument(f"--{name}", type=float, default=value, help=f"seconds; {value}")
    given = parser.parse_args()
    times = Times(given.start, given.read, given.step, given.finish, given.check, given.transfer)
    if given.measure is not None:
        measure(given.measure, given.processes, given.chunk, given.repeats)
    elif given.deadline is not None:
        keys = [int(one) for one in given.keys.split(",")]
        advise(given.frames, keys, given.deadline, given.machines, times)
    else:
        table(times, MACHINES)


if __name__ == "__main__":
    main()
