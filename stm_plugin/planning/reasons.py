"""The state of a frame, and why it has to be computed again, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stm_plugin.planning.values import Facts, FramePlan, FrameRecord, Source, State

NEW_KEY = "A new key adds two passes to those of the other keys, and the frames around it are fused again."
"""What a key does, in the words that documents and panels use."""
_SETTINGS_OF = {
    "memory settings": ("memory_rule", "memory_cap"),
    "picture settings": ("precision", "working_size", "region"),
}
"""What stands in a base by a hash alone."""
_ID_LENGTH = 12


def frame_plan(
    facts: Facts,
    frame: int,
    sources: Mapping[str, Source],
    address: str | None,
    ready: bool,
    reached: bool,
    history: Mapping[int, FrameRecord],
) -> FramePlan:
    """The plan of one frame.

    Args:
        address: of its fused probabilities, where it is known.
        ready: every pass that it needs is in the store.
        reached: a pass in the requested directions reaches it, or none is needed.
        history: what each frame was last finished from.
    """
    if not reached:
        return FramePlan(frame, sources, None, State.UNREACHED, "no key reaches that far in this direction")
    before = history.get(frame)
    is_key = all(source.key is not None for source in sources.values())
    if is_key and (before is None or before.address == address):
        return FramePlan(frame, sources, address, State.KEY, ready=True)
    if ready and not is_key and address is not None and (before is None or before.address == address):
        return FramePlan(frame, sources, address, State.DONE, ready=True)
    if before is None:
        return FramePlan(frame, sources, address, State.MISSING, "not computed yet", ready)
    why = _reason(facts, frame, sources, before, history)
    return FramePlan(frame, sources, address, State.STALE, why, ready and not is_key)


def _reason(
    facts: Facts,
    frame: int,
    sources: Mapping[str, Source],
    before: FrameRecord,
    history: Mapping[int, FrameRecord],
) -> str:
    """The ingredients that changed since the frame was finished, in words."""
    used = keys_used(facts, sources)
    if dict(facts.base) != dict(before.base):
        return _what_changed(facts, before)
    now = {key.frame: key.hash for key in facts.keys}
    changed = [key for key in used if key in before.keys and before.keys[key] != used[key]]
    added = [key for key in used if key not in before.keys]
    removed = [key for key in before.keys if key not in now]
    for keys, one, several in (
        (changed, "changed", "changed"),
        (removed, "was removed", "were removed"),
        (added, "was added", "were added"),
    ):
        if len(keys) == 1:
            return f"the mask on {keys[0]} {one}"
        if keys:
            return f"the masks on {_list(keys)} {several}"
    if set(before.keys) != set(used):
        return "it is made from other keys than before"
    path = _path(facts, frame, used)
    plates = [one for one in path if one in history and history[one].plate != facts.plate.get(one)]
    changed = [one for one in plates if one in facts.plate]
    if changed:
        return f"the plate changed on {_list(changed)}"
    if plates:  # pixels are compared when it is read again
        return f"the plate was touched on {_list(plates)}, and was not read again yet"
    return "a result that it depends on is missing or has changed"


def _what_changed(facts: Facts, before: FrameRecord) -> str:
    """The settings that changed, with their old and new values; else the name of what they make."""
    changed = [
        (name, before.settings[name], now)
        for name, now in facts.settings.items()
        if before.settings.get(name, now) != now
    ]
    if len(changed) == 1:
        name, old, now = changed[0]
        return f"the setting {name} changed from {old} to {now}"
    if changed:
        shown = ", ".join(f"{name} from {old} to {now}" for name, old, now in changed)
        return f"the settings changed: {shown}"
    name = next(name for name in sorted({*facts.base, *before.base}) if _differs(name, facts, before))
    return _part(name, before.base.get(name), facts.base.get(name), known=bool(before.settings))


def _differs(name: str, facts: Facts, before: FrameRecord) -> bool:
    return facts.base.get(name) != before.base.get(name)


def _part(name: str, before: str | None, now: str | None, *, known: bool) -> str:
    """What changed though no setting that is known did: the settings of earlier versions are not known.

    Canvas, region and working size are one ingredient ("CANVAS region REGION as WxH").
    """
    if name == "canvas" and before is not None and now is not None:
        old, new = (re.split(" region | as ", text) for text in (before, now))
        if len(old) != 3 or len(new) != 3 or old[0] != new[0]:
            return f"the canvas changed from {old[0]} to {new[0]}"
        if old[1] != new[1]:
            return f"the region changed from {old[1]} to {new[1]}"
        return f"the working size changed from {old[2]} to {new[2]}"
    if name in _SETTINGS_OF:
        if known:
            return f"this version of STM makes another use of the {name}"
        return f"one of the {name} changed ({', '.join(_SETTINGS_OF[name])})"
    if name == "weights" and before is not None and now is not None:
        return f"the weights changed from {before[:_ID_LENGTH]} to {now[:_ID_LENGTH]}"
    return f"the {name} changed"


def keys_used(facts: Facts, sources: Mapping[str, Source]) -> dict[int, str]:
    """The keys that a frame depends on, with the hashes of their masks."""
    keys = {key.frame: key for key in facts.keys}
    used = {frame for source in sources.values() for frame in source.keys}
    return {frame: keys[frame].hash for frame in sorted(used)}


def _path(facts: Facts, frame: int, keys: Mapping[int, str]) -> list[int]:
    first, last = min([frame, *keys]), max([frame, *keys])
    return [one for one in facts.frames if first <= one <= last]


def _list(frames: list[int]) -> str:
    shown = ", ".join(str(one) for one in frames[:4])
    return f"{shown} and {len(frames) - 4} more" if len(frames) > 4 else shown
