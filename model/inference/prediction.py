"""The end of the decoder for inference: one logit per object, and the objects merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.stm import PROBABILITY_EPSILON, Prediction

_SIDE = 3
_ELEMENTS_AT_ONCE = 400_000
"""Features that are rectified and multiplied at once: they fit into the processor's cache."""
_ROWS_MERGED_AT_ONCE = 60
"""Rows of the picture that are merged at once, for the same reason."""


class ObjectLogit(nn.Module):
    """The logit of object against not-object, always in fp32.

    The softmax of two logits is the sigmoid of their difference, and the steps after the convolution are
    linear. So the difference is taken of the weights, which halves the work.

    Args:
        prediction: returns the logits of not-object and object.
    """

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        weight, bias = prediction.weight.detach().double(), prediction.bias
        assert bias is not None
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", (weight[1:] - weight[:1]).float().contiguous())  # (1, C, 3, 3)
        self.register_buffer("bias", (bias[1:] - bias[:1]).detach().float())
        self.fold = False
        """Whether `forward` multiplies first and then adds the nine neighbours: faster on a CPU, whose
        library always computes sixteen outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) before the activation, any float type -> (N, 1, h, w) in fp32."""
        if not self.fold:
            return F.conv2d(F.relu(x).float(), self.weight, self.bias, padding=1)
        batch, channels, height, width = x.shape
        weight = self.weight[0].flatten(1).t().contiguous()  # (9, C)
        products = weight.new_empty(_SIDE * _SIDE, height * width)
        result = weight.new_empty(batch, height, width)
        rows = max(_ELEMENTS_AT_ONCE // (width * channels), 1)
        for picture, target in zip(x.permute(0, 2, 3, 1), result, strict=True):
            for row in range(0, height, rows):
                part = picture[row : row + rows].reshape(-1, channels)
                rectified = part.relu().float()
                first = row * width
                torch.mm(weight, rectified.t(), out=products[:, first : first + len(part)])
            target.copy_(self.bias.expand_as(target))
            for index, product in enumerate(products.view(-1, height, width)):
                _add_shifted(target, product, index // _SIDE - 1, index % _SIDE - 1)
        return result.unsqueeze(1)


def _add_shifted(target: Tensor, source: Tensor, down: int, right: int) -> None:
    """Adds to each pixel of `target` (h, w) the pixel of `source` at an offset down and right, if it
    exists."""
    height, width = target.shape
    top, bottom = max(0, -down), min(height, height - down)
    left, end = max(0, -right), min(width, width - right)
    if top < bottom and left < end:
        target[top:bottom, left:end] += source[top + down : bottom + down, left + right : end + right]


def merge_objects(alone: Tensor) -> Tensor:
    """Merges objects as `model.network.stm.soft_aggregate`, up to rounding, with fewer passes over the
    picture.

    Args:
        alone: (K, H, W) fp32, each object's own probability in [0, 1].

    Returns:
        (K + 1, H, W): background first, sums to 1 over dimension 0.
    """
    objects, height, width = alone.shape
    result = alone.new_empty(objects + 1, height, width)
    rows = _ROWS_MERGED_AT_ONCE if alone.device.type == "cpu" else height
    for row in range(0, height, rows):
        own, odds = (x[:, row : row + rows] for x in (alone, result))
        background = torch.sub(1, own[0], out=odds[0])
        for other in own[1:]:
            background.mul_(1 - other)
        odds[1:] = own
        odds.clamp_(PROBABILITY_EPSILON, 1 - PROBABILITY_EPSILON)
        odds.div_(1 - odds)
        total = odds[0] + odds[1]
        for other in odds[2:]:
            total += other
        odds.div_(total)
    return result
