"""Plates: the shot's pictures with their windows, aspect and metadata, read through OpenImageIO.

What is read is R, G and B as stored: half floats stay half floats. Alpha is left out: a premultiplied plate
stays premultiplied. A plate with one channel becomes grey. NaN, Inf, negative values and values above 1 are
kept: colour.py deals with them. Movies are read with 8 bits a channel.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, cast

import blake3
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.errors import PlateError
from stm_plugin.movie import MovieReader
from stm_plugin.sequence import (
    DEFAULT_FIRST_FRAME,
    FrameRange,
    FrameSequence,
    describe_frames,
    parse_sequence,
)

FloatArray = npt.NDArray[np.float32]
PixelArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]
"""Plate pixels as they are stored."""

_HEADER_THREADS = 8
"""Headers are tiny and mostly wait for a file server."""
_ASPECT_TOLERANCE = 1e-4
_LEAST_ASPECT = 0.05
"""A header that says less than this, more than its inverse, or NaN (an unset DPX field) says nothing."""
_MAX_SIDE = 65536
_RED_GREEN_BLUE = (("r", "red"), ("g", "green"), ("b", "blue"))
_GREY = ("y", "l", "luminance", "grey", "gray")
_ALPHA = ("a", "alpha")
_CHROMA = ("ry", "by")
_MAIN_PARTS = ("rgba", "rgb", "beauty", "main")
CONTENT_HASH = "blake3-1"
"""How content hashes are made; what was noted under another name is not compared with them."""
_HASH_HEADER = struct.Struct("<9qd")


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels in the EXR sense: x to the right, y DOWN, the origin may be negative."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The x behind the last column."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The y behind the last row."""
        return self.y + self.height

    def union(self, other: Window) -> Window:
        """The smallest window that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Window(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)

    def intersection(self, other: Window) -> Window | None:
        """What both hold, or None where they share no pixel."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Window(x, y, width, height) if width > 0 and height > 0 else None

    def contains(self, other: Window) -> bool:
        """Whether every pixel of `other` is in this window."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at ({self.x}, {self.y})"


@dataclass(frozen=True, eq=False)
class PlateFrame:
    """One frame of a plate. `pixels` covers the data window only.

    Attributes:
        frame: the host's frame number.
        path: the file it came from, or None when a host pushed the pixels.
        pixels: float16 or float32 (height, width, 3) of the data window as stored: NaN, Inf, negative
            values and values above 1 kept.
        data_window, display_window, pixel_aspect: as in the file.
        metadata: the file's header (its attributes travel into the matte); empty for pushed frames.
    """

    frame: int
    path: Path | None
    pixels: PixelArray
    data_window: Window
    display_window: Window
    pixel_aspect: float = 1.0
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec, repr=False)

    def __post_init__(self) -> None:
        shape = (self.data_window.height, self.data_window.width, 3)
        if self.pixels.shape != shape or self.pixels.dtype not in (np.float16, np.float32):
            raise PlateError(
                f"The pixels are {self.pixels.dtype} {self.pixels.shape}, "
                f"but the data window needs float16 or float32 {shape}.",
                frame=self.frame,
                path=self.path,
            )

    def content_hash(self) -> str:
        """What the matte depends on, in 64 hexadecimal digits: pixels, windows, aspect; not the file's name.

        BLAKE3: as collision-free as sha256, at the speed of memory on every processor.
        """
        data, display = self.data_window, self.display_window
        digest = blake3.blake3(
            _HASH_HEADER.pack(
                self.pixels.itemsize,
                data.x,
                data.y,
                data.width,
                data.height,
                display.x,
                display.y,
                display.width,
                display.height,
                self.pixel_aspect,
            )
        )
        digest.update(np.ascontiguousarray(self.pixels).view(np.uint8).data)
        return digest.hexdigest()


class PlateSource(Protocol):
    """What the engine needs of a plate, be it files (Plate) or frames pushed by a host."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Frame numbers of the range, ascending."""
        ...

    @property
    def missing(self) -> tuple[int, ...]:
        """The frames of the range that are not there."""
        ...

    @property
    def display_window(self) -> Window:
        """The format: the same on every frame."""
        ...

    @property
    def canvas(self) -> Window:
        """Union of the display window and of every frame's data window."""
        ...

    @property
    def pixel_aspect(self) -> float:
        """Width over height of one pixel."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames per second where known."""
        ...

    def read(self, frame: int) -> PlateFrame:
        """One frame, or a PlateError that names it."""
        ...


