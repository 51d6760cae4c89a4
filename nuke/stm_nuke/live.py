"""The live matte: from the engine by the OpenFX effect, instead of matte files.

The effect is in a group `live` inside the node, between `plate` and `guard`, and shows the node's shot store.
It is never saved, because a script with a class that the machine lacks is read with missing nodes, or not at
all. So it is removed before the script is saved, and put back afterwards and whenever a script is opened. In
a saved script the node fails, and its `guard` states what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import nuke
from stm_nuke import group, knobs

IDENTIFIER, MAJOR_VERSION = "org.stm-for-nuke.STM", 1
"""Identifier and version of the effect, as in ofx_bridge/source/version.h."""
EFFECT_CLASSES = (
    f"OFX{IDENTIFIER}_v{MAJOR_VERSION}",
    f"OFX{IDENTIFIER.replace('.', '_').replace('-', '_')}_v{MAJOR_VERSION}",
)
"""Nuke's class of the effect; the second name is for releases that do not accept dots and dashes."""
EFFECT_KNOBS = ("shotStore", "outputObject", "missingFrames", "revision")
NOT_HERE = "THE MATTE IS LIVE AND THE STM OPENFX EFFECT IS NOT HERE - install it or choose matte from files"
"""The error text of a render without the effect."""
NO_EFFECT = (
    "{name} takes its matte live, and the STM OpenFX effect is not here. Install it (install.py does, or put "
    "STM.ofx.bundle on the OpenFX path) and start Nuke again."
)
AFTER_SAVE = "In a script stm_nuke.callbacks.put_effects_in() puts it back after a save."
MANY_VIEWS = "{name} cannot take its matte live: the script has the views {views}, and the effect shows one."
LEFT_IN = "{name} takes its matte from files, and the STM OpenFX effect is still in it. Press Refresh status."
"""After an undo."""
INSTEAD = "Or choose 'files' under 'matte from'."
LIVE = "live"
_EFFECT, _CONFIDENCE = "effect", "confidence"
_CONFIDENCE_OUTPUT = 4
"""The number of the choice `Confidence` of the effect's `output`."""
_LAST_REVISION = 1 << 30


def is_wanted(parent: nuke.Group) -> bool:
    """Whether an STM node is set to a live matte."""
    knob = parent.knob(knobs.MATTE_FROM)
    return knob is not None and bool(knob.value() == knobs.LIVE)


def is_in(parent: nuke.Group) -> bool:
    """Whether the effect is in the node."""
    return parent.node(LIVE) is not None


def arrange(parent: nuke.Group, store: Path, objects: Sequence[str], has_confidence: bool) -> str:
    """Change the inside of an STM node according to its switch.

    Args:
        store: the shot store that the effect shows.
        objects: with more than one, each gets its own layer.
        has_confidence: the network's confidence in each pixel gets a layer too.

    Returns:
        Why that is impossible, for people; empty if it is done. Otherwise the node fails to render.
    """
    layered = list(objects) if len(objects) > 1 else []
    if not is_wanted(parent):
        take_out(parent)
        return ""
    views = list(nuke.views())
    if len(views) > 1:
        take_out(parent)
        return MANY_VIEWS.format(name=parent.fullName(), views=", ".join(views))
    if is_in(parent) and _shown(parent) != (store.as_posix(), layered, has_confidence):
        take_out(parent)
    if is_in(parent) or _put_in(parent, store.as_posix(), layered, has_confidence):
        return ""
    return NO_EFFECT.format(name=parent.fullName())


def problem_of(parent: nuke.Group, store: Path, objects: Sequence[str], has_confidence: bool) -> str:
    """Why the inside of an STM node does not match its switch, for people; nothing is changed."""
    layered = list(objects) if len(objects) > 1 else []
    views = list(nuke.views())
    if not is_wanted(parent):
        return LEFT_IN.format(name=parent.fullName()) if is_in(parent) else ""
    if len(views) > 1:
        return MANY_VIEWS.format(name=parent.fullName(), views=", ".join(views))
    if is_in(parent) and _shown(parent) == (store.as_posix(), layered, has_confidence):
        return ""
    words = NO_EFFECT if nuke.GUI else f"{NO_EFFECT} {AFTER_SAVE}"
    return words.format(name=parent.fullName())


