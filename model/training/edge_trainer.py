"""Training of the edge refiner.

A step's samples depend on seed and step only, and a checkpoint holds the optimiser. So a resumed run equals
one that was not stopped.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.inference.fused import can_fuse
from model.network.edges import EdgeRefiner, edge_config
from model.training.edge_losses import edge_loss
from model.training.edge_samples import CROP, EdgeSample, make_sample

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class EdgeTraining:
    """Options of a run.

    Args:
        batch: pairs of frames a step.
        rate: highest learning rate; it rises over `warmup` steps, then falls as a cosine.
        kept: how much of the mean weights a step keeps; those are what is trained.
    """

    architecture: str = "edges-lite"
    steps: int = 8000
    batch: int = 6
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 1e-4
    seed: int = 0
    save_every: int = 200
    kept: float = 0.998


class EdgeTrainer:
    """One run in one folder."""

    def __init__(self, folder: Path, options: EdgeTraining, pool: Callable[[], Sequence[Path]]) -> None:
        """Args: pool: returns the files of the clips; called every hundred steps, so that a pool may grow."""
        self.folder, self.options, self._pool = folder, options, pool
        torch.manual_seed(options.seed)
        self.refiner = EdgeRefiner(edge_config(options.architecture)).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.refiner.parameters(), lr=options.rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
        )
        self.step = 0
        self.mean = copy.deepcopy(self.refiner).requires_grad_(False)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._restore(folder / CHECKPOINT)

    def start_from(self, refiner: EdgeRefiner) -> None:
        """Take the weights of another refiner. Does nothing after the first step."""
        if self.step == 0:
            for one in (self.refiner, self.mean):
                one.load_state_dict(refiner.state_dict())

    def run(
        self,
        on_step: Callable[[int, dict[str, float]], None] = lambda step, parts: None,
        until: int | None = None,
    ) -> None:
        """Train up to the last step, or up to step `until`.

        Args:
            on_step: is called with the running means of the loss and its parts every 50 steps.
        """
        pool: Sequence[Path] = ()
        recent: dict[str, float] = {}
        started = time.monotonic()
        while self.step < min(self.options.steps, until or self.options.steps):
            if self.step % 100 == 0 or not pool:
                pool = self._pool()
            parts = self._learn(pool)
            self.step += 1
            for name, value in parts.items():
                recent[name] = recent.get(name, value) * 0.98 + value * 0.02
            if self.step % 50 == 0:
                self._log({"step": self.step, "seconds": round(time.monotonic() - started, 1), **recent})
                on_step(self.step, recent)
            if self.step % self.options.save_every == 0 or self.step == self.options.steps:
                self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "refiner": self.refiner.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "options": asdict(self.options),
        }
        temporary = self.folder / (CHECKPOINT + ".tmp")
        torch.save(state, temporary)
        temporary.replace(self.folder / CHECKPOINT)

    def _learn(self, pool: Sequence[Path]) -> dict[str, float]:
        options = self.options
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, options)
        first = self.step * options.batch
        samples = [make_sample(pool, options.seed, first + number) for number in range(options.batch)]
        loss, parts = training_loss(self.refiner, samples)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.refiner.parameters(), 1.0)
        self.optimiser.step()
        kept = min(options.kept, (self.step + 1) / (self.step + 10))  # the first steps are soon forgotten
        with torch.no_grad():
            for mean, weight in zip(self.mean.parameters(), self.refiner.parameters(), strict=True):
                mean.lerp_(weight, 1 - kept)
        return {"loss": float(loss.detach()), **parts}

    def _restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.refiner.load_state_dict(state["refiner"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])

    def _log(self, values: dict[str, float]) -> None:
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({name: round(one, 5) for name, one in values.items()}) + "\n")


def rate_at(step: int, options: EdgeTraining) -> float:
    """The learning rate of a step."""
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def training_loss(refiner: EdgeRefiner, samples: Sequence[EdgeSample]) -> tuple[Tensor, dict[str, float]]:
    """The loss of some samples, and its parts."""
    inputs = torch.cat([one.inputs for one in samples])  # (2 B, INPUTS, c, c)
    with torch.autocast("cpu", torch.bfloat16, enabled=can_fuse(torch.bfloat16)):  # else far slower
        alpha, soft = refiner(inputs.contiguous(memory_format=torch.channels_last))
    shape = (len(samples), 2, CROP, CROP)
    truth, known = (
        torch.stack(each) for each in zip(*((one.alpha, one.known) for one in samples), strict=True)
    )
    coarse = inputs[:, 3].view(shape)
    return edge_loss(alpha.float().view(shape), soft.float().view(shape), truth, coarse, known)
