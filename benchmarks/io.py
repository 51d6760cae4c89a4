"""Where the time of a frame goes, from the plate's file to the matte's.

    python benchmarks/io.py                              # stm-lite, 2048x1080, ACEScg, zip, half float
    python benchmarks/io.py --size 4096x2160 --precision bfloat16 --device cuda
    python benchmarks/io.py --toy                        # a network that costs nothing, on one core and two
    python benchmarks/io.py --correction --frames 100    # one key of three is replaced, and one of fifteen

The plate is made: photographs that scikit-image ships, composited in ACEScg with grain, zip-compressed.

- A *part* is decode, hash, colour, narrowing, finish, encode, keep (rounding, and the copy in the RAM cache)
  or store (compressing, checksums and files): the processor time of all threads for one frame, alone.
- The *propagation* is `stm propagate` without its start: from a cold shot to written mattes, by the clock and
  in processor time of all threads, beside the network alone on the same pictures.
  `benchmarks/device.py` prints the same for a device beside its network.
- What is *in no part* is the processor time of the propagation less that of its parts and of the network
  alone.
- The *forecast* says how many frames a second a machine would give if nothing but these parts took its time:
  readers, finishers and storers share all processors; a frame is kept in the network's thread, on a card by
  the storers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.inference.fast_network import FastNetwork, PreparedQuery, Query
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from stm_plugin.demo.plate import DemoPlate, PlateSettings, build_plate
from stm_plugin.finishing.carried import REACH
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.device_pictures import DevicePictures
from stm_plugin.images.mask import MaskPlace, read_mask
from stm_plugin.images.matte import read_matte, write_matte
from stm_plugin.images.plate import Plate
from stm_plugin.images.working_picture import to_working, working_geometry
from stm_plugin.planning.values import State
from stm_plugin.propagation.events import Event, PlanMade
from stm_plugin.propagation.feature_cache import FeatureCache, as_halves
from stm_plugin.propagation.frame_loader import FrameLoader
from stm_plugin.propagation.memory_forecast import pick_device, precision_of
from stm_plugin.propagation.networks import ready_network
from stm_plugin.propagation.workers import Workers, processors
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import ProbabilityArray, quantise

T = TypeVar("T")
BESIDE = ("decode", "hash", "colour", "narrowing", "finish", "encode")
"""Parts that readers and finishers do."""
CORRECTED = (3, 15)
"""Keys of the shots that are corrected: all frames are stale with three, a quarter of 100 with fifteen."""
LARGE_MACHINE = 16
CARD_SECONDS = 0.006
"""Of the network on a graphics card, measured once (docs/performance.md)."""


def milliseconds(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median processor time of all threads, and the result. Libraries have threads of their own."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        times.append((time.process_time() - started) * 1e3)
    return statistics.median(times), result


def reading(made: DemoPlate, settings: Settings, repeats: int) -> dict[str, float]:
    """Milliseconds of decoding, hashing, colour and narrowing one frame."""
    plate = Plate.open(made.plate)
    frame = plate.frames[1]
    report = {}
    report["decode"], plate_frame = milliseconds(lambda: plate.read(frame), repeats)
    report["hash"], _ = milliseconds(plate_frame.content_hash, repeats)
    config = load_config()
    transform = ColourTransform(config, find_input_space(plate_frame, config).name)
    geometry = working_geometry(plate.canvas, plate.pixel_aspect, settings.working_size)
    pixels, window = plate_frame.pixels, plate_frame.data_window
    device, tables = pick_device(settings.device), transform.tables()
    if device.startswith("cuda") and tables is not None:  # both on the card: the processor's time for them
        card = DevicePictures(tables, geometry, device)
        report["narrowing"], _ = milliseconds(lambda: card.working(pixels, window), repeats)
        return {**report, "colour": 0.0}
    shown = transform.to_display(pixels)
    report["narrowing"], _ = milliseconds(lambda: to_working(shown, window, geometry), repeats)
    both, _ = milliseconds(lambda: to_working(pixels, window, geometry, transform.to_display), repeats)
    report["colour"] = max(0.0, both - report["narrowing"])
    return report


def finishing(made: DemoPlate, settings: Settings, repeats: int) -> dict[str, float]:
    """Milliseconds of finishing and of encoding one frame, and of keeping its result and its features."""
    report = {}
    with tempfile.TemporaryDirectory() as name:
        first = made.settings.first_frame
        last = first + REACH + 1  # not beside the key, where its mask is moved along, too
        description = PlateDescription("files", made.plate, frame_range=(first, last))
        with Shot.create(Path(name) / "parts", description, settings) as shot:
            shot.add_key(first, made.key)
            shot.propagate()
            for frame in (last, first + 1):
                shot.matte(frame)  # its plate frame is read, and stays
            report["finish"], finished = milliseconds(lambda: shot.matte(last), repeats)
            report["finish beside a key"], _ = milliseconds(lambda: shot.matte(first + 1), repeats)
            out = Path(name) / "matte.exr"
            report["encode"], _ = milliseconds(
                lambda: write_matte(out, finished.mattes, finished.plate_frame), repeats
            )
            plate = Plate.open(made.plate)
            geometry = working_geometry(plate.canvas, plate.pixel_aspect, settings.working_size)
            picture = torch.rand(3, geometry.height, geometry.width)
            probabilities = torch.rand(1, geometry.height, geometry.width).round_()
            network = network_of(settings)
            query, entry = network.encode_query(picture), network.encode_memory(picture, probabilities)
            cache = FeatureCache(settings.ram_budget, Path(name) / "memory", settings.disk_budget)
            count = iter(range(1000))

            def keep(*, on_disk: bool = False) -> tuple[str, ProbabilityArray]:
                address = f"{next(count):064x}"
                cache.put(f"query {address}", as_halves(query.state()), on_disk=on_disk)
                cache.put(f"entry {address}", as_halves(entry.state()), on_disk=False)
                return address, quantise(probabilities.numpy())

            report["keep"], _ = milliseconds(keep, repeats)
            both, _ = milliseconds(lambda: shot.store.put_probabilities(*keep(on_disk=True)), repeats)
            report["store"] = max(0.0, both - report["keep"])
    return report


class Stopwatch:
    """Seconds by the clock, and of the processor in all threads, since it was made."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._clock, time.process_time() - self._processor


