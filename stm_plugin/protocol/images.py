"""The layout of an image's pixels in memory; PROTOCOL.md section 5."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.limits import MAX_CHANNELS, MAX_PAYLOAD, SAMPLE_BYTES, Layout, PixelFormat
from stm_plugin.protocol.models import (
    DISTINCT,
    AsList,
    ByteOffset,
    ByteStride,
    ChannelName,
    MappedName,
    Model,
    ScratchName,
    Window,
)


class MappedPixels(Model):
    """Pixels in a mapped file: its name in the map folder, and the number of bytes."""

    name: MappedName
    bytes: Annotated[int, Field(ge=1, le=MAX_PAYLOAD)]


class MappedTarget(MappedPixels):
    """The place in a mapped file for writing pixels."""

    offset: ByteOffset = 0


class ScratchFile(Model):
    """A picture file below the scratch folder that the client named in `open_shot`."""

    name: ScratchName


class ImageLayout(Model):
    """The layout of an image's values in bytes; PROTOCOL.md section 5.

    Attributes:
        row_bytes: bytes from one row to the one BELOW it; negative where the bottom row comes first.
        offset: the first value of the top row.
    """

    format: PixelFormat
    channels: Annotated[tuple[ChannelName, ...], AsList, Field(max_length=MAX_CHANNELS), DISTINCT]
    data_window: Window
    layout: Layout
    offset: ByteOffset = 0
    row_bytes: ByteStride
    plane_bytes: ByteStride = 0
    premultiplied: bool = False
    mapped: MappedPixels | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one value."""
        return SAMPLE_BYTES[self.format]

    @property
    def pixel_bytes(self) -> int:
        """Bytes from a value to the same channel's value in the next column."""
        return self.sample_bytes * (1 if self.layout == "planar" else len(self.channels))

    @property
    def channel_bytes(self) -> int:
        """Bytes from a value to the next channel's value of the same pixel."""
        return self.plane_bytes if self.layout == "planar" else self.sample_bytes

    @classmethod
    def read(cls, value: Any) -> ImageLayout:
        """Raises RequestError where the description is inconsistent."""
        return cls.read_object(value, "image")

    @model_validator(mode="after")
    def _check_strides(self) -> Self:
        width, height = self.data_window[2:]
        if not self.channels:
            raise ValueError("has no channels")
        if any(stride % self.sample_bytes for stride in (self.row_bytes, self.offset, self.plane_bytes)):
            raise ValueError("has strides that are not multiples of a value's bytes")
        if abs(self.row_bytes) < width * self.pixel_bytes:
            raise ValueError("has row_bytes that are shorter than a row")
        if self.layout == "interleaved":
            if self.plane_bytes:
                raise ValueError("has plane_bytes, which are for planar images")
        elif len(self.channels) > 1 and abs(self.plane_bytes) < height * abs(self.row_bytes):
            raise ValueError("has planes that overlap")
        return self

    def extent(self) -> tuple[int, int]:
        """The first byte of the image's values, and the byte after the last one."""
        width, height = self.data_window[2:]
        steps = (
            (width - 1) * self.pixel_bytes,
            (height - 1) * self.row_bytes,
            (len(self.channels) - 1) * self.channel_bytes,
        )
        first = self.offset + sum(step for step in steps if step < 0)
        last = self.offset + sum(step for step in steps if step > 0)
        return first, last + self.sample_bytes

    def check_inside(self, available: int) -> None:
        """Raises RequestError if a value lies outside the `available` bytes."""
        first, end = self.extent()
        if first < 0 or end > available:
            raise RequestError(
                "bad_request", f"image: it needs the bytes {first} to {end} and there are {available}."
            )

    def to_json(self) -> dict[str, Any]:
        """The description for a header."""
        written: dict[str, Any] = {
            "format": self.format,
            "channels": list(self.channels),
            "data_window": list(self.data_window),
            "layout": self.layout,
            "offset": self.offset,
            "row_bytes": self.row_bytes,
            "plane_bytes": self.plane_bytes,
            "premultiplied": self.premultiplied,
        }
        if self.mapped is not None:
            written["mapped"] = {"name": self.mapped.name, "bytes": self.mapped.bytes}
        return written
