"""What to forget when the memory is full: the shipped policy against others, on clips with annotations.

    python benchmarks/thinning.py DATA [DATA ...] [--sequence NAME ...] --cap 4 6

DATA is a folder in DAVIS layout. Each sequence is propagated from its first mask with `every:5`; all policies
see the same frames in turn and share the query's features, so that only what they remember tells them apart.
The key and the previous frame stay for ever; of the other stored frames as many as the cap:

- all: no cap, to see what forgetting costs
- oldest: the oldest goes
- shipped: `model.network.memory`: the one whose going leaves the smallest gap, so that they stay evenly
  spread from the key to now
- recent: the smallest gap against its distance from now: dense lately, sparse long ago
- attention: the one that the reads looked at least since it came; not known beforehand, so a run could not be
  resumed anywhere to the same bytes. Here to see what knowing would gain.

Prints mean J of every policy and sequence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.data.davis import VideoSequence, find_sequences
from model.evaluation.metrics import region_similarity
from model.inference.fast_network import FastNetwork, Precision, Query
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from model.network.read import Block, read_weights
from model.weights_file import load_network

INTERVAL = 5
POLICIES = ("all", "oldest", "recent", "shipped", "attention")
LOOKED_AT = 97
"""Every so manieth query position is asked what it looks at: enough for a ranking of frames."""


@dataclass
class Memory:
    """What one policy remembers: entries by step. Stands for a `MemoryBank` in `FastNetwork.segment`."""

    policy: str
    cap: int
    entries: dict[int, MemoryEntry] = field(default_factory=dict)
    looks: dict[int, float] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)

    def keys_others_and_previous(self) -> tuple[list[Block], list[Block], Block | None]:
        key, *others = [(self.entries[step].keys, self.entries[step].values) for step in sorted(self.entries)]
        return ([key], others[:-1], others[-1]) if others else ([key], [], None)

    @property
    def has_previous(self) -> bool:
        return len(self.entries) > 1

    @property
    def newest_areas(self) -> Tensor:
        return self.entries[max(self.entries)].areas

    def note_looks(self, query: Query) -> None:
        """Add how much the query looks at each stored frame."""
        key = query.features.key[0].flatten(1)[:, ::LOOKED_AT]  # (Ck, N)
        steps = sorted(self.entries)
        weights = read_weights(key, [self.entries[step].keys for step in steps])  # (K, T, P, N)
        for step, share in zip(steps, weights.sum(dim=2).mean(dim=(0, 2)).tolist(), strict=True):
            self.looks[step] = 0.9 * self.looks.get(step, share) + 0.1 * share

    def write(self, step: int, entry: MemoryEntry) -> None:
        """Remember a frame; forget what need not stay for the next one."""
        self.entries[step] = entry
        previous = step - 1
        if previous > 0 and previous % INTERVAL:
            self.entries.pop(previous, None)
        stored = sorted(one for one in self.entries if 0 < one < step + 1 and one % INTERVAL == 0)
        if self.policy == "shipped":
            keep = MemoryRule("every", INTERVAL).steps_in_memory(step + 1, self.cap)
            self.entries = {one: entry for one, entry in self.entries.items() if one in keep}
        elif self.policy != "all" and len(stored) > self.cap:
            del self.entries[self._least_missed(stored)]

    def _least_missed(self, stored: list[int]) -> int:
        """One of the stored frames, but not the newest."""
        if self.policy == "oldest":
            return stored[0]
        if self.policy == "attention":
            return min(stored[:-1], key=lambda step: self.looks.get(step, 1.0))
        bounds, now = [0, *stored], stored[-1]
        gaps = [
            (bounds[place + 2] - bounds[place]) / (now - bounds[place + 1] + 1)
            for place in range(len(stored) - 1)
        ]
        return stored[gaps.index(min(gaps))]


def small(pixels: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """With this short side."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    to = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(pixels, to, interpolation=cv2.INTER_AREA), np.float32)


def picture_of(path: Path, size: int) -> Tensor:
    """(3, h, w) in [0, 1]."""
    pixels = cv2.imread(str(path))
    assert pixels is not None
    rgb = small(pixels[..., ::-1].astype(np.float32) / np.float32(255), size)
    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())


def mask_of(path: Path, size: int) -> npt.NDArray[np.float32]:
    """(h, w): 1 on any object."""
    labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert labels is not None
    return small((labels > 0).astype(np.float32), size)


def measure(
    network: FastNetwork, sequence: VideoSequence, caps: Sequence[int], size: int
) -> dict[tuple[str, int], float]:
    """Mean J of each policy and cap over the annotated frames after the first."""
    memories = [Memory(policy, cap) for cap in caps for policy in POLICIES if policy != "all"]
    memories.append(Memory("all", 0))
    first = picture_of(sequence.pictures[sequence.frames[0]], size)
    key = torch.from_numpy(mask_of(sequence.annotations[sequence.frames[0]], size))[None]
    entry = network.encode_memory(first, key)
    for memory in memories:
        memory.entries[0] = entry
    for step, frame in enumerate(sequence.frames[1:], start=1):
        picture = picture_of(sequence.pictures[frame], size)
        query = network.encode_query(picture)
        truth = None
        if frame in sequence.annotations:
            truth = mask_of(sequence.annotations[frame], size) > 0.5
        made: dict[tuple[int, ...], tuple[Tensor, MemoryEntry]] = {}
        for memory in memories:
            held = tuple(id(memory.entries[one]) for one in sorted(memory.entries))
            if held not in made:  # until the first forgetting all policies are one
                probabilities = network.segment(query, cast(MemoryBank, memory))[1:]
                made[held] = probabilities, network.encode_memory(picture, probabilities)
            probabilities, following = made[held]
            if memory.policy == "attention":
                memory.note_looks(query)
            memory.write(step, following)
            if truth is not None:
                memory.scores.append(region_similarity(truth, (probabilities[0] > 0.5).numpy()))
    return {(memory.policy, memory.cap): statistics.mean(memory.scores) for memory in memories}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", help="folders in DAVIS layout")
    parser.add_argument("--sequence", nargs="*", default=[], help="only these, where a folder has many")
    parser.add_argument("--cap", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--size", type=int, default=240, help="short side for the network")
    parser.add_argument("--weights", default="stm-lite")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args(arguments)
    trained, _ = load_network(given.weights)
    network = FastNetwork(trained, precision=cast(Precision, given.precision))
    found: dict[str, dict[tuple[str, int], float]] = {}
    for root in given.data:
        there = {one.name for one in find_sequences(root)}
        names = [name for name in given.sequence if name in there] if len(there) > 1 else []
        for sequence in find_sequences(root, names):
            found[sequence.name] = measure(network, sequence, given.cap, given.size)
            scores = {f"{policy}:{cap}": round(j, 4) for (policy, cap), j in found[sequence.name].items()}
            print(sequence.name, scores, flush=True)
    columns = [("all", 0), *((policy, cap) for cap in given.cap for policy in POLICIES if policy != "all")]
    print(f"\nmean J over {len(found)} sequences, every:{INTERVAL}, short side {given.size}")
    for policy, cap in columns:
        mean = statistics.mean(one[policy, cap] for one in found.values())
        print(f"{policy:10} cap {cap or 'none':<5} {mean:.4f}")
    if given.json is not None:
        plain = {name: {f"{p}:{c}": j for (p, c), j in of.items()} for name, of in found.items()}
        given.json.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
