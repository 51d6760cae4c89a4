"""What the server asks of the engine. `shot_service.py` implements it, and takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from stm_plugin.protocol import Direction, MatteLayer, PlateFiles, PushedGeometry, Range, Rectangle

FloatArray = npt.NDArray[np.float32]
Frames = Sequence[int]


@dataclass(frozen=True)
class PushedFrame:
    """One plate frame from a host: float32 (height, width, 3) over `data_window`, scene values."""

    frame: int
    pixels: FloatArray
    data_window: Rectangle
    display_window: Rectangle | None
    pixel_aspect: float | None
    digest: str | None
    metadata: Mapping[str, str | int | float]
    is_half: bool = False
    """The host sent half floats, so half floats hold these pixels exactly."""


@dataclass(frozen=True)
class PushedMasks:
    """One key from a host: object name -> float32 (height, width) in [0, 1] over `data_window`."""

    frame: int
    masks: Mapping[str, FloatArray]
    data_window: Rectangle
    digest: str | None
    replace: bool
    allow_empty: bool


@dataclass(frozen=True)
class Change:
    """The effect of a push or an edit."""

    changed: bool
    dirty: Frames
    content: str = ""


@dataclass(frozen=True)
class KeyState:
    """A key: its objects with the sha256 of each mask."""

    frame: int
    objects: Mapping[str, str]
    digest: str | None


@dataclass(frozen=True)
class Reason:
    """The reason why frames are not done."""

    frames: Frames
    text: str


@dataclass(frozen=True)
class ShotState:
    """The state of all frames, and why."""

    first: int
    last: int
    objects: tuple[str, ...]
    keys: tuple[int, ...]
    done: Frames
    stale: Frames
    missing: Frames
    plate_missing: Frames
    reasons: tuple[Reason, ...]
    advice: tuple[int, str] | None = None
    no_advice: str = ""
    """The sentence that no further key is expected to help; empty unless that is so."""
    notes: tuple[str, ...] = ()
    """What may improve the shot, or is against it, in sentences."""


@dataclass(frozen=True)
class Forecast:
    """The plan of a propagation."""

    compute: int
    frames: Frames
    reasons: tuple[Reason, ...]
    plate_needed: Frames
    memory: int | None
    text: str


@dataclass(frozen=True)
class Progress:
    """Where a job is. `finished`: frames completed since the last report."""

    done: int
    total: int
    frame: int | None
    seconds_left: float | None
    finished: Frames = ()
    text: str = ""


@dataclass(frozen=True)
class Matte:
    """The finished matte of one frame: name -> float32 (height, width) over `data_window`."""

    mattes: Mapping[str, FloatArray]
    union: FloatArray
    data_window: Rectangle
    display_window: Rectangle
    source: Literal["key", "propagated"]
    stale: bool
    content: str
    confidence: float | None = None
    colours: FloatArray | None = None  # of the foreground, (height, width, 3), where they were asked for


@dataclass(frozen=True)
class NoMatte:
    """Why a frame has no matte."""

    state: Literal["stale", "missing", "plate_missing", "outside"]
    reason: str


@dataclass(frozen=True)
class ExportOrder:
    """The order to write matte files; `cryptomatte` as the shot's setting where it is None."""

    pattern: str
    frames: Range | None
    channel: str | None
    objects: tuple[str, ...]
    cryptomatte: bool | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ShapesOrder:
    """The order to write the mattes as splines; `format` as `Shapes.format`."""

    file: str
    format: str
    frames: Range | None
    objects: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class Information:
    """The choices for a panel."""

    python: str
    torch: str
    devices: tuple[Mapping[str, Any], ...] = ()
    weights: tuple[Mapping[str, Any], ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


class ShotBackend(Protocol):
    """One open shot. Its methods may be called from several threads; a job runs in a separate thread.

    Methods raise StmError with a text for people.
    """

    def device(self) -> str:
        """The device that this shot computes on."""

    def close(self) -> None:
        """Close the store. No job is running."""

    def differs(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> bool:
        """Whether `describe` would change anything."""

    def describe(self, plate: PushedGeometry | PlateFiles | None, settings: Mapping[str, Any]) -> None:
        """Apply a changed plate and changed settings."""

    def plate_needed(self, frames: Range | None, digests: Mapping[int, str]) -> Frames:
        """Frames whose pixels a host must push."""

    def push_plate(self, pushed: PushedFrame) -> Change:
        """Keep one frame's pixels."""

    def push_key(self, pushed: PushedMasks) -> Change:
        """Keep one key's masks."""

    def keys(self) -> tuple[KeyState, ...]:
        """All keys, ascending."""

    def remove_key(self, frame: int) -> Change:
        """Remove a key."""

    def restore_key(self, frame: int, masks: Mapping[str, str], digest: str | None) -> Change:
        """Make a key of masks that the store has kept: object name -> content."""

    def settings(self) -> dict[str, Any]:
        """All settings as plain values."""

    def set_settings(self, settings: Mapping[str, Any]) -> Change:
        """Change some settings, or none if one is invalid."""

    def set_objects(self, rename: Mapping[str, str], remove: Sequence[str]) -> Change:
        """Rename or remove objects."""

    def state(self, frames: Range | None) -> ShotState:
        """The state of all frames."""

    def forecast(self, frames: Range | None, direction: Direction) -> Forecast:
        """The plan of `propagate`."""

    def propagate(
        self, frames: Range | None, direction: Direction, report: Report, cancelled: Cancelled
    ) -> None:
        """Compute the frames that are not done. `report` is called after every frame and may block."""

    def export_frames(self, order: ExportOrder) -> Frames:
        """The frames that `export` would write."""

    def export(self, order: ExportOrder, report: Report, cancelled: Cancelled) -> None:
        """Write matte files."""

    def shapes(self, order: ShapesOrder, report: Report, cancelled: Cancelled) -> None:
        """Write the mattes as splines."""

    def matte(
        self, frame: int, objects: Sequence[str], stale: bool, layer: MatteLayer = "matte"
    ) -> Matte | NoMatte:
        """One frame: its matte, how sure the network is, or the foreground; or why there is none."""


class Backend(Protocol):
    """The engine as a whole."""

    def information(self) -> Information:
        """The choices for a panel; may take seconds."""

    def locate(self, folder: Path) -> Path:
        """The folder of a shot store for a host's path."""

    def open(self, folder: Path) -> ShotBackend:
        """Open an existing shot store."""

    def create(
        self,
        folder: Path,
        plate: PushedGeometry | PlateFiles,
        settings: Mapping[str, Any],
        objects: Sequence[str],
    ) -> ShotBackend:
        """Make a shot store."""

    def copy(self, source: Path, folder: Path) -> ShotBackend:
        """Make a shot store that begins with everything that `source` has, which is not touched."""

    def rest(self) -> None:
        """Release memory that is only kept for speed; called when nothing has been at work for a while."""

    def exists(self, folder: Path) -> bool:
        """Whether the folder is a shot store."""
