"""The fusion of all passes that reach a frame: which pass counts how much, and where in the picture.

A pass is right on its own key. On every other key that it meets its result can be compared with the true
mask, place by place. Where it was right there, it counts beside that key as if it had started from it; where
it was wrong, it does not. So a key's own pass does not rule beside its key on what that key hides: passes
that know more and were right on that key count as much. A pass that finds less of the object than another
one, that finds more than the keys let expect, or that fits the keys badly counts less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from stm_plugin.windows import FloatArray

VERSION = 8
"""Enters the address of every matte; raise it when the same passes are fused to another result
(and `planning.plan.FUSION_RULE` with it)."""

_LEAST_CONFIDENCE = 0.2
"""Confidence of a probability of 0.5. Not 0: beside a key its soft edge must outweigh the other passes."""
_DISTANCE_POWER, _TRUST_POWER = 2, 3
"""How fast the weight of a pass falls with the distance, and with the trust in it. By distance alone no
weight changes by more than 2 / n a frame, in a span of n frames."""
_LEAST_TRUST = 0.1
"""Trust in a pass that met a key with no overlap. Not 0: weights must change gradually, and where no pass
fits, the distance still decides."""
_LITTLE = 0.1
"""Share of the object on a pass's own key. A pass that finds nothing where another one finds so much keeps
half of its trust: what is little may be a remnant of an object that has vanished."""
_FRAMES_TO_LOSE_TRUST = 8
"""Frames from its own key over which the trust in a pass falls to what it has earned, where no other pass was
right on that key: so no matte pops."""
_PLACES = 60
"""Places across the short side of the picture: the grid on which weights are computed."""
_WRONG_FROM, _WRONG_AT = 0.05, 0.35
"""Mean error around a place up to which a pass counts as right there, and from which as wrong: a contour that
is off by a pixel is right."""
_MAYBE = 0.05
"""Probability above which an object may be on a pixel."""


@dataclass(frozen=True, eq=False)
class Arrival:
    """How well a pass fits another key, whose mask it did not use.

    Attributes:
        distance: frames from the pass's own key.
        similarity: J of the pass and the true mask, in [0, 1].
        counts: how far the fit counts, in [0, 1]. Where little of the object is visible, and the pass finds
            as little, a good pass fits badly too (`arrival_at`).
        wrong: on the grid of places, 0 where the pass is right and 1 where it is wrong (`wrong_places`).
            None: wrong everywhere.
        area: pixels of the object there; None where it is not known.
    """

    distance: int
    similarity: float
    counts: float = 1.0
    wrong: FloatArray | None = None
    area: float | None = None

    @property
    def fit(self) -> float:
        """The similarity as far as it counts, in [0, 1]."""
        return 1.0 - self.counts * (1.0 - self.similarity)


def arrival_at(distance: int, probability: FloatArray, truth: FloatArray, key_area: float) -> Arrival:
    """How well a pass fits a key that it meets.

    It counts by the root of the area that the pass or the mask covers there, over the area on the pass's own
    key. So a pass that finds what is visible of a hidden object loses little trust by its contour, and a pass
    that finds far more than is there loses much, however small the object is.

    Args:
        distance: frames from the pass's own key.
        probability, truth: the pass and the key's mask, (h, w) in [0, 1].
        key_area: pixels of the object on the pass's own key.
    """
    either = area_of(np.maximum(probability, truth))
    counts = min(1.0, math.sqrt(either / max(key_area, 1.0)))
    wrong = wrong_places(probability, truth)
    return Arrival(distance, similarity(probability, truth), counts, wrong, area_of(truth))


@dataclass(frozen=True, eq=False)
class PassAtFrame:
    """One pass on the fused frame, for one object.

    Attributes:
        probability: (h, w) in [0, 1].
        distance: signed frames from its key to here, never 0: positive for a forward pass.
        key_area: pixels of the object on its key.
        arrivals: by distance.
    """

    probability: FloatArray
    distance: int
    key_area: float
    arrivals: tuple[Arrival, ...] = ()

    def from_frame(self, arrival: Arrival) -> int:
        """Signed frames from the fused frame to the key of an arrival."""
        direction = 1 if self.distance > 0 else -1
        return direction * arrival.distance - self.distance


@dataclass(frozen=True, eq=False)
class Fusion:
    """One object on one frame.

    Attributes:
        probability: (h, w) in [0, 1].
        shares: the part of each pass where the object may be; their sum is 1.
    """

    probability: FloatArray
    shares: tuple[float, ...]

    def most_trusted(self) -> tuple[int, int]:
        """The places, among the passes, of the two with the greatest shares. There must be two."""
        first, second = sorted(range(len(self.shares)), key=lambda place: -self.shares[place])[:2]
        return first, second


def fuse(passes: Sequence[PassAtFrame]) -> Fusion:
    """One object on one frame from all passes that reach it: their mean, weighted pixel by pixel.

    The weight of a pass falls with its distance (`effective_distance`), and grows with the trust in it
    (`earned_trusts`) and with its confidence in the pixel. Where all passes agree, their value is the result.

    Args:
        passes: at least one.
    """
    if len(passes) == 1:
        return Fusion(passes[0].probability, (1.0,))
    height, width = passes[0].probability.shape
    found = np.stack([_on_grid(one.probability) for one in passes])  # (passes, rows, columns)
    weights = place_weights(passes)
    total = np.zeros((height, width), np.float32)
    fused = np.zeros((height, width), np.float32)
    weight, by_place = np.empty_like(total), np.empty_like(total)  # for every pass: fresh memory costs time
    for one, plane in zip(passes, weights, strict=True):
        cv2.resize(plane, (width, height), dst=by_place, interpolation=cv2.INTER_LINEAR)
        confidence(one.probability, weight)
        weight *= by_place
        total += weight
        weight *= one.probability
        fused += weight
    fused /= total
    np.minimum(fused, np.float32(1), out=fused)
    return Fusion(fused, _shares(found, weights))


def place_weights(passes: Sequence[PassAtFrame]) -> FloatArray:
    """The weight of each pass on the grid of places: (passes, rows, columns), all of a place of sum 1."""
    weights = np.empty((len(passes), *grid_of(passes[0].probability.shape)), np.float32)
    for plane, one, trust in zip(weights, passes, earned_trusts(passes), strict=True):
        counted = trust ** (_TRUST_POWER * _along(one, passes))
        plane[...] = effective_distance(one) ** -_DISTANCE_POWER * counted
    weights /= weights.sum(axis=0)
    return weights


def effective_distance(one: PassAtFrame) -> FloatArray | np.float32:
    """Frames from the nearest key on which a pass is right, at least 1; by place where it met other keys.

    On its own key a pass is right. On a key that it met, it counts as if it had started there where it was
    right, and where it was wrong, as far away as that key is from its own.
    """
    nearest: FloatArray | np.float32 = np.float32(abs(one.distance))
    for arrival in one.arrivals:
        if arrival.wrong is not None:
            away = np.float32(max(1, abs(one.from_frame(arrival))))
            nearest = np.minimum(nearest, away + np.float32(arrival.distance) * arrival.wrong)
    return nearest


def earned_trusts(passes: Sequence[PassAtFrame]) -> list[float]:
    """The trust in each pass of a frame, in [`_LEAST_TRUST`, 1].

    It is the product of four shares. How well the pass fits the keys that it met. How much of the object it
    finds: one that finds less than another has probably lost a part, or its own key does not show that part.
    How much of what it finds its keys let expect: what has grown more may have leaked. How sure it is, beside
    the surest.
    """
    areas = [area_of(one.probability) for one in passes]
    fits = [arrival_trust(abs(one.distance), one.arrivals) for one in passes]
    confidences = [mean_confidence(one.probability) for one in passes]
    # The most that any pass surely finds, as far as its own key shows it and as far as the pass fits.
    sure = [min(sure_area(one.probability), one.key_area) for one in passes]
    held = max(area * fit for area, fit in zip(sure, fits, strict=True))
    trusts = []
    for one, area, fit, confident in zip(passes, areas, fits, confidences, strict=True):
        little = _LITTLE * one.key_area
        holds = min(1.0, (max(area, 1.0) + little) / (max(held, 1.0) + little))
        shown = min(1.0, max(expected_area(one), 1.0) / max(area, 1.0))
        trusts.append(max(_LEAST_TRUST, holds * shown * fit * confident / max(confidences)))
    return trusts


def expected_area(one: PassAtFrame) -> float:
    """The most pixels that the keys of a pass let expect on the frame.

    It is the area on its own key, or more where the object is larger on the keys that it met: between two of
    them the area changes evenly.
    """
    distance, before, level = abs(one.distance), 0, one.key_area
    for arrival in one.arrivals:
        if arrival.area is None:
            continue
        if distance <= arrival.distance:
            level += (arrival.area - level) * (distance - before) / (arrival.distance - before)
            break
        before, level = arrival.distance, arrival.area
    return max(one.key_area, level)


def arrival_trust(distance: int, arrivals: Sequence[Arrival]) -> float:
    """The trust in a pass at a distance from its key, by its arrivals, in [0, 1].

    It falls evenly from 1 on the pass's own key to what the pass arrives with at the first key that it meets,
    from there to the next, and stays after the last.
    """
    before, level = 0, 1.0
    for one in arrivals:
        if distance <= one.distance:
            return level + (one.fit - level) * (distance - before) / (one.distance - before)
        before, level = one.distance, one.fit
    return level


def _along(one: PassAtFrame, passes: Sequence[PassAtFrame]) -> FloatArray | np.float32:
    """How much the trust in a pass counts, in [0, 1]; by place where other passes met its key.

    On the frame beside its own key a pass is believed, whatever it has earned, so that the matte leaves the
    key's mask gradually. Where another pass was right on that key, this one is not needed for that.
    """
    along = np.float32(min(1.0, (abs(one.distance) - 1) / (_FRAMES_TO_LOSE_TRUST - 1)))
    wrong: FloatArray | np.float32 = np.float32(1)
    for found in _wrong_on_key_of(one, passes):
        wrong = np.minimum(wrong, found)
    return np.float32(1) - (np.float32(1) - along) * wrong


def _wrong_on_key_of(one: PassAtFrame, passes: Sequence[PassAtFrame]) -> Iterator[FloatArray]:
    """Where other passes were wrong on the key of a pass."""
    for other in passes:
        for arrival in other.arrivals:
            if arrival.wrong is not None and other.from_frame(arrival) == -one.distance:
                yield arrival.wrong


def _shares(found: FloatArray, weights: FloatArray) -> tuple[float, ...]:
    """The mean weight of each pass over the places where the object may be; their sum is 1."""
    maybe = found.max(axis=0) > _MAYBE
    chosen = weights[:, maybe] if maybe.any() else weights.reshape(len(weights), -1)
    return tuple(float(share) for share in chosen.mean(axis=1, dtype=np.float64))


def wrong_places(probability: FloatArray, truth: FloatArray) -> FloatArray:
    """Where a pass is wrong on a key, on the grid of places.

    Args:
        probability, truth: the pass and the key's mask, (h, w) in [0, 1].

    Returns:
        (rows, columns): 0 where the mean error of the places around is small, 1 where it is large.
    """
    errors = cv2.blur(_on_grid(np.abs(probability - truth)), (3, 3))
    scaled = (errors - np.float32(_WRONG_FROM)) / np.float32(_WRONG_AT - _WRONG_FROM)
    wrong: FloatArray = np.clip(scaled, np.float32(0), np.float32(1))
    return wrong


def grid_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the grid of places for a picture (h, w)."""
    size = max(1, round(min(shape[:2]) / _PLACES))
    return max(1, round(shape[0] / size)), max(1, round(shape[1] / size))


