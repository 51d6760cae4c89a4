"""The guided filter (He, Sun, Tang: Guided Image Filtering, 2010; Fast Guided Filter, 2015) on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

_COARSER = 4
"""How much smaller the picture is in which `filtered_by` fits its models."""


def fitted_slopes(means: Sequence[FloatArray] | FloatArray, epsilon: float) -> FloatArray:
    """The least-squares fit of values to colours in each window: (4, ...), slopes of r, g, b and offset.

    Args:
        means: the 13 window means (...): of r, g, b and the values v; of rr, rg, rb, gg, gb, bb; of rv, gv,
            bv.
        epsilon: variance of the colours below which a window counts as flat.
    """
    r, g, b, value = means[:4]
    # The symmetric covariance matrix of the colours, and their covariance with the values
    rr, rg, rb = means[4] - r * r + epsilon, means[5] - r * g, means[6] - r * b
    gg, gb, bb = means[7] - g * g + epsilon, means[8] - g * b, means[9] - b * b + epsilon
    rv, gv, bv = means[10] - r * value, means[11] - g * value, means[12] - b * value
    # slope = inverse(covariance matrix) . covariance
    (i_rr, i_rg, i_rb, i_gg, i_gb, i_bb), scale = inverse_of((rr, rg, rb, gg, gb, bb), np.float32(epsilon**3))
    fitted = np.empty((4, *r.shape), np.float32)
    fitted[0] = (i_rr * rv + i_rg * gv + i_rb * bv) * scale
    fitted[1] = (i_rg * rv + i_gg * gv + i_gb * bv) * scale
    fitted[2] = (i_rb * rv + i_gb * gv + i_bb * bv) * scale
    fitted[3] = value - fitted[0] * r - fitted[1] * g - fitted[2] * b
    return fitted


def inverse_of(
    matrix: Sequence[Array], least: np.floating | float
) -> tuple[tuple[Array, Array, Array, Array, Array, Array], Array]:
    """The inverses of symmetric 3 x 3 matrices, by cofactors.

    Args:
        matrix: rr, rg, rb, gg, gb and bb of each, (...).
        least: of the determinant, so that no division is by 0.

    Returns:
        The cofactors in the same order, and the factor (...) that makes them the inverse.
    """
    rr, rg, rb, gg, gb, bb = matrix
    i_rr, i_rg, i_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    i_gg, i_gb, i_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1.0 / np.maximum(rr * i_rr + rg * i_rg + rb * i_rb, least)
    return (i_rr, i_rg, i_rb, i_gg, i_gb, i_bb), scale


def filtered_by(
    picture: FloatArray, values: FloatArray, radii: Sequence[int], epsilon: float
) -> list[FloatArray]:
    """A picture's values by the local linear model of its colours: (h, w) in [0, 1] for each radius.

    `model.network.edges.guided` up to rounding; the products of all radii are narrowed once.

    Args:
        picture: (3, h, w) in [0, 1]; h and w are multiples of 4.
        values: (h, w) in [0, 1].
        radii: of the square windows in pixels, multiples of 4.
        epsilon: variance of the colours below which a window counts as flat.
    """
    height, width = values.shape
    r, g, b = picture
    pairs = (r, r), (r, g), (r, b), (g, g), (g, b), (b, b), (r, values), (g, values), (b, values)
    coarse = np.empty((4 + len(pairs), height // _COARSER, width // _COARSER), np.float32)
    size = (width // _COARSER, height // _COARSER)
    product = np.empty_like(values)
    for plane, one in zip(coarse, (r, g, b, values), strict=False):
        cv2.resize(one, size, dst=plane, interpolation=cv2.INTER_AREA)
    for plane, (first, second) in zip(coarse[4:], pairs, strict=True):
        cv2.resize(np.multiply(first, second, out=product), size, dst=plane, interpolation=cv2.INTER_AREA)
    return [_applied(_slopes(coarse, radius // _COARSER, epsilon), picture) for radius in radii]


def _slopes(coarse: FloatArray, radius: int, epsilon: float) -> FloatArray:
    """(4, h, w): slopes of the three channels and offset, averaged over the windows that a pixel lies in.

    Args:
        coarse: (13, h, w), the picture, the values and their products.
    """
    return _window_means(fitted_slopes(_window_means(coarse, radius), epsilon), radius)


def _applied(slopes: FloatArray, picture: FloatArray) -> FloatArray:
    """(H, W) in [0, 1]: the local model (4, h, w), enlarged, of the picture's colours (3, H, W)."""
    size = picture.shape[2], picture.shape[1]
    result = np.asarray(cv2.resize(slopes[3], size, interpolation=cv2.INTER_LINEAR), np.float32)
    for slope, colour in zip(slopes[:3], picture, strict=True):
        part = np.asarray(cv2.resize(slope, size, interpolation=cv2.INTER_LINEAR), np.float32)
        part *= colour
        result += part
    return np.clip(result, 0, 1, out=result)


def _window_means(planes: FloatArray, radius: int) -> FloatArray:
    """Means over square windows, clipped at the border, (C, h, w)."""
    side = 2 * radius + 1
    down, across = (_counts(length, radius) for length in planes.shape[1:])
    share = np.float32(1) / (down[:, None] * across)
    means = np.empty_like(planes)
    for plane, mean in zip(planes, means, strict=True):
        border = cv2.BORDER_CONSTANT
        cv2.boxFilter(plane, cv2.CV_32F, (side, side), dst=mean, normalize=False, borderType=border)
        mean *= share
    return means


def _counts(length: int, radius: int) -> FloatArray:
    """(length,): how many places of a window around each place lie inside."""
    places = np.arange(length)
    inside = np.minimum(places + radius, length - 1) - np.maximum(places - radius, 0) + 1
    return inside.astype(np.float32)
