"""Shapes from matte: a Roto node beside the STM node, made through Nuke's public interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nuke.comps import FIRST, small_clip, stm_comp

COUNT = 3
FRAMES = range(FIRST, FIRST + COUNT)


@pytest.fixture
def node(nuke: Any, engine: Path, shared_data: Path, tmp_path: Path) -> Iterator[Any]:
    """A comp whose every frame is a key, so that nothing has to be computed."""
    import stm_nuke.callbacks
    from stm_nuke import session

    small_clip(shared_data / "clips" / "chair", tmp_path / "clip", COUNT)
    stm_nuke.callbacks.install()
    made = stm_comp(nuke, tmp_path / "clip", COUNT)
    nuke.scriptSave(str(tmp_path / "shot.nk"))
    yield made
    session.leave_engine()


def _undo_steps(nuke: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records the name of every new undo step, with the number of nodes made in it."""
    steps: list[tuple[str, int]] = []
    begin, end = nuke.Undo.begin, nuke.Undo.end
    open_ones: list[tuple[str, int]] = []

    def begins(name: str) -> None:
        open_ones.append((name, len(nuke.allNodes())))
        begin(name)

    def ends() -> None:
        end()
        name, count = open_ones.pop()
        steps.append((name, len(nuke.allNodes()) - count))

    monkeypatch.setattr(nuke.Undo, "begin", begins)
    monkeypatch.setattr(nuke.Undo, "end", ends)
    return steps


def test_the_button_makes_a_roto_node_beside_the_stm_node_in_one_undo_step(
    nuke: Any, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm_nuke import panel, verbs

    for frame in FRAMES:
        verbs.set_key(node, frame, "main")
    before = {one.name() for one in nuke.allNodes()}
    steps = _undo_steps(nuke, monkeypatch)
    panel.press(node.group, "shapes")
    assert [(name, made) for name, made in steps if made] == [(f"Shapes from {node.name}", 1)]
    (name,) = {one.name() for one in nuke.allNodes()} - before
    roto = nuke.toNode(name)
    assert (roto.Class(), name) == ("Roto", f"{node.name}_shapes")
    assert roto.xpos() > node.group.xpos()
    curves = roto["curves"]
    assert curves.change_count == 1
    (layer,) = list(curves.rootLayer)
    shapes = list(layer)
    assert shapes
    from stm_nuke.rotokeys import keyed_frames

    assert set(keyed_frames(roto, "main")) <= set(FRAMES)  # what "Keys from roto" will find
    height = node.group.format().height()
    for shape in shapes:
        attributes = shape.getAttributes()
        assert attributes.getValue(0, attributes.kLifeTimeTypeAttribute) == 4
        assert attributes.getValue(0, attributes.kLifeTimeNAttribute) >= FIRST
        assert attributes.getValue(0, attributes.kLifeTimeMAttribute) <= FRAMES[-1]
        for point in shape:
            assert set(point.center.keys) <= set(map(float, FRAMES)) | set(FRAMES)
            assert all(-1 <= y <= height + 1 for _, y in point.center.keys.values())


def test_a_frame_that_is_not_done_makes_no_node_and_is_named(nuke: Any, node: Any) -> None:
    from stm_nuke import verbs

    verbs.set_key(node, FIRST, "main")
    before = len(nuke.allNodes())
    task = verbs.shapes_from_matte(node, "main")
    assert f"frame {FIRST + 1}" in str(task.error)
    assert len(nuke.allNodes()) == before


def test_pixels_are_those_of_the_format_y_up_with_overscan_and_the_plates_frames(nuke: Any) -> None:
    from stm_nuke import roto

    key = {
        "frame": 1001,
        "centre": [90.0, 60.0],
        "in": [-2.0, 3.0],
        "out": [2.0, -3.0],
        "feather": [0.0, -4.0],
    }
    shape = {
        "name": "hero_part1",
        "object": "hero",
        "hole": False,
        "first": 1001,
        "last": 1010,
        "area": 10.0,
        "points": [{"corner": False, "keys": [key]}] * 2,
    }
    hole = {**shape, "name": "hero_hole1", "hole": True}
    made = roto.make_roto({"shapes": [shape, hole], "display_window": [100, 50, 200, 100]}, "Shapes")
    curves: Any = made["curves"]
    (one_layer,) = list(curves.rootLayer)
    layer = list(one_layer)
    assert [one.name for one in layer] == ["hero_hole1", "hero_part1"]  # the first lies on top
    point = layer[1][0]
    assert point.center.keys == {1001: (-10.0, 90.0)}  # left of the format; 10 pixels below its top
    assert point.leftTangent.keys == {1001: (-2.0, -3.0)}
    assert point.featherCenter.keys == {1001: (0.0, 4.0)}
    attributes = layer[0].getAttributes()
    assert [attributes.getValue(0, name) for name in ("r", "a", "ltn", "ltm")] == [0, 0, 1001, 1010]


def test_a_file_without_shapes_is_refused_in_words(nuke: Any, tmp_path: Path) -> None:
    from stm_nuke import roto
    from stm_nuke.errors import CacheError

    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(CacheError, match=r"no\.json cannot be read"):
        roto.read_shapes(tmp_path / "no.json")