@dataclass(frozen=True, eq=False)
class Plate:
    """A plate in files. Opened from headers only; pixels are read frame by frame.

    Attributes:
        sequence: where the frames are.
        display_window, pixel_aspect: the same on every frame.
        canvas: union of the display window and of every frame's data window.
        fps: frames per second if the files say so.
        layer, view: what is read from multichannel and multiview files; None is the main picture and
            the first (hero) view.
        colour_space: the input colour space the artist stated, or None.
    """

    sequence: FrameSequence
    display_window: Window
    canvas: Window
    pixel_aspect: float
    fps: float | None = None
    layer: str | None = None
    view: str | None = None
    colour_space: str | None = None
    _movie: MovieReader | None = field(default=None, repr=False)
    _movie_first_frame: int = field(default=DEFAULT_FIRST_FRAME, repr=False)

    @property
    def frames(self) -> tuple[int, ...]:
        """Frame numbers of the range, ascending, the missing ones included."""
        return self.sequence.frames

    @property
    def missing(self) -> tuple[int, ...]:
        """The frames of the range that have no file. Reading one is a PlateError."""
        return self.sequence.missing

    @classmethod
    def open(
        cls,
        text: str | Path,
        *,
        frame_range: FrameRange | None = None,
        layer: str | None = None,
        view: str | None = None,
        colour_space: str | None = None,
        movie_first_frame: int = DEFAULT_FIRST_FRAME,
    ) -> Plate:
        """Open a plate: find its files and read their headers.

        Args:
            text: the sequence, in any form that sequence.py knows.
            frame_range: the frames wanted, all if None.
            layer: the layer of a multichannel file; the main picture if None.
            view: the view of a multiview file, and of `%V`; the first (hero) view if None.
            colour_space: the plate's colour space as the artist states it, kept for colour.py.
            movie_first_frame: the number of a movie's first frame.

        Raises:
            PlateError: a header cannot be read, the layer or view is not there, or the display window or the
                pixel aspect changes in mid-plate. Frame and file are named. Missing frames are no error here.
        """
        sequence = parse_sequence(
            text, frame_range=frame_range, view=view, movie_first_frame=movie_first_frame
        )
        if sequence.movie is not None:
            return _open_movie(sequence, colour_space, movie_first_frame)
        present = [frame for frame in sequence.frames if frame in sequence.files]
        with ThreadPoolExecutor(min(_HEADER_THREADS, len(present))) as pool:
            headers = list(
                pool.map(lambda frame: _read_header(sequence.files[frame], frame, layer, view), present)
            )
        first = headers[0]
        for frame, header in zip(present, headers, strict=True):
            _check_format(
                header, first.display_window, first.pixel_aspect, frame, sequence.files[frame], present[0]
            )
        return cls(
            sequence=sequence,
            display_window=first.display_window,
            canvas=union_of([first.display_window, *(header.data_window for header in headers)]),
            pixel_aspect=first.pixel_aspect,
            fps=_fps_of(first.spec),
            layer=layer,
            view=view,
            colour_space=colour_space,
        )

    def read(self, frame: int) -> PlateFrame:
        """Read one frame. Safe to be called from several threads.

        Raises:
            PlateError: the frame is outside the range, missing, truncated or damaged, or has changed its
                format since the plate was opened.
        """
        if frame not in self.sequence.frames:
            raise PlateError(
                f"The frame is not in the plate, which has {describe_frames(self.frames)}.",
                frame=frame,
                path=self.sequence.text,
            )
        path = self.sequence.path(frame)
        if self._movie is not None:
            return self._read_movie_frame(self._movie, frame, path)
        header = _read_header(path, frame, self.layer, self.view)
        _check_format(header, self.display_window, self.pixel_aspect, frame, path, None)
        if not self.canvas.contains(header.data_window):
            raise PlateError(
                f"The data window {header.data_window} is outside the canvas {self.canvas}: "
                "the file has changed since the plate was opened.",
                frame=frame,
                path=path,
                hint="Open the plate again.",
            )
        return PlateFrame(
            frame=frame,
            path=path,
            pixels=_read_pixels(path, frame, header),
            data_window=header.data_window,
            display_window=header.display_window,
            pixel_aspect=header.pixel_aspect,
            metadata=header.spec,
        )

    def _read_movie_frame(self, movie: MovieReader, frame: int, path: Path) -> PlateFrame:
        number = frame - self._movie_first_frame
        try:
            picture = movie.read(number)
        except PlateError as error:
            raise PlateError(error.what, frame=frame, path=path, hint=error.hint) from error
        spec = oiio.ImageSpec(self.canvas.width, self.canvas.height, 3, "uint8")
        if self.fps:
            spec.attribute("FramesPerSecond", self.fps)
        return PlateFrame(
            frame=frame,
            path=path,
            pixels=_normalised(picture),
            data_window=self.canvas,
            display_window=self.display_window,
            pixel_aspect=self.pixel_aspect,
            metadata=spec,
        )


