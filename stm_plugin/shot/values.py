"""The values that describe a shot's state and a propagation's result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stm_plugin.files.lock import Holder
from stm_plugin.planning.quality import Advice, Quality, no_advice
from stm_plugin.planning.values import DirtyRange, State
from stm_plugin.propagation.events import Event, FrameComputed, Notice
from stm_plugin.store.description import AdaptationRecord
from stm_plugin.store.store import StoreSize

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]


def silent(event: Event) -> None:
    """Ignore an event."""


def never() -> bool:
    """False: do not cancel."""
    return False


@dataclass(frozen=True)
class KeyInfo:
    """A key with the names of its objects; `empty` names those with an empty mask ("not here").

    After `add_key`, `kept` and `dropped` name earlier objects of the key that the new mask does not hold.
    """

    frame: int
    objects: tuple[str, ...]
    empty: tuple[str, ...]
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShotStatus:
    """The state of a shot.

    Attributes:
        states: of every frame of the range.
        dirty: what a propagation would compute, in words (`str` of each).
        network_frames: how often the network would run.
        plate_missing: frames of the plate that do not exist.
        holder: the other process that holds the shot now, if any.
        adapted: the adaptation that the shot uses.
        advice: what may improve the shot, in sentences.
        next_key: where the next key would help most, if anything is uncertain.
        qualities: confidence and agreement of finished frames.
    """

    keys: tuple[KeyInfo, ...]
    objects: tuple[str, ...]
    states: Mapping[int, State]
    dirty: tuple[DirtyRange, ...]
    network_frames: int
    plate_missing: tuple[int, ...]
    size: StoreSize
    holder: Holder | None
    adapted: AdaptationRecord | None = None
    advice: tuple[str, ...] = ()
    next_key: Advice | None = None
    qualities: Mapping[int, Quality] = field(default_factory=dict)

    def count(self, state: State) -> int:
        return Counter(self.states.values())[state]

    @property
    def no_advice(self) -> str:
        """The sentence that no further key is expected to help; empty unless that is so."""
        return no_advice(self.next_key, finished=self.count(State.DONE) > 0 and not self.dirty)


@dataclass(frozen=True)
class PropagationSummary:
    """The result of a propagation."""

    frames: int
    computed: int
    reused: int
    seconds: float
    device: str
    forecast: str
    notices: tuple[str, ...]


class Tally:
    """Counts the events of a propagation and forwards them."""

    def __init__(self, on_event: Emit) -> None:
        self._hand_on = on_event
        self._started = time.monotonic()
        self._computed = self._reused = 0
        self._notices: list[str] = []

    def on_event(self, event: Event) -> None:
        """Count an event and forward it."""
        if isinstance(event, FrameComputed):
            self._computed += not event.reused
            self._reused += event.reused
        elif isinstance(event, Notice):
            self._notices.append(event.text)
        self._hand_on(event)

    def summary(self, frames: int, device: str, forecast: str) -> PropagationSummary:
        """The summary, at the end."""
        seconds = time.monotonic() - self._started
        notices = tuple(self._notices)
        return PropagationSummary(frames, self._computed, self._reused, seconds, device, forecast, notices)
