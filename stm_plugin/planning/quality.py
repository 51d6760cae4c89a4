"""Where the next key would help most: a guess from what the network says of its own work.

Two signs cost nothing to have, as every frame is computed from both sides: how sure the network is where an
object may be, and how far the two passes agree on where it is. Neither knows the truth. A key mends the
frames around it, the nearer the more, and most where the other keys are far: so the doubt that a key would
take away is counted, not the doubt of its own frame.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stm_plugin.windows import FloatArray

_MOST_OPTIMISM = 5.0
_UNTOLD = 0.5
"""Of the mean doubt, on every frame: the network may be sure of what is wrong, anywhere."""
_LEAST_UNCERTAINTY = 0.05
"""Less is what an edge in motion blur gives: there is nothing to advise."""


@dataclass(frozen=True)
class Quality:
    """What the network says of one finished frame, of its least sure object.

    Attributes:
        address: of the fused frame; a judgement of another is out of date.
        confidence: mean sureness where the object may be, in [0, 1].
        agreement: of the two passes on where it is, in [0, 1]; None where there is only one.
    """

    frame: int
    address: str
    confidence: float
    agreement: float | None


@dataclass(frozen=True)
class Advice:
    """The frame where the next key would help most, and why: "1031, where ..."."""

    frame: int
    text: str


def agreement(forward: FloatArray, backward: FloatArray) -> float:
    """The share of the object, soft, that both passes see; 1 where neither sees any."""
    either = float(np.maximum(forward, backward).sum())
    return float(np.minimum(forward, backward).sum()) / either if either > 1.0 else 1.0


def advise(qualities: Mapping[int, Quality], keys: Collection[int]) -> Advice | None:
    """The frame whose key would take the most doubt away.

    Args:
        qualities: of finished frames that are up to date.
        keys: frames that have one.

    Returns:
        None where nothing is in doubt.
    """
    frames = np.array(sorted(set(qualities) - set(keys)), dtype=np.int64)
    uncertainties = _uncertainties([qualities[int(frame)] for frame in frames])
    if not frames.size or uncertainties.max() < _LEAST_UNCERTAINTY:
        return None
    others = np.array(sorted(keys) or [frames[0] - 1])
    way = np.abs(frames[:, None] - others).min(axis=1)  # to the nearest key there is
    uncertainties += np.float32(_UNTOLD) * uncertainties.mean()
    # Of each frame, by how much of its way it would come nearer to a key.
    mended = [
        float((uncertainties * np.clip(1.0 - np.abs(frames - key) / way, 0.0, 1.0)).sum()) for key in frames
    ]
    chosen = int(frames[int(np.argmax(mended))])
    quality = qualities[chosen]
    if quality.agreement is not None and quality.agreement < quality.confidence:
        share = f"{quality.agreement:.2f} of the object"
        return Advice(chosen, f"{chosen}, where the two passes agree on {share}")
    return Advice(chosen, f"{chosen}, where the network is {quality.confidence:.2f} of 1 sure")


def _uncertainties(qualities: Sequence[Quality]) -> FloatArray:
    """(N,): the part of the object that may be wrong.

    Where two passes disagree one of them is wrong, and the blend is half wrong. A single pass is surer of
    itself than it should be: by how much is learnt from the frames that two passes came by.
    """
    unsure = np.array([1.0 - one.confidence for one in qualities], np.float32)
    agreements = [np.nan if one.agreement is None else one.agreement for one in qualities]
    apart = 1.0 - np.array(agreements, np.float32)
    both = ~np.isnan(apart)
    optimism = 1.0
    if both.any():
        claimed = max(float(unsure[both].mean()), 1e-6)
        optimism = float(np.clip(apart[both].mean() / claimed, 1.0, _MOST_OPTIMISM))
    uncertainties: FloatArray = np.where(both, np.fmax(unsure, apart / 2), unsure * np.float32(optimism))
    return uncertainties
