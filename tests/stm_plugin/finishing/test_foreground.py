"""Foreground colours: the colours of the matte's object without the background."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stm_plugin.finishing import foreground
from stm_plugin.finishing.foreground import FILLED, foreground_of
from stm_plugin.windows import FloatArray

FRONT = np.array([0.6, 0.25, 0.1], np.float32)


def disc(softness: float) -> FloatArray:
    rows, columns = np.mgrid[0:150, 0:200].astype(np.float32)
    distance = np.hypot(columns - 100, rows - 75) - 40
    alpha: FloatArray = np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)
    return alpha


def front() -> FloatArray:
    """An orange picture with some texture."""
    rows, columns = np.mgrid[0:150, 0:200].astype(np.float32)
    shade = 1 + 0.2 * np.sin(columns / 11)[..., None] * np.cos(rows / 17)[..., None]
    return np.asarray(FRONT * shade, np.float32)


def over(colours: FloatArray, alpha: FloatArray, behind: FloatArray) -> FloatArray:
    share = alpha[..., None]
    return np.asarray(colours * share + behind * (1 - share), np.float32)


def blue_and_green() -> FloatArray:
    share = (np.mgrid[0:150, 0:200][1] / 200)[..., None].astype(np.float32)
    blue, green = np.array([0.05, 0.1, 0.9], np.float32), np.array([0.1, 0.8, 0.2], np.float32)
    return np.asarray(blue * share + green * (1 - share))


@pytest.mark.parametrize("softness", [3.0, 12.0, 30.0])
def test_over_another_background_no_fringe_of_the_old_one_shows(softness: float) -> None:
    alpha, behind = disc(softness), np.full((150, 200, 3), 0.5, np.float32)
    plate = over(front(), alpha, blue_and_green())
    wanted = over(front(), alpha, behind)
    soft = (alpha > 0.02) & (alpha < 0.98)
    fringe = np.abs(over(plate, alpha, behind) - wanted)[soft].mean()
    left = np.abs(over(foreground_of(plate, alpha), alpha, behind) - wanted)[soft].mean()
    assert left < 0.35 * fringe and left < 0.03


def test_inside_the_colours_are_the_plates_and_far_outside_there_are_none() -> None:
    alpha = disc(12.0)
    plate = over(front(), alpha, blue_and_green())
    found = foreground_of(plate, alpha)
    assert (found[alpha == 1] == plate[alpha == 1]).all()
    far = disc(2 * (6.0 + 1.5 * FILLED)) == 0  # the corners of a square
    near = (alpha == 0) & (disc(2 * (6.0 + FILLED - 3.0)) > 0)
    assert far.any() and not found[far].any()
    assert (found[near].sum(-1) > 0.5).all(), "what a filter takes in from beside the matte has its colours"


def test_values_above_one_stay_and_none_is_negative() -> None:
    alpha = disc(12.0)
    found = foreground_of(over(front() * 40, alpha, blue_and_green()), alpha)
    soft = (alpha > 0.3) & (alpha < 1)
    assert found.min() >= 0 and np.abs(found / (front() * 40) - 1)[soft].mean() < 0.2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_matte_without_edges_shows_the_plate_or_nothing(value: float) -> None:
    plate = blue_and_green()
    found = foreground_of(plate, np.full(plate.shape[:2], value, np.float32))
    assert (found == plate * np.float32(value)).all()


def test_rows_are_solved_one_strip_after_the_other_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alpha = disc(12.0)
    plate = over(front(), alpha, blue_and_green())
    found, threads = foreground_of(plate, alpha), torch.get_num_threads()
    for rows in (7, 1000):
        monkeypatch.setattr(foreground, "_ROWS", rows)
        torch.set_num_threads(rows % 3 + 1)
        assert (foreground_of(plate, alpha) == found).all()
    torch.set_num_threads(threads)
