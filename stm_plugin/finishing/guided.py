"""Finishing: from a probability at working size to a soft matte at plate resolution.

A guided filter (He, Sun, Tang: Guided Image Filtering, 2010; Fast Guided Filter, 2015) is fitted at working
size with the working picture as its guide. Its local linear model is applied to the plate's pixels, so edges
lie where the plate has them. The model is weighted by the share of the probability's detail that the plate
explains. Where the plate shows no edge the model would only blur, and the plain enlargement stays. Then the
transition, which the network spreads over its stride, is made steeper. Only a band around uncertain pixels is
computed, tile by tile, and only its colours are read from the plate. Elsewhere the matte is exactly 0 or 1. A
wide filter leaves a haze of the plate's texture. So the farther a pixel is from where the network is
uncertain, the nearer its value must be to one half for it to stay soft.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from model.inference.guided_filter import fitted_slopes
from stm_plugin.finishing.band import (
    NEARLY_SURE,
    Guide,
    Places,
    Tile,
    box_around,
    dilated,
    enlarged,
    plate_tiles,
    steeper,
    unsure_pixels,
    working_points,
)
from stm_plugin.finishing.whole_frame import FilterShape, follow_plate_on
from stm_plugin.images.working_picture import WorkingGeometry, inside_region, to_plate
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray

VERSION = 3
"""Enters the address of every matte; raise it when the same probabilities give another matte."""


LEAST_DETAIL = 1e-4
"""Squared detail of the probability in a window: below this the window has no edge to explain."""


SURE_PER_PIXEL = 0.04
"""How much the range that becomes 0 or 1 grows for each working pixel of distance from uncertain ones."""
MOST_SURE = 0.3
REACH = 2
"""Radii that a refined pixel looks far: its model, and the model's average."""
_FITTED_AT_ONCE = 1 << 13
"""Working pixels: what is computed of them stays in the processor's cache."""
_MAPS = 6
"""What is looked up for each plate pixel: three slopes, offset, trust, distance from unsure pixels."""
COARSER = 4
"""How much smaller the picture is in which the trust alone is found."""


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
    if guide.on_device is not None and guide.window == geometry.region:
        return follow_plate_on(clean, guide.working, guide.on_device, _filter_shape(settings))
    matte = to_plate(clean, guide.window, geometry)
    unsure = unsure_pixels(clean)
    if unsure.any():
        reach = REACH * settings.radius + 1
        box = box_around(unsure, reach + 4 * settings.radius)  # windows, means, detail, the trust in it
        band = dilated(unsure, reach + settings.radius)[box]
        maps = np.empty((_MAPS, *band.shape), np.float32)
        model, trust = trusted_model(
            guide.working[:, *box], clean[box], band, settings.radius, settings.epsilon
        )
        maps[:4], maps[4] = model, trust
        maps[5] = cv2.distanceTransform(1 - unsure[box], cv2.DIST_L2, 3)
        maps[5] *= np.float32(SURE_PER_PIXEL)
        # Elsewhere nothing would change: there is no trust, and the matte is 0 or 1.
        soft = (trust > 0) | (clean[box] > 0) & (clean[box] < 1) | (unsure[box] > 0)
        changing = dilated(soft.view(np.uint8), 1) & dilated(unsure, reach)[box]
        x, y = working_points(guide.window, geometry)
        x, y = x - np.float32(box[1].start), y - np.float32(box[0].start)
        for tile in plate_tiles(changing, box, guide.window, geometry):
            part = matte[tile]
            values = enlarged(maps, x[tile[1]], y[tile[0]])
            _refine(part, values, guide, tile)
            sure = np.clip(values[5], settings.sure, max(MOST_SURE, settings.sure))
            part[:] = steeper(part, settings.sharpness, sure)
    return inside_region(matte, guide.window, geometry)


def _filter_shape(settings: FinishSettings) -> FilterShape:
    """What a graphics card must know to do as `follow_plate` does."""
    return FilterShape(
        radius=settings.radius,
        reach=REACH * settings.radius + 1,
        epsilon=settings.epsilon,
        least_detail=LEAST_DETAIL,
        sharpness=settings.sharpness,
        sure=settings.sure,
        per_pixel=SURE_PER_PIXEL,
        most_sure=MOST_SURE,
    )


def trust_at_working_size(clean: FloatArray, picture: FloatArray, settings: FinishSettings) -> FloatArray:
    """How far (h, w) the filter may be trusted, in [0, 1]; found at a quarter of the size: windows are wide.

    Args:
        clean: (h, w) in [0, 1].
        picture: (3, h, w), the working picture.
        settings: radius and epsilon count.
    """
    height, width = clean.shape
    size = (max(1, width // COARSER), max(1, height // COARSER))
    r, g, b, values = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in (*picture, clean))
    band, radius = np.ones(values.shape, np.uint8), max(1, settings.radius // COARSER)
    _, trust = trusted_model(
        np.stack([r, g, b]), np.asarray(values, np.float32), band, radius, settings.epsilon
    )
    return np.asarray(cv2.resize(trust, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _refine(part: FloatArray, values: FloatArray, guide: Guide, tile: Tile) -> None:
    """Change a part (n, m) of the matte to what the local model says of the plate's colours, as far as it is
    trusted.

    Args:
        part: the plain enlargement.
        values: (`_MAPS`, n, m): slopes and offset, times the trust; the trust.
    """
    trust = values[4]
    if not trust.any():
        return
    np.subtract(np.float32(1.0), trust, out=trust)
    part *= trust
    part += values[3]
    for slope, colour in zip(values[:3], cv2.split(guide.colours(*tile)), strict=True):
        slope *= colour
        part += slope


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
        (4, h, w): the slopes of the three channels and the offset, times the trust; (h, w): the trust in
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
    coefficients = np.empty((4, places.size), np.float32)
    for start in range(0, places.size, _FITTED_AT_ONCE):
        some = slice(start, start + _FITTED_AT_ONCE)
        coefficients[:, some] = fitted_slopes([one[some] for one in means], epsilon)
    on_band = np.zeros(band.shape, np.float32)  # for one after the other: off the band it stays 0
    model = np.stack([_mean_at(_put(one, places, on_band), radius, places) for one in coefficients])

    colours = np.stack([one[band > 0] for one in guide])  # (3, N)
    fitted = model[3] + np.einsum("cn,cn->n", colours, model[:3])
    errors = np.square(np.clip(fitted, 0, 1) - values.reshape(-1)[places])
    unexplained = _mean_at(_put(errors, places, on_band), radius, places)
    blurred = _mean(_mean(values, radius), radius)
    detail = _mean_at(np.square(np.subtract(blurred, values, out=product), out=product), radius, places)
    share = 1.0 - unexplained / np.maximum(detail, np.float32(LEAST_DETAIL))
    trust = np.where(detail > 0, np.clip(share, 0.0, 1.0), np.float32(0.0))
    model *= trust
    maps = np.zeros((4, *band.shape), np.float32)
    maps.reshape(4, -1)[:, places] = model
    return maps, _put(trust, places, on_band)


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
