"""Plates: the shot's pictures with their windows, aspect and metadata, read through OpenImageIO.

What is read is R, G and B as stored: half floats stay half floats. Alpha is left out: a premultiplied plate
stays premultiplied. A plate with one channel becomes grey. NaN, Inf, negative values and values above 1 are
kept; `colour.py` converts them. Movies are read with 8 bits a channel.
"""

from __future__ import annotations

import re
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import blake3
import numpy as np
import OpenImageIO as oiio

from stm_plugin.errors import PlateError, memory_errors
from stm_plugin.images.movie import MovieReader, rational_rate
from stm_plugin.images.picture_file import (
    PictureHeader,
    check_canvas,
    normalised,
    opened_picture,
    read_header,
    read_pixels,
)
from stm_plugin.images.sequence import (
    DEFAULT_FIRST_FRAME,
    FrameRange,
    FrameSequence,
    describe_frames,
    parse_sequence,
)
from stm_plugin.windows import PixelArray, Window, union_of

_HEADER_THREADS = 8
"""Headers are tiny and mostly wait for a file server."""
_ASPECT_TOLERANCE = 1e-4
MOST_PIXEL_BYTES = 12
"""Of a plate pixel as it is held: three float32."""
CONTENT_HASH = "blake3-1"
"""The method of content hashes. Stored hashes of another method are not compared."""
_VIEW_TOKEN = re.compile("%[Vv]")
_HASH_HEADER = struct.Struct("<9qd")


@dataclass(frozen=True, eq=False)
class FrameHeader:
    """A frame without its pixels; the attributes are those of PlateFrame."""

    frame: int
    path: Path | None
    data_window: Window
    metadata: oiio.ImageSpec = field(default_factory=oiio.ImageSpec, repr=False)


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
        """The hash of what the matte depends on, in 64 hexadecimal digits: pixels, windows and aspect.

        It is BLAKE3: as free of collisions as sha256, and as fast as memory on every processor. The file's
        name does not enter.
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
    """The interface of a plate: its frames are files (`Plate`), or pushed by a host (`HostPlate`)."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Frame numbers of the range, ascending."""
        ...

    @property
    def missing(self) -> tuple[int, ...]:
        """The frames of the range that do not exist."""
        ...

    @property
    def display_window(self) -> Window:
        """The display window, which is the same on every frame."""
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
        """Frames per second; None where unknown."""
        ...

    def read(self, frame: int) -> PlateFrame:
        """One frame, or a PlateError that names it."""
        ...

    def header(self, frame: int) -> FrameHeader:
        """One frame without its pixels, or a PlateError that names it."""
        ...


