"""The results of a plan: addresses, features, the results of passes, fused frames."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from model.inference.fast_network import QUERY_LAYOUT, Query
from model.network.memory import MemoryEntry
from stm_plugin.address import address_of
from stm_plugin.errors import StoreError, concerning
from stm_plugin.images.working_picture import to_working
from stm_plugin.planning.plan import Result, chain, frame_address, pass_root, position_in
from stm_plugin.planning.quality import Quality, agreement
from stm_plugin.planning.values import Candidate, Direction, Facts, Pass, PassName, Plan, Source
from stm_plugin.propagation.context import PlateMovedOn, PropagationContext
from stm_plugin.propagation.feature_cache import as_halves, from_halves
from stm_plugin.propagation.fusion import (
    Arrival,
    PassAtFrame,
    area_of,
    arrival_at,
    fuse,
    known_alike,
    mean_confidence,
)
from stm_plugin.propagation.storing import Storing
from stm_plugin.store.store import ProbabilityArray, dequantise, quantise
from stm_plugin.windows import FloatArray, on_window

_KEY_MASKS_HELD = 16
"""Masks of keys at working size, under a megabyte each."""


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame before finishing.

    Attributes:
        masks: objects whose mask is given here: (H, W) over the canvas, unchanged.
        probabilities: the other objects: (h, w) at working size, in [0, 1].
        agreement: of the two passes with the greatest weights, of the object with the least agreement; None
            without. A difference counts as far as the keys of both show the object.
        shares: the part of each of an object's passes (`fusion.Fusion`), in the order of its candidates.
    """

    frame: int
    address: str
    masks: Mapping[str, FloatArray]
    probabilities: Mapping[str, FloatArray]
    agreement: float | None = None
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """Confidence of the least certain object; 1 on a key and where no object is."""
        return min((mean_confidence(one) for one in self.probabilities.values()), default=1.0)

    @property
    def quality(self) -> Quality:
        area = sum(area_of(one) for one in self.probabilities.values())
        return Quality(self.frame, self.address, self.confidence, self.agreement, area)


class Material:
    """The inputs of a network: pictures, features and the masks of keys, computed where they are not cached.

    Content hashes are added as the plate is read. One thread may compute; others may read.
    """

    def __init__(self, context: PropagationContext, facts: Facts) -> None:
        self._context = context
        self._expected = dict(facts.plate)
        self.facts = replace(facts, plate=dict(facts.plate))
        self._keys = {key.frame: key for key in facts.keys}
        self._key_masks: OrderedDict[str, ProbabilityArray] = OrderedDict()
        self._mutex = threading.RLock()

    def plate_hash(self, frame: int) -> str:
        """The content hash of a plate frame; the frame is read if the hash is unknown.

        Raises:
            PlateMovedOn: the frame changed since the plan was made.
        """
        known = self.facts.plate.get(frame)
        if known is not None:
            return known
        return self._loaded_hash(frame)

    def has_query(self, frame: int) -> bool:
        """Whether the features of a frame are cached, so that its pixels are not needed."""
        hash_ = self.facts.plate.get(frame)
        return hash_ is not None and self._context.cache.has(self._feature_key(QUERY_LAYOUT, hash_))

    def query(self, frame: int) -> Query:
        """The query features of a frame, from the cache or the network."""
        geometry, network = self._context.geometry, self._context.network()
        key = self._feature_key(QUERY_LAYOUT, self.plate_hash(frame))
        state = self._context.cache.get(key)
        if state is None:
            state = as_halves(network.encode_query(self.picture(frame)).state())
            self._context.cache.put(key, state)
        return Query.from_state(from_halves(state, network.device), geometry.height, geometry.width)

    def picture(self, frame: int) -> Tensor:
        """The working picture of a frame: (3, h, w) float32 in [0, 1]."""
        key = self._feature_key("picture", self.plate_hash(frame))
        state = self._context.cache.get(key)
        if state is None:
            self._loaded_hash(frame)
            state = {"picture": torch.from_numpy(self._context.loader.load(frame).picture)}
            self._context.cache.put(key, state)
        return state["picture"].float()

    def cached_picture(self, frame: int) -> FloatArray | None:
        """The working picture (3, h, w) of a frame as the plan has it, where it is cached; the plate is not
        read."""
        hash_ = self.facts.plate.get(frame)
        state = None if hash_ is None else self._context.cache.get(self._feature_key("picture", hash_))
        return None if state is None else np.asarray(state["picture"].float().numpy())

    def mask(self, key: int, name: str) -> FloatArray:
        """An object's mask on a key, (H, W) over the canvas. MaskError where it is gone or damaged."""
        mask, window = self._context.store.mask_of_key(key, self._keys[key].masks[name].hash)
        return on_window(mask, window, self._context.geometry.canvas)

    def key_probabilities(self, key: int, objects: tuple[str, ...]) -> FloatArray:
        """The masks of a key at working size: (K, h, w), rounded as stored probabilities are."""
        return np.stack([dequantise(self._key_mask(key, name)) for name in objects])

    def _key_mask(self, key: int, name: str) -> ProbabilityArray:
        """One mask of a key at working size (h, w), rounded; held for the frames beside the key."""
        hash_ = self._keys[key].masks[name].hash
        with self._mutex:
            found = self._key_masks.get(hash_)
        if found is None:
            geometry = self._context.geometry
            found = quantise(to_working(self.mask(key, name), geometry.canvas, geometry))
            with self._mutex:
                self._key_masks[hash_] = found
                while len(self._key_masks) > _KEY_MASKS_HELD:
                    self._key_masks.popitem(last=False)
        return found

    def _feature_key(self, kind: str, *ingredients: str) -> str:
        return address_of(kind, dict(self._context.features_base), *ingredients)

    def _loaded_hash(self, frame: int) -> str:
        hash_ = self._context.loader.load(frame).hash
        with self._mutex:
            if self._expected.get(frame, hash_) != hash_:
                raise PlateMovedOn(frame)
            self._expected[frame] = hash_
            self.facts = replace(self.facts, plate=self._expected)
        return hash_


