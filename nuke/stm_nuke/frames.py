"""Frame numbers in the forms of people and of the protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from stm_nuke.errors import UsageError

Range = tuple[int, int]
"""First and last frame, both included."""

_RANGE = re.compile(r"\s*(-?\d+)(?:\s*-\s*(-?\d+))?\s*")
_MOST_RANGES_IN_WORDS = 6


def parse_range(text: str) -> Range:
    """`1001-1100`, `1001`, `-10--5`.

    Raises:
        UsageError: it is neither, or runs backwards.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a frame range.", hint="Write it as 1001-1100: whole numbers only.")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise UsageError(f"The range {text} runs backwards.", hint=f"Write {last}-{first}.")
    return first, last


def whole(frame: float) -> int:
    """A whole frame number.

    Raises:
        UsageError: it is between two frames, where there is neither a mask nor a matte.
    """
    if not math.isfinite(frame) or frame != math.floor(frame):
        raise UsageError(
            f"{frame:g} is not a whole frame, and keyframes and mattes are on whole frames only.",
            hint="Go to a whole frame. A retime belongs above the STM node.",
        )
    return int(frame)


def whole_within(first: float, last: float) -> Range:
    """The whole frames from `first` to `last`, which need not be whole: a retime may begin anywhere.

    Raises:
        UsageError: there is none.
    """
    inside = math.ceil(first), math.floor(last)
    if inside[1] < inside[0]:
        raise UsageError(f"There is no whole frame from {first:g} to {last:g}.")
    return inside


def ranges_of(frames: Iterable[int]) -> list[Range]:
    """Ascending ranges that hold exactly these frames."""
    ranges: list[Range] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1] = (ranges[-1][0], frame)
        else:
            ranges.append((frame, frame))
    return ranges


def frames_of(ranges: Iterable[Sequence[int]]) -> list[int]:
    """Every frame of `[[first, last], ...]`."""
    return [frame for first, last in ranges for frame in range(first, last + 1)]


def in_words(frames: Iterable[int]) -> str:
    """`1001-1003, 1010`; long lists end in "and more"."""
    ranges = ranges_of(frames)
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(parts[:_MOST_RANGES_IN_WORDS]) + (
        " and more" if len(parts) > _MOST_RANGES_IN_WORDS else ""
    )


def counted(count: int, thing: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