def network_alone(made: DemoPlate, settings: Settings) -> tuple[float, float]:
    """Seconds of the network on the plate's working pictures, from its first frame to its last."""
    plate = Plate.open(made.plate)
    config = load_config()
    transform = ColourTransform(config, find_input_space(plate.read(plate.frames[0]), config).name)
    geometry = working_geometry(plate.canvas, plate.pixel_aspect, settings.working_size)
    loader = FrameLoader(plate, transform, geometry)
    pictures = [torch.from_numpy(loader.load(frame).picture).float() for frame in plate.frames]
    loader.close()
    window = plate.canvas
    masks = read_mask(made.key, MaskPlace(window, plate.display_window, window))
    (mask,) = masks.objects.values()
    key = torch.from_numpy(to_working(mask, window, geometry))[None]
    network = network_of(settings)
    rule = MemoryRule.parse(settings.memory_rule)
    network.encode_memory(pictures[0], key).keys.cpu()  # warm, and waited for
    watch = Stopwatch()
    entry = network.encode_memory(pictures[0], key)
    bank = network.new_bank(rule, entry, capacity=settings.memory_cap)
    bank.write(0, entry)
    for step, picture in enumerate(pictures[1:], start=1):
        probabilities = network.segment(network.encode_query(picture), bank)[1:]
        probabilities.cpu()  # as the store wants them; a card is waited for
        bank.write(step, network.encode_memory(picture, probabilities))
    return watch.read()


def network_of(settings: Settings) -> FastNetwork:
    """The network of some settings, on their device."""
    return ready_network(settings.weights, pick_device(settings.device), precision_of(settings))


