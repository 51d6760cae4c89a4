"""A shot: a plate, the artist's keys, settings, and everything that has been computed for it.

    shot = Shot.create("chair", PlateDescription("files", "plate.####.exr"))
    shot.add_key(1001, Path("mask.exr"))
    shot.propagate(on_event=print)
    shot.export(MatteWriter("matte.####.exr", shot.plate))

Reading (`status`, `plan`, `matte`) is free at any time; what changes the shot takes the store's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from model.training.adapt import AdaptOptions, AdaptStep
from stm_plugin.errors import PlateError, concerning
from stm_plugin.images.mask import check_object_names
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.values import Request
from stm_plugin.propagation import adaptation as adapting
from stm_plugin.propagation.events import Notice
from stm_plugin.propagation.frame_finisher import FinishedFrame as FinishedFrame
from stm_plugin.propagation.memory_forecast import AdaptationForecast, MemoryFit, pick_device
from stm_plugin.propagation.propagation import NetworkFactory as NetworkFactory
from stm_plugin.settings import DEFAULT_ADAPT_SECONDS, Settings
from stm_plugin.shapes.options import TOLERANCE
from stm_plugin.shapes.values import ShapeSet
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.inputs import inputs_of, note_source
from stm_plugin.shot.opening import MaskReading as MaskReading
from stm_plugin.shot.opening import masks_of_key, open_plate
from stm_plugin.shot.reader import ShotReader
from stm_plugin.shot.shapes import make_shapes
from stm_plugin.shot.values import Cancelled as Cancelled
from stm_plugin.shot.values import Emit as Emit
from stm_plugin.shot.values import KeyInfo as KeyInfo
from stm_plugin.shot.values import PropagationSummary as PropagationSummary
from stm_plugin.shot.values import ShotStatus as ShotStatus
from stm_plugin.shot.values import Tally
from stm_plugin.shot.values import never as never
from stm_plugin.shot.values import silent as silent
from stm_plugin.store import editing
from stm_plugin.store.description import AdaptationRecord, PlateDescription, ShotDescription
from stm_plugin.store.store import ShotStore, StoreSize
from stm_plugin.windows import FloatArray, Window

MOST_PLANS = 20
"""How often one propagation starts anew because the plate changed under it or a result was damaged."""

_AS_FOUND = MaskReading()


class Shot(ShotReader):
    """A shot that is open. Close it, or use it in a `with` statement."""

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

    # ---- changing it ----

    def add_key(
        self,
        frame: int,
        mask: str | Path | Mapping[str, FloatArray],
        *,
        window: Window | None = None,
        reading: MaskReading = _AS_FOUND,
        allow_empty: bool = False,
        replace_all: bool = True,
        wait: float | None = 0.0,
    ) -> KeyInfo:
        """Give the masks of one frame.

        Args:
            mask: an image file, or arrays by object name, float32 (h, w) in [0, 1] over `window` (the canvas
                if None). An empty mask says that the object is not here.
            reading: how to understand a file.
            allow_empty: whether all masks may be empty.
            replace_all: forget objects that the key gave before and that are not in `mask`.
            wait: seconds to wait for another process that holds the shot.

        Raises:
            KeyframeError: the plate has no such frame.
            MaskError: the mask cannot be used, or there would be too many objects.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
        """
        masks, original = masks_of_key(mask, self.plate, frame, window, reading, allow_empty)
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
        check_object_names([new])
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

    # ---- doing ----

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
        tally = Tally(on_event)
        self.store.lock.acquire(wait, cancelled)
        self._on_event = tally.on_event
        try:
            self.refresh()
            self.store.tidy()
            if writer is not None:
                self._begin(writer, request, tally.on_event)
                writer.tidy(self.plate.frames)
            fit = self._fit(request or Request(), tally.on_event)
            self._run(request, tally.on_event, cancelled, writer)
        finally:
            self._on_event = silent
            self.store.lock.release()
        frames = frames_in_range(tuple(self.plate.frames), request or Request())
        return tally.summary(len(frames), pick_device(self.settings.device), str(fit.forecast))

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
            learning = adapting.LearningOptions(seconds, on_step, cancelled)
            record = self._working.adapt(options, on_forecast, learning)
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
        self._working.check_done(plan)
        self._begin(writer, request, on_event)
        self._working.export(plan, writer, on_event, cancelled)

    def shapes(
        self,
        request: Request | None = None,
        *,
        objects: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> ShapeSet:
        """The finished mattes as splines; arguments and errors are those of `make_shapes`."""
        return make_shapes(self, request, objects=objects, tolerance=tolerance)

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

    def _run(
        self, request: Request | None, emit: Emit, cancelled: Cancelled, writer: MatteWriter | None
    ) -> None:
        """Plan and carry out, until a plan has come to its end."""
        for _ in range(MOST_PLANS):
            propagation = self._working
            if propagation.run(propagation.plan(request), writer, emit, cancelled):
                return
        raise PlateError(
            "The plate keeps changing while it is being worked on.",
            path=self._description.plate.text or self.folder,
            hint="Wait until it is rendered, and run again: finished frames are kept.",
        )

    def _begin(self, writer: MatteWriter, request: Request | None, emit: Emit) -> None:
        """Ask the guard of outputs before the first byte. OutputError where it refuses."""
        writer.remember_in(self.store.exported)
        frames = frames_in_range(tuple(self.plate.frames), request or Request())
        notice = writer.begin(inputs_of(self.plate, self.settings, self.folder), self.folder, frames)
        if notice is not None:
            emit(Notice(notice))

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
