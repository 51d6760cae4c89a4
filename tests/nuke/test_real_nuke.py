"""The node survives what a real Nuke does to nodes, according to its documents and public code."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_exr
from tests.nuke.comps import FRAMES, captured, idle, make_mattes, pixels, read_node, write_of

# ---- walks through groups


def in_a_group(nuke: Any, source: Any) -> Any:
    """A Group with an Input and an Output, connected to a node."""
    outer = nuke.nodes.Group()
    with outer:
        nuke.nodes.Output().setInput(0, nuke.nodes.Input())
    outer.setInput(0, source)
    return outer


def test_the_stand_in_ends_a_walk_at_the_input_of_a_group(nuke: Any, comp: Any) -> None:
    outer = in_a_group(nuke, comp.group)
    inside = next(one for one in outer.nodes() if one.Class() == "Input")
    every_kind = nuke.INPUTS | nuke.HIDDEN_INPUTS | nuke.EXPRESSIONS | nuke.LINKINPUTS
    assert inside.dependencies(every_kind) == []


def test_a_change_above_a_group_is_seen_by_a_node_inside_it(nuke: Any, comp: Any) -> None:
    import stm_nuke

    grade = nuke.nodes.Grade()
    grade.setInput(0, comp.plate)
    outer = in_a_group(nuke, grade)
    with outer:
        inside = stm_nuke.create(next(one for one in outer.nodes() if one.Class() == "Input"))
    before = inside.plate_fingerprint()
    grade["multiply"].setValue(2.0)
    changed = inside.plate_fingerprint()
    assert changed != before
    outer.setInput(0, comp.plate)
    assert inside.plate_fingerprint() not in (before, changed)


def test_a_write_inside_a_group_is_checked_as_any_other(nuke: Any, comp: Any, tmp_path: Path) -> None:
    make_mattes(comp, FRAMES)
    comp.group["overlay"].setValue(True)
    outer = in_a_group(nuke, comp.group)
    with outer:
        write = write_of(nuke, comp, tmp_path)
        write.setInput(0, next(one for one in outer.nodes() if one.Class() == "Input"))
    with pytest.raises(RuntimeError, match="STM1 shows its overlay"):
        nuke.execute(write, 1001, 1001, 1)


def test_files_that_are_named_by_tcl_a_view_or_a_filter_are_looked_at(
    nuke: Any, comp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "by the script": "[file dirname [value root.name]]/plate.%04d.exr",
        "by the environment": "[getenv STM_TEST_PLATES]/plate.%04d.exr",
        "by a view": f"{tmp_path.parent.as_posix()}/%V/plate.%04d.exr",
        "by a filter": "/elsewhere/plate.%04d.exr",
    }
    monkeypatch.setenv("STM_TEST_PLATES", tmp_path.as_posix())
    nuke.addFilenameFilter(lambda name: name.replace("/elsewhere", tmp_path.as_posix()))
    nuke._host.views[:], nuke._host.viewer_view = [tmp_path.name], tmp_path.name
    for how, name in names.items():
        comp.group.setInput(0, read_node(nuke, name, FRAMES))
        assert captured(comp, 1002, tmp_path.name).planes, how
        before = comp.plate_fingerprint()
        os.utime(tmp_path / "plate.1002.exr")
        assert comp.plate_fingerprint() != before, how


def test_the_life_of_a_node_belongs_to_the_picture(nuke: Any, comp: Any) -> None:
    from stm_nuke import fingerprint

    assert not {"useLifetime", "lifetimeStart", "lifetimeEnd"} & fingerprint._NOT_PICTURE


# ---- knobs


def test_the_stand_in_gives_one_number_for_a_box_that_nobody_has_drawn(nuke: Any, comp: Any) -> None:
    assert comp["region"] == 0.0
    comp.set("region", [1.0, 2.0, 3.0, 4.0])
    assert comp["region"] == [1.0, 2.0, 3.0, 4.0]


def test_a_region_that_nobody_has_drawn_is_refused_in_words(nuke: Any, comp: Any) -> None:
    from stm_nuke.errors import UsageError

    comp.set("use_region", True)
    with pytest.raises(UsageError, match=r"region of STM1 is empty.*Draw it, or switch it off"):
        comp.settings()


# ---- names of layers


@pytest.mark.parametrize(
    "name",
    ["9lives", "left-arm", "arm:left", "Ci", "disparityL", "mask_splinewarp", "stm", "fg", "main", "Depth"],
)
def test_a_layer_that_the_exr_reader_would_rename_is_refused_in_words(
    nuke: Any, comp: Any, name: str
) -> None:
    from stm_nuke.errors import UsageError

    comp.set("objects", f"{name} = rgba.red\nother = rgba.green")
    with pytest.raises(UsageError, match="cannot be used: "):
        print(comp.objects)


@pytest.mark.parametrize("name", ["hero", "hero_2", "_x", "R", "Leftarm"])
def test_a_layer_that_is_accepted_comes_back_from_an_exr_file_under_its_name(
    nuke: Any, comp: Any, tmp_path: Path, name: str
) -> None:
    comp.set("objects", f"{name} = rgba.red\nother = rgba.green")
    (layer, other) = (one.name for one in comp.objects)
    names = (f"{layer}.A", f"{other}.A")
    write_exr(tmp_path / "two.exr", np.ones((4, 4, 2), np.float32), channels=names)
    read = read_node(nuke, str(tmp_path / "two.exr"), FRAMES)
    assert read.channels() == sorted((f"{name}.alpha", "other.alpha"))


# ---- callbacks


def test_the_stand_in_lets_no_callback_edit_the_graph(nuke: Any, comp: Any, tmp_path: Path) -> None:
    make_mattes(comp, FRAMES)
    write = write_of(nuke, comp, tmp_path)
    for add in (nuke.addBeforeRender, nuke.addKnobChanged):
        nuke._host.listeners.clear()
        add(lambda: nuke.nodes.Dot())
        with pytest.raises(RuntimeError, match="the graph cannot be edited in"):
            if add is nuke.addBeforeRender:
                nuke.execute(write, 1001, 1001, 1)
            else:
                comp.group["first"].setValue(1000)


def test_an_error_of_ours_in_a_callback_does_not_end_the_callbacks_of_others(
    nuke: Any, comp: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stm_nuke import knobs

    heard: list[str] = []
    nuke.GUI = True
    nuke.addKnobChanged(lambda: heard.append(nuke.thisKnob().name()))

    def detached(node: Any) -> bool:
        raise ValueError("A PythonObject is not attached to a node")

    monkeypatch.setattr(knobs, "is_stm_node", detached)
    comp.group["first"].setValue(1000)
    assert "first" in heard
    assert "not attached" in capsys.readouterr().err


def test_reading_a_script_calls_nothing_of_ours_before_it_is_read(nuke: Any, comp: Any) -> None:
    from stm_nuke import callbacks

    nuke.GUI = True
    nuke.scriptOpen(nuke.root().name())
    assert {event for _, event in callbacks._waiting} <= {"created", "first", "last", "inputChange"}
    before = comp.cache
    idle(nuke)
    assert callbacks._waiting == []
    assert stm_node(nuke).cache == before


def stm_node(nuke: Any) -> Any:
    from stm_nuke.node import find_all

    (found,) = find_all()
    return found


def test_a_changed_range_reaches_the_inside_when_nuke_is_idle(nuke: Any, comp: Any) -> None:
    nuke.GUI = True
    comp.group["last"].setValue(1002)
    assert comp.group.node("matte")["last"].value() == 1003
    idle(nuke)
    assert comp.group.node("matte")["last"].value() == 1002
    assert "frame <= 1002" in comp.group.node("guard")["expression"].toScript()


def test_a_clone_shares_its_cache_and_is_never_forked(nuke: Any, comp: Any) -> None:
    from stm_nuke.node import find_all

    nuke.GUI = True
    before = comp.id
    nuke.clone(comp.group, "", False)
    idle(nuke)
    for one in find_all():
        one.claim()
        assert one.id == before


def test_opening_a_panel_takes_little_time_in_a_large_script(
    nuke: Any, comp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import callbacks
    from stm_nuke.keys import Key

    nuke.GUI = True
    comp.set_keys([Key("main", 1001, "digest", comp.mask_fingerprint())])
    comp.group.showControlPanel()
    assert comp["key_list"] == "1001  fresh"
    monkeypatch.setattr(callbacks, "PANEL_SECONDS", -1.0)
    comp.group.showControlPanel()
    assert comp["key_list"] == "1001  press Refresh status"


# ---- what the artist sees on a frame without a matte


def seen(nuke: Any, node: Any, frame: float) -> Any:
    """The picture of a node in a Viewer."""
    return nuke._pixels.render(node.group, frame, "main")


@pytest.mark.parametrize("frame", [1000, 1002, 1004, 1001.5])
def test_in_the_window_a_frame_without_a_matte_is_the_plate_with_a_note_and_a_render_fails(
    nuke: Any, comp: Any, tmp_path: Path, frame: float
) -> None:
    from stm_nuke import cache

    make_mattes(comp, FRAMES)
    cache.matte_path(comp.cache, "main", 1002).unlink()
    comp.show_timeline("main")
    nuke.GUI = True
    picture = seen(nuke, comp, frame)
    assert (picture.planes["rgba.red"][:2] == 1).all(), "the note"
    assert "rgba.alpha" not in picture.planes
    whole = seen(nuke, comp, 1001)
    assert (whole.planes["rgba.alpha"][8:40, 8:40] == 0.5).all()
    if frame == int(frame):
        with pytest.raises(RuntimeError, match=r"STM1\.(matte|guard)"):
            nuke.execute(write_of(nuke, comp, tmp_path), int(frame), int(frame), 1)


def test_a_render_can_hold_the_last_matte_where_the_artist_chose_so(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    make_mattes(comp, range(1002, 1003), 0.25)
    nuke.GUI = True
    comp.group["missing_matte"].setValue("hold the last matte")
    idle(nuke)
    write = write_of(nuke, comp, tmp_path)
    nuke.execute(write, 1002, 1003, 1)
    assert pixels(tmp_path / "out.1003.exr")[20, 20, 3] == 0.25
    np.testing.assert_array_equal(
        pixels(tmp_path / "out.1003.exr")[..., 0], pixels(tmp_path / "plate.1003.exr")[..., 0]
    )
    with pytest.raises(RuntimeError, match=r"STM1\.matte: .*1001"):
        nuke.execute(write, 1001, 1001, 1)
    comp.group["missing_matte"].setValue("fail")
    idle(nuke)
    with pytest.raises(RuntimeError, match=r"STM1\.matte: .*1003"):
        nuke.execute(write, 1003, 1003, 1)


def test_a_flipbook_shows_the_overlay_and_a_render_is_refused(nuke: Any, comp: Any, tmp_path: Path) -> None:
    make_mattes(comp, FRAMES)
    comp.show_timeline("main")
    comp.group["overlay"].setValue(True)
    nuke.GUI = True
    for name, is_refused in (("Flipbook", False), ("MyGroup", True)):
        outer = nuke.nodes.Group(name=name)
        with outer:
            source = nuke.nodes.Input()
            write = write_of(nuke, comp, tmp_path, name)
            write.setInput(0, source)
        outer.setInput(0, comp.group)
        if is_refused:
            with pytest.raises(RuntimeError, match="shows its overlay"):
                nuke.execute(write, 1001, 1001, 1)
        else:
            nuke.execute(write, 1001, 1001, 1)
            assert pixels(tmp_path / f"{name}.1001.exr")[20, 20, 0] > 0.25


def test_the_timeline_marks_keyframes_the_advised_frame_and_where_mattes_begin_and_end(
    nuke: Any, comp: Any
) -> None:
    from stm_nuke.keys import Key
    from stm_nuke.timeline import curve_of, held_curve_of, states_of

    fresh = set(range(1001, 1007))
    states = states_of((1001, 1008), fresh, old={1007}, keys={1001, 1008})
    assert curve_of(states, {1001, 1004, 1008}) == (
        "{{curve K x1000 0 x1001 3 x1002 1 x1004 1 x1007 2 x1008 0 x1009 0}}"
    )
    assert held_curve_of(states).endswith("x1007 1007 x1008 1007}}")
    comp.set_keys([Key("main", 1002, "digest", "file")])
    make_mattes(comp, range(1001, 1003))
    nuke.root().setModified(False)
    comp.show_timeline("main", advised=1001)
    assert comp.group["timeline"].getKeyList() == [1000, 1001, 1002, 1003, 1004]
    assert [comp.group["timeline"].getValueAt(frame) for frame in range(1000, 1005)] == [0, 1, 3, 0, 0]
    assert not nuke.root().modified()


def test_the_inside_of_a_node_has_no_more_than_ten_nodes_until_there_is_a_second_object(
    nuke: Any, comp: Any
) -> None:
    assert len(comp.group.nodes()) == 10
    comp.set("objects", "\n".join(f"object_{number} = rgba.red" for number in range(6)))
    comp.offer_objects()
    assert len(comp.group.nodes()) == 12
    copies = [comp.group.node(name) for name in ("objects_1", "objects_2")]
    assert comp.group.node("overlay").input(0) is copies[1]
    assert copies[1].input(0) is copies[0]
    assert copies[1]["to1"].value() == "object_5.alpha"
    assert copies[1]["to2"].value() == "none"


# ---- rendering while Nuke renders


class Receiver:
    """Takes plate frames as the engine's session does."""

    def __init__(self, comp: Any, scratch: Path) -> None:
        self.frames: list[int] = []
        self.dirty: set[int] = set()
        self.snapshot = comp.snapshot("main")
        self.scratch = scratch

    def push_plate(self, frame: int, path: Path, fingerprint: str, metadata: Any) -> bool:
        self.frames.append(frame)
        assert self.scratch in path.parents
        assert pixels(path).shape == (56, 72, 3)
        return True


