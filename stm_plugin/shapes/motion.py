"""The motion of the picture from one frame to the next: dense optical flow (OpenCV's DIS) at a bounded
size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.values import Points
from stm_plugin.windows import FloatArray, Window

LONGEST_SIDE = 720
"""Pixels of the picture for the flow: finer motion than a third of a 2K pixel is not needed."""
_MARGIN = 48
"""Pixels of that picture around the object that are included."""


@dataclass(frozen=True, eq=False)
class GreyFrame:
    """A frame for the optical flow.

    Attributes:
        pixels: uint8 (h, w), the reduced picture.
        window: its window, in plate pixels.
    """

    pixels: npt.NDArray[np.uint8]
    window: Window

    @property
    def scale(self) -> tuple[float, float]:
        """Reduced pixels per plate pixel, across and down."""
        return self.pixels.shape[1] / self.window.width, self.pixels.shape[0] / self.window.height


def grey_frame(picture: FloatArray, window: Window) -> GreyFrame:
    """A frame for `flow_at`.

    Args:
        picture: (h, w, 3) sRGB in [0, 1] over `window`.
    """
    shrink = min(1.0, LONGEST_SIDE / max(window.width, window.height))
    size = (max(16, round(window.width * shrink)), max(16, round(window.height * shrink)))
    small = cv2.resize(np.asarray(picture, np.float32), size, interpolation=cv2.INTER_AREA)
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    return GreyFrame(np.clip(np.rint(grey * 255), 0, 255).astype(np.uint8), window)


def flow_at(before: GreyFrame, after: GreyFrame, places: list[Points]) -> list[Points]:
    """How far points of `before` move until `after`.

    Args:
        places: arrays (N, 2) of plate pixels.

    Returns:
        Movements (N, 2) in plate pixels; zero where the two frames show different windows.
    """
    if not places:
        return []
    if before.window != after.window or before.pixels.shape != after.pixels.shape:
        return [np.zeros_like(points) for points in places]
    scale = np.array(before.scale)
    small = [(points - (before.window.x, before.window.y)) * scale - 0.5 for points in places]
    every = np.concatenate(small)
    low = np.maximum(np.floor(every.min(axis=0)).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(every.max(axis=0)).astype(int) + _MARGIN, np.array(before.pixels.shape[::-1]))
    low = np.minimum(low, np.maximum(high - 2 * _MARGIN, 0))
    part = (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))
    one, two = np.ascontiguousarray(before.pixels[part]), np.ascontiguousarray(after.pixels[part])
    if min(one.shape) < 2 * 8:
        return [np.zeros_like(points) for points in places]
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    field = engine.calc(one, two, None)  # type: ignore[call-overload]  # the stubs want an array to fill
    result = []
    for points in small:
        map_x = (points[:, :1] - low[0]).astype(np.float32)
        map_y = (points[:, 1:] - low[1]).astype(np.float32)
        moved = cv2.remap(field, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        result.append(moved.reshape(-1, 2).astype(np.float64) / scale)
    return result