class ToyNetwork:
    """Costs nothing: the matte of every frame is that of the key."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self._probabilities = torch.zeros(1, 1, 1)

    def encode_query(self, picture: Tensor) -> Query:
        nothing = torch.zeros(1, 1, 1, 1)
        return Query(PreparedQuery(*[nothing] * 4), *picture.shape[-2:])

    def encode_memory(self, picture: Tensor, probabilities: Tensor) -> MemoryEntry:
        self._probabilities = probabilities.clone()
        objects = len(probabilities)
        nothing = torch.zeros(objects, 1, 1)
        return MemoryEntry(nothing, nothing.clone(), torch.zeros(objects, dtype=torch.int64))

    def new_bank(self, rule: MemoryRule, like: MemoryEntry, *, capacity: int, permanent: int) -> MemoryBank:
        return MemoryBank(rule, like, capacity=capacity, permanent=permanent)

    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]:
        own = self._probabilities
        return lambda: own


def whole(made: DemoPlate, settings: Settings, toy: ToyNetwork | None = None) -> tuple[float, float]:
    """Seconds of a propagation from a cold shot to mattes on disk."""
    network = None if toy is None else lambda settings, device: toy
    with tempfile.TemporaryDirectory() as name:
        description = PlateDescription("files", made.plate)
        with Shot.create(Path(name) / "whole", description, settings, network=network) as shot:
            shot.add_key(made.settings.first_frame, made.key)
            writer = MatteWriter(str(Path(name) / "mattes" / "matte.####.exr"), shot.plate)
            watch = Stopwatch()
            shot.propagate(writer=writer)
            return watch.read()


def correction(made: DemoPlate, settings: Settings, count: int) -> dict[str, float]:
    """Seconds of a first pass with some keys, evenly spread, and from one more mask for the middle one to the
    last new matte."""
    frames = list(made.frames)
    keys = [frames[(number + 1) * len(frames) // (count + 1)] for number in range(count)]
    middle = keys[count // 2]
    with tempfile.TemporaryDirectory() as name:
        description = PlateDescription("files", made.plate)
        with Shot.create(Path(name) / "shot", description, settings) as shot:
            for frame in keys:
                shot.add_key(frame, made.truth.replace("####", f"{frame:04d}"))
            mattes, events = str(Path(name) / "mattes" / "matte.####.exr"), list[Event]()
            watch = Stopwatch()
            through = shot.propagate(writer=MatteWriter(mattes, shot.plate)).computed
            first = watch.read()
            mask = read_matte(made.truth.replace("####", f"{middle:04d}")).channels["A"]
            writer = MatteWriter(mattes, shot.plate)
            watch = Stopwatch()
            shot.add_key(middle, {shot.objects[0]: (mask > 0.9).astype("f4")})
            again_through = shot.propagate(writer=writer, on_event=events.append).computed
            again = watch.read()
    (plan,) = (event.plan for event in events if isinstance(event, PlanMade))
    report = {
        "first pass by the clock, s": first[0],
        "first pass of the processor, s": first[1],
        "frames through the network": float(through),
        "correction by the clock, s": again[0],
        "correction of the processor, s": again[1],
        "stale frames": float(sum(one.state is State.STALE for one in plan.frames)),
        "mattes written again": float(sum(one.written for one in writer.written)),
        "frames through the network again": float(again_through),
        "correction over first pass by the clock": again[0] / first[0],
        "correction over first pass of the processor": again[1] / first[1],
    }
    return {f"{count} keys: {name}": value for name, value in report.items()}


def forecast(report: dict[str, float], cores: int, card: float = CARD_SECONDS) -> dict[str, float]:
    """Frames a second of a machine with so many processors, by the parts.

    Args:
        card: seconds of the network on a card.
    """
    all_parts = sum(report[f"{part}, ms"] for part in (*BESIDE, "keep", "store")) / 1e3
    keep, store = report["keep, ms"] / 1e3, max(report["store, ms"], 1e-3) / 1e3
    network = report["network alone of the processor, ms a frame"] / 1e3
    here = report["network alone by the clock, ms a frame"] / 1e3
    storers = Workers(cores, cores).storers
    return {
        f"{cores} cores, a network that costs nothing": min(cores / all_parts, storers / store, 1 / keep),
        f"{cores} cores, the network as here": min(
            cores / (all_parts + network), storers / store, 1 / (here + keep)
        ),
        f"{cores} cores, the network on a card": min(cores / all_parts, storers / (keep + store), 1 / card),
    }


def toy_on_cores(given: argparse.Namespace) -> dict[str, float]:
    """Frames a second with the toy on one core and on two, each in a process of its own, in turn."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for count in found:
            command = [sys.executable, __file__, "--toy-child", str(count), "--plate", str(given.plate)]
            command += ["--size", given.size, "--frames", str(given.frames)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[count].append(float(done.stdout.split()[-1]))
    one, two = (max(found[count]) for count in (1, 2))
    return {"toy on one core, frames/s": one, "toy on two cores, frames/s": two, "two over one": two / one}


def toy_child(made: DemoPlate, settings: Settings, count: int) -> None:
    """Prints the frames a second on some cores."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:count]))
    torch.set_num_threads(1)
    assert processors() == count
    print(made.settings.frame_count / whole(made, settings, ToyNetwork())[0])


def make_plate(given: argparse.Namespace, folder: Path) -> DemoPlate:
    """The plate in a folder; built where it is not there."""
    width, height = (int(side) for side in given.size.split("x"))
    wanted = PlateSettings(
        frame_count=given.frames, width=width, height=height, overscan_x=0, overscan_y=0, shutter_samples=4
    )
    made = DemoPlate(
        str(folder / "plate" / "plate.####.exr"),
        str(folder / "truth" / "truth.####.exr"),
        folder / "keys" / f"cup.{wanted.first_frame}.exr",
        wanted,
    )
    return made if made.key.exists() else build_plate(folder, wanted)


def measure(made: DemoPlate, settings: Settings, given: argparse.Namespace) -> dict[str, float]:
    """Parts, the whole, and the forecast."""
    parts = {**reading(made, settings, given.repeats), **finishing(made, settings, given.repeats)}
    rounds = [(network_alone(made, settings), whole(made, settings)) for _ in range(given.rounds)]
    frames = given.frames - 1  # the key is no frame of the network's
    report = {f"{part}, ms": value for part, value in parts.items()}
    for index, clock in enumerate(("by the clock", "of the processor")):
        alone, together = (min(one[part][index] for one in rounds) for part in (0, 1))
        report[f"network alone {clock}, ms a frame"] = 1e3 * alone / frames
        report[f"propagation {clock}, ms a frame"] = 1e3 * together / frames
    accounted = report["network alone of the processor, ms a frame"]
    accounted += sum(report[f"{part}, ms"] for part in (*BESIDE, "keep", "store"))
    report["in no part, ms a frame"] = report["propagation of the processor, ms a frame"] - accounted
    here = report["network alone by the clock, ms a frame"] / 1e3
    card = here if pick_device(settings.device).startswith("cuda") else CARD_SECONDS
    for name, value in forecast(report, LARGE_MACHINE, card).items():
        report[f"{name}, frames/s"] = value
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="2048x1080", help="of the plate")
    parser.add_argument("--frames", type=int, default=12, help="of the plate")
    parser.add_argument("--rounds", type=int, default=2, help="propagation and network in turn")
    parser.add_argument("--repeats", type=int, default=7, help="of each part")
    parser.add_argument("--precision", default="float32", help="of the network and the edge refiner")
    parser.add_argument("--device", default="cpu", help="of both")
    parser.add_argument("--toy", action="store_true", help="one core against two, without a network")
    parser.add_argument("--toy-child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--correction", action="store_true", help="the middle key is replaced")
    parser.add_argument("--keys", type=int, nargs="+", default=CORRECTED, help="how many, for --correction")
    parser.add_argument("--working-size", type=int, default=Settings().working_size, help="of the network")
    parser.add_argument("--plate", type=Path, help="a folder that keeps the plate between runs")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args(arguments)


def print_report(report: dict[str, float]) -> None:
    """A line for each figure."""
    for name, value in report.items():
        print(f"{name:60} {value:9.3g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures; `--json` writes them too."""
    given = parse(arguments)
    settings = Settings(precision=given.precision, device=given.device, working_size=given.working_size)
    with tempfile.TemporaryDirectory() as temporary:
        given.plate = given.plate or Path(temporary)
        made = make_plate(given, given.plate)
        if given.toy_child:
            toy_child(made, settings, given.toy_child)
            return
        if given.toy:
            report = toy_on_cores(given)
        else:
            report = measure(made, settings, given) if not given.correction else {}
            for count in given.keys if given.correction else ():
                report |= correction(made, settings, count)
    print(f"{given.size} ACEScg, zip, half; stm-lite {given.precision}, {processors()} processors")
    print_report(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
