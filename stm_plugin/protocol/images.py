"""Where the pixels of an image lie; PROTOCOL.md section 5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_args

from stm_plugin.protocol.errors import RequestError
from stm_plugin.protocol.fields import (
    Fields,
    boolean,
    channel_name,
    choice,
    distinct,
    integer,
    list_of,
    mapping,
    matching,
    window,
)
from stm_plugin.protocol.limits import (
    MAX_CHANNELS,
    MAX_PAYLOAD,
    SAMPLE_BYTES,
    Layout,
    PixelFormat,
    Rectangle,
)


@dataclass(frozen=True)
class MappedPixels:
    """Pixels in a mapped file: its name in the map folder and how many of its bytes count."""

    name: str
    bytes: int
    offset: int = 0

    @classmethod
    def read(cls, value: Any, *, with_offset: bool = False) -> MappedPixels:
        fields = Fields(mapping(value), "mapped")
        read = cls(
            name=fields.take("name", matching(re.compile(r"[A-Za-z0-9_-]{1,64}"), "a file name")),
            bytes=fields.take("bytes", integer(1, MAX_PAYLOAD)),
            offset=fields.take("offset", integer(0, MAX_PAYLOAD), 0) if with_offset else 0,
        )
        fields.done()
        return read


@dataclass(frozen=True)
class ImageLayout:
    """Where each value of an image lies in a run of bytes; PROTOCOL.md section 5.

    Attributes:
        row_bytes: bytes from one row to the one BELOW it; negative where the bottom row comes first.
        offset: the first value of the top row.
    """

    format: PixelFormat
    channels: tuple[str, ...]
    data_window: Rectangle
    layout: Layout
    offset: int
    row_bytes: int
    plane_bytes: int = 0
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
        """Raises RequestError where the description is wrong in itself."""
        fields = Fields(mapping(value), "image")
        image = cls(
            format=fields.take("format", choice(get_args(PixelFormat))),
            channels=fields.take("channels", distinct(list_of(channel_name, MAX_CHANNELS))),
            data_window=fields.take("data_window", window),
            layout=fields.take("layout", choice(get_args(Layout))),
            offset=fields.take("offset", integer(0, MAX_PAYLOAD), 0),
            row_bytes=fields.take("row_bytes", integer(-MAX_PAYLOAD, MAX_PAYLOAD)),
            plane_bytes=fields.take("plane_bytes", integer(-MAX_PAYLOAD, MAX_PAYLOAD), 0),
            premultiplied=fields.take("premultiplied", boolean, False),
            mapped=fields.take("mapped", MappedPixels.read, None),
        )
        fields.done()
        image._check_strides()
        return image

    def _check_strides(self) -> None:
        width, height = self.data_window[2:]
        if not self.channels:
            raise RequestError("bad_request", "image: there are no channels.")
        if any(stride % self.sample_bytes for stride in (self.row_bytes, self.offset, self.plane_bytes)):
            raise RequestError("bad_request", "image: strides must be multiples of a value's bytes.")
        if abs(self.row_bytes) < width * self.pixel_bytes:
            raise RequestError("bad_request", "image: row_bytes is shorter than a row.")
        if self.layout == "interleaved":
            if self.plane_bytes:
                raise RequestError("bad_request", "image: plane_bytes is for planar images.")
        elif len(self.channels) > 1 and abs(self.plane_bytes) < height * abs(self.row_bytes):
            raise RequestError("bad_request", "image: the planes overlap.")

    def extent(self) -> tuple[int, int]:
        """First byte that the image has a value in, and the byte after the last."""
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
        """The description as it stands in a header."""
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
