"""Copies between the computer's memory and a graphics card that nothing else waits for.

A copy from ordinary memory stops the thread, and one in the card's usual queue waits for the network. So
copies go through page-locked memory, in a stream that belongs to the thread. On a CPU nothing is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_of_thread = threading.local()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What is computed in this block on a CUDA device does not wait for other threads' work, and is done at
    its end. On other devices nothing changes."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def uploaded(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """An array on a device; on the CPU the same memory."""
    source = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type != "cuda":
        return source.to(device)
    staging = _staging(source.nbytes)
    pinned = staging[: source.nbytes].view(source.dtype).view(source.shape)
    pinned.copy_(source)
    return pinned.to(device, non_blocking=True)


def begin_download(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor of the current stream to the CPU; what is called later waits for it alone, not
    for work that is queued after it."""
    if tensor.device.type != "cuda":
        result = tensor.cpu()
        return lambda: result
    stream = _stream(tensor.device)
    ready = torch.cuda.current_stream(tensor.device).record_event()
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream.wait_event(ready)
    with torch.cuda.stream(stream):
        target.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        done = stream.record_event()

    def wait() -> Tensor:
        done.synchronize()
        return target

    return wait


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of this thread for a device."""
    streams: dict[torch.device, torch.cuda.Stream] = _of_thread.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]


def _staging(size: int) -> Tensor:
    """Page-locked bytes of this thread, used again: `own_stream` waits before the next upload."""
    held: Tensor | None = _of_thread.__dict__.get("staging")
    if held is None or held.nbytes < size:
        held = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        _of_thread.__dict__["staging"] = held
    return held
