"""What a frame costs beside the network: reading, hashing, colour, finishing and writing a 2K EXR plate.

    python benchmarks/io.py                          # stm-lite, 2048x1080, ACEScg, zip, half float
    python benchmarks/io.py --precision bfloat16     # beside a faster network
    python benchmarks/io.py --size 2048x1556 --threads 1

The plate is made: photographs that scikit-image ships, composited in ACEScg with grain, zip-compressed.
Three figures are told apart. What a *part* costs is the processor time of its thread, alone. The *parts'
share* is theirs of a frame of parts and network. The *share beside the network* is all that a propagation
from a cold shot to written mattes takes more than the network alone on the same pictures, in turn: the parts,
and keeping results and features, noting frames, opening the shot. By the clock it is what an artist waits
for, where there are processors to spare that do the parts meanwhile; where another program uses them, the
share in processor time, all threads together, is the one to look at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import OpenImageIO as oiio
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.network.memory import MemoryRule
from stm_plugin.demo.plate import DemoPlate, PlateSettings, build_plate
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.mask import MaskPlace, read_mask
from stm_plugin.images.matte import write_matte
from stm_plugin.images.plate import Plate
from stm_plugin.images.working_picture import to_working, working_geometry
from stm_plugin.propagation.frame_loader import FrameLoader
from stm_plugin.propagation.networks import ready_network
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription

T = TypeVar("T")


def milliseconds(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median processor time of this thread, and the result."""
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        result = work()
        times.append((time.thread_time() - started) * 1e3)
    return statistics.median(times), result


def parts(made: DemoPlate, settings: Settings, repeats: int, report: dict[str, float]) -> None:
    """Each part on its own, on one frame."""
    plate = Plate.open(made.plate)
    frame = plate.frames[1]
    report["read, ms"], plate_frame = milliseconds(lambda: plate.read(frame), repeats)
    report["content hash, ms"], _ = milliseconds(plate_frame.content_hash, repeats)
    config = load_config()
    transform = ColourTransform(config, find_input_space(plate_frame, config).name)
    geometry = working_geometry(plate.canvas, plate.pixel_aspect, settings.working_size)

    def picture() -> Any:
        loader = FrameLoader(plate, transform, geometry)
        loaded = replace(loader.load(frame))  # nothing derived yet
        loader.close()
        started = time.thread_time()
        _ = loaded.picture
        return (time.thread_time() - started) * 1e3

    report["colour and working picture, ms"] = statistics.median(picture() for _ in range(repeats))
    with tempfile.TemporaryDirectory() as name:
        description = PlateDescription("files", made.plate, frame_range=(plate.frames[0], frame))
        with Shot.create(Path(name) / "parts", description, settings) as shot:
            shot.add_key(plate.frames[0], made.key)
            shot.propagate()
            shot.matte(frame)
            both, finished = milliseconds(lambda: shot.matte(frame), repeats)
        report["fusing and finishing, ms"] = both
        out = Path(name) / "matte.exr"
        report["writing the matte, ms"], _ = milliseconds(
            lambda: write_matte(out, finished.mattes, finished.plate_frame), repeats
        )
    report["parts together, ms"] = sum(value for key, value in report.items() if key.endswith("ms"))


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
    network = ready_network(settings.weights, "cpu", settings.precision)
    rule = MemoryRule.parse(settings.memory_rule)
    network.encode_memory(pictures[0], key)  # warm
    watch = Stopwatch()
    entry = network.encode_memory(pictures[0], key)
    bank = network.new_bank(rule, entry, capacity=settings.memory_cap)
    bank.write(0, entry)
    for step, picture in enumerate(pictures[1:], start=1):
        probabilities = network.segment(network.encode_query(picture), bank)[1:]
        bank.write(step, network.encode_memory(picture, probabilities))
    return watch.read()


def whole(made: DemoPlate, settings: Settings) -> tuple[float, float]:
    """Seconds of a propagation from a cold shot to mattes on disk."""
    with tempfile.TemporaryDirectory() as name:
        description = PlateDescription("files", made.plate)
        with Shot.create(Path(name) / "whole", description, settings) as shot:
            shot.add_key(made.settings.first_frame, made.key)
            writer = MatteWriter(str(Path(name) / "mattes" / "matte.####.exr"), shot.plate)
            watch = Stopwatch()
            shot.propagate(writer=writer)
            return watch.read()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures; `--json` writes them too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="2048x1080", help="of the plate")
    parser.add_argument("--frames", type=int, default=12, help="of the plate")
    parser.add_argument("--rounds", type=int, default=3, help="propagation and network in turn")
    parser.add_argument("--repeats", type=int, default=7, help="of each part")
    parser.add_argument("--threads", type=int, default=0, help="of every library; 0: its own choice")
    parser.add_argument("--precision", default="float32", help="of the network")
    parser.add_argument("--plate", type=Path, help="a folder that keeps the plate between runs")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
        cv2.setNumThreads(given.threads)
        oiio.attribute("threads", given.threads)
        oiio.attribute("exr_threads", given.threads)
    width, height = (int(side) for side in given.size.split("x"))
    wanted = PlateSettings(
        frame_count=given.frames, width=width, height=height, overscan_x=0, overscan_y=0, shutter_samples=4
    )
    settings = Settings(precision=given.precision, disk_budget=0)
    report: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.plate or Path(temporary)
        made = DemoPlate(
            str(folder / "plate" / "plate.####.exr"),
            str(folder / "truth" / "truth.####.exr"),
            folder / "keys" / f"cup.{wanted.first_frame}.exr",
            wanted,
        )
        if not made.key.exists():
            made = build_plate(folder, wanted)
        parts(made, settings, given.repeats, report)
        rounds = [(network_alone(made, settings), whole(made, settings)) for _ in range(given.rounds)]
        for index, clock in enumerate(("by the clock", "of the processor")):
            alone, together = (min(one[part][index] for one in rounds) for part in (0, 1))
            report[f"network alone {clock}, ms a frame"] = 1e3 * alone / given.frames
            report[f"propagation {clock}, ms a frame"] = 1e3 * together / given.frames
            report[f"share beside the network {clock}"] = statistics.median(
                1 - a[index] / b[index] for a, b in rounds
            )
        beside = report["parts together, ms"]
        report["parts' share of the processor"] = beside / (
            beside + report["network alone of the processor, ms a frame"]
        )
    threads = torch.get_num_threads()
    print(f"{width}x{height} ACEScg, zip, half; stm-lite {given.precision}, {threads} threads")
    for name, value in report.items():
        print(f"{name:48} {value:9.3g}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
