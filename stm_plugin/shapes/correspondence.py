"""Matches the points of a contour to those on the other frames of its lifetime.

`advanced` goes from frame to frame: every sample moves with the picture, and the new contour is matched as a
whole, by a shortest path over candidates by place and direction that keeps their order. Then `settled` solves
all frames together: each sample slides along its contours until the motion to both neighbours and the
distances to the samples beside it agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stm_plugin.shapes.contour import at_length, normals, resampled
from stm_plugin.shapes.sections import FEWEST_SAMPLES, MOST_SAMPLES, Section
from stm_plugin.shapes.values import Points

Along = npt.NDArray[np.float64]

_ANCHORS = 240
"""Samples that are matched; those between are interpolated."""
_FINER = 2
"""Candidate places on the new contour for each anchor."""
_LONGEST_STEP = 24
"""Places that one anchor may skip."""
_DIRECTION = 0.08
"""How much a direction counts, as a share of the contour's size: it tells the two sides of a thin limb
apart."""
_STRETCH = 0.35
"""Cost of each place that is skipped or used twice, relative to a distance of one place."""
_FARTHEST = 12.0
"""Distances are clipped to this many places."""
_STARTS = 2
_ALIGNMENTS = 4
_ROUNDS = 24
_CORNER_ANGLE = 50.0
"""Degrees that a contour turns at a corner."""
_CORNER_FRAMES = 0.34
"""Share of the frames on which a corner must turn that much."""
CORNER_REACH = 4.0
"""Pixels on both sides of a corner over which its turn is measured."""
_LARGEST_STEP = 2.0
_FOLD = 0.14
"""Share of a contour that may be new on a frame: with more it is another part."""


def sample_count(sections: Sequence[Section]) -> int:
    """How many samples follow a part through its lifetime."""
    longest = max(section.length for section in sections)
    return int(np.clip(round(longest / 1.1), FEWEST_SAMPLES, MOST_SAMPLES))


def start(section: Section, count: int) -> Along:
    """(count,) lengths along the first contour."""
    return np.arange(count, dtype=np.float64) * (section.length / count)


def advanced(before: Section, after: Section, where: Along) -> tuple[Along, Points] | None:
    """The samples on the next frame.

    Args:
        where: (M,) ascending lengths along `before`, less than one round from first to last.

    Returns:
        (M,) ascending lengths along `after`, and (M, 2) the motion of each sample with the picture and the
        whole
        part; or None where the contour folds, which means that it is another part.
    """
    count = len(where)
    rows = min(_ANCHORS, count)
    anchors = np.round(np.arange(rows) * (count / rows)).astype(int)
    predicted = at_length(before.points + before.forward, before.along, where[anchors])
    facing = at_length(normals(before.points, 3), before.along, where[anchors])
    places = resampled(after.points, rows * _FINER)
    weight = max(2.0, _DIRECTION * float(np.ptp(after.points, axis=0).max()))
    target = np.hstack([places, weight * normals(places, 3)])
    shifted = before.at(where[anchors]) + after.points.mean(axis=0) - before.points.mean(axis=0)
    aligned = min(
        (_aligned(one, weight * facing, target) for one in (predicted, shifted)), key=lambda found: found[0]
    )[1]
    source = np.hstack([aligned, weight * facing])
    unit = after.length / len(places)
    distance = np.minimum(np.linalg.norm(source[:, None] - target[None], axis=2) / unit, _FARTHEST)
    best: tuple[float, int, npt.NDArray[np.int64]] | None = None
    for row in np.argsort(distance.min(axis=1))[: _STARTS * 8 : 8]:
        begin = int(np.argmin(distance[row]))
        turned = np.roll(np.roll(distance, -int(row), axis=0), -begin, axis=1)
        cost, path = _shortest_path(turned)
        if best is None or cost < best[0]:
            best = (cost, int(row), path + begin)
    if best is None or not np.isfinite(best[0]):
        return None
    _, row, path = best
    steps = np.diff(path, append=path[0] + len(places))
    if steps[steps >= 6 * _FINER].sum() > _FOLD * len(places):
        return None
    chosen = np.empty(rows)
    chosen[np.roll(np.arange(rows), -row)] = _spread(path.astype(np.float64)) * unit
    chosen[:row] -= after.length  # those before the start come last
    everything = np.interp(
        np.arange(count), np.append(anchors, count), np.append(chosen, chosen[0] + after.length)
    )
    moves = at_length(
        aligned - before.at(where[anchors]),
        np.append(anchors, count).astype(np.float64),
        np.arange(count, dtype=np.float64),
    )
    return np.asarray(everything, dtype=np.float64), moves


def _aligned(points: Points, facing: Points, target: npt.NDArray[np.float64]) -> tuple[float, Points]:
    """`points` moved as a whole (affine) onto the target (N, 4), and how far they are from it on average."""
    for _ in range(_ALIGNMENTS):
        distance, index = _nearest(np.hstack([points, facing]), target)
        close = distance <= 2.5 * max(float(np.median(distance)), 0.5)
        middle = points[close].mean(axis=0)
        moves = target[index[close], :2] - points[close]
        local = np.hstack([points[close] - middle, np.ones((int(close.sum()), 1))])
        spread = float(np.square(local[:, :2]).sum()) * 0.05
        firm = np.diag([spread, spread, 1e-6])
        change = np.linalg.solve(local.T @ local + firm, local.T @ moves)
        points = points + np.hstack([points - middle, np.ones((len(points), 1))]) @ change
    return float(_nearest(np.hstack([points, facing]), target)[0].mean()), points


def _nearest(
    points: npt.NDArray[np.float64], target: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """For each of N points (N, d) the distance to the nearest of the target (M, d), and its row.

    All pairs are looked at: a contour has a few hundred samples, and a tree would need a library of 143 MB.
    """
    without_own = np.square(target).sum(axis=1) - 2 * points @ target.T  # squared distances but for |point|^2
    index = without_own.argmin(axis=1)
    return np.sqrt(np.square(points - target[index]).sum(axis=1)), index


def _shortest_path(distance: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.int64]]:
    """The cheapest path: for each anchor (row) a place (column), never decreasing, from 0 to one round."""
    rows, columns = distance.shape
    distance = np.hstack([distance, distance[:, :1]])
    steps = np.arange(_LONGEST_STEP + 1)
    stretch = _STRETCH * np.abs(steps - _FINER)
    reach = np.full(columns + 1 + _LONGEST_STEP, np.inf)
    reach[_LONGEST_STEP] = 0.0
    origins = np.zeros((rows, columns + 1), dtype=np.int8)
    window = np.lib.stride_tricks.sliding_window_view
    for row in range(1, rows + 1):
        ways = window(reach, _LONGEST_STEP + 1)[:, ::-1] + stretch  # (columns + 1, steps)
        origin = np.argmin(ways, axis=1)
        cost = ways[np.arange(columns + 1), origin] + distance[row % rows]
        origins[row - 1] = origin
        reach[_LONGEST_STEP:] = cost
    path = np.zeros(rows + 1, dtype=np.int64)
    path[rows] = columns
    for row in range(rows, 0, -1):
        path[row - 1] = path[row] - origins[row - 1, path[row]]
    return float(reach[-1]), path[:-1]


def _spread(path: Along) -> Along:
    """Anchors at nearly the same place are spread over the distance to the next one."""
    kernel = np.array([0.25, 0.5, 0.25])
    padded = np.concatenate([[path[0]], path, [path[-1]]])
    smooth = np.convolve(padded, kernel, mode="valid")
    smooth[0], smooth[-1] = path[0], path[-1]
    return smooth


def settled(
    sections: Sequence[Section], where: npt.NDArray[np.float64], moves: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Solve all frames together.

    Args:
        where: (T, M) lengths along the contours, from `advanced`.
        moves: (T - 1, M, 2) how the samples move to the next frame.

    Returns:
        (T, M) lengths along the contours.
    """
    size = np.array([section.length for section in sections])[:, None]  # (T, 1)
    for _ in range(_ROUNDS):
        spacing = np.diff(where, axis=1, append=where[:, :1] + size) / size  # (T, M), to the next sample
        share = spacing.mean(axis=0) + 0.25 / where.shape[1]
        left = np.roll(share, 1)
        following = np.concatenate([where[:, 1:], where[:, :1] + size], axis=1)
        previous = np.concatenate([where[:, -1:] - size, where[:, :-1]], axis=1)
        even = previous + (following - previous) * (left / (left + share)) - where
        where = _in_order(where + 0.5 * even + 0.35 * _pull(sections, where, moves), size)
    return _at_corners(sections, where, size)


