"""Mattes: a frame has the plate's windows and metadata, and its file is whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import OpenEXR
import OpenImageIO as oiio
import pytest

from stm_plugin.errors import MatteError
from stm_plugin.images import writer as images
from stm_plugin.images.mask import MaskPlace, MaskReading, read_mask
from stm_plugin.images.matte import channel_name, layer_names, read_matte, union_matte, write_matte
from stm_plugin.images.plate import Plate, PlateFrame
from stm_plugin.windows import FloatArray, Window

DATA = Window(-3, -2, 38, 27)
DISPLAY = Window(0, 0, 32, 24)


def frame_with(metadata: oiio.ImageSpec | None = None, aspect: float = 1.0) -> PlateFrame:
    pixels = np.zeros((DATA.height, DATA.width, 3), np.float32)
    return PlateFrame(1001, None, pixels, DATA, DISPLAY, aspect, metadata or oiio.ImageSpec())


def corners_of(window: Window) -> tuple[list[int], list[int]]:
    return [window.x, window.y], [window.right - 1, window.bottom - 1]


@pytest.fixture
def matte(rng: np.random.Generator) -> FloatArray:
    return np.clip(rng.uniform(-0.3, 1.3, (DATA.height, DATA.width)), 0, 1).astype(np.float32)


def test_another_reader_finds_the_matte_in_half_floats_with_the_plates_windows(
    tmp_path: Path, matte: FloatArray
) -> None:
    path = tmp_path / "new folder" / "m.1001.exr"
    write_matte(path, {"object1": matte}, frame_with(aspect=2.0))
    with OpenEXR.File(str(path)) as file:
        header, channels = file.header(), file.channels()
        assert list(channels) == ["A"]
        assert channels["A"].pixels.dtype == np.float16
        assert np.array_equal(channels["A"].pixels, matte.astype(np.float16))
        assert header["compression"] == OpenEXR.ZIP_COMPRESSION
        assert header["type"] == OpenEXR.scanlineimage
        assert [list(corner) for corner in header["dataWindow"]] == list(corners_of(DATA))
        assert [list(corner) for corner in header["displayWindow"]] == list(corners_of(DISPLAY))
        assert header["pixelAspectRatio"] == 2.0
        assert header["colorInteropID"] == "data"
    assert [entry.name for entry in path.parent.iterdir()] == ["m.1001.exr"]


def test_every_attribute_of_the_plate_is_kept(tmp_path: Path, matte: FloatArray) -> None:
    attributes = {
        "framesPerSecond": Fraction(24000, 1001),
        "keyCode": OpenEXR.KeyCode(1, 2, 3, 4, 5, 4, 64),
        "owner": "studio",
        "capDate": "2020:01:02 03:04:05",
        "isoSpeed": 800.0,
        "nuke/node_hash": "abc",
        "reelName": "A001",
        "imageCounter": 5,
        "worldToCamera": np.eye(4, dtype=np.float32) * 2,
        "window": (np.array([1, 2], np.int32), np.array([3, 4], np.int32)),
        "names": ["a", "b"],
        "screenWindowCenter": np.array([0.25, 0.5], np.float32),
    }
    first, last = corners_of(DATA)
    display_first, display_last = corners_of(DISPLAY)
    header = {
        "compression": OpenEXR.PIZ_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        "dataWindow": (np.array(first, np.int32), np.array(last, np.int32)),
        "displayWindow": (np.array(display_first, np.int32), np.array(display_last, np.int32)),
        "pixelAspectRatio": 2.0,
        "view": "left",
        "chromaticities": (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329),
        **attributes,
    }
    plate = tmp_path / "p.1001.exr"
    with OpenEXR.File(header, {"RGB": np.zeros((DATA.height, DATA.width, 3), np.float16)}) as file:
        file.write(str(plate))
    frame = Plate.open(plate).read(1001)
    frame.metadata.attribute("smpte:TimeCode", oiio.TypeTimeCode, (0x10203004, 0))
    extra: dict[str, str | int | float] = {
        "stm:weights": "stm-lite",
        "stm:frame": 1001,
        "stm:confidence": 0.5,
    }
    write_matte(tmp_path / "m.1001.exr", {"object1": matte}, frame, metadata=extra)
    with OpenEXR.File(str(tmp_path / "m.1001.exr")) as file:
        written = dict(file.header())
    with OpenEXR.File(str(plate)) as file:
        source = dict(file.header())
    for name in [*attributes, "dataWindow", "displayWindow", "pixelAspectRatio"]:
        assert str(written[name]) == str(source[name]), name
    assert str(written["timeCode"]).startswith("(10, 20, 30, 4")
    for name, value in extra.items():
        assert written[name] == value
    assert not {"view", "chromaticities", "multiView"} & set(written), "what describes the plate's own pixels"


def test_a_plate_of_many_parts_gives_a_plain_matte(tmp_path: Path, shared_data: Path) -> None:
    for kind in ("singlepart", "multipart"):
        plate = Plate.open(shared_data / "clips" / "beachball" / f"{kind}.####.exr", view="left")
        frame = plate.read(1)
        ramp = np.linspace(0, 1, frame.data_window.width, dtype=np.float32)
        matte = np.tile(ramp, (frame.data_window.height, 1))
        write_matte(tmp_path / f"{kind}.exr", {"ball": matte}, frame, metadata={"stm:key": 1})
        with OpenEXR.File(str(tmp_path / f"{kind}.exr")) as file:
            assert len(file.parts) == 1
            assert list(file.channels()) == ["A"]
            header = dict(file.header())
        assert "multiView" not in header
        assert [list(corner) for corner in header["dataWindow"]] == list(corners_of(frame.data_window))
        assert [list(corner) for corner in header["displayWindow"]] == [[0, 0], [2047, 1555]]


def test_several_objects_get_a_layer_each_and_their_union(tmp_path: Path, matte: FloatArray) -> None:
    rest = (1 - matte) * 0.75
    path = tmp_path / "m.exr"
    write_matte(path, {"Anna's hat": matte, "chair": rest}, frame_with())
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels.astype(np.float32) for name, channel in file.channels().items()}
    assert set(channels) == {"A", "Anna_s_hat.A", "chair.A"}
    assert np.abs(channels["A"] - (matte + rest)).max() <= 1e-3
    assert np.array_equal(channels["chair.A"], rest.astype(np.float16).astype(np.float32))
    again = read_mask(path, MaskPlace(DATA, DISPLAY), MaskReading(mode="layers"))
    assert np.array_equal(again.objects["chair"], channels["chair.A"]), "a matte can be a mask again"


def test_objects_that_share_a_pixel_cover_it_together() -> None:
    half = np.full((2, 2), 0.5, np.float32)
    assert np.array_equal(union_matte([half, half]), np.ones((2, 2), np.float32))
    assert union_matte([half, half, half]).max() == 1


@pytest.mark.parametrize(
    ("channel", "written"),
    [("A", "A"), ("rgba.alpha", "A"), ("alpha", "A"), ("a", "A"), ("rgba.red", "R"), ("matte.a", "matte.a")],
)
def test_the_channel_can_be_chosen(tmp_path: Path, matte: FloatArray, channel: str, written: str) -> None:
    assert channel_name(channel) == written
    write_matte(tmp_path / "m.exr", {"object1": matte}, frame_with(), channel=channel)
    with OpenEXR.File(str(tmp_path / "m.exr"), separate_channels=True) as file:
        assert list(file.channels()) == [written]


def test_layer_names_are_safe_in_nuke_and_all_different() -> None:
    names = ["person", "Person", "mask", "depth", "2nd", "a.b", "a b", "", "élan"]
    layers = layer_names(names)
    assert list(layers) == names
    assert layers["mask"] == "mask_matte"
    assert layers["2nd"] == "object_2nd"
    assert len({layer.lower() for layer in layers.values()}) == len(names)
    for layer in layers.values():
        assert layer.isascii()
        assert layer.isidentifier()


def test_reading_back_gives_what_was_written(tmp_path: Path, matte: FloatArray) -> None:
    path = tmp_path / "m.1001.exr"
    write_matte(path, {"a": matte, "b": 1 - matte}, frame_with(aspect=2.0), metadata={"stm:weights": "x"})
    back = read_matte(path)
    assert set(back.channels) == {"A", "a.A", "b.A"}
    assert np.array_equal(back.channels["a.A"], matte.astype(np.float16).astype(np.float32))
    assert (back.data_window, back.display_window, back.pixel_aspect) == (DATA, DISPLAY, 2.0)
    assert back.metadata.get_string_attribute("stm:weights") == "x"


def test_equal_mattes_are_equal_files(tmp_path: Path, matte: FloatArray) -> None:
    for name in ("one.exr", "two.exr"):
        write_matte(tmp_path / name, {"object1": matte}, frame_with())
        with OpenEXR.File(str(tmp_path / name)) as file:
            assert "capDate" not in file.header(), "the time of writing is nowhere in the file"
    assert (tmp_path / "one.exr").read_bytes() == (tmp_path / "two.exr").read_bytes()


def test_values_are_clamped_and_nan_is_refused(tmp_path: Path, matte: FloatArray) -> None:
    wild = matte * 3 - 1
    write_matte(tmp_path / "m.exr", {"object1": wild}, frame_with())
    expected = np.clip(wild, 0, 1).astype(np.float16).astype(np.float32)
    assert np.array_equal(read_matte(tmp_path / "m.exr").channels["A"], expected)
    wild[3, 3] = np.nan
    with pytest.raises(MatteError, match=r"frame 1001, .*n\.exr: The matte of 'object1' holds values"):
        write_matte(tmp_path / "n.exr", {"object1": wild}, frame_with())


def test_wrong_mattes_are_refused_in_words(tmp_path: Path, matte: FloatArray) -> None:
    with pytest.raises(MatteError, match=r"has the shape \(5, 5\), but the data window is 38x27"):
        write_matte(tmp_path / "m.exr", {"x": np.zeros((5, 5), np.float32)}, frame_with())
    with pytest.raises(MatteError, match="no matte to write"):
        write_matte(tmp_path / "m.exr", {}, frame_with())
    with pytest.raises(MatteError, match="written as EXR"):
        write_matte(tmp_path / "m.png", {"x": matte}, frame_with())
    with pytest.raises(MatteError, match=r"'a\.A' is also that of an object"):
        write_matte(tmp_path / "m.exr", {"a": matte, "b": matte}, frame_with(), channel="a.A")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_a_named_error(tmp_path: Path, matte: FloatArray) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MatteError, match=r"frame 1001, .*m\.exr: "):
        write_matte(tmp_path / "file" / "m.exr", {"x": matte}, frame_with())
    (tmp_path / "folder.exr").mkdir()
    with pytest.raises(MatteError, match=r"frame 1001, .*folder\.exr: "):
        write_matte(tmp_path / "folder.exr", {"x": matte}, frame_with())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.exr"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind"
)
def test_a_read_only_folder_is_a_named_error(tmp_path: Path, matte: FloatArray) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        with pytest.raises(MatteError, match="folder cannot be written"):
            write_matte(folder / "m.exr", {"x": matte}, frame_with())
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "The folder cannot be written")]
)
def test_what_the_system_says_is_put_into_words_and_nothing_is_left(
    tmp_path: Path, matte: FloatArray, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MatteError, match=rf"frame 1001, .*m\.exr: {text}"):
        write_matte(tmp_path / "m.exr", {"x": matte}, frame_with())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the file size limit of POSIX")
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, matte: FloatArray, repository: Path
) -> None:
    path = tmp_path / "m.exr"
    write_matte(path, {"object1": matte}, frame_with())
    before = path.read_bytes()
    code = f"""
