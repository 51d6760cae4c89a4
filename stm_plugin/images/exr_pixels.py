"""The pixels of an EXR file, compressed by OpenEXR itself behind a header that OpenImageIO wrote.

OpenImageIO knows how every kind of metadata is written, but takes longer for the pixels than OpenEXR does,
whatever the compression. Pixels in a file do not depend on its header. So both libraries do what they are
good at, and the two parts become one file. Most of a matte is 0: lines of zeros are compressed once, and
written wherever they occur.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import OpenEXR
import OpenImageIO as oiio

from stm_plugin.images.quiet import no_prints

_LINES = {"zip": 16, "zips": 1}
"""Lines that are compressed together."""
_COMPRESSIONS = {"zip": OpenEXR.ZIP_COMPRESSION, "zips": OpenEXR.ZIPS_COMPRESSION}
_USUAL_LEVEL = "4"
"""Of OpenEXR's zip."""
_PLACE, _LINE = struct.Struct("<Q"), struct.Struct("<i")
"""Where a block is in the file; the number of its first line."""
_BLOCK = struct.Struct("<ii")
"""Before a block: its first line, and its length in bytes."""
_LENGTH_BYTES = 4
_VERSION_BYTES = 8
"""Bytes before the first attribute: the magic number and the version."""


def is_plain_exr(path: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any]) -> bool:
    """Whether `add_pixels` can write this picture: half floats in lines, compressed by zip."""
    compression, _, level = spec.get_string_attribute("compression").partition(":")
    return (
        path.suffix.lower() == ".exr"
        and compression in _LINES
        and level in ("", _USUAL_LEVEL)
        and spec.format == oiio.HALF
        and not spec.channelformats
        and not spec.tile_width
        and pixels.dtype == np.float16
        and pixels.shape == (spec.height, spec.width, spec.nchannels)
    )


def add_pixels(path: Path, beside: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any]) -> bool:
    """Write the pixels into a file that OpenImageIO began with `spec` and closed without any.

    Args:
        beside: a free name in the same folder, for a file that is removed again.
        pixels: float16 (h, w, C), the channels in the order of `spec`.

    Returns:
        False where OpenEXR cannot write them: then OpenImageIO says why.

    Raises:
        OSError: the disk is full, or the file is cut off.
    """
    compression = spec.get_string_attribute("compression").partition(":")[0]
    lines = _LINES[compression]
    kept, places = _without_repeated_zeros(pixels, lines)
    header = {
        "compression": _COMPRESSIONS[compression],
        "type": OpenEXR.scanlineimage,
        "dataWindow": (np.zeros(2, np.int32), np.array([spec.width - 1, len(kept) - 1], np.int32)),
    }
    channels = {name: np.ascontiguousarray(kept[..., index]) for index, name in enumerate(spec.channelnames)}
    try:
        with no_prints(), OpenEXR.File(header, channels) as file:
            file.write(str(beside))
        blocks = _blocks_of(beside, -(-len(kept) // lines))
        _join(path, [blocks[place] for place in places], spec.y, lines)
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _without_repeated_zeros(pixels: npt.NDArray[Any], lines: int) -> tuple[npt.NDArray[Any], list[int]]:
    """The pixels (h, w, C) without blocks of zeros behind the first such block, and for each block which of
    the kept ones it equals. The last block, which may be shorter, is kept always."""
    starts = range(0, len(pixels), lines)
    bits = pixels.view(np.uint16)
    kept: list[int] = []
    places: list[int] = []
    zeros: int | None = None
    for start in starts:
        is_zero = start != starts[-1] and not bits[start : start + lines].max()
        if is_zero and zeros is not None:
            places.append(zeros)
            continue
        if is_zero:
            zeros = len(kept)
        places.append(len(kept))
        kept.append(start)
    if len(kept) == len(starts):
        return pixels, places
    return np.concatenate([pixels[start : start + lines] for start in kept]), places


def _blocks_of(path: Path, count: int) -> list[memoryview]:
    """The compressed blocks of an EXR file with one part, from the top: each with its length before it.

    Raises:
        OSError: the file was cut off.
    """
    data = path.read_bytes()
    start = _end_of_header(data)
    if len(data) < start + _PLACE.size * count:
        raise OSError("it was not written as a whole")
    blocks = []
    for (place,) in _PLACE.iter_unpack(data[start : start + _PLACE.size * count]):
        if place == 0 or place + _BLOCK.size > len(data):
            raise OSError("it was not written as a whole")
        _, length = _BLOCK.unpack_from(data, place)
        end = place + _BLOCK.size + length
        if end > len(data):
            raise OSError("it was not written as a whole")
        blocks.append(memoryview(data)[place + _BLOCK.size - _LENGTH_BYTES : end])
    return blocks


def _join(path: Path, blocks: Sequence[memoryview], top: int, lines: int) -> None:
    """Give `path`, which is a header alone, its pixels: the table of the blocks' places, and the blocks, each
    behind the number of its first line."""
    began = path.read_bytes()
    header = began[: _end_of_header(began)]
    place = len(header) + _PLACE.size * len(blocks)
    table: list[bytes] = []
    parts: list[bytes | memoryview] = []
    for number, block in enumerate(blocks):
        table.append(_PLACE.pack(place))
        parts += [_LINE.pack(top + number * lines), block]
        place += _LINE.size + len(block)
    with path.open("wb") as stream:
        stream.writelines((header, *table, *parts))


def _end_of_header(data: bytes) -> int:
    """Where the attributes of an EXR file with one part end: name, type, size in bytes and value of each, and
    an empty name."""
    place = _VERSION_BYTES
    while True:
        name_end = data.find(b"\0", place)
        if name_end < 0:
            raise OSError("it was not written as a whole")
        if name_end == place:
            return place + 1
        type_end = data.find(b"\0", name_end + 1)
        if type_end < 0 or type_end + 5 > len(data):
            raise OSError("it was not written as a whole")
        (size,) = struct.unpack_from("<i", data, type_end + 1)
        place = type_end + 5 + size
