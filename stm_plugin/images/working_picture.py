"""The working picture: the plate at the size at which the network reads it, and the way back to plate pixels.

The plate's canvas is cut to the region, brought to square pixels and scaled so that its short side has the
working size. A small plate is enlarged, as far as this helps the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from model.data.pictures import working_scale
from stm_plugin.errors import SettingsError
from stm_plugin.windows import FloatArray, PixelArray, Window, place, slices_of

_BLOCK_ELEMENTS = 100_000
"""Values that are converted and narrowed together: they stay in the second-level cache."""
_LEAST_SHARE = 1e-6
"""Of a row: less is rounding."""


@dataclass(frozen=True)
class WorkingGeometry:
    """How working pixels correspond to plate pixels.

    Attributes:
        canvas: the window of the plate that masks and mattes cover.
        region: the part of the canvas that is propagated; mattes are 0 outside it.
        height, width: size of the working picture, in square pixels.
    """

    canvas: Window
    region: Window
    height: int
    width: int

    @property
    def scale_x(self) -> float:
        """Plate pixels per working pixel, across."""
        return self.region.width / self.width

    @property
    def scale_y(self) -> float:
        """Plate pixels per working pixel, down."""
        return self.region.height / self.height


def working_geometry(
    canvas: Window, pixel_aspect: float, working_size: int, region: Window | None = None
) -> WorkingGeometry:
    """The geometry for a plate.

    Args:
        pixel_aspect: width of a plate pixel over its height (2 for classic anamorphic).
        working_size: short side in square pixels.
        region: part of the canvas; the whole if None. What lies outside the canvas is cut off.

    Raises:
        SettingsError: the region lies outside the canvas.
    """
    inside = canvas if region is None else canvas.intersection(region)
    if inside is None:
        raise SettingsError(
            f"The region {region} lies outside the plate.", hint=f"The plate covers {canvas}."
        )
    square_width = inside.width * pixel_aspect
    scale = working_scale(min(square_width, inside.height), working_size)
    height = max(1, round(inside.height * scale))
    width = max(1, round(square_width * scale))
    return WorkingGeometry(canvas, inside, height, width)


def as_floats(pixels: PixelArray) -> FloatArray:
    """The values as float32."""
    return pixels.astype(np.float32, copy=False)


def to_working(
    pixels: PixelArray,
    window: Window,
    geometry: WorkingGeometry,
    convert: Callable[[PixelArray], FloatArray] = as_floats,
) -> FloatArray:
    """Pixels (h, w[, C]) over `window` as working pixels (height, width[, C]), antialiased.

    Where the region is not covered by `window` it is 0, as everywhere outside an EXR's data window.

    Args:
        convert: converts the colour of each pixel first; it is called with some rows at a time.
    """
    if not window.contains(geometry.region):
        pixels, convert = place(convert(pixels), window, geometry.region), as_floats
    else:
        pixels = pixels[slices_of(geometry.region, window)]
    height, width = pixels.shape[:2]
    step = max(1, _BLOCK_ELEMENTS // (pixels.size // height))
    blocks = (convert(pixels[top : top + step]) for top in range(0, height, step))
    if geometry.width <= width and geometry.height < height:
        return _averaged(blocks, height, geometry)
    narrow = np.empty((height, geometry.width, *pixels.shape[2:]), np.float32)
    for top, rows in zip(range(0, height, step), blocks, strict=True):
        narrow[top : top + step] = _resized(rows, geometry.width, rows.shape[0])
    return _resized(narrow, geometry.width, geometry.height)


def _averaged(blocks: Iterable[FloatArray], height: int, geometry: WorkingGeometry) -> FloatArray:
    """Blocks of rows (n, w[, C]), `height` rows together, averaged over the area of each working pixel.

    First down, as whole rows are added fastest; a working row that a block does not complete waits for the
    next one.
    """
    scale = height / geometry.height
    result: FloatArray | None = None
    waiting: FloatArray | None = None
    row = top = 0
    for rows in blocks:
        bottom = top + len(rows)
        done = []
        while row < geometry.height and row * scale < bottom:
            part = _rows_between(rows, row * scale - top, (row + 1) * scale - top)
            waiting = part if waiting is None else np.add(waiting, part, out=part)
            if round((row + 1) * scale, 6) > bottom:
                break
            done.append(np.multiply(waiting, np.float32(1 / scale), out=waiting))
            waiting, row = None, row + 1
        if done:
            if result is None:
                result = np.empty((geometry.height, geometry.width, *rows.shape[2:]), np.float32)
            result[row - len(done) : row] = _resized(np.stack(done), geometry.width, len(done))
        top = bottom
    assert result is not None and row == geometry.height
    return result


def _rows_between(rows: FloatArray, start: float, end: float) -> FloatArray:
    """The sum (w[, C]) of rows (n, w[, C]) from one height to another, the first and the last in part; what
    lies outside of them is left out."""
    start, end = max(start, 0.0), min(end, float(len(rows)))
    first, last = math.ceil(round(start, 6)), math.floor(round(end, 6))
    total: FloatArray = rows[first:last].sum(axis=0, dtype=np.float32)
    for row, share in ((first - 1, first - start), (last, end - last)):
        if share > _LEAST_SHARE:
            total += rows[row] * np.float32(share)
    return total


def to_plate(values: FloatArray, window: Window, geometry: WorkingGeometry) -> FloatArray:
    """Working values (height, width[, C]) enlarged to the plate pixels of `window`, bilinear.

    Outside the working picture the values of its border are repeated; `inside_region` sets them to 0.
    """
    if window == geometry.region:
        whole = cv2.resize(values, (window.width, window.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(whole, dtype=np.float32)  # the same, faster
    step_x, step_y = 1 / geometry.scale_x, 1 / geometry.scale_y
    first_x, first_y = to_working_points(np.zeros(1), np.zeros(1), window, geometry)
    to_source = np.array([[step_x, 0, first_x[0]], [0, step_y, first_y[0]]], dtype=np.float64)
    enlarged = cv2.warpAffine(
        np.ascontiguousarray(values, dtype=np.float32),
        to_source,
        (window.width, window.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(enlarged, dtype=np.float32)


def to_working_points(
    columns: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    window: Window,
    geometry: WorkingGeometry,
) -> tuple[FloatArray, FloatArray]:
    """Positions of plate pixels in the working picture: x and y (N,), pixel centres at whole numbers.

    Args:
        columns, rows: (N,), of the array over `window`.
    """
    x = (columns + (window.x - geometry.region.x + 0.5)) / geometry.scale_x - 0.5
    y = (rows + (window.y - geometry.region.y + 0.5)) / geometry.scale_y - 0.5
    return x.astype(np.float32), y.astype(np.float32)


def inside_region(matte: FloatArray, window: Window, geometry: WorkingGeometry) -> FloatArray:
    """A matte (h, w) over `window`, with 0 outside the region."""
    region = geometry.region
    if region.contains(window):
        return matte
    common = region.intersection(window)
    if common is None:
        return np.zeros_like(matte)
    return place(matte[slices_of(common, window)], common, window)


def _resized(pixels: FloatArray, width: int, height: int) -> FloatArray:
    """Resize along one axis: by area where it shrinks (antialiased), linearly where it grows."""
    if pixels.shape[1] == width and pixels.shape[0] == height:
        return pixels
    shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.float32)


def share_outside(mask: FloatArray, geometry: WorkingGeometry) -> float:
    """The share of a mask (H, W) over the canvas that lies outside the region, in [0, 1]."""
    total = float(mask.sum())
    if geometry.region == geometry.canvas or total == 0:
        return 0.0
    inside = float(mask[slices_of(geometry.region, geometry.canvas)].sum())
    return max(0.0, 1.0 - inside / total)


def touches_region(probability: FloatArray, geometry: WorkingGeometry) -> bool:
    """Whether an object (h, w) at working size reaches an edge of the region that is not the canvas's."""
    region, canvas = geometry.region, geometry.canvas
    edges = (
        (region.x > canvas.x, probability[:, 0]),
        (region.y > canvas.y, probability[0]),
        (region.x + region.width < canvas.x + canvas.width, probability[:, -1]),
        (region.y + region.height < canvas.y + canvas.height, probability[-1]),
    )
    return any(goes_on and bool((values > 0.5).any()) for goes_on, values in edges)
