"""The plan: which frames must be computed, from which keys, in which order, and why.

Pure: no network, no files.

**The dependency rule.** This is its only definition.

1. An object's *spans* are the plate frames between two neighbouring keys that give a mask of that object,
   and from either end of the plate to the nearest such key. On a key the matte is the mask and depends on
   nothing else.
2. A *pass* starts at a key and runs forward or backward, frame by frame, for all objects that have a mask
   there that is not empty. It uses the masks of its own key only and runs on through other keys. Per object
   it runs up to the second further key (`REACH`). A key that shows clearly less of the object than the
   pass's own key (`SHOWS_AS_MUCH`) is not counted: a pass from a key with the whole object runs past keys on
   which it is mostly hidden. At the fourth further key a pass ends in any case (`FARTHEST`). It also ends at
   the plate's end and at a key with an empty mask. An empty mask means "not here": no pass starts there and
   every pass of the object ends there. So a frame costs four runs of the network where all keys show the
   object alike, and eight at most, for any number of keys.
3. A frame is fused, for each object, from all passes that reach it (its *candidates*). If there are several,
   the weight of a pass depends also on how well, and where in the picture, its result fits the keys that it
   met, up to the first one that is not before the frame. The pass did not use their masks, so the fit
   measures how good it is. So a frame depends on at most the four nearest keys on either side and on no
   others. Where both neighbours have an empty mask the object is absent.
4. The result of a pass on a frame depends on the weights, the settings of the parts `picture` and `memory`,
   the colour transform and the canvas; on its own key (plate pixels and all masks of that key); and on the
   plate pixels of every frame from the key up to it. The address of a pass on a frame is the hash chain of
   exactly these. So a pass stays valid up to the first change, and other keys do not affect it.
5. The address of a fused frame is the hash of the addresses of all results that it is fused from (3), their
   distances, the masks of the keys that were met, and the version of the fusion rule.

So adding, changing or removing a key runs its own two passes through the network. Where a key is removed, or
shows less than before, the passes of its neighbours run further. Nothing else goes through the network.
Frames up to the second key on either side are fused anew, up to the fourth where keys show little.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, zip_longest

from stm_plugin.address import Ingredient, address_of
from stm_plugin.errors import KeyframeError, PlateError
from stm_plugin.planning.reasons import frame_plan, keys_used
from stm_plugin.planning.values import (
    Candidate,
    ComputeStep,
    Direction,
    Directions,
    Facts,
    FinishStep,
    FramePlan,
    FrameRecord,
    Key,
    KeyMask,
    Pass,
    PassName,
    Plan,
    Request,
    Source,
    Span,
    State,
    Step,
)

REACH = 2
"""How many further keys of an object a pass runs to (docs/experiments/keys.md)."""
FARTHEST = 4
"""The same, with the keys that show less of the object: the bound of a frame's cost."""
SHOWS_AS_MUCH = 0.9
"""Share of the object's area on the pass's own key: a key that shows less is not counted."""
FUSION_RULE = 8
"""Enters the address of frames that are fused from several passes; raise it with `fusion.VERSION`."""

Result = tuple[int, Direction, int]
"""The result of a pass on a frame: key and direction of the pass, and the frame."""

_EVERYTHING = Request()


def make_plan(
    facts: Facts,
    request: Request = _EVERYTHING,
    known: Callable[[str], bool] = lambda address: False,
    history: Mapping[int, FrameRecord] | None = None,
) -> Plan:
    """Decide what must be computed, and in which order.

    Args:
        known: whether the store holds the result with this address.
        history: the last finished state of each frame, which distinguishes stale from missing.

    Raises:
        KeyframeError: there is no key, all are empty, or one is not on a frame of the plate.
        PlateError: the range holds no frame of the plate.
    """
    _check(facts)
    wanted = frames_in_range(facts.frames, request)
    keys = {key.frame: key for key in facts.keys}
    sources = {frame: _sources(facts, frame, request.directions) for frame in wanted}
    passes = _passes(facts, keys, sources)
    addresses = {one.name: pass_addresses(one, facts.plate) for one in passes}
    known_at = _known_results(passes, addresses, known)

    by_name = {one.name: one for one in passes}

    def address_at(result: Result) -> str | None:
        key, direction, frame = result
        return addresses[key, direction][position_in(by_name[key, direction], frame)]

    frames = []
    for frame in wanted:
        ready = all(known_at.get(one, False) for one in _needed(sources[frame], frame))
        reached = not any(_unreached(facts, sources[frame], frame).values())
        address = frame_address(facts, frame, sources[frame], address_at)
        frames.append(frame_plan(facts, frame, sources[frame], address, ready, reached, history or {}))
    missing = [
        ComputeStep(one, position)
        for one in passes
        for position, at in enumerate(one.frames)
        if not known_at[(*one.name, at)]
    ]
    return Plan(facts, tuple(frames), passes, _with_finish_steps(missing, frames), addresses)


