"""An artist's work in a window: copies, undo, several objects, old mattes, closing during a run.

The host behaves as Natron's sources say (`HostOptions`, `OfxHost.render_clone`, `Effect.undo`): masks of
which one channel is handed out, copies that look like loads, renders in second instances, steps that are
joined.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.hosts.ofx_fixtures import (
    FIRST,
    HEIGHT,
    LAST,
    REPOSITORY,
    WIDTH,
    EngineHome,
    Rig,
    disc,
    make_rig,
    overlap,
    picture,
)
from tests.hosts.ofx_host import (
    ALPHA,
    FAILED,
    FILTER,
    OK,
    RGB,
    RGBA,
    Clip,
    Effect,
    FloatArray,
    HostOptions,
    OfxHost,
    nodes_of,
)
from tests.hosts.ofx_scripted_engine import BusyEngine, ScriptedEngine

Scripted = Callable[..., ScriptedEngine]
FRAMES = range(FIRST, LAST + 1)
OLD_MATTE, FAIL, NEAREST, PLATE = 2, 0, 1, 3
BORDER = 3
STRIPE = np.array([1.0, 0.6, 0.0, 1.0], np.float32)


@pytest.fixture
def natron(effect_binary: Path) -> OfxHost:
    """A host that behaves like Natron."""
    return OfxHost(effect_binary, HostOptions(one_channel_of_masks=True, fills_alpha=True))


def keyed(host: OfxHost) -> Rig:
    """A node with a key on the first frame."""
    rig = make_rig(host)
    assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
    return rig


def alpha_of(node: Effect, frame: int, **options: object) -> FloatArray:
    """The rendered matte, (h, w)."""
    status, image = node.render(frame, **options)  # type: ignore[arg-type]
    assert status == OK, node.persistent
    return image.picture()[..., -1]


def inner(picture: FloatArray) -> FloatArray:
    """The picture inside the border that marks an old frame."""
    return picture[BORDER:-BORDER, BORDER:-BORDER]


def store_of(engine: EngineHome, node: Effect) -> Path:
    """The folder of a node's own store."""
    shot = json.loads(node.value("state"))["shot"]
    return engine.home / ".local" / "share" / "stm-for-nuke" / "shots" / f"ofx-{shot}.stmshot"


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    return {
        str(one): one.read_bytes() for one in sorted(store.rglob("*")) if one.is_file() and one.name != "LOCK"
    }


def pasted(rig: Rig, source: Clip | None = None, mask: Clip | None = None) -> Effect:
    """A copy of the node: it is made with the saved values, as in a loaded project."""
    return rig.host.create({"Source": source or rig.source, "Mask": mask or rig.mask}, saved=rig.node.saved())


# ---- copies


