"""Finishing: from a probability at working size to a soft matte at plate resolution.

A guided filter (He, Sun, Tang: Guided Image Filtering, 2010; Fast Guided Filter, 2015) is fitted at working
size with the working picture as its guide. Its local linear model is applied to the plate's pixels, so edges
lie where the plate has them. The model is weighted by the share of the probability's detail that the plate
explains. Where the plate shows no edge the model would only blur, and the plain enlargement stays. Then the
transition, which the network spreads over its stride, is made steeper. Only a band around uncertain pixels is
computed, and only its colours are read from the plate. Elsewhere the matte is exactly 0 or 1. A wide filter
leaves a haze of the plate's texture. So the farther a pixel is from where the network is uncertain, the
nearer its value must be to one half for it to stay soft.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.finishing.band import (
    NEARLY_SURE,
    Guide,
    Places,
    box_around,
    dilated,
    plate_pixels,
    steeper,
    unsure_pixels,
    working_points,
)
from stm_plugin.images.working_picture import WorkingGeometry, inside_region, to_plate
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray

VERSION = 2
"""Enters the address of every matte; raise it when the same probabilities lead to another matte."""


_LEAST_DETAIL = 1e-4
"""Squared detail of the probability in a window: below this the window has no edge to explain."""


_SURE_PER_PIXEL = 0.04
"""How much the range that becomes 0 or 1 grows for each working pixel of distance from uncertain ones."""
_MOST_SURE = 0.3
_REACH = 2
"""How far a refined pixel depends on others, in radii: the window of the model, and that of its average."""
_COARSER = 4
"""How much smaller the picture is in which the trust alone is found."""
_POINTS_ABREAST = 1024
"""Width of the picture in which points are arranged for OpenCV."""


def finish(
    probability: FloatArray, guide: Guide, geometry: WorkingGeometry, settings: FinishSettings
) -> FloatArray:
    """One object's matte over the frame's data window.

    Args:
        probability: (h, w) in [0, 1] at working size.

    Returns:
        float32 (H, W) in [0, 1]: exactly 0 or 1 where the network is certain, 0 outside the region.
    """
    if settings.edges == "off":
        clean = steeper(probability, 1.0, min(NEARLY_SURE, settings.sure))
        return inside_region(to_plate(clean, guide.window, geometry), guide.window, geometry)
    return follow_plate(steeper(probability, 1.0, settings.sure), guide, geometry, settings)


def follow_plate(
    clean: FloatArray, guide: Guide, geometry: WorkingGeometry, settings: FinishSettings
) -> FloatArray:
    """The guided filter: values (h, w) at working size, enlarged to (H, W) along the edges of the plate.

    Args:
        clean: in [0, 1]; exactly 0 or 1 where it is certain.
        settings: their radius, epsilon, sharpness and sure are used.
    """
    matte = to_plate(clean, guide.window, geometry)
    unsure = unsure_pixels(clean)
    if unsure.any():
        reach = _REACH * settings.radius + 1
        rows, columns = plate_pixels(dilated(unsure, reach), guide.window, geometry)
        box = box_around(unsure, reach + 4 * settings.radius)  # margin for windows, means, detail and trust
        band = dilated(unsure, reach + settings.radius)[box]
        model, trust = trusted_model(
            guide.working[:, *box], clean[box], band, settings.radius, settings.epsilon
        )
        flat = matte.reshape(-1)
        places = rows * guide.window.width + columns
        x, y = working_points(rows, columns, guide.window, geometry)
        x, y = x - box[1].start, y - box[0].start
        refined, shares = flat[places], _looked_up(trust, x, y)
        some = np.flatnonzero(shares)  # where the model has any weight
        colours = guide.colours(places[some])
        refined[some] = _refined(refined[some], _looked_up(model, x[some], y[some]), shares[some], colours)
        far = np.asarray(cv2.distanceTransform(1 - unsure[box], cv2.DIST_L2, 3), np.float32)
        sure = np.clip(_looked_up(far, x, y) * np.float32(_SURE_PER_PIXEL), settings.sure, _MOST_SURE)
        flat[places] = steeper(refined, settings.sharpness, np.maximum(sure, np.float32(settings.sure)))
    return inside_region(matte, guide.window, geometry)


def trust_at_working_size(clean: FloatArray, picture: FloatArray, settings: FinishSettings) -> FloatArray:
    """How far (h, w) the filter may be trusted, in [0, 1]; found at a quarter of the size: windows are wide.

    Args:
        clean: (h, w) in [0, 1].
        picture: (3, h, w), the working picture.
        settings: radius and epsilon count.
    """
    height, width = clean.shape
    size = (max(1, width // _COARSER), max(1, height // _COARSER))
    r, g, b, values = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (*picture, clean))
    band, radius = np.ones(values.shape, np.uint8), max(1, settings.radius // _COARSER)
    _, trust = trusted_model(
        np.stack([r, g, b]), np.asarray(values, np.float32), band, radius, settings.epsilon
    )
    return np.asarray(cv2.resize(trust, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _refined(plain: FloatArray, model: FloatArray, shares: FloatArray, colours: FloatArray) -> FloatArray:
    """The matte (N,) at N plate pixels: the local model of their colours, weighted by its trust.

    Args:
        plain: (N,), the plain enlargement.
        model: (N, 4), slopes and offset, times the trust.
        shares: (N,), the trust.
        colours: (N, 3), of the plate.
    """
    refined = plain * (1.0 - shares) + model[:, 3]
    refined += np.einsum("nc,nc->n", model[:, :3], colours)
    return np.asarray(refined, dtype=np.float32)


def _looked_up(values: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Working values (h, w[, C]) at the points x, y (N,), bilinear; outside, the values of the border are
    repeated."""
    count = x.size
    if not count:
        return np.zeros((0, *values.shape[2:]), np.float32)
    padding = (0, -count % _POINTS_ABREAST)
    across, down = (np.pad(one, padding).reshape(-1, _POINTS_ABREAST) for one in (x, y))
    found = cv2.remap(values, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, dtype=np.float32).reshape(-1, *values.shape[2:])[:count]


