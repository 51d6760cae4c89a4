"""3x3 convolutions on the CPU in fp32 with a quarter of the multiplications: Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3), with the
interpolation points 0, +-1/sqrt(2), +-sqrt(2) and infinity: rounding errors are then as small as those of the
direct sum (on the choice of points: Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks", 2020). Every step is a matrix product of torch's own library, over a
few rows of tiles at a time so that the work stays in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTPUT = 4
"""Output pixels along a side of a tile."""

TILE = OUTPUT + 2
"""Input pixels along a side of a tile."""

TILES_AT_ONCE = 216
"""Tiles in one matrix product: with fewer the weights are fetched too often, with more the intermediate
results fall out of the cache. It does not follow the number of threads: another cut rounds otherwise, and the
same frame must give the same bits in every process."""

LEAST_CHANNELS = 96
"""With fewer channels, in or out, the transforms cost what the products save (measured: 64 gain nothing, 128
gain 1.7 times)."""


def gains(conv: nn.Conv2d) -> bool:
    """Whether the method applies to a convolution, and is worth it."""
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    dense = conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and dense and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference on the CPU.

    Args:
        conv: the convolution whose weights it takes over, in fp32.
        activation: applied last, in place; for instance `torch.relu_`.
    """

    def __init__(self, conv: nn.Conv2d, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.activation = activation
        transforms = _transforms()
        outputs, inputs = conv.weight.shape[:2]
        kernel = torch.einsum(
            "ai,ocij,bj->abco", transforms.kernel, conv.weight.detach().double(), transforms.kernel
        )
        self.kernel: Tensor
        self.bias: Tensor
        self.register_buffer("kernel", kernel.reshape(TILE * TILE, inputs, outputs).float().contiguous())
        bias = torch.zeros(outputs) if conv.bias is None else conv.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) fp32 -> (N, O, H, W) in channels-last layout; `add`, of the same shape, is added
        before the activation."""
        batch, _, height, width = x.shape
        result = x.new_empty(batch, height, width, self.kernel.shape[2])
        for index, target in enumerate(result):
            addend = None if add is None else add[index].permute(1, 2, 0)
            self._picture(x[index].permute(1, 2, 0), target, addend)
        return result.permute(0, 3, 1, 2)

    def _picture(self, picture: Tensor, target: Tensor, add: Tensor | None) -> None:
        """(H, W, C) -> target (H, W, O), a few rows of tiles at a time."""
        height, width, _ = picture.shape
        down, across = -(-height // OUTPUT), -(-width // OUTPUT)  # tiles
        chunks = max(down * across // TILES_AT_ONCE, 1)
        rows = -(-down // chunks) * OUTPUT
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            tiles_down = -(-(bottom - top) // OUTPUT)
            sums = self._rows(picture, top, tiles_down, across)  # (tiles down, 4, tiles across, 4, O)
            part = target[top:bottom]
            if part.shape[:2] == (tiles_down * OUTPUT, across * OUTPUT):
                torch.add(sums, self.bias, out=part.view(sums.shape))
            else:
                whole = sums.reshape(tiles_down * OUTPUT, across * OUTPUT, -1)
                torch.add(whole[: bottom - top, :width], self.bias, out=part)
            if add is not None:
                part.add_(add[top:bottom])
            if self.activation is not None:
                self.activation(part)

    def _rows(self, picture: Tensor, top: int, down: int, across: int) -> Tensor:
        """(H, W, C) -> tiles of the result from the row `top` on, without bias: (down, 4, across, 4, O)."""
        height, width, inputs = picture.shape
        outputs = self.kernel.shape[2]
        transforms = _transforms()
        first, last = max(top - 1, 0), min(top + down * OUTPUT + 1, height)
        above, below = first - (top - 1), top + down * OUTPUT + 1 - last
        padded = F.pad(picture[first:last], (0, 0, 1, across * OUTPUT - width + 1, above, below))
        stride_y, stride_x, _ = padded.stride()
        tiles = padded.as_strided(
            (TILE, TILE, down, across, inputs), (stride_y, stride_x, stride_y * OUTPUT, stride_x * OUTPUT, 1)
        )  # overlapping by two pixels
        pixels = tiles.reshape(TILE * TILE, down * across * inputs)
        points = (transforms.input @ pixels).view(TILE * TILE, down * across, inputs)
        products = torch.bmm(points, self.kernel).view(TILE * TILE, down * across * outputs)
        result = (transforms.output @ products).view(OUTPUT, OUTPUT, down, across, outputs)
        return result.permute(2, 0, 3, 1, 4)


class _Transforms:
    """The method's matrices for two dimensions: pixels to points, kernel to points (one side), points to
    pixels."""

    def __init__(self) -> None:
        root = math.sqrt(2)
        finite = [0.0, 1 / root, -1 / root, root, -root]
        output = torch.zeros(OUTPUT, TILE, dtype=torch.float64)
        kernel = torch.zeros(TILE, 3, dtype=torch.float64)
        pixels = torch.zeros(TILE, TILE, dtype=torch.float64)
        for index, point in enumerate(finite):
            others = [p for p in finite if p != point]
            scale = math.prod(point - p for p in others)
            for power in range(OUTPUT):
                output[power, index] = point**power
            for power in range(3):
                kernel[index, power] = point**power / scale
            pixels[index, : TILE - 1] = _polynomial(others)
        output[-1, -1] = kernel[-1, -1] = 1  # the point at infinity
        pixels[-1] = _polynomial(finite)
        self.input = torch.kron(pixels, pixels).float()  # (36, 36)
        self.output = torch.kron(output, output).float()  # (16, 36)
        self.kernel = kernel  # (6, 3)


def _polynomial(roots: list[float]) -> Tensor:
    """Coefficients of the polynomial with the given roots, constant first."""
    coefficients = torch.ones(1, dtype=torch.float64)
    for root in roots:
        shifted = F.pad(coefficients, (1, 0))
        coefficients = shifted - root * F.pad(coefficients, (0, 1))
    return coefficients


@lru_cache(maxsize=1)
def _transforms() -> _Transforms:
    return _Transforms()
