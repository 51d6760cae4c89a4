"""Learned edges: a soft matte from a coarse probability, by the edge refiner (`model.network.edges`).

The refiner reads the working picture around all uncertain pixels of this frame and of its neighbours. It
returns alpha, and where alpha is soft. A guided filter with a small window then enlarges alpha to plate
pixels along that band. Elsewhere the matte is exactly 0 or 1. All inputs are stored results, so any frame can
be finished alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from model.inference.edges import FastRefiner
from model.network.edges import INPUTS, REACH, STRIDE
from stm_plugin.finishing.band import NEARLY_SURE, Guide, dilated, steeper, unsure_pixels
from stm_plugin.finishing.guided import follow_plate
from stm_plugin.images.working_picture import WorkingGeometry, inside_region, to_plate
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray

VERSION = 1
"""Enters the address of every learned matte; raise it when the same evidence leads to another matte."""

_LOOKED_AT = 24
"""Working pixels around uncertain ones that may be soft, at a width of 1."""
_WIDENING = 3.0
"""Sigma, in working pixels, of the Gaussian that blurs soft edges for each 1 of width above 1."""
_DETAIL_RADIUS = 4
"""Working pixels: the window in which alpha follows the plate's colours. Best of 1, 2 and 4 on generated
clips that were not trained on."""

_NEAR = 8
"""A part is confirmed if a neighbouring frame has a part within this many working pixels."""
_RIM = 3
"""Working pixels around a removed part that are removed too: the network spreads an edge so far."""

ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class EdgeEvidence:
    """The inputs for one object on one frame; pictures (h, w) at working size, in [0, 1].

    Attributes:
        probability: of the object.
        before, after: of the object on the neighbouring frames; `probability` where there is no result.
        others: of all other objects together.
        key_softness: softness of the keys that it is made from (`model.network.edges.softness_of`).
    """

    probability: FloatArray
    before: FloatArray
    after: FloatArray
    others: FloatArray
    key_softness: float


def finish_learned(
    evidence: EdgeEvidence,
    guide: Guide,
    geometry: WorkingGeometry,
    settings: FinishSettings,
    refiner: FastRefiner,
) -> FloatArray:
    """One object's matte over the frame's data window.

    Returns:
        float32 (H, W) in [0, 1]: exactly 0 or 1 where no edge is soft, 0 outside the region.
    """
    alpha = alpha_at_working_size(evidence, guide.working, settings, refiner)
    if not unsure_pixels(alpha).any():
        return inside_region(to_plate(alpha, guide.window, geometry), guide.window, geometry)
    following = replace(settings, radius=_DETAIL_RADIUS, sure=min(NEARLY_SURE, settings.sure), sharpness=1.0)
    return follow_plate(alpha, guide, geometry, following)


def alpha_at_working_size(
    evidence: EdgeEvidence, picture: FloatArray, settings: FinishSettings, refiner: FastRefiner
) -> FloatArray:
    """Alpha (h, w) in [0, 1], exactly 0 or 1 where no edge is soft.

    Args:
        picture: (3, h, w), the working picture.
    """
    evidence = replace(evidence, probability=confirmed(evidence))
    own, before, after = (
        steeper(one, 1.0, min(NEARLY_SURE, settings.sure))
        for one in (evidence.probability, evidence.before, evidence.after)
    )
    unsure = unsure_pixels(own) | unsure_pixels(before) | unsure_pixels(after)
    if not unsure.any():
        return own
    zone = dilated(unsure, round(_LOOKED_AT * max(1.0, settings.width)))
    box = _box(zone)
    alpha, soft = _refined(evidence, picture, box, refiner)
    result = np.round(own)
    alpha = steeper(_as_wide(alpha, soft, settings.width), 1.0, min(NEARLY_SURE, settings.sure))
    np.copyto(result[box], alpha, where=zone[box] > 0)
    return result


def confirmed(evidence: EdgeEvidence) -> FloatArray:
    """The probability (h, w) without islands and holes that both neighbouring frames lack.

    Without a result of a neighbour nothing is removed.
    """
    result = evidence.probability
    for inside in (True, False):
        here, *beside = (
            ((one > 0.5) == inside).astype(np.uint8) for one in (result, evidence.before, evidence.after)
        )
        near = dilated(beside[0] | beside[1], _NEAR)
        count, parts = cv2.connectedComponents(here)
        alone = np.ones(count, bool)
        alone[0] = False
        alone[np.unique(parts[near > 0])] = False
        if alone.any():
            spots = dilated(alone[parts].astype(np.uint8), _RIM)
            result = np.where(spots > 0, np.float32(not inside), result)
    return result


def _refined(
    evidence: EdgeEvidence, picture: FloatArray, box: tuple[slice, slice], refiner: FastRefiner
) -> tuple[FloatArray, FloatArray]:
    """Alpha and softness in a box, from the refiner."""
    masks = (evidence.probability, evidence.before, evidence.after, evidence.others)
    height, width = evidence.probability[box].shape
    inputs = np.empty((INPUTS, height, width), np.float32)
    inputs[:3] = picture[:, *box]
    for plane, mask in zip(inputs[3:7], masks, strict=True):
        plane[:] = mask[box]
    inputs[7] = evidence.key_softness
    padded = np.pad(inputs, ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE)), mode="edge")
    alpha, soft = refiner.refine(padded)
    return alpha[:height, :width], soft[:height, :width]


def _box(zone: ByteArray) -> tuple[slice, slice]:
    """Rows and columns around a zone and the pixels that it depends on; they begin at multiples of STRIDE."""
    left, top, width, height = cv2.boundingRect(zone)
    y = max(0, top - REACH) // STRIDE * STRIDE
    x = max(0, left - REACH) // STRIDE * STRIDE
    bottom = min(zone.shape[0], top + height + REACH)
    right = min(zone.shape[1], left + width + REACH)
    return slice(y, bottom), slice(x, right)


def _as_wide(alpha: FloatArray, soft: FloatArray, width: float) -> FloatArray:
    """Alpha (h, w) with narrower edges (a width below 1) or wider soft edges (a width above 1)."""
    if width < 1:
        return steeper(alpha.copy(), 1.0 / width, 0.0)
    if width > 1:
        blurred = cv2.GaussianBlur(alpha, (0, 0), _WIDENING * (width - 1.0))
        return np.asarray(alpha + soft * (np.asarray(blurred, np.float32) - alpha), np.float32)
    return alpha
