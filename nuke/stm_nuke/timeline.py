"""The curves of a node: frames with a matte, keyframes, and held frames.

The curves are knobs of the node, so that a script renders the same without the plug-in, and Nuke marks their
keys on its timeline. No file is checked during a render.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import nuke
from stm_nuke import knobs
from stm_nuke.frames import Range

NO_MATTE, MATTE, OLD_MATTE, KEYFRAME = range(4)


def states_of(
    frames: Range, fresh: Collection[int], old: Collection[int], keys: Collection[int]
) -> dict[int, int]:
    """The state of every frame of the range. A keyframe without a matte counts as no matte."""
    states = {}
    for frame in range(frames[0], frames[1] + 1):
        if frame in fresh:
            states[frame] = KEYFRAME if frame in keys else MATTE
        else:
            states[frame] = OLD_MATTE if frame in old else NO_MATTE
    return states


def curve_of(states: Mapping[int, int], marks: Collection[int]) -> str:
    """The states as a knob's script: a key where the state changes and at each mark; 0 outside."""
    first, last = min(states), max(states)
    steps = [f"x{first - 1} {NO_MATTE}"]
    before = NO_MATTE
    for frame in range(first, last + 1):
        if states[frame] != before or frame in marks:
            steps.append(f"x{frame} {states[frame]}")
        before = states[frame]
    return "{{curve K " + " ".join([*steps, f"x{last + 1} {NO_MATTE}"]) + "}}"


def held_curve_of(states: Mapping[int, int]) -> str:
    """For every frame, the frame whose matte is shown: its own, or the last one before it that has one."""
    steps = []
    held: int | None = None
    for frame in sorted(states):
        held = frame if states[frame] != NO_MATTE else held
        steps.append(f"x{frame} {frame if held is None else held}")
    return "{{curve K " + " ".join(steps) + "}}"


def show(
    group: nuke.Group, states: Mapping[int, int], marks: Collection[int], change: Callable[[str, str], None]
) -> None:
    """Set the curves of a node.

    Args:
        marks: frames with an additional key: keyframes, and the advised frame.
        change: sets a knob, by its name, to a script, without undo.
    """
    for name, script in ((knobs.TIMELINE, curve_of(states, marks)), (knobs.HELD, held_curve_of(states))):
        if group.knob(name) is not None and group[name].toScript() != script:
            change(name, script)


def marked_frames(group: nuke.Group) -> list[int]:
    """The frames that have a key on the node's timeline."""
    return [int(frame) for frame in group[knobs.TIMELINE].getKeyList()]
