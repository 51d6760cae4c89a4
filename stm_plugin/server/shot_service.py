"""The engine behind the server: applies the protocol's requests to a `Shot`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from model.inference.allocator import release_freed_memory
from stm_plugin.address import address_of
from stm_plugin.configuration import configuration
from stm_plugin.errors import KeyframeError, MatteError, PlateError, PropagationCancelled
from stm_plugin.files.journal import Journal
from stm_plugin.images.host_plate import HostPlate
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.quality import Advice, no_advice
from stm_plugin.planning.values import DirtyRange, Plan, State
from stm_plugin.planning.values import Request as PlanRange
from stm_plugin.propagation.events import Event, FrameFinished, Notice, PlateChanged
from stm_plugin.propagation.events import Progress as EngineProgress
from stm_plugin.propagation.memory_forecast import pick_device
from stm_plugin.protocol import Direction, MatteLayer, PlateFiles, PushedGeometry, Range, Rectangle
from stm_plugin.server.backend import (
    Cancelled,
    Change,
    ExportOrder,
    FloatArray,
    Forecast,
    Frames,
    Information,
    KeyState,
    Matte,
    NoMatte,
    Progress,
    PushedFrame,
    PushedMasks,
    Reason,
    Report,
    ShapesOrder,
    ShotState,
)
from stm_plugin.server.information import information
from stm_plugin.settings import Settings, as_kept, changed_settings, flat_settings
from stm_plugin.shapes.formats import format_of
from stm_plugin.shapes.options import ShapeFormat
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shapes import check_shape_files, make_shapes, write_shapes
from stm_plugin.shot.shot import FinishedFrame, Shot
from stm_plugin.store.copying import copy_store
from stm_plugin.store.description import PlateDescription, ShotDescription, ShotObject
from stm_plugin.store.store import with_suffix
from stm_plugin.windows import Window

LAST_MATTES_BYTES: Final = 256 << 20
"""How much of the last mattes is kept, for a client that wants the old matte of a stale frame."""
_REMEMBERED_EDITS: Final = 8
_ASPECT_TOLERANCE: Final = 1e-6
"""A file says the pixel aspect in 32 bits, a host in 64."""
_DONE = (State.KEY, State.DONE)


class EngineBackend:
    """The shots of this machine."""

    def information(self) -> Information:
        """The choices for a panel."""
        return information()

    def rest(self) -> None:
        """Return freed memory, which is kept for speed, to the system."""
        release_freed_memory()

    def locate(self, folder: Path) -> Path:
        """The folder of a shot on disk, with its suffix."""
        return with_suffix(folder)

    def exists(self, folder: Path) -> bool:
        """Whether the folder is a shot store."""
        return (folder / "shot.json").exists()

    def open(self, folder: Path) -> EngineShot:
        """Open a shot store."""
        return EngineShot(Shot.open(folder))

    def create(
        self,
        folder: Path,
        plate: PushedGeometry | PlateFiles,
        settings: Mapping[str, Any],
        objects: Sequence[str],
    ) -> EngineShot:
        """Make a shot store, with its objects in the given order."""
        base = configuration().settings()
        if plate.colour_space is not None:
            base = dataclasses.replace(base, colour_space=plate.colour_space)
        chosen = changed_settings(base, settings)
        shot = Shot.create(folder, _description(plate), chosen)
        if objects:
            named = tuple(ShotObject(f"o{number}", name) for number, name in enumerate(objects, 1))
            with shot.store.lock:
                description = shot.store.description()
                shot.store.save(dataclasses.replace(description, objects=named, next_object=len(named) + 1))
            shot.refresh()
        return EngineShot(shot)

    def copy(self, source: Path, folder: Path) -> EngineShot:
        """Make a shot store that begins with everything that `source` has."""
        copy_store(source, folder)
        return self.open(folder)


class EngineShot:
    """One open shot, for several threads: reading is one at a time, a job runs beside it."""

    def __init__(self, shot: Shot) -> None:
        self._shot = shot
        self._reading = threading.RLock()
        self._is_computing = False
        self._last_mattes = _LastMattes(LAST_MATTES_BYTES)
        self._earlier: deque[ShotDescription] = deque(maxlen=_REMEMBERED_EDITS)  # the newest first
        self._key_digests = Journal(shot.folder / "keys" / "digests.jsonl", "frame")

    def device(self) -> str:
        """The device that this shot computes on."""
        return pick_device(self._shot.settings.device)

    def close(self) -> None:
        """End the threads and release the memory."""
        self._shot.close()

    def _refresh(self) -> None:
        """Read changes of other processes. There are none while a job holds the shot's lock."""
        if not self._is_computing:
            self._shot.refresh()

    # ---- plate

    def differs(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> bool:
        """Whether `describe` would change anything."""
        self._refresh()
        wanted = self._wanted_settings(plate, settings)
        if plate is not None and _description(plate) != self._shot.store.description().plate:
            return True
        return wanted != self._shot.settings

    def describe(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> None:
        """Apply a changed plate and changed settings."""
        with self._reading:
            wanted = self._wanted_settings(plate, settings)
            if plate is not None and _description(plate) != self._shot.store.description().plate:
                self._shot.set_plate(_description(plate))
            self._shot.set_settings(wanted)

    def _wanted_settings(
        self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]
    ) -> Settings:
        wanted = changed_settings(self._shot.settings, settings)
        if plate is not None and plate.colour_space is not None:
            wanted = dataclasses.replace(wanted, colour_space=plate.colour_space)
        return as_kept(wanted, self._shot.settings)

    def plate_needed(self, frames: Range | None, digests: Mapping[int, str]) -> Frames:
        """Frames that a propagation of `frames` reads and that are missing, or have another digest."""
        plate = self._shot.plate
        if not isinstance(plate, HostPlate):
            return []
        with self._reading:
            missing = set(plate.missing)
            if not self._shot.keys:
                read = touched = set(frames_in_range(plate.frames, _plan_range(frames)))
            else:
                plan = self._plan(frames)
                read = _frames_read(plan)
                touched = read | {one.frame for one in plan.frames}
                touched |= {frame for passed in plan.passes for frame in (passed.key, *passed.frames)}
            held = plate.records
        changed = {
            frame
            for frame, digest in digests.items()
            if frame in touched and frame in held and held[frame].digest != digest
        }
        return sorted((read & missing) | changed)

    def push_plate(self, pushed: PushedFrame) -> Change:
        """Keep one frame's pixels."""
        plate = self._pushed_plate(pushed.frame)
        _check_geometry(plate, pushed)
        before = plate.signature(pushed.frame)
        done_before = self._done() if before is not None else set()
        pixels: Any = pushed.pixels.astype(np.float16) if pushed.is_half else pushed.pixels
        record = plate.push(
            pushed.frame,
            pixels,
            Window(*pushed.data_window),
            digest=pushed.digest,
            metadata=pushed.metadata,
        )
        changed = record.hash != before
        dirty = sorted(done_before - self._done()) if changed and before is not None else []
        return Change(changed, dirty, record.hash)

    def _pushed_plate(self, frame: int) -> HostPlate:
        plate = self._shot.plate
        if not isinstance(plate, HostPlate):
            raise PlateError("The plate of this shot is read from files; nothing can be pushed.", frame=frame)
        return plate

    # ---- keys, settings, objects

    def push_key(self, pushed: PushedMasks) -> Change:
        """Keep one key's masks."""

        def add() -> None:
            window = Window(*pushed.data_window)
            self._shot.add_key(
                pushed.frame,
                pushed.masks,
                window=window,
                allow_empty=pushed.allow_empty,
                replace_all=pushed.replace,
            )

        change = self._edit(add)
        self._record_digest(pushed.frame, pushed.digest)
        return change

    def restore_key(self, frame: int, masks: Mapping[str, str], digest: str | None) -> Change:
        """Make a key of masks that the store has kept: object name -> content."""
        change = self._edit(lambda: self._shot.restore_key(frame, masks))
        self._record_digest(frame, digest)
        return change

    def _record_digest(self, frame: int, digest: str | None) -> None:
        if digest is not None:
            content = self._key_contents().get(frame, {})
            self._key_digests.append({"frame": frame, "digest": digest, "key": _key_content(content)})

    def keys(self) -> tuple[KeyState, ...]:
        """All keys, ascending."""
        self._refresh()
        digests = self._key_digests.load()
        states = []
        for frame, content in sorted(self._key_contents().items()):
            recorded = digests.get(frame, {})
            fits = recorded.get("key") == _key_content(content)
            states.append(KeyState(frame, content, recorded["digest"] if fits else None))
        return tuple(states)

    def remove_key(self, frame: int) -> Change:
        """Remove a key."""
        return self._edit(lambda: self._shot.remove_key(frame))

    def settings(self) -> dict[str, Any]:
        """All settings as plain values, by the names of `describe_settings`."""
        self._refresh()
        return flat_settings(self._shot.settings)

    def set_settings(self, settings: Mapping[str, Any]) -> Change:
        """Change some settings, or none if one is invalid."""
        wanted = changed_settings(self._shot.settings, settings)
        return self._edit(lambda: self._shot.set_settings(wanted))

    def set_objects(self, rename: Mapping[str, str], remove: Sequence[str]) -> Change:
        """Rename or remove objects."""

        def change() -> None:
            for name in remove:
                self._shot.remove_object(name)
            for old, new in rename.items():
                self._shot.rename_object(old, new)

        return self._edit(change)

    def _edit(self, work: Callable[[], Any]) -> Change:
        """Do `work`; frames that were done before and are not afterwards became stale."""
        with self._reading:
            self._refresh()
            before, done_before = self._shot.store.description(), self._done()
            work()
            changed = self._shot.store.description() != before
            dirty = sorted(done_before - self._done()) if changed else []
            if dirty:
                self._earlier.appendleft(before)
            return Change(changed, dirty)

    def _key_contents(self) -> dict[int, dict[str, str]]:
        """By frame and object name, the hash of the mask."""
        description = self._shot.store.description()
        names = {one.id: one.name for one in description.objects}
        return {
            key.frame: {names[name]: mask.hash for name, mask in key.masks.items()}
            for key in description.keys
        }

    # ---- status and plan

    def state(self, frames: Range | None) -> ShotState:
        """The state of all frames, and why."""
        shot = self._shot
        with self._reading:
            self._refresh()
            plate_missing = sorted(set(shot.plate.missing))
            chosen = frames_in_range(tuple(shot.plate.frames), _plan_range(frames))
            states: dict[int, State] = dict.fromkeys(chosen, State.MISSING)
            dirty: tuple[DirtyRange, ...] = ()
            advice: Advice | None = None
            notes: tuple[str, ...] = ()
            if shot.has_active_key:
                plan = self._plan(frames)
                advice, notes = shot.next_key(plan), shot.notes(plan)
                states = {one.frame: one.state for one in plan.frames}
                dirty = plan.dirty
        keys = tuple(key.frame for key in shot.keys)
        reasons = _reasons(dirty)
        if not shot.has_active_key:
            reasons = (Reason(chosen, "there is no keyframe yet"),)
        within = set(chosen)
        return ShotState(
            first=shot.plate.frames[0],
            last=shot.plate.frames[-1],
            objects=shot.objects,
            keys=keys,
            done=[frame for frame, state in states.items() if state in _DONE],
            stale=[frame for frame, state in states.items() if state is State.STALE],
            missing=[frame for frame, state in states.items() if state in (State.MISSING, State.UNREACHED)],
            plate_missing=[frame for frame in plate_missing if frame in within],
            reasons=reasons,
            advice=None if advice is None else (advice.frame, advice.text),
            no_advice=no_advice(advice, finished=State.DONE in states.values() and not dirty),
            notes=notes,
        )

    def forecast(self, frames: Range | None, direction: Direction) -> Forecast:
        """The plan of `propagate`."""
        shot = self._shot
        with self._reading:
            self._refresh()
            plan = self._plan(frames, direction)
            missing = set(shot.plate.missing)
            needed = sorted(_frames_read(plan) & missing)
            has_plate = len(missing) < len(shot.plate.frames)
            memory = shot.forecast(plan).forecast.total if has_plate else None
        todo = [one.frame for one in plan.frames if one.state in (State.STALE, State.MISSING)]
        return Forecast(
            compute=len(plan.compute_steps),
            frames=todo,
            reasons=_reasons(plan.dirty),
            plate_needed=needed,
            memory=memory,
            text=plan.words(),
        )

    def _plan(self, frames: Range | None, direction: Direction = "both") -> Plan:
        """The plan for a range. KeyframeError where there is no key."""
        return self._shot.plan(_plan_range(frames, direction))

    def _done(self) -> set[int]:
        """Frames that have a fresh matte."""
        with self._reading:
            if not self._shot.has_active_key:
                return set()
            return {one.frame for one in self._plan(None).frames if one.state in _DONE}

    # ---- jobs

    def propagate(
        self, frames: Range | None, direction: Direction, report: Report, cancelled: Cancelled
    ) -> None:
        """Compute the frames that are not done."""
        self._refresh()
        self._is_computing = True
        try:
            forwarder = _EventForwarder(report)
            self._shot.propagate(
                _plan_range(frames, direction), on_event=forwarder.on_event, cancelled=cancelled
            )
        finally:
            self._is_computing = False

    def export_frames(self, order: ExportOrder) -> Frames:
        """The frames that `export` would write."""
        return frames_in_range(tuple(self._shot.plate.frames), _plan_range(order.frames))

    def export(self, order: ExportOrder, report: Report, cancelled: Cancelled) -> None:
        """Write matte files."""
        unknown = [name for name in order.objects if name not in self._shot.objects]
        if unknown:
            raise MatteError(
                f"The shot has no object {unknown[0]}.", hint=f"It has {', '.join(self._shot.objects)}."
            )
        channel = order.channel or self._shot.settings.channel
        asked = order.cryptomatte
        with_ids = self._shot.settings.cryptomatte if asked is None else asked
        writer = _SelectiveWriter(
            order.pattern, self._shot.plate, channel=channel, with_ids=with_ids, overwrite=order.overwrite
        )
        writer.objects = order.objects
        total = len(self.export_frames(order))
        written = 0

        def on_event(event: Event) -> None:
            nonlocal written
            if isinstance(event, FrameFinished):
                written += 1
                report(Progress(written, total, event.frame, None, (event.frame,)))

        self._shot.export(writer, _plan_range(order.frames), on_event=on_event, cancelled=cancelled)
        if cancelled() and written < total:
            raise PropagationCancelled("Writing was stopped.", hint="Written files are whole.")

    def shapes(self, order: ShapesOrder, report: Report, cancelled: Cancelled) -> None:
        """Write the mattes as splines."""
        request = _plan_range(order.frames)
        form = format_of(order.file, cast(ShapeFormat, order.format))
        check_shape_files(self._shot, request, order.file, form)
        made = make_shapes(
            self._shot,
            request,
            objects=order.objects or None,
            tolerance=order.tolerance,
            on_progress=lambda done, count: report(Progress(done, count, None, None, ())),
            cancelled=cancelled,
        )
        write_shapes(self._shot, made, order.file, form)

    # ---- mattes

    def matte(
        self, frame: int, objects: Sequence[str], stale: bool, layer: MatteLayer = "matte"
    ) -> Matte | NoMatte:
        """One frame: its matte, how sure the network is, or the foreground; or why there is none."""
        if layer == "confidence":
            return self._confidence(frame, stale)
        if layer == "foreground":
            return self._foreground(frame, objects, stale)
        with self._reading:
            self._refresh()
            none = self._why_no_matte(frame)
            if none is None:
                try:
                    finished = self._shot.matte(frame)
                except MatteError as error:
                    none = NoMatte("stale", error.what.rstrip(".").lower())
                else:
                    matte = self._matte_of(finished)
                    self._last_mattes.keep(frame, matte)
                    return matte
            last = (self._last_mattes.last(frame) or self._old_matte(frame)) if stale else None
        return none if last is None else dataclasses.replace(last, stale=True)

    def _confidence(self, frame: int, stale: bool) -> Matte | NoMatte:
        """As `matte`; the confidence of all objects together is the least of theirs at each pixel."""
        with self._reading:
            self._refresh()
            none = self._why_no_matte(frame)
            if none is None:
                try:
                    return self._confidence_of(self._shot.matte(frame), self._shot.confidence(frame))
                except MatteError as error:
                    none = NoMatte("stale", error.what.rstrip(".").lower())
            for description in self._earlier if stale else ():
                with contextlib.suppress(KeyframeError, MatteError, PlateError):
                    finished = self._shot.earlier_matte(description, frame)
                    found = self._confidence_of(finished, self._shot.earlier_confidence(description, frame))
                    return dataclasses.replace(found, stale=True)
        return none

    def _foreground(self, frame: int, objects: Sequence[str], stale: bool) -> Matte | NoMatte:
        """As `matte`, with the colours of the objects; without any named, of all together."""
        with self._reading:
            self._refresh()
            none = self._why_no_matte(frame)
            if none is None:
                try:
                    finished, colours = self._shot.foreground(frame, objects)
                except MatteError as error:
                    none = NoMatte("stale", error.what.rstrip(".").lower())
                else:
                    return dataclasses.replace(self._matte_of(finished), colours=colours)
            for description in self._earlier if stale else ():
                with contextlib.suppress(KeyframeError, MatteError, PlateError):
                    finished, colours = self._shot.foreground(frame, objects, description)
                    return dataclasses.replace(self._matte_of(finished), colours=colours, stale=True)
        return none

    def _confidence_of(self, finished: FinishedFrame, sure: Mapping[str, FloatArray]) -> Matte:
        matte = self._matte_of(finished)
        everywhere: FloatArray = np.ones_like(matte.union)
        by_object = {name: sure.get(name, everywhere) for name in self._shot.objects}
        least = functools.reduce(np.minimum, by_object.values(), everywhere)
        return dataclasses.replace(matte, mattes=by_object, union=least)

    def _old_matte(self, frame: int) -> Matte | None:
        """The matte from before the last edits of this shot, if its results are still in the store."""
        for description in self._earlier:
            try:
                matte = self._matte_of(self._shot.earlier_matte(description, frame))
            except (KeyframeError, MatteError, PlateError):
                continue
            self._last_mattes.keep(frame, matte)
            return matte
        return None

    def _why_no_matte(self, frame: int) -> NoMatte | None:
        shot = self._shot
        if frame not in shot.plate.frames:
            return NoMatte("outside", f"the shot has frames {shot.plate.frames[0]}-{shot.plate.frames[-1]}")
        if not shot.has_active_key:
            return NoMatte("missing", "there is no keyframe yet")
        planned = self._plan((frame, frame)).frames[0]
        if not planned.is_key and planned.state is State.STALE:
            return NoMatte("stale", planned.why)
        if not planned.is_key and planned.state not in _DONE:
            return NoMatte("missing", planned.why)
        if frame in shot.plate.missing:
            return NoMatte("plate_missing", "the plate frame is missing")
        return None

    def _matte_of(self, finished: FinishedFrame) -> Matte:
        plate_frame = finished.plate_frame
        window = plate_frame.data_window
        nothing: FloatArray = np.zeros((window.height, window.width), np.float32)
        mattes = {name: finished.mattes.get(name, nothing) for name in self._shot.objects}
        union = functools.reduce(np.add, mattes.values(), nothing)
        return Matte(
            mattes=mattes,
            union=np.clip(union, 0.0, 1.0),
            data_window=_rectangle(window),
            display_window=_rectangle(plate_frame.display_window),
            source="key" if finished.is_key else "propagated",
            stale=False,
            content=finished.address,
            confidence=None if finished.is_key else finished.confidence,
        )


class _EventForwarder:
    """Reports a job's progress from the engine's events."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._finished: list[int] = []
        self._text = ""

    def on_event(self, event: Event) -> None:
        match event:
            case FrameFinished():
                self._finished.append(event.frame)
            case Notice():
                self._text = event.text
            case PlateChanged():
                self._text = f"the plate changed on {len(event.frames)} frames; computing them anew"
            case EngineProgress():
                finished, self._finished = self._finished, []
                text, self._text = self._text, ""
                self._report(
                    Progress(event.done, event.total, event.frame, event.seconds_left, finished, text)
                )


class _SelectiveWriter(MatteWriter):
    """Writes some of the objects only, with another address than files with all objects."""

    objects: tuple[str, ...] = ()

    def is_current(self, frame: int, address: str) -> bool:
        return super().is_current(frame, self._own(address))

    def write(self, finished: FinishedFrame, address: str, metadata: Mapping[str, Any]) -> None:
        chosen = finished.mattes
        if self.objects:
            chosen = {name: finished.mattes[name] for name in self.objects if name in finished.mattes}
        super().write(dataclasses.replace(finished, mattes=chosen), self._own(address), metadata)

    def _own(self, address: str) -> str:
        return address_of("selection", address, self.objects) if self.objects else address


class _LastMattes:
    """The last matte of each frame that a client got, within a byte budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._mattes: OrderedDict[int, Matte] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, frame: int, matte: Matte) -> None:
        with self._lock:
            self._mattes[frame] = matte
            self._mattes.move_to_end(frame)
            while len(self._mattes) > 1 and sum(map(_matte_bytes, self._mattes.values())) > self._budget:
                self._mattes.popitem(last=False)

    def last(self, frame: int) -> Matte | None:
        with self._lock:
            return self._mattes.get(frame)


