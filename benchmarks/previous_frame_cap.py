"""What it costs to bound the previous frame's share of a read (`NetworkConfig.previous_frame_cap`), and to
look whether an object shrinks by it (`shrink_guard`).

    python benchmarks/previous_frame_cap.py [--precision bfloat16] [--threads 1]

Two engines of the default weights go over the same synthetic plate, one with the paper's read and one with
half. Each frame is read by both in turn from a memory of the same size, with processor time on a CPU; printed
are the medians of the read with its decoder, and of the frames' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.network import key_masks, plate
from model.inference.fast_network import FastNetwork, Precision
from model.network.memory import MemoryRule
from model.weights_file import load_network

RULE = MemoryRule.parse("every:5")
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=45)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network, _ = load_network()
    engines = [
        FastNetwork(network, precision=given.precision, previous_frame_cap=share) for share in (1.0, 0.5)
    ]
    pictures, masks = list(plate(given.frames)), key_masks(1)
    entry = engines[0].encode_memory(pictures[0], masks)
    banks = [engine.new_bank(RULE, entry) for engine in engines]
    for bank in banks:
        bank.write(0, entry)
    seconds: list[list[float]] = []
    for step, picture in enumerate(pictures[1:], start=1):
        query = engines[0].encode_query(picture)
        seconds.append([0.0, 0.0])
        for which in (0, 1) if step % 2 else (1, 0):
            started = time.process_time()
            probabilities = engines[which].segment(query, banks[which])[1:]
            seconds[-1][which] = time.process_time() - started
            banks[which].write(step, engines[which].encode_memory(picture, probabilities))
    bounded = seconds[1:]  # the first reads the key alone
    paper, half = (1000 * statistics.median(column) for column in zip(*bounded[WARM_UP:], strict=True))
    ratio = statistics.median(after / before for before, after in bounded[WARM_UP:])
    print(f"read and decode: paper {paper:.1f} ms, half {half:.1f} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
