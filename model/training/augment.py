"""Random geometry and colour for training clips: pure functions on tensors and a numpy generator.

Warps are sampling grids for `torch.nn.functional.grid_sample` in its normalised coordinates: (-1, -1) is the
top left corner of the picture, (1, 1) the bottom right one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Generator = np.random.Generator


def affine_matrix(
    *,
    centre: tuple[float, float],
    size: tuple[float, float],
    source_size: tuple[int, int],
    angle: float = 0.0,
    shear: float = 0.0,
    flip: bool = False,
) -> Tensor:
    """The 2x3 matrix from output coordinates to source coordinates, both normalised.

    Args:
        centre: (x, y) in source pixels of the middle of the output.
        size: (width, height) in source pixels that the output covers.
        source_size: (height, width) of the source in pixels.
        angle: rotation in degrees.
        shear: horizontal shear factor.
        flip: mirror left and right.
    """
    height, width = source_size
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half_x, half_y = size[0] / 2 * (-1 if flip else 1), size[1] / 2
    # output (-1..1) -> source pixels around the centre
    pixels = np.array(
        [
            [cos * half_x, (-sin + shear * cos) * half_y, centre[0]],
            [sin * half_x, (cos + shear * sin) * half_y, centre[1]],
        ]
    )
    pixels[0] *= 2 / width
    pixels[1] *= 2 / height
    pixels[:, 2] -= 1
    return torch.from_numpy(pixels.astype(np.float32))


def affine_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Sampling grid (H, W, 2) of a 2x3 matrix: the transformed centres of H x W pixels."""
    x, y = ((2 * torch.arange(size) + 1) / size - 1 for size in (width, height))
    grid = torch.empty(height, width, 2)  # F.affine_grid returns the same in seven times the time
    for axis, (of_x, of_y, shift) in enumerate(matrix.tolist()):
        torch.add(y[:, None] * of_y + shift, x * of_x, out=grid[..., axis])
    return grid


