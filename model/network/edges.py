"""The edge refiner: from a coarse probability to alpha, as the picture has it.

Two small networks of plain convolutions. `WorkingNet` looks at the picture at working size, with the
probability of the frame and of those before and after it, and gives alpha and how likely each pixel is soft:
it finds out how wide an edge is, and how soft. `DetailNet` looks at the plate's own pixels along that band,
and gives what is lost between working size and plate size.

No normalisation over a batch or a picture, so a pixel depends on its surroundings alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORKING_INPUTS = 8
"""R, G, B, probability, that of the frame before, of the frame after, of the other objects, softness of the
keys."""
DETAIL_INPUTS = 6
"""R, G, B, alpha, softness of the pixel, working pixels per plate pixel."""
WORKING_REACH = 48
"""Working pixels around a pixel that its alpha may depend on; what is cut out needs so much of a margin."""
DETAIL_REACH = 16
"""The same in plate pixels."""
STRIDE = 8
"""Pictures at working size are padded to multiples of it."""
SOFTEST = 16.0
"""Working pixels: a key's ramp that wide, or wider, counts as 1."""


@dataclass(frozen=True)
class EdgeConfig:
    """What is needed to build an edge refiner.

    Args:
        name: the registered name, written into the weights' manifest.
        channels: of the working network at 1/2, 1/4 and 1/8 of the working size.
        dilations: of its blocks at 1/8.
        detail_channels: of the detail network, at 1/2 of the plate's size.
        detail_blocks: its convolutions between the first and the last.
    """

    name: str
    channels: tuple[int, int, int]
    dilations: tuple[int, ...]
    detail_channels: int
    detail_blocks: int

    def to_dict(self) -> dict[str, object]:
        """As JSON-ready values, for checkpoints and manifests."""
        return asdict(self)


EDGE_NETWORKS: dict[str, EdgeConfig] = {
    config.name: config
    for config in (EdgeConfig("edges-lite", (24, 48, 64), (1, 2, 1), detail_channels=24, detail_blocks=3),)
}


def edge_config(name: str) -> EdgeConfig:
    """The configuration registered under `name`.

    Raises:
        ValueError: there is no such refiner; the message lists those that exist.
    """
    try:
        return EDGE_NETWORKS[name]
    except KeyError:
        raise ValueError(f"unknown edge refiner {name!r}; known are {', '.join(EDGE_NETWORKS)}") from None


class EdgeRefiner(nn.Module):
    """Both networks of a configuration."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self.config = config
        self.working = WorkingNet(config)
        self.detail = DetailNet(config)


class WorkingNet(nn.Module):
    """Alpha and softness at working size.

    The picture is looked at at 1/2 (2 x 2 pixels as channels), 1/4 and 1/8 of its size, and back.
    """

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        half, quarter, eighth = config.channels
        self.stem = nn.Sequential(_conv(4 * WORKING_INPUTS, half), nn.ReLU(), _conv(half, half), nn.ReLU())
        self.down_quarter = nn.Sequential(
            _conv(half, quarter, stride=2), nn.ReLU(), _conv(quarter, quarter), nn.ReLU()
        )
        self.down_eighth = nn.Sequential(_conv(quarter, eighth, stride=2), nn.ReLU())
        self.blocks = nn.ModuleList([_Block(eighth, dilation) for dilation in config.dilations])
        self.up_quarter = nn.Conv2d(eighth, quarter, 1)
        self.at_quarter = _Block(quarter, 1)
        self.up_half = nn.Conv2d(quarter, half, 1)
        self.at_half = _Block(half, 1)
        self.predict = _conv(half, 8)
        nn.init.zeros_(self.predict.weight)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            inputs: (B, WORKING_INPUTS, h, w) in [0, 1]; h and w are multiples of STRIDE.

        Returns:
            alpha (B, h, w), not yet cut off at 0 and 1, and the softness (B, h, w) as a logit.
        """
        half = self.stem(F.pixel_unshuffle(inputs - 0.5, 2))  # (B, c, h/2, w/2)
        quarter = self.down_quarter(half)
        x = self.down_eighth(quarter)
        for block in self.blocks:
            x = block(x)
        x = self.at_quarter(torch.relu(quarter + _doubled(self.up_quarter(x))))
        x = self.at_half(torch.relu(half + _doubled(self.up_half(x))))
        change, soft = F.pixel_shuffle(self.predict(x), 2).unbind(1)  # (B, 2, h, w)
        return inputs[:, 3] + change, soft


class DetailNet(nn.Module):
    """Alpha at plate size, along the band."""

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        width = config.detail_channels
        layers: list[nn.Module] = [_conv(4 * DETAIL_INPUTS, width), nn.ReLU()]
        for _ in range(config.detail_blocks):
            layers += [_conv(width, width), nn.ReLU()]
        last = _conv(width, 4)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs (B, DETAIL_INPUTS, H, W) in [0, 1], H and W even -> alpha (B, H, W), not cut off."""
        change: Tensor = F.pixel_shuffle(self.layers(F.pixel_unshuffle(inputs - 0.5, 2)), 2)[:, 0]
        return inputs[:, 3] + change


class _Block(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, dilation=dilation)
        self.second = _conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # deep sums stay small without normalisation

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.relu(x + self.second(torch.relu(self.first(x))))
        return result


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _doubled(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def softness_of(mask: Tensor) -> float:
    """How wide the ramps of a mask (h, w) in [0, 1] are, in [0, 1]: working pixels over SOFTEST.

    A ramp of width w has an integral of 4 a (1 - a) of 2/3 w per pixel of outline, and the outline's length
    is the sum of the slope.
    """
    mask = mask.double()
    down, across = mask[1:, :-1] - mask[:-1, :-1], mask[:-1, 1:] - mask[:-1, :-1]
    outline = float(torch.sqrt(down * down + across * across).sum())
    if outline < 1.0:
        return 0.0
    width = 1.5 * float((4 * mask * (1 - mask)).sum()) / outline
    return min(1.0, width / SOFTEST)
