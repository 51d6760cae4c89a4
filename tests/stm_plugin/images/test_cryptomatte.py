"""Ids are those of the Cryptomatte specification, and lead back to the names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_plugin.images.cryptomatte import LAYER, channels, metadata, murmur3_32, object_id
from stm_plugin.images.matte import write_matte
from stm_plugin.images.plate import PlateFrame
from stm_plugin.windows import FloatArray, Window


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0x00000000),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"\x21\x43\x65", 0, 0x7E4A8634),
        (b"\x21\x43", 0, 0xA0F7B07A),
        (b"\x21", 0, 0x72661CF4),
        (b"\0\0\0\0", 0, 0x2362F9DE),
        (b"hello, world", 0, 0x149BBB7F),
        (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    ],
)
def test_the_hash_gives_the_published_values(data: bytes, seed: int, expected: int) -> None:
    assert murmur3_32(data, seed) == expected


@given(st.text())
def test_every_id_is_a_proper_float(name: str) -> None:
    value = np.array([object_id(name)], np.uint32).view(np.float32)[0]
    assert np.isfinite(value) and abs(value) >= np.finfo(np.float32).tiny


def test_each_pixel_lists_its_objects_most_coverage_first() -> None:
    mattes: dict[str, FloatArray] = {
        "hero": np.array([[1.0, 0.25, 0.0]], np.float32),
        "dog": np.array([[0.0, 0.75, 0.0]], np.float32),
        "hat": np.array([[0.0, 0.0, 0.0]], np.float32),
    }
    found = channels(mattes)
    assert list(found) == [f"{LAYER}{rank:02d}.{letter}" for rank in (0, 1) for letter in "RGBA"]

    def names(channel: str) -> list[str | None]:
        by_id = {object_id(name): name for name in mattes}
        return [by_id.get(int(one)) for one in found[f"{LAYER}{channel}"].view(np.uint32)[0]]

    assert names("00.R") == ["hero", "dog", None] and found[f"{LAYER}00.G"].tolist() == [[1.0, 0.75, 0.0]]
    assert names("00.B") == [None, "hero", None] and found[f"{LAYER}00.A"].tolist() == [[0.0, 0.25, 0.0]]
    assert not any(found[f"{LAYER}01.{letter}"].any() for letter in "RGBA")


def test_a_file_holds_whole_ids_beside_half_float_mattes_and_names_them(tmp_path: Path) -> None:
    window = Window(-2, 3, 8, 4)
    plate_frame = PlateFrame(1001, None, np.zeros((4, 8, 3), np.float16), window, Window(0, 0, 6, 8))
    left = np.zeros((4, 8), np.float32)
    left[:, :5] = 1.0
    write_matte(tmp_path / "m.exr", {"hero": left, "dog's": 1 - left}, plate_frame, with_ids=True)
    with OpenEXR.File(str(tmp_path / "m.exr"), separate_channels=True) as file:
        found = {name: channel.pixels for name, channel in file.channels().items()}
        header = dict(file.header())
    assert found["A"].dtype == found["hero.A"].dtype == np.float16
    assert found[f"{LAYER}00.R"].dtype == np.float32
    assert np.array_equal(
        found[f"{LAYER}00.R"].view(np.uint32), np.where(left > 0, object_id("hero"), object_id("dog's"))
    )
    assert np.array_equal(found[f"{LAYER}00.G"], np.ones((4, 8), np.float32))
    said = {name.rpartition("/")[2]: header[name] for name in header if name.startswith("cryptomatte/")}
    assert (said["name"], said["hash"], said["conversion"]) == (LAYER, "MurmurHash3_32", "uint32_to_float32")
    assert {name: int(text, 16) for name, text in json.loads(said["manifest"]).items()} == {
        name: object_id(name) for name in ("hero", "dog's")
    }
    (key,) = {name.split("/")[1] for name in metadata(("hero",))}
    assert key == f"{murmur3_32(LAYER.encode()):08x}"[:7]


def test_no_ids_are_written_unasked(tmp_path: Path) -> None:
    window = Window(0, 0, 2, 2)
    plate_frame = PlateFrame(1, None, np.zeros((2, 2, 3), np.float32), window, window)
    write_matte(tmp_path / "m.exr", {"a": np.ones((2, 2), np.float32)}, plate_frame)
    with OpenEXR.File(str(tmp_path / "m.exr"), separate_channels=True) as file:
        assert set(file.channels()) == {"A"}
