"""What a propagation says while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from stm_plugin.planning.values import Direction, Plan


@dataclass(frozen=True)
class PlanMade:
    """What will be done. Comes again when the plate changes under way or a damaged result is found."""

    plan: Plan


@dataclass(frozen=True)
class FrameComputed:
    """A pass has come by a frame; its result is on disk. `reused`: it turned out to be there already."""

    frame: int
    direction: Direction
    reused: bool


@dataclass(frozen=True)
class FrameFinished:
    """All that the matte of a frame needs is on disk, and the matte was handed out, if it was asked for."""

    frame: int
    address: str


@dataclass(frozen=True)
class Progress:
    """Steps done and to do. `seconds_left` is None until there is something to judge by."""

    done: int
    total: int
    frame: int
    seconds_left: float | None


@dataclass(frozen=True)
class PlateChanged:
    """The plate is not what the plan was made for; only what depends on these frames is computed again."""

    frames: tuple[int, ...]


@dataclass(frozen=True)
class DamageFound:
    """A stored result was truncated or altered; it is computed again."""

    path: str


@dataclass(frozen=True)
class Notice:
    """Something that a person should know, in a sentence."""

    text: str


Event = PlanMade | FrameComputed | FrameFinished | Progress | PlateChanged | DamageFound | Notice
