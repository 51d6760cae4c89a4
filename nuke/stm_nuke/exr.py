"""Raw pixels from and to OpenEXR files, with the standard library only.

The engine reads the pictures of the plate and of keys itself. What is still read or written here: rendered
masks, which are stored by the name of each object (several renders beyond four objects) and looked at for a
remark on their coverage; the keys of an object that is renamed; the confidence in the header of matte files.

Only what a Write node is told to make is read: one part, scanlines, all channels half or all float,
uncompressed or ZIP. Everything else is refused by name. Windows are x, y, width, height with y DOWN, as in
the protocol.
"""

from __future__ import annotations

import itertools
import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from stm_nuke.wire import SAMPLE_BYTES, Window

_MAGIC = b"\x76\x2f\x31\x01"
_PLAIN_SCANLINES = 2
_LONG_NAMES = 0x400
_SAMPLE_FORMATS = {1: "half", 2: "float"}
_LINES_PER_BLOCK = {0: 1, 2: 1, 3: 16}
"""By compression: none, ZIP of one scanline, ZIP of 16."""
_NO_COMPRESSION = 0
_COMPRESSIONS = {0: "none", 1: "rle", 2: "zips", 3: "zip", 4: "piz", 5: "pxr24"}
_HEADER_BYTES = 1 << 16
"""Enough for the header of any matte, whatever metadata the plate has."""

Bytes = Union[bytes, bytearray, memoryview]


class ExrError(Exception):
    """The file is no EXR that can be read here; the text says why."""


@dataclass(frozen=True)
class Picture:
    """Channels of one picture.

    Attributes:
        format: half or float, the same for all channels.
        planes: channel name -> tight rows, top row first, little-endian.
        data_window, display_window: x, y, width, height; y down; the data window may leave the display
        window.
    """

    format: str
    planes: Mapping[str, Bytes] = field(repr=False)
    data_window: Window
    display_window: Window
    pixel_aspect: float = 1.0


def read(path: Path) -> Picture:
    """Read a picture.

    Raises:
        ExrError: it is truncated or not of the supported kind.
        OSError: it cannot be read.
    """
    data = memoryview(path.read_bytes())
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, zlib.error) as error:
        raise ExrError(f"{path.name} is damaged or truncated") from error


def channel_names(path: Path) -> list[str]:
    """The channels of a file, by its header.

    Raises:
        ExrError: it is no OpenEXR file. OSError.
    """
    with open(path, "rb") as stream:
        data = memoryview(stream.read(_HEADER_BYTES))
    if bytes(data[:4]) != _MAGIC:
        raise ExrError(f"{path.name} is not an OpenEXR file")
    try:
        return _read_channels(_read_header(data, 8)[0]["channels"])[0]
    except (struct.error, IndexError, ValueError) as error:
        raise ExrError(f"{path.name} is damaged or truncated") from error


@dataclass(frozen=True)
class Facts:
    """What the header of a file says.

    Attributes:
        is_plain: one part in scanlines, without views, no channel subsampled.
        channels: name -> uint, half or float.
        compression: none, rle, zips, zip, piz, pxr24, or another.
    """

    is_plain: bool
    channels: Mapping[str, str]
    compression: str
    data_window: Window
    display_window: Window
    pixel_aspect: float


def read_facts(path: Path) -> Facts | None:
    """The facts of a file; None where it cannot be read, is no EXR, or has a very long header."""
    try:
        with open(path, "rb") as stream:
            data = memoryview(stream.read(_HEADER_BYTES))
        if bytes(data[:4]) != _MAGIC:
            return None
        (version,) = struct.unpack_from("<I", data, 4)
        attributes, _ = _read_header(data, 8)
        channels, is_whole = _kinds_of_channels(attributes["channels"])
        return Facts(
            version & ~_LONG_NAMES == _PLAIN_SCANLINES and "multiView" not in attributes and is_whole,
            channels,
            _COMPRESSIONS.get(attributes["compression"][0], "another"),
            _window(attributes["dataWindow"]),
            _window(attributes["displayWindow"]),
            float(struct.unpack("<f", attributes["pixelAspectRatio"])[0]),
        )
    except (OSError, struct.error, IndexError, ValueError, KeyError):
        return None


def _kinds_of_channels(table: bytes) -> tuple[dict[str, str], bool]:
    """The type of each channel, and whether all have every pixel."""
    found: dict[str, str] = {}
    is_whole = True
    at = 0
    while table[at] != 0:
        name, at = _read_name(table, at)
        kind, _, x_sampling, y_sampling = struct.unpack_from("<iB3xii", table, at)
        found[name] = _SAMPLE_FORMATS.get(kind, "uint")
        is_whole = is_whole and (x_sampling, y_sampling) == (1, 1)
        at += 16
    return found, is_whole


def _window(box: bytes) -> Window:
    left, top, right, bottom = struct.unpack("<4i", box)
    return left, top, right - left + 1, bottom - top + 1


def number_attribute(path: Path, name: str) -> float | None:
    """A float of a file's header; None where it has none, or cannot be read. The pixels are not looked at."""
    try:
        with open(path, "rb") as stream:
            data = memoryview(stream.read(_HEADER_BYTES))
        value = _read_header(data, 8)[0].get(name)
        return None if value is None else float(struct.unpack("<f", value)[0])
    except (OSError, struct.error, IndexError, ValueError):
        return None


