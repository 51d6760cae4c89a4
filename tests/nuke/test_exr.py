"""Uncompressed OpenEXR files, read and written by the standard library and compared with OpenImageIO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio
import pytest
from stm_nuke import exr

Pixels = npt.NDArray[np.float32]
DTYPES: dict[str, Any] = {"float": np.dtype("<f4"), "half": np.dtype("<f2")}


def plane(picture: exr.Picture, name: str) -> Pixels:
    height = picture.data_window[3]
    values = np.frombuffer(bytes(picture.planes[name]), DTYPES[picture.format])
    return values.reshape(height, -1).astype(np.float32)


def write_with_oiio(path: Path, pixels: Pixels, sample: str, compression: str) -> None:
    height, width, _ = pixels.shape
    spec = oiio.ImageSpec(width, height, 3, sample)
    spec.x, spec.y = -3, -2
    spec.full_width, spec.full_height = width - 6, height - 4
    spec.attribute("compression", compression)
    spec.attribute("PixelAspectRatio", 2.0)
    output = oiio.ImageOutput.create(str(path))
    assert output is not None, oiio.geterror()
    assert output.open(str(path), spec), output.geterror()
    assert output.write_image(pixels)
    output.close()


@pytest.mark.parametrize("sample", ["float", "half"])
@pytest.mark.parametrize("compression", ["none", "zips", "zip"])
def test_every_value_and_window_of_a_file_comes_out_as_it_went_in(
    tmp_path: Path, rng: np.random.Generator, sample: str, compression: str
) -> None:
    pixels = (rng.standard_normal((37, 23, 3)) * 40).astype(np.float32)
    pixels[3:9] = 0.25  # so that ZIP has something to do
    write_with_oiio(tmp_path / "a.exr", pixels, sample, compression)
    found = exr.read(tmp_path / "a.exr")
    assert found.format == sample
    assert found.data_window == (-3, -2, 23, 37)
    assert found.display_window == (0, 0, 17, 33)
    assert found.pixel_aspect == 2.0
    assert sorted(exr.channel_names(tmp_path / "a.exr")) == ["B", "G", "R"]
    for index, name in enumerate("RGB"):
        expected = pixels[..., index].astype(DTYPES[sample]).astype(np.float32)
        np.testing.assert_array_equal(plane(found, name), expected)


def test_what_is_written_is_read_by_openimageio_and_by_us_alike(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    values = {name: rng.random((5, 7), np.float32) for name in ("hero", "chair.A")}
    picture = exr.Picture(
        "float", {name: one.tobytes() for name, one in values.items()}, (-1, 2, 7, 5), (0, 0, 10, 10), 1.5
    )
    exr.write(tmp_path / "masks" / "m.exr", picture)
    buffer = oiio.ImageBuf(str(tmp_path / "masks" / "m.exr"))
    spec = buffer.spec()
    assert (spec.x, spec.y, spec.width, spec.height) == (-1, 2, 7, 5)
    assert (spec.full_width, spec.full_height) == (10, 10)
    pixels = buffer.get_pixels("float")
    assert pixels is not None
    for index, name in enumerate(spec.channelnames):
        np.testing.assert_array_equal(pixels[..., index], values[name])
        np.testing.assert_array_equal(plane(exr.read(tmp_path / "masks" / "m.exr"), name), values[name])


@pytest.mark.parametrize("kept", [2, 60, 300, -1])
def test_a_truncated_file_is_an_error_that_names_it(
    tmp_path: Path, rng: np.random.Generator, kept: int
) -> None:
    write_with_oiio(tmp_path / "a.exr", rng.random((20, 20, 3), np.float32), "float", "none")
    (tmp_path / "cut.exr").write_bytes((tmp_path / "a.exr").read_bytes()[:kept])
    with pytest.raises(exr.ExrError, match=r"OpenEXR|cut\.exr is damaged or truncated"):
        exr.read(tmp_path / "cut.exr")
    if 0 < kept < 300:
        with pytest.raises(exr.ExrError, match=r"OpenEXR|cut\.exr is damaged or truncated"):
            exr.channel_names(tmp_path / "cut.exr")


def test_a_compression_that_is_not_known_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    write_with_oiio(tmp_path / "a.exr", rng.random((40, 40, 3), np.float32), "half", "piz")
    with pytest.raises(exr.ExrError, match="compression is neither none nor ZIP"):
        exr.read(tmp_path / "a.exr")
