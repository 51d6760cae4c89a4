"""The device, and a forecast of the memory that a run needs on it. Sizes are lowered until it fits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from model.inference.fused import can_fuse
from model.network.config import STRIDE, NetworkConfig
from model.training.adapt import MOST_OBJECTS_PER_CLIP, AdaptOptions
from stm_plugin.errors import DeviceError, speaks_of_memory
from stm_plugin.propagation.workers import Workers
from stm_plugin.settings import Precision, Settings

_MEBIBYTE = 1 << 20
_SPARE = 0.85
"""Share of the free memory that a run may take: the rest is for the allocator's gaps and other programs."""

_LEAST_CAP = 4
_SCALES = (1.0, 0.75, 0.5)
"""Working sizes to try, as parts of the requested one, when even the smallest cap does not fit."""

# Measured peaks of one call at 480x864 above the memory before it, in float32 values per padded pixel: a part
# that does not depend on the objects, and a part for each. Half types take a little more than half.
_VALUES_PER_PIXEL = {"efficientnet_lite0": (30.0, 58.0), "resnet50": (60.0, 95.0)}
_WORKING_BYTES = {"float32": 4.0, "bfloat16": 2.4, "float16": 2.4}
_CPU_WORKING_BYTES = {
    ("efficientnet_lite0", "float32"): (400.0, 153.0),
    ("efficientnet_lite0", "bfloat16"): (40.0, 223.0),
    ("efficientnet_lite0", "float16"): (40.0, 223.0),
}
"""Bytes per padded pixel of whole runs on the CPU, where these were measured (benchmarks/memory.py)."""
_WEIGHTS_BYTES = {"efficientnet_lite0": 20 * _MEBIBYTE, "resnet50": 260 * _MEBIBYTE}
_WINOGRAD_BYTES = {"efficientnet_lite0": 130 * _MEBIBYTE, "resnet50": 680 * _MEBIBYTE}
"""In float32 on the CPU: the transformed weights of `model.inference.winograd`, and transforming them."""
_WINOGRAD_VALUES_PER_PIXEL = {"efficientnet_lite0": 0.0, "resnet50": 180.0}
"""The working memory of its wide convolutions, which does not depend on the objects."""
_PROGRAM_BYTES = {"cuda": 600 * _MEBIBYTE, "mps": 400 * _MEBIBYTE, "cpu": 780 * _MEBIBYTE}
_LATER_BYTES = 30 * _MEBIBYTE
"""Of libraries that are loaded during a run."""
_HEAP_GAPS = 100 * _MEBIBYTE
"""Gaps of the heap. They would grow beyond it, but freed memory is returned before (`ResidentLimit`)."""
_FRAMES_TO_GAPS = 12
"""After so many frames these gaps are there; fewer frames leave fewer."""
_EVICTION_GAPS = 0.35
"""Of the budget for features: what is lost in gaps at most, once features leave a full cache (99 frames)."""
_EVICTED_GAPS = 0.35
"""Of the features that leave it: how fast these gaps arise."""
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CACHED_BYTES = 2
_AREA_BYTES = 8
_PLATE_FRAME_BYTES = 12
"""Per pixel: three float32, the most that a plate has."""
_FINISHING_BYTES = (7, 12)
"""Per plate pixel, and more for each object: what decoding, colour and finishing take beside the frames held,
in each pair of a reader and a finisher.
Measured with benchmarks/memory.py; a refiner of edges at plate resolution adds its own here."""
_REFINER_BYTES = 280
"""Bytes per working pixel that the edge refiner works in, where an object fills the picture."""
_FOREGROUND_BYTES = 68
"""Bytes per plate pixel while the colours of the foreground are solved, of each frame at once
(`Workers.foregrounds`)."""

