"""The blend of two passes does not pop, and trusts the pass that is sure."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stm_plugin.propagation.fusion import distance_weight, fuse, share_pixels

probabilities = arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))


@given(same=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_where_the_passes_agree_the_result_is_theirs(same: np.ndarray, left: int, right: int) -> None:
    assert np.array_equal(fuse(same, same, left, right), same)


@given(forward=probabilities, backward=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_the_result_lies_between_the_passes_and_does_not_depend_on_the_direction(
    forward: np.ndarray, backward: np.ndarray, left: int, right: int
) -> None:
    fused = fuse(forward, backward, left, right)
    assert (fused >= np.minimum(forward, backward) - 1e-6).all()
    assert (fused <= np.maximum(forward, backward) + 1e-6).all()
    assert np.allclose(fused, fuse(backward, forward, right, left), atol=1e-6)


@given(length=st.integers(2, 200))
def test_no_step_is_larger_than_the_span_allows(length: int) -> None:
    ones, zeros = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    row = [1.0, *(float(fuse(ones, zeros, step, length - step)[0, 0]) for step in range(1, length)), 0.0]
    assert np.abs(np.diff(row)).max() <= 1.5 / length + 1e-6


@given(length=st.integers(10, 200), near=st.floats(0, 1), far=st.floats(0, 1))
def test_nothing_pops_beside_a_key(length: int, near: float, far: float) -> None:
    forward, backward = np.full((1, 1), near, np.float32), np.full((1, 1), far, np.float32)
    step = abs(float(fuse(forward, backward, 1, length - 1)[0, 0]) - near)
    assert step <= 5 * distance_weight(1, length - 1) * abs(near - far) + 1e-6
    assert distance_weight(1, length - 1) <= 3 / length**2


def test_the_sure_pass_wins_over_the_unsure_one() -> None:
    unsure, sure = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.float32)
    assert fuse(unsure, sure, 5, 5)[0, 0] > 0.9
    assert fuse(sure, unsure, 5, 5)[0, 0] > 0.9


def test_a_pass_that_has_lost_the_object_gives_way_where_it_is_sure_too() -> None:
    whole, lost = np.ones((4, 4), np.float32), np.full((4, 4), 0.7, np.float32)
    lost[:2] = 0.0  # sure that there is nothing, and unsure of the rest
    for fused in (fuse(whole, lost, 8, 8), fuse(lost, whole, 8, 8)):
        assert fused[:2].min() > 0.8
    beside_its_own_key = fuse(lost, whole, 1, 15)
    assert np.abs(beside_its_own_key - lost).max() <= 5 * distance_weight(1, 15)


@given(mask=probabilities, one=probabilities, two=probabilities)
def test_no_pixel_is_given_out_twice(mask: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    shared = share_pixels({"mask": mask}, {"one": one, "two": two})
    assert (mask + shared["one"] + shared["two"] <= 1 + 1e-5).all()
    roomy = mask + one + two <= 1
    assert np.allclose(shared["one"][roomy], one[roomy])
    assert share_pixels({"mask": mask}, {}) == {}
