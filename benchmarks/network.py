"""Times the product's inference against the plain reference: same weights, same frames, one run, interleaved.

    python benchmarks/network.py                  # the table of ratios, and peak memory
    python benchmarks/network.py --frames 20      # shorter
    python benchmarks/network.py --long 1000      # level cost and memory past the memory cap (stm-lite)

Absolute times hold for one machine and one moment; quote the ratios. Stop other programs first: two OpenMP
programs on two cores spoil every figure. Random weights (scaled so that masks are not degenerate) and a
synthetic plate: speed does not depend on what is learnt or seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.config import network_config
from model.inference import FastNetwork, Precision, Query
from model.memory import MemoryBank, MemoryRule
from model.network import SpaceTimeMemoryNetwork
from model.read import space_time_read
from model.weights import from_published_name
from tests.reference.samples import lively_network, lively_reference
from tests.reference.stm import ReferenceSTM, memorise, pad_to_stride, read_memory, segment

RULE = "every:5"
HEIGHT, WIDTH = 480, 854
READ_FRAMES = 10


def plate(count: int) -> Iterator[Tensor]:
    """(3, HEIGHT, WIDTH) pictures: a smooth random texture that drifts."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 24, 40, generator=generator)
    wide = F.interpolate(coarse, (HEIGHT + 64, WIDTH + 64), mode="bicubic")[0].clamp(0, 1)
    for frame in range(count):
        shift = frame % 64
        yield wide[:, shift : shift + HEIGHT, shift : shift + WIDTH].contiguous()


def key_masks(objects: int) -> Tensor:
    """(objects, HEIGHT, WIDTH): disks side by side."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    step = WIDTH // (objects + 1)
    radius = min(step // 2, 120)
    disks = [(y - HEIGHT // 2) ** 2 + (x - step * (k + 1)) ** 2 < radius**2 for k in range(objects)]
    return torch.stack(disks).float()


def published_to_product(reference: ReferenceSTM) -> SpaceTimeMemoryNetwork:
    """The product's network with the reference's weights."""
    network = SpaceTimeMemoryNetwork(network_config("stm-r50"))
    network.load_state_dict({from_published_name(k): v for k, v in reference.state_dict().items()})
    return network.eval()


class PlainPass:
    """The reference's inference loop, one frame at a time."""

    def __init__(self, network: ReferenceSTM) -> None:
        self.network = network
        self.memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.rule = MemoryRule.parse(RULE)

    @torch.no_grad()
    def begin(self, picture: Tensor, masks: Tensor) -> None:
        self.memory = {0: memorise(self.network, picture, masks)}

    @torch.no_grad()
    def step(self, step: int, picture: Tensor) -> Tensor:
        keep = self.rule.steps_in_memory(step, capacity=10_000)
        self.memory = {s: self.memory[s] for s in keep}
        probabilities = segment(self.network, picture, list(self.memory.values()))
        self.memory[step] = memorise(self.network, picture, probabilities[1:])
        return probabilities


