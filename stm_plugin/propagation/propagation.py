"""The propagation of a shot: makes plans and carries them out.

A propagation belongs to one plate and one set of settings; when these change, the shot makes a new one. Keys
and objects may change: the shot then replaces `description`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from model.inference.allocator import keep_freed_memory, release_freed_memory
from model.network.config import NetworkConfig, network_config
from model.network.memory import THINNING, MemoryRule
from model.training.adapt import AdaptOptions
from model.weights_file import Manifest
from stm_plugin.errors import MatteError, PlateError, SettingsError, StmError, StoreError
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.device_pictures import DevicePictures, pictures_on
from stm_plugin.images.matte import MetadataValue
from stm_plugin.images.plate import MOST_PIXEL_BYTES, Plate, PlateSource, held_pixel_bytes
from stm_plugin.images.working_picture import WorkingGeometry, working_geometry
from stm_plugin.planning.plan import make_plan, take_turns
from stm_plugin.planning.quality import Quality, adapting_may_help, hidden_keys, small_objects
from stm_plugin.planning.values import Facts, Key, Plan, Request, State
from stm_plugin.propagation.adaptation import (
    AdaptationRun,
    adapt_to_keys,
    adaptation_path,
    advice,
    check_adaptation,
    default_options,
    keep,
    read_adaptation,
)
from stm_plugin.propagation.context import Network, PlateMovedOn, PropagationContext
from stm_plugin.propagation.events import DamageFound, Event, FrameFinished, PlanMade, PlateChanged
from stm_plugin.propagation.execution import Execution
from stm_plugin.propagation.feature_cache import FeatureCache
from stm_plugin.propagation.frame_finisher import FrameFinisher, FrameOutput, FrameWriter, not_done
from stm_plugin.propagation.frame_loader import FrameLoader, LoadedFrame, signature_of
from stm_plugin.propagation.memory_forecast import (
    AdaptationForecast,
    AdaptationMemory,
    MemoryFit,
    MemoryRequest,
    check_adaptation_memory,
    fit_memory,
    free_memory,
    passes_in_turn,
    pick_device,
    precision_of,
    predict_memory,
    settled,
)
from stm_plugin.propagation.networks import base_network, changed_weights, ready_network, weights_manifest
from stm_plugin.propagation.resident_limit import ResidentLimit, resident_memory
from stm_plugin.propagation.results import Material, Results
from stm_plugin.propagation.workers import Workers, most_workers
from stm_plugin.settings import Settings, shown_settings
from stm_plugin.store.description import AdaptationRecord, ShotDescription
from stm_plugin.store.store import ShotStore

NetworkFactory = Callable[[Settings, str], Network]


class Propagation:
    """Makes plans and carries them out. Several threads may read; one at a time may compute.

    Args:
        description: of the shot. Its settings must not change; keys and objects may be replaced.
        network: makes the network for settings and device; that of the settings' weights if None.
        warn: is called with a sentence for people.
    """

    def __init__(
        self,
        store: ShotStore,
        plate: PlateSource,
        description: ShotDescription,
        network: NetworkFactory | None,
        warn: Callable[[str], None],
    ) -> None:
        self.description = description
        self.store, self.plate, self.settings = store, plate, settled(description.settings)
        settings = self.settings
        self.geometry: WorkingGeometry = working_geometry(
            plate.canvas, plate.pixel_aspect, settings.working_size, settings.region
        )
        self._network = network
        self._warn = warn
        self._adaptation = description.adaptation
        self._mutex = threading.RLock()
        self._colour: ColourTransform | None = None
        self._loader: FrameLoader | None = None
        self._cache: FeatureCache | None = None
        self._ram_budget = settings.ram_budget
        self._workers = Workers()
        self._turns = 1
        self._resident_limit: ResidentLimit | None = None
        self._mask_areas: dict[str, float] = {}  # by the mask's hash
        self._recorded: dict[int, int] = {}  # by frame: the recorded hash
        self._read: dict[
            int, dict[str, Any]
        ] = {}  # by frame: as in the store's index, but read without its lock

    def close(self) -> None:
        """End the threads and release the memory."""
        with self._mutex:
            loader, self._loader = self._loader, None
            cache, self._cache = self._cache, None
        if loader is not None:
            loader.close()  # without the lock: its threads record what they read under it
        if cache is not None:
            cache.limit_ram(0)  # now, whatever still refers to it
            release_freed_memory()

    # ---- the parts ----

    @property
    def colour(self) -> ColourTransform:
        """The transform from the plate's colour space, which is found from the first existing frame.

        Raises:
            PlateError: no frame exists.
            ColourError: the config or the space cannot be used.
        """
        with self._mutex:
            if self._colour is None:
                missing = set(self.plate.missing)
                first = next((frame for frame in self.plate.frames if frame not in missing), None)
                if first is None:
                    raise PlateError("No frame of the plate exists.", path=self.store.folder)
                config = load_config(self.settings.ocio_config)
                space = find_input_space(self.plate.header(first), config, self.settings.colour_space)
                self._colour = ColourTransform(config, space.name)
            return self._colour

    @property
    def frames(self) -> FrameLoader:
        """The loader of plate frames."""
        with self._mutex:
            if self._loader is None:
                self._loader = FrameLoader(
                    self.plate, self.colour, self.geometry, self._record, self._workers, self._pictures()
                )
            return self._loader

    def _pictures(self) -> DevicePictures | None:
        """Pictures on the network's card; None where it runs on a processor."""
        device = pick_device(self.settings.device)
        return pictures_on(self.colour.tables(), self.geometry, device) if device.startswith("cuda") else None

    def manifest(self) -> Manifest | None:
        """The manifest of the weights; None for a given network."""
        return weights_manifest(self.settings.weights) if self._network is None else None

    def adapted(self) -> AdaptationRecord | None:
        """The adaptation in use, or None.

        Raises:
            SettingsError, WeightsError: the settings ask for an adaptation, but none fits these weights.
        """
        return check_adaptation(self._adaptation, self.manifest()) if self.settings.adapt else None

    def context(self, plan: Plan | None = None) -> PropagationContext:
        """What an execution uses. The network is loaded when it is first needed.

        Raises:
            WeightsError: the weights are not those of the plan.
        """
        keep_freed_memory()  # frames are as large as feature maps, also where the network is on a card
        settings = self.settings
        device = pick_device(settings.device)
        manifest, features_base = self.manifest(), self._features_base()
        planned = {} if plan is None else plan.facts.base
        if planned and planned["weights"] != features_base["weights"]:
            raise changed_weights(settings.weights)
        loaded: list[Network] = []

        def network() -> Network:
            if not loaded and self._network is not None:
                loaded.append(self._network(settings, device))
            elif not loaded:
                record = self.adapted()
                file = None if record is None else adaptation_path(self.store.folder, record.id)
                expects = "" if manifest is None else manifest.id
                loaded.append(ready_network(settings.weights, device, precision_of(settings), file, expects))
            return loaded[0]

        with self._mutex:
            if self._cache is None:
                folder = self.store.memory_folder
                self._cache = FeatureCache(self._ram_budget, folder, settings.disk_budget, self._warn)
            return PropagationContext(
                store=self.store,
                cache=self._cache,
                loader=self.frames,
                network=network,
                geometry=self.geometry,
                rule=MemoryRule.parse(settings.memory_rule),
                memory_cap=settings.memory_cap,
                features_base=features_base,
                weights=settings.weights,
                resident_limit=self._resident_limit,
                turns=self._turns,
            )

    # ---- plans and their execution ----

    def plan(self, request: Request | None = None) -> Plan:
        """The plan of a propagation. KeyframeError where there is no key."""
        return make_plan(self.facts(), request or Request(), self.store.has, self.store.history())

    def finished_plan(self, request: Request | None = None) -> Plan:
        """The plan of a range that should be done. Frames whose file was touched are read again: a new link,
        other rights or a restored copy leave their pixels as they were."""
        plan = self.plan(request)
        if all(one.is_done for one in plan.frames):
            return plan
        known = self._known_plate()
        touched = [frame for frame in self.store.plate_index.load() if frame not in known]
        for frame in sorted({*touched} & {*self.plate.frames} - {*self.plate.missing}):
            self.plate_hash(frame)
        return self.plan(request)

    def finisher(self, plan: Plan) -> FrameFinisher:
        """The finisher of a plan's frames."""
        context = self.context(plan)
        return FrameFinisher(context, Results(context, plan), self.description, self._metadata())

    def run(
        self,
        plan: Plan,
        writer: FrameWriter | None,
        on_event: Callable[[Event], None],
        cancelled: Callable[[], bool],
    ) -> bool:
        """Carry out a plan; False where a new plan is needed: the plate changed, or a result was damaged.

        Args:
            writer: writes every frame of the plan as soon as it is final.
            on_event: is called with every event, in this thread.
            cancelled: is called before every step.

        Raises:
            PropagationCancelled: finished frames are kept.
            StmError: for any other cause, which its text names; finished frames are kept.
        """
        self._check_plate(plan)
        self._recorded = {
            frame: self._recorded[frame] for frame in self._recorded if frame in plan.facts.plate
        }
        signatures = self._signatures(plan)
        on_event(PlanMade(plan))
        finisher = self.finisher(take_turns(plan, self._turns))
        try:
            with FrameOutput(self.context(plan), finisher, writer, on_event) as output:
                Execution(self.context(plan), finisher.results, on_event, cancelled, output.submit).run()
                output.finish()
        except PlateMovedOn as moved:
            self.distrust()
            on_event(PlateChanged((moved.frame,)))
            return False
        except DamagedFileError as damaged:
            damaged.path.unlink(missing_ok=True)  # it is computed again
            on_event(DamageFound(str(damaged.path)))
            return False
        changed = tuple(
            frame for frame, sign in signatures.items() if signature_of(self.plate, frame) != sign
        )
        if changed:
            on_event(PlateChanged(changed))
        return not changed

    def export(
        self,
        plan: Plan,
        writer: FrameWriter,
        on_event: Callable[[Event], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Write the mattes of a plan that is carried out. MatteError where one cannot be read."""
        finisher = self.finisher(plan)
        for one in plan.frames:
            if cancelled():
                return
            with self.reading(one.frame):
                finisher.write(one.frame, writer)
                on_event(FrameFinished(one.frame, finisher.results.address(one.frame)))

    def check_done(self, plan: Plan) -> None:
        """MatteError where a frame of the plan is not computed; the text names it."""
        for one in plan.frames:
            if not one.is_done:
                raise not_done(one.frame, one.why)

    @contextmanager
    def reading(self, frame: int) -> Iterator[None]:
        """Turn errors of reading a matte into errors for people. A damaged result is deleted, to be computed
        anew."""
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
                damaged.path.unlink(missing_ok=True)
            raise MatteError(
                "A stored result is damaged.",
                frame=frame,
                path=damaged.path,
                hint="Run `stm shot propagate` again: it will be computed again.",
            ) from damaged

    def adapt(
        self,
        options: AdaptOptions | None,
        on_forecast: Callable[[AdaptationForecast], None],
        run: AdaptationRun,
    ) -> AdaptationRecord:
        """Adapt the network to the keys and store the adaptation.

        Raises:
            SettingsError: the network was given as an object and has no weights file.
            StmError: see `Shot.adapt`.
        """
        base = self.manifest()
        if base is None:
            raise SettingsError("Only a network with a weights file can be adapted.")
        # hashes of the plate are taken anew: the keys' frames are read in their present state
        material = Material(self.context(), replace(self.facts(), plate={}))
        chosen = options or default_options(self.settings)
        on_forecast(self._forecast_adaptation(material.facts, chosen))
        network, device = base_network(self.settings.weights), pick_device(self.settings.device)
        adapted = adapt_to_keys(network, material, chosen, device=device, run=run)
        return keep(self.store.folder, adapted, base, material.facts, chosen)

    def adaptation_advice(self, record: AdaptationRecord | None) -> tuple[str, ...]:
        """Why the shot should be adapted again; empty if there is no reason."""
        try:
            record = check_adaptation(record, self.manifest())
            read_adaptation(adaptation_path(self.store.folder, record.id))
        except StmError as error:
            return (str(error),)
        frames = set(self.plate.frames)
        keys = [Key(key.frame, key.masks) for key in self.description.keys if key.frame in frames]
        changed = advice(record, keys, self.plate_hash)
        return (changed,) if changed else ()

    def qualities(self, plan: Plan) -> dict[int, Quality]:
        """The quality of the up-to-date frames of a plan."""
        found = self.store.qualities()
        return {
            one.frame: found[one.frame]
            for one in plan.frames
            if one.state is State.DONE and one.frame in found and found[one.frame].address == one.address
        }

    def advice(self, plan: Plan | None) -> tuple[str, ...]:
        """Advice on keys and adapting, in sentences. `plan`: None without a key."""
        names, areas = self.description.names, self._key_areas()
        said = [
            f"The key on {frame} shows little of {names[name]} "
            f"({100 * share:.0f} % of what another key shows): it is used little where more of it is seen."
            for frame, name, share in hidden_keys(areas)
        ]
        said += [
            f"{names[name]} is small for the network ({side:.0f} working pixels across): "
            "a region around it, or a larger working size, shows it larger."
            for name, side in small_objects(areas, self.geometry.scale_x * self.geometry.scale_y)
        ]
        if self.settings.adapt:
            said += self.adaptation_advice(self._adaptation)
        elif plan and self._network is None and adapting_may_help([*self.qualities(plan).values()]):
            said.append("The network is uncertain on most frames: `stm adapt` may help (check its result).")
        return tuple(said)

    def _key_areas(self) -> dict[int, dict[str, float]]:
        """Pixels of the masks that are not empty, by frame and object, as far as they can be read."""
        areas: dict[int, dict[str, float]] = {}
        for key in self.description.keys:
            for name, mask in key.masks.items():
                if mask.empty:
                    continue
                if mask.hash not in self._mask_areas:
                    with suppress(StmError, DamagedFileError):
                        self._mask_areas[mask.hash] = float(self.store.mask(mask.hash)[0].sum())
                if mask.hash in self._mask_areas:
                    areas.setdefault(key.frame, {})[name] = self._mask_areas[mask.hash]
        return areas

    # ---- the facts that a plan is made from ----

    def facts(self) -> Facts:
        """The facts that a plan depends on.

        Keys outside the plate's range are inactive: they are kept, and count again when the range includes
        them. Without any plate frame the colour space is unknown, no result has an address, and every frame
        is missing.
        """
        frames = frozenset(self.plate.frames)
        description = self.description
        has_pictures = len(self.plate.missing) < len(frames)
        return Facts(
            frames=tuple(self.plate.frames),
            objects=tuple(one.id for one in description.objects),
            keys=tuple(Key(key.frame, key.masks) for key in description.keys if key.frame in frames),
            base=self._base() if has_pictures else {},
            plate=self._known_plate() if has_pictures else {},
            settings=shown_settings(self.settings),
        )

    def _base(self) -> dict[str, str]:
        """What every probability depends on, by names for people."""
        base = {**self._features_base(), "memory settings": f"{self.settings.id('memory')} {THINNING}"}
        network = self._network_config()
        # The paper's read adds no entry, so addresses of stores from before other reads stay valid.
        if network.previous_frame_cap != 1:
            base["share of the previous frame"] = (
                f"{network.previous_frame_cap}, of all but the key; {network.key_weight} of the rest "
                f"for keys; 1 below {1 - network.shrink_guard} of an area"
            )
        return base

    def _signatures(self, plan: Plan) -> dict[int, str | None]:
        """Signatures of all plate frames of a plan."""
        frames = {one.frame for one in plan.frames}
        for passed in plan.passes:
            frames |= {passed.key, *passed.frames}
        return {frame: signature_of(self.plate, frame) for frame in sorted(frames)}

    def _check_plate(self, plan: Plan) -> None:
        """Check, before anything is computed, that every plate frame of a plan exists.

        Raises:
            PlateError: a frame is missing; the text names the first one.
        """
        needed = {step.frame for step in plan.steps}
        for step in plan.compute_steps:
            needed |= {step.passed.key}
        gone = sorted(needed & set(self.plate.missing))
        if gone:
            count = "1 frame of the plate is" if len(gone) == 1 else f"{len(gone)} frames of the plate are"
            raise PlateError(
                f"{count} missing, this one first.",
                frame=gone[0],
                path=self.plate.sequence.path(gone[0]) if isinstance(self.plate, Plate) else None,
                hint="Add the frames, or give a range without them.",
            )

    def forecast(self, plan: Plan, *, workers: int | None = None) -> MemoryFit:
        """The memory that a plan needs, and the sizes that fit.

        Args:
            workers: readers, and as many finishers; if None, as many as there are processors for.

        Raises:
            DeviceError: nothing fits.
        """
        device = pick_device(self.settings.device)
        run = MemoryRequest(
            config=self._network_config(),
            height=self.geometry.height,
            width=self.geometry.width,
            objects=max((len(one.objects) for one in plan.passes), default=1),
            memory_cap=self.settings.memory_cap,
            precision=precision_of(self.settings),
            device=device,
            frames=len({step.frame for step in plan.compute_steps}),
            frames_at_most=len({step.frame for step in plan.steps}),
            ram_budget=self.settings.ram_budget,
            plate_pixels=self.plate.canvas.width * self.plate.canvas.height,
            learned_edges=self.settings.finish.edges == "learned",
            foreground=self.settings.foreground,
            plate_pixel_bytes=self._pixel_bytes(),
            workers=workers or most_workers(),
            turns=min(passes_in_turn(device), len({step.passed.name for step in plan.compute_steps}) or 1),
            program_bytes=_program_bytes() if device == "cpu" else 0,
        )
        return fit_memory(run, free_memory(device) + self._ram_held())

    def _forecast_adaptation(self, facts: Facts, options: AdaptOptions) -> AdaptationForecast:
        """The memory that adapting to the keys needs. DeviceError if it does not fit."""
        device = pick_device(self.settings.device)
        sizes = AdaptationMemory(
            config=self._network_config(),
            keys=len(facts.keys),
            objects=max((len(key.masks) for key in facts.keys), default=1),
            height=self.geometry.height,
            width=self.geometry.width,
            options=options,
            device=device,
            plate_pixels=self.plate.canvas.width * self.plate.canvas.height,
        )
        return check_adaptation_memory(sizes, free_memory(device) + self._ram_held())

    def _pixel_bytes(self) -> int:
        """Of one plate pixel as it is held."""
        missing = set(self.plate.missing)
        first = next((frame for frame in self.plate.frames if frame not in missing), None)
        return MOST_PIXEL_BYTES if first is None else held_pixel_bytes(self.plate.header(first).metadata)

    def keep_within(self, run: MemoryRequest) -> None:
        """Take no more memory than was forecast for a run: for cached features, and in frames at work."""
        self.limit_ram(run.ram_budget)
        workers = Workers(run.workers, run.workers)
        with self._mutex:
            on_cpu = run.device == "cpu"  # else the forecast is of another memory
            self._resident_limit = ResidentLimit(predict_memory(run).total) if on_cpu else None
            loader = self._loader
            if loader is not None and loader.workers != workers:
                self._loader = None
            else:
                loader = None
            self._workers, self._turns = workers, run.turns
        if loader is not None:
            loader.close()  # without the lock, as in `close`

    def limit_ram(self, budget: int) -> None:
        """Keep cached features within this many bytes."""
        with self._mutex:
            self._ram_budget = budget
            if self._cache is not None:
                self._cache.limit_ram(budget)

    def _network_config(self) -> NetworkConfig:
        """The configuration of the weights in use; for a given network, that of the default one."""
        manifest = self.manifest()
        return network_config("stm-lite" if manifest is None else manifest.architecture)

    def _ram_held(self) -> int:
        """Bytes of cached features, which could be freed."""
        return 0 if self._cache is None else self._cache.ram.bytes

    def _metadata(self) -> dict[str, MetadataValue]:
        """The attributes of every matte's file that state how it was made."""
        settings = self.settings
        values: dict[str, MetadataValue] = {
            "stm:keys": " ".join(str(key.frame) for key in self.description.keys),
            "stm:memory_rule": settings.memory_rule,
            "stm:memory_cap": settings.memory_cap,
            "stm:working_size": settings.working_size,
            "stm:precision": settings.precision,
            "stm:colour_space": self.colour.input_space,
        }
        manifest = self.manifest()
        if manifest is not None:
            values |= {
                "stm:weights": manifest.name,
                "stm:weights_sha256": manifest.sha256,
                "stm:weights_licence": manifest.licence,
                "stm:architecture": manifest.architecture,
            }
        record = self._adaptation if settings.adapt else None
        if record is not None:
            values |= {
                "stm:adaptation": record.id,
                "stm:adaptation_keys": " ".join(str(key) for key in sorted(record.keys)),
                "stm:adaptation_steps": record.steps,
            }
        return values

    # ---- hashes of the plate ----

    def _features_base(self) -> dict[str, str]:
        """What the features of a frame depend on besides its pixels, by names for people."""
        geometry, manifest = self.geometry, self.manifest()
        base = {
            "weights": self.settings.weights if manifest is None else manifest.id,
            "picture settings": self.settings.id("picture"),
            "colour transform": self.colour.id,
            "canvas": f"{geometry.canvas} region {geometry.region} as {geometry.width}x{geometry.height}",
        }
        if self.settings.adapt:  # without it, addresses are those of a shot that was never adapted
            base["adaptation to the keys"] = "none" if self._adaptation is None else self._adaptation.id
        return base

    def _known_plate(self) -> dict[int, str]:
        """Content hashes of the frames that have not changed since they were last read."""
        frames, known = set(self.plate.frames), {}
        with self._mutex:
            entries = [*self.store.plate_index.load().items(), *self._read.items()]
        for frame, entry in entries:
            if frame in frames and entry["signature"] == signature_of(self.plate, frame):
                known[frame] = entry["hash"]
        return known

    def plate_hash(self, frame: int) -> str | None:
        """The content hash of a plate frame, which is read if necessary. None where it cannot be read."""
        for entry in (self.store.plate_index.load().get(frame), self._read.get(frame)):
            if entry is not None and entry["signature"] == signature_of(self.plate, frame):
                return str(entry["hash"])
        try:
            return self.frames.load(frame).hash
        except PlateError:
            return None

    def distrust(self) -> None:
        """Forget all signatures, as one did not match its frame's content: every frame is read again."""
        with self._mutex:
            self._recorded.clear()
            self._read.clear()
            self.frames.forget()
        self.store.forget_plate()

    def _record(self, loaded: LoadedFrame) -> None:
        """Record the hash of a frame that was read, so that the next plan need not read it."""
        frame, recorded = loaded.plate_frame.frame, hash((loaded.signature, loaded.hash))
        entry = {"frame": frame, "signature": loaded.signature, "hash": loaded.hash}
        if not self.store.lock.held:
            with self._mutex:
                self._read[frame] = entry
        elif self._recorded.get(frame) != recorded:
            with suppress(StoreError):  # then it is read the next time
                self.store.plate_index.append(entry)
                self._recorded[frame] = recorded
            with self._mutex:
                self._read.pop(frame, None)


@lru_cache(maxsize=1)
def _program_bytes() -> int:
    """The resident memory of this process before its first run: interpreter and libraries."""
    return resident_memory()
