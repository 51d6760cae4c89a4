"""The quality of masks: the DAVIS measures J and F, and their statistics over a sequence.

Region similarity J and contour accuracy F as Perazzi et al. define them (CVPR 2016) and as the DAVIS
benchmarks of 2016 and 2017 compute them. All functions take two binary masks or the per-frame
values of one object; folders and protocols are in `model.evaluation.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.008
"""How far apart two contours may lie and still match, as a share of the picture's diagonal (DAVIS)."""

RECALL_THRESHOLD = 0.5
"""Recall is the share of frames whose value is above this (DAVIS)."""

DECAY_BINS = 4
"""Decay is the mean of a sequence's first quarter less the mean of its last (DAVIS)."""


@dataclass(frozen=True)
class Statistics:
    """Mean, recall and decay of one measure over the frames of one object, or their means over objects."""

    mean: float
    recall: float
    decay: float


def region_similarity(truth: BoolArray, predicted: BoolArray) -> float:
    """J, intersection over union of two masks; 1 where both are empty.

    Args:
        truth, predicted: (H, W) booleans.

    Returns:
        a value in [0, 1].

    Raises:
        ValueError: if the sizes differ.

    Example:
        >>> region_similarity(np.array([[True, True, False]]), np.array([[False, True, True]]))
        0.3333333333333333
    """
    truth, predicted = _checked(truth, predicted)
    union = int(np.count_nonzero(truth | predicted))
    return int(np.count_nonzero(truth & predicted)) / union if union else 1.0


def contour_accuracy(truth: BoolArray, predicted: BoolArray, tolerance: float = BOUNDARY_TOLERANCE) -> float:
    """F, harmonic mean of how much of each contour lies near the other; 1 where both are empty.

    Args:
        truth, predicted: (H, W) booleans.
        tolerance: as a share of the picture's diagonal, rounded up to whole pixels.

    Returns:
        a value in [0, 1].

    Raises:
        ValueError: if the sizes differ.
    """
    truth, predicted = _checked(truth, predicted)
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    truth_contour, predicted_contour = contour(truth), contour(predicted)
    precision = _share_near(predicted_contour, truth_contour, radius)
    recall = _share_near(truth_contour, predicted_contour, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def contour(mask: BoolArray) -> BoolArray:
    """The mask's contour, one pixel wide: pixels unlike the one to the right, below, or below right.

    So the contour lies half a pixel towards the origin. In the last row only the pixel to the right counts,
    in the last column only the one below, so the border of the picture is no contour.

    Args:
        mask: (H, W) booleans.

    Returns:
        (H, W) booleans.

    Example:
        >>> contour(np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)).astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [0, 0, 0]])
    """
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right, below, diagonal = beyond[:-1, :-1], beyond[:-1, 1:], beyond[1:, :-1], beyond[1:, 1:]
    # The repeated last row makes `below` equal `here` there, and `diagonal` equal `right`; columns likewise.
    return np.asarray((here != right) | (here != below) | (here != diagonal))


def statistics(values: Sequence[float] | NDArray[np.float64]) -> Statistics:
    """DAVIS's mean, recall and decay of one object's values, in the order of the frames.

    Raises:
        ValueError: if there are no values.
    """
    per_frame = np.asarray(values, dtype=np.float64)
    if per_frame.size == 0:
        raise ValueError("no frames to measure")
    # DAVIS counts frames from 1 and rounds halves up; neighbouring bins share their boundary frame.
    edges = np.round(np.linspace(1, len(per_frame), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first = per_frame[edges[0] : edges[1] + 1]
    last = per_frame[edges[-2] : edges[-1] + 1]
    return Statistics(
        mean=float(per_frame.mean()),
        recall=float((per_frame > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


def mean_statistics(objects: Sequence[Statistics]) -> Statistics:
    """The mean of each statistic over objects, every object counting the same (DAVIS).

    Raises:
        ValueError: if there are no objects.
    """
    if not objects:
        raise ValueError("no objects to average")
    return Statistics(
        mean=sum(each.mean for each in objects) / len(objects),
        recall=sum(each.recall for each in objects) / len(objects),
        decay=sum(each.decay for each in objects) / len(objects),
    )


def _checked(truth: BoolArray, predicted: BoolArray) -> tuple[BoolArray, BoolArray]:
    truth, predicted = np.asarray(truth, dtype=bool), np.asarray(predicted, dtype=bool)
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise ValueError(f"two masks of one size (H, W) are needed, not {truth.shape} and {predicted.shape}")
    return truth, predicted


def _share_near(contour_a: BoolArray, contour_b: BoolArray, radius: int) -> float:
    """The share of `contour_a` that lies within `radius` of `contour_b`.

    Where one of them is empty, its share is 1 and that of the other is 0.
    """
    rows, columns = np.nonzero(contour_a)
    if rows.size == 0:
        return 1.0
    if not contour_b.any():
        return 0.0
    # A disk is a stack of horizontal runs: running sums along the rows show for each run whether b is in it.
    padded = np.pad(contour_b, ((radius, radius), (radius + 1, radius)))
    running = np.cumsum(padded, axis=1, dtype=np.int32)  # [y, x + 1]: how many before column x, at x = 0 none
    near = np.zeros(rows.size, dtype=bool)
    for offset in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - offset * offset)
        row = rows + offset + radius
        near |= running[row, columns + radius + half + 1] > running[row, columns + radius - half]
    return float(near.mean())
