"""The processes that `torchrun` starts for one training run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def joined_processes(device: str) -> Iterator[str]:
    """Join the other processes of a run under `torchrun`; alone, do nothing.

    Args:
        device: a torch device name; `cuda` becomes the GPU of this process.

    Yields:
        the device of this process.
    """
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    yield device
    dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def agreed(value: float, device: str) -> float:
    """The first process's value, in every process: steps and ends of a run must be the same in all."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)
