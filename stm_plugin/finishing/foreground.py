"""The colours of the foreground: the plate without its background, where a matte is soft.

The multi-level method of Germer, Uelwer, Conrad and Harmeling (Fast Multi-Level Foreground Estimation, 2020):
foreground and background are sought that make the plate by the matte and are smooth where the matte is not.
It begins with a picture of one pixel, and doubles the size until it is that of the plate.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from stm_plugin.finishing.band import box_around, dilated
from stm_plugin.windows import FloatArray

VERSION = 1
"""Enters the address of every matte with foreground colours; raise it when the same matte gives others."""

FILLED = 16
"""Plate pixels around an object that get its colours too: what a filter takes in from beside the matte."""
_SPARE = 32
"""Plate pixels around what is soft that tell its foreground from its background."""
_ROUNDS, _MOST_ROUNDS = 2, 32
"""Of least squares at the size of the plate, and at most; at half the size they cost a quarter."""
_ROWS = 48
"""Rows that are solved at a time."""
_SMOOTH, _AT_EDGES = 1e-5, 1.0
"""How much neighbours are alike, everywhere and by the difference of their alphas."""


def foreground_of(linear: FloatArray, alpha: FloatArray) -> FloatArray:
    """The colours of what a matte shows, not multiplied with it.

    Args:
        linear: (H, W, 3), the plate in linear light; any finite values.
        alpha: (H, W) in [0, 1].

    Returns:
        (H, W, 3) in linear light: the plate itself where alpha is 1, estimated where it is below, 0 farther
        than `FILLED` pixels from where it is above 0.
    """
    result = np.where((alpha == 1)[..., None], linear, np.float32(0))
    below = (alpha < 1).astype(np.uint8)
    seen = (alpha > 0).astype(np.uint8)
    wanted = dilated(seen, FILLED) & below
    if seen.any() and wanted.any():
        box = box_around(wanted, _SPARE)
        found = _estimated(np.ascontiguousarray(linear[box]), np.ascontiguousarray(alpha[box]))
        np.copyto(result[box], found, where=wanted[box][..., None] > 0)
    return np.asarray(result, np.float32)


def _estimated(picture: FloatArray, alpha: FloatArray) -> FloatArray:
    """The foreground (h, w, 3), by levels."""
    height, width = alpha.shape
    levels = max(1, math.ceil(math.log2(max(height, width))))
    front = np.zeros((1, 1, 3), np.float32)
    back = front
    for level in range(levels + 1):
        size = (max(1, round(width ** (level / levels))), max(1, round(height ** (level / levels))))
        seen, share = (_resized(one, size, cv2.INTER_AREA) for one in (picture, alpha))
        front, back = (_resized(one, size, cv2.INTER_NEAREST) for one in (front, back))
        rounds = min(_MOST_ROUNDS, _ROUNDS * 4 ** (levels - level))
        front, back = _level(seen, share, front, back, rounds)
    return front


def _resized(values: FloatArray, size: tuple[int, int], method: int) -> FloatArray:
    """Values (h, w[, 3]) at a width and a height."""
    resized = np.asarray(cv2.resize(values, size, interpolation=method), np.float32)
    return resized.reshape(size[1], size[0], *values.shape[2:])


def _level(
    picture: FloatArray, alpha: FloatArray, front: FloatArray, back: FloatArray, rounds: int
) -> tuple[FloatArray, FloatArray]:
    """`_solved`, some rows after the other: they stay in the processor's cache, and memory is bounded.

    A row is right after as many rounds as there are rows between it and the end of what is solved.
    """
    height = alpha.shape[0]
    found = np.empty_like(front), np.empty_like(back)
    for first in range(0, height, _ROWS):
        last = min(height, first + _ROWS)
        start = max(0, first - rounds)
        rows = slice(start, min(height, last + rounds))
        parts = _solved(picture[rows], alpha[rows], front[rows], back[rows], rounds)
        for whole, part in zip(found, parts, strict=True):
            whole[first:last] = part[first - start : last - start]
    return found


def _solved(
    picture: FloatArray, alpha: FloatArray, front: FloatArray, back: FloatArray, rounds: int
) -> tuple[FloatArray, FloatArray]:
    """Foreground and background (h, w, 3) of one level, by some rounds of least squares at each pixel."""
    across = np.float32(_SMOOTH) + np.float32(_AT_EDGES) * np.abs(alpha[:, 1:] - alpha[:, :-1])
    down = np.float32(_SMOOTH) + np.float32(_AT_EDGES) * np.abs(alpha[1:] - alpha[:-1])
    total = np.zeros_like(alpha)
    total[:, 1:] += across
    total[:, :-1] += across
    total[1:] += down
    total[:-1] += down
    through = np.float32(1) - alpha
    ff, fb, bb = alpha * alpha + total, alpha * through, through * through + total
    scale = np.float32(1) / np.maximum(ff * bb - fb * fb, np.float32(1e-12))
    ff, fb, bb = ((one * scale)[..., None] for one in (ff, fb, bb))
    across, down, alpha, through = across[..., None], down[..., None], alpha[..., None], through[..., None]
    for _ in range(rounds):
        of_front = alpha * picture + _neighbours(front, across, down)
        of_back = through * picture + _neighbours(back, across, down)
        front = np.maximum(bb * of_front - fb * of_back, np.float32(0))
        back = np.maximum(ff * of_back - fb * of_front, np.float32(0))
    return front, back


def _neighbours(values: FloatArray, across: FloatArray, down: FloatArray) -> FloatArray:
    """The sum over the four neighbours of each pixel, by their weights, (h, w, 3)."""
    total = np.zeros_like(values)
    total[:, 1:] += across * values[:, :-1]
    total[:, :-1] += across * values[:, 1:]
    total[1:] += down * values[:-1]
    total[:-1] += down * values[1:]
    return total
