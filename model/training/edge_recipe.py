"""The recipe of an edge refiner: clips, their coarse masks by a network of the product, training, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from model.inference.fast_network import FastNetwork
from model.training.edge_pool import fill_pool, pool_file
from model.training.edge_trainer import EdgeTrainer, EdgeTraining
from model.weights_file import Manifest, load_network, load_refiner, save_network

CLIPS = "clips"
"""Folder of the pool, in that of a run."""
WEIGHTS = "edges.safetensors"
"""What a run writes at its end, in its folder."""
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def train_edges(
    folder: Path,
    options: EdgeTraining,
    manifest: Manifest,
    *,
    clips: int,
    pictures: Sequence[Path] = (),
    weights: str = "stm-lite",
    start: str | None = None,
    on_clip: Callable[[int], None] = lambda number: None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, parts: None,
) -> Manifest:
    """Trains a refiner; one that was begun in the folder goes on.

    Args:
        manifest: what the weights will say of themselves; the architecture comes from the options.
        clips: of the pool.
        pictures: folders with more pictures for textures and backgrounds.
        weights: the network that makes the coarse masks.
        start: weights of a refiner to begin from; chance if None.
        on_clip, on_step: get the number of clips and of steps that are done.

    Returns:
        The manifest of the weights that were written.

    Raises:
        WeightsFileError: `weights` or `start` cannot be used.
        ValueError: a folder of pictures has none.
    """
    found = [one for each in pictures for one in pictures_in(each)]
    pool = folder / CLIPS
    if any(not pool_file(pool, seed).exists() for seed in range(clips)):
        network = FastNetwork(load_network(weights)[0])
        for _ in fill_pool(pool, range(clips), network, found):
            on_clip(len(list(pool.glob("*.npz"))))
    made = [pool_file(pool, seed) for seed in range(clips)]
    trainer = EdgeTrainer(folder, options, lambda: made)
    if start is not None:
        trainer.start_from(load_refiner(start)[0])
    trainer.run(on_step)
    stated = Manifest(
        manifest.name, options.architecture, manifest.licence, manifest.data, manifest.recipe, manifest.scores
    )
    return save_network(trainer.refiner, stated, folder / WEIGHTS)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in order. ValueError where there are none."""
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in _PICTURES)
    if not found:
        raise ValueError(f"{folder} has no pictures ({', '.join(_PICTURES)})")
    return found
