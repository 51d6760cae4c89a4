"""A shot: a plate, the artist's keys, settings, and everything that has been computed for it.

    shot = Shot.create("chair", FilePlate("plate.####.exr"))
    shot.add_key(1001, Path("mask.exr"))
    shot.propagate(on_event=print)
    shot.export("matte.####.exr")

Reading (`status`, `plan`, `matte`) is free at any time; what changes the shot takes the store's lock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from model.config import network_config
from model.memory import MemoryRule
from stm_plugin import finish as finishing
from stm_plugin import fusion
from stm_plugin.address import address_of
from stm_plugin.cache import FeatureCache
from stm_plugin.colour import ColourTransform, find_input_space, load_config
from stm_plugin.device import Fit, fit_memory, free_memory, pick_device
from stm_plugin.engine import Bench, Execution, FrameResult, Network, PlateMovedOn, Results, on_window
from stm_plugin.errors import KeyframeError, MaskError, MatteError, PlateError, SettingsError
from stm_plugin.events import DamageFound, Event, FrameFinished, Notice, PlanMade, PlateChanged
from stm_plugin.export import MatteWriter
from stm_plugin.files import DamagedFileError
from stm_plugin.frames import FrameLoader, LoadedFrame, signature_of
from stm_plugin.lock import Holder
from stm_plugin.mask import MaskMode, read_mask
from stm_plugin.networks import ready_network, weights_manifest
from stm_plugin.plan import (
    DirtyRange,
    Facts,
    Key,
    Plan,
    Request,
    State,
    frames_in_range,
    make_plan,
    position_in,
    record_of,
)
from stm_plugin.plate import FloatArray, Plate, PlateFrame, PlateSource, Window
from stm_plugin.pushed import PushedPlate
from stm_plugin.settings import MAX_OBJECTS, Settings
from stm_plugin.store import (
    PlateDescription,
    ShotDescription,
    ShotObject,
    ShotStore,
    StoredKey,
    StoreSize,
)
from stm_plugin.working import WorkingGeometry, working_geometry

if TYPE_CHECKING:
    from stm_plugin.matte import MetadataValue

_MAYBE = 0.05
"""Probability above which an object may be on a pixel, for the confidence of a frame."""

MOST_PLANS = 20
"""How often one propagation starts anew because the plate changed under it or a result was damaged."""

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]
NetworkFactory = Callable[[Settings, str], Network]


def _silent(event: Event) -> None:
    """Nobody listens."""


def _never() -> bool:
    """Nobody cancels."""
    return False


@dataclass(frozen=True)
class KeyInfo:
    """A key by the names of its objects; `empty` names those with an empty mask ("not here")."""

    frame: int
    objects: tuple[str, ...]
    empty: tuple[str, ...]


@dataclass(frozen=True)
class ShotStatus:
    """What is done, stale and missing, and why.

    Attributes:
        states: of every frame of the range.
        dirty: what a propagation would compute, in words (`str` of each).
        network_frames: how often the network would run.
        plate_missing: frames of the plate that are not there.
        holder: who is working on the shot now, if anyone else is.
    """

    keys: tuple[KeyInfo, ...]
    objects: tuple[str, ...]
    states: Mapping[int, State]
    dirty: tuple[DirtyRange, ...]
    network_frames: int
    plate_missing: tuple[int, ...]
    size: StoreSize
    holder: Holder | None

    def count(self, state: State) -> int:
        return Counter(self.states.values())[state]


@dataclass(frozen=True, eq=False)
class FinishedFrame:
    """One frame as it goes to the artist.

    Attributes:
        mattes: by object name, float32 (h, w) in [0, 1] over the plate frame's data window.
        address: of everything that made it, finishing included.
        is_key: the mattes are the artist's own masks.
        confidence: mean sureness of the unsure region, in [0, 1]; 1 on a key.
    """

    frame: int
    mattes: Mapping[str, FloatArray]
    plate_frame: PlateFrame
    address: str
    is_key: bool
    confidence: float


@dataclass(frozen=True)
class PropagationSummary:
    """What a propagation did."""

    frames: int
    computed: int
    reused: int
    seconds: float
    device: str
    forecast: str
    notices: tuple[str, ...]


class Shot:
    """A shot that is open. Close it, or use it in a `with` statement.

    Args:
        store, plate: what `create` and `open` found.
        network: gives the network for settings and device; the shipped ones by default.
    """

    def __init__(self, store: ShotStore, plate: PlateSource, network: NetworkFactory | None = None) -> None:
        self.store, self.plate = store, plate
        self._description = store.description()
        self._network = network or _default_network
        self._manifest_of = weights_manifest if network is None else None
        self._transform: tuple[tuple[str | None, str | None], ColourTransform] | None = None
        self._loader: FrameLoader | None = None
        self._cache: FeatureCache | None = None
        self._notices: list[str] = []
        self._read_before: dict[int, dict[str, str | int | None]] = {}
        self._mutex = threading.RLock()

    # ---- life ----

    @classmethod
    def create(
        cls,
        folder: str | Path,
        plate: PlateDescription,
        settings: Settings | None = None,
        *,
        network: NetworkFactory | None = None,
    ) -> Shot:
        """Make a shot.

        Raises:
            StoreError: there is one already, or the folder cannot be written.
            PlateError: the plate cannot be opened.
        """
        settings = settings or Settings()
        if plate.kind == "files":
            _open_files(plate, settings)
        store = ShotStore.create(folder, ShotDescription(plate, settings))
        return cls(store, _open_plate(store, plate, settings), network)

    @classmethod
    def open(cls, folder: str | Path, *, network: NetworkFactory | None = None) -> Shot:
        """Open a shot that exists. StoreError or PlateError where it cannot be."""
        store = ShotStore.open(folder)
        description = store.description()
        return cls(store, _open_plate(store, description.plate, description.settings), network)

    def close(self) -> None:
        """Give back threads and memory. Everything is on disk already."""
        with self._mutex:
            if self._loader is not None:
                self._loader.close()
            self._loader = self._cache = None

    def __enter__(self) -> Shot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what it is ----

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def settings(self) -> Settings:
        return self._description.settings

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects in their order."""
        return tuple(one.name for one in self._description.objects)

    @property
    def keys(self) -> tuple[KeyInfo, ...]:
        """The keys, ascending."""
        names = self._names()
        return tuple(
            KeyInfo(
                key.frame,
                tuple(names[one] for one in key.masks),
                tuple(names[one] for one, mask in key.masks.items() if mask.empty),
            )
            for key in sorted(self._description.keys, key=lambda key: key.frame)
        )

    def refresh(self) -> None:
        """Read again what other processes may have changed."""
        self._description = self.store.description()

    # ---- changing it ----

    def add_key(
        self,
        frame: int,
        mask: str | Path | Mapping[str, FloatArray],
        *,
        window: Window | None = None,
        objects: Sequence[str] | None = None,
        mode: MaskMode = "auto",
        channel: str | None = None,
        allow_empty: bool = False,
        replace_all: bool = True,
        wait: float | None = 0.0,
    ) -> KeyInfo:
        """Give the masks of one frame.

        Args:
            mask: an image file, or arrays by object name, float32 (h, w) in [0, 1] over `window` (the canvas
                if None). An empty mask says that the object is not here.
            objects, mode, channel: how to understand a file (`read_mask`).
            allow_empty: whether all masks may be empty.
            replace_all: forget objects that the key gave before and that are not in `mask`.
            wait: seconds to wait for another process that holds the shot.

        Raises:
            KeyframeError: the plate has no such frame.
            MaskError: the mask cannot be used, or there would be too many objects.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
        """
        if frame not in self.plate.frames:
            raise KeyframeError(
                "The plate has no such frame.",
                frame=frame,
                hint=f"It has frames {self.plate.frames[0]} to {self.plate.frames[-1]}.",
            )
        masks, original = self._read_masks(frame, mask, window, objects, mode, channel, allow_empty)
        with self._writing(wait) as description:
            known = {one.name: one.id for one in description.objects}
            added, following = list(description.objects), description.next_object
            for name in masks:
                if name not in known:
                    known[name] = f"o{following}"
                    added.append(ShotObject(known[name], name))
                    following += 1
            if len(added) > MAX_OBJECTS:
                raise MaskError(f"A shot has at most {MAX_OBJECTS} objects.", frame=frame, path=original)
            before = {key.frame: key for key in description.keys}.get(frame)
            kept = {} if before is None or replace_all else dict(before.masks)
            for name, values in masks.items():
                kept[known[name]] = self.store.put_mask(values, self.plate.canvas)
            originals = () if before is None or replace_all else before.originals
            if original is not None:
                originals = (*originals, self.store.keep_original(frame, original))
            key = StoredKey(frame, kept, originals)
            others = [one for one in description.keys if one.frame != frame]
            ordered = tuple(sorted([*others, key], key=lambda one: one.frame))
            self._save(replace(description, objects=tuple(added), keys=ordered, next_object=following))
        return next(one for one in self.keys if one.frame == frame)

    def remove_key(
        self, frame: int, objects: Sequence[str] | None = None, *, wait: float | None = 0.0
    ) -> None:
        """Take a key away, or some of its objects. KeyframeError where there is none."""
        with self._writing(wait) as description:
            found = [one for one in description.keys if one.frame == frame]
            if not found:
                raise KeyframeError("There is no key on this frame.", frame=frame, hint=self._keys_in_words())
            ids = {one.name: one.id for one in description.objects}
            gone = set(found[0].masks) if objects is None else {ids.get(name, name) for name in objects}
            left = {one: mask for one, mask in found[0].masks.items() if one not in gone}
            keys = [one for one in description.keys if one.frame != frame]
            if left:
                keys.append(replace(found[0], masks=left))
            self._save(replace(description, keys=tuple(sorted(keys, key=lambda one: one.frame))))

    def rename_object(self, old: str, new: str, *, wait: float | None = 0.0) -> None:
        """Give an object another name. Nothing is computed again. SettingsError for a name that is taken."""
        with self._writing(wait) as description:
            self._object_id(old)
            if new in self.objects and new != old:
                raise SettingsError(f"There is an object {new!r} already.")
            renamed = tuple(replace(one, name=new) if one.name == old else one for one in description.objects)
            self._save(replace(description, objects=renamed))

    def remove_object(self, name: str, *, wait: float | None = 0.0) -> None:
        """Take an object and all its masks away. Objects that shared keys with it are computed again."""
        with self._writing(wait) as description:
            gone = self._object_id(name)
            keys = []
            for key in description.keys:
                left = {one: mask for one, mask in key.masks.items() if one != gone}
                if left:
                    keys.append(replace(key, masks=left))
            objects = tuple(one for one in description.objects if one.id != gone)
            self._save(replace(description, objects=objects, keys=tuple(keys)))

    def set_settings(self, settings: Settings, *, wait: float | None = 0.0) -> None:
        """Change settings. What depends on them becomes stale, and nothing else."""
        if settings == self.settings:
            return
        with self._writing(wait) as description:
            self._save(replace(description, settings=settings))
        self.close()

    def set_plate(self, plate: PlateDescription, *, wait: float | None = 0.0) -> None:
        """Describe the plate anew (another range, other files). Frames with the same content stay done."""
        with self._writing(wait) as description:
            opened = _open_plate(self.store, plate, description.settings)
            if plate != description.plate:
                self._save(replace(description, plate=plate))
            self.plate = opened
        self._transform = None
        self.close()

    # ---- looking at it ----

    def plan(self, request: Request | None = None) -> Plan:
        """What a propagation would do now. KeyframeError where there is no key."""
        return make_plan(self._facts(), request or Request(), self.store.has, self.store.history())

    def status(self, request: Request | None = None) -> ShotStatus:
        """What is done, stale and missing, and why. Without keys everything is missing."""
        self.refresh()
        plan = self.plan(request) if self._description.keys else None
        states = (
            {one.frame: one.state for one in plan.frames}
            if plan is not None
            else dict.fromkeys(self.plate.frames, State.MISSING)
        )
        return ShotStatus(
            keys=self.keys,
            objects=self.objects,
            states=states,
            dirty=plan.dirty if plan is not None else (),
            network_frames=len(plan.compute_steps) if plan is not None else 0,
            plate_missing=tuple(self.plate.missing),
            size=self.store.size(),
            holder=self.store.lock.held_by_another(),
        )

    def matte(self, frame: int) -> FinishedFrame:
        """The finished matte of one frame.

        Raises:
            MatteError: it is stale or was never computed; the message says why.
            PlateError: the plate frame cannot be read.
        """
        plan = self.plan(Request(frame, frame))
        with _reading(frame):
            return self._finished(plan, self._results(plan), frame)

    def display(self, frame: int) -> FloatArray:
        """The plate frame as the network's colours show it: (h, w, 3) sRGB in [0, 1] over its data window.

        Raises:
            PlateError: the plate frame cannot be read.
        """
        return self._frames().load(frame).display

    # ---- doing ----

    def forecast(self, plan: Plan) -> Fit:
        """The memory that a plan will need, and what had to be lowered to fit. DeviceError if nothing fits."""
        device = pick_device(self.settings.device)
        geometry = self._geometry()
        architecture = self._architecture()
        return fit_memory(
            network_config(architecture),
            free_memory(device),
            height=geometry.height,
            width=geometry.width,
            objects=max((len(one.objects) for one in plan.passes), default=1),
            memory_cap=self.settings.memory_cap,
            further_keys=max((len(one.memory_keys) for one in plan.passes), default=0),
            precision=self.settings.precision,
            device=device,
        )

    def propagate(
        self,
        request: Request | None = None,
        *,
        on_event: Emit = _silent,
        cancelled: Cancelled = _never,
        writer: MatteWriter | None = None,
        wait: float | None = 0.0,
    ) -> PropagationSummary:
        """Compute what is not done, and nothing else.

        Args:
            on_event: gets every event, in this thread.
            cancelled: asked before every frame of the network.
            writer: gets every frame of the range as soon as it is final.
            wait: seconds to wait for another process that holds the shot.

        Raises:
            PropagationCancelled: finished frames are kept.
            StmError: what it says; finished frames are kept.
        """
        started = time.monotonic()
        counts = Counter[str]()
        self._notices.clear()

        def emit(event: Event) -> None:
            counts[type(event).__name__] += 1
            if getattr(event, "reused", False):
                counts["reused"] += 1
            if isinstance(event, Notice):
                self._notices.append(event.text)
            on_event(event)

        self.store.lock.acquire(wait, cancelled)
        try:
            self.refresh()
            self.store.tidy()
            if writer is not None:
                writer.tidy(self.plate.frames)
            fit = self._fit(request or Request(), emit)
            for _ in range(MOST_PLANS):
                if self._walk(request or Request(), emit, cancelled, writer):
                    break
            else:
                raise PlateError(
                    "The plate keeps changing while it is being worked on.",
                    path=self._description.plate.text or self.folder,
                    hint="Wait until it is rendered, and run again: finished frames are kept.",
                )
        finally:
            self.store.lock.release()
        return PropagationSummary(
            frames=len(frames_in_range(tuple(self.plate.frames), request or Request())),
            computed=counts["FrameComputed"] - counts["reused"],
            reused=counts["reused"],
            seconds=time.monotonic() - started,
            device=pick_device(self.settings.device),
            forecast=str(fit.forecast),
            notices=tuple(self._notices),
        )

    def export(
        self,
        writer: MatteWriter,
        request: Request | None = None,
        *,
        on_event: Emit = _silent,
        cancelled: Cancelled = _never,
    ) -> None:
        """Write the mattes of a range that is done.

        Raises:
            MatteError: a frame is not done; it is named before anything is written.
        """
        plan = self.plan(request)
        results = self._results(plan)
        waiting = {step.frame for step in plan.compute_steps}
        for one in plan.frames:
            if one.state in (State.MISSING, State.UNREACHED) or one.frame in waiting:
                raise _not_done(one.frame, one.why)
        for one in plan.frames:
            if cancelled():
                return
            with _reading(one.frame):
                self._write(plan, results, one.frame, writer)
                on_event(FrameFinished(one.frame, results.address(plan, one.frame)))

    def clean(self, *, memory: bool = True, results: bool = True, wait: float | None = 0.0) -> StoreSize:
        """Delete what can be computed again (`memory`), and results that no key needs any more (`results`).

        Returns:
            The bytes that were freed.
        """
        before = self.store.size()
        with self._writing(wait):
            self.store.tidy()
            if memory:
                self.close()
                # The index of the plate says which results are still needed: keep it until they are sorted out.
            if results and self._description.keys:
                plan = self.plan()
                kept = {one for row in plan.addresses.values() for one in row if one is not None}
                if all(one is not None for row in plan.addresses.values() for one in row):
                    self.store.remove_results_except(kept)
            if memory:
                self.store.clear_memory()
        after = self.store.size()
        return StoreSize(
            before.keys - after.keys,
            before.mattes - after.mattes,
            before.memory - after.memory,
            before.plate - after.plate,
        )

    # ---- inside ----

    def _walk(self, request: Request, emit: Emit, cancelled: Cancelled, writer: MatteWriter | None) -> bool:
        """Plan and execute once; False where a new plan is needed."""
        plan = self.plan(request)
        self._check_plate(plan)
        signatures = self._signatures(plan)
        emit(PlanMade(plan))

        def deliver(frame: int) -> None:
            results = execution.results
            results.plate_hash(frame)
            if writer is not None:
                self._write(plan, results, frame, writer)
            address = results.address(plan, frame)
            self.store.record(record_of(results.facts, frame, plan.by_frame[frame].sources, address))
            emit(FrameFinished(frame, address))

        execution = Execution(self._bench(), plan, emit, cancelled, deliver)
        try:
            execution.run()
        except PlateMovedOn as moved:
            emit(PlateChanged((moved.frame,)))
            return False
        except DamagedFileError as damaged:
            if damaged.path.suffix == ".mask":
                raise MaskError(
                    "The stored mask of a key is damaged.",
                    path=damaged.path,
                    hint="Give the key's mask again (your own file is kept beside it).",
                ) from damaged
            damaged.path.unlink(missing_ok=True)
            emit(DamageFound(str(damaged.path)))
            return False
        changed = tuple(
            frame for frame, signature in signatures.items() if signature_of(self.plate, frame) != signature
        )
        if changed:
            self._frames().forget()
            emit(PlateChanged(changed))
        return not changed

    def _fit(self, request: Request, emit: Emit) -> Fit:
        """Make the run fit into the memory there is; what has to be lowered stays lowered for this shot, so
        that it does not become stale with every change of the free memory."""
        fit = self.forecast(self.plan(request))
        if fit.reason:
            settings = replace(
                self.settings,
                memory_cap=fit.memory_cap,
                working_size=max(16, round(self.settings.working_size * fit.working_scale)),
            )
            self._save(replace(self._description, settings=settings))
            self.close()
            emit(Notice(f"{fit.reason[0].upper()}{fit.reason[1:]}."))
        return fit

    def _write(self, plan: Plan, results: Results, frame: int, writer: MatteWriter) -> None:
        address = self._matte_address(plan, results, frame)
        if writer.is_current(frame, address):
            writer.skip(frame)
            return
        finished = self._finished(plan, results, frame)
        writer.write(finished, finished.address, self._metadata(plan, finished))

    def _finished(self, plan: Plan, results: Results, frame: int) -> FinishedFrame:
        one = plan.by_frame[frame]
        loaded = self._frames().load(frame)
        if results.plate_hash(frame) != loaded.hash:
            raise PlateMovedOn(frame)
        if one.state is State.UNREACHED:
            raise _not_done(frame, one.why)
        for passed in plan.passes:  # of a plan for many frames, those that this one needs
            names = [name for name, source in one.sources.items() if passed.serves(source)]
            if names and not self.store.has(results.pass_address(passed, position_in(passed, frame))):
                raise _not_done(frame, one.why, self._names()[names[0]])
        result = results.frame_result(plan, frame)
        return FinishedFrame(
            frame=frame,
            mattes=self._mattes(result, loaded.plate_frame.data_window, lambda: _guide(loaded)),
            plate_frame=loaded.plate_frame,
            address=self._matte_address(plan, results, frame),
            is_key=not result.probabilities,
            confidence=_confidence(result),
        )

    def _mattes(
        self, result: FrameResult, window: Window, guide: Callable[[], finishing.Guide]
    ) -> dict[str, FloatArray]:
        geometry, settings = self._geometry(), self.settings.finish
        masks = {name: on_window(mask, geometry.canvas, window) for name, mask in result.masks.items()}
        finished = {
            name: finishing.finish(probability, guide(), geometry, settings)
            if probability.any()
            else np.zeros((window.height, window.width), np.float32)
            for name, probability in result.probabilities.items()
        }
        if len(masks) + len(finished) > 1:
            finished = fusion.share_pixels(masks, finished)
        mattes = {**masks, **finished}
        return {one.name: mattes[one.id] for one in self._description.objects if one.id in mattes}

    def _matte_address(self, plan: Plan, results: Results, frame: int) -> str:
        names = self._names()
        return address_of(
            "matte",
            results.address(plan, frame),
            results.plate_hash(frame),
            self.settings.id("finish"),
            self.settings.id("export"),
            [names[one] for one in plan.by_frame[frame].sources],
            fusion.VERSION,
            finishing.VERSION,
            str(self._geometry().canvas),
        )

    def _metadata(self, plan: Plan, finished: FinishedFrame) -> dict[str, MetadataValue]:
        values: dict[str, MetadataValue] = {
            "stm:keys": " ".join(str(key.frame) for key in self.keys),
            "stm:frame": "key" if finished.is_key else "propagated",
            "stm:confidence": round(finished.confidence, 4),
            "stm:memory_rule": self.settings.memory_rule,
            "stm:working_size": self.settings.working_size,
            "stm:colour_space": self._colour().input_space,
        }
        if self._manifest_of is not None:
            manifest = self._manifest_of(self.settings.weights)
            values |= {
                "stm:weights": manifest.name,
                "stm:weights_sha256": manifest.sha256,
                "stm:weights_licence": manifest.licence,
                "stm:architecture": manifest.architecture,
            }
        return values

    def _facts(self) -> Facts:
        description = self._description
        objects = tuple(one.id for one in description.objects)
        keys = tuple(Key(key.frame, key.masks) for key in description.keys)
        base = {**self._features_base(), "memory settings": self.settings.id("memory")}
        return Facts(
            frames=tuple(self.plate.frames),
            objects=objects,
            keys=keys,
            base=base,
            plate=self._known_plate(),
            keys_in_memory=self.settings.keys_in_memory,
        )

    def _features_base(self) -> dict[str, str]:
        geometry = self._geometry()
        weights = self._manifest_of(self.settings.weights).id if self._manifest_of else self.settings.weights
        return {
            "weights": weights,
            "picture settings": self.settings.id("picture"),
            "colour transform": self._colour().id,
            "canvas": f"{geometry.canvas} region {geometry.region} as {geometry.width}x{geometry.height}",
        }

    def _known_plate(self) -> dict[int, str]:
        """Content hashes of the frames that have not changed since they were last read."""
        known = {}
        frames = set(self.plate.frames)
        for frame, entry in self.store.plate_index.load().items():
            if frame in frames and entry["signature"] == signature_of(self.plate, frame):
                known[frame] = entry["hash"]
        return known

    def _noticed(self, frame: int, hash_: str) -> None:
        """A plate frame was read: remember its hash, so that the next plan need not read it."""
        signature = signature_of(self.plate, frame)
        entry = {"frame": frame, "signature": signature, "hash": hash_}
        if self._read_before.get(frame) != entry:
            self._read_before[frame] = entry
            if self.store.lock.held:
                self.store.plate_index.append(entry)

    def _signatures(self, plan: Plan) -> dict[int, str | None]:
        frames = {one.frame for one in plan.frames}
        for passed in plan.passes:
            frames |= {passed.key, *passed.memory_keys, *passed.frames}
        return {frame: signature_of(self.plate, frame) for frame in sorted(frames)}

    def _check_plate(self, plan: Plan) -> None:
        """Everything that the plan needs of the plate must be there before anything is computed."""
        needed = {step.frame for step in plan.steps}
        for step in plan.compute_steps:
            needed |= {step.passed.key, *step.passed.memory_keys}
        gone = sorted(needed & set(self.plate.missing))
        if gone:
            sequence = self.plate.sequence if isinstance(self.plate, Plate) else None
            raise PlateError(
                f"{len(gone)} frame{'s' if len(gone) > 1 else ''} of the plate "
                f"{'are' if len(gone) > 1 else 'is'} missing, this one first.",
                frame=gone[0],
                path=None if sequence is None else sequence.path(gone[0]),
                hint="Bring the frames, or give a range without them.",
            )

    def _bench(self) -> Bench:
        settings = self.settings
        device = pick_device(settings.device)
        loaded: list[Network] = []

        def network() -> Network:
            if not loaded:
                loaded.append(self._network(settings, device))
            return loaded[0]

        with self._mutex:
            if self._cache is None:
                self._cache = FeatureCache(
                    settings.ram_budget,
                    self.store.memory_folder,
                    settings.disk_budget,
                    self._notices.append,
                )
            return Bench(
                store=self.store,
                cache=self._cache,
                loader=self._frames(),
                network=network,
                geometry=self._geometry(),
                rule=MemoryRule.parse(settings.memory_rule),
                memory_cap=settings.memory_cap,
                features_base=self._features_base(),
            )

    def _results(self, plan: Plan) -> Results:
        return Results(self._bench(), plan.facts)

    def _colour(self) -> ColourTransform:
        """The transform from the plate's colour space; the space is found on the first frame that is there."""
        stated = (self.settings.ocio_config, self.settings.colour_space)
        with self._mutex:
            if self._transform is None or self._transform[0] != stated:
                config = load_config(self.settings.ocio_config)
                present = [frame for frame in self.plate.frames if frame not in set(self.plate.missing)]
                if not present:
                    raise PlateError(
                        "No frame of the plate is there.", path=self._description.plate.text or self.folder
                    )
                space = find_input_space(self.plate.read(present[0]), config, self.settings.colour_space)
                self._transform = (stated, ColourTransform(config, space.name))
            return self._transform[1]

    def _geometry(self) -> WorkingGeometry:
        plate, settings = self.plate, self.settings
        return working_geometry(plate.canvas, plate.pixel_aspect, settings.working_size, settings.region)

    def _frames(self) -> FrameLoader:
        with self._mutex:
            if self._loader is None:
                self._loader = FrameLoader(self.plate, self._colour(), self._geometry(), self._noticed)
            return self._loader

    def _architecture(self) -> str:
        if self._manifest_of is None:
            return "stm-lite"
        return self._manifest_of(self.settings.weights).architecture

    def _read_masks(
        self,
        frame: int,
        mask: str | Path | Mapping[str, FloatArray],
        window: Window | None,
        objects: Sequence[str] | None,
        mode: MaskMode,
        channel: str | None,
        allow_empty: bool,
    ) -> tuple[dict[str, FloatArray], Path | None]:
        """The masks over the canvas, and the artist's file if there is one."""
        canvas = self.plate.canvas
        if isinstance(mask, Mapping):
            place = window or canvas
            for name, values in mask.items():
                if values.shape != (place.height, place.width) or not np.isfinite(values).all():
                    raise MaskError(
                        f"The mask of {name} is {values.shape[1]}x{values.shape[0]}, not {place}, or not finite.",
                        frame=frame,
                    )
            if not allow_empty and not any(values.any() for values in mask.values()):
                raise MaskError(
                    "The mask is empty.",
                    frame=frame,
                    hint="If the object is not in this frame, say so (allow_empty).",
                )
            return {
                name: on_window(np.clip(values, 0, 1).astype(np.float32), place, canvas)
                for name, values in mask.items()
            }, None
        path = Path(mask)
        image = read_mask(
            path,
            canvas=canvas,
            display_window=self.plate.display_window,
            data_window=self.plate.read(frame).data_window,
            objects=objects,
            mode=mode,
            channel=channel,
            allow_empty=allow_empty,
            frame=frame,
        )
        return dict(image.objects), path

    def _names(self) -> dict[str, str]:
        return {one.id: one.name for one in self._description.objects}

    def _object_id(self, name: str) -> str:
        for one in self._description.objects:
            if one.name == name:
                return one.id
        raise SettingsError(
            f"There is no object {name!r}.", hint=f"Objects are: {', '.join(self.objects) or 'none'}."
        )

    def _keys_in_words(self) -> str:
        frames = ", ".join(str(key.frame) for key in self.keys)
        return f"Keys are on {frames}." if frames else "The shot has no key."

    @contextmanager
    def _writing(self, wait: float | None) -> Iterator[ShotDescription]:
        """Hold the lock; gives the description as it is now."""
        self.store.lock.acquire(wait)
        try:
            self.refresh()
            yield self._description
        finally:
            self.store.lock.release()

    def _save(self, description: ShotDescription) -> None:
        self.store.save(description)
        self._description = description


