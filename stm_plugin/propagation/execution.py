"""The executor: it walks a plan, and decides nothing.

Every result of the network goes through the store in the form in which a later run would read it back, and
the memory of a pass is always made from stored results. So it makes no difference whether a pass runs
through or is resumed anywhere: it ends with the same bytes.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.inference.allocator import release_freed_memory
from model.inference.fast_network import QUERY_LAYOUT, Query
from model.network.memory import MemoryBank, MemoryEntry, MemoryRule
from stm_plugin.address import address_of
from stm_plugin.errors import PropagationCancelled, StoreError, WeightsError, concerning
from stm_plugin.images.working_picture import WorkingGeometry, to_working
from stm_plugin.planning.plan import chain, frame_address, pass_root, position_in
from stm_plugin.planning.quality import Quality, agreement
from stm_plugin.planning.values import ComputeStep, Direction, Facts, FinishStep, Pass, Plan
from stm_plugin.propagation.events import Event, FrameComputed, Progress
from stm_plugin.propagation.feature_cache import FeatureCache
from stm_plugin.propagation.finishing_queue import FRAMES_WAITING
from stm_plugin.propagation.frame_loader import FrameLoader
from stm_plugin.propagation.fusion import fuse, mean_confidence
from stm_plugin.propagation.memory_forecast import device_errors
from stm_plugin.store.store import ProbabilityArray, ShotStore, dequantise, quantise
from stm_plugin.windows import FloatArray, Window, place

_STEPS_FOR_ESTIMATE = 12
_STEPS_TO_A_RELEASE = 100
"""Computed frames after which freed memory goes back to the system: the gaps of the heap grow slowly, and a
long run must not. What is needed comes back in a thousandth of the time."""

_RESULTS_HELD = 2 + FRAMES_WAITING
"""The result that is remembered next, and those of the frames that wait for their matte or are at it."""


class Network(Protocol):
    """What the engine asks of a network (`model.inference.fast_network.FastNetwork`)."""

    @property
    def device(self) -> torch.device: ...

    def encode_query(self, picture: Tensor) -> Query: ...

    def encode_memory(self, picture: Tensor, probabilities: Tensor) -> MemoryEntry: ...

    def new_bank(
        self, rule: MemoryRule, like: MemoryEntry, *, capacity: int, permanent: int
    ) -> MemoryBank: ...

    def segment(self, query: Query, bank: MemoryBank) -> Tensor: ...


class PlateMovedOn(Exception):
    """A frame's content is not what the plan was made for."""

    def __init__(self, frame: int) -> None:
        self.frame = frame
        super().__init__(f"the plate changed on {frame}")


