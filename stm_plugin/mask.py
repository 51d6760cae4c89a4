"""Masks: what the artist gives on a key, from any image, as soft mattes of named objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stm_plugin.plate import FloatArray, Window

MaskMode = Literal["auto", "soft", "labels", "layers"]


@dataclass(frozen=True)
class MaskImage:
    """The objects of one key.

    Attributes:
        objects: name -> float32 (H, W) in [0, 1] over the canvas, in a stable order.
        path: the file.
        source: in words how the file was understood ("palette index", "alpha", "luminance", ...).
    """

    objects: Mapping[str, FloatArray]
    path: Path
    source: str


def read_mask(
    path: str | Path, *, canvas: Window, display_window: Window, data_window: Window | None = None,
    objects: Sequence[str] | None = None, mode: MaskMode = "auto", channel: str | None = None,
    allow_empty: bool = False, frame: int | None = None,
) -> MaskImage:
    """Read a key's mask. MaskError (with `frame` and file) when it cannot be used."""
    raise NotImplementedError


def mask_hash(mask: FloatArray) -> str:
    """sha256 (hex) of one object's mask: its size and values."""
    raise NotImplementedError
