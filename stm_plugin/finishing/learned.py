"""Learned edges: a soft matte from a coarse probability, by the edge refiner (`model.network.edges`).

The refiner reads the working picture around all uncertain pixels of this frame and of its neighbours. It
returns alpha, and where alpha is soft. There alpha is carried along like colours (`matting`). Where an edge
is hard, the probability itself stays. Near a key, the key's mask has a part in alpha (`carried`). A guided
filter with a small window then enlarges alpha to plate pixels along that band. Elsewhere the matte is exactly
0 or 1. All inputs are stored results, so any frame can be finished alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from model.inference.colour_likelihood import likelihood_of
from model.inference.edges import FastRefiner
from model.network.edges import INPUTS, REACH, STRIDE
from stm_plugin.finishing.band import NEARLY_SURE, Guide, Tile, box_around, dilated, steeper, unsure_pixels
from stm_plugin.finishing.carried import CarriedKey
from stm_plugin.finishing.guided import follow_plate, trust_at_working_size
from stm_plugin.finishing.matting import matted
from stm_plugin.images.working_picture import WorkingGeometry, inside_region, to_plate
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray

VERSION = 9
"""Enters the address of every learned matte; raise it when the same evidence leads to another matte."""

_USUAL_SIZE = 480
"""Short side of the working picture for which the distances below are stated. They grow with a larger one."""
_LOOKED_AT = 24
"""Working pixels around uncertain ones that may be soft, at a width of 1."""
WIDENING = 4.0
"""Sigma, in working pixels, of the Gaussian that blurs soft edges for each 1 of width above 1."""
_DETAIL_RADIUS = 4
"""Working pixels: the window in which alpha follows the plate's colours. Best of 1, 2 and 4 on generated
clips that were not trained on."""

WIDE, NARROW = 9, 5
"""Working pixels: the squares that wide and narrow soft edges hold."""
FADE = 48
"""Working pixels around them that count as soft too, and over which that fades: an object is rarely soft in
few places only. Best of 2 to 48 on generated clips that were not trained on; hard edges lose nothing."""
COARSER = 4
"""How much smaller the picture is in which softness is spread."""
WIDE_SOFT, NARROW_SOFT = (0.6, 0.85), (0.2, 0.8)
"""Softness at which alpha begins to follow what was found, and follows it in full."""
TRUSTED = (0.65, 0.9)
"""The same for the trust in the wide filter, on narrow soft edges."""
HELD_BACK = 0.4
"""How much less part a hard key has where edges are soft."""

PRIOR = 0.01
"""The weight of the refiner's alpha against what like colours have, where an edge is soft."""
_FOLLOWED = (8, 24)
"""Working pixels from the contour: up to the first that weight is least, from the second on alpha stays."""

_NEAR = 8
"""A part is confirmed if a neighbouring frame has a part within this many working pixels."""
_SMALL = 64
"""Working pixels: the most that a part has which one neighbouring frame alone decides about."""
_DENT_NEAR = 2
"""The same for what is a little transparent inside an object."""
_LEVELS = {0.25: 0.25, 0.5: 0.5, 0.75: 1.0, 0.9: 1.0, 1.0: 1.0}
"""Alpha of a rim, and of what is within it afterwards: whole within a rim that is nearly so."""
_RIM = 3
"""Working pixels around a removed part that are removed too: the network spreads an edge so far."""