class Results(Material):
    """The stored results of a plan: addresses, the results of passes, memory entries, fused frames."""

    def __init__(self, context: PropagationContext, plan: Plan) -> None:
        super().__init__(context, plan.facts)
        self.plan = plan
        self._passes = {one.name: one for one in plan.passes}
        self._chains: dict[PassName, list[str]] = {}
        self._arrivals: dict[tuple[PassName, int, str], Arrival] = {}
        self._areas: dict[tuple[int, str], float] = {}
        self._recent: OrderedDict[str, ProbabilityArray] = OrderedDict()
        self._storing: Storing | None = None
        self._unstored: dict[str, Future[None]] = {}

    # ---- passes ----

    def pass_address(self, passed: Pass, position: int) -> str:
        """The address of a pass on its frame at `position`; -1 is the key."""
        with self._mutex:
            addresses = self._chains.setdefault(passed.name, [])
            if not addresses:
                self.plate_hash(passed.key)
                root = pass_root(self.facts, passed.key, passed.direction)
                assert root is not None
                addresses.append(root)
            while len(addresses) < position + 2:
                following = chain(addresses[-1], self.plate_hash(passed.frames[len(addresses) - 1]))
                assert following is not None
                addresses.append(following)
            return addresses[position + 1]

    @contextmanager
    def stored_by(self, storing: Storing) -> Iterator[None]:
        """Store new results and features in its threads. At the end all are stored, or the first error of it
        is raised."""
        self._storing = storing
        try:
            with self._context.cache.written_by(storing):
                yield
                self._wait_for(*self._being_stored())
        finally:
            self._storing = None

    def put(self, address: str, frame: int, stored: ProbabilityArray) -> None:
        """Keep the result of a new frame: in the store, and here, so that memory and matte need not read it
        from disk.

        Raises:
            StoreError: of this result, or of an earlier one whose storing has failed meanwhile.
        """

        def store() -> None:
            with concerning(frame):
                self._context.cache.make_room_for(
                    lambda: self._context.store.put_probabilities(address, stored)
                )

        storing = self._storing
        with self._mutex:
            self._recent[address] = stored
            # that which is remembered next, those of the frames that wait for their matte or are at it, and
            # those that are not on disk
            waiting = self._context.loader.workers.frames_waiting + (storing.most if storing else 0)
            while len(self._recent) > 1 + self._context.turns + waiting:
                self._recent.popitem(last=False)
        if storing is None:
            store()
            return
        self._wait_for(*[one for one, future in self._being_stored().items() if future.done()])
        future = storing.submit(store)
        with self._mutex:
            self._unstored[address] = future

    def _being_stored(self) -> dict[str, Future[None]]:
        """A copy: finishing takes entries away in other threads."""
        with self._mutex:
            return dict(self._unstored)

    def _wait_for(self, *addresses: str) -> None:
        """Wait until results are stored. Raises the error of storing them."""
        for address in addresses:
            with self._mutex:
                future = self._unstored.get(address)
            if future is not None:
                future.result()
                with self._mutex:
                    self._unstored.pop(address, None)

    def pass_result(self, passed: Pass, position: int) -> FloatArray:
        """The result of a pass on its frame at `position`: (K, h, w)."""
        address = self.pass_address(passed, position)
        with self._mutex:
            stored = self._recent.get(address)
        if stored is None:
            stored = self._context.store.probabilities(address)
        if stored is None:
            raise StoreError(
                "A result was deleted during the run.",
                frame=passed.frames[position],
                path=self._context.store.folder,
                hint="Is another program deleting files? Run again: it will be computed again.",
            )
        return dequantise(stored)

    # ---- frames ----

    def frame_result(self, frame: int) -> FrameResult:
        """One fused frame. All results that it needs must be in the store."""
        masks: dict[str, FloatArray] = {}
        fused: dict[str, FloatArray] = {}
        shares: dict[str, tuple[float, ...]] = {}
        agreed: list[float] = []
        for name, source in self.plan.by_frame[frame].sources.items():
            if source.key is not None:
                masks[name] = self.mask(source.key, name)
                continue
            passes = [self._pass_at(source, one, frame, name) for one in source.candidates]
            if not passes:
                geometry = self._context.geometry
                fused[name] = np.zeros((geometry.height, geometry.width), np.float32)
                continue
            fusion = fuse(passes)
            fused[name], shares[name] = fusion.probability, fusion.shares
            if len(passes) > 1:
                first, second = (passes[place] for place in fusion.most_trusted())
                counts = known_alike(first, second)
                agreed.append(agreement(first.probability, second.probability, counts))
        return FrameResult(frame, self.address(frame), masks, fused, min(agreed, default=None), shares)

    def is_computed(self, result: Result) -> bool:
        """Whether the store has a result of the network; waits for one that is being stored."""
        address = self._address_at(result)
        self._wait_for(address)
        return self._context.store.has(address)

    def wait_until_stored(self, frame: int) -> None:
        """Wait until all results that a frame needs and that were computed are stored. Raises the error of
        storing them."""
        for source in self.plan.by_frame[frame].sources.values():
            self._wait_for(*[self._address_at(result) for result in source.needs(frame)])

    def address(self, frame: int) -> str:
        """The address of a fused frame."""
        address = frame_address(self.facts, frame, self.plan.by_frame[frame].sources, self._address_at)
        assert address is not None
        return address

    def _address_at(self, result: Result) -> str:
        key, direction, frame = result
        passed = self._passes[key, direction]
        return self.pass_address(passed, position_in(passed, frame))

    def _pass_at(self, source: Source, one: Candidate, frame: int, name: str) -> PassAtFrame:
        """A candidate of an object on a frame, with its arrivals and the area on its key."""
        way = abs(frame - one.key) * (1 if one.direction is Direction.FORWARD else -1)
        probability = self._object_result(one.name, frame, name)
        if len(source.candidates) == 1:
            return PassAtFrame(probability, way, 0.0)
        arrivals = tuple(self._arrival(one.name, met, name) for met in one.met)
        return PassAtFrame(probability, way, self._key_area(one.key, name), arrivals)

    def _arrival(self, pass_name: PassName, met: int, name: str) -> Arrival:
        """How well a pass fits another key; read once."""
        found = self._arrivals.get((pass_name, met, name))
        if found is None:
            truth = self.key_probabilities(met, (name,))[0]
            result = self._object_result(pass_name, met, name)
            own = self._key_area(pass_name[0], name)
            found = arrival_at(abs(met - pass_name[0]), result, truth, own)
            self._arrivals[pass_name, met, name] = found
        return found

    def _key_area(self, key: int, name: str) -> float:
        """Pixels of an object on a key, at working size."""
        if (key, name) not in self._areas:
            self._areas[key, name] = area_of(self.key_probabilities(key, (name,))[0])
        return self._areas[key, name]

    def _object_result(self, pass_name: PassName, frame: int, name: str) -> FloatArray:
        passed = self._passes[pass_name]
        result: FloatArray = self.pass_result(passed, position_in(passed, frame))[passed.objects.index(name)]
        return result

    # ---- memory ----

    def entry(self, passed: Pass, step: int) -> MemoryEntry:
        """The memory entry of a pass for its frame at `step` (0: its key)."""
        if step == 0:
            return self._key_entry(passed)
        address = self.pass_address(passed, step - 1)
        # Entries that stay long are cached on disk too; that of the previous frame in RAM only.
        stays = step in self._context.rule.steps_in_memory(step + 2, self._context.memory_cap)
        return self._entry(
            address_of("entry in halves", address),
            passed.frames[step - 1],
            lambda: self.pass_result(passed, step - 1),
            on_disk=stays,
        )

    def _key_entry(self, passed: Pass) -> MemoryEntry:
        """The memory entry of a pass for its own key."""
        key, objects = passed.key, passed.objects
        masks = [self._keys[key].masks[name].hash for name in objects]
        address = self._feature_key("key in halves", self.plate_hash(key), *masks)
        return self._entry(address, key, lambda: self.key_probabilities(key, objects), on_disk=True)

    def _entry(
        self, address: str, frame: int, probabilities: Callable[[], FloatArray], *, on_disk: bool
    ) -> MemoryEntry:
        network = self._context.network()
        state = self._context.cache.get(address)
        if state is None:
            entry = network.encode_memory(self.picture(frame), torch.from_numpy(probabilities()))
            state = as_halves(entry.state())
            self._context.cache.put(address, state, on_disk=on_disk)
        return MemoryEntry(**from_halves(state, network.device))