class FastPass:
    """The product's inference, one frame at a time; with `cached` the query side is not computed again."""

    def __init__(self, engine: FastNetwork, capacity: int = 10_000) -> None:
        self.engine, self.capacity = engine, capacity
        self.bank: MemoryBank | None = None

    def begin(self, picture: Tensor, masks: Tensor, frames: int) -> None:
        entry = self.engine.encode_memory(picture, masks)
        capacity = min(self.capacity, frames // 5 + 1)
        self.bank = self.engine.new_bank(MemoryRule.parse(RULE), entry, capacity=capacity)
        self.bank.write(0, entry)

    def step(self, step: int, picture: Tensor, query: Query | None = None) -> Tensor:
        assert self.bank is not None
        probabilities = self.engine.segment(query or self.engine.encode_query(picture), self.bank)
        self.bank.write(step, self.engine.encode_memory(picture, probabilities[1:]))
        return probabilities


@dataclass
class Seconds:
    """Seconds of each frame, per engine."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[[], Tensor]) -> Tensor:
        started = time.perf_counter()
        result = call()
        self.of.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def median(self, name: str) -> float:
        return statistics.median(self.of[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Median of the frame-by-frame ratios: steady where the machine's speed drifts."""
        return statistics.median(a / b for a, b in zip(self.of[slow], self.of[fast], strict=True))


def iou(a: Tensor, b: Tensor) -> float:
    """Of the first object's hard masks."""
    first, second = a[1] > 0.5, b[1] > 0.5
    return float((first & second).sum() / (first | second).sum().clamp(min=1))


def first_pass(frames: int, report: dict[str, float]) -> None:
    """Whole frames, every engine on every frame in turn."""
    reference = lively_reference()
    engines: dict[str, tuple[SpaceTimeMemoryNetwork, Precision]] = {
        "r50 fp32": (published_to_product(reference), "float32"),
        "r50 bf16": (published_to_product(reference), "bfloat16"),
        "lite fp32": (lively_network("stm-lite"), "float32"),
        "lite bf16": (lively_network("stm-lite"), "bfloat16"),
    }
    plain = PlainPass(reference)
    passes = {name: FastPass(FastNetwork(net, precision=p)) for name, (net, p) in engines.items()}
    pictures = list(plate(frames))
    masks = key_masks(1)
    seconds, cached = Seconds(), Seconds()
    plain.begin(pictures[0], masks)
    for one in passes.values():
        one.begin(pictures[0], masks, frames)
    difference, agreement = 0.0, []
    for step in range(1, frames):
        picture = pictures[step]
        expected = seconds.time("plain", lambda p=picture, s=step: plain.step(s, p))  # type: ignore[misc]
        got: dict[str, Tensor] = {}
        for name, one in passes.items():
            got[name] = seconds.time(name, lambda p=picture, s=step, o=one: o.step(s, p))  # type: ignore[misc]
        for name in ("r50 fp32", "r50 bf16"):
            one = passes[name]
            query = one.engine.encode_query(picture)
            cached.time(name, lambda p=picture, s=step, o=one, q=query: o.step(s, p, q))  # type: ignore[misc]
        difference = max(difference, float((expected - got["r50 fp32"]).abs().max()))
        agreement.append(iou(got["r50 fp32"], got["r50 bf16"]))
        print(
            f"frame {step}: " + ", ".join(f"{n} {t[-1]:.2f}" for n, t in seconds.of.items()), file=sys.stderr
        )
    for name in seconds.of:
        report[f"{name}: seconds per frame"] = seconds.median(name)
    for name in passes:
        report[f"{name}: times faster than plain r50, first pass"] = seconds.ratio("plain", name)
    for name in cached.of:
        ratio = statistics.median(a / b for a, b in zip(seconds.of["plain"], cached.of[name], strict=True))
        report[f"{name}: times faster, query side cached"] = ratio
    report["r50 fp32: largest difference of probabilities"] = difference
    report["r50 bf16: mean IoU with fp32"] = statistics.mean(agreement)


def parts(repeats: int, report: dict[str, float]) -> None:
    """Encoders, read and decoder on their own."""
    reference = lively_reference()
    picture, masks = next(iter(plate(1))), key_masks(1)
    padded, _ = pad_to_stride(picture)
    padded_mask, _ = pad_to_stride(masks[0])
    nothing = torch.zeros_like(padded_mask)
    fast = {p: FastNetwork(published_to_product(reference), precision=p) for p in ("float32", "bfloat16")}
    seconds = Seconds()
    with torch.no_grad():
        query = reference.encode_query(padded)
        key, value = reference.encode_memory(padded, padded_mask, nothing)
        keys, values = (torch.stack([x] * READ_FRAMES, dim=1) for x in (key, value))
        y = torch.cat([value, query.value])
    with torch.inference_mode():
        fast_query = {p: e.encode_query(picture) for p, e in fast.items()}
        entries = {p: e.encode_memory(picture, masks) for p, e in fast.items()}
        for _ in range(repeats):
            with torch.no_grad():
                seconds.time("query plain", lambda: reference.encode_query(padded).key)
                seconds.time("memory plain", lambda: reference.encode_memory(padded, padded_mask, nothing)[0])
                seconds.time("read plain", lambda: read_memory(query.key, keys, values))
                seconds.time("decoder plain", lambda: reference.decode(y, query.skips))
            for p, engine in fast.items():
                features, entry = fast_query[p].features, entries[p]
                flat = features.key[0].flatten(1)
                blocks = [(entry.keys, entry.values)] * READ_FRAMES
                read = value[None, None]
                seconds.time(f"query {p}", lambda e=engine: e.encode_query(picture).features.key)  # type: ignore[misc]
                seconds.time(f"memory {p}", lambda e=engine: e.encode_memory(picture, masks).keys)  # type: ignore[misc]
                seconds.time(f"read {p}", lambda f=flat, b=blocks: space_time_read(f, b))  # type: ignore[misc]
                seconds.time(
                    f"decoder {p}",
                    lambda e=engine, r=read, f=features: e.network.decode(r, f),  # type: ignore[misc]
                )
    for part in ("query", "memory", "read", "decoder"):
        report[f"r50 {part}: plain, seconds"] = seconds.median(f"{part} plain")
        for p in fast:
            report[f"r50 {part}: times faster, {p}"] = seconds.ratio(f"{part} plain", f"{part} {p}")


def three_objects(frames: int, report: dict[str, float]) -> None:
    """Time of a frame with three objects over that with one."""
    pictures = list(plate(frames))
    for name, network in (
        ("r50", published_to_product(lively_reference())),
        ("lite", lively_network("stm-lite")),
    ):
        engine = FastNetwork(network)
        passes = {k: FastPass(engine) for k in (1, 3)}
        seconds = Seconds()
        for k, one in passes.items():
            one.begin(pictures[0], key_masks(k), frames)
        for step in range(1, frames):
            for k, one in passes.items():
                picture = pictures[step]
                seconds.time(str(k), lambda p=picture, s=step, o=one: o.step(s, p))  # type: ignore[misc]
        report[f"{name}: three objects over one, time"] = seconds.ratio("3", "1")


def peak_memory(frames: int, report: dict[str, float]) -> None:
    """Largest resident size of a process that runs nothing else, in GB."""
    context = multiprocessing.get_context("spawn")
    for name, precision in (
        ("plain r50", None),
        ("r50", "float32"),
        ("r50", "bfloat16"),
        ("lite", "float32"),
        ("lite", "bfloat16"),
    ):
        with context.Pool(1) as pool:
            size = pool.apply(_peak_of_pass, (name, precision, frames))
        report[f"{name} {precision or 'fp32'}: peak memory over {frames} frames, GB"] = size


def _peak_of_pass(name: str, precision: Precision | None, frames: int) -> float:
    if precision is None:
        plain = PlainPass(lively_reference())
        for step, picture in enumerate(plate(frames)):
            plain.begin(picture, key_masks(1)) if step == 0 else plain.step(step, picture)
    else:
        network = published_to_product(lively_reference()) if name == "r50" else lively_network("stm-lite")
        one = FastPass(FastNetwork(network, precision=precision), capacity=20)
        del network
        for step, picture in enumerate(plate(frames)):
            one.begin(picture, key_masks(1), frames) if step == 0 else one.step(step, picture)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def long_shot(frames: int, report: dict[str, float]) -> None:
    """Time and memory of `stm-lite` past the memory cap."""
    one = FastPass(FastNetwork(lively_network("stm-lite"), precision="bfloat16"), capacity=20)
    seconds: list[float] = []
    sizes: list[float] = []
    for step, picture in enumerate(plate(frames)):
        started = time.perf_counter()
        one.begin(picture, key_masks(1), frames) if step == 0 else one.step(step, picture)
        seconds.append(time.perf_counter() - started)
        sizes.append(_resident_megabytes())
    report["long: last 100 frames over frames 100-200, time"] = statistics.median(
        seconds[-100:]
    ) / statistics.median(seconds[100:200])
    report["long: memory growth from frame 200 to the end, MB"] = sizes[-1] - sizes[200]


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures; `--json` writes them too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=45, help="of the first pass")
    parser.add_argument("--memory-frames", type=int, default=80, help="of the memory measurement; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="of each part")
    parser.add_argument("--long", type=int, default=0, help="frames of the long shot; 0: none")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    report: dict[str, float] = {}
    if given.long:
        long_shot(given.long, report)
    else:
        first_pass(given.frames, report)
        parts(given.repeats, report)
        three_objects(6, report)
        if given.memory_frames:
            peak_memory(given.memory_frames, report)
    print(
        f"{WIDTH}x{HEIGHT}, {RULE}, one object, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, value in report.items():
        print(f"{name:60} {value:10.3g}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
