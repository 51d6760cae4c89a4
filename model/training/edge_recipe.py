"""The recipe of an edge refiner: clips, their coarse masks by a network of the product, training, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.inference.fast_network import FastNetwork
from model.training.edge_clips import SHARES
from model.training.edge_pool import fill_pool, pool_file
from model.training.edge_trainer import EdgeTrainer, EdgeTraining
from model.weights_file import Manifest, load_network, load_refiner, save_network

CLIPS = "clips"
"""Folder of the pool, inside that of a run."""
WEIGHTS = "edges.safetensors"
"""File of the weights that a run writes at its end."""
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class EdgeMaterial:
    """The training data of a refiner.

    Attributes:
        clips: how many clips the pool holds.
        pictures: folders with more pictures for textures and backgrounds.
        weights: the network that makes the coarse masks.
        shares: how often each kind of clip is made (`model.training.edge_clips.SHARES`).
        in_front: how often something else stands in front of the object.
    """

    clips: int
    pictures: Sequence[Path] = ()
    weights: str = "stm-lite"
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    in_front: float = 0.2


def train_edges(
    folder: Path,
    options: EdgeTraining,
    manifest: Manifest,
    material: EdgeMaterial,
    *,
    start: str | None = None,
    on_clip: Callable[[int], None] = lambda number: None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, parts: None,
) -> Manifest:
    """Trains a refiner. A run that was begun in the folder is resumed.

    Args:
        folder: of the run.
        options: of the training.
        manifest: what the weights file will state; the architecture comes from the options.
        material: the training data.
        start: weights of a refiner to begin from; random ones if None.
        on_clip: is called with the number of clips that are made.
        on_step: is called with the number of steps that are done, and the parts of the loss.

    Returns:
        The manifest of the weights that were written.

    Raises:
        WeightsFileError: `material.weights` or `start` cannot be used.
        ValueError: a folder of pictures has none.
    """
    found = [one for each in material.pictures for one in pictures_in(each)]
    pool = folder / CLIPS
    seeds = range(material.clips)
    made = [pool_file(pool, seed) for seed in seeds]
    if not all(file.exists() for file in made):
        network = FastNetwork(load_network(material.weights)[0])
        for _ in fill_pool(pool, seeds, network, found, material.shares, material.in_front):
            on_clip(len(list(pool.glob("*.npz"))))
    trainer = EdgeTrainer(folder, options, lambda: made)
    if start is not None:
        trainer.start_from(load_refiner(start)[0])
    trainer.run(on_step)
    stated = Manifest(
        manifest.name, options.architecture, manifest.licence, manifest.data, manifest.recipe, manifest.scores
    )
    return save_network(trainer.mean, stated, folder / WEIGHTS)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in order. ValueError where there are none."""
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in _PICTURES)
    if not found:
        raise ValueError(f"{folder} has no pictures ({', '.join(_PICTURES)})")
    return found
