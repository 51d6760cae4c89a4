"""The fusion of passes changes smoothly and prefers the reliable pass."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stm_plugin.planning.quality import agreement
from stm_plugin.propagation.fusion import (
    Arrival,
    Fusion,
    PassAtFrame,
    arrival_at,
    arrival_trust,
    effective_distance,
    expected_area,
    fuse,
    grid_of,
    known_alike,
    share_pixels,
    similarity,
    wrong_places,
)
from stm_plugin.windows import FloatArray

probabilities = arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))
AREA = 12.0


def fused(passes: list[PassAtFrame]) -> FloatArray:
    return fuse(passes).probability


def blend(forward: FloatArray, backward: FloatArray, left: int, right: int) -> FloatArray:
    """Two passes whose keys show the whole object and which fit the other key."""
    return fuse([PassAtFrame(forward, left, AREA), PassAtFrame(backward, -right, AREA)]).probability


@given(same=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_where_the_passes_agree_the_result_is_theirs(same: FloatArray, left: int, right: int) -> None:
    assert np.allclose(blend(same, same, left, right), same, atol=1e-6)


@given(one=probabilities)
def test_a_single_pass_is_taken_as_it_is(one: FloatArray) -> None:
    result = fuse([PassAtFrame(one, 3, 0.0)])
    assert np.array_equal(result.probability, one)
    assert result.shares == (1.0,)


@given(forward=probabilities, backward=probabilities, left=st.integers(1, 50), right=st.integers(1, 50))
def test_the_result_lies_between_the_passes_and_does_not_depend_on_the_direction(
    forward: FloatArray, backward: FloatArray, left: int, right: int
) -> None:
    result = blend(forward, backward, left, right)
    assert (result >= np.minimum(forward, backward) - 1e-6).all()
    assert (result <= np.maximum(forward, backward) + 1e-6).all()
    assert np.allclose(result, blend(backward, forward, right, left), atol=1e-6)


@settings(deadline=None)  # up to 200 fusions, and the machine may be busy
@given(length=st.integers(2, 200))
def test_no_step_is_larger_than_the_span_allows(length: int) -> None:
    ones, zeros = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    ones[0], zeros[1] = 1, 1  # equally sure of different places
    row = [1.0, *(float(blend(ones, zeros, step, length - step)[0, 0]) for step in range(1, length)), 0.0]
    assert np.abs(np.diff(row)).max() <= 2 / length + 1e-6


@settings(deadline=None)  # up to 200 fusions, and the machine may be busy
@given(length=st.integers(12, 200), similarity=st.floats(0, 1), key_area=st.floats(0, 12))
def test_no_step_is_large_however_little_a_pass_is_trusted(
    length: int, similarity: float, key_area: float
) -> None:
    right, wrong = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    bad = (Arrival(length, similarity),)
    row = [
        fused([PassAtFrame(wrong, step, key_area, bad), PassAtFrame(right, step - length, AREA)])[0, 0]
        for step in range(1, length)
    ]
    assert np.abs(np.diff([0.0, *row, 1.0])).max() <= 0.45


@given(length=st.integers(10, 200), near=st.floats(0, 1), far=st.floats(0, 1))
def test_nothing_pops_beside_a_key(length: int, near: float, far: float) -> None:
    forward, backward = np.full((1, 1), near, np.float32), np.full((1, 1), far, np.float32)
    step = abs(float(blend(forward, backward, 1, length - 1)[0, 0]) - near)
    # By distance the other pass has 1 / (length - 1)^2 of the weight; it may be five times as sure.
    assert step <= 5 / (length - 1) ** 2 * abs(near - far) + 1e-6


@given(length=st.integers(10, 200), similarity=st.floats(0, 1), key_area=st.floats(0, 12))
def test_nothing_pops_beside_a_key_however_little_its_pass_has_earned(
    length: int, similarity: float, key_area: float
) -> None:
    unsure, other = np.full((3, 4), 0.5, np.float32), np.ones((3, 4), np.float32)
    own = PassAtFrame(unsure, 1, key_area, (Arrival(length, similarity),))
    step = np.abs(fused([own, PassAtFrame(other, 1 - length, AREA)]) - unsure).max()
    assert step <= 5 / (length - 1) ** 2 * 0.5 + 1e-6


def test_the_sure_pass_wins_over_the_unsure_one() -> None:
    unsure, sure = np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.float32)
    assert blend(unsure, sure, 5, 5)[0, 0] > 0.9
    assert blend(sure, unsure, 5, 5)[0, 0] > 0.9


def test_a_pass_that_has_lost_the_object_gives_way_where_it_is_sure_too() -> None:
    whole, lost = np.ones((4, 4), np.float32), np.full((4, 4), 0.7, np.float32)
    lost[:2] = 0.0  # sure that there is nothing, and unsure of the rest
    for distance in (8, -8):
        result = fused([PassAtFrame(whole, distance, 16.0), PassAtFrame(lost, -distance, 16.0)])
        assert result[:2].min() > 0.8


def test_a_key_that_shows_little_of_the_object_is_used_little() -> None:
    whole, part = np.ones((4, 4), np.float32), np.zeros((4, 4), np.float32)
    part[0] = 1.0  # what stood out from behind the tree; the rest is background to this pass
    between = fused([PassAtFrame(part, 6, 4.0), PassAtFrame(whole, -10, 16.0)])
    assert between.min() > 0.8
    beyond_it = fused([PassAtFrame(whole, 20, 16.0), PassAtFrame(part, 8, 4.0)])
    assert beyond_it.min() > 0.8, "behind the last key, too, the pass that knows the whole object rules"


def test_a_small_whole_object_is_not_taken_for_a_hidden_one() -> None:
    small = np.zeros((4, 4), np.float32)
    small[0] = 1.0
    far_away = fuse([PassAtFrame(small, 6, 4.0), PassAtFrame(small, -6, 16.0)])
    assert np.allclose(far_away.shares, 0.5)


def test_a_pass_that_arrives_badly_loses_its_say_along_the_way() -> None:
    arrivals = (Arrival(10, 0.2), Arrival(20, 0.6))
    levels = [arrival_trust(distance, arrivals) for distance in (0, 5, 10, 15, 20, 40)]
    assert np.allclose(levels, [1.0, 0.6, 0.2, 0.4, 0.6, 0.6])
    hidden = (Arrival(10, 0.2, counts=0.1),)
    assert arrival_trust(10, hidden) > 0.9, "where little is left to score a bad score says little"


def test_beside_a_key_the_pass_of_a_farther_key_has_little_to_say() -> None:
    same = np.ones((4, 4), np.float32)
    near, far = fuse([PassAtFrame(same, 1, 16.0), PassAtFrame(same, 21, 16.0)]).shares
    assert far < near / 20
    assert fuse([PassAtFrame(same, 5, 16.0), PassAtFrame(same, -5, 16.0)]).shares == (0.5, 0.5)


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
        result = fused([PassAtFrame(lost, distance, 16.0), PassAtFrame(whole, -2 * distance, 16.0)])
        assert result.min() > 0.8


def test_a_pass_that_runs_over_gives_way() -> None:
    right, leaked = np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)
    right[:2] = 1.0
    result = fused([PassAtFrame(right, 8, 8.0), PassAtFrame(leaked, -8, 8.0)])
    assert result[2:].max() < 0.25, "what has grown beyond its own key counts as what its key shows"


# ---- passes that met each other's keys ----


def plane(inside: tuple[slice, slice]) -> FloatArray:
    result = np.zeros((60, 80), np.float32)
    result[inside] = 1.0
    return result


WHOLE, LEFT_HALF = plane(np.s_[20:40, 20:60]), plane(np.s_[20:40, 20:40])


def beside_a_hiding_key(away: int, hidden: FloatArray, found_there: FloatArray) -> Fusion:
    """A frame so far from a key that shows `hidden` of the object.

    The pass of another key, 20 frames away, shows the whole object here, and found `found_there` on that key.
    """
    arrival = Arrival(20, similarity(found_there, hidden), 0.5, wrong_places(found_there, hidden))
    back = Arrival(20, similarity(hidden, WHOLE), 1.0, wrong_places(hidden, WHOLE))
    return fuse([
        PassAtFrame(WHOLE, 20 - away, float(WHOLE.sum()), (arrival,)),
        PassAtFrame(hidden, -away, float(hidden.sum()), (back,)),
    ])  # fmt: skip


def test_a_pass_that_was_right_on_a_key_is_believed_beside_it_on_what_the_key_hides() -> None:
    for away in (1, 2, 4):
        result = beside_a_hiding_key(away, LEFT_HALF, LEFT_HALF)
        assert result.probability[20:40, 50:60].min() > 0.7


def test_a_pass_that_was_wrong_on_a_key_is_not_believed_beside_it() -> None:
    for away in (1, 2):
        result = beside_a_hiding_key(away, LEFT_HALF, WHOLE)
        assert result.probability[20:40, 50:60].max() < 0.25


def test_a_pass_counts_from_the_key_on_which_it_was_right_and_only_where() -> None:
    wrong = wrong_places(WHOLE, LEFT_HALF)
    assert wrong.shape == grid_of(WHOLE.shape)
    assert wrong[30, 50] == 1.0
    assert wrong[30, 25] == 0.0
    one = PassAtFrame(WHOLE, 18, 1.0, (Arrival(20, 0.5, 1.0, wrong),))
    nearest = np.asarray(effective_distance(one))
    assert nearest[30, 25] == 2.0
    assert nearest[30, 50] == 18.0
    unknown = PassAtFrame(WHOLE, 18, 1.0, (Arrival(20, 0.5),))
    assert effective_distance(unknown) == 18.0


@settings(deadline=None)
@given(length=st.integers(4, 100), found=st.floats(0, 1), shown=st.floats(0, 1))
def test_the_matte_leaves_a_key_gradually_whatever_other_passes_found_there(
    length: int, found: float, shown: float
) -> None:
    other, own = np.full((6, 6), found, np.float32), np.full((6, 6), shown, np.float32)
    there = Arrival(length, similarity(other, own), 1.0, wrong_places(other, own))
    back = Arrival(length, similarity(own, other), 1.0, wrong_places(own, other))
    beside = fused([PassAtFrame(other, length - 1, 36.0, (there,)), PassAtFrame(own, -1, 36.0, (back,))])
    # A pass counts as right up to a mean error of 0.05 and as wrong from 0.35.
    assert np.abs(beside - own).max() <= 0.36


def test_a_pass_that_leaks_gives_way_where_the_object_comes_near() -> None:
    small, larger, near = (plane(np.s_[30 - n : 30 + n, 40 - n : 40 + n]) for n in (5, 7, 25))
    leaked = np.maximum(larger, plane(np.s_[5:55, 48:73]))  # of the background beside the object
    areas = float(small.sum()), float(near.sum())
    right = PassAtFrame(larger, 5, areas[0], (arrival_at(20, near, near, areas[0]),))
    there = np.maximum(small, plane(np.s_[5:55, 48:73]))
    leaks = PassAtFrame(leaked, -15, areas[1], (arrival_at(20, there, small, areas[1]),))
    assert np.abs(fused([right, leaks]) - larger).max() < 0.3
    assert expected_area(right) > larger.sum(), "that it has grown is no sign of a leak"


def test_what_a_pass_finds_of_a_hidden_object_costs_little_trust() -> None:
    visible, found = plane(np.s_[20:24, 20:24]), plane(np.s_[20:24, 20:27])
    hidden = arrival_at(10, found, visible, 800.0)
    assert arrival_trust(10, (hidden,)) > 0.9
    leaks = arrival_at(10, plane(np.s_[20:40, 20:50]), visible, 800.0)
    assert arrival_trust(10, (leaks,)) < 0.3


@given(
    areas=st.lists(st.floats(1, 1e5), min_size=1, max_size=4), own=st.floats(1, 1e5), way=st.integers(1, 60)
)
def test_the_expected_area_changes_evenly(areas: list[float], own: float, way: int) -> None:
    arrivals = tuple(Arrival(10 * place, 1.0, area=area) for place, area in enumerate(areas, 1))
    here, there = (expected_area(PassAtFrame(WHOLE, one, own, arrivals)) for one in (way, way + 1))
    assert own <= here <= max(own, *areas)
    assert abs(here - there) <= (max(own, *areas) - min(own, *areas)) / 10 + 1e-6 * max(own, *areas)


def test_a_remnant_of_an_object_that_has_vanished_is_not_believed() -> None:
    remnant = np.float32(0.6) * plane(np.s_[20:24, 20:30])
    seen_little, seen_whole = PassAtFrame(remnant, 9, 240.0), PassAtFrame(np.zeros_like(remnant), -9, 800.0)
    assert fused([seen_little, seen_whole]).max() < 0.2
    whole = PassAtFrame(WHOLE, 9, 800.0)
    assert fused([whole, seen_whole])[25:35, 25:55].min() > 0.8, "a pass that has lost the object gives way"


def test_a_contour_that_is_off_by_a_pixel_is_right() -> None:
    assert wrong_places(plane(np.s_[20:40, 20:60]), plane(np.s_[20:40, 21:60])).max() < 1.0
    large, moved = np.zeros((480, 640), np.float32), np.zeros((480, 640), np.float32)
    large[100:300, 100:300], moved[100:300, 101:301] = 1.0, 1.0
    assert wrong_places(large, moved).max() == 0.0


def test_the_two_passes_with_the_greatest_shares_are_named() -> None:
    assert Fusion(WHOLE, (0.2, 0.5, 0.3)).most_trusted() == (1, 2)


def test_a_pass_from_a_key_that_shows_little_is_no_doubt_of_the_other_one() -> None:
    whole, part = plane(np.s_[10:50, 5:35]), plane(np.s_[10:12, 5:35])
    own, hidden = float(whole.sum()), float(part.sum())
    knows, sees_little = PassAtFrame(whole, 9, own), PassAtFrame(part, -3, hidden)
    for counts in (known_alike(knows, sees_little), known_alike(sees_little, knows)):
        assert agreement(whole, part) < 0.1 and agreement(whole, part, counts) > 0.9
    elsewhere = PassAtFrame(plane(np.s_[10:50, 45:75]), -3, own)
    assert known_alike(knows, elsewhere) == 1.0, "two whole objects in two places are a doubt"
    lost = PassAtFrame(part, -3, own)
    assert known_alike(knows, lost) == 1.0, "and so is an object that one of them does not find"
