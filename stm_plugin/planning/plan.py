"""The plan: which frames must be computed, from which keys, in which order, and why.

Pure: no network, no files.

**The dependency rule.** It is written down here and nowhere else.

1. An object's *spans* are the plate frames between two neighbouring keys that give a mask of that object,
   and from either end of the plate to the nearest such key. On a key the matte is the mask and depends on
   nothing else.
2. A *pass* starts at a key and runs forward or backward, frame by frame, for all objects that have a mask
   there that is not empty. An empty mask says "not here": nothing is propagated from it, but it ends the
   spans.
3. A frame inside a span depends on the forward pass from the key on its left and on the backward pass from
   the key on its right, up to this frame, for each of its objects. Where both keys have an empty mask the
   object is absent.
4. What a pass gives on a frame depends on the weights, the settings of the parts `picture` and `memory`, the
   colour transform and the canvas; on its own key (plate pixels and all masks of that key); and on the plate
   pixels of every frame from the key up to it. The address of a pass on a frame is the hash chain of
   exactly these: so a pass stays valid up to where something changed, and when a key is added further on.
5. With `keys_in_memory` = `span`, a pass also depends on the keys at the far ends of its objects' spans, and
   with `all` on every key (then any change of any key makes everything stale). Such a key takes part in a
   pass where it gives a mask for every object of the pass.

So with `own` and `span`, adding, changing or removing a key recomputes the spans on either side of it (of
the objects that the key gives) and nothing else; and with `own`, of a span that a new key divides, the two
passes that come from its ends are kept up to the new key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from stm_plugin.address import Ingredient, address_of
from stm_plugin.errors import KeyframeError, PlateError
from stm_plugin.planning.reasons import frame_plan
from stm_plugin.planning.values import (
    ComputeStep,
    Direction,
    Directions,
    Facts,
    FinishStep,
    FramePlan,
    FrameRecord,
    Key,
    Pass,
    Plan,
    Request,
    Source,
    Span,
    State,
    Step,
)

_EVERYTHING = Request()


def make_plan(
    facts: Facts,
    request: Request = _EVERYTHING,
    known: Callable[[str], bool] = lambda address: False,
    history: Mapping[int, FrameRecord] | None = None,
) -> Plan:
    """Decide what must be done.

    Args:
        known: whether the store holds the result with this address.
        history: the last finished state of each frame, to tell stale from missing.

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

    frames = []
    for frame in wanted:
        ready = all(known_at.get((*name, frame), False) for name in _needed(sources[frame]))
        reached = not any(_unreached(facts, sources[frame], frame).values())
        address = frame_address(facts, frame, sources[frame], _lookup(passes, addresses, frame))
        used = partial(_keys_used, facts, sources[frame])
        one = frame_plan(facts, frame, sources[frame], used, address, ready, reached, history or {})
        frames.append(one)
    return Plan(facts, tuple(frames), passes, _steps(passes, frames, known_at), addresses)


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


# ---- addresses (rule 4 and 5) ----------------------------------------------------------------


def chain(previous: str | None, plate_hash: str | None) -> str | None:
    """The address of a pass on its next frame. None as soon as something is not known."""
    if previous is None or plate_hash is None:
        return None
    return address_of("step", previous, plate_hash)


def pass_root(facts: Facts, key: int, direction: Direction, memory_keys: Iterable[int]) -> str | None:
    """The address of a pass on its own key. None where the plate there has not been read yet."""
    keys = {one.frame: one for one in facts.keys}
    objects = keys[key].visible(facts.objects)
    remembered: list[Ingredient] = []
    for frame in (key, *memory_keys):
        if frame not in facts.plate:
            return None
        masks = [keys[frame].masks[name].hash for name in objects]
        # The place in the run, not the frame number, so that a renumbered plate keeps its results.
        place = bisect_left(facts.frames, frame) - bisect_left(facts.frames, key)
        remembered.append([place, facts.plate[frame], masks])
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
    pass_address: Callable[[int, Direction], str | None],
) -> str | None:
    """The address of the fused probabilities of a frame. None where a pass has no address yet."""
    keys = {one.frame: one for one in facts.keys}
    parts: list[Ingredient] = []
    for name, source in sources.items():
        if source.key is not None:
            parts.append(["mask", keys[source.key].masks[name].hash])
            continue
        part: list[str | int] = ["passes"]
        for key, direction in source.passes:
            address = pass_address(key, direction)
            if address is None:
                return None
            place = keys[key].visible(facts.objects).index(name)
            part += [address, place, abs(frame - key)]
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
    """Rule 1 to 3 for one frame, by object; objects without any key are left out."""
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
        left = marks[place - 1] if place > 0 else None
        right = marks[place] if place < len(marks) else None
        sources[name] = Source(
            forward=left if directions != "backward" and _shows(keys, left, name) else None,
            backward=right if directions != "forward" and _shows(keys, right, name) else None,
        )
    return sources


def _shows(keys: Mapping[int, Key], key: int | None, name: str) -> bool:
    return key is not None and not keys[key].masks[name].empty


