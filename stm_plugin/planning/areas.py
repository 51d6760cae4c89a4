"""Warnings from the areas of objects: an object that jumps, is lost, or leaves the region. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

_JUMP = 2.0
"""An object whose area doubles or halves from one frame to the next is reported."""
_LOST = 0.01
"""Of the object's largest area: below this the object counts as lost."""
_MOST_TOLD = 4


@dataclass(frozen=True)
class FrameAreas:
    """The objects of one frame by name.

    Attributes:
        pixels: area of each object, in pixels of the plate.
        outside: of a key, the share of each mask that lies outside the region, in [0, 1].
        touching: objects that reach an edge of the region that is not an edge of the plate.
        absent: objects that a key marks as absent here.
    """

    pixels: Mapping[str, float]
    outside: Mapping[str, float] = field(default_factory=dict)
    touching: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


def area_warnings(found: Mapping[int, FrameAreas], frames: Sequence[int]) -> list[str]:
    """Warnings for people, in sentences that name the frames.

    Args:
        found: the objects by frame.
        frames: all frames of the plate: only neighbours are compared.
    """
    names = dict.fromkeys(name for one in found.values() for name in one.pixels)
    sentences: list[str] = []
    for name in names:
        sentences += _leaving(name, found)
        lost = _lost(name, found)
        if lost:
            sentences.append(
                f"{name} is lost on {_ranges(lost)}: no pixel of it is found. Give a key there; an empty "
                "mask says that it is not in the frame."
            )
        sentences += _jumps(name, found, frames, set(lost))
    return sentences


def _leaving(name: str, found: Mapping[int, FrameAreas]) -> list[str]:
    sentences = []
    for frame, one in sorted(found.items()):
        share = one.outside.get(name, 0.0)
        if share > 0:
            sentences.append(
                f"Frame {frame}: {max(0.1, 100 * share):.1f} % of the mask of {name} is outside the region. "
                "On other frames the matte is cut off there: give a larger region."
            )
    touching = [frame for frame, one in sorted(found.items()) if name in one.touching]
    if touching:
        sentences.append(
            f"{name} touches the edge of the region on {_ranges(touching)}: what lies beyond it is cut off. "
            "Give a larger region."
        )
    return sentences


def _lost(name: str, found: Mapping[int, FrameAreas]) -> list[int]:
    areas = {frame: one.pixels[name] for frame, one in sorted(found.items()) if name in one.pixels}
    least = _LOST * max(areas.values())
    return [
        frame
        for frame, area in areas.items()
        if area <= least and least > 0 and name not in found[frame].absent
    ]


def _jumps(name: str, found: Mapping[int, FrameAreas], frames: Sequence[int], lost: set[int]) -> list[str]:
    sentences = []
    for before, frame in pairwise(frames):
        if before not in found or frame not in found or {before, frame} & lost:
            continue
        first, second = found[before].pixels.get(name), found[frame].pixels.get(name)
        if not first or not second or name in found[before].absent | found[frame].absent:
            continue
        if max(first / second, second / first) >= _JUMP:
            sentences.append(
                f"Frame {frame}: the area of {name} jumps from {_about(first)} to {_about(second)} pixels. "
                "Check it; a key there corrects it."
            )
    if len(sentences) > _MOST_TOLD:
        more = len(sentences) - _MOST_TOLD
        sentences = [*sentences[:_MOST_TOLD], f"The area of {name} jumps on {more} further frames."]
    return sentences


def _about(pixels: float) -> str:
    """`1,510,000`: three digits are enough to compare areas."""
    return f"{float(f'{pixels:.3g}'):,.0f}"


def _ranges(frames: Sequence[int]) -> str:
    """`frame 1001`, `frames 1001-1004, 1009`."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:_MOST_TOLD]]
    more = f" and {len(runs) - _MOST_TOLD} further ranges" if len(runs) > _MOST_TOLD else ""
    return f"{'frame' if len(frames) == 1 else 'frames'} {', '.join(shown)}{more}"