# Adapting: measured peaks of its steps beyond what was there before, and a sixth to spare (on the CPU, crops
# of 128 to 384, one and two clips, one to three objects). In float32 values per pixel of all clips of a step,
# again a part that does not depend on the objects and a part for each; half types take as much.
_LEARNING_VALUES_PER_PIXEL = {"efficientnet_lite0": (250.0, 120.0), "resnet50": (350.0, 185.0)}
_ADAPTATION_BYTES = {"efficientnet_lite0": 80 * _MEBIBYTE, "resnet50": 360 * _MEBIBYTE}
_LABEL_BYTES = 8
_LESSON_FRAMES = Workers().frames_held


@dataclass(frozen=True)
class MemoryRequest:
    """The sizes of a run that its memory depends on.

    Args:
        height, width: of the working picture.
        objects: in one pass.
        memory_cap: stored frames beside keys.
        further_keys: other keys in every pass's memory.
        frames: that the network reads; their features are kept within `ram_budget` bytes.
        frames_at_most: of the plate, in the whole run; None for a long one. For a run of few frames the
            forecast is an upper bound: less of what can be at work at once meets.
        plate_pixels: of one plate frame.
        learned_edges, foreground: whether finishing uses the edge refiner, and solves the foreground.
        plate_pixel_bytes: of one pixel of it, as it is held.
        workers: readers, and as many finishers.
        turns: passes that are computed side by side (`passes_in_turn`).
        program_bytes: of the process before the run, if they were measured; 0: what they usually are.
    """

    config: NetworkConfig
    height: int
    width: int
    objects: int
    memory_cap: int
    further_keys: int = 0
    precision: str = "float32"
    device: str = "cpu"
    frames: int = 0
    frames_at_most: int | None = None
    ram_budget: int = 0
    plate_pixels: int = 0
    learned_edges: bool = False
    foreground: bool = False
    plate_pixel_bytes: int = _PLATE_FRAME_BYTES
    workers: int = 1
    turns: int = 1
    program_bytes: int = 0


@dataclass(frozen=True)
class Forecast:
    """Bytes that a run will take on its device.

    Attributes:
        bank: the space-time memories, reserved at once; they do not grow.
        working: the largest working space of one call, and the frames that wait for the device beside it.
        features: of frames, cached in the machine's main memory.
        fixed: program, weights and the plate frames at hand.
    """

    bank: int
    working: int
    features: int
    fixed: int

    @property
    def total(self) -> int:
        return self.bank + self.working + self.features + self.fixed

    def __str__(self) -> str:
        return (
            f"{_in_words(self.total)}: {_in_words(self.bank)} for the frames in memory, "
            f"{_in_words(self.working)} to work in, {_in_words(self.features)} for cached features, "
            f"{_in_words(self.fixed)} for program, weights and plate"
        )


@dataclass(frozen=True)
class AdaptationMemory:
    """The sizes that the memory of adapting depends on.

    Args:
        keys: how many.
        objects: of a key, at the most.
        height, width: of the working picture.
        options: crop and clips count.
        plate_pixels: of one plate frame.
    """

    config: NetworkConfig
    keys: int
    objects: int
    height: int
    width: int
    options: AdaptOptions
    device: str = "cpu"
    plate_pixels: int = 0


@dataclass(frozen=True)
class AdaptationForecast:
    """Bytes that adapting will take.

    Attributes:
        pictures: the keys' pictures and masks, and those of every pair of keys.
        working: the largest working space of one step.
        fixed: program, weights and the plate frames at hand.
    """

    pictures: int
    working: int
    fixed: int

    @property
    def total(self) -> int:
        return self.pictures + self.working + self.fixed

    def __str__(self) -> str:
        return (
            f"{_in_words(self.total)}: {_in_words(self.working)} to train in, "
            f"{_in_words(self.pictures)} for the keys, {_in_words(self.fixed)} for program, weights and plate"
        )


@dataclass(frozen=True)
class MemoryFit:
    """The sizes of a run that fit into memory.

    Attributes:
        run: with its budget, cap and size lowered as far as necessary.
        working_scale: the working size as a part of the requested one.
        reason: why cap or size were lowered, in words; empty if they were not. A smaller budget for features
            only costs time and is not mentioned.
    """

    run: MemoryRequest
    working_scale: float
    forecast: Forecast
    reason: str = ""

    @property
    def memory_cap(self) -> int:
        return self.run.memory_cap


