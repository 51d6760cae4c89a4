"""The live matte by the real OpenFX effect: one switch, the same keys, the same store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nkparser
import numpy as np
import pytest

from tests.conftest import PlateMaker
from tests.nuke.comps import idle, pixels, read_node, write_of

REPOSITORY = Path(__file__).resolve().parents[2]
STAND_IN = REPOSITORY / "tests" / "hosts" / "nuke_stand_in"
FIRST, LAST = 1001, 1004
FRAMES = range(FIRST, LAST + 1)
LIVE, FILES = "live (OFX)", "files"
HALF_ROUNDING = 1e-3
EFFECT_CLASS = "OFXorg.stm-for-nuke.STM_v1"


@pytest.fixture
def node(nuke: Any, engine: Path, make_plate: PlateMaker, tmp_path: Path) -> Iterator[Any]:
    """A saved comp with an STM node on an EXR plate with overscan and one key. No bundle is installed."""
    import stm_nuke.callbacks
    from stm_nuke import session

    stm_nuke.callbacks.install()
    plate = read_node(nuke, make_plate(FRAMES, overscan=4), FRAMES)
    mask = read_node(nuke, str(tmp_path / "plate.mask.%04d.png"), FRAMES, raw=True)
    made = stm_nuke.create(plate, mask)
    made.set("objects", "disc = rgba.red")
    made.set("working_size", 64)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    stm_nuke.set_key(made, FIRST)
    yield made
    session.leave_engine()


@pytest.fixture
def bundle(effect_binary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the bundle on the OpenFX path, as the installer does."""
    folder = effect_binary.parents[3]
    monkeypatch.setenv("OFX_PLUGIN_PATH", str(folder))
    return folder


def switch(node: Any, source: str) -> None:
    """By the knob if there is a window, else through Python."""
    from stm_nuke import verbs

    import nuke

    if nuke.GUI:
        node.group["matte_from"].setValue(source)
        idle(nuke)
    else:
        verbs.take_matte_from(node, source)


def alpha_of(nuke: Any, node: Any, folder: Path, name: str, frames: range = FRAMES) -> dict[int, Any]:
    """The alpha that a Write after the node gets."""
    write = write_of(nuke, node, folder, name)
    nuke.execute(write, frames[0], frames[-1], 1)
    nuke.delete(write)
    return {frame: pixels(folder / f"{name}.{frame}.exr")[..., 3] for frame in frames}


def matte_files(node: Any) -> list[Path]:
    return sorted((node.cache / "mattes").glob("*.exr"))