def take_out(parent: nuke.Group) -> None:
    """Remove the effect, if it is there; the matte is read from files again."""
    found = parent.node(LIVE)
    if found is None:
        return
    with group.unnoticed(parent):
        group.inner(parent, group.GUARD).setInput(0, group.inner(parent, group.MATTE_READ))
        if is_wanted(parent):
            group.forbid(parent, NOT_HERE)
        nuke.delete(found)


def look_again(parent: nuke.Group) -> None:
    """Make Nuke render the effect again."""
    with group.unnoticed(parent):
        for effect in _effects(parent):
            knob = effect["revision"]
            knob.setValue((int(knob.value()) + 1) % _LAST_REVISION)


def _effects(parent: nuke.Group) -> list[nuke.Node]:
    """The effects in a node: for all objects together, for each that has a layer, for the confidence."""
    live = parent.node(LIVE)
    if live is None:
        return []
    found = [one for one in cast(nuke.Group, live).nodes() if one.Class() in EFFECT_CLASSES]
    return sorted(found, key=lambda one: (len(one.name()), one.name()))


def _shown(parent: nuke.Group) -> tuple[str, list[str], bool]:
    """The store that the effects of a node show, their objects, and whether one shows the confidence."""
    effects = _effects(parent)
    stores = {str(one["shotStore"].value() or "") for one in effects}
    mattes = [one for one in effects if one.name() != _CONFIDENCE]
    objects = [str(one["outputObject"].value() or "") for one in mattes[1:]]
    return "".join(stores), objects, len(mattes) < len(effects)


def _put_in(parent: nuke.Group, store: str, layered: Sequence[str], has_confidence: bool) -> bool:
    """Build the group `live`; returns False if Nuke has no effect."""
    with group.unnoticed(parent):
        live = nuke.nodes.Group()
        live.setName(LIVE)
        live.begin()
        try:
            is_whole = _build(store, layered, has_confidence)
        finally:
            live.end()
        if not is_whole:
            nuke.delete(live)
            return False
        live.setInput(0, group.inner(parent, group.PLATE_INPUT))
        group.inner(parent, group.GUARD).setInput(0, live)
        group.point_to(parent, "", int(parent[knobs.FIRST].value()), int(parent[knobs.LAST].value()))
    return True


def _build(store: str, layered: Sequence[str], has_confidence: bool) -> bool:
    plate = group.make("Input", "plate", [], 0, 0)
    last = effect = _make_effect(_EFFECT, plate, store, "", 0)
    if effect is None or last is None:
        return False
    shown = [(f"{_EFFECT}_{number}", name, f"{name}.alpha") for number, name in enumerate(layered, 1)]
    if has_confidence:
        shown.append((_CONFIDENCE, "", group.CONFIDENCE_CHANNEL))
    for number, (effect_name, name, channel) in enumerate(shown, 1):
        nuke.Layer(channel.partition(".")[0], [channel])
        one = _make_effect(effect_name, plate, store, name, number)
        if one is None or (effect_name == _CONFIDENCE and not _puts_out_confidence(one)):
            return False
        last = group.make("Copy", f"copy_{number}", [last, one], 0, number + 1)
        last["from0"].setValue("rgba.alpha")
        last["to0"].setValue(channel)
    # Without the effect (nodes pasted on another machine) this expression, and so the node, fails.
    guard = group.make("Switch", "effect_is_here", [last, last], 0, len(shown) + 2)
    guard["which"].setExpression(f"{_EFFECT}.missingFrames")
    group.make("Output", "Output1", [guard], 0, len(shown) + 3)
    return True


def _puts_out_confidence(effect: nuke.Node) -> bool:
    """Let an effect put out the confidence; False where it is an older one, which cannot."""
    knob = effect.knob("output")
    if knob is None:
        return False
    knob.setValue(_CONFIDENCE_OUTPUT)
    return str(knob.value()) == "Confidence"


def _make_effect(name: str, plate: nuke.Node, store: str, shown: str, column: int) -> nuke.Node | None:
    """Make an effect in the current group; None where Nuke has none, or another one."""
    for class_name in EFFECT_CLASSES:
        try:
            node = group.make(class_name, name, [plate], 150 * column, 1)
        except RuntimeError:  # Nuke has no such class
            continue
        if all(node.knob(knob) is not None for knob in EFFECT_KNOBS):
            node["shotStore"].setValue(store)
            node["outputObject"].setValue(shown)
            if node.knob("missingInWindow") is not None:
                node["missingInWindow"].setValue(0)  # here a stale frame is an error in the viewer too
            return node
        nuke.delete(node)
    return None