def plate_work(comp: Any) -> tuple[Any, Any]:
    from stm_nuke import tasks, verbs

    work = verbs._PlateWork(comp.snapshot("main"), "print")
    return work, tasks.Task(comp.id, "test", lambda task: None)


def test_the_plate_is_rendered_in_runs_of_frames_and_each_scratch_file_goes(
    nuke: Any, comp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import capture

    runs: list[Any] = []
    render_plate = capture.render_plate
    scratch: list[Path] = []

    def counted(node: Any, frames: Any, view: str, folder: Path) -> Any:
        runs.append(frames)
        found = render_plate(node, frames, view, folder)
        scratch.append(found.pattern.parent)
        return found

    monkeypatch.setattr(capture, "render_plate", counted)
    work, task = plate_work(comp)
    received = Receiver(comp, tmp_path)
    work._push(received, list(FRAMES), task)
    assert received.frames == list(FRAMES)
    assert runs == [(1001, 1001), (1002, 1003)]
    assert not any(one.exists() for one in scratch)
    runs.clear()
    work._push(received, [1001, 1003], task)
    assert runs == [(1001, 1001), (1003, 1003)], "only what is needed"


def test_a_run_of_frames_names_the_one_that_cannot_be_rendered(nuke: Any, comp: Any, tmp_path: Path) -> None:
    from stm_nuke import capture
    from stm_nuke.errors import PlateError

    (tmp_path / "plate.1003.exr").unlink()
    with pytest.raises(PlateError, match="frame 1003: The plate of STM1 cannot be rendered"):
        capture.render_plate(comp, (1001, 1003), "main", tmp_path)


def test_a_button_during_another_render_is_refused_in_words_and_leaves_nothing(nuke: Any, comp: Any) -> None:
    nuke.GUI = True
    nuke.frame(1001)
    nuke._host.executing = True
    comp.group["set_key"].execute()
    assert nuke._host.messages == ["Nuke is rendering something else. Wait for its end, then try again."]
    assert comp.keys == ()
    assert len(comp.group.nodes()) == 10


def test_a_task_waits_while_nuke_renders_something_else(nuke: Any, comp: Any, tmp_path: Path) -> None:
    nuke.GUI = True
    work, task = plate_work(comp)
    received = Receiver(comp, tmp_path)
    nuke._host.executing = True
    thread = threading.Thread(target=work._push, args=(received, [1001], task))
    thread.start()
    waited: list[int] = []

    def is_over() -> bool:
        waited.append(1)
        if len(waited) == 60:
            assert received.frames == []
            nuke._host.executing = False
        return not thread.is_alive()

    nuke._host.pump(is_over, seconds=60)
    assert received.frames == [1001]


def test_a_studios_defaults_for_writes_do_not_reach_ours(nuke: Any, comp: Any, tmp_path: Path) -> None:
    before = captured(comp, 1002)
    for place, value in (
        ("Write.use_limit", True),
        ("Write.datatype", "16 bit half"),
        ("Write.file_type", "png"),
        ("Write.compression", "PIZ Wavelet (32 scanlines)"),
        ("Write.beforeRender", "raise RuntimeError('the studio publishes')"),
    ):
        nuke.knobDefault(place, value)
    with pytest.raises(RuntimeError, match="the studio publishes"):
        nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)
    assert captured(comp, 1002).planes == before.planes