def take_turns(plan: Plan, passes: int) -> Plan:
    """The same plan with so many passes side by side, a frame of each in turn. No result depends on it."""
    waiting = deque(tuple(run) for _, run in groupby(plan.compute_steps, lambda step: step.passed.name))

    def lane() -> Iterator[ComputeStep]:
        while waiting:
            yield from waiting.popleft()

    rounds = zip_longest(*(lane() for _ in range(passes)))
    in_turn = [step for side_by_side in rounds for step in side_by_side if step is not None]
    return replace(plan, steps=_with_finish_steps(in_turn, plan.frames))


def frames_in_range(frames: tuple[int, ...], request: Request) -> tuple[int, ...]:
    """The plate frames that a request names.

    Raises:
        PlateError: there are none.
    """
    first = frames[0] if request.first is None else request.first
    last = frames[-1] if request.last is None else request.last
    chosen = frames[bisect_left(frames, first) : bisect_right(frames, last)]
    if not chosen:
        raise PlateError(
            f"The plate has no frame from {first} to {last}.",
            hint=f"It has frames {frames[0]} to {frames[-1]}.",
        )
    return chosen


def spans(facts: Facts) -> tuple[Span, ...]:
    """All spans, from left to right; objects that share a span are named together."""
    found: dict[tuple[int, int, int | None, int | None], list[str]] = {}
    for name in facts.objects:
        marks = _key_frames(facts, name)
        if not marks:
            continue
        for left, right in zip([None, *marks], [*marks, None], strict=True):
            start = 0 if left is None else bisect_right(facts.frames, left)
            stop = len(facts.frames) if right is None else bisect_left(facts.frames, right)
            if start < stop:
                place = (facts.frames[start], facts.frames[stop - 1], left, right)
                found.setdefault(place, []).append(name)
    order = sorted(found, key=lambda place: (place[0], place[1]))
    return tuple(Span(tuple(found[place]), *place) for place in order)


# ---- addresses (rules 4 and 5) ----------------------------------------------------------------


def chain(previous: str | None, plate_hash: str | None) -> str | None:
    """The address of a pass on its next frame. None if a part of it is unknown."""
    if previous is None or plate_hash is None:
        return None
    return address_of("step", previous, plate_hash)


def pass_root(facts: Facts, key: int, direction: Direction) -> str | None:
    """The address of a pass on its own key. None where that plate frame was not read yet."""
    if key not in facts.plate:
        return None
    own = next(one for one in facts.keys if one.frame == key)
    masks = [own.masks[name].hash for name in own.visible(facts.objects)]
    remembered: list[Ingredient] = [[0, facts.plate[key], masks]]
    return address_of("pass", dict(facts.base), direction.value, remembered)


def pass_addresses(one: Pass, plate: Mapping[int, str]) -> tuple[str | None, ...]:
    """The address of a pass on each of its frames."""
    addresses: list[str | None] = []
    address = one.root
    for frame in one.frames:
        address = chain(address, plate.get(frame))
        addresses.append(address)
    return tuple(addresses)


