"""Making shapes: add the frames one after the other, then finish.

    maker = ShapeMaker(tolerance=0.75)
    for frame in frames:
        maker.add(frame, {"hero": alpha}, window, picture)
    shapes = maker.finish(display_window, pixel_aspect)

Of a frame only its contours are kept, so memory does not grow with its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from stm_plugin.errors import MatteError, SettingsError
from stm_plugin.shapes.contour import at_length, contours
from stm_plugin.shapes.correspondence import advanced, sample_count, settled, start
from stm_plugin.shapes.fit import fitted
from stm_plugin.shapes.keys import keyed
from stm_plugin.shapes.motion import GreyFrame, flow_at, grey_frame
from stm_plugin.shapes.options import LEAST_AREA, MOST_PARTS, TOLERANCE
from stm_plugin.shapes.parts import linked
from stm_plugin.shapes.sections import Section, inner_points, make_section
from stm_plugin.shapes.values import PointTrack, Shape, ShapeSet
from stm_plugin.windows import FloatArray, Window


@dataclass(eq=False)
class _Life:
    """A part of an object that is being followed."""

    object: str
    sections: list[Section] = field(default_factory=list)


class ShapeMaker:
    """Turns mattes into shapes.

    Args:
        tolerance: how far a shape may be from the matte's contour, in pixels (95th percentile along it).

    Raises:
        SettingsError: the tolerance is not above 0.
    """

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        if not 0.05 <= tolerance <= 100:
            raise SettingsError(
                f"The tolerance is {tolerance:g} pixels.",
                hint="Give one between 0.05 and 100; 0.75 is usual.",
            )
        self._tolerance = tolerance
        self._frames: list[int] = []
        self._left_out = 0
        self._grey: GreyFrame | None = None
        self._living: list[_Life] = []
        self._ended: list[_Life] = []

    def add(
        self, frame: int, alphas: Mapping[str, FloatArray], window: Window, picture: FloatArray | None
    ) -> None:
        """Take the next frame.

        Args:
            frame: above all frames before; a gap in the numbers ends all lifetimes.
            alphas: by object name, (h, w) in [0, 1] over `window`.
            picture: (h, w, 3) sRGB in [0, 1] over `window`; without it points follow the shape alone.

        Raises:
            MatteError: an object is in too many pieces.
        """
        if self._frames and frame != self._frames[-1] + 1:
            self._end(self._living)
            self._grey = None
        self._frames.append(frame)
        found = [
            (name, section)
            for name, alpha in alphas.items()
            for section in self._sections(frame, name, alpha, window)
        ]
        grey = None if picture is None else grey_frame(picture, window)
        living = self._living
        if grey is not None and self._grey is not None and living:
            self._measure_motion(self._grey, grey)
        self._grey = grey
        self._living = self._continued(living, found)

    def finish(
        self,
        display_window: Window,
        pixel_aspect: float = 1.0,
        *,
        on_shape: Callable[[int, int], None] = lambda done, count: None,
    ) -> ShapeSet:
        """The shapes of all frames.

        Args:
            on_shape: is called with the number of parts done and of all parts.

        Raises:
            MatteError: the matte is empty on all frames.
        """
        self._end(self._living)
        if not self._ended:
            span = f"{self._frames[0]}-{self._frames[-1]}" if self._frames else "none"
            small = (
                f" {self._left_out} parts below {LEAST_AREA:g} pixels were left out."
                if self._left_out
                else ""
            )
            raise MatteError(
                f"The matte is empty on all frames ({span}): there is nothing to make shapes of.{small}",
                hint="Choose frames or an object on which the matte is not empty.",
            )
        lives = sorted(self._ended, key=lambda life: (life.sections[0].frame, -life.sections[0].area))
        pieces: list[tuple[_Life, tuple[PointTrack, ...]]] = []
        for index, life in enumerate(lives):
            pieces.extend(_shaped(life, self._tolerance))
            on_shape(index + 1, len(lives))
        shapes = _named(pieces)
        return ShapeSet(shapes, tuple(self._frames), display_window, pixel_aspect, self._left_out)

    def _sections(self, frame: int, name: str, alpha: FloatArray, window: Window) -> list[Section]:
        found, left_out = contours(np.ascontiguousarray(alpha, np.float32), window, LEAST_AREA)
        self._left_out += left_out
        if len(found) > MOST_PARTS:
            raise MatteError(
                f"The matte of “{name}” is in {len(found)} pieces; "
                f"{MOST_PARTS} is the most that shapes are made of.",
                frame=frame,
                hint="Clean the matte first (finishing settings, another key), or leave this frame out.",
            )
        return [make_section(frame, contour, alpha, window) for contour in found]

    def _measure_motion(self, before: GreyFrame, after: GreyFrame) -> None:
        moved = flow_at(before, after, [inner_points(life.sections[-1]) for life in self._living])
        for life, flow in zip(self._living, moved, strict=True):
            life.sections[-1] = replace(life.sections[-1], forward=flow)

    def _continued(self, living: list[_Life], found: list[tuple[str, Section]]) -> list[_Life]:
        """The parts that continue on the new frame; those without a contour there end."""
        result: list[_Life] = []
        for name in dict.fromkeys([life.object for life in living] + [one for one, _ in found]):
            old = [life for life in living if life.object == name]
            new = [section for one, section in found if one == name]
            links = linked([life.sections[-1] for life in old], new)
            for i, j in links.items():
                old[i].sections.append(new[j])
                result.append(old[i])
            self._end([life for i, life in enumerate(old) if i not in links])
            taken = set(links.values())
            result.extend(_Life(name, [section]) for j, section in enumerate(new) if j not in taken)
        return result

    def _end(self, lives: list[_Life]) -> None:
        self._ended.extend(lives)
        if lives is self._living:
            self._living = []


def _shaped(life: _Life, tolerance: float) -> list[tuple[_Life, tuple[PointTrack, ...]]]:
    """The tracked points of a part; in pieces where its contour folds between two frames."""
    result = []
    sections = life.sections
    while sections:
        count = sample_count(sections)
        rows, moves = [start(sections[0], count)], []
        for before, after in pairwise(sections):
            step = advanced(before, after, rows[-1])
            if step is None:
                break
            rows.append(step[0])
            moves.append(step[1])
        part, sections = sections[: len(rows)], sections[len(rows) :]
        where = settled(part, np.stack(rows), np.array(moves).reshape(len(rows) - 1, count, 2))
        result.append((_Life(life.object, part), _points(part, where, tolerance)))
    return result


def _points(
    sections: list[Section], where: np.ndarray[tuple[int, ...], np.dtype[np.float64]], tolerance: float
) -> tuple[PointTrack, ...]:
    tracks = np.stack([section.at(row) for section, row in zip(sections, where, strict=True)])
    fit = fitted(tracks, tolerance)
    centre = fit.values[:, :, 0]
    way = fit.values[:, :, 2] - fit.values[:, :, 1]
    way /= np.maximum(np.linalg.norm(way, axis=2, keepdims=True), 1e-9)
    out = np.stack([way[..., 1], -way[..., 0]], axis=2)
    width = np.stack(
        [
            at_length(section.feather[:, None], section.along, row[fit.samples])[:, 0]
            for section, row in zip(sections, where, strict=True)
        ]
    )
    assert centre.shape == out.shape
    frames = np.array([section.frame for section in sections])
    return tuple(
        PointTrack(
            tuple(int(frames[index]) for index in key.frames),
            key.values[:, 0:2],
            key.values[:, 2:4],
            key.values[:, 4:6],
            key.values[:, 6:8],
            bool(corner),
        )
        for key, corner in zip(
            keyed(fit, out * width[..., None], tracks, tolerance), fit.corners, strict=True
        )
    )


def _named(pieces: list[tuple[_Life, tuple[PointTrack, ...]]]) -> tuple[Shape, ...]:
    """Shapes with names, the largest first."""
    counts: dict[tuple[str, bool], int] = {}
    shapes = []
    for life, points in pieces:
        hole = life.sections[0].hole
        number = counts[life.object, hole] = counts.get((life.object, hole), 0) + 1
        word = re.sub(r"\W", "_", life.object, flags=re.ASCII) or "object"
        shapes.append(
            Shape(
                f"{word}_{'hole' if hole else 'part'}{number}",
                life.object,
                hole,
                life.sections[0].frame,
                life.sections[-1].frame,
                points,
                float(np.mean([section.area for section in life.sections])),
            )
        )
    return tuple(sorted(shapes, key=lambda shape: -shape.area))