def union_of(windows: Iterable[Window]) -> Window:
    """The smallest window that holds all of them (at least one)."""
    return reduce(Window.union, windows)


def place(pixels: PixelArray, window: Window, canvas: Window, fill: float = 0.0) -> FloatArray:
    """Put pixels (h, w[, C]) of `window` into a new array over `canvas` (H, W[, C]); `fill` elsewhere.

    What lies outside the canvas is dropped.
    """
    if pixels.shape[:2] != (window.height, window.width):
        raise ValueError(f"pixels {pixels.shape} do not fill the window {window}")
    result = np.full((canvas.height, canvas.width, *pixels.shape[2:]), fill, dtype=np.float32)
    shared = window.intersection(canvas)
    if shared is not None:
        result[slices_of(shared, canvas)] = pixels[slices_of(shared, window)]
    return result


def slices_of(inner: Window, outer: Window) -> tuple[slice, slice]:
    """Rows and columns of `inner` in an array over `outer`."""
    return (
        slice(inner.y - outer.y, inner.bottom - outer.y),
        slice(inner.x - outer.x, inner.right - outer.x),
    )


# ---------------------------------------------------------------------------------------------- headers


@dataclass(frozen=True)
class _Header:
    """What one file's header says of the picture that is wanted."""

    subimage: int
    channels: tuple[int, ...]  # three of them, or one for grey
    data_window: Window
    display_window: Window
    pixel_aspect: float
    spec: oiio.ImageSpec


@dataclass(frozen=True)
class _Layer:
    """The channels of one layer and view in one part of a file."""

    subimage: int
    names: frozenset[str]  # lower case; "" is the main layer
    title: str
    view: str | None
    channels: dict[str, int]  # last part of the channel's name, lower case -> index

    def picture(self) -> tuple[int, ...]:
        """Indices of R, G and B, or of the one grey channel; empty when the layer is no picture."""
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
    """Open an image as stored: no premultiplication on the way. None (and oiio.geterror()) when it fails."""
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    return oiio.ImageInput.open(str(path), config)


