"""The blend of the two passes of a span: by distance from the keys, and by how sure each pass is of a pixel
and of the object as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stm_plugin.windows import FloatArray

VERSION = 2
"""Enters the address of every fused frame; raise it when the same passes give another blend."""

_LEAST_CONFIDENCE = 0.2
"""Confidence of a probability of 0.5. Not 0: beside a key its soft edge must outweigh the other pass."""
_TRUST_POWER = 4
"""How much more a pass counts that is surer of the object as a whole (`benchmarks/blends.py`): one that loses
the object is sure of single pixels still, but not of the object."""
_MAYBE = 0.05
"""Probability above which an object may be on a pixel."""


def fuse(forward: FloatArray, backward: FloatArray, from_left: int, from_right: int) -> FloatArray:
    """One object's probability from both passes of its span.

    Each pass weighs with its distance weight (1 at its own key, 0 at the other, level at both ends, so that
    nothing pops at a key) times its confidence, which counts for less in the pass that is less sure of the
    object as a whole, and is never below a fifth of the other's. Where the passes agree the result is what
    they agree on; where both are equally sure of different things it goes over gradually, at most 1.5 /
    (span length) a frame.

    Args:
        forward, backward: (h, w) in [0, 1].
        from_left, from_right: frames to the key on the left and on the right, both at least 1.

    Returns:
        (h, w) in [0, 1].
    """
    weight = distance_weight(from_left, from_right)
    surer = (mean_confidence(backward) / mean_confidence(forward)) ** _TRUST_POWER
    left = np.float32(1.0 - weight) * confidence(forward, min(1.0, 1.0 / surer))
    right = np.float32(weight) * confidence(backward, min(1.0, surer))
    share = right / (left + right)
    fused: FloatArray = forward + share * (backward - forward)
    return fused


def distance_weight(from_left: int, from_right: int) -> float:
    """The weight of the backward pass by distance: 0 at the left key, 1 at the right, level at both."""
    place = from_left / (from_left + from_right)
    return place * place * (3.0 - 2.0 * place)


def confidence(probability: FloatArray, trust: float = 1.0) -> FloatArray:
    """How sure a pass is, (h, w): least at 0.5, `trust` at 0 and 1."""
    sure: FloatArray = np.abs(np.float32(2.0 * trust) * probability - np.float32(trust))
    return np.maximum(sure, np.float32(_LEAST_CONFIDENCE))


def mean_confidence(probability: FloatArray) -> float:
    """Mean confidence where an object may be; 1 where it is nowhere."""
    maybe = probability[probability > _MAYBE]
    return float(confidence(maybe).mean()) if maybe.size else 1.0


def share_pixels(masks: Mapping[str, FloatArray], fused: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Objects of one frame together: no pixel is given out more than once.

    The masks of a key are law and stay as they are (where they overlap, too). The other objects share what
    they leave, in proportion.

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