import resource, signal
import numpy as np
from pathlib import Path
from stm_plugin import images
from stm_plugin.errors import MatteError
from stm_plugin.images.matte import write_matte
from stm_plugin.images.plate import PlateFrame
from stm_plugin.windows import Window
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
window = Window(0, 0, 512, 512)
frame = PlateFrame(1007, None, np.zeros((512, 512, 3), np.float32), window, window)
noise = np.random.default_rng(1).random((512, 512), dtype=np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_matte(Path({str(path)!r}), {{"object1": noise}}, frame)
except MatteError as error:
    print(error)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    said = f"frame 1007, {path}: The file cannot be written: File too large"
    assert answer.stdout.startswith(said), answer.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.exr"]


def test_broken_and_missing_mattes_are_named_errors(tmp_path: Path, matte: FloatArray) -> None:
    path = tmp_path / "m.exr"
    with pytest.raises(MatteError, match=r"frame 7, .*m\.exr: The matte does not exist"):
        read_matte(path, frame=7)
    write_matte(path, {"object1": matte}, frame_with())
    content = path.read_bytes()
    for length in (0, 100, len(content) - 200):
        path.write_bytes(content[:length])
        with pytest.raises(MatteError, match=r"frame 7, .*m\.exr: The matte .*propagate this frame again"):
            read_matte(path, frame=7)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_file_that_the_library_lost_the_end_of_never_gets_its_name(
    tmp_path: Path, matte: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, but only closing the file would show it, and the library reports success."""
    path = tmp_path / "m.1001.exr"
    write_matte(path, {"object1": matte}, frame_with())
    before, whole = path.read_bytes(), images._write

    def cut_short(place: Path, spec: oiio.ImageSpec, pixels: FloatArray) -> None:
        whole(place, spec, pixels)
        data = place.read_bytes()
        place.write_bytes(data[: len(data) - len(data) // 3])

    monkeypatch.setattr(images, "_write", cut_short)
    with pytest.raises(MatteError, match=r"frame 1001, .*m\.1001\.exr: .*not written as a whole"):
        write_matte(path, {"object1": 1 - matte}, frame_with())
    monkeypatch.setattr(images, "probe_disk", lambda _: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(MatteError, match=r"disk is full.*Free some space"):
        write_matte(path, {"object1": 1 - matte}, frame_with())
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
