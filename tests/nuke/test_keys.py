"""Keys and frame ranges as text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stm_nuke import frames, keys
from stm_nuke.errors import UsageError

VIEWS = st.text("abcXYZ_019", min_size=1)
DIGESTS = st.text("0123456789abcdef", min_size=1, max_size=keys.DIGEST_LETTERS)
KEYS = st.builds(keys.Key, VIEWS, st.integers(-1000000, 1000000), DIGESTS, DIGESTS)


@given(st.lists(KEYS, unique_by=lambda key: (key.view, key.frame)))
def test_keys_come_out_of_their_knob_as_they_went_in(some: list[keys.Key]) -> None:
    text = keys.format_keys(some)
    assert set(keys.parse_keys(text)) == set(some)
    assert keys.format_keys(keys.parse_keys(text)) == text
    assert not set('{}[]$\\"') & set(text), "nothing that Tcl would take for something else"


@given(st.lists(KEYS, unique_by=lambda key: (key.view, key.frame)), KEYS)
def test_a_key_replaces_the_one_on_its_frame_and_view_only(some: list[keys.Key], new: keys.Key) -> None:
    changed = keys.with_key(some, new)
    assert new in changed
    others = {key for key in some if (key.view, key.frame) != (new.view, new.frame)}
    assert set(changed) == others | {new}
    assert set(keys.without_key(changed, new.view, new.frame)) == others


def test_a_knob_that_somebody_has_spoilt_gives_what_can_be_read() -> None:
    assert keys.parse_keys("main/1001/ab/cd rubbish main/x/1/2 //") == (keys.Key("main", 1001, "ab", "cd"),)


@given(st.sets(st.integers(-50, 50)))
def test_ranges_hold_exactly_the_frames(some: set[int]) -> None:
    ranges = frames.ranges_of(some)
    assert set(frames.frames_of(ranges)) == some
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1001-1100", (1001, 1100)), ("7", (7, 7)), ("-10--5", (-10, -5)), (" 1 - 2 ", (1, 2))],
)
def test_ranges_are_read_as_people_write_them(text: str, expected: Any) -> None:
    assert frames.parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "1001.5-1010", "a-b", "1-2-3", "1,2"])
def test_what_is_no_range_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="whole numbers only"):
        frames.parse_range(text)
