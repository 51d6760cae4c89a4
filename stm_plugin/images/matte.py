"""Mattes: half-float EXR files that carry the plate's windows, aspect, timecode and metadata.

Channels: a single object is written to `channel` alone (`A` by default). Several objects have a layer each
(`person.A`, `chair.A`), and `channel` holds their union for anyone who wants one matte: the sum, at most 1.
The objects share each pixel (soft aggregation), so their sum is the true coverage. The maximum would
leave a dark seam where two objects meet. Three layers are optional: one of ids (`cryptomatte.py`), the
network's confidence (`stm.confidence`), and `fg`: the plate's colours without the background, for the matte
of all objects together. They are not multiplied with it, and in the plate's own colour space.

Metadata: the attributes of the plate's header that describe the shot are kept. Those that describe how the
plate's pixels are stored or coloured are not: compression, parts and views, chromaticities, the ACES
container flag. The matte's colour space is `data`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import blake3
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.errors import MatteError, memory_errors
from stm_plugin.images import cryptomatte
from stm_plugin.images.colour import HALF_MAX
from stm_plugin.images.half_float import to_float, to_half
from stm_plugin.images.picture_file import (
    CONFIDENCE_LAYER,
    open_image,
    read_channels,
    reason_of,
    window_pair,
)
from stm_plugin.images.plate import PlateFrame
from stm_plugin.images.writer import write_image
from stm_plugin.windows import FloatArray, Window

MetadataValue = str | int | float

COMPRESSION = "zip:4"
"""Lossless, 16 scanlines a block, fast to read in every program; level 4 is OpenEXR's default."""
PART_NAME = "matte"
PIXELS_ATTRIBUTE = "stm:pixels"
"""A hash of the file's pixels: shows whether somebody changed the matte after STM wrote it."""
ADDRESS_ATTRIBUTE = "stm:address"
"""The address of the matte's ingredients. Every matte that STM writes to a sequence has one."""

CONFIDENCE_CHANNEL = f"{CONFIDENCE_LAYER}.confidence"
"""The network's confidence in each pixel, of all objects together: 1 is certain, 0 is undecided."""
FOREGROUND_LAYER = "fg"
"""The plate's colours without the background, of all objects together, not multiplied with the matte."""

_LAYER_CHANNEL = "A"
_NAME_LENGTH = 200
_RESERVED_LAYERS = frozenset(
    [
        *("rgba", "rgb", "alpha", "red", "green", "blue", "ci", "none", "all", "depth", "deep"),
        *("mask", "rotopaint_mask", "mask_planartrack", "mask_splinewarp", CONFIDENCE_LAYER, "fg"),
        *("forward", "backward", "motion", "disparity", "disparityl", "disparityr"),
    ]
)
"""Layers with a fixed meaning in Nuke or in this product."""
_RGBA = {"red": "R", "green": "G", "blue": "B", "alpha": "A"}

# Attributes of the plate's header that describe how its pixels are stored or coloured, not the shot.
_LEFT_OUT_PREFIXES = (
    *("openexr:", "oiio:", "cryptomatte/", "tiff:", "jpeg:", "png:"),
    *("textureformat", "ICCProfile"),
)
_LEFT_OUT = frozenset(
    [
        "compression",
        "name",
        "type",
        "version",
        "chunkCount",
        "multiView",
        "view",
        "planarconfig",
        "acesImageContainerFlag",
        "adoptedNeutral",
        "chromaticities",
        "whiteLuminance",
        "colorInteropID",
        "lineOrder",
        "tiles",
        "thumbnail_image",
        "thumbnail_width",
        "thumbnail_height",
        "thumbnail_nchannels",
        "preview",
    ]
)
_STANDARD_NAMES = {"FramesPerSecond": "framesPerSecond"}
"""Attributes whose standard EXR name OpenImageIO does not write by itself."""


@dataclass(frozen=True, eq=False)
class MatteImage:
    """A matte file read back.

    Attributes:
        channels: channel name -> float32 (h, w) over the data window.
        data_window, display_window, pixel_aspect: as in the file.
        metadata: the file's header.
    """

    channels: Mapping[str, FloatArray]
    data_window: Window
    display_window: Window
    pixel_aspect: float
    metadata: oiio.ImageSpec

    @cached_property
    def is_as_written(self) -> bool:
        """Whether the pixels are those that STM wrote; False where the file has no hash of them."""
        spec = self.metadata
        stored = {
            name: to_half(pixels) if str(spec.channelformat(index)) == "half" else pixels
            for index, (name, pixels) in enumerate(self.channels.items())
        }
        return bool(spec.get_string_attribute(PIXELS_ATTRIBUTE) == pixel_hash(stored))


