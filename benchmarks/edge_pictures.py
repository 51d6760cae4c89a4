"""Crops at 200 % of one frame of clips that the generator makes: plate, before, guided, learned, truth.

    python benchmarks/edge_pictures.py docs/edges.jpg

The clips are not among those that the refiner was trained on, and their textures are scikit-image's alone
(CC0 or public domain).
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from model.inference.colour_likelihood import colours_of
from model.inference.edges import FastRefiner
from model.inference.fast_network import FastNetwork
from model.network.edges import softness_of
from model.training.edge_clips import kind_of, make_clip
from model.training.edge_pool import at_working_size, coarse_masks
from model.training.textures import ByteArray, FloatArray
from model.weights_file import load_network, load_refiner
from stm_plugin.finishing.band import Guide
from stm_plugin.finishing.guided import finish
from stm_plugin.finishing.learned import EdgeEvidence, finish_learned
from stm_plugin.images.working_picture import working_geometry
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import Window

KINDS = ("fur", "defocus", "motion blur", "assembly")
FIRST_SEED = 2_000_000
FRAME = 2
CROP = 140


def main(out: Path) -> None:
    network, refiner = FastNetwork(load_network()[0]), FastRefiner(load_refiner()[0])
    rows = []
    for kind in KINDS:
        seed = next(one for one in range(FIRST_SEED, FIRST_SEED + 1000) if suits(one, kind))
        rows.append(row_of(seed, network, refiner))
    cv2.imwrite(str(out), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


def suits(seed: int, kind: str) -> bool:
    """Whether the clip of a seed shows the kind, with two plate pixels or less per working pixel."""
    return kind_of(seed) == kind and make_clip(seed).scale in (1.5, 2.0)


def row_of(seed: int, network: FastNetwork, refiner: FastRefiner) -> ByteArray:
    """Five crops beside each other."""
    clip = make_clip(seed)
    coarse = coarse_masks(clip, network, soft_key=False)
    side = clip.plate.shape[1]
    window = Window(0, 0, side, side)
    geometry = working_geometry(window, 1.0, coarse.shape[-1])
    display: FloatArray = clip.plate[FRAME].astype(np.float32) / np.float32(255)
    working = np.ascontiguousarray(at_working_size(clip.plate[FRAME]).transpose(2, 0, 1))
    guide = Guide(working, lambda rows, columns: display[rows, columns], window)
    own = coarse[FRAME, 0]
    softness = softness_of(torch.from_numpy(coarse[0, 0]))
    first = np.ascontiguousarray(at_working_size(clip.plate[0]).transpose(2, 0, 1))
    others, colours = coarse[FRAME, 1:].sum(0), (colours_of(first, coarse[0, 0]),)
    evidence = EdgeEvidence(own, coarse[FRAME - 1, 0], own, others, softness, key_colours=colours)
    alpha: FloatArray = clip.alpha[FRAME, 0].astype(np.float32) / np.float32(255)
    mattes = (
        finish(own, guide, geometry, FinishSettings(edges="guided", radius=2, sharpness=2.0)),
        finish(own, guide, geometry, FinishSettings(edges="guided")),
        finish_learned(evidence, guide, geometry, FinishSettings(edges="learned"), refiner),
        alpha,
    )
    y, x = corner_of(alpha)
    part = np.s_[y : y + CROP, x : x + CROP]
    crops = [display[part], *(np.repeat(one[part][..., None], 3, -1) for one in mattes)]
    whole = np.hstack([np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=0.5) for one in crops])
    enlarged = cv2.resize(whole, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    return np.asarray(enlarged * 255 + 0.5, np.uint8)


def corner_of(alpha: FloatArray) -> tuple[int, int]:
    """Top and left of a crop around the upper edge of the object."""
    rows, columns = np.nonzero((alpha > 0.1) & (alpha < 0.9))
    top = int(np.argmin(rows))
    y, x = rows[top] - CROP // 4, columns[top] - CROP // 2
    most = alpha.shape[0] - CROP
    return int(np.clip(y, 0, most)), int(np.clip(x, 0, most))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
