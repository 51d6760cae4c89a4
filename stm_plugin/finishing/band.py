"""What both ways of finishing use: the plate frame that edges follow, and the band of uncertain pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.finishing.whole_frame import DeviceGuide
from stm_plugin.images.working_picture import WorkingGeometry, to_working_points
from stm_plugin.windows import FloatArray, Window, slices_of

Places = npt.NDArray[np.intp]
"""Pixels of a picture as places in its flat array, (N,)."""
Tile = tuple[slice, slice]
"""Rows and columns of a picture."""

_TILE_HEIGHT, _TILE_WIDTH = 32, 512
"""Plate pixels of a tile, about."""
_SMALL_GAP = 8
"""Working pixels between two runs that are not worth two tiles."""


NEARLY_SURE = 0.02
"""A probability this near 0 or 1 becomes exactly 0 or 1, where no filter changed it."""


@dataclass(frozen=True)
class Guide:
    """The plate frame that the edges of a matte follow, in display-referred sRGB.

    Attributes:
        working: (3, h, w), the working picture.
        colours: gives the plate's colours (n, m, 3) in rows and columns of `window`.
        window: the frame's data window.
        on_device: the same frame where a graphics card filters; None on a processor.
    """

    working: FloatArray
    colours: Callable[[slice, slice], FloatArray]
    window: Window
    on_device: DeviceGuide | None = None


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


def box_around(band: npt.NDArray[np.uint8], spare: int) -> Tile:
    """Rows and columns that hold a band, with some to spare."""
    left, top, width, height = cv2.boundingRect(band)
    rows = slice(max(0, top - spare), min(band.shape[0], top + height + spare))
    columns = slice(max(0, left - spare), min(band.shape[1], left + width + spare))
    return rows, columns


def plate_tiles(
    wanted: npt.NDArray[np.uint8], box: Tile, window: Window, geometry: WorkingGeometry
) -> Iterator[Tile]:
    """Rows and columns of `window` that cover the wanted working pixels; no plate pixel twice.

    A tile is small enough for what is computed on it to stay in the processor's cache.

    Args:
        wanted: (h, w) of a box of the working picture, not 0 where a pixel is wanted.
    """
    down = max(1, round(_TILE_HEIGHT / geometry.scale_y))
    across = max(1, round(_TILE_WIDTH / geometry.scale_x))
    for top in range(0, wanted.shape[0], down):
        lines = wanted[top : top + down].max(axis=0)
        for left, right in _runs(lines):
            for start in range(left, right, across):
                columns = min(across, right - start)
                rows = min(down, wanted.shape[0] - top)
                here = _on_plate(box[1].start + start, box[0].start + top, columns, rows, geometry)
                target = window.intersection(here)
                if target is not None:
                    yield slices_of(target, window)


def working_points(window: Window, geometry: WorkingGeometry) -> tuple[FloatArray, FloatArray]:
    """Where plate pixels lie in the working picture: x of each column and y of each row of `window`, pixel
    centres at whole numbers."""
    x, _ = to_working_points(np.arange(window.width), np.zeros(1), window, geometry)
    _, y = to_working_points(np.zeros(1), np.arange(window.height), window, geometry)
    return x, y


def enlarged(maps: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Maps (C, h, w) at the columns x (m,) and rows y (n,), ascending: (C, n, m), bilinear; the border goes
    on beyond them."""
    top, bottom, down = _neighbours(y, maps.shape[1])
    left, right, across = _neighbours(x, maps.shape[2])
    first = top[0]
    strip = maps[:, first : bottom[-1] + 1]
    wide = _between(strip.take(left, axis=2), strip.take(right, axis=2), across)  # (C, few, m)
    return _between(wide.take(top - first, axis=1), wide.take(bottom - first, axis=1), down[:, None])


def _neighbours(points: FloatArray, count: int) -> tuple[Places, Places, FloatArray]:
    """The pixels before and behind each point (N,), of `count`, and how far it lies between them."""
    inside = np.clip(points, 0, count - 1)
    before = inside.astype(np.intp)
    return before, np.minimum(before + 1, count - 1), inside - before.astype(np.float32)


def _between(before: FloatArray, behind: FloatArray, share: FloatArray) -> FloatArray:
    """before + share * (behind - before), in the place of both."""
    behind -= before
    behind *= share
    before += behind
    return before


def _runs(wanted: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """First and last + 1 of every run of wanted places (N,); small gaps are taken along."""
    places = np.flatnonzero(wanted)
    if not places.size:
        return []
    cuts = np.flatnonzero(np.diff(places) > _SMALL_GAP)
    starts = places[np.concatenate(([0], cuts + 1))]
    ends = places[np.concatenate((cuts, [places.size - 1]))] + 1
    return [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]


def _on_plate(left: int, top: int, width: int, height: int, geometry: WorkingGeometry) -> Window:
    """The plate pixels whose centres lie in a box of working pixels."""
    x, y = round(left * geometry.scale_x), round(top * geometry.scale_y)
    right, bottom = round((left + width) * geometry.scale_x), round((top + height) * geometry.scale_y)
    return Window(geometry.region.x + x, geometry.region.y + y, right - x, bottom - y)
