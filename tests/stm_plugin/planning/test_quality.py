"""Advice on the next key names the most uncertain frame and the reason; without doubt there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_plugin.planning.quality import (
    Quality,
    adapting_may_help,
    advise,
    agreement,
    hidden_keys,
    no_advice,
    small_objects,
)
from stm_plugin.propagation.fusion import mean_confidence


def qualities(uncertainties: dict[int, tuple[float, float | None]]) -> dict[int, Quality]:
    return {frame: Quality(frame, "a", *of) for frame, of in uncertainties.items()}


def test_a_doubtful_stretch_comes_before_a_single_doubtful_frame() -> None:
    sure = dict.fromkeys(range(1001, 1061), (0.999, 0.999))
    stretch = dict.fromkeys(range(1040, 1047), (0.9, 0.7))
    found = advise(qualities({**sure, 1010: (0.9, 0.65), **stretch}), {1001, 1060})
    assert found is not None and 1040 <= found.frame <= 1046
    reason = f"{found.frame}, where the two passes agree on 0.70 of the object"
    assert found.text == f"{reason}; it also helps 6 uncertain frames around it"


def test_among_equals_the_frame_far_from_every_key_comes_first() -> None:
    found = advise(qualities(dict.fromkeys(range(1, 42), (0.8, 0.8))), {1, 11, 41})
    assert found is not None and 24 <= found.frame <= 28


def test_a_single_pass_is_not_taken_at_its_own_word() -> None:
    two = dict.fromkeys(range(2, 30), (0.96, 0.86))
    one = dict.fromkeys(range(31, 60), (0.95, None))
    found = advise(qualities({**two, **one}), {1, 30})
    assert found is not None and found.frame > 30
    assert found.text.startswith(f"{found.frame}, where the confidence is 0.95")


def test_the_reason_is_that_of_the_frame() -> None:
    found = advise(qualities({1: (1, 1), 2: (0.8, 0.95), 3: (0.97, 0.99)}), {1})
    assert found is not None and found.text == "2, where the confidence is 0.80"


@given(st.dictionaries(st.integers(1, 50), st.floats(0.96, 1.0)))
def test_where_all_is_sure_there_is_nothing_to_advise(sure: dict[int, float]) -> None:
    assert advise(qualities({frame: (of, of) for frame, of in sure.items()}), ()) is None


@given(st.dictionaries(st.integers(1, 50), st.floats(0.0, 1.0), min_size=1), st.sets(st.integers(1, 50)))
def test_a_key_is_never_advised_on_a_key(found: dict[int, float], keys: set[int]) -> None:
    advice = advise(qualities({frame: (of, None) for frame, of in found.items()}), keys)
    assert advice is None or (advice.frame in found and advice.frame not in keys)


def test_a_key_is_advised_where_the_object_is_seen() -> None:
    frames = {frame: Quality(frame, "a", 0.8, 0.6, 900.0) for frame in range(2, 40)}
    hidden = {frame: Quality(frame, "a", 0.7, 0.3, 20.0) for frame in range(18, 24)}
    found = advise({**frames, **hidden}, {1, 40})
    assert found is not None and found.frame not in hidden, "what is hidden teaches nothing"


def test_a_key_that_shows_little_is_named() -> None:
    areas = {1: {"o1": 900.0}, 20: {"o1": 90.0, "o2": 50.0}, 40: {"o1": 500.0}}
    ((frame, name, share),) = hidden_keys(areas)
    assert (frame, name) == (20, "o1") and share == pytest.approx(0.1)


def test_an_object_is_small_if_even_its_largest_mask_covers_few_working_pixels() -> None:
    areas = {1: {"ball": 900.0, "man": 40_000.0}, 9: {"ball": 3600.0}}
    assert small_objects(areas, plate_pixels=1.0) == []
    ((name, side),) = small_objects(areas, plate_pixels=4.0)
    assert (name, side) == ("ball", 30.0)


def test_adapting_is_offered_where_most_frames_are_uncertain_and_only_there() -> None:
    sure, unsure = Quality(1, "a", 0.97, 0.97), Quality(2, "a", 0.8, 0.6)
    assert adapting_may_help([unsure] * 5 + [sure] * 2)
    assert not adapting_may_help([unsure] * 2 + [sure] * 5)
    assert not adapting_may_help([])


def test_adapting_is_not_offered_where_the_object_is_lost() -> None:
    assert not adapting_may_help([Quality(1, "a", 0.6, 0.3)] * 5), "a further key comes first"


def test_passes_agree_as_far_as_they_share_the_object() -> None:
    left, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    assert agreement(left, right) == 1.0, "both see nothing"
    left[:, :6], right[:, 2:] = 1, 1
    assert agreement(left, right) == pytest.approx(0.5)
    assert agreement(left, right, counts=0.2) == pytest.approx(0.9), "a pass of a hidden key says little"
    assert agreement(left, left) == 1.0
    assert mean_confidence(left) == 1.0
    assert mean_confidence(np.full((4, 4), 0.6, np.float32)) == pytest.approx(0.2)
    assert mean_confidence(np.zeros((4, 4), np.float32)) == 1.0


def test_that_no_key_helps_is_said_only_where_all_is_finished_and_sure() -> None:
    sure = qualities(dict.fromkeys(range(2, 9), (0.999, 0.999)))
    assert no_advice(advise(sure, {1}), finished=True) == "No further key is expected to help."
    assert no_advice(advise(sure, {1}), finished=False) == ""
    unsure = qualities(dict.fromkeys(range(2, 9), (0.7, 0.6)))
    assert no_advice(advise(unsure, {1}), finished=True) == ""
