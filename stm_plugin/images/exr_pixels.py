"""The pixels of an EXR file, compressed by OpenEXR itself behind a header that OpenImageIO wrote.

OpenImageIO knows how every kind of metadata is written, but takes longer for the pixels than OpenEXR does,
whatever the compression. Pixels in a file do not depend on its header. So both libraries do what they are
good at, and the two parts become one file.
"""

from __future__ import annotations

import struct
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
    left, top = spec.x, spec.y
    right, bottom = left + spec.width - 1, top + spec.height - 1
    header = {
        "compression": _COMPRESSIONS[compression],
        "type": OpenEXR.scanlineimage,
        "dataWindow": (np.array([left, top], np.int32), np.array([right, bottom], np.int32)),
    }
    channels = {
        name: np.ascontiguousarray(pixels[..., index]) for index, name in enumerate(spec.channelnames)
    }
    try:
        with no_prints(), OpenEXR.File(header, channels) as file:
            file.write(str(beside))
        _join(path, beside, -(-spec.height // _LINES[compression]))
    except (RuntimeError, ValueError, TypeError):
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _join(path: Path, beside: Path, blocks: int) -> None:
    """Give `path` the pixels of the file `beside`: its table of places, moved by the difference of both
    headers, and its blocks."""
    began, other = path.read_bytes(), beside.read_bytes()
    end, start = _end_of_header(began), _end_of_header(other)
    table = struct.Struct(f"<{blocks}Q")
    if len(other) < start + table.size:
        raise OSError("it was not written as a whole")
    places = [place + end - start for place in table.unpack_from(other, start)]
    with path.open("wb") as stream:
        stream.writelines((began[:end], table.pack(*places), memoryview(other)[start + table.size :]))


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
