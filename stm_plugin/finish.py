"""Finishing: from a probability at working size to a soft matte at plate resolution.

A guided filter (He, Sun, Tang: Guided Image Filtering, 2010; Fast Guided Filter, 2015) is fitted at working
size, with the working picture as its guide, and its local linear model is applied to the plate's own pixels:
edges land where the plate has them. It counts as far as the plate explains the probability's detail: where
the plate shows no edge it would only blur, and the plain enlargement stays. Then the transition, which the
network spreads over its stride, is made steeper. Only a band around unsure pixels is touched; elsewhere the
matte is exactly 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stm_plugin.plate import FloatArray, Window
from stm_plugin.settings import FinishSettings
from stm_plugin.working import WorkingGeometry, inside_region, to_plate

VERSION = 1
"""Enters the address of every matte; raise it when the same probabilities give another matte."""


_LEAST_DETAIL = 1e-4
"""Squared detail of the probability in a window below which there is no edge worth explaining."""


@dataclass(frozen=True)
class Guide:
    """What the edges of a matte follow: one frame in display-referred sRGB.

    Attributes:
        working: (h, w, 3), the working picture.
        plate: (H, W, 3), the plate's pixels over `window`.
        window: the frame's data window.
    """

    working: FloatArray
    plate: FloatArray
    window: Window


def finish(
    probability: FloatArray, guide: Guide, geometry: WorkingGeometry, settings: FinishSettings
) -> FloatArray:
    """One object's matte over the frame's data window.

    Args:
        probability: (h, w) in [0, 1] at working size.

    Returns:
        float32 (H, W) in [0, 1]: exactly 0 or 1 where the network is sure, 0 outside the region.
    """
    clean = _steeper(probability, 1.0, settings.sure)
    matte = to_plate(clean, guide.window, geometry)
    if settings.enabled:
        box = _box_around(clean, settings.radius)
        target = None if box is None else guide.window.intersection(_on_plate(box, geometry))
        if box is not None and target is not None:
            part = _slices(target, guide.window)
            refined = _refined(clean, matte[part], box, target, guide, geometry, settings)
            matte[part] = _steeper(refined, settings.sharpness, settings.sure)
    return inside_region(matte, guide.window, geometry)


def _refined(
    clean: FloatArray,
    plain: FloatArray,
    box: Window,
    target: Window,
    guide: Guide,
    geometry: WorkingGeometry,
    settings: FinishSettings,
) -> FloatArray:
    """The matte over the plate pixels of `target`, from the working pixels of `box`.

    `plain` is the plain enlargement there.
    """
    inside = _slices(box, Window(0, 0, geometry.width, geometry.height))
    working, values = guide.working[inside], clean[inside]
    model = linear_model(working, values, settings.radius, settings.epsilon)
    trust = _explained(model, working, values, settings.radius)

    def enlarged(values: FloatArray) -> FloatArray:
        return to_plate(values, target, geometry, (box.x, box.y))  # (H, W)

    pixels = cv2.split(guide.plate[_slices(target, guide.window)])  # red, green, blue, (H, W) each
    refined = plain * (1.0 - enlarged(trust)) + enlarged(model[3] * trust)
    for slope, channel in zip(model[:3], pixels, strict=True):
        refined += enlarged(slope * trust) * channel
    return refined


def linear_model(guide: FloatArray, values: FloatArray, radius: int, epsilon: float) -> FloatArray:
    """The guided filter's local model: values ~ slope . guide + offset in every window of the given radius.

    Args:
        guide: (h, w, 3) in [0, 1].
        values: (h, w).
        epsilon: variance of the guide below which a window counts as flat.

    Returns:
        (4, h, w): the slopes of the three channels and the offset, averaged over the windows at each pixel.
    """

    def mean(x: FloatArray) -> FloatArray:
        return _mean(x, radius)

    red, green, blue = (np.ascontiguousarray(guide[..., channel]) for channel in range(3))  # (h, w) each
    r, g, b, value = mean(red), mean(green), mean(blue), mean(values)
    # The symmetric covariance matrix of the guide, and the guide's covariance with the values
    rr, rg, rb = mean(red * red) - r * r + epsilon, mean(red * green) - r * g, mean(red * blue) - r * b
    gg, gb = mean(green * green) - g * g + epsilon, mean(green * blue) - g * b
    bb = mean(blue * blue) - b * b + epsilon
    rv, gv, bv = (
        mean(red * values) - r * value,
        mean(green * values) - g * value,
        mean(blue * values) - b * value,
    )

    # slope = inverse(covariance matrix) . covariance, by cofactors
    i_rr, i_rg, i_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    i_gg, i_gb, i_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1.0 / np.maximum(rr * i_rr + rg * i_rg + rb * i_rb, np.float32(epsilon**3))
    slope_r = (i_rr * rv + i_rg * gv + i_rb * bv) * scale
    slope_g = (i_rg * rv + i_gg * gv + i_gb * bv) * scale
    slope_b = (i_rb * rv + i_gb * gv + i_bb * bv) * scale
    offset = value - slope_r * r - slope_g * g - slope_b * b
    return np.stack([mean(slope_r), mean(slope_g), mean(slope_b), mean(offset)])


def _mean(values: FloatArray, radius: int) -> FloatArray:
    """Means over square windows, (h, w[, C])."""
    side = (2 * radius + 1, 2 * radius + 1)
    means = cv2.boxFilter(np.ascontiguousarray(values), cv2.CV_32F, side, borderType=cv2.BORDER_REFLECT)
    return np.asarray(means, dtype=np.float32)


def _explained(model: FloatArray, guide: FloatArray, values: FloatArray, radius: int) -> FloatArray:
    """(h, w) in [0, 1]: the share of the local detail of `values` that the guide explains.

    Detail is what a blur of the model's size loses. Away from edges there is none, and the share is 0, so
    that the model touches nothing there.
    """
    fitted = model[3] + sum(model[channel] * guide[..., channel] for channel in range(3))
    blurred = _mean(_mean(values, radius), radius)
    unexplained = _mean(np.square(np.clip(fitted, 0, 1) - values), radius)
    detail = _mean(np.square(blurred - values), radius)
    share = 1.0 - unexplained / np.maximum(detail, np.float32(_LEAST_DETAIL))
    trusted: FloatArray = np.where(detail > 0, np.clip(share, 0.0, 1.0), 0.0).astype(np.float32)
    return trusted


def _steeper(values: FloatArray, sharpness: float, sure: float) -> FloatArray:
    """Contrast around 0.5; what is within `sure` of 0 or 1 becomes exactly 0 or 1."""
    stretch = np.float32(sharpness / (1.0 - 2.0 * sure))
    steep: FloatArray = values * stretch
    steep += np.float32(0.5) - np.float32(0.5) * stretch
    return np.clip(steep, 0.0, 1.0, out=steep)


def _box_around(clean: FloatArray, radius: int) -> Window | None:
    """The working pixels from which everything near an unsure pixel is refined; None where all are sure."""
    unsure = cv2.morphologyEx(clean, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    rows, columns = np.flatnonzero(unsure.any(axis=1)), np.flatnonzero(unsure.any(axis=0))
    if not rows.size:
        return None
    height, width = clean.shape
    spare = 3 * radius + 1  # model, its average, and its trust each look `radius` far
    top, bottom = max(0, int(rows[0]) - spare), min(height, int(rows[-1]) + 1 + spare)
    left, right = max(0, int(columns[0]) - spare), min(width, int(columns[-1]) + 1 + spare)
    return Window(left, top, right - left, bottom - top)


def _on_plate(box: Window, geometry: WorkingGeometry) -> Window:
    """The plate pixels whose centres lie in a box of working pixels."""
    left = geometry.region.x + round(box.x * geometry.scale_x)
    right = geometry.region.x + round((box.x + box.width) * geometry.scale_x)
    top = geometry.region.y + round(box.y * geometry.scale_y)
    bottom = geometry.region.y + round((box.y + box.height) * geometry.scale_y)
    return Window(left, top, right - left, bottom - top)


def _slices(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` in an array over `outer`."""
    top, left = inner.y - outer.y, inner.x - outer.x
    return slice(top, top + inner.height), slice(left, left + inner.width)
