"""The device, and the memory that a run will need on it: said before the run, and made to fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from model.config import STRIDE, NetworkConfig
from stm_plugin.errors import DeviceError

_MEBIBYTE = 1 << 20
_SPARE = 0.85
"""Of the free memory: the rest is for the allocator's gaps and for other programs."""

_LEAST_CAP = 4
_SCALES = (1.0, 0.75, 0.5)
"""Working sizes to try, as parts of the asked one, when even the smallest cap does not fit."""

# Measured peaks of one call, in float32 values per padded pixel (benchmarks of both networks at 480p):
# the memory encoder and decoder once per object, the query encoder once, plus the weights themselves.
_VALUES_PER_PIXEL = {"efficientnet_lite0": (48.0, 34.0), "resnet50": (170.0, 120.0)}
_RUNTIME_BYTES = {"cuda": 600 * _MEBIBYTE, "mps": 400 * _MEBIBYTE, "cpu": 350 * _MEBIBYTE}
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Forecast:
    """Bytes that a run will take on its device.

    Attributes:
        bank: the space-time memory, reserved at once; it does not grow.
        working: the largest working space of one call.
        fixed: program, weights.
    """

    bank: int
    working: int
    fixed: int

    @property
    def total(self) -> int:
        return self.bank + self.working + self.fixed

    def __str__(self) -> str:
        return (
            f"{_in_words(self.total)}: {_in_words(self.bank)} for the frames in memory, "
            f"{_in_words(self.working)} to work in, {_in_words(self.fixed)} for program and weights"
        )


@dataclass(frozen=True)
class Fit:
    """What a run can afford: the memory cap and the working size that fit, and why they were lowered."""

    memory_cap: int
    working_scale: float
    forecast: Forecast
    reason: str = ""


def pick_device(wanted: str = "auto") -> str:
    """The device to compute on: the wanted one, or the best there is (cuda, then mps, then cpu).

    Raises:
        DeviceError: the wanted one is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind, _, index = wanted.partition(":")
    if kind == "auto":
        return next(name for name, present in there.items() if present)
    present = there.get(kind, False)
    if present and kind == "cuda" and index:
        present = index.isdigit() and int(index) < torch.cuda.device_count()
    if not present:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise DeviceError(f"The device {wanted} is not there.", hint=f"Use auto, or one of: {found}.")
    return wanted


def describe_device(device: str) -> str:
    """A device as people know it."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} ({device})"
    if device == "mps":
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads"


def free_memory(device: str) -> int:
    """Bytes that a run may take on a device now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if device == "mps":
        limit = torch.mps.recommended_max_memory()
        return int(limit - torch.mps.driver_allocated_memory())
    return _free_system_memory()


def predict_memory(
    config: NetworkConfig,
    *,
    height: int,
    width: int,
    objects: int,
    memory_cap: int,
    further_keys: int = 0,
    precision: str = "float32",
    device: str = "cpu",
    weights_bytes: int = 0,
) -> Forecast:
    """The memory of a run, from its sizes alone.

    Args:
        height, width: of the working picture.
        objects: in one pass.
        memory_cap: stored frames beside keys.
        further_keys: keys of others in every pass's memory.
    """
    value_bytes = _VALUE_BYTES[precision]
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    positions = rows * columns
    per_entry = objects * positions * (4 * config.key_channels + value_bytes * config.value_channels)
    slots = memory_cap + further_keys + 3  # the key, the previous frame, and one that arrives
    pixels = positions * STRIDE * STRIDE
    once, per_object = _VALUES_PER_PIXEL[config.trunk]
    working = round(pixels * value_bytes * (once + per_object * objects))
    fixed = _RUNTIME_BYTES[device.split(":")[0]] + weights_bytes
    return Forecast(bank=slots * per_entry, working=working, fixed=fixed)


def fit_memory(
    config: NetworkConfig,
    available: int,
    *,
    height: int,
    width: int,
    objects: int,
    memory_cap: int,
    further_keys: int = 0,
    precision: str = "float32",
    device: str = "cpu",
    weights_bytes: int = 0,
) -> Fit:
    """The largest cap, then the largest working size, that fits in `available` bytes.

    Raises:
        DeviceError: not even the smallest does.
    """
    budget = int(available * _SPARE)
    forecast = None
    for scale in _SCALES:
        for cap in _caps(memory_cap):
            forecast = predict_memory(
                config,
                height=round(height * scale),
                width=round(width * scale),
                objects=objects,
                memory_cap=cap,
                further_keys=further_keys,
                precision=precision,
                device=device,
                weights_bytes=weights_bytes,
            )
            if forecast.total <= budget:
                return Fit(cap, scale, forecast, _why(memory_cap, cap, scale, available))
    raise DeviceError(
        f"The run needs at least {forecast}, but {device} has {_in_words(available)} free.",
        hint="Give a smaller region or working size, fewer objects, or use another device.",
    )


@contextmanager
def device_errors(device: str, frame: int | None = None) -> Iterator[None]:
    """Turn a device's own errors into a DeviceError that says what to do.

    Raises:
        DeviceError: in place of an out-of-memory or device error inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(device, frame) from error
    except RuntimeError as error:
        text = str(error).lower()
        if "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text:
            raise _out_of_memory(device, frame) from error
        raise DeviceError(
            f"The device {device} failed: {str(error).splitlines()[0]}",
            frame=frame,
            hint="Finished frames are kept; run again, if need be with --device cpu.",
        ) from error


def _out_of_memory(device: str, frame: int | None) -> DeviceError:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return DeviceError(
        f"The memory of {device} did not suffice.",
        frame=frame,
        hint=(
            "Finished frames are kept. Close other programs, or lower memory_cap or working_size, "
            "give a region, or use --device cpu, and run again."
        ),
    )


def _caps(wanted: int) -> list[int]:
    """Caps to try, from the wanted one down."""
    caps = [wanted]
    while caps[-1] > _LEAST_CAP:
        caps.append(max(_LEAST_CAP, caps[-1] * 3 // 4))
    return caps


def _why(wanted: int, cap: int, scale: float, available: int) -> str:
    parts = []
    if cap != wanted:
        parts.append(f"the memory cap was lowered from {wanted} to {cap} frames")
    if scale != 1.0:
        parts.append(f"the working size was lowered to {scale:.0%}")
    return f"{' and '.join(parts)} to fit into {_in_words(available)}" if parts else ""


def _in_words(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size / _MEBIBYTE:.0f} MB"


def _free_system_memory() -> int:
    """Bytes that the system would give to a new program."""
    try:
        with open("/proc/meminfo") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 4 << 30
