"""Plate frames for the engine: hashed, display-referred, and as working pictures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from stm_plugin.errors import PlateError, memory_errors
from stm_plugin.finishing.whole_frame import DeviceGuide
from stm_plugin.images.device_pictures import DevicePictures
from stm_plugin.images.half_float import convert, to_float
from stm_plugin.images.plate import CONTENT_HASH, Plate, PlateFrame, PlateSource
from stm_plugin.images.working_picture import WorkingGeometry, to_working
from stm_plugin.propagation.workers import Workers, begin_worker
from stm_plugin.windows import FloatArray, PixelArray

PictureArray = npt.NDArray[np.float16]


class Transform(Protocol):
    """The interface of a colour transform (`ColourTransform`)."""

    @property
    def id(self) -> str: ...

    def to_display(self, pixels: PixelArray) -> FloatArray: ...

    def to_linear(self, pixels: PixelArray) -> FloatArray: ...

    def from_linear(self, linear: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """One plate frame with everything that is derived from it, each computed at most once.

    `signature` was taken before the file was read. If the file changed since, its signature differs.
    """

    plate_frame: PlateFrame
    hash: str
    signature: str | None
    transform: Transform
    geometry: WorkingGeometry
    pictures: DevicePictures | None = None
    """Makes the working picture on a graphics card."""

    @cached_property
    def picture(self) -> PictureArray:
        """(3, h, w) at working size, in half floats, so that computed and cached pictures are equal.

        Colour is converted before the picture is scaled: highlights are compressed before they are averaged,
        as in the pictures that the network was trained on.
        """
        frame = self.plate_frame
        if self.pictures is not None:
            made = self.pictures.working(frame.pixels, frame.data_window)
            if made is not None:
                return made
        small = to_working(frame.pixels, frame.data_window, self.geometry, self.transform.to_display)
        picture = np.empty((3, *small.shape[:2]), np.float16)
        for plane, values in zip(picture, cv2.split(small), strict=True):
            convert(np.asarray(values, dtype=np.float32), plane)
        return picture

    def guide(self) -> FloatArray:
        """(3, h, w): the working picture as float32."""
        return to_float(self.picture)

    def device_guide(self) -> DeviceGuide | None:
        """The frame for finishing on a graphics card; None where it is finished on a processor."""
        pixels = self.plate_frame.pixels
        if self.pictures is None or not self.pictures.takes(pixels):
            return None
        return DeviceGuide(self.pictures, pixels)

    def display(self) -> FloatArray:
        """(H, W, 3) over the data window, display-referred sRGB in [0, 1]."""
        return self.transform.to_display(self.plate_frame.pixels)

    def display_at(self, rows: slice, columns: slice) -> FloatArray:
        """(n, m, 3): display-referred colours of a part of the data window."""
        return self.transform.to_display(self.plate_frame.pixels[rows, columns])


class FrameLoader:
    """Reads plate frames, the next ones in advance in separate threads. Several threads may call it.

    Args:
        noticed: is told of every frame that is read.
        workers: how many threads (`readers`), and how many frames are held.
        pictures: makes working pictures on a graphics card; None: the processor does.
    """

    def __init__(
        self,
        plate: PlateSource,
        transform: Transform,
        geometry: WorkingGeometry,
        noticed: Callable[[LoadedFrame], None] = lambda loaded: None,
        workers: Workers | None = None,
        pictures: DevicePictures | None = None,
    ) -> None:
        self.plate, self.transform, self.geometry = plate, transform, geometry
        self.workers = workers or Workers()
        self._pictures = pictures
        self._noticed = noticed
        self._held: OrderedDict[int, LoadedFrame] = OrderedDict()
        self._coming: dict[int, Future[LoadedFrame]] = {}
        self._mutex = threading.RLock()
        self._pool = ThreadPoolExecutor(
            self.workers.readers, thread_name_prefix="stm-read", initializer=begin_worker
        )

    def load(self, frame: int) -> LoadedFrame:
        """One frame in its present state. PlateError where it cannot be read."""
        while True:
            with self._mutex:
                loaded = self._held_now(frame)
                if loaded is not None:
                    self._held.move_to_end(frame)
                    break
                coming = self._coming.get(frame)
                mine = coming is None
                if coming is None:
                    coming = self._coming[frame] = Future()
            if mine:
                self._read_into(coming, frame, self._read)
            # Present, or as it was when another thread began to read it: then the loop reads it again.
            loaded = coming.result()
            if mine or loaded.signature == signature_of(self.plate, frame):
                break
        self._noticed(loaded)  # again: it may have been read first without the store's lock
        return loaded

    def read_ahead(self, frame: int) -> None:
        """Begin to read a frame that will be needed next. `load` raises its errors."""
        with self._mutex:
            if self._held_now(frame) is None and frame not in self._coming:
                coming = self._coming[frame] = Future()
                self._pool.submit(self._read_into, coming, frame, self._read_whole)

    def forget(self) -> None:
        """Forget all frames: files may have changed."""
        with self._mutex:
            self._held.clear()

    def close(self) -> None:
        """End the reading threads after the requested frames are read."""
        self.forget()
        self._pool.shutdown(wait=True)

    def _read(self, frame: int) -> LoadedFrame:
        signature = signature_of(self.plate, frame)
        plate_frame = self.plate.read(frame)
        hash_ = plate_frame.content_hash()
        return LoadedFrame(plate_frame, hash_, signature, self.transform, self.geometry, self._pictures)

    def _read_whole(self, frame: int) -> LoadedFrame:
        loaded = self._read(frame)
        with memory_errors(loaded.plate_frame.path, frame):
            _ = loaded.picture  # in this thread, not in the one that runs the network
        return loaded

    def _read_into(self, coming: Future[LoadedFrame], frame: int, read: Callable[[int], LoadedFrame]) -> None:
        """Read a frame; every waiting caller gets it, or the error."""
        try:
            loaded = read(frame)
            self._noticed(loaded)
        except BaseException as error:
            with self._mutex:
                self._coming.pop(frame, None)
            coming.set_exception(error)
            return
        with self._mutex:
            self._coming.pop(frame, None)
            self._held[frame] = loaded
            while len(self._held) > self.workers.frames_held:
                self._held.popitem(last=False)
        coming.set_result(loaded)

    def _held_now(self, frame: int) -> LoadedFrame | None:
        """A kept frame, if its file has not changed since."""
        held = self._held.get(frame)
        return held if held is not None and held.signature == signature_of(self.plate, frame) else None


def signature_of(plate: PlateSource, frame: int) -> str | None:
    """A signature of a frame's file that is quick to take; None where the frame is missing.

    It changes with the file. A plan takes equal signatures for equal content; frames that are read are hashed
    nevertheless.
    """
    if isinstance(plate, Plate):
        if frame in plate.missing:
            return None
        path: Path = plate.sequence.path(frame)
        try:
            status = path.stat()
        except OSError:
            return None
        # A copied or restored file may keep its first time, but not the second one.
        times = f"{status.st_mtime_ns}|{status.st_ctime_ns}"
        return f"{CONTENT_HASH}|{path}|{plate.layer}|{plate.view}|{status.st_size}|{times}|{status.st_ino}"
    signature: Any = getattr(plate, "signature", None)
    if signature is None:
        raise PlateError("This plate cannot tell whether its frames have changed.", frame=frame)
    result: str | None = signature(frame)
    return result