def pick_device(wanted: str = "auto") -> str:
    """The device to compute on: the wanted one, or for "auto" the first of cuda, mps and cpu.

    Raises:
        DeviceError: the wanted one does not exist.
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
        raise DeviceError(f"The device {wanted} does not exist.", hint=f"Use auto, or one of: {found}.")
    return wanted


def pick_precision(device: str, has_fast_bfloat16: bool) -> Precision:
    """The precision of a new shot that leaves it to the machine.

    The types whose convolutions are fast on a device, and whose scores are those of float32
    (`docs/performance.md`).

    Args:
        device: a torch device name.
        has_fast_bfloat16: whether the processor has AMX or AVX-512 for bfloat16.
    """
    if device.startswith("cuda"):
        return "float16"
    return "bfloat16" if device == "cpu" and has_fast_bfloat16 else "float32"


def has_fast_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 (AMX, AVX-512), and this torch uses them."""
    if not can_fuse(torch.bfloat16):
        return False
    names = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def slowness(settings: Settings) -> str:
    """What a person should know who computes a shot in float16, which was chosen on a graphics card, on a
    processor without instructions for it: it takes many times as long. Empty for every other shot."""
    if (
        precision_of(settings) != "float16"
        or pick_device(settings.device) != "cpu"
        or can_fuse(torch.float16)
    ):
        return ""
    return (
        "float16 takes this processor many times as long as other precisions. A graphics card is quicker, "
        "or `stm shot set SHOT precision=bfloat16`, which computes the shot anew."
    )


def settled(settings: Settings) -> Settings:
    """Settings of a new shot: where the precision is left to the machine, it is chosen.

    A shot keeps what was chosen. So another machine, or a task on a farm, makes the same mattes of it. A
    device that the settings name need not exist here.
    """
    return replace(settings, precision=precision_of(settings))


def precision_of(settings: Settings) -> Precision:
    """The precision of settings; where it is left to the machine, that of a new shot."""
    if settings.precision != "auto":
        return settings.precision
    device = pick_device() if settings.device == "auto" else settings.device
    return pick_precision(device, has_fast_bfloat16())


def describe_device(device: str) -> str:
    """The name of a device for people."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} ({device})"
    if device == "mps":
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads"


def passes_in_turn(device: str) -> int:
    """Passes that a device computes side by side. While one's result is copied and stored, a graphics card
    has the other's frame to work on. A processor has no time in which it waits."""
    return 2 if device.startswith("cuda") else 1


