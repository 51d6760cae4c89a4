"""One picture file: its parts, layers and views, its header and its pixels, read through OpenImageIO.

Errors name the frame that the file belongs to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import OpenEXR
import OpenImageIO as oiio

from stm_plugin.errors import PlateError, memory_errors
from stm_plugin.files.names import check_text
from stm_plugin.images.quiet import no_prints
from stm_plugin.windows import FloatArray, PixelArray, Window, union_of

_LEAST_ASPECT = 0.05
"""A pixel aspect below this, above its inverse, or NaN (an unset DPX field) is ignored."""
_MAX_SIDE = 65536
_MAX_PIXELS = 1 << 29
"""Of a canvas: four times those of a picture of 16,384 x 8,192."""
_RED_GREEN_BLUE = (("r", "red"), ("g", "green"), ("b", "blue"))
_GREY = ("y", "l", "luminance", "grey", "gray")
_ALPHA = ("a", "alpha")
_CHROMA = ("ry", "by")
_PROBE_STEP = 64
_UNKNOWN_KIND = "could not find a format reader"
_MAIN_PARTS = ("rgba", "rgb", "beauty", "main")
_PLAIN_CHANNELS = (("R", "G", "B"), ("R", "G", "B", "A"))
_TIFF_LAB = (8, 9, 10)
_LAB = "The picture holds L*a*b* colours."
LAB_HINT = "Write it again as RGB."
_EXACT_COMPRESSIONS = ("none", "rle", "zip", "zips", "piz")
_STORED_TYPES = {"half": oiio.HALF, "uint8": oiio.UINT8, "uint16": oiio.UINT16}


@dataclass(frozen=True)
class PictureHeader:
    """The header of one file: what it states of the picture to be read."""

    subimage: int
    channels: tuple[int, ...]  # three, or one for grey
    data_window: Window
    display_window: Window
    pixel_aspect: float
    spec: oiio.ImageSpec
    has_views: bool = False
    is_alone: bool = True  # no other part in the file


@dataclass(frozen=True)
class Layer:
    """The channels of one layer and view in one part of a file."""

    subimage: int
    names: frozenset[str]  # lower case; "" is the main layer
    title: str
    view: str | None
    channels: dict[str, int]  # last part of the channel's name, lower case -> index

    def picture(self) -> tuple[int, ...]:
        """Indices of R, G and B, or of the one grey channel; empty when the layer holds no picture."""
        colour = [
            next((self.channels[name] for name in names if name in self.channels), None)
            for names in _RED_GREEN_BLUE
        ]
        found = tuple(index for index in colour if index is not None)
        if len(found) == 3:
            return found
        if any(name in self.channels for name in _CHROMA):
            return ()
        grey = [self.channels[name] for name in _GREY if name in self.channels and "" in self.names]
        others = [index for name, index in self.channels.items() if name not in _ALPHA]
        if len(grey) == 1:
            return (grey[0],)
        if len(others) == 1:
            return (others[0],)
        return tuple(self.channels.values()) if len(self.channels) == 1 else ()

    @property
    def is_colour(self) -> bool:
        return len(self.picture()) == 3


def open_image(path: Path) -> oiio.ImageInput | None:
    """Open an image without changing its pixels by premultiplication. None (and oiio.geterror()) when it
    fails.

    Raises:
        SettingsError: the file's name is not UTF-8, which OpenImageIO cannot open.
    """
    check_text(path)
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    return oiio.ImageInput.open(str(path), config)


def reason_of(text: str) -> str:
    """OpenImageIO's error as one short line, without the file's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    if _UNKNOWN_KIND in lines[0]:
        return "OpenImageIO cannot read this kind of file"
    line = re.sub(r'\s*\(?"[^"]*[/\\][^"]*"\)?', "", lines[0])
    return re.sub(r"^EXR Error \(.*?\): (EXR_ERR_\w+ )?", "", line).rstrip(".")


CONFIDENCE_LAYER = "stm"
"""The layer of a matte file with the network's confidence; it is not an object."""


def window_pair(spec: oiio.ImageSpec) -> tuple[Window, Window]:
    """Data window and display window of a header."""
    return (
        Window(spec.x, spec.y, spec.width, spec.height),
        Window(spec.full_x, spec.full_y, spec.full_width, spec.full_height),
    )