def run(code: str, folder: Path, plug_in: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a separate process, as Nuke without a window."""
    paths = [str(STAND_IN), str(REPOSITORY / "nuke")] if plug_in else [str(STAND_IN)]
    start = "import stm_nuke.callbacks\nstm_nuke.callbacks.install()\n" if plug_in else ""
    given = {name: value for name, value in os.environ.items() if name != "OFX_PLUGIN_PATH"}
    return subprocess.run(
        [sys.executable, "-c", f"import nuke\n{start}{code}"],
        env={**given, "PYTHONPATH": os.pathsep.join(paths), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_without_the_bundle_the_switch_says_so_and_stays_on_files(
    nuke: Any, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stm_nuke
    from stm_nuke import verbs

    monkeypatch.delenv("OFX_PLUGIN_PATH", raising=False)
    stm_nuke.propagate(node)
    nuke.GUI = True
    switch(node, LIVE)
    assert node["matte_from"] == FILES
    (words,) = nuke._host.messages
    assert "the STM OpenFX effect is not here. Install it" in words
    assert words.endswith("It stays on files.")
    assert node["status"] == words
    assert [one.name() for one in node.group.nodes() if one.Class() == "Group"] == []
    nuke.GUI = False
    assert alpha_of(nuke, node, tmp_path, "out")
    with pytest.raises(stm_nuke.StmNodeError, match="It stays on files"):
        verbs.take_matte_from(node, LIVE)


def test_live_and_files_show_the_same_matte_of_the_same_keys_and_store(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    assert node["matte_from"] == LIVE
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert matte_files(node) == [], "nothing goes through files"
    assert "4 frames done" in node["status"]
    assert "file" not in node["status"]
    live = alpha_of(nuke, node, tmp_path / "live", "live")
    np.testing.assert_allclose(
        live[FIRST][4:-4, 4:-4], pixels(tmp_path / f"plate.mask.{FIRST}.png")[..., 0], atol=HALF_ROUNDING
    )
    plate = pixels(tmp_path / f"plate.{LAST}.exr")
    np.testing.assert_array_equal(pixels(tmp_path / "live" / f"live.{LAST}.exr")[..., :3], plate)

    switch(node, FILES)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert len(matte_files(node)) == len(FRAMES)
    files = alpha_of(nuke, node, tmp_path / "files", "files")
    for frame in FRAMES:
        assert files[frame].shape == live[frame].shape == plate.shape[:2]
        np.testing.assert_allclose(live[frame], files[frame], atol=HALF_ROUNDING)
    assert [key.frame for key in node.keys] == [FIRST]
    assert sorted(one.name for one in node.cache.glob("*.stmshot")) == ["shot.main.stmshot"]
    assert nuke._ofx.violations() == []


def test_looking_at_the_live_matte_makes_nothing_stale_and_the_plate_is_not_rendered_again(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    before = stm_nuke.status(node)
    alpha_of(nuke, node, tmp_path, "out")
    assert stm_nuke.status(node) == before
    count = len(nuke._host.executed)
    assert stm_nuke.propagate(node) == list(FRAMES)
    assert len(nuke._host.executed) == count


def test_a_frame_without_a_fresh_matte_fails_live_in_words_and_is_never_black(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    write = write_of(nuke, node, tmp_path)
    with pytest.raises(RuntimeError, match=rf"STM1\.live\.effect: .*{LAST}"):
        nuke.execute(write, LAST, LAST, 1)
    stm_nuke.propagate(node)
    stm_nuke.set_key(node, LAST)
    with pytest.raises(RuntimeError, match=rf"STM1\.live\.effect: .*{LAST - 1}"):
        nuke.execute(write, LAST - 1, LAST - 1, 1)
    nuke.execute(write, FIRST, FIRST, 1)
    assert not (tmp_path / f"out.{LAST - 1}.exr").exists()


def test_between_two_frames_live_too_is_refused_in_words(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    slow = nuke.nodes.Retime(filter="none", speed=0.5)
    slow["input.first"].setValue(FIRST)
    slow["output.first"].setValue(FIRST)
    slow.setInput(0, node.group)
    write = write_of(nuke, node, tmp_path)
    write.setInput(0, slow)
    with pytest.raises(RuntimeError, match="NO MATTE HERE"):
        nuke.execute(write, FIRST + 1, FIRST + 1, 1)


def test_an_engine_that_was_killed_comes_back_with_the_next_live_render(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path, kill_engine: Callable[[], None]
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    before = alpha_of(nuke, node, tmp_path, "before")
    kill_engine()
    after = alpha_of(nuke, node, tmp_path, "after")
    for frame in FRAMES:
        np.testing.assert_array_equal(before[frame], after[frame])


def test_several_objects_have_their_layers_live_as_from_files(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    node.set("objects", "disc = rgba.red\nother = rgba.green")
    switch(node, LIVE)
    with pytest.raises(stm_nuke.StmNodeError, match=r"No keyframe shows the object other\. Go to a frame"):
        stm_nuke.propagate(node)
    stm_nuke.set_key(node, FIRST)
    stm_nuke.propagate(node)
    write = write_of(nuke, node, tmp_path)
    found = {}
    for source in (LIVE, FILES):
        switch(node, source)
        stm_nuke.propagate(node)
        assert {"disc.alpha", "other.alpha"} <= set(node.group.channels())
        for channel in ("disc.alpha", "other.alpha"):
            write["channels"].setValue(channel)
            nuke.execute(write, LAST, LAST, 1)
            found[source, channel] = pixels(tmp_path / f"out.{LAST}.exr")
    for channel in ("disc.alpha", "other.alpha"):
        np.testing.assert_allclose(found[LIVE, channel], found[FILES, channel], atol=HALF_ROUNDING)
    assert nuke._ofx.violations() == []


def test_the_confidence_of_each_pixel_is_a_layer_live_as_from_files(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    node.set("confidence", True)
    write = write_of(nuke, node, tmp_path)
    write["channels"].setValue("stm.confidence")
    found = {}
    for source in (FILES, LIVE):
        switch(node, source)
        stm_nuke.propagate(node)
        assert "stm.confidence" in node.group.channels()
        nuke.execute(write, LAST, LAST, 1)
        found[source] = pixels(tmp_path / f"out.{LAST}.exr")
    assert 0 <= found[LIVE].min() < found[LIVE].max() <= 1
    np.testing.assert_allclose(found[LIVE], found[FILES], atol=HALF_ROUNDING)
    node.set("confidence", False)
    assert node.arrange_live() == ""
    assert "stm.confidence" not in node.group.channels()
    assert nuke._ofx.violations() == []


def test_edges_of_a_live_node_are_the_panels_and_foreground_colours_are_refused_in_words(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke
    from stm_nuke import verbs
    from stm_nuke.errors import UsageError

    switch(node, LIVE)
    stm_nuke.propagate(node)
    learned = alpha_of(nuke, node, tmp_path, "learned")
    node.set("edges", "off")
    verbs.take_finish(node, "main")
    off = alpha_of(nuke, node, tmp_path, "off")
    assert np.abs(learned[LAST] - off[LAST]).max() > 0.02
    assert matte_files(node) == []
    node.set("foreground", True)
    with pytest.raises(UsageError, match="foreground colours are in matte files only"):
        verbs.take_finish(node, "main")
    with pytest.raises(RuntimeError, match="foreground colours are in matte files only"):
        alpha_of(nuke, node, tmp_path, "refused")


def test_a_script_with_two_views_is_refused_live_in_words(nuke: Any, node: Any, bundle: Path) -> None:
    nuke.addView("right")
    nuke.GUI = True
    switch(node, LIVE)
    assert node["matte_from"] == FILES
    assert "the script has the views main, right, and the effect shows one" in nuke._host.messages[0]


def test_a_view_that_is_added_later_makes_a_live_render_fail(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    nuke.addView("right")
    with pytest.raises(RuntimeError, match=r"the effect shows one\. Or choose 'files'"):
        nuke.execute(write_of(nuke, node, tmp_path), FIRST, FIRST, 1)


def test_a_lost_effect_is_an_error_and_not_the_alpha_of_the_plate(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    nuke.delete(node.group.node("live").node("effect"))
    nuke._host.listeners.clear()  # as Nuke would show it that has no plug-in
    with pytest.raises(RuntimeError, match=r"effect_is_here.which: Nothing is named 'effect.missingFrames'"):
        nuke.execute(write_of(nuke, node, tmp_path), FIRST, FIRST, 1)


# ---- saving and opening


def test_a_saved_script_never_names_the_effect_and_the_window_goes_on_live_after_saving(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    nuke.GUI = True
    undo = len(nuke._host.undo_steps)
    nuke.scriptSave()
    text = (tmp_path / "shot.nk").read_text("utf-8")
    assert "OFX" not in text.replace(LIVE, "").replace("OPENFX", "")
    assert 'matte_from "live (OFX)"' in text
    classes = {one.class_name for one in nkparser.Script.from_string(text).all_nodes()}
    assert not [one for one in classes if one.startswith("OFX")]
    assert node.group.node("live") is None
    nuke._host.pump(lambda: node.group.node("live") is not None, seconds=30)
    assert node.group.node("live").node("effect").Class() == EFFECT_CLASS
    assert not nuke.root().modified()
    assert len(nuke._host.undo_steps) == undo
    assert alpha_of(nuke, node, tmp_path, "out")


@pytest.mark.parametrize("plug_in", [True, False])
def test_a_live_script_without_the_bundle_fails_to_render_and_says_what_to_do(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path, plug_in: bool
) -> None:
    import stm_nuke

    stm_nuke.propagate(node)  # files are there too, and must not be taken silently
    switch(node, LIVE)
    write_of(nuke, node, tmp_path / "render").setName("Out")
    nuke.scriptSave()
    done = run(
        f"nuke.scriptOpen('shot.nk')\nprint(nuke.toNode('STM1')['matte_from'].value())\n"
        f"nuke.execute('Out', {FIRST}, {LAST}, 1)",
        tmp_path,
        plug_in,
    )
    assert done.returncode != 0
    assert LIVE in done.stdout
    words = (
        "effect is not here. Install it"
        if plug_in
        else "STM OPENFX EFFECT IS NOT HERE - install it or choose"
    )
    assert words in done.stderr
    assert not list((tmp_path / "render").iterdir())


def test_a_live_script_opens_live_in_a_new_process_and_renders(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke

    switch(node, LIVE)
    stm_nuke.propagate(node)
    write_of(nuke, node, tmp_path / "render").setName("Out")
    nuke.scriptSave()
    with pytest.raises(RuntimeError, match=r"put_effects_in\(\) puts it back after a save"):
        alpha_of(nuke, node, tmp_path, "here")
    stm_nuke.callbacks.put_effects_in()
    expected = alpha_of(nuke, node, tmp_path, "here")
    done = run(
        f"nuke.scriptOpen('shot.nk')\nnuke.execute('Out', {FIRST}, {LAST}, 1)\nprint(nuke.root().modified())",
        tmp_path,
        True,
        OFX_PLUGIN_PATH=str(bundle),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    for frame in FRAMES:
        np.testing.assert_array_equal(
            pixels(tmp_path / "render" / f"out.{frame}.exr")[..., 3], expected[frame]
        )


def test_a_save_as_during_a_live_propagation_shows_its_mattes_in_the_new_version(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    from stm_nuke import tasks

    nuke.GUI = True
    switch(node, LIVE)
    node.group["both"].execute()
    nuke._host.pump(lambda: any(f"frame {FIRST + 1}" in one for one in nuke._host.progress))
    first_cache = node.cache
    nuke.scriptSaveAs(str(tmp_path / "shot_v002.nk"))
    task = tasks.running(node.id)
    assert task is not None and node.cache != first_cache
    nuke._host.pump(lambda: task.wait(0))
    idle(nuke)
    assert task.error is None
    assert len(alpha_of(nuke, node, tmp_path, "second")) == len(FRAMES)


def test_a_pasted_live_node_shows_its_own_store(nuke: Any, node: Any, bundle: Path, tmp_path: Path) -> None:
    import stm_nuke
    from stm_nuke.node import find_all

    switch(node, LIVE)
    stm_nuke.propagate(node)
    first = alpha_of(nuke, node, tmp_path, "first")
    nuke.GUI = True
    node.group.setSelected(True)
    nuke.nodeCopy("%clipboard%")
    nuke.nodePaste("%clipboard%")
    idle(nuke)
    nuke.GUI = False
    second: Any = find_all()[1]
    store = second.group.node("live").node("effect")["shotStore"].value()
    assert store == f"{second.cache.as_posix()}/shot.main.stmshot"
    for number in (0, 1):
        second.group.setInput(number, node.group.input(number))
    again = alpha_of(nuke, second, tmp_path, "second")
    np.testing.assert_array_equal(first[LAST], again[LAST])


def test_undoing_the_switch_brings_the_files_back(nuke: Any, node: Any, bundle: Path, tmp_path: Path) -> None:
    import stm_nuke

    stm_nuke.propagate(node)
    switch(node, LIVE)
    nuke.undo()
    assert node["matte_from"] == FILES
    nuke.GUI = True
    with pytest.raises(RuntimeError, match="the STM OpenFX effect is still in it"):
        alpha_of(nuke, node, tmp_path, "out")
    idle(nuke)
    assert node.group.node("live") is None
    assert alpha_of(nuke, node, tmp_path, "out")
    assert nuke._host.undo_steps[-1][0] != "matte_from"


def test_switching_to_files_in_the_window_writes_them(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    import stm_nuke
    from stm_nuke import tasks

    switch(node, LIVE)
    stm_nuke.propagate(node)
    nuke.GUI = True
    switch(node, FILES)
    task = tasks._running[node.id]
    nuke._host.pump(lambda: task.wait(0))
    assert task.error is None
    assert len(matte_files(node)) == len(FRAMES)


# ---- without a window


def test_the_batch_script_works_on_a_live_node_and_bakes_its_mattes(
    nuke: Any, node: Any, bundle: Path, tmp_path: Path
) -> None:
    from stm_nuke import session

    switch(node, LIVE)
    write_of(nuke, node, tmp_path / "render").setName("Out")
    nuke.scriptSave()
    session.leave_engine()
    script = str(REPOSITORY / "nuke" / "stm_batch.py")
    code = (
        "import runpy, sys\n"
        f"sys.argv = nuke.rawArgs[:] = [{script!r}, '--script', 'shot.nk', '--write', 'Out',"
        f" '--bake', 'baked', '--frames={FIRST}-{LAST}', '--save']\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    done = run(code, tmp_path, True, OFX_PLUGIN_PATH=str(bundle))
    assert done.returncode == 0, done.stderr
    assert "4 mattes ready in" in done.stdout
    assert (
        len(list((tmp_path / "render").iterdir())) == len(list((tmp_path / "baked").iterdir())) == len(FRAMES)
    )
    assert "OFXorg" not in (tmp_path / "shot.nk").read_text("utf-8")
    for frame in FRAMES:
        np.testing.assert_allclose(
            pixels(tmp_path / "render" / f"out.{frame}.exr")[..., 3],
            pixels(tmp_path / "baked" / f"matte.main.{frame}.exr")[..., 0],
            atol=HALF_ROUNDING,
        )
