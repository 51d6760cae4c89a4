"""A part of an object on one frame: its contour with feather and motion along it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.contour import (
    Contour,
    at_length,
    lengths,
    normals,
    resampled,
    smoothed,
)
from stm_plugin.shapes.values import Points
from stm_plugin.windows import FloatArray, Window

MOST_SAMPLES = 1500
"""Samples along the longest contour."""
FEWEST_SAMPLES = 32
_FARTHEST_FEATHER = 96.0
"""The end of a soft edge is searched within this many plate pixels."""
_FEATHER_STEP = 0.5
_EMPTY = 1 / 255
_HARD_EDGE = 1.5
"""The most pixels from one half to 0 of a hard edge."""
_MEDIAN = 4
"""Samples on both sides for a median, which removes single hairs."""
_INSIDE = 2.0
"""The motion of the contour is read this many pixels inside it: on it the background moves too."""


@dataclass(frozen=True, eq=False)
class Section:
    """A contour on one frame, sampled at even distances.

    Attributes:
        points: (N, 2) plate pixels, the object on the right-hand side.
        along: (N + 1,) length up to each point, and all round.
        feather: (N,) pixels outward to where alpha reaches 0; 0 at a hard edge.
        forward: (N, 2) motion of the picture to the next frame; zero where it is unknown.
    """

    frame: int
    points: Points
    along: npt.NDArray[np.float64]
    feather: npt.NDArray[np.float64]
    forward: Points
    area: float
    hole: bool

    @property
    def length(self) -> float:
        return float(self.along[-1])

    def at(self, where: npt.NDArray[np.float64]) -> Points:
        """Points (M, 2) at lengths along the contour."""
        return at_length(self.points, self.along, where)


def make_section(frame: int, contour: Contour, alpha: FloatArray, window: Window) -> Section:
    """A contour with its feather; motion is still zero."""
    size = lengths(contour.points)[-1]
    count = int(np.clip(round(size), FEWEST_SAMPLES, MOST_SAMPLES))
    points = resampled(contour.points, count)
    none = np.zeros_like(points)
    feather = feather_widths(points, alpha, window)
    return Section(frame, points, lengths(points), feather, none, contour.area, contour.hole)


def inner_points(section: Section) -> Points:
    """The points where the motion of the contour is read: a little inside the object."""
    return section.points - _INSIDE * normals(section.points, 3)


def feather_widths(points: Points, alpha: FloatArray, window: Window) -> npt.NDArray[np.float64]:
    """The distance outward from each contour point to where alpha reaches 0, in pixels; 0 at hard edges.

    Where alpha never reaches 0 (another part begins), it is the distance to its lowest value.
    """
    reach = np.arange(0, _FARTHEST_FEATHER + _FEATHER_STEP, _FEATHER_STEP)
    out = normals(points, 3)
    near = _along(points, out, reach[reach <= 4.0], alpha, window)
    if np.all(near.min(axis=1) <= _EMPTY):
        values = near
    else:
        values = _along(points, out, reach, alpha, window)
    empty = values <= _EMPTY
    rising = np.zeros_like(empty)
    rising[:, 1:-1] = (values[:, 2:] > values[:, 1:-1] + 0.02) & (values[:, 1:-1] < 0.45)
    stop = empty | rising
    first = np.where(stop.any(axis=1), stop.argmax(axis=1), values.argmin(axis=1))
    widths = reach[first]
    before = np.maximum(first - 1, 0)
    rows = np.arange(len(points))
    high, low = values[rows, before], values[rows, first]
    exact = (high - _EMPTY) / np.where(high > low, high - low, 1)
    widths = np.where(empty[rows, first], reach[before] + np.clip(exact, 0, 1) * _FEATHER_STEP, widths)
    widths = np.where(widths > _HARD_EDGE, widths, 0.0)
    around = np.stack([np.roll(widths, shift) for shift in range(-_MEDIAN, _MEDIAN + 1)])
    return smoothed(np.median(around, axis=0)[:, None], 2.0)[:, 0]


def _along(
    points: Points, out: Points, reach: npt.NDArray[np.float64], alpha: FloatArray, window: Window
) -> npt.NDArray[np.float32]:
    """Alpha (N, R) at distances outward from contour points; 0 outside the window."""
    places = points[:, None] + reach[None, :, None] * out[:, None] - (window.x + 0.5, window.y + 0.5)
    places = places.astype(np.float32)
    values = cv2.remap(
        alpha, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(values, dtype=np.float32)
