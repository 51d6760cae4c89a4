"""How likely a pixel is inside an object, by its colour alone.

The colours of the object and of its surroundings are counted near the contour, on the frame itself and on the
keys, where the contour is the artist's. A pixel's likelihood is the object's share of its colour. It needs no
place and no neighbours, so it tells strands and gaps of a pixel's width from each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from model.inference.guided_filter import FloatArray

BINS = 32
"""Of each channel."""
_NEAR = 32
"""Working pixels from the contour within which colours are counted."""
_SURE_INSIDE, _SURE_OUTSIDE = 3, 6
"""Working pixels next to the contour that are not counted: a mixed colour belongs to neither side."""
_SPREAD = 1.75
"""Sigma in bins, by which a counted colour stands for its neighbours too."""
_UNKNOWN = 1e-5
"""Added to both shares: a colour that neither side has says nothing."""

Bins = npt.NDArray[np.uint16]

_axis = np.arange(-4, 5)
_KERNEL: FloatArray = np.exp(-np.square(_axis) / (2 * _SPREAD**2)).astype(np.float32)
_KERNEL /= _KERNEL.sum()
_ONE = np.ones(1, np.float32)


def colours_of(picture: FloatArray, mask: FloatArray, larger: float = 1.0) -> FloatArray:
    """The shares of the colours inside an object and around it: (2, BINS ** 3); 0 for a side without pixels.

    Args:
        picture: (3, h, w) in [0, 1].
        mask: (h, w) in [0, 1].
        larger: how much larger than usual the working picture is.
    """
    return _counted(_bins(picture), mask, larger)


def likelihood_of(
    picture: FloatArray, mask: FloatArray, keys: Sequence[FloatArray], larger: float = 1.0
) -> FloatArray:
    """`likelihood` with `colours_of` the same picture, faster."""
    bins = _bins(picture)
    return _looked_up(_table(_counted(bins, mask, larger), keys), bins)


def _counted(bins: Bins, mask: FloatArray, larger: float) -> FloatArray:
    """`colours_of` the bins (h, w) of a picture."""
    inside = (mask > 0.5).view(np.uint8)
    near, inner, outer = (
        np.ones((2 * round(one * larger) + 1,) * 2, np.uint8) for one in (_NEAR, _SURE_INSIDE, _SURE_OUTSIDE)
    )
    border = cv2.BORDER_REPLICATE
    own = np.asarray(cv2.erode(inside, inner, borderType=border)) > cv2.erode(inside, near, borderType=border)
    around = np.asarray(cv2.dilate(inside, near)) > cv2.dilate(inside, outer)
    shares = np.zeros((2, BINS**3), np.float32)
    for share, counted in zip(shares, (own, around), strict=True):
        some = bins[counted]
        if some.size:
            found = np.bincount(some, minlength=BINS**3)
            share[:] = found.astype(np.float32) / np.float32(some.size)
    return shares


def likelihood(picture: FloatArray, own: FloatArray, keys: Sequence[FloatArray]) -> FloatArray:
    """(h, w) in [0, 1]: 1 where a colour is only the object's, 0 where it is only its surroundings'.

    Args:
        picture: (3, h, w) in [0, 1].
        own: `colours_of` this frame.
        keys: `colours_of` the keys; together they count as much as the frame.
    """
    return _looked_up(_table(own, keys), _bins(picture))


def _table(own: FloatArray, keys: Sequence[FloatArray]) -> FloatArray:
    """(BINS ** 3,): the likelihood of each colour."""
    shares = own.copy()
    for one in keys:
        shares += one / np.float32(len(keys))
    inside, outside = (_spread(one) + np.float32(_UNKNOWN) for one in shares)
    return np.asarray(inside / (inside + outside), np.float32)


def _bins(picture: FloatArray) -> Bins:
    """(h, w): the bin of each colour (3, h, w)."""
    r, g, b = np.clip(picture * np.float32(BINS), 0, BINS - 1).astype(np.uint16)
    bins: Bins = (r * np.uint16(BINS) + g) * np.uint16(BINS) + b
    return bins


def _looked_up(table: FloatArray, bins: Bins) -> FloatArray:
    """(h, w): the value of each bin in a table (BINS ** 3,)."""
    whole = np.zeros((1, 1 << 16), np.float32)  # the size that OpenCV takes
    whole[0, : table.size] = table
    return np.asarray(cv2.LUT(bins, whole), np.float32)


def _spread(shares: FloatArray) -> FloatArray:
    """(BINS ** 3,): blurred along the three channels."""
    for _ in range(3):  # each turn moves the next channel to the front
        rows = cv2.sepFilter2D(
            shares.reshape(BINS, BINS * BINS), cv2.CV_32F, _ONE, _KERNEL, borderType=cv2.BORDER_REPLICATE
        )
        shares = np.ascontiguousarray(np.asarray(rows, np.float32).T)
    return shares.reshape(-1)
