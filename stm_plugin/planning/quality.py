"""Where the next key would help most: an estimate from confidence and agreement of passes.

Both cost nothing: the network's confidence where an object may be, and how far the passes of a frame agree.
Neither is the truth. A key improves the frames around it: nearer frames more, and most where the other keys
are far. So a frame is rated by the uncertainty that its key would remove from all frames, not by its own
uncertainty alone. A key on which the object is mostly hidden improves little, so the rating is multiplied by
how much of the object is visible there, relative to the frames that the key would improve.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stm_plugin.windows import FloatArray

_MOST_OPTIMISM = 5.0
_UNTOLD = 0.5
"""Share of the mean uncertainty that every frame gets: the network may be confident and wrong anywhere."""
_SHOWS_LITTLE = 0.25
"""Of the object's largest area on a key: a key with a smaller area is reported as little used."""
_SMALL = 60.0
"""Working pixels: smaller objects are found better when the picture is enlarged
(docs/experiments/working-size.md)."""
_ADAPTING_HELPS = (0.05, 0.25)
"""Typical uncertainty at which adapting to the keys is advised: below, there is little to gain; above, the
object is lost, and a further key comes first (docs/experiments/keys.md)."""
_LEAST_UNCERTAINTY = 0.05
"""Motion blur at an edge causes this much: below it nothing is advised."""


_HELPED = 0.25
"""A key helps a frame if it shortens the frame's distance to its nearest key by this share."""


@dataclass(frozen=True)
class Quality:
    """Confidence and agreement of one finished frame, of its least certain object.

    Attributes:
        address: of the fused frame; a record with another address is out of date.
        confidence: mean confidence where the object may be, in [0, 1].
        agreement: of the two passes with the greatest weights, in [0, 1]; None where there is only one.
        area: pixels of all objects at working size; None in older records.
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


def agreement(one: FloatArray, other: FloatArray, counts: float = 1.0) -> float:
    """The soft share of the object that both passes find; 1 where neither finds any.

    Args:
        one, other: (h, w) in [0, 1].
        counts: how far a difference counts, in [0, 1] (`fusion.known_alike`).
    """
    either = float(np.maximum(one, other).sum())
    found = float(np.minimum(one, other).sum()) / either if either > 1.0 else 1.0
    return 1.0 - counts * (1.0 - found)


def advise(qualities: Mapping[int, Quality], keys: Collection[int]) -> Advice | None:
    """The frame whose key would remove the most uncertainty.

    Args:
        qualities: of finished frames that are up to date.
        keys: frames that have a key.

    Returns:
        None where nothing is uncertain.
    """
    frames = np.array(sorted(set(qualities) - set(keys)), dtype=np.int64)
    uncertainties = _uncertainties([qualities[int(frame)] for frame in frames])
    if not frames.size or uncertainties.max() < _LEAST_UNCERTAINTY:
        return None
    others = np.array(sorted(keys) or [frames[0] - 1])
    way = np.abs(frames[:, None] - others).min(axis=1)  # distance to the nearest key
    uncertainties += np.float32(_UNTOLD) * uncertainties.mean()
    # By which share the distance of each frame to its nearest key would shrink.
    nearer = np.clip(1.0 - np.abs(frames - frames[:, None]) / way, 0.0, 1.0)  # (keys, frames)
    mended = (nearer * uncertainties).sum(axis=1) * _shown([qualities[int(one)] for one in frames], nearer)
    place = int(np.argmax(mended))
    chosen = int(frames[place])
    quality = qualities[chosen]
    if quality.agreement is not None and quality.agreement < quality.confidence:
        reason = f"where the two passes agree on {quality.agreement:.2f} of the object"
    else:
        reason = f"where the confidence is {quality.confidence:.2f}"
    also_helped = int(((nearer[place] > _HELPED) & (uncertainties >= _LEAST_UNCERTAINTY)).sum()) - 1
    also = f"; it also helps {also_helped} uncertain frames around it" if also_helped > 1 else ""
    return Advice(chosen, f"{chosen}, {reason}{also}")


def no_advice(advice: Advice | None, finished: bool) -> str:
    """The sentence for people that no further key is expected to help; empty unless that is so.

    Args:
        advice: of `advise`.
        finished: whether some frames are finished and none is stale or missing.
    """
    return "No further key is expected to help." if finished and advice is None else ""


def hidden_keys(areas: Mapping[int, Mapping[str, float]]) -> list[tuple[int, str, float]]:
    """Keys that show little of an object compared with the key that shows most of it: frame, object, share.

    Args:
        areas: of the masks that are not empty, by frame and object.
    """
    most = _largest(areas)
    return [
        (frame, name, area / most[name])
        for frame, by_object in sorted(areas.items())
        for name, area in by_object.items()
        if area < _SHOWS_LITTLE * most[name]
    ]


def small_objects(areas: Mapping[int, Mapping[str, float]], plate_pixels: float) -> list[tuple[str, float]]:
    """Objects that are small for the network on every key: the object, and its size in working pixels.

    The size is the side of a square with the area of the largest mask.

    Args:
        areas: of the masks that are not empty, by frame and object, in plate pixels.
        plate_pixels: in a working pixel.
    """
    sides = [(name, (area / plate_pixels) ** 0.5) for name, area in _largest(areas).items()]
    return [(name, side) for name, side in sides if side < _SMALL]


def _largest(areas: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The largest area of each object."""
    most: dict[str, float] = {}
    for by_object in areas.values():
        for name, area in by_object.items():
            most[name] = max(most.get(name, 0.0), area)
    return most


def adapting_may_help(qualities: Sequence[Quality]) -> bool:
    """Whether the network is uncertain on most frames but has not lost the object, so adapting may help."""
    least, most = _ADAPTING_HELPS
    return bool(qualities) and least <= typical_uncertainty(qualities) <= most


def typical_uncertainty(qualities: Sequence[Quality]) -> float:
    """The median uncertainty of frames, in [0, 1]; there must be some."""
    return float(np.median(_uncertainties(qualities)))


def _shown(qualities: Sequence[Quality], nearer: FloatArray) -> FloatArray:
    """(N,): the visible share of the object, relative to frames that a key there would improve; at most 1."""
    areas = np.array([np.nan if one.area is None else one.area for one in qualities], np.float64)
    if np.isnan(areas).any():
        return np.ones(len(areas), np.float32)
    around = (nearer * areas).sum(axis=1) / np.maximum(nearer.sum(axis=1), 1e-6)
    shown: FloatArray = np.clip(areas / np.maximum(around, 1.0), 0.0, 1.0).astype(np.float32)
    return shown


def _uncertainties(qualities: Sequence[Quality]) -> FloatArray:
    """(N,): the part of the object that may be wrong.

    Where two passes disagree, one of them is wrong, and the blend is half wrong. The confidence of a single
    pass is too high; by how much is measured on the frames that two passes reach.
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
