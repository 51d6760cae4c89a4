"""Pictures for the page: plate frames and mattes as WebP, made in advance at a small size, kept on disk."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import write_atomically
from stm_plugin.windows import FloatArray

PROXY_WIDTH: Final = 960
"""Width of pictures made in advance, roughly: they fill the page at 1280x720, and a hundred are 10 MB."""

_PROXY_QUALITY: Final = 82
_FULL_QUALITY: Final = 95
_FASTEST: Final = 0  # of WebP's methods: a quarter of the usual one's time, a third more bytes

Bytes8 = npt.NDArray[np.uint8]
Size = Literal["proxy", "full"]
Pixel = TypeVar("Pixel", np.uint8, np.float32)


def cache_folder() -> Path:
    """The user's folder for pictures of the page. It may be deleted at any time."""
    given = os.environ.get("XDG_CACHE_HOME")
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        return base / "STM for Nuke" / "review"
    return (Path(given) if given else Path.home() / ".cache") / "stm-for-nuke" / "review"


class PictureCache:
    """A cache on disk of encoded pictures by their ingredients; empty where the disk cannot be written.

    Args:
        folder: of one shot.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, *ingredients: str) -> bytes | None:
        """The picture that was put with the same ingredients, or None."""
        try:
            return self._path(ingredients).read_bytes() or None
        except OSError:
            return None

    def put(self, picture: bytes, *ingredients: str) -> None:
        """Keep a picture, unless the disk is full or read-only."""
        try:
            write_atomically(self._path(ingredients), picture, durable=False)
        except StoreError:
            return

    def _path(self, ingredients: tuple[str, ...]) -> Path:
        name = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.webp"


def sized(pixels: npt.NDArray[Pixel], size: Size) -> npt.NDArray[Pixel]:
    """A picture (h, w[, C]) as it is, or reduced by a whole factor to about PROXY_WIDTH.

    Other factors take longer.
    """
    height, width = pixels.shape[:2]
    factor = 1 if size == "full" else max(1, min(round(width / PROXY_WIDTH), height))
    if factor == 1:
        return np.ascontiguousarray(pixels)
    small = cv2.resize(
        np.ascontiguousarray(pixels[: height // factor * factor, : width // factor * factor]),
        (width // factor, height // factor),
        interpolation=cv2.INTER_AREA,
    )
    return np.asarray(small, pixels.dtype)


def encode_picture(picture: FloatArray, size: Size) -> bytes:
    """A display-referred picture as WebP.

    Args:
        picture: float32 (h, w, 3) in [0, 1], sRGB.
        size: `proxy` reduces it, as `sized` does.
    """
    small = sized(picture, size)  # first: converting all pixels to bytes takes longer than the rest
    pixels = cv2.convertScaleAbs(np.maximum(small, 0), alpha=255)  # rounds, and ends at 255
    quality = _PROXY_QUALITY if size == "proxy" else _FULL_QUALITY
    return _webp(np.asarray(pixels, np.uint8), quality=quality)


def encode_matte(matte: FloatArray, size: Size) -> bytes:
    """A matte as the alpha of a white WebP picture, without loss.

    Args:
        matte: float32 (h, w) in [0, 1].
        size: `proxy` reduces it, as `sized` does.
    """
    alpha = sized(np.rint(np.clip(matte, 0.0, 1.0) * 255).astype(np.uint8), size)
    pixels = np.full((*alpha.shape, 4), 255, np.uint8)
    pixels[..., 3] = alpha
    return _webp(pixels, lossless=True, exact=True, quality=0)


def decode_mask(data: bytes, width: int, height: int) -> FloatArray:
    """The alpha of a painted picture, float32 (height, width) in [0, 1].

    Raises:
        ValueError: it is not a picture, has no alpha, or another size.
    """
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim != 3 or found.shape[2] != 4:
        raise ValueError("A mask must come as a PNG or WebP picture with an alpha channel.")
    if found.shape[:2] != (height, width):
        raise ValueError(
            f"The mask has {found.shape[1]}x{found.shape[0]} pixels, but the plate {width}x{height}."
        )
    alpha: FloatArray = found[..., 3].astype(np.float32) / np.float32(255)
    return alpha


def _webp(pixels: Bytes8, **options: Any) -> bytes:
    """Pixels (h, w, 3 or 4), R first, as WebP by the fastest of its methods."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "webp", method=_FASTEST, **options)
    return data.getvalue()
