"""Plate frames as the engine needs them: verified by content, display-referred, and as working pictures."""

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

from stm_plugin.errors import PlateError
from stm_plugin.images.half_float import convert, to_float
from stm_plugin.images.plate import CONTENT_HASH, Plate, PlateFrame, PlateSource
from stm_plugin.images.working_picture import WorkingGeometry, to_working
from stm_plugin.propagation.finishing_queue import FRAMES_WAITING
from stm_plugin.windows import FloatArray, PixelArray

FRAMES_HELD = 3 + FRAMES_WAITING
"""The frame at work, the one that is read ahead, the one that is being finished, and those that wait."""

PictureArray = npt.NDArray[np.float16]


class Transform(Protocol):
    """What the engine needs of a colour transform (`ColourTransform`)."""

    @property
    def id(self) -> str: ...

    def to_display(self, pixels: PixelArray) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """One plate frame with everything that is derived from it, each computed at most once.

    `signature` is the file's before it was read: if the file changed since, it no longer fits.
    """

    plate_frame: PlateFrame
    hash: str
    signature: str | None
    transform: Transform
    geometry: WorkingGeometry

    @cached_property
    def picture(self) -> PictureArray:
        """(3, h, w) at working size. Half floats, computed or from a cache alike: so both give the same.

        Colour comes before the size: the highlights are bent before they are averaged, as in the pictures
        that the network learnt from.
        """
        frame = self.plate_frame
        small = to_working(frame.pixels, frame.data_window, self.geometry, self.transform.to_display)
        picture = np.empty((3, *small.shape[:2]), np.float16)
        for plane, values in zip(picture, cv2.split(small), strict=True):
            convert(np.asarray(values, dtype=np.float32), plane)
        return picture

    def guide(self) -> FloatArray:
        """(3, h, w): the working picture as float32."""
        return to_float(self.picture)

    def display(self) -> FloatArray:
        """(H, W, 3) over the data window, display-referred sRGB in [0, 1]."""
        return self.transform.to_display(self.plate_frame.pixels)

    def display_at(self, places: npt.NDArray[np.intp]) -> FloatArray:
        """(N, 3): the display-referred colours of single pixels, given as places in the flat data window."""
        pixels = self.plate_frame.pixels.reshape(-1, 3)[places]  # (N, 3)
        return self.transform.to_display(pixels[:, None])[:, 0]


class FrameLoader:
    """Reads plate frames, the next one ahead of time in a thread of its own. Several threads may ask.

    Args:
        noticed: is told of every frame that is read.
    """

    def __init__(
        self,
        plate: PlateSource,
        transform: Transform,
        geometry: WorkingGeometry,
        noticed: Callable[[LoadedFrame], None] = lambda loaded: None,
    ) -> None:
        self.plate, self.transform, self.geometry = plate, transform, geometry
        self._noticed = noticed
        self._held: OrderedDict[int, LoadedFrame] = OrderedDict()
        self._coming: dict[int, Future[LoadedFrame]] = {}
        self._mutex = threading.RLock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stm-plate")

    def load(self, frame: int) -> LoadedFrame:
        """One frame as it is now. PlateError where it cannot be read."""
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
            # As it is now, or as it was when another thread began to read it: then the loop sees to it.
            loaded = coming.result()
            if mine or loaded.signature == signature_of(self.plate, frame):
                break
        self._noticed(loaded)  # again: the first time it may have been read without the store's lock
        return loaded

    def read_ahead(self, frame: int) -> None:
        """Begin to read a frame that will be asked for next. Its errors come out of `load`."""
        with self._mutex:
            if self._held_now(frame) is None and frame not in self._coming:
                coming = self._coming[frame] = Future()
                self._pool.submit(self._read_into, coming, frame, self._read_whole)

    def forget(self) -> None:
        """Drop all frames: files may have changed."""
        with self._mutex:
            self._held.clear()

    def close(self) -> None:
        """End the reading thread."""
        self.forget()
        self._pool.shutdown(wait=True)

    def _read(self, frame: int) -> LoadedFrame:
        signature = signature_of(self.plate, frame)
        plate_frame = self.plate.read(frame)
        hash_ = plate_frame.content_hash()
        return LoadedFrame(plate_frame, hash_, signature, self.transform, self.geometry)

    def _read_whole(self, frame: int) -> LoadedFrame:
        loaded = self._read(frame)
        _ = loaded.picture  # in this thread, not in the one that runs the network
        return loaded

    def _read_into(self, coming: Future[LoadedFrame], frame: int, read: Callable[[int], LoadedFrame]) -> None:
        """Read a frame and hand it, or the error, to everyone who waits for it."""
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
            while len(self._held) > FRAMES_HELD:
                self._held.popitem(last=False)
        coming.set_result(loaded)

    def _held_now(self, frame: int) -> LoadedFrame | None:
        """A frame that is held and has not changed since."""
        held = self._held.get(frame)
        return held if held is not None and held.signature == signature_of(self.plate, frame) else None


def signature_of(plate: PlateSource, frame: int) -> str | None:
    """A quick sign that changes when a frame's file does; None where the frame is not there.

    Equal signs are taken for equal content when planning; what is read is hashed all the same.
    """
    if isinstance(plate, Plate):
        if frame in plate.missing:
            return None
        path: Path = plate.sequence.path(frame)
        try:
            status = path.stat()
        except OSError:
            return None
        times = f"{status.st_mtime_ns}|{status.st_ctime_ns}"  # a copied or restored time leaves the second
        return f"{CONTENT_HASH}|{path}|{plate.layer}|{plate.view}|{status.st_size}|{times}|{status.st_ino}"
    signature: Any = getattr(plate, "signature", None)
    if signature is None:
        raise PlateError("This plate cannot say whether its frames have changed.", frame=frame)
    result: str | None = signature(frame)
    return result
