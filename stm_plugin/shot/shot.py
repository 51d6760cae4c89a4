"""A shot: a plate, the artist's keys, settings, and everything that has been computed for it.

    shot = Shot.create("chair", PlateDescription("files", "plate.####.exr"))
    shot.add_key(1001, Path("mask.exr"))
    shot.propagate(on_event=print)
    shot.export(MatteWriter("matte.####.exr", shot.plate))

Reading (`status`, `plan`, `matte`) needs no lock; changing the shot takes the store's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from model.training.adapt import AdaptOptions, AdaptStep
from stm_plugin.configuration import configuration
from stm_plugin.errors import DeviceError, LockedError, PlateError, concerning
from stm_plugin.images.mask import AS_FOUND, check_object_names
from stm_plugin.images.mask import MaskReading as MaskReading
from stm_plugin.images.plate import Plate
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.values import Request
from stm_plugin.propagation import adaptation as adapting
from stm_plugin.propagation.events import Notice
from stm_plugin.propagation.frame_finisher import FinishedFrame as FinishedFrame
from stm_plugin.propagation.memory_forecast import (
    AdaptationForecast,
    MemoryFit,
    pick_device,
    settled,
    slowness,
)
from stm_plugin.propagation.propagation import NetworkFactory as NetworkFactory
from stm_plugin.settings import DEFAULT_ADAPT_SECONDS, Settings, as_kept
from stm_plugin.shapes.options import TOLERANCE
from stm_plugin.shapes.values import ShapeSet
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.inputs import inputs_of, record_source
from stm_plugin.shot.opening import (
    check_key_frame,
    check_licences,
    check_settings,
    keep_movie,
    masks_of_key,
    open_plate,
    with_the_shots_name,
)
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
from stm_plugin.store.store import ShotStore, StoreSize, with_suffix
from stm_plugin.windows import FloatArray, Window

MOST_PLANS = 20
"""How often one propagation makes a new plan because the plate changed or a result was damaged."""


class Shot(ShotReader):
    """A shot that is open. Close it, or use it in a `with` statement."""

    # ---- creating and opening ----

    @classmethod
    def create(
        cls,
        folder: str | Path,
        plate: PlateDescription,
        settings: Settings | None = None,
        *,
        network: NetworkFactory | None = None,
    ) -> Shot:
        """Create a shot.

        Args:
            settings: those of the configuration if None. A precision of `auto` is chosen now, and kept.

        Raises:
            StoreError: there is one already, or the folder cannot be written.
            PlateError: the plate cannot be opened.
            ColourError, WeightsError: its colours cannot be converted, or the weights cannot be used.
            LockedError, LicenceError: the configuration forbids a setting or the weights.
        """
        layers = configuration()
        settings = settings or layers.settings()
        layers.check_change(layers.settings(), settings)
        check_licences(layers, settings, own_network=network is not None)
        settings = settled(settings)
        wanted = ShotStore(with_suffix(folder))
        opened = open_plate(wanted, plate, settings) if plate.kind == "files" else None
        if opened is not None:
            check_settings(opened, settings, own_network=network is not None)
        chosen = layers.machine_choices(settings)
        description = ShotDescription(plate, settings, configured=layers.taken_over(), chosen=chosen)
        store = ShotStore.create(folder, description)
        if opened is not None:
            keep_movie(store, opened)
        return cls(store, opened or open_plate(store, plate, settings), network)

    @classmethod
    def open(cls, folder: str | Path, *, network: NetworkFactory | None = None) -> Shot:
        """Open an existing shot. StoreError or PlateError where it cannot be opened."""
        store = ShotStore.open(folder)
        description = store.description()
        settings = configuration().on_this_machine(description.settings, description.chosen)
        return cls(store, open_plate(store, description.plate, settings), network)

    # ---- changing it ----

    def add_key(
        self,
        frame: int,
        mask: str | Path | Mapping[str, FloatArray],
        *,
        window: Window | None = None,
        reading: MaskReading = AS_FOUND,
        allow_empty: bool = False,
        replace_all: bool = True,
        wait: float | None = 0.0,
    ) -> KeyInfo:
        """Give the masks of one frame.

        Args:
            mask: an image file, or arrays by object name, float32 (h, w) in [0, 1] over `window` (the canvas
                if None). An empty mask means that the object is not in this frame. A file with one object
                that names none is taken for the one object of the shot.
            reading: how a mask file is understood.
            allow_empty: whether all masks may be empty.
            replace_all: forget objects that the key had before and that are not in `mask`.
            wait: seconds to wait for another process that holds the shot.

        Raises:
            KeyframeError: the plate has no such frame.
            MaskError: the mask cannot be used, does not say which of several objects it is, or there would be
                too many objects.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
        """
        masks, original = masks_of_key(mask, self.plate, frame, window, reading, allow_empty)
        if original is not None:
            masks = with_the_shots_name(masks, self.objects, reading, frame, original)
        with self._writing(wait) as description, concerning(frame):
            before = {name for key in self.keys if key.frame == frame for name in key.objects}
            description = editing.with_objects(description, masks, frame)
            kept = {
                editing.id_of(description, name): self.store.put_mask(values, self.plate.canvas)
                for name, values in masks.items()
            }
            originals = [] if original is None else [self.store.keep_original(frame, original)]
            if original is not None:
                record_source(self.folder, frame, original)
            self._save(editing.with_key(description, frame, kept, originals, replace_all=replace_all))
        others = tuple(name for name in self.objects if name in before - set(masks))
        key = next(one for one in self.keys if one.frame == frame)
        return replace(key, dropped=others) if replace_all else replace(key, kept=others)

    def restore_key(self, frame: int, masks: Mapping[str, str], *, wait: float | None = 0.0) -> None:
        """Make a key of masks that the store has kept. A key that there is on the frame is replaced.

        Args:
            masks: by object name, the content of each mask (`KeyMask.hash`).
            wait: as for `add_key`.

        Raises:
            KeyframeError: the plate has no such frame.
            MaskError: the store has no such mask, or it is damaged; or there would be too many objects.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
        """
        check_key_frame(self.plate, frame)
        with self._writing(wait) as description, concerning(frame):
            description = editing.with_objects(description, masks, frame)
            kept = {
                editing.id_of(description, name): self.store.kept_mask(frame, hash_)
                for name, hash_ in masks.items()
            }
            self._save(editing.with_key(description, frame, kept, (), replace_all=True))

    def remove_key(
        self, frame: int, objects: Sequence[str] | None = None, *, wait: float | None = 0.0
    ) -> None:
        """Remove a key, or some of its objects. KeyframeError where there is none."""
        with self._writing(wait) as description:
            self._save(editing.without_key(description, frame, objects))

    def rename_object(self, old: str, new: str, *, wait: float | None = 0.0) -> None:
        """Rename an object. Nothing is computed again. SettingsError for a name that is taken."""
        check_object_names([new])
        with self._writing(wait) as description:
            self._save(editing.with_renamed_object(description, old, new))

    def remove_object(self, name: str, *, wait: float | None = 0.0) -> None:
        """Remove an object and all its masks. Objects that shared keys with it are computed again."""
        with self._writing(wait) as description:
            self._save(editing.without_object(description, name))

    def set_settings(self, settings: Settings, *, wait: float | None = 0.0) -> None:
        """Change settings. Only results that depend on them become stale.

        A precision of `auto` changes nothing: the shot keeps the one that was chosen when it was made.

        Raises:
            LockedError, LicenceError: the configuration forbids a value or the weights.
            ColourError, WeightsError: the colours cannot be converted, or the weights cannot be used.
            Nothing has changed then.
        """
        settings = as_kept(settings, self.settings)
        if settings == self.settings:
            return
        layers = self.configuration
        layers.check_change(self.settings, settings)
        with self._writing(wait) as description:
            if settings.weights != self.settings.weights or settings.finish != self.settings.finish:
                self.check_licences(settings)
            if settings.adapt:
                adapting.check_adaptation(description.adaptation, self._base_manifest(settings))
            opened = open_plate(self.store, description.plate, settings)
            if _checked(settings) != _checked(self.settings):
                check_settings(opened, settings, own_network=self._network is not None)
            chosen = layers.machine_choices(settings)
            self._save(replace(description, settings=settings, chosen=chosen))
            self.plate = opened
            self.close()

    def set_plate(self, plate: PlateDescription, *, wait: float | None = 0.0) -> None:
        """Replace the plate (another range, other files). Frames with the same content stay done."""
        with self._writing(wait) as description:
            opened = open_plate(self.store, plate, self.settings)
            if plate != description.plate:
                self._save(replace(description, plate=plate))
            self.plate = opened
            self.close()

    # ---- computing ----

    def propagate(
        self,
        request: Request | None = None,
        *,
        on_event: Emit = silent,
        cancelled: Cancelled = never,
        writer: MatteWriter | None = None,
        wait: float | None = 0.0,
    ) -> PropagationSummary:
        """Compute the frames that are not done.

        Args:
            on_event: is called with every event, in this thread.
            cancelled: is called before every frame of the network.
            writer: writes every frame of the range as soon as it is final.
            wait: seconds to wait for another process that holds the shot.

        Raises:
            PropagationCancelled: finished frames are kept.
            LockedError, LicenceError: the configuration forbids a setting of the shot or its weights.
            StmError: for any other cause, which its text names; finished frames are kept.
        """
        tally = Tally(on_event)
        self.store.lock.acquire(wait, cancelled)
        self._on_event = tally.on_event
        try:
            self.refresh()
            self.check_allowed()
            self.store.tidy()
            if writer is not None:
                self._begin(writer, request, tally.on_event)
                writer.tidy(self.plate.frames)
            fit = self._fit(request or Request(), tally.on_event)
            if slow := slowness(self.settings):
                tally.on_event(Notice(slow))
            if isinstance(self.plate, Plate) and self.plate.remark:
                tally.on_event(Notice(self.plate.remark))
            self._run(request, tally.on_event, cancelled, writer)
            if writer is not None:
                writer.check_there()
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
        """Adapt the network to the shot's keys, store the adaptation in the shot, and switch it on.

        Every matte becomes stale, once. With `adapt` = false in the settings the earlier mattes are current
        again. Each adaptation starts from the settings' weights; an earlier adaptation does not count.

        Args:
            seconds: it ends after this time; the steps done by then count.
            on_forecast: is called with the memory that it will need, before it begins.
            on_step: is called with every step, in this thread.
            cancelled: is called after every step; where it returns True nothing changes.

        Raises:
            DeviceError: the machine has too little memory; nothing has changed.
            KeyframeError: no key, or none that shows enough of an object.
            MaskError: the stored mask of a key is damaged.
            SettingsError: the shot's network was given as an object and has no weights file.
            StoreBusyError, StoreError: the shot is held, or cannot be written.
            PropagationCancelled: `cancelled` returned True.
        """
        with self._writing(wait) as description:
            settings = replace(description.settings, adapt=True)
            self.configuration.check_change(description.settings, settings)
            self.check_allowed(replace(self.settings, adapt=True))
            run = adapting.AdaptationRun(seconds, on_step, cancelled)
            record = self._working.adapt(options, on_forecast, run)
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
        """Write the mattes of a finished range.

        Raises:
            MatteError: a frame is not done, and nothing was written; or a file was removed meanwhile.
        """
        self.check_allowed()
        plan = self.finished_plan(request)
        self._working.check_done(plan)
        self._begin(writer, request, on_event)
        self._working.export(plan, writer, on_event, cancelled)
        writer.check_there()

    def shapes(
        self,
        request: Request | None = None,
        *,
        objects: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> ShapeSet:
        """The finished mattes as splines; arguments and errors as in `make_shapes`."""
        return make_shapes(self, request, objects=objects, tolerance=tolerance)

    def clean(self, *, memory: bool = True, results: bool = True, wait: float | None = 0.0) -> StoreSize:
        """Delete cached features (`memory`), and results that no key needs any more (`results`).

        Results of frames whose plate hash is unknown are kept, as they may be needed.

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

    # ---- internal ----

    def _run(
        self, request: Request | None, emit: Emit, cancelled: Cancelled, writer: MatteWriter | None
    ) -> None:
        """Make plans and carry them out, until one is finished."""
        for _ in range(MOST_PLANS):
            propagation = self._working
            if propagation.run(propagation.plan(request), writer, emit, cancelled):
                return
        raise PlateError(
            "The plate keeps changing during the run.",
            path=self._description.plate.text or self.folder,
            hint="Wait until it is rendered, and run again: finished frames are kept.",
        )

    def _begin(self, writer: MatteWriter, request: Request | None, emit: Emit) -> None:
        """Check the outputs before the first byte is written. OutputError where one must not be written."""
        writer.remember_in(self.store.exported)
        frames = frames_in_range(tuple(self.plate.frames), request or Request())
        notice = writer.begin(inputs_of(self.plate, self.settings, self.folder), self.folder, frames)
        if notice is not None:
            emit(Notice(notice))

    def _fit(self, request: Request, emit: Emit) -> MemoryFit:
        """Make the run fit into the free memory.

        Lowered sizes stay lowered for this shot. Otherwise its results would become stale whenever the free
        memory changes.
        """
        fit = self.forecast(self.plan(request))
        if fit.reason:
            before = self._description.settings
            lowered = replace(
                before,
                memory_cap=fit.memory_cap,
                working_size=max(16, round(before.working_size * fit.working_scale)),
            )
            self._check_lowering(before, lowered)
            self._save(replace(self._description, settings=lowered))
            self.close()
            emit(Notice(f"{fit.reason[0].upper()}{fit.reason[1:]}."))
        self._working.keep_within(fit.run)
        return fit

    def _check_lowering(self, before: Settings, lowered: Settings) -> None:
        """DeviceError where the machine has too little memory and a lock forbids to need less."""
        try:
            self.configuration.check_change(before, lowered)
        except LockedError as error:
            raise DeviceError(f"The machine has too little memory. {error.what}", hint=error.hint) from error

    @contextmanager
    def _writing(self, wait: float | None) -> Iterator[ShotDescription]:
        """Hold the lock; yields the current description."""
        self.store.lock.acquire(wait)
        try:
            self.refresh()
            yield self._description
        finally:
            self.store.lock.release()

    def _save(self, description: ShotDescription) -> None:
        self.store.save(description)
        self._description = description


def _checked(settings: Settings) -> tuple[object, ...]:
    """The settings that `check_settings` looks at."""
    return settings.weights, settings.ocio_config, settings.colour_space