def _pull(
    sections: Sequence[Section], where: npt.NDArray[np.float64], moves: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(T, M) how far each sample should slide so that it moves as the picture does."""
    places = np.stack([section.at(row) for section, row in zip(sections, where, strict=True)])
    ways = np.stack([_tangents(section, row) for section, row in zip(sections, where, strict=True)])
    total, weight = np.zeros(where.shape), np.zeros((len(where), 1))
    off = places[:-1] + moves - places[1:]
    total[1:] += np.einsum("tmc,tmc->tm", off, ways[1:])
    total[:-1] -= np.einsum("tmc,tmc->tm", off, ways[:-1])
    weight[1:] += 1
    weight[:-1] += 1
    return np.clip(total / np.maximum(weight, 1), -_LARGEST_STEP, _LARGEST_STEP)


def turning(tracks: npt.NDArray[np.float64], reach: float) -> npt.NDArray[np.float64]:
    """(T, M) degrees that closed lines (T, M, 2) turn at each sample, seen from `reach` pixels away."""
    count = tracks.shape[1]
    spacing = max(float(np.median(np.linalg.norm(np.diff(tracks, axis=1), axis=2))), 1e-6)
    steps = int(np.clip(round(reach / spacing), 1, max(1, count // 8)))
    ahead, behind = np.roll(tracks, -steps, axis=1) - tracks, tracks - np.roll(tracks, steps, axis=1)
    cross = ahead[..., 0] * behind[..., 1] - ahead[..., 1] * behind[..., 0]
    turn: npt.NDArray[np.float64] = np.abs(np.degrees(np.arctan2(cross, np.sum(ahead * behind, axis=2))))
    return turn


def corner_samples(tracks: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Samples at or near which the contour turns sharply on many frames."""
    count = tracks.shape[1]
    turn = turning(tracks, CORNER_REACH)
    spacing = max(float(np.median(np.linalg.norm(np.diff(tracks, axis=1), axis=2))), 1e-6)
    reach = int(np.clip(round(CORNER_REACH / spacing), 1, max(1, count // 8)))
    near = np.stack([np.roll(turn, shift, axis=1) for shift in range(-reach, reach + 1)]).max(axis=0)
    often = np.mean(near >= _CORNER_ANGLE, axis=0) >= _CORNER_FRAMES
    typical = np.mean(turn, axis=0)
    found: list[int] = []
    for sample in np.argsort(-typical):
        apart = [min(abs(int(sample) - one), count - abs(int(sample) - one)) for one in found]
        if (
            often[sample]
            and typical[sample] >= _CORNER_ANGLE * 0.6
            and min(apart, default=count) > 1.5 * reach
        ):
            found.append(int(sample))
    return np.array(sorted(found), dtype=np.int64)


def _at_corners(
    sections: Sequence[Section], where: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Corner samples slide to the corner of their frame, and those between follow."""
    tracks = np.stack([section.at(row) for section, row in zip(sections, where, strict=True)])
    corners = corner_samples(tracks)
    if not len(corners):
        return where
    count = where.shape[1]
    turn = turning(tracks, CORNER_REACH)
    spacing = max(float(np.median(np.linalg.norm(np.diff(tracks, axis=1), axis=2))), 1e-6)
    reach = int(np.clip(round(1.5 * CORNER_REACH / spacing), 1, max(1, count // 8)))
    slides = np.zeros((len(where), len(corners)))
    for i, corner in enumerate(corners):
        window = (corner + np.arange(-reach, reach + 1)) % count
        values = turn[:, window]
        heavy = np.where(values >= 0.9 * values.max(axis=1, keepdims=True), values, 0)
        middle = (heavy * np.arange(-reach, reach + 1)).sum(axis=1) / np.maximum(heavy.sum(axis=1), 1e-9)
        sharp = values.max(axis=1) >= _CORNER_ANGLE
        slides[:, i] = np.where(sharp, middle * size[:, 0] / count, 0.0)
    around = np.concatenate([corners - count, corners, corners + count])
    moved = np.stack([np.interp(np.arange(count), around, np.tile(row, 3)) for row in slides])
    return _in_order(where + moved, size)


def _tangents(section: Section, where: Along) -> Points:
    """(M, 2) unit directions of a contour at lengths along it."""
    out = at_length(normals(section.points, 2), section.along, where)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    return np.stack([-out[:, 1], out[:, 0]], axis=1)


def _in_order(where: npt.NDArray[np.float64], size: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Lengths in order, at least a tenth of the even distance apart."""
    least = size / where.shape[1] * 0.1
    ramp = np.arange(where.shape[1]) * least
    forward = np.maximum.accumulate(where - ramp, axis=1) + ramp
    limit = forward[:, :1] + size - (ramp[:, -1:] - ramp) - least
    return np.asarray(np.minimum(forward, limit), dtype=np.float64)
