"""From the fused probabilities of a frame to its mattes and their file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from stm_plugin.address import address_of
from stm_plugin.errors import MatteError, concerning
from stm_plugin.finishing import foreground, guided, learned, on_device
from stm_plugin.finishing.band import Guide
from stm_plugin.images.matte import MetadataValue, union_matte
from stm_plugin.images.plate import PlateFrame
from stm_plugin.images.working_picture import inside_region, share_outside, to_plate, touches_region
from stm_plugin.planning.areas import FrameAreas, area_warnings
from stm_plugin.planning.plan import record_of
from stm_plugin.planning.quality import Quality
from stm_plugin.planning.values import State
from stm_plugin.propagation import fusion
from stm_plugin.propagation.context import PlateMovedOn, PropagationContext
from stm_plugin.propagation.edge_evidence import EdgeEvidenceSource
from stm_plugin.propagation.events import Event, FrameFinished, Notice
from stm_plugin.propagation.finishing_queue import FinishingQueue
from stm_plugin.propagation.frame_loader import LoadedFrame
from stm_plugin.propagation.memory_forecast import device_errors, pick_device, precision_of
from stm_plugin.propagation.networks import ready_refiner, refiner_manifest
from stm_plugin.propagation.results import FrameResult, Results
from stm_plugin.settings import Settings
from stm_plugin.store.description import ShotDescription
from stm_plugin.windows import FloatArray, on_window


@dataclass(frozen=True, eq=False)
class FinishedFrame:
    """A finished frame.

    Attributes:
        mattes: by object name, float32 (h, w) in [0, 1] over the plate frame's data window.
        address: of all its ingredients, finishing included.
        is_key: the mattes are the artist's masks.
        quality: confidence and agreement.
        confidence_map: confidence of each pixel, of all objects together, float32 (h, w) in [0, 1]; None
            unless the settings ask for it.
        foreground: the plate's colours without the background, of all objects together, not multiplied with
            their matte, float32 (h, w, 3) in the plate's colour space; None unless the settings ask for it.
    """

    frame: int
    mattes: Mapping[str, FloatArray]
    plate_frame: PlateFrame
    address: str
    is_key: bool
    quality: Quality
    confidence_map: FloatArray | None = None
    foreground: FloatArray | None = None

    @property
    def confidence(self) -> float:
        """Mean confidence where an object may be, in [0, 1]; 1 on a key."""
        return self.quality.confidence


class FrameWriter(Protocol):
    """The interface of a writer of frames (`stm_plugin.shot.export.MatteWriter`)."""

    def is_current(self, frame: int, address: str) -> bool: ...

    def skip(self, frame: int) -> None: ...

    def write(self, finished: FinishedFrame, address: str, metadata: Mapping[str, MetadataValue]) -> None: ...


class FrameFinisher:
    """Fuses and finishes the frames of one plan. Thread-safe.

    Args:
        metadata: attributes of every matte's file that state how it was made.
    """

    def __init__(
        self,
        context: PropagationContext,
        results: Results,
        description: ShotDescription,
        metadata: Mapping[str, MetadataValue],
    ) -> None:
        self.results = results
        self._context, self._description, self._metadata = context, description, metadata
        self._evidence = EdgeEvidenceSource(results, self._picture)
        self._solving = threading.BoundedSemaphore(context.loader.workers.foregrounds)

    @property
    def _settings(self) -> Settings:
        return self._description.settings

    def finished(self, frame: int) -> FinishedFrame:
        """One frame, fused and finished.

        Raises:
            MatteError: a result that it needs is not computed.
            PlateMovedOn: the plate frame changed since the plan was made.
            DamagedFileError: a stored result is damaged.
        """
        return self._finish(*self._read(frame))

    def _read(self, frame: int) -> tuple[FrameResult, LoadedFrame]:
        """A fused frame and its plate. The errors are those of `finished`."""
        loaded = self._context.loader.load(frame)
        if self.results.plate_hash(frame) != loaded.hash:
            raise PlateMovedOn(frame)
        self._check_computed(frame)
        return self.results.frame_result(frame), loaded

    def _finish(self, result: FrameResult, loaded: LoadedFrame) -> FinishedFrame:
        mattes = self._mattes(result, loaded)
        return FinishedFrame(
            frame=result.frame,
            mattes=mattes,
            plate_frame=loaded.plate_frame,
            address=self.matte_address(result.frame),
            is_key=not result.probabilities,
            quality=result.quality,
            confidence_map=self._confidence_of_all(result, loaded) if self._settings.confidence else None,
            foreground=self._solved(loaded, mattes) if self._settings.foreground else None,
        )

    def _solved(self, loaded: LoadedFrame, mattes: Mapping[str, FloatArray]) -> FloatArray:
        with self._solving:
            return _foreground(loaded, mattes)

    def _picture(self, frame: int) -> FloatArray:
        """(3, h, w): the working picture of a frame, as the plan has it."""
        cached = self.results.cached_picture(frame)
        if cached is not None:
            return cached
        loaded = self._context.loader.load(frame)
        if self.results.plate_hash(frame) != loaded.hash:
            raise PlateMovedOn(frame)
        return loaded.guide()

    def foreground(self, finished: FinishedFrame, objects: Sequence[str] = ()) -> FloatArray:
        """The plate without its background (h, w, 3), in the plate's colour space.

        Args:
            finished: the frame, from this finisher.
            objects: whose colours; empty: all together.
        """
        mattes = {name: one for name, one in finished.mattes.items() if not objects or name in objects}
        loaded = self._context.loader.load(finished.frame)
        if not mattes:
            return np.zeros_like(loaded.plate_frame.pixels)
        return self._solved(loaded, mattes)

    def confidence(self, frame: int) -> dict[str, FloatArray]:
        """The network's confidence in each pixel: by object name, float32 (h, w) over the data window.

        1 where its probability is 0 or 1, on a key, and outside of the region; 0 where it is one half.

        Raises:
            MatteError, PlateMovedOn, DamagedFileError: as `finished`.
        """
        return self._confidence_of(*self._read(frame))

    def _confidence_of(self, result: FrameResult, loaded: LoadedFrame) -> dict[str, FloatArray]:
        geometry, window = self._context.geometry, loaded.plate_frame.data_window
        found: dict[str, FloatArray] = {}
        for one in self._description.objects:
            uncertainty = np.zeros((window.height, window.width), np.float32)
            if one.id in result.probabilities:
                small = np.float32(1.0) - np.abs(2 * result.probabilities[one.id] - np.float32(1.0))
                uncertainty = inside_region(to_plate(small, window, geometry), window, geometry)
            found[one.name] = np.float32(1.0) - uncertainty
        return found

    def _confidence_of_all(self, result: FrameResult, loaded: LoadedFrame) -> FloatArray:
        """The least of the objects' confidences at each pixel, in [0, 1]."""
        least = np.minimum.reduce(list(self._confidence_of(result, loaded).values()))
        clipped: FloatArray = np.clip(least, 0.0, 1.0, dtype=np.float32)
        return clipped

    def matte_address(self, frame: int) -> str:
        """The address of everything that a frame's matte depends on."""
        names = self._description.names
        return address_of(
            "matte",
            self.results.address(frame),
            self.results.plate_hash(frame),
            self._settings.id("finish"),
            self._settings.id("export"),
            [names[one] for one in self.results.plan.by_frame[frame].sources],
            fusion.VERSION,
            guided.VERSION,
            self._edges_id(),
            f"fg {foreground.VERSION}" if self._settings.foreground else "",
            str(self._context.geometry.canvas),
        )

    def _edges_id(self) -> str:
        """The ingredients of learned edges besides stored results."""
        if self._settings.finish.edges != "learned":
            return ""
        return f"{learned.VERSION} {refiner_manifest(self._settings.finish.edge_weights).id}"

    def write(self, frame: int, writer: FrameWriter) -> FrameResult | None:
        """Write a frame's file; returns what it was made from, None where the file is current."""
        address = self.matte_address(frame)
        if writer.is_current(frame, address):
            writer.skip(frame)
            return None
        result, loaded = self._read(frame)
        finished = self._finish(result, loaded)
        metadata: dict[str, MetadataValue] = {
            **self._metadata,
            "stm:source": "key" if finished.is_key else "propagated",
            "stm:confidence": round(finished.confidence, 4),
        }
        self._context.cache.make_room_for(lambda: writer.write(finished, address, metadata))
        return result

    def areas(self, result: FrameResult) -> FrameAreas:
        """The areas of a frame's objects, and whether they reach an edge of the region."""
        geometry, names = self._context.geometry, self._description.names
        sources = self.results.plan.by_frame[result.frame].sources
        scale = geometry.scale_x * geometry.scale_y
        pixels = {names[one]: float(mask.sum()) for one, mask in result.masks.items()}
        pixels |= {names[one]: float(values.sum()) * scale for one, values in result.probabilities.items()}
        touching = (
            names[one] for one, values in result.probabilities.items() if touches_region(values, geometry)
        )
        outside = {names[one]: share_outside(mask, geometry) for one, mask in result.masks.items()}
        absent = {names[one] for one, source in sources.items() if source.absent}
        absent |= {names[one] for one, mask in result.masks.items() if not mask.any()}
        return FrameAreas(pixels, outside, frozenset(touching), frozenset(absent))

    def _check_computed(self, frame: int) -> None:
        results = self.results
        one = results.plan.by_frame[frame]
        if one.state is State.UNREACHED:
            raise not_done(frame, one.why)
        for name, source in one.sources.items():
            if not all(results.is_computed(result) for result in source.needs(frame)):
                raise not_done(frame, one.why, self._description.names[name])

    def _mattes(self, result: FrameResult, loaded: LoadedFrame) -> dict[str, FloatArray]:
        geometry = self._context.geometry
        window = loaded.plate_frame.data_window
        masks = {name: on_window(mask, geometry.canvas, window) for name, mask in result.masks.items()}
        finished: dict[str, FloatArray] = {}
        guide: Guide | None = None  # one for all objects
        for name, probability in result.probabilities.items():
            if probability.any():
                guide = guide or Guide(
                    self._picture(result.frame), loaded.display_at, window, loaded.device_guide()
                )
                finished[name] = self._finished(result, name, guide)
            else:
                finished[name] = np.zeros((window.height, window.width), np.float32)
        if len(masks) + len(finished) > 1:
            finished = fusion.share_pixels(masks, finished)
        mattes = {**masks, **finished}
        return {one.name: mattes[one.id] for one in self._description.objects if one.id in mattes}

    def _finished(self, result: FrameResult, name: str, guide: Guide) -> FloatArray:
        """One object's matte over the data window, before the objects share pixels."""
        geometry, settings = self._context.geometry, self._settings.finish
        if settings.edges != "learned":
            return guided.finish(result.probabilities[name], guide, geometry, settings)
        device = pick_device(self._settings.device)
        refiner = ready_refiner(settings.edge_weights, device, precision_of(self._settings))
        with device_errors(device, result.frame):
            evidence = self._evidence.of(result, name)
            on_card = refiner.device.type == "cuda"
            finish = on_device.finish_on_device if on_card else learned.finish_learned
            return finish(evidence, guide, geometry, settings, refiner)


