"""Times the product's inference against the plain reference: same weights, same frames, one run, interleaved.

    python benchmarks/network.py                  # 45 frames with their growing memory; the table of ratios
    python benchmarks/network.py --frames 16      # cheaper: a short memory
    python benchmarks/network.py --engines "lite fp32"    # one engine beside the plain reference
    python benchmarks/network.py --long 1000      # level cost and memory past the memory cap (stm-lite)
    python benchmarks/network.py --clip FOLDER --mask FILE    # bf16 against fp32 with trained weights

Every engine has a process of its own, so that what one sets up for itself (how memory is handed out, for
instance) does not serve another: the plain reference runs as PyTorch comes. The engines take turns frame by
frame, and only one computes at a time.

Absolute times hold for one machine and one moment; quote the ratios. Stop other programs first: two OpenMP
programs on two cores spoil every figure. Without a clip: random weights (scaled so that masks are not
degenerate) and a synthetic plate; speed does not depend on what is learnt or seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.pictures import PICTURE_SUFFIXES, read_labels, read_picture
from model.evaluation.evaluate import working_picture
from model.inference.fast_network import FastNetwork, Precision, Query
from model.network.config import network_config
from model.network.memory import DEFAULT_CAPACITY, MemoryBank, MemoryRule
from model.network.read import space_time_read
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import from_published_name, load_network
from tests.reference.samples import lively_network, lively_reference
from tests.reference.stm import ReferenceSTM, memorise, pad_to_stride, read_memory, segment

RULE = "every:5"
HEIGHT, WIDTH = 480, 854
READ_FRAMES = 10
PARTS = ("query", "memory", "read", "decoder")
SETTLE = 0.05
"""Seconds between two engines' turns: the threads of the last one have gone to sleep."""


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

    def __init__(self) -> None:
        self.network = lively_reference()
        self.memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.rule = MemoryRule.parse(RULE)

    @torch.no_grad()
    def begin(self, picture: Tensor, masks: Tensor, frames: int) -> None:
        self.memory = {0: memorise(self.network, picture, masks)}

    @torch.no_grad()
    def step(self, step: int, picture: Tensor) -> tuple[float, Tensor]:
        """Seconds, and what came out."""
        started = time.perf_counter()
        keep = self.rule.steps_in_memory(step, capacity=10_000)
        self.memory = {s: self.memory[s] for s in keep}
        probabilities = segment(self.network, picture, list(self.memory.values()))
        self.memory[step] = memorise(self.network, picture, probabilities[1:])
        return time.perf_counter() - started, probabilities

    @torch.no_grad()
    def parts(self, picture: Tensor, masks: Tensor) -> dict[str, float]:
        """Seconds of each of `PARTS`."""
        network = self.network
        padded, _ = pad_to_stride(picture)
        mask, _ = pad_to_stride(masks[0])
        nothing = torch.zeros_like(mask)
        query = network.encode_query(padded)
        key, value = network.encode_memory(padded, mask, nothing)
        keys, values = (torch.stack([x] * READ_FRAMES, dim=1) for x in (key, value))
        y = torch.cat([value, query.value])
        return {
            "query": timed(lambda: network.encode_query(padded)),
            "memory": timed(lambda: network.encode_memory(padded, mask, nothing)),
            "read": timed(lambda: read_memory(query.key, keys, values)),
            "decoder": timed(lambda: network.decode(y, query.skips)),
        }


class FastPass:
    """The product's inference, one frame at a time."""

    def __init__(self, network: SpaceTimeMemoryNetwork, precision: Precision, capacity: int = 10_000) -> None:
        self.engine, self.capacity = FastNetwork(network, precision=precision), capacity
        self.bank: MemoryBank | None = None

    def begin(self, picture: Tensor, masks: Tensor, frames: int) -> None:
        entry = self.engine.encode_memory(picture, masks)
        capacity = min(self.capacity, frames // 5 + 1)
        self.bank = self.engine.new_bank(MemoryRule.parse(RULE), entry, capacity=capacity)
        self.bank.write(0, entry)

    def step(self, step: int, picture: Tensor) -> tuple[float, Tensor]:
        """Seconds, and what came out."""
        started = time.perf_counter()
        probabilities = self._step(step, picture, self.engine.encode_query(picture))
        return time.perf_counter() - started, probabilities

    def cached(self, step: int, picture: Tensor) -> float:
        """Seconds of the same where the query side is known, as after a correction."""
        query = self.engine.encode_query(picture)
        return timed(lambda: self._step(step, picture, query))

    def _step(self, step: int, picture: Tensor, query: Query) -> Tensor:
        assert self.bank is not None
        probabilities = self.engine.segment(query, self.bank)
        self.bank.write(step, self.engine.encode_memory(picture, probabilities[1:]))
        return probabilities

    @torch.inference_mode()
    def parts(self, picture: Tensor, masks: Tensor) -> dict[str, float]:
        """Seconds of each of `PARTS`."""
        engine = self.engine
        features, entry = engine.encode_query(picture).features, engine.encode_memory(picture, masks)
        flat, blocks = features.key[0].flatten(1), [(entry.keys, entry.values)] * READ_FRAMES
        read = entry.values.float().reshape(*entry.values.shape[:2], *features.key.shape[-2:])
        return {
            "query": timed(lambda: engine.encode_query(picture)),
            "memory": timed(lambda: engine.encode_memory(picture, masks)),
            "read": timed(lambda: space_time_read(flat, blocks)),
            "decoder": timed(lambda: engine.decode(read, features)),
        }


Pass = PlainPass | FastPass
ENGINES: dict[str, Callable[[], Pass]] = {
    "plain": PlainPass,
    "r50 fp32": lambda: FastPass(published_to_product(lively_reference()), "float32"),
    "r50 bf16": lambda: FastPass(published_to_product(lively_reference()), "bfloat16"),
    "lite fp32": lambda: FastPass(lively_network("stm-lite"), "float32"),
    "lite bf16": lambda: FastPass(lively_network("stm-lite"), "bfloat16"),
}
FAST = tuple(name for name in ENGINES if name != "plain")


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Worker:
    """An engine in a process of its own, which computes when it is asked to and sleeps otherwise."""

    def __init__(self, name: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, threads, theirs), daemon=True)
        self._process.start()

    def ask(self, method: str, *arguments: object) -> Any:
        """Calls a method of the engine's pass."""
        time.sleep(SETTLE)
        self._connection.send((method, [_sent(each) for each in arguments]))
        return _received(self._connection.recv())

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


