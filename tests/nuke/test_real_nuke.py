"""What a real Nuke does to nodes, as its documents and public code tell it: the node survives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.nuke.comps import FRAMES, make_mattes, read_node, write_of

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
    before = inside.plate_print()
    grade["multiply"].setValue(2.0)
    changed = inside.plate_print()
    assert changed != before
    outer.setInput(0, comp.plate)
    assert inside.plate_print() not in (before, changed)


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
    from stm_nuke.capture import plate

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
        assert plate(comp, 1002, tmp_path.name).planes, how
        before = comp.plate_print()
        os.utime(tmp_path / "plate.1002.exr")
        assert comp.plate_print() != before, how


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