ByteArray = npt.NDArray[np.uint8]
WHOLE: Tile = (slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class EdgeEvidence:
    """The inputs for one object on one frame; pictures (h, w) at working size, in [0, 1].

    Attributes:
        probability: of the object.
        before, after: of the object on the neighbouring frames; `probability` where there is no result.
        others: of all other objects together.
        key_softness: softness of the keys that it is made from (`model.network.edges.softness_of`).
        carried: the masks of the keys near it, the nearest one last.
        key_colours: of the keys that it is made from (`model.inference.colour_likelihood.colours_of`).
    """

    probability: FloatArray
    before: FloatArray
    after: FloatArray
    others: FloatArray
    key_softness: float
    carried: tuple[CarriedKey, ...] = ()
    key_colours: tuple[FloatArray, ...] = ()


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
    return enlarged_along_plate(alpha, guide, geometry, settings)


def enlarged_along_plate(
    alpha: FloatArray, guide: Guide, geometry: WorkingGeometry, settings: FinishSettings
) -> FloatArray:
    """Alpha (h, w) at working size, enlarged to (H, W) along the edges of the plate."""
    if not unsure_pixels(alpha).any():
        return inside_region(to_plate(alpha, guide.window, geometry), guide.window, geometry)
    return follow_plate(alpha, guide, geometry, following_of(alpha, settings))


def following_of(alpha: FloatArray, settings: FinishSettings) -> FinishSettings:
    """The settings with which alpha (h, w) follows the plate."""
    radius = round(_DETAIL_RADIUS * larger_than_usual(alpha))
    return replace(settings, radius=radius, sure=min(NEARLY_SURE, settings.sure), sharpness=1.0)


@dataclass(frozen=True, eq=False)
class EdgeBox:
    """What alpha is found from, in the part of the working picture around all uncertain pixels.

    Attributes:
        evidence: of the whole picture.
        own: (h, w), the frame's probability in the box; exactly 0 or 1 where it is certain.
        picture: (3, h, w), the working picture in the box.
        box: its rows and columns.
        larger: how much larger than usual the working picture is.
    """

    evidence: EdgeEvidence
    own: FloatArray
    picture: FloatArray
    box: Tile
    larger: float


AlphaInBox = Callable[[EdgeBox, FinishSettings, FastRefiner], FloatArray]


def alpha_at_working_size(
    evidence: EdgeEvidence,
    picture: FloatArray,
    settings: FinishSettings,
    refiner: FastRefiner,
    alpha_in_box: AlphaInBox | None = None,
) -> FloatArray:
    """Alpha (h, w) in [0, 1], exactly 0 or 1 where no edge is soft.

    Args:
        picture: (3, h, w), the working picture.
        alpha_in_box: finds alpha; by default on the CPU.
    """
    evidence = replace(evidence, probability=confirmed(evidence))
    own, before, after = (
        steeper(one, 1.0, settings.sure) for one in (evidence.probability, evidence.before, evidence.after)
    )
    unsure = unsure_pixels(own) | unsure_pixels(before) | unsure_pixels(after)
    for key in evidence.carried:
        unsure |= unsure_pixels(steeper(key.mask.copy(), 1.0, settings.sure))
    if not unsure.any():
        return own
    larger = larger_than_usual(own)
    zone = dilated(unsure, round(_LOOKED_AT * max(1.0, settings.width) * larger))
    box = _box(zone)
    part = EdgeBox(evidence, own[box], picture[:, *box], box, larger)
    alpha = (alpha_in_box or _alpha_in_box)(part, settings, refiner)
    result = np.round(own)
    np.copyto(result[box], alpha, where=zone[box] > 0)
    result[box] = without_specks(result[box], evidence, box)
    return result


def _alpha_in_box(part: EdgeBox, settings: FinishSettings, refiner: FastRefiner) -> FloatArray:
    """Alpha (h, w) in the box."""
    height, width = part.own.shape
    alpha, soft = (one[:height, :width] for one in refiner.refine(inputs_of(part)))
    trust = trust_at_working_size(part.own, part.picture, settings)
    gate = _gate(soft, trust, part.larger)
    weight: FloatArray = np.float32(PRIOR) ** (gate * near_contour(part.own, part.larger))
    alpha = part.own + gate * (matted(part.picture, alpha, weight) - part.own)
    for key in part.evidence.carried:
        share = key.share[part.box] * (1 - gate * np.float32(HELD_BACK * (1 - key.softness)))
        alpha += share * (key.mask[part.box] - alpha)
    return steeper(_as_wide(alpha, soft, settings.width), 1.0, min(NEARLY_SURE, settings.sure))


def larger_than_usual(working: FloatArray) -> float:
    """How much larger than usual a working picture (h, w) is; 1 for smaller ones."""
    return max(1.0, float(min(working.shape)) / _USUAL_SIZE)


def _gate(soft: FloatArray, trust: FloatArray, larger: float) -> FloatArray:
    """How far (h, w) alpha follows what was found, instead of the probability.

    Not at all on a hard edge: there a line of a few pixels is soft. A wide one counts by itself; a narrow one
    where the colours inside are told from those outside, as elsewhere the refiner guesses.

    Args:
        trust: in the wide filter.
    """
    wide = _ramp(_opened(soft, WIDE, larger), WIDE_SOFT)
    narrow = _ramp(_opened(soft, NARROW, larger), NARROW_SOFT)
    narrow *= _ramp(trust, TRUSTED)
    return np.maximum(wide, narrow)


def _opened(soft: FloatArray, side: int, larger: float) -> FloatArray:
    """The softness (h, w) without what is narrower than a square, spread over `FADE`."""
    least = cv2.erode(soft, np.ones((side, side), np.uint8), borderType=cv2.BORDER_REPLICATE)
    held = cv2.dilate(least, np.ones((side + COARSER, side + COARSER), np.uint8))[::COARSER, ::COARSER]
    reach, height, width = round(FADE * larger) // COARSER, *soft.shape
    spread = cv2.dilate(held, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    spread = cv2.GaussianBlur(spread, (0, 0), reach)
    return np.asarray(cv2.resize(spread, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _ramp(values: FloatArray, ends: tuple[float, float]) -> FloatArray:
    """0 below the first end, 1 above the second, and smooth between them."""
    share = np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def near_contour(own: FloatArray, larger: float) -> FloatArray:
    """(h, w): 1 near the contour, where alpha follows the colours, and 0 where the refiner's alpha stays."""
    contour = cv2.morphologyEx((own > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    away = cv2.distanceTransform(1 - contour, cv2.DIST_L2, 3)
    near: FloatArray = np.float32(1) - _ramp(np.asarray(away / larger, np.float32), _FOLLOWED)
    return near


def confirmed(evidence: EdgeEvidence) -> FloatArray:
    """The probability (h, w) without islands and holes that the neighbouring frames lack.

    If only one neighbour has a result, small ones are removed only. Without any nothing is.
    """
    result = evidence.probability
    neighbours = [one for one in (evidence.before, evidence.after) if one is not evidence.probability]
    if not neighbours:
        return result
    for inside in (True, False):
        alone = _apart((result > 0.5) == inside, _near(inside, *neighbours))
        if alone is not None and len(neighbours) == 1:
            alone = _small(alone, _SMALL * larger_than_usual(result) ** 2)
        if alone is not None:
            result = np.where(dilated(alone, _RIM) > 0, np.float32(not inside), result)
    return result


def without_specks(alpha: FloatArray, evidence: EdgeEvidence, box: Tile = WHOLE) -> FloatArray:
    """Alpha (h, w) of a box without dents inside the object and traces outside it.

    A dent has a rim: the least alpha that has to be crossed on the way from it to what is outside, in this
    frame, in its neighbours or in a key. It is filled up to that. The same the other way round for a trace.
    """
    keys = (key.mask for key in evidence.carried)
    masks = [one[box] for one in (evidence.probability, evidence.before, evidence.after, *keys)]
    dents, traces = _near(False, *masks, reach=_DENT_NEAR), _near(True, *masks)
    for rim, filled in _LEVELS.items():
        alone = _apart(alpha < rim, dents)
        if alone is not None:
            alpha = np.where(alone > 0, np.float32(filled), alpha)
        alone = _apart(alpha > 1 - rim, traces)
        if alone is not None:
            alpha = np.where(alone > 0, np.float32(1 - filled), alpha)
    return alpha


def _near(inside: bool, *masks: FloatArray, reach: int = _NEAR) -> ByteArray:
    """(h, w): 1 near what is inside, or outside, in any of the masks."""
    found = np.zeros(masks[0].shape, np.uint8)
    for mask in masks:
        found |= ((mask > 0.5) == inside).view(np.uint8)
    return dilated(found, reach)


def _apart(pixels: npt.NDArray[np.bool_], near: ByteArray) -> ByteArray | None:
    """(h, w): 1 in the connected parts of some pixels that touch no `near` pixel; None if there is none."""
    chosen = pixels.view(np.uint8)
    far = np.where(near > 0, np.uint8(0), chosen)
    if not far.any():
        return None
    box = box_around(far, 1)  # a part that leaves it has a near pixel in it
    count, parts = cv2.connectedComponents(np.ascontiguousarray(chosen[box]))
    alone = np.ones(count, np.uint8)
    alone[0] = 0
    alone[parts[near[box] > 0]] = 0
    if not alone.any():
        return None
    found = np.zeros(pixels.shape, np.uint8)
    found[box] = alone[parts]
    return found


def _small(pixels: ByteArray, most: float) -> ByteArray:
    """(h, w): 1 in the connected parts of at most so many pixels."""
    count, parts = cv2.connectedComponents(pixels)
    kept = np.ones(count, np.uint8)
    kept[0] = 0
    kept[np.bincount(parts.reshape(-1), minlength=count) > most] = 0
    found: ByteArray = kept[parts]
    return found


def inputs_of(part: EdgeBox) -> FloatArray:
    """(INPUTS, h, w) for the refiner; h and w are rounded up to multiples of STRIDE."""
    evidence = part.evidence
    masks = (evidence.probability, evidence.before, evidence.after, evidence.others)
    height, width = part.own.shape
    inputs = np.empty((INPUTS, height + -height % STRIDE, width + -width % STRIDE), np.float32)
    inside = inputs[:, :height, :width]
    inside[:3] = part.picture
    for plane, mask in zip(inside[3:7], masks, strict=True):
        plane[:] = mask[part.box]
    inside[7] = evidence.key_softness
    inside[8] = likelihood_of(part.picture, inside[3], evidence.key_colours, part.larger)
    inputs[:, :height, width:] = inputs[:, :height, width - 1 : width]
    inputs[:, height:] = inputs[:, height - 1 : height]
    return inputs


def _box(zone: ByteArray) -> Tile:
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
        blurred = cv2.GaussianBlur(alpha, (0, 0), WIDENING * (width - 1.0))
        return np.asarray(alpha + soft * (np.asarray(blurred, np.float32) - alpha), np.float32)
    return alpha