def frame_address(
    facts: Facts,
    frame: int,
    sources: Mapping[str, Source],
    address_at: Callable[[Result], str | None],
) -> str | None:
    """The address of the fused probabilities of a frame. None where a pass has no address yet."""
    keys = {one.frame: one for one in facts.keys}
    parts: list[Ingredient] = []
    for name, source in sources.items():
        if source.key is not None:
            parts.append(["mask", keys[source.key].masks[name].hash])
            continue
        part: list[Ingredient] = ["passes", *([FUSION_RULE] if len(source.candidates) > 1 else [])]
        for one in source.candidates:
            results = [(*one.name, frame)]
            if len(source.candidates) > 1:
                results += [(*one.name, met) for met in one.met]
            found = [address_at(result) for result in results]
            if None in found:
                return None
            place = keys[one.key].visible(facts.objects).index(name)
            part += [found[0], place, abs(frame - one.key)]
            if len(source.candidates) > 1:
                masks = [keys[met].masks[name].hash for met in one.met]
                ways = [abs(met - one.key) for met in one.met]
                part.append(["met", *map(list, zip(found[1:], masks, ways, strict=True))])
        parts.append(part)
    return address_of("frame", parts)


# ---- sources, passes, steps ------------------------------------------------------------------


def _check(facts: Facts) -> None:
    if not facts.keys:
        raise KeyframeError("The shot has no key.", hint="Give the mask of at least one frame.")
    if not any(key.visible(facts.objects) for key in facts.keys):
        raise KeyframeError(
            "The masks of all keys are empty.",
            frame=facts.keys[0].frame,
            hint="An empty mask says that the object is not here; give one frame on which it is.",
        )
    places = set(facts.frames)
    for key in facts.keys:
        if key.frame not in places:
            raise KeyframeError(
                "The plate has no such frame for this key.",
                frame=key.frame,
                hint=f"The plate has frames {facts.frames[0]} to {facts.frames[-1]}.",
            )


def _key_frames(facts: Facts, name: str) -> list[int]:
    return sorted(key.frame for key in facts.keys if name in key.masks)


def _sources(facts: Facts, frame: int, directions: Directions) -> dict[str, Source]:
    """Rule 1 to 3 for one frame, by object; objects without a key are left out."""
    keys = {key.frame: key for key in facts.keys}
    sources: dict[str, Source] = {}
    for name in facts.objects:
        marks = _key_frames(facts, name)
        if not marks:
            continue
        if frame in keys and name in keys[frame].masks:
            sources[name] = Source(key=frame)
            continue
        place = bisect_left(marks, frame)
        before, after = marks[:place][::-1], marks[place:]
        left = _candidate_keys(keys, name, before) if directions != "backward" else []
        right = _candidate_keys(keys, name, after) if directions != "forward" else []
        on_right = after[0] if after and _shows(keys, after[0], name) else None
        on_left = before[0] if before and _shows(keys, before[0], name) else None
        forward = [Candidate(key, Direction.FORWARD, _met(passed, on_right)) for key, passed in left]
        backward = [Candidate(key, Direction.BACKWARD, _met(passed, on_left)) for key, passed in right]
        sources[name] = Source(candidates=(*forward[::-1], *backward))
    return sources


