"""Pushed pictures give the same mattes as the same pictures in files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio
import pytest

from stm_plugin.protocol import SAMPLE_BYTES, ImageLayout, PixelFormat
from stm_plugin.server.pixels import read_plate


@pytest.mark.parametrize(("name", "count"), [("byte", 1 << 8), ("short", 1 << 16)])
def test_whole_numbers_become_the_floats_that_files_give(name: PixelFormat, count: int) -> None:
    values: npt.NDArray[Any] = np.arange(count, dtype=np.dtype(f"<u{SAMPLE_BYTES[name]}")).reshape(1, -1, 1)
    layout = ImageLayout(
        format=name,
        channels=("Y",),
        data_window=(0, 0, values.size, 1),
        layout="interleaved",
        row_bytes=values.nbytes,
    )
    from_host = read_plate(layout, memoryview(values.tobytes()))
    from_file = oiio.ImageBuf(values).get_pixels("float")
    assert from_file is not None
    np.testing.assert_array_equal(from_host[..., :1], from_file)
    assert from_host.max() == 1.0