def _serve(name: str, threads: int, connection: Connection) -> None:
    if threads:
        torch.set_num_threads(threads)
    one = ENGINES[name]()
    while (message := connection.recv()) is not None:
        method, arguments = message
        connection.send(_sent(getattr(one, method)(*(_received(each) for each in arguments))))


def _sent(value: object) -> object:
    """Tensors travel as arrays: as tensors they would hold on to shared memory."""
    if isinstance(value, tuple):
        return tuple(_sent(each) for each in value)
    return value.numpy() if isinstance(value, Tensor) else value


def _received(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_received(each) for each in value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@contextmanager
def workers(names: Iterable[str], threads: int) -> Iterator[dict[str, Worker]]:
    """The engines of these names."""
    started = {name: Worker(name, threads) for name in names}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.close()


@dataclass
class Seconds:
    """Seconds of each frame, per engine."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, seconds: float) -> None:
        self.of.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.of[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Median of the frame-by-frame ratios: steady where the machine's speed drifts."""
        return statistics.median(a / b for a, b in zip(self.of[slow], self.of[fast], strict=True))

    def whole(self, slow: str, fast: str) -> float:
        """Ratio of the whole times."""
        return sum(self.of[slow]) / sum(self.of[fast])


def iou(a: Tensor, b: Tensor, object_: int = 1) -> float:
    """Of an object's hard masks in two results (K + 1, H, W); two empty ones agree."""
    first, second = (x.argmax(dim=0) == object_ for x in (a, b))
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def first_pass(names: Sequence[str], frames: int, threads: int, report: dict[str, float]) -> None:
    """Whole frames: the plain reference and the named engines on every frame, in turn."""
    pictures, masks = list(plate(frames)), key_masks(1)
    cacheable = [name for name in ("r50 fp32", "r50 bf16") if name in names]
    seconds = Seconds()
    difference, agreement = 0.0, []
    with workers(["plain", *names], threads) as engines:
        for engine in engines.values():
            engine.ask("begin", pictures[0], masks, frames)
        for step, picture in enumerate(pictures[1:], start=1):
            got: dict[str, Tensor] = {}
            for name, engine in engines.items():
                spent, got[name] = engine.ask("step", step, picture)
                seconds.note(name, spent)
            for name in cacheable:
                seconds.note(f"{name} cached", engines[name].ask("cached", step, picture))
            if "r50 fp32" in got:
                difference = max(difference, float((got["plain"] - got["r50 fp32"]).abs().max()))
            if len(cacheable) == 2:
                agreement.append(iou(got["r50 fp32"], got["r50 bf16"]))
            spent_now = ", ".join(f"{name} {times[-1]:.2f}" for name, times in seconds.of.items())
            print(f"frame {step}: {spent_now}", file=sys.stderr)
    for name in ("plain", *names):
        report[f"{name}: seconds per frame"] = seconds.median(name)
    for name in names:
        report[f"{name}: times faster than plain r50, first pass"] = seconds.ratio("plain", name)
    for name in names:
        report[f"{name}: the same by the whole pass's time"] = seconds.whole("plain", name)
    for name in cacheable:
        report[f"{name}: times faster, query side cached"] = seconds.ratio("plain", f"{name} cached")
    if "r50 fp32" in names:
        report["r50 fp32: largest difference of probabilities"] = difference
    if agreement:
        report["r50 bf16: mean IoU with fp32, random weights"] = statistics.mean(agreement)


def parts(repeats: int, threads: int, report: dict[str, float]) -> None:
    """Encoders, read and decoder on their own."""
    picture, masks = next(iter(plate(1))), key_masks(1)
    seconds = {part: Seconds() for part in PARTS}
    names = ("plain", "r50 fp32", "r50 bf16")
    with workers(names, threads) as engines:
        for _ in range(repeats):
            for name, engine in engines.items():
                for part, spent in engine.ask("parts", picture, masks).items():
                    seconds[part].note(name, spent)
    for part, of_part in seconds.items():
        report[f"r50 {part}: plain, seconds"] = of_part.median("plain")
        for name in names[1:]:
            report[f"{name} {part}: times faster"] = of_part.ratio("plain", name)


def three_objects(names: Sequence[str], frames: int, threads: int, report: dict[str, float]) -> None:
    """Time of a frame with three objects over that with one, the same engine in two processes."""
    pictures = list(plate(frames))
    for name in names:
        one, three = Worker(name, threads), Worker(name, threads)
        seconds = Seconds()
        for objects, engine in ((1, one), (3, three)):
            engine.ask("begin", pictures[0], key_masks(objects), frames)
        for step in range(1, frames):
            for which, engine in (("one", one), ("three", three)):
                spent, _ = engine.ask("step", step, pictures[step])
                seconds.note(which, spent)
        one.close()
        three.close()
        report[f"{name}: three objects over one, time"] = ratio = seconds.ratio("three", "one")
        print(f"{name}: three objects over one {ratio:.2f}", file=sys.stderr)


def clip_agreement(clip: Path, mask: Path, weights: str, frames: int, report: dict[str, float]) -> None:
    """How well bf16 agrees with fp32 on a real clip, each pass on its own from the first frame's mask on."""
    network, manifest = load_network(weights)
    labels = torch.from_numpy(read_labels(mask))  # (H, W)
    masks = torch.stack([labels == label for label in np.unique(labels) if label]).float()
    files = sorted(path for path in clip.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)[:frames]
    passes = {p: FastPass(network, p) for p in ("float32", "bfloat16")}
    agreement = []
    for step, file in enumerate(files):
        picture = working_picture(read_picture(file), HEIGHT)
        if step == 0:
            inside = F.interpolate(masks[None], picture.shape[-2:], mode="area")[0]
            for one in passes.values():
                one.begin(picture, inside, len(files))
            continue
        exact, rounded = (one.step(step, picture)[1] for one in passes.values())
        agreement += [iou(exact, rounded, object_) for object_ in range(1, len(exact))]
    name = f"{manifest.architecture} bf16, {clip.name}, {len(files)} frames"
    report[f"{name}: mean IoU with fp32"] = statistics.mean(agreement)
    report[f"{name}: least IoU with fp32"] = min(agreement)


def peak_memory(names: Sequence[str], frames: int, report: dict[str, float]) -> None:
    """Largest resident size of a process that runs nothing else, in GB."""
    context = multiprocessing.get_context("spawn")
    for name in names:
        with context.Pool(1) as pool:
            peak = pool.apply(_peak_of_pass, (name, frames))
        report[f"{name}: peak memory over {frames} frames, GB"] = peak


def _peak_of_pass(name: str, frames: int) -> float:
    one = ENGINES[name]()
    if isinstance(one, FastPass):
        one.capacity = DEFAULT_CAPACITY
    for step, picture in enumerate(plate(frames)):
        one.begin(picture, key_masks(1), frames) if step == 0 else one.step(step, picture)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def long_shot(frames: int, report: dict[str, float]) -> None:
    """Time and memory of `stm-lite` past the memory cap."""
    one = FastPass(lively_network("stm-lite"), "bfloat16", capacity=DEFAULT_CAPACITY)
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
    parser.add_argument("--frames", type=int, default=45, help="of the first pass; 0: none")
    parser.add_argument("--engines", nargs="+", choices=FAST, default=FAST, help="beside the plain one")
    parser.add_argument("--memory-frames", type=int, default=80, help="of the memory measurement; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="of each part; 0: no parts")
    parser.add_argument("--object-frames", type=int, default=6, help="with three objects; 0: none")
    parser.add_argument("--long", type=int, default=0, help="frames of the long shot; 0: none")
    parser.add_argument("--clip", type=Path, help="a folder of pictures: only how well bf16 agrees there")
    parser.add_argument("--mask", type=Path, help="labels of the clip's first picture, a PNG")
    parser.add_argument("--weights", default="stm-lite", help="trained weights for the clip: a name or file")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    report: dict[str, float] = {}
    if given.long:
        long_shot(given.long, report)
    elif given.clip is not None:
        if given.mask is None:
            parser.error("--clip needs --mask")
        clip_agreement(given.clip, given.mask, given.weights, given.frames, report)
    else:
        if given.frames:
            first_pass(given.engines, given.frames, given.threads, report)
        if given.repeats:
            parts(given.repeats, given.threads, report)
        if given.object_frames:
            three_objects(given.engines, given.object_frames, given.threads, report)
        if given.memory_frames:
            peak_memory(given.engines, given.memory_frames, report)
    print(
        f"{WIDTH}x{HEIGHT}, {RULE}, one object, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, value in report.items():
        print(f"{name:60} {value:10.3g}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
