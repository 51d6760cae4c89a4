"""Finished mattes are soft where the plate is soft, and exact where the network is certain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from stm_plugin.finishing.band import Guide, enlarged, plate_tiles
from stm_plugin.finishing.guided import finish
from stm_plugin.images.working_picture import (
    WorkingGeometry,
    inside_region,
    to_plate,
    to_working,
    working_geometry,
)
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray, Window

WINDOW = Window(-8, -6, 400, 300)
SETTINGS = FinishSettings(edges="guided")


def soft_disc(softness: float, centre: tuple[float, float] = (200, 150), radius: float = 80) -> FloatArray:
    """(300, 400): 1 inside, 0 outside, over an edge of `softness` pixels."""
    rows, columns = np.mgrid[0:300, 0:400].astype(np.float32)
    distance = np.hypot(columns - centre[0], rows - centre[1]) - radius
    alpha: FloatArray = np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)
    return alpha


def scene(alpha: FloatArray) -> FloatArray:
    """A bright object with some texture before a dark gradient."""
    rows, columns = np.mgrid[0:300, 0:400].astype(np.float32)
    front = 0.7 + 0.05 * np.sin(columns / 9)[..., None] * np.array([1, 0.5, -0.5], np.float32)
    back = np.stack([columns / 2000, rows / 1500, np.full_like(rows, 0.1)], axis=-1)
    return np.ascontiguousarray(alpha[..., None] * front + (1 - alpha[..., None]) * back, dtype=np.float32)


def colours_of(picture: FloatArray) -> Callable[[slice, slice], FloatArray]:
    """A plate of these display-referred colours."""
    return lambda rows, columns: picture[rows, columns]


def planes(picture: FloatArray) -> FloatArray:
    """(3, h, w) of (h, w, 3)."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def prepared(
    alpha: FloatArray, working_size: int = 100, region: Window | None = None
) -> tuple[FloatArray, Guide, WorkingGeometry]:
    """The network's output for `alpha` (blurred over its stride), the guide, and the geometry."""
    geometry = working_geometry(WINDOW, 1.0, working_size, region)
    picture = scene(alpha)
    guide = Guide(planes(to_working(picture, WINDOW, geometry)), colours_of(picture), WINDOW)
    probability = cv2.GaussianBlur(to_working(alpha, WINDOW, geometry), (0, 0), 1.5)
    return np.asarray(probability, np.float32), guide, geometry


@pytest.mark.parametrize("softness", [1.0, 2.0, 6.0])
def test_edges_land_where_the_plate_has_them(softness: float) -> None:
    alpha = soft_disc(softness)
    probability, guide, geometry = prepared(alpha)
    finished = finish(probability, guide, geometry, SETTINGS)
    plain = to_plate(probability, WINDOW, geometry)
    assert np.abs(finished - alpha).mean() < 0.5 * np.abs(plain - alpha).mean()
    assert np.count_nonzero((finished > 0.5) != (alpha > 0.5)) < 0.01 * np.count_nonzero(alpha > 0.5)


def test_a_wide_soft_edge_stays_soft() -> None:
    alpha = soft_disc(40.0)
    finished = finish(*prepared(alpha), replace(SETTINGS, sharpness=1.0))
    unsure = (finished > 0.1) & (finished < 0.9)
    assert np.count_nonzero(unsure) > 0.6 * np.count_nonzero((alpha > 0.1) & (alpha < 0.9))
    assert np.abs(finished - alpha).max() < 0.3


def test_a_wide_soft_edge_that_the_network_made_hard_comes_back_better_than_a_perfect_binary_mask() -> None:
    alpha = soft_disc(36.0)  # plate pixels: 12 at working size
    _, guide, geometry = prepared(alpha)
    hard = (to_working(alpha, WINDOW, geometry) > 0.5).astype(np.float32)
    probability = np.asarray(cv2.GaussianBlur(hard, (0, 0), 1.5), np.float32)
    finished = finish(probability, guide, geometry, SETTINGS)
    before = finish(probability, guide, geometry, replace(SETTINGS, radius=2, sharpness=2.0))
    cut = (alpha > 0.5).astype(np.float32)
    error = np.square(finished - alpha).mean()
    assert error < 0.5 * np.square(cut - alpha).mean()
    assert error < 0.5 * np.square(before - alpha).mean()


