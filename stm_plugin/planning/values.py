"""The values that a plan is made from, and the values of a plan. `plan.py` computes one from the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import groupby
from typing import Literal

from stm_plugin.address import address_of

Directions = Literal["both", "forward", "backward"]

_HOW_FAR = (
    "a key's passes run to the second key on either side, "
    "past keys that show less of the object to the fourth"
)


class Direction(StrEnum):
    """The direction of a pass."""

    FORWARD = "forward"
    BACKWARD = "backward"


class State(StrEnum):
    """The state of a frame's matte."""

    KEY = "key"
    """The artist gave the mask of every object."""
    DONE = "done"
    """All results that it needs are in the store."""
    STALE = "stale"
    """It was computed, and an ingredient has changed since."""
    MISSING = "missing"
    """It was never computed."""
    UNREACHED = "unreached"
    """No pass in the requested direction reaches it."""


# ---- what a plan is made from ----------------------------------------------------------------


@dataclass(frozen=True)
class KeyMask:
    """One object's mask on a key, by the hash of its values over the canvas.

    Attributes:
        area: pixels of the plate that it covers; None in shots of before this was kept.
    """

    hash: str
    empty: bool = False
    area: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Key:
    """A frame on which the artist gave masks, by object id."""

    frame: int
    masks: Mapping[str, KeyMask]

    @cached_property
    def hash(self) -> str:
        return address_of("masks", {name: mask.hash for name, mask in self.masks.items()})

    def visible(self, objects: Iterable[str]) -> tuple[str, ...]:
        """Those of `objects`, in their order, whose mask here is not empty."""
        return tuple(one for one in objects if one in self.masks and not self.masks[one].empty)


