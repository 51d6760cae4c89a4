"""The edge refiner: from a coarse probability to alpha.

A guided filter (He, Sun, Tang, 2010) with two window sizes computes the alpha that follows the picture's
colours. A small network of plain convolutions gets this, the picture at working size, and the probabilities
of the frame and of its neighbours. It returns alpha (a mix of filter and probability, and a correction) and
the probability that a pixel is soft.

Nothing is normalised over a batch or a picture, so a pixel depends on its surroundings only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUTS = 9
"""R, G, B; probability of the frame, of the frames before and after, of the other objects; softness of the
keys; how likely the colour is the object's (`model.inference.colour_likelihood`)."""
REACH = 16
"""Working pixels of margin around what is refined; what lies farther away hardly counts."""
FILTERS = (32, 12)
"""Radii of the guided filters in working pixels, multiples of 4."""
STRIDE = 8
"""Pictures at working size are padded to multiples of it."""
FLAT = 1e-4
"""Variance of the colours below which a window counts as flat: 1 % of the range, squared."""
SOFTEST = 16.0
"""Working pixels: a ramp of a key with this width or more counts as 1."""


@dataclass(frozen=True)
class EdgeConfig:
    """The configuration of an edge refiner.

    Args:
        name: the registered name, written into the weights' manifest.
        channels: at 1/2, 1/4 and 1/8 of the working size.
        dilations: of its blocks at 1/8.
    """

    name: str
    channels: tuple[int, int, int]
    dilations: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        """As JSON-ready values, for checkpoints and manifests."""
        return asdict(self)


EDGE_NETWORKS: dict[str, EdgeConfig] = {
    config.name: config for config in (EdgeConfig("edges-lite", channels=(24, 48, 64), dilations=(1, 2, 1)),)
}


def edge_config(name: str) -> EdgeConfig:
    """The configuration registered under `name`.

    Raises:
        ValueError: there is no such refiner; the text lists those that exist.
    """
    try:
        return EDGE_NETWORKS[name]
    except KeyError:
        raise ValueError(f"unknown edge refiner {name!r}; known are {', '.join(EDGE_NETWORKS)}") from None


class EdgeRefiner(nn.Module):
    """Alpha and softness at working size.

    The network works at 1/2 (2 x 2 pixels as channels), 1/4 and 1/8 of the picture's size, and back.
    """

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self.config = config
        half, quarter, eighth = config.channels
        known = INPUTS + len(FILTERS)
        self.stem = nn.Sequential(_conv(4 * known, half), nn.ReLU(), _conv(half, half), nn.ReLU())
        self.down_quarter = nn.Sequential(
            _conv(half, quarter, stride=2), nn.ReLU(), _conv(quarter, quarter), nn.ReLU()
        )
        self.down_eighth = nn.Sequential(_conv(quarter, eighth, stride=2), nn.ReLU())
        self.blocks = nn.ModuleList([_Block(eighth, dilation) for dilation in config.dilations])
        self.up_quarter = nn.Conv2d(eighth, quarter, 1)
        self.at_quarter = _Block(quarter, 1)
        self.up_half = nn.Conv2d(quarter, half, 1)
        self.at_half = _Block(half, 1)
        self.predict = _conv(half, 12)
        nn.init.zeros_(self.predict.weight)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(self, inputs: Tensor, filtered: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Refine a batch.

        Args:
            inputs: (B, INPUTS, h, w) in [0, 1]; h and w are multiples of STRIDE.
            filtered: (B, len(FILTERS), h, w), the guided filters, where they are already computed.

        Returns:
            alpha (B, h, w), not yet clipped to [0, 1], and the softness (B, h, w) as a logit.
        """
        picture, own = inputs[:, :3].float(), inputs[:, 3].float()
        if filtered is None:
            filtered = torch.stack([guided(picture, own, radius) for radius in FILTERS], 1)
        known = torch.cat([inputs, filtered], 1)  # (B, INPUTS + 2, h, w)
        half = self.stem(F.pixel_unshuffle(known - 0.5, 2))  # (B, c, h/2, w/2)
        quarter = self.down_quarter(half)
        x = self.down_eighth(quarter)
        for block in self.blocks:
            x = block(x)
        x = self.at_quarter(torch.relu(quarter + _doubled(self.up_quarter(x))))
        x = self.at_half(torch.relu(half + _doubled(self.up_half(x))))
        change, soft, trust = F.pixel_shuffle(self.predict(x), 2).unbind(1)  # (B, 3, h, w)
        return own + trust.sigmoid() * (filtered[:, 0] - own) + change, soft


def guided(picture: Tensor, values: Tensor, radius: int) -> Tensor:
    """The guided filter: the values of a picture's pixels by the local linear model of its colours.

    The model is fitted at a quarter of the size (Fast Guided Filter, 2015).

    Args:
        picture: (B, 3, h, w) in [0, 1]; values: (B, h, w) in [0, 1]; h and w are multiples of 4.
        radius: of the square windows in pixels, a multiple of 4.

    Returns:
        (B, h, w) in [0, 1].
    """
    with torch.autocast(picture.device.type, enabled=False):
        r, g, b = picture.unbind(1)
        products = (r * r, r * g, r * b, g * g, g * b, b * b, r * values, g * values, b * values)
        means = _window_means(F.avg_pool2d(torch.stack([r, g, b, values, *products], 1), 4), radius // 4)
        slopes = _window_means(fitted_slopes(means), radius // 4)  # (B, 4, h/4, w/4)
        slopes = F.interpolate(slopes, scale_factor=4, mode="bilinear", align_corners=False)
        return ((slopes[:, :3] * picture).sum(1) + slopes[:, 3]).clamp(0, 1)


def fitted_slopes(means: Tensor, flat: float = FLAT) -> Tensor:
    """(B, 4, h, w): slopes and offset of the least squares, from the 13 means (B, 13, h, w).

    Args:
        means: as for `model.inference.guided_filter.fitted_slopes`.
        flat: variance of the colours below which a window counts as flat.
    """
    r, g, b, v = means[:, :4].unbind(1)
    rr, rg, rb = means[:, 4] - r * r + flat, means[:, 5] - r * g, means[:, 6] - r * b
    gg, gb, bb = means[:, 7] - g * g + flat, means[:, 8] - g * b, means[:, 9] - b * b + flat
    rv, gv, bv = means[:, 10] - r * v, means[:, 11] - g * v, means[:, 12] - b * v
    # slope = inverse(covariance matrix) . covariance, by cofactors
    i_rr, i_rg, i_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    i_gg, i_gb, i_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1 / (rr * i_rr + rg * i_rg + rb * i_rb).clamp_min(flat**3)
    slopes = (
        (i_rr * rv + i_rg * gv + i_rb * bv) * scale,
        (i_rg * rv + i_gg * gv + i_gb * bv) * scale,
        (i_rb * rv + i_gb * gv + i_bb * bv) * scale,
    )
    return torch.stack([*slopes, v - slopes[0] * r - slopes[1] * g - slopes[2] * b], 1)


def _window_means(values: Tensor, radius: int) -> Tensor:
    """Means over square windows, clipped at the border, (B, C, h, w)."""
    side = 2 * radius + 1
    across = F.avg_pool2d(values, (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(across, (side, 1), 1, (radius, 0), count_include_pad=False)


class _Block(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, dilation=dilation)
        self.second = _conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # keeps sums small without normalisation

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
    """The width of the ramps of a mask (h, w) in [0, 1]: working pixels over SOFTEST, in [0, 1].

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
