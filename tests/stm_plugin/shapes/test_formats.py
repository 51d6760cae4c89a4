"""Every format of shapes gives the same pixels and is valid for its host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nkparser
import numpy as np
import pytest

from stm_plugin.errors import MatteError
from stm_plugin.shapes.formats import files_of, format_of
from stm_plugin.shapes.json_file import shapes_from_json, shapes_json_text
from stm_plugin.shapes.natron import natron_script, read_natron_script
from stm_plugin.shapes.nuke import nuke_script, number, read_nuke_script
from stm_plugin.shapes.raster import coverage, rasterised
from stm_plugin.shapes.svg import read_svg, svg_text
from stm_plugin.shapes.values import ShapeSet
from stm_plugin.windows import FloatArray, Window
from tests.stm_plugin.shapes.shape_pictures import ellipse, filled, overlap, shapes_of

DATA = Window(-16, -10, 352, 260)  # more than the format on all sides
DISPLAY = Window(0, 0, 320, 240)
FRAMES = (1001, 1002, 1003, 1004)
SAME = 1 / 256


def _matte(frame: int) -> FloatArray:
    step = 6.0 * (frame - 1001)
    outer = ellipse(step + 20, 110 + step / 2, 70, 60)  # reaches out of the format
    return filled(outer, DATA) - filled(ellipse(step + 30, 110, 25, 18), DATA)


@pytest.fixture(scope="module")
def made() -> ShapeSet:
    return shapes_of({frame: _matte(frame) for frame in FRAMES}, DATA, display=DISPLAY, aspect=2.0)


def _same_pixels(made: ShapeSet, other: ShapeSet) -> None:
    assert [(one.name, one.hole, one.first, one.last) for one in other.shapes] == [
        (one.name, one.hole, one.first, one.last) for one in made.shapes
    ]
    for frame in FRAMES:
        before, after = (rasterised(one, "hero", frame, DATA) for one in (made, other))
        assert np.abs(before - after).max() <= SAME


def test_the_shapes_are_the_matte(made: ShapeSet) -> None:
    for frame in FRAMES:
        assert overlap(rasterised(made, "hero", frame, DATA), _matte(frame)) > 0.985


def test_nuke_text_gives_the_same_pixels(made: ShapeSet) -> None:
    again = read_nuke_script(nuke_script(made), DISPLAY, FRAMES)
    _same_pixels(made, again)
    assert again.pixel_aspect == 2.0


def test_nuke_text_is_read_by_an_independent_parser(made: ShapeSet) -> None:
    script = nkparser.Script.from_string(nuke_script(made, "hero"))
    (node,) = list(script.all_nodes())
    assert (node.class_name, node.name) == ("Roto", "hero")
    assert "curvegroup hero_part1" in str(node.get("curves"))


def test_nuke_counts_y_upwards_from_the_lower_left_corner_of_the_format() -> None:
    display = Window(100, 50, 200, 100)
    made = shapes_of(
        {7: filled(ellipse(150, 80, 20, 10), Window(80, 40, 240, 130))},
        Window(80, 40, 240, 130),
        display=display,
    )
    # seen as a host that knows nothing of the plate's windows: the format begins at (0, 0)
    seen = read_nuke_script(nuke_script(made), Window(0, 0, 200, 100), (7,))
    polygon = seen.shapes[0].at(7).polyline()
    middle = (polygon.min(axis=0) + polygon.max(axis=0)) / 2
    assert middle == pytest.approx([50, 30], abs=0.3)  # (150 - 100, 80 - 50), y down; 70 from the bottom
    assert 'format "200 100 0 0 200 100 1 "' in nuke_script(made)


def test_nuke_keys_carry_the_frame_numbers_of_the_plate_and_the_lifetime(made: ShapeSet) -> None:
    text = nuke_script(made)
    assert f"ltn {number(1001)} ltm {number(1004)} ltt 4" in text
    assert "{1001 " in text
    assert "a 0 ltn" in text  # the hole is painted with nothing
    assert text.index("hero_hole1") < text.index("hero_part1")  # the first lies on top


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1001.0, 0.1, 1e-7, -12345.678])
def test_numbers_of_nuke_are_single_floats(value: float) -> None:
    text = number(value)
    read = float(np.uint32(int(text[1:], 16)).view(np.float32)) if text[0] == "x" else float(text)
    assert read == np.float32(value)


def test_natron_text_gives_the_same_pixels(made: ShapeSet) -> None:
    _same_pixels(made, read_natron_script(natron_script(made, "hero"), DISPLAY))


class _Natron:
    """Stands in for NatronEngine: records every call, and has only documented methods."""

    _METHODS = frozenset(
        {
            *("createNode", "setLabel", "getRotoContext", "createLayer", "createBezier", "addControlPoint"),
            *("setCurveFinished", "setScriptName", "setPointAtIndex", "setFeatherPointAtIndex", "addItem"),
            *("getColorParam", "getActivatedParam", "set", "setValueAtTime"),
        }
    )

    def __init__(self, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name not in self._METHODS:
            raise AttributeError(name)

        def call(*values: Any) -> _Natron:
            self._calls.append((name, values))
            return _Natron(self._calls)

        return call


def test_natron_script_runs_with_documented_calls_only(made: ShapeSet) -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = []
    names: dict[str, Any] = {}
    exec(compile(natron_script(made, "hero"), "hero.py", "exec"), names)
    names["createInstance"](_Natron(calls))
    keyed = {frame for shape in made.shapes for point in shape.points for frame in point.frames}
    assert {values[1] for name, values in calls if name == "setPointAtIndex"} == keyed
    assert len([1 for name, _ in calls if name == "createBezier"]) == 2
    assert ("set", (0.0, 0.0, 0.0)) in calls  # the hole


def test_json_gives_the_same_pixels_and_keeps_the_rest(made: ShapeSet) -> None:
    again = shapes_from_json(json.loads(shapes_json_text(made)))
    _same_pixels(made, again)
    assert (again.frames, again.display_window, again.pixel_aspect) == (FRAMES, DISPLAY, 2.0)
    assert [point.corner for point in again.shapes[0].points] == [p.corner for p in made.shapes[0].points]


def test_the_schema_names_every_field_of_the_json(made: ShapeSet) -> None:
    whole = json.loads((Path(__file__).parents[3] / "docs" / "shapes.schema.json").read_text())
    value = json.loads(shapes_json_text(made))

    def check(value: Any, schema: dict[str, Any]) -> None:
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        if schema.get("type") == "object":
            assert set(value) == set(schema["properties"]) == set(schema["required"])
            for name, inner in value.items():
                check(inner, schema["properties"][name])
        elif schema.get("type") == "array":
            assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
            for inner in value:
                check(inner, schema["items"])
        elif "const" in schema:
            assert value == schema["const"]
        else:
            kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
            assert isinstance(value, kinds[schema["type"]])  # type: ignore[arg-type]

    check(value, whole)


@pytest.mark.parametrize(
    "value", [None, {}, {"format": "stm-shapes", "version": 99}, {"format": "stm-shapes", "version": 1}]
)
def test_json_of_something_else_is_refused(value: Any) -> None:
    with pytest.raises(MatteError):
        shapes_from_json(value)


@pytest.mark.parametrize("text", ["", "Grade {\n name G\n}\n", "Roto {\n curves {{{v 1}}}\n}\n"])
def test_text_without_shapes_is_refused(text: str) -> None:
    with pytest.raises(MatteError):
        read_nuke_script(text, DISPLAY, FRAMES)
    with pytest.raises(MatteError):
        read_natron_script(text, DISPLAY)


def test_svg_gives_the_same_pixels_frame_by_frame(made: ShapeSet) -> None:
    for frame in FRAMES:
        drawn = np.zeros((DATA.height, DATA.width), np.float32)
        for _, hole, outline in read_svg(svg_text(made, frame)):
            drawn += coverage(outline.polyline(), DATA) * ((0.0 if hole else 1.0) - drawn)
        assert np.abs(drawn - rasterised(made, "hero", frame, DATA)).max() <= SAME


def test_the_name_of_a_file_says_its_format(tmp_path: Path, made: ShapeSet) -> None:
    assert [format_of(f"hero{end}") for end in (".nk", ".py", ".json", ".####.svg")] == [
        "nuke",
        "natron",
        "json",
        "svg",
    ]
    assert format_of("hero.txt", "json") == "json"
    with pytest.raises(MatteError, match="--format"):
        format_of("hero.txt")
    files = files_of(made, tmp_path / "hero.####.svg", "svg")
    assert [path.name for path in files] == [f"hero.{frame}.svg" for frame in FRAMES]
