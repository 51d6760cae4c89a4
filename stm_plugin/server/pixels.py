"""Pixels between the bytes of a message and the engine's float32 arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stm_plugin.protocol import (
    MAX_PAYLOAD,
    ImageLayout,
    MattePixels,
    PixelFormat,
    Rectangle,
    RequestError,
    Rows,
)

FloatArray = npt.NDArray[np.float32]
Bytes = bytes | bytearray | memoryview

_DTYPES: Final[dict[PixelFormat, np.dtype[Any]]] = {
    "byte": np.dtype("u1"),
    "short": np.dtype("<u2"),
    "half": np.dtype("<f2"),
    "float": np.dtype("<f4"),
}
_LARGEST: Final[dict[PixelFormat, float]] = {"byte": 255.0, "short": 65535.0}


def view_image(layout: ImageLayout, data: Bytes) -> npt.NDArray[Any]:
    """The values of an image as a view: (height, width, channels), top row first, no copy.

    Raises:
        RequestError: a value lies outside `data`.
    """
    layout.check_inside(len(data))
    width, height = layout.data_window[2:]
    return np.ndarray(
        (height, width, len(layout.channels)),
        dtype=_DTYPES[layout.format],
        buffer=data,
        offset=layout.offset,
        strides=(layout.row_bytes, layout.pixel_bytes, layout.channel_bytes),
    )


def _as_float(values: npt.NDArray[Any], pixel_format: PixelFormat) -> FloatArray:
    floats = values.astype(np.float32)
    if pixel_format in _LARGEST:
        # As in OpenImageIO: a host's picture and the file that it came from must have the same bits.
        floats *= np.float32(1.0 / _LARGEST[pixel_format])
    return floats


def read_plate(layout: ImageLayout, data: Bytes) -> FloatArray:
    """A plate frame as float32 (height, width, 3), unpremultiplied; NaN and infinities are kept.

    `Y` becomes three equal channels.
    """
    values = view_image(layout, data)
    colours = 3 if layout.channels[0] == "R" else 1
    colour = _as_float(values[..., :colours], layout.format)
    if layout.premultiplied:
        alpha = _as_float(values[..., colours:], layout.format)  # (H, W, 1)
        with np.errstate(all="ignore"):
            np.divide(colour, alpha, out=colour, where=np.isfinite(alpha) & (alpha > 0))
    return colour if colours == 3 else np.repeat(colour, 3, axis=2)


def read_mask(layout: ImageLayout, data: Bytes, channel: str, frame: int) -> FloatArray:
    """One channel as a mask: float32 (height, width) in [0, 1].

    Raises:
        RequestError: code `mask`, when a value is NaN or infinite.
    """
    values = view_image(layout, data)[..., layout.channels.index(channel)]
    mask = _as_float(values, layout.format)
    if not np.isfinite(mask).all():
        raise RequestError(
            "mask",
            "The mask has values that are not numbers.",
            frame=frame,
            hint="Check the input of the mask.",
        )
    return np.clip(mask, 0.0, 1.0)


def write_mattes(
    mattes: list[FloatArray],
    channels: tuple[str, ...],
    window: Rectangle,
    pixel_format: MattePixels,
    rows: Rows,
) -> tuple[ImageLayout, memoryview]:
    """Mattes, each (height, width) over `window`, as tight planes of bytes and their description."""
    width, height = window[2:]
    dtype = _DTYPES[pixel_format]
    stride = width * dtype.itemsize
    if stride * height * len(mattes) > MAX_PAYLOAD:
        raise RequestError("bad_request", "get_matte: the window is too large for one message.")
    planes = np.empty((len(mattes), height, width), dtype)
    for plane, matte in zip(planes, mattes, strict=True):
        plane[...] = matte if rows == "down" else matte[::-1]
    layout = ImageLayout(
        format=pixel_format,
        channels=channels,
        data_window=window,
        layout="planar",
        offset=0 if rows == "down" else (height - 1) * stride,
        row_bytes=stride if rows == "down" else -stride,
        plane_bytes=height * stride,
    )
    return layout, planes.reshape(-1).view(np.uint8).data
