"""Pelts for edge clips: bodies that consist of strands, as an animal or a soft toy does.

Strands grow all over the body, not along its outline only. Neighbours lean the same way, curl, and end in
common tips (locks). Those at the rim cover each other, so a pelt is nearly opaque for a part of its depth,
ragged outside it, and has a few stray hairs. Strands have colours of their own, darker at the roots.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from model.training.textures import ByteArray, FloatArray, noise

_POINTS = 9
"""Points of a strand."""
_GROUPS = 14
"""Strands are drawn in so many groups over each other; each has its own strength and tint."""
_ROOTS = 6
"""Points of a strand up to which it is thick."""

Lines = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Habit:
    """How the strands of a pelt grow.

    Attributes:
        length: of strands at the rim, in pixels.
        lean: (2,), added to the outward direction everywhere.
        locks: how many tips the strands have in common.
        gathered: how far strands end in those, 0 to 1.
        curl: radians.
        wild: radians, how different neighbours are.
    """

    length: float
    lean: Doubles
    locks: int
    gathered: float
    curl: float
    wild: float


def pelt(
    rng: np.random.Generator, outline: FloatArray, body: FloatArray, base: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """A body of strands.

    Args:
        outline: (N, 2), x and y of the closed outline of the body in pixels.
        body: (S, S) in [0, 1], opaque inside the outline.
        base: (S, S, 3), the colours of the pelt in linear light.

    Returns:
        alpha (S, S) in [0, 1] and colours (S, S, 3), not premultiplied.
    """
    side = body.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    habit = _Habit(
        length=rng.uniform(30, 230),
        lean=rng.uniform(0, 0.9) * np.array([np.cos(angle), np.sin(angle)]),
        locks=int(10 ** rng.uniform(1.6, 2.8)),
        gathered=rng.uniform(0, 0.85),
        curl=rng.uniform(0.1, 1.4),
        wild=rng.uniform(0.1, 0.5),
    )
    turned = noise(rng, side, side, rng.uniform(60, 250)) - np.float32(0.5)
    rim = _strands(rng, outline, habit, turned, int(10 ** rng.uniform(3.4, 4.1)), depth=(0.6, 1.03))
    inner = _strands(rng, outline, habit, turned, int(rng.uniform(3000, 6000)), depth=(0.0, 0.95))
    stray = _strands(rng, outline, _stray(habit), turned, int(rng.uniform(0, 60)), depth=(0.9, 1.03))
    tufts = noise(rng, side, side, rng.uniform(20, 70))[..., None] - np.float32(0.5)
    base = np.maximum(base * (1 + np.float32(rng.uniform(0, 1.2)) * tufts), 0).astype(np.float32)
    bare: FloatArray = np.float32(1) - body
    colour = base * np.float32(rng.uniform(0.25, 0.7))  # deep in the pelt it is dark
    contrast = rng.uniform(0.1, 0.7)
    for group in range(_GROUPS):
        lines = np.concatenate([rim[group::_GROUPS], inner[group::_GROUPS], stray[group::_GROUPS]])
        covered = _drawn(lines, side, rng.uniform(40, 255))
        bare = bare * (np.float32(1) - covered)
        tint = (rng.uniform(1 - contrast, 1 + contrast) * rng.uniform(0.9, 1.1, 3)).astype(np.float32)
        colour = colour + covered[..., None] * (base * tint - colour)
    return np.float32(1) - bare, np.asarray(np.maximum(colour, 0), np.float32)


def _stray(habit: _Habit) -> _Habit:
    """Longer hairs that follow no lock."""
    return _Habit(habit.length * 1.7, habit.lean, habit.locks, 0.0, habit.curl + 0.8, 0.8)


def _strands(
    rng: np.random.Generator,
    outline: FloatArray,
    habit: _Habit,
    turned: FloatArray,
    count: int,
    depth: tuple[float, float],
) -> Lines:
    """(count, points, 2): strands as polylines in eighths of a pixel.

    Args:
        turned: (S, S), by how much strands are turned, in turns.
        depth: of the roots: 0 is the middle of the body, 1 its outline.
    """
    middle = outline.mean(0).astype(np.float64)
    place = rng.integers(0, len(outline), count)
    share = rng.uniform(*depth, count)
    root = middle + (outline[place] - middle) * share[:, None] + rng.normal(0, 2.0, (count, 2))
    limit = turned.shape[0] - 1
    x, y = np.clip(root.astype(np.int64), 0, limit).T
    outward = outline[place] - middle
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-6
    heading = outward * share[:, None] + habit.lean
    angle = np.arctan2(heading[:, 1], heading[:, 0]) + turned[y, x] * 4.0 + rng.normal(0, habit.wild, count)
    reach = habit.length * rng.uniform(0.45, 1.1, count) * (0.35 + 0.65 * share)
    points = _grown(root, angle, rng.normal(0, habit.curl, count), reach)
    return np.round(_gathered(rng, points, place / len(outline), habit) * 8).astype(np.int32)


def _grown(root: Doubles, angle: Doubles, bend: Doubles, reach: Doubles) -> Doubles:
    """(count, points, 2): curves that start at a root with an angle and bend evenly."""
    along = np.linspace(0, 1, _POINTS)
    headings = angle[:, None] + bend[:, None] * along
    steps = np.stack([np.cos(headings), np.sin(headings)], -1) * (reach[:, None, None] / _POINTS)
    points: Doubles = root[:, None] + np.cumsum(steps, axis=1) - steps[:, :1]
    return points


def _gathered(rng: np.random.Generator, points: Doubles, around: Doubles, habit: _Habit) -> Doubles:
    """The strands, each bent towards the tip of one in its neighbourhood.

    Args:
        around: (count,) in [0, 1): where along the outline a strand is.
    """
    if len(points) < 2:
        return points
    order = np.argsort(around)
    per_lock = max(1, len(points) // habit.locks)
    leader = np.minimum(np.arange(len(points)) // per_lock * per_lock + per_lock // 2, len(points) - 1)
    sorted_points = points[order]
    pull = habit.gathered * rng.uniform(0.3, 1.0, len(points))
    weight = np.linspace(0, 1, _POINTS)[None, :, None] ** 1.5 * pull[:, None, None]
    # The leader's shape from the strand's own root would not meet it; its points do.
    apart = np.linalg.norm(sorted_points[leader][:, 0] - sorted_points[:, 0], axis=1)
    near = np.exp(-apart / (0.6 * habit.length))[:, None, None]
    return np.asarray(sorted_points + weight * near * (sorted_points[leader] - sorted_points), np.float64)


def _drawn(lines: Lines, side: int, strength: float) -> FloatArray:
    """(S, S) in [0, 1]: how much strands cover. They are half as thick at their tips."""
    drawn = np.zeros((side, side), np.uint8)
    _draw(drawn, lines, strength / 2)
    _draw(drawn, lines[:, :_ROOTS], strength)
    covered: FloatArray = drawn.astype(np.float32) / np.float32(255)
    return covered


def _draw(picture: ByteArray, lines: Lines, strength: float) -> None:
    cv2.polylines(picture, list(lines), False, int(strength), 1, cv2.LINE_AA, shift=3)
