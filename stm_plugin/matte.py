"""Mattes: half-float EXR files that carry the plate's windows, aspect, timecode and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import OpenImageIO as oiio

from stm_plugin.plate import FloatArray, PlateFrame, Window

MetadataValue = str | int | float


@dataclass(frozen=True)
class MatteImage:
    """A matte file read back: channel name -> float32 (h, w) over the data window, and its header."""

    channels: Mapping[str, FloatArray]
    data_window: Window
    display_window: Window
    pixel_aspect: float
    metadata: oiio.ImageSpec


def write_matte(
    path: str | Path, mattes: Mapping[str, FloatArray], plate_frame: PlateFrame, *, channel: str = "A",
    metadata: Mapping[str, MetadataValue] | None = None,
) -> None:
    """Write one frame's mattes (each float32 (h, w) over the plate frame's data window) atomically."""
    raise NotImplementedError


def read_matte(path: str | Path, *, frame: int | None = None) -> MatteImage:
    """Read a matte file back. MatteError when it is missing, truncated or not an image."""
    raise NotImplementedError
