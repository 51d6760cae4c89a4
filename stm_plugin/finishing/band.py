"""What both ways of finishing use: the plate frame that edges follow, and the band of uncertain pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.images.working_picture import WorkingGeometry, to_working_points
from stm_plugin.windows import FloatArray, Window

Places = npt.NDArray[np.intp]
"""Pixels of a picture as indices into its flat array, (N,)."""


NEARLY_SURE = 0.02
"""A probability this near 0 or 1 becomes exactly 0 or 1, where no filter changed it."""


@dataclass(frozen=True)
class Guide:
    """The plate frame that the edges of a matte follow, in display-referred sRGB.

    Attributes:
        working: (3, h, w), the working picture.
        colours: returns the plate's colours (N, 3) at indices into `window`.
        window: the frame's data window.
    """

    working: FloatArray
    colours: Callable[[Places], FloatArray]
    window: Window


def steeper(values: FloatArray, sharpness: float, sure: float | FloatArray) -> FloatArray:
    """More contrast around 0.5. Values within `sure` of 0 or 1 become exactly 0 or 1.

    Args:
        sure: one for all, or one for each value.
    """
    stretch = np.asarray(sharpness / (1.0 - 2.0 * sure), np.float32)
    steep: FloatArray = values * stretch
    steep += np.float32(0.5) - np.float32(0.5) * stretch
    return np.clip(steep, 0.0, 1.0, out=steep)


def unsure_pixels(clean: FloatArray) -> npt.NDArray[np.uint8]:
    """(h, w): 1 where a working pixel differs from any of its neighbours, else 0."""
    gradient = cv2.morphologyEx(clean, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    return (np.asarray(gradient) > 0).view(np.uint8)


def dilated(band: npt.NDArray[np.uint8], reach: int) -> npt.NDArray[np.uint8]:
    """A band (h, w), wider by some pixels on either side."""
    return np.asarray(cv2.dilate(band, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)), dtype=np.uint8)


def box_around(band: npt.NDArray[np.uint8], spare: int) -> tuple[slice, slice]:
    """Rows and columns that hold a band, with a margin."""
    left, top, width, height = cv2.boundingRect(band)
    rows = slice(max(0, top - spare), min(band.shape[0], top + height + spare))
    columns = slice(max(0, left - spare), min(band.shape[1], left + width + spare))
    return rows, columns


def plate_pixels(
    band: npt.NDArray[np.uint8], window: Window, geometry: WorkingGeometry
) -> tuple[Places, Places]:
    """The plate pixels on a band of working pixels: rows and columns (N,) in `window`."""
    left, top, width, height = cv2.boundingRect(band)
    target = window.intersection(_on_plate(left, top, width, height, geometry))
    if target is None:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    rows = (np.arange(target.y, target.bottom) - geometry.region.y + 0.5) / geometry.scale_y
    columns = (np.arange(target.x, target.right) - geometry.region.x + 0.5) / geometry.scale_x
    lines = band.take(rows.astype(np.intp), axis=0, mode="clip")
    found = cv2.findNonZero(lines.take(columns.astype(np.intp), axis=1, mode="clip"))
    x, y = np.zeros((2, 0), np.intp) if found is None else found.reshape(-1, 2).T.astype(np.intp)
    return y + (target.y - window.y), x + (target.x - window.x)


def working_points(
    rows: Places, columns: Places, window: Window, geometry: WorkingGeometry
) -> tuple[FloatArray, FloatArray]:
    """Positions of plate pixels in the working picture: x and y (N,), pixel centres at whole numbers."""
    across, _ = to_working_points(np.arange(window.width), np.zeros(1), window, geometry)
    _, down = to_working_points(np.zeros(1), np.arange(window.height), window, geometry)
    return across[columns], down[rows]


def _on_plate(left: int, top: int, width: int, height: int, geometry: WorkingGeometry) -> Window:
    """The plate pixels whose centres lie in a box of working pixels."""
    x, y = round(left * geometry.scale_x), round(top * geometry.scale_y)
    right, bottom = round((left + width) * geometry.scale_x), round((top + height) * geometry.scale_y)
    return Window(geometry.region.x + x, geometry.region.y + y, right - x, bottom - y)
