"""The working picture: what the network sees of the plate, and the way back to plate pixels.

The plate's canvas is cut to the region, brought to square pixels and scaled down (never up) so that its short
side has the working size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stm_plugin.errors import SettingsError
from stm_plugin.plate import FloatArray, Window, cut, place


@dataclass(frozen=True)
class WorkingGeometry:
    """How working pixels lie on the plate.

    Attributes:
        canvas: the plate's pixels, on which masks and mattes live.
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
    scale = min(1.0, working_size / min(square_width, inside.height))
    height = max(1, round(inside.height * scale))
    width = max(1, round(square_width * scale))
    return WorkingGeometry(canvas, inside, height, width)


def to_working(pixels: FloatArray, window: Window, geometry: WorkingGeometry) -> FloatArray:
    """Pixels (h, w[, C]) over `window` as working pixels (height, width[, C]), antialiased.

    Where the region is not covered by `window` it is 0, as everywhere outside an EXR's data window.
    """
    if window == geometry.region:
        inside = pixels
    elif window == geometry.canvas:
        inside = cut(pixels, geometry.canvas, geometry.region)
    else:
        inside = place(pixels, window, geometry.region)
    across = _resized(inside, geometry.width, inside.shape[0])
    return _resized(across, geometry.width, geometry.height)


def to_plate(
    values: FloatArray, window: Window, geometry: WorkingGeometry, origin: tuple[int, int] = (0, 0)
) -> FloatArray:
    """Working values (h, w[, C]) enlarged to the plate pixels of `window`, bilinear.

    Beyond the given values those of their border go on; `inside_region` cuts a matte off there.

    Args:
        values: the working picture's, or a part of it.
        origin: column and row of the working picture where the part begins.
    """
    if window == geometry.region and values.shape[:2] == (geometry.height, geometry.width):
        whole = cv2.resize(values, (window.width, window.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(whole, dtype=np.float32)  # the same, faster
    # Centre of a plate pixel x in working pixels: (x - region.x + 0.5) / scale - 0.5
    to_source = np.array(
        [
            [
                1 / geometry.scale_x,
                0,
                (window.x - geometry.region.x + 0.5) / geometry.scale_x - 0.5 - origin[0],
            ],
            [
                0,
                1 / geometry.scale_y,
                (window.y - geometry.region.y + 0.5) / geometry.scale_y - 0.5 - origin[1],
            ],
        ],
        dtype=np.float64,
    )
    enlarged = cv2.warpAffine(
        np.ascontiguousarray(values, dtype=np.float32),
        to_source,
        (window.width, window.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(enlarged, dtype=np.float32)


def inside_region(matte: FloatArray, window: Window, geometry: WorkingGeometry) -> FloatArray:
    """A matte (h, w) over `window`, with 0 outside the region."""
    region = geometry.region
    if region.contains(window):
        return matte
    common = region.intersection(window)
    if common is None:
        return np.zeros_like(matte)
    return place(cut(matte, window, common), common, window)


def _resized(pixels: FloatArray, width: int, height: int) -> FloatArray:
    """Resize along one axis: by area where it shrinks (antialiased), linearly where it grows."""
    if pixels.shape[1] == width and pixels.shape[0] == height:
        return pixels
    shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.float32)
