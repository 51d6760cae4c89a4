"""The inputs of the edge refiner for a frame, all from stored results.

The frame before is taken from the forward pass that has most part in this frame, the frame after from such a
backward pass. A pass depends on all frames between its key and its frame. So neither adds an ingredient to
those of the frame's own probability, and addresses and dirty ranges do not change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from model.inference.colour_likelihood import colours_of
from model.network.edges import softness_of
from stm_plugin.finishing.carried import HARD, REACH, CarriedKey, Motion, carry, motion_between
from stm_plugin.finishing.learned import EdgeEvidence, larger_than_usual
from stm_plugin.planning.plan import position_in
from stm_plugin.planning.values import Direction
from stm_plugin.propagation.results import FrameResult, Results
from stm_plugin.windows import FloatArray


def softness_of_keys(softness: Sequence[float], shares: Sequence[float]) -> float:
    """The softness of an object on a frame by that of its keys (`model.network.edges.softness_of`).

    It is the mean over the passes that reach the frame, so it follows an object whose motion blur changes.
    Something in front of an object, which hides a part of it, has soft edges of its own: a key on which much
    is hidden counts little. A mask that is drawn hard says nothing where another is soft.

    Args:
        softness: that of each pass's key.
        shares: the weight of each pass on the frame (`FrameResult.shares`).

    Returns:
        0 without passes.
    """
    soft = [(one, share) for one, share in zip(softness, shares, strict=True) if one > HARD]
    weight = sum(share for _, share in soft)
    if weight <= 0.0:
        return max(softness, default=0.0)
    return sum(one * share for one, share in soft) / weight


@dataclass(frozen=True, eq=False)
class EdgeEvidenceSource:
    """Gathers the evidence for the frames of one plan. Thread-safe.

    Attributes:
        picture: gives the working picture (3, h, w) of a frame.
    """

    results: Results
    picture: Callable[[int], FloatArray]
    _softness: dict[tuple[int, str], float] = field(default_factory=dict)
    _colours: dict[tuple[int, str], FloatArray] = field(default_factory=dict)
    _motions: dict[tuple[int, int], Motion] = field(default_factory=dict)

    def of(self, result: FrameResult, name: str) -> EdgeEvidence:
        """The evidence for one of the objects that `result` has a probability of."""
        probability = result.probabilities[name]
        source = self.results.plan.by_frame[result.frame].sources[name]
        before = self._beside(result, name, Direction.FORWARD)
        after = self._beside(result, name, Direction.BACKWARD)
        keys = [key for key in (source.forward, source.backward) if key is not None]
        return EdgeEvidence(
            probability=probability,
            before=before,
            after=after,
            others=self._others(result, name),
            key_softness=softness_of_keys(
                [self._key_softness(one.key, name) for one in source.candidates], result.shares.get(name, ())
            ),
            carried=self._carried(result.frame, name, keys),
            key_colours=tuple(self._key_colours(key, name) for key in keys),
        )

    def _carried(self, frame: int, name: str, keys: list[int]) -> tuple[CarriedKey, ...]:
        """The object's masks of the keys near a frame, the nearest one last."""
        frames = self.results.facts.frames
        place = bisect_left(frames, frame)
        away = {key: abs(bisect_left(frames, key) - place) for key in keys}
        near = sorted((distance, key) for key, distance in away.items() if 0 < distance <= REACH)
        return tuple(
            carry(self._key_mask(key, name), self._motion(key, frame), away, self._key_softness(key, name))
            for away, key in reversed(near)
        )

    def _motion(self, key: int, frame: int) -> Motion:
        """From a key to a frame beside it; held for the other objects of the frame."""
        found = self._motions.get((key, frame))
        if found is None:
            found = motion_between(self.picture(key), self.picture(frame))
            self._motions.clear()
            self._motions[key, frame] = found
        return found

    def _beside(self, result: FrameResult, name: str, direction: Direction) -> FloatArray:
        """(h, w): the object on the frame that the passes in a direction reached just before this one.

        As far as they have little part in this frame, it is the probability of this frame instead: what they
        found beside it is not what the matte is made of.
        """
        probability = result.probabilities[name]
        candidates = zip(
            self.results.plan.by_frame[result.frame].sources[name].candidates,
            result.shares[name],
            strict=True,
        )
        shares = {one.name: share for one, share in candidates if one.direction is direction}
        if not shares:
            return probability
        most = max(shares, key=lambda one: shares[one])
        (passed,) = (one for one in self.results.plan.passes if one.name == most)
        position = position_in(passed, result.frame)
        if position == 0:
            beside = self._key_mask(passed.key, name)
        else:
            beside = self.results.pass_result(passed, position - 1)[passed.objects.index(name)]
        part = np.float32(min(1.0, 2.0 * sum(shares.values())))
        mixed: FloatArray = probability + part * (beside - probability)
        return mixed

    def _others(self, result: FrameResult, name: str) -> FloatArray:
        """(h, w): all other objects of the frame together."""
        total = np.zeros_like(result.probabilities[name])
        for other, probability in result.probabilities.items():
            if other != name:
                total += probability
        for other in result.masks:
            total += self._key_mask(result.frame, other)
        return np.minimum(total, np.float32(1))

    def _key_mask(self, key: int, name: str) -> FloatArray:
        mask: FloatArray = self.results.key_probabilities(key, (name,))[0]
        return mask

    def _key_colours(self, key: int, name: str) -> FloatArray:
        if (key, name) not in self._colours:
            picture, mask = self.picture(key), self._key_mask(key, name)
            self._colours[key, name] = colours_of(picture, mask, larger_than_usual(mask))
        return self._colours[key, name]

    def _key_softness(self, key: int, name: str) -> float:
        if (key, name) not in self._softness:
            self._softness[key, name] = softness_of(torch.from_numpy(self._key_mask(key, name)))
        return self._softness[key, name]