def thin_plate_offsets(rng: Generator, strength: float, height: int, width: int, points: int = 3) -> Tensor:
    """A smooth random displacement of the output grid by a thin-plate spline through `points` x `points`
    controls.

    Args:
        strength: standard deviation of the controls' displacement in normalised units.

    Returns:
        (H, W, 2) offsets in normalised units.
    """
    axis = np.linspace(-1, 1, points)
    controls = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).reshape(-1, 2)
    count = len(controls)
    targets = rng.normal(0, strength, size=(count, 2))

    def kernel(distance_squared: np.ndarray) -> np.ndarray:
        return np.asarray(distance_squared * np.log(distance_squared + 1e-9))

    between = ((controls[:, None] - controls[None]) ** 2).sum(-1)
    affine = np.concatenate([np.ones((count, 1)), controls], axis=1)
    system = np.block([[kernel(between), affine], [affine.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.concatenate([targets, np.zeros((3, 2))]))
    # The spline is smooth: evaluating it on a coarse grid and interpolating is exact enough and much cheaper.
    coarse_h, coarse_w = max(height // 8, 2), max(width // 8, 2)
    ys, xs = np.meshgrid(np.linspace(-1, 1, coarse_h), np.linspace(-1, 1, coarse_w), indexing="ij")
    grid = np.stack([xs, ys], axis=-1).reshape(-1, 2)
    distances = ((grid[:, None] - controls[None]) ** 2).sum(-1)
    basis = np.concatenate([kernel(distances), np.ones((len(grid), 1)), grid], axis=1)
    offsets = torch.from_numpy((basis @ weights).astype(np.float32)).reshape(1, coarse_h, coarse_w, 2)
    fine = F.interpolate(
        offsets.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=True
    )
    return fine[0].permute(1, 2, 0)


def warp(
    picture: Tensor, labels: Tensor, grid: Tensor, *, mirror: bool, mirror_labels: bool
) -> tuple[Tensor, Tensor]:
    """Samples a picture (3, H, W) bilinearly and its labels (H, W) by nearest neighbour.

    Outside the source both are mirrored, or zero.
    """
    batch_grid = grid.unsqueeze(0)
    outside, labels_outside = ("reflection" if mirrored else "zeros" for mirrored in (mirror, mirror_labels))
    warped = F.grid_sample(
        picture.unsqueeze(0), batch_grid, mode="bilinear", padding_mode=outside, align_corners=False
    )
    warped_labels = F.grid_sample(
        labels[None, None].float(),
        batch_grid,
        mode="nearest",
        padding_mode=labels_outside,
        align_corners=False,
    )
    return warped[0], warped_labels[0, 0].round().long()


def colour_jitter(
    clip: Tensor,
    rng: Generator,
    *,
    strength: float = 0.25,
    per_frame: float = 0.05,
    grey_chance: float = 0.05,
) -> Tensor:
    """Brightness, contrast, saturation and white balance of a clip (T, 3, H, W) in [0, 1].

    One random change for the clip (`strength`) and a small one for each frame (`per_frame`), as of auto
    exposure.
    """
    frames = clip.shape[0]

    def draw(amount: float) -> Tensor:
        common = rng.uniform(-strength, strength) * amount
        each = rng.uniform(-per_frame, per_frame, size=frames) * amount
        return torch.from_numpy((1 + common + each).astype(np.float32)).view(-1, 1, 1, 1)

    luma = clip.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    balance = torch.from_numpy(
        (1 + rng.uniform(-strength / 3, strength / 3, size=(1, 3, 1, 1))).astype(np.float32)
    )
    clip = clip * draw(1.0) * balance
    mean = clip.mean(dim=(1, 2, 3), keepdim=True)
    clip = mean + (clip - mean) * draw(1.0)
    grey = (clip * luma).sum(dim=1, keepdim=True)
    saturation = torch.zeros(1, 1, 1, 1) if rng.random() < grey_chance else draw(1.5)
    return (grey + (clip - grey) * saturation).clamp(0, 1)


def flicker(clip: Tensor, where: Tensor, rng: Generator) -> Tensor:
    """Changes the brightness of a part of a clip (T, 3, H, W) smoothly over the picture and over time.

    Args:
        where: (T, H, W) bool, the part.
    """
    frames, _, height, width = clip.shape
    strength, size = float(rng.uniform(0.05, 0.25)), int(rng.integers(2, 12))
    lights = torch.from_numpy(rng.normal(0, strength, (frames, 3, size, size)).astype(np.float32))
    lights = lights.mean(dim=1, keepdim=True) * 1.5 + 0.3 * lights  # mostly grey
    for step in range(1, frames):
        lights[step] = 0.6 * lights[step - 1] + 0.8 * lights[step]
    lights = F.interpolate(lights, (height, width), mode="bicubic", align_corners=False)
    return (clip + lights * soften(where).unsqueeze(1)).clamp(0, 1)


def soften(mask: Tensor, passes: int = 1) -> Tensor:
    """Blurs a mask (T, H, W) by 3x3 boxes, so that pasted objects have no hard edge."""
    soft = mask.unsqueeze(1).float()
    for _ in range(passes):
        soft = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    return soft[:, 0]


def motion_blur(clip: Tensor, rng: Generator, longest: int = 9) -> Tensor:
    """Blurs a clip (T, 3, H, W) along one random direction by up to `longest` pixels."""
    length = int(rng.integers(3, longest + 1))
    angle = rng.uniform(0, math.pi)
    kernel = torch.zeros(length, length)
    middle = (length - 1) / 2
    for step in np.linspace(-middle, middle, 2 * length):
        kernel[round(middle + step * math.sin(angle)), round(middle + step * math.cos(angle))] = 1
    weight = (kernel / kernel.sum()).expand(3, 1, length, length).contiguous()
    before = (length - 1) // 2
    padded = F.pad(clip, (before, length - 1 - before, before, length - 1 - before), mode="reflect")
    return F.conv2d(padded, weight, groups=3)
