"""The memory is bounded, known beforehand, and spread evenly over what has been seen."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.memory import MemoryRule

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