def _foreground(loaded: LoadedFrame, mattes: Mapping[str, FloatArray]) -> FloatArray:
    """The plate without its background (h, w, 3), in the plate's colour space; solved in linear light."""
    linear = loaded.transform.to_linear(loaded.plate_frame.pixels)
    return loaded.transform.from_linear(foreground.foreground_of(linear, union_matte(mattes.values())))


class FrameOutput:
    """Takes the frames of an execution whose results are complete: writes, records and reports them.

    With a writer the work is done in a separate thread. Use it in a `with` statement.

    Args:
        writer: writes every frame; None where no files are wanted.
        on_event: is called with `FrameFinished`, in the caller's thread.
    """

    def __init__(
        self,
        context: PropagationContext,
        finisher: FrameFinisher,
        writer: FrameWriter | None,
        on_event: Callable[[Event], None],
    ) -> None:
        self._context, self._finisher, self._writer = context, finisher, writer
        self._on_event = on_event
        self._qualities = context.store.qualities()
        self._areas: dict[int, FrameAreas] = {}
        self._queue: FinishingQueue[Quality | None] = FinishingQueue(
            self._work, self._record, context.loader.workers
        )

    def __enter__(self) -> FrameOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.__exit__(kind, error, trace)

    def submit(self, frame: int) -> None:
        """Take a frame. Raises the error of the work on an earlier one."""
        self._finisher.results.plate_hash(frame)
        if self._writer is None:
            self._record(frame, self._work(frame))
        else:
            self._queue.submit(frame)

    def finish(self) -> None:
        """Wait for all frames. Raises the first error of the work on them."""
        self._queue.finish()
        for sentence in area_warnings(self._areas, self._finisher.results.facts.frames):
            self._on_event(Notice(sentence))

    def _work(self, frame: int) -> Quality | None:
        """Write a frame; returns its quality, unless that is recorded already."""
        results = self._finisher.results
        results.wait_until_stored(frame)
        written = None if self._writer is None else self._finisher.write(frame, self._writer)
        self._context.hold_memory()
        before = self._qualities.get(frame)
        is_known = before is not None and before.address == results.address(frame)
        if is_known and not results.plan.by_frame[frame].is_key:
            return None if written is None else written.quality
        result = written or results.frame_result(frame)
        self._areas[frame] = self._finisher.areas(result)
        return None if is_known and written is None else result.quality

    def _record(self, frame: int, quality: Quality | None) -> None:
        results, store = self._finisher.results, self._context.store
        address = results.address(frame)

        def record() -> None:
            if quality is not None:
                store.record_quality(quality)
            store.record(record_of(results.facts, results.plan.by_frame[frame], address))

        with concerning(frame):
            self._context.cache.make_room_for(record)
        self._on_event(FrameFinished(frame, address))


def not_done(frame: int, why: str, name: str | None = None) -> MatteError:
    """The error for a matte whose frame is not done."""
    which = f"The matte of {name}" if name else "The matte"
    reason = f" ({why})" if why else ""
    return MatteError(f"{which} is not done{reason}.", frame=frame, hint="Run `stm shot propagate` first.")
