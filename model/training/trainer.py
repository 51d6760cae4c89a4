"""Training by the paper's recipe (section 3.5): stills, then videos; the network's output is added to the
memory.

A run has one folder: `config.json`, `checkpoint.pt` (everything for an exact resume), `log.csv`. Samples and
random numbers depend on (seed, step) only, so a resumed run takes the same steps as an undisturbed one.

Under `torchrun` every process takes its share of each batch through PyTorch's DistributedDataParallel; the
loss is the same as that of one process, because every clip counts alike.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from model.inference.allocator import keep_freed_memory
from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork, read_dense, soft_aggregate_log
from model.training.clips import Clip, ClipDataset, ClipOptions
from model.training.synthetic_clips import SceneOptions

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingConfig:
    """The complete configuration of a run; written into its folder and into every checkpoint.

    Paths are those of the command; they may differ when a run is continued.
    """

    network: str = "stm-lite"
    start: str = "random"
    """The initial weights: `random`, `imagenet` (backbones), a run's folder, or weights by file or name."""
    videos: tuple[str, ...] = ()
    """Roots in DAVIS or YouTube-VOS layout."""
    stills: tuple[str, ...] = ()
    """Folders of `images/` with `masks/`, or with `labels/`: parts of one thing."""
    instances: tuple[str, ...] = ()
    """Folders of `images/` with `labels/`: several things of one kind."""
    only: tuple[str, ...] = ()
    """Patterns of the names of pictures in `stills` and `instances` that are used (`cat_*`); all if empty."""
    still_weights: tuple[float, ...] = ()
    """How often each folder of `stills`, then of `instances`, is drawn, relative to the others. If empty,
    each is drawn by its number of pictures."""
    leave_out: tuple[str, ...] = ()
    """Names of videos that are never trained on."""
    steps: int = 4000
    batch: int = 4
    """Clips of one step, over all processes."""
    accumulate: int = 1
    """Parts into which a process divides its share of a batch, to save memory."""
    clip: ClipOptions = field(default_factory=ClipOptions)
    skip_curriculum: tuple[int, int] = (0, 25)
    """Largest number of frames left out between neighbours: at the start and at the end of the run."""
    learning_rate: float = 4e-4
    trunk_learning_rate: float = 1e-4
    """Learning rate of the backbones, which start from ImageNet, and of the keys. With fast keys the read's
    softmax saturates before it has learnt to match, and its gradient vanishes (observed: scores of +-150,
    matches as bad as random ones)."""
    warmup: int = 100
    final_learning_rate_share: float = 0.1
    """Cosine decay to this share of the learning rate at the last step."""
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    jaccard_weight: float = 1.0
    """Weight of the soft Jaccard loss beside cross-entropy."""
    edge_weight: float = 0.0
    """Additional weight of the cross-entropy of pixels near a true contour."""
    learn: tuple[str, ...] = ()
    """Parts of the network that are trained, by the beginnings of their parameters' names (`decoder.`); all
    if empty. The others do not change and need no backward pass."""
    ema: float = 0.998
    """Decay of the moving average of weights; the average is evaluated and shipped."""
    seed: int = 0
    bf16: bool = True
    """Convolutions in bfloat16, if the device has instructions for it (`computes_bf16`)."""
    checkpoint_every: int = 50

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`, from JSON.

        Raises:
            ValueError: for an unknown option.
        """
        values = dict(values)
        clip = dict(values.pop("clip", {}))
        scene = clip.pop("scene", {})
        for known, given in (
            (fields(cls), values),
            (fields(ClipOptions), clip),
            (fields(SceneOptions), scene),
        ):
            unknown = set(given) - {f.name for f in known}
            if unknown:
                raise ValueError(f"unknown training options: {', '.join(sorted(unknown))}")
        for name in ("videos", "stills", "instances", "only", "leave_out", "learn"):
            if isinstance(values.get(name), str):
                raise ValueError(f'training option {name} is a list: write {name} = ["{values[name]}"]')
        options = ClipOptions(scene=SceneOptions(**scene), **_tuples(clip))
        return cls(clip=options, **_tuples(values))


def saved_config(folder: Path) -> TrainingConfig | None:
    """The configuration in a run's checkpoint, or None if there is none yet."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return TrainingConfig.from_dict(checkpoint["config"])


def continued_config(folder: Path, config: TrainingConfig) -> TrainingConfig:
    """The configuration of a continued run: that of its checkpoint, if there is one.

    From the given one it takes the length, if it is longer, and the folders of the data, which may have
    moved; videos that it leaves out are left out as well.
    """
    saved = saved_config(folder)
    if saved is None:
        return config
    return replace(
        saved,
        steps=max(config.steps, saved.steps),
        videos=config.videos or saved.videos,
        stills=config.stills or saved.stills,
        instances=config.instances or saved.instances,
        leave_out=tuple(dict.fromkeys((*saved.leave_out, *config.leave_out))),
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


class Batch(NamedTuple):
    """pictures (B, T, 3, H, W), labels (B, T, H, W), objects (B,): how many objects each clip has."""

    pictures: Tensor
    labels: Tensor
    objects: Tensor


class Losses(NamedTuple):
    """Loss to descend, and the mean IoU of the hard masks of the predicted frames for the log."""

    total: Tensor
    iou: Tensor


def collate(clips: list[Clip]) -> Batch:
    """Stacks clips of one size; pictures in [0, 1]."""
    return _from_bytes(_as_bytes(clips), torch.device("cpu"))


def propagate_clip(network: SpaceTimeMemoryNetwork, batch: Batch, *, through_memory: bool = True) -> Tensor:
    """Runs a batch of clips for training.

    The first frame's mask is given, every later frame is predicted, and its soft output is added to the
    memory.

    Args:
        through_memory: whether a later frame's loss reaches an earlier output through the memory encoder;
            otherwise that encoder stores nothing for the backward pass.

    Returns:
        log-probabilities (B, T - 1, K + 1, H, W) after soft aggregation, background first.
    """
    objects = int(batch.objects.max())
    frames = batch.pictures.shape[1]
    exists = torch.arange(objects, device=batch.objects.device) < batch.objects[:, None]  # (B, K)
    exists = exists[:, :, None, None].float()
    masks = torch.stack([batch.labels[:, 0] == k + 1 for k in range(objects)], dim=1).float()
    queries = network.encode_query(_channels_last(batch.pictures[:, 1:].flatten(0, 1)))
    queries = queries.map(lambda f: f.reshape(-1, frames - 1, *f.shape[1:]))
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outputs: list[Tensor] = []
    for step in range(1, frames):
        memory = network.encode_memory(_channels_last(batch.pictures[:, step - 1]), masks)
        keys.append(memory.key)
        values.append(memory.value)
        query = queries.map(partial(torch.select, dim=1, index=step - 1))
        read = read_dense(
            query.key,
            torch.stack(keys, dim=2),
            torch.stack(values, dim=2),
            previous_frame_cap=network.config.previous_frame_cap,
            key_weight=network.config.key_weight,
        )
        log_probabilities = soft_aggregate_log(network.decode(read, query) * exists)
        outputs.append(log_probabilities)
        masks = log_probabilities[:, 1:].exp() * exists
        if not through_memory:
            masks = masks.detach()
    return torch.stack(outputs, dim=1)


EDGE_RADIUS = 3
"""Pixels on both sides of a true contour that `edge_weight` counts as near."""


def near_contours(labels: Tensor) -> Tensor:
    """(N, H, W) labels -> (N, H, W) bool: another label lies within `EDGE_RADIUS` pixels, in a square."""
    values = labels.unsqueeze(1).float()
    size = 2 * EDGE_RADIUS + 1
    largest = F.max_pool2d(values, size, stride=1, padding=EDGE_RADIUS)
    smallest = -F.max_pool2d(-values, size, stride=1, padding=EDGE_RADIUS)
    return (largest != smallest).squeeze(1)


def clip_losses(
    log_probabilities: Tensor, batch: Batch, jaccard_weight: float, edge_weight: float = 0.0
) -> Losses:
    """Cross-entropy over background and objects, plus the soft Jaccard loss of each object.

    Every clip has the same weight, so the mean over parts of a batch is the value of the whole.

    Args:
        log_probabilities: (B, T - 1, K + 1, H, W), from `propagate_clip`.
        batch: the clips.
        jaccard_weight: of the Jaccard loss.
        edge_weight: of the cross-entropy near true contours, added once more.
    """
    target = batch.labels[:, 1:]
    each = F.nll_loss(log_probabilities.flatten(0, 1), target.flatten(0, 1), reduction="none")
    cross_entropy = each.mean()
    if edge_weight:
        cross_entropy = cross_entropy + edge_weight * (each * near_contours(target.flatten(0, 1))).mean()
    objects = log_probabilities.shape[2] - 1
    probabilities = log_probabilities[:, :, 1:].exp()  # (B, T-1, K, H, W)
    truth = torch.stack([target == k + 1 for k in range(objects)], dim=2).float()
    exists = (torch.arange(objects, device=target.device) < batch.objects[:, None])[:, None].float()
    seen = exists * (truth.sum(dim=(-2, -1)) > 0)  # (B, T-1, K)

    def mean_of_clips(values: Tensor) -> Tensor:
        return ((values * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)).mean()

    shared = (probabilities * truth).sum(dim=(-2, -1))
    either = (probabilities + truth - probabilities * truth).sum(dim=(-2, -1))
    jaccard = mean_of_clips(1 - (shared + 1) / (either + 1))
    with torch.no_grad():
        hard = log_probabilities.argmax(dim=2)
        predicted = torch.stack([hard == k + 1 for k in range(objects)], dim=2)
        both = (predicted & (truth > 0)).sum(dim=(-2, -1)).float()
        union = (predicted | (truth > 0)).sum(dim=(-2, -1)).float()
        iou = mean_of_clips(both / union.clamp(min=1))
    return Losses(cross_entropy + jaccard_weight * jaccard, iou)


def _as_bytes(clips: list[Clip]) -> Batch:
    """The same in bytes: a fifth of the memory on the way to another process or card."""
    pictures = torch.from_numpy(np.stack([clip.pictures for clip in clips]))  # (B, T, H, W, 3)
    return Batch(
        pictures.permute(0, 1, 4, 2, 3).contiguous(),
        torch.from_numpy(np.stack([clip.labels for clip in clips])),
        torch.tensor([clip.objects for clip in clips]),
    )


def _from_bytes(batch: Batch, device: torch.device) -> Batch:
    pictures, labels, objects = (t.to(device, non_blocking=True) for t in batch)
    return Batch(pictures.float() / 255, labels.long(), objects)


def _split(batch: Batch, parts: int) -> list[Batch]:
    return [Batch(*tensors) for tensors in zip(*(t.chunk(parts) for t in batch), strict=True)]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _ClipModel(nn.Module):
    """A network as one call per batch, which is what DistributedDataParallel wraps."""

    def __init__(self, network: SpaceTimeMemoryNetwork) -> None:
        super().__init__()
        self.network = network
        self.through_memory = any(p.requires_grad for p in network.memory_encoder.parameters())

    def forward(self, batch: Batch) -> Tensor:
        return propagate_clip(self.network, batch, through_memory=self.through_memory)


class _Indexed(Dataset[Clip]):
    """The samples of one process from step `first` on, built by a worker process."""

    def __init__(
        self, clips: ClipDataset, config: TrainingConfig, first: int, rank: int, processes: int
    ) -> None:
        self.clips, self.config, self.first = clips, config, first
        self.share = config.batch // processes
        self.rank = rank

    def __len__(self) -> int:
        return (self.config.steps - self.first) * self.share

    def __getitem__(self, item: int) -> Clip:
        step = self.first + item // self.share
        index = step * self.config.batch + self.rank * self.share + item % self.share
        return self.clips.with_options(max_skip=max_skip_at(self.config, step)).sample(index)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    A processor without them emulates it, and a training step takes seven times as long as in fp32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
        known = capabilities() if capabilities is not None else {}
        return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def max_skip_at(config: TrainingConfig, step: int) -> int:
    """The curriculum of the paper: the skip grows evenly over the first three quarters of the run."""
    low, high = config.skip_curriculum
    share = min(step / max(config.steps * 0.75, 1), 1.0)
    return round(low + (high - low) * share)


def learning_rate_share(config: TrainingConfig, step: int) -> float:
    """Warm-up, then cosine to the final share."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(config.steps - config.warmup, 1)
    floor = config.final_learning_rate_share
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _parameter_groups(network: SpaceTimeMemoryNetwork, config: TrainingConfig) -> list[dict[str, Any]]:
    careful = (
        network.query_encoder.trunk,
        network.memory_encoder.trunk,
        network.query_key_value.key,
        network.memory_key_value.key,
    )
    slow = [p for module in careful for p in module.parameters()]
    known = {id(p) for p in slow}
    rest = [p for p in network.parameters() if id(p) not in known]
    return [
        {"params": [p for p in parameters if p.requires_grad], "base": rate}
        for parameters, rate in ((slow, config.trunk_learning_rate), (rest, config.learning_rate))
    ]


def _let_learn(network: SpaceTimeMemoryNetwork, beginnings: tuple[str, ...]) -> None:
    """Train only parameters whose names begin with one of these; all if there are none.

    Raises:
        ValueError: if no parameter's name begins with one of them.
    """
    names = [name for name, _ in network.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] + "." for name in names))
            raise ValueError(f"no part of the network is called {beginning}; its parts are {parts}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not beginnings or name.startswith(beginnings))


class Trainer:
    """One run in one folder.

    Args:
        folder: of the run; an existing checkpoint in it is resumed exactly.
        config: of the run; where the folder holds a checkpoint, `continued_config` is applied to it.
        clips: the training data.
        initial: state dict to start from (ImageNet backbones, or an earlier stage's weights).
        device: where to train.
        workers: processes that build samples; 0 builds them in this one.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        clips: ClipDataset,
        *,
        initial: dict[str, Tensor] | None = None,
        device: str = "cpu",
        workers: int = 1,
    ) -> None:
        self.folder, self.clips, self.workers = folder, clips, workers
        self.config = config = continued_config(folder, config)
        self.device = torch.device(device)
        self.bf16 = config.bf16 and computes_bf16(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        parts = self.processes * config.accumulate
        if config.batch % parts:
            raise ValueError(f"a batch of {config.batch} cannot be shared by {parts} equal parts")
        torch.manual_seed(config.seed)
        self.network = SpaceTimeMemoryNetwork(network_config(config.network))
        if initial is not None:
            self.network.load_state_dict(initial)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.train()
        _let_learn(self.network, config.learn)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.network, config), weight_decay=config.weight_decay
        )
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._resume()
        self.model: nn.Module = _ClipModel(self.network)
        if self.processes > 1:
            self.model = DistributedDataParallel(self.model)
        if self.rank == 0:
            (folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT_FILE

    def run(self, after_step: Callable[[Trainer, Losses], None] | None = None) -> None:
        """Trains to the last step, writing a checkpoint every `checkpoint_every` steps and at the end.

        Args:
            after_step: called with the trainer and the step's losses (of all processes) after each step.
        """
        began = time.monotonic()
        for batch in self._batches():
            losses = self._train_step(batch)
            self.step += 1
            self._log(losses, time.monotonic() - began)
            if after_step is not None:
                after_step(self, losses)
            if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                self.save()

    def averaged_network(self) -> SpaceTimeMemoryNetwork:
        """A copy with the moving average of the weights, in eval mode, for evaluation and shipping."""
        network = SpaceTimeMemoryNetwork(network_config(self.config.network))
        network.load_state_dict(self.average)
        return network.eval()

    def _batches(self) -> Iterator[Batch]:
        data = _Indexed(self.clips, self.config, self.step, self.rank, self.processes)
        ahead = 4 if self.workers else None
        if (
            self.workers
        ):  # they begin with this value; else each would have as many threads as there are cores
            cv2.setNumThreads(1)
        loader = DataLoader(
            data,
            data.share,
            collate_fn=_as_bytes,
            num_workers=self.workers,
            prefetch_factor=ahead,
            pin_memory=self.device.type == "cuda",
        )
        return (_from_bytes(batch, self.device) for batch in loader)

    def _train_step(self, batch: Batch) -> Losses:
        share = learning_rate_share(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share
        self.optimizer.zero_grad(set_to_none=True)
        parts = [self._backward(part) for part in _split(batch, self.config.accumulate)]
        losses = self._of_all_processes(
            Losses(*(torch.stack(values).mean() for values in zip(*parts, strict=True)))
        )
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self._update_average()
        return losses

    def _backward(self, batch: Batch) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            log_probabilities = self.model(batch)
        losses = clip_losses(log_probabilities, batch, self.config.jaccard_weight, self.config.edge_weight)
        (losses.total / self.config.accumulate).backward()  # type: ignore[no-untyped-call]
        return Losses(losses.total.detach(), losses.iou.detach())

    def _of_all_processes(self, losses: Losses) -> Losses:
        """The mean over the processes, whose shares of the batch are equal, as a single process would compute
        it."""
        if self.processes == 1:
            return losses
        shared = torch.stack(losses)
        dist.all_reduce(shared)
        return Losses(*(shared / self.processes))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def save(self) -> None:
        """Writes the checkpoint atomically (the first of several processes does)."""
        if self.rank != 0:
            return
        state = {
            "step": self.step,
            "config": self.config.to_dict(),
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])

    def _log(self, losses: Losses, seconds: float) -> None:
        if self.rank != 0:
            return
        path = self.folder / "log.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["step", "loss", "iou", "seconds"])
            writer.writerow(
                [self.step, f"{float(losses.total):.5f}", f"{float(losses.iou):.5f}", f"{seconds:.1f}"]
            )
