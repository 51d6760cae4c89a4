"""Where the next key would help most: a guess from what the network says of its own work.

Two signs cost nothing to have: how sure the network is where an object may be, and how far the passes of a
frame agree on where it is. Neither knows the truth. A key mends the frames around it, the nearer the more,
and most where the other keys are far: so the uncertainty that a key would take away from many frames is
counted, not that of its own frame. A key teaches what it shows: where the object is mostly hidden it mends
little, so it counts by how much of the object is seen there, beside the frames that it would mend.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stm_plugin.windows import FloatArray

_MOST_OPTIMISM = 5.0
_UNTOLD = 0.5
"""Of the mean doubt, on every frame: the network may be sure of what is wrong, anywhere."""
_SHOWS_LITTLE = 0.25
"""Of the object's area on the key that shows most of it: a mask of less is said to be used little."""
_ADAPTING_HELPS = 0.12
"""Mean uncertainty from which adapting to the keys is offered: the network misreads the object as such."""
_LEAST_UNCERTAINTY = 0.05
"""Less is what an edge in motion blur gives: there is nothing to advise."""


_HELPED = 0.25
"""A frame is helped that comes nearer to a key by this share of its way."""


@dataclass(frozen=True)
class Quality:
    """What the network says of one finished frame, of its least sure object.

    Attributes:
        address: of the fused frame; a judgement of another is out of date.
        confidence: mean sureness where the object may be, in [0, 1].
        agreement: of the two passes that weigh most on where it is, in [0, 1]; None where there is only one.
        area: pixels of all objects at working size; None in records of before this was kept.
    """

    frame: int
    address: str
    confidence: float
    agreement: float | None
    area: float | None = None


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
    nearer = np.clip(1.0 - np.abs(frames - frames[:, None]) / way, 0.0, 1.0)  # (keys, frames)
    mended = (nearer * uncertainties).sum(axis=1) * _shown([qualities[int(one)] for one in frames], nearer)
    place = int(np.argmax(mended))
    chosen = int(frames[place])
    quality = qualities[chosen]
    if quality.agreement is not None and quality.agreement < quality.confidence:
        reason = f"where the two passes agree on {quality.agreement:.2f} of the object"
    else:
        reason = f"where the network is {quality.confidence:.2f} of 1 sure"
    also_helped = int(((nearer[place] > _HELPED) & (uncertainties >= _LEAST_UNCERTAINTY)).sum()) - 1
    also = f"; it would help {also_helped} frames around it that are uncertain too" if also_helped > 1 else ""
    return Advice(chosen, f"{chosen}, {reason}{also}")


def hidden_keys(areas: Mapping[int, Mapping[str, float]]) -> list[tuple[int, str, float]]:
    """Keys that show little of an object beside the key that shows most of it: frame, object, share.

    Args:
        areas: of the masks that are not empty, by frame and object.
    """
    most: dict[str, float] = {}
    for by_object in areas.values():
        for name, area in by_object.items():
            most[name] = max(most.get(name, 0.0), area)
    return [
        (frame, name, area / most[name])
        for frame, by_object in sorted(areas.items())
        for name, area in by_object.items()
        if area < _SHOWS_LITTLE * most[name]
    ]


def adapting_may_help(qualities: Sequence[Quality]) -> bool:
    """Whether the network is so unsure of most frames that adapting it to the keys may help."""
    return bool(qualities) and float(np.median(_uncertainties(qualities))) >= _ADAPTING_HELPS


def _shown(qualities: Sequence[Quality], nearer: FloatArray) -> FloatArray:
    """(N,): what each frame shows of the object, beside the frames that a key there would mend; at most 1."""
    areas = np.array([np.nan if one.area is None else one.area for one in qualities], np.float64)
    if np.isnan(areas).any():
        return np.ones(len(areas), np.float32)
    around = (nearer * areas).sum(axis=1) / np.maximum(nearer.sum(axis=1), 1e-6)
    shown: FloatArray = np.clip(areas / np.maximum(around, 1.0), 0.0, 1.0).astype(np.float32)
    return shown


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
