"""The events of a propagation."""

from __future__ import annotations

from dataclasses import dataclass

from stm_plugin.planning.values import Direction, Plan


@dataclass(frozen=True)
class PlanMade:
    """A plan was made. Sent again when the plate changes meanwhile or a damaged result is found."""

    plan: Plan


@dataclass(frozen=True)
class FrameComputed:
    """A pass has computed a frame; its result is on disk. `reused`: the store had the result already."""

    frame: int
    direction: Direction
    reused: bool


@dataclass(frozen=True)
class FrameFinished:
    """All results of a frame are on disk, and its matte file is written if there is a writer."""

    frame: int
    address: str


@dataclass(frozen=True)
class Progress:
    """Steps done and all steps. `seconds_left` is None until it can be estimated."""

    done: int
    total: int
    frame: int
    seconds_left: float | None


@dataclass(frozen=True)
class PlateChanged:
    """The plate changed since the plan was made; only results that depend on these frames are computed
    again."""

    frames: tuple[int, ...]


@dataclass(frozen=True)
class DamageFound:
    """A stored result was truncated or altered; it is computed again."""

    path: str


@dataclass(frozen=True)
class Notice:
    """A sentence for people."""

    text: str


Event = PlanMade | FrameComputed | FrameFinished | Progress | PlateChanged | DamageFound | Notice