def free_memory(device: str) -> int:
    """Bytes that a run may take on a device now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    if device == "mps":
        limit = torch.mps.recommended_max_memory()
        return int(limit - torch.mps.driver_allocated_memory())
    return _free_system_memory()


def predict_memory(run: MemoryRequest) -> Forecast:
    """The memory of a run, computed from its sizes."""
    config, value_bytes = run.config, _VALUE_BYTES[run.precision]
    positions = -(-run.height // STRIDE) * -(-run.width // STRIDE)
    per_position = 4 * config.key_channels + value_bytes * config.value_channels
    per_entry = run.objects * (positions * per_position + _AREA_BYTES)
    slots = run.memory_cap + run.further_keys + 3  # the key, the previous frame, and a new one
    pixels = positions * STRIDE * STRIDE
    on_cpu = run.device == "cpu"
    once, per_object = _working_bytes(config.trunk, run.precision, on_cpu)
    program = (
        run.program_bytes + _LATER_BYTES if run.program_bytes else _PROGRAM_BYTES[run.device.split(":")[0]]
    )
    fixed = program + _WEIGHTS_BYTES[config.trunk]
    if on_cpu:
        finishing = _FINISHING_BYTES[0] + _FINISHING_BYTES[1] * run.objects
        workers = Workers(run.workers, run.workers)
        most = sys.maxsize if run.frames_at_most is None else run.frames_at_most
        pairs = min(run.workers, most)
        held = min(workers.frames_held, most) * run.plate_pixel_bytes + finishing * pairs
        held += _FOREGROUND_BYTES * min(workers.foregrounds, most) if run.foreground else 0
        fixed += held * run.plate_pixels
        fixed += _REFINER_BYTES * run.height * run.width * pairs if run.learned_edges else 0
        fixed += _HEAP_GAPS if most >= _FRAMES_TO_GAPS else _HEAP_GAPS * most // _FRAMES_TO_GAPS
        if run.precision == "float32":
            fixed += _WINOGRAD_BYTES[config.trunk]
            once += _WORKING_BYTES["float32"] * _WINOGRAD_VALUES_PER_PIXEL[config.trunk]
    return Forecast(
        bank=run.turns * slots * per_entry,
        working=round(pixels * (once + per_object * run.objects)) + (run.turns - 1) * _waiting_bytes(run),
        features=_cached_bytes(run) if on_cpu else 0,
        fixed=fixed,
    )


def _working_bytes(trunk: str, precision: str, on_cpu: bool) -> tuple[float, float]:
    """What one call takes per padded pixel: a part that does not depend on the objects, and one for each."""
    measured = _CPU_WORKING_BYTES.get((trunk, precision)) if on_cpu else None
    if measured is not None:
        return measured
    once, per_object = _VALUES_PER_PIXEL[trunk]
    return _WORKING_BYTES[precision] * once, _WORKING_BYTES[precision] * per_object


def fit_memory(wanted: MemoryRequest, available: int) -> MemoryFit:
    """Make a run fit into `available` bytes: fewer cached features and workers, one pass at a time, then a
    lower cap, then a smaller picture.

    Raises:
        DeviceError: not even the smallest fits.
    """
    budget = int(available * _SPARE)
    forecast = predict_memory(wanted)
    for scale in _SCALES:
        for cap in _caps(wanted.memory_cap):
            run = replace(
                wanted,
                height=round(wanted.height * scale),
                width=round(wanted.width * scale),
                memory_cap=cap,
            )
            run = replace(run, workers=_workers_within(run, budget))
            if predict_memory(replace(run, ram_budget=0)).total > budget:
                run = replace(run, turns=1)
            forecast = predict_memory(run)
            if forecast.total > budget:
                room = budget - predict_memory(replace(run, ram_budget=0)).total
                run = replace(run, ram_budget=max(0, min(run.ram_budget, int(room / (1 + _EVICTION_GAPS)))))
                forecast = predict_memory(run)
            if forecast.total <= budget:
                return MemoryFit(run, scale, forecast, _why(wanted.memory_cap, cap, scale, available))
    raise DeviceError(
        f"The run needs at least {forecast}, but {wanted.device} has {_in_words(available)} free.",
        hint="Give a smaller region or working size, fewer objects, or use another device.",
    )


def _workers_within(run: MemoryRequest, budget: int) -> int:
    """As many workers as asked for, as long as no cached feature has to leave for them beyond half; one at
    least."""
    for workers in range(run.workers, 1, -1):
        tried = replace(run, workers=workers, ram_budget=run.ram_budget // 2)
        if predict_memory(tried).total <= budget:
            return workers
    return 1


def predict_adaptation_memory(sizes: AdaptationMemory) -> AdaptationForecast:
    """The memory of adapting, computed from its sizes."""
    trunk, options = sizes.config.trunk, sizes.options
    pixels = sizes.height * sizes.width
    side = min(options.crop, min(sizes.height, sizes.width) // STRIDE * STRIDE)
    in_a_clip = min(sizes.objects, MOST_OBJECTS_PER_CLIP)
    groups = -(-sizes.objects // MOST_OBJECTS_PER_CLIP)
    labels = groups * sizes.keys**2  # of each key, and twice of each pair
    once, per_object = _LEARNING_VALUES_PER_PIXEL[trunk]
    fixed = _PROGRAM_BYTES[sizes.device.split(":")[0]] + _ADAPTATION_BYTES[trunk]
    key_bytes = 4 * (3 + sizes.objects)
    on_cpu = sizes.device == "cpu"
    return AdaptationForecast(
        pictures=pixels * (sizes.keys * key_bytes + labels * _LABEL_BYTES) if on_cpu else 0,
        working=round(options.clips * side * side * 4 * (once + per_object * in_a_clip)),
        fixed=fixed + (_LESSON_FRAMES * _PLATE_FRAME_BYTES * sizes.plate_pixels if on_cpu else 0),
    )


def check_adaptation_memory(sizes: AdaptationMemory, available: int) -> AdaptationForecast:
    """The memory of adapting, which must fit into `available` bytes.

    Raises:
        DeviceError: it does not.
    """
    forecast = predict_adaptation_memory(sizes)
    if forecast.total > available * _SPARE:
        fewer = ", with fewer keys" if forecast.pictures > forecast.working else ""
        raise DeviceError(
            f"Adapting needs {forecast}, but {sizes.device} has {_in_words(available)} free.",
            hint=f"Close other programs, adapt at a smaller working size{fewer} or on another device, "
            "or continue without adapting: nothing has changed.",
        )
    return forecast


def _cached_bytes(run: MemoryRequest) -> int:
    """Of the cached features of a run, with the gaps that arise when the cache is full."""
    needed, budget = run.frames * _feature_bytes(run), run.ram_budget
    gaps = min(_EVICTED_GAPS * max(0, needed - budget), _EVICTION_GAPS * budget)
    return min(needed, budget) + round(gaps)


def _feature_bytes(run: MemoryRequest) -> int:
    """Of one frame: the query's features, the working picture and the memory entry, all in two bytes."""
    config = run.config
    pixels = run.height * run.width
    coarse, middle, fine = config.decoder_channels
    skips = middle / 8**2 + fine / 4**2 + config.half_channels / 2**2
    per_pixel = _CACHED_BYTES * ((config.key_channels + coarse) / STRIDE**2 + skips + 3)
    positions = -(-run.height // STRIDE) * -(-run.width // STRIDE)
    entry = positions * _CACHED_BYTES * (config.key_channels + config.value_channels) + _AREA_BYTES
    return round(pixels * per_pixel) + run.objects * entry


def _waiting_bytes(run: MemoryRequest) -> int:
    """Of a frame that waits for the device: its features as they are used, and probabilities alone and
    merged."""
    used = _feature_bytes(run) * _VALUE_BYTES["float32"] // _CACHED_BYTES
    return used + run.height * run.width * _VALUE_BYTES["float32"] * (2 * run.objects + 1)


@contextmanager
def device_errors(device: str, frame: int | None = None) -> Iterator[None]:
    """Replace errors of a device by a DeviceError that states what to do.

    Raises:
        DeviceError: an out-of-memory or device error was raised inside.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(device, frame) from error
    except RuntimeError as error:
        if speaks_of_memory(error):
            raise _out_of_memory(device, frame) from error
        raise DeviceError(
            f"The device {device} failed: {str(error).splitlines()[0].rstrip('.')}.",
            frame=frame,
            hint="Finished frames are kept. Run again"
            + ("." if device == "cpu" else ", with --device cpu if needed."),
        ) from error


def _out_of_memory(device: str, frame: int | None) -> DeviceError:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    ways = "lower memory_cap or working_size, or give a region"
    if device != "cpu":
        ways = "lower memory_cap or working_size, give a region, or use --device cpu"
    return DeviceError(
        f"{device} has too little memory.",
        frame=frame,
        hint=f"Finished frames are kept. Close other programs, or {ways}, and run again.",
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
    """Bytes that this process may still take, within the limits of system, process and group."""
    free = int(psutil.virtual_memory().available)
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - psutil.Process().memory_info().vms)
    group = _free_in_group()
    return max(0, free if group is None else min(free, group))


def _free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left in the control group of a container or a farm's job; None where it sets no limit.

    The group's cache of files counts as free, because the kernel releases it.
    """
    try:
        limit = int((folder / "memory.max").read_text())  # "max" without one
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        files = dict(line.split() for line in lines).get("inactive_file", "0")
    except (OSError, ValueError):
        return None
    return limit - used + int(files)
