"""The plan follows the dependency rule. No network is needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm_plugin.errors import KeyframeError, PlateError
from stm_plugin.planning.plan import FARTHEST, REACH, make_plan, record_of, spans, take_turns
from stm_plugin.planning.values import (
    ComputeStep,
    Direction,
    Facts,
    FinishStep,
    FrameRecord,
    Key,
    KeyMask,
    Plan,
    Request,
    State,
)

FIRST, LAST = 1001, 1030
FRAMES = tuple(range(FIRST, LAST + 1))
OBJECTS = ("o1", "o2", "o3")


def key(frame: int, **masks: str) -> Key:
    """A key; the mask text `none` means an empty mask."""
    return Key(frame, {name: KeyMask(f"{name}-{text}", empty=text == "none") for name, text in masks.items()})


def facts(*keys: Key, frames: tuple[int, ...] = FRAMES, weights: str = "w") -> Facts:
    plate = {frame: f"plate-{frame}" for frame in frames}
    return Facts(frames, OBJECTS, keys, {"weights": weights, "settings": "s"}, plate)


class Store:
    """The stored results and finished frames that a run leaves."""

    def __init__(self) -> None:
        self.results: set[str] = set()
        self.history: dict[int, FrameRecord] = {}

    def plan(self, shot: Facts, request: Request | None = None) -> Plan:
        return make_plan(shot, request or Request(), self.results.__contains__, self.history)

    def run(self, shot: Facts, request: Request | None = None) -> Plan:
        """Carry out a plan; returns the plan."""
        plan = self.plan(shot, request)
        for step in plan.steps:
            if isinstance(step, ComputeStep):
                address = plan.addresses[step.passed.name][step.position]
                assert address is not None
                self.results.add(address)
            else:
                one = plan.by_frame[step.frame]
                assert one.address is not None
                self.history[step.frame] = record_of(shot, one, one.address)
        return plan


def computed(plan: Plan) -> set[tuple[int, Direction, int]]:
    return {(*step.passed.name, step.frame) for step in plan.compute_steps}


def run_of(key_frame: int, direction: Direction, frames: Iterable[int]) -> set[tuple[int, Direction, int]]:
    return {(key_frame, direction, frame) for frame in frames}


FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD

single_object_keys = st.lists(st.sampled_from(FRAMES), min_size=1, max_size=6, unique=True)
mask_text = st.sampled_from(["none", "a", "b"])
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def shows_something(keys: Iterable[Key]) -> bool:
    return any(one.visible(OBJECTS) for one in keys)


some_keys = (
    st.dictionaries(
        st.sampled_from(FRAMES),
        st.dictionaries(st.sampled_from(OBJECTS), mask_text, min_size=1),
        min_size=1,
        max_size=5,
    )
    .map(lambda chosen: tuple(key(frame, **masks) for frame, masks in chosen.items()))
    .filter(shows_something)
)


def test_one_key_runs_both_ways_from_it() -> None:
    plan = make_plan(facts(key(1010, o1="a")))
    assert computed(plan) == run_of(1010, FORWARD, range(1011, 1031)) | run_of(
        1010, BACKWARD, range(1001, 1010)
    )
    assert plan.state(1010) is State.KEY
    assert plan.words() == (
        "frames 1001-1009 will be computed: not computed yet\n"
        "frames 1011-1030 will be computed: not computed yet"
    )


def test_a_changed_mask_is_told_in_words() -> None:
    store = Store()
    store.run(facts(key(1011, o1="a"), key(1020, o1="a"), key(1029, o1="a")))
    changed = facts(key(1011, o1="a"), key(1020, o1="b"), key(1029, o1="a"))
    assert store.plan(changed).words() == (
        "frames 1001-1010 will be recomputed: the mask on 1020 changed\n"
        "frames 1012-1028 will be recomputed: the mask on 1020 changed\n"
        "frame 1030 will be recomputed: the mask on 1020 changed\n"
        "29 frames go through the network: a key's passes run to the second key on either side, "
        "past keys that show less of the object to the fourth"
    )
    fewer = facts(key(1011, o1="a"), key(1020, o1="a"))
    fused = "will be fused again without the network: the mask on 1029 was removed"
    anew = "will be recomputed: the mask on 1029 was removed"
    assert store.plan(fewer).words().splitlines()[:3] == [
        f"frames 1012-1019 {fused}",
        f"frames 1021-1029 {fused}",
        f"frame 1030 {anew}",
    ]
    more = facts(key(1001, o1="a"), key(1011, o1="a"), key(1020, o1="a"), key(1029, o1="a"))
    assert "frames 1001-1010 will be recomputed: the mask on 1001 was added" in store.plan(more).words()
    two = facts(*more.keys, key(1003, o1="a"))
    assert "the masks on 1001, 1003 were added" in store.plan(two).words()
    heavier = facts(key(1011, o1="a"), key(1020, o1="a"), key(1029, o1="a"), weights="new")
    said = str(store.plan(heavier).dirty[0])
    assert said == "frames 1001-1010 will be recomputed: the weights changed from w to new"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"memory_cap": "20"}, {"memory_cap": "5"}, "the setting memory_cap changed from 20 to 5"),
        (
            {"precision": "float32", "region": "none"},
            {"precision": "bfloat16", "region": "0,0,64,32"},
            "the settings changed: precision from float32 to bfloat16, region from none to 0,0,64,32",
        ),
        ({}, {"memory_cap": "5"}, "one of the memory settings changed (memory_rule, memory_cap)"),
        ({"memory_cap": "5"},) * 2 + ("this version of STM makes another use of the memory settings",),
    ],
)
def test_a_changed_setting_is_named_with_its_old_and_new_value(
    old: dict[str, str], new: dict[str, str], words: str
) -> None:
    store, before = Store(), facts(key(1001, o1="a"))
    before = replace(before, base={"memory settings": "1"}, settings=old)
    store.run(before)
    plan = store.plan(replace(before, base={"memory settings": "2"}, settings=new))
    assert str(plan.dirty[0]) == f"frames 1002-1030 will be recomputed: {words}"


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ("64x48 at (0, 0) region 32x24 at (8, 8) as 32x24", "the region changed from 64x48 at (0, 0) to 32x"),
        ("64x48 at (0, 0) region 64x48 at (0, 0) as 16x12", "the working size changed from 32x24 to 16x12"),
        ("80x60 at (0, 0) region 80x60 at (0, 0) as 32x24", "the canvas changed from 64x48 at (0, 0) to 80x"),
    ],
)
def test_a_changed_canvas_region_or_working_size_is_told_with_both_sizes(now: str, words: str) -> None:
    store, before = Store(), facts(key(1001, o1="a"))
    before = replace(before, base={"canvas": "64x48 at (0, 0) region 64x48 at (0, 0) as 32x24"})
    store.run(before)
    assert words in str(store.plan(replace(before, base={"canvas": now})).dirty[0])


def test_a_changed_plate_frame_makes_stale_what_saw_it_and_says_so() -> None:
    store = Store()
    shot = facts(key(1010, o1="a"))
    store.run(shot)
    other = replace(shot, plate={**shot.plate, 1020: "graded"})
    plan = store.plan(other)
    assert computed(plan) == run_of(1010, FORWARD, range(1020, 1031))
    assert plan.words() == "frames 1020-1030 will be recomputed: the plate changed on 1020"


def test_a_new_key_costs_its_own_two_passes_and_touches_no_other() -> None:
    store = Store()
    store.run(facts(key(1001, o1="a"), key(1030, o1="a")))
    plan = store.plan(facts(key(1001, o1="a"), key(1015, o1="a"), key(1030, o1="a")))
    assert computed(plan) == run_of(1015, BACKWARD, range(1001, 1015)) | run_of(
        1015, FORWARD, range(1016, 1031)
    )
    assert [str(one) for one in plan.dirty] == [
        "frames 1002-1029 will be recomputed: the mask on 1015 was added"
    ]


def test_frames_that_are_only_fused_anew_are_said_to_be() -> None:
    store = Store()
    store.run(facts(key(1005, o1="a"), key(1020, o1="a")))
    plan = store.plan(facts(key(1005, o1="a")))
    assert not plan.compute_steps, "what the passes of the other keys gave is kept"
    fused = {one.frame for one in plan.frames if one.state is State.STALE and one.ready}
    assert fused == set(FRAMES) - {1005}
    assert all("without the network" in str(one) for one in plan.dirty if one.only_fused)


def test_a_key_reaches_the_second_key_on_either_side_and_no_farther() -> None:
    frames = (1001, 1004, 1007, 1010, 1013, 1016, 1019, 1022, 1025, 1028)
    keys = [key(frame, o1="a") for frame in frames]
    store = Store()
    store.run(facts(*keys))
    keys[5] = key(1016, o1="b")
    plan = store.plan(facts(*keys))
    assert computed(plan) == run_of(1016, FORWARD, range(1017, 1023)) | run_of(
        1016, BACKWARD, range(1010, 1016)
    )
    stale = [one.frame for one in plan.frames if one.state is State.STALE]
    assert stale == [frame for frame in range(1011, 1022) if frame not in frames or frame == 1016]


def showing(frame: int, area: float) -> Key:
    """A key of one object that covers this many pixels."""
    return Key(frame, {"o1": KeyMask(f"o1-{area}", area=area)})


def test_a_pass_goes_on_past_keys_that_show_less_of_the_object_but_not_for_ever() -> None:
    hidden = [showing(frame, 10.0) for frame in (1003, 1005, 1007, 1009, 1011)]
    plan = make_plan(facts(showing(1001, 100.0), *hidden))
    ends = {one.key: one.frames[-1] for one in plan.passes if one.direction is FORWARD}
    assert ends[1001] == 1009, "the fourth further key"
    assert ends[1003] == 1007, "keys that show as much end it at the second"
    backward = {one.key: one.frames[-1] for one in plan.passes if one.direction is BACKWARD}
    assert backward[1005] == 1001
    (met,) = [one.met for one in plan.by_frame[1006].sources["o1"].candidates if one.key == 1001]
    assert met == (1003, 1005, 1007)


def test_a_mask_that_shows_less_than_before_lengthens_passes_and_makes_none_stale() -> None:
    store = Store()
    keys = [showing(frame, 100.0) for frame in (1001, 1006, 1011, 1016)]
    store.run(facts(*keys))
    plan = store.plan(facts(keys[0], showing(1006, 20.0), *keys[2:]))
    others = {one for one in computed(plan) if one[0] != 1006}
    lengthened = run_of(1001, FORWARD, range(1012, 1017)) | run_of(1016, BACKWARD, range(1001, 1006))
    assert others == lengthened


@given(frames=single_object_keys)
def test_a_frame_costs_at_most_four_runs_where_keys_show_the_object_alike(frames: list[int]) -> None:
    plan = make_plan(facts(*(key(frame, o1="a") for frame in frames)))
    assert len(plan.compute_steps) <= 2 * REACH * len(FRAMES)
    for one in plan.frames:
        assert all(len(source.candidates) <= 2 * REACH for source in one.sources.values())


@given(areas=st.dictionaries(st.sampled_from(FRAMES), st.floats(1, 1000), min_size=1, max_size=20))
def test_a_frame_costs_at_most_eight_runs_whatever_the_keys_show(areas: dict[int, float]) -> None:
    plan = make_plan(facts(*(showing(*one) for one in areas.items())))
    assert len(plan.compute_steps) <= 2 * FARTHEST * len(FRAMES)
    for one in plan.frames:
        assert all(len(source.candidates) <= 2 * FARTHEST for source in one.sources.values())


def test_no_other_key_can_make_a_pass_stale() -> None:
    alone = make_plan(facts(key(1010, o1="a")))
    among = make_plan(facts(key(1003, o1="a"), key(1010, o1="a"), key(1020, o1="b"), key(1025, o1="none")))
    for direction in (FORWARD, BACKWARD):
        shorter = among.addresses[1010, direction]
        assert shorter == alone.addresses[1010, direction][: len(shorter)]


def test_taking_a_correction_back_needs_no_computing() -> None:
    store = Store()
    before, after = facts(key(1001, o1="a")), facts(key(1001, o1="a"), key(1015, o1="a"))
    store.run(before)
    store.run(after)
    assert not store.plan(before).compute_steps


def test_an_object_is_only_bound_by_keys_that_give_it() -> None:
    shot = facts(key(1005, o1="a"), key(1020, o2="a"))
    assert [(span.objects, span.first, span.last, span.left, span.right) for span in spans(shot)] == [
        (("o1",), 1001, 1004, None, 1005),
        (("o2",), 1001, 1019, None, 1020),
        (("o1",), 1006, 1030, 1005, None),
        (("o2",), 1021, 1030, 1020, None),
    ]
    plan = make_plan(shot)
    assert [one.name for one in plan.by_frame[1020].sources["o1"].candidates] == [(1005, FORWARD)]
    assert plan.by_frame[1020].sources["o2"].key == 1020


def test_an_object_with_an_empty_mask_is_absent_and_starts_no_pass() -> None:
    plan = make_plan(facts(key(1001, o1="none"), key(1010, o1="a"), key(1020, o1="none")))
    assert computed(plan) == run_of(1010, BACKWARD, range(1002, 1010)) | run_of(
        1010, FORWARD, range(1011, 1020)
    )
    assert all(plan.by_frame[frame].sources["o1"].absent for frame in range(1021, 1031))
    assert plan.state(1025) is State.DONE


def test_a_one_way_run_names_the_frames_that_it_cannot_reach() -> None:
    plan = make_plan(facts(key(1010, o1="a")), Request(directions="forward"))
    assert plan.words().splitlines()[0] == (
        "frames 1001-1009 cannot be computed: no key reaches that far in this direction"
    )
    assert computed(plan) == run_of(1010, FORWARD, range(1011, 1031))


def test_frames_not_read_yet_have_no_address_and_are_computed() -> None:
    shot = facts(key(1001, o1="a"))
    unread = replace(shot, plate={frame: f"plate-{frame}" for frame in FRAMES if frame < 1010})
    plan = make_plan(unread)
    assert plan.by_frame[1009].address is not None
    assert plan.by_frame[1010].address is None
    assert len(plan.compute_steps) == 29


def test_renaming_the_frames_of_a_plate_keeps_its_results() -> None:
    here = facts(key(1001, o1="a"), key(1030, o1="a"))
    there = replace(
        here,
        frames=tuple(range(1, 31)),
        keys=(key(1, o1="a"), key(30, o1="a")),
        plate={frame - 1000: text for frame, text in here.plate.items()},
    )
    assert [one.address for one in make_plan(here).frames] == [one.address for one in make_plan(there).frames]


def test_wrong_input_is_named() -> None:
    with pytest.raises(KeyframeError, match="no key"):
        make_plan(facts())
    with pytest.raises(KeyframeError, match="all keys are empty"):
        make_plan(facts(key(1001, o1="none")))
    with pytest.raises(KeyframeError, match="frame 999"):
        make_plan(facts(key(999, o1="a")))
    with pytest.raises(PlateError, match="no frame from 5 to 7"):
        make_plan(facts(key(1001, o1="a")), Request(5, 7))


@given(keys=some_keys)
def test_a_finished_plan_leaves_nothing_to_do(keys: tuple[Key, ...]) -> None:
    store = Store()
    store.run(facts(*keys))
    again = store.plan(facts(*keys))
    assert not again.compute_steps
    assert not again.dirty
    assert {step.frame for step in again.steps if isinstance(step, FinishStep)} == set(FRAMES)


@given(keys=some_keys, passes=st.integers(1, 3))
def test_every_frame_is_finished_once_and_after_all_that_it_needs(keys: tuple[Key, ...], passes: int) -> None:
    one_by_one = make_plan(facts(*keys))
    plan = take_turns(one_by_one, passes)
    assert computed(plan) == computed(one_by_one)
    done: set[tuple[int, Direction, int]] = set()
    finished: list[int] = []
    for step in plan.steps:
        if isinstance(step, ComputeStep):
            before = step.passed.frames[: step.position]
            assert run_of(*step.passed.name, before) <= done
            done.add((*step.passed.name, step.frame))
            continue
        finished.append(step.frame)
        for source in plan.by_frame[step.frame].sources.values():
            assert source.needs(step.frame) <= done
    assert sorted(finished) == list(FRAMES)


def test_passes_take_turns_frame_by_frame_until_one_is_left() -> None:
    plan = make_plan(facts(key(1004, o1="a"), key(1010, o1="a")))
    assert take_turns(plan, 1) == plan
    left = {one.name: len(one.frames) for one in plan.passes}
    order = [step.passed.name for step in take_turns(plan, 2).compute_steps]
    for name, following in pairwise(order):
        left[name] -= 1
        others = [one for one, count in left.items() if count and one != name]
        assert (following != name) == bool(others)
    starts = [order.index(one.name) for one in plan.passes]
    assert starts == sorted(starts), "passes begin in the plan's order"


@settings(max_examples=200)
@given(keys=some_keys, data=st.data())
def test_a_changed_key_runs_its_own_passes_and_lengthens_others_only(
    keys: tuple[Key, ...], data: st.DataObject
) -> None:
    store = Store()
    store.run(facts(*keys))
    known = set(store.results)
    changed = data.draw(st.sampled_from(keys))
    others = tuple(one for one in keys if one.frame != changed.frame)
    masks = data.draw(st.dictionaries(st.sampled_from(OBJECTS), mask_text))
    now = (*others, key(changed.frame, **masks)) if masks else others
    if not shows_something(now):
        return
    plan = store.plan(facts(*now))
    before = make_plan(facts(*keys))
    for one in plan.passes:
        if one.key == changed.frame or one.name not in before.addresses:
            continue
        kept = before.addresses[one.name]
        assert set(kept) <= known
        computed_places = [step.position for step in plan.compute_steps if step.passed.name == one.name]
        assert all(place >= len(kept) for place in computed_places)


@settings(max_examples=200)
@given(frames=single_object_keys, data=st.data())
def test_the_dirty_range_is_exactly_what_depends_on_the_key(frames: list[int], data: st.DataObject) -> None:
    store = Store()
    keys = {frame: key(frame, o1="a") for frame in frames}
    store.run(facts(*keys.values()))
    changed = data.draw(st.sampled_from(frames))
    plan = store.plan(facts(*{**keys, changed: key(changed, o1="b")}.values()))
    left = sorted(frame for frame in frames if frame < changed)[-REACH:]
    right = sorted(frame for frame in frames if frame > changed)[:REACH]
    first = left[0] if len(left) == REACH else FIRST
    last = right[-1] if len(right) == REACH else LAST
    own = run_of(changed, FORWARD, range(changed + 1, last + 1))
    own |= run_of(changed, BACKWARD, range(first, changed))
    assert computed(plan) <= own
    # Where no frame lies behind a key, nobody asks how the pass arrives there.
    assert {frame for _, _, frame in own - computed(plan)} <= set(frames)
    dirty = [one.frame for one in plan.frames if one.state is State.STALE]
    assert dirty == [frame for frame in range(first, last + 1) if frame == changed or frame not in frames]


@given(keys=some_keys, data=st.data())
def test_a_range_changes_what_is_done_but_no_result(keys: tuple[Key, ...], data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(FRAMES))
    last = data.draw(st.sampled_from([frame for frame in FRAMES if frame >= first]))
    whole = make_plan(facts(*keys))
    part = make_plan(facts(*keys), Request(first, last))
    assert [one.frame for one in part.frames] == list(range(first, last + 1))
    for one in part.frames:
        assert one.address == whole.by_frame[one.frame].address
    assert computed(part) <= computed(whole)


@given(keys=some_keys, data=st.data())
def test_a_run_stopped_anywhere_goes_on_where_it_stopped(keys: tuple[Key, ...], data: st.DataObject) -> None:
    plan = make_plan(facts(*keys))
    stop = data.draw(st.integers(0, len(plan.compute_steps)))
    done = plan.compute_steps[:stop]
    results = {plan.addresses[step.passed.name][step.position] for step in done}
    rest = make_plan(facts(*keys), known=results.__contains__)
    left = computed(plan) - {(*step.passed.name, step.frame) for step in done}
    # The same picture seen from the same key is one result, whichever step made it.
    assert computed(rest) == left
