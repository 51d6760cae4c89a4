"""Matches the contours of one frame to those of the next. A part never merges into another one."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stm_plugin.shapes.sections import Section
from stm_plugin.shapes.values import Points

_LEAST_OVERLAP = 0.5
"""Intersection over union, after motion, from which two contours are the same part. Below it, more of a
contour is new than is kept: a merge or a split."""
_LENGTHS = 1.7
"""The largest factor by which a contour may become longer in one frame."""
_CANVAS = 192


def linked(before: Sequence[Section], after: Sequence[Section]) -> dict[int, int]:
    """Index in `before` -> index in `after` of contours that are the same part, each at most once."""
    scores = []
    for i, one in enumerate(before):
        for j, two in enumerate(after):
            if one.hole != two.hole or not 1 / _LENGTHS < two.length / one.length < _LENGTHS:
                continue
            score = _overlap(one, two)
            if score >= _LEAST_OVERLAP:
                scores.append((score, i, j))
    links: dict[int, int] = {}
    for _, i, j in sorted(scores, reverse=True):
        if i not in links and j not in links.values():
            links[i] = j
    return links


def _overlap(one: Section, two: Section) -> float:
    """Intersection over union of two contours after motion of the picture or of their centres."""
    moved = one.points + one.forward
    shifted = one.points + (two.points.mean(axis=0) - one.points.mean(axis=0))
    return max(_intersection_over_union(moved, two.points), _intersection_over_union(shifted, two.points))


def _intersection_over_union(one: Points, two: Points) -> float:
    low = np.minimum(one.min(axis=0), two.min(axis=0))
    high = np.maximum(one.max(axis=0), two.max(axis=0))
    if np.any(one.max(axis=0) < two.min(axis=0)) or np.any(two.max(axis=0) < one.min(axis=0)):
        return 0.0
    scale = _CANVAS / max(float((high - low).max()), 1e-6)
    size = np.ceil((high - low) * scale).astype(int) + 1
    filled = []
    for points in (one, two):
        canvas = np.zeros((int(size[1]), int(size[0])), np.uint8)
        cv2.fillPoly(canvas, [np.rint((points - low) * scale).astype(np.int32)], (1,))
        filled.append(canvas > 0)
    union = int(np.count_nonzero(filled[0] | filled[1]))
    return int(np.count_nonzero(filled[0] & filled[1])) / max(union, 1)
