"""The edge refiner ready to run on a device: arrays in, arrays out.

On a CPU its convolutions include their additions and activations (`model.inference.fused`), and both guided
filters share their window means (`model.inference.guided_filter`). The results equal those of the plain
network up to rounding: sums have another order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference.fast_network import Precision
from model.inference.fused import Activation, FusedConv2d, can_fuse
from model.inference.guided_filter import FloatArray, filtered_by
from model.network.edges import FILTERS, FLAT, EdgeRefiner

_PACKED_FOR = 256
"""Side of the picture that weights are converted for. Always the same, so that no earlier picture changes a
result."""


class FastRefiner:
    """An `EdgeRefiner` for inference. Results do not depend on the number of threads.

    Args:
        device: a torch device name.
        precision: type of the convolutions. The filters and alpha are fp32 always.
        fused: whether a CPU uses its own faster convolutions where it has them.
    """

    def __init__(
        self,
        refiner: EdgeRefiner,
        device: str = "cpu",
        precision: Precision = "float32",
        *,
        fused: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        prepared = copy.deepcopy(refiner).eval().requires_grad_(False)
        self._fused: _FusedRefiner | None = None
        if fused and self.device.type == "cpu" and can_fuse(self._dtype):
            self._fused = _FusedRefiner(prepared, self._dtype)
        else:
            self._refiner: EdgeRefiner = prepared.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def refine(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Alpha and how likely each pixel is soft, both (h, w) in [0, 1].

        Args:
            inputs: (INPUTS, h, w), as for the network; h and w are multiples of its STRIDE.
        """
        if self._fused is not None:
            return self._fused.refine(inputs)
        filtered = None
        if self.device.type == "cpu":
            planes = filtered_by(inputs[:3], inputs[3], FILTERS, FLAT)
            filtered = torch.from_numpy(np.stack(planes))
        alpha, soft = self.refine_on_device(torch.from_numpy(inputs).to(self.device), filtered)
        return _array(alpha), _array(soft)

    def refine_on_device(self, inputs: Tensor, filtered: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `refine`, from the device to the device; not for fused convolutions.

        Args:
            filtered: (len(FILTERS), h, w), the guided filters, where they are already computed.
        """
        batch = inputs[None].contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            alpha, soft = self._refiner(batch, None if filtered is None else filtered[None])
        return alpha[0].float().clamp(0, 1), soft[0].float().sigmoid()


class _FusedRefiner:
    """The network of an `EdgeRefiner` on a CPU."""

    def __init__(self, refiner: EdgeRefiner, dtype: torch.dtype) -> None:
        for module in refiner.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
        refiner = refiner.to(memory_format=torch.channels_last)
        self._dtype = dtype
        self._stem = [_packed(refiner.stem[0], 2, "relu"), _packed(refiner.stem[2], 2, "relu")]
        down = refiner.down_quarter
        self._down_quarter = [_packed(down[0], 2, "relu"), _packed(down[2], 4, "relu")]
        self._down_eighth = _packed(refiner.down_eighth[0], 4, "relu")
        self._blocks = [_block(block, 8) for block in refiner.blocks]
        self._up_quarter, self._up_half = _packed(refiner.up_quarter, 8), _packed(refiner.up_half, 4)
        self._at_quarter, self._at_half = _block(refiner.at_quarter, 4), _block(refiner.at_half, 2)
        self._predict = _packed(refiner.predict, 2)

    def refine(self, inputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `FastRefiner.refine`."""
        filtered = filtered_by(inputs[:3], inputs[3], FILTERS, FLAT)
        half = self._halved((*inputs, *filtered))
        for conv in self._stem:
            half = conv(half)
        quarter = half
        for conv in self._down_quarter:
            quarter = conv(quarter)
        x = self._down_eighth(quarter)
        for block in self._blocks:
            x = _through(block, x)
        x = _through(self._at_quarter, _doubled(self._up_quarter(x)).add_(quarter).relu_())
        x = _through(self._at_half, _doubled(self._up_half(x)).add_(half).relu_())
        change, soft, trust = _unfolded(self._predict(x))  # (h, w) each
        own = torch.from_numpy(inputs[3])
        alpha = torch.addcmul(own, trust.sigmoid(), torch.from_numpy(filtered[0]) - own) + change
        return _array(alpha.clamp_(0, 1)), _array(soft.sigmoid())

    def _halved(self, planes: Sequence[FloatArray]) -> Tensor:
        """`F.pixel_unshuffle` of some pictures (h, w) less one half: (1, 4 * C, h/2, w/2), channels last.

        Two neighbours in a row are moved as one number: then it is the transposition of a matrix.
        """
        height, width = planes[0].shape
        known = np.empty((len(planes), 2, height // 2, width), np.float32)  # even rows, then odd ones
        for lines, plane in zip(known, planes, strict=True):
            np.subtract(plane.reshape(-1, 2, width).swapaxes(0, 1), np.float32(0.5), out=lines)
        pairs = torch.from_numpy(known).to(self._dtype).view(_pair_of(self._dtype)).view(2 * len(planes), -1)
        folded = pairs.new_empty(pairs.shape[1], pairs.shape[0]).copy_(pairs.t()).view(self._dtype)
        return folded.view(1, height // 2, width // 2, -1).permute(0, 3, 1, 2)


def _unfolded(x: Tensor) -> Tensor:
    """`F.pixel_shuffle` of (1, 4 * C, h/2, w/2), channels last: (C, h, w) in fp32."""
    count, height, width = x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3]
    pairs = x.permute(0, 2, 3, 1).reshape(-1, 4 * count).view(_pair_of(x.dtype))  # (N, 2 * C)
    lines = pairs.new_empty(pairs.shape[1], pairs.shape[0]).copy_(pairs.t()).view(x.dtype)
    result = torch.empty(count, height // 2, 2, width)
    result.transpose(1, 2).copy_(lines.view(count, 2, height // 2, width))
    return result.view(count, height, width)


def _pair_of(dtype: torch.dtype) -> torch.dtype:
    """An integer of the size of two numbers of a type."""
    return torch.int64 if dtype == torch.float32 else torch.int32


def _packed(conv: nn.Module, scale: int, activation: Activation | None = None) -> FusedConv2d:
    """A convolution that works at 1/scale of the picture's size, ready for any size."""
    assert isinstance(conv, nn.Conv2d)
    made = FusedConv2d(conv, activation)
    made.pack((1, conv.in_channels, _PACKED_FOR // scale, _PACKED_FOR // scale))
    return made


def _block(block: nn.Module, scale: int) -> tuple[FusedConv2d, FusedConv2d]:
    first, second = block.first, block.second
    assert isinstance(first, nn.Module) and isinstance(second, nn.Module)
    return _packed(first, scale, "relu"), _packed(second, scale, "relu")


def _through(block: tuple[FusedConv2d, FusedConv2d], x: Tensor) -> Tensor:
    result: Tensor = block[1](block[0](x), x)
    return result


def _doubled(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _array(values: Tensor) -> FloatArray:
    array: FloatArray = values.float().cpu().contiguous().numpy()
    return array
