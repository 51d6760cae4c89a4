"""Pictures, patterns and noise as bytes: what made-up training clips are painted with.

All photographs here allow commercial use: they are scikit-image's own (CC0 or public domain). A caller may
give more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "retina.jpg",
)
"""Of scikit-image: CC0 or public domain, all of them (the docstrings of `skimage.data` say so)."""


@lru_cache(maxsize=1)
def photographs() -> tuple[Path, ...]:
    """The files of `PHOTOGRAPHS`."""
    import skimage  # needed for making clips only

    folder = Path(skimage.__file__).parent / "data"
    return tuple(folder / name for name in PHOTOGRAPHS)


@lru_cache(maxsize=64)
def read_bytes(path: str) -> ByteArray:
    """(H, W, 3) RGB.

    Raises:
        ValueError: if the file is no picture.
    """
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path} cannot be read as a picture")
    return np.ascontiguousarray(picture[..., ::-1])


def noise(rng: np.random.Generator, height: int, width: int, size: float, octaves: int = 3) -> FloatArray:
    """(height, width) in [0, 1]: smooth noise, with `size` pixels between its coarsest values."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = [max(2, round(side / size * 2**octave) + 1) for side in (height, width)]
        values = rng.random(tuple(cells), np.float32)
        total += np.float32(0.5**octave) * cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(total.min()), float(total.max())
    return (total - np.float32(low)) / np.float32(max(high - low, 1e-6))


def texture(rng: np.random.Generator, height: int, width: int, pictures: Sequence[Path] = ()) -> ByteArray:
    """(height, width, 3): a part of a photograph, noise between two colours, or a pattern.

    Args:
        pictures: more photographs.
    """
    draw = rng.random()
    if draw < 0.1:
        return _pattern(rng, height, width)
    if draw < 0.25:
        two = rng.integers(0, 256, (2, 3)).astype(np.float32)
        share = noise(rng, height, width, rng.uniform(4, 160))[..., None]
        return np.asarray(two[0] * share + two[1] * (1 - share), np.uint8)
    if pictures and draw < 0.8:
        path = str(pictures[int(rng.integers(len(pictures)))])
    else:
        path = str(photographs()[int(rng.integers(len(PHOTOGRAPHS)))])
    return _cut(rng, read_bytes(path), height, width)


def _cut(rng: np.random.Generator, picture: ByteArray, height: int, width: int) -> ByteArray:
    """A part of a photograph, turned, enlarged and tinted by chance."""
    if rng.random() < 0.5:
        picture = np.rot90(picture, int(rng.integers(1, 4)))
    rows, columns = picture.shape[:2]
    scale = min(rows / height, columns / width) * rng.uniform(0.35, 1.0)
    part = max(8, int(height * scale)), max(8, int(width * scale))
    y, x = int(rng.integers(0, rows - part[0] + 1)), int(rng.integers(0, columns - part[1] + 1))
    cut = picture[y : y + part[0], x : x + part[1]]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    method = cv2.INTER_AREA if part[0] > height else cv2.INTER_CUBIC
    cut = np.asarray(cv2.resize(np.ascontiguousarray(cut), (width, height), interpolation=method), np.uint8)
    if rng.random() < 0.5:
        tint = rng.uniform(0.6, 1.3, 3).astype(np.float32)
        cut = np.asarray(np.clip(cut * tint, 0, 255), np.uint8)
    return np.ascontiguousarray(cut)


def pattern_share(rng: np.random.Generator, height: int, width: int, longest: float) -> FloatArray:
    """(h, w) in [0, 1]: stripes, squares or a gradient, as the share of the first of two colours. A period
    has 6 to `longest` pixels."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, pitch = rng.uniform(0, math.pi), rng.uniform(6, longest)
    u = (rows * math.sin(angle) + columns * math.cos(angle)) / pitch
    v = (rows * math.cos(angle) - columns * math.sin(angle)) / pitch
    kind = rng.choice(3)
    if kind == 0:
        return np.asarray(np.sin(u * math.tau) > 0, np.float32)
    if kind == 1:
        return np.asarray((np.sin(u * math.tau) > 0) ^ (np.sin(v * math.tau) > 0), np.float32)
    return np.asarray(np.clip(u * pitch / max(height, width) + 0.5, 0, 1), np.float32)


def _pattern(rng: np.random.Generator, height: int, width: int) -> ByteArray:
    """Stripes, squares or a gradient between two colours."""
    share = pattern_share(rng, height, width, 90)
    two = rng.integers(0, 256, (2, 3)).astype(np.float32)
    return np.asarray(share[..., None] * two[0] + (1 - share[..., None]) * two[1], np.uint8)
