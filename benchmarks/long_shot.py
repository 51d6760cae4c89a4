"""Level cost on a long shot: time and memory of every frame of a propagation past the memory cap.

    python benchmarks/long_shot.py CLIP MASK                       # 1000 frames at a small working size
    python benchmarks/long_shot.py CLIP MASK --size 480 --out DIR  # as an artist runs it

CLIP is a folder of pictures, played back and forth until there are enough; MASK is the mask of its first
picture. The whole engine runs: plate files, shot store, network, finishing, matte files. Prints the time
of the last hundred frames over that of frames 100 to 200 (to reach: 1.1), and the growth of memory from the
frame on which the memory is full and the feature cache has its size (to reach: none). With --out: the figures
of each frame as CSV, and the curves as a picture.
"""

from __future__ import annotations

import argparse
import csv
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from stm_plugin.propagation.events import Event, FrameComputed
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription

FIRST = 1001
PICTURES = (".jpg", ".jpeg", ".png", ".exr", ".tif", ".dpx")
FEATURE_CACHE = 64 << 20
"""Bytes at a working size of 480: so few that the cache is full long before the memory is."""

PERIOD = 100
"""Frames over which sizes and times are compared."""


@dataclass(frozen=True)
class Sample:
    """One frame: seconds by the clock and of the processor, and the resident size after it."""

    frame: int
    seconds: float
    processor_seconds: float
    megabytes: float


class Samples:
    """Room for all samples from the beginning: what is measured must not grow by being measured."""

    def __init__(self, most: int) -> None:
        self._values = np.zeros((most, 4))
        self._count = 0

    def add(self, sample: Sample) -> None:
        self._values[self._count] = astuple(sample)
        self._count += 1

    def all(self) -> list[Sample]:
        rows = self._values[: self._count].tolist()
        return [Sample(int(frame), seconds, processor, size) for frame, seconds, processor, size in rows]


def there_and_back(pictures: Sequence[Path], count: int) -> list[Path]:
    """`count` pictures: the clip, backwards, forwards ..., no picture twice in a row."""
    cycle = [*pictures, *pictures[-2:0:-1]]
    return [cycle[number % len(cycle)] for number in range(count)]


def run(clip: Path, mask: Path, frames: int, settings: Settings) -> list[Sample]:
    """Propagate one key through the whole plate."""
    pictures = sorted(path for path in clip.iterdir() if path.suffix.lower() in PICTURES)
    if len(pictures) < 2:
        raise SystemExit(f"{clip}: there are no pictures here")
    samples = Samples(frames)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plate").mkdir()
        for number, picture in enumerate(there_and_back(pictures, frames)):
            link = folder / "plate" / f"plate.{FIRST + number:06d}{picture.suffix.lower()}"
            link.symlink_to(picture.resolve())
        plate = f"{folder}/plate/plate.######{pictures[0].suffix.lower()}"
        with Shot.create(folder / "long", PlateDescription("files", plate), settings) as shot:
            shot.add_key(FIRST, mask)
            clock, processor = time.perf_counter(), time.process_time()

            def note(event: Event) -> None:
                nonlocal clock, processor
                if isinstance(event, FrameComputed):
                    now, used = time.perf_counter(), time.process_time()
                    samples.add(Sample(event.frame, now - clock, used - processor, resident_megabytes()))
                    clock, processor = now, used

            shot.propagate(on_event=note, writer=MatteWriter(f"{folder}/mattes/matte.######.exr", shot.plate))
    return samples.all()


def resident_megabytes() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def growth(samples: Sequence[Sample], full: int) -> tuple[float, float]:
    """MB from the largest of the first hundred frames after `full` to the largest of the last hundred, and by
    a fit per 100 frames. The engine gives freed memory back every hundred frames, so the size swings."""
    sizes = [one.megabytes for one in samples[full:]]
    slope = float(np.polyfit(np.arange(len(sizes)), sizes, 1)[0]) * 100
    return max(sizes[-PERIOD:]) - max(sizes[:PERIOD]), slope