def write_matte(
    path: str | Path,
    mattes: Mapping[str, FloatArray],
    plate_frame: PlateFrame,
    *,
    channel: str = "A",
    metadata: Mapping[str, MetadataValue] | None = None,
    with_ids: bool = False,
    beside: Mapping[str, FloatArray] | None = None,
    durable: bool = True,
) -> None:
    """Write one frame's mattes atomically: a reader sees the old file or the new one. Folders are made.

    Args:
        path: an EXR file.
        mattes: object name -> float32 (h, w) over the plate frame's data window, clamped to [0, 1].
        plate_frame: the frame whose windows, pixel aspect and metadata the file gets.
        channel: where the matte goes: `A`, `rgba.alpha` (the same), `matte.a`, any `layer.channel`.
        metadata: extra attributes, such as `stm:weights`.
        with_ids: whether the file holds a Cryptomatte layer too, in 32-bit floats.
        beside: more channels by name, float32 (h, w) over the data window (`channels_beside`).
        durable: wait until the disk has it.

    Raises:
        MatteError: a matte has another size or holds NaN, the name is no EXR, the disk is full, or the folder
            cannot be written. No partial file is left.
    """
    path = Path(path)
    check_kind(path, plate_frame.frame)
    with memory_errors(path, plate_frame.frame):
        channels = _channels(mattes, plate_frame, channel, path)
        channels |= beside or {}
        extra = dict(metadata or {})
        ids: dict[str, FloatArray] = {}
        if with_ids:
            clamped = {name: np.clip(matte, 0.0, 1.0, dtype=np.float32) for name, matte in mattes.items()}
            ids = cryptomatte.channels(clamped)
            extra |= cryptomatte.metadata(tuple(mattes))
        half_floats = {name: to_half(matte) for name, matte in channels.items()}
        extra[PIXELS_ATTRIBUTE] = pixel_hash({**half_floats, **ids})
        spec = _matte_spec(plate_frame, (*channels, *ids), extra)
        pixels: npt.NDArray[np.float16] | FloatArray = _interleaved(tuple(half_floats.values()))
        if ids:
            spec.channelformats = (oiio.HALF,) * len(channels) + (oiio.FLOAT,) * len(ids)
            pixels = np.stack([*map(to_float, half_floats.values()), *ids.values()], axis=-1)
        write_image(path, spec, pixels, frame=plate_frame.frame, durable=durable)


def channels_beside(confidence: FloatArray | None, foreground: FloatArray | None) -> dict[str, FloatArray]:
    """The optional channels of a matte's file, by name.

    Args:
        confidence: float32 (h, w) in [0, 1], for the channel `stm.confidence`.
        foreground: float32 (h, w, 3), for the layer `fg`; limited to the range of half floats.
    """
    channels: dict[str, FloatArray] = {}
    if confidence is not None:
        channels[CONFIDENCE_CHANNEL] = confidence
    if foreground is not None:
        colours = np.clip(foreground, -HALF_MAX, HALF_MAX, dtype=np.float32)
        channels |= {f"{FOREGROUND_LAYER}.{one}": colours[..., index] for index, one in enumerate("RGB")}
    return channels


def check_kind(path: Path, frame: int | None = None) -> None:
    """MatteError where a matte's file is not named as an EXR."""
    if path.suffix.lower() != ".exr":
        raise MatteError("Mattes are written as EXR.", frame=frame, path=path, hint="Name it .exr.")


def read_matte(path: str | Path, *, frame: int | None = None) -> MatteImage:
    """Read every channel of a matte file back.

    Raises:
        MatteError: the file is missing, truncated, damaged or no image.
    """
    path = Path(path)
    if not path.is_file():
        raise MatteError(
            "The matte does not exist.", frame=frame, path=path, hint="Propagate this frame first."
        )
    with memory_errors(path, frame):
        image = open_image(path)
        if image is None:
            raise MatteError(
                f"The matte cannot be opened: {reason_of(oiio.geterror())}.",
                frame=frame,
                path=path,
                hint="Delete it and propagate this frame again.",
            )
        try:
            spec = oiio.ImageSpec(image.spec())
            pixels = read_channels(image, 0, tuple(range(spec.nchannels)))
        except ValueError as error:
            raise MatteError(
                f"The matte is truncated or damaged: {error}.",
                frame=frame,
                path=path,
                hint="Delete it and propagate this frame again.",
            ) from error
        finally:
            image.close()
        data, display = window_pair(spec)
        return MatteImage(
            channels={
                name: np.ascontiguousarray(pixels[..., index]) for index, name in enumerate(spec.channelnames)
            },
            data_window=data,
            display_window=display,
            pixel_aspect=spec.get_float_attribute("PixelAspectRatio", 1.0),
            metadata=spec,
        )


def channel_name(channel: str) -> str:
    """The EXR channel of a channel as people write it.

    >>> channel_name("rgba.alpha"), channel_name("a"), channel_name("matte.a")
    ('A', 'A', 'matte.a')
    """
    plain = channel.strip()
    layer, _, last = plain.rpartition(".")
    if layer.lower() in ("", "rgba", "rgb"):
        return _RGBA.get(last.lower(), last.upper() if last.lower() in "rgba" else last)
    return plain


