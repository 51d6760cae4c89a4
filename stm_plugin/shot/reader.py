"""Reading a shot: possible at any time, without the store's lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from model.weights_file import Manifest
from stm_plugin.configuration import Configuration, configuration
from stm_plugin.errors import StmError
from stm_plugin.images.plate import PlateSource
from stm_plugin.planning.quality import Advice, advise
from stm_plugin.planning.values import Plan, Request, State
from stm_plugin.propagation.events import Notice
from stm_plugin.propagation.frame_finisher import FinishedFrame, FrameFinisher
from stm_plugin.propagation.memory_forecast import MemoryFit, settled
from stm_plugin.propagation.networks import weights_manifest
from stm_plugin.propagation.propagation import NetworkFactory, Propagation
from stm_plugin.settings import Settings
from stm_plugin.shot.opening import check_licences, open_plate
from stm_plugin.shot.values import Emit, KeyInfo, ShotStatus, silent
from stm_plugin.store.description import AdaptationRecord, ShotDescription
from stm_plugin.store.store import ShotStore
from stm_plugin.windows import FloatArray


class ShotReader:
    """The part of an open shot that only reads.

    Args:
        store, plate: from `Shot.create` or `Shot.open`.
        network: makes the network for settings and device; that of the settings' weights by default.
    """

    def __init__(self, store: ShotStore, plate: PlateSource, network: NetworkFactory | None = None) -> None:
        self.store, self.plate = store, plate
        self._description = store.description()
        self._network = network
        self._propagation: Propagation | None = None
        self._on_event: Emit = silent
        self._mutex = threading.RLock()

    def close(self) -> None:
        """End the threads and release the memory. Nothing needs saving."""
        with self._mutex:
            if self._propagation is not None:
                self._propagation.close()
            self._propagation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- its description ----

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def settings(self) -> Settings:
        """As they hold on this machine: what the shot keeps, and the machine's from the configuration."""
        return self._on_this_machine(self._description).settings

    @property
    def adaptation(self) -> AdaptationRecord | None:
        """The adaptation to the keys, in use or not."""
        return self._description.adaptation

    @property
    def adaptation_fits(self) -> bool:
        """Whether the adaptation was made from exactly these keys and the settings' weights."""
        return self.adaptation is not None and not self._working.adaptation_advice(self.adaptation)

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

    @property
    def has_active_key(self) -> bool:
        """Whether any key is within the range of the plate; keys outside are kept."""
        frames = set(self.plate.frames)
        return any(key.frame in frames for key in self._description.keys)

    def refresh(self) -> None:
        """Read again what other processes may have changed."""
        before, now = self._description, self.store.description()
        self._description = now
        if before.adaptation != now.adaptation:
            self.close()
        if (before.plate, before.settings) != (now.plate, now.settings):
            self.plate = open_plate(self.store, now.plate, self.settings)
            self.close()

    # ---- its state and its mattes ----

    def plan(self, request: Request | None = None) -> Plan:
        """The plan of a propagation. KeyframeError where there is no key."""
        return self._working.plan(request)

    def finished_plan(self, request: Request | None = None) -> Plan:
        """The plan of a range that should be done: frames whose file was touched since are read again."""
        return self._working.finished_plan(request)

    def status(self, request: Request | None = None) -> ShotStatus:
        """The state of every frame, and why. Without keys every frame is missing."""
        self.refresh()
        plan = self.plan(request) if self.has_active_key else None
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
            advice=self.notes(plan),
            next_key=None if plan is None else self.next_key(plan),
            qualities={} if plan is None else self._working.qualities(plan),
        )

    def notes(self, plan: Plan | None) -> tuple[str, ...]:
        """What may improve the shot, or is against it, in sentences. `plan`: None without a key."""
        return (*self._configuration_advice(), *self._working.advice(plan))

    def next_key(self, plan: Plan) -> Advice | None:
        """Where the next key would help most, from the quality of a plan's finished frames."""
        return advise(self._working.qualities(plan), {key.frame for key in self._description.keys})

    def matte(self, frame: int) -> FinishedFrame:
        """The finished matte of one frame.

        Raises:
            MatteError: it is stale or was never computed; the text states why.
            LicenceError: the configuration does not allow the weights.
            PlateError: the plate frame cannot be read.
        """
        self.check_licences()
        plan = self.plan(Request(frame, frame))
        with self._working.reading(frame):
            return self._working.finisher(plan).finished(frame)

    def foreground(
        self, frame: int, objects: Sequence[str] = (), description: ShotDescription | None = None
    ) -> tuple[FinishedFrame, FloatArray]:
        """A finished frame, and the plate without its background: float32 (h, w, 3), data window.

        Args:
            frame: its number.
            objects: whose colours, in the plate's colour space; empty: all together.
            description: an earlier one of the shot, for the frame as it was; None: the present one.

        Raises:
            MatteError, LicenceError, PlateError: as `matte` and `earlier_matte`.
        """
        if description is not None:
            with self._finishing_earlier(description, frame) as finisher:
                finished = finisher.finished(frame)
                return finished, finisher.foreground(finished, objects)
        self.check_licences()
        plan = self.plan(Request(frame, frame))
        with self._working.reading(frame):
            finisher = self._working.finisher(plan)
            finished = finisher.finished(frame)
            return finished, finisher.foreground(finished, objects)

    def earlier_matte(self, description: ShotDescription, frame: int) -> FinishedFrame:
        """The matte of one frame by an earlier description, from results that the store still has.

        Raises:
            MatteError: the results that it was made from were deleted.
            PlateError: the plate frame cannot be read.
        """
        with self._finishing_earlier(description, frame) as finisher:
            return finisher.finished(frame)

    def earlier_confidence(self, description: ShotDescription, frame: int) -> dict[str, FloatArray]:
        """`confidence` of one frame as it was with an earlier description; errors as `earlier_matte`."""
        with self._finishing_earlier(description, frame) as finisher:
            return finisher.confidence(frame)

    def confidence(self, frame: int) -> dict[str, FloatArray]:
        """The network's confidence in each pixel of each object: float32 (h, w) in [0, 1], data window.

        Raises:
            MatteError, PlateError: as `matte`.
        """
        plan = self.plan(Request(frame, frame))
        with self._working.reading(frame):
            return self._working.finisher(plan).confidence(frame)

    def display(self, frame: int) -> FloatArray:
        """The plate frame in the network's colours: (h, w, 3) sRGB in [0, 1] over its data window.

        Raises:
            PlateError: the plate frame cannot be read.
        """
        return self._working.frames.load(frame).display()

    def forecast(self, plan: Plan) -> MemoryFit:
        """The memory that a plan needs, and the sizes that fit. DeviceError if nothing fits."""
        return self._working.forecast(plan)

    def check_allowed(self, settings: Settings | None = None) -> None:
        """Ask the configuration whether this shot may be computed and exported.

        Args:
            settings: that it is about to have; its own if None.

        Raises:
            LockedError: a setting has another value than a lock says.
            LicenceError: the licence of its weights is not allowed.
        """
        self.configuration.check(settings or self.settings)
        self.check_licences(settings)

    def check_licences(self, settings: Settings | None = None) -> None:
        """Ask the configuration whether the weights of this shot may be used. LicenceError if not."""
        own_network = self._network is not None
        check_licences(self.configuration, settings or self.settings, own_network=own_network)

    @property
    def configuration(self) -> Configuration:
        """What site, show and user say now. ConfigurationError where a file cannot be used."""
        return configuration()

    # ---- inside ----

    @contextmanager
    def _finishing_earlier(self, description: ShotDescription, frame: int) -> Iterator[FrameFinisher]:
        """What finishes one frame as an earlier description has it."""
        description = self._on_this_machine(description)
        earlier = Propagation(self.store, self.plate, description, self._network, lambda text: None)
        try:
            plan = earlier.plan(Request(frame, frame))
            with earlier.reading(frame):
                yield earlier.finisher(plan)
        finally:
            earlier.close()

    def _on_this_machine(self, description: ShotDescription) -> ShotDescription:
        """The description with the machine's settings as the configuration has them, and settled."""
        settings = settled(self.configuration.on_this_machine(description.settings, description.chosen))
        return description if settings == description.settings else replace(description, settings=settings)

    def _configuration_advice(self) -> list[str]:
        """What the configuration says against this shot, or otherwise than when it was made, in sentences."""
        found = []
        for ask in (self.configuration.check, self.check_licences):
            try:
                ask(self.settings)
            except StmError as error:
                found.append(str(error))
        return found or self.configuration.news(self.settings, self._description.configured)

    @property
    def _working(self) -> Propagation:
        """The propagation for the current plate, settings and keys."""
        with self._mutex:
            description = self._on_this_machine(self._description)
            if self._propagation is not None and self._propagation.settings != description.settings:
                self.close()  # the configuration has changed
            if self._propagation is None:
                self._propagation = Propagation(
                    self.store,
                    self.plate,
                    description,
                    self._network,
                    lambda text: self._on_event(Notice(text)),
                )
            self._propagation.description = description
            return self._propagation

    def _base_manifest(self, settings: Settings) -> Manifest | None:
        """The manifest of the settings' weights; None for a given network."""
        return weights_manifest(settings.weights) if self._network is None else None
