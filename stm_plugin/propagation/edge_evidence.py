"""The inputs of the edge refiner for a frame, all from stored results.

The frame before is taken from the forward pass, the frame after from the backward pass. A pass depends on all
frames between its key and its frame. So neither adds an ingredient to those of the frame's own probability,
and addresses and dirty ranges do not change.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from model.network.edges import softness_of
from stm_plugin.finishing.carried import REACH, CarriedKey, Motion, carry, motion_between
from stm_plugin.finishing.learned import EdgeEvidence
from stm_plugin.planning.plan import position_in
from stm_plugin.planning.values import Direction
from stm_plugin.propagation.results import FrameResult, Results
from stm_plugin.windows import FloatArray


@dataclass(frozen=True, eq=False)
class EdgeEvidenceSource:
    """Gathers the evidence for the frames of one plan. Thread-safe.

    Attributes:
        picture: gives the working picture (3, h, w) of a frame.
    """

    results: Results
    picture: Callable[[int], FloatArray]
    _softness: dict[tuple[int, str], float] = field(default_factory=dict)
    _motions: dict[tuple[int, int], Motion] = field(default_factory=dict)

    def of(self, result: FrameResult, name: str) -> EdgeEvidence:
        """The evidence for one of the objects that `result` has a probability of."""
        probability = result.probabilities[name]
        source = self.results.plan.by_frame[result.frame].sources[name]
        before = self._beside(source.forward, Direction.FORWARD, result.frame, name)
        after = self._beside(source.backward, Direction.BACKWARD, result.frame, name)
        keys = [key for key in (source.forward, source.backward) if key is not None]
        return EdgeEvidence(
            probability=probability,
            before=probability if before is None else before,
            after=probability if after is None else after,
            others=self._others(result, name),
            key_softness=max((self._key_softness(key, name) for key in keys), default=0.0),
            carried=self._carried(result.frame, name, keys),
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

    def _beside(self, key: int | None, direction: Direction, frame: int, name: str) -> FloatArray | None:
        """(h, w): the object on the frame that the pass from a key reached just before this one."""
        if key is None:
            return None
        (passed,) = (one for one in self.results.plan.passes if one.name == (key, direction))
        position = position_in(passed, frame)
        if position == 0:
            return self._key_mask(key, name)
        beside: FloatArray = self.results.pass_result(passed, position - 1)[passed.objects.index(name)]
        return beside

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

    def _key_softness(self, key: int, name: str) -> float:
        if (key, name) not in self._softness:
            self._softness[key, name] = softness_of(torch.from_numpy(self._key_mask(key, name)))
        return self._softness[key, name]
