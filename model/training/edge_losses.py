"""The loss of the edge refiner: alpha in the band, its slopes, its change from frame to frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MARGIN = 8
"""Pixels at the border of a crop that do not count: their surroundings are missing."""
_BAND = 6
"""Pixels around soft ones, and around mistakes, that have full weight."""
_ELSEWHERE = 0.15
"""The weight of other pixels."""
_HARM = 10.0
"""The weight of pixels that became worse than the network had them, where the truth is 0 or 1."""


def edge_loss(
    alpha: Tensor, soft: Tensor, truth: Tensor, coarse: Tensor, known: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the refiner.

    Args:
        alpha, soft: (B, 2, h, w): its results for pairs of frames, `soft` as a logit.
        truth: (B, 2, h, w).
        coarse: (B, 2, h, w): the probabilities of its input.
        known: (B, 2, h, w): 1 where the truth is known, else 0.

    Returns:
        The loss, and its parts by name.
    """
    is_soft = soft_pixels(truth)
    weight = torch.maximum(is_soft, ((coarse - truth).abs() > 0.2).float())
    weight = _inside(known * (_ELSEWHERE + (1 - _ELSEWHERE) * _widened(weight, _BAND)))
    cut = alpha.clamp(0, 1)
    kept = cut + 0.02 * (alpha - cut)  # values beyond 0 and 1 get little gradient
    parts = alpha_parts(_inside(kept), _inside(truth), weight)
    parts["soft"] = 0.1 * F.binary_cross_entropy_with_logits(_inside(soft), _inside(is_soft), _inside(known))
    parts["harm"] = _HARM * harm(
        _inside(kept), _inside(truth), _inside(coarse), _inside(known * (1 - is_soft))
    )
    return sum(parts.values(), start=torch.zeros(())), {
        name: float(one.detach()) for name, one in parts.items()
    } | {"mse": float((_inside(cut) - _inside(truth)).square().mean().detach() * 1000)}


def alpha_parts(alpha: Tensor, truth: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """L1, squares, slopes at two sizes, and the change between the frames of a pair; (B, 2, h, w) each."""
    error = alpha - truth
    total = weight.sum()
    parts = {
        "l1": 0.5 * (weight * error.abs()).sum() / total,
        "l2": 4.0 * (weight * error.square()).sum() / total,
        "change": 0.5 * (weight.amax(1) * (error[:, 1] - error[:, 0]).abs()).sum() / weight.amax(1).sum(),
    }
    slopes = torch.zeros(())
    for _ in range(2):
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        slopes = slopes + (weight[..., 1:] * (across.abs() + 4 * across.square())).sum() / total
        slopes = slopes + (weight[..., 1:, :] * (down.abs() + 4 * down.square())).sum() / total
        error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        total = weight.sum()
    return {**parts, "slopes": 0.25 * slopes}


def harm(alpha: Tensor, truth: Tensor, coarse: Tensor, hard: Tensor) -> Tensor:
    """The mean of how much worse alpha is than the probability, over pixels whose truth is 0 or 1."""
    worse = ((alpha - truth).abs() - (coarse - truth).abs()).clamp_min(0)
    return (hard * worse).mean()


def soft_pixels(truth: Tensor) -> Tensor:
    """1 at pixels that are neither 0 nor 1, and beside them."""
    soft = ((truth > 0.02) & (truth < 0.98)).float()
    return _widened(soft, 1)


def _widened(mask: Tensor, reach: int) -> Tensor:
    """A mask (B, 2, h, w) of 0 and 1, wider by some pixels."""
    return F.max_pool2d(mask, 2 * reach + 1, 1, reach)


def _inside(values: Tensor) -> Tensor:
    return values[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
