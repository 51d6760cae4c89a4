"""What an execution uses: the store, the caches, the plate, the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.inference.fast_network import Query
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from stm_plugin.images.working_picture import WorkingGeometry
from stm_plugin.propagation.feature_cache import FeatureCache
from stm_plugin.propagation.frame_loader import FrameLoader
from stm_plugin.propagation.resident_limit import ResidentLimit
from stm_plugin.store.store import ShotStore


class Network(Protocol):
    """The interface of a network (`model.inference.fast_network.FastNetwork`)."""

    @property
    def device(self) -> torch.device: ...

    def encode_query(self, picture: Tensor) -> Query: ...

    def encode_memory(self, picture: Tensor, probabilities: Tensor) -> MemoryEntry: ...

    def new_bank(
        self, rule: MemoryRule, like: MemoryEntry, *, capacity: int, permanent: int
    ) -> MemoryBank: ...

    def begin_segment(self, query: Query, bank: MemoryBank) -> Callable[[], Tensor]: ...


class PlateMovedOn(Exception):
    """A frame's content differs from the one that the plan was made for."""

    def __init__(self, frame: int) -> None:
        self.frame = frame
        super().__init__(f"the plate changed on {frame}")


@dataclass(frozen=True)
class PropagationContext:
    """Everything that an execution uses.

    Attributes:
        network: returns the network, which is loaded when it is first needed.
        features_base: what the features of a frame depend on besides its pixels.
        weights: their name in the settings, for error texts.
        resident_limit: keeps the run's memory at its forecast; None where none was made.
        turns: passes that are computed side by side.
    """

    store: ShotStore
    cache: FeatureCache
    loader: FrameLoader
    network: Callable[[], Network]
    geometry: WorkingGeometry
    rule: MemoryRule
    memory_cap: int
    features_base: Mapping[str, str]
    weights: str = ""
    resident_limit: ResidentLimit | None = None
    turns: int = 1

    def hold_memory(self) -> None:
        """Return freed memory to the system if the run is near its forecast. To be called after each frame's
        work."""
        if self.resident_limit is not None:
            self.resident_limit.hold()
