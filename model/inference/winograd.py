"""3x3 convolutions on the CPU in fp32 with a quarter of the multiplications: Winograd's minimal filtering.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3), with the
interpolation points 0, +-1/sqrt(2), +-sqrt(2) and infinity: rounding errors are then as small as those of the
direct sum (on the choice of points: Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks", 2020). Every step is a matrix product by torch, over a few rows of
tiles at a time, so that the data fits into the processor's cache.
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
"""Tiles in one matrix product: with fewer, weights are read too often; with more, intermediate results do not
fit into the cache. It does not depend on the number of threads: another cut would round differently, and a
frame must have the same bits in every process."""

NARROW = 64
"""With at most this many channels, twice as many tiles at once: steps are so short that the overhead between
them counts (17 % on two threads)."""

SMALL_KERNEL = 32_768
"""Input times output channels. Up to this, an even number of rows of tiles is transformed in two halves: in
one product of this shape, every thread would rearrange all pixels (10 % on two threads). A larger kernel
would be read twice."""

LEAST_CHANNELS = 64
"""With fewer channels, in or out, the transforms cost as much as the products save (measured: 64 gain 1.2
times, 128 1.8 times, 256 2.3 times)."""


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
        rectify_input: the input is max(0, x), without a further pass over it.
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
        at_once = TILES_AT_ONCE * (2 if max(inputs, outputs) <= NARROW else 1)
        rows = -(-down // max(down * across // at_once, 1))  # of tiles
        space: _Workspace | None = None
        for first in range(0, down, rows):
            last = min(first + rows, down)
            if space is None or last - first != space.down:
                parts = 2 if inputs * outputs <= SMALL_KERNEL and (last - first) % 2 == 0 else 1
                space = _Workspace(last - first, across, width, inputs, self.bias, parts)
            for index, target in enumerate(result):
                addend = None if add is None else add[index if len(add) > 1 else 0].permute(1, 2, 0)
                self._tiles(space, x[index].permute(1, 2, 0), first)
                self._finish(space, target, addend, first)
        return result.permute(0, 3, 1, 2)

    def _tiles(self, space: _Workspace, picture: Tensor, first: int) -> None:
        """(H, W, C) -> the result's rows of tiles from `first` on, with the bias, in `space.sums`."""
        top = first * OUTPUT - 1
        above = max(-top, 0)
        seen = picture[top + above : top + len(space.inside)]
        inside = space.inside
        if len(seen) < len(inside):
            inside[:above].zero_()
            inside = inside[above:]
            inside[len(seen) :].zero_()
            inside = inside[: len(seen)]
        if self.rectify_input:
            torch.clamp_min(seen, 0, out=inside)
        else:
            inside.copy_(seen)
        space.pixels.copy_(space.overlapping)
        _transform(space.transforms.input, space.pixel_rows, space.points)
        for points, products in zip(space.points_by_tile, space.products_alone, strict=True):
            torch.bmm(points, self.kernel, out=products)
        _transform(space.transforms.output, space.products, space.sums)

    def _finish(self, space: _Workspace, target: Tensor, add: Tensor | None, first: int) -> None:
        """Writes the tiles' sums into the target (H, W, O), in one pass if possible."""
        pixels = slice(first * OUTPUT, (first + space.down) * OUTPUT)
        target = target[pixels]
        add = None if add is None else add[pixels]
        sums = space.sums_by_pixel
        if len(target) * target.shape[1] == space.down * OUTPUT * space.across * OUTPUT:
            target = target.view(sums.shape)
            add = None if add is None else add.view(sums.shape)
        else:
            whole = sums.reshape(space.down * OUTPUT, space.across * OUTPUT, -1)
            sums = whole[: target.shape[0], : target.shape[1]]
        if add is not None:
            torch.add(sums, add, out=target)
            if self.rectify:
                target.relu_()
        elif self.rectify:
            torch.clamp_min(sums, 0, out=target)
        else:
            target.copy_(sums)


def _transform(matrix: Tensor, parts: Tensor, out: Tensor) -> None:
    """matrix (A, B) times each of parts (G, B, N) -> out (G, A, N)."""
    if len(parts) == 1:
        torch.mm(matrix, parts[0], out=out[0])
    else:
        torch.bmm(matrix.expand(len(parts), -1, -1), parts, out=out)


class _Workspace:
    """Intermediate results of some rows of tiles, used again for the next rows, and views of them for the
    steps.

    Views are made once, because making one costs as much as a small step.

    Args:
        down, across: tiles.
        width: of the picture, in pixels.
        inputs: channels.
        bias: (O,).
        parts: G, which divides `down`: each holds n tiles.

    Attributes:
        inside: (4 * down + 2, width, C), the picture's pixels.
        overlapping, pixels: (6, 6, down, across, C), the tiles as views of the picture, and as copies;
            pixel_rows: (G, 36, n * C), the same.
        points: (G, 36, n * C); points_by_tile: (G, 36, n, C).
        products: (G, 37, n * O), the bias last; products_alone: (G, 36, n, O).
        sums: (G, 16, n * O); sums_by_pixel: (G, down / G, 4, across, 4, O).
    """

    def __init__(self, down: int, across: int, width: int, inputs: int, bias: Tensor, parts: int) -> None:
        outputs, tiles = len(bias), down * across // parts
        self.down, self.across = down, across
        self.transforms = _transforms()
        padded = bias.new_empty(down * OUTPUT + 2, across * OUTPUT + 2, inputs)
        padded[:, 0].zero_()
        padded[:, 1 + width :].zero_()
        self.inside = padded[:, 1 : 1 + width]
        stride_y, stride_x, _ = padded.stride()
        self.overlapping = padded.as_strided(
            (TILE, TILE, down, across, inputs), (stride_y, stride_x, stride_y * OUTPUT, stride_x * OUTPUT, 1)
        )  # by two pixels
        self.pixels = bias.new_empty(self.overlapping.shape)
        self.pixel_rows = self.pixels.view(POINTS, parts, tiles * inputs).transpose(0, 1)
        self.points = bias.new_empty(parts, POINTS, tiles * inputs)
        self.points_by_tile = self.points.view(parts, POINTS, tiles, inputs).unbind()
        self.products = bias.new_empty(parts, POINTS + 1, tiles * outputs)
        self.products[:, POINTS].view(parts, tiles, outputs).copy_(bias)
        self.products_alone = [x[:POINTS].view(POINTS, tiles, outputs) for x in self.products]
        self.sums = bias.new_empty(parts, OUTPUT * OUTPUT, tiles * outputs)
        by_tile = self.sums.view(parts, OUTPUT, OUTPUT, down // parts, across, outputs)
        self.sums_by_pixel = by_tile.permute(0, 3, 1, 4, 2, 5)


class _Transforms:
    """The method's matrices for two dimensions: pixels to points, kernel to points (one side), points to
    pixels.

    The last one has the bias as a further product.
    """

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
