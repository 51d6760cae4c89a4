"""Every knob of the STM node: its name, its label, its default and its purpose.

These knobs hold the node's whole state, so that undo, copy-paste, save and script merging include it.
"""

from __future__ import annotations

from collections.abc import Iterator

import nuke

NODE_ID = "stm_id"
"""The id of the node, which owns its cache. Ids are unique."""
HOME = "stm_home"
"""The script that owns the cache; another script with the same id gets a separate cache."""
KEYS = "stm_keys"
VERSION = "stm_version"
"""The release that made the node's knobs and its inside."""
NEWEST_VERSION = "3"
CANVAS = "stm_canvas"
"""x y width height (y down): holds the data window of every plate frame seen so far."""
PLATE_FINGERPRINT = "stm_plate_print"
"""Fingerprint of the graph above the plate input when its pixels were last read."""

STATUS = "status"
KEY_LIST = "key_list"
OBJECTS = "objects"
FIRST, LAST = "first", "last"
OVERLAY = "overlay"
CONFIDENCE = "confidence"
FOREGROUND = "foreground"
EDGES, EDGE_WIDTH = "edges", "edge_width"
COMPARE = "compare"
TIMELINE = "timeline"
"""A curve: 0 where there is no matte, 1 where there is one, 2 where an old one was kept, 3 on a keyframe."""
FIXING = "stm_fixing"
"""A curve: 1 on the frames that are being corrected."""
HELD = "stm_held"
"""A curve: the frame whose matte is shown where mattes are held."""
MISSING = "missing_matte"
MATTE_FROM = "matte_from"
STRICT = "strict_render"
CHANNEL = "channel"
MEMORY_RULE, MEMORY_STEP, MEMORY_CAP = "memory_rule", "memory_step", "memory_cap"
WORKING_SIZE = "working_size"
USE_REGION, REGION = "use_region", "region"
COLOUR_SPACE, OCIO_CONFIG = "colour_space", "ocio_config"
DEVICE, WEIGHTS, WEIGHTS_INFO = "device", "weights", "weights_info"
CACHE_PLACE, CACHE_FOLDER, CACHE_PATH = "cache_place", "cache_folder", "cache_path"

NEW, OLD = "new", "old"
LEARNED, GUIDED, OFF = "learned", "guided", "off"
FAIL, HOLD_LAST, OLD_MATTE = "fail", "hold the last matte", "take the old matte"
FILES, LIVE = "files", "live (OFX)"
NEXT_TO_SCRIPT, CHOSEN_FOLDER = "next to the script", "chosen folder"
EVERY = "first, previous and every Nth"
RULES = {"first": "first", "previous": "previous", "first and previous": "first+previous"}
"""The engine's names of the memory rules without a number, by their names in the panel."""
SCRIPT_COLOUR = "script"
DEFAULT_OBJECTS = "matte = rgba.alpha"
LATER = {
    CONFIDENCE: False,
    FOREGROUND: False,
    EDGES: LEARNED,
    EDGE_WIDTH: 1.0,
    COMPARE: NEW,
    MISSING: FAIL,
}
"""Values where a node of an older release, which nobody has used yet, has no such knob."""

_BUTTON = """\
try:
    import stm_nuke.panel
except ImportError:
    nuke.message("STM for Nuke is not installed on this machine. The matte still renders from its files.")
else:
    stm_nuke.panel.press(nuke.thisNode(), "{verb}")
"""


def is_stm_node(node: nuke.Node) -> bool:
    """Whether it is an STM group."""
    return node.Class() == "Group" and node.knob(NODE_ID) is not None


def all_knobs() -> Iterator[nuke.Knob]:
    """New knobs for a new node, in the panel's order.

    The output channel is a link and is added with the graph.
    """
    yield nuke.Tab_Knob("stm_tab", "STM")
    yield quiet(
        nuke.Text_Knob(STATUS, "status", "No key yet. Connect plate and mask, go to a frame, Set key.")
    )
    yield from _keyframe_knobs()
    yield from _propagation_knobs()
    yield from _look_knobs()
    yield from _settings_knobs()
    yield from _cache_knobs()
    yield from _hidden_knobs()


