"""Copies between the computer's memory and a graphics card that nothing else waits for.

A copy from ordinary memory stops the thread, and one in the card's usual queue waits for the network. So
copies go through page-locked memory, in streams of their own. There are few of them, so that many threads
take a bounded part of the card's memory. On a CPU nothing is copied.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LANES = 4
"""Streams for each card, and threads that work there at a time beside the network's."""


@dataclass(eq=False)
class _Lane:
    """A stream, and page-locked bytes for what is uploaded there."""

    stream: torch.cuda.Stream
    staging: Tensor


_of_thread = threading.local()
_mutex = threading.Lock()
_lanes: dict[torch.device, queue.LifoQueue[_Lane]] = {}
_downloads: dict[torch.device, torch.cuda.Stream] = {}


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What is computed in this block on a CUDA device does not wait for other threads' work, and is done at
    its end. On other devices nothing changes."""
    if device.type != "cuda" or getattr(_of_thread, "lane", None) is not None:
        yield
        return
    free = _lanes_of(device)
    lane = free.get()
    try:
        _of_thread.lane = lane
        with torch.cuda.stream(lane.stream):
            yield
        lane.stream.synchronize()
    finally:
        _of_thread.lane = None
        free.put(lane)


def uploaded(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on a device; on the CPU the same memory.

    On a CUDA device it does not wait for the copy within `own_stream`.
    """
    source = torch.from_numpy(array if array.flags.writeable else array.copy())
    lane: _Lane | None = getattr(_of_thread, "lane", None)
    if device.type != "cuda" or lane is None:
        return source.to(device)
    lane.stream.synchronize()  # the bytes may still be on their way to the card
    if lane.staging.nbytes < source.nbytes:
        lane.staging = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=True)
    pinned = lane.staging[: source.nbytes].view(source.dtype).view(source.shape)
    pinned.copy_(source)
    return pinned.to(device, non_blocking=True)


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From the CPU to a CUDA device it goes through page-locked memory, behind what is
    queued there: this thread does not wait."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def begin_download(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor of the current stream to the CPU; what is called later waits for it alone, not
    for work that is queued after it."""
    if tensor.device.type != "cuda":
        result = tensor.cpu()
        return lambda: result
    ready = torch.cuda.current_stream(tensor.device).record_event()
    stream = _download_stream(tensor.device)
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        target.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        done = stream.record_event()

    def wait() -> Tensor:
        done.synchronize()
        return target

    return wait


def _lanes_of(device: torch.device) -> queue.LifoQueue[_Lane]:
    with _mutex:
        if device not in _lanes:
            _lanes[device] = queue.LifoQueue()
            for _ in range(LANES):
                _lanes[device].put(_Lane(_new_stream(device), torch.empty(0, dtype=torch.uint8)))
        return _lanes[device]


def _download_stream(device: torch.device) -> torch.cuda.Stream:
    with _mutex:
        if device not in _downloads:
            _downloads[device] = _new_stream(device)
        return _downloads[device]


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
