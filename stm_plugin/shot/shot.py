"""A shot: a plate, the artist's keys, settings, and everything that has been computed for it.

    shot = Shot.create("chair", PlateDescription("files", "plate.####.exr"))
    shot.add_key(1001, Path("mask.exr"))
    shot.propagate(on_event=print)
    shot.export(MatteWriter("matte.####.exr", shot.plate))

Reading (`status`, `plan`, `matte`) is free at any time; what changes the shot takes the store's lock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from model.training.adapt import AdaptOptions, AdaptStep
from model.weights_file import Manifest
from stm_plugin.errors import (
    MaskError,
    MatteError,
    PlateError,
    SettingsError,
    StmError,
    concerning,
)
from stm_plugin.files.lock import Holder
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.images.mask import MaskMode
from stm_plugin.images.plate import PlateSource
from stm_plugin.planning.plan import frames_in_range, make_plan, record_of
from stm_plugin.planning.quality import Advice, Quality, advise
from stm_plugin.planning.values import DirtyRange, Key, Plan, Request, State
from stm_plugin.propagation import adaptation as adapting
from stm_plugin.propagation.events import (
    DamageFound,
    Event,
    FrameComputed,
    FrameFinished,
    Notice,
    PlanMade,
    PlateChanged,
)
from stm_plugin.propagation.execution import Execution, PlateMovedOn, Results
from stm_plugin.propagation.finishing_queue import FinishingQueue
from stm_plugin.propagation.frame_loader import signature_of
from stm_plugin.propagation.memory_forecast import AdaptationForecast, MemoryFit, pick_device
from stm_plugin.propagation.networks import base_network, weights_manifest
from stm_plugin.propagation.propagation import FinishedFrame as FinishedFrame
from stm_plugin.propagation.propagation import NetworkFactory as NetworkFactory
from stm_plugin.propagation.propagation import Propagation, not_done
from stm_plugin.settings import DEFAULT_ADAPT_SECONDS, Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.inputs import inputs_of, note_source
from stm_plugin.shot.opening import check_key_frame, masks_of_arrays, masks_of_file, open_plate
from stm_plugin.store import editing
from stm_plugin.store.description import AdaptationRecord, PlateDescription, ShotDescription
from stm_plugin.store.store import ShotStore, StoreSize
from stm_plugin.windows import FloatArray, Window

MOST_PLANS = 20
"""How often one propagation starts anew because the plate changed under it or a result was damaged."""

Emit = Callable[[Event], None]
Cancelled = Callable[[], bool]


def silent(event: Event) -> None:
    """Nobody listens."""


def never() -> bool:
    """Nobody cancels."""
    return False


@dataclass(frozen=True)
class KeyInfo:
    """A key by the names of its objects; `empty` names those with an empty mask ("not here").

    After `add_key`, `kept` and `dropped` name objects of the key before that the new mask does not give.
    """

    frame: int
    objects: tuple[str, ...]
    empty: tuple[str, ...]
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShotStatus:
    """What is done, stale and missing, and why.

    Attributes:
        states: of every frame of the range.
        dirty: what a propagation would compute, in words (`str` of each).
        network_frames: how often the network would run.
        plate_missing: frames of the plate that are not there.
        holder: who is working on the shot now, if anyone else is.
        adapted: the adaptation that the shot uses.
        advice: what might be done about the shot, in sentences.
        next_key: where the next key would help most, if anything is in doubt.
    """

    keys: tuple[KeyInfo, ...]
    objects: tuple[str, ...]
    states: Mapping[int, State]
    dirty: tuple[DirtyRange, ...]
    network_frames: int
    plate_missing: tuple[int, ...]
    size: StoreSize
    holder: Holder | None
    adapted: AdaptationRecord | None = None
    advice: tuple[str, ...] = ()
    next_key: Advice | None = None

    def count(self, state: State) -> int:
        return Counter(self.states.values())[state]


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
        network: gives the network for settings and device; that of the settings' weights by default.
    """

    def __init__(self, store: ShotStore, plate: PlateSource, network: NetworkFactory | None = None) -> None:
        self.store, self.plate = store, plate
        self._description = store.description()
        self._network = network
        self._propagation: Propagation | None = None
        self._on_event: Emit = silent
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
            open_plate(Path(folder), plate, settings)
        store = ShotStore.create(folder, ShotDescription(plate, settings))
        return cls(store, open_plate(store.plate_folder, plate, settings), network)

    @classmethod
    def open(cls, folder: str | Path, *, network: NetworkFactory | None = None) -> Shot:
        """Open a shot that exists. StoreError or PlateError where it cannot be."""
        store = ShotStore.open(folder)
        description = store.description()
        return cls(store, open_plate(store.plate_folder, description.plate, description.settings), network)

    def close(self) -> None:
        """Give back threads and memory. Everything is on disk already."""
        with self._mutex:
            if self._propagation is not None:
                self._propagation.close()
            self._propagation = None

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
    def adaptation(self) -> AdaptationRecord | None:
        """What the network learnt from the keys, used or not."""
        return self._description.adaptation

    @property
    def adaptation_fits(self) -> bool:
        """Whether the network has learnt from just these keys, beginning from the settings' weights."""
        return self.adaptation is not None and not self._advice(self.adaptation)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects in their order."""
        return tuple(one.name for one in self._description.objects)

    @property
    def keys(self) -> tuple[KeyInfo, ...]:
        """The keys, ascending."""
        names = self._description.names
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
        before, now = self._description, self.store.description()
        self._description = now
        if before.adaptation != now.adaptation:
            self.close()
        if (before.plate, before.settings) != (now.plate, now.settings):
            self.plate = open_plate(self.store.plate_folder, now.plate, now.settings)
            self.close()

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
        check_key_frame(self.plate, frame)
        original: Path | None = None
        if isinstance(mask, Mapping):
            canvas = self.plate.canvas
            masks = masks_of_arrays(mask, window or canvas, canvas, frame=frame, allow_empty=allow_empty)
        else:
            original = Path(mask)
            masks = masks_of_file(
                original,
                self.plate,
                frame=frame,
                objects=objects,
                mode=mode,
                channel=channel,
                allow_empty=allow_empty,
            )
        with self._writing(wait) as description, concerning(frame):
            before = {name for key in self.keys if key.frame == frame for name in key.objects}
            description = editing.with_objects(description, masks, frame)
            kept = {
                editing.id_of(description, name): self.store.put_mask(values, self.plate.canvas)
                for name, values in masks.items()
            }
            originals = [] if original is None else [self.store.keep_original(frame, original)]
            if original is not None:
                note_source(self.folder, frame, original)
            self._save(editing.with_key(description, frame, kept, originals, replace_all=replace_all))
        others = tuple(name for name in self.objects if name in before - set(masks))
        key = next(one for one in self.keys if one.frame == frame)
        return replace(key, dropped=others) if replace_all else replace(key, kept=others)

    def remove_key(
        self, frame: int, objects: Sequence[str] | None = None, *, wait: float | None = 0.0
    ) -> None:
        """Take a key away, or some of its objects. KeyframeError where there is none."""
        with self._writing(wait) as description:
            self._save(editing.without_key(description, frame, objects))

    def rename_object(self, old: str, new: str, *, wait: float | None = 0.0) -> None:
        """Give an object another name. Nothing is computed again. SettingsError for a name that is taken."""
        with self._writing(wait) as description:
            self._save(editing.with_renamed_object(description, old, new))

    def remove_object(self, name: str, *, wait: float | None = 0.0) -> None:
        """Take an object and all its masks away. Objects that shared keys with it are computed again."""
        with self._writing(wait) as description:
            self._save(editing.without_object(description, name))

    def set_settings(self, settings: Settings, *, wait: float | None = 0.0) -> None:
        """Change settings. What depends on them becomes stale, and nothing else."""
        if settings == self.settings:
            return
        with self._writing(wait) as description:
            if settings.adapt:
                adapting.check_adaptation(description.adaptation, self._base_manifest(settings))
            opened = open_plate(self.store.plate_folder, description.plate, settings)
            self._save(replace(description, settings=settings))
            self.plate = opened
            self.close()

    def set_plate(self, plate: PlateDescription, *, wait: float | None = 0.0) -> None:
        """Describe the plate anew (another range, other files). Frames with the same content stay done."""
        with self._writing(wait) as description:
            opened = open_plate(self.store.plate_folder, plate, description.settings)
            if plate != description.plate:
                self._save(replace(description, plate=plate))
            self.plate = opened
            self.close()

    # ---- looking at it ----

    def plan(self, request: Request | None = None) -> Plan:
        """What a propagation would do now. KeyframeError where there is no key."""
        facts = self._working.facts(self._description)
        return make_plan(facts, request or Request(), self.store.has, self.store.history())

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
            adapted=self.adaptation if self.settings.adapt else None,
            advice=self._advice(self.adaptation) if self.settings.adapt else (),
            next_key=None if plan is None else self.next_key(plan),
        )

    def next_key(self, plan: Plan) -> Advice | None:
        """Where the next key would help most, judging by the frames of a plan that are done."""
        qualities = self.store.qualities()
        current = {
            one.frame: qualities[one.frame]
            for one in plan.frames
            if one.state is State.DONE
            and one.frame in qualities
            and qualities[one.frame].address == one.address
        }
        return advise(current, {key.frame for key in self._description.keys})

    def matte(self, frame: int) -> FinishedFrame:
        """The finished matte of one frame.

        Raises:
            MatteError: it is stale or was never computed; the message says why.
            PlateError: the plate frame cannot be read.
        """
        plan = self.plan(Request(frame, frame))
        with self._reading(frame):
            return self._working.finished(self._description, plan, self._results(plan), frame)

    def display(self, frame: int) -> FloatArray:
        """The plate frame as the network's colours show it: (h, w, 3) sRGB in [0, 1] over its data window.

        Raises:
            PlateError: the plate frame cannot be read.
        """
        return self._working.frames.load(frame).display()

    # ---- doing ----

    def forecast(self, plan: Plan) -> MemoryFit:
        """The memory that a plan will need, and what must be lowered to fit. DeviceError if nothing fits."""
        return self._working.forecast(plan)

    def propagate(
        self,
        request: Request | None = None,
        *,
        on_event: Emit = silent,
        cancelled: Cancelled = never,
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
        notices: list[str] = []

        def emit(event: Event) -> None:
            counts[type(event).__name__] += 1
            counts["reused"] += isinstance(event, FrameComputed) and event.reused
            if isinstance(event, Notice):
                notices.append(event.text)
            on_event(event)

        self.store.lock.acquire(wait, cancelled)
        self._on_event = emit
        try:
            self.refresh()
            self.store.tidy()
            if writer is not None:
                self._begin(writer, request, emit)
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
            self._on_event = silent
            self.store.lock.release()
        return PropagationSummary(
            frames=len(frames_in_range(tuple(self.plate.frames), request or Request())),
            computed=counts["FrameComputed"] - counts["reused"],
            reused=counts["reused"],
            seconds=time.monotonic() - started,
            device=pick_device(self.settings.device),
            forecast=str(fit.forecast),
            notices=tuple(notices),
        )

    def adapt(
        self,
        options: AdaptOptions | None = None,
        *,
        seconds: float = DEFAULT_ADAPT_SECONDS,
        on_forecast: Callable[[AdaptationForecast], None] = lambda forecast: None,
        on_step: Callable[[AdaptStep], None] = lambda step: None,
        cancelled: Cancelled = never,
        wait: float | None = 0.0,
    ) -> AdaptationRecord:
        """Let the network learn from the shot's keys, keep that in the shot, and switch it on.

        Every matte becomes stale, once. `adapt` = false in the settings brings the earlier ones back.
        It begins from the settings' weights each time: what was learnt before does not count.

        Args:
            seconds: stop after this time with what is learnt by then.
            on_forecast: gets the memory that it will need, before it begins.
            on_step: gets every step, in this thread.
            cancelled: asked after every step; then nothing changes.

        Raises:
            DeviceError: the memory there is does not suffice; nothing has changed.
            KeyframeError: no key, or none that shows enough of an object.
            MaskError: the stored mask of a key is damaged.
            SettingsError: the shot's network was brought along and has no weights file.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
            PropagationCancelled: `cancelled` said so.
        """
        with self._writing(wait) as description:
            base = self._base_manifest(self.settings)
            if base is None:
                raise SettingsError("Only a network with a weights file can be adapted.")
            context = self._working.context()
            # nothing of the plate is taken for known: the keys are read as they are now
            facts = replace(self._working.facts(description), plate={})
            chosen = options or adapting.default_options(self.settings)
            on_forecast(self._working.forecast_adaptation(facts, chosen))
            results = Results(context, facts)
            try:
                adapted_network = adapting.learn(
                    base_network(self.settings.weights),
                    results,
                    chosen,
                    device=pick_device(self.settings.device),
                    seconds=seconds,
                    on_step=on_step,
                    cancelled=cancelled,
                )
            except DamagedFileError as damaged:
                self._remove_damaged(damaged.path)
                raise
            record = adapting.keep(self.folder, adapted_network, base, results.facts, chosen)
            settings = replace(self.settings, adapt=True)
            self._save(replace(description, adaptation=record, settings=settings))
            self.close()
            return record

    def export(
        self,
        writer: MatteWriter,
        request: Request | None = None,
        *,
        on_event: Emit = silent,
        cancelled: Cancelled = never,
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
                raise not_done(one.frame, one.why)
        self._begin(writer, request, on_event)
        for one in plan.frames:
            if cancelled():
                return
            with self._reading(one.frame):
                self._write(plan, results, one.frame, writer)
                on_event(FrameFinished(one.frame, results.address(plan, one.frame)))

    def clean(self, *, memory: bool = True, results: bool = True, wait: float | None = 0.0) -> StoreSize:
        """Delete what can be computed again (`memory`), and results that no key needs any more (`results`).

        Results of frames whose plate is not known right now are kept: whether they are needed cannot be said.

        Returns:
            The bytes that were freed.
        """
        before = self.store.size()
        with self._writing(wait) as description:
            self.store.tidy()
            if results and description.keys:
                addresses = [one for row in self.plan().addresses.values() for one in row]
                if None not in addresses:
                    self.store.remove_results_except({one for one in addresses if one is not None})
            if results:
                used = description.adaptation
                self.store.remove_adaptations_except(None if used is None else used.id)
            if memory:
                self.close()
                self.store.clear_memory()
        after = self.store.size()
        return StoreSize(
            before.keys - after.keys,
            before.mattes - after.mattes,
            before.memory - after.memory,
            before.plate - after.plate,
        )

    # ---- inside ----

    @property
    def _working(self) -> Propagation:
        """The workshop for the plate and the settings as they are."""
        with self._mutex:
            if self._propagation is None:
                self._propagation = Propagation(
                    self.store,
                    self.plate,
                    self.settings,
                    self._network,
                    lambda text: self._on_event(Notice(text)),
                    self.adaptation,
                )
            return self._propagation

    def _base_manifest(self, settings: Settings) -> Manifest | None:
        """Of the weights that the settings name; None where a network was brought along."""
        return weights_manifest(settings.weights) if self._network is None else None

    def _advice(self, record: AdaptationRecord | None) -> tuple[str, ...]:
        """Why the shot might be adapted again; empty if there is no reason."""
        try:
            record = adapting.check_adaptation(record, self._base_manifest(self.settings))
            adapting.read_adaptation(adapting.adaptation_path(self.folder, record.id))
        except StmError as error:
            return (str(error),)
        frames = set(self.plate.frames)
        keys = [Key(key.frame, key.masks) for key in self._description.keys if key.frame in frames]
        changed = adapting.advice(record, keys, self._working.plate_hash)
        return (changed,) if changed else ()

    def _results(self, plan: Plan) -> Results:
        return Results(self._working.context(), plan.facts)

    def _walk(self, request: Request, emit: Emit, cancelled: Cancelled, writer: MatteWriter | None) -> bool:
        """Plan and execute once; False where a new plan is needed."""
        propagation = self._working
        plan = self.plan(request)
        propagation.check_plate(plan)
        signatures = propagation.signatures(plan)
        if writer is not None:
            writer.remember_in(self.store.exported)
        emit(PlanMade(plan))

        quality_journal = self.store.qualities()

        def write(frame: int) -> Quality | None:
            results = execution.results
            finished = None if writer is None else self._write(plan, results, frame, writer)
            if finished is not None:
                return finished.quality
            before = quality_journal.get(frame)
            if before is not None and before.address == results.address(plan, frame):
                return None
            return results.frame_result(plan, frame).quality

        def note(frame: int, address: str, quality: Quality | None) -> None:
            if quality is not None:
                self.store.record_quality(quality)
            facts = execution.results.facts
            self.store.record(record_of(facts, frame, plan.by_frame[frame].sources, address))

        def finished(frame: int, quality: Quality | None) -> None:
            address = execution.results.address(plan, frame)
            with concerning(frame):
                context.cache.make_room_for(lambda: note(frame, address, quality))
            emit(FrameFinished(frame, address))

        def submit(frame: int) -> None:
            execution.results.plate_hash(frame)
            if writer is None:
                finished(frame, write(frame))
            else:
                queue.submit(frame)

        context = propagation.context()
        execution = Execution(context, plan, emit, cancelled, submit)
        try:
            with FinishingQueue(write, finished) as queue:
                execution.run()
                queue.finish()
        except PlateMovedOn as moved:
            emit(PlateChanged((moved.frame,)))
            return False
        except DamagedFileError as damaged:
            self._remove_damaged(damaged.path)
            emit(DamageFound(str(damaged.path)))
            return False
        changed = tuple(
            frame for frame, sign in signatures.items() if signature_of(self.plate, frame) != sign
        )
        if changed:
            emit(PlateChanged(changed))
        return not changed

    def _begin(self, writer: MatteWriter, request: Request | None, emit: Emit) -> None:
        """Ask the guard of outputs before the first byte. OutputError where it refuses."""
        writer.remember_in(self.store.exported)
        frames = frames_in_range(tuple(self.plate.frames), request or Request())
        notice = writer.begin(inputs_of(self.plate, self.settings, self.folder), self.folder, frames)
        if notice is not None:
            emit(Notice(notice))

    def _remove_damaged(self, path: Path) -> None:
        """A damaged result can be computed again; a damaged mask only the artist can bring back."""
        if path.parent == self.store.folder / "keys":
            raise MaskError(
                "The stored mask of a key is damaged.",
                path=path,
                hint="Give the key's mask again (a copy of your own file lies beside it).",
            )
        path.unlink(missing_ok=True)

    def _fit(self, request: Request, emit: Emit) -> MemoryFit:
        """Make the run fit into the memory there is.

        What has to be lowered stays lowered for this shot: it must not become stale with every change of the
        free memory.
        """
        fit = self.forecast(self.plan(request))
        if fit.reason:
            lowered = replace(
                self.settings,
                memory_cap=fit.memory_cap,
                working_size=max(16, round(self.settings.working_size * fit.working_scale)),
            )
            self._save(replace(self._description, settings=lowered))
            self.close()
            emit(Notice(f"{fit.reason[0].upper()}{fit.reason[1:]}."))
        self._working.limit_ram(fit.run.ram_budget)
        return fit

    def _write(self, plan: Plan, results: Results, frame: int, writer: MatteWriter) -> FinishedFrame | None:
        """Write a frame's file; None where it is as it should be."""
        propagation, description = self._working, self._description
        address = propagation.matte_address(description, plan, results, frame)
        if writer.is_current(frame, address):
            writer.skip(frame)
            return None
        finished = propagation.finished(description, plan, results, frame)
        metadata = propagation.metadata(description, finished)
        propagation.context().cache.make_room_for(lambda: writer.write(finished, address, metadata))
        return finished

    @contextmanager
    def _writing(self, wait: float | None) -> Iterator[ShotDescription]:
        """Hold the lock; gives the description as it is now."""
        self.store.lock.acquire(wait)
        try:
            self.refresh()
            yield self._description
        finally:
            self.store.lock.release()

    @contextmanager
    def _reading(self, frame: int) -> Iterator[None]:
        """What reading a matte may find out, in words. A damaged result leaves: it is computed anew."""
        try:
            yield
        except PlateMovedOn as moved:
            raise MatteError(
                f"The matte is stale: the plate changed on {moved.frame}.",
                frame=frame,
                hint="Run `stm shot propagate` again.",
            ) from moved
        except DamagedFileError as damaged:
            with suppress(OSError):  # a store that cannot be written
                self._remove_damaged(damaged.path)
            raise MatteError(
                "A stored result is damaged.",
                frame=frame,
                path=damaged.path,
                hint="Run `stm shot propagate` again: it is computed anew.",
            ) from damaged

    def _save(self, description: ShotDescription) -> None:
        self.store.save(description)
        self._description = description