@dataclass(frozen=True)
class PropagationContext:
    """Everything that an execution works with.

    Attributes:
        network: gives the network; loaded only when it is needed.
        features_base: what the features of a frame depend on besides its pixels.
        weights: as the settings name them, for error texts.
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


@dataclass(frozen=True, eq=False)
class FrameResult:
    """One frame before finishing.

    Attributes:
        masks: objects whose mask is given here: (H, W) over the canvas, as the artist gave it.
        probabilities: the other objects: (h, w) at working size, in [0, 1].
        agreement: of the two passes, of the object on which they agree least; None without.
    """

    frame: int
    address: str
    masks: Mapping[str, FloatArray]
    probabilities: Mapping[str, FloatArray]
    agreement: float | None = None

    @property
    def confidence(self) -> float:
        """Sureness of the least sure object; 1 on a key and where there is nothing."""
        return min((mean_confidence(one) for one in self.probabilities.values()), default=1.0)

    @property
    def quality(self) -> Quality:
        return Quality(self.frame, self.address, self.confidence, self.agreement)


class Execution:
    """One walk along a plan.

    Args:
        deliver: gets every frame whose results are complete, in the plan's order.
    """

    def __init__(
        self,
        context: PropagationContext,
        plan: Plan,
        emit: Callable[[Event], None],
        cancelled: Callable[[], bool],
        submit: Callable[[int], None],
    ) -> None:
        self._context, self._plan = context, plan
        self._emit, self._cancelled, self._submit = emit, cancelled, submit
        self.results = Results(context, plan.facts)
        self._live: tuple[tuple[int, Direction], int, MemoryBank] | None = None
        self._computed = 0

    def run(self) -> None:
        """Walk to the end.

        Raises:
            PropagationCancelled: the user stopped it; everything done so far is on disk.
            PlateMovedOn: a frame has other pixels than planned; make a new plan.
            DamagedFileError: a stored result is damaged; remove it and make a new plan.
            StmError: what it says.
        """
        clock = _Clock(self._plan)
        for number, step in enumerate(self._plan.steps):
            if self._cancelled():
                raise PropagationCancelled(
                    "The propagation was stopped.",
                    frame=step.frame,
                    hint="Finished frames are kept; running it again goes on from here.",
                )
            if isinstance(step, ComputeStep):
                with concerning(step.frame):
                    reused = self._compute(step, self._next_frame(number))
                self._emit(FrameComputed(step.frame, step.passed.direction, reused))
            else:
                self._submit(step.frame)
            self._emit(Progress(number + 1, len(self._plan.steps), step.frame, clock.tick(number, step)))

    def _compute(self, step: ComputeStep, upcoming: int | None) -> bool:
        """One frame of one pass; True where the result was there."""
        context, results = self._context, self.results
        address = results.pass_address(step.passed, step.position)
        if context.store.has(address):
            return True
        if upcoming is not None and not results.has_query(upcoming):
            context.loader.read_ahead(upcoming)
        with device_errors(str(context.network().device), step.frame):
            query = results.query(step.frame)
            bank = self._bank(step.passed, step.position + 1)
            probabilities = context.network().segment(query, bank)[1:]  # (K, h, w), without the background
        computed = probabilities.float().cpu().numpy()
        check_finite(computed, step.frame, context.weights)
        stored = quantise(computed)
        context.cache.make_room_for(lambda: context.store.put_probabilities(address, stored))
        results.remember(address, stored)
        self._computed += 1
        if self._computed % _STEPS_TO_A_RELEASE == 0:
            release_freed_memory()
        return False

    def _bank(self, passed: Pass, step: int) -> MemoryBank:
        """The memory of a pass for the frame at `step` (the key is step 0): that of the frame before plus one
        entry, or built anew from the store."""
        context, results = self._context, self.results
        if self._live is not None and self._live[:2] == (passed.name, step - 1):
            bank = self._live[2]
            bank.write(step - 1, results.entry(passed, step - 1))
        else:
            self._live = None  # frees the other pass's bank before this one is made
            own = results.entry(passed, 0)
            further = [results.key_entry(passed, key) for key in passed.memory_keys]
            bank = context.network().new_bank(
                context.rule, own, capacity=context.memory_cap, permanent=len(further)
            )
            for entry in further:
                bank.write_permanent(entry)
            for held in context.rule.steps_in_memory(step, context.memory_cap):
                bank.restore(held, own if held == 0 else results.entry(passed, held))
        self._live = (passed.name, step, bank)
        return bank

    def _next_frame(self, number: int) -> int | None:
        """The next frame that the network will look at."""
        for step in self._plan.steps[number + 1 : number + 4]:
            if isinstance(step, ComputeStep):
                return step.frame
        return None


class Results:
    """What is stored or cached for a plan's facts, features computed where they are not there.

    Addresses become known as the plate is read. One thread computes; others may read what is finished.
    """

    def __init__(self, context: PropagationContext, facts: Facts) -> None:
        self._context = context
        self._expected = dict(facts.plate)
        self.facts = replace(facts, plate=dict(facts.plate))
        self._keys = {key.frame: key for key in facts.keys}
        self._chains: dict[tuple[int, Direction], list[str]] = {}
        self._recent: OrderedDict[str, ProbabilityArray] = OrderedDict()
        self._mutex = threading.RLock()

    # ---- addresses ----

    def plate_hash(self, frame: int) -> str:
        """The content hash of a plate frame; read if it is not known.

        Raises:
            PlateMovedOn: it is another than the plan was made for.
        """
        known = self.facts.plate.get(frame)
        if known is not None:
            return known
        return self._loaded_hash(frame)

    def pass_address(self, passed: Pass, position: int) -> str:
        """The address of a pass on its frame at `position`; -1 is the key."""
        with self._mutex:
            addresses = self._chains.setdefault(passed.name, [])
            if not addresses:
                for frame in (passed.key, *passed.memory_keys):
                    self.plate_hash(frame)
                root = pass_root(self.facts, passed.key, passed.direction, passed.memory_keys)
                assert root is not None
                addresses.append(root)
            while len(addresses) < position + 2:
                following = chain(addresses[-1], self.plate_hash(passed.frames[len(addresses) - 1]))
                assert following is not None
                addresses.append(following)
            return addresses[position + 1]

    # ---- features ----

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
            query = network.encode_query(self.picture(frame))
            self._context.cache.put(key, query.state())
            return query
        on_device = {name: tensor.to(network.device) for name, tensor in state.items()}
        return Query.from_state(on_device, geometry.height, geometry.width)

    def picture(self, frame: int) -> Tensor:
        """The working picture of a frame: (3, h, w) float32 in [0, 1]."""
        key = self._feature_key("picture", self.plate_hash(frame))
        state = self._context.cache.get(key)
        if state is None:
            self._loaded_hash(frame)
            state = {"picture": torch.from_numpy(self._context.loader.load(frame).picture)}
            self._context.cache.put(key, state)
        return state["picture"].float()

    def entry(self, passed: Pass, step: int) -> MemoryEntry:
        """What a pass remembers of its frame at `step` (0: of its key)."""
        if step == 0:
            return self.key_entry(passed, passed.key)
        address = self.pass_address(passed, step - 1)
        # Entries that stay for long are worth the disk; that of the previous frame is only worth the RAM.
        stays = step in self._context.rule.steps_in_memory(step + 2, self._context.memory_cap)
        return self._entry(
            address_of("entry with areas", address),
            passed.frames[step - 1],
            lambda: self.pass_result(passed, step - 1),
            on_disk=stays,
        )

    def key_entry(self, passed: Pass, key: int) -> MemoryEntry:
        """What a pass remembers of a key: its own, or another's."""
        masks = [self._keys[key].masks[name].hash for name in passed.objects]
        address = self._feature_key("key with areas", self.plate_hash(key), *masks)
        return self._entry(address, key, lambda: self.key_probabilities(key, passed.objects), on_disk=True)

    def key_probabilities(self, key: int, objects: tuple[str, ...]) -> FloatArray:
        """The masks of a key at working size: (K, h, w), as exact as stored probabilities are."""
        geometry = self._context.geometry
        masks = [to_working(self.mask(key, name), geometry.canvas, geometry) for name in objects]
        return dequantise(quantise(np.stack(masks)))

    # ---- frames ----

    def remember(self, address: str, stored: ProbabilityArray) -> None:
        """A result was stored: those of the last frames need not be read back for memory and matte."""
        with self._mutex:
            self._recent[address] = stored
            while len(self._recent) > _RESULTS_HELD:
                self._recent.popitem(last=False)

    def mask(self, key: int, name: str) -> FloatArray:
        """An object's mask on a key, (H, W) over the canvas."""
        mask, window = self._context.store.mask(self._keys[key].masks[name].hash)
        return on_window(mask, window, self._context.geometry.canvas)

    def pass_result(self, passed: Pass, position: int) -> FloatArray:
        """What a pass gave on its frame at `position`: (K, h, w)."""
        address = self.pass_address(passed, position)
        with self._mutex:
            stored = self._recent.get(address)
        if stored is None:
            stored = self._context.store.probabilities(address)
        if stored is None:
            raise StoreError(
                "A result that was there a moment ago is gone.",
                frame=passed.frames[position],
                path=self._context.store.folder,
                hint="Is another program deleting files? Run again: it is computed anew.",
            )
        return dequantise(stored)

    def frame_result(self, plan: Plan, frame: int) -> FrameResult:
        """One frame, fused. Everything that it needs must be in the store."""
        passes = {one.name: one for one in plan.passes}
        sources = plan.by_frame[frame].sources
        masks: dict[str, FloatArray] = {}
        fused: dict[str, FloatArray] = {}
        agreed: list[float] = []
        for name, source in sources.items():
            if source.key is not None:
                masks[name] = self.mask(source.key, name)
            elif source.forward is not None and source.backward is not None:
                forward = self._object_result(passes[source.forward, Direction.FORWARD], frame, name)
                backward = self._object_result(passes[source.backward, Direction.BACKWARD], frame, name)
                fused[name] = fuse(forward, backward, frame - source.forward, source.backward - frame)
                agreed.append(agreement(forward, backward))
            elif source.forward is not None:
                fused[name] = self._object_result(passes[source.forward, Direction.FORWARD], frame, name)
            elif source.backward is not None:
                fused[name] = self._object_result(passes[source.backward, Direction.BACKWARD], frame, name)
            else:
                geometry = self._context.geometry
                fused[name] = np.zeros((geometry.height, geometry.width), np.float32)
        return FrameResult(frame, self.address(plan, frame), masks, fused, min(agreed, default=None))

    def address(self, plan: Plan, frame: int) -> str:
        """The address of a fused frame."""
        passes = {one.name: one for one in plan.passes}

        def of_pass(key: int, direction: Direction) -> str:
            passed = passes[key, direction]
            return self.pass_address(passed, position_in(passed, frame))

        address = frame_address(self.facts, frame, plan.by_frame[frame].sources, of_pass)
        assert address is not None
        return address

    def _object_result(self, passed: Pass, frame: int, name: str) -> FloatArray:
        result: FloatArray = self.pass_result(passed, position_in(passed, frame))[passed.objects.index(name)]
        return result

    def _entry(
        self, address: str, frame: int, probabilities: Callable[[], FloatArray], *, on_disk: bool
    ) -> MemoryEntry:
        network = self._context.network()
        state = self._context.cache.get(address)
        if state is None:
            entry = network.encode_memory(self.picture(frame), torch.from_numpy(probabilities()))
            self._context.cache.put(address, entry.state(), on_disk=on_disk)
            return entry
        return MemoryEntry(**{name: tensor.to(network.device) for name, tensor in state.items()})

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


