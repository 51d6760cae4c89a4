"""Shapes: the matte as splines that an artist can edit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from stm_plugin.errors import MatteError, SettingsError
from stm_plugin.shapes.contour import contours, signed_area
from stm_plugin.shapes.making import ShapeMaker
from stm_plugin.shapes.options import MOST_PARTS
from stm_plugin.shapes.raster import coverage, rasterised
from stm_plugin.windows import FloatArray, Window
from tests.stm_plugin.shapes.shape_pictures import (
    WINDOW,
    ellipse,
    filled,
    noise,
    overlap,
    rectangle,
    shapes_of,
)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-20, 60),
    st.floats(-20, 60),
    st.floats(3, 50),
    st.floats(3, 50),
    st.integers(0, 3),
    st.booleans(),
)
def test_coverage_is_the_exact_area_of_a_polygon(
    x: float, y: float, across: float, down: float, turns: int, backward: bool
) -> None:
    window = Window(-30, -30, 160, 160)
    polygon = np.roll(ellipse(x, y, across, down, 90), turns * 20, axis=0)
    polygon = polygon[::-1] if backward else polygon
    covered = coverage(polygon, window)
    right, bottom = np.minimum(polygon.max(axis=0), 130)
    assert covered.min() >= 0
    assert covered.max() <= 1
    if polygon.min() > -30:
        assert right < 130
        assert bottom < 130
        assert covered.sum() == pytest.approx(abs(signed_area(polygon)), rel=1e-4, abs=1e-2)


def test_coverage_agrees_with_another_rasteriser() -> None:
    polygon = ellipse(100.3, 80.7, 60, 41)
    scale = 16
    picture = Image.new("L", (200 * scale, 160 * scale))
    ImageDraw.Draw(picture).polygon([tuple(point * scale - 0.5) for point in polygon], fill=255)
    other = np.asarray(picture, np.float32).reshape(160, scale, 200, scale).mean(axis=(1, 3)) / 255
    assert np.abs(coverage(polygon, Window(0, 0, 200, 160)) - other).max() < 0.1


def test_contours_lie_between_the_pixels_and_holes_run_the_other_way() -> None:
    matte = filled(ellipse(160, 120, 80, 60)) - filled(ellipse(160, 120, 30, 20))
    (outer, inner), left_out = contours(matte, WINDOW)
    assert left_out == 0
    assert (outer.hole, inner.hole) == (False, True)
    assert signed_area(outer.points) > 0 > signed_area(inner.points)
    from_centre = np.hypot((outer.points[:, 0] - 160) / 80, (outer.points[:, 1] - 120) / 60)
    assert np.abs(from_centre - 1).max() * 80 < 0.25


def test_a_matte_that_leaves_the_window_is_closed_along_its_border() -> None:
    (only,), _ = contours(np.ones((20, 30), np.float32), Window(-5, 7, 30, 20))
    assert only.points.min(axis=0).tolist() == [-5, 7]
    assert only.points.max(axis=0).tolist() == [25, 27]


def _moving(frames: int, step: tuple[float, float] = (3.2, 1.7)) -> dict[int, FloatArray]:
    return {1001 + i: filled(rectangle(60 + step[0] * i, 50 + step[1] * i, 90, 70)) for i in range(frames)}


def test_a_rectangle_gets_four_corners_and_nothing_else() -> None:
    (shape,) = shapes_of(_moving(6)).shapes
    assert [point.corner for point in shape.points] == [True] * 4
    for frame in (1001, 1004):
        at = np.array([60, 50]) + np.array([3.2, 1.7]) * (frame - 1001)
        expected = np.array([[0, 0], [90, 0], [90, 70], [0, 70]]) + at
        apart = np.linalg.norm(shape.at(frame).centre[:, None] - expected[None], axis=2)
        assert apart.min(axis=0).max() < 0.9


def test_an_ellipse_gets_few_smooth_points() -> None:
    (shape,) = shapes_of({1: filled(ellipse(160, 120, 80, 50))}).shapes
    assert 3 <= len(shape.points) <= 8
    assert not any(point.corner for point in shape.points)
    outline = shape.at(1)
    turn = np.abs(
        outline.incoming[:, 0] * outline.outgoing[:, 1] - outline.incoming[:, 1] * outline.outgoing[:, 0]
    )
    lengths = np.linalg.norm(outline.incoming, axis=1) * np.linalg.norm(outline.outgoing, axis=1)
    assert np.all(turn <= 1e-6 * lengths + 1e-9)  # both handles lie on one line


def test_steady_motion_needs_a_key_at_both_ends_only() -> None:
    frames = 16
    made = shapes_of(
        _moving(frames), pictures=lambda frame: noise(WINDOW, (3.2 * (frame - 1001), 1.7 * (frame - 1001)))
    )
    (shape,) = made.shapes
    assert all(point.frames == (1001, 1016) for point in shape.points)


def test_a_point_stays_on_its_place_of_the_object() -> None:
    step, frames = (4.0, -2.5), 8
    mattes = {1 + i: filled(ellipse(110 + step[0] * i, 150 + step[1] * i, 60, 40)) for i in range(frames)}
    (shape,) = shapes_of(
        mattes, pictures=lambda frame: noise(WINDOW, (step[0] * (frame - 1), step[1] * (frame - 1)))
    ).shapes
    first, last = shape.at(1).centre, shape.at(frames).centre
    moved = last - first - np.array(step) * (frames - 1)
    assert np.linalg.norm(moved, axis=1).max() < 2.5  # the contour of an ellipse says nothing of sliding


def test_a_turning_object_takes_its_points_along() -> None:
    mattes, turns = {}, {}
    base = rectangle(-50, -30, 100, 60)
    for i in range(8):
        angle = np.radians(6.0 * i)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        mattes[1 + i], turns[1 + i] = filled(base @ turn + (160, 120)), turn
    (shape,) = shapes_of(mattes).shapes
    start = shape.at(1).centre - (160, 120)
    end = shape.at(8).centre - (160, 120)
    off = np.linalg.norm(start @ turns[8] - end, axis=1)
    corners = np.array([point.corner for point in shape.points])
    assert corners.sum() == 4
    assert off[corners].max() < 2.5
    assert off.max() < 4.0  # on a straight edge nothing says where a point belongs


def test_the_tolerance_holds_on_every_frame() -> None:
    random = np.random.default_rng(0)
    mattes = {}
    for i in range(9):
        radius = 60 + 8 * np.sin(i / 2 + 3 * np.linspace(0, 2 * np.pi, 720, endpoint=False))
        circle = ellipse(0, 0, 1, 1)
        mattes[100 + i] = filled(circle * radius[:, None] + (160, 120) + random.normal(0, 3, 2))
    made = {tolerance: shapes_of(mattes, tolerance=tolerance).shapes[0] for tolerance in (0.4, 1.5)}
    for tolerance, shape in made.items():
        for frame, matte in mattes.items():
            contour = contours(matte, WINDOW)[0][0].points
            drawn = shape.at(frame).polyline(300)
            distance = np.linalg.norm(contour[:, None] - drawn[None], axis=2).min(axis=1)
            assert np.percentile(distance, 95) <= tolerance + 0.1
    assert made[1.5].keys < made[0.4].keys


def test_a_hole_subtracts_and_an_island_in_it_is_drawn_over_it() -> None:
    matte = (
        filled(ellipse(160, 120, 100, 90))
        - filled(ellipse(160, 120, 60, 50))
        + filled(ellipse(160, 120, 20, 20))
    )
    made = shapes_of({5: matte})
    assert [shape.hole for shape in made.shapes] == [False, True, False]
    assert overlap(rasterised(made, "hero", 5, WINDOW), matte) > 0.99


def test_a_part_that_comes_and_goes_has_a_lifetime() -> None:
    big = filled(ellipse(100, 120, 60, 60))
    small = filled(ellipse(260, 120, 25, 25))
    mattes = {frame: big + small if 12 <= frame <= 15 else big for frame in range(10, 20)}
    lives = [(shape.first, shape.last) for shape in shapes_of(mattes).shapes]
    assert lives == [(10, 19), (12, 15)]


def test_a_merge_ends_lives_and_begins_another() -> None:
    mattes = {}
    for i in range(10):
        mattes[1 + i] = np.maximum(
            filled(ellipse(80 + 6 * i, 120, 45, 45)), filled(ellipse(240 - 6 * i, 120, 45, 45))
        )
    made = shapes_of(mattes)
    for frame, matte in mattes.items():
        assert overlap(rasterised(made, "hero", frame, WINDOW), matte) > 0.97
    assert {shape.first for shape in made.shapes} != {1}
    assert len([shape for shape in made.shapes if shape.lives(10)]) == 1


@pytest.mark.parametrize("ramp", [6.0, 16.0, 30.0])
def test_feather_points_lie_where_alpha_reaches_0(ramp: float) -> None:
    y, x = np.mgrid[0:240, 0:320] + 0.5
    inside = 70 - np.hypot(x - 160, y - 120)
    matte = np.clip(0.5 + inside / ramp, 0, 1).astype(np.float32)
    (shape,) = shapes_of({1: matte}).shapes
    outline = shape.at(1)
    radius = np.linalg.norm(outline.centre - (160, 120), axis=1)
    end = np.linalg.norm(outline.centre + outline.feather - (160, 120), axis=1)
    assert np.abs(radius - 70).max() < 0.75
    assert np.abs(end - (70 + ramp / 2)).max() < max(1.5, 0.15 * ramp)


def test_a_hard_edge_has_no_feather() -> None:
    (shape,) = shapes_of(_moving(3)).shapes
    assert np.abs(shape.at(1002).feather).max() == 0


def test_an_empty_matte_is_said_with_its_frames() -> None:
    with pytest.raises(MatteError, match=r"empty on all frames \(1-3\)"):
        shapes_of({frame: np.zeros((240, 320), np.float32) for frame in (1, 2, 3)})


def test_parts_of_fewer_than_30_pixels_are_left_out_and_counted() -> None:
    matte = filled(ellipse(100, 120, 60, 60)) + filled(rectangle(250, 20, 5, 5))
    made = shapes_of({1: matte, 2: matte})
    assert len(made.shapes) == 1
    assert made.left_out == 2


def test_a_thousand_specks_are_refused_with_the_frame() -> None:
    matte = np.zeros((480, 640), np.float32)
    for row in range(25):
        for column in range(40):
            matte[row * 16 : row * 16 + 8, column * 16 : column * 16 + 8] = 1
    with pytest.raises(MatteError, match=rf"frame 7: .*1000 pieces; {MOST_PARTS}"):
        ShapeMaker().add(7, {"hero": matte}, Window(0, 0, 640, 480), None)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), 1000.0])
def test_a_tolerance_that_cannot_be_used_is_refused(tolerance: float) -> None:
    with pytest.raises(SettingsError, match="tolerance"):
        ShapeMaker(tolerance)
