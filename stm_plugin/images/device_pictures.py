"""Colour and narrowing on the network's device, instead of on the processor.

The results differ from those of `images/colour.py` and `images/working_picture.py` by less than 1/1024.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.inference.device_copies import own_stream, uploaded
from stm_plugin.images.colour_tables import ColourTables
from stm_plugin.images.working_picture import WorkingGeometry
from stm_plugin.windows import PixelArray, Window, slices_of

_BLOCK_ELEMENTS = 1 << 22
"""Values that are converted together: a look-up needs twelve bytes for each."""
_HALF_MAX = 65504.0
_HUGE = 1e30


class DevicePictures:
    """Display-referred and working pictures of plate frames, computed on one device. Thread-safe.

    Args:
        tables: of the plate's colour transform.
    """

    def __init__(self, tables: ColourTables, geometry: WorkingGeometry, device: str) -> None:
        self.device = torch.device(device)
        self._geometry, self._tables = geometry, tables
        self._curve = None if tables.is_plain else torch.from_numpy(tables.curve).to(self.device)
        self._matrix = None if tables.matrix is None else torch.from_numpy(tables.matrix).to(self.device)
        self._shown = None if tables.shown is None else torch.from_numpy(tables.shown.copy()).to(self.device)
        region = geometry.region
        self._down = _area_weights(region.height, geometry.height).to(self.device)
        self._across = _area_weights(region.width, geometry.width).to(self.device)

    def takes(self, pixels: PixelArray) -> bool:
        """Whether colours of this type can be converted here: a camera's curve is a table of half floats."""
        return self._tables.is_plain or pixels.dtype == np.float16

    def working(self, pixels: PixelArray, window: Window) -> npt.NDArray[np.float16] | None:
        """The working picture (3, h, w) in half floats of a frame's pixels (H, W, 3) over `window`.

        None where it is not made here: the colours are not, the plate is enlarged, or the device is full.
        """
        region, geometry = self._geometry.region, self._geometry
        if not self.takes(pixels) or geometry.width > region.width or geometry.height > region.height:
            return None
        try:
            return self._narrowed(pixels, window)
        except torch.OutOfMemoryError:
            return None

    def _narrowed(self, pixels: PixelArray, window: Window) -> npt.NDArray[np.float16]:
        """`working` where it is made here."""
        region, geometry = self._geometry.region, self._geometry
        with torch.inference_mode(), own_stream(self.device):
            seen = region.intersection(window)
            narrow = torch.zeros(geometry.height, region.width * 3, device=self.device)
            if seen is not None:
                here = slices_of(seen, region)
                # Outside the data window pixels are 0 in scene-linear light, and so in the display.
                part = np.ascontiguousarray(pixels[slices_of(seen, window)])
                columns = slice(here[1].start * 3, here[1].stop * 3)
                self._add_down(narrow[:, columns], uploaded(part, self.device), here[0].start)
            wide = narrow.view(geometry.height, region.width, 3).permute(2, 0, 1)  # (3, h, W)
            picture = (wide @ self._across.T).half().cpu()
        result: npt.NDArray[np.float16] = picture.numpy()
        return result

    def display(self, pixels: PixelArray) -> Tensor:
        """(H, W, 3) on the device: display-referred colours of (H, W, 3). In `own_stream`."""
        return self.to_display(uploaded(np.ascontiguousarray(pixels), self.device))

    def to_display(self, pixels: Tensor) -> Tensor:
        """Half floats or floats (h, w, 3) of the plate's space -> display-referred, in [0, 1]."""
        if self._curve is not None:
            values = self._curve[_bits(pixels)]
        else:
            values = pixels.float()
            values = torch.nan_to_num(values, nan=0.0, posinf=_HALF_MAX, neginf=-_HALF_MAX)
            values = values.clamp_(-_HUGE, _HUGE)
        if self._matrix is not None:
            values = values @ self._matrix.T
        if self._shown is None:
            return values.clamp_(0.0, 1.0)
        return self._shown[_bits(values.half())]

    def _add_down(self, narrow: Tensor, pixels: Tensor, first: int) -> None:
        """Add rows of pixels (n, w, 3), averaged down, to the narrow picture (h, w * 3).

        Args:
            first: the row of the region that the first row is.
        """
        rows = max(1, _BLOCK_ELEMENTS // (pixels.shape[1] * 3))
        for top in range(0, len(pixels), rows):
            block = self.to_display(pixels[top : top + rows]).flatten(1)
            narrow.add_(self._down[:, first + top : first + top + len(block)] @ block)


def pictures_on(tables: ColourTables | None, geometry: WorkingGeometry, device: str) -> DevicePictures | None:
    """Pictures on a device; None where the colours have no tables."""
    return None if tables is None else DevicePictures(tables, geometry, device)


def _bits(halves: Tensor) -> Tensor:
    """The bits of half floats as places in a table."""
    return halves.view(torch.int16).int() & 0xFFFF


def _area_weights(source: int, target: int) -> Tensor:
    """(target, source): how much of each source pixel lies in each target pixel, rows of sum 1."""
    if target > source:
        return torch.zeros(target, source)  # not narrower: never used
    edges = np.arange(target + 1) * (source / target)
    places = np.arange(source)
    below = np.minimum(places[None] + 1, edges[1:, None]) - np.maximum(places[None], edges[:-1, None])
    return torch.from_numpy((np.clip(below, 0, 1) * (target / source)).astype(np.float32))