# ---- older nodes, other editions


def older(nuke: Any, node: Any) -> Any:
    """A node of the first release: no `fix`, other nodes inside, other knobs."""
    group = node.group
    matte, plate = group.node("matte"), group.node("plate")
    for one in group.nodes():
        if one.name() not in ("matte", "plate", "mask", "to_channel", "Output1"):
            nuke.delete(one)
    for name in ("first", "last"):
        matte[name].setValue(-1000000 if name == "first" else 1000000)
    group.node("to_channel").setInput(1, matte)
    group.node("to_channel")["to0"].setValue("rgba.red")
    group.node("Output1").setInput(0, group.node("to_channel"))
    assert plate is not None
    later = (
        "confidence",
        "foreground",
        "edges",
        "edge_width",
        "compare",
        "set_key_from_fix",
        "keys_from_roto",
    )
    for name in ("stm_version", "timeline", "stm_held", "stm_fixing", "missing_matte", "correct", *later):
        group.removeKnob(group[name])
    kept = nuke.Boolean_Knob("keep_stale", "keep stale mattes")
    kept.setValue(True)
    group.addKnob(kept)
    return node


def test_a_node_of_an_older_release_renders_as_it_is_and_is_upgraded_when_it_is_used(
    nuke: Any, comp: Any, tmp_path: Path, capsys: Any
) -> None:
    from stm_nuke.keys import Key

    make_mattes(comp, FRAMES, 0.25)
    comp.set_keys([Key("main", 1001, "digest", "file")])
    plate, mask = comp.plate, comp.mask
    older(nuke, comp)
    write = write_of(nuke, comp, tmp_path)
    nuke.execute(write, 1001, 1001, 1)
    assert pixels(tmp_path / "out.1001.exr")[20, 20, 0] == 0.25
    nuke.GUI = True
    comp.group.showControlPanel()
    nuke.execute(write, 1001, 1001, 1)
    nuke.GUI = False
    nuke.scriptSave()
    assert capsys.readouterr().err == ""
    comp.claim()
    assert (comp.plate, comp.mask, comp.group.input(2)) == (plate, mask, None)
    assert [key.frame for key in comp.keys] == [1001]
    assert comp["missing_matte"] == "take the old matte"
    assert comp.group.knob("keep_stale") is None
    assert len(comp.group.nodes()) == 10
    nuke.execute(write, 1002, 1002, 1)
    assert pixels(tmp_path / "out.1002.exr")[20, 20, 0] == 0.25
    with pytest.raises(RuntimeError, match="NO MATTE HERE"):
        nuke.execute(write, 1004, 1004, 1)
    nodes = comp.group.nodes()
    comp.claim()
    assert comp.group.nodes() == nodes, "once"


