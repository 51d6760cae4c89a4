"""Farms: the public submitters find every file of a script, and the batch script runs many shots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nuke.comps import FRAMES, make_mattes, write_of

# ---- a bake


@pytest.mark.parametrize("number", [0, 1])
def test_a_bake_never_replaces_what_the_node_reads(nuke: Any, comp: Any, tmp_path: Path, number: int) -> None:
    import stm_nuke

    make_mattes(comp, FRAMES)
    (tmp_path / "link").symlink_to(tmp_path / "roto")
    stm_nuke.bake(comp, tmp_path / "roto")
    baked = {path: path.read_bytes() for path in (tmp_path / "roto").iterdir()}
    assert len(baked) == len(FRAMES)
    make_mattes(comp, FRAMES, 0.25)
    read = nuke.nodes.Read(file=(tmp_path / "roto" / "matte.%V.%04d.exr").as_posix(), first=1, last=2)
    grade = nuke.nodes.Dot()
    grade.setInput(0, read)
    comp.group.setInput(number, grade)
    make_mattes(comp, FRAMES, 0.25)
    for folder in ("roto", "link", "other/../roto"):
        with pytest.raises(stm_nuke.StmNodeError, match=f"would replace a file of {read.fullName()}"):
            stm_nuke.bake(comp, tmp_path / folder)
    assert baked == {path: path.read_bytes() for path in (tmp_path / "roto").iterdir()}
    stm_nuke.bake(comp, tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(FRAMES)


# ---- submitters


def every_node(parent: Any) -> Iterator[Any]:
    """All nodes, into every group, as submitters recurse."""
    for node in parent.nodes():
        yield node
        if hasattr(node, "nodes"):
            yield from every_node(node)


def files_to_send(nuke: Any, node: Any) -> Iterator[tuple[str, str]]:
    """The knob and the file of every non-empty File_Knob of a node, for each of its frames and views."""
    for name, knob in node.knobs().items():
        if knob.Class() == "File_Knob" and knob.value() and node.Class() != "Write":
            for view in nuke.views():
                for frame in range(node.firstFrame(), node.lastFrame() + 1):
                    yield f"{node.fullName()}.{name}", nuke._pixels.file_of(knob.value(), frame, view)


@pytest.fixture
def submitted(nuke: Any, comp: Any, tmp_path: Path) -> Any:
    """A comp with mattes, a correction and a Write, saved and opened again."""
    from stm_nuke import verbs
    from stm_nuke.node import find_all

    make_mattes(comp, FRAMES)
    verbs.correct(comp, 1002, "main")
    write_of(nuke, comp, tmp_path / "render").setName("Out")
    comp.set("cache_place", "chosen folder")
    comp.set("cache_folder", (tmp_path / "fast").as_posix())
    comp.move_cache()
    nuke.scriptSave()
    nuke.scriptOpen(nuke.root().name())
    (node,) = find_all()
    return node


def test_every_file_that_a_submitter_finds_is_there_on_every_frame(nuke: Any, submitted: Any) -> None:
    found = [
        (knob, Path(path)) for node in every_node(nuke.root()) for knob, path in files_to_send(nuke, node)
    ]
    assert {knob for knob, _ in found} == {
        "Read1.file", "Read2.file", "STM1.matte.file", "STM1_matte.file",
    }  # fmt: skip
    assert [(knob, path) for knob, path in found if not path.is_file()] == []
    assert len(found) == 4 * len(FRAMES), "ranges are the shot's own"


def test_a_submitter_finds_the_artists_writes_and_no_other(nuke: Any, submitted: Any) -> None:
    assert [node.fullName() for node in every_node(nuke.root()) if node.Class().endswith("Write")] == ["Out"]


def test_paths_have_forward_slashes_and_frames_and_text_replacement_maps_them_all(
    nuke: Any, submitted: Any, tmp_path: Path
) -> None:
    paths = [
        str(knob.value())
        for node in every_node(nuke.root())
        for knob in node.knobs().values()
        if knob.Class() == "File_Knob" and knob.value()
    ]
    assert all("\\" not in path and Path(path).suffix for path in paths)
    assert all("%04d" in path or "####" in path for path in paths)
    script = Path(nuke.root().name())
    script.write_text(script.read_text("utf-8").replace(tmp_path.as_posix(), "/mapped"), "utf-8")
    nuke.scriptOpen(str(script))
    text = nuke.toNode("STM1").node("matte")["file"].value()
    assert text.startswith("/mapped/fast/")
    assert tmp_path.as_posix() not in script.read_text("utf-8")


# ---- many shots


def batch_of(nuke: Any, *arguments: str) -> int:
    from stm_nuke import commandline

    return commandline.main(arguments)


@pytest.fixture
def two_shots(nuke: Any, comp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two scripts: one with two nodes, of which one has a key; one with a node without keys. No engine."""
    import stm_nuke
    from stm_nuke import batch
    from stm_nuke.keys import Key

    comp.set_keys([Key("main", 1001, "digest", "file")])
    second = stm_nuke.create(comp.plate, comp.mask)
    second.set_keys([])
    nuke.scriptSave(str(tmp_path / "a.nk"))
    nuke.delete(comp.group)
    nuke.scriptSave(str(tmp_path / "b.nk"))
    propagate = batch.propagate

    def keyed_ones(node: Any, frames: Any = None, direction: Any = "both", view: Any = None) -> list[int]:
        if not node.keys_of("main"):
            return propagate(node, frames, direction, view)  # refuses
        first, last = frames or node.frames
        return list(range(first, last + 1))

    monkeypatch.setattr(batch, "propagate", keyed_ones)
    return [str(tmp_path / "a.nk"), str(tmp_path / "b.nk")]


