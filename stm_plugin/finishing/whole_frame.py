"""The guided filter of `finishing/guided.py` on the network's device, over the whole frame at once.

A processor works on a band around uncertain pixels, tile by tile. A graphics card has the whole frame done
before a band would be cut. The results differ by less than 1/1024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.inference.device_copies import begin_download, own_stream, uploaded
from stm_plugin.images.device_pictures import DevicePictures
from stm_plugin.windows import FloatArray, PixelArray


@dataclass(frozen=True)
class FilterShape:
    """What the filter is told (`finishing/guided.py`).

    Attributes:
        radius: working pixels; `reach` of them around uncertain pixels are refined.
        least_detail: squared detail of the values in a window below which nothing is explained.
        sure, per_pixel, most_sure: values within this of 0 or 1 become 0 or 1, more for each working pixel of
            distance from uncertain ones, at most this.
    """

    radius: int
    reach: int
    epsilon: float
    least_detail: float
    sharpness: float
    sure: float
    per_pixel: float
    most_sure: float


@dataclass(frozen=True, eq=False)
class DeviceGuide:
    """A plate frame for the filter on a device.

    Attributes:
        pixels: (H, W, 3), over the region.
    """

    pictures: DevicePictures
    pixels: PixelArray


_ROWS = 128
"""Plate rows that are enlarged together: some 50 MB of maps at 4K."""
_STRAIGHT, _SLANTED = 0.955, 1.3693
"""Lengths of a step in OpenCV's distance transform with a mask of 3 x 3."""


def follow_plate_on(
    clean: FloatArray, working: FloatArray, guide: DeviceGuide, how: FilterShape
) -> FloatArray:
    """Values (h, w) at working size, enlarged to (H, W) along the edges of the plate, in [0, 1].

    Args:
        clean: in [0, 1]; exactly 0 or 1 where it is certain.
        working: (3, h, w), the working picture.
    """
    device = guide.pictures.device
    height, width = guide.pixels.shape[:2]
    with torch.inference_mode(), own_stream(device):
        values = torch.from_numpy(clean).to(device)
        maps = _maps(values, torch.from_numpy(working).to(device), how)  # (6, h, w)
        matte = torch.empty(height, width, device=device)
        pixels = uploaded(guide.pixels, device)
        for top in range(0, height, _ROWS):
            rows = slice(top, min(height, top + _ROWS))
            near = _enlarged(torch.cat([maps, values[None]]), rows, height, width)
            part = near[6].mul_(1 - near[4]).add_(near[3])
            part += (near[:3] * guide.pictures.to_display(pixels[rows]).permute(2, 0, 1)).sum(dim=0)
            sure = near[5].clamp_(how.sure, max(how.most_sure, how.sure))
            stretch = how.sharpness / (1 - 2 * sure)
            matte[rows] = ((part - 0.5) * stretch).add_(0.5).clamp_(0.0, 1.0)
        result: FloatArray = begin_download(matte)().numpy()
    return result


def _maps(clean: Tensor, picture: Tensor, how: FilterShape) -> Tensor:
    """(6, h, w): three slopes and the offset, times the trust; the trust; what is sure by distance."""
    unsure = _highest(clean, 1) > -_highest(-clean, 1)
    if not bool(unsure.any()):
        return clean.new_zeros(6, *clean.shape)
    band = _highest(unsure.float(), how.reach + how.radius)
    r, g, b = picture
    pairs = (r, r), (r, g), (r, b), (g, g), (g, b), (b, b), (r, clean), (g, clean), (b, clean)
    means = _means(torch.stack([r, g, b, clean, *(one * other for one, other in pairs)]), how.radius)
    model = _means(_slopes(means, how.epsilon) * band, how.radius)
    fitted = model[3] + (picture * model[:3]).sum(dim=0)
    errors = (fitted.clamp(0, 1) - clean).square() * band
    blurred = _means(_means(clean[None], how.radius), how.radius)[0]
    unexplained, detail = _means(torch.stack([errors, (blurred - clean).square()]), how.radius)
    share = (1 - unexplained / detail.clamp(min=how.least_detail)).clamp_(0, 1)
    trust = torch.where(detail > 0, share, 0.0) * band
    return torch.cat([model * trust, trust[None], _distance(unsure, how)[None] * how.per_pixel])


