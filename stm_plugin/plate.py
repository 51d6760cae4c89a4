"""Plates: the shot's pictures with their windows, aspect and metadata, read through OpenImageIO."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.sequence import FrameSequence

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels in the EXR sense: x to the right, y DOWN, the origin may be negative."""

    x: int
    y: int
    width: int
    height: int

    def union(self, other: Window) -> Window: ...  # type: ignore[empty-body]
    def intersection(self, other: Window) -> Window | None: ...  # type: ignore[empty-body]
    def contains(self, other: Window) -> bool: ...  # type: ignore[empty-body]


@dataclass(frozen=True)
class PlateFrame:
    """One frame of a plate. `pixels` covers the data window only.

    Attributes:
        frame: the host's frame number.
        path: the file it came from, or None when a host pushed the pixels.
        pixels: float32 (height, width, 3) of the data window, as stored: NaN, Inf, negative values and values above 1 kept.
        data_window, display_window, pixel_aspect: as in the file.
        metadata: the file's header (its attributes travel into the matte); an empty ImageSpec for pushed frames.
    """

    frame: int
    path: Path | None
    pixels: FloatArray
    data_window: Window
    display_window: Window
    pixel_aspect: float = 1.0
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec)

    def content_hash(self) -> str:
        """sha256 (hex) of what the matte depends on: pixels, windows, aspect; not the file's name or times."""
        raise NotImplementedError


class PlateSource(Protocol):
    """What the engine needs of a plate, be it files (Plate) or frames pushed by a host."""

    @property
    def frames(self) -> tuple[int, ...]: ...
    @property
    def missing(self) -> tuple[int, ...]: ...
    @property
    def display_window(self) -> Window: ...
    @property
    def canvas(self) -> Window: ...
    @property
    def pixel_aspect(self) -> float: ...
    @property
    def fps(self) -> float | None: ...
    def read(self, frame: int) -> PlateFrame: ...


@dataclass(frozen=True)
class Plate:
    """A plate in files. Opened from headers only; pixels are read frame by frame.

    Attributes:
        sequence: where the frames are.
        frames: frame numbers of the range, ascending, missing ones included (`missing` names them).
        display_window, pixel_aspect: the same on every frame.
        canvas: union of the display window and of every frame's data window.
        fps: frames per second if the files say so.
        layer, view: what is read from multichannel and multiview files.
        colour_space: the input colour space the artist stated, or None.
    """

    sequence: FrameSequence
    display_window: Window
    canvas: Window
    pixel_aspect: float
    fps: float | None
    layer: str | None
    view: str | None
    colour_space: str | None

    @property
    def frames(self) -> tuple[int, ...]:
        return self.sequence.frames

    @property
    def missing(self) -> tuple[int, ...]:
        return self.sequence.missing

    @classmethod
    def open(
        cls, text: str | Path, *, frame_range: str | tuple[int, int] | None = None, layer: str | None = None,
        view: str | None = None, colour_space: str | None = None, movie_first_frame: int = 1,
    ) -> Plate:
        """Open a plate. PlateError names the frame and the file that cannot be used."""
        raise NotImplementedError

    def read(self, frame: int) -> PlateFrame:
        """Read one frame. PlateError for a frame outside the range, missing, truncated or of another shape."""
        raise NotImplementedError


def place(pixels: FloatArray, window: Window, canvas: Window, fill: float = 0.0) -> FloatArray:
    """Put pixels (h, w[, C]) of `window` into an array over `canvas` (H, W[, C]); `fill` elsewhere."""
    raise NotImplementedError


def cut(pixels: FloatArray, canvas: Window, window: Window, fill: float = 0.0) -> FloatArray:
    """Cut the part of `window` out of an array over `canvas`; `fill` where the window leaves the canvas."""
    raise NotImplementedError
