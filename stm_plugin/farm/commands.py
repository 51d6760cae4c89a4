"""The tasks of a job as plain command lines with their dependencies, for engines without the open format."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from stm_plugin.farm.bundle import Job
from stm_plugin.farm.parts import pass_text


@dataclass(frozen=True)
class Command:
    """One task: its name, the names of tasks that it waits for, and its command line."""

    name: str
    after: tuple[str, ...]
    words: tuple[str, ...]

    def to_json(self) -> Mapping[str, object]:
        return {"name": self.name, "after": list(self.after), "command": list(self.words)}

    @property
    def line(self) -> str:
        """The command line for a shell."""
        return shlex.join(self.words)


def commands(job: Job) -> tuple[Command, ...]:
    """All tasks of a job, each after those that it waits for."""
    shot = str(job.shot)
    out, frames = ("--out", str(job.out)), ("--frames", job.frames)
    rest: tuple[str, ...] = ("--expects", job.address)
    if job.plate:
        rest += ("--plate", job.plate)
    rest += ("--", shot)  # frames may be negative: what follows is not an option
    stm = (job.stm, "farm")
    found = [Command("plan", (), (*stm, "plan", *out, *frames, *rest))]
    for passed in job.parts.passes:
        words = (*stm, "pass", *frames, *rest, passed.text)
        found.append(Command(f"pass {passed.text}", ("plan",), words))
    for chunk in job.parts.chunks:
        after = tuple(f"pass {pass_text(one)}" for one in chunk.needs) or ("plan",)
        found.append(Command(f"finish {chunk.text}", after, (*stm, "finish", *out, *rest, chunk.text)))
    chunks = tuple(f"finish {one.text}" for one in job.parts.chunks)
    found.append(Command("check", chunks, (*stm, "check", *out, *frames, *rest)))
    return tuple(found)