def test_many_nodes_and_scripts_are_done_and_one_that_fails_keeps_no_other_from_it(
    nuke: Any, two_shots: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_shots
    arguments = ("--script", second, "--script", "gone.nk", "--script", first, "--json", "-")
    assert batch_of(nuke, *arguments) == 5, "the first that failed"
    out, err = capsys.readouterr()
    *_, head, one, gone, keyed, two, line = out.splitlines()
    assert head.split() == ["script", "node", "view", "frames", "ready", "seconds", "result"]
    assert one.startswith("b.nk")
    assert "failed (5): STM2 has no keyframe" in one
    assert "failed (3): There is no script gone.nk" in gone
    assert keyed.split()[:5] == ["a.nk", "STM1", "main", "1001-1003", "3"]
    assert keyed.endswith("done")
    assert "failed (5)" in two
    assert err.count("Error: ") == 3
    results = json.loads(line)["results"]
    assert [(one["node"], one["exit_code"]) for one in results] == [
        ("STM2", 5), ("", 3), ("STM1", 0), ("STM2", 5),
    ]  # fmt: skip
    assert results[2]["mattes"].endswith("/mattes/matte.main.%04d.exr")
    assert results[2]["error"] is None


def test_results_are_written_to_a_file_and_a_script_that_failed_is_not_rendered(
    nuke: Any, two_shots: list[str], tmp_path: Path
) -> None:
    rendered = len(nuke._host.executed)
    nuke.scriptOpen(two_shots[0])
    write_of(nuke, nuke_node(nuke), tmp_path / "render").setName("Out")
    nuke.scriptSave()
    file = tmp_path / "results.json"
    assert batch_of(nuke, "--script", two_shots[0], "--write", "Out", "--json", str(file)) == 5
    assert len(json.loads(file.read_text("utf-8"))["results"]) == 2
    assert len(nuke._host.executed) == rendered
    assert batch_of(nuke, "--script", two_shots[0], "--node", "STM1", "--json", os.devnull) == 0


def nuke_node(nuke: Any) -> Any:
    from stm_nuke.node import find_all

    return find_all()[0]


def test_a_stop_ends_everything_and_what_was_done_is_reported(
    nuke: Any, two_shots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import batch
    from stm_nuke.errors import Stopped

    def stopped(*arguments: Any) -> list[int]:
        raise Stopped

    monkeypatch.setattr(batch, "propagate", stopped)
    file = tmp_path / "results.json"
    scripts = [word for one in two_shots for word in ("--script", one)]
    assert batch_of(nuke, *scripts, "--json", str(file)) == 8
    (only,) = json.loads(file.read_text("utf-8"))["results"]
    assert only["exit_code"] == 8
    assert "Stopped" in only["error"]


def test_a_key_needs_one_script(nuke: Any, two_shots: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [word for one in two_shots for word in ("--script", one)]
    assert batch_of(nuke, *scripts, "--key-from-input", "1001") == 2
    assert "--key needs one --script" in capsys.readouterr().err


def test_the_bundles_of_several_nodes_have_a_folder_each(
    nuke: Any, two_shots: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import batch

    written = []

    def farm_bundle(node: Any, out: Any, frames: Any, stm: str, view: str) -> Path:
        written.append((node.name, out, stm, view))
        return Path(out)

    monkeypatch.setattr(batch, "farm_bundle", farm_bundle)
    script, folder = two_shots[0], tmp_path / "jobs"
    assert batch_of(nuke, "--script", script, "--farm-bundle", str(folder)) == 0
    assert written == [
        ("STM1", folder / "a" / "STM1.main", "stm", "main"),
        ("STM2", folder / "a" / "STM2.main", "stm", "main"),
    ]
    written.clear()
    assert batch_of(nuke, "--script", script, "--node", "STM1", "--farm-bundle", str(folder)) == 0
    assert written == [("STM1", folder, "stm", "main")]
