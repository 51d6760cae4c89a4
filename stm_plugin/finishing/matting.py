"""Closed-form matting with a prior: soft alpha that follows the picture's colours over long distances.

The refiner finds where an edge is soft and about how soft. It knows the object's colours from a small window
only. The matting Laplacian (Levin, Lischinski, Weiss: A Closed-Form Solution to Natural Image Matting, 2008)
carries alpha along like colours, from where it is certain. Alpha is the picture that fits both:

    least of  a' L a + sum of weight (a - prior)^2

L is never built. Its product with a picture is a sum of means over windows (He, Sun, Tang: Fast Matting Using
Large Kernel Matting Laplacian Matrices, 2010). It is solved by a fixed number of steps of conjugate
gradients, at half the working size. Any number of threads gives the same bits.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from model.inference.guided_filter import inverse_of
from stm_plugin.windows import FloatArray

HALF = 2
"""How much smaller than the working picture the one is in which alpha is solved."""
_RADIUS = 1
"""Pixels of that picture: its windows are 3 x 3."""
FLAT = 1e-5
"""Variance of the colours below which a window counts as flat."""
STEPS = 10
"""More change nothing that could be measured."""

Doubles = npt.NDArray[np.float64]


def matted(picture: FloatArray, prior: FloatArray, weight: FloatArray) -> FloatArray:
    """Alpha (h, w) in [0, 1] that follows the picture's colours.

    Args:
        picture: (3, h, w) in [0, 1].
        prior: (h, w) in [0, 1].
        weight: (h, w) in (0, 1], of the prior; where it is 1 the prior stays.
    """
    height, width = prior.shape
    size = (max(1, width // HALF), max(1, height // HALF))
    r, g, b, known, tied = (
        np.asarray(cv2.resize(one, size, interpolation=cv2.INTER_AREA), np.float32)
        for one in (*picture, prior, weight)
    )
    free = tied < 1
    if not free.any():
        return prior
    alpha = _solved(_Laplacian(np.stack([r, g, b])), known, tied, free.astype(np.float32))
    change = cv2.resize(alpha - known, (width, height), interpolation=cv2.INTER_LINEAR)
    # What half the size cannot hold is the prior's.
    return np.asarray(np.clip(prior + change, 0, 1), np.float32)


class _Laplacian:
    """The matting Laplacian of a picture (3, h, w), times the number of pixels of a window."""

    def __init__(self, picture: FloatArray) -> None:
        r, g, b = colours = [one.astype(np.float64) for one in picture]  # variances are small differences
        self.count = _sums(np.ones_like(picture[0]))
        share = 1 / self.count.astype(np.float64)
        mr, mg, mb = (_sums(one) * share for one in colours)
        rr, rg = _sums(r * r) * share - mr * mr + FLAT, _sums(r * g) * share - mr * mg
        rb = _sums(r * b) * share - mr * mb
        gg, gb = _sums(g * g) * share - mg * mg + FLAT, _sums(g * b) * share - mg * mb
        bb = _sums(b * b) * share - mb * mb + FLAT
        inverse, scale = inverse_of((rr, rg, rb, gg, gb, bb), FLAT**3)  # of the covariance matrix
        self._picture = list(picture)
        self._means = [one.astype(np.float32) for one in (mr, mg, mb)]
        self._share = share.astype(np.float32)
        self._inverse = [(one * scale).astype(np.float32) for one in inverse]

    def times(self, values: FloatArray) -> FloatArray:
        """Its product with a picture (h, w)."""
        share, i = self._share, self._inverse
        mean = _sums(values) * share
        cr, cg, cb = (
            _sums(one * values) * share - of_colour * mean
            for one, of_colour in zip(self._picture, self._means, strict=True)
        )
        slopes = (
            i[0] * cr + i[1] * cg + i[2] * cb,
            i[1] * cr + i[3] * cg + i[4] * cb,
            i[2] * cr + i[4] * cg + i[5] * cb,
        )
        fitted = mean
        for slope, of_colour in zip(slopes, self._means, strict=True):
            fitted = fitted - slope * of_colour
        fitted = _sums(fitted)
        for slope, one in zip(slopes, self._picture, strict=True):
            fitted += _sums(slope) * one
        return self.count * values - fitted


def _solved(laplacian: _Laplacian, prior: FloatArray, weight: FloatArray, free: FloatArray) -> FloatArray:
    """Some steps of conjugate gradients from the prior, with the diagonal as preconditioner.

    Args:
        free: (h, w), 1 where alpha may change, else 0.
    """
    tie = weight * laplacian.count
    scale = free / (laplacian.count + tie)
    alpha = prior.copy()
    rest = -free * laplacian.times(alpha)
    ahead = scale * rest
    size = _dot(rest, ahead)
    for _ in range(STEPS):
        if size < 1e-12:
            break
        product = free * (laplacian.times(ahead) + tie * ahead)
        step = np.float32(size / max(_dot(ahead, product), 1e-20))
        alpha += step * ahead
        rest -= step * product
        smooth = scale * rest
        before, size = size, _dot(rest, smooth)
        ahead *= np.float32(size / before)
        ahead += smooth
    return alpha


def _dot(one: FloatArray, other: FloatArray) -> float:
    """Without BLAS, whose sums depend on the number of threads."""
    return float(np.sum(one * other, dtype=np.float64))


def _sums(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Sums over square windows (h, w); nothing beyond the border."""
    side = (2 * _RADIUS + 1, 2 * _RADIUS + 1)
    return np.asarray(cv2.boxFilter(values, -1, side, normalize=False, borderType=cv2.BORDER_CONSTANT))