def _keyframe_knobs() -> Iterator[nuke.Knob]:
    """Setting, correcting and finding keyframes."""
    yield _section("keyframes")
    yield _button(
        "set_key",
        "Set key",
        "Take the mask at the current frame as a keyframe. "
        "A new key adds two passes to those of the other keys, and the frames around it are fused again.",
        new_line=True,
    )
    yield _button("delete_key", "Delete key", "Forget the keyframe at the current frame.")
    yield _button("previous_key", "< Key", "Go to the keyframe before the current frame.")
    yield _button("next_key", "Key >", "Go to the keyframe after the current frame.")
    yield _button(
        "go_to_advised", "Go to advised frame", "Go to the frame where a further keyframe helps most."
    )
    yield quiet(nuke.Text_Knob(KEY_LIST, "keyframes", "none"))
    yield _button(
        "update_keys",
        "Update changed keys",
        "Render the mask input on every keyframe again, and update masks that differ.",
        new_line=True,
    )
    yield _button(
        "correct",
        "Correct this frame",
        "Put the matte of this frame under a RotoPaint beside the node, to paint or erase what is wrong.",
        new_line=True,
    )
    yield _button("set_key_from_fix", "Set key from fix", "Take matte and paint at this frame as a keyframe.")
    yield _button(
        "keys_from_roto", "Keys from roto", "Set a keyframe on every frame on which the Roto above has a key."
    )
    yield _tip(
        _text(OBJECTS, "objects", DEFAULT_OBJECTS, multiline=True),
        "One object a line: NAME = CHANNEL of the mask input. Several objects get a layer each.",
    )


def _propagation_knobs() -> Iterator[nuke.Knob]:
    """Knobs for computing."""
    yield _section("propagate")
    yield _button("backward", "< Backward", "From the current frame to the first.", new_line=True)
    yield _button("both", "Both ways", "The whole range, from both sides of every keyframe.")
    yield _button("forward", "Forward >", "From the current frame to the last.")
    yield _button("span", "This span", "Only from the keyframe before the current frame to the one after it.")
    yield _button("stop", "Stop", "Stop within the time of one frame. What is finished is kept.")
    yield _button(
        "refresh", "Refresh status", "Ask the engine what is done, stale and missing.", new_line=True
    )
    yield _button(
        "check_plate",
        "Check plate",
        "Render the plate again and compare by content; changed frames become stale.",
    )
    yield _button(
        "shapes",
        "Shapes from matte",
        "Make a Roto node of the mattes: splines to edit. All frames of the range must be done.",
    )
    yield _button(
        "farm_bundle",
        "Farm bundle",
        "Write a job bundle (Open Job Description) of the whole shot for a render farm, into the cache.",
    )
    yield _integer(FIRST, "range", 0, "First frame of the shot.")
    yield _same_line(_integer(LAST, "to", 0, "Last frame of the shot."))
    yield _button("range_from_input", "From input", "Take the frame range of the plate input.")


def _look_knobs() -> Iterator[nuke.Knob]:
    """Knobs for viewing and rendering."""
    yield _section("look")
    yield _timeline()
    yield _switch(
        OVERLAY, "overlay", False, "Show the matte as a red tint. Rendering is refused while it is on."
    )
    yield _menu(
        COMPARE,
        "look at mattes",
        [NEW, OLD],
        "Old: what the mattes were before the last change, to compare. Rendering is refused meanwhile.",
    )
    yield _switch(
        CONFIDENCE,
        "confidence",
        False,
        "A layer stm.confidence in the output: the network's confidence in each pixel.",
    )
    yield _switch(
        FOREGROUND,
        "foreground colours",
        False,
        "A layer fg in the output: the plate's colours without the background, not premultiplied.",
    )
    yield _menu(
        EDGES,
        "edges",
        [LEARNED, GUIDED, OFF],
        "Learned: soft where the plate is soft. Guided: they follow the plate's colours. Off: enlarged only.",
    )
    yield _number(EDGE_WIDTH, "narrower - wider", 1.0, "Of learned edges, from 0.25 to 4: 1 is unchanged.")
    yield _menu(
        MISSING,
        "without a matte",
        [FAIL, HOLD_LAST, OLD_MATTE],
        "What a render does on a frame without a matte. Fail: it ends there. Hold the last matte: that of a "
        "frame before is taken. Take the old matte: one that is out of date stays until there is a new one. "
        "The window shows the plate with a note.",
    )
    yield _menu(
        MATTE_FROM,
        "matte from",
        [FILES, LIVE],
        "Files: renders everywhere. Live: straight from the engine, by the STM OpenFX effect, without files.",
    )


