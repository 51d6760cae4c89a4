"""A plate whose pixels a host pushes frame by frame, kept in the shot's folder within a byte budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio
from pydantic import TypeAdapter
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from stm_plugin.errors import PlateError, concerning
from stm_plugin.files.journal import Journal
from stm_plugin.files.whole import DamagedFileError, looks_whole, read_sealed, write_sealed
from stm_plugin.images.movie import rational_rate
from stm_plugin.images.plate import CONTENT_HASH, FrameHeader, PlateFrame
from stm_plugin.windows import PixelArray, Window

MetadataValue = str | int | float

TIME_CODE = "smpte:TimeCode"
"""Metadata of this name, as `hh:mm:ss:ff`, becomes the file's time code; OpenImageIO drops it as a string."""

_MISSING_HINT = "The host must push this frame again."


@dataclass(frozen=True)
class PushedRecord:
    """A pushed frame without its pixels."""

    frame: int
    hash: str
    bytes: int
    data_window: Window
    digest: str | None = None
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    hash_by: str = CONTENT_HASH


_RECORD = TypeAdapter(PushedRecord)


class HostPlate:
    """Frames from a host, read through the same methods as a `Plate`.

    Frames are content-addressed: pushing the same pixels again costs nothing. When the budget is
    spent, the frames that were pushed first are deleted; `missing` names them, and the host pushes them
    again when they are needed.

    Args:
        folder: where the frames are kept.
        first, last: the frame range of the shot.
        display_window: of every frame.
        canvas: the window that holds every frame's data window.
        budget: bytes on disk.
    """

    def __init__(
        self,
        folder: Path,
        first: int,
        last: int,
        display_window: Window,
        canvas: Window | None = None,
        pixel_aspect: float = 1.0,
        fps: float | None = None,
        budget: int = 1 << 36,
    ) -> None:
        if last < first:
            raise PlateError(f"The range {first}-{last} holds no frame.")
        self.frames = tuple(range(first, last + 1))
        self.display_window = display_window
        self.canvas = display_window if canvas is None else display_window.union(canvas)
        self.pixel_aspect = pixel_aspect
        self.fps = fps
        self._folder, self._budget = folder, budget
        self._journal = Journal(folder / "frames.jsonl", "frame")
        self._records = {
            int(frame): record
            for frame, entry in self._journal.load().items()
            if entry.get("hash_by") == CONTENT_HASH and (record := _record_from(entry)) is not None
        }

    @property
    def missing(self) -> tuple[int, ...]:
        """The frames of the range whose pixels are not kept."""
        return tuple(frame for frame in self.frames if self.signature(frame) is None)

    @property
    def records(self) -> dict[int, PushedRecord]:
        """The frames that are kept, by number."""
        return {frame: one for frame, one in self._records.items() if looks_whole(self._path(one.hash))}

    def signature(self, frame: int) -> str | None:
        """The content hash of a pushed frame; None if it is not kept."""
        record = self._records.get(frame)
        return None if record is None or not looks_whole(self._path(record.hash)) else record.hash

    def push(
        self,
        frame: int,
        pixels: PixelArray,
        data_window: Window,
        *,
        digest: str | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
    ) -> PushedRecord:
        """Keep one frame.

        Args:
            pixels: float16 or float32 (h, w, 3) over `data_window`, scene values; kept unchanged.
            digest: the host's name for this content, if it has one.

        Raises:
            PlateError: the frame, the window or the pixels do not fit the plate.
            StoreError: the disk is full or cannot be written.
        """
        if not self.frames[0] <= frame <= self.frames[-1]:
            raise PlateError(
                f"The frame is not in the range {self.frames[0]}-{self.frames[-1]} of the shot.", frame=frame
            )
        if not self.canvas.contains(data_window):
            raise PlateError(
                f"The data window {data_window} exceeds the canvas {self.canvas}.",
                frame=frame,
                hint="Describe the plate with a larger canvas first.",
            )
        hash_ = self._as_frame(frame, pixels, data_window, metadata or {}).content_hash()
        path = self._path(hash_)
        if not looks_whole(path):
            with concerning(frame):
                write_sealed(path, save_arrays({"pixels": np.ascontiguousarray(pixels)}), durable=False)
        record = PushedRecord(frame, hash_, path.stat().st_size, data_window, digest, dict(metadata or {}))
        if self._records.get(frame) != record:
            with concerning(frame):
                self._journal.append(asdict(record))
            self._records.pop(frame, None)
            self._records[frame] = record
        self._make_room(hash_)
        return record

    def header(self, frame: int) -> FrameHeader:
        """A frame without its pixels. PlateError where it was never pushed."""
        record = self._record(frame)
        return FrameHeader(frame, None, record.data_window, self._spec(record.data_window, record.metadata))

    def read(self, frame: int) -> PlateFrame:
        """One frame as it was pushed.

        Raises:
            PlateError: it was never pushed, was deleted, or its file is damaged.
        """
        record = self._record(frame)
        path = self._path(record.hash)
        try:
            body = read_sealed(path)
        except DamagedFileError as error:
            path.unlink(missing_ok=True)
            raise PlateError(
                "The pushed pixels are damaged.", frame=frame, path=path, hint=_MISSING_HINT
            ) from error
        if body is None:
            raise PlateError(
                "The pixels of this frame were deleted to keep the byte budget of pushed plates.",
                frame=frame,
                path=path,
                hint=_MISSING_HINT,
            )
        return self._as_frame(frame, load_arrays(body)["pixels"], record.data_window, record.metadata)

    def _record(self, frame: int) -> PushedRecord:
        record = self._records.get(frame)
        if record is None:
            raise PlateError(
                "The pixels of this frame have not been pushed.", frame=frame, hint=_MISSING_HINT
            )
        return record

    def _as_frame(
        self, frame: int, pixels: PixelArray, data_window: Window, metadata: Mapping[str, MetadataValue]
    ) -> PlateFrame:
        spec = self._spec(data_window, metadata)
        return PlateFrame(frame, None, pixels, data_window, self.display_window, self.pixel_aspect, spec)

    def _spec(self, data_window: Window, metadata: Mapping[str, MetadataValue]) -> oiio.ImageSpec:
        spec = oiio.ImageSpec(data_window.width, data_window.height, 3, "float")
        for name, value in metadata.items():
            if name == TIME_CODE and isinstance(value, str):
                _set_time_code(spec, value)
            else:
                spec.attribute(name, value)
        if self.fps:
            spec.attribute("FramesPerSecond", oiio.TypeDesc("rational"), rational_rate(self.fps))
        return spec

    def _make_room(self, newest: str) -> None:
        """Delete the frames that were pushed first until the budget holds; never the newest."""
        sizes: dict[str, int] = {}
        for record in self._records.values():  # in the order of pushing
            sizes[record.hash] = record.bytes
        used_by: dict[str, list[int]] = {}
        for frame, record in self._records.items():
            used_by.setdefault(record.hash, []).append(frame)
        total = sum(sizes.values())
        for hash_, size in sizes.items():
            if total <= self._budget:
                return
            if hash_ == newest:
                continue
            self._path(hash_).unlink(missing_ok=True)
            total -= size
            for frame in used_by[hash_]:
                del self._records[frame]

    def _path(self, hash_: str) -> Path:
        return self._folder / f"{hash_}.frame"


def _set_time_code(spec: oiio.ImageSpec, text: str) -> None:
    """SMPTE 12M: binary coded decimals, frames in the lowest byte. Other text is ignored."""
    parts = text.replace(";", ":").split(":")
    if len(parts) != 4 or not all(part.isdigit() and len(part) <= 2 for part in parts):
        return
    packed = sum(
        (int(part) // 10 << 4 | int(part) % 10) << 8 * place for place, part in enumerate(parts[::-1])
    )
    spec.attribute(TIME_CODE, oiio.TypeDesc("timecode"), (packed, 0))


def _record_from(entry: Mapping[str, Any]) -> PushedRecord | None:
    """The record in a line of the journal; None where it is invalid, and the frame is pushed again."""
    try:
        return _RECORD.validate_json(json.dumps(entry), strict=True)
    except ValueError:
        return None