def check_finite(probabilities: FloatArray, frame: int, weights: str) -> None:
    """Ask whether what the network gave are numbers (K, h, w). WeightsError where they are not."""
    if not np.isfinite(probabilities).all():
        raise WeightsError(
            "The network gives values that are not numbers (NaN or Inf), so there is no matte.",
            frame=frame,
            path=weights or None,
            hint="The weights are damaged, or the precision is too small for them: try --precision float32.",
        )


def on_window(values: FloatArray, window: Window, target: Window) -> FloatArray:
    """An array over `window` as one over `target`, 0 where there was nothing."""
    return values if window == target else place(values, window, target)


class _Clock:
    """Time left, from the last steps of each kind."""

    def __init__(self, plan: Plan) -> None:
        self._left = {
            ComputeStep: len(plan.compute_steps),
            FinishStep: len(plan.steps) - len(plan.compute_steps),
        }
        self._recent: dict[type, deque[float]] = {
            ComputeStep: deque(maxlen=_STEPS_FOR_ESTIMATE),
            FinishStep: deque(maxlen=_STEPS_FOR_ESTIMATE),
        }
        self._last = time.monotonic()

    def tick(self, number: int, step: ComputeStep | FinishStep) -> float | None:
        """A step is done; seconds until the last will be."""
        now = time.monotonic()
        if number > 0:  # the first step loads the network, which says nothing about the others
            self._recent[type(step)].append(now - self._last)
        self._last = now
        self._left[type(step)] -= 1
        left = 0.0
        for kind, count in self._left.items():
            recent = self._recent[kind]
            if count and not recent:
                if kind is ComputeStep:
                    return None
                continue
            left += count * sum(recent) / max(1, len(recent))
        return left