def _open_plate(store: ShotStore, plate: PlateDescription, settings: Settings) -> PlateSource:
    if plate.kind == "files":
        return _open_files(plate, settings)
    if plate.frames is None or plate.display_window is None:
        raise PlateError("A pushed plate needs a frame range and a display window.", path=store.folder)
    return PushedPlate(
        store.plate_folder,
        *plate.frames,
        display_window=plate.display_window,
        canvas=plate.canvas,
        pixel_aspect=plate.pixel_aspect,
        fps=plate.fps,
        budget=settings.plate_budget,
    )


def _open_files(plate: PlateDescription, settings: Settings) -> Plate:
    return Plate.open(
        plate.text,
        frame_range=plate.frame_range,
        layer=plate.layer,
        view=plate.view,
        colour_space=settings.colour_space,
        movie_first_frame=plate.movie_first_frame,
    )


def _default_network(settings: Settings, device: str) -> Network:
    return ready_network(settings.weights, device, settings.precision)


def _guide(loaded: LoadedFrame) -> finishing.Guide:
    working = np.ascontiguousarray(loaded.picture.transpose(1, 2, 0).astype(np.float32))  # (h, w, 3)
    return finishing.Guide(working, loaded.display, loaded.plate_frame.data_window)


def _confidence(result: FrameResult) -> float:
    """Mean sureness where an object may be; 1 on a key and where there is nothing."""
    sureness = [
        float(fusion.confidence(one[one > _MAYBE]).mean())
        for one in result.probabilities.values()
        if (one > _MAYBE).any()
    ]
    return min(sureness, default=1.0)


@contextmanager
def _reading(frame: int) -> Iterator[None]:
    """What reading a matte may find out, in words."""
    try:
        yield
    except PlateMovedOn as moved:
        raise MatteError(
            f"The matte is stale: the plate changed on {moved.frame}.",
            frame=frame,
            hint="Run `stm shot propagate` again.",
        ) from moved
    except DamagedFileError as damaged:
        raise MatteError(
            "A stored result is damaged.",
            frame=frame,
            path=damaged.path,
            hint="Run `stm shot propagate` again: it is computed anew.",
        ) from damaged


def _not_done(frame: int, why: str, name: str | None = None) -> MatteError:
    which = f"The matte of {name}" if name else "The matte"
    return MatteError(
        f"{which} is not done{f' ({why})' if why else ''}.",
        frame=frame,
        hint="Run `stm shot propagate` first.",
    )
