"""A correction starts from the result: matte and paint become a keyframe; keys of a Roto become keyframes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_exr
from tests.nuke.comps import FRAMES, idle, make_mattes, pixels, read_node

BOX = (10, 12, 20, 22)
"""x, y (down), right, bottom: what is painted."""


@pytest.fixture
def alone(nuke: Any, comp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The comp on a machine without an engine, where keyframes are only stored."""
    for name in ("STM_ENGINE_PYTHON", "STM_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    comp.set("objects", "disc = rgba.alpha")
    return comp


def key_mask(node: Any, frame: int, name: str = "disc") -> Any:
    """The stored mask of a key."""
    from stm_nuke.keys import mask_path

    (key,) = (one for one in node.keys if one.frame == frame)
    found = pixels(mask_path(node.cache, key.digest))
    return found if found.ndim == 2 else found[..., 0]


def stroke(nuke: Any, frame: int, value: float, box: Any = BOX) -> Any:
    return nuke._roto.Stroke(frame, box, value)


def paint_in(paint: Any, *strokes: Any) -> None:
    paint["curves"].rootLayer.parts.extend(strokes)


def press(nuke: Any, node: Any, button: str, frame: int) -> None:
    """Press a button at a frame and wait for its end."""
    from stm_nuke import panel

    nuke.frame(frame)
    panel.press(node.group, button)


def inside(box: Any = BOX) -> Any:
    """The slice of a box in a picture of the comp, which has an overscan of 4."""
    whole = np.zeros((56, 72), bool)
    left, top, right, bottom = box
    whole[top + 4 : bottom + 4, left + 4 : right + 4] = True
    return whole


def test_the_matte_with_what_was_painted_and_erased_becomes_the_keyframe(
    nuke: Any, alone: Any, tmp_path: Path
) -> None:
    from stm_nuke import cache

    make_mattes(alone, FRAMES, 0.5)
    before = len(nuke.allNodes())
    press(nuke, alone, "correct", 1002)
    paint = alone.group.input(2)
    assert paint.Class() == "RotoPaint"
    assert len(nuke.allNodes()) == before + 3
    assert paint["output"].value() == "alpha"
    assert paint["premultiply"].value() == "none"
    assert paint["toolbar_lifetime_type"].value() == "single"
    erased = (30, 30, 40, 40)
    paint_in(paint, stroke(nuke, 1002, 1.0), stroke(nuke, 1002, 0.0, erased))
    press(nuke, alone, "set_key_from_fix", 1002)
    mask = key_mask(alone, 1002)
    assert mask.shape == (56, 72)
    assert (mask[inside()] == 1).all()
    assert (mask[inside(erased)] == 0).all()
    rest = ~(inside() | inside(erased)) & inside((0, 0, 64, 48))
    assert (mask[rest] == 0.5).all(), "everything else is the matte as it was, soft values and all"
    assert [key.fingerprint for key in alone.keys] == ["fix"]
    assert alone["key_list"].splitlines() == ["1002  from a fix", "1001-1003  no matte"]
    assert cache.fresh_mattes(alone.cache, "main", [1002]) == set()


def test_several_frames_are_corrected_in_one_paint_node_and_it_is_used_again(nuke: Any, alone: Any) -> None:
    make_mattes(alone, FRAMES, 0.25)
    press(nuke, alone, "correct", 1001)
    paint = alone.group.input(2)
    count = len(nuke.allNodes())
    press(nuke, alone, "correct", 1003)
    assert alone.group.input(2) is paint
    assert len(nuke.allNodes()) == count
    paint_in(paint, stroke(nuke, 1001, 1.0), stroke(nuke, 1003, 0.0))
    press(nuke, alone, "set_key_from_fix", 1001)
    press(nuke, alone, "set_key_from_fix", 1003)
    assert (key_mask(alone, 1001)[inside()] == 1).all()
    assert (key_mask(alone, 1003)[inside()] == 0).all(), "a stroke lives on its frame"
    nuke.undo()
    assert [key.frame for key in alone.keys] == [1001]


def test_the_picture_under_the_paint_stays_when_the_mattes_are_made_anew(nuke: Any, alone: Any) -> None:
    from stm_nuke import cache

    make_mattes(alone, FRAMES, 0.25)
    press(nuke, alone, "correct", 1002)
    cache.retire_mattes(alone.cache, "main", FRAMES, keep=False)
    press(nuke, alone, "set_key_from_fix", 1002)
    assert (key_mask(alone, 1002)[inside()] == 0.25).all()
    make_mattes(alone, FRAMES, 0.75)
    press(nuke, alone, "set_key_from_fix", 1002)
    assert (key_mask(alone, 1002)[inside()] == 0.25).all()
    press(nuke, alone, "correct", 1002)
    press(nuke, alone, "set_key_from_fix", 1002)
    assert (key_mask(alone, 1002)[inside()] == 0.25).all(), "there is no newer matte"
    make_mattes(alone, FRAMES, 0.75)
    press(nuke, alone, "correct", 1002)
    press(nuke, alone, "set_key_from_fix", 1002)
    assert (key_mask(alone, 1002)[inside()] == 0.75).all(), "asked for again, it is the newest matte"


def test_the_overlay_shows_the_paint_live_and_a_render_the_matte(
    nuke: Any, alone: Any, tmp_path: Path
) -> None:
    make_mattes(alone, FRAMES, 0.0)
    alone.show_timeline("main")
    press(nuke, alone, "correct", 1002)
    paint_in(alone.group.input(2), stroke(nuke, 1002, 1.0))
    alone.group["overlay"].setValue(True)
    nuke.GUI = True
    red = nuke._pixels.render(alone.group, 1002, "main").planes["rgba.red"]
    plate = nuke._pixels.render(alone.plate, 1002, "main").planes["rgba.red"]
    np.testing.assert_allclose(red[inside()], plate[inside()] * 0.5 + 0.5, rtol=1e-3)
    np.testing.assert_allclose(red[~inside()], plate[~inside()], rtol=1e-3)
    nuke._host.executing = True
    rendered = nuke._pixels.render(alone.group, 1002, "main").planes["rgba.red"]
    np.testing.assert_allclose(rendered, plate, rtol=1e-3)


def test_objects_are_painted_in_the_channels_in_which_the_mask_shows_them(nuke: Any, alone: Any) -> None:
    from stm_nuke import cache

    alone.set("objects", "hero = rgba.red\nchair = rgba.green")
    for frame in FRAMES:
        values = np.stack([np.full((48, 64), value, np.float32) for value in (0.75, 0.5, 0.25)], axis=-1)
        path = cache.matte_path(alone.cache, "main", frame)
        write_exr(path, values, channels=("A", "hero.A", "chair.A"))
    press(nuke, alone, "correct", 1001)
    paint = alone.group.input(2)
    assert paint["output"].value() == "rgba"
    press(nuke, alone, "set_key_from_fix", 1001)
    from stm_nuke.keys import mask_path

    found = pixels(mask_path(alone.cache, alone.keys[0].digest))
    assert found.shape == (56, 72, 2)
    assert (found[20, 20] == [0.25, 0.5]).all(), "chair, hero: channels are in alphabetical order"


@pytest.mark.parametrize("button", ["correct", "set_key_from_fix"])
def test_a_frame_that_cannot_be_corrected_is_refused_in_words(nuke: Any, alone: Any, button: str) -> None:
    nuke.GUI = True
    press(nuke, alone, button, 1002)
    (words,) = nuke._host.messages
    assert words.startswith("frame 1002: ")
    assert ("no matte to correct" in words) == (button == "correct")
    assert alone.keys == ()
    assert alone.group.input(2) is None


def test_a_saved_script_goes_on_with_a_correction(nuke: Any, alone: Any, tmp_path: Path) -> None:
    from stm_nuke.node import find_all

    make_mattes(alone, FRAMES, 0.5)
    press(nuke, alone, "correct", 1002)
    paint_in(alone.group.input(2), stroke(nuke, 1002, 1.0))
    nuke.scriptSave()
    nuke.scriptOpen(nuke.root().name())
    (found,) = find_all()
    press(nuke, found, "set_key_from_fix", 1002)
    assert (key_mask(found, 1002)[inside()] == 1).all()


def test_the_paint_follows_a_cache_that_moves(nuke: Any, alone: Any, tmp_path: Path) -> None:
    make_mattes(alone, FRAMES, 0.5)
    press(nuke, alone, "correct", 1002)
    alone.set("cache_place", "chosen folder")
    alone.set("cache_folder", (tmp_path / "fast").as_posix())
    alone.move_cache()
    read = nuke.toNode("STM1_matte")
    assert read["file"].value().startswith((tmp_path / "fast").as_posix())
    press(nuke, alone, "set_key_from_fix", 1002)
    assert (key_mask(alone, 1002)[inside()] == 0.5).all()


# ---- keys from a Roto


def roto(nuke: Any, node: Any, boxes: dict[int, Any], over: Any = None) -> Any:
    """A Roto with a shape, connected to the mask input through a Dot."""
    made = nuke.nodes.Roto()
    made["curves"].rootLayer.parts.append(nuke._roto.Layer([nuke._roto.Shape(boxes)]))
    made.setInput(0, over)
    dot = nuke.nodes.Dot()
    dot.setInput(0, made)
    node.group.setInput(1, dot)
    return made


def test_keys_from_roto_sets_a_keyframe_on_every_keyed_frame_after_a_list(nuke: Any, alone: Any) -> None:
    from stm_nuke import verbs

    boxes = {990: BOX, 1001: BOX, 1003: (0, 0, 8, 8), 1100: BOX}
    roto(nuke, alone, boxes, read_node(nuke, alone.plate["file"].value(), FRAMES))
    assert verbs.roto_frames(alone, "main") == [1001, 1003], "those in the range"
    nuke.GUI = True
    nuke._host.says_yes = False
    press(nuke, alone, "keys_from_roto", 1001)
    assert nuke._host.messages == ["Set 2 keyframes: 1001, 1003?"]
    assert alone.keys == ()
    nuke._host.says_yes = True
    press(nuke, alone, "keys_from_roto", 1001)
    assert [key.frame for key in alone.keys] == [1001, 1003]
    assert (key_mask(alone, 1003)[inside((0, 0, 8, 8))] == 1).all()
    nuke.undo()
    assert alone.keys == (), "one step of undo"


def test_this_span_is_on_both_sides_of_a_keyframe_that_was_just_corrected(alone: Any) -> None:
    from stm_nuke import verbs
    from stm_nuke.keys import Key

    alone.set("first", 1001)
    alone.set("last", 1100)
    alone.set_keys([Key("main", frame, "digest", "file") for frame in (1010, 1046, 1080, 1200)])
    found = {frame: verbs.span_around(alone, frame, "main") for frame in (1005, 1010, 1046, 1050, 1080, 1090)}
    assert found == {
        1005: (1001, 1010), 1010: (1001, 1046), 1046: (1010, 1080),
        1050: (1046, 1080), 1080: (1046, 1100), 1090: (1080, 1100),
    }  # fmt: skip


def test_keys_from_roto_says_on_which_frames_there_is_nothing(
    nuke: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import verbs

    roto(nuke, alone, {1001: BOX, 1002: (0, 0, 0, 0), 1003: BOX}, alone.plate)
    told: list[str] = []
    monkeypatch.setattr(verbs, "show_text", lambda node, words: told.append(words))
    verbs.keys_from_roto(alone, "main", [1001, 1002, 1003])
    assert told[0] == (
        "Keyframes 1001-1003 are set. On 1002: Its mask is empty: the object counts as not in the picture."
    )


def test_a_pasted_node_corrects_the_frames_of_its_own_paint_only(nuke: Any, alone: Any) -> None:
    from stm_nuke import verbs
    from stm_nuke.errors import KeyframeError
    from stm_nuke.node import find

    make_mattes(alone, FRAMES, 0.5)
    press(nuke, alone, "correct", 1001)
    for one in nuke.allNodes():
        one.setSelected(one.name() == "STM1")
    nuke.nodeCopy("%clipboard%")
    nuke.GUI = True
    nuke.nodePaste("%clipboard%")
    idle(nuke)
    copy = find("STM2")
    copy.group.setInput(0, alone.plate)
    assert copy.group.input(2) is None
    verbs.correct(copy, 1002, "main")
    assert copy.group.input(2) is not alone.group.input(2)
    with pytest.raises(KeyframeError, match=r"frame 1001: .*being corrected: 1002"):
        verbs.set_key_from_fix(copy, 1001, "main")


def test_the_keys_of_transforms_attributes_strokes_and_layers_count(nuke: Any, alone: Any) -> None:
    from stm_nuke import rotokeys

    made = roto(nuke, alone, {1001: BOX})
    layer = made["curves"].rootLayer.parts[0]
    layer.transform.times = [1002.0, 1002.5]
    layer.parts[0].transform.times = [1004.0]
    layer.parts.append(stroke(nuke, 1007, 1.0))
    layer.attributes.times["vis"] = [1010.0]
    layer.parts[0].attributes.times["opc"] = [1008.0, 1009.0]
    assert rotokeys.keyed_frames(made, "main") == [1001, 1002, 1004, 1007, 1008, 1009, 1010]


def test_too_many_keys_or_no_roto_are_refused_in_words(
    nuke: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import verbs
    from stm_nuke.errors import KeyframeError

    with pytest.raises(KeyframeError, match=r"There is no Roto above Read2"):
        verbs.roto_frames(alone, "main")
    roto(nuke, alone, dict.fromkeys(FRAMES, BOX))
    monkeypatch.setattr(verbs, "MOST_FROM_ROTO", 2)
    with pytest.raises(KeyframeError, match=r"Roto1 has keys on 3 frames, more than 2.*looks tracked"):
        verbs.roto_frames(alone, "main")


def test_a_roto_over_an_opaque_alpha_is_told(nuke: Any, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stm_nuke import verbs

    opaque = nuke.nodes.Expression()
    opaque["expr3"].setValue("r*0+1")
    opaque.setInput(0, alone.plate)
    roto(nuke, alone, {1001: BOX}, opaque)
    told: list[str] = []
    monkeypatch.setattr(verbs, "show_text", lambda node, words: told.append(words))
    verbs.set_key(alone, 1001, "main")
    assert "covers almost the whole picture" in told[0]
    roto(nuke, alone, {1001: BOX}, alone.plate)
    told.clear()
    verbs.set_key(alone, 1001, "main")
    assert told[0] == "Keyframe 1001 is set."


def test_a_roto_without_an_input_has_the_format_of_the_script_and_is_refused_in_words(
    nuke: Any, alone: Any
) -> None:
    from stm_nuke import verbs
    from stm_nuke.errors import KeyframeError

    roto(nuke, alone, {1001: BOX})
    with pytest.raises(KeyframeError, match=r"is 2048 x 1556, the plate is 64 x 48.*connect the plate"):
        verbs.set_key(alone, 1001, "main")