def test_sure_pixels_are_exactly_zero_or_one_and_there_is_no_halo() -> None:
    alpha = soft_disc(2.0)
    settings = replace(SETTINGS, radius=2)
    finished = finish(*prepared(alpha), settings)
    reach = 4 * (2 * settings.radius + 6)  # in plate pixels, at a scale of 3: well beyond the edge
    far_out = cv2.dilate(alpha, np.ones((reach, reach), np.uint8)) == 0
    far_in = cv2.erode(alpha, np.ones((reach, reach), np.uint8)) == 1
    assert (finished[far_out] == 0).all() and far_out.any()
    assert (finished[far_in] == 1).all() and far_in.any()
    assert finished.min() >= 0 and finished.max() <= 1 and finished.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 1.0, 0.01, 0.99])
def test_a_sure_frame_is_flat(value: float) -> None:
    probability, guide, geometry = prepared(soft_disc(2.0))
    finished = finish(np.full_like(probability, value), guide, geometry, SETTINGS)
    assert (finished == round(value)).all()


def test_a_flat_plate_changes_nothing_but_the_contrast() -> None:
    probability, guide, geometry = prepared(soft_disc(2.0))
    flat = np.full((WINDOW.height, WINDOW.width, 3), 0.5, np.float32)
    grey = Guide(np.full_like(guide.working, 0.5), colours_of(flat), WINDOW)
    finished = finish(probability, grey, geometry, replace(SETTINGS, sharpness=1.0, sure=0.0))
    assert np.abs(finished - to_plate(probability, WINDOW, geometry)).max() < 0.02


def test_finishing_follows_the_data_window_and_the_region() -> None:
    alpha = soft_disc(2.0)
    region = Window(100, 50, 150, 150)
    probability, guide, geometry = prepared(alpha, region=region)
    whole = finish(probability, guide, geometry, SETTINGS)
    assert not (whole != inside_region(whole, WINDOW, geometry)).any() and whole.any()

    data = Window(60, 40, 200, 180)
    part = np.s_[data.y - WINDOW.y : data.bottom - WINDOW.y, data.x - WINDOW.x : data.right - WINDOW.x]
    cropped = Guide(guide.working, colours_of(scene(alpha)[part]), data)
    assert np.allclose(finish(probability, cropped, geometry, SETTINGS), whole[part], atol=1e-4)


def test_finishing_can_be_turned_off() -> None:
    probability, guide, geometry = prepared(soft_disc(2.0))
    plain = finish(probability, guide, geometry, replace(SETTINGS, edges="off", sure=0.0))
    assert np.allclose(plain, to_plate(probability, WINDOW, geometry), atol=1e-6)


@pytest.mark.parametrize("width", [97, 256, 611])
def test_tiles_cover_what_is_wanted_and_no_plate_pixel_twice(rng: np.random.Generator, width: int) -> None:
    window = Window(-7, 11, width, 205)
    geometry = working_geometry(window, 1.0, 64)
    wanted = (rng.random((geometry.height, geometry.width)) > 0.99).astype(np.uint8)
    box = np.s_[5:50, 8 : geometry.width - 3]
    count = np.zeros((window.height, window.width), int)
    for tile in plate_tiles(wanted[box], box, window, geometry):
        count[tile] += 1
    rows = ((np.arange(window.height) + 0.5) / geometry.scale_y).astype(int)
    columns = ((np.arange(window.width) + 0.5) / geometry.scale_x).astype(int)
    only = np.zeros_like(wanted)
    only[box] = wanted[box]
    assert count.max() == 1
    assert (count[only[rows][:, columns] > 0] == 1).all()


def test_maps_are_enlarged_as_opencv_does(rng: np.random.Generator) -> None:
    maps = rng.random((3, 20, 30), dtype=np.float32)
    x = (np.arange(75, dtype=np.float32) + 0.5) / 2.5 - 0.5
    y = (np.arange(40, dtype=np.float32) + 0.5) / 2.0 - 0.5
    wanted = [cv2.resize(one, (75, 40), interpolation=cv2.INTER_LINEAR) for one in maps]
    assert np.allclose(enlarged(maps, x, y), wanted, atol=1e-6)
    assert np.allclose(enlarged(maps, x[31:60], y[7:9]), np.stack(wanted)[:, 7:9, 31:60], atol=1e-6)