@pytest.mark.parametrize("edition", ["indie", "nc"])
def test_where_python_reaches_ten_nodes_one_object_works_and_more_are_refused_in_words(
    nuke: Any, comp: Any, tmp_path: Path, edition: str
) -> None:
    from stm_nuke.errors import StmNodeError

    nuke.env[edition] = True
    nuke._host.reach = 10
    make_mattes(comp, FRAMES)
    comp.claim()
    assert captured(comp, 1001).planes
    nuke.execute(write_of(nuke, comp, tmp_path), 1001, 1001, 1)
    comp.set("objects", "a = rgba.red\nb = rgba.green")
    with pytest.raises(StmNodeError, match=r"Python reaches 10 nodes, and a second object needs more"):
        comp.offer_objects()
    assert len(comp.group._nodes) == 10


def test_where_python_does_not_reach_the_inside_no_node_is_made_and_words_say_so(
    nuke: Any, comp: Any
) -> None:
    import stm_nuke

    nuke.env["indie"] = True
    nuke._host.reach = 4
    count = len(nuke.root()._nodes)
    with pytest.raises(stm_nuke.StmNodeError, match="Nuke Indie does not let Python reach"):
        stm_nuke.create(comp.plate)
    assert len(nuke.root()._nodes) == count


# ---- where the cache is