def picture_of(samples: Sequence[Sample]) -> npt.NDArray[np.uint8]:
    """Two curves over the frames: milliseconds of the processor a frame (median of 15), and MB."""
    width, height, margin = 1000, 260, 60
    milliseconds = np.array([one.processor_seconds for one in samples]) * 1e3
    smooth = [float(np.median(milliseconds[max(0, i - 7) : i + 8])) for i in range(len(milliseconds))]
    panels = []
    for title, values in (
        ("processor, ms a frame", smooth),
        ("resident, MB", [one.megabytes for one in samples]),
    ):
        panel = np.full((height, width, 3), 255, np.uint8)
        top = 1.15 * max(values)
        x = margin + (width - 2 * margin) * np.arange(len(values)) / max(1, len(values) - 1)
        y = height - 40 - (height - 80) * np.array(values) / top
        for part in range(5):
            level = round(height - 40 - (height - 80) * part / 4)
            cv2.line(panel, (margin, level), (width - margin, level), (225, 225, 225), 1)
            label = f"{top * part / 4:.0f}"
            cv2.putText(panel, label, (8, level + 4), 0, 0.4, (90, 90, 90), 1, cv2.LINE_AA)
        points = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(panel, [points], False, (160, 80, 0), 2, cv2.LINE_AA)
        cv2.putText(panel, title, (margin, 24), 0, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
        for number in range(0, len(values), max(1, len(values) // 10)):
            place = (round(float(x[number])) - 8, height - 18)
            cv2.putText(panel, str(number), place, 0, 0.4, (90, 90, 90), 1, cv2.LINE_AA)
        panels.append(panel)
    return np.concatenate(panels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path, help="a folder of pictures")
    parser.add_argument("mask", type=Path, help="of the first picture")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, default=96, help="working size: the short side for the network")
    parser.add_argument("--cap", type=int, default=Settings.memory_cap, help="stored frames besides the key")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--weights", default=Settings.weights)
    parser.add_argument("--out", type=Path, help="a folder for long_shot.csv and long_shot.png")
    given = parser.parse_args(arguments)
    cache = round(FEATURE_CACHE * (given.size / 480) ** 2)
    settings = Settings(
        working_size=given.size,
        memory_cap=given.cap,
        precision=given.precision,
        weights=given.weights,
        ram_budget=cache,
        disk_budget=2 * cache,
    )
    samples = run(given.clip, given.mask, given.frames, settings)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        with (given.out / "long_shot.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["frame", "seconds", "processor_seconds", "resident_megabytes"])
            for one in samples:
                row = (f"{one.seconds:.4f}", f"{one.processor_seconds:.4f}", f"{one.megabytes:.1f}")
                writer.writerow([one.frame, *row])
        cv2.imwrite(str(given.out / "long_shot.png"), picture_of(samples))
    what = f"{given.weights} {given.precision}, working size {given.size}, cap {given.cap}"
    print(f"{len(samples)} frames, {what}")
    for name, of in (("clock", "seconds"), ("processor", "processor_seconds")):
        times = [getattr(one, of) for one in samples]
        early, late = statistics.median(times[PERIOD : 2 * PERIOD]), statistics.median(times[-PERIOD:])
        times_in_words = f"frames 100-200 {early * 1e3:.1f} ms, last 100 {late * 1e3:.1f} ms"
        print(f"{name}: {times_in_words}: {late / early:.3f}")
    full = min(len(samples) // 2, 5 * given.cap + 100)
    more, slope = growth(samples, full)
    peak = max(one.megabytes for one in samples)
    fit = f"{slope:+.2f} MB per 100 frames"
    print(f"memory from frame {full}: {more:+.1f} MB, {fit}; largest {peak:.0f} MB")


if __name__ == "__main__":
    main()