def _candidate_keys(keys: Mapping[int, Key], name: str, marks: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The keys of an object whose passes reach a frame, from the frame outwards (rule 2).

    Args:
        marks: the keys on one side of the frame, the nearest first.

    Returns:
        Each key with those that its pass runs through before the frame, in the pass's order.
    """
    found: list[tuple[int, list[int]]] = []
    for number, key in enumerate(marks[:FARTHEST]):
        if not _shows(keys, key, name):
            break
        passed = marks[:number][::-1]
        own = keys[key].masks[name]
        if sum(_shows_as_much(keys[other].masks[name], own) for other in passed) < REACH:
            found.append((key, list(passed)))
    return found


def _shows_as_much(mask: KeyMask, own: KeyMask) -> bool:
    """Whether a key counts for the reach of a pass: it is not known to show less of the object."""
    return mask.area is None or own.area is None or mask.area >= SHOWS_AS_MUCH * own.area


def _met(passed: list[int], ahead: int | None) -> tuple[int, ...]:
    """The keys that a candidate meets: those before the frame on its way, and the next one ahead."""
    return (*passed, *([] if ahead is None else [ahead]))


def _shows(keys: Mapping[int, Key], key: int | None, name: str) -> bool:
    return key is not None and not keys[key].masks[name].empty


def _unreached(facts: Facts, sources: Mapping[str, Source], frame: int) -> dict[str, bool]:
    """Whether an object has a key on one side only and no pass may run from that side."""
    keys = {key.frame: key for key in facts.keys}
    result = {}
    for name, source in sources.items():
        marks = _key_frames(facts, name)
        place = bisect_left(marks, frame)
        beside = [*marks[max(place - 1, 0) : place], *marks[place : place + 1]]
        # An empty mask on one side marks where the object ends, so a one-way run may count it as absent
        # there.
        result[name] = source.absent and all(_shows(keys, key, name) for key in beside)
    return result


def _needed(sources: Mapping[str, Source], frame: int) -> set[Result]:
    """The results of the network that a frame needs."""
    return {result for source in sources.values() for result in source.needs(frame)}


def _passes(
    facts: Facts, keys: Mapping[int, Key], sources: Mapping[int, Mapping[str, Source]]
) -> tuple[Pass, ...]:
    """Each pass as far as any frame needs it, ordered by key; forward before the next key's backward."""
    reach: dict[PassName, int] = {}
    for frame, by_object in sources.items():
        for key, direction, at in _needed(by_object, frame):
            farther = max if direction is Direction.FORWARD else min
            reach[key, direction] = farther(reach.get((key, direction), key), at)
    order = sorted(reach, key=lambda name: (name[0], name[1] is Direction.FORWARD))
    return tuple(_one_pass(facts, keys, key, direction, reach[key, direction]) for key, direction in order)


def _one_pass(facts: Facts, keys: Mapping[int, Key], key: int, direction: Direction, end: int) -> Pass:
    if direction is Direction.FORWARD:
        start, stop = bisect_right(facts.frames, key), bisect_right(facts.frames, end)
        frames = facts.frames[start:stop]
    else:
        start, stop = bisect_left(facts.frames, end), bisect_left(facts.frames, key)
        frames = facts.frames[start:stop][::-1]
    objects = keys[key].visible(facts.objects)
    return Pass(key, direction, objects, frames, pass_root(facts, key, direction))


def _known_results(
    passes: tuple[Pass, ...],
    addresses: Mapping[PassName, tuple[str | None, ...]],
    known: Callable[[str], bool],
) -> dict[Result, bool]:
    return {
        (*one.name, frame): address is not None and known(address)
        for one in passes
        for frame, address in zip(one.frames, addresses[one.name], strict=True)
    }


def position_in(one: Pass, frame: int) -> int:
    """The index of `frame` in the run of a pass.

    Raises:
        ValueError: the pass does not reach the frame.
    """
    if one.direction is Direction.FORWARD:
        place = bisect_left(one.frames, frame)
    else:
        place = bisect_left(one.frames, -frame, key=lambda number: -number)
    if place == len(one.frames) or one.frames[place] != frame:
        raise ValueError(f"the {one.direction} pass from {one.key} does not reach {frame}")
    return place


def _with_finish_steps(missing: Sequence[ComputeStep], frames: Iterable[FramePlan]) -> tuple[Step, ...]:
    """All steps in order: a frame is finished right after the last of its missing results."""
    steps: list[Step] = []
    computed = {(*step.passed.name, step.frame) for step in missing}
    waiting: dict[int, set[Result]] = {}
    waited_for: dict[Result, list[int]] = {}
    for one in frames:
        if one.state is State.UNREACHED:
            continue
        needed = _needed(one.sources, one.frame) & computed
        if needed:
            waiting[one.frame] = needed
            for result in needed:
                waited_for.setdefault(result, []).append(one.frame)
        else:
            steps.append(FinishStep(one.frame))
    for step in missing:
        steps.append(step)
        result = (*step.passed.name, step.frame)
        for other in waited_for.get(result, ()):
            waiting[other].discard(result)
            if not waiting[other]:
                steps.append(FinishStep(other))
    return tuple(steps)


def record_of(facts: Facts, planned: FramePlan, address: str) -> FrameRecord:
    """The record of a frame that is finished now. Its plate hash must be known."""
    frame = planned.frame
    used = keys_used(facts, planned.sources)
    return FrameRecord(frame, address, dict(facts.base), used, facts.plate[frame], dict(facts.settings))