def reason_of(text: str) -> str:
    """OpenImageIO's error as one short line, without the file's name."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = re.sub(r'\s*\(?"[^"]*[/\\][^"]*"\)?', "", lines[0]) if lines else "no reason given"
    return line.rstrip(".")


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
    image.geterror()  # running off the end is how the parts are counted, and no error
    image.seek_subimage(0, 0)
    return specs


def _read_header(path: Path, frame: int, layer: str | None, view: str | None) -> _Header:
    if not path.is_file():
        raise PlateError(
            "The file of this frame is missing.",
            frame=frame,
            path=path,
            hint="Render or copy it, or shorten the range.",
        )
    image = open_image(path)
    if image is None:
        raise PlateError(
            f"The file cannot be opened: {reason_of(oiio.geterror())}.",
            frame=frame,
            path=path,
            hint=_hint_for(path),
        )
    try:
        specs = specs_of(image)
    finally:
        image.close()
    chosen = _choose(specs, layer, view, frame, path)
    spec = specs[chosen.subimage]
    data, display = window_pair(spec)
    if spec.deep or spec.depth > 1:
        raise PlateError(
            "Deep and volume images are not plates.", frame=frame, path=path, hint="Flatten it first."
        )
    if not (0 < data.width <= _MAX_SIDE and 0 < data.height <= _MAX_SIDE):
        raise PlateError(f"The data window {data} cannot be used.", frame=frame, path=path)
    aspect = spec.get_float_attribute("PixelAspectRatio", 1.0)
    return _Header(
        subimage=chosen.subimage,
        channels=chosen.picture(),
        data_window=data,
        display_window=display,
        pixel_aspect=aspect if _LEAST_ASPECT <= aspect <= 1 / _LEAST_ASPECT else 1.0,
        spec=spec,
    )


def _hint_for(path: Path) -> str:
    try:
        if path.stat().st_size == 0:
            return "The file is empty: render or copy it again."
        with open(path, "rb"):
            pass
    except OSError as error:
        return f"The system says: {os.strerror(error.errno or 0)}."
    return "Render or copy it again, or convert it to EXR."


def layers_of(specs: list[oiio.ImageSpec]) -> list[_Layer]:
    """The layers of a file by the EXR conventions: dotted channel names, parts, and views of both kinds."""
    layers: dict[tuple[int, str, str | None], _Layer] = {}
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
                layers[key] = _Layer(subimage, frozenset(names), title, view, {})
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
) -> _Layer:
    """The layer to read, or a PlateError that says what the file holds."""
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
    if (
        not wanted_layer
    ):  # the main picture: in a file with many parts it is rarely the depth that comes first
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


def _hero_view(specs: list[oiio.ImageSpec], layers: list[_Layer]) -> str | None:
    """The first view: as the file lists them, else that of the first part with a main picture."""
    for spec in specs:
        if views := _views_in(spec):
            return views[0]
    seen = [layer for layer in layers if layer.view]
    main = [layer for layer in seen if "" in layer.names and layer.is_colour]
    return next((layer.view for layer in main + seen), None)


def _check_format(
    header: _Header, display: Window, aspect: float, frame: int, path: Path, first_frame: int | None
) -> None:
    before = "when the plate was opened" if first_frame is None else f"on frame {first_frame}"
    if header.display_window != display:
        raise PlateError(
            f"The display window is {header.display_window}, but {display} {before}.",
            frame=frame,
            path=path,
            hint="A plate must keep one format: split it, or reformat these frames.",
        )
    if abs(header.pixel_aspect - aspect) > _ASPECT_TOLERANCE:
        raise PlateError(
            f"The pixel aspect is {header.pixel_aspect:g}, but {aspect:g} {before}.",
            frame=frame,
            path=path,
            hint="A plate must keep one pixel aspect: correct it in these frames.",
        )


def _fps_of(spec: oiio.ImageSpec) -> float | None:
    for name in ("FramesPerSecond", "framesPerSecond", "dpx:FrameRate", "dpx:TelevisionFrameRate"):
        value = spec.getattribute(name)
        if isinstance(value, tuple) and len(value) == 2 and value[1]:
            value = value[0] / value[1]
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return None


# ----------------------------------------------------------------------------------------------- pixels


def _read_pixels(path: Path, frame: int, header: _Header) -> PixelArray:
    image = open_image(path)
    try:
        if image is None:
            raise PlateError(
                f"The file cannot be opened: {reason_of(oiio.geterror())}.", frame=frame, path=path
            )
        stored = read_stored(image, header.subimage, header.channels)
    except ValueError as error:
        raise PlateError(
            f"The file is truncated or damaged: {error}.",
            frame=frame,
            path=path,
            hint="Render or copy it again.",
        ) from error
    finally:
        if image is not None:
            image.close()
    if len(header.channels) > 1:
        return stored
    return cast(PixelArray, np.repeat(stored, 3, axis=2))


def read_channels(image: oiio.ImageInput, subimage: int, channels: tuple[int, ...]) -> FloatArray:
    """Read some channels of an open file as float32 (h, w, C); as `read_stored` otherwise."""
    return read_stored(image, subimage, channels).astype(np.float32, copy=False)


def read_stored(image: oiio.ImageInput, subimage: int, channels: tuple[int, ...]) -> PixelArray:
    """Read some channels of an open file (h, w, C): half floats as they are, all else as float32, integers
    from 0 to 1.

    Raises:
        ValueError: the file is truncated or damaged; the text says how.
    """
    first, last = min(channels), max(channels) + 1
    spec = image.spec(subimage, 0)
    formats = {str(spec.channelformat(index)) for index in range(first, last)}
    stored_type = _STORED_TYPES.get(formats.pop(), oiio.FLOAT) if len(formats) == 1 else oiio.FLOAT
    stored = image.read_image(subimage, 0, first, last, stored_type)
    problem = image.geterror()
    if stored is None or problem:  # a truncated JPEG gives pixels and an error
        raise ValueError(reason_of(problem))
    wanted = [index - first for index in channels]
    if wanted != list(range(last - first)):
        stored = np.ascontiguousarray(stored[:, :, wanted])
    return stored if stored.dtype == np.float16 else _normalised(stored)


_STORED_TYPES = {"half": oiio.HALF, "uint8": oiio.UINT8, "uint16": oiio.UINT16}


def _normalised(stored: npt.NDArray[Any]) -> FloatArray:
    """Stored values (h, w, C) as float32; the full range of an integer type becomes 0 to 1."""
    if stored.dtype.kind == "u":
        scale = np.float32(1.0 / np.iinfo(stored.dtype).max)
        scaled: FloatArray = np.multiply(stored, scale, dtype=np.float32)
        return scaled
    return np.ascontiguousarray(stored, dtype=np.float32)


def _open_movie(sequence: FrameSequence, colour_space: str | None, first_frame: int) -> Plate:
    assert sequence.movie is not None
    movie = MovieReader(sequence.movie)
    window = Window(0, 0, movie.index.width, movie.index.height)
    return Plate(
        sequence=sequence,
        display_window=window,
        canvas=window,
        pixel_aspect=movie.index.pixel_aspect,
        fps=movie.index.fps,
        colour_space=colour_space,
        _movie=movie,
        _movie_first_frame=first_frame,
    )