def layer_names(objects: Iterable[str]) -> dict[str, str]:
    """Object name -> layer name: letters, digits and _ only, no name that Nuke reserves, all different.

    >>> layer_names(["Anna's hat", "mask", "2nd"])
    {"Anna's hat": 'Anna_s_hat', 'mask': 'mask_matte', '2nd': 'object_2nd'}
    """
    layers: dict[str, str] = {}
    taken: set[str] = set()
    for name in objects:
        layer = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:_NAME_LENGTH] or "object"
        if layer[0].isdigit():
            layer = f"object_{layer}"
        if layer.lower() in _RESERVED_LAYERS:
            layer = f"{layer}_matte"
        unique, count = layer, 1
        while unique.lower() in taken:
            count += 1
            unique = f"{layer}_{count}"
        taken.add(unique.lower())
        layers[name] = unique
    return layers


def union_matte(mattes: Iterable[FloatArray]) -> FloatArray:
    """The union of objects that share each pixel: their sum (h, w), at most 1."""
    total: FloatArray = reduce(np.add, mattes)
    return np.minimum(total, np.float32(1.0))


def _channels(
    mattes: Mapping[str, FloatArray], plate_frame: PlateFrame, channel: str, path: Path
) -> dict[str, FloatArray]:
    """Channel names and float32 pixels (h, w), checked."""
    if not mattes:
        raise MatteError("There is no matte to write.", frame=plate_frame.frame, path=path)
    window = plate_frame.data_window
    clamped: dict[str, FloatArray] = {}
    for name, matte in mattes.items():
        if matte.shape != (window.height, window.width):
            raise MatteError(
                f"The matte of {name!r} has the shape {matte.shape}, but the data window is {window}.",
                frame=plate_frame.frame,
                path=path,
            )
        least, most = matte.min(), matte.max()  # NaN if any value is NaN
        if not np.isfinite([least, most]).all():
            raise MatteError(
                f"The matte of {name!r} holds values that are not numbers (NaN or Inf).",
                frame=plate_frame.frame,
                path=path,
            )
        within = least >= 0 and most <= 1
        clamped[name] = matte if within else np.clip(matte, 0.0, 1.0, dtype=np.float32)
    main = channel_name(channel)
    if not main:
        raise MatteError("The channel has no name.", frame=plate_frame.frame, path=path, hint="Use A.")
    if len(clamped) == 1:
        return {main: next(iter(clamped.values()))}
    layers = layer_names(clamped)
    names = (main, *(f"{layers[name]}.{_LAYER_CHANNEL}" for name in clamped))
    if len({name.lower() for name in names}) != len(names):
        raise MatteError(
            f"The channel {main!r} is also that of an object.",
            frame=plate_frame.frame,
            path=path,
            hint="Name the object or the channel differently.",
        )
    return dict(zip(names, (union_matte(clamped.values()), *clamped.values()), strict=True))


def pixel_hash(channels: Mapping[str, npt.NDArray[np.float16] | FloatArray]) -> str:
    """A hash (hex) of the channels (h, w) of a file as stored; their order does not matter."""
    digest = blake3.blake3()
    for name, pixels in sorted(channels.items()):
        digest.update(f"{name} {pixels.dtype} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).view(np.uint8).data)
    return digest.hexdigest()


def _interleaved(channels: tuple[npt.NDArray[np.float16], ...]) -> npt.NDArray[np.float16]:
    """(h, w, C) half floats. Always with C: OpenImageIO 3.2 reads beyond the end of an (h, w) array."""
    if len(channels) == 1:
        return channels[0][..., None]
    return np.stack(channels, axis=-1)


def _matte_spec(
    plate_frame: PlateFrame, names: tuple[str, ...], metadata: Mapping[str, MetadataValue]
) -> oiio.ImageSpec:
    data, display = plate_frame.data_window, plate_frame.display_window
    spec = oiio.ImageSpec(data.width, data.height, len(names), oiio.HALF)
    spec.channelnames = names
    spec.x, spec.y = data.x, data.y
    spec.full_x, spec.full_y = display.x, display.y
    spec.full_width, spec.full_height = display.width, display.height
    for attribute in plate_frame.metadata.extra_attribs:
        if attribute.name in _LEFT_OUT or attribute.name.startswith(_LEFT_OUT_PREFIXES):
            continue
        name = _STANDARD_NAMES.get(attribute.name, attribute.name)
        spec.attribute(name, attribute.type, attribute.value)
    if not spec.get_string_attribute("DateTime"):
        spec.attribute("DateTime", "")  # else OpenEXR stores the time, and equal mattes differ as files
    spec.attribute("PixelAspectRatio", float(plate_frame.pixel_aspect))
    spec.attribute("compression", COMPRESSION)
    spec.attribute("oiio:ColorSpace", "data")
    for name, value in metadata.items():
        spec.attribute(name, value)
    return spec