def write(path: Path, picture: Picture) -> None:
    """Write a picture uncompressed; anyone sees the old file or the new one, never a part.

    Raises:
        OSError: the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(temporary, "xb") as stream:
            for chunk in _chunks_of_file(picture):
                stream.write(chunk)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read(data: memoryview) -> Picture:
    if bytes(data[:4]) != _MAGIC:
        raise ExrError("it is not an OpenEXR file")
    (version,) = struct.unpack_from("<I", data, 4)
    if version & ~_LONG_NAMES != _PLAIN_SCANLINES:
        raise ExrError("it has tiles, several parts or deep pixels")
    attributes, at = _read_header(data, 8)
    compression = attributes["compression"][0]
    if compression not in _LINES_PER_BLOCK:
        raise ExrError("its compression is neither none nor ZIP")
    names, sample_format = _read_channels(attributes["channels"])
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    width, height = right - left + 1, bottom - top + 1
    row_bytes = width * SAMPLE_BYTES[sample_format]
    planes = {name: bytearray(row_bytes * height) for name in names}
    lines = _LINES_PER_BLOCK[compression]
    blocks = (height + lines - 1) // lines
    for (offset,) in struct.iter_unpack("<Q", data[at : at + 8 * blocks]):
        y, size = struct.unpack_from("<ii", data, offset)
        block: Bytes = data[offset + 8 : offset + 8 + size]
        rows = min(lines, bottom - y + 1)
        expected = rows * row_bytes * len(names)
        if compression != _NO_COMPRESSION and size < expected:
            block = _unzip(block)
        if len(block) != expected:
            raise ValueError("a block of another length")
        source = 0
        for row in range(y - top, y - top + rows):
            for name in names:
                planes[name][row * row_bytes : (row + 1) * row_bytes] = block[source : source + row_bytes]
                source += row_bytes
    d_left, d_top, d_right, d_bottom = struct.unpack("<4i", attributes["displayWindow"])
    return Picture(
        sample_format,
        planes,
        (left, top, width, height),
        (d_left, d_top, d_right - d_left + 1, d_bottom - d_top + 1),
        float(struct.unpack("<f", attributes["pixelAspectRatio"])[0]),
    )


def _read_header(data: memoryview, at: int) -> tuple[dict[str, bytes], int]:
    attributes = {}
    while data[at] != 0:
        name, at = _read_name(data, at)
        _, at = _read_name(data, at)
        (size,) = struct.unpack_from("<i", data, at)
        attributes[name] = bytes(data[at + 4 : at + 4 + size])
        at += 4 + size
    missing = {"channels", "compression", "dataWindow", "displayWindow", "pixelAspectRatio"} - set(attributes)
    if missing:
        raise ValueError(f"no {missing.pop()} in the header")
    return attributes, at + 1


def _read_name(data: Bytes, at: int) -> tuple[str, int]:
    end = at
    while data[end] != 0:
        end += 1
    return bytes(data[at:end]).decode("utf-8"), end + 1


def _read_channels(table: bytes) -> tuple[list[str], str]:
    names, formats = [], set()
    at = 0
    while table[at] != 0:
        name, at = _read_name(table, at)
        kind, _, x_sampling, y_sampling = struct.unpack_from("<iB3xii", table, at)
        if (x_sampling, y_sampling) != (1, 1):
            raise ExrError(f"its channel {name} is subsampled")
        names.append(name)
        formats.add(kind)
        at += 16
    if len(formats) != 1 or not formats <= set(_SAMPLE_FORMATS):
        raise ExrError("its channels are not all half or all float")
    return names, _SAMPLE_FORMATS[formats.pop()]


def _unzip(block: Bytes) -> bytes:
    """ZIP as OpenEXR does it: differences of bytes, and the bytes of even and odd places apart."""
    deltas = zlib.decompress(bytes(block))
    values = list(itertools.accumulate(deltas, _undo_delta))
    result = bytearray(len(values))
    half = (len(values) + 1) // 2
    result[0::2], result[1::2] = bytes(values[:half]), bytes(values[half:])
    return bytes(result)


def _undo_delta(one: int, delta: int) -> int:
    return (one + delta - 128) & 0xFF


def _chunks_of_file(picture: Picture) -> Iterator[bytes]:
    kind = next(number for number, name in _SAMPLE_FORMATS.items() if name == picture.format)
    names = sorted(picture.planes)
    _, y, width, height = picture.data_window
    channels = (
        b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", kind, 0, 1, 1) for name in names) + b"\0"
    )
    header = _MAGIC + struct.pack("<I", _PLAIN_SCANLINES)
    header += _attribute("channels", "chlist", channels)
    header += _attribute("compression", "compression", bytes([_NO_COMPRESSION]))
    header += _attribute("dataWindow", "box2i", _box(picture.data_window))
    header += _attribute("displayWindow", "box2i", _box(picture.display_window))
    header += _attribute("lineOrder", "lineOrder", b"\0")
    header += _attribute("pixelAspectRatio", "float", struct.pack("<f", picture.pixel_aspect))
    header += _attribute("screenWindowCenter", "v2f", struct.pack("<ff", 0, 0))
    header += _attribute("screenWindowWidth", "float", struct.pack("<f", 1)) + b"\0"
    row_bytes = width * SAMPLE_BYTES[picture.format]
    block_bytes = row_bytes * len(names)
    first = len(header) + 8 * height
    yield header
    yield b"".join(struct.pack("<Q", first + row * (8 + block_bytes)) for row in range(height))
    for row in range(height):
        yield struct.pack("<ii", y + row, block_bytes)
        for name in names:
            yield bytes(picture.planes[name][row * row_bytes : (row + 1) * row_bytes])


def _attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value


def _box(window: Window) -> bytes:
    x, y, width, height = window
    return struct.pack("<4i", x, y, x + width - 1, y + height - 1)
