"""Sparse keys: a point gets a key only where interpolation between its keys would exceed the tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.fit import PERCENTILE, Fit
from stm_plugin.shapes.values import bernstein

Array = npt.NDArray[np.float64]

_ALONG = 0.2
"""Weight of an error along the contour, relative to one across it: the curve hardly changes."""
_HANDLE = 0.4
"""Weight of a handle's error, relative to its point's: the curve follows a handle by at most 4/9."""
_TIGHTER = 0.85
"""What the points may be off on a frame that is outside the tolerance, relative to the round before."""
_ROUNDS = 12
_NO_WORSE = 1.1
"""Where one frame's Beziers are outside the tolerance, keys may make that worse by this factor."""


@dataclass(frozen=True, eq=False)
class Keyed:
    """Keys of one point: frames (K,) as indices into the lifetime, values (K, 8)."""

    frames: npt.NDArray[np.int64]
    values: Array


def keyed(fit: Fit, feather: Array, tracks: Array, tolerance: float) -> list[Keyed]:
    """Keys for every point.

    Args:
        fit: T frames, n points, M samples.
        feather: (T, n, 2) offsets of the feather points.
        tracks: (T, M, 2) the samples of the contour.
        tolerance: of the 95th percentile of the distances along the contour, in pixels.
    """
    values = np.concatenate([fit.values, feather[:, :, None]], axis=2).reshape(len(tracks), -1, 8)
    count = values.shape[1]
    weights = [_weights(values[:, i], tolerance) for i in range(count)]
    keys = [_best(values[:, i], np.unique([0, len(values) - 1])) for i in range(count)]
    goal = np.maximum(tolerance, _NO_WORSE * _off(values, fit, tracks))
    limit = np.full(len(values), tolerance)
    for _ in range(_ROUNDS):
        keys = [_sparse(values[:, i], weights[i], limit, one) for i, one in enumerate(keys)]
        shown = np.stack([interpolated(key, len(values)) for key in keys], axis=1)
        outside = _off(shown, fit, tracks) > goal
        if not outside.any():
            break
        limit[outside] *= _TIGHTER
    return keys


def _off(values: Array, fit: Fit, tracks: Array) -> Array:
    """(T,) how far the shape that the values (T, n, 8) make is off its contour."""
    off: Array = np.percentile(keyed_distances(values, fit, tracks), PERCENTILE, axis=1)
    return off


def interpolated(key: Keyed, frames: int) -> Array:
    """(T, 8) values of a point on every frame."""
    return _hats(key.frames, frames) @ key.values


def _hats(keys: npt.NDArray[np.int64], frames: int) -> Array:
    """(T, K) how much each key counts on each frame; every row sums to 1."""
    times = np.arange(frames)
    hats = np.zeros((frames, len(keys)))
    if len(keys) == 1:
        hats[:] = 1
        return hats
    before = np.clip(np.searchsorted(keys, times, side="right") - 1, 0, len(keys) - 2)
    share = np.clip((times - keys[before]) / (keys[before + 1] - keys[before]), 0, 1)
    hats[times, before] = 1 - share
    hats[times, before + 1] = share
    return hats


def _weights(values: Array, tolerance: float) -> Array:
    """(T, 5, 8): the weights of five error measures of a point's values, in pixels."""
    way = values[:, 4:6] - values[:, 2:4]
    way = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
    off = np.stack([way[:, 1], -way[:, 0]], axis=1)
    rows = np.zeros((len(values), 5, 8))
    rows[:, 0, 0:2] = off
    rows[:, 1, 0:2] = _ALONG * way
    rows[:, 2, 2:4] = _HANDLE * off
    rows[:, 3, 4:6] = _HANDLE * off
    width = np.linalg.norm(values[:, 6:8], axis=1)
    rows[:, 4, 6:8] = off * (tolerance / np.maximum(1.5, 0.15 * width))[:, None]
    return rows


def _sparse(values: Array, weights: Array, limit: Array, key: Keyed) -> Keyed:
    """`key` with few frames more that keep every measure below `limit` (T,), and with the best values for
    the frames around them."""
    frames = [int(frame) for frame in key.frames]
    while True:
        off = (
            np.abs(weights @ (interpolated(key, len(values)) - values)[..., None])[..., 0].max(axis=1) / limit
        )
        if len(frames) == len(values) or off.max() <= 1:
            return key
        off[frames] = -1.0  # a key that is wrong to suit its neighbours: these get keys, too
        frames = sorted({*frames, int(np.argmax(off))})
        key = _best(values, np.array(frames, dtype=np.int64))


def _best(values: Array, frames: npt.NDArray[np.int64]) -> Keyed:
    """Values at the keys so that interpolation between them fits all frames (least squares)."""
    hats = _hats(frames, len(values))
    ridge = 1e-6 * np.eye(len(frames))
    best = np.linalg.solve(hats.T @ hats + ridge, hats.T @ values + ridge @ values[frames])
    return Keyed(frames, np.asarray(best, dtype=np.float64))


def keyed_distances(values: Array, fit: Fit, tracks: Array) -> Array:
    """(T, M) distance of the contour's samples from the shape that the values (T, n, 8) make."""
    centre, incoming, outgoing = values[..., 0:2], values[..., 2:4], values[..., 4:6]
    after = np.roll(centre, -1, axis=1)
    curve = np.stack(
        [centre, centre + outgoing, after + np.roll(incoming, -1, axis=1), after], axis=2
    )  # (T, n, 4, 2)
    segment = np.searchsorted(fit.samples, np.arange(tracks.shape[1]), side="right") - 1
    segment = np.where(segment < 0, len(fit.samples) - 1, segment)
    chosen = curve[:, segment]  # (T, M, 4, 2)
    step = np.diff(chosen, axis=2) * 3
    place = fit.place
    for _ in range(2):  # towards the closest place: sliding along the contour is no error
        off = tracks - np.einsum("tmb,tmbc->tmc", bernstein(place), chosen)
        rest = 1 - place
        quadratic = np.stack([rest**2, 2 * rest * place, place**2], axis=-1)
        way = np.einsum("tmb,tmbc->tmc", quadratic, step)
        ahead = np.sum(off * way, axis=2) / np.maximum(np.sum(way * way, axis=2), 1e-9)
        place = np.clip(place + np.clip(ahead, -0.2, 0.2), 0, 1)
    distance: Array = np.linalg.norm(tracks - np.einsum("tmb,tmbc->tmc", bernstein(place), chosen), axis=2)
    return distance
