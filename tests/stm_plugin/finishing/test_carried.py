"""A key's mask follows the motion of the picture and keeps its softness."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stm_plugin.finishing.carried import REACH, SHARES, carry, motion_between
from stm_plugin.windows import FloatArray


def picture(shift: float, seed: int = 3) -> FloatArray:
    """(3, 120, 160): a textured picture, moved to the right."""
    noise = np.random.default_rng(seed).random((30, 40, 3), np.float32)
    drawn = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
    matrix = np.array([[1, 0, shift], [0, 1, 0]], np.float64)
    moved = cv2.warpAffine(drawn, matrix, (160, 120), borderMode=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(np.clip(moved, 0, 1).transpose(2, 0, 1))


def soft_disc(x: float, softness: float) -> FloatArray:
    rows, columns = np.mgrid[0:120, 0:160].astype(np.float32)
    alpha: FloatArray = np.clip(0.5 - (np.hypot(columns - x, rows - 60) - 25) / softness, 0, 1)
    return alpha.astype(np.float32)


def test_a_mask_moves_with_the_picture_and_stays_as_soft_as_it_was() -> None:
    motion = motion_between(picture(0), picture(5))
    moved = carry(soft_disc(70, 12), motion, 1, 0.8)
    assert np.abs(moved.mask - soft_disc(75, 12)).mean() < 0.01
    assert moved.softness == 1 and moved.share.max() <= SHARES[0]
    assert moved.share[30:90, 40:110].mean() > 0.9 * SHARES[0]


def test_what_does_not_come_back_to_where_it_was_has_no_part() -> None:
    other = picture(0, seed=4)
    found = motion_between(picture(0), other)
    assert carry(soft_disc(70, 12), found, 1, 0.8).share.mean() < 0.3 * SHARES[0]


def test_the_part_of_a_key_fades_with_the_distance() -> None:
    motion = motion_between(picture(0), picture(0))
    parts = [carry(soft_disc(70, 2), motion, away, 0.05).share.mean() for away in range(1, REACH + 1)]
    assert parts == sorted(parts, reverse=True) and parts[0] > 2 * parts[-1] > 0
    assert carry(soft_disc(70, 2), motion, 1, 0.05).softness == 0


def test_the_motion_has_the_same_bits_whatever_the_number_of_threads() -> None:
    threads = cv2.getNumThreads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            cv2.setNumThreads(count)
            found.append(motion_between(picture(0), picture(3)))
    finally:
        cv2.setNumThreads(threads)
    for one in found[1:]:
        assert (one.across == found[0].across).all() and (one.down == found[0].down).all()
        assert (one.agreement == found[0].agreement).all()


@pytest.mark.parametrize("side", [8, 15])
def test_a_tiny_picture_does_not_move(side: int) -> None:
    tiny = np.random.default_rng(0).random((3, side, side), np.float32)
    motion = motion_between(tiny, tiny[:, ::-1].copy())
    assert (motion.across == np.arange(side)).all()
