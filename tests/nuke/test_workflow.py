"""The work of artists and farms with the node, from the first key to the render: real engine, real clip."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nkparser
import numpy as np
import pytest

from tests.nuke.comps import FIRST, idle, pixels, read_node, small_clip, stm_comp, write_of

COUNT = 7
LAST = FIRST + COUNT - 1
FRAMES = range(FIRST, LAST + 1)
REPOSITORY = Path(__file__).resolve().parents[2]
STAND_IN = REPOSITORY / "tests" / "hosts" / "nuke_stand_in"


@pytest.fixture(scope="module")
def original_clip(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    small_clip(shared_data / "clips" / "chair", folder, COUNT)
    return folder


@pytest.fixture
def clip(original_clip: Path, tmp_path: Path) -> Path:
    """A few small frames of a real clip with its masks; a test may paint on them."""
    shutil.copytree(original_clip, tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def node(nuke: Any, engine: Path, clip: Path, tmp_path: Path) -> Any:
    """A saved comp with an STM node on the clip."""
    import stm_nuke.callbacks

    stm_nuke.callbacks.install()
    made = stm_comp(nuke, clip, COUNT)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    return made


def ready(node: Any) -> set[int]:
    from stm_nuke import cache

    found: set[int] = cache.fresh_mattes(node.cache, "main", FRAMES)
    return found


def matte(node: Any, frame: int) -> Any:
    from stm_nuke import cache

    return pixels(cache.matte_path(node.cache, "main", frame))[..., 0]


def overlap(one: Any, other: Any) -> float:
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def mask(clip: Path, frame: int) -> Any:
    """The artist's mask in the precision of a matte file."""
    return pixels(clip / f"mask.{frame}.png")[..., 0].astype(np.float16)


def run_to_end(nuke: Any, node: Any) -> Any:
    """Run Nuke's event loop until the node's task has ended; returns the task."""
    from stm_nuke import tasks

    task = tasks._running[node.id]
    nuke._host.pump(lambda: task.wait(0))
    return task


