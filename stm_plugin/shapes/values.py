"""Shapes: closed cubic Beziers whose points have keys over the lifetime of a part of an object.

Positions are plate pixels as in EXR: x to the right, y DOWN, the upper left corner of pixel (0, 0) at (0, 0),
its centre at (0.5, 0.5). Writers convert them to a host's coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm_plugin.windows import Window

Points = npt.NDArray[np.float64]
"""(N, 2), x and y."""


@dataclass(frozen=True, eq=False)
class PointTrack:
    """One point of a shape over time. Values are interpolated linearly between keys and constant outside.

    Attributes:
        frames: the frames on which the point has a key, ascending.
        centre: (K, 2) positions.
        incoming, outgoing: (K, 2) its two handles, relative to the centre.
        feather: (K, 2) from the centre to where alpha reaches 0; zero where the edge is hard.
        corner: whether the handles are broken.
    """

    frames: tuple[int, ...]
    centre: Points
    incoming: Points
    outgoing: Points
    feather: Points
    corner: bool

    def at(self, frame: float) -> Points:
        """(4, 2): centre, incoming, outgoing, feather on one frame."""
        times = np.asarray(self.frames, dtype=np.float64)
        stacked = np.stack([self.centre, self.incoming, self.outgoing, self.feather], axis=1)  # (K, 4, 2)
        flat = stacked.reshape(len(times), 8)
        return np.array([np.interp(frame, times, column) for column in flat.T]).reshape(4, 2)


@dataclass(frozen=True, eq=False)
class Outline:
    """A shape on one frame: N points, all arrays (N, 2). Handles and feather are relative to the centres."""

    centre: Points
    incoming: Points
    outgoing: Points
    feather: Points

    def segments(self) -> npt.NDArray[np.float64]:
        """(N, 4, 2): the control points of each cubic Bezier, from a point to the next; the last one
        closes."""
        return bezier_segments(self.centre, self.incoming, self.outgoing)

    def polyline(self, steps: int = 24) -> Points:
        """(N * steps, 2): the closed outline as a polygon."""
        return flattened(self.segments(), steps)

    def feather_polyline(self, steps: int = 24) -> Points:
        """(N * steps, 2): where alpha reaches 0, as a polygon."""
        return flattened(bezier_segments(self.centre + self.feather, self.incoming, self.outgoing), steps)


@dataclass(frozen=True, eq=False)
class Shape:
    """One connected part of an object, or one hole in it, over its lifetime.

    Attributes:
        name: unique in its set, made of letters, digits and underscores.
        object: the object's name.
        hole: whether it subtracts.
        first, last: its lifetime, both frames included.
        points: at least two.
        area: mean area in pixels; smaller shapes are drawn over larger ones.
    """

    name: str
    object: str
    hole: bool
    first: int
    last: int
    points: tuple[PointTrack, ...]
    area: float

    def lives(self, frame: int) -> bool:
        return self.first <= frame <= self.last

    def at(self, frame: float) -> Outline:
        """The shape on a frame of its lifetime."""
        values = np.stack([point.at(frame) for point in self.points])  # (N, 4, 2)
        return Outline(values[:, 0], values[:, 1], values[:, 2], values[:, 3])

    @property
    def keys(self) -> int:
        """The number of keys of all points together."""
        return sum(len(point.frames) for point in self.points)


@dataclass(frozen=True, eq=False)
class ShapeSet:
    """The shapes of a shot.

    Attributes:
        shapes: in drawing order, the largest first: a later one is drawn over an earlier one.
        frames: all requested frames, ascending.
        display_window: of the plate; a host's origin is its lower left corner.
        pixel_aspect: width over height of a pixel. Positions are in pixels, so a host needs it for
            display only.
        left_out: parts (per frame) that were too small to become shapes.
    """

    shapes: tuple[Shape, ...]
    frames: tuple[int, ...]
    display_window: Window
    pixel_aspect: float
    left_out: int = 0

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(shape.object for shape in self.shapes))

    def of(self, name: str) -> tuple[Shape, ...]:
        """The shapes of one object, in drawing order."""
        return tuple(shape for shape in self.shapes if shape.object == name)


def bezier_segments(centre: Points, incoming: Points, outgoing: Points) -> npt.NDArray[np.float64]:
    """(N, 4, 2) control points of the closed curve through `centre`; handles are relative."""
    after = np.roll(centre, -1, axis=0)
    return np.stack([centre, centre + outgoing, after + np.roll(incoming, -1, axis=0), after], axis=1)


def flattened(segments: npt.NDArray[np.float64], steps: int) -> Points:
    """Points (N * steps, 2) on cubic segments (N, 4, 2), `steps` for each, its end left to the next one."""
    points: Points = np.einsum("sb,nbc->nsc", bernstein(np.arange(steps) / steps), segments)
    return points.reshape(-1, 2)


def bernstein(position: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The four cubic Bernstein polynomials at positions in [0, 1]: (..., 4)."""
    rest = 1 - position
    return np.stack([rest**3, 3 * rest**2 * position, 3 * rest * position**2, position**3], axis=-1)
