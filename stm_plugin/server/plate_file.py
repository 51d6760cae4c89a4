"""A plate frame that the engine reads from the plate's own file, for a host that would send the same values.

The values are stored as float32, like those of a host that renders the picture. So the content is the same
either way, and no result depends on the way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stm_plugin.protocol import PushPlate
from stm_plugin.server.backend import PushedFrame
from stm_plugin.windows import Window

_TIME_CODE = "smpte:TimeCode"


def read_plate_file(request: PushPlate) -> PushedFrame:
    """The frame in the file at `path`: R, G and B of its main picture.

    Raises:
        RequestError: the path is not absolute. PlateError: the file is missing, damaged, or has no picture.
    """
    from stm_plugin.images.picture_file import opened_picture, read_pixels  # loads OpenImageIO

    path = Path(request.path or "")
    if not path.is_absolute():
        raise request.refusal("path must be absolute")
    with opened_picture(path, request.frame, None, None) as (image, header):
        pixels = read_pixels(image, header, request.frame, path)
    metadata = dict(request.metadata)
    time_code = header.spec.get_string_attribute(_TIME_CODE)
    if time_code:
        metadata[_TIME_CODE] = time_code
    return PushedFrame(
        frame=request.frame,
        pixels=pixels.astype(np.float32),
        data_window=_rectangle(header.data_window),
        display_window=_rectangle(header.display_window),
        pixel_aspect=header.pixel_aspect,
        digest=request.digest,
        metadata=metadata,
    )


def _rectangle(window: Window) -> tuple[int, int, int, int]:
    return window.x, window.y, window.width, window.height
