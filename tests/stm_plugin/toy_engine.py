"""A tiny engine for tests of the server: a matte is the nearest key's mask.

It keeps everything in memory, computes a frame by a short sleep, and stops on request.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stm_plugin.errors import KeyframeError, MaskError, PropagationCancelled, StmError
from stm_plugin.protocol import Direction, MatteLayer, PlateFiles, PushedGeometry, Range
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
    Report,
    ShapesOrder,
    ShotState,
)
from stm_plugin.server.main import serve
from stm_plugin.server.options import DEFAULT_END_SECONDS, DEFAULT_REST_SECONDS, ServeOptions

FRAME_SECONDS = 0.02
STUCK_SECONDS = 3600.0


class ToyShot:
    """One shot in memory."""

    def __init__(self, plate: PushedGeometry, objects: Sequence[str]) -> None:
        self.plate = plate
        self.objects = list(objects)
        self.pushed: dict[int, PushedFrame] = {}
        self.masks: dict[int, PushedMasks] = {}
        self.kept: dict[int, PushedMasks] = {}  # as a store keeps the masks of keys that were removed
        self.done: dict[int, int] = {}
        self.values: dict[str, Any] = {"speed": 1}
        self.computing = threading.Lock()

    @property
    def range(self) -> range:
        return range(self.plate.frames[0], self.plate.frames[1] + 1)

    def device(self) -> str:
        return "toy"

    def close(self) -> None:
        return

    def differs(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> bool:
        return plate not in (None, self.plate) or any(
            self.values.get(name) != settings[name] for name in settings
        )

    def describe(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> None:
        if isinstance(plate, PushedGeometry):
            self.plate = plate
        self.values.update(settings)

    def plate_needed(self, frames: Range | None, digests: Mapping[int, str]) -> Frames:
        return [
            frame
            for frame in self.chosen(frames)
            if frame not in self.pushed or digests.get(frame) not in (None, self.pushed[frame].digest)
        ]

    def chosen(self, frames: Range | None) -> list[int]:
        return [one for one in self.range if frames is None or frames[0] <= one <= frames[1]]

    def push_plate(self, pushed: PushedFrame) -> Change:
        before = self.pushed.get(pushed.frame)
        self.pushed[pushed.frame] = pushed
        changed = before is None or not np.array_equal(before.pixels, pushed.pixels)
        return Change(changed, [pushed.frame] if changed else [], f"{float(np.nansum(pushed.pixels)):.3f}")

    def push_key(self, pushed: PushedMasks) -> Change:
        self.masks[pushed.frame] = self.kept[pushed.frame] = pushed
        self.objects += [name for name in pushed.masks if name not in self.objects]
        self.done.clear()
        return Change(True, list(self.range))

    def keys(self) -> tuple[KeyState, ...]:
        return tuple(
            KeyState(frame, dict.fromkeys(key.masks, "0" * 64), key.digest)
            for frame, key in sorted(self.masks.items())
        )

    def remove_key(self, frame: int) -> Change:
        if frame not in self.masks:
            raise KeyframeError("There is no key here.", frame=frame)
        del self.masks[frame]
        self.done.clear()
        return Change(True, list(self.range))

    def restore_key(self, frame: int, masks: Mapping[str, str], digest: str | None) -> Change:
        if frame not in self.kept or set(masks.values()) != {"0" * 64}:
            raise MaskError("The mask of a key is gone.", frame=frame)
        self.masks[frame] = self.kept[frame]
        self.done.clear()
        return Change(True, list(self.range))

    def settings(self) -> dict[str, Any]:
        if self.values["speed"] == "stuck":
            time.sleep(STUCK_SECONDS)
        return dict(self.values)

    def set_settings(self, settings: Mapping[str, Any]) -> Change:
        self.values.update(settings)
        return Change(True, [])

    def set_objects(self, rename: Mapping[str, str], remove: Sequence[str]) -> Change:
        self.objects = [rename.get(name, name) for name in self.objects if name not in remove]
        return Change(True, [])

    def state(self, frames: Range | None) -> ShotState:
        chosen = self.chosen(frames)
        done = [one for one in chosen if one in self.done or one in self.masks]
        missing = [one for one in chosen if one not in done]
        return ShotState(
            first=self.plate.frames[0],
            last=self.plate.frames[1],
            objects=tuple(self.objects),
            keys=tuple(sorted(self.masks)),
            done=done,
            stale=[],
            missing=missing,
            plate_missing=[one for one in chosen if one not in self.pushed],
            reasons=(),
        )

    def forecast(self, frames: Range | None, direction: Direction) -> Forecast:
        if not self.masks:
            raise KeyframeError("There is no key.")
        todo = [one for one in self.chosen(frames) if one not in self.done and one not in self.masks]
        needed = [one for one in todo if one not in self.pushed]
        return Forecast(len(todo), todo, (), needed, None, f"{len(todo)} frames")

    def propagate(
        self, frames: Range | None, direction: Direction, report: Report, cancelled: Cancelled
    ) -> None:
        todo = self.forecast(frames, direction).frames
        for count, frame in enumerate(todo, 1):
            if self.values["speed"] == "crash":
                raise RuntimeError("a bug")
            if self.values["speed"] == "fail":
                raise StmError("The toy is broken.", frame=frame)
            with self.computing:
                time.sleep(FRAME_SECONDS)
                self.done[frame] = min(self.masks, key=lambda key: abs(key - frame))
            report(Progress(count, len(todo), frame, (len(todo) - count) * FRAME_SECONDS, [frame]))
            if cancelled():
                raise PropagationCancelled("Stopped.")

    def export_frames(self, order: ExportOrder) -> Frames:
        return self.chosen(order.frames)

    def export(self, order: ExportOrder, report: Report, cancelled: Cancelled) -> None:
        for count, frame in enumerate(self.chosen(order.frames), 1):
            Path(order.pattern % frame).write_bytes(b"matte")
            report(Progress(count, len(self.range), frame, None, [frame]))

    def shapes(self, order: ShapesOrder, report: Report, cancelled: Cancelled) -> None:
        frames = self.chosen(order.frames)
        for count, _ in enumerate(frames, 1):
            report(Progress(count, len(frames), None, None, []))
        Path(order.file).write_text(f"{order.format} {order.tolerance} {','.join(order.objects)}")

    def matte(
        self, frame: int, objects: Sequence[str], stale: bool, layer: MatteLayer = "matte"
    ) -> Matte | NoMatte:
        if frame not in self.range:
            return NoMatte("outside", "the shot has no such frame")
        key = frame if frame in self.masks else self.done.get(frame)
        if key is None:
            return NoMatte("missing", "it has not been computed")
        masks = self.masks[key]
        union: FloatArray = np.clip(sum(masks.masks.values()), 0, 1).astype(np.float32)
        source: Any = "key" if frame in self.masks else "propagated"
        return Matte(
            masks.masks, union, masks.data_window, self.plate.display_window, source, False, f"{frame}-{key}"
        )


class ToyBackend:
    """Shots that are kept until the process ends."""

    def __init__(self) -> None:
        self.shots: dict[Path, ToyShot] = {}
        self.rests = 0

    def information(self) -> Information:
        device = {"name": "toy", "label": f"Toy, rested {self.rests} times", "memory": 0}
        return Information(sys.version, "none", (device,))

    def rest(self) -> None:
        self.rests += 1

    def locate(self, folder: Path) -> Path:
        return folder

    def exists(self, folder: Path) -> bool:
        return folder in self.shots

    def open(self, folder: Path) -> ToyShot:
        return self.shots[folder]

    def create(
        self,
        folder: Path,
        plate: PushedGeometry | PlateFiles,
        settings: Mapping[str, Any],
        objects: Sequence[str],
    ) -> ToyShot:
        assert isinstance(plate, PushedGeometry)
        shot = self.shots[folder] = ToyShot(plate, objects)
        shot.values.update(settings)
        return shot

    def copy(self, source: Path, folder: Path) -> ToyShot:
        origin = self.shots[source]
        shot = self.shots[folder] = ToyShot(origin.plate, origin.objects)
        shot.pushed, shot.masks, shot.done = dict(origin.pushed), dict(origin.masks), dict(origin.done)
        return shot


if __name__ == "__main__":
    idle, parent, rest, end = [*map(float, sys.argv[1:]), 0, 0, 0][:4]
    options = ServeOptions(
        idle,
        int(parent) or None,
        rest_seconds=rest or DEFAULT_REST_SECONDS,
        end_seconds=end or DEFAULT_END_SECONDS,
    )
    serve(options, ToyBackend)