@dataclass(frozen=True)
class Facts:
    """Everything about a shot that a plan depends on.

    Args:
        frames: the plate's frames, ascending, in the host's numbers.
        objects: ids of the objects in their order.
        keys: in any order.
        base: what every probability depends on, by its name for people (`weights`, ...).
        plate: content hash of each plate frame as far as it is known.
        settings: the settings behind `base` by name, as people write them: for reasons in words alone.
    """

    frames: tuple[int, ...]
    objects: tuple[str, ...]
    keys: tuple[Key, ...]
    base: Mapping[str, str]
    plate: Mapping[int, str]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What the user asked for: frames `first` to `last` (None: to the plate's end), and directions."""

    first: int | None = None
    last: int | None = None
    directions: Directions = "both"


@dataclass(frozen=True)
class FrameRecord:
    """What a finished frame was made from; the store keeps it to distinguish stale from missing.

    `settings` is empty where an earlier version finished the frame.
    """

    frame: int
    address: str
    base: Mapping[str, str]
    keys: Mapping[int, str]
    plate: str
    settings: Mapping[str, str] = field(default_factory=dict)


# ---- what a plan is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Frames `first` to `last` of `objects` between the keys `left` and `right` (None: the plate ends)."""

    objects: tuple[str, ...]
    first: int
    last: int
    left: int | None
    right: int | None


PassName = tuple[int, Direction]
"""A pass by its key and its direction."""


@dataclass(frozen=True)
class Candidate:
    """A pass that reaches a frame and has a result for an object there.

    Attributes:
        met: keys of the object on the way of the pass, up to the first that is not before the frame. The pass
            did not use their masks, so the fit of its results there measures how good it is.
    """

    key: int
    direction: Direction
    met: tuple[int, ...] = ()

    @property
    def name(self) -> PassName:
        return self.key, self.direction


@dataclass(frozen=True)
class Source:
    """Where one object's matte on one frame comes from: the mask of a key, passes, or nothing (absent).

    Attributes:
        key: the frame itself, if it is a key of the object.
        candidates: the passes that are fused, from the left-most key to the right-most.
    """

    key: int | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def absent(self) -> bool:
        return self.key is None and not self.candidates

    @property
    def forward(self) -> int | None:
        """The nearest key on the left whose pass reaches the frame."""
        return max((one.key for one in self.candidates if one.direction is Direction.FORWARD), default=None)

    @property
    def backward(self) -> int | None:
        """The nearest key on the right whose pass reaches the frame."""
        return min((one.key for one in self.candidates if one.direction is Direction.BACKWARD), default=None)

    def needs(self, frame: int) -> frozenset[tuple[int, Direction, int]]:
        """The results that it is fused from on `frame`: key, direction and frame of each.

        A single pass needs no weight. Several passes need their results on the keys that they met, too.
        """
        weighed = self.candidates if len(self.candidates) > 1 else ()
        here = {(*one.name, frame) for one in self.candidates}
        return frozenset(here | {(*one.name, met) for one in weighed for met in one.met})

    @property
    def keys(self) -> frozenset[int]:
        """All keys that it depends on."""
        if self.key is not None:
            return frozenset({self.key})
        weighed = self.candidates if len(self.candidates) > 1 else ()
        return frozenset({one.key for one in self.candidates} | {met for one in weighed for met in one.met})


@dataclass(frozen=True)
class Pass:
    """One run from a key in one direction.

    Attributes:
        frames: in the order of the run, without the key.
        root: address of the pass on its key; None where that plate frame was not read yet.
    """

    key: int
    direction: Direction
    objects: tuple[str, ...]
    frames: tuple[int, ...]
    root: str | None

    @property
    def name(self) -> PassName:
        return self.key, self.direction


@dataclass(frozen=True)
class ComputeStep:
    """Compute `passed.frames[position]`, unless the store has a result with its address."""

    passed: Pass
    position: int

    @property
    def frame(self) -> int:
        return self.passed.frames[self.position]


@dataclass(frozen=True)
class FinishStep:
    """All results that the matte of `frame` needs exist: fuse, finish and return it."""

    frame: int


Step = ComputeStep | FinishStep


@dataclass(frozen=True)
class FramePlan:
    """One frame of the range: its state, the source of each object, and why it is (re)computed.

    Attributes:
        address: None where its plate frame, or one that it depends on, was not read yet.
        ready: every result of the network that it needs is stored.
    """

    frame: int
    sources: Mapping[str, Source]
    address: str | None
    state: State
    why: str = ""
    ready: bool = False

    @property
    def is_key(self) -> bool:
        """Whether the artist gave the mask of every object. The matte then exists without the network."""
        return all(source.key is not None for source in self.sources.values())

    @property
    def is_done(self) -> bool:
        """Whether its matte can be made without the network."""
        return self.state is not State.UNREACHED and (self.ready or self.is_key)


@dataclass(frozen=True)
class DirtyRange:
    """Neighbouring frames that are (re)computed for one reason.

    `only_fused`: the network's results are stored; the frames are only fused anew.
    """

    first: int
    last: int
    state: State
    why: str
    only_fused: bool = False

    def __str__(self) -> str:
        frames = f"frame {self.first}" if self.first == self.last else f"frames {self.first}-{self.last}"
        if self.only_fused:
            return f"{frames} will be fused again without the network: {self.why}"
        verb = {State.STALE: "will be recomputed", State.UNREACHED: "cannot be computed"}
        return f"{frames} {verb.get(self.state, 'will be computed')}: {self.why}"


@dataclass(frozen=True)
class Plan:
    """What will be computed. `steps` is the work in order; `dirty` is the text for people."""

    facts: Facts
    frames: tuple[FramePlan, ...]
    passes: tuple[Pass, ...]
    steps: tuple[Step, ...]
    addresses: Mapping[PassName, tuple[str | None, ...]] = field(repr=False)

    @property
    def dirty(self) -> tuple[DirtyRange, ...]:
        return _dirty_ranges(self.frames)

    @property
    def compute_steps(self) -> tuple[ComputeStep, ...]:
        """The steps that run the network: one query, one read and one decoding each."""
        return tuple(step for step in self.steps if isinstance(step, ComputeStep))

    def state(self, frame: int) -> State:
        return self.by_frame[frame].state

    @cached_property
    def by_frame(self) -> dict[int, FramePlan]:
        return {one.frame: one for one in self.frames}

    def words(self) -> str:
        """The plan for people, one line per dirty range, and how far the passes run."""
        lines = [str(one) for one in self.dirty]
        count = len(self.compute_steps)
        if count and len(self.facts.keys) > 1:
            what = "1 frame goes" if count == 1 else f"{count} frames go"
            lines.append(f"{what} through the network: {_HOW_FAR}")
        return "\n".join(lines) if lines else "Everything is up to date."


def _dirty_ranges(frames: Iterable[FramePlan]) -> tuple[DirtyRange, ...]:
    """Neighbouring frames that must be computed for the same reason, together."""
    ranges = []
    for (state, why, ready), group in groupby(frames, key=lambda one: (one.state, one.why, one.ready)):
        if state in (State.STALE, State.MISSING, State.UNREACHED):
            members = list(group)
            ranges.append(DirtyRange(members[0].frame, members[-1].frame, state, why, ready))
    return tuple(ranges)
