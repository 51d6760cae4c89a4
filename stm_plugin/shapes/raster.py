"""Rasterising polygons and shapes with exact coverage: the share of each pixel that is inside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.values import Points, ShapeSet
from stm_plugin.windows import FloatArray, Window


def coverage(polygon: Points, window: Window) -> FloatArray:
    """How much of each pixel a closed polygon covers.

    The edges' signed areas are summed from left to right, so no sampling is involved.

    Args:
        polygon: (N, 2), in either direction, not crossing itself.
        window: the pixels wanted.

    Returns:
        float32 (height, width) in [0, 1].
    """
    height, width = window.height, window.width
    start = np.asarray(polygon, dtype=np.float64) - (window.x, window.y)
    start[:, 0] = np.clip(start[:, 0], 0, width)  # parts left or right of the window count at its border
    start[:, 1] = np.clip(start[:, 1], 0, height)
    pieces = _cut(_cut(start, np.roll(start, -1, axis=0), 1), None, 0)
    (x0, y0), (x1, y1) = pieces[:, 0].T, pieces[:, 1].T
    row = np.clip(np.floor((y0 + y1) / 2).astype(np.int64), 0, height - 1)
    column = np.clip(np.floor((x0 + x1) / 2).astype(np.int64), 0, width)
    rise = y1 - y0
    share = 1 - ((x0 + x1) / 2 - column)  # share of the pixel to the right of the piece
    size = height * (width + 2)
    index = row * (width + 2) + column
    area = np.bincount(index, rise * share, size) + np.bincount(index + 1, rise * (1 - share), size)
    covered = np.abs(np.cumsum(area.reshape(height, width + 2), axis=1)[:, :width])
    return np.clip(covered, 0, 1).astype(np.float32)


def _cut(
    start: npt.NDArray[np.float64], end: npt.NDArray[np.float64] | None, axis: int
) -> npt.NDArray[np.float64]:
    """Edges (N, 2, 2), or `start` and `end` (N, 2), cut where `axis` is a whole number: (M, 2, 2)."""
    edges = start if end is None else np.stack([start, end], axis=1)
    low = np.minimum(edges[:, 0, axis], edges[:, 1, axis])
    high = np.maximum(edges[:, 0, axis], edges[:, 1, axis])
    first = np.floor(low).astype(np.int64)
    count = np.maximum(np.ceil(high).astype(np.int64) - first, 1)
    owner = np.repeat(np.arange(len(edges)), count)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    length = np.where(high > low, high - low, 1)[owner]
    begin = np.clip((first[owner] + step - low[owner]) / length, 0, 1)
    finish = np.clip((first[owner] + step + 1 - low[owner]) / length, 0, 1)
    finish = np.where(count[owner] == 1, 1, finish)
    forward = (edges[:, 1, axis] >= edges[:, 0, axis])[owner]
    begin, finish = np.where(forward, begin, 1 - finish), np.where(forward, finish, 1 - begin)
    origin, way = edges[owner, 0], (edges[:, 1] - edges[:, 0])[owner]
    whole = (count[owner] == 1)[:, None]
    one = np.where(whole, origin, origin + begin[:, None] * way)
    two = np.where(whole, edges[owner, 1], origin + finish[:, None] * way)
    return np.stack([one, two], axis=1)


def rasterised(shapes: ShapeSet, name: str, frame: int, window: Window, steps: int = 24) -> FloatArray:
    """One object's shapes on a frame, without feather: float32 (height, width) of `window`, in [0, 1]."""
    result = np.zeros((window.height, window.width), np.float32)
    for shape in shapes.of(name):
        if shape.lives(frame):
            covered = coverage(shape.at(frame).polyline(steps), window)
            result += covered * ((0.0 if shape.hole else 1.0) - result)
    return result