def _unreached(facts: Facts, sources: Mapping[str, Source], frame: int) -> dict[str, bool]:
    """By object: a key shows it on one side, but no pass may come from there, and the other side is open."""
    keys = {key.frame: key for key in facts.keys}
    result = {}
    for name, source in sources.items():
        marks = _key_frames(facts, name)
        place = bisect_left(marks, frame)
        beside = [*marks[max(place - 1, 0) : place], *marks[place : place + 1]]
        # An empty mask on one side says where the object ends, so a one-way run may call it absent there.
        result[name] = source.absent and all(_shows(keys, key, name) for key in beside)
    return result


def _needed(sources: Mapping[str, Source]) -> set[tuple[int, Direction]]:
    return {name for source in sources.values() for name in source.passes}


def _passes(
    facts: Facts, keys: Mapping[int, Key], sources: Mapping[int, Mapping[str, Source]]
) -> tuple[Pass, ...]:
    """Each pass as far as some frame needs it, ordered by key; forward before backward of the next key."""
    reach: dict[tuple[int, Direction], int] = {}
    for frame, by_object in sources.items():
        for name in _needed(by_object):
            key, direction = name
            farther = max if direction is Direction.FORWARD else min
            reach[name] = farther(reach.get(name, key), frame)
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
    memory_keys = _memory_keys(facts, keys, key, direction, objects)
    return Pass(key, direction, objects, frames, memory_keys, pass_root(facts, key, direction, memory_keys))


def _memory_keys(
    facts: Facts, keys: Mapping[int, Key], key: int, direction: Direction, objects: tuple[str, ...]
) -> tuple[int, ...]:
    """Rule 5."""
    if facts.keys_in_memory == "own":
        return ()
    if facts.keys_in_memory == "all":
        others = set(keys) - {key}
    else:
        others = set()
        for name in objects:
            marks = _key_frames(facts, name)
            far = marks.index(key) + (1 if direction is Direction.FORWARD else -1)
            if 0 <= far < len(marks):
                others.add(marks[far])
    return tuple(sorted(one for one in others if all(name in keys[one].masks for name in objects)))


def _known_results(
    passes: tuple[Pass, ...],
    addresses: Mapping[tuple[int, Direction], tuple[str | None, ...]],
    known: Callable[[str], bool],
) -> dict[tuple[int, Direction, int], bool]:
    return {
        (*one.name, frame): address is not None and known(address)
        for one in passes
        for frame, address in zip(one.frames, addresses[one.name], strict=True)
    }


def _lookup(
    passes: tuple[Pass, ...], addresses: Mapping[tuple[int, Direction], tuple[str | None, ...]], frame: int
) -> Callable[[int, Direction], str | None]:
    by_name = {one.name: one for one in passes}

    def find(key: int, direction: Direction) -> str | None:
        one = by_name[key, direction]
        return addresses[one.name][position_in(one, frame)]

    return find


def position_in(one: Pass, frame: int) -> int:
    """The place of `frame` in the run of a pass.

    Raises:
        ValueError: the pass does not come by.
    """
    if one.direction is Direction.FORWARD:
        place = bisect_left(one.frames, frame)
    else:
        place = bisect_left(one.frames, -frame, key=lambda number: -number)
    if place == len(one.frames) or one.frames[place] != frame:
        raise ValueError(f"the {one.direction} pass from {one.key} does not come by {frame}")
    return place


def _steps(
    passes: tuple[Pass, ...],
    frames: Iterable[FramePlan],
    known_at: Mapping[tuple[int, Direction, int], bool],
) -> tuple[Step, ...]:
    """Passes in order; a frame is finished right after the last step that it waits for."""
    steps: list[Step] = []
    waiting: dict[int, set[tuple[int, Direction]]] = {}
    for one in frames:
        if one.state is State.UNREACHED:
            continue
        open_passes = {name for name in _needed(one.sources) if not known_at[(*name, one.frame)]}
        if open_passes:
            waiting[one.frame] = open_passes
        else:
            steps.append(FinishStep(one.frame))
    for one_pass in passes:
        for position, frame in enumerate(one_pass.frames):
            if known_at[(*one_pass.name, frame)]:
                continue
            steps.append(ComputeStep(one_pass, position))
            if frame in waiting:
                waiting[frame].discard(one_pass.name)
                if not waiting[frame]:
                    steps.append(FinishStep(frame))
    return tuple(steps)


def record_of(facts: Facts, frame: int, sources: Mapping[str, Source], address: str) -> FrameRecord:
    """What to keep about a frame that is finished now. Its plate hash must be known."""
    return FrameRecord(frame, address, dict(facts.base), _keys_used(facts, sources), facts.plate[frame])


def _keys_used(facts: Facts, sources: Mapping[str, Source]) -> dict[int, str]:
    """The keys that a frame depends on (rules 1, 3 and 5), with the hashes of their masks."""
    keys = {key.frame: key for key in facts.keys}
    used: set[int] = set()
    for source in sources.values():
        if source.key is not None:
            used.add(source.key)
        for key, direction in source.passes:
            used.add(key)
            used.update(_memory_keys(facts, keys, key, direction, keys[key].visible(facts.objects)))
    return {frame: keys[frame].hash for frame in sorted(used)}
