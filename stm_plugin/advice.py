"""Where the next key would help most: a guess from what the network says of its own work.

Two signs cost nothing to have, as every frame is computed from both sides: how sure the network is where an
object may be, and how far the two passes agree on where it is. Neither knows the truth. A key mends its
neighbours too, so the doubt of a frame counts with that of the frames around it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from stm_plugin.fusion import confidence
from stm_plugin.plate import FloatArray

_MAYBE = 0.05
"""Probability above which an object may be on a pixel."""
_REACH = 4
"""Frames on either side whose doubt counts with that of a frame."""
_LEAST_DOUBT = 0.05
"""Less is what an edge in motion blur gives: there is nothing to advise."""


@dataclass(frozen=True)
class Quality:
    """What the network says of one finished frame, of its least sure object.

    Attributes:
        address: of the fused frame; a judgement of another is out of date.
        confidence: mean sureness where the object may be, in [0, 1].
        agreement: of the two passes on where it is, in [0, 1]; 1 where there is only one.
    """

    frame: int
    address: str
    confidence: float
    agreement: float

    @property
    def doubt(self) -> float:
        """In [0, 1]."""
        return 1.0 - min(self.confidence, self.agreement)


@dataclass(frozen=True)
class Advice:
    """The frame where the next key would help most, and why: "1031, where ..."."""

    frame: int
    text: str


def sureness(probability: FloatArray) -> float:
    """Mean confidence where an object may be; 1 where it is nowhere."""
    maybe = probability[probability > _MAYBE]
    return float(confidence(maybe).mean()) if maybe.size else 1.0


def agreement(forward: FloatArray, backward: FloatArray) -> float:
    """The share of the object, soft, that both passes see; 1 where neither sees any."""
    either = float(np.maximum(forward, backward).sum())
    return float(np.minimum(forward, backward).sum()) / either if either > 1.0 else 1.0


def advise(qualities: Mapping[int, Quality], keys: Collection[int]) -> Advice | None:
    """The frame that stands for the most doubt, itself and around it.

    Args:
        qualities: of finished frames that are up to date.
        keys: frames that need no key.

    Returns:
        None where nothing is in doubt.
    """
    doubts = {frame: one.doubt for frame, one in qualities.items() if frame not in keys}
    if not doubts:
        return None
    around = {
        frame: doubt + _around(doubts, frame) for frame, doubt in doubts.items() if doubt >= _LEAST_DOUBT
    }
    if not around:
        return None
    frame = max(around, key=lambda one: (around[one], -one))
    quality = qualities[frame]
    if quality.agreement < quality.confidence:
        return Advice(frame, f"{frame}, where the two passes agree least ({quality.agreement:.2f} of 1)")
    return Advice(frame, f"{frame}, where the matte is least sure ({quality.confidence:.2f} of 1)")


def _around(doubts: Mapping[int, float], frame: int) -> float:
    """Mean doubt of the neighbours; a frame that is missing or a key has none."""
    near = [doubts.get(frame + step, 0.0) for step in range(-_REACH, _REACH + 1) if step]
    return sum(near) / len(near)
