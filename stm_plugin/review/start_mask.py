"""A first mask from a box and some strokes, by GrabCut (Rother, Kolmogorov, Blake, 2004; OpenCV's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.errors import MaskError
from stm_plugin.windows import FloatArray

_SHORT_SIDE: Final = 480
"""GrabCut works at this size: it takes about a second, and its outline is only a start."""
_ROUNDS: Final = 5
_SOFT_EDGE: Final = 0.6  # pixels of the small picture, standard deviation

Point = tuple[float, float]


@dataclass(frozen=True)
class Hints:
    """What a person drew, in pixels of the picture, x to the right and y down.

    Attributes:
        box: left, top, right, bottom; everything outside of it is background.
        inside, outside: strokes, each a list of points.
        width: of the strokes.
    """

    box: tuple[float, float, float, float] | None = None
    inside: Sequence[Sequence[Point]] = ()
    outside: Sequence[Sequence[Point]] = ()
    width: float = 8.0


def first_mask(picture: FloatArray, hints: Hints) -> FloatArray:
    """A mask with a soft edge of the object at the hints.

    Args:
        picture: float32 (h, w, 3) in [0, 1], sRGB.

    Returns:
        float32 (h, w) in [0, 1].

    Raises:
        MaskError: there is neither a box nor a stroke inside, or nothing was found.
    """
    if hints.box is None and not hints.inside:
        raise MaskError("There is nothing to start from.", hint="Draw a box or a stroke on the object.")
    height, width = picture.shape[:2]
    scale = min(1.0, _SHORT_SIDE / min(height, width))
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    labels = _labels(hints, size, scale)
    if not (labels % 2 == 1).any():
        raise MaskError("The box lies beside the picture.", hint="Draw it over the object.")
    pixels = np.rint(np.clip(small[..., ::-1], 0, 1) * 255).astype(np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # the same strokes give the same mask
    cv2.grabCut(pixels, labels, (0, 0, 0, 0), *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    if not inside.any():
        raise MaskError("No object was found there.", hint="Draw a stroke on it, or paint the mask.")
    soft = cv2.GaussianBlur(inside, (0, 0), _SOFT_EDGE)
    mask: FloatArray = np.clip(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    return mask


def _labels(hints: Hints, size: tuple[int, int], scale: float) -> npt.NDArray[np.uint8]:
    """The labels of all pixels for GrabCut: (h, w)."""
    width, height = size
    if hints.box is None:
        labels = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    else:
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        left, top, right, bottom = (round(value * scale) for value in hints.box)
        labels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = cv2.GC_PR_FGD
    thick = max(1, round(hints.width * scale))
    for strokes, label in ((hints.outside, cv2.GC_BGD), (hints.inside, cv2.GC_FGD)):
        for stroke in strokes:
            points = np.rint(np.asarray(stroke, np.float64) * scale).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(labels, [points], False, int(label), thick)
    return labels
