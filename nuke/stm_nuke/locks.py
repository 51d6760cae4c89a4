"""What the configuration of a site or a show says of a node's settings: its defaults, and what it locks.

The engine knows it (`info`). A locked knob shows the locked value, is grey, and says why in its tooltip. A
node that makes its first shot takes the configuration's value for every knob that nobody has touched.

No `nuke` in what a task calls: `taken`. The rest is for Nuke's main thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stm_nuke import knobs

if TYPE_CHECKING:
    from stm_nuke.node import StmNode

_KNOBS: dict[str, tuple[str, ...]] = {
    "memory_rule": (knobs.MEMORY_RULE, knobs.MEMORY_STEP),
    "memory_cap": (knobs.MEMORY_CAP,),
    "working_size": (knobs.WORKING_SIZE,),
    "region": (knobs.USE_REGION, knobs.REGION),
    "colour_space": (knobs.COLOUR_SPACE,),
    "ocio_config": (knobs.OCIO_CONFIG,),
    "device": (knobs.DEVICE,),
    "weights": (knobs.WEIGHTS,),
    "confidence": (knobs.CONFIDENCE,),
    "foreground": (knobs.FOREGROUND,),
    "finish.edges": (knobs.EDGES,),
    "finish.width": (knobs.EDGE_WIDTH,),
}
"""The knobs of each setting of the engine."""

_NEW_NODE: dict[str, Any] = {
    "memory_rule": "every:5",
    "memory_cap": 20,
    "working_size": 480,
    "device": "auto",
    "weights": "stm-lite",
    "foreground": False,
    "finish.edges": knobs.LEARNED,
    "finish.width": 1.0,
}
"""What the knobs of a new node say: a value that is still this one was chosen by nobody."""

_SAME_VALUE = frozenset(
    ("memory_cap", "working_size", "weights", "confidence", "foreground", "finish.edges", "finish.width")
)
"""Settings whose knob has the engine's own value."""

_MARK = "Locked. "


@dataclass(frozen=True)
class Taken:
    """Settings of a node that the configuration gives.

    Attributes:
        values: by the engine's names.
        why: for those that are locked, the reason in a sentence.
    """

    values: Mapping[str, Any]
    why: Mapping[str, str]


def taken(settings: Mapping[str, Any], described: Mapping[str, Mapping[str, Any]], is_new: bool) -> Taken:
    """What the configuration gives in the place of a node's own settings.

    Args:
        settings: the node's, by the engine's names.
        described: the settings as `info` describes them.
        is_new: the shot is about to be made.
    """
    values, why = {}, {}
    for name, value in settings.items():
        about = described.get(name, {})
        reason = about.get("locked")
        if reason:
            values[name], why[name] = about["default"], str(reason)
        elif is_new and _NEW_NODE.get(name) == value and about.get("default", value) != value:
            values[name] = about["default"]
    return Taken(values, why)


def show(node: StmNode, found: Taken) -> None:
    """Let the panel show what the configuration gives, and grey what is locked."""
    for name, names in _KNOBS.items():
        if name in found.values:
            _set_value(node, name, found.values[name])
        for knob_name in names:
            knob = node.group[knob_name]
            tip = str(knob.tooltip() or "")
            was_locked = tip.startswith(_MARK)
            if was_locked:
                tip = tip.partition("\n")[2]
            if name in found.why:
                knob.setTooltip(f"{_MARK}{found.why[name]}\n{tip}")
                knob.setEnabled(False)
            elif was_locked:
                knob.setTooltip(tip)
                knob.setEnabled(True)


def _set_value(node: StmNode, name: str, value: Any) -> None:
    """Show a value where its knob has the engine's own form; the others stay, grey."""
    if name == "memory_rule":
        words = {rule: shown for shown, rule in knobs.RULES.items()}
        node.set(knobs.MEMORY_RULE, words.get(value, knobs.EVERY))
        if value not in words:
            node.set(knobs.MEMORY_STEP, int(str(value).partition(":")[2]))
    elif name == "device":
        if value in ("auto", "cuda", "mps", "cpu"):
            node.set(knobs.DEVICE, value)
    elif name in _SAME_VALUE:
        node.set(_KNOBS[name][0], value)
    elif name == "ocio_config":
        node.set(knobs.OCIO_CONFIG, value or "")