def specs_of(image: oiio.ImageInput) -> list[oiio.ImageSpec]:
    """The headers of all parts of an open file."""
    specs: list[oiio.ImageSpec] = []
    while image.seek_subimage(len(specs), 0):
        specs.append(oiio.ImageSpec(image.spec()))
    image.geterror()  # asking for one part too many is how the parts are counted; it is not an error
    image.seek_subimage(0, 0)
    return specs


@contextmanager
def opened_picture(
    path: Path, frame: int, layer: str | None, view: str | None
) -> Iterator[tuple[oiio.ImageInput, PictureHeader]]:
    """Open a picture file, yield it with its header, and close it.

    Raises:
        PlateError: it is missing, cannot be opened, or holds no such picture.
    """
    if not path.is_file():
        raise PlateError(
            "The file of this frame is missing.",
            frame=frame,
            path=path,
            hint="Render or copy it, or shorten the range.",
        )
    with memory_errors(path, frame):
        image = open_image(path)
        if image is None:
            raise PlateError(
                f"The file cannot be opened: {reason_of(oiio.geterror())}.",
                frame=frame,
                path=path,
                hint=_hint_for(path),
            )
        try:
            yield image, _header_of(image, frame, path, layer, view)
        finally:
            image.close()


def read_header(path: Path, frame: int, layer: str | None, view: str | None) -> PictureHeader:
    """The header alone. PlateError as in `opened_picture`."""
    with opened_picture(path, frame, layer, view) as (_, header):
        return header


def read_pixels(image: oiio.ImageInput, header: PictureHeader, frame: int, path: Path) -> PixelArray:
    """The picture (h, w, 3) of an open file as stored; grey is repeated.

    Raises:
        PlateError: the file is truncated or damaged.
    """
    with memory_errors(path, frame):
        stored = _read_plain_exr(image, header, path)
    if stored is None:
        try:
            stored = read_stored(image, header.subimage, header.channels)
        except ValueError as error:
            raise PlateError(
                f"The file is truncated or damaged: {error}.",
                frame=frame,
                path=path,
                hint="Render or copy it again.",
            ) from error
    if _holds_no_number(stored):
        raise PlateError(
            "The picture holds no number: every pixel is NaN or Inf.",
            frame=frame,
            path=path,
            hint="Render it again.",
        )
    if len(header.channels) > 1:
        return stored
    return cast(PixelArray, np.repeat(stored, 3, axis=2))


def _read_plain_exr(image: oiio.ImageInput, header: PictureHeader, path: Path) -> PixelArray | None:
    """The same pixels by OpenEXR itself, in half of the time: of a file with nothing but R, G, B (and A) in
    half floats, losslessly compressed. None where it is another, or where OpenEXR does not read it: then
    OpenImageIO says what is wrong."""
    spec = header.spec
    names = tuple(spec.channelnames)
    is_plain = (
        path.suffix.lower() == ".exr"
        and header.is_alone
        and names in _PLAIN_CHANNELS
        and header.channels == (0, 1, 2)
        and spec.format == oiio.HALF
        and not spec.channelformats
        and not spec.tile_width
        and spec.get_string_attribute("compression") in _EXACT_COMPRESSIONS
    )
    if not is_plain or not _ends_whole(image, spec):
        return None
    # Too little memory is found here: OpenEXR would print lines of its own.
    np.empty((spec.height, spec.width, len(names)), np.float16)
    try:
        with no_prints(), OpenEXR.File(str(path)) as file:  # it prints a line about a damaged part
            pixels = file.channels()["".join(names)].pixels
    except (RuntimeError, OSError, KeyError, ValueError, TypeError):  # damaged: it has no part then
        return None
    if pixels.dtype != np.float16 or pixels.shape != (spec.height, spec.width, len(names)):
        return None
    plain: PixelArray = np.ascontiguousarray(pixels[..., :3])
    return plain


def _ends_whole(image: oiio.ImageInput, spec: oiio.ImageSpec) -> bool:
    """Whether the last line can be read. OpenEXR prints many lines about a file that was cut off."""
    bottom = spec.y + spec.height
    line = image.read_scanlines(bottom - 1, bottom, 0, 0, spec.nchannels, spec.format)
    problem = image.geterror()
    return line is not None and not problem


def _holds_no_number(pixels: PixelArray) -> bool:
    """Whether no value of a picture (h, w, C) is finite; reads few values where these suffice."""
    few = pixels[::_PROBE_STEP, ::_PROBE_STEP]
    return not np.isfinite(few).any() and not np.isfinite(pixels).any()


