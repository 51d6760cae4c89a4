"""The STM node in a comp, without an engine: refused inputs, owners of caches, the pixels that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PlateMaker, write_exr
from tests.nuke.comps import FRAMES, captured, idle, make_mattes, pixels, read_node, write_of

HOSTS = Path(__file__).resolve().parents[1] / "hosts" / "nuke_stand_in"


def test_before_the_first_propagation_a_render_fails_and_says_which_node_has_no_matte(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"STM1\.matte: Read error: No such file"):
        nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)
    assert not list(tmp_path.glob("out*"))
    assert "No key yet" in comp["status"]


def test_the_output_is_the_plate_with_the_matte_in_the_chosen_channel(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    make_mattes(comp, FRAMES)
    write = write_of(nuke, comp, tmp_path)
    nuke.execute(write, 1001, 1003, 1)
    plate = pixels(tmp_path / "plate.1002.exr")
    found = pixels(tmp_path / "out.1002.exr")
    np.testing.assert_array_equal(found[..., :3], plate)
    assert found[10, 10, 3] == 0.5
    comp.group.node("to_channel")["to0"].setValue("rgba.red")
    assert comp.group["channel"].value() == "rgba.red"
    nuke.execute(write, 1001, 1001, 1)
    assert pixels(tmp_path / "out.1001.exr")[10, 10, 0] == 0.5


@pytest.mark.parametrize("frame", [1000, 1004, 1002])
def test_a_frame_without_a_matte_fails_within_the_range_and_outside_it_never_black_never_held(
    nuke: Any, comp: Any, tmp_path: Path, frame: int
) -> None:
    from stm_nuke import cache

    make_mattes(comp, FRAMES)
    cache.matte_path(comp.cache, "main", 1002).unlink()
    words = rf"STM1\.matte: .*{frame}" if frame in FRAMES else r"STM1\.guard: NO MATTE HERE - .* 1001 to 1003"
    with pytest.raises(RuntimeError, match=words):
        nuke.execute(write_of(nuke, comp, tmp_path), frame, frame, 1)
    assert comp.group.frameRange().first() == 1001
    assert comp.group.frameRange().last() == 1003


def test_a_render_is_refused_while_the_overlay_is_on(nuke: Any, comp: Any, tmp_path: Path) -> None:
    make_mattes(comp, FRAMES)
    comp.group["overlay"].setValue(True)
    with pytest.raises(RuntimeError, match="STM1 shows its overlay"):
        nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)
    outer = nuke.nodes.Group()
    with outer:
        inside = nuke.nodes.Input()
        nuke.nodes.Output().setInput(0, inside)
    outer.setInput(0, comp.group)
    write = write_of(nuke, comp, tmp_path)
    write.setInput(0, outer)
    with pytest.raises(RuntimeError, match="STM1 shows its overlay"):
        nuke.execute(write, 1001, 1001, 1)
    nuke._host.listeners.clear()  # as the Viewer looks at it
    nuke.execute(write_of(nuke, comp, tmp_path, "seen"), 1001, 1001, 1)
    seen, plate = pixels(tmp_path / "seen.1001.exr"), pixels(tmp_path / "plate.1001.exr")
    np.testing.assert_allclose(seen[5, 5, 0], plate[5, 5, 0] * 0.75 + 0.25, rtol=1e-3)
    np.testing.assert_allclose(seen[5, 5, 1], plate[5, 5, 1] * 0.75, rtol=1e-3)


def test_a_node_that_is_disabled_passes_the_plate_on_and_is_in_no_renders_way(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    comp.group["overlay"].setValue(True)
    comp.group["disable"].setValue(True)
    nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)
    plate = pixels(tmp_path / "plate.1001.exr")
    np.testing.assert_array_equal(pixels(tmp_path / "out.1001.exr")[..., :3], plate[..., :3])
    comp.group["disable"].setExpression("frame > 1002")
    with pytest.raises(RuntimeError, match="STM1 shows its overlay"):
        nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)


def test_a_saved_script_renders_in_a_process_without_the_plug_in(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    make_mattes(comp, FRAMES)
    write_of(nuke, comp, tmp_path).setName("Out")
    nuke.scriptSave()
    code = (
        "import sys, nuke\n"
        "assert not any('stm_nuke' in name for name in sys.modules)\n"
        f"nuke.scriptOpen({str(tmp_path / 'shot_v001.nk')!r})\n"
        "nuke.execute('Out', 1001, 1003, 1)\n"
        "try:\n    import stm_nuke\nexcept ImportError:\n    print('no plug-in')\n"
        "nuke.toNode('STM1')['set_key'].execute()\n"
        "print(nuke._host.messages)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HOSTS)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "no plug-in" in done.stdout
    assert "STM for Nuke is not installed on this machine" in done.stdout
    assert pixels(tmp_path / "out.1003.exr")[10, 10, 3] == 0.5


# ---- whose cache is whose


def test_a_pasted_copy_has_a_cache_of_its_own_with_everything_in_it(nuke: Any, comp: Any) -> None:
    from stm_nuke import cache
    from stm_nuke.group import inner
    from stm_nuke.node import find_all

    nuke.GUI = True
    make_mattes(comp, FRAMES)
    comp.group.setSelected(True)
    nuke.nodeCopy("%clipboard%")
    nuke.nodePaste("%clipboard%")
    idle(nuke)
    first, second = find_all()
    assert (first.name, second.name) == ("STM1", "STM2")
    assert first.id != second.id
    assert first.cache != second.cache
    assert inner(second.group, "matte")["file"].value().startswith(second.cache.as_posix())
    assert cache.fresh_mattes(second.cache, "main", FRAMES) == set(FRAMES)
    write_exr(
        cache.matte_path(second.cache, "main", 1001).with_name("new.exr"),
        np.ones((2, 2, 1), np.float32),
        channels=("A",),
    ).replace(cache.matte_path(second.cache, "main", 1001))
    assert pixels(cache.matte_path(first.cache, "main", 1001)).shape == (48, 64, 1)


def test_cutting_and_pasting_moves_a_node_with_its_cache(nuke: Any, comp: Any) -> None:
    from stm_nuke.node import find_all

    nuke.GUI = True
    before = comp.id
    comp.group.setSelected(True)
    nuke.nodeCopy("%clipboard%")
    nuke.delete(comp.group)
    nuke.nodePaste("%clipboard%")
    (found,) = find_all()
    found.claim()
    assert found.id == before


def test_a_script_saved_under_another_name_leaves_the_cache_to_the_first(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke import cache
    from stm_nuke.node import find_all

    nuke.GUI = True
    make_mattes(comp, FRAMES)
    first_id, first_cache = comp.id, comp.cache
    nuke.scriptSaveAs(str(tmp_path / "shot_v002.nk"))
    assert comp.id != first_id
    cache.retire_mattes(comp.cache, "main", FRAMES, keep=False)
    nuke.scriptOpen(str(tmp_path / "shot_v001.nk"))
    (old,) = find_all()
    assert (old.id, old.cache) == (first_id, first_cache)
    assert cache.fresh_mattes(old.cache, "main", FRAMES) == set(FRAMES)


def test_a_farm_that_works_on_a_copy_of_the_script_writes_into_the_same_cache(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke.node import find_all

    first_id, first_cache = comp.id, comp.cache
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "copy.nk").write_text((tmp_path / "shot_v001.nk").read_text("utf-8"), "utf-8")
    nuke.scriptOpen(str(tmp_path / "job" / "copy.nk"))
    (found,) = find_all()
    found.claim()
    assert (found.id, found.cache) == (first_id, first_cache)


def test_two_nodes_with_one_cache_are_refused_where_nobody_can_answer(nuke: Any, comp: Any) -> None:
    from stm_nuke.errors import CacheError
    from stm_nuke.node import find_all

    comp.group.setSelected(True)
    nuke.nodeCopy("%clipboard%")
    nuke.nodePaste("%clipboard%")
    with pytest.raises(CacheError, match="STM2 and STM1 have one cache"):
        find_all()[1].claim()


def test_the_cache_of_an_unsaved_script_moves_next_to_it(
    nuke: Any, make_plate: PlateMaker, tmp_path: Path
) -> None:
    import stm_nuke.callbacks

    stm_nuke.callbacks.install()
    nuke.GUI = True
    node = stm_nuke.create(read_node(nuke, make_plate(FRAMES), FRAMES))
    assert node.cache.parent == tmp_path / "unsaved"
    make_mattes(node, FRAMES)
    (tmp_path / "show").mkdir()
    nuke.scriptSave(str(tmp_path / "show" / "new.nk"))
    assert node.cache.parent == tmp_path / "show" / "stm"
    assert "show/stm" in (tmp_path / "show" / "new.nk").read_text("utf-8")
    nuke.execute(write_of(nuke, node, tmp_path), 1001, 1003, 1)


def test_the_cache_can_be_put_into_a_chosen_folder(nuke: Any, comp: Any, tmp_path: Path) -> None:
    from stm_nuke import panel

    make_mattes(comp, FRAMES)
    comp.set("cache_place", "chosen folder")
    comp.set("cache_folder", (tmp_path / "fast disk").as_posix())
    panel.press(comp.group, "move_cache")
    assert comp.cache.parent == tmp_path / "fast disk"
    nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1003, 1)


def test_a_nodes_cache_is_in_the_folder_that_the_configuration_names(
    nuke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import cache, site

    from stm_plugin.configuration import configuration

    show, user = tmp_path / "show" / "show.toml", tmp_path / "user.toml"
    show.parent.mkdir()
    monkeypatch.setenv("STM_CONFIG", str(show))
    monkeypatch.setenv("STM_USER_CONFIG", str(user))
    monkeypatch.setenv("FAST", "/fast")
    monkeypatch.delenv("STM_CACHE", raising=False)
    for text, own, place in (
        ("device = 'cpu'\n", "", ""),
        ("cache_folder = 'near'  # in the show\n", "", (tmp_path / "show" / "near").as_posix()),
        ('locked = ["cache_folder"]\n"cache_folder" = "$FAST/blue"\n', "", "/fast/blue"),
        ("cache_folder='~/stm'\n", "cache_folder = '/mine'\n[finish]\nedges = 'off'\n", "/mine"),
        ("cache_folder='~/stm'\n[finish]\nedges = 'off'\n", "", (Path.home() / "stm").as_posix()),
    ):
        show.write_text(text)
        user.write_text(own)
        assert site.cache_folder() == place
        assert configuration()["cache_folder"] == (place or None), "the engine reads the same"
    script = (tmp_path / "script.nk").as_posix()
    assert cache.place_for("7", script, "") == Path.home() / "stm" / "STM_7" == cache.place_for("7", "", "")
    assert cache.place_for("7", script, "/chosen") == Path("/chosen/STM_7")
    monkeypatch.setenv("STM_CACHE_TEMPLATE", "/site/{script}/{id}")
    assert cache.place_for("7", script, "") == Path("/site/script/STM_7")


def test_a_cache_folder_that_cannot_be_written_is_said_in_words(nuke: Any, comp: Any, tmp_path: Path) -> None:
    from stm_nuke.errors import CacheError

    (tmp_path / "file").write_text("no folder")
    comp.set("cache_place", "chosen folder")
    comp.set("cache_folder", (tmp_path / "file").as_posix())
    with pytest.raises(CacheError, match=r"cannot be written.*Choose another folder"):
        comp.move_cache()


def test_a_node_that_can_have_no_cache_is_not_made_at_all(
    nuke: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    import stm_nuke
    from stm_nuke.errors import CacheError

    (tmp_path / "full").write_text("no folder")
    monkeypatch.setenv("STM_CACHE", str(tmp_path / "full"))
    with pytest.raises(CacheError):
        stm_nuke.create()
    assert stm_nuke.find_all() == []


# ---- pixels


def test_the_plate_is_taken_at_full_range_in_float_with_overscan_and_leaves_no_trace(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    grade = nuke.nodes.Grade(multiply=100000.0, add=-7.0)
    grade.setInput(0, comp.plate)
    comp.group.setInput(0, grade)
    nuke.root().setModified(False)
    before, undo = len(comp.group.nodes()), len(nuke._host.undo_steps)
    picture = captured(comp, 1002)
    values = np.frombuffer(b"".join(picture.planes[one] for one in "RGB"), "<f4").reshape(3, 56, 72)
    expected = pixels(tmp_path / "plate.1002.exr") * np.float32(100000) + np.float32(-7)
    np.testing.assert_array_equal(values.transpose(1, 2, 0), expected)
    assert picture.data_window == (-4, -4, 72, 56)
    assert picture.display_window == (0, 0, 64, 48)
    assert len(comp.group.nodes()) == before
    assert len(nuke._host.undo_steps) == undo
    assert not nuke.root().modified()


def test_proxy_mode_changes_nothing_about_the_pixels_and_is_on_again_afterwards(nuke: Any, comp: Any) -> None:
    whole = captured(comp, 1001)
    nuke.root()["proxy"].setValue(True)
    again = captured(comp, 1001)
    assert again.planes == whole.planes
    assert nuke.root()["proxy"].value() is True


def test_a_retimed_plate_gives_the_frame_that_is_seen(nuke: Any, comp: Any, tmp_path: Path) -> None:
    shifted = nuke.nodes.TimeOffset(time_offset=50)
    shifted.setInput(0, comp.plate)
    comp.group.setInput(0, shifted)
    assert comp.take_range_from_input() == (1051, 1053)
    found = captured(comp, 1052)
    expected = pixels(tmp_path / "plate.1002.exr")[..., 0].astype(np.float32)
    np.testing.assert_array_equal(np.frombuffer(bytes(found.planes["R"]), "<f4").reshape(56, 72), expected)


# ---- frames that are not whole


def retimed(nuke: Any, comp: Any, **knobs: Any) -> Any:
    """The plate at another speed, connected to the node."""
    retime = nuke.nodes.Retime(filter="none")
    for name, value in knobs.items():
        retime[name.replace("_", ".")].setValue(value)
    retime.setInput(0, comp.plate)
    comp.group.setInput(0, retime)
    return retime


def plane_of(picture: Any) -> Any:
    return np.frombuffer(bytes(picture.planes["R"]), "<f4").reshape(56, 72)


def test_a_retime_above_that_reads_between_frames_gives_every_whole_frame(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    retimed(nuke, comp, speed=0.5, input_first=1001.0, output_first=1001.0)
    assert comp.take_range_from_input() == (1001, 1005)
    for frame, source in ((1001, 1001), (1002, 1001), (1003, 1002), (1005, 1003)):
        expected = pixels(tmp_path / f"plate.{source}.exr")[..., 0].astype(np.float32)
        np.testing.assert_array_equal(plane_of(captured(comp, frame)), expected)


def test_a_time_warp_above_gives_the_frame_that_its_curve_says(nuke: Any, comp: Any, tmp_path: Path) -> None:
    warp = nuke.nodes.TimeWarp(filter="nearest")
    warp["lookup"].setExpression("(frame - 1001) * 0.75 + 1001")
    warp.setInput(0, comp.plate)
    comp.group.setInput(0, warp)
    expected = pixels(tmp_path / "plate.1002.exr")[..., 0].astype(np.float32)
    np.testing.assert_array_equal(plane_of(captured(comp, 1002)), expected)


def test_a_range_that_begins_between_two_frames_is_that_of_its_whole_frames(nuke: Any, comp: Any) -> None:
    from stm_nuke.errors import UsageError
    from stm_nuke.frames import whole_within

    retimed(nuke, comp, input_first=1001.0, output_first=1000.5)
    first, last = comp.take_range_from_input()
    assert (first, last) == (comp["first"], comp["last"])
    assert whole_within(1000.5, 1003.5) == (1001, 1003)
    assert whole_within(-0.5, 0.25) == (0, 0)
    with pytest.raises(UsageError, match=r"no whole frame from 1000.25 to 1000.75"):
        whole_within(1000.25, 1000.75)


def test_a_render_between_two_frames_fails_in_words_and_is_neither_black_nor_the_frame_beside_it(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    make_mattes(comp, FRAMES)
    slow = nuke.nodes.Retime(filter="none", speed=0.5)
    slow["input.first"].setValue(1001)
    slow["output.first"].setValue(1001)
    slow.setInput(0, comp.group)
    write = write_of(nuke, comp, tmp_path)
    write.setInput(0, slow)
    nuke.execute(write, 1003, 1003, 1)
    assert pixels(tmp_path / "out.1003.exr")[10, 10, 3] == 0.5
    with pytest.raises(
        RuntimeError, match=r"STM1\.guard: NO MATTE HERE - .*Between two frames there is none: retime above"
    ):
        nuke.execute(write, 1002, 1002, 1)
    assert not (tmp_path / "out.1002.exr").exists()
    slow["filter"].setValue("nearest")  # one that takes whole frames is as good as any
    nuke.execute(write, 1002, 1002, 1)
    slow["filter"].setValue("none")
    slow["speed"].setValue(1.0000001)  # rounding is no fraction
    nuke.execute(write, 1002, 1002, 1)


def test_a_saved_script_fails_between_two_frames_without_the_plug_in_too(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    make_mattes(comp, FRAMES)
    write_of(nuke, comp, tmp_path).setName("Out")
    nuke.scriptSave()
    nuke.scriptOpen(str(tmp_path / "shot_v001.nk"))
    assert "expression {{frame >= 1001 && frame <= 1003 && abs(frame - rint(frame)) < 0.001}}" in (
        tmp_path / "shot_v001.nk"
    ).read_text("utf-8")
    group = nuke.toNode("STM1")
    nuke.execute("Out", 1001, 1001, 1)
    group.node("guard")["expression"].setExpression("frame == floor(frame) - 1")
    with pytest.raises(RuntimeError, match="NO MATTE HERE"):
        nuke.execute("Out", 1001, 1001, 1)


@pytest.mark.parametrize("button", ["set_key", "delete_key", "forward", "backward", "span"])
def test_a_button_at_the_current_frame_is_refused_between_two_frames(
    nuke: Any, comp: Any, button: str
) -> None:
    nuke.GUI = True
    nuke.root()["frame"].setValue(1001.5)
    comp.group[button].execute()
    (words,) = nuke._host.messages
    assert words.startswith("1001.5 is not a whole frame")
    assert "retime belongs above the STM node" in words
    assert comp.keys == ()


def test_the_next_key_is_found_from_between_two_frames(nuke: Any, comp: Any) -> None:
    from stm_nuke.keys import Key

    nuke.GUI = True
    comp.set_keys([Key("main", frame, "digest", "file") for frame in (1001, 1002)])
    nuke.root()["frame"].setValue(1001.5)
    comp.group["next_key"].execute()
    assert nuke.frame() == 1002
    nuke.root()["frame"].setValue(1001.5)
    comp.group["previous_key"].execute()
    assert nuke.frame() == 1001


def test_scripts_are_refused_keys_and_ranges_between_two_frames(nuke: Any, comp: Any) -> None:
    import stm_nuke

    nan: Any = float("nan")
    half: Any = 1001.5
    for act in (
        lambda: stm_nuke.set_key(comp, half),
        lambda: stm_nuke.delete_key(comp, half),
        lambda: stm_nuke.propagate(comp, (1001, half)),
        lambda: stm_nuke.bake(comp, "nowhere", (half, 1002)),
        lambda: stm_nuke.set_key(comp, nan),
    ):
        with pytest.raises(stm_nuke.StmNodeError, match="is not a whole frame") as caught:
            act()
        assert caught.value.exit_code == 2
    assert comp.keys == ()


def test_each_view_is_rendered_as_that_view(nuke: Any, comp: Any) -> None:
    nuke.addView("left")
    captured(comp, 1001, "left")
    assert nuke._host.executed[-1][1:] == (1001, "left")
    assert "%V" in comp.group.node("matte")["file"].value()


def test_a_plate_frame_that_cannot_be_rendered_is_named(nuke: Any, comp: Any, tmp_path: Path) -> None:
    from stm_nuke.errors import PlateError

    (tmp_path / "plate.1002.exr").unlink()
    with pytest.raises(PlateError, match=r"frame 1002: The plate of STM1 cannot be rendered: .*No such file"):
        captured(comp, 1002)


def test_cancel_in_nukes_own_progress_bar_stops_and_is_no_error(nuke: Any, comp: Any) -> None:
    from stm_nuke.errors import Stopped

    nuke._host.cancel_execute = True
    with pytest.raises(Stopped):
        captured(comp, 1001)


def test_an_endless_bounding_box_is_refused_before_it_fills_the_disk(nuke: Any, comp: Any) -> None:
    from stm_nuke.errors import PlateError

    crop = nuke.nodes.Crop(box=[-500, -500, 500, 500])
    crop.setInput(0, comp.plate)
    comp.group.setInput(0, crop)
    with pytest.raises(PlateError, match=r"bounding box of 1000 x 1000 pixels.*Crop"):
        captured(comp, 1001)
    assert nuke._host.executed == []


def test_a_mask_of_another_size_or_without_the_channel_is_refused_in_words(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke import capture
    from stm_nuke.errors import KeyframeError

    comp.set("objects", "disc = disc.alpha")
    with pytest.raises(KeyframeError, match=r"no channel disc.alpha for the object disc. It has rgba.blue"):
        capture.masks(comp, 1001, "main")
    write_exr(tmp_path / "small.exr", np.ones((10, 10, 1), np.float32), channels=("A",))
    comp.set("objects", "disc")
    comp.group.setInput(1, read_node(nuke, str(tmp_path / "small.exr"), FRAMES))
    with pytest.raises(KeyframeError, match="is 10 x 10, the plate is 64 x 48"):
        capture.masks(comp, 1001, "main")


def test_five_objects_come_from_five_channels(nuke: Any, comp: Any, tmp_path: Path) -> None:
    from stm_nuke import capture

    names = ["a", "b", "c", "d", "e"]
    values = np.stack([np.full((48, 64), 0.1 * (index + 1), np.float32) for index in range(5)], axis=-1)
    write_exr(tmp_path / "five.exr", values, channels=tuple(f"{name}.A" for name in names))
    comp.group.setInput(1, read_node(nuke, str(tmp_path / "five.exr"), FRAMES))
    comp.set("objects", "\n".join(f"{name} = {name}.alpha" for name in names))
    found = capture.masks(comp, 1002, "main")
    for index, name in enumerate(names):
        plane = np.frombuffer(bytes(found.planes[name]), "<f4")
        np.testing.assert_allclose(plane, 0.1 * (index + 1), rtol=1e-3)


# ---- noticing changes


def test_the_print_of_the_plate_holds_what_makes_the_picture_and_nothing_else(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    grade = nuke.nodes.Grade()
    grade.setInput(0, comp.plate)
    comp.group.setInput(0, grade)
    first = comp.plate_fingerprint()
    grade.setXYpos(500, 500)
    grade["label"].setValue("moved")
    grade.setName("MyGrade")
    comp.set("status", "something else")
    assert comp.plate_fingerprint() == first
    grade["multiply"].setValue(2.0)
    graded = comp.plate_fingerprint()
    assert graded != first
    grade["multiply"].setValue(1.0)
    assert comp.plate_fingerprint() == first
    os.utime(tmp_path / "plate.1002.exr", ns=(1, 1))
    assert comp.plate_fingerprint() != first


def test_a_render_is_refused_when_the_graph_above_the_plate_has_changed(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    nuke.GUI = True
    make_mattes(comp, FRAMES)
    comp.set("stm_plate_print", comp.plate_fingerprint())
    write = write_of(nuke, comp, tmp_path)
    nuke.execute(write, 1001, 1001, 1)
    grade = nuke.nodes.Grade(multiply=2.0)
    grade.setInput(0, comp.plate)
    comp.group.setInput(0, grade)
    with pytest.raises(RuntimeError, match=r"above the plate of STM1 have changed.*Check plate"):
        nuke.execute(write, 1001, 1001, 1)
    comp.group["strict_render"].setValue(False)
    nuke.execute(write, 1001, 1001, 1)


# ---- what the panel says


@pytest.mark.parametrize("name", ["mask", "rotopaint_mask", "depth", "forward", "backward", "RGBA", "alpha"])
def test_names_that_nuke_gives_a_meaning_of_its_own_are_no_objects(nuke: Any, comp: Any, name: str) -> None:
    from stm_nuke.errors import UsageError

    comp.set("objects", f"{name} = rgba.red")
    with pytest.raises(UsageError, match="NAME is no layer of Nuke's own"):
        print(comp.objects)


@pytest.mark.parametrize("text", ["", "rgba = rgba.alpha", "two words = rgba.red", "a\na", "9lives"])
def test_objects_that_cannot_be_are_refused_in_words(nuke: Any, comp: Any, text: str) -> None:
    from stm_nuke.errors import UsageError

    comp.set("objects", text)
    with pytest.raises(UsageError, match="STM1"):
        print(comp.objects)


def test_the_region_is_told_to_the_engine_from_the_top(nuke: Any, comp: Any) -> None:
    comp.set("use_region", True)
    comp.set("region", [10.0, 4.0, 42.0, 20.0])
    assert comp.settings()["region"] == [10, 28, 32, 16]


def test_the_scripts_working_space_is_the_default_colour_space(
    nuke: Any, comp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comp.settings()["colour_space"] == "Linear Rec.709 (sRGB)"
    nuke.root()["colorManagement"].setValue("OCIO")
    nuke.root()["OCIO_config"].setValue("custom")
    nuke.root()["customOCIOConfigPath"].setValue("/show/config.ocio")
    nuke.root()["workingSpaceLUT"].setValue("ACES - ACEScg")
    assert comp.settings()["colour_space"] == "ACES - ACEScg"
    assert comp.settings()["ocio_config"] == "/show/config.ocio"
    monkeypatch.setenv("OCIO", "/studio/config.ocio")
    assert comp.settings()["ocio_config"] is None
    comp.set("colour_space", "ACEScct")
    assert comp.settings()["colour_space"] == "ACEScct"


def test_a_button_shows_its_error_in_a_dialog_and_in_the_status_line(nuke: Any, comp: Any) -> None:
    nuke.GUI = True
    comp.group["next_key"].execute()
    assert nuke._host.messages == ["There is no keyframe after frame 1. It has no keyframe yet."]
    assert comp["status"] == nuke._host.messages[0]


def test_without_an_engine_a_key_is_kept_and_the_status_says_what_is_missing(
    nuke: Any, comp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from stm_nuke import cache, verbs

    for name in ("STM_ENGINE_PYTHON", "STM_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    make_mattes(comp, FRAMES)
    verbs.set_key(comp, 1002, "main")
    assert [key.frame for key in comp.keys] == [1002]
    assert "not installed" in comp["status"]
    assert cache.fresh_mattes(comp.cache, "main", FRAMES) == set(), "what may be stale must not be rendered"


def test_the_menu_makes_a_node_behind_the_selected_plate_and_mask(
    nuke: Any, make_plate: PlateMaker, tmp_path: Path
) -> None:
    import importlib

    nuke.GUI = True
    init = importlib.machinery.SourceFileLoader("stm_init", "nuke/init.py")
    menu = importlib.machinery.SourceFileLoader("stm_menu", "nuke/menu.py")
    for one in (init, menu):
        exec(compile(one.get_source(one.name) or "", one.path, "exec"), {"__name__": one.name})
    plate = read_node(nuke, make_plate(FRAMES), FRAMES)
    mask = read_node(nuke, str(tmp_path / "plate.mask.%04d.png"), FRAMES, raw=True)
    plate.setSelected(True)
    mask.setSelected(True)
    nuke.menu("Nodes").findItem("STM").findItem("STM").invoke()
    from stm_nuke.node import find_all

    (node,) = find_all()
    assert (node.plate, node.mask) == (plate, mask)
    assert node.frames == (1001, 1003)
    assert node.group.shown()


def test_arguments_are_found_whatever_nuke_has_made_of_them(nuke: Any) -> None:
    from stm_nuke.commandline import own_arguments

    raw = ["/opt/Nuke15.1", "-t", "/plug/stm_batch.py", "--script", "a.nk", "--frames=1001-1100", "1001-1100"]
    assert own_arguments(raw) == ["--script", "a.nk", "--frames=1001-1100", "1001-1100"]


# ---- threads


def test_an_error_in_the_main_thread_reaches_the_thread_that_asked(nuke: Any) -> None:
    from stm_nuke import tasks
    from stm_nuke.errors import PlateError

    nuke.GUI = True
    seen: list[object] = []

    def broken() -> None:
        seen.append(threading.current_thread())
        raise PlateError("It is broken.")

    def ask() -> None:
        try:
            tasks.in_main(broken)
        except PlateError as error:
            seen.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    nuke._host.pump(lambda: not thread.is_alive())
    assert seen == [threading.main_thread(), "It is broken."]
