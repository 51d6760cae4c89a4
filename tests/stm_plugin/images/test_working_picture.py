"""The working picture shows the region in square pixels, and values return to their plate pixels."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_plugin.errors import SettingsError
from stm_plugin.images import working_picture
from stm_plugin.images.working_picture import (
    inside_region,
    to_plate,
    to_working,
    to_working_points,
    working_geometry,
)
from stm_plugin.windows import FloatArray, Window


def ramp(window: Window) -> FloatArray:
    """Each pixel holds the x and y of its centre."""
    x = np.arange(window.x, window.right) + 0.5
    y = np.arange(window.y, window.bottom) + 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def test_the_short_side_has_the_working_size_and_small_plates_are_enlarged_as_far_as_helps() -> None:
    wide = working_geometry(Window(0, 0, 2048, 1556), 1.0, 480)
    assert (wide.width, wide.height) == (632, 480)
    small = working_geometry(Window(0, 0, 720, 400), 1.0, 480)
    assert (small.width, small.height) == (864, 480)
    region = working_geometry(Window(0, 0, 2048, 1556), 1.0, 480, Window(900, 700, 240, 160))
    assert (region.width, region.height) == (720, 480)
    tiny = working_geometry(Window(0, 0, 150, 100), 1.0, 480)
    assert (tiny.width, tiny.height) == (600, 400)


def test_anamorphic_plates_are_seen_in_square_pixels() -> None:
    geometry = working_geometry(Window(0, 0, 1828, 1556), 2.0, 480)
    assert (geometry.width, geometry.height) == (round(1828 * 2 * 480 / 1556), 480)
    small = working_geometry(Window(0, 0, 100, 100), 2.0, 480)
    assert (small.width, small.height) == (800, 400)


def test_a_region_is_cut_to_the_canvas_and_must_lie_on_it() -> None:
    canvas = Window(-10, -10, 120, 100)
    assert working_geometry(canvas, 1.0, 480, Window(50, 0, 500, 40)).region == Window(50, 0, 60, 40)
    with pytest.raises(SettingsError, match="outside the plate"):
        working_geometry(canvas, 1.0, 480, Window(500, 0, 10, 10))


@given(
    x=st.integers(-50, 50),
    y=st.integers(-50, 50),
    width=st.integers(40, 200),
    height=st.integers(40, 200),
    aspect=st.sampled_from([0.5, 1.0, 2.0]),
    size=st.integers(16, 60),
)
def test_working_pixels_go_back_to_where_they_came_from(
    x: int, y: int, width: int, height: int, aspect: float, size: int
) -> None:
    canvas = Window(x, y, width, height)
    region = Window(x + 5, y + 7, width - 12, height - 9)
    geometry = working_geometry(canvas, aspect, size, region)
    back = to_plate(to_working(ramp(canvas), canvas, geometry), canvas, geometry)
    scale = max(geometry.scale_x, geometry.scale_y)
    margin = int(scale) + 2
    inner = Window(
        region.x + margin, region.y + margin, region.width - 2 * margin, region.height - 2 * margin
    )
    if inner.width < 1 or inner.height < 1:
        return
    part = np.s_[inner.y - y : inner.bottom - y, inner.x - x : inner.right - x]
    assert np.abs(back[part] - ramp(canvas)[part]).max() < 0.1 + scale / 50


def test_a_part_of_the_plate_and_single_pixels_lie_where_they_lie_in_the_whole() -> None:
    window = Window(-3, 4, 90, 70)
    geometry = working_geometry(window, 1.0, 30)
    values = to_working(ramp(window), window, geometry)
    whole = to_plate(values, window, geometry)
    target = Window(30, 30, 12, 10)
    part = to_plate(values, target, geometry)
    expected = whole[target.y - window.y :, target.x - window.x :][: target.height, : target.width]
    assert np.abs(part - expected).max() < 0.1  # plate pixels
    x, y = to_working_points(np.arange(12), np.arange(10), target, geometry)
    across = np.interp(x, np.arange(geometry.width), values[0, :, 0])
    down = np.interp(y, np.arange(geometry.height), values[:, 0, 1])
    assert np.abs(across - (np.arange(target.x, target.right) + 0.5)).max() < 0.1
    assert np.abs(down - (np.arange(target.y, target.bottom) + 0.5)).max() < 0.1


def test_colour_is_applied_to_every_pixel_before_the_size_changes() -> None:
    window = Window(0, 0, 300, 200)
    geometry = working_geometry(window, 1.0, 50)
    pixels = np.random.default_rng(3).random((200, 300, 3), np.float32)
    for region in (window, Window(20, 10, 200, 150), Window(-40, -20, 400, 300)):
        there = replace(geometry, region=region)
        by_rows = to_working(pixels, window, there, np.square)
        assert np.allclose(by_rows, to_working(np.square(pixels), window, there), atol=1e-6)


@given(
    width=st.integers(40, 130),
    height=st.integers(40, 130),
    size=st.integers(16, 39),
    rows=st.integers(1, 40),
)
def test_blocks_of_rows_give_what_the_whole_gives_at_once(
    width: int, height: int, size: int, rows: int
) -> None:
    canvas = Window(0, 0, width, height)
    geometry = working_geometry(canvas, 1.0, size)
    picture = np.random.default_rng(width * height).random((height, width, 3), dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working_picture, "_BLOCK_ELEMENTS", rows * width * 3)
        narrowed = to_working(picture, canvas, geometry)
    at_once = cv2.resize(picture, (geometry.width, geometry.height), interpolation=cv2.INTER_AREA)
    assert np.allclose(narrowed, at_once, atol=2e-6)


def test_thin_things_are_averaged_not_lost() -> None:
    window = Window(0, 0, 512, 512)
    pixels = np.zeros((512, 512), np.float32)
    pixels[:, ::8] = 1.0
    working = to_working(pixels, window, working_geometry(window, 1.0, 64))
    assert np.allclose(working, 1 / 8, atol=1e-4)


def test_pixels_outside_the_data_window_are_black() -> None:
    canvas, data = Window(0, 0, 64, 64), Window(16, 16, 32, 32)
    geometry = working_geometry(canvas, 1.0, 32)
    working = to_working(np.ones((32, 32), np.float32), data, geometry)
    assert working[16, 16] == 1.0
    assert working[:7].max() == 0.0 and working.sum() == pytest.approx(256)


def test_mattes_are_zero_outside_the_region() -> None:
    canvas = Window(0, 0, 20, 20)
    geometry = working_geometry(canvas, 1.0, 10, Window(5, 5, 10, 10))
    matte = inside_region(np.ones((20, 20), np.float32), canvas, geometry)
    assert matte.sum() == 100 and matte[5:15, 5:15].all()
    assert not inside_region(np.ones((2, 2), np.float32), Window(0, 0, 2, 2), geometry).any()
