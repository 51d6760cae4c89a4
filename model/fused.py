"""The network's blocks for inference on the CPU: every convolution does its addition and activation at once.

A separate activation reads and writes the whole feature map again; on a CPU that costs as much as the smaller
convolutions themselves. The results are those of the plain blocks (`model.trunks`, `model.network`): equal
bits, but for the convolutions that `model.winograd` computes in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from model.network import ResidualBlock
from model.trunks import InvertedResidual, SameConv2d
from model.winograd import WinogradConv2d, gains

Activation = Literal["relu", "relu6"]

_IN_PLACE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "relu6": lambda x: x.clamp_(0, 6),
}


def can_fuse() -> bool:
    """Whether this build of torch has oneDNN's fused convolutions."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def fuse_blocks(module: nn.Module) -> None:
    """Replaces, in place, the blocks of a network (BatchNorm folded, weights in their final type) that gain
    from it, and the remaining convolutions that `model.winograd` makes faster."""
    for name, child in module.named_children():
        if isinstance(child, Bottleneck):
            setattr(module, name, FusedBottleneck(child))
        elif isinstance(child, InvertedResidual):
            setattr(module, name, FusedInvertedResidual(child))
        elif isinstance(child, ResidualBlock):
            setattr(module, name, FusedResidualBlock(child))
        elif isinstance(child, nn.Conv2d) and _winograd(child):
            setattr(module, name, WinogradConv2d(child))
        else:
            fuse_blocks(child)


def _winograd(conv: nn.Conv2d) -> bool:
    return conv.weight.dtype == torch.float32 and gains(conv)


class FusedConv2d(nn.Module):
    """activation(conv(x) + add), in one pass of oneDNN; for inference.

    Args:
        conv: the convolution whose weights it takes over.
        activation: applied last.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation | None = None) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.geometry = (list(cast(tuple[int, int], conv.padding)), list(conv.stride), list(conv.dilation))
        self.groups = conv.groups
        self.extra = conv.extra if isinstance(conv, SameConv2d) else 0
        self.activation = activation

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), channels last; `add` has the result's shape."""
        if self.extra:
            x = F.pad(x, (0, self.extra, 0, self.extra))
        convolution = (self.weight, self.bias, *self.geometry, self.groups)
        operator = torch.ops.mkldnn._convolution_pointwise
        result: Tensor
        if add is None:
            name, scalars = {None: ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}[
                self.activation
            ]
            result = operator(x, *convolution, name, scalars, "")
        else:
            after = "relu" if self.activation == "relu" else None
            result = operator.binary(x, add, *convolution, "add", None, after, [], None)
            if self.activation == "relu6":
                result = result.clamp_(0, 6)
        return result


def fused(conv: nn.Conv2d, activation: Activation | None = None) -> nn.Module:
    """The faster of the two ways for a convolution; called with (x) or (x, add)."""
    if _winograd(conv):
        return WinogradConv2d(conv, None if activation is None else _IN_PLACE[activation])
    return FusedConv2d(conv, activation)


class FusedBottleneck(nn.Module):
    """ResNet's block, BatchNorm folded into its convolutions."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.downsample = None if block.downsample is None else fused(block.downsample[0])
        self.conv1 = fused(block.conv1, "relu")
        self.conv2 = fused(block.conv2, "relu")
        self.conv3 = fused(block.conv3, "relu")

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.conv3(self.conv2(self.conv1(x)), identity)
        return result


class FusedInvertedResidual(nn.Module):
    """EfficientNet-Lite's block.

    The uneven padding of a stride of 2 is made where there are few channels, before the expansion: its
    results there are set to zero, as the padding behind it would be.
    """

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.expand = None if block.expand is None else fused(block.expand, "relu6")
        self.depthwise = FusedConv2d(block.depthwise, "relu6")
        self.project = FusedConv2d(block.project)
        self.keeps_shape = block.keeps_shape
        self.extra = 0
        if self.expand is not None:
            self.extra, self.depthwise.extra = self.depthwise.extra, 0

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None:
            if self.extra:
                y = F.pad(y, (0, self.extra, 0, self.extra))
            y = self.expand(y)
            if self.extra:
                y[:, :, -self.extra :].zero_()
                y[:, :, :, -self.extra :].zero_()
        result: Tensor = self.project(self.depthwise(y), x if self.keeps_shape else None)
        return result


class FusedResidualBlock(nn.Module):
    """The decoder's block: x + conv(relu(conv(relu(x))))."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1 = fused(block.conv1, "relu")
        self.conv2 = fused(block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.conv1(F.relu(x)), x)
        return result
