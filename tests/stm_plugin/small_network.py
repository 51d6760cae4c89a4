"""The real network with random weights for a tiny working size; it counts its calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from model.inference.fast_network import FastNetwork, Query
from model.network.config import network_config
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from model.network.stm import SpaceTimeMemoryNetwork
from stm_plugin.propagation.context import Network
from stm_plugin.settings import Settings

WORKING_SIZE = 32


@lru_cache(maxsize=1)
def random_network() -> FastNetwork:
    """`stm-lite` with the same random weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
    return FastNetwork(network.eval())


@dataclass
class CountingNetwork:
    """Counts calls and passes them to the real network."""

    calls: Counter[str] = field(default_factory=Counter)
    inner: FastNetwork = field(default_factory=random_network)

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def encode_query(self, picture: Tensor) -> Query:
        self.calls["query"] += 1
        return self.inner.encode_query(picture)

    def encode_memory(self, picture: Tensor, probabilities: Tensor) -> MemoryEntry:
        self.calls["memory"] += 1
        return self.inner.encode_memory(picture, probabilities)

    def new_bank(self, rule: MemoryRule, like: MemoryEntry, *, capacity: int, permanent: int) -> MemoryBank:
        return self.inner.new_bank(rule, like, capacity=capacity, permanent=permanent)

    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]:
        self.calls["read and decode"] += 1
        return self.inner.begin_segment(query, bank)

    def factory(self, settings: Settings, device: str) -> Network:
        """A function that gives a shot its network."""
        return self
