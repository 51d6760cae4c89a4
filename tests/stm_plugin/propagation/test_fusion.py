"""The fusion of passes changes smoothly and prefers the reliable pass."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stm_plugin.propagation.fusion import (
    Arrival,
    PassAtFrame,
    arrival_trust,
    distance_shares,
    distance_weight,
    fuse,
    share_pixels,
    similarity,
    trust,
    weights,
    weights_where_less,
)
from stm_plugin.propagation.fusion import blend as blend_of
from stm_plugin.windows import FloatArray

probabilities = arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))
AREA = 12.0


def blend(forward: FloatArray, backward: FloatArray, left: int, right: int) -> FloatArray:
    """Two passes whose keys show the whole object and which fit the other key."""
    return fuse([PassAtFrame(forward, left, AREA), PassAtFrame(backward, -right, AREA)])


@given(same=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_where_the_passes_agree_the_result_is_theirs(same: FloatArray, left: int, right: int) -> None:
    assert np.allclose(blend(same, same, left, right), same, atol=1e-6)


@given(one=probabilities)
def test_a_single_pass_is_taken_as_it_is(one: FloatArray) -> None:
    assert np.array_equal(fuse([PassAtFrame(one, 3, 0.0)]), one)


@given(forward=probabilities, backward=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_the_result_lies_between_the_passes_and_does_not_depend_on_the_direction(
    forward: FloatArray, backward: FloatArray, left: int, right: int
) -> None:
    fused = blend(forward, backward, left, right)
    assert (fused >= np.minimum(forward, backward) - 1e-6).all()
    assert (fused <= np.maximum(forward, backward) + 1e-6).all()
    assert np.allclose(fused, blend(backward, forward, right, left), atol=1e-6)


@settings(deadline=None)  # up to 200 fusions, and the machine may be busy
@given(length=st.integers(2, 200))
def test_no_step_is_larger_than_the_span_allows(length: int) -> None:
    ones, zeros = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    ones[0], zeros[1] = 1, 1  # equally sure of different places
    row = [1.0, *(float(blend(ones, zeros, step, length - step)[0, 0]) for step in range(1, length)), 0.0]
    # Away from keys log-odds are averaged, which change at most twice as fast.
    beside_keys = length <= 2 * 3 + 1
    assert np.abs(np.diff(row)).max() <= (1.5 if beside_keys else 3.1) / length + 1e-6


@settings(deadline=None)  # up to 200 fusions, and the machine may be busy
@given(length=st.integers(12, 200), similarity=st.floats(0, 1), key_area=st.floats(0, 12))
def test_no_step_is_large_however_little_a_pass_is_trusted(
    length: int, similarity: float, key_area: float
) -> None:
    right, wrong = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    bad = (Arrival(length, similarity),)
    row = [
        float(fuse([PassAtFrame(wrong, step, key_area, bad), PassAtFrame(right, step - length, AREA)])[0, 0])
        for step in range(1, length)
    ]
    assert np.abs(np.diff([0.0, *row, 1.0])).max() <= 0.45


@given(length=st.integers(10, 200), near=st.floats(0, 1), far=st.floats(0, 1))
def test_nothing_pops_beside_a_key(length: int, near: float, far: float) -> None:
    forward, backward = np.full((1, 1), near, np.float32), np.full((1, 1), far, np.float32)
    step = abs(float(blend(forward, backward, 1, length - 1)[0, 0]) - near)
    assert step <= 15 * distance_weight(1, length - 1) * abs(near - far) + 1e-6
    assert distance_weight(1, length - 1) <= 3 / length**2


def test_the_sure_pass_wins_over_the_unsure_one() -> None:
    unsure, sure = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.float32)
    assert blend(unsure, sure, 5, 5)[0, 0] > 0.9
    assert blend(sure, unsure, 5, 5)[0, 0] > 0.9


def test_a_pass_that_has_lost_the_object_gives_way_where_it_is_sure_too() -> None:
    whole, lost = np.ones((4, 4), np.float32), np.full((4, 4), 0.7, np.float32)
    lost[:2] = 0.0  # sure that there is nothing, and unsure of the rest
    for fused in (blend(whole, lost, 8, 8), blend(lost, whole, 8, 8)):
        assert fused[:2].min() > 0.8


def test_a_key_that_shows_little_of_the_object_is_used_little() -> None:
    whole, part = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    part[0] = 1.0  # what stood out from behind the tree; the rest is background to this pass
    fused = fuse([PassAtFrame(part, 6, 4.0), PassAtFrame(whole, -10, 16.0)])
    assert fused.min() > 0.8
    beyond_it = fuse([PassAtFrame(whole, 20, 16.0), PassAtFrame(part, 8, 4.0)])
    assert beyond_it.min() > 0.8, "behind the last key, too, the pass that knows the whole object rules"


def test_a_small_whole_object_is_not_taken_for_a_hidden_one() -> None:
    small = np.zeros((4, 4), np.float32)
    small[0] = 1.0
    far_away = PassAtFrame(small, 6, 4.0)
    assert trust(far_away, claimed=4.0) == 1.0


def test_a_pass_that_arrives_badly_loses_its_say_along_the_way() -> None:
    arrivals = (Arrival(10, 0.2), Arrival(20, 0.6))
    levels = [arrival_trust(distance, arrivals) for distance in (0, 5, 10, 15, 20, 40)]
    assert np.allclose(levels, [1.0, 0.6, 0.2, 0.4, 0.6, 0.6])
    hidden = (Arrival(10, 0.2, visible=0.1),)
    assert arrival_trust(10, hidden) > 0.9, "where little is left to score a bad score says little"


def test_beside_a_key_the_pass_of_a_farther_key_has_little_to_say() -> None:
    near, far = distance_shares([1, 21])
    assert far < near / 20
    assert distance_shares([5, -5]) == [0.5, 0.5]
    assert sum(distance_shares([3, 30, -7])) <= 2


def test_similarity_is_the_shared_part() -> None:
    left, right = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    assert similarity(left, right) == 1.0
    left[:, :6], right[:, 2:] = 1, 1
    assert similarity(left, right) == 0.5


@given(mask=probabilities, one=probabilities, two=probabilities)
def test_no_pixel_is_given_out_twice(mask: FloatArray, one: FloatArray, two: FloatArray) -> None:
    shared = share_pixels({"mask": mask}, {"one": one, "two": two})
    assert (mask + shared["one"] + shared["two"] <= 1 + 1e-5).all()
    roomy = mask.astype(np.float64) + one + two <= 1
    assert np.allclose(shared["one"][roomy], one[roomy])
    assert share_pixels({"mask": mask}, {}) == {}


def test_a_pass_that_holds_less_than_another_gives_way() -> None:
    whole, lost = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    lost[0] = 1.0  # sure of a quarter, and as sure that the rest is not there; its key showed everything
    for distance in (8, -8):
        fused = fuse([PassAtFrame(lost, distance, 16.0), PassAtFrame(whole, -2 * distance, 16.0)])
        assert fused.min() > 0.8


def test_a_pass_that_runs_over_does_not_make_the_others_look_lost() -> None:
    right, leaked = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    right[:2] = 1.0
    assert trust(PassAtFrame(right, 8, 8.0), claimed=16.0, held=8.0) > trust(
        PassAtFrame(right, 8, 8.0), claimed=16.0, held=16.0
    )
    fused = fuse([PassAtFrame(right, 8, 8.0), PassAtFrame(leaked, -16, 8.0)])
    assert fused[2:].max() < 0.5, "what has grown beyond its own key counts as what its key shows"


def test_a_key_that_hides_a_part_has_little_say_where_its_pass_finds_less() -> None:
    whole, part = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    part[:3] = 1.0  # a quarter was behind a pole on its key
    near, far = PassAtFrame(part, -6, 12.0), PassAtFrame(whole, 12, 16.0)
    full = weights([near, far])
    less = weights_where_less([near, far], full)
    assert less[0] < 0.5 * full[0]
    assert less[1] == full[1], "the key that shows most loses nothing"
    assert fuse([near, far])[3].min() > 0.5


@given(one=probabilities, other=probabilities)
def test_a_pass_with_all_the_weight_is_the_result(one: FloatArray, other: FloatArray) -> None:
    passes = [PassAtFrame(one, 20, AREA), PassAtFrame(other, -20, AREA)]
    assert np.allclose(blend_of(passes, [1.0, 0.0]), one, atol=1e-5)


def test_sure_passes_that_differ_leave_little_grey() -> None:
    inside, outside = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    passes = [PassAtFrame(inside, 20, AREA), PassAtFrame(outside, -20, AREA)]
    assert blend_of(passes, [0.8, 0.2])[0, 0] > 0.9
