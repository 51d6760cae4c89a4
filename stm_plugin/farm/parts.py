"""The parts of a shot's work, and their dependencies: values only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stm_plugin.address import address_of
from stm_plugin.errors import SettingsError
from stm_plugin.planning.values import Direction, Facts, Plan
from stm_plugin.settings import Settings

DEFAULT_CHUNK = 20
"""Frames of a finishing task: starting it takes as long as finishing about ten frames of 2K."""
MOST_TASKS = 1024
"""The most tasks of a step in the open job format."""

PassName = tuple[int, Direction]
_PASS = re.compile(r"(-?\d+):(forward|backward)")


@dataclass(frozen=True)
class PassPart:
    """One pass: its frames are computed in order, in one task. `frames`: how many."""

    name: PassName
    frames: int

    @property
    def text(self) -> str:
        """`1001:forward`."""
        return pass_text(self.name)


@dataclass(frozen=True)
class ChunkPart:
    """Frames `first` to `last`, finished in one task as soon as the passes `needs` are done."""

    first: int
    last: int
    needs: tuple[PassName, ...]

    @property
    def text(self) -> str:
        """`1001-1020`."""
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Parts:
    """The tasks of a shot between the plan, which comes first, and the check, which comes last."""

    passes: tuple[PassPart, ...]
    chunks: tuple[ChunkPart, ...]


def parts_of(plan: Plan, chunk: int = DEFAULT_CHUNK) -> Parts:
    """The parts of a plan.

    Args:
        chunk: frames of a finishing task; more if there would be too many tasks.

    Raises:
        SettingsError: `chunk` is no number of frames, or the passes are too many for one job.
    """
    if chunk < 1:
        raise SettingsError(f"A chunk of {chunk} frames cannot be finished.", hint="Give 1 or more.")
    if len(plan.passes) > MOST_TASKS:
        raise SettingsError(
            f"The shot has {len(plan.passes)} passes; a job takes {MOST_TASKS}.", hint="Give a shorter range."
        )
    frames = [one.frame for one in plan.frames]
    size = max(chunk, -(-len(frames) // MOST_TASKS))
    chunks = []
    for start in range(0, len(frames), size):
        members = set(frames[start : start + size])
        needs = tuple(one.name for one in plan.passes if not members.isdisjoint(one.frames))
        chunks.append(ChunkPart(min(members), max(members), needs))
    longest_first = sorted(plan.passes, key=lambda one: -len(one.frames))  # machines idle least so
    return Parts(tuple(PassPart(one.name, len(one.frames)) for one in longest_first), tuple(chunks))


def job_address(facts: Facts, settings: Settings) -> str:
    """The hash of all that a job's bytes depend on, except the plate's pixels; equal on all machines."""
    keys = {str(key.frame): key.hash for key in facts.keys}
    ids = [settings.id("finish"), settings.id("export")]
    return address_of("farm job", dict(facts.base), keys, list(facts.objects), ids)


def pass_text(name: PassName) -> str:
    """`1001:forward`."""
    return f"{name[0]}:{name[1].value}"


def parse_pass(text: str) -> PassName:
    """The pass of a text by `pass_text`. SettingsError for text of another form."""
    match = _PASS.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"The pass {text!r} cannot be read.", hint="Write 1001:forward.")
    return int(match[1]), Direction(match[2])
