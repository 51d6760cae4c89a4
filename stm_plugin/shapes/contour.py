"""Contours of a matte: where alpha is one half, between the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.values import Points
from stm_plugin.windows import FloatArray, Window

HALF = 0.5


@dataclass(frozen=True, eq=False)
class Contour:
    """A closed line around a part of an object, or around a hole in it.

    Attributes:
        points: (N, 2) plate pixels, y down; with the object on the right-hand side (clockwise on the screen
            around a part, anticlockwise around a hole).
        area: pixels inside.
        hole: whether the object is outside.
    """

    points: Points
    area: float
    hole: bool


def contours(alpha: FloatArray, window: Window, least_area: float = 0.0) -> tuple[list[Contour], int]:
    """The contours of a matte by marching squares, with subpixel precision.

    Args:
        alpha: (h, w) over `window`. Outside it is 0, so a part that leaves the window is closed along its
            border.
        least_area: smaller parts and holes are left out.

    Returns:
        The contours, the largest first, and how many were left out.
    """
    inside = alpha >= HALF
    if not inside.any():
        return [], 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
    # One pixel more on every side: the line lies between the last pixel inside and the first one outside.
    y0, x0 = max(top - 1, 0), max(left - 1, 0)
    part = np.pad(alpha[y0 : bottom + 1, x0 : right + 1].astype(np.float64), 1)
    offset = (window.x + x0 - 0.5, window.y + y0 - 0.5)
    loops = [loop + offset for loop in _loops(part)]
    found, left_out = [], 0
    for loop in loops:
        signed = signed_area(loop)
        if abs(signed) < least_area:
            left_out += 1
        else:
            found.append(Contour(loop, abs(signed), signed < 0))
    return sorted(found, key=lambda one: -one.area), left_out


def signed_area(points: Points) -> float:
    """Area of a closed polygon: above 0 where it runs clockwise on a screen whose y points down."""
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _loops(values: npt.NDArray[np.float64]) -> list[Points]:
    """Closed lines at one half, in coordinates of pixel centres. The border of `values` must be below it."""
    width = values.shape[1]
    inside = values >= HALF
    corners = (
        inside[:-1, :-1].astype(np.uint8)
        + 2 * inside[:-1, 1:].astype(np.uint8)
        + 4 * inside[1:, 1:].astype(np.uint8)
        + 8 * inside[1:, :-1].astype(np.uint8)
    )
    follower: dict[int, int] = {}
    for case, links in _LINKS.items():
        y, x = np.nonzero(corners == case)
        for enter, leave in links:
            begin, end = _edge(enter, y, x, width), _edge(leave, y, x, width)
            follower.update(zip(begin.tolist(), end.tolist(), strict=True))
    loops = []
    while follower:
        first, following = follower.popitem()
        chain = [first]
        while following != first:
            chain.append(following)
            following = follower.pop(following)
        loops.append(_positions(np.array(chain), values))
    return loops


def _edge(side: int, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """A number for the edge on one side (0 top, 1 right, 2 bottom, 3 left) of cells: even for horizontal
    edges."""
    dy, dx = (side == 2), (side == 1)
    return 2 * ((y + dy) * width + x + dx) + (side % 2)


_LINKS = {
    # The corners inside (1 upper left, 2 upper right, 4 lower right, 8 lower left) -> the lines through the
    # cell,
    # each from the side where it enters to that where it leaves, with the inside on its right.
    1: ((0, 3),),
    2: ((1, 0),),
    3: ((1, 3),),
    4: ((2, 1),),
    5: ((0, 3), (2, 1)),
    6: ((2, 0),),
    7: ((2, 3),),
    8: ((3, 2),),
    9: ((0, 2),),
    10: ((1, 0), (3, 2)),
    11: ((1, 2),),
    12: ((3, 1),),
    13: ((0, 1),),
    14: ((3, 0),),
}


def _positions(edges: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Points:
    """Where the line crosses each edge."""
    width = values.shape[1]
    upright = edges % 2
    y, x = np.divmod(edges // 2, width)
    one, two = values[y, x], values[y + upright, x + 1 - upright]
    share = (HALF - one) / (two - one)
    return np.stack([x + share * (1 - upright), y + share * upright], axis=1)


def lengths(points: Points) -> npt.NDArray[np.float64]:
    """(N + 1,): the length along a closed line up to each point, and up to the first one again."""
    steps = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def resampled(points: Points, count: int) -> Points:
    """`count` points at even distances along a closed line, starting at its first point."""
    along = lengths(points)
    wanted = np.arange(count) * (along[-1] / count)
    return at_length(points, along, wanted)


def at_length(
    values: npt.NDArray[np.float64], along: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Values (N, C) that belong to the points of a closed line, at any lengths along it."""
    closed = np.concatenate([values, values[:1]])
    place = np.mod(wanted, along[-1])
    return np.stack([np.interp(place, along, column) for column in closed.T], axis=-1)


def smoothed(points: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """The values (N, C) of a closed line, smoothed by a Gaussian of `sigma` samples."""
    if sigma <= 0:
        return points
    reach = max(1, round(3 * sigma))
    reach = min(reach, (len(points) - 1) // 2)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    result = np.zeros_like(points)
    for offset, weight in zip(offsets, weights, strict=True):
        result += weight * np.roll(points, -offset, axis=0)
    return result


def normals(points: Points, reach: int = 1) -> Points:
    """(N, 2) unit normals of a closed line that point away from the object (which is on its right)."""
    way = np.roll(points, -reach, axis=0) - np.roll(points, reach, axis=0)
    size = np.linalg.norm(way, axis=1, keepdims=True)
    way = way / np.where(size > 0, size, 1)
    return np.stack([way[:, 1], -way[:, 0]], axis=1)
