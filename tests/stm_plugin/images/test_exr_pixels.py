"""Pixels that OpenEXR compresses behind OpenImageIO's header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest

from stm_plugin.images import exr_pixels, writer
from stm_plugin.images.exr_pixels import is_plain_exr
from stm_plugin.images.writer import write_image


def spec_of(width: int, height: int, names: tuple[str, ...], compression: str = "zip:4") -> oiio.ImageSpec:
    spec = oiio.ImageSpec(width, height, len(names), oiio.HALF)
    spec.channelnames = names
    spec.attribute("compression", compression)
    spec.attribute("DateTime", "")
    spec.attribute("owner", "somebody")
    spec.attribute("smpte:TimeCode", oiio.TypeDesc("timecode"), (18356486, 4294967295))
    spec.attribute("framesPerSecond", oiio.TypeDesc("rational"), (24000, 1001))
    return spec


def soft_disc(width: int, height: int, channels: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    away = np.hypot(rows - height / 2, columns - width / 3)
    disc = np.clip((height / 3 - away) / 4, 0, 1)
    return np.stack([disc * (1 + channel) for channel in range(channels)], -1).astype(np.float16)


@pytest.mark.parametrize("compression", ["zip:4", "zip", "zips"])
@pytest.mark.parametrize(
    ("size", "names", "origin"),
    [
        ((67, 35), ("A",), (0, 0)),
        ((64, 48), ("A", "cup.a", "B.x"), (-5, 7)),
        ((3, 1), ("rgba.A",), (100, -9)),
        ((40, 200), ("A",), (3, -20)),  # several blocks of zeros
    ],
)
def test_the_file_is_the_one_that_openimageio_writes_byte_for_byte(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    size: tuple[int, int],
    names: tuple[str, ...],
    origin: tuple[int, int],
) -> None:
    spec = spec_of(*size, names, compression)
    spec.x, spec.y = origin
    pixels = soft_disc(*size, len(names))
    fast, slow = tmp_path / "fast.exr", tmp_path / "slow.exr"
    assert is_plain_exr(fast, spec, pixels)
    write_image(fast, spec, pixels, frame=None, durable=False)
    monkeypatch.setattr(writer, "is_plain_exr", lambda *_: False)
    write_image(slow, spec, pixels, frame=None, durable=False)
    assert fast.read_bytes() == slow.read_bytes()
    assert {one.name for one in tmp_path.iterdir()} == {"fast.exr", "slow.exr"}


def test_what_openexr_would_write_otherwise_is_left_to_openimageio(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.exr", soft_disc(8, 8, 1)
    assert not is_plain_exr(path, spec_of(8, 8, ("A",), "zip:9"), pixels)
    assert not is_plain_exr(path, spec_of(8, 8, ("A",), "dwaa:45"), pixels)
    assert not is_plain_exr(path, spec_of(8, 8, ("A",)), pixels.astype(np.float32))
    assert not is_plain_exr(path.with_suffix(".jpg"), spec_of(8, 8, ("A",)), pixels)


def test_a_file_of_pixels_that_was_cut_off_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exr_pixels._blocks_of

    def cut(beside: Path, blocks: int) -> list[memoryview]:
        beside.write_bytes(beside.read_bytes()[:-20])
        return whole(beside, blocks)

    monkeypatch.setattr(exr_pixels, "_blocks_of", cut)
    with pytest.raises(Exception, match="not written as a whole"):
        write_image(tmp_path / "a.exr", spec_of(67, 35, ("A",)), soft_disc(67, 35, 1), frame=1, durable=False)
    assert not list(tmp_path.iterdir())
