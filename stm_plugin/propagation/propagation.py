"""What is needed to compute and finish a shot's frames: plate, colour, geometry, features, network.

A workshop belongs to one plate and one set of settings; when these change, the shot makes a new one. Keys and
objects come with each call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from model.network.config import NetworkConfig, network_config
from model.network.memory import THINNING, MemoryRule
from model.training.adapt import AdaptOptions
from model.weights_file import Manifest
from stm_plugin.address import address_of
from stm_plugin.errors import MatteError, PlateError, StoreError
from stm_plugin.finishing import guided as finishing
from stm_plugin.images.colour import ColourTransform, find_input_space, load_config
from stm_plugin.images.matte import MetadataValue
from stm_plugin.images.plate import Plate, PlateFrame, PlateSource
from stm_plugin.images.working_picture import WorkingGeometry, working_geometry
from stm_plugin.planning.plan import position_in
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import Facts, Key, Plan, State
from stm_plugin.propagation import fusion
from stm_plugin.propagation.adaptation import adaptation_path, check_adaptation
from stm_plugin.propagation.execution import (
    FrameResult,
    Network,
    PlateMovedOn,
    PropagationContext,
    Results,
    on_window,
)
from stm_plugin.propagation.feature_cache import FeatureCache
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
from stm_plugin.propagation.networks import ready_network, weights_manifest
from stm_plugin.settings import Settings
from stm_plugin.store.description import AdaptationRecord, ShotDescription
from stm_plugin.store.store import ShotStore
from stm_plugin.windows import FloatArray

NetworkFactory = Callable[[Settings, str], Network]


@dataclass(frozen=True, eq=False)
class FinishedFrame:
    """One frame as it goes to the artist.

    Attributes:
        mattes: by object name, float32 (h, w) in [0, 1] over the plate frame's data window.
        address: of everything that made it, finishing included.
        is_key: the mattes are the artist's own masks.
        quality: what the network says of it.
    """

    frame: int
    mattes: Mapping[str, FloatArray]
    plate_frame: PlateFrame
    address: str
    is_key: bool
    quality: Quality

    @property
    def confidence(self) -> float:
        """Mean sureness where an object may be, in [0, 1]; 1 on a key."""
        return self.quality.confidence


class Propagation:
    """The working side of a shot. Several threads may look; one at a time computes.

    Args:
        network: gives the network for settings and device; that of the settings' weights if None.
        warn: gets a sentence for people.
        adaptation: what the network learnt from the shot's keys, if the settings ask for it.
    """

    def __init__(
        self,
        store: ShotStore,
        plate: PlateSource,
        settings: Settings,
        network: NetworkFactory | None,
        warn: Callable[[str], None],
        adaptation: AdaptationRecord | None = None,
    ) -> None:
        self.store, self.plate, self.settings = store, plate, settings
        self.geometry: WorkingGeometry = working_geometry(
            plate.canvas, plate.pixel_aspect, settings.working_size, settings.region
        )
        self._network = network
        self._warn = warn
        self._adaptation = adaptation
        self._mutex = threading.RLock()
        self._colour: ColourTransform | None = None
        self._loader: FrameLoader | None = None
        self._cache: FeatureCache | None = None
        self._ram_budget = settings.ram_budget
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

    # ---- what a plan is made from ----

    def facts(self, description: ShotDescription) -> Facts:
        """Everything that a plan depends on, as it is now.

        Keys outside the plate's range sleep: they are kept, and count again when the range comes back.
        """
        frames = frozenset(self.plate.frames)
        base = {**self._features_base(), "memory settings": f"{self.settings.id('memory')} {THINNING}"}
        network = self._network_config()
        # With the paper's read the addresses are those that they had before there was another one.
        if network.previous_frame_cap != 1:
            base["share of the previous frame"] = (
                f"{network.previous_frame_cap}, of all but the key; {network.key_weight} of the rest "
                f"for keys; 1 below {1 - network.shrink_guard} of an area"
            )
        return Facts(
            frames=tuple(self.plate.frames),
            objects=tuple(one.id for one in description.objects),
            keys=tuple(Key(key.frame, key.masks) for key in description.keys if key.frame in frames),
            base=base,
            plate=self._known_plate(),
            keys_in_memory=self.settings.keys_in_memory,
        )

    def signatures(self, plan: Plan) -> dict[int, str | None]:
        """Quick signs of all plate frames that a plan has to do with."""
        frames = {one.frame for one in plan.frames}
        for passed in plan.passes:
            frames |= {passed.key, *passed.memory_keys, *passed.frames}
        return {frame: signature_of(self.plate, frame) for frame in sorted(frames)}

    def check_plate(self, plan: Plan) -> None:
        """Everything that a plan needs of the plate must be there before anything is computed.

        Raises:
            PlateError: it is not; the first frame that is missing is named.
        """
        needed = {step.frame for step in plan.steps}
        for step in plan.compute_steps:
            needed |= {step.passed.key, *step.passed.memory_keys}
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
            further_keys=max((len(one.memory_keys) for one in plan.passes), default=0),
            precision=self.settings.precision,
            device=device,
            frames=len({step.frame for step in plan.compute_steps}),
            ram_budget=self.settings.ram_budget,
            plate_pixels=self.plate.canvas.width * self.plate.canvas.height,
        )
        return fit_memory(run, free_memory(device) + self._ram_held())

    def forecast_adaptation(self, facts: Facts, options: AdaptOptions) -> AdaptationForecast:
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

    # ---- finished frames ----

    def finished(
        self, description: ShotDescription, plan: Plan, results: Results, frame: int
    ) -> FinishedFrame:
        """One frame, fused and finished.

        Raises:
            MatteError: something that it needs is not computed.
            PlateMovedOn: the plate frame is not the one of the plan.
            DamagedFileError: a stored result is damaged.
        """
        loaded = self.frames.load(frame)
        if results.plate_hash(frame) != loaded.hash:
            raise PlateMovedOn(frame)
        one = plan.by_frame[frame]
        if one.state is State.UNREACHED:
            raise not_done(frame, one.why)
        for passed in plan.passes:  # of a plan for many frames, those that this one needs
            objects = [name for name, source in one.sources.items() if passed.serves(source)]
            if objects and not self.store.has(results.pass_address(passed, position_in(passed, frame))):
                raise not_done(frame, one.why, description.names[objects[0]])
        result = results.frame_result(plan, frame)
        return FinishedFrame(
            frame=frame,
            mattes=self._mattes(description, result, loaded),
            plate_frame=loaded.plate_frame,
            address=self.matte_address(description, plan, results, frame),
            is_key=not result.probabilities,
            quality=result.quality,
        )

    def matte_address(self, description: ShotDescription, plan: Plan, results: Results, frame: int) -> str:
        """The address of everything that a frame's matte depends on."""
        names = description.names
        return address_of(
            "matte",
            results.address(plan, frame),
            results.plate_hash(frame),
            self.settings.id("finish"),
            self.settings.id("export"),
            [names[one] for one in plan.by_frame[frame].sources],
            fusion.VERSION,
            finishing.VERSION,
            str(self.geometry.canvas),
        )

    def metadata(self, description: ShotDescription, finished: FinishedFrame) -> dict[str, MetadataValue]:
        """What a matte's file says of how it was made."""
        settings = self.settings
        values: dict[str, MetadataValue] = {
            "stm:keys": " ".join(str(key.frame) for key in description.keys),
            "stm:source": "key" if finished.is_key else "propagated",
            "stm:confidence": round(finished.confidence, 4),
            "stm:memory_rule": settings.memory_rule,
            "stm:memory_cap": settings.memory_cap,
            "stm:keys_in_memory": settings.keys_in_memory,
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

    def _mattes(
        self, description: ShotDescription, result: FrameResult, loaded: LoadedFrame
    ) -> dict[str, FloatArray]:
        window = loaded.plate_frame.data_window
        masks = {name: on_window(mask, self.geometry.canvas, window) for name, mask in result.masks.items()}
        finished: dict[str, FloatArray] = {}
        guide: finishing.Guide | None = None  # one for all objects
        for name, probability in result.probabilities.items():
            if probability.any():
                guide = guide or finishing.Guide(loaded.guide(), loaded.display_at, window)
                finished[name] = finishing.finish(probability, guide, self.geometry, self.settings.finish)
            else:
                finished[name] = np.zeros((window.height, window.width), np.float32)
        if len(masks) + len(finished) > 1:
            finished = fusion.share_pixels(masks, finished)
        mattes = {**masks, **finished}
        return {one.name: mattes[one.id] for one in description.objects if one.id in mattes}

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

    def _note(self, loaded: LoadedFrame) -> None:
        """A plate frame was read: note its hash, so that the next plan need not read it."""
        frame, noted = loaded.plate_frame.frame, hash((loaded.signature, loaded.hash))
        if self._noted.get(frame) != noted and self.store.lock.held:
            self._noted[frame] = noted
            entry = {"frame": frame, "signature": loaded.signature, "hash": loaded.hash}
            with suppress(StoreError):  # then it is read the next time
                self.store.plate_index.append(entry)


def not_done(frame: int, why: str, name: str | None = None) -> MatteError:
    """The error for a matte that is asked for too early."""
    which = f"The matte of {name}" if name else "The matte"
    reason = f" ({why})" if why else ""
    return MatteError(f"{which} is not done{reason}.", frame=frame, hint="Run `stm shot propagate` first.")