@pytest.mark.slow
def test_key_propagate_correct_save_reopen_render(nuke: Any, node: Any, clip: Path, tmp_path: Path) -> None:
    import stm_nuke

    # One key, the whole shot.
    stm_nuke.set_key(node, FIRST)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert f"{COUNT} frames done" in node["status"]
    np.testing.assert_array_equal(matte(node, FIRST), mask(clip, FIRST))
    assert overlap(matte(node, FIRST + 1), mask(clip, FIRST + 1)) > 0.3

    # A correction in the middle: what it touches is taken out of use at once.
    kept = {frame: matte(node, frame) for frame in FRAMES}
    middle = FIRST + 3
    stm_nuke.set_key(node, middle)
    stale = set(FRAMES) - ready(node)
    assert middle in stale
    assert FIRST not in stale
    rendered = len(nuke._host.executed)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert len(nuke._host.executed) == rendered, "the engine has the plate already"
    np.testing.assert_array_equal(matte(node, middle), mask(clip, middle))
    assert any(not np.array_equal(kept[frame], matte(node, frame)) for frame in range(middle + 1, LAST + 1))

    # Save, and render in a process that has nothing of ours.
    write_of(nuke, node, tmp_path / "render").setName("Out")
    nuke.scriptSave()
    script = str(tmp_path / "shot.nk")
    render = f"import nuke; nuke.scriptOpen({script!r}); nuke.execute('Out', {FIRST}, {LAST}, 1)"
    environment = {**os.environ, "PYTHONPATH": str(STAND_IN)}
    subprocess.run([sys.executable, "-c", render], env=environment, cwd=tmp_path, check=True)
    for frame in FRAMES:
        np.testing.assert_array_equal(
            pixels(tmp_path / "render" / f"out.{frame}.exr")[..., 3], matte(node, frame)
        )

    # Reopened in a fresh process with the plug-in, everything is as it was and nothing has to be computed.
    again = (
        "import nuke, stm_nuke\n"
        f"nuke.scriptOpen({str(tmp_path / 'shot.nk')!r})\n"
        "print(stm_nuke.list_keys('STM1'), stm_nuke.status('STM1'))\n"
        "print('rendered', len(nuke._host.executed), stm_nuke.propagate('STM1') == list(range(%d, %d)))\n"
        "print('rendered', len(nuke._host.executed))\n"
    ) % (FIRST, LAST + 1)
    environment["PYTHONPATH"] = os.pathsep.join([str(STAND_IN), str(REPOSITORY / "nuke")])
    from stm_nuke import session

    session.leave_engine()  # the first process ends
    done = subprocess.run(
        [sys.executable, "-c", again],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"[{FIRST}, {middle}] {COUNT} frames done" in done.stdout
    assert "rendered 0 True" in done.stdout
    assert done.stdout.rstrip().endswith("rendered 0")


def test_the_saved_script_is_understood_by_an_independent_parser(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    node.set("objects", "chair = rgba.red\nodd_one = layer.x")
    write_of(nuke, node, tmp_path).setName("Out")
    nuke.scriptSave()
    script = nkparser.Script.from_string((tmp_path / "shot.nk").read_text("utf-8"))
    errors = [str(one) for one in script.diagnostics if one.severity is nkparser.DiagnosticSeverity.ERROR]
    # This parser wants `end_group` within the braces of the group's knobs, where Nuke never writes it.
    assert [one for one in errors if "end_group" not in one] == []
    found = {one.name: one for one in script.all_nodes()}
    # It counts inputs from the bottom of the stack, where Nuke takes input 0 from the top.
    assert [one.name for one in found["STM1"].inputs if one is not None] == ["Read2", "Read1"]
    assert found["matte"].get_string("file") == f"{node.cache.as_posix()}/mattes/matte.%V.%04d.exr"
    assert found["matte"].get("raw") == "true"
    assert found["to_channel"].inputs == [found["guard"], found["plate"]]
    assert found["guard"].inputs == [found["matte"]]
    assert found["overlay"].get("disable") == "{{!parent.overlay}}"
    assert found["shown"].inputs == [found["note"], found["overlay"]]
    assert found["STM1"].get_string("stm_keys").startswith(f"main/{FIRST}/")
    assert found["STM1"].get_string("stm_id") == node.id


def test_the_saved_script_is_read_by_tcl_itself_as_native_nodes_only(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    tkinter = pytest.importorskip("tkinter", reason="this Python has no Tcl")
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    node.set("objects", 'chair = rgba.red\nodd_one = layer."x"')
    nuke.scriptSave()
    tcl = tkinter.Tcl()
    commands: list[tuple[str, ...]] = []
    tcl.createcommand("record", lambda *words: commands.append(words))
    tcl.eval("proc unknown args { record {*}$args }; proc stack n { return [expr {$n + 1}] }")
    tcl.eval((tmp_path / "shot.nk").read_text("utf-8"))
    classes = [one[0] for one in commands]
    assert set(classes) - {"push", "version", "end_group", "add_layer", "Root"} == {
        "Read", "Group", "Input", "Output", "Copy", "Assert", "MergeExpression", "Text2", "Switch"
    }  # fmt: skip
    assert classes.count("Group") == classes.count("end_group") == 1
    body = next(one[1] for one in commands if one[0] == "Group")
    knobs = {one[0]: one[1] for one in _tcl_commands(tcl, body) if one[0] != "addUserKnob"}
    added = [tcl.splitlist(one[1])[1] for one in _tcl_commands(tcl, body) if one[0] == "addUserKnob"]
    assert knobs["stm_id"] == node.id
    assert knobs["objects"] == 'chair = rgba.red\nodd_one = layer."x"'
    assert {"set_key", "status", "channel", "stm_keys", "region"} <= set(added)


def _tcl_commands(tcl: Any, body: str) -> list[tuple[str, ...]]:
    """The commands of a script, divided into words by Tcl."""
    commands, line = [], ""
    for part in body.split("\n"):
        line = f"{line}\n{part}" if line else part
        if tcl.call("info", "complete", line):
            words = tcl.splitlist(line)
            if words:
                commands.append(words)
            line = ""
    return commands


@pytest.mark.slow
def test_the_layer_of_confidence_is_written_without_computing(nuke: Any, node: Any) -> None:
    import OpenImageIO as oiio
    import stm_nuke
    from stm_nuke import cache, verbs

    def channels(frame: int) -> tuple[str, ...]:
        return tuple(oiio.ImageBuf(str(cache.matte_path(node.cache, "main", frame))).spec().channelnames)

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    before = matte(node, LAST)
    assert channels(LAST) == ("A",)
    rendered = len(nuke._host.executed)
    node.group["confidence"].setValue(True)
    task = verbs.take_finish(node, "main")
    assert task is not None
    assert task.error is None
    assert ready(node) == set(FRAMES)
    assert channels(LAST) == ("A", "stm.confidence")
    np.testing.assert_array_equal(matte(node, LAST), before)
    assert len(nuke._host.executed) == rendered
    node.group["confidence"].setValue(False)
    verbs.take_finish(node, "main")
    assert channels(LAST) == ("A",)


def test_edges_and_foreground_of_the_panel_are_the_engines_and_compute_nothing_anew(
    nuke: Any, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import OpenImageIO as oiio
    import stm_nuke
    from stm_nuke import cache
    from stm_nuke.session import Session

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    computed: list[Any] = []
    plan = Session.plan

    def noted(*given: Any) -> Any:
        computed.append(plan(*given))
        return computed[-1]

    monkeypatch.setattr(Session, "plan", noted)
    mattes = {"learned": matte(node, LAST)}
    for edges, width in (("guided", 1.0), ("off", 1.0), ("learned", 3.0)):
        node.set("edges", edges)
        node.set("edge_width", width)
        node.set("foreground", edges == "off")
        assert stm_nuke.propagate(node) == list(FRAMES)  # in a terminal no callback writes them again
        mattes[f"{edges} {width:g}"] = matte(node, LAST)
        spec = oiio.ImageBuf(str(cache.matte_path(node.cache, "main", LAST))).spec()
        assert ("fg.R" in spec.channelnames) == (edges == "off")
    values = list(mattes.values())
    assert all(np.abs(one - other).max() > 0.02 for at, one in enumerate(values) for other in values[:at])
    assert [one["compute"] for one in computed] == [0, 0, 0]


def test_edges_that_are_changed_during_a_propagation_do_not_stop_it_and_are_in_its_files(
    nuke: Any, node: Any
) -> None:
    from stm_nuke import tasks, verbs
    from stm_nuke.errors import UsageError
    from stm_nuke.finish import Finish

    verbs.set_key(node, FIRST, "main")
    nuke.GUI = True
    node.group["both"].execute()
    propagation = tasks._running[node.id]
    nuke._host.pump(lambda: bool(ready(node)) or propagation.wait(0))
    width = 1.2345678
    node.group["edge_width"].setValue(width)
    wanted = Finish("learned", width)
    nuke._host.pump(
        lambda: Finish.recorded(node.cache, "main") == wanted and ready(node) == set(FRAMES), seconds=60
    )
    run_to_end(nuke, node)
    assert propagation.error is None
    assert node.finish.fits(node.cache, "main")
    node.group["edge_width"].setValue(9.0)
    with pytest.raises(UsageError, match=r"from 0\.25 to 4"):
        verbs.take_finish(node, "main")
    idle(nuke)
    assert "Give a value from 0.25 to 4" in node["status"]
    assert ready(node) == set(FRAMES)


def test_an_empty_mask_is_a_key_that_says_that_the_object_is_gone(nuke: Any, node: Any, clip: Path) -> None:
    import OpenImageIO as oiio
    import stm_nuke

    path = clip / f"mask.{LAST}.png"
    nothing = oiio.ImageBuf(oiio.ImageSpec(320, 180, 1, "uint8"))
    assert nothing.write(str(path))
    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST)
    assert not str(node["status"]).startswith("frame")
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert matte(node, FIRST).max() == 1
    assert matte(node, LAST).max() == 0


def test_a_correction_from_the_result_goes_through_the_engine(nuke: Any, node: Any) -> None:
    import stm_nuke
    from stm_nuke import verbs

    node.set("objects", "chair = rgba.alpha")
    verbs.set_key(node, FIRST, "main", Path(str(node.mask["file"].value()) % FIRST))
    stm_nuke.propagate(node)
    middle = FIRST + 3
    before = matte(node, middle)
    paint: Any = verbs.correct(node, middle, "main")
    paint["curves"].rootLayer.parts.append(nuke._roto.Stroke(middle, (10, 10, 30, 30), 1.0))
    verbs.set_key_from_fix(node, middle, "main")
    assert middle not in ready(node)
    assert stm_nuke.propagate(node) == list(FRAMES)
    after = matte(node, middle)
    assert (after[10:30, 10:30] == 1).all()
    kept = np.ones(after.shape, bool)
    kept[10:30, 10:30] = False
    np.testing.assert_array_equal(after[kept], before[kept])
    assert node.group["timeline"].getValueAt(middle) == 3


def test_undo_takes_a_key_back_and_redo_sets_it_again(nuke: Any, node: Any, tmp_path: Path) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST)
    stm_nuke.propagate(node)
    both = {frame: matte(node, frame) for frame in FRAMES}
    write = write_of(nuke, node, tmp_path)
    stm_nuke.set_key(node, FIRST + 3)
    stm_nuke.propagate(node)
    nuke.undo()
    assert stm_nuke.list_keys(node) == [FIRST, LAST]
    with pytest.raises(RuntimeError, match="keyframes of STM1 have changed since its mattes were made"):
        nuke.execute(write, FIRST, FIRST, 1)
    stm_nuke.propagate(node)
    for frame in FRAMES:
        np.testing.assert_array_equal(matte(node, frame), both[frame])
    nuke.redo()
    assert stm_nuke.list_keys(node) == [FIRST, FIRST + 3, LAST]
    stm_nuke.delete_key(node, FIRST + 3)
    assert stm_nuke.list_keys(node) == [FIRST, LAST]


def test_a_grade_above_the_plate_makes_exactly_the_frames_stale_that_it_changes(
    nuke: Any, node: Any, clip: Path
) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    before = {frame: matte(node, frame) for frame in FRAMES}

    # A node that changes nothing: the plate is looked at again, and not one frame is computed or written.
    grade = nuke.nodes.Grade()
    grade.setInput(0, node.plate)
    node.group.setInput(0, grade)
    stm_nuke.check_plate(node)
    assert ready(node) == set(FRAMES)

    # Another picture from the fifth frame on.
    changed = FIRST + 4
    for frame in range(changed, LAST + 1):
        brighter = np.clip(pixels(clip / f"plate.{frame}.png") * 0.5, 0, 1).astype(np.float32)
        _write_png(clip / f"plate.{frame}.png", brighter)
    stm_nuke.check_plate(node)
    assert ready(node) == set(range(FIRST, changed))
    stm_nuke.propagate(node)
    for frame in range(FIRST, changed):
        np.testing.assert_array_equal(matte(node, frame), before[frame])


def _write_png(path: Path, values: Any) -> None:
    import OpenImageIO as oiio

    buffer = oiio.ImageBuf(np.ascontiguousarray(values))
    assert buffer.write(str(path), "uint8"), buffer.geterror()


def test_an_artist_in_the_window_sees_progress_and_the_window_stays_alive(nuke: Any, node: Any) -> None:
    import threading

    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    assert f"{FIRST}  fresh" in node["key_list"]
    node.group["both"].execute()
    task = run_to_end(nuke, node)
    assert task.error is None
    assert ready(node) == set(FRAMES)
    assert any("Reading the plate" in one for one in nuke._host.progress)
    assert any("frame 100" in one for one in nuke._host.progress)
    assert nuke._host.messages == []
    nuke.frame(LAST)
    node.group["previous_key"].execute()
    assert nuke.frame() == FIRST
    assert threading.active_count() < 20


@pytest.fixture
def without_advice(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without advice, as older ones are."""
    from stm_nuke.session import Session

    status = Session.status
    monkeypatch.setattr(Session, "status", lambda self: {**status(self), "advice": None})


def test_the_advice_of_the_engine_is_followed(nuke: Any, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stm_nuke.session import Session

    advice = {"frame": FIRST + 4, "text": f"{FIRST + 4}, where the two passes agree least (0.41 of 1)"}
    status = Session.status
    monkeypatch.setattr(Session, "status", lambda self: {**status(self), "advice": advice})
    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    assert f"Next key: {advice['text']}" in node["status"]
    node.group["go_to_advised"].execute()
    assert nuke.frame() == FIRST + 4


@pytest.mark.parametrize(
    "told",
    [
        {"advice": None, "no_advice": "No further key is expected to help."},
        {"notes": ["The key on 1 shows little of hero.", "hero is small for the network."]},
    ],
)
def test_the_status_says_what_the_engine_says_of_keys(
    nuke: Any, node: Any, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]
) -> None:
    from stm_nuke.session import Session

    status = Session.status
    monkeypatch.setattr(Session, "status", lambda self: {**status(self), **told})
    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    assert told.get("no_advice", "") in node["status"]
    assert " ".join(told.get("notes", ())) in node["status"]
    assert "no_advice" not in told or "Next key" not in node["status"]


def test_without_advice_of_the_engine_the_frame_that_is_advised_is_the_least_sure_one(
    nuke: Any, node: Any, without_advice: None
) -> None:
    import OpenImageIO as oiio
    from stm_nuke import cache

    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["go_to_advised"].execute()
    assert "There is no advice" in nuke._host.messages.pop()
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    node.group["both"].execute()
    run_to_end(nuke, node)
    confidence = {}
    for frame in FRAMES:
        header = oiio.ImageBuf(str(cache.matte_path(node.cache, "main", frame))).spec()
        confidence[frame] = header.get_float_attribute("stm:confidence")
    least = min(confidence, key=lambda frame: confidence[frame])
    assert f"Next key: {least}" in node["status"]
    node.group["go_to_advised"].execute()
    assert nuke.frame() == least


def test_the_matte_keeps_the_plates_windows_aspect_and_time_code_even_when_overscan_grows(
    nuke: Any, engine: Path, make_plate: Any, tmp_path: Path
) -> None:
    import OpenImageIO as oiio
    import stm_nuke
    from stm_nuke import cache

    frames = range(FIRST, FIRST + 3)
    code = (0x10590723, 0)
    for count, overscan in ((3, 4), (2, 0)):  # the last frame reaches further than the others
        plate = make_plate(
            frames[:count], size=(96, 64), overscan=overscan, attributes={"PixelAspectRatio": 2.0}
        )
    for frame in frames:
        path = plate.replace("####", str(frame))
        picture = oiio.ImageBuf(path)
        picture.specmod().attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), code)
        assert picture.write(path, "half"), picture.geterror()
    node = stm_nuke.create(
        read_node(nuke, plate, frames),
        read_node(nuke, plate.replace("####", "mask.%04d").replace(".exr", ".png"), frames),
    )
    node.set("objects", "disc = rgba.red")
    node.set("working_size", 64)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    for frame in frames:
        expected = oiio.ImageBuf(plate.replace("####", str(frame))).spec()
        found = oiio.ImageBuf(str(cache.matte_path(node.cache, "main", frame))).spec()
        for name in ("x", "y", "width", "height", "full_x", "full_y", "full_width", "full_height"):
            assert getattr(found, name) == getattr(expected, name), (frame, name)
        assert found.get_float_attribute("PixelAspectRatio") == 2.0
        assert found.getattribute("smpte:TimeCode") == expected.getattribute("smpte:TimeCode")
    assert found.x == -4


def test_the_engine_reads_plate_and_keys_from_files_of_a_private_folder_that_is_gone_afterwards(
    nuke: Any, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stm_nuke
    from stm_nuke.wire import Connection

    call = Connection.call
    pushed: list[tuple[str, int]] = []
    folders: set[Path] = set()

    def watched(self: Any, header: Any, payload: Any = b"", **more: Any) -> Any:
        if header["op"] == "open_shot":
            folders.add(Path(header["scratch"]))
            assert Path(header["scratch"]).stat().st_mode & 0o777 == 0o700
        elif header["op"].startswith("push_"):
            assert ("image" in header, len(payload)) == (False, 0)
            assert any((one / header["file"]["name"]).is_file() for one in folders)
            pushed.append((header["op"], header["frame"]))
        return call(self, header, payload, **more)

    monkeypatch.setattr(Connection, "call", watched)
    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    assert pushed == [("push_key", FIRST), *(("push_plate", frame) for frame in FRAMES)]
    assert not any(one.exists() for one in folders)


def test_a_plate_that_changes_its_size_is_refused_at_that_frame_and_the_canvas_stays(
    nuke: Any, engine: Path, make_plate: Any, tmp_path: Path
) -> None:
    import OpenImageIO as oiio
    import stm_nuke
    from stm_nuke.errors import PlateError

    frames = range(FIRST, FIRST + 3)
    plate = make_plate(frames, size=(96, 64))
    node = stm_nuke.create(
        read_node(nuke, plate, frames),
        read_node(nuke, plate.replace("####", "mask.%04d").replace(".exr", ".png"), frames),
    )
    node.set("objects", "disc = rgba.red")
    node.set("working_size", 64)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    stm_nuke.set_key(node, FIRST)
    canvas = node["stm_canvas"]
    path = plate.replace("####", str(FIRST + 1))
    larger = oiio.ImageBufAlgo.resize(oiio.ImageBuf(path), roi=oiio.ROI(0, 120, 0, 80))
    assert larger.write(path, "half"), larger.geterror()
    with pytest.raises(PlateError, match=rf"frame {FIRST + 1}: The frame's display window .*size") as caught:
        stm_nuke.propagate(node)
    assert caught.value.frame == FIRST + 1
    assert node["stm_canvas"] == canvas


def test_a_damaged_mask_of_a_key_is_told_with_its_frame(nuke: Any, node: Any) -> None:
    import stm_nuke
    from stm_nuke.errors import KeyframeError
    from stm_nuke.keys import mask_path

    stm_nuke.set_key(node, FIRST)
    (key,) = node.keys
    path = mask_path(node.cache, key.digest)
    whole = path.read_bytes()
    stm_nuke.delete_key(node, FIRST)
    path.write_bytes(whole[: len(whole) // 2])
    node.set_keys([key])
    with pytest.raises(KeyframeError, match=f"frame {FIRST}: The mask of the keyframe is gone") as caught:
        stm_nuke.propagate(node)
    assert caught.value.frame == FIRST


def test_proxy_mode_changes_neither_the_size_nor_the_cache(nuke: Any, node: Any) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node, (FIRST, FIRST + 1))
    whole = matte(node, FIRST + 1)
    nuke.root()["proxy"].setValue(True)
    stm_nuke.check_plate(node)
    assert ready(node) == {FIRST, FIRST + 1}
    stm_nuke.propagate(node)
    assert matte(node, LAST).shape == whole.shape == (180, 320)


@pytest.mark.slow
def test_stale_mattes_stay_only_where_the_artist_asks_for_it_and_are_made_anew(nuke: Any, node: Any) -> None:
    import stm_nuke
    from stm_nuke import cache

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    node.set("missing_matte", "take the old matte")
    stm_nuke.set_key(node, LAST)
    stale = set(FRAMES) - ready(node)
    assert stale == set(range(FIRST + 1, LAST + 1))
    assert all(cache.matte_path(node.cache, "main", frame).is_file() for frame in stale)
    stm_nuke.propagate(node)
    assert ready(node) == set(FRAMES)


@pytest.mark.slow
def test_a_deleted_cache_costs_time_and_nothing_else(nuke: Any, node: Any, clip: Path) -> None:
    import stm_nuke
    from stm_nuke import cache

    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    before = {frame: matte(node, frame) for frame in FRAMES}
    shutil.rmtree(cache.store_folder(node.cache, "main"))
    shutil.rmtree(node.cache / "mattes")
    assert stm_nuke.propagate(node) == list(FRAMES)
    for frame in FRAMES:
        np.testing.assert_array_equal(matte(node, frame), before[frame])
    shutil.rmtree(node.cache / "keys")
    shutil.rmtree(cache.store_folder(node.cache, "main"))
    with pytest.raises(
        stm_nuke.StmNodeError, match=f"frame {FIRST}: The mask of the keyframe is gone.*again"
    ):
        stm_nuke.propagate(node)


def test_a_key_outside_a_smaller_range_sleeps_until_the_range_is_larger_again(nuke: Any, node: Any) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST)
    node.set("last", LAST - 2)
    assert stm_nuke.propagate(node) == list(range(FIRST, LAST - 1))
    assert f"{LAST}  outside the range" in node["key_list"]
    node.set("last", LAST)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert stm_nuke.list_keys(node) == [FIRST, LAST]


def test_the_panel_says_what_the_weights_are_and_their_licence(nuke: Any, node: Any) -> None:
    import stm_nuke

    from model.weights_file import load_network

    stm_nuke.status(node)
    _, manifest = load_network("stm-lite")
    assert node["weights_info"].startswith("stm-lite (")
    assert manifest.licence in node["weights_info"]


def test_a_retimed_shot_has_a_matte_on_each_of_its_own_frames(
    nuke: Any, node: Any, clip: Path, tmp_path: Path
) -> None:
    import stm_nuke

    for number in (0, 1):
        retime = nuke.nodes.Retime(filter="none", speed=0.5)
        retime["input.first"].setValue(FIRST)
        retime["output.first"].setValue(11)
        retime.setInput(0, node.group.input(number))
        node.group.setInput(number, retime)
    assert node.take_range_from_input() == (11, 11 + 2 * (COUNT - 1))
    node.set("last", 15)
    stm_nuke.set_key(node, 11)
    assert stm_nuke.propagate(node) == [11, 12, 13, 14, 15]
    np.testing.assert_array_equal(matte(node, 11), mask(clip, FIRST))
    write = write_of(nuke, node, tmp_path / "render")
    nuke.execute(write, 11, 15, 1)
    np.testing.assert_array_equal(pixels(tmp_path / "render" / "out.0015.exr")[..., 3], matte(node, 15))


def test_two_views_have_their_own_keys_and_mattes(nuke: Any, node: Any) -> None:
    import stm_nuke
    from stm_nuke import cache

    nuke.addView("right")
    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST, view="right")
    assert stm_nuke.propagate(node, (FIRST, FIRST + 1)) == [FIRST, FIRST + 1]
    assert stm_nuke.propagate(node, (LAST - 1, LAST), view="right") == [LAST - 1, LAST]
    assert stm_nuke.list_keys(node) == [FIRST]
    assert stm_nuke.list_keys(node, view="right") == [LAST]
    assert cache.fresh_mattes(node.cache, "right", FRAMES) == {LAST - 1, LAST}


def test_forward_backward_and_span_compute_their_frames_only(nuke: Any, node: Any) -> None:
    nuke.GUI = True
    middle = FIRST + 3
    nuke.frame(middle)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    node.group["forward"].execute()
    run_to_end(nuke, node)
    assert ready(node) == set(range(middle, LAST + 1))
    node.group["backward"].execute()
    run_to_end(nuke, node)
    assert ready(node) == set(FRAMES)
    nuke.frame(LAST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    nuke.frame(middle + 1)
    node.group["span"].execute()
    run_to_end(nuke, node)
    assert ready(node) == set(range(middle, LAST + 1)), "frames before it wait for the new key's pass"


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_stop_and_cancel_keep_what_is_finished(nuke: Any, node: Any, how: str) -> None:
    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    node.group["both"].execute()
    nuke._host.pump(lambda: any("Reading the plate, 2" in one for one in nuke._host.progress))
    if how == "stop":
        node.group["stop"].execute()
    else:
        nuke._host.cancel_progress = True
    task = run_to_end(nuke, node)
    assert str(task.error) == "Stopped. What was finished is kept."
    assert node["status"] == str(task.error)
    nuke._host.cancel_progress = False
    rendered = len(nuke._host.executed)
    node.group["both"].execute()
    assert run_to_end(nuke, node).error is None
    assert ready(node) == set(FRAMES)
    assert len(nuke._host.executed) - rendered < COUNT, (
        "plate frames that the engine has are not rendered again"
    )


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["Reading the plate, 2", f"frame {FIRST + 2}", "Writing mattes"])
def test_a_save_as_during_a_propagation_gives_its_mattes_to_the_new_version_too(
    nuke: Any, node: Any, clip: Path, tmp_path: Path, moment: str
) -> None:
    """The artist edits the mask after it, and sees both versions as they should be."""
    import stm_nuke
    from stm_nuke import tasks

    stm_nuke.set_key(node, FIRST)
    nuke.GUI = True
    first_id, first_cache = node.id, node.cache
    node.group["both"].execute()
    nuke._host.pump(lambda: any(moment in one for one in nuke._host.progress))
    nuke.scriptSaveAs(str(tmp_path / "shot_v002.nk"))
    assert node.id != first_id
    assert tasks.running(node.id) is not None, "Stop finds the task"
    assert run_to_end(nuke, node).error is None
    assert ready(node) == set(FRAMES)
    assert f"{COUNT} matte files of {COUNT} ready" in node["status"]
    write = write_of(nuke, node, tmp_path / "render")
    nuke.execute(write, FIRST, LAST, 1)

    nuke.frame(LAST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    read = len(nuke._host.executed)
    node.group["both"].execute()
    assert run_to_end(nuke, node).error is None
    assert len(nuke._host.executed) == read, "the new version has the plate of the old one"
    np.testing.assert_array_equal(matte(node, LAST), mask(clip, LAST))
    first_version = [pixels(first_cache / "mattes" / f"matte.main.{frame}.exr") for frame in FRAMES]
    assert not np.array_equal(first_version[-1][..., 0], matte(node, LAST))


@pytest.mark.slow
def test_a_key_that_is_set_between_a_save_as_and_the_end_of_a_propagation_leaves_no_old_matte(
    nuke: Any, node: Any, clip: Path, tmp_path: Path
) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    nuke.GUI = True
    node.group["both"].execute()
    nuke._host.pump(lambda: any("Writing mattes" in one for one in nuke._host.progress))
    nuke.scriptSaveAs(str(tmp_path / "shot_v002.nk"))
    nuke.frame(LAST)
    node.group["set_key"].execute()
    assert run_to_end(nuke, node).error is None
    assert LAST not in ready(node)
    node.group["both"].execute()
    assert run_to_end(nuke, node).error is None
    assert ready(node) == set(FRAMES)
    np.testing.assert_array_equal(matte(node, LAST), mask(clip, LAST))


@pytest.mark.slow
def test_a_cache_that_is_moved_during_a_propagation_gets_its_mattes(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    nuke.GUI = True
    node.group["both"].execute()
    nuke._host.pump(lambda: any(f"frame {FIRST + 2}" in one for one in nuke._host.progress))
    node.set("cache_place", "chosen folder")
    node.set("cache_folder", (tmp_path / "fast").as_posix())
    node.move_cache()
    assert run_to_end(nuke, node).error is None
    assert node.cache.parent == tmp_path / "fast"
    assert ready(node) == set(FRAMES)


@pytest.mark.slow
def test_a_script_that_is_saved_for_the_first_time_during_a_propagation_gets_its_mattes(
    nuke: Any, engine: Path, clip: Path, tmp_path: Path
) -> None:
    import stm_nuke.callbacks

    stm_nuke.callbacks.install()
    nuke.GUI = True
    made = stm_comp(nuke, clip, COUNT)
    nuke.frame(FIRST)
    made.group["set_key"].execute()
    run_to_end(nuke, made)
    made.group["both"].execute()
    nuke._host.pump(lambda: any(f"frame {FIRST + 2}" in one for one in nuke._host.progress))
    before = made.cache
    nuke.scriptSaveAs(str(tmp_path / "first.nk"))
    assert made.cache != before
    assert run_to_end(nuke, made).error is None
    assert ready(made) == set(FRAMES)


@pytest.mark.slow
def test_a_node_inside_two_groups_works_as_any_other(
    nuke: Any, engine: Path, clip: Path, tmp_path: Path
) -> None:
    """Key, propagation, correction and render; what changes outside both groups is seen."""
    import stm_nuke.callbacks
    from stm_nuke import verbs

    stm_nuke.callbacks.install()
    plate = read_node(nuke, (clip / "plate.%04d.png").as_posix(), FRAMES)
    grade = nuke.nodes.Grade()
    grade.setInput(0, plate)
    sources = [grade, read_node(nuke, (clip / "mask.%04d.png").as_posix(), FRAMES, raw=True)]
    outer, inside_outer = group_with_inputs(nuke)
    with outer:
        inner, inside_inner = group_with_inputs(nuke)
        nuke.nodes.Output().setInput(0, inner)
        with inner:
            made = stm_nuke.create(*inside_inner)
            nuke.nodes.Output().setInput(0, made.group)
    for group, above in ((outer, sources), (inner, inside_outer)):
        for number, source in enumerate(above):
            group.setInput(number, source)
    assert made.take_range_from_input() == (FIRST, LAST)
    made.set("objects", "chair = rgba.red")
    made.set("working_size", 112)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    stm_nuke.set_key(made, FIRST)
    assert stm_nuke.propagate(made) == list(FRAMES)
    assert verbs.correct(made, FIRST + 2, "main").parent() is inner
    write = write_of(nuke, made, tmp_path / "render")
    write.setInput(0, outer)
    nuke.execute(write, FIRST, LAST, 1)
    rendered = pixels(tmp_path / "render" / f"out.{LAST}.exr")[..., 3]
    np.testing.assert_array_equal(rendered, matte(made, LAST))
    nuke.GUI = True
    grade["multiply"].setValue(0.5)
    with pytest.raises(RuntimeError, match="have changed since its mattes were made"):
        nuke.execute(write, FIRST, LAST, 1)


def group_with_inputs(nuke: Any) -> tuple[Any, list[Any]]:
    """A group in the current one, with two Input nodes."""
    made = nuke.nodes.Group()
    with made:
        inputs = [nuke.nodes.Input() for _ in range(2)]
        for number, one in enumerate(inputs):
            one["number"].setValue(number)
    return made, inputs


@pytest.mark.slow
def test_an_engine_that_is_killed_in_mid_propagation_is_started_again_and_nothing_is_lost(
    nuke: Any, node: Any, kill_engine: Callable[[], None]
) -> None:
    import stm_nuke

    stm_nuke.set_key(node, FIRST)
    nuke.GUI = True
    node.group["both"].execute()
    nuke._host.pump(lambda: any(f"frame {FIRST + 1}" in one for one in nuke._host.progress))
    kill_engine()
    task = run_to_end(nuke, node)
    assert task.error is None, str(task.error)
    assert ready(node) == set(FRAMES)
    assert any("The engine has stopped" in one for one in nuke._host.progress)


def test_a_frozen_engine_does_not_hold_up_the_window_and_stop_still_stops(
    nuke: Any, node: Any, engine: Path
) -> None:
    import stm_nuke

    from tests.nuke.conftest import engine_pid

    stm_nuke.set_key(node, FIRST)
    nuke.GUI = True
    process = engine_pid(engine)
    os.kill(process, signal.SIGSTOP)
    try:
        began = time.monotonic()
        node.group["both"].execute()
        node.group["refresh"].execute()
        node.group["stop"].execute()
        assert time.monotonic() - began < 10, "a button waited for the engine"
        assert run_to_end(nuke, node).error is not None
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.slow
def test_two_nodes_on_one_plate_work_at_the_same_time_each_in_its_own_cache(
    nuke: Any, node: Any, clip: Path
) -> None:
    from stm_nuke import tasks
    from stm_nuke.node import find_all

    nuke.GUI = True
    nuke.frame(FIRST)
    node.group["set_key"].execute()
    run_to_end(nuke, node)
    node.group.setSelected(True)
    nuke.nodeCopy("%clipboard%")
    nuke.nodePaste("%clipboard%")
    first: Any
    second: Any
    first, second = find_all()
    second.group.setInput(0, first.plate)
    second.group.setInput(1, first.mask)
    nuke.frame(LAST)
    second.group["set_key"].execute()
    run_to_end(nuke, second)
    first.group["both"].execute()
    second.group["both"].execute()
    running = [tasks._running[one.id] for one in (first, second)]
    nuke._host.pump(lambda: all(task.wait(0) for task in running))
    assert [task.error for task in running] == [None, None]
    assert ready(first) == ready(second) == set(FRAMES)
    assert [key.frame for key in first.keys] == [FIRST]
    assert [key.frame for key in second.keys] == [FIRST, LAST]
    np.testing.assert_array_equal(matte(second, LAST), mask(clip, LAST))
    assert not np.array_equal(matte(first, LAST), matte(second, LAST))


def test_a_repainted_mask_is_noticed_and_taken_over_on_demand(nuke: Any, node: Any, clip: Path) -> None:
    import stm_nuke
    from stm_nuke import verbs

    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST)
    stm_nuke.propagate(node)
    assert node["key_list"].splitlines()[:2] == [f"{FIRST}  fresh", f"{LAST}  fresh"]
    painted = np.zeros_like(pixels(clip / f"mask.{LAST}.png"))
    painted[20:60, 30:90] = 1.0
    _write_png(clip / f"mask.{LAST}.png", painted)
    verbs.show_keys(node, "main")
    assert f"{LAST}  mask input changed" in node["key_list"]
    stm_nuke.update_keys(node)
    assert node["key_list"].splitlines()[:2] == [f"{FIRST}  fresh", f"{LAST}  fresh"]
    assert FIRST in ready(node)
    assert LAST not in ready(node)
    stm_nuke.propagate(node)
    np.testing.assert_array_equal(matte(node, LAST), painted[..., 0])


def test_two_objects_have_a_layer_each_and_can_be_renamed(
    nuke: Any, node: Any, clip: Path, tmp_path: Path
) -> None:
    import stm_nuke
    from stm_nuke import verbs

    node.set("objects", "left = rgba.red\nright = rgba.green")
    for frame in (FIRST, LAST):
        whole = pixels(clip / f"mask.{frame}.png")[..., 0]
        halves = np.zeros((*whole.shape, 3), np.float32)
        halves[:, :160, 0], halves[:, 160:, 1] = whole[:, :160], whole[:, 160:]
        _write_png(clip / f"mask.{frame}.png", halves)
        stm_nuke.set_key(node, frame)
    stm_nuke.propagate(node)
    write = write_of(nuke, node, tmp_path)
    write["channels"].setValue("all")
    nuke.execute(write, FIRST + 2, FIRST + 2, 1)
    assert {"left.alpha", "right.alpha"} <= set(node.group.channels())
    ended: list[Any] = []
    verbs.rename_object(node, "left", "door", "main", ended.append)
    assert ended[0].error is None
    stm_nuke.propagate(node)
    assert {"door.alpha", "right.alpha"} <= set(node.group.channels())
    assert "left.alpha" not in node.group.channels()


def test_keys_may_come_from_files_and_mattes_go_to_a_folder(
    nuke: Any, node: Any, clip: Path, tmp_path: Path
) -> None:
    import stm_nuke

    masks = {frame: clip / f"mask.{frame}.png" for frame in (FIRST, LAST)}
    stm_nuke.set_keys_from_files(node, masks)
    with pytest.raises(stm_nuke.StmNodeError, match="no fresh matte"):
        stm_nuke.bake(node, tmp_path / "baked")
    stm_nuke.propagate(node, (FIRST, FIRST + 2))
    baked = stm_nuke.bake(node, tmp_path / "baked", (FIRST, FIRST + 2))
    assert str(baked) == str(tmp_path / "baked" / "matte.main.%04d.exr")
    assert sorted(one.name for one in (tmp_path / "baked").iterdir()) == [
        f"matte.main.{frame}.exr" for frame in range(FIRST, FIRST + 3)
    ]


# ---- the command line


class Batch:
    """Runs `nuke -t stm_batch.py` with the stand-in in Nuke's place."""

    def __init__(self, folder: Path, start: str = "") -> None:
        """`start`: Python that Nuke runs first, as an init.py is."""
        self.folder = folder
        self.script = str(REPOSITORY / "nuke" / "stm_batch.py")
        self.command = [sys.executable, self.script]
        if start:
            code = f"import runpy; {start}; runpy.run_path({self.script!r}, run_name='__main__')"
            self.command = [sys.executable, "-c", code, self.script]
        paths = [str(STAND_IN), str(REPOSITORY / "nuke"), str(folder)] if start else [str(STAND_IN)]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The running script."""
        with subprocess.Popen(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            yield process


@pytest.mark.slow
def test_a_farm_does_a_whole_comp_from_the_command_line(
    nuke: Any, node: Any, clip: Path, tmp_path: Path
) -> None:
    from stm_nuke import session

    write_of(nuke, node, tmp_path / "render").setName("Out")
    nuke.scriptSave()
    session.leave_engine()
    done = Batch(tmp_path)(
        "--script", "shot.nk", "--node", "STM1", f"--key={FIRST}={clip / f'mask.{FIRST}.png'}",
        f"--frames={FIRST}-{LAST}", "--bake", "baked", "--write", "Out", "--save",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Error:" not in done.stdout + done.stderr
    assert f"Frame {LAST} (" in done.stdout
    assert "Progress: 100%" in done.stdout
    assert len(list((tmp_path / "baked").iterdir())) == COUNT
    assert len(list((tmp_path / "render").iterdir())) == COUNT
    again = Batch(tmp_path)("--script", "shot.nk")
    assert again.returncode == 0, again.stderr
    assert f"{COUNT} mattes ready" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--node", "STM1"], 2, "--script"),
        (["--script", "shot.nk", "--frames=1001,1005"], 2, "is not a frame range"),
        (["--script", "shot.nk", "--frames=1005-1001"], 2, "runs backwards"),
        (["--script", "shot.nk", "--frames=1001.5-1005"], 2, "whole numbers only"),
        (["--script", "shot.nk", "--key=1001.5=mask.exr"], 2, "--key 1001.5=mask.exr cannot be understood"),
        (["--script", "shot.nk", "--key=1001=gone.exr"], 2, "There is no mask file gone.exr"),
        (["--script", "shot.nk", "--write", "Gone"], 2, "There is no Write Gone"),
        (["--script", "shot.nk", "--no-such-thing"], 2, "--no-such-thing"),
        (["--script", "gone.nk"], 3, "There is no script gone.nk"),
        (["--script", "broken.nk"], 3, "broken.nk cannot be opened"),
        (["--script", "shot.nk", "--node", "STM9"], 4, "There is no STM node STM9"),
        (["--script", "shot.nk"], 5, "STM1 has no keyframe"),
        (["--script", "shot.nk", "--key-from-input", "5"], 5, "not in the range"),
        (
            ["--script", "shot.nk", "--key-from-input", "1001"],
            6,
            "frame 1004: The plate of STM1 cannot be rendered",
        ),
    ],
)
def test_every_failure_has_its_exit_code_and_its_words(
    nuke: Any, node: Any, clip: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    from stm_nuke import session

    session.leave_engine()
    (tmp_path / "broken.nk").write_text((tmp_path / "shot.nk").read_text("utf-8")[:2000], "utf-8")
    if code == 6:
        (clip / "plate.1004.png").unlink()
    done = Batch(tmp_path)(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("Error: ")


def keyed(node: Any, nuke: Any, frame: int = FIRST) -> None:
    """Set a key and save; the batch script does the rest."""
    import stm_nuke
    from stm_nuke import session

    stm_nuke.set_key(node, frame)
    nuke.scriptSave()
    session.leave_engine()


def test_a_write_that_cannot_be_rendered_is_exit_code_1_and_the_mattes_stay(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    write = write_of(nuke, node, tmp_path / "render")
    write.setName("Out")
    (tmp_path / "render").rmdir()
    keyed(node, nuke)
    done = Batch(tmp_path)("--script", "shot.nk", f"--frames={FIRST}-{FIRST + 1}", "--write", "Out")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: Out cannot be rendered: ")
    assert "No such file or directory" in done.stderr
    assert ready(node) >= {FIRST, FIRST + 1}


def test_an_overlay_that_was_left_on_is_exit_code_1_and_nothing_is_rendered(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    write_of(nuke, node, tmp_path / "render").setName("Out")
    node.group["overlay"].setValue(True)
    keyed(node, nuke)
    (tmp_path / "init.py").write_text("import stm_nuke.callbacks\nstm_nuke.callbacks.install()\n", "utf-8")
    batch = Batch(tmp_path, start="import init")
    done = batch("--script", "shot.nk", f"--frames={FIRST}-{FIRST + 1}", "--write", "Out")
    assert done.returncode == 1, done.stderr
    assert "STM1 shows its overlay" in done.stderr
    assert not list((tmp_path / "render").iterdir())


def test_a_bug_is_exit_code_1_and_shows_where(nuke: Any, node: Any, tmp_path: Path) -> None:
    keyed(node, nuke)
    start = "import stm_nuke.batch as b; b.propagate = lambda *a: 1 // 0"
    done = Batch(tmp_path, start=start)("--script", "shot.nk")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("Error: ZeroDivisionError")


def steps_of(said: str) -> int:
    """The numbers of steps that the batch script prints: frames to compute, and frames to write."""
    return int(re.findall(r"^Frame \d+ \(\d+ of (\d+)\)", said, re.MULTILINE)[0])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_task_that_the_farm_takes_back_is_exit_code_8_and_what_was_finished_is_kept(
    nuke: Any, node: Any, tmp_path: Path, how: signal.Signals
) -> None:
    keyed(node, nuke)
    batch = Batch(tmp_path)
    with batch.started("--script", "shot.nk") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"Frame {FIRST + 2} ("):
                break
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
    steps = steps_of(line)
    assert process.returncode == 8, errors
    assert errors == "Error: Stopped. What was finished is kept.\n"
    assert {FIRST, FIRST + 1} <= ready(node) < set(FRAMES)
    again = batch("--script", "shot.nk")
    assert again.returncode == 0, again.stderr
    assert steps_of(again.stdout) <= steps - 2, "two frames were computed before"
    assert ready(node) == set(FRAMES)


def test_a_job_that_somebody_else_cancels_is_exit_code_8(nuke: Any, node: Any) -> None:
    from stm_nuke import tasks
    from stm_nuke.wire import EngineError

    def cancelled(task: Any) -> None:
        raise EngineError("cancelled", "The job was cancelled.")

    task = tasks.Task(node.id, "STM", cancelled)
    task.run()
    assert task.error is not None
    assert (task.error.exit_code, str(task.error)) == (8, "Stopped. What was finished is kept.")


def test_two_copies_that_came_into_one_script_are_exit_code_9(nuke: Any, node: Any, tmp_path: Path) -> None:
    keyed(node, nuke)
    script = tmp_path / "shot.nk"
    group = script.read_text("utf-8")
    node.group.setSelected(True)
    nuke.nodeCopy(str(tmp_path / "copied.nk"))
    script.write_text(group + (tmp_path / "copied.nk").read_text("utf-8"), "utf-8")  # merged by a text editor
    done = Batch(tmp_path)("--script", "shot.nk", "--node", "STM1")
    assert done.returncode == 9, done.stderr
    assert done.stderr.startswith("Error: STM1 and STM2 have one cache. Open the script in Nuke")


def test_a_cache_folder_that_cannot_be_written_is_exit_code_9(nuke: Any, node: Any, tmp_path: Path) -> None:
    keyed(node, nuke)
    shutil.rmtree(node.cache.parent)
    node.cache.parent.write_text("a file in the folder's place", "utf-8")
    done = Batch(tmp_path)("--script", "shot.nk")
    assert done.returncode == 9, done.stderr
    assert done.stderr.startswith("Error: The cache folder")
    assert "Choose another folder in the Settings tab" in done.stderr


def test_a_mask_that_cannot_be_used_is_exit_code_5(nuke: Any, node: Any, clip: Path, tmp_path: Path) -> None:
    from stm_nuke import session

    session.leave_engine()
    (clip / f"mask.{FIRST}.png").unlink()
    done = Batch(tmp_path)("--script", "shot.nk", f"--key-from-input={FIRST}")
    assert done.returncode == 5, done.stderr
    assert f"Error: frame {FIRST}: The mask of STM1 cannot be rendered" in done.stderr


def test_a_script_that_cannot_be_saved_is_exit_code_3(
    nuke: Any, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stm_nuke
    from stm_nuke import commandline

    def full(filename: str | None = None) -> bool:
        raise RuntimeError("No space left on device")

    stm_nuke.set_key(node, FIRST)
    nuke.scriptSave()
    script = str(tmp_path / "shot.nk")
    monkeypatch.setattr(nuke, "scriptSave", full)
    code = commandline.main(["--script", script, f"--frames={FIRST}-{FIRST}", "--save"])
    assert code == 3
    assert "shot.nk cannot be saved: No space left on device" in capsys.readouterr().err


def test_every_exit_code_of_the_documentation_is_that_of_an_error_and_is_tested(nuke: Any) -> None:
    import re

    from stm_nuke import errors

    kinds: list[Any] = [errors.StmNodeError, *errors.StmNodeError.__subclasses__()]
    codes = {one.exit_code for one in kinds}
    guide = (REPOSITORY / "docs" / "exit-codes.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| (yes|no)[^|]*\|[^|]*\|$", guide, re.MULTILINE)
    documented = {int(code) for code, by_nuke in rows if by_nuke == "yes"} | {100}
    assert documented == codes | {0, 100} and "ends with 100" in guide
    told = re.findall(
        r"(\d+) [a-z]", (REPOSITORY / "nuke" / "stm_batch.py").read_text("utf-8").split("Exit codes:")[1]
    )
    assert {int(one) for one in told[: len(documented)]} == documented


def test_an_engine_that_cannot_be_started_is_exit_code_7(
    nuke: Any, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STM_ENGINE_PYTHON")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    done = Batch(tmp_path)("--script", "shot.nk", "--key-from-input", str(FIRST))
    assert done.returncode == 7, done.stderr
    assert "not installed" in done.stderr


@pytest.mark.slow
def test_a_farms_bundle_of_a_node_makes_the_nodes_own_mattes(nuke: Any, node: Any) -> None:
    import json

    import stm_nuke
    from stm_nuke import cache

    from stm_plugin.farm.parts import parse_pass
    from stm_plugin.farm.work import FarmShot
    from stm_plugin.planning.values import Request

    stm_nuke.set_key(node, FIRST)
    stm_nuke.set_key(node, LAST)
    frames = (FIRST, LAST - 1)
    folder = stm_nuke.farm_bundle(node, frames=frames)
    assert folder == node.cache / "farm.main"
    assert str(node["status"]).startswith(f"Farm bundle {folder}: 2 passes, 1 chunk of frames")
    values = json.loads((folder / "parameters.json").read_text("utf-8"))
    assert values["Frames"] == f"{FIRST}-{LAST - 1}"
    assert Path(values["Shot"]) == cache.store_folder(node.cache, "main")
    steps = json.loads((folder / "template.yaml").read_text("utf-8"))["steps"]
    assert [one["name"] for one in steps] == ["plan", "propagate", "finish", "check"]
    (passes,) = steps[1]["parameterSpace"]["taskParameterDefinitions"]
    with FarmShot(values["Shot"], Request(*frames), expects=values["Expects"]) as opened:
        opened.prepare(values["Mattes"])
        for name in passes["range"]:
            opened.run_pass(parse_pass(name))
        assert opened.finish(values["Mattes"]) == COUNT - 1
        assert opened.check(values["Mattes"]).problems == {}
    assert ready(node) == set(FRAMES[:-1])
    of_farm = [matte(node, frame) for frame in FRAMES[:-1]]
    rendered = len(nuke._host.executed)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert len(nuke._host.executed) == rendered, "the plate was there"
    shutil.rmtree(node.cache / "mattes")
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert [np.array_equal(matte(node, frame), of_farm[frame - FIRST]) for frame in FRAMES[:-1]] == [True] * 6


@pytest.mark.slow
def test_a_farms_bundle_that_cannot_be_written_says_why(nuke: Any, node: Any, tmp_path: Path) -> None:
    import stm_nuke
    from stm_nuke.errors import EngineFailure, KeyframeError, UsageError

    with pytest.raises(KeyframeError, match="has no keyframe"):
        stm_nuke.farm_bundle(node)
    stm_nuke.set_key(node, FIRST)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "template.yaml").write_text("mine")
    with pytest.raises(EngineFailure, match=r"The bundle cannot be written: .*template.yaml"):
        stm_nuke.farm_bundle(node, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "template.yaml").read_text() == "mine"
    node.group["matte_from"].setValue("live (OFX)")
    with pytest.raises(UsageError, match="a farm writes files"):
        stm_nuke.farm_bundle(node)


@pytest.mark.slow
def test_the_batch_script_writes_a_farms_bundle_in_the_place_of_mattes(
    nuke: Any, node: Any, tmp_path: Path
) -> None:
    """Into a folder, or into the node's cache; what a farm makes of it is what the node reads."""
    import json

    import stm_nuke
    from stm_nuke import cache, session

    stm_nuke.set_key(node, FIRST)
    nuke.scriptSave()
    session.leave_engine()
    words = ("--script", "shot.nk", f"--frames={FIRST}-{LAST - 1}", "--stm", "/tools/stm", "--json", "-")
    done = Batch(tmp_path)(*words, "--farm-bundle", "job")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert (result["bundle"], result["ready"], result["error"]) == ("job", 0, None)
    assert (result["first"], result["last"]) == (FIRST, LAST - 1)
    assert result["mattes"] == cache.matte_pattern(node.cache, "main")
    values = json.loads((tmp_path / "job" / "parameters.json").read_text("utf-8"))
    assert (values["Stm"], values["Frames"]) == ("/tools/stm", f"{FIRST}-{LAST - 1}")
    assert values["Mattes"] == result["mattes"]
    assert ready(node) == set()

    done = Batch(tmp_path)(*words, "--farm-bundle")
    assert done.returncode == 0, done.stderr
    assert (node.cache / "farm.main" / "template.yaml").is_file()
    for other in (("--write", "Out"), ("--bake", "baked")):
        done = Batch(tmp_path)(*words, "--farm-bundle", "other", *other)
        assert done.returncode == 2
        assert "--farm-bundle makes no mattes" in done.stderr