def test_a_copy_shows_the_originals_mattes_and_touches_nothing_of_its_store(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    assert rig.node.press("propagateForward", FIRST) == OK
    before = contents(store_of(engine, rig.node))
    expected = [alpha_of(rig.node, frame) for frame in FRAMES]
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        for frame in FRAMES:
            np.testing.assert_array_equal(alpha_of(copy, frame, in_order=True), expected[frame - FIRST])
        assert contents(store_of(engine, rig.node)) == before


def test_a_copy_on_another_plate_never_pushes_into_the_originals_store(
    host: OfxHost, engine: EngineHome
) -> None:
    """The copy's range is longer and its pixels differ. Neither may reach the store of the original."""
    rig = keyed(host)
    assert rig.node.press("propagateForward", FIRST) == OK
    before = contents(store_of(engine, rig.node))
    longer = Clip(
        lambda frame: picture(frame) * np.float32(0.5), frames=(FIRST, LAST + 5), size=(WIDTH, HEIGHT)
    )
    copy = pasted(rig, source=longer)
    with nodes_of(host, rig.node, copy):
        assert copy.render(FIRST + 1, in_order=True)[0] != OK
        assert copy.persistent is not None and "copy" in copy.persistent
        assert copy.render(LAST + 2, in_order=True)[0] != OK
        assert contents(store_of(engine, rig.node)) == before


@pytest.mark.parametrize("button", ["setKey", "deleteKey", "propagateBoth"])
def test_a_copy_forks_before_anything_is_changed(host: OfxHost, engine: EngineHome, button: str) -> None:
    rig = keyed(host)
    assert rig.node.press("propagateForward", FIRST) == OK
    before = contents(store_of(engine, rig.node))
    other = Clip(
        lambda frame: picture(frame) * np.float32(0.5), frames=(FIRST, LAST + 2), size=(WIDTH, HEIGHT)
    )
    copy = pasted(rig, source=other)
    with nodes_of(host, rig.node, copy):
        assert copy.press(button, FIRST) == OK, copy.persistent
        assert copy.value("state") != rig.node.value("state")
        assert contents(store_of(engine, rig.node)) == before
        if button != "deleteKey":
            np.testing.assert_array_equal(alpha_of(copy, FIRST), disc(FIRST)[..., 0])
        for frame in FRAMES:
            alpha_of(rig.node, frame)


def test_a_fork_begins_with_what_the_original_has_computed(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    assert rig.node.press("propagateForward", FIRST) == OK
    before = contents(store_of(engine, rig.node))
    expected = [alpha_of(rig.node, frame) for frame in FRAMES]
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        assert copy.press("propagateForward", FIRST) == OK, copy.persistent
        original, fork = store_of(engine, rig.node), store_of(engine, copy)
        results = {one.relative_to(original): one.stat().st_ino for one in original.rglob("*.prob")}
        assert results and original != fork
        assert {one.relative_to(fork): one.stat().st_ino for one in fork.rglob("*.prob")} == results
        assert copy.press("setKey", LAST) == OK, copy.persistent
        assert copy.press("propagateForward", FIRST) == OK, copy.persistent
        assert contents(original) == before
        for frame in FRAMES:
            np.testing.assert_array_equal(alpha_of(rig.node, frame), expected[frame - FIRST])


def test_a_copy_that_was_not_edited_follows_the_original(host: OfxHost, engine: EngineHome) -> None:
    """Like the node below a paint node whose result becomes a key of the original."""
    rig = keyed(host)
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        assert rig.node.press("setKey", LAST) == OK
        np.testing.assert_array_equal(alpha_of(copy, LAST), disc(LAST)[..., 0])
        copy.set("keyFrames", f"{FIRST}, {FIRST + 2}")
        assert copy.render(LAST)[0] == FAILED
        assert copy.persistent is not None and "keys" in copy.persistent


def test_a_copy_with_other_settings_never_changes_the_originals(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    assert rig.node.press("propagateForward", FIRST) == OK
    before = contents(store_of(engine, rig.node))
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        copy.set("workingSize", WIDTH // 2)
        assert copy.render(FIRST + 1)[0] != OK
        assert copy.persistent is not None and "settings" in copy.persistent
        assert contents(store_of(engine, rig.node)) == before


def test_a_node_whose_values_are_linked_says_that_it_cannot_be_changed(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    clone = pasted(rig)
    for name in ("keyFrames", "state", "revision", "evenStep", "oddStep"):
        clone.params[name].is_linked = True
    before = contents(store_of(engine, rig.node))
    with nodes_of(host, rig.node, clone):
        assert clone.press("setKey", LAST) == FAILED
        assert clone.persistent is not None and "linked" in clone.persistent
        assert contents(store_of(engine, rig.node)) == before


def test_a_deleted_original_leaves_its_store_to_the_copy_only_when_it_is_gone(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    copy = pasted(rig)
    state = rig.node.value("state")
    with nodes_of(host, copy):
        rig.node.destroy()
        assert copy.press("propagateForward", FIRST) == OK, copy.persistent
        assert copy.value("state") == state


def test_a_render_in_a_second_instance_is_the_same_node_and_no_copy(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        clone = host.render_clone(rig.node)
        rig.mask.read = lambda frame: disc(frame) * np.float32(0.5)
        np.testing.assert_array_equal(alpha_of(clone, FIRST), disc(FIRST)[..., 0] * np.float32(0.5))
        np.testing.assert_array_equal(alpha_of(clone, FIRST + 1, in_order=True).shape, (HEIGHT, WIDTH))
        clone.destroy()
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert rig.node.value("state") != ""


def test_a_render_in_a_second_instance_knows_the_format_of_the_project(
    host: OfxHost, engine: EngineHome
) -> None:
    """Such an instance reports a project without a size. A plate with overscan must not change."""
    more = 8

    def with_overscan(frame: int) -> FloatArray:
        return np.pad(picture(frame), ((more, more), (more, more), (0, 0)), mode="edge")

    size = (WIDTH + 2 * more, HEIGHT + 2 * more)
    rig = make_rig(host)
    rig.node.destroy()
    source = Clip(with_overscan, frames=(FIRST, LAST), size=size, origin=(-more, -more))
    node = host.create({"Source": source, "Mask": rig.mask}, saved={"workingSize": WIDTH})
    with nodes_of(host, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        assert node.press("propagateForward", FIRST) == OK, node.persistent
        about = (store_of(engine, node) / "shot.json").read_text()
        clone = host.render_clone(node)
        alpha_of(clone, FIRST)
        assert (store_of(engine, node) / "shot.json").read_text() == about
        clone.destroy()


@pytest.mark.parametrize("button", ["setKey", "deleteKey", "propagateForward"])
def test_the_end_of_a_second_instance_does_not_stop_the_nodes_work(
    host: OfxHost, engine: EngineHome, button: str
) -> None:
    """Natron destroys the instances of its renders when a value changes, also in the middle of an action."""
    rig = keyed(host)
    with nodes_of(host, rig.node):
        clone = host.render_clone(rig.node)

        def progress(part: float) -> int:
            if clone.alive:
                clone.destroy()
            return OK

        rig.node.progress_answer = progress
        assert rig.node.press(button, FIRST) == OK, rig.node.persistent
        assert not clone.alive
        assert "Stopped" not in rig.node.value("status")


def test_stop_reaches_a_propagation_whatever_instance_it_is_pressed_on(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    clone = host.render_clone(rig.node)
    pressed: list[int] = []

    def progress(part: float) -> int:
        if engine.asked.count("job") == 3 and not pressed:
            pressed.append(clone.press("stop", FIRST))
        return OK

    rig.node.progress_answer = progress
    with nodes_of(host, rig.node, clone):
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert pressed == [OK] and rig.node.value("status").startswith("Stopped")


def test_a_node_that_has_lost_its_store_to_another_never_opens_it_as_the_owner(
    host: OfxHost, engine: EngineHome, tmp_path: Path
) -> None:
    """A node leaves its store, a copy takes it over, and the node comes back: it is the copy now."""
    rig = keyed(host)
    node, copy = rig.node, pasted(rig)
    longer = Clip(picture, frames=(FIRST, LAST + 5), size=(WIDTH, HEIGHT))
    with nodes_of(host, node, copy):
        store = store_of(engine, node)
        node.set("shotStore", str(tmp_path))
        assert node.render(FIRST)[0] == OK, node.persistent
        assert copy.press("setKey", FIRST) == OK, copy.persistent
        assert store_of(engine, copy) == store, "the copy has taken it over"
        before = contents(store)
        node.set("shotStore", "")
        node.clips["Source"].source = longer
        node.clips["Source"].properties.set("OfxImageEffectPropFrameRange", FIRST, LAST + 5)
        node.render(FIRST)
        node.press("updateStatus", FIRST)
        assert contents(store) == before, "its range is the copy's to change"


# ---- masks


def masks(frame: int) -> FloatArray:
    """Two objects, in red and green."""
    both = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    both[..., 0] = disc(frame)[..., 0]
    both[:10, :10, 1] = 1.0
    return both


def test_several_objects_come_through_mask_in_a_host_that_hands_out_one_channel(
    natron: OfxHost, engine: EngineHome
) -> None:
    rig = make_rig(natron)
    rig.node.destroy()
    mask = Clip(masks, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=RGB)
    node = natron.create(
        {"Source": rig.source, "Mask": mask}, saved={"objects": "ball, corner", "workingSize": WIDTH}
    )
    with nodes_of(natron, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        for number, name in enumerate(("ball", "corner")):
            node.set("outputObject", name)
            np.testing.assert_array_equal(alpha_of(node, FIRST), masks(FIRST)[..., number])


@pytest.mark.parametrize("components", [RGB, RGBA])
def test_a_mask_file_in_colours_or_with_alpha_works_at_once(
    natron: OfxHost, engine: EngineHome, components: str
) -> None:
    def grey(frame: int) -> FloatArray:
        alpha = disc(frame)
        if components == RGB:
            return np.repeat(alpha, 3, axis=-1)
        return np.concatenate([0 * alpha] * 3 + [alpha], axis=-1)

    rig = make_rig(natron)
    rig.node.destroy()
    mask = Clip(grey, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=components)
    node = natron.create({"Source": rig.source, "Mask": mask}, saved={"workingSize": WIDTH})
    with nodes_of(natron, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, FIRST), disc(FIRST)[..., 0])


def test_a_mask_that_is_connected_is_never_called_missing(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    rig.mask.read = lambda frame: None
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == FAILED
        assert rig.node.persistent is not None and "is connected, but gives no picture" in rig.node.persistent


def test_the_masks_region_is_that_of_the_keys(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    rig.mask.boxes = lambda frame: (0, 0, 10, 10) if frame == FIRST else (40, 30, WIDTH, HEIGHT)
    with nodes_of(host, rig.node):
        rig.node.set("keyFrames", f"{FIRST}, {LAST}")
        regions = rig.node.regions_of_interest(FIRST + 2, (1.0, 1.0, 2.0, 2.0))
        assert regions["Mask"] == [0.0, 0.0, WIDTH, HEIGHT]
        rig.node.set("keyFrames", f"{FIRST}")
        assert rig.node.regions_of_interest(FIRST + 2, (1.0, 1.0, 2.0, 2.0))["Mask"] == [0.0, 0.0, 10.0, 10.0]


# ---- frames without a fresh matte


def test_before_the_first_key_the_window_shows_the_plate(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        status, image = rig.node.render(FIRST, in_window=True)
        assert status == OK and rig.node.persistent is None
        np.testing.assert_array_equal(image.picture(), picture(FIRST))
        assert "no key" in rig.node.value("status")
        assert rig.node.render(FIRST)[0] == FAILED, "a render is no window"


def test_a_second_key_leaves_the_old_mattes_in_the_window_and_fails_a_render(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        old = alpha_of(rig.node, LAST - 1)
        plate = picture(FIRST + 3)
        rig.mask.read = lambda frame: disc(frame) * np.float32(0.5)
        assert rig.node.press("setKey", LAST) == OK
        np.testing.assert_array_equal(inner(alpha_of(rig.node, LAST - 1, in_window=True)), inner(old))
        never_looked_at = alpha_of(rig.node, FIRST + 3, in_window=True)
        assert overlap(never_looked_at, disc(FIRST + 3)[..., 0]) > 0.5, "the matte of the first propagation"
        assert (never_looked_at != plate[..., 3]).any()
        assert f"OLD mattes on {FIRST + 1}-{LAST - 1}." in rig.node.value("status"), "the key shows its mask"
        assert rig.node.render(LAST - 1)[0] == FAILED


def stripes(picture: FloatArray) -> FloatArray:
    """The border of a picture, (n, channels); it marks a frame that no render would produce."""
    whole = np.ones(picture.shape[:2], bool)
    whole[BORDER:-BORDER, BORDER:-BORDER] = False
    return picture[whole]


def test_what_only_the_window_shows_carries_a_mark_that_no_cache_can_lose(
    host: OfxHost, engine: EngineHome
) -> None:
    """A host may give a picture of its viewer to a Write without a new render."""
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        fresh = rig.node.render(LAST - 1, in_window=True)[1].picture()
        np.testing.assert_array_equal(fresh, rig.node.render(LAST - 1)[1].picture())
        rig.mask.read = lambda frame: disc(frame) * np.float32(0.5)
        assert rig.node.press("setKey", LAST) == OK
        for output in range(5):
            rig.node.set("output", output)
            old = rig.node.render(LAST - 1, in_window=True)[1].picture()
            assert set(np.unique(stripes(old)[:, -1])) == {0.0, 1.0}, "stripes in the matte itself"
        rig.node.set("output", 0)
        old = rig.node.render(LAST - 1, in_window=True)[1].picture()
        np.testing.assert_array_equal(inner(old), inner(fresh))
        assert {tuple(one) for one in stripes(old)} == {(0.0, 0.0, 0.0, 0.0), tuple(STRIPE)}
        small = rig.node.render(LAST - 1, in_window=True, scale=0.5)[1].picture()
        assert set(np.unique(stripes(small)[:, -1])) == {0.0, 1.0}
        key = rig.node.render(LAST, in_window=True)[1].picture()
        np.testing.assert_array_equal(key[..., 3:], disc(LAST) * np.float32(0.5))


def test_the_mark_stands_in_the_format_whatever_overscan_the_plate_has(
    host: OfxHost, engine: EngineHome
) -> None:
    """A window shows the format only, without the overscan."""
    more = 8

    def with_overscan(frame: int) -> FloatArray:
        return np.pad(picture(frame), ((more, more), (more, more), (0, 0)), mode="edge")

    size = (WIDTH + 2 * more, HEIGHT + 2 * more)
    rig = make_rig(host)
    rig.node.destroy()
    source = Clip(with_overscan, frames=(FIRST, LAST), size=size, origin=(-more, -more))
    node = host.create({"Source": source, "Mask": rig.mask}, saved={"workingSize": WIDTH})
    with nodes_of(host, node):
        assert node.press("setKey", FIRST) == OK, node.persistent
        shown = node.render(LAST, in_window=True)[1].picture()
        inside = shown[more:-more, more:-more]
        assert {tuple(one) for one in stripes(inside)} == {(0.0, 0.0, 0.0, 0.0), tuple(STRIPE)}
        np.testing.assert_array_equal(inner(inside), inner(picture(LAST)))
        assert {tuple(one) for one in shown[:more].reshape(-1, 4)} == {(0.0, 0.0, 0.0, 0.0), tuple(STRIPE)}


def test_a_picture_with_the_mark_is_never_taken_as_a_key(host: OfxHost, engine: EngineHome) -> None:
    """Such a picture comes from a paint node over an old matte."""
    rig = rig_with_paint(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        rig.mask.read = lambda frame: disc(frame) * np.float32(0.5)
        assert rig.node.press("setKey", LAST) == OK
        shown = rig.node.render(LAST - 1, in_window=True)[1].picture()
        fix = rig.node.clips["Fix"].source
        assert fix is not None
        fix.read = lambda frame: shown[..., 3:]
        assert rig.node.press("setKeyFromFix", LAST - 1) == FAILED
        assert rig.node.persistent is not None and "striped" in rig.node.persistent
        assert rig.node.value("keyFrames") == f"{FIRST}, {LAST}"


def test_the_pictures_of_copies_are_made_anew_when_the_original_changes(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        assert alpha_of(copy, FIRST).any()
        for button in ("propagateForward", "setKey", "deleteKey"):
            before = copy.value("revision")
            assert rig.node.press(button, FIRST if button == "propagateForward" else LAST) == OK
            assert copy.value("revision") != before, button
        another = make_rig(host)
        before = another.node.value("revision")
        assert rig.node.press("propagateForward", FIRST) == OK
        assert another.node.value("revision") == before
        another.node.destroy()


def test_a_frame_that_a_render_would_put_out_just_so_has_no_mark(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.node.set("missingFrames", PLATE)
        rig.node.set("missingInWindow", PLATE)
        shown = rig.node.render(LAST, in_window=True)[1].picture()
        np.testing.assert_array_equal(shown, picture(LAST))
        rig.node.set("missingFrames", FAIL)
        marked = rig.node.render(LAST, in_window=True)[1].picture()
        np.testing.assert_array_equal(inner(marked), inner(picture(LAST)))
        assert tuple(STRIPE) in {tuple(one) for one in stripes(marked)}


@pytest.mark.parametrize("choice", [FAIL, NEAREST, OLD_MATTE, PLATE])
def test_missing_frames_fail_or_give_the_nearest_or_the_old_matte_or_the_plate(
    host: OfxHost, engine: EngineHome, choice: int
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.node.set("missingFrames", choice)
        status, image = rig.node.render(FIRST + 3)
        assert (status == OK) == (choice in (NEAREST, PLATE)), rig.node.persistent
        if choice == NEAREST:
            np.testing.assert_array_equal(image.picture()[..., 3], disc(FIRST)[..., 0])
        if choice == PLATE:
            np.testing.assert_array_equal(image.picture(), picture(FIRST + 3))


def test_the_nearest_matte_is_looked_for_down_to_the_key(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    """The frames between are stale, and their old mattes no longer exist."""
    engine = scripted(BusyEngine(keys=(FIRST,), stale=((FIRST + 1, LAST),)))
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    rig.node.set("missingFrames", NEAREST)
    with nodes_of(host, rig.node):
        assert rig.node.render(LAST)[0] == OK, rig.node.persistent
        assert engine.asked.count("get_matte") == LAST - FIRST + 2


def test_a_banner_goes_when_its_frame_is_left(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.render(LAST)[0] == FAILED and rig.node.persistent
        alpha_of(rig.node, FIRST)
        assert rig.node.persistent is None
        alpha_of(rig.node, LAST, in_window=True)
        assert rig.node.persistent is None, "in the window a frame without a matte is no error"


# ---- the status


def test_the_status_tells_of_typed_keys_settings_and_reopening(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    node = rig.node
    assert node.press("propagateForward", FIRST) == OK
    node.set("keyFrames", f"{FIRST}, {LAST}")
    assert f"not taken yet: {LAST}" in node.value("status")
    node.set("keyFrames", f"{FIRST}")
    assert "not taken" not in node.value("status")
    node.set("workingSize", WIDTH // 2)
    assert "stale" in node.value("status") and "working_size" in node.value("status")
    assert "canvas" not in node.value("status")
    saved = node.saved()
    node.destroy()
    again = host.create({"Source": rig.source, "Mask": rig.mask}, saved=saved)
    with nodes_of(host, again):
        assert again.value("status").startswith(f"Keys: {FIRST}.")
        assert again.press("updateStatus", FIRST) == OK
        assert "stale" in again.value("status")


def test_the_status_counts_frames_while_it_runs_and_reading_has_a_bar_of_its_own(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    said: list[str] = []
    bars: list[tuple[str, float]] = []

    def progress(part: float) -> int:
        said.append(rig.node.value("status"))
        bars.append((rig.node.progress_labels[-1], part))
        return OK

    rig.node.progress_answer = progress
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        assert any(text.startswith("Reading the plate: 3 of 7") for text in said)
        steps = [re.match(r"Computing: step (\d+) of (\d+)\.", text) for text in said]
        counted = [(int(step[1]), int(step[2])) for step in steps if step]
        assert counted and counted == sorted(counted) and all(done <= last for done, last in counted)
        assert not any(text.count(" of ") > 1 for text in said), "it counts once"
        computing = [part for label, part in bars if "computing" in label]
        assert computing[0] < 0.3, "the bar of the network begins at its beginning"


def test_words_are_not_doubled(host: OfxHost, engine: EngineHome) -> None:
    """Hosts put "STM1 error: " before a message."""
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == FAILED
        assert rig.node.persistent is not None and not rig.node.persistent.startswith("STM")


# ---- keys in the field, undo, the panel


def test_typed_keys_are_keys_and_clearing_removes_them(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    node = rig.node
    with nodes_of(host, node):
        node.set("keyFrames", f"{FIRST}, {LAST}")
        assert "Propagate takes them" in node.value("status")
        assert node.press("propagateBoth", FIRST) == OK, node.persistent
        for frame in (FIRST, LAST):
            np.testing.assert_array_equal(alpha_of(node, frame), disc(frame)[..., 0])
        node.set("keyFrames", f"{FIRST}")
        assert node.press("propagateBoth", FIRST) == OK, node.persistent
        assert node.value("status").startswith("8 frames done")
        node.set("keyFrames", "")
        assert node.press("propagateBoth", FIRST) == FAILED
        assert node.persistent is not None and "no key" in node.persistent
        assert node.render(FIRST)[0] == FAILED
        np.testing.assert_array_equal(node.render(FIRST, in_window=True)[1].picture(), picture(FIRST))


@pytest.mark.parametrize("effect_undoes", [True, False])
def test_set_key_and_delete_key_are_one_undo_step_each(
    host: OfxHost, engine: EngineHome, effect_undoes: bool
) -> None:
    host.options.effect_undoes = effect_undoes
    rig = make_rig(host)
    node = rig.node
    with nodes_of(host, node):
        seen = [("", "")]
        for button, frame in (
            ("setKey", FIRST),
            ("setKey", FIRST + 3),
            ("setKey", LAST),
            ("deleteKey", FIRST + 3),
        ):
            assert node.press(button, frame) == OK
            seen.append((node.value("keyFrames"), node.value("state")))
        assert len(node.undo_steps) == 4
        for keys, state in reversed(seen[:-1]):
            revision = node.value("revision")
            node.undo()
            assert (node.value("keyFrames"), node.value("state")) == (keys, state)
            assert node.value("revision") != revision, "the host renders again"
        assert "no key" in node.value("status")
        for keys, state in seen[1:]:
            node.redo()
            assert (node.value("keyFrames"), node.value("state")) == (keys, state)


def test_an_undo_keeps_what_was_typed_before_the_step(host: OfxHost, engine: EngineHome) -> None:
    node = keyed(host).node
    with nodes_of(host, node):
        node.set("keyFrames", f"{FIRST}, {LAST}")
        assert node.press("setKey", FIRST + 3) == OK
        node.undo()
        assert node.value("keyFrames") == f"{FIRST}, {LAST}"
        assert node.press("deleteKey", LAST) == OK, "a new step after an undo"
        assert len(node.undo_steps) == 2 and node.value("keyFrames") == f"{FIRST}"
        node.undo()
        assert node.value("keyFrames") == f"{FIRST}, {LAST}"


def test_an_undo_of_a_loaded_node_changes_nothing_that_it_does_not_know(
    host: OfxHost, engine: EngineHome
) -> None:
    """Steps are of a session; the marks of a loaded node are numbers only."""
    rig = keyed(host)
    saved = rig.node.saved()
    rig.node.destroy()
    node = host.create({"Source": rig.source, "Mask": rig.mask}, saved=saved)
    with nodes_of(host, node):
        node.set("evenStep", 0)
        assert node.value("keyFrames") == str(FIRST) and node.value("state") == saved["state"]


def test_after_an_undo_the_engine_has_the_keys_of_the_node(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    node = rig.node
    with nodes_of(host, node):
        assert node.press("propagateBoth", FIRST) == OK
        assert node.press("setKey", LAST) == OK
        node.undo()
        assert str(LAST) in node.value("status") and "no longer listed" in node.value("status")
        alpha_of(node, LAST)
        assert node.press("updateStatus", FIRST) == OK
        assert node.value("status").startswith("8 frames done")


def test_sliders_have_sensible_ends_and_buttons_stand_in_rows(host: OfxHost) -> None:
    params = host.describe().params
    for name, shown in (("workingSize", (240, 1080)), ("memoryEvery", (1, 20))):
        values = params[name].properties.values
        assert (values["OfxParamPropDisplayMin"][0], values["OfxParamPropDisplayMax"][0]) == shown
        assert values["OfxParamPropMax"][0] > shown[1]
    same_line = {
        name for name, one in params.items() if one.properties.values.get("OfxParamPropLayoutHint") == [2]
    }
    assert same_line == {"setKey", "deleteKey", "propagateBackward", "propagateBoth"}
    assert params["status"].properties.values["OfxParamPropStringMode"] == ["OfxParamStringIsMultiLine"]


# ---- keys that are painted


def painted(frame: int) -> FloatArray:
    """The matte of a frame after a person has painted on it."""
    corrected = disc(frame).copy()
    corrected[:8, :8] = 1.0
    return corrected


def rig_with_paint(host: OfxHost) -> Rig:
    """A node with a key on the first frame, and a paint node at its input Fix."""
    rig = make_rig(host)
    rig.node.destroy()
    fix = Clip(painted, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=ALPHA)
    node = host.create({"Source": rig.source, "Mask": rig.mask, "Fix": fix}, saved={"workingSize": WIDTH})
    assert node.press("setKey", FIRST) == OK, node.persistent
    return Rig(host, node, rig.source, rig.mask)


def test_a_painted_matte_becomes_the_key_of_its_frame_and_stays_it(host: OfxHost, engine: EngineHome) -> None:
    rig = rig_with_paint(host)
    node = rig.node
    with nodes_of(host, node):
        assert node.press("propagateForward", FIRST) == OK
        assert node.press("setKeyFromFix", LAST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, LAST), painted(LAST)[..., 0])
        assert node.press("propagateForward", FIRST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, LAST), painted(LAST)[..., 0])
        np.testing.assert_array_equal(alpha_of(node, FIRST), disc(FIRST)[..., 0])
        saved = node.saved()
        node.destroy()
        again = host.create({"Source": rig.source, "Mask": rig.mask}, saved=saved)
        assert again.press("propagateForward", FIRST) == OK, again.persistent
        np.testing.assert_array_equal(alpha_of(again, LAST), painted(LAST)[..., 0])
        assert again.press("setKey", LAST) == OK, again.persistent
        np.testing.assert_array_equal(alpha_of(again, LAST), disc(LAST)[..., 0])
        again.destroy()


def test_an_undo_of_a_painted_key_brings_the_mask_back(host: OfxHost, engine: EngineHome) -> None:
    node = rig_with_paint(host).node
    with nodes_of(host, node):
        assert node.press("setKeyFromFix", FIRST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, FIRST), painted(FIRST)[..., 0])
        node.undo()
        np.testing.assert_array_equal(alpha_of(node, FIRST), disc(FIRST)[..., 0])


def other_paint(frame: int) -> FloatArray:
    """The matte after a person has painted on another part of it."""
    corrected = disc(frame).copy()
    corrected[-6:, -6:] = 0.5
    return corrected


@pytest.mark.parametrize("button", ["deleteKey", "setKey", "setKeyFromFix"])
def test_an_undo_brings_a_painted_key_back_whatever_came_after_it(
    host: OfxHost, engine: EngineHome, button: str
) -> None:
    """The paint node may be gone by then: the mask comes from the store."""
    node = rig_with_paint(host).node
    fix = node.clips["Fix"].source
    assert fix is not None
    with nodes_of(host, node):
        assert node.press("setKeyFromFix", LAST) == OK, node.persistent
        fix.read = other_paint
        assert node.press(button, LAST) == OK, node.persistent
        expected = {"setKey": disc(LAST), "setKeyFromFix": other_paint(LAST)}.get(button)
        if expected is not None:
            np.testing.assert_array_equal(alpha_of(node, LAST), expected[..., 0])
        node.undo()
        np.testing.assert_array_equal(alpha_of(node, LAST), painted(LAST)[..., 0])
        assert node.press("propagateBoth", FIRST) == OK, node.persistent
        np.testing.assert_array_equal(alpha_of(node, LAST), painted(LAST)[..., 0])
        node.redo()
        if expected is not None:
            np.testing.assert_array_equal(alpha_of(node, LAST), expected[..., 0])
        else:
            assert node.value("keyFrames") == str(FIRST)


def test_a_fork_takes_the_painted_keys_with_it(host: OfxHost, engine: EngineHome) -> None:
    rig = rig_with_paint(host)
    assert rig.node.press("setKeyFromFix", LAST) == OK, rig.node.persistent
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        assert rig.node.press("deleteKey", LAST) == OK, rig.node.persistent
        assert copy.press("propagateForward", FIRST) == OK, copy.persistent
        assert copy.value("state") != rig.node.value("state")
        np.testing.assert_array_equal(alpha_of(copy, LAST), painted(LAST)[..., 0])


def test_a_painted_key_that_the_store_has_lost_is_never_replaced_in_silence(
    host: OfxHost, engine: EngineHome
) -> None:
    node = rig_with_paint(host).node
    with nodes_of(host, node):
        assert node.press("setKeyFromFix", LAST) == OK, node.persistent
        shutil.rmtree(store_of(engine, node))
        assert node.press("propagateForward", FIRST) == FAILED
        assert node.persistent is not None and f"frame {LAST} was painted" in node.persistent
        assert node.press("setKeyFromFix", LAST) == OK, node.persistent
        assert node.press("propagateForward", FIRST) == OK, node.persistent


def test_without_a_paint_node_the_button_says_what_to_connect(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKeyFromFix", LAST) == FAILED
        assert rig.node.persistent is not None and "paint node" in rig.node.persistent
        assert rig.node.value("keyFrames") == str(FIRST)


def test_a_copy_under_the_paint_node_goes_on_showing_the_original(host: OfxHost, engine: EngineHome) -> None:
    rig = rig_with_paint(host)
    copy = pasted(rig)
    with nodes_of(host, rig.node, copy):
        for frame in (FIRST, LAST):
            assert rig.node.press("setKeyFromFix", frame) == OK, rig.node.persistent
            np.testing.assert_array_equal(alpha_of(copy, frame), painted(frame)[..., 0])


# ---- what is put out


def test_premultiplying_is_a_choice(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    name = "OfxImageEffectPropPreMultiplication"
    with nodes_of(host, rig.node):
        rig.node.set("output", 3)
        assert rig.node.clip_preferences()[name] == "OfxImageAlphaPremultiplied"
        image = rig.node.render(FIRST)[1].picture()
        np.testing.assert_array_equal(image[..., 3:], disc(FIRST))
        np.testing.assert_allclose(image[..., :3], picture(FIRST)[..., :3] * disc(FIRST), atol=1e-6)
        rig.node.set("output", 0)
        assert rig.node.clip_preferences()[name] == "OfxImageAlphaUnPremultiplied"


@pytest.mark.parametrize("output", [1, 4])
def test_a_matte_in_every_channel_is_called_premultiplied(
    host: OfxHost, engine: EngineHome, output: int
) -> None:
    """Else a Write that premultiplies would square the colours of the file."""
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.node.set("output", output)
        told = rig.node.clip_preferences()["OfxImageEffectPropPreMultiplication"]
        assert told == "OfxImageAlphaPremultiplied"


def test_confidence_can_be_put_out(host: OfxHost, engine: EngineHome) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK
        rig.node.set("output", 4)
        np.testing.assert_array_equal(rig.node.render(FIRST)[1].picture(), 1.0)
        confidence = rig.node.render(LAST)[1].picture()
        assert 0.0 <= confidence.min() < confidence.max() <= 1.0, "of each pixel"
        np.testing.assert_array_equal(confidence[..., 0], confidence[..., 3])


def test_an_engine_of_before_gives_one_confidence_for_a_frame(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    rig.node.set("output", 4)
    with nodes_of(host, rig.node):
        np.testing.assert_array_equal(rig.node.render(FIRST)[1].picture(), 1.0)
        assert "get_matte" in engine.asked


def test_a_filter_with_an_rgb_source_asks_for_rgba(host: OfxHost, engine: EngineHome) -> None:
    source = Clip(picture, frames=(FIRST, LAST), size=(WIDTH, HEIGHT), components=RGB)
    node = host.create({"Source": source}, FILTER)
    with nodes_of(host, node):
        assert node.clip_preferences()["OfxImageClipPropComponents_Output"] == RGBA


# ---- the plate's geometry and range


def test_a_render_does_not_ask_for_the_regions_of_the_whole_range_each_time(
    host: OfxHost, engine: EngineHome
) -> None:
    rig = keyed(host)
    with nodes_of(host, rig.node):
        rig.source.frames = (FIRST, FIRST + 499)
        rig.node.clips["Source"].properties.set("OfxImageEffectPropFrameRange", FIRST, FIRST + 499)
        alpha_of(rig.node, FIRST)
        rig.source.region_queries = 0
        alpha_of(rig.node, FIRST)
        assert rig.source.region_queries <= 4


@pytest.mark.parametrize("duration", [None, 12.0])
def test_without_a_frame_range_the_range_is_the_effects_duration_or_the_frames_that_come(
    effect_binary: Path, engine: EngineHome, duration: float | None
) -> None:
    host = OfxHost(effect_binary, HostOptions(frame_ranges=False))
    rig = make_rig(host)
    rig.source.frames = rig.mask.frames = (0, 99)
    rig.source.read = lambda frame: picture(frame + FIRST)
    rig.mask.read = lambda frame: disc(frame + FIRST)
    if duration is not None:
        rig.node.properties.set("OfxImageEffectInstancePropEffectDuration", duration)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", 3) == OK, rig.node.persistent
        about = json.loads((store_of(engine, rig.node) / "shot.json").read_text())
        assert about["plate"]["frames"] == ([0, 11] if duration else [3, 3])
        assert rig.node.render(5, in_order=True)[0] == OK, rig.node.persistent
        about = json.loads((store_of(engine, rig.node) / "shot.json").read_text())
        assert about["plate"]["frames"] == ([0, 11] if duration else [3, 5])


# ---- stopping, waiting, closing


def test_a_stop_before_the_start_counts(host: OfxHost, scripted: Scripted, tmp_path: Path) -> None:
    """The stop arrives before the effect shows progress, while the host prepares the action."""
    scripted(BusyEngine(keys=(FIRST,)))
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))
    rig.node.when_cleared = lambda: rig.node.press("stop", FIRST)
    with nodes_of(host, rig.node):
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert rig.node.value("status").startswith("Stopped")


@pytest.mark.parametrize("makes_progress", [False, True])
def test_a_render_waits_as_long_as_the_engine_makes_progress(
    host: OfxHost,
    scripted: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    makes_progress: bool,
) -> None:
    monkeypatch.setenv("STM_OFX_WAIT_SECONDS", "0.5")
    script = BusyEngine(keys=(FIRST,), goes_on=makes_progress)
    engine = scripted(script)
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))

    asked = time.monotonic()

    def finish_late() -> int:
        if "job" in engine.asked and time.monotonic() > asked + 1.5:
            script.waits_for.set()
        return 0

    rig.node.abort_answer = finish_late
    with nodes_of(host, rig.node):
        status = rig.node.render(FIRST + 2, in_order=True)[0]
        assert (status == OK) == makes_progress, rig.node.persistent


def test_a_second_nodes_propagation_is_refused_at_once_in_words(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rigs = [make_rig(host), make_rig(host)]
    for number, rig in enumerate(rigs):
        rig.node.set("shotStore", str(tmp_path / f"scripted{number}.stmshot"))
        rig.node.set("keyFrames", str(FIRST))
    refused: list[int] = []

    def progress(part: float) -> int:
        if "job" in engine.asked and not refused:
            refused.append(rigs[1].node.press("propagateForward", FIRST))
            rigs[0].node.press("stop", FIRST)
        return OK

    rigs[0].node.progress_answer = progress
    with nodes_of(host, *(rig.node for rig in rigs)):
        assert rigs[0].node.press("propagateForward", FIRST) == OK
        assert refused == [FAILED]
        words = rigs[1].node.persistent
        assert words is not None and "Another node is propagating" in words


def test_a_node_that_is_deleted_in_the_middle_of_its_run_ends_cleanly(
    host: OfxHost, scripted: Scripted, tmp_path: Path
) -> None:
    """The host destroys the node during its progress call. The effect may not use the node afterwards."""
    engine = scripted(BusyEngine(keys=(FIRST,)))
    rig = make_rig(host)
    rig.node.set("shotStore", str(tmp_path / "scripted.stmshot"))
    rig.node.set("keyFrames", str(FIRST))

    def progress(part: float) -> int:
        if "job" in engine.asked and rig.node.alive:
            rig.node.progress_open = False
            host.under_way().shows_progress = False
            rig.node.destroy()
        return OK

    rig.node.progress_answer = progress
    with nodes_of(host, rig.node):
        rig.node.press("propagateForward", FIRST)
    another = make_rig(host)
    with nodes_of(host, another.node):
        assert "cancel" in engine.asked or not rig.node.alive
        another.node.set("shotStore", str(tmp_path / "another.stmshot"))
        another.node.set("keyFrames", str(FIRST))
        assert another.node.render(FIRST)[0] == OK, another.node.persistent


# ---- finding the engine


COLD = """
import sys, time
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

host = OfxHost(Path(sys.argv[1]))
rig = make_rig(host)
node = rig.node
with nodes_of(host, node):
    began = time.monotonic()
    assert node.press("setKey", FIRST) == OK, node.persistent
    assert time.monotonic() - began < 3.0
    assert node.value("keyFrames") == str(FIRST) and len(node.undo_steps) == 1
    assert "it takes the mask" in node.value("status")
    rig.mask.read = lambda frame: np.zeros((HEIGHT, WIDTH, 1), np.float32)
    assert node.press("setKey", LAST) == FAILED
    assert "empty" in node.persistent and node.value("keyFrames") == str(FIRST)
"""


def test_set_key_does_not_wait_for_an_engine_that_is_starting(
    effect_binary: Path, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starter = tmp_path / "python"
    starter.write_text("#!/bin/sh\nexec sleep 20\n")
    starter.chmod(0o755)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("STM_ENGINE_PYTHON", str(starter))
    monkeypatch.setenv("STM_OFX_KEY_SECONDS", "0.5")
    command = [sys.executable, "-c", COLD, str(effect_binary)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_key_that_was_set_too_early_is_taken_by_the_next_picture(
    host: OfxHost, engine: EngineHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STM_OFX_KEY_SECONDS", "0.001")
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        assert rig.node.press("setKey", FIRST) == OK, rig.node.persistent
        assert "it takes the mask" in rig.node.value("status")
        np.testing.assert_array_equal(alpha_of(rig.node, FIRST), disc(FIRST)[..., 0])
        assert rig.node.press("propagateForward", FIRST) == OK, rig.node.persistent
        assert rig.node.value("status").startswith("8 frames done")


STARTS_AHEAD = """
import sys, time
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

host = OfxHost(Path(sys.argv[1]))
rig = make_rig(host)
mark = Path(sys.argv[2]) / "started"
with nodes_of(host, rig.node):
    assert not mark.exists(), "making a node starts nothing"
    assert rig.node.render(FIRST)[0] != OK
    assert not mark.exists(), "a render without keys needs no engine"
    assert rig.node.render(FIRST, in_window=True)[0] == OK
    end = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert mark.exists(), "the engine loads while the artist draws"
"""


def test_the_engine_loads_while_the_artist_looks_at_the_plate(
    effect_binary: Path, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starter = tmp_path / "python"
    starter.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    starter.chmod(0o755)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("STM_ENGINE_PYTHON", str(starter))
    command = [sys.executable, "-c", STARTS_AHEAD, str(effect_binary), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MALFORMED = """
import json, sys
from pathlib import Path
from tests.hosts.ofx_fixtures import *
from tests.hosts.ofx_host import *

folder = Path(sys.argv[2])
host = OfxHost(Path(sys.argv[1]))
rig = make_rig(host)
rig.node.set("shotStore", str(folder / "x.stmshot"))
rig.node.set("keyFrames", str(FIRST))
mark = folder / "started"
rig.node.abort_answer = lambda: int(mark.exists())
endpoints = [
    {"transport": "unix"},
    {"transport": "tcp", "port": 1 << 40, "token": "1", "answer": "2"},
    {"transport": "unix", "path": "/nowhere", "token": 7, "answer": []},
]
with nodes_of(host, rig.node):
    for number, endpoint in enumerate(endpoints):
        run = folder / f"run{number}"
        run.mkdir(mode=0o700)
        (run / "endpoint.json").write_text(json.dumps(endpoint))
        os.environ["STM_RUNTIME_DIR"] = str(run)
        assert rig.node.render(FIRST)[0] != OK
        assert mark.exists() and host.messages == [], (endpoint, host.messages)
        mark.unlink()
"""


def test_a_malformed_endpoint_starts_a_new_engine(
    effect_binary: Path, engine: EngineHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The started program only leaves a mark. In a separate process, because starts are counted."""
    starter = tmp_path / "python"
    starter.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 20\n")
    starter.chmod(0o755)
    monkeypatch.setenv("STM_ENGINE_PYTHON", str(starter))
    command = [sys.executable, "-c", MALFORMED, str(effect_binary), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_key_frames_beyond_all_numbers_are_refused_in_words(host: OfxHost, engine: EngineHome) -> None:
    rig = make_rig(host)
    with nodes_of(host, rig.node):
        rig.node.set("keyFrames", str(-(1 << 63)))
        assert rig.node.press("setKey", FIRST) == FAILED
        assert rig.node.persistent is not None and "cannot be read" in rig.node.persistent
