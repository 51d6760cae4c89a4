"""The decoder's last convolution for inference: one map per object, the logit of its probability."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import Prediction

_SIDE = 3
_ROWS_AT_ONCE = 8
"""Rows of the picture that are rectified and multiplied while they are in the processor's cache."""


class ObjectLogit(nn.Module):
    """The logit of object against not-object, always in fp32.

    The softmax of two logits is the sigmoid of their difference, and everything behind the convolution is
    linear: so the difference is taken in the weights, and half of the work is left.

    Args:
        prediction: gives the logits of not-object and object.
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
        """Whether `forward` multiplies first and adds the nine neighbours then: faster on a CPU, whose
        library computes sixteen outputs or none."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) before the activation, any float type -> (N, 1, h, w) in fp32."""
        if not self.fold:
            return F.conv2d(F.relu(x).float(), self.weight, self.bias, padding=1)
        batch, channels, height, width = x.shape
        weight = self.weight[0].flatten(1).t().contiguous()  # (9, C)
        products = weight.new_empty(_SIDE * _SIDE, height * width)
        result = weight.new_empty(batch, height, width)
        for picture, target in zip(x.permute(0, 2, 3, 1), result, strict=True):
            for row in range(0, height, _ROWS_AT_ONCE):
                part = picture[row : row + _ROWS_AT_ONCE].reshape(-1, channels)
                rectified = part.relu().float()
                first = row * width
                torch.mm(weight, rectified.t(), out=products[:, first : first + len(part)])
            target.copy_(self.bias.expand_as(target))
            for index, product in enumerate(products.view(-1, height, width)):
                _add_shifted(target, product, index // _SIDE - 1, index % _SIDE - 1)
        return result.unsqueeze(1)


def _add_shifted(target: Tensor, source: Tensor, down: int, right: int) -> None:
    """Adds to each pixel of `target` (h, w) the one of `source` that lies so far down and right, if any."""
    height, width = target.shape
    top, bottom = max(0, -down), min(height, height - down)
    left, end = max(0, -right), min(width, width - right)
    if top < bottom and left < end:
        target[top:bottom, left:end] += source[top + down : bottom + down, left + right : end + right]
