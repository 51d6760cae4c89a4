"""Few Bezier points for a contour over its lifetime: corners where it has corners, long smooth arcs between.

The points are the same samples of the contour on every frame, so they keep their identity. All frames are
fitted at once: the first axis of arrays is T, the frames of the lifetime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.correspondence import corner_samples
from stm_plugin.shapes.values import bernstein

Array = npt.NDArray[np.float64]

MOST_POINTS = 128
"""The most points of a shape."""
_FEWEST_POINTS = 4
_SPATIAL_SHARE = 0.65
"""Share of the tolerance that the fit of one frame may use; the rest is for interpolation between keys."""
PERCENTILE = 95
"""The tolerance bounds this percentile of the distances along a contour."""
_TANGENT_REACH = 2.5
_TANGENT_SHARE = 0.2
"""Share of the way to the nearer point over which a direction is measured."""
_LONGEST_HANDLE = 1.0
"""Of the distance to the next point."""
_FRAMES_LOOKED_AT = 24
"""Points are chosen on this many frames of a long lifetime; the fit is made on all."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Beziers on every frame.

    Attributes:
        samples: (n,) which samples are points, ascending.
        corners: (n,) whether they are corners.
        values: (T, n, 3, 2) centre, incoming and outgoing handle (relative).
        place: (T, M) the position of each sample on its segment, in [0, 1].
    """

    samples: npt.NDArray[np.int64]
    corners: npt.NDArray[np.bool_]
    values: Array
    place: Array


def fitted(tracks: Array, tolerance: float) -> Fit:
    """Points and Beziers for a contour's samples.

    Args:
        tracks: (T, M, 2) plate pixels.
        tolerance: of the 95th percentile of the distances along the contour, in pixels.
    """
    frames = len(tracks)
    picked = np.unique(np.linspace(0, frames - 1, min(frames, _FRAMES_LOOKED_AT)).round().astype(int))
    corners = corner_samples(tracks)
    samples = chosen_samples(tracks[picked], corners, tolerance * _SPATIAL_SHARE)
    is_corner = np.isin(samples, corners)
    segments = _Segments(tracks, corners)
    values = np.zeros((frames, len(samples), 3, 2))
    place = np.zeros(tracks.shape[:2])
    for i, around in enumerate(_surroundings(samples)):
        first, handles, position, _ = segments.fit(around)
        values[:, i, 0] = first
        values[:, i, 2] = handles[:, 0]
        values[:, (i + 1) % len(samples), 1] = handles[:, 1]
        place[:, segments.between(around)[:-1]] = position[:, :-1]
    return Fit(samples, is_corner, values, place)


def chosen_samples(tracks: Array, corners: npt.NDArray[np.int64], tolerance: float) -> npt.NDArray[np.int64]:
    """The samples that become points: corners first, then where the fit is worst, until it is within
    tolerance."""
    count = tracks.shape[1]
    even = np.arange(_FEWEST_POINTS) * count // _FEWEST_POINTS
    samples = corners if len(corners) >= _FEWEST_POINTS else np.union1d(corners, even)
    samples = _without_near(samples, corners, count)
    segments = _Segments(tracks, corners)
    while len(samples) < min(MOST_POINTS, count // 4):
        errors = segments.all_errors(samples)
        if np.all(np.percentile(errors, PERCENTILE, axis=1) <= tolerance):
            break
        samples = np.union1d(samples, [_worst(errors, samples, tolerance)])
    return _pruned(segments, samples, tolerance)


def _without_near(
    samples: npt.NDArray[np.int64], corners: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    kept = [
        int(one)
        for one in samples
        if one in corners or all(min(abs(one - c), count - abs(one - c)) > count // 32 for c in corners)
    ]
    return np.array(kept, dtype=np.int64)


def _worst(errors: Array, samples: npt.NDArray[np.int64], tolerance: float) -> int:
    """The sample to add: the middle of the part outside the tolerance, in the segment with the largest such
    part."""
    count = errors.shape[1]
    excess = np.maximum(errors - tolerance, 0).sum(axis=0)
    best, place = -1.0, 0
    for i in range(len(samples)):
        inner = _between(int(samples[i]), int(samples[(i + 1) % len(samples)]), count)[2:-2]
        if len(inner) and excess[inner].sum() > best:
            best = float(excess[inner].sum())
            place = int(inner[np.argmax(excess[inner] * np.hanning(len(inner) + 2)[1:-1])])
    return place


def _pruned(segments: _Segments, samples: npt.NDArray[np.int64], tolerance: float) -> npt.NDArray[np.int64]:
    """The points without those that are not needed."""
    while len(samples) > _FEWEST_POINTS - 1:
        best: tuple[float, npt.NDArray[np.int64]] | None = None
        for fewer in segments.fewer(samples, tolerance):
            worst = float(np.percentile(segments.all_errors(fewer), PERCENTILE, axis=1).max())
            if worst <= tolerance and (best is None or worst < best[0]):
                best = (worst, fewer)
        if best is None:
            break
        samples = best[1]
    return samples


Around = tuple[int, int, int, int]
"""A segment: its two ends in the middle, the points before and after it outside. Nothing else matters to its
fit."""


def _surroundings(samples: npt.NDArray[np.int64]) -> list[Around]:
    """All segments of a closed line through samples, beginning with the one after the first sample."""
    one, count = [int(sample) for sample in samples], len(samples)
    return [(one[i - 1], one[i], one[(i + 1) % count], one[(i + 2) % count]) for i in range(count)]


class _Segments:
    """The Beziers between samples of a contour, each fitted once.

    Args:
        tracks: (T, M, 2).
        corners: the samples that are corners.
    """

    def __init__(self, tracks: Array, corners: npt.NDArray[np.int64]) -> None:
        self._tracks, self._corners = tracks, {int(corner) for corner in corners}
        self._count = tracks.shape[1]
        spacing = float(np.median(np.linalg.norm(np.diff(tracks, axis=1), axis=2)))
        self._least = int(np.clip(round(_TANGENT_REACH / max(spacing, 1e-6)), 1, max(1, self._count // 16)))
        self._fits: dict[Around, tuple[Array, Array, Array, Array]] = {}
        self._ends: dict[tuple[int, int], tuple[Array, Array]] = {}
        self._bad: dict[tuple[Around, float], npt.NDArray[np.int64]] = {}

    def between(self, around: Around) -> npt.NDArray[np.int64]:
        """Samples of a segment, both ends included."""
        return _between(around[1], around[2], self._count)

    def fit(self, around: Around) -> tuple[Array, Array, Array, Array]:
        """The first end (T, 2), and handles, places and distances as of `_segment`."""
        if around not in self._fits:
            before, one, two, after = around
            free = np.array([one in self._corners, two in self._corners])
            (first, out), (last, through) = self._end(before, one, two), self._end(one, two, after)
            points = self._tracks[:, self.between(around)]
            self._fits[around] = (first, *_segment(points, first, last, out, -through, free))
        return self._fits[around]

    def all_errors(self, samples: npt.NDArray[np.int64]) -> Array:
        """(T, M) distance of each sample from the Beziers through `samples`."""
        result = np.zeros(self._tracks.shape[:2])
        for around in _surroundings(samples):
            result[:, self.between(around)] = self.fit(around)[3]
        return result

    def fewer(self, samples: npt.NDArray[np.int64], tolerance: float) -> Iterator[npt.NDArray[np.int64]]:
        """The samples without one that is no corner, for each that may be left out.

        Of others more than the share of `PERCENTILE` would be outside the tolerance on a frame. That is
        found by counts of a few segments.
        """
        most = self._count * (1 - PERCENTILE / 100) + 1
        outside = sum(self._outside(around, tolerance) for around in _surroundings(samples))
        for place, sample in enumerate(samples):
            if int(sample) in self._corners:
                continue
            rest = np.delete(samples, place)
            old, new = set(_surroundings(samples)), set(_surroundings(rest))
            changed = outside - sum(self._outside(one, tolerance) for one in old - new)
            changed = changed + sum(self._outside(one, tolerance) for one in new - old)
            if np.max(changed) <= most:
                yield rest

    def _outside(self, around: Around, tolerance: float) -> npt.NDArray[np.int64]:
        """(T,) how many samples of a segment, but its last, are outside the tolerance."""
        if (around, tolerance) not in self._bad:
            self._bad[around, tolerance] = np.count_nonzero(self.fit(around)[3][:, :-1] > tolerance, axis=1)
        return self._bad[around, tolerance]

    def _end(self, before: int, sample: int, after: int) -> tuple[Array, Array]:
        """(T, 2) a point, and the unit direction of the curve after it.

        The direction is that of the line through the samples around it; more samples where the next points
        are far away.
        """
        nearest = min((after - sample - 1) % self._count, (sample - before - 1) % self._count) + 1
        if (sample, nearest) not in self._ends:
            count, tracks = self._count, self._tracks
            steps = np.arange(1, max(int(nearest * _TANGENT_SHARE), self._least) + 1)
            across = tracks[:, (sample + steps) % count] - tracks[:, (sample - steps) % count]
            through = np.einsum("s,tsc->tc", steps.astype(np.float64), across)
            near = (
                tracks[:, [sample]]
                if sample in self._corners
                else tracks[:, np.arange(sample - 1, sample + 2) % count]
            )
            self._ends[sample, nearest] = near.mean(axis=1), _unit(through)
        return self._ends[sample, nearest]


def _between(first: int, last: int, count: int) -> npt.NDArray[np.int64]:
    """Samples from one to another, both included."""
    return np.arange(first, last + 1 + (count if last <= first else 0)) % count


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return unit


def _segment(
    points: Array, first: Array, last: Array, out: Array, back: Array, free: npt.NDArray[np.bool_]
) -> tuple[Array, Array, Array]:
    """One Bezier per frame through samples.

    Args:
        points: (T, S, 2).
        first, last: (T, 2) its ends.
        out, back: (T, 2) unit directions at the ends, inward.
        free: whether the direction at each end is free (a corner).

    Returns:
        handles (T, 2, 2) relative to the ends, places of the samples (T, S), distances (T, S).
    """
    steps = np.linalg.norm(np.diff(points, axis=1), axis=2)
    along = np.concatenate([np.zeros((len(points), 1)), np.cumsum(steps, axis=1)], axis=1)
    place = along / np.maximum(along[:, -1:], 1e-9)
    chord = np.maximum(np.linalg.norm(last - first, axis=1), 0.3 * along[:, -1])
    handles = np.zeros((len(points), 2, 2))
    for _ in range(3):
        if free.any():
            chosen = _free_handles(points, place, first, last)
            out = _unit(chosen[:, 0]) if free[0] else out
            back = _unit(chosen[:, 1]) if free[1] else back
        handles = _handles(points, place, first, last, out, back, chord)
        place = _closest(points, place, first, last, handles)
    curve = np.stack([first, first + handles[:, 0], last + handles[:, 1], last], axis=1)  # (T, 4, 2)
    distance = np.linalg.norm(np.einsum("tsb,tbc->tsc", bernstein(place), curve) - points, axis=2)
    return handles, place, distance


def _free_handles(points: Array, place: Array, first: Array, last: Array) -> Array:
    """(T, 2, 2) handles by least squares, in any direction."""
    weights = bernstein(place)
    straight = (last - first) / 3
    fixed = np.einsum(
        "tsb,tbc->tsc", weights, np.stack([first, first + straight, last - straight, last], axis=1)
    )
    rest = points - fixed
    one, two = weights[..., 1], weights[..., 2]
    a, b, c = (np.sum(x * y, axis=1)[:, None] for x, y in ((one, one), (one, two), (two, two)))
    firm = 0.02 * (a + c) + 1e-9  # the straight line, where the samples leave it open
    a, c = a + firm, c + firm
    p, q = np.einsum("ts,tsc->tc", one, rest), np.einsum("ts,tsc->tc", two, rest)
    determinant = a * c - b * b
    return np.stack(
        [straight + (p * c - q * b) / determinant, (q * a - p * b) / determinant - straight], axis=1
    )


def _handles(
    points: Array, place: Array, first: Array, last: Array, out: Array, back: Array, chord: Array
) -> Array:
    """The lengths of both handles by least squares."""
    weights = bernstein(place)  # (T, S, 4)
    fixed = (weights[..., 0] + weights[..., 1])[..., None] * first[:, None]
    fixed = fixed + (weights[..., 2] + weights[..., 3])[..., None] * last[:, None]
    rest = points - fixed
    one, two = weights[..., 1, None] * out[:, None], weights[..., 2, None] * back[:, None]
    a, b, c = (np.sum(x * y, axis=(1, 2)) for x, y in ((one, one), (one, two), (two, two)))
    p, q = np.sum(one * rest, axis=(1, 2)), np.sum(two * rest, axis=(1, 2))
    firm = 1e-3 * (a + c) + 1e-9  # a third of the chord, where the samples leave it open
    a, c = a + firm, c + firm
    p, q = p + firm * chord / 3, q + firm * chord / 3
    determinant = a * c - b * b
    longest = _LONGEST_HANDLE * chord
    length_one = np.clip((p * c - q * b) / determinant, 0.02 * chord, longest)
    length_two = np.clip((q * a - p * b) / determinant, 0.02 * chord, longest)
    return np.stack([out * length_one[:, None], back * length_two[:, None]], axis=1)


def _closest(points: Array, place: Array, first: Array, last: Array, handles: Array) -> Array:
    """One Newton step of each sample to the closest place of the curve; the order is kept."""
    curve = np.stack([first, first + handles[:, 0], last + handles[:, 1], last], axis=1)
    step = np.diff(curve, axis=1) * 3
    turn = np.diff(step, axis=1) * 2
    rest = 1 - place
    here = np.einsum("tsb,tbc->tsc", bernstein(place), curve)
    quadratic = np.stack([rest**2, 2 * rest * place, place**2], axis=-1)
    speed = np.einsum("tsb,tbc->tsc", quadratic, step)
    bend = np.einsum("tsb,tbc->tsc", np.stack([rest, place], axis=-1), turn)
    off = here - points
    slope = np.sum(speed * speed, axis=2) + np.sum(off * bend, axis=2)
    move = np.sum(off * speed, axis=2) / np.where(np.abs(slope) > 1e-9, slope, 1e9)
    moved = np.clip(place - np.clip(move, -0.1, 0.1), 0, 1)
    moved[:, 0], moved[:, -1] = 0, 1
    return np.maximum.accumulate(moved, axis=1)
