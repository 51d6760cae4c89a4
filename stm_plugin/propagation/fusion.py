"""The fusion of all passes that reach a frame: the weight of each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stm_plugin.windows import FloatArray

VERSION = 5
"""Enters the address of every matte; raise it when the same passes are fused to another result
(and `planning.plan.FUSION_RULE` with it)."""

_LEAST_CONFIDENCE = 0.2
"""Confidence of a probability of 0.5. Not 0: beside a key its soft edge must outweigh the other passes."""
_LEAST_TRUST = 0.1
"""Trust in a pass that met a key with no overlap. Not 0: weights must change gradually, and where no pass
fits, the distance still decides."""
_FRAMES_TO_LOSE_TRUST = 5
"""Frames from its own key over which the trust in a pass may fall from 1: so no matte pops."""
_HIDDEN_POWER = 4
"""How fast the weight of a pass falls, where it finds less than another, with what its key does not show."""
_SUREST = 0.018
"""Probabilities nearer to 0 or 1 than this count alike: log-odds of 4. So a change of weights shows at most
twice as fast as in a mean of probabilities."""
_ALIKE = 0.01
"""Passes that differ by less on a pixel have the same mean in probabilities and in log-odds."""
_BESIDE, _FRAMES_TO_DECIDE = 3, 5
"""Frames from a key in which probabilities are averaged, and over which log-odds take their place."""
_MAYBE = 0.05
"""Probability above which an object may be on a pixel."""


@dataclass(frozen=True)
class Arrival:
    """How well a pass fits another key, whose mask it did not use.

    Attributes:
        distance: frames from the pass's own key.
        similarity: J of the pass and the true mask, in [0, 1].
        visible: the object's area there over that on the pass's own key, at most 1. Where little of the
            object is visible, a good pass fits badly too, so such an arrival counts little.
    """

    distance: int
    similarity: float
    visible: float = 1.0


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


def fuse(passes: Sequence[PassAtFrame]) -> FloatArray:
    """One object's probability on one frame from all passes that reach it.

    The weight of a pass is its distance share (`distance_shares`), times its trust squared, times its
    confidence in the pixel. Its trust (`trust`) depends on how well it fits the other keys that it met, how
    much of the object its own key shows, how much of the object it finds beside the other passes, and its
    mean confidence in the object. Where a pass finds less than another, it may be because its own key does
    not show that part: there it has less weight (`weights_where_less`). Where all passes agree, their value
    is the result. Beside a key, the pass of that key has nearly all the weight. Farther away the mean is one
    of log-odds: where sure passes differ, the one with more weight decides, not a grey that none found.

    Args:
        passes: at least one.

    Returns:
        (h, w) in [0, 1].
    """
    return blend(passes, weights(passes))


def blend(passes: Sequence[PassAtFrame], of_passes: Sequence[float]) -> FloatArray:
    """`fuse` with the result of `weights`: (h, w) in [0, 1]."""
    if len(passes) == 1:
        return passes[0].probability
    probabilities = np.stack([one.probability for one in passes])  # (passes, h, w)
    least, most = probabilities.min(axis=0), probabilities.max(axis=0)
    weight = np.stack([confidence(one) for one in probabilities])
    lowered = weights_where_less(passes, of_passes)
    for plane, one, full, low in zip(weight, probabilities, of_passes, lowered, strict=True):
        plane *= np.float32(full) + np.float32(low - full) * (most - one)
    weight /= weight.sum(axis=0)
    fused: FloatArray = (weight * probabilities).sum(axis=0)
    decided = np.float32(_decided(passes))
    differ = most - least > _ALIKE
    if decided > 0.0 and differ.any():
        by_odds = _mean_of_odds(probabilities[:, differ], weight[:, differ])
        fused[differ] += decided * (by_odds - fused[differ])
    return np.clip(fused, least, most)


def _mean_of_odds(probabilities: FloatArray, weight: FloatArray) -> FloatArray:
    """The weighted mean of log-odds as a probability: (passes, n) and weights of sum 1 -> (n,)."""
    limited = np.clip(probabilities, _SUREST, 1 - _SUREST)
    # What the limit takes away is added again, so that a pass with all the weight is the result.
    rest = (weight * (probabilities - limited)).sum(axis=0)
    odds = (weight * np.log(limited / (1 - limited))).sum(axis=0)
    result: FloatArray = 1 / (1 + np.exp(-odds)) + rest
    return result


def weights_where_less(passes: Sequence[PassAtFrame], of_passes: Sequence[float]) -> list[float]:
    """The weight of each pass where it finds less of the object than another pass.

    A pass takes for background what its own key does not show. So it counts how much its key shows, beside
    the key that shows most. Near its own key no weight falls faster than the least trust does.
    """
    claimed = max(area_of(one.probability) for one in passes)
    shown = [_visible(one, claimed) for one in passes]
    shares = distance_shares([one.distance for one in passes])
    result = []
    for one, share, visible, weight in zip(passes, shares, shown, of_passes, strict=True):
        lowered = (visible / max(shown)) ** (_HIDDEN_POWER * _along(one.distance))
        least = share * _LEAST_TRUST ** (2 * _along(one.distance))
        result.append(min(weight, max(weight * lowered, least)))
    return result


def _decided(passes: Sequence[PassAtFrame]) -> float:
    """How far log-odds are averaged instead of probabilities, in [0, 1]: not at all beside a key."""
    nearest = min(abs(one.distance) for one in passes)
    return min(1.0, max(0, nearest - _BESIDE) / _FRAMES_TO_DECIDE)


def weights(passes: Sequence[PassAtFrame]) -> list[float]:
    """The weight of each pass on a frame: its distance share times its trust squared."""
    if len(passes) == 1:
        return [1.0]
    areas = [area_of(one.probability) for one in passes]
    held = max(min(area, one.key_area) for area, one in zip(areas, passes, strict=True))
    shares = distance_shares([one.distance for one in passes])
    return [share * trust(one, max(areas), held) ** 2 for one, share in zip(passes, shares, strict=True)]


def most_trusted(
    passes: Sequence[PassAtFrame], of_passes: Sequence[float]
) -> tuple[PassAtFrame, PassAtFrame]:
    """The two of several passes with the greatest `weights` on a frame."""
    first, second = sorted(range(len(passes)), key=lambda place: -of_passes[place])[:2]
    return passes[first], passes[second]


def trust(one: PassAtFrame, claimed: float, held: float = 0.0) -> float:
    """The trust in a pass, in [`_LEAST_TRUST`, 1].

    Args:
        claimed: the largest area in pixels that any pass finds on this frame. If a pass's own key shows only
            a part of it, the rest was background on that key. A small whole object far away does not count as
            hidden, because it is small on this frame too.
        held: the largest area that any pass finds here, each limited to the area on its own key, because a
            pass that grows may have leaked. A pass that finds less has probably lost a part of the object.
    """
    area = area_of(one.probability)
    visible = _visible(one, claimed)
    holds = min(1.0, max(area, 1.0) / max(held, 1.0))
    whole = mean_confidence(one.probability) ** 2
    earned = max(_LEAST_TRUST, visible * holds * whole * arrival_trust(abs(one.distance), one.arrivals))
    return float(earned ** _along(one.distance))


def _visible(one: PassAtFrame, claimed: float) -> float:
    """The share of an object of the area `claimed` that the pass's own key shows, at most 1."""
    return min(1.0, max(one.key_area, 1.0) / max(claimed, 1.0))