def _header_of(
    image: oiio.ImageInput, frame: int, path: Path, layer: str | None, view: str | None
) -> PictureHeader:
    specs = specs_of(image)
    chosen = _choose(specs, layer, view, frame, path)
    spec = specs[chosen.subimage]
    data, display = window_pair(spec)
    if spec.deep or spec.depth > 1:
        raise PlateError(
            "Deep and volume images are not plates.", frame=frame, path=path, hint="Flatten it first."
        )
    if not (0 < data.width <= _MAX_SIDE and 0 < data.height <= _MAX_SIDE):
        raise PlateError(f"The data window {data} cannot be used.", frame=frame, path=path)
    check_canvas(union_of([display, data]), frame, path)
    if has_lab_colours(spec):
        raise PlateError(_LAB, frame=frame, path=path, hint=LAB_HINT)
    aspect = spec.get_float_attribute("PixelAspectRatio", 1.0)
    return PictureHeader(
        subimage=chosen.subimage,
        channels=chosen.picture(),
        data_window=data,
        display_window=display,
        pixel_aspect=aspect if _LEAST_ASPECT <= aspect <= 1 / _LEAST_ASPECT else 1.0,
        spec=spec,
        has_views=any(layer.view for layer in layers_of(specs)),
        is_alone=len(specs) == 1,
    )


def check_canvas(canvas: Window, frame: int, path: Path) -> None:
    """Check the size of a canvas, which every mask and matte has.

    Raises:
        PlateError: it cannot be used; a damaged header, or a data window far away from the display window.
    """
    width, height = canvas.width, canvas.height
    if width > _MAX_SIDE or height > _MAX_SIDE or width * height > _MAX_PIXELS:
        raise PlateError(
            f"The display window and the data window together are {width}x{height} pixels, which cannot be "
            "used.",
            frame=frame,
            path=path,
            hint="Look at the windows in the file's header, crop the picture, or render it again.",
        )


def is_exr(path: Path) -> bool:
    """Whether a file's name is that of an EXR."""
    return path.suffix.lower() in (".exr", ".sxr")


def has_lab_colours(spec: oiio.ImageSpec) -> bool:
    """Whether a TIFF holds CIE L*a*b* values, which OpenImageIO returns as if they were red, green, blue."""
    return spec.get_int_attribute("tiff:PhotometricInterpretation", -1) in _TIFF_LAB


def _hint_for(path: Path) -> str:
    try:
        if path.stat().st_size == 0:
            return "The file is empty: render or copy it again."
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"The system says: {os.strerror(error.errno or 0)}."
    return "Render or copy it again, or convert it to EXR."


def layers_of(specs: list[oiio.ImageSpec]) -> list[Layer]:
    """The layers of a file by the EXR conventions: dotted channel names, parts, and views of both kinds."""
    layers: dict[tuple[int, str, str | None], Layer] = {}
    for subimage, spec in enumerate(specs):
        views = _views_in(spec)
        part_view = spec.get_string_attribute("view") or None
        part = spec.get_string_attribute("oiio:subimagename") if len(specs) > 1 else ""
        for index, channel in enumerate(spec.channelnames):
            *prefix, last = channel.split(".")
            view = part_view
            if views and not prefix:
                view = views[0]
            elif views and prefix[-1] in views:
                view = prefix.pop()
            name = ".".join(prefix)
            key = (subimage, name.lower(), view)
            if key not in layers:
                names = {name.lower()} if name or part else {"", "rgba", "rgb"}
                if part and not name:
                    names |= {part.lower(), _without_view(part, view).lower()}
                title = name or (_without_view(part, view) if part else "")
                layers[key] = Layer(subimage, frozenset(names), title, view, {})
            layers[key].channels.setdefault(last.lower(), index)
    return list(layers.values())


def _views_in(spec: oiio.ImageSpec) -> tuple[str, ...]:
    views = spec.getattribute("multiView")
    if not views:
        return ()
    return (views,) if isinstance(views, str) else tuple(str(view) for view in views)


def _without_view(part: str, view: str | None) -> str:
    for separator in "_.":
        if view and part.lower().endswith(f"{separator}{view.lower()}"):
            return part[: -len(view) - 1]
    return part


