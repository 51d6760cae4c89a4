"""Which past frames are in memory (paper section 3.6 and table 5), and the bounded bank that holds them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from model.network.read import Block

RuleKind = Literal["first", "previous", "first+previous", "every"]

THINNING = "even"
"""The method that thins a full memory; results of another method are out of date."""
DEFAULT_CAPACITY = 20
"""Stored frames kept besides keys and the previous frame: 100 frames of `every:5` before thinning begins."""


@dataclass(frozen=True)
class MemoryRule:
    """A row of the paper's table 5.

    Steps count frames from the key of a pass: the key is step 0, its neighbour step 1, in either direction of
    time.

    Args:
        kind: `first` (the key alone), `previous` (the frame before alone), `first+previous`, or `every`
            (both, and every `interval`-th frame in between).
        interval: N of `every:N`.
    """

    kind: RuleKind
    interval: int = 5

    @classmethod
    def parse(cls, text: str) -> MemoryRule:
        """From `first`, `previous`, `first+previous` or `every:N`.

        Raises:
            ValueError: for other texts; the message lists the rules.
        """
        name = text.strip().lower()
        if name in ("first", "previous", "first+previous"):
            return cls(name)  # type: ignore[arg-type]
        head, _, number = name.partition(":")
        if head == "every" and ((number.isdigit() and int(number) > 0) or name == "every"):
            return cls("every", int(number) if number else cls.interval)
        raise ValueError(
            f"unknown memory rule {text!r}: use first, previous, first+previous or every:N (N = 1, 2, ...)"
        )

    def __str__(self) -> str:
        return f"every:{self.interval}" if self.kind == "every" else self.kind

    def steps_in_memory(self, step: int, capacity: int = DEFAULT_CAPACITY) -> tuple[int, ...]:
        """The steps that are in memory when the frame at `step` (>= 1) is segmented, ascending.

        A pure function, so a pass can be resumed at any step. Step 0 and the previous frame are never dropped
        if the rule has them; of the other stored steps at most `capacity` are kept, thinned by `_thin`.
        """
        if step < 1:
            raise ValueError(f"step {step}: the first frame that is segmented is step 1")
        previous = step - 1
        if self.kind == "first":
            return (0,)
        if self.kind == "previous":
            return (previous,)
        stored = _stored_steps(self.interval, step, capacity) if self.kind == "every" else ()
        return tuple(sorted({0, *stored, previous}))


def _stored_steps(interval: int, step: int, capacity: int) -> tuple[int, ...]:
    """Multiples of `interval` in 1..step-1 that are still stored when `step` is segmented."""
    arrived = (step - 1) // interval
    if arrived <= capacity:
        return tuple(range(interval, arrived * interval + 1, interval))
    with _growing:
        history = _history(interval, capacity)
        while len(history) <= arrived:
            stored = [*history[-1], len(history) * interval]
            if len(stored) > capacity:
                _thin(stored)
            history.append(tuple(stored))
        return history[arrived]


_growing = threading.Lock()


@lru_cache(maxsize=64)
def _history(interval: int, capacity: int) -> list[tuple[int, ...]]:
    """The stored steps after each new one, cached as far as needed, so that any step costs the same."""
    return [()]


def _thin(stored: list[int]) -> None:
    """Drops the stored step whose removal leaves the smallest gap. The newest is kept.

    So the memory is spread evenly from the key to the present. Measured (`benchmarks/thinning.py`) better
    than dropping the oldest, than keeping recent steps dense and old ones sparse, and than dropping the least
    read. The stored steps do not depend on the pictures, which a resumed pass needs.
    """
    if len(stored) == 1:
        stored.clear()
        return
    bounds = [0, *stored]
    gaps = [bounds[place + 2] - bounds[place] for place in range(len(stored) - 1)]
    del stored[gaps.index(min(gaps))]


AREA_UNITS = 256
"""Parts of a pixel in which areas are counted: whole numbers have the same sum in any order."""


def areas_of(probabilities: Tensor) -> Tensor:
    """(K, H, W) in [0, 1] -> (K,) int64: the area of each object in `AREA_UNITS` per pixel."""
    return (probabilities * AREA_UNITS).round_().to(torch.int32).sum(dim=(1, 2))


@dataclass(frozen=True)
class MemoryEntry:
    """One frame of memory for K objects.

    keys (K, P, Ck) in fp32 and values (K, Cv, P) with P = h * w positions; areas (K,) of the objects, from
    `areas_of`.
    """

    keys: Tensor
    values: Tensor
    areas: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """The tensors by name, for a cache; the inverse is `MemoryEntry(**state)`."""
        return {"keys": self.keys, "values": self.values, "areas": self.areas}

    def of(self, objects: slice) -> MemoryEntry:
        """The entry of some of the objects."""
        return MemoryEntry(**{name: tensor[objects] for name, tensor in self.state().items()})


class MemoryBank:
    """A preallocated, bounded store of memory entries for one pass from a key.

    Args:
        rule: decides which steps are kept.
        like: an entry of the pass (its shapes, types and device are taken; it is not written).
        capacity: stored frames besides keys and the previous frame.
        permanent: how many further keys can be written with `permanent=True`.
    """

    def __init__(
        self, rule: MemoryRule, like: MemoryEntry, *, capacity: int = DEFAULT_CAPACITY, permanent: int = 0
    ) -> None:
        self.rule, self.capacity = rule, capacity
        # the key, the stored frames, the previous frame, and a new one before another is dropped
        stored = capacity if rule.kind == "every" else 0
        self._slots = permanent + stored + 3
        self._keys, self._values, self._areas = (
            torch.empty((self._slots, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
            for tensor in (like.keys, like.values, like.areas)
        )
        self._slot_of_step: dict[int, int] = {}
        self._permanent: list[int] = []
        self._permanent_limit = permanent

    @property
    def nbytes(self) -> int:
        """Bytes that the bank has reserved; they never change."""
        return self._keys.nbytes + self._values.nbytes + self._areas.nbytes

    @property
    def steps(self) -> tuple[int, ...]:
        """The kept steps, ascending, without the permanent keys."""
        return tuple(sorted(self._slot_of_step))

    def __len__(self) -> int:
        return len(self._permanent) + len(self._slot_of_step)

    def write(self, step: int, entry: MemoryEntry) -> None:
        """Writes the frame at `step` and drops what the rule does not need for the next one.

        Raises:
            ValueError: if the entry's shape is not the bank's.
        """
        self._slot_of_step[step] = self._store(entry)
        keep = set(self.rule.steps_in_memory(step + 1, self.capacity))
        self._slot_of_step = {s: slot for s, slot in self._slot_of_step.items() if s in keep}

    def write_permanent(self, entry: MemoryEntry) -> None:
        """Writes a further key, which is never dropped.

        Raises:
            ValueError: if more are written than were reserved, or if the entry's shape is not the bank's.
        """
        if len(self._permanent) == self._permanent_limit:
            raise ValueError(f"the bank was made for {self._permanent_limit} further keys")
        self._permanent.append(self._store(entry))

    def restore(self, step: int, entry: MemoryEntry) -> None:
        """Writes an entry without dropping any, to rebuild the bank of an interrupted pass.

        Call it for each of `rule.steps_in_memory(next step, capacity)`.
        """
        self._slot_of_step[step] = self._store(entry)

    def blocks(self) -> Iterator[Block]:
        """Keys (K, P, Ck) and values (K, Cv, P) of each kept frame: permanent keys, then steps in ascending
        order."""
        for slot in (*self._permanent, *(self._slot_of_step[s] for s in self.steps)):
            yield self._keys[slot], self._values[slot]

    def keys_others_and_previous(self) -> tuple[list[Block], list[Block], Block | None]:
        """The blocks of the keys, of the other frames, and of the previous frame.

        There is no previous frame if the newest frame is the key, or the only one.
        """
        blocks = list(self.blocks())
        keys = len(self._permanent) + (0 in self._slot_of_step)
        newest = max(self._slot_of_step, default=0)
        if newest == 0 or len(blocks) == 1:
            return blocks[:keys], blocks[keys:], None
        return blocks[:keys], blocks[keys:-1], blocks[-1]

    @property
    def has_previous(self) -> bool:
        """Whether the bank has a previous frame that is not a key, and other frames."""
        return self.keys_others_and_previous()[2] is not None

    @property
    def newest_areas(self) -> Tensor:
        """(K,): the areas of the objects in the newest frame."""
        return self._areas[self._slot_of_step[max(self._slot_of_step)]]

    def _store(self, entry: MemoryEntry) -> int:
        if entry.keys.shape != self._keys.shape[1:] or entry.values.shape != self._values.shape[1:]:
            mine, theirs = tuple(self._keys.shape[1:]), tuple(entry.keys.shape)
            raise ValueError(f"an entry of keys {theirs} does not fit a bank of {mine}")
        used = {*self._permanent, *self._slot_of_step.values()}
        slot = next(i for i in range(self._slots) if i not in used)
        self._keys[slot].copy_(entry.keys)
        self._values[slot].copy_(entry.values)
        self._areas[slot].copy_(entry.areas)
        return slot
