"""Pictures for the page: plate frames and mattes as WebP, made in advance at a small size, kept on disk."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Final, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import write_atomically
from stm_plugin.windows import FloatArray

PROXY_WIDTH: Final = 960
"""Width of pictures made in advance: they fill the page at 1280x720, and a hundred of them are 10 MB."""

_PROXY_QUALITY: Final = 82
_FULL_QUALITY: Final = 95
_LOSSLESS: Final = 101  # OpenCV's value for lossless

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


def encode_picture(picture: FloatArray, size: Size) -> bytes:
    """A display-referred picture as WebP.

    Args:
        picture: float32 (h, w, 3) in [0, 1], sRGB.
        size: `proxy` reduces it to PROXY_WIDTH.
    """
    small = _sized(picture, size)  # first: converting all pixels to bytes takes longer than the rest
    pixels = np.rint(np.clip(small[..., ::-1], 0.0, 1.0) * 255).astype(np.uint8)
    return _webp(pixels, _PROXY_QUALITY if size == "proxy" else _FULL_QUALITY)


def encode_matte(matte: FloatArray, size: Size) -> bytes:
    """A matte as the alpha of a white WebP picture, without loss.

    Args:
        matte: float32 (h, w) in [0, 1].
        size: as in `encode_picture`.
    """
    alpha = _sized(np.rint(np.clip(matte, 0.0, 1.0) * 255).astype(np.uint8), size)
    pixels = np.full((*alpha.shape, 4), 255, np.uint8)
    pixels[..., 3] = alpha
    return _webp(pixels, _LOSSLESS)


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


def _sized(pixels: npt.NDArray[Pixel], size: Size) -> npt.NDArray[Pixel]:
    height, width = pixels.shape[:2]
    if size == "full" or width <= PROXY_WIDTH:
        return np.ascontiguousarray(pixels)
    small = cv2.resize(
        np.ascontiguousarray(pixels),
        (PROXY_WIDTH, max(1, round(height * PROXY_WIDTH / width))),
        interpolation=cv2.INTER_AREA,
    )
    return np.asarray(small, pixels.dtype)


def _webp(pixels: Bytes8, quality: int) -> bytes:
    done, data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done  # the input has 8-bit colours and sides below 16384
    return data.tobytes()
