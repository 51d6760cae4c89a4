"""3x3 convolutions on the CPU in fp32 with a quarter of the multiplications: Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3), with the
interpolation points 0, +-1/sqrt(2), +-sqrt(2) and infinity: rounding errors are then as small as those of the
direct sum (on the choice of points: Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks", 2020). Every step is a matrix product of torch's own library, over a
few rows of tiles at a time so that the work stays in the processor's cache.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTPUT = 4
"""Output pixels along a side of a tile."""

TILE = OUTPUT + 2
"""Input pixels along a side of a tile."""

POINTS = TILE * TILE
"""Products of a tile."""

TILES_AT_ONCE = 108
"""Tiles in one matrix product: with fewer the weights are fetched too often, with more the intermediate
results fall out of the cache. It does not follow the number of threads: another cut rounds otherwise, and the
same frame must give the same bits in every process."""

LEAST_CHANNELS = 64
"""With fewer channels, in or out, the transforms cost what the products save (measured: 64 gain 1.2 times,
128 1.8 times, 256 2.3 times)."""


def gains(conv: nn.Conv2d) -> bool:
    """Whether the method applies to a convolution, and is worth it."""
    plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.padding == (1, 1)
    dense = conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and dense and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, for inference on the CPU.

    Args:
        conv: the convolution whose weights it takes over, in fp32.
        rectify: the result is max(0, ...), taken last.
        rectify_input: what comes in is max(0, x), without a further pass over it.
    """

    def __init__(self, conv: nn.Conv2d, *, rectify: bool = False, rectify_input: bool = False) -> None:
        super().__init__()
        self.rectify, self.rectify_input = rectify, rectify_input
        transforms = _transforms()
        outputs, inputs = conv.weight.shape[:2]
        kernel = torch.einsum(
            "ai,ocij,bj->abco", transforms.kernel, conv.weight.detach().double(), transforms.kernel
        )
        self.kernel: Tensor
        self.bias: Tensor
        self.register_buffer("kernel", kernel.reshape(POINTS, inputs, outputs).float().contiguous())
        bias = torch.zeros(outputs) if conv.bias is None else conv.bias.detach().float()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) fp32 -> (N, O, H, W) in channels-last layout; `add`, (N or 1, O, H, W), is added
        before the result is rectified."""
        batch, _, height, width = x.shape
        inputs, outputs = self.kernel.shape[1:]
        result = x.new_empty(batch, height, width, outputs)
        down, across = -(-height // OUTPUT), -(-width // OUTPUT)  # tiles
        rows = -(-down // max(down * across // TILES_AT_ONCE, 1))  # of tiles at once
        space = _Workspace(rows, across, width, inputs, self.bias)
        for index, target in enumerate(result):
            picture = x[index].permute(1, 2, 0)
            addend = None if add is None else add[index if len(add) > 1 else 0].permute(1, 2, 0)
            for first in range(0, down, rows):
                last = min(first + rows, down)
                sums = self._tiles(space, picture, first, last)  # (tiles down, 4, tiles across, 4, O)
                pixels = slice(first * OUTPUT, last * OUTPUT)
                self._finish(sums, target[pixels], None if addend is None else addend[pixels])
        return result.permute(0, 3, 1, 2)

    def _tiles(self, space: _Workspace, picture: Tensor, first: int, last: int) -> Tensor:
        """(H, W, C) -> the result's rows of tiles [first, last), bias and all: (down, 4, across, 4, O)."""
        inputs, outputs = self.kernel.shape[1:]
        down, across = last - first, space.across
        tiles = down * across
        padded = space.padded
        top, bottom = first * OUTPUT - 1, last * OUTPUT + 1
        above, below = max(-top, 0), max(bottom - len(picture), 0)
        padded[:above].zero_()
        padded[bottom - top - below : bottom - top].zero_()
        seen = picture[top + above : bottom - below]
        inside = padded[above : above + len(seen), 1 : 1 + picture.shape[1]]
        if self.rectify_input:
            torch.clamp_min(seen, 0, out=inside)
        else:
            inside.copy_(seen)
        stride_y, stride_x, _ = padded.stride()
        overlapping = padded.as_strided(
            (TILE, TILE, down, across, inputs), (stride_y, stride_x, stride_y * OUTPUT, stride_x * OUTPUT, 1)
        )  # by two pixels
        pixels, points, products, sums = space.of(tiles)
        pixels.view(overlapping.shape).copy_(overlapping)
        torch.mm(space.transforms.input, pixels, out=points)
        products_alone = products[:POINTS].view(POINTS, tiles, outputs)
        torch.bmm(points.view(POINTS, tiles, inputs), self.kernel, out=products_alone)
        torch.mm(space.transforms.output, products, out=sums)
        return sums.view(OUTPUT, OUTPUT, down, across, outputs).permute(2, 0, 3, 1, 4)

    def _finish(self, sums: Tensor, target: Tensor, add: Tensor | None) -> None:
        """Tiles (down, 4, across, 4, O) -> target (H, W, O), in one pass where that can be."""
        down, _, across, _, outputs = sums.shape
        if target.shape[:2] == (down * OUTPUT, across * OUTPUT):
            target = target.view(sums.shape)
            add = None if add is None else add.view(sums.shape)
        else:
            whole = sums.reshape(down * OUTPUT, across * OUTPUT, outputs)
            sums = whole[: target.shape[0], : target.shape[1]]
        if add is not None:
            torch.add(sums, add, out=target)
            if self.rectify:
                target.relu_()
        elif self.rectify:
            torch.clamp_min(sums, 0, out=target)
        else:
            target.copy_(sums)


class _Workspace:
    """Intermediate results of some rows of tiles, used again for the next rows.

    Args:
        rows, across: the most tiles, down and across.
        width: of the picture, in pixels.
        inputs: channels.
        bias: (O,).
    """

    def __init__(self, rows: int, across: int, width: int, inputs: int, bias: Tensor) -> None:
        self.across = across
        self.transforms = _transforms()
        self.padded = bias.new_empty(rows * OUTPUT + 2, across * OUTPUT + 2, inputs)
        self.padded[:, 0].zero_()
        self.padded[:, 1 + width :].zero_()
        self._bias, self._inputs = bias, inputs
        self._tiles = 0
        most = rows * across
        self._pixels, self._points = bias.new_empty(2, POINTS * most * inputs)
        self._products = bias.new_empty((POINTS + 1) * most * len(bias))
        self._sums = bias.new_empty(OUTPUT * OUTPUT * most * len(bias))

    def of(self, tiles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Room for so many tiles: pixels and points (36, tiles * C), products (37, tiles * O) with the bias
        last, sums (16, tiles * O)."""
        inputs, outputs = tiles * self._inputs, tiles * len(self._bias)
        products = self._products[: (POINTS + 1) * outputs].view(POINTS + 1, outputs)
        if tiles != self._tiles:
            products[POINTS].view(tiles, -1).copy_(self._bias)
            self._tiles = tiles
        pixels, points = (x[: POINTS * inputs].view(POINTS, inputs) for x in (self._pixels, self._points))
        return pixels, points, products, self._sums[: OUTPUT**2 * outputs].view(OUTPUT**2, outputs)


class _Transforms:
    """The method's matrices for two dimensions: pixels to points, kernel to points (one side), points to
    pixels. To the last one the bias comes as a further product."""

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
        bias = torch.ones(OUTPUT * OUTPUT, 1, dtype=torch.float64)
        self.output = torch.cat([torch.kron(output, output), bias], dim=1).float()  # (16, 37)
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
