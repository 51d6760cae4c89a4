"""Passes that are computed side by side, as on a graphics card: they alternate, and change no byte."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.inference.fast_network import Query
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from stm_plugin.errors import DeviceError, PropagationCancelled, StmError, WeightsError
from stm_plugin.planning.plan import take_turns
from stm_plugin.propagation.events import FrameComputed, FrameFinished, Progress
from tests.stm_plugin.shot.test_shot import FRAMES, LEFT, MIDDLE, RIGHT, Desk, MakePlate
from tests.stm_plugin.small_network import CountingNetwork

TURNS = "stm_plugin.propagation.propagation.passes_in_turn"
KEYS = {1003: LEFT, 1007: MIDDLE, 1010: RIGHT}


@dataclass
class Recording(CountingNetwork):
    """Records which memory's frame was begun and waited for, and how many memories there were.

    Attributes:
        fail: is called with the number of the frame before it is begun, and before it is waited for.
    """

    log: list[tuple[str, int]] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    banks: list[weakref.ref[MemoryBank]] = field(default_factory=list)
    fail: Callable[[str, int], Tensor | None] = lambda what, number: None

    def new_bank(self, rule: MemoryRule, like: MemoryEntry, *, capacity: int, permanent: int) -> MemoryBank:
        self.others.append(sum(one() is not None for one in self.banks))
        bank = super().new_bank(rule, like, capacity=capacity, permanent=permanent)
        self.banks.append(weakref.ref(bank))
        return bank

    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]:
        number, name = self.calls["read and decode"] + 1, id(bank)
        self.fail("begin", number)
        found = super().begin_segment(query, bank)
        self.log.append(("begun", name))

        def wait() -> Tensor:
            self.log.append(("waited", name))
            instead = self.fail("wait", number)
            return found() if instead is None else instead

        return wait


@pytest.fixture
def one_by_one(tmp_path: Path, make_plate: MakePlate) -> Iterator[Desk]:
    """A shot with three keys that was computed pass by pass."""
    desk = Desk(tmp_path / "one_by_one", make_plate(frames=FRAMES))
    for frame, mask in KEYS.items():
        desk.shot.add_key(frame, {"chair": mask})
    desk.run()
    yield desk
    desk.shot.close()


@pytest.fixture
def desk(tmp_path: Path, one_by_one: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """The same shot, to be computed two passes at a time."""
    desk = Desk(tmp_path / "in_turn", one_by_one.plate)
    desk.network = Recording()
    desk.reopen()
    for frame, mask in KEYS.items():
        desk.shot.add_key(frame, {"chair": mask})
    monkeypatch.setattr(TURNS, lambda device: 2)
    yield desk
    desk.shot.close()


def recording(desk: Desk) -> Recording:
    assert isinstance(desk.network, Recording)
    return desk.network


def test_two_passes_end_with_the_bytes_of_one_by_one(desk: Desk, one_by_one: Desk) -> None:
    assert desk.run() == one_by_one.network.calls
    assert desk.results() == one_by_one.results()
    mine, theirs = desk.mattes(), one_by_one.mattes()
    assert all(np.array_equal(mine[frame], theirs[frame]) for frame in FRAMES)
    progress = [event.done for event in desk.events if isinstance(event, Progress)]
    assert progress == list(range(1, len(progress) + 1))
    for kind in (FrameComputed, FrameFinished):
        mine_of, theirs_of = (
            sorted(event.frame for event in one.events if isinstance(event, kind))
            for one in (desk, one_by_one)
        )
        assert mine_of == theirs_of


def test_a_frame_is_waited_for_while_one_of_the_other_pass_is_begun(desk: Desk) -> None:
    desk.shot.remove_key(1003)
    desk.shot.remove_key(1010)
    desk.run()  # from 1007: six frames backward, five forward
    log = recording(desk).log
    backward, forward = log[0][1], log[1][1]
    assert backward != forward
    both = [("waited", backward), ("begun", backward), ("waited", forward), ("begun", forward)]
    start = [("begun", backward), ("begun", forward)]
    end = [("waited", backward), ("begun", backward), ("waited", forward), ("waited", backward)]
    assert log == [*start, *(4 * both), *end]


def test_on_a_processor_each_frame_is_waited_for_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    desk.run()
    assert [what for what, _ in recording(desk).log] == ["begun", "waited"] * (len(recording(desk).log) // 2)
    assert set(recording(desk).others) == {0}, "the memory of a pass is freed before that of the next is made"


def test_there_are_two_memories_at_most_and_both_are_forecast(desk: Desk) -> None:
    desk.run()
    assert len(recording(desk).others) == 6 and set(recording(desk).others) == {0, 1}
    desk.shot.remove_key(1007)
    desk.shot.store.clear_memory()
    for path in desk.shot.folder.glob("mattes/*/*.prob"):
        path.unlink()
    desk.reopen()
    two = desk.shot.forecast(desk.shot.plan())
    assert two.run.turns == 2
    desk.shot.remove_key(1003)
    desk.shot.remove_key(1010)
    desk.shot.add_key(FRAMES[0], {"chair": LEFT})
    one = desk.shot.forecast(desk.shot.plan())
    assert one.run.turns == 1, "there is one pass"
    assert two.forecast.bank == 2 * one.forecast.bank


def test_stopped_after_any_frame_it_keeps_what_was_begun_and_goes_on(desk: Desk, one_by_one: Desk) -> None:
    network, stops = recording(desk), 0
    while True:
        network.calls.clear()
        before = len(desk.results())
        limit = 1 + stops % 4

        def enough(limit: int = limit) -> bool:
            return network.calls["read and decode"] >= limit

        try:
            desk.shot.propagate(cancelled=enough)
        except PropagationCancelled:
            stops += 1
        else:
            break
        assert len(desk.results()) == before + limit
        assert desk.results().items() <= one_by_one.results().items()
        desk.reopen()
    assert stops > 10
    assert desk.results() == one_by_one.results()


def no_memory(what: str, at: int) -> Callable[[str, int], None]:
    def fail(now: str, number: int) -> None:
        if (now, number) == (what, at):
            raise MemoryError

    return fail


def not_a_number(now: str, number: int) -> Tensor | None:
    return torch.full((1, 1, 1), torch.nan) if (now, number) == ("wait", 6) else None


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (no_memory("begin", 6), DeviceError),
        (no_memory("wait", 6), DeviceError),
        (not_a_number, WeightsError),
    ],
)
def test_an_error_in_one_pass_names_its_frame_and_keeps_those_before_it(
    desk: Desk, one_by_one: Desk, fail: Callable[[str, int], Tensor | None], error: type[StmError]
) -> None:
    steps = take_turns(desk.shot.plan(), 2).compute_steps
    network = recording(desk)
    network.fail = fail
    with pytest.raises(error) as raised:
        desk.run()
    assert raised.value.frame == steps[5].frame
    assert desk.computed() == sorted(step.frame for step in steps[:5])
    assert len(desk.results()) == 5
    network.fail = lambda what, number: None
    desk.run()
    assert desk.results() == one_by_one.results()
