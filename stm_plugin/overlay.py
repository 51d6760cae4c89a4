"""Pictures for people: the matte over the plate, contact sheets, overlay sequences and movies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from stm_plugin.plate import FloatArray

ByteArray = npt.NDArray[np.uint8]


def overlay_picture(picture: FloatArray, mattes: Mapping[str, FloatArray]) -> ByteArray:
    """Display-referred picture (H, W, 3) in [0, 1] with each object tinted and outlined -> uint8 (H, W, 3)."""
    raise NotImplementedError


def pick_frames(frames: Sequence[int], keys: Collection[int], count: int = 12) -> tuple[int, ...]:
    """Frames for a contact sheet: first, last, the keys, and the rest spread evenly."""
    raise NotImplementedError


def contact_sheet(
    pictures: Mapping[int, ByteArray], keys: Collection[int] = (), *, columns: int | None = None,
    cell_width: int = 480, pixel_aspect: float = 1.0,
) -> ByteArray:
    """One picture of many frames, each with its number; key frames are marked."""
    raise NotImplementedError


def write_picture(path: str | Path, picture: ByteArray) -> None:
    """Write a uint8 (H, W, 3) picture as PNG or JPEG, atomically. MatteError when it cannot be written."""
    raise NotImplementedError


class OverlayWriter:
    """Writes overlay pictures frame by frame, as a sequence (`overlay.####.jpg`) or a movie (`overlay.mp4`)."""

    def __init__(self, target: str | Path, *, fps: float | None = None) -> None: ...
    def write(self, frame: int, picture: ByteArray) -> None:
        """Add one frame. Movie frames must come in order and in one size."""
        raise NotImplementedError

    def close(self) -> None: ...
    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