@dataclass(frozen=True, eq=False)
class Plate:
    """A plate in files. Opening reads headers only; pixels are read frame by frame.

    Attributes:
        sequence: where the frames are.
        display_window, pixel_aspect: the same on every frame.
        canvas: union of the display window and of every frame's data window.
        fps: frames per second if the files state it.
        layer, view: the layer and view to read; None is the main picture and the first (hero) view.
        colour_space: the input colour space that the artist stated, or None.
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

    @property
    def remark(self) -> str:
        """What people should know of the plate, in a sentence; empty for most."""
        if self._movie is None or self._movie.index.is_even:
            return ""
        return (
            "The frames of the movie do not come at a constant rate. They are counted one by one; a program "
            "that counts them by time may give them other numbers. An image sequence has no such doubt."
        )

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
            text: the sequence, in any form that `sequence.py` describes.
            frame_range: the frames wanted, all if None.
            layer: the layer of a multichannel file; the main picture if None.
            view: the view of a multiview file, and of `%V`; the first (hero) view if None.
            colour_space: the plate's colour space as the artist states it, kept for colour.py.
            movie_first_frame: the number of a movie's first frame.

        Raises:
            PlateError: a header cannot be read, the layer or view does not exist, or the display window or
                the pixel aspect changes within the plate. Frame and file are named. Missing frames are no
                error here.
        """
        sequence = parse_sequence(
            text, frame_range=frame_range, view=view, movie_first_frame=movie_first_frame
        )
        if sequence.movie is not None:
            _check_movie(sequence.movie, layer, None if _VIEW_TOKEN.search(str(text)) else view)
            return _open_movie(sequence, colour_space, movie_first_frame)
        present = [frame for frame in sequence.frames if frame in sequence.files]
        with ThreadPoolExecutor(min(_HEADER_THREADS, len(present))) as pool:
            headers = list(
                pool.map(lambda frame: read_header(sequence.files[frame], frame, layer, view), present)
            )
        first = headers[0]
        if view and not first.has_views and not _VIEW_TOKEN.search(str(text)):
            raise PlateError(
                f"There is no view {view!r}: the plate's files have no views.",
                frame=present[0],
                path=sequence.files[present[0]],
                hint="Leave the view out, or write %V into the name where each view has its own files.",
            )
        for frame, header in zip(present, headers, strict=True):
            _check_format(
                header, first.display_window, first.pixel_aspect, frame, sequence.files[frame], present[0]
            )
        canvas = union_of([first.display_window, *(header.data_window for header in headers)])
        check_canvas(canvas, present[0], sequence.files[present[0]])
        return cls(
            sequence=sequence,
            display_window=first.display_window,
            canvas=canvas,
            pixel_aspect=first.pixel_aspect,
            fps=_fps_of(first.spec),
            layer=layer,
            view=view,
            colour_space=colour_space,
        )

    def read(self, frame: int) -> PlateFrame:
        """Read one frame. Thread-safe.

        Raises:
            PlateError: the frame is outside the range, missing, truncated or damaged, or has changed its
                format since the plate was opened.
        """
        path = self._path(frame)
        if self._movie is not None:
            return self._read_movie_frame(self._movie, frame, path)
        with opened_picture(path, frame, self.layer, self.view) as (image, header):
            self._check(header, frame, path)
            return PlateFrame(
                frame=frame,
                path=path,
                pixels=read_pixels(image, header, frame, path),
                data_window=header.data_window,
                display_window=header.display_window,
                pixel_aspect=header.pixel_aspect,
                metadata=header.spec,
            )

    def header(self, frame: int) -> FrameHeader:
        """One frame without its pixels. PlateError as in `read`, but for damaged pixels."""
        path = self._path(frame)
        if self._movie is not None:
            return FrameHeader(frame, path, self.canvas, self._movie_spec())
        header = read_header(path, frame, self.layer, self.view)
        self._check(header, frame, path)
        return FrameHeader(frame, path, header.data_window, header.spec)

    def _path(self, frame: int) -> Path:
        if frame not in self.sequence.frames:
            raise PlateError(
                f"The frame is not in the plate, which has {describe_frames(self.frames)}.",
                frame=frame,
                path=self.sequence.text,
            )
        return self.sequence.path(frame)

    def _movie_spec(self) -> oiio.ImageSpec:
        spec = oiio.ImageSpec(self.canvas.width, self.canvas.height, 3, "uint8")
        if self.fps:
            spec.attribute("FramesPerSecond", oiio.TypeDesc("rational"), rational_rate(self.fps))
        return spec

    def _check(self, header: PictureHeader, frame: int, path: Path) -> None:
        """PlateError where the format of a file changed after the plate was opened."""
        _check_format(header, self.display_window, self.pixel_aspect, frame, path, None)
        if not self.canvas.contains(header.data_window):
            raise PlateError(
                f"The data window {header.data_window} is outside the canvas {self.canvas}: "
                "the file has changed since the plate was opened.",
                frame=frame,
                path=path,
                hint="Open the plate again.",
            )

    def _read_movie_frame(self, movie: MovieReader, frame: int, path: Path) -> PlateFrame:
        number = frame - self._movie_first_frame
        try:
            with memory_errors(path, frame):
                picture = movie.read(number)
        except PlateError as error:
            raise PlateError(error.what, frame=frame, path=path, hint=error.hint) from error
        return PlateFrame(
            frame=frame,
            path=path,
            pixels=normalised(picture),
            data_window=self.canvas,
            display_window=self.display_window,
            pixel_aspect=self.pixel_aspect,
            metadata=self._movie_spec(),
        )


def held_pixel_bytes(metadata: oiio.ImageSpec) -> int:
    """Bytes of a pixel as `PlateFrame` holds it, by the file's header: half floats stay, all else is
    float32."""
    halves = metadata.format == oiio.HALF and not metadata.channelformats
    return MOST_PIXEL_BYTES // 2 if halves else MOST_PIXEL_BYTES


def _check_movie(movie: Path, layer: str | None, view: str | None) -> None:
    """PlateError where a layer or a view of a movie is requested: movies have none."""
    for word, value in (("layers", layer), ("views", view)):
        if value:
            raise PlateError(f"A movie has no {word}, so {value!r} cannot be read from it.", path=movie)


def _check_format(
    header: PictureHeader, display: Window, aspect: float, frame: int, path: Path, first_frame: int | None
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
