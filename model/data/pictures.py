"""Reading and writing pictures and label pictures, for training and evaluation."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Labels = NDArray[np.uint8]
"""(H, W): 0 is background, k is the object with label k."""

Picture = NDArray[np.uint8]
"""(H, W, 3): RGB."""

MOST_ENLARGEMENT = 4.0
"""Pictures below the working size are enlarged to it, at most by this factor: the network finds small objects
only where they cover several of its positions (figures in docs/experiments/working-size.md)."""

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

VOID_LABEL = 255
"""Pixels that belong to nothing in DAVIS and YouTube-VOS; they count as background here."""


def working_scale(short_side: float, working_size: int) -> float:
    """The factor that scales a picture's short side to the working size, both in square pixels."""
    return min(working_size / short_side, MOST_ENLARGEMENT)


def read_picture(path: Path) -> Tensor:
    """(3, H, W) float RGB in [0, 1].

    Raises:
        OSError: if the file is not there or is no picture.
    """
    with Image.open(path) as image:
        array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1).float().div_(255)


def read_picture_bytes(path: Path) -> Picture:
    """(H, W, 3) RGB, bytes, by OpenCV: quicker than `read_picture`, for training.

    Raises:
        OSError: if the file is not there or is no picture.
    """
    encoded = np.frombuffer(path.read_bytes(), np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(encoded, flags) if encoded.size else None
    if decoded is None:
        raise OSError(f"{path} cannot be read as a picture")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def read_labels(path: Path) -> Labels:
    """The labels (H, W) of an annotation, a mask or a result.

    - Palette pictures: the indices, 255 is void. One-bit pictures: 0 and 1.
    - Grey pictures (of 8 or 16 bits, or RGB with three equal channels) that reach white are the mask of one
      object, with a threshold of one half. Other grey values are labels. Alpha is ignored.
    - Colours without a palette are refused, as their luminance would be a wrong label: two objects could
    become
      one without notice.

    Raises:
        ValueError: if the labels are unknown: colours without a palette, or values that are too large.
        OSError: if the file is not there or is no picture.
    """
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        mode = image.mode
        if mode in ("P", "1"):
            labels = np.array(image, dtype=np.uint8)
            labels[labels == VOID_LABEL] = 0
            return labels
        if mode.startswith("I"):
            grey, white = np.asarray(image), np.iinfo(np.uint16).max
        elif mode in ("L", "LA"):
            grey, white = np.asarray(image.getchannel("L")), np.iinfo(np.uint8).max
        else:
            colours = np.asarray(image.convert("RGB"))
            if (colours != colours[..., :1]).any():
                raise ValueError(
                    f"{path} has colours but no palette, so its labels cannot be told. "
                    "Save it with a palette, or grey with the labels as values."
                )
            grey, white = colours[..., 0], np.iinfo(np.uint8).max
    highest = int(grey.max(initial=0))
    if highest == white:
        return (grey > white // 2).astype(np.uint8)
    if highest >= VOID_LABEL:
        raise ValueError(
            f"{path} has grey values up to {highest}: neither labels (0 to {VOID_LABEL - 1}) nor a mask "
            f"of one object, which reaches white ({white})."
        )
    return grey.astype(np.uint8)


def write_labels(path: Path, labels: Labels) -> None:
    """Writes labels as a PNG with DAVIS's palette, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(_davis_palette())
    image.save(path)


def label_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label in DAVIS's palette, each channel in [0, 255]."""
    red, green, blue = _davis_palette()[3 * label : 3 * label + 3]
    return red, green, blue


def _davis_palette() -> list[int]:
    """The palette of DAVIS and PASCAL VOC: the label's bits, spread over the high bits of the channels."""
    palette = []
    for label in range(256):
        for channel in range(3):
            bits = (label >> channel) & 0b001001001
            spread = (bits & 1) << 7 | (bits >> 3 & 1) << 6 | (bits >> 6 & 1) << 5
            palette.append(spread)
    return palette