def test_a_project_that_moved_finds_the_cache_that_came_along(nuke: Any, comp: Any, tmp_path: Path) -> None:
    import shutil

    from stm_nuke import cache

    make_mattes(comp, FRAMES)
    (tmp_path / "old").mkdir()
    nuke.scriptSaveAs(str(tmp_path / "old" / "shot.nk"))
    comp.claim()
    before = comp.id
    comp.set("stm_home", (tmp_path / "old" / "shot.nk").as_posix())
    comp._settle(before, comp.cache)
    nuke.scriptSave()
    shutil.move(str(tmp_path / "old"), str(tmp_path / "new"))
    nuke.scriptOpen(str(tmp_path / "new" / "shot.nk"))
    found = stm_node(nuke)
    found.claim()
    assert found.id == before
    assert found.cache == tmp_path / "new" / "stm" / f"STM_{before}"
    assert cache.fresh_mattes(found.cache, "main", FRAMES) == set(FRAMES)
    assert not (tmp_path / "old").exists()
    assert found.group.node("matte")["file"].value().startswith((tmp_path / "new").as_posix())


def test_a_cache_is_found_by_the_filter_that_maps_a_studios_paths(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    real = comp.cache
    nuke.addFilenameFilter(lambda name: name.replace("Z:/shows", real.parent.as_posix()))
    comp.set("cache_path", f"Z:/shows/{real.name}")
    comp.claim()
    assert comp.cache == real


def test_a_site_says_where_caches_are(
    nuke: Any, comp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import cache
    from stm_nuke.errors import CacheError

    def place(template: str) -> Path:
        monkeypatch.setenv("STM_CACHE_TEMPLATE", template)
        return cache.place_for("0a1b", "/shots/010/comp_v1.nk", "")

    assert place("/fast/{script}/{id}") == Path("/fast/comp_v1/STM_0a1b")
    assert place("{script_folder}/../cache") == Path("/shots/010/../cache/STM_0a1b"), "never two in one"
    with pytest.raises(CacheError, match=r"STM_CACHE_TEMPLATE cannot be understood.*\{script\}"):
        place("/fast/{show}")


def test_a_copy_takes_keyframes_and_mattes_at_once_and_the_shot_store_when_it_is_needed(
    tmp_path: Path,
) -> None:
    from stm_nuke import cache

    first, second, third = (tmp_path / f"STM_{number}" for number in range(3))
    cache.make(first)
    store = first / "shot.main.stmshot"
    (store / "memory").mkdir(parents=True)
    for path in (first / "keys" / "a.exr", first / "mattes" / "matte.main.1001.exr", store / "memory" / "f"):
        path.write_text("content")
    (store / "LOCK").write_text("held")
    cache.fork(first, second)
    cache.fork(second, third)
    assert (third / "keys" / "a.exr").is_file()
    assert (third / "mattes" / "matte.main.1001.exr").is_file()
    assert not (third / store.name).exists()
    cache.complete(third)
    for copy in (second, third):
        assert (copy / store.name / "memory" / "f").read_text() == "content"
        assert not (copy / store.name / "LOCK").exists()
        assert not (copy / "copy_of.txt").exists()
    cache.complete(third)


def test_a_copy_whose_source_is_gone_costs_time_and_nothing_else(tmp_path: Path) -> None:
    import shutil

    from stm_nuke import cache

    first, second = tmp_path / "STM_0", tmp_path / "STM_1"
    cache.make(first)
    (first / "keys" / "a.exr").write_text("mask")
    cache.fork(first, second)
    shutil.rmtree(first)
    cache.complete(second)
    assert (second / "keys" / "a.exr").read_text() == "mask"


def test_a_copy_of_a_copy_that_cannot_be_written_gets_the_shot_store_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old version lies in an archive, and was itself a copy that nobody worked in."""
    from stm_nuke import cache
    from stm_nuke.errors import CacheError

    first, archived, third = (tmp_path / f"STM_{number}" for number in range(3))
    cache.make(first)
    (first / "shot.main.stmshot").mkdir()
    (first / "shot.main.stmshot" / "shot.json").write_text("{}")
    cache.fork(first, archived)
    cache.fork(archived, third)
    copy_tree = cache._copy_tree

    def read_only(source: Path, target: Path) -> None:
        if archived in target.parents:
            raise OSError(30, "Read-only file system")
        copy_tree(source, target)

    monkeypatch.setattr(cache, "_copy_tree", read_only)
    cache.complete(third)
    assert (third / "shot.main.stmshot" / "shot.json").is_file()
    assert not (third / "copy_of.txt").exists()
    assert (archived / "copy_of.txt").exists()
    with pytest.raises(CacheError, match="Read-only file system"):
        cache.complete(archived)


def test_pruning_empties_caches_that_no_script_names_and_never_removes_a_keyframe(
    nuke: Any, comp: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stm_nuke import cache, prune

    make_mattes(comp, FRAMES)
    unused = comp.cache.parent / "STM_0123456789ab"
    cache.make(unused)
    (unused / "keys" / "a.exr").write_text("mask")
    (unused / "mattes" / "matte.main.1001.exr").write_text("x" * 2_000_000)
    assert prune.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"unused  2.0 MB  {unused}\n"
    assert (unused / "mattes").is_dir()
    assert prune.main([str(tmp_path), "--delete"]) == 0
    assert sorted(one.name for one in unused.rglob("*")) == ["a.exr", "keys"]
    assert cache.fresh_mattes(comp.cache, "main", FRAMES) == set(FRAMES)
    (tmp_path / "shot.nkind").write_text("sealed")
    assert prune.main([str(tmp_path), "--delete"]) == 9
    assert "shot.nkind uses cannot be read" in capsys.readouterr().err


# ---- confidence


def test_layers_of_confidence_and_foreground_come_and_go_with_their_switches_in_ten_nodes(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke import cache

    layers = ("stm.confidence", "fg.R", "fg.G", "fg.B")
    values = np.stack(
        [np.full((48, 64), value, np.float32) for value in (0.5, 0.75, 0.125, 0.25, 0.375)], axis=-1
    )
    for frame in FRAMES:
        path = cache.matte_path(comp.cache, "main", frame)
        write_exr(path, values, channels=("A", *layers))
    in_nuke = {"stm.confidence", "fg.red", "fg.green", "fg.blue"}
    assert not in_nuke & set(comp.group.channels())
    assert not (comp.settings()["confidence"] or comp.settings()["foreground"])
    nuke.GUI = True
    for knob in ("confidence", "foreground"):
        comp.group[knob].setValue(True)
        idle(nuke)
        assert comp.settings()[knob] is True
    assert nuke._host.layers["stm"] == ["stm.confidence"]
    assert nuke._host.layers["fg"] == ["fg.red", "fg.green", "fg.blue"]
    assert len(comp.group.nodes()) == 10, "some editions have no more"
    nuke.GUI = False
    found = nuke._pixels.render(comp.group, 1001, "main")
    assert found.planes["stm.confidence"][20, 20] == 0.75
    assert found.planes["fg.green"][20, 20] == 0.25
    assert found.planes["rgba.alpha"][20, 20] == 0.5
    nuke.scriptSave(str(tmp_path / "shot_v001.nk"))
    nuke.scriptOpen(str(tmp_path / "shot_v001.nk"))
    again = nuke._pixels.render(nuke.toNode("STM1"), 1001, "main")
    assert again.planes["fg.blue"][20, 20] == 0.375, "a saved script has them without the plug-in"
    from stm_nuke.node import find

    comp = find("STM1")
    nuke.GUI = True
    for knob in ("confidence", "foreground"):
        comp.group[knob].setValue(False)
        idle(nuke)
    assert not in_nuke & set(comp.group.channels())


def test_mattes_with_other_edges_or_layers_are_never_rendered_as_if_they_were_the_wanted_ones(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke import cache
    from stm_nuke.finish import Finish, retire_others

    make_mattes(comp, FRAMES)
    write = write_of(nuke, comp, tmp_path)
    nuke.execute(write, 1001, 1001, 1)  # an older release has recorded nothing
    frames = (FRAMES[0], FRAMES[-1])
    retire_others(comp.cache, "main", frames, comp.finish, keep=False)
    assert cache.matte_frames(comp.cache, "main") == set(FRAMES), "they are so, as earlier releases made them"
    nuke.execute(write, 1001, 1001, 1)
    for knob, value in (("edges", "guided"), ("edge_width", 2.0), ("foreground", True)):
        before = comp[knob]
        comp.set(knob, value)
        with pytest.raises(RuntimeError, match="Edges or layers of STM1 have changed since its mattes"):
            nuke.execute(write, 1001, 1001, 1)
        comp.set(knob, before)
    retire_others(comp.cache, "main", frames, Finish("guided"), keep=True)
    assert cache.stale_mattes(comp.cache, "main") == set(FRAMES), "the artist wants to keep the picture"
    retire_others(comp.cache, "main", frames, Finish("guided", layers=("foreground",)), keep=True)
    assert cache.matte_frames(comp.cache, "main") == set(), "its layer would be black"
    assert comp.finish == Finish()
    comp.set("edges", "off")
    comp.set("edge_width", 3.0)
    assert comp.finish == Finish("off"), "the width is of learned edges"


# ---- old against new


def test_the_matte_before_the_last_change_can_be_looked_at_and_is_never_rendered(
    nuke: Any, comp: Any, tmp_path: Path
) -> None:
    from stm_nuke import cache

    make_mattes(comp, FRAMES, 0.25)
    cache.retire_mattes(comp.cache, "main", [1002], keep=False)
    make_mattes(comp, range(1002, 1003), 0.75)
    comp.show_timeline("main")
    nuke.GUI = True
    assert seen(nuke, comp, 1002).planes["rgba.alpha"][20, 20] == 0.75
    comp.group["compare"].setValue("old")
    idle(nuke)
    assert seen(nuke, comp, 1002).planes["rgba.alpha"][20, 20] == 0.25
    assert "rgba.alpha" not in seen(nuke, comp, 1001).planes, "it has not changed: the note"
    write = write_of(nuke, comp, tmp_path)
    with pytest.raises(RuntimeError, match="STM1 shows its old mattes"):
        nuke.execute(write, 1002, 1002, 1)
    idle(nuke)
    comp.group["compare"].setValue("new")
    idle(nuke)
    nuke.execute(write, 1002, 1002, 1)
    assert pixels(tmp_path / "out.1002.exr")[20, 20, 3] == 0.75


def test_the_list_says_what_has_no_matte_or_an_old_one(nuke: Any, comp: Any) -> None:
    from stm_nuke import cache, verbs
    from stm_nuke.keys import Key

    comp.set_keys([Key("main", 1001, "digest", "file")])
    make_mattes(comp, range(1001, 1003))
    cache.retire_mattes(comp.cache, "main", [1002], keep=True)
    comp.show_timeline("main")
    verbs.show_keys(comp, "main")
    assert comp["key_list"].splitlines() == ["1001  from a file", "1002  old matte", "1003  no matte"]


# ---- releases


def test_the_knob_of_the_ocio_config_is_found_under_both_of_its_names(nuke: Any, comp: Any) -> None:
    root = nuke.root()
    root["colorManagement"].setValue("OCIO")
    root["OCIO_config"].setValue("custom")
    root["customOCIOConfigPath"].setValue("/show/config.ocio")
    old = root["OCIO_config"]
    root.removeKnob(old)
    new = nuke.Enumeration_Knob("OCIOConfig", "OCIO config", ["fn-nuke_studio", "custom"])
    new.setValue("custom")
    root.addKnob(new)
    before = comp.plate_fingerprint()
    assert comp.settings()["ocio_config"] == "/show/config.ocio"
    new.setValue("fn-nuke_studio")
    assert comp.plate_fingerprint() != before


@pytest.mark.parametrize("name", ["init.py", "menu.py", "stm_batch.py"])
def test_a_nuke_with_an_older_python_is_refused_in_words_and_nothing_of_ours_is_loaded(
    nuke: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import ast
    import sys

    source = (Path(__file__).resolve().parents[2] / "nuke" / name).read_text("utf-8")
    ast.parse(source, feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 7, 9, "final", 0))
    loaded = {one for one in sys.modules if one.startswith("stm_nuke")}
    code: Any = None
    try:
        exec(compile(source, name, "exec"), {"__name__": "__main__", "__file__": name})
    except SystemExit as ended:
        code = ended.code
    said = "".join(capsys.readouterr())
    assert {one for one in sys.modules if one.startswith("stm_nuke")} == loaded
    if name != "menu.py":  # init.py has said it
        assert "STM for Nuke needs Nuke 14.0 or newer" in said
    assert code == (2 if name == "stm_batch.py" else None)
