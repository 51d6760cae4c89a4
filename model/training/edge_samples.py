"""Samples for the edge refiner: crops of pooled clips, two neighbouring frames at a time.

The network's mistakes are increased at random: contours bent on every frame, holes and islands on single
frames, edges that are too hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.inference.colour_likelihood import colours_of, likelihood
from model.network.edges import softness_of
from model.training.edge_clips import FRAMES, PHOTOGRAPH, WORKING_SIDE
from model.training.edge_pool import PooledClip, at_working_size, read_pooled
from model.training.textures import ByteArray, FloatArray

CROP = 128
"""Side of a sample in working pixels."""
_CLIPS_HELD = 900
"""Clips in memory, about 2 MB each."""
_MOST_BENT = 8.0
"""The most working pixels by which a contour is bent."""
_DRAWN = 4
"""Working pixels on either side of an outline that was drawn by hand within which alpha is not known."""


@dataclass(frozen=True, eq=False)
class EdgeSample:
    """Two neighbouring frames of a clip, (2, ...).

    Attributes:
        inputs: (2, INPUTS, c, c), for the refiner.
        alpha: (2, c, c), at working size.
        known: (2, c, c): 1 where alpha is known, 0 elsewhere.
    """

    inputs: Tensor
    alpha: Tensor
    known: Tensor


def make_sample(pool: Sequence[Path], seed: int, index: int) -> EdgeSample:
    """The sample of an index; the same for the same pool and seed."""
    rng = np.random.default_rng([seed, index])
    path = pool[int(rng.integers(len(pool)))]
    clip = _clip(str(path))
    first = int(rng.integers(1, FRAMES - 1))
    y, x = _corner(clip, first, rng)
    coarse = _worsened(clip.coarse, first, rng)[..., y : y + CROP, x : x + CROP]
    softness = _known_softness(clip, rng)
    turn = int(rng.integers(8))
    inputs, alphas, known = [], [], []
    codes = np.arange(256, dtype=np.float32) / np.float32(255)
    exposure = np.clip(codes * rng.uniform(0.7, 1.25), 0, 1) ** np.float32(rng.uniform(0.8, 1.25))
    part = np.s_[y : y + CROP, x : x + CROP]
    for frame in (first, first + 1):
        plate = np.asarray(cv2.LUT(clip.plate[frame][part], exposure), np.float32)
        alpha = clip.alpha[frame].astype(np.float32) / np.float32(255)
        masks = _masks(coarse, frame, rng)
        constant = np.full((1, CROP, CROP), softness, np.float32)
        colours = _likelihoods(str(path))[frame][None, *part]
        inputs.append(_turned(np.concatenate([plate.transpose(2, 0, 1), masks, constant, colours]), turn))
        alphas.append(_turned(alpha[part], turn))
        known.append(_turned(_known(clip, alpha)[part], turn))
    return EdgeSample(*(torch.from_numpy(np.stack(one)) for one in (inputs, alphas, known)))


def _known(clip: PooledClip, alpha: FloatArray) -> FloatArray:
    """(h, w): 1 where the alpha of a frame is known."""
    if clip.kind != PHOTOGRAPH:
        return np.ones_like(alpha)
    side = 2 * _DRAWN + 1
    gradient = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((side, side), np.uint8))
    known: FloatArray = (np.asarray(gradient) == 0).astype(np.float32)
    return known


@lru_cache(maxsize=_CLIPS_HELD)
def _clip(path: str) -> PooledClip:
    """At working size: what the refiner sees, and all that it is asked for."""
    clip = read_pooled(Path(path))
    plate, alpha = (_reduced(one) for one in (clip.plate, clip.alpha))
    return replace(clip, plate=plate, alpha=alpha)


@lru_cache(maxsize=_CLIPS_HELD)
def _likelihoods(path: str) -> npt.NDArray[np.float16]:
    """(F, h, w): how likely each colour is the object's, by the key and the frame's own coarse mask."""
    clip = _clip(path)
    pictures = [one.transpose(2, 0, 1).astype(np.float32) / np.float32(255) for one in clip.plate]
    colours = [
        colours_of(picture, masks[0].astype(np.float32) / np.float32(65535))
        for picture, masks in zip(pictures, clip.coarse, strict=True)
    ]
    return np.stack(
        [likelihood(picture, own, colours[:1]) for picture, own in zip(pictures, colours, strict=True)]
    ).astype(np.float16)


def _reduced(frames: ByteArray) -> ByteArray:
    """(F, H, W[, C]) -> (F, h, w[, C])."""
    return np.stack(
        [(at_working_size(one) * np.float32(255) + np.float32(0.5)).astype(np.uint8) for one in frames]
    )


def _corner(clip: PooledClip, frame: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of the crop, even numbers, mostly around an edge or a mistake."""
    most = WORKING_SIDE - CROP
    if rng.random() < 0.1:
        return int(rng.integers(0, most // 2)) * 2, int(rng.integers(0, most // 2)) * 2
    alpha = clip.alpha[frame].astype(np.float32) / np.float32(255)
    coarse = clip.coarse[frame, 0].astype(np.float32) / np.float32(65535)
    there = np.flatnonzero(((alpha > 0.05) & (alpha < 0.95)) | (np.abs(coarse - alpha) > 0.3))
    place = int(there[rng.integers(there.size)]) if there.size else WORKING_SIDE**2 // 2
    centre = np.array(divmod(place, WORKING_SIDE)) - CROP // 2 + rng.integers(-32, 33, 2)
    top, left = np.clip(centre, 0, most) // 2 * 2
    return int(top), int(left)


def _known_softness(clip: PooledClip, rng: np.random.Generator) -> float:
    """The softness of the clip's key, or of a hard key."""
    key = clip.coarse[0, 0].astype(np.float32) / np.float32(65535)
    if clip.soft_key and rng.random() < 0.25:
        key = (key > 0.5).astype(np.float32)
    return softness_of(torch.from_numpy(key)) * float(rng.uniform(0.85, 1.15))


def _worsened(coarse: npt.NDArray[np.uint16], first: int, rng: np.random.Generator) -> FloatArray:
    """(F, K, h, w): coarse masks with more mistakes; the key does not change."""
    changed = np.ascontiguousarray(coarse, np.float32) / np.float32(65535)
    if rng.random() < 0.2:
        amount = rng.uniform(1, _MOST_BENT)
        cells = int(rng.integers(12, 40))
        for frame in range(max(1, first - 1), min(FRAMES, first + 3)):
            _bend(changed[frame], amount, cells, rng)
    if rng.random() < 0.1:  # all of it too large or too small
        amount = int(rng.integers(1, round(_MOST_BENT) + 1))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * amount + 1, 2 * amount + 1))
        change = cv2.dilate if rng.random() < 0.6 else cv2.erode
        for frame in range(max(1, first - 1), min(FRAMES, first + 3)):
            changed[frame, 0] = change(changed[frame, 0], disc)
    if rng.random() < 0.2:
        steepness = rng.uniform(1.5, 6)
        changed[1:] = np.clip((changed[1:] - 0.5) * steepness + 0.5, 0, 1)
    if rng.random() < 0.2:
        _spot(changed[first + int(rng.integers(2)), 0], rng)
    return changed


