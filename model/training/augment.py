"""Random geometry and colour for training clips: pure functions on bytes and a numpy generator.

Pictures are (H, W, 3) or (T, H, W, 3), labels (H, W) or (T, H, W), both uint8. OpenCV does the work.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from model.training.textures import ByteArray, FloatArray

Generator = np.random.Generator
Matrix = npt.NDArray[np.float64]
"""(2, 3): takes pixels (x, y, 1) of the output to pixels of the source."""

_LUMA = np.array([0.299, 0.587, 0.114])


class Maps(NamedTuple):
    """For each pixel of the output the place (x, y) of the source that it shows, both (H, W), in pixels."""

    x: FloatArray
    y: FloatArray


def affine_matrix(
    *,
    centre: tuple[float, float],
    size: tuple[float, float],
    shape: tuple[int, int],
    angle: float = 0.0,
    shear: float = 0.0,
    flip: bool = False,
) -> Matrix:
    """The matrix that takes pixels of the output to pixels of the source.

    Args:
        centre: (x, y) in the source of the middle of the output.
        size: (width, height) in source pixels that the output covers.
        shape: (height, width) of the output in pixels.
        angle: rotation in degrees.
        shear: horizontal shear factor.
        flip: mirror left and right.
    """
    height, width = shape
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = size[0] / width * (-1 if flip else 1), size[1] / height
    linear = np.array(
        [[cos * across, (-sin + shear * cos) * down], [sin * across, (cos + shear * sin) * down]]
    )
    # the middles of pixels lie at one half
    shift = np.array(centre) - 0.5 - linear @ (np.array([width, height]) / 2 - 0.5)
    return np.column_stack([linear, shift])


def affine_maps(matrix: Matrix, shape: tuple[int, int]) -> Maps:
    """The maps of a matrix for an output of `shape` (height, width)."""
    height, width = shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    (a, b, c), (d, e, f) = matrix.astype(np.float32)
    return Maps(a * x + (b * y + c), d * x + (e * y + f))


def thin_plate_offsets(
    rng: Generator, strength: float, shape: tuple[int, int], points: int = 3
) -> tuple[FloatArray, FloatArray]:
    """A smooth random displacement of the output by a thin-plate spline through `points` x `points` controls.

    Args:
        strength: standard deviation of the controls' displacement, as a share of half the picture's side.
        shape: (height, width).

    Returns:
        offsets along x and y, both (H, W), in the same unit.
    """
    height, width = shape
    # The spline is smooth: a coarse grid, enlarged, is exact enough and much cheaper.
    coarse = max(height // 8, 4), max(width // 8, 4)
    targets = rng.normal(0, strength, size=(points * points, 2))
    offsets = (_thin_plate(coarse, points) @ targets).astype(np.float32).reshape(*coarse, 2)
    fine = np.asarray(cv2.resize(offsets, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return fine[..., 0], fine[..., 1]


@lru_cache(maxsize=16)
def _thin_plate(shape: tuple[int, int], points: int) -> npt.NDArray[np.float64]:
    """(H * W, points * points): from the displacement of each control to that of each pixel."""
    axis = np.linspace(-1, 1, points)
    controls = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)
    count = len(controls)

    def kernel(distance_squared: np.ndarray) -> np.ndarray:
        return np.asarray(distance_squared * np.log(distance_squared + 1e-9))

    between = ((controls[:, None] - controls[None]) ** 2).sum(-1)
    affine = np.concatenate([np.ones((count, 1)), controls], axis=1)
    system = np.block([[kernel(between), affine], [affine.T, np.zeros((3, 3))]])
    ys, xs = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in shape), indexing="ij")
    grid = np.stack([xs, ys], axis=-1).reshape(-1, 2)
    distances = ((grid[:, None] - controls[None]) ** 2).sum(-1)
    basis = np.concatenate([kernel(distances), np.ones((len(grid), 1)), grid], axis=1)
    return np.asarray(basis @ np.linalg.inv(system)[:, :count])


Way = Matrix | Maps
"""From the pixels of an output to those of its source."""


def part_of(way: Way, x: int, y: int, shape: tuple[int, int]) -> Way:
    """The way of a part of the output: its left upper corner, and its (height, width)."""
    if isinstance(way, Maps):
        part = np.s_[y : y + shape[0], x : x + shape[1]]
        return Maps(way.x[part], way.y[part])
    return np.column_stack([way[:, :2], way @ np.array([x, y, 1.0])])


def warp(picture: ByteArray, way: Way, shape: tuple[int, int], *, mirror: bool) -> ByteArray:
    """Samples a picture (H, W, 3) bilinearly. Outside the source it is mirrored, or zero.

    Args:
        shape: (height, width) of the output.
    """
    outside = cv2.BORDER_REFLECT if mirror else cv2.BORDER_CONSTANT
    if isinstance(way, Maps):
        places = cv2.convertMaps(way.x, way.y, cv2.CV_16SC2)
        return np.asarray(cv2.remap(picture, *places, cv2.INTER_LINEAR, borderMode=outside), np.uint8)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, way, shape[::-1], flags=flags, borderMode=outside), np.uint8)


def warp_labels(labels: ByteArray, way: Way, shape: tuple[int, int], *, mirror: bool) -> ByteArray:
    """The same for labels (H, W), by nearest neighbour."""
    outside = cv2.BORDER_REFLECT if mirror else cv2.BORDER_CONSTANT
    if isinstance(way, Maps):
        return np.asarray(cv2.remap(labels, *way, cv2.INTER_NEAREST, borderMode=outside), np.uint8)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(labels, way, shape[::-1], flags=flags, borderMode=outside), np.uint8)


def colour_jitter(
    clip: ByteArray,
    rng: Generator,
    *,
    strength: float = 0.25,
    per_frame: float = 0.05,
    grey_chance: float = 0.05,
) -> ByteArray:
    """Brightness, contrast, saturation and white balance of a clip (T, H, W, 3).

    One draw for the clip (`strength`) and a small one for each frame (`per_frame`), as auto exposure gives.
    """
    frames = clip.shape[0]

    def draw(amount: float) -> npt.NDArray[np.float64]:
        common = rng.uniform(-strength, strength) * amount
        each = rng.uniform(-per_frame, per_frame, size=frames) * amount
        return np.asarray(1 + common + each)

    balance = 1 + rng.uniform(-strength / 3, strength / 3, size=3)
    brightness, contrast = draw(1.0), draw(1.0)
    saturation = np.zeros(frames) if rng.random() < grey_chance else draw(1.5)
    result = np.empty_like(clip)
    for index, frame in enumerate(clip):
        lit = np.diag(balance * brightness[index])
        mean = float((lit @ np.asarray(cv2.mean(frame)[:3])).mean())
        mixed = saturation[index] * np.eye(3) + (1 - saturation[index]) * np.tile(_LUMA, (3, 1))
        bias = np.full(3, (1 - contrast[index]) * mean)
        matrix = np.column_stack([contrast[index] * mixed @ lit, bias])
        result[index] = cv2.transform(frame, matrix)
    return result


def flicker(clip: ByteArray, where: npt.NDArray[np.bool_], rng: Generator) -> ByteArray:
    """Changes the light of a part of a clip (T, H, W, 3) smoothly over the picture and from frame to frame.

    Args:
        where: (T, H, W), the part.
    """
    frames, height, width = where.shape
    strength, size = float(rng.uniform(0.05, 0.25)), int(rng.integers(2, 12))
    lights = rng.normal(0, strength, (frames, 3, size, size)).astype(np.float32)
    lights = lights.mean(axis=1, keepdims=True) * np.float32(1.5) + np.float32(0.3) * lights  # mostly grey
    for step in range(1, frames):
        lights[step] = 0.6 * lights[step - 1] + 0.8 * lights[step]
    result = np.empty_like(clip)
    for index, frame in enumerate(clip):
        small = np.ascontiguousarray(lights[index].transpose(1, 2, 0)) * np.float32(255)
        light = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
        light *= soften(where[index])[..., None]
        result[index] = cv2.add(frame, light, dtype=cv2.CV_8U)
    return result


def soften(mask: npt.NDArray[np.bool_]) -> FloatArray:
    """Blurs a mask (H, W) by boxes of 3 x 3, so that what is pasted has no cut-out edge."""
    return np.asarray(cv2.blur(mask.astype(np.float32), (3, 3), borderType=cv2.BORDER_REPLICATE), np.float32)


def motion_blur(clip: ByteArray, rng: Generator, longest: int = 9) -> ByteArray:
    """Blurs a clip (T, H, W, 3) along one random direction by up to `longest` pixels."""
    length = int(rng.integers(3, longest + 1))
    angle = rng.uniform(0, math.pi)
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    for step in np.linspace(-middle, middle, 2 * length):
        kernel[round(middle + step * math.sin(angle)), round(middle + step * math.cos(angle))] = 1
    kernel /= kernel.sum()
    blurred = [cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for frame in clip]
    return np.stack(blurred).astype(np.uint8)
