"""The memory is bounded, its size is known in advance, and its frames are spread evenly over the past."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.network.memory import MemoryBank, MemoryEntry, MemoryRule

EVERY = MemoryRule("every", 5)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("first", (0,)),
        ("previous", (11,)),
        ("first+previous", (0, 11)),
        ("every:5", (0, 5, 10, 11)),
        ("every:4", (0, 4, 8, 11)),
    ],
)
def test_the_rules_of_the_papers_table(rule: str, expected: tuple[int, ...]) -> None:
    assert MemoryRule.parse(rule).steps_in_memory(12) == expected


@given(step=st.integers(1, 3000), capacity=st.integers(1, 30))
def test_the_memory_is_bounded_and_keeps_the_key_and_the_latest(step: int, capacity: int) -> None:
    held = EVERY.steps_in_memory(step, capacity)
    assert {0, step - 1} <= set(held) and len(held) <= capacity + 2
    stored = [one for one in held if one % 5 == 0 and one > 0]
    if capacity > 1 and step > 5:
        assert (step - 1) // 5 * 5 in stored
    assert list(held) == sorted(set(held)) and held[-1] == step - 1


@given(step=st.integers(2, 3000), capacity=st.integers(1, 30))
def test_what_was_forgotten_does_not_come_back(step: int, capacity: int) -> None:
    before, now = (set(EVERY.steps_in_memory(one, capacity)) for one in (step - 1, step))
    assert now - before <= {step - 1}


@given(step=st.integers(200, 3000), capacity=st.integers(4, 30))
def test_a_full_memory_is_spread_evenly(step: int, capacity: int) -> None:
    newest = (step - 1) // 5 * 5
    stored = [one for one in EVERY.steps_in_memory(step, capacity) if one % 5 == 0 and one <= newest]
    gaps = [late - early for early, late in pairwise(stored)]
    assert max(gaps) <= 4 * newest / len(gaps)
    assert max(gaps[:-1], default=0) <= 4 * min(gaps[:-1], default=0) or len(gaps) < 3


def test_the_memory_of_a_step_does_not_depend_on_what_was_asked_before() -> None:
    steps = list(range(1, 400))
    in_order = {step: EVERY.steps_in_memory(step, 7) for step in steps}
    random.Random(4).shuffle(steps)
    assert {step: EVERY.steps_in_memory(step, 7) for step in steps} == in_order


@pytest.mark.parametrize(
    ("rule", "beside_others"),
    [
        ("first", []),
        ("previous", []),  # it is all that there is
        ("first+previous", [1, 2, 3, 4, 5, 6, 7]),
        ("every:3", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_bank_tells_the_previous_frame_from_the_others(rule: str, beside_others: list[int]) -> None:
    def entry(step: int) -> MemoryEntry:
        return MemoryEntry(
            torch.full((1, 2, 3), float(step)), torch.full((1, 4, 2), float(step)), torch.tensor([step])
        )

    bank = MemoryBank(MemoryRule.parse(rule), entry(0))
    told = []
    for step in range(8):
        if step == 0 or step in bank.rule.steps_in_memory(step + 1):
            bank.write(step, entry(step))
        keys, others, previous = bank.keys_others_and_previous()
        assert [int(key[0, 0, 0]) for key, _ in keys] == [one for one in bank.steps if one == 0]
        held = [*keys, *others, *([] if previous is None else [previous])]
        assert bank.has_previous == (previous is not None)
        assert [int(keys[0, 0, 0]) for keys, _ in held] == list(bank.steps)
        assert bank.newest_areas.tolist() == [bank.steps[-1]]
        if previous is not None:
            assert int(previous[1][0, 0, 0]) == step
            told.append(step)
    assert told == beside_others


def test_the_key_of_a_pass_is_no_previous_frame_beside_further_keys() -> None:
    entry = MemoryEntry(torch.zeros(1, 2, 3), torch.zeros(1, 4, 2), torch.zeros(1))
    bank = MemoryBank(MemoryRule.parse("first+previous"), entry, permanent=1)
    bank.write_permanent(entry)
    bank.write(0, entry)
    keys, others, previous = bank.keys_others_and_previous()
    assert len(keys) == 2 and not others and previous is None
    bank.write(1, entry)
    keys, others, previous = bank.keys_others_and_previous()
    assert len(keys) == 2 and not others and previous is not None
