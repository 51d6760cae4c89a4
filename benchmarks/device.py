"""Times one device: the network in every precision, and the whole way from the plate's file to the matte's.

    python benchmarks/device.py                                # the best device there is
    python benchmarks/device.py --device cuda --frames 45
    python benchmarks/device.py --networks stm-lite --sizes 480x854 --plates

The whole way is that of `benchmarks/io.py`, a list for each plate: its parts, the propagation, and the
forecast for 16 cores. On a CUDA device colour, narrowing, network, edge refiner and the filter along the
plate's edges run on the device; decoding, hashes, the rest of finishing, storing and encoding do not.

The network gets a key, then frames with their growing memory. Per row: the median time of a frame (query,
read, decoder and memory encoder), the device's peak memory, and how far the probabilities lie from those of
fp32 on the same device. The plate is synthetic and `stm-r50` has random weights; speed does not depend on
what is learnt or seen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import io as pipeline
from benchmarks.network import key_masks, plate
from model.inference.fast_network import FastNetwork, Precision
from model.network.config import NETWORKS
from model.network.memory import MemoryRule
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import load_network
from stm_plugin.propagation.memory_forecast import pick_device
from stm_plugin.propagation.networks import exact_results
from tests.reference.samples import lively_network

RULE = MemoryRule.parse("every:5")
WARM_UP = 2


def network_of(name: str) -> SpaceTimeMemoryNetwork:
    return load_network(name)[0] if name == "stm-lite" else lively_network(name)


def finish_of(device: str) -> Callable[[], None]:
    """What waits until a device has computed everything."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(torch.device(device).type, lambda: None)


def run(engine: FastNetwork, pictures: list[Tensor], mask: Tensor) -> tuple[float, Tensor]:
    """Median seconds of a frame, and the probabilities (frames - 1, 1, H, W) on the CPU."""
    finish = finish_of(str(engine.device))
    entry = engine.encode_memory(pictures[0], mask)
    bank = engine.new_bank(RULE, entry)
    bank.write(0, entry)
    seconds, results = [], []
    for step, picture in enumerate(pictures[1:], start=1):
        finish()
        started = time.perf_counter()
        probabilities = engine.segment(engine.encode_query(picture), bank)[1:]
        bank.write(step, engine.encode_memory(picture, probabilities))
        finish()
        seconds.append(time.perf_counter() - started)
        results.append(probabilities.float().cpu())
    return statistics.median(seconds[WARM_UP:]), torch.stack(results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=45)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS)[::-1])
    parser.add_argument("--sizes", nargs="+", default=["480x854", "1080x1920"], metavar="HEIGHTxWIDTH")
    parser.add_argument("--plates", nargs="*", default=["2048x1080", "4096x2160"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--plate-frames", type=int, default=24)
    given = parser.parse_args()
    device = pick_device(given.device)
    exact_results(device)
    for name in given.networks:
        network = network_of(name)
        for size in given.sizes:
            shape = tuple(int(side) for side in size.split("x"))
            pictures = [F.interpolate(p[None].to(device), shape)[0] for p in plate(given.frames)]
            mask = F.interpolate(key_masks(1)[None], shape)[0].to(device)
            reference = None
            for precision in get_args(Precision):
                if device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                seconds, results = run(
                    FastNetwork(network, device=device, precision=precision), pictures, mask
                )
                reference = results if reference is None else reference
                peak = f"{torch.cuda.max_memory_allocated() >> 20} MiB" if device.startswith("cuda") else "-"
                off = float((results - reference).abs().mean())
                print(
                    f"{name}  {size}  {precision}  {1000 * seconds:.1f} ms  {peak}  mean difference {off:.1e}"
                )
    for size in given.plates:
        whole = ["--size", size, "--frames", str(given.plate_frames), "--rounds", "1"]
        pipeline.main([*whole, "--device", device, "--precision", "auto"])


if __name__ == "__main__":
    main()
