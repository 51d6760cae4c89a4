"""The network's blocks for inference on the CPU: each convolution includes its addition and activation.

A separate activation reads and writes the whole feature map again; on a CPU that costs as much as the smaller
convolutions themselves. An input of several convolutions is prepared once. The results equal those of the
plain blocks (`model.network.trunks`, `model.network.stm`) up to rounding: sums have another order.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference.prediction import ObjectLogit
from model.inference.winograd import WinogradConv2d, gains
from model.network.stm import (
    KeyValue,
    MemoryEncoder,
    Normalise,
    QueryEncoder,
    Refine,
    ResidualBlock,
    other_masks,
    padding_to_stride,
)
from model.network.trunks import (
    EfficientNetLite0Trunk,
    InvertedResidual,
    ResNet50Trunk,
    SameConv2d,
    Trunk,
    TrunkFeatures,
)

if TYPE_CHECKING:
    from torchvision.models.resnet import Bottleneck

Activation = Literal["relu", "relu6"]


_packing = threading.Lock()
"""Held while weights are converted to the library's layout, as engines use several threads."""


def can_fuse(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch has oneDNN's fused convolutions for this type on this processor."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    needed = "_convolution_pointwise", "_reorder_convolution_weight"
    if not (available and all(hasattr(torch.ops.mkldnn, name) for name in needed)):
        return False
    takes = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype not in takes or bool(takes[dtype]())


def fuse_blocks(module: nn.Module) -> None:
    """Replaces blocks of a network by faster ones, in place.

    BatchNorm must be folded, and weights must have their final type. Remaining convolutions are replaced
    where `model.inference.winograd` is faster.
    """
    for name, child in module.named_children():
        fused_child: nn.Module | None = None
        if _is_bottleneck(child):
            # After the first block of a stage, no other module needs the input.
            owns_input = isinstance(module, nn.Sequential) and child is not module[0]
            fused_child = FusedBottleneck(child, owns_input=owns_input)
        elif isinstance(child, InvertedResidual):
            fused_child = FusedInvertedResidual(child)
        elif isinstance(child, ResidualBlock):
            fused_child = FusedResidualBlock(child)
        elif isinstance(child, Refine):
            fused_child = FusedRefine(child)
        elif isinstance(child, KeyValue):
            fused_child = FusedKeyValue(child)
        elif isinstance(child, QueryEncoder):
            fused_child = FusedQueryEncoder(child)
        elif isinstance(child, MemoryEncoder):
            fused_child = FusedMemoryEncoder(child)
        elif isinstance(child, ObjectLogit):
            child.fold = True
        elif isinstance(child, nn.Conv2d) and _winograd(child):
            fused_child = WinogradConv2d(child)
        else:
            fuse_blocks(child)
        if fused_child is not None:
            setattr(module, name, fused_child)


def _winograd(conv: nn.Conv2d) -> bool:
    return conv.weight.dtype == torch.float32 and gains(conv)


class FusedConv2d(nn.Module):
    """activation(conv(x) + add), in one pass of oneDNN; for inference.

    The uneven padding of a stride of 2 becomes an even one: the kernel gets a first row and column of zeros,
    which costs less than a padded copy of the input. Weights are converted to the library's layout once, with
    the first input: for `stm-r50` in bfloat16 the conversion took a twentieth of every frame.

    Args:
        conv: the convolution whose weights it takes over.
        activation: applied last.
        pads: whether it pads its input; otherwise the input is padded already.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation | None = None, *, pads: bool = True) -> None:
        super().__init__()
        weight = conv.weight.detach()
        self.bias = conv.bias
        self.padding = list(cast(tuple[int, int], conv.padding))
        if not pads:
            self.padding = [0, 0]
        elif isinstance(conv, SameConv2d) and conv.extra:
            weight = F.pad(weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)
            self.padding = [side + 1 for side in self.padding]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.groups = conv.groups
        self.activation = activation
        self._weight, self._packed = weight, False

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W'), channels last; `add` has the result's shape."""
        convolution = self._convolution(x)
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

    def add_to(self, target: Tensor, x: Tensor) -> Tensor:
        """As `forward`, with the result in the memory of `add`, which saves reading another map; not with
        relu6."""
        assert self.activation != "relu6"
        operator = torch.ops.mkldnn._convolution_pointwise_.binary
        result: Tensor = operator(
            target, x, *self._convolution(x), "add", 1.0, self.activation or None, [], None
        )
        return result

    def pack(self, shape: Sequence[int]) -> None:
        """Convert the weights for inputs of a shape, unless they are converted. Where shapes differ, the same
        one must come first every time: the layout depends on it, and with it the last bits of results."""
        if not self._packed:
            with _packing:
                if not self._packed:
                    reorder = torch.ops.mkldnn._reorder_convolution_weight
                    self._weight = reorder(self._weight, *self._geometry, list(shape))
                    self._packed = True

    @property
    def _geometry(self) -> tuple[object, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def _convolution(self, x: Tensor) -> tuple[object, ...]:
        self.pack(x.shape)
        return self._weight, self.bias, *self._geometry


def fused(conv: nn.Conv2d, activation: Activation | None = None) -> nn.Module:
    """The faster of both implementations of a convolution; called with (x) or (x, add)."""
    if _winograd(conv) and activation != "relu6":
        return WinogradConv2d(conv, rectify=activation == "relu")
    return FusedConv2d(conv, activation)


def join_outputs(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """Several convolutions of one input as one, whose outputs are theirs, one after another."""
    joined = copy.copy(convs[0])
    joined._parameters = dict(joined._parameters)
    joined.out_channels = sum(conv.out_channels for conv in convs)
    joined.weight = nn.Parameter(torch.cat([conv.weight for conv in convs]), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat([_bias(conv) for conv in convs]), requires_grad=False)
    return joined


def join_inputs(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """A sum of convolutions as one of all their inputs, one after another."""
    joined = copy.copy(convs[0])
    joined._parameters = dict(joined._parameters)
    joined.in_channels = sum(conv.in_channels for conv in convs)
    weight = torch.cat([conv.weight for conv in convs], dim=1)
    bias = torch.stack([_bias(conv).float() for conv in convs]).sum(dim=0).to(weight.dtype)
    joined.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    joined.bias = nn.Parameter(bias, requires_grad=False)
    return joined


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def _is_bottleneck(module: nn.Module) -> TypeGuard[Bottleneck]:
    """Whether this is a block of torchvision's ResNet-50. Networks with such blocks have loaded
    torchvision."""
    resnet = sys.modules.get("torchvision.models.resnet")
    return resnet is not None and isinstance(module, resnet.Bottleneck)


class FusedBottleneck(nn.Module):
    """ResNet's block, BatchNorm folded into its convolutions.

    Args:
        owns_input: no other module needs the input, so it may be overwritten.
    """

    def __init__(self, block: Bottleneck, *, owns_input: bool = False) -> None:
        super().__init__()
        self.downsample = None if block.downsample is None else fused(block.downsample[0])
        self.conv1 = fused(block.conv1, "relu")
        self.conv2 = fused(block.conv2, "relu")
        self.conv3 = FusedConv2d(block.conv3, "relu")
        self.owns_identity = owns_input or self.downsample is not None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.conv2(self.conv1(x))
        result: Tensor = self.conv3.add_to(identity, y) if self.owns_identity else self.conv3(y, identity)
        return result


class FusedInvertedResidual(nn.Module):
    """EfficientNet-Lite's block."""

    def __init__(self, block: InvertedResidual) -> None:
        super().__init__()
        self.expand = None if block.expand is None else fused(block.expand, "relu6")
        self.depthwise = FusedConv2d(block.depthwise, "relu6")
        self.project = FusedConv2d(block.project)
        self.keeps_shape = block.keeps_shape

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        result: Tensor = self.project(self.depthwise(y), x if self.keeps_shape else None)
        return result


class FusedResidualBlock(nn.Module):
    """The decoder's block: x + conv(relu(conv(relu(x))))."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.rectifies = _winograd(block.conv1)
        self.conv1 = (
            WinogradConv2d(block.conv1, rectify=True, rectify_input=True)
            if self.rectifies
            else FusedConv2d(block.conv1, "relu")
        )
        self.conv2 = fused(block.conv2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.conv1(x if self.rectifies else F.relu(x)), x)
        return result


class FusedRefine(nn.Module):
    """The decoder's refinement stage (`model.network.stm.Refine`)."""

    def __init__(self, stage: Refine) -> None:
        super().__init__()
        self.skip_conv = fused(stage.skip_conv)
        self.skip_residual = FusedResidualBlock(stage.skip_residual)
        self.fit = fused(stage.fit) if isinstance(stage.fit, nn.Conv2d) else stage.fit
        self.residual = FusedResidualBlock(stage.residual)

    def skip(self, features: Tensor) -> Tensor:
        refined: Tensor = self.skip_residual(self.skip_conv(features))
        return refined

    def forward(self, refined_skip: Tensor, coarse: Tensor) -> Tensor:
        joined = F.interpolate(self.fit(coarse), scale_factor=2, mode="bilinear", align_corners=False)
        refined: Tensor = self.residual(joined.add_(refined_skip))
        return refined


class FusedKeyValue(nn.Module):
    """Key and value from one convolution (`model.network.stm.KeyValue`)."""

    def __init__(self, pair: KeyValue) -> None:
        super().__init__()
        self.both = fused(join_outputs([pair.key, pair.value]))
        self.channels = [pair.key.out_channels, pair.value.out_channels]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.both(x).split(self.channels, dim=1)
        return key, value


class FusedInput(nn.Module):
    """Prepares a picture and masks for a backbone's first convolution.

    Colours are normalised (`model.network.stm.Normalise`), all planes are padded with zeros to the stride of
    the network (`model.network.stm.pad`) and stored with the channels last, in one pass over each plane.

    Args:
        normalise: of the encoder.
        stem: the backbone's first convolution; its uneven padding is done here.
    """

    def __init__(self, normalise: Normalise, stem: nn.Conv2d) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / normalise.std).flatten())
        self.register_buffer("shift", (-normalise.mean / normalise.std).flatten())
        self.extra = stem.extra if isinstance(stem, SameConv2d) else 0
        self.dtype = stem.weight.dtype

    def forward(self, picture: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """(3, H, W) in [0, 1] and masks (H, W) -> (1, 3 + masks, H', W'), channels last."""
        colours, height, width = picture.shape
        around = padding_to_stride(height, width)
        down, across = height + around.top + around.bottom, width + around.left + around.right
        result = picture.new_empty(
            down + self.extra, across + self.extra, colours + len(masks), dtype=self.dtype
        )
        result[down:].zero_()
        result[:, across:].zero_()
        inside = result[around.top : around.top + height, around.left : around.left + width]
        outside = F.pad(self.shift, (0, len(masks))).to(self.dtype)  # (C,): zeros, with colours normalised
        for strip in (
            result[: around.top, :across],
            result[around.top + height : down, :across],
            result[:down, : around.left],
            result[:down, around.left + width : across],
        ):
            strip.copy_(outside.expand_as(strip))
        planes = inside.unbind(2)
        for plane, colour, scale, shift in zip(
            planes[:colours], picture, self.scale, self.shift, strict=True
        ):
            if self.dtype == picture.dtype:
                torch.addcmul(shift, colour, scale, out=plane)
            else:
                plane.copy_(torch.addcmul(shift, colour, scale))
        for plane, mask in zip(planes[colours:], masks, strict=True):
            plane.copy_(mask)
        return result.permute(2, 0, 1).unsqueeze(0)


class FusedQueryEncoder(nn.Module):
    """Picture to trunk features (`model.network.stm.QueryEncoder`); it pads the picture."""

    def __init__(self, encoder: QueryEncoder) -> None:
        super().__init__()
        first = _first_convolution(encoder.trunk)
        self.prepare = FusedInput(encoder.normalise, first)
        self.stem = _activated_stem(first, [])
        self.trunk = encoder.trunk
        fuse_blocks(self.trunk)

    def forward(self, picture: Tensor) -> TrunkFeatures:
        """(1, 3, H, W) in [0, 1] -> the trunk's features of the padded picture."""
        features: TrunkFeatures = self.trunk.stages(self.stem(self.prepare(picture[0], [])))
        return features


class FusedMemoryEncoder(nn.Module):
    """Picture and masks to the trunk's 1/16 map (`model.network.stm.MemoryEncoder`); it pads them.

    The first convolution gets colours and masks together, which is as fast as adding separate convolutions.
    Without other objects their mask is zero, and is left out. Objects are computed one after another: the
    maps of one fit into the processor's cache.
    """

    def __init__(self, encoder: MemoryEncoder) -> None:
        super().__init__()
        first = _first_convolution(encoder.trunk)
        self.prepare = FusedInput(encoder.normalise, first)
        masks = [cast(nn.Conv2d, stem) for stem in (encoder.mask_stem, encoder.others_stem)]
        self.stem = _activated_stem(first, masks)
        self.stem_alone = _activated_stem(first, masks[:1], also_bias_of=masks[1])
        self.trunk = encoder.trunk
        fuse_blocks(self.trunk)

    def forward(self, picture: Tensor, masks: Tensor) -> Tensor:
        """(1, 3, H, W) and (1, K, H, W) in [0, 1] -> (K, C, h, w) of the padded picture."""
        if masks.shape[1] == 1:
            return self._one(self.stem_alone, picture[0], [masks[0, 0]])
        seen = zip(masks[0], other_masks(masks)[0], strict=True)
        return torch.cat([self._one(self.stem, picture[0], both) for both in seen])

    def _one(self, stem: FusedConv2d, picture: Tensor, masks: Sequence[Tensor]) -> Tensor:
        features: TrunkFeatures = self.trunk.stages(stem(self.prepare(picture, masks)))
        return features.sixteenth


def _first_convolution(trunk: Trunk) -> nn.Conv2d:
    first: nn.Conv2d
    if isinstance(trunk, ResNet50Trunk):
        assert isinstance(trunk.bn1, nn.Identity)  # folded
        first = trunk.conv1
    else:
        assert isinstance(trunk, EfficientNetLite0Trunk)
        first = trunk.conv_stem
    return first


def _activated_stem(
    first: nn.Conv2d, masks: Sequence[nn.Conv2d], also_bias_of: nn.Conv2d | None = None
) -> FusedConv2d:
    """A backbone's first convolution (BatchNorm folded) with those of masks, and its activation."""
    joined = join_inputs([first, *masks])
    if also_bias_of is not None:
        assert joined.bias is not None
        joined.bias += _bias(also_bias_of)
    uneven = isinstance(first, SameConv2d)
    return FusedConv2d(joined, "relu6" if uneven else "relu", pads=not uneven)