def _bend(masks: FloatArray, amount: float, cells: int, rng: np.random.Generator) -> None:
    """Bends the masks (K, h, w) of one frame, in place."""
    side = masks.shape[-1]
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    shift = cv2.resize(rng.normal(0, amount / 2, (cells, cells, 2)).astype(np.float32), (side, side))
    across, down = columns + shift[..., 0], rows + shift[..., 1]
    for one in masks:
        one[:] = cv2.remap(one, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _spot(mask: FloatArray, rng: np.random.Generator) -> None:
    """A hole or an island, near the object, in place."""
    there = np.flatnonzero(mask > 0.5)
    if not there.size:
        return
    y, x = divmod(int(there[rng.integers(there.size)]), WORKING_SIDE)
    y, x = y + int(rng.normal(0, 15)), x + int(rng.normal(0, 15))
    spot = np.zeros_like(mask)
    axes = (int(rng.integers(2, 14)), int(rng.integers(2, 14)))
    cv2.ellipse(spot, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    spot = np.asarray(cv2.GaussianBlur(spot, (0, 0), rng.uniform(1, 3)), np.float32)
    mask[:] = mask * (1 - spot) if rng.random() < 0.6 else np.maximum(mask, spot)


def _masks(coarse: FloatArray, frame: int, rng: np.random.Generator) -> FloatArray:
    """(4, c, c): the probabilities of the frame, of the frames before and after (its own at the ends), of the
    others."""
    own = coarse[frame, 0]
    before = coarse[frame - 1, 0] if rng.random() < 0.9 else own
    after = coarse[frame + 1, 0] if frame + 1 < FRAMES and rng.random() < 0.9 else own
    if rng.random() < 0.5:
        before, after = after, before
    return np.stack([own, before, after, coarse[frame, 1:].sum(0)])


def _turned(values: FloatArray, turn: int) -> FloatArray:
    """The last two axes flipped (bits 1 and 2) and swapped (bit 4)."""
    if turn & 1:
        values = values[..., ::-1]
    if turn & 2:
        values = values[..., ::-1, :]
    if turn & 4:
        values = values.swapaxes(-1, -2)
    return np.ascontiguousarray(values)
