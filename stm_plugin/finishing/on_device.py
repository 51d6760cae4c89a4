"""Learned edges on a CUDA card: the refiner and closed form.

The functions equal those of `learned`, `matting` and `guided` up to rounding; each names the one it stands
for. What looks for connected parts stays on the CPU, at working size. `whole_frame` enlarges the result. Sums
are in double precision, which Apple's cards do not have: there `learned` finishes.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.inference.edges import FastRefiner
from model.network.edges import fitted_slopes
from stm_plugin.finishing import guided, learned, matting
from stm_plugin.finishing.band import NEARLY_SURE, Guide
from stm_plugin.finishing.learned import EdgeBox, EdgeEvidence
from stm_plugin.images.working_picture import WorkingGeometry
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray


def finish_on_device(
    evidence: EdgeEvidence,
    guide: Guide,
    geometry: WorkingGeometry,
    settings: FinishSettings,
    refiner: FastRefiner,
) -> FloatArray:
    """One object's matte over the frame's data window, as `learned.finish_learned`.

    Args:
        refiner: on the device; without fused convolutions if that is the CPU.
    """
    alpha = learned.alpha_at_working_size(evidence, guide.working, settings, refiner, alpha_in_box)
    return learned.enlarged_along_plate(alpha, guide, geometry, settings)


@torch.inference_mode()
def alpha_in_box(part: EdgeBox, settings: FinishSettings, refiner: FastRefiner) -> FloatArray:
    """`learned._alpha_in_box`: alpha (h, w) in the box."""
    device = refiner.device
    height, width = part.own.shape
    alpha, soft = (
        one[:height, :width] for one in refiner.refine_on_device(_sent(learned.inputs_of(part), device))
    )
    own, picture = _sent(part.own, device), _sent(part.picture, device)
    gate = _gate(soft, _wide_trust(own, picture, settings), part.larger)
    near = _sent(learned.near_contour(part.own, part.larger), device)
    alpha = own + gate * (_matted(picture, alpha, learned.PRIOR ** (gate * near)) - own)
    for key in part.evidence.carried:
        share = _sent(key.share[part.box], device)
        share = share * (1 - gate * (learned.HELD_BACK * (1 - key.softness)))
        alpha = alpha + share * (_sent(key.mask[part.box], device) - alpha)
    if settings.width < 1:
        alpha = _steeper(alpha, 1.0 / settings.width, 0.0)
    elif settings.width > 1:
        blurred = _gaussian(alpha, learned.WIDENING * (settings.width - 1.0))
        alpha = alpha + soft * (blurred - alpha)
    return _received(_steeper(alpha, 1.0, min(NEARLY_SURE, settings.sure)))


def _steeper(values: Tensor, sharpness: float, sure: float | Tensor) -> Tensor:
    """`band.steeper`."""
    stretch = sharpness / (1.0 - 2.0 * sure)
    return (values * stretch + (0.5 - 0.5 * stretch)).clamp(0, 1)


# ---- softness --------------------------------------------------------------------------------


def _gate(soft: Tensor, trust: Tensor, larger: float) -> Tensor:
    """`learned._gate`."""
    wide = _ramp(_opened(soft, learned.WIDE, larger), learned.WIDE_SOFT)
    narrow = _ramp(_opened(soft, learned.NARROW, larger), learned.NARROW_SOFT)
    return torch.maximum(wide, narrow * _ramp(trust, learned.TRUSTED))


def _opened(soft: Tensor, side: int, larger: float) -> Tensor:
    """`learned._opened`."""
    step = learned.COARSER
    held = _most(-_most(-soft, side), side + step)[::step, ::step]
    reach = round(learned.FADE * larger) // step
    spread = _gaussian(_most(held, 2 * reach + 1), reach)
    return _resized(spread, (soft.shape[0], soft.shape[1]))


def _ramp(values: Tensor, ends: tuple[float, float]) -> Tensor:
    share = ((values - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _wide_trust(clean: Tensor, picture: Tensor, settings: FinishSettings) -> Tensor:
    """`guided.trust_at_working_size`."""
    height, width = clean.shape
    size = (max(1, height // guided.COARSER), max(1, width // guided.COARSER))
    small = _narrowed(torch.cat([picture, clean[None]]), size)
    everywhere = torch.ones(size, dtype=torch.bool, device=clean.device)
    _, trust = _trusted_model(small[:3], small[3], everywhere, settings, coarser=guided.COARSER)
    return _resized(trust, (height, width))


def _trusted_model(
    picture: Tensor, values: Tensor, band: Tensor, settings: FinishSettings, coarser: int = 1
) -> tuple[Tensor, Tensor]:
    """`guided.trusted_model`: (4, h, w) and (h, w)."""
    radius = max(1, settings.radius // coarser)
    r, g, b = picture
    planes = [r, g, b, values, r * r, r * g, r * b, g * g, g * b, b * b, r * values, g * values, b * values]
    means = _means(torch.stack(planes), radius)
    slopes = fitted_slopes(means[None], settings.epsilon)[0].where(band, 0)
    model = _means(slopes, radius)
    fitted = (model[3] + (model[:3] * picture).sum(0)).clamp(0, 1)
    unexplained = _means((fitted - values).square().where(band, 0)[None], radius)[0]
    blurred = _means(_means(values[None], radius), radius)[0]
    detail = _means((blurred - values).square()[None], radius)[0]
    share = (1 - unexplained / detail.clamp_min(guided.LEAST_DETAIL)).clamp(0, 1)
    trust = share.where((detail > 0) & band, 0)
    return model * trust, trust


# ---- closed form -----------------------------------------------------------------------------


def _matted(picture: Tensor, prior: Tensor, weight: Tensor) -> Tensor:
    """`matting.matted`."""
    height, width = prior.shape
    size = (max(1, height // matting.HALF), max(1, width // matting.HALF))
    small = _narrowed(torch.cat([picture, torch.stack([prior, weight])]), size)
    known, tied = small[3], small[4]
    alpha = _solved(_Laplacian(small[:3]), known, tied, (tied < 1).float())
    return (prior + _resized(alpha - known, (height, width))).clamp(0, 1)


class _Laplacian:
    """`matting._Laplacian`."""

    def __init__(self, picture: Tensor) -> None:
        self.count = _sums(torch.ones_like(picture[:1]))[0]
        r, g, b = double = picture.double()
        products = torch.stack([r, g, b, r * r, r * g, r * b, g * g, g * b, b * b])
        means = _sums(products) / self.count.double()
        mr, mg, mb = means[:3]
        rr, rg, rb = means[3] - mr * mr + matting.FLAT, means[4] - mr * mg, means[5] - mr * mb
        gg, gb = means[6] - mg * mg + matting.FLAT, means[7] - mg * mb
        bb = means[8] - mb * mb + matting.FLAT
        matrix = torch.stack([rr, rg, rb, rg, gg, gb, rb, gb, bb], -1).view(*picture.shape[1:], 3, 3)
        self._inverse = torch.linalg.inv(matrix).float()  # (h, w, 3, 3)
        self._picture, self._means = double.float(), means[:3].float()

    def times(self, values: Tensor) -> Tensor:
        """Its product with a picture (h, w)."""
        summed = _sums(torch.cat([values[None], self._picture * values])) / self.count
        mean, products = summed[0], summed[1:]
        slopes = torch.einsum("hwij,jhw->ihw", self._inverse, products - self._means * mean)
        offset = mean - (slopes * self._means).sum(0)
        back = _sums(torch.cat([offset[None], slopes]))
        return self.count * values - back[0] - (back[1:] * self._picture).sum(0)


def _solved(laplacian: _Laplacian, prior: Tensor, weight: Tensor, free: Tensor) -> Tensor:
    """`matting._solved`. It has no early end, for which the card would have to be asked."""
    tie = weight * laplacian.count
    scale = free / (laplacian.count + tie)
    alpha = prior
    rest = -free * laplacian.times(alpha)
    ahead = scale * rest
    size = _dot(rest, ahead)
    for _ in range(matting.STEPS):
        product = free * (laplacian.times(ahead) + tie * ahead)
        step = (size / _dot(ahead, product).clamp_min(1e-20)).float()
        alpha = alpha + step * ahead
        rest = rest - step * product
        smooth = scale * rest
        before, size = size, _dot(rest, smooth)
        ahead = smooth + (size / before.clamp_min(1e-30)).float() * ahead
    return alpha


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dtype=torch.float64)


# ---- windows and sizes -----------------------------------------------------------------------


def _sums(planes: Tensor) -> Tensor:
    """`matting._sums` of each picture (C, h, w)."""
    return F.avg_pool2d(planes, 3, 1, 1, divisor_override=1)


def _means(planes: Tensor, radius: int) -> Tensor:
    """`guided._mean` of each picture (C, h, w): the border is mirrored.

    In double precision, as differences of means of squares are small.
    """
    padded = _mirrored(planes.double(), radius, edge_twice=True)
    side = 2 * radius + 1
    return F.avg_pool2d(F.avg_pool2d(padded, (1, side), 1), (side, 1), 1).float()


def _most(picture: Tensor, side: int) -> Tensor:
    """The greatest value of a square window around each pixel (h, w)."""
    across = F.max_pool2d(picture[None], (1, side), 1, (0, side // 2))
    return F.max_pool2d(across, (side, 1), 1, (side // 2, 0))[0]


def _gaussian(picture: Tensor, sigma: float) -> Tensor:
    """`cv2.GaussianBlur` of a picture (h, w), with the size that it chooses."""
    size = round(sigma * 8 + 1) | 1
    kernel = torch.from_numpy(cv2.getGaussianKernel(size, sigma)).to(picture).reshape(-1)
    padded = _mirrored(picture[None], size // 2, edge_twice=False)[None]
    across = F.conv2d(padded, kernel[None, None, None])
    return F.conv2d(across, kernel[None, None, :, None])[0, 0]


def _mirrored(planes: Tensor, reach: int, *, edge_twice: bool) -> Tensor:
    """Pictures (C, h, w) with a mirrored margin, however small they are."""
    down, across = (
        _mirrored_places(length, reach, edge_twice=edge_twice).to(planes.device)
        for length in planes.shape[1:]
    )
    return planes[:, down][..., across]


def _mirrored_places(length: int, reach: int, *, edge_twice: bool) -> Tensor:
    """(length + 2 reach,): the pixel that stands at each place."""
    period = 2 * length if edge_twice else max(1, 2 * length - 2)
    places = torch.arange(-reach, length + reach) % period
    back = (period - 1 if edge_twice else period) - places
    return torch.where(places >= length, back, places)


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """`cv2.resize`, bilinear, of a picture (h, w) to a larger one."""
    return F.interpolate(picture[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def _narrowed(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """`cv2.resize` by area of pictures (C, h, w) to smaller ones (C, *size)."""
    down, across = (
        torch.from_numpy(_area_shares(length, target)).to(planes)
        for length, target in zip(planes.shape[1:], size, strict=True)
    )
    return torch.einsum("yh,chw,xw->cyx", down, planes, across)


def _area_shares(length: int, target: int) -> FloatArray:
    """(target, length): the part that each pixel has in each one of a narrower row."""
    edges = np.arange(target + 1) * (length / target)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(covered, 0, None) * (target / length), np.float32)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _received(values: Tensor) -> FloatArray:
    array: FloatArray = values.float().cpu().contiguous().numpy()
    return array
