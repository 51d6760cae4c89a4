"""Windows: rectangles of pixels as in EXR, and arrays over them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FloatArray: TypeAlias = "npt.NDArray[np.float32]"
PixelArray: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.float16]"
"""Stored plate pixels: float32 or half."""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels in the EXR sense: x to the right, y DOWN, the origin may be negative."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The x behind the last column."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The y behind the last row."""
        return self.y + self.height

    def union(self, other: Window) -> Window:
        """The smallest window that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Window(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)

    def intersection(self, other: Window) -> Window | None:
        """The pixels that both share, or None where there are none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Window(x, y, width, height) if width > 0 and height > 0 else None

    def contains(self, other: Window) -> bool:
        """Whether every pixel of `other` is in this window."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at ({self.x}, {self.y})"


def union_of(windows: Iterable[Window]) -> Window:
    """The smallest window that holds all of them (at least one)."""
    return reduce(Window.union, windows)


def place(pixels: PixelArray, window: Window, canvas: Window, fill: float = 0.0) -> FloatArray:
    """Put pixels (h, w[, C]) of `window` into a new array over `canvas` (H, W[, C]); `fill` elsewhere.

    Pixels outside the canvas are dropped.
    """
    import numpy as np  # imported here: the command line uses windows and must not wait for numpy

    if pixels.shape[:2] != (window.height, window.width):
        raise ValueError(f"pixels {pixels.shape} do not fill the window {window}")
    result = np.full((canvas.height, canvas.width, *pixels.shape[2:]), fill, dtype=np.float32)
    shared = window.intersection(canvas)
    if shared is not None:
        result[slices_of(shared, canvas)] = pixels[slices_of(shared, window)]
    return result


def on_window(values: FloatArray, window: Window, target: Window) -> FloatArray:
    """An array over `window` as one over `target`, 0 outside `window`; the same array if they are equal."""
    return values if window == target else place(values, window, target)


def slices_of(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` in an array over `outer`."""
    return (
        slice(inner.y - outer.y, inner.bottom - outer.y),
        slice(inner.x - outer.x, inner.right - outer.x),
    )