def _on_grid(values: FloatArray) -> FloatArray:
    """(h, w) as means over the places."""
    rows, columns = grid_of(values.shape)
    means = cv2.resize(values, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(means, np.float32)


def known_alike(one: PassAtFrame, other: PassAtFrame) -> float:
    """How much of the object that a pass finds the key of the other one shows, in [0, 1]; the lesser of both.

    Where it is little, one of them comes from a key on which the object is mostly hidden: that they differ is
    no doubt.
    """
    ways = ((one, other), (other, one))
    areas = ((key.key_area, min(area_of(found.probability), found.key_area)) for key, found in ways)
    return min(1.0, *(shown / max(found, 1.0) for shown, found in areas))


def area_of(probability: FloatArray) -> float:
    """Area of the object in pixels."""
    return float(np.count_nonzero(probability > np.float32(0.5)))


def sure_area(probability: FloatArray) -> float:
    """The same, each pixel counted by how sure the pass is of it: 0 at 0.5, 1 at 1."""
    inside = probability[probability > np.float32(0.5)]
    return 2.0 * float(inside.sum(dtype=np.float64)) - inside.size


def similarity(probability: FloatArray, truth: FloatArray) -> float:
    """J of a pass and the true mask, both (h, w) in [0, 1]; 1 where both are empty."""
    one, other = probability > np.float32(0.5), truth > np.float32(0.5)
    either = int((one | other).sum())
    return float((one & other).sum()) / either if either else 1.0


def confidence(probability: FloatArray, result: FloatArray | None = None) -> FloatArray:
    """The confidence of a pass, (h, w): least at 0.5, 1 at 0 and 1.

    Args:
        result: is filled and returned, if it is given.
    """
    sure: FloatArray = np.multiply(probability, np.float32(2), out=result)
    np.subtract(sure, np.float32(1), out=sure)
    np.abs(sure, out=sure)
    return np.maximum(sure, np.float32(_LEAST_CONFIDENCE), out=sure)


def mean_confidence(probability: FloatArray) -> float:
    """Mean confidence where an object may be; 1 if it is nowhere."""
    maybe = probability[probability > _MAYBE]
    return float(confidence(maybe).mean()) if maybe.size else 1.0


def share_pixels(masks: Mapping[str, FloatArray], fused: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Share each pixel among the objects of a frame, so that their sum is at most 1.

    The masks of a key are not changed, even where they overlap. The other objects share the rest in
    proportion.

    Args:
        masks: objects whose mask is given on this frame, (h, w) in [0, 1].
        fused: the other objects, (h, w) in [0, 1].

    Returns:
        The objects of `fused`.
    """
    if not fused:
        return {}
    total = sum(fused.values(), start=np.zeros_like(next(iter(fused.values()))))
    given = sum(masks.values(), start=np.zeros_like(total))
    room = np.clip(1.0 - given, 0.0, 1.0)
    scale = np.where(total > room, room / np.maximum(total, np.float32(1e-6)), np.float32(1.0))
    return {name: one * scale for name, one in fused.items()}
