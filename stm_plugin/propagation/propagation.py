"""The working side of a shot: plans are made here and carried out.

A propagation belongs to one plate and one set of settings; when these change, the shot makes a new one. Keys
and objects may change: `description` says what they are now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from model.network.config import NetworkConfig, network_config
from model.network.memory import THINNING, MemoryRule
from model.training.adapt import AdaptOptions
from model.weights_file import Manifest
from stm_plugin.errors import MaskError, MatteError, PlateError, SettingsError, StmError, StoreError
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.matte import MetadataValue
from stm_plugin.images.plate import Plate, PlateSource
from stm_plugin.images.working_picture import WorkingGeometry, working_geometry
from stm_plugin.planning.plan import make_plan
from stm_plugin.planning.quality import Quality, adapting_may_help, hidden_keys
from stm_plugin.planning.values import Facts, Key, Plan, Request, State
from stm_plugin.propagation.adaptation import (
    LearningOptions,
    adaptation_path,
    advice,
    check_adaptation,
    default_options,
    keep,
    learn,
    read_adaptation,
)
from stm_plugin.propagation.context import Network, PlateMovedOn, PropagationContext
from stm_plugin.propagation.events import DamageFound, Event, FrameFinished, PlanMade, PlateChanged
from stm_plugin.propagation.execution import Execution
from stm_plugin.propagation.feature_cache import FeatureCache
from stm_plugin.propagation.frame_finisher import FrameDelivery, FrameFinisher, FrameWriter, not_done
from stm_plugin.propagation.frame_loader import FrameLoader, LoadedFrame, signature_of
from stm_plugin.propagation.memory_forecast import (
    AdaptationForecast,
    AdaptationMemory,
    MemoryFit,
    MemoryRequest,
    check_adaptation_memory,
    fit_memory,
    free_memory,
    pick_device,
)
from stm_plugin.propagation.networks import base_network, ready_network, weights_manifest
from stm_plugin.propagation.results import Material, Results
from stm_plugin.settings import Settings
from stm_plugin.store.description import AdaptationRecord, ShotDescription
from stm_plugin.store.store import ShotStore

NetworkFactory = Callable[[Settings, str], Network]


class Propagation:
    """Plans and carries out. Several threads may look; one at a time computes.

    Args:
        description: of the shot. Its settings stay; keys and objects may be replaced.
        network: gives the network for settings and device; that of the settings' weights if None.
        warn: gets a sentence for people.
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
        self.store, self.plate, self.settings = store, plate, description.settings
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
        self._mask_areas: dict[str, float] = {}  # by the mask's hash
        self._noted: dict[int, int] = {}  # frame: hash of what was noted of it

    def close(self) -> None:
        """Give back threads and memory."""
        with self._mutex:
            if self._loader is not None:
                self._loader.close()
            self._loader = self._cache = None

    # ---- the parts ----

    @property
    def colour(self) -> ColourTransform:
        """The transform from the plate's colour space, which is found on the first frame that is there.

        Raises:
            PlateError: no frame is there.
            ColourError: the config or the space cannot be used.
        """
        with self._mutex:
            if self._colour is None:
                missing = set(self.plate.missing)
                first = next((frame for frame in self.plate.frames if frame not in missing), None)
                if first is None:
                    raise PlateError("No frame of the plate is there.", path=self.store.folder)
                config = load_config(self.settings.ocio_config)
                space = find_input_space(self.plate.header(first), config, self.settings.colour_space)
                self._colour = ColourTransform(config, space.name)
            return self._colour

    @property
    def frames(self) -> FrameLoader:
        """Reads the plate."""
        with self._mutex:
            if self._loader is None:
                self._loader = FrameLoader(self.plate, self.colour, self.geometry, self._note)
            return self._loader

    def manifest(self) -> Manifest | None:
        """What the weights say of themselves; None where a network was brought along."""
        return weights_manifest(self.settings.weights) if self._network is None else None

    def adapted(self) -> AdaptationRecord | None:
        """The adaptation that is in use; None without.

        Raises:
            SettingsError, WeightsError: the settings ask for one, and there is none for these weights.
        """
        return check_adaptation(self._adaptation, self.manifest()) if self.settings.adapt else None

    def context(self) -> PropagationContext:
        """What an execution works with. The network is loaded when it is first asked for."""
        settings = self.settings
        device = pick_device(settings.device)
        loaded: list[Network] = []

        def network() -> Network:
            if not loaded and self._network is not None:
                loaded.append(self._network(settings, device))
            elif not loaded:
                record = self.adapted()
                file = None if record is None else adaptation_path(self.store.folder, record.id)
                loaded.append(ready_network(settings.weights, device, settings.precision, file))
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
                features_base=self._features_base(),
                weights=settings.weights,
            )

    # ---- deciding and doing ----

    def plan(self, request: Request | None = None) -> Plan:
        """What a propagation would do now. KeyframeError where there is no key."""
        return make_plan(self.facts(), request or Request(), self.store.has, self.store.history())

    def finisher(self, plan: Plan) -> FrameFinisher:
        """What fuses and finishes the frames of a plan."""
        context = self.context()
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
            writer: gets every frame of the plan as soon as it is final.
            on_event: gets every event, in this thread.
            cancelled: asked before every step.

        Raises:
            PropagationCancelled: finished frames are kept.
            StmError: what it says; finished frames are kept.
        """
        self._check_plate(plan)
        signatures = self._signatures(plan)
        on_event(PlanMade(plan))
        finisher = self.finisher(plan)
        try:
            with FrameDelivery(self.context(), finisher, writer, on_event) as delivery:
                Execution(self.context(), finisher.results, on_event, cancelled, delivery.submit).run()
                delivery.finish()
        except PlateMovedOn as moved:
            self.distrust()
            on_event(PlateChanged((moved.frame,)))
            return False
        except DamagedFileError as damaged:
            self.remove_damaged(damaged.path)
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
        """MatteError where a frame of the plan is not computed; it is named."""
        for one in plan.frames:
            if not one.is_done:
                raise not_done(one.frame, one.why)

    @contextmanager
    def reading(self, frame: int) -> Iterator[None]:
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
                self.remove_damaged(damaged.path)
            raise MatteError(
                "A stored result is damaged.",
                frame=frame,
                path=damaged.path,
                hint="Run `stm shot propagate` again: it is computed anew.",
            ) from damaged

    def remove_damaged(self, path: Path) -> None:
        """Remove a damaged result: it can be computed again.

        Raises:
            MaskError: it is a mask, which only the artist can bring back.
        """
        if path.parent == self.store.folder / "keys":
            raise MaskError(
                "The stored mask of a key is damaged.",
                path=path,
                hint="Give the key's mask again (a copy of your own file lies beside it).",
            )
        path.unlink(missing_ok=True)

    def adapt(
        self,
        options: AdaptOptions | None,
        on_forecast: Callable[[AdaptationForecast], None],
        learning: LearningOptions,
    ) -> AdaptationRecord:
        """Adapt the network to the keys and keep that in the store.

        Raises:
            SettingsError: the network was handed in and has no weights file.
            StmError: see `Shot.adapt`.
        """
        base = self.manifest()
        if base is None:
            raise SettingsError("Only a network with a weights file can be adapted.")
        # nothing of the plate is taken for known: the keys are read as they are now
        material = Material(self.context(), replace(self.facts(), plate={}))
        chosen = options or default_options(self.settings)
        on_forecast(self._forecast_adaptation(material.facts, chosen))
        network, device = base_network(self.settings.weights), pick_device(self.settings.device)
        try:
            adapted = learn(network, material, chosen, device=device, learning=learning)
        except DamagedFileError as damaged:
            self.remove_damaged(damaged.path)
            raise
        return keep(self.store.folder, adapted, base, material.facts, chosen)

    def adaptation_advice(self, record: AdaptationRecord | None) -> tuple[str, ...]:
        """Why the shot might be adapted again; empty if there is no reason."""
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
        """What the network says of the frames of a plan that are up to date."""
        found = self.store.qualities()
        return {
            one.frame: found[one.frame]
            for one in plan.frames
            if one.state is State.DONE and one.frame in found and found[one.frame].address == one.address
        }

    def advice(self, plan: Plan | None) -> tuple[str, ...]:
        """What a person should know of the keys and of adapting, in sentences. `plan`: None without a key."""
        names = self.description.names
        said = [
            f"The key on {frame} shows little of {names[name]} "
            f"({100 * share:.0f} % of what another key shows): it is used little where more of it is seen."
            for frame, name, share in hidden_keys(self._key_areas())
        ]
        if self.settings.adapt:
            said += self.adaptation_advice(self._adaptation)
        elif plan and self._network is None and adapting_may_help([*self.qualities(plan).values()]):
            said.append("The network is unsure of most frames: `stm adapt` may help (look at what it gives).")
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

    # ---- what a plan is made from ----

    def facts(self) -> Facts:
        """Everything that a plan depends on, as it is now.

        Keys outside the plate's range are inactive: they are kept, and count again when the range comes back.
        Without any picture the plate's colour space is not known, and so no address: everything is missing.
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
        )

    def _base(self) -> dict[str, str]:
        """What every probability depends on, by the names that people know."""
        base = {**self._features_base(), "memory settings": f"{self.settings.id('memory')} {THINNING}"}
        network = self._network_config()
        # With the paper's read the addresses are those that they had before there was another one.
        if network.previous_frame_cap != 1:
            base["share of the previous frame"] = (
                f"{network.previous_frame_cap}, of all but the key; {network.key_weight} of the rest "
                f"for keys; 1 below {1 - network.shrink_guard} of an area"
            )
        return base

    def _signatures(self, plan: Plan) -> dict[int, str | None]:
        """Quick signs of all plate frames that a plan has to do with."""
        frames = {one.frame for one in plan.frames}
        for passed in plan.passes:
            frames |= {passed.key, *passed.frames}
        return {frame: signature_of(self.plate, frame) for frame in sorted(frames)}

    def _check_plate(self, plan: Plan) -> None:
        """Everything that a plan needs of the plate must be there before anything is computed.

        Raises:
            PlateError: it is not; the first frame that is missing is named.
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
                hint="Bring the frames, or give a range without them.",
            )

    def forecast(self, plan: Plan) -> MemoryFit:
        """The memory that a plan will need, and what must be lowered to fit. DeviceError if nothing fits."""
        device = pick_device(self.settings.device)
        run = MemoryRequest(
            config=self._network_config(),
            height=self.geometry.height,
            width=self.geometry.width,
            objects=max((len(one.objects) for one in plan.passes), default=1),
            memory_cap=self.settings.memory_cap,
            precision=self.settings.precision,
            device=device,
            frames=len({step.frame for step in plan.compute_steps}),
            ram_budget=self.settings.ram_budget,
            plate_pixels=self.plate.canvas.width * self.plate.canvas.height,
        )
        return fit_memory(run, free_memory(device) + self._ram_held())

    def _forecast_adaptation(self, facts: Facts, options: AdaptOptions) -> AdaptationForecast:
        """The memory that adapting to the keys will need. DeviceError if it does not fit."""
        device = pick_device(self.settings.device)
        lesson = AdaptationMemory(
            config=self._network_config(),
            keys=len(facts.keys),
            objects=max((len(key.masks) for key in facts.keys), default=1),
            height=self.geometry.height,
            width=self.geometry.width,
            options=options,
            device=device,
            plate_pixels=self.plate.canvas.width * self.plate.canvas.height,
        )
        return check_adaptation_memory(lesson, free_memory(device) + self._ram_held())

    def limit_ram(self, budget: int) -> None:
        """Keep cached features within this many bytes."""
        with self._mutex:
            self._ram_budget = budget
            if self._cache is not None:
                self._cache.limit_ram(budget)

    def _network_config(self) -> NetworkConfig:
        """Of the weights in use; of the default network for one that was handed in without a manifest."""
        manifest = self.manifest()
        return network_config("stm-lite" if manifest is None else manifest.architecture)

    def _ram_held(self) -> int:
        """Bytes of cached features that would make room."""
        return 0 if self._cache is None else self._cache.ram.bytes

    def _metadata(self) -> dict[str, MetadataValue]:
        """What every matte's file says of how it was made."""
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

    # ---- what is known of the plate ----

    def _features_base(self) -> dict[str, str]:
        """What the features of a frame depend on besides its pixels, by the names that people know."""
        geometry, manifest = self.geometry, self.manifest()
        base = {
            "weights": self.settings.weights if manifest is None else manifest.id,
            "picture settings": self.settings.id("picture"),
            "colour transform": self.colour.id,
            "canvas": f"{geometry.canvas} region {geometry.region} as {geometry.width}x{geometry.height}",
        }
        if self.settings.adapt:  # without, the addresses are those of a shot that was never adapted
            base["adaptation to the keys"] = "none" if self._adaptation is None else self._adaptation.id
        return base

    def _known_plate(self) -> dict[int, str]:
        """Content hashes of the frames that have not changed since they were last read."""
        frames, known = set(self.plate.frames), {}
        for frame, entry in self.store.plate_index.load().items():
            if frame in frames and entry["signature"] == signature_of(self.plate, frame):
                known[frame] = entry["hash"]
        return known

    def plate_hash(self, frame: int) -> str | None:
        """The content hash of a plate frame as it is now; it is read if need be. None where it cannot be."""
        entry = self.store.plate_index.load().get(frame)
        if entry is not None and entry["signature"] == signature_of(self.plate, frame):
            return str(entry["hash"])
        try:
            return self.frames.load(frame).hash
        except PlateError:
            return None

    def distrust(self) -> None:
        """A frame is not what its file's signs said: every frame is looked at again."""
        with self._mutex:
            self._noted.clear()
            self.frames.forget()
        self.store.forget_plate()

    def _note(self, loaded: LoadedFrame) -> None:
        """A plate frame was read: note its hash, so that the next plan need not read it."""
        frame, noted = loaded.plate_frame.frame, hash((loaded.signature, loaded.hash))
        if self._noted.get(frame) != noted and self.store.lock.held:
            self._noted[frame] = noted
            entry = {"frame": frame, "signature": loaded.signature, "hash": loaded.hash}
            with suppress(StoreError):  # then it is read the next time
                self.store.plate_index.append(entry)
