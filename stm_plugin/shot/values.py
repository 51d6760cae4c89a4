"""What a shot says of itself and of a propagation: values alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stm_plugin.files.lock import Holder
from stm_plugin.planning.quality import Advice, Quality
from stm_plugin.planning.values import DirtyRange, State
from stm_plugin.propagation.events import Event, FrameComputed, Notice
from stm_plugin.store.description import AdaptationRecord
from stm_plugin.store.store import StoreSize

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]


def silent(event: Event) -> None:
    """Nobody listens."""


def never() -> bool:
    """Nobody cancels."""
    return False


@dataclass(frozen=True)
class KeyInfo:
    """A key by the names of its objects; `empty` names those with an empty mask ("not here").

    After `add_key`, `kept` and `dropped` name objects of the key before that the new mask does not give.
    """

    frame: int
    objects: tuple[str, ...]
    empty: tuple[str, ...]
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShotStatus:
    """What is done, stale and missing, and why.

    Attributes:
        states: of every frame of the range.
        dirty: what a propagation would compute, in words (`str` of each).
        network_frames: how often the network would run.
        plate_missing: frames of the plate that are not there.
        holder: who is working on the shot now, if anyone else is.
        adapted: the adaptation that the shot uses.
        advice: what might be done about the shot, in sentences.
        next_key: where the next key would help most, if anything is in doubt.
        qualities: what the network says of the frames that are done.
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


@dataclass(frozen=True)
class PropagationSummary:
    """What a propagation did."""

    frames: int
    computed: int
    reused: int
    seconds: float
    device: str
    forecast: str
    notices: tuple[str, ...]


class Tally:
    """Counts the events of a propagation and hands them on."""

    def __init__(self, on_event: Emit) -> None:
        self._hand_on = on_event
        self._started = time.monotonic()
        self._computed = self._reused = 0
        self._notices: list[str] = []

    def on_event(self, event: Event) -> None:
        """Count an event and hand it on."""
        if isinstance(event, FrameComputed):
            self._computed += not event.reused
            self._reused += event.reused
        elif isinstance(event, Notice):
            self._notices.append(event.text)
        self._hand_on(event)

    def summary(self, frames: int, device: str, forecast: str) -> PropagationSummary:
        """What was done, now that it is done."""
        seconds = time.monotonic() - self._started
        notices = tuple(self._notices)
        return PropagationSummary(frames, self._computed, self._reused, seconds, device, forecast, notices)
