"""Mattes and pictures with a known motion, for the tests of shapes."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from stm_plugin.shapes.making import ShapeMaker
from stm_plugin.shapes.raster import coverage
from stm_plugin.shapes.values import Points, ShapeSet
from stm_plugin.windows import FloatArray, Window

WINDOW = Window(0, 0, 320, 240)


def rectangle(x: float, y: float, width: float, height: float) -> Points:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def ellipse(x: float, y: float, across: float, down: float, count: int = 720) -> Points:
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + across * np.cos(turn), y + down * np.sin(turn)], axis=1)


def noise(window: Window, shift: tuple[float, float] = (0.0, 0.0)) -> FloatArray:
    """A picture full of texture, moved by `shift`: (h, w, 3) in [0, 1]."""
    random = np.random.default_rng(3)
    grain = cv2.GaussianBlur(random.random((window.height + 200, window.width + 200), np.float32), (0, 0), 3)
    grain = (grain - grain.min()) / np.ptp(grain)
    move = np.array([[1, 0, shift[0] - 100], [0, 1, shift[1] - 100]], np.float32)
    moved = cv2.warpAffine(grain, move, (window.width, window.height), flags=cv2.INTER_CUBIC)
    return np.clip(np.repeat(moved[..., None], 3, axis=2), 0, 1).astype(np.float32)


def shapes_of(
    mattes: dict[int, FloatArray],
    window: Window = WINDOW,
    *,
    display: Window | None = None,
    aspect: float = 1.0,
    tolerance: float = 0.75,
    pictures: Callable[[int], FloatArray] | None = None,
) -> ShapeSet:
    """The shapes of one object, `hero`."""
    maker = ShapeMaker(tolerance)
    for frame, matte in mattes.items():
        maker.add(frame, {"hero": matte}, window, None if pictures is None else pictures(frame))
    return maker.finish(display or window, aspect)


def filled(polygon: Points, window: Window = WINDOW) -> FloatArray:
    return coverage(polygon, window)


def overlap(one: FloatArray, two: FloatArray) -> float:
    """Intersection over union at one half."""
    a, b = one >= 0.5, two >= 0.5
    return int(np.count_nonzero(a & b)) / max(int(np.count_nonzero(a | b)), 1)