def _slopes(means: Tensor, epsilon: float) -> Tensor:
    """(4, h, w): the fit of `model.inference.guided_filter.fitted_slopes` from the same 13 means."""
    r, g, b, value = means[:4]
    rr, rg, rb = means[4] - r * r + epsilon, means[5] - r * g, means[6] - r * b
    gg, gb, bb = means[7] - g * g + epsilon, means[8] - g * b, means[9] - b * b + epsilon
    rv, gv, bv = means[10] - r * value, means[11] - g * value, means[12] - b * value
    i_rr, i_rg, i_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    i_gg, i_gb, i_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1.0 / (rr * i_rr + rg * i_rg + rb * i_rb).clamp(min=epsilon**3)
    red = (i_rr * rv + i_rg * gv + i_rb * bv) * scale
    green = (i_rg * rv + i_gg * gv + i_gb * bv) * scale
    blue = (i_rb * rv + i_gb * gv + i_bb * bv) * scale
    return torch.stack([red, green, blue, value - red * r - green * g - blue * b])


def _distance(unsure: Tensor, how: FilterShape) -> Tensor:
    """(h, w): the distance from unsure pixels by steps to neighbours, as far as it counts."""
    steps = int(how.most_sure / how.per_pixel / _STRAIGHT) + 3
    far = float(steps)
    away = torch.where(unsure, 0.0, far)
    for _ in range(steps):
        around = F.pad(away[None, None], (1, 1, 1, 1), value=far)[0, 0]
        up, here, down = around[:-2], around[1:-1], around[2:]
        straight = _least((up[:, 1:-1], down[:, 1:-1], here[:, :-2], here[:, 2:]))
        slanted = _least((up[:, :-2], up[:, 2:], down[:, :-2], down[:, 2:]))
        away = _least((away, straight + _STRAIGHT, slanted + _SLANTED))
    return away


def _least(several: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(several)).amin(dim=0)


def _highest(values: Tensor, reach: int) -> Tensor:
    """(h, w): the highest value in the square around each pixel; nothing beyond the border."""
    return F.max_pool2d(values[None], 2 * reach + 1, stride=1, padding=reach)[0]


def _means(planes: Tensor, radius: int) -> Tensor:
    """Means over square windows (C, h, w); at the border pixels are mirrored, the last one too."""
    for dim in (1, 2):
        length = planes.shape[dim]
        places = torch.arange(-radius, length + radius, device=planes.device)
        places = torch.where(places < 0, -1 - places, places)
        places = torch.where(places >= length, 2 * length - 1 - places, places).clamp_(0, length - 1)
        planes = planes.index_select(dim, places)
    # A variance is a small difference of means: sums must be as exact as those of the processor's way.
    return F.avg_pool2d(planes[None].double(), 2 * radius + 1, stride=1)[0].float()


def _enlarged(maps: Tensor, rows: slice, height: int, width: int) -> Tensor:
    """Maps (C, h, w) at some rows of (C, height, width), bilinear; the border goes on beyond them."""
    top, bottom, down = _neighbours(rows.start, rows.stop, height, maps.shape[1], maps.device)
    left, right, across = _neighbours(0, width, width, maps.shape[2], maps.device)
    strip = torch.lerp(maps[:, top], maps[:, bottom], down[:, None])
    return torch.lerp(strip[:, :, left], strip[:, :, right], across)


def _neighbours(
    start: int, stop: int, length: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and behind each place, of `count`, and how far it lies between them."""
    places = torch.arange(start, stop, device=device, dtype=torch.float64)
    points = ((places + 0.5) * (count / length) - 0.5).clamp_(0, count - 1)
    before = points.long()
    return before, (before + 1).clamp_(max=count - 1), (points - before).float()