def _choose(
    specs: list[oiio.ImageSpec], wanted_layer: str | None, wanted_view: str | None, frame: int, path: Path
) -> Layer:
    """The layer to read. PlateError where it does not exist; the text lists those of the file."""
    layers = layers_of(specs)
    if any(set(layer.channels) & set(_CHROMA) for layer in layers) and not any(
        layer.is_colour for layer in layers
    ):
        raise PlateError(
            "The file holds luminance and chroma (Y, RY, BY), which cannot be read as RGB.",
            frame=frame,
            path=path,
            hint="Write it again with R, G and B channels.",
        )
    views = list(dict.fromkeys(layer.view for layer in layers if layer.view))
    if wanted_view and views and wanted_view not in views:
        raise PlateError(
            f"The file has no view {wanted_view!r}; its views are {', '.join(views)}.", frame=frame, path=path
        )
    name = (wanted_layer or "").lower()
    candidates = [layer for layer in layers if name in layer.names]
    if not wanted_layer and not any(layer.picture() for layer in candidates):
        candidates = [layer for layer in layers if layer.is_colour]
        if len({layer.title for layer in candidates}) > 1:
            candidates = []
    if not wanted_layer:  # the main picture: the first part of a file with many may be its depth
        candidates.sort(key=lambda layer: (not layer.is_colour, not layer.names & set(_MAIN_PARTS)))
    hero = wanted_view if wanted_view and views else _hero_view(specs, layers)
    candidates = [layer for layer in candidates if layer.view in (hero, None)]
    for layer in sorted(candidates, key=lambda layer: layer.view is None):
        if layer.picture():
            return layer
    titles = sorted({layer.title for layer in layers if layer.title and layer.picture()})
    known = f"Its layers are {', '.join(titles)}." if titles else "It has no other layers."
    what = f"layer {wanted_layer!r}" if wanted_layer else "main picture (R, G, B or one grey channel)"
    if candidates:
        channels = ", ".join(sorted({channel for layer in candidates for channel in layer.channels}))
        raise PlateError(
            f"The {what} has the channels {channels}, which are no picture. {known}", frame=frame, path=path
        )
    raise PlateError(f"The file has no {what}. {known}", frame=frame, path=path, hint="State the layer.")


def _hero_view(specs: list[oiio.ImageSpec], layers: list[Layer]) -> str | None:
    """The first view: of the file's list, else of the first part with a main picture."""
    for spec in specs:
        if views := _views_in(spec):
            return views[0]
    seen = [layer for layer in layers if layer.view]
    main = [layer for layer in seen if "" in layer.names and layer.is_colour]
    return next((layer.view for layer in main + seen), None)


def read_channels(image: oiio.ImageInput, subimage: int, channels: tuple[int, ...]) -> FloatArray:
    """Read some channels of an open file as float32 (h, w, C); else as `read_stored`."""
    return read_stored(image, subimage, channels).astype(np.float32, copy=False)


def read_stored(image: oiio.ImageInput, subimage: int, channels: tuple[int, ...]) -> PixelArray:
    """Read some channels of an open file (h, w, C): half floats unchanged, all else as float32, integers
    from 0 to 1.

    Raises:
        ValueError: the file is truncated or damaged; the text describes it.
    """
    first, last = min(channels), max(channels) + 1
    spec = image.spec(subimage, 0)
    formats = {str(spec.channelformat(index)) for index in range(first, last)}
    stored_type = _STORED_TYPES.get(formats.pop(), oiio.FLOAT) if len(formats) == 1 else oiio.FLOAT
    stored = image.read_image(subimage, 0, first, last, stored_type)
    problem = image.geterror()
    if stored is None or problem:  # a truncated JPEG returns pixels and an error
        raise ValueError(reason_of(problem))
    wanted = [index - first for index in channels]
    if wanted != list(range(last - first)):
        stored = np.ascontiguousarray(stored[:, :, wanted])
    return stored if stored.dtype == np.float16 else normalised(stored)


def normalised(stored: npt.NDArray[Any]) -> FloatArray:
    """Stored values (h, w, C) as float32; the full range of an integer type becomes 0 to 1."""
    if stored.dtype.kind == "u":
        scale = np.float32(1.0 / np.iinfo(stored.dtype).max)
        scaled: FloatArray = np.multiply(stored, scale, dtype=np.float32)
        return scaled
    return np.ascontiguousarray(stored, dtype=np.float32)