def trusted_model(
    guide: FloatArray, values: FloatArray, band: npt.NDArray[np.uint8], radius: int, epsilon: float
) -> tuple[FloatArray, FloatArray]:
    """The guided filter's local model, values ~ slopes . guide + offset, and the trust in it.

    The model of a window is fitted to it and averaged over all windows that a pixel lies in. The trust is the
    share of the local detail of `values` that the guide explains; detail is what a blur of the model's size
    loses. Away from edges there is no detail, the trust is 0 and the model changes nothing.

    Window means are computed everywhere, as that is fast; all else on the band alone.

    Args:
        guide: (3, h, w) in [0, 1].
        values: (h, w).
        band: (h, w), not 0 where the model is needed and `radius` around it.
        epsilon: variance of the guide below which a window counts as flat.

    Returns:
        (h, w, 4): the slopes of the three channels and the offset, times the trust; (h, w): the trust in
        [0, 1]. Both 0 off the band.
    """
    places = np.flatnonzero(band)
    r, g, b = guide
    pairs = ((r, r), (r, g), (r, b), (g, g), (g, b), (b, b), (r, values), (g, values), (b, values))
    # One after the other, so that they fit into the processor's cache: the means (13, N) of r, g, b and the
    # values v; of rr, rg, rb, gg, gb, bb; of rv, gv, bv.
    means = [_mean_at(one, radius, places) for one in (r, g, b, values)]
    product = np.empty_like(values)
    means += [_mean_at(np.multiply(a, b, out=product), radius, places) for a, b in pairs]
    coefficients = _fitted(means, epsilon)  # (4, N)
    on_band = np.zeros(band.shape, np.float32)  # used again for each channel: off the band it stays 0
    model = np.stack([_mean_at(_put(one, places, on_band), radius, places) for one in coefficients])

    colours = np.stack([one[band > 0] for one in guide])  # (3, N)
    fitted = model[3] + np.einsum("cn,cn->n", colours, model[:3])
    errors = np.square(np.clip(fitted, 0, 1) - values.reshape(-1)[places])
    unexplained = _mean_at(_put(errors, places, on_band), radius, places)
    blurred = _mean(_mean(values, radius), radius)
    detail = _mean_at(np.square(np.subtract(blurred, values, out=product), out=product), radius, places)
    share = 1.0 - unexplained / np.maximum(detail, np.float32(_LEAST_DETAIL))
    trust = np.where(detail > 0, np.clip(share, 0.0, 1.0), np.float32(0.0))
    model *= trust
    maps = np.zeros((*band.shape, 4), np.float32)
    maps.reshape(-1, 4)[places] = model.T
    return maps, _put(trust, places, on_band)


def _fitted(means: list[FloatArray], epsilon: float) -> FloatArray:
    """(4, N): slopes and offset of the least-squares fit, from the 13 means (N,)."""
    r, g, b, value = means[:4]
    # The symmetric covariance matrix of the guide, and the guide's covariance with the values
    rr, rg, rb = means[4] - r * r + epsilon, means[5] - r * g, means[6] - r * b
    gg, gb, bb = means[7] - g * g + epsilon, means[8] - g * b, means[9] - b * b + epsilon
    rv, gv, bv = means[10] - r * value, means[11] - g * value, means[12] - b * value
    # slope = inverse(covariance matrix) . covariance, by cofactors
    i_rr, i_rg, i_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    i_gg, i_gb, i_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    scale = 1.0 / np.maximum(rr * i_rr + rg * i_rg + rb * i_rb, np.float32(epsilon**3))
    fitted = np.empty((4, r.size), np.float32)
    fitted[0] = (i_rr * rv + i_rg * gv + i_rb * bv) * scale
    fitted[1] = (i_rg * rv + i_gg * gv + i_gb * bv) * scale
    fitted[2] = (i_rb * rv + i_gb * gv + i_bb * bv) * scale
    fitted[3] = value - fitted[0] * r - fitted[1] * g - fitted[2] * b
    return fitted


def _put(values: FloatArray, places: Places, picture: FloatArray) -> FloatArray:
    """The same picture (h, w), with values (N,) written at their places."""
    picture.reshape(-1)[places] = values
    return picture


def _mean_at(values: FloatArray, radius: int, places: Places) -> FloatArray:
    """(N,): means over square windows at places of a picture (h, w)."""
    means: FloatArray = _mean(values, radius).reshape(-1)[places]
    return means


def _mean(values: FloatArray, radius: int) -> FloatArray:
    """Means over square windows, (h, w)."""
    side = (2 * radius + 1, 2 * radius + 1)
    means = cv2.boxFilter(np.ascontiguousarray(values), cv2.CV_32F, side, borderType=cv2.BORDER_REFLECT)
    return np.asarray(means, dtype=np.float32)