def _matte_bytes(matte: Matte) -> int:
    return matte.union.nbytes * (1 + len(matte.mattes))


def _description(plate: PushedGeometry | PlateFiles) -> PlateDescription:
    if isinstance(plate, PlateFiles):
        return PlateDescription(
            "files", text=plate.sequence, frame_range=plate.frames, layer=plate.layer, view=plate.view
        )
    return PlateDescription(
        "pushed",
        frames=plate.frames,
        display_window=Window(*plate.display_window),
        canvas=None if plate.canvas is None else Window(*plate.canvas),
        pixel_aspect=plate.pixel_aspect,
        fps=plate.fps,
    )


def _check_geometry(plate: HostPlate, pushed: PushedFrame) -> None:
    display = pushed.display_window
    if display is not None and Window(*display) != plate.display_window:
        raise PlateError(
            f"The frame's display window {display} is not the plate's, {_rectangle(plate.display_window)}.",
            frame=pushed.frame,
            hint="Give the shot a plate of one size.",
        )
    aspect = pushed.pixel_aspect
    if aspect is not None and not math.isclose(aspect, plate.pixel_aspect, rel_tol=_ASPECT_TOLERANCE):
        raise PlateError(
            f"The frame's pixel aspect {aspect} is not the plate's, {plate.pixel_aspect}.",
            frame=pushed.frame,
        )


def _frames_read(plan: Plan) -> set[int]:
    """Plate frames that the execution of a plan reads."""
    read = {step.frame for step in plan.steps}
    for step in plan.compute_steps:
        read |= {step.passed.key}
    return read


def _reasons(dirty: Sequence[DirtyRange]) -> tuple[Reason, ...]:
    """Ranges with the same reason together."""
    ordered = sorted(dirty, key=lambda one: one.why)
    return tuple(
        Reason([frame for one in same for frame in range(one.first, one.last + 1)], why)
        for why, same in groupby(ordered, key=lambda one: one.why)
    )


def _key_content(content: Mapping[str, str]) -> str:
    return address_of("key", dict(content))


def _plan_range(frames: Range | None, direction: Direction = "both") -> PlanRange:
    first, last = frames or (None, None)
    return PlanRange(first, last, direction)


def _rectangle(window: Window) -> Rectangle:
    return window.x, window.y, window.width, window.height
