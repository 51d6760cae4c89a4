"""A pool of edge clips on disk, with coarse masks by a network of the product: the training data of the
refiner.

The refiner is to correct the network's mistakes, so the network makes the coarse masks: it gets the first
frame's mask, hard or soft, and propagates it through the clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from model.inference.fast_network import FastNetwork
from model.network.memory import MemoryRule
from model.training.edge_clips import FRAMES, WORKING_SIDE, EdgeClip, make_clip
from model.training.textures import ByteArray, FloatArray

_SOFT_KEYS = 0.35
"""Share of clips whose key is the true alpha. The others have a hard key, as most masks are."""


@dataclass(frozen=True, eq=False)
class PooledClip:
    """An edge clip and its coarse masks.

    Attributes:
        plate: (F, H, W, 3), sRGB bytes.
        alpha: (F, H, W): true alpha of the first object, bytes.
        coarse: (F, K, h, w) in 65535ths: the key on the first frame, then the network's results.
        soft_key: whether the key is soft.
        scale: plate pixels per working pixel.
    """

    plate: ByteArray
    alpha: ByteArray
    coarse: npt.NDArray[np.uint16]
    soft_key: bool
    kind: str
    scale: float


def fill_pool(
    folder: Path,
    seeds: Sequence[int],
    network: FastNetwork,
    pictures: Sequence[Path] = (),
    shares: Mapping[str, float] | None = None,
    in_front: float = 0.0,
) -> Iterator[Path]:
    """Makes the missing clips of these seeds; yields each one when it is written.

    Args:
        pictures, shares, in_front: as for `make_clip`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = pool_file(folder, seed)
        if path.exists():
            continue
        clip = make_clip(seed, pictures, shares, in_front)
        soft = bool(np.random.default_rng([seed, 1]).random() < _SOFT_KEYS)
        coarse = coarse_masks(clip, network, soft_key=soft)
        stored = np.round(coarse * 65535).astype(np.uint16)
        write_pooled(path, PooledClip(clip.plate, clip.alpha[:, 0], stored, soft, clip.kind, clip.scale))
        yield path


def pool_file(folder: Path, seed: int) -> Path:
    """The file of the clip of a seed."""
    return folder / f"clip-{seed:07d}.npz"


def write_pooled(path: Path, clip: PooledClip) -> None:
    """Writes a clip atomically."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            plate=clip.plate,
            alpha=clip.alpha,
            coarse=clip.coarse,
            soft_key=clip.soft_key,
            kind=clip.kind,
            scale=clip.scale,
        )
    temporary.replace(path)


def read_pooled(path: Path) -> PooledClip:
    """A clip of the pool."""
    with np.load(path, allow_pickle=False) as stored:
        return PooledClip(
            plate=stored["plate"],
            alpha=stored["alpha"],
            coarse=stored["coarse"],
            soft_key=bool(stored["soft_key"]),
            kind=str(stored["kind"]),
            scale=float(stored["scale"]),
        )


def coarse_masks(clip: EdgeClip, network: FastNetwork, *, soft_key: bool) -> FloatArray:
    """(F, K, h, w): the key, then the network's probabilities of the frames after it."""
    pictures = [torch.from_numpy(at_working_size(one).transpose(2, 0, 1).copy()) for one in clip.plate]
    key = np.stack([at_working_size(one) for one in clip.alpha[0]])
    if not soft_key:
        key = np.stack(
            [at_working_size((one > 127).astype(np.uint8) * np.uint8(255)) for one in clip.alpha[0]]
        )
    masks = [torch.from_numpy(key)]
    entry = network.encode_memory(pictures[0], masks[0])
    bank = network.new_bank(MemoryRule.parse("every:5"), entry)
    bank.restore(0, entry)
    for step in range(1, FRAMES):
        masks.append(network.segment(network.encode_query(pictures[step]), bank)[1:].float())
        if step + 1 < FRAMES:
            bank.write(step, network.encode_memory(pictures[step], masks[-1]))
    return torch.stack(masks).numpy()


def at_working_size(picture: npt.NDArray[np.uint8]) -> FloatArray:
    """(H, W[, C]) bytes -> (h, w[, C]) in [0, 1]."""
    values = picture.astype(np.float32) / np.float32(255)
    if values.shape[0] == WORKING_SIDE:
        return values
    return np.asarray(
        cv2.resize(values, (WORKING_SIDE, WORKING_SIDE), interpolation=cv2.INTER_AREA), np.float32
    )