def _along(distance: int) -> float:
    """How far the trust in a pass may have fallen at a distance from its key, in [0, 1]."""
    return min(1.0, abs(distance) / _FRAMES_TO_LOSE_TRUST)


def arrival_trust(distance: int, arrivals: Sequence[Arrival]) -> float:
    """The trust in a pass at a distance from its key, by its arrivals, in [0, 1].

    It falls evenly from 1 on the pass's own key to what the pass arrives with at the first key that it meets,
    from there to the next, and stays after the last.
    """
    before, level = 0, 1.0
    for one in arrivals:
        reached = 1.0 - one.visible * (1.0 - one.similarity)
        if distance <= one.distance:
            return level + (reached - level) * (distance - before) / (one.distance - before)
        before, level = one.distance, reached
    return level


def distance_shares(distances: Sequence[int]) -> list[float]:
    """The weight of each pass by distance alone, 0 to 1.

    Between two keys the sides share by `distance_weight`. On one side, the pass of a farther key counts for
    less by how much farther its key is: little beside the nearer key, half as far behind it as the keys are
    apart.

    Args:
        distances: signed frames from the keys, positive for forward passes.
    """
    left = [distance for distance in distances if distance > 0]
    right = [-distance for distance in distances if distance < 0]
    weight = distance_weight(min(left), min(right)) if left and right else 1.0
    return [
        (1.0 - weight if right else 1.0) * _beside(min(left), distance)
        if distance > 0
        else weight * _beside(min(right), -distance)
        for distance in distances
    ]


def _beside(nearest: int, distance: int) -> float:
    """The share of a pass within its side: 1 for the nearest key, less for farther ones, little beside the
    nearest key."""
    return nearest / distance


def area_of(probability: FloatArray) -> float:
    """Area of the object in pixels."""
    return float((probability > np.float32(0.5)).sum())


def similarity(probability: FloatArray, truth: FloatArray) -> float:
    """J of a pass and the true mask, both (h, w) in [0, 1]; 1 where both are empty."""
    one, other = probability > np.float32(0.5), truth > np.float32(0.5)
    either = int((one | other).sum())
    return float((one & other).sum()) / either if either else 1.0


def distance_weight(from_left: int, from_right: int) -> float:
    """The weight of the backward pass by distance: 0 at the left key, 1 at the right, with slope 0 at
    both."""
    place = from_left / (from_left + from_right)
    return place * place * (3.0 - 2.0 * place)


def confidence(probability: FloatArray) -> FloatArray:
    """The confidence of a pass, (h, w): least at 0.5, 1 at 0 and 1."""
    sure: FloatArray = np.abs(np.float32(2.0) * probability - np.float32(1.0))
    return np.maximum(sure, np.float32(_LEAST_CONFIDENCE))


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