def _settings_knobs() -> Iterator[nuke.Knob]:
    """Settings of the computation."""
    yield nuke.Tab_Knob("stm_settings", "Settings")
    yield _menu(
        MEMORY_RULE,
        "memory rule",
        [EVERY, *RULES],
        "Which earlier frames are kept in memory. The first choice is the best.",
    )
    yield _integer(MEMORY_STEP, "N", 5, "The interval of frames kept in memory.")
    yield _integer(MEMORY_CAP, "memory cap", 20, "The most frames in memory, beside the keyframes.")
    yield _integer(WORKING_SIZE, "working size", 480, "Short side of the working picture in pixels.")
    yield _switch(USE_REGION, "use region", False, "Use a part of the picture only: small objects get finer.")
    yield _tip(nuke.BBox_Knob(REGION, "region"), "The part of the picture to use.")
    yield _tip(
        _text(COLOUR_SPACE, "colour space", SCRIPT_COLOUR),
        "Colour space of the plate input. 'script': the working space of this script.",
    )
    yield _tip(nuke.File_Knob(OCIO_CONFIG, "OCIO config"), "Empty: the script's, or $OCIO.")
    yield _menu(DEVICE, "device", ["auto", "cuda", "mps", "cpu"], "Where the network runs.")
    yield _tip(_text(WEIGHTS, "weights", "stm-lite"), "Name of shipped weights, or a .safetensors file.")
    yield quiet(nuke.Text_Knob(WEIGHTS_INFO, "", " "))
    yield _switch(
        STRICT,
        "refuse a changed plate",
        True,
        "Refuse to render when nodes above the plate have changed since.",
    )


def _cache_knobs() -> Iterator[nuke.Knob]:
    """Knobs of the cache."""
    yield _section("cache")
    yield _menu(
        CACHE_PLACE, "cache is", [NEXT_TO_SCRIPT, CHOSEN_FOLDER], "Where keyframes and mattes are kept."
    )
    yield _tip(  # no File_Knob: farms would send the files that it names
        _text(CACHE_FOLDER, "chosen folder", ""), "Used where the cache is in a chosen folder."
    )
    yield _read_only(_text(CACHE_PATH, "this node's cache", ""))
    yield _button("move_cache", "Move cache there", "Move this node to a cache at the place chosen above.")


def _hidden_knobs() -> Iterator[nuke.Knob]:
    """Hidden knobs with the node's state."""
    yield quiet(_hidden(nuke.Double_Knob(HELD, HELD)))
    yield _hidden(nuke.Double_Knob(FIXING, FIXING))
    yield _hidden(_text(VERSION, VERSION, NEWEST_VERSION))
    for name in (NODE_ID, HOME, KEYS, CANVAS, PLATE_FINGERPRINT):
        yield _hidden(_text(name, name, ""))


def quiet(knob: nuke.Knob) -> nuke.Knob:
    """Mark a knob that the artist does not change: its changes cannot be undone."""
    knob.setFlag(nuke.NO_UNDO)
    return knob


def _section(title: str) -> nuke.Knob:
    return nuke.Text_Knob(f"about_{title}", title)


def _button(verb: str, label: str, tip: str, new_line: bool = False) -> nuke.Knob:
    knob = nuke.PyScript_Knob(verb, label, _BUTTON.format(verb=verb))
    if new_line:
        knob.setFlag(nuke.STARTLINE)
    return _tip(knob, tip)


def _text(name: str, label: str, value: str, multiline: bool = False) -> nuke.Knob:
    knob: nuke.Knob
    knob = nuke.Multiline_Eval_String_Knob(name, label) if multiline else nuke.String_Knob(name, label)
    knob.setValue(value)
    return knob


def _integer(name: str, label: str, value: int, tip: str) -> nuke.Knob:
    knob = nuke.Int_Knob(name, label)
    knob.setValue(value)
    knob.setFlag(nuke.NO_ANIMATION)
    return _tip(knob, tip)


def _number(name: str, label: str, value: float, tip: str) -> nuke.Knob:
    knob = nuke.Double_Knob(name, label)
    knob.setValue(value)
    knob.setFlag(nuke.NO_ANIMATION)
    return _tip(knob, tip)


def _switch(name: str, label: str, value: bool, tip: str) -> nuke.Knob:
    knob = nuke.Boolean_Knob(name, label)
    knob.setValue(value)
    knob.setFlag(nuke.NO_ANIMATION)
    knob.setFlag(nuke.STARTLINE)
    return _tip(knob, tip)


def _timeline() -> nuke.Knob:
    knob = nuke.Double_Knob(TIMELINE, "timeline")
    knob.setEnabled(False)
    return quiet(
        _tip(
            knob,
            "Its keys mark keyframes, the frame that is advised, and where mattes begin and end: 0 no matte, "
            "1 matte, 2 old matte, 3 keyframe.",
        )
    )


def _menu(name: str, label: str, choices: list[str], tip: str) -> nuke.Knob:
    return _tip(nuke.Enumeration_Knob(name, label, choices), tip)


def _tip(knob: nuke.Knob, tip: str) -> nuke.Knob:
    knob.setTooltip(tip)
    return knob


def _same_line(knob: nuke.Knob) -> nuke.Knob:
    knob.clearFlag(nuke.STARTLINE)
    return knob


def _read_only(knob: nuke.Knob) -> nuke.Knob:
    knob.setEnabled(False)
    return knob


def _hidden(knob: nuke.Knob) -> nuke.Knob:
    knob.setFlag(nuke.INVISIBLE)
    return knob
