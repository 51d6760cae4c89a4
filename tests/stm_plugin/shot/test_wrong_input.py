"""Faults of the artist's files are reported: no input silently gives a wrong matte."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import OpenEXR
import OpenImageIO as oiio
import pytest
from PIL import Image

from stm_plugin.errors import MaskError, MatteError, OutputError, PlateError, SettingsError, StmError
from stm_plugin.images import movie as movies
from stm_plugin.images.mask import AS_FOUND, MaskPlace, MaskReading, read_mask
from stm_plugin.images.movie import index_movie, is_damage
from stm_plugin.images.overlay import OverlayWriter
from stm_plugin.images.plate import Plate
from stm_plugin.images.sequence import output_sequence, parse_sequence
from stm_plugin.propagation.events import Event, PlateChanged
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.opening import check_frames, masks_of_arrays
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray, Window
from tests.conftest import PlateMaker, write_exr, write_image
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")
FRAMES = range(1001, 1007)
CANVAS = Window(0, 0, 64, 48)


def square(value: float = 1.0) -> FloatArray:
    values = np.zeros((48, 64), np.float32)
    values[12:36, 12:36] = value
    return values


def read(path: Path, reading: MaskReading = AS_FOUND) -> dict[str, FloatArray]:
    return dict(read_mask(path, MaskPlace(CANVAS, CANVAS), reading, frame=1001).objects)


# ---- masks ----


def test_a_deep_picture_is_no_mask(tmp_path: Path) -> None:
    spec = oiio.ImageSpec(64, 48, 2, "half")
    spec.channelnames = ("A", "Z")
    spec.channelformats = (oiio.HALF, oiio.FLOAT)
    spec.deep = True
    deep = oiio.DeepData()
    deep.init(64 * 48, 2, (oiio.HALF, oiio.FLOAT), ("A", "Z"))
    path = tmp_path / "deep.exr"
    output = oiio.ImageOutput.create(str(path))
    assert output is not None and output.open(str(path), spec), oiio.geterror()
    assert output.write_deep_image(deep), output.geterror()
    assert output.close()
    with pytest.raises(MaskError, match=r"frame 1001, .*deep\.exr: Deep"):
        read(path)
    with pytest.raises(MaskError, match="Deep"):
        read(path, MaskReading(mode="layers"))


@pytest.mark.parametrize("most", [255.0, 65535.0, 2.0, -1.0])
def test_a_float_mask_of_another_scale_is_refused(tmp_path: Path, most: float) -> None:
    path = write_image(tmp_path / "m.exr", square(most)[..., None], "float", channels=("A",))
    with pytest.raises(MaskError, match=r"frame 1001, .*m\.exr: The mask's values go from .*0 to 1"):
        read(path)
    with pytest.raises(MaskError, match="chair: The mask's values"):
        masks_of_arrays({"chair": square(most)}, CANVAS, CANVAS, frame=1001, allow_empty=False)


def exr_of_integers(path: Path, values: FloatArray) -> Path:
    channel = OpenEXR.Channel(values.astype(np.uint32))
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Y": channel}) as file:
        file.write(str(path))
    return path


def test_identifiers_in_an_exr_are_labels_whatever_their_value(tmp_path: Path) -> None:
    """They were read as parts of 4,294,967,295: an object that nobody sees."""
    for label in (1, 7, 200, (1 << 24) - 1):
        found = read(exr_of_integers(tmp_path / "ids.exr", square(label)))
        assert np.array_equal(found[f"object{label}"], square())
    with pytest.raises(
        MaskError, match=r"frame 1001, .*ids\.exr: The mask has the label 1\d+, but labels go up to"
    ):
        read(exr_of_integers(tmp_path / "ids.exr", square(1 << 24)))


@pytest.mark.parametrize("most", [1 / 255, 1e-9])
def test_a_mask_that_nobody_can_see_is_refused(tmp_path: Path, most: float) -> None:
    path = write_image(tmp_path / "m.exr", square(most)[..., None], "float", channels=("A",))
    with pytest.raises(MaskError, match=r"frame 1001, .*m\.exr: The mask is almost empty: no value is above"):
        read(path)


@pytest.mark.parametrize(("width", "height", "colours"), [(20000, 10000, 3), (20000, 10000, 0)])
def test_a_mask_of_another_size_is_refused_before_its_pixels_fill_the_memory(
    tmp_path: Path, width: int, height: int, colours: int
) -> None:
    """A few bytes may state any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, colours, 0, 0, 0))
    palette = chunk(b"PLTE", bytes([0, 0, 0, 255, 0, 0])) if colours else b""
    body = chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    path = tmp_path / "m.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + palette + body)
    with pytest.raises(MaskError, match=rf"m\.png: The mask is {width}x{height}, but the plate"):
        read(path)
    if colours:
        whole = Window(0, 0, width, height)
        with pytest.raises(MaskError, match="palette must not be so large"):
            read_mask(path, MaskPlace(whole, whole))


def test_a_picture_with_lab_colours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.1.tif"
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8), "LAB").save(path)
    with pytest.raises(MaskError, match=r"lab\.1\.tif: The mask holds L\*a\*b"):
        read(path)
    with pytest.raises(PlateError, match=r"frame 1, .*lab\.1\.tif: The picture holds L\*a\*b"):
        Plate.open(path)


def test_a_mask_that_overshoots_a_little_is_clamped(tmp_path: Path) -> None:
    path = write_image(tmp_path / "m.exr", square(1.25)[..., None], "float", channels=("A",))
    assert read(path)["object1"].max() == 1


@pytest.mark.parametrize(
    ("name", "words"), [("", "empty"), ("  ", "empty"), ("a" * 201, "201"), ("a\nb", "shown")]
)
def test_a_name_that_no_object_can_have_is_refused(tmp_path: Path, name: str, words: str) -> None:
    path = write_image(tmp_path / "m.exr", square()[..., None], channels=("A",))
    with pytest.raises(MaskError, match=words):
        read(path, MaskReading(objects=[name]))
    with pytest.raises(MaskError, match=words):
        masks_of_arrays({name: square()}, CANVAS, CANVAS, frame=1001, allow_empty=False)


@pytest.mark.parametrize("channel", ["a" * 300, "ä" * 128, "a b", "a\x00"])
def test_a_channel_name_that_no_exr_takes_is_refused(channel: str) -> None:
    with pytest.raises(SettingsError, match="channel name"):
        Settings(channel=channel)


@pytest.mark.parametrize("damage", ["altered", "truncated", "gone"])
def test_a_damaged_key_mask_is_named_with_its_frame_its_file_and_what_mends_it(
    make_plate: PlateMaker, tmp_path: Path, damage: str
) -> None:
    plate, network = make_plate(frames=range(1001, 1004)), CountingNetwork()
    with Shot.create(
        tmp_path / "a", PlateDescription("files", plate), SETTINGS, network=network.factory
    ) as shot:
        shot.add_key(1002, tmp_path / "plate.mask.1002.png")
        shot.propagate()
        before = shot.matte(1002).mattes["object1"]
        file = next((shot.folder / "keys").glob("*.mask"))
        data = file.read_bytes()
        broken = {"altered": data[:-1] + bytes([data[-1] ^ 1]), "truncated": data[:-9]}
        file.write_bytes(broken[damage]) if damage in broken else file.unlink()
        shot.clean()
        for ask in (shot.propagate, partial(shot.matte, 1002)):
            with pytest.raises(MaskError, match=r"damaged|gone") as refused:
                ask()
            assert (refused.value.frame, refused.value.path) == (1002, str(file))
        command = re.search(r"`stm shot key add (\S+) 1002 (\S+)`", refused.value.hint or "")
        assert command is not None and Path(command[1]) == shot.folder
        shot.add_key(1002, Path(command[2]))
        shot.propagate()
        assert np.array_equal(shot.matte(1002).mattes["object1"], before)


# ---- plates ----


@pytest.mark.parametrize(
    ("origin", "display"),
    [((0, 0), (0, 0, 1_000_000, 1_000_000)), ((0, 0), (0, 0, 60_000, 60_000)), ((900_000, 0), (0, 0, 8, 8))],
)
def test_windows_that_no_memory_holds_are_refused(
    tmp_path: Path, origin: tuple[int, int], display: tuple[int, int, int, int]
) -> None:
    """A damaged header, or a picture that was moved far away."""
    path = tmp_path / "p.1.exr"
    write_exr(path, np.zeros((8, 8, 3), np.float32), origin=origin, display=display)
    with pytest.raises(PlateError, match=r"frame 1, .*p\.1\.exr: .*which cannot be used.*header"):
        Plate.open(path)


def test_data_windows_that_are_far_from_each_other_are_refused(tmp_path: Path) -> None:
    for frame, place in ((1, -40_000), (2, 40_000)):
        path = tmp_path / f"p.{frame}.exr"
        write_exr(path, np.zeros((8, 8, 3), np.float32), origin=(place, 0), display=(0, 0, 8, 8))
    with pytest.raises(PlateError, match=r"80008x8 pixels, which cannot be used"):
        Plate.open(tmp_path / "p.#.exr")


def test_a_view_that_the_plate_does_not_have_is_refused(make_plate: PlateMaker, tmp_path: Path) -> None:
    plate = make_plate(frames=range(1001, 1003))
    with pytest.raises(PlateError, match=r"no view 'nope'.*%V"):
        Plate.open(plate, view="nope")
    for frame in (1, 2):
        write_exr(tmp_path / f"eye.left.{frame}.exr", np.zeros((8, 8, 3), np.float32))
    assert Plate.open(tmp_path / "eye.%V.#.exr", view="left").frames == (1, 2)


@pytest.mark.parametrize("name", ["m.%0999999999d.exr", "m.%021d.exr", "m.$F99999.exr", f"m.{'#' * 21}.exr"])
def test_a_padding_without_sense_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MatteError, match="more than 20 digits"):
        output_sequence(tmp_path / name)
    with pytest.raises(PlateError, match="more than 20 digits"):
        parse_sequence(tmp_path / name)


def test_an_output_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MatteError, match="not valid text"):
        output_sequence(tmp_path / os.fsdecode(b"o\xff") / "m.####.exr")


def test_a_plate_of_one_frame_is_not_said_to_have_frames(make_plate: PlateMaker) -> None:
    plate = Plate.open(make_plate(frames=range(1001, 1002)))
    with pytest.raises(PlateError, match="It has frame 1001 only"):
        check_frames(plate, (1001, 1002))


# ---- movies ----


def movie(path: Path) -> Path:
    rng = np.random.default_rng(3)
    with OverlayWriter(path) as writer:
        for frame in range(12):
            picture = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) // 4
            picture[20:60, 10 + 3 * frame : 50 + 3 * frame] += 120
            writer.write(frame, picture)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_movie_that_the_decoder_complains_of_is_refused_with_the_frame(tmp_path: Path, name: str) -> None:
    whole = movie(tmp_path / name)
    assert index_movie(whole).count == 12
    data, rng = bytearray(whole.read_bytes()), random.Random(5)
    for place in rng.sample(range(len(data) // 4, len(data) // 4 * 3), 60):
        data[place] ^= 1 << rng.randrange(8)
    broken = tmp_path / f"broken{name}"
    broken.write_bytes(data)
    said = r"broken.*(Frame \d+ of the movie is damaged \(the decoder says|states 12)"
    with pytest.raises(PlateError, match=said):
        Plate.open(broken)


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (16, "slice CRC mismatch ACAF45CD!at 458"),
        (16, "slice end not reached but screenspace end (126 left B58B58, score= -3)"),
        (16, "The cu_qp_delta 109 is outside the valid range [-26, 25]."),
        (16, "Could not find ref with POC 12"),
        (24, "corrupt decoded frame"),
        (32, "concealing 183 DC, 183 AC, 183 MV errors in B frame"),
    ],
)
def test_what_the_decoder_patches_up_is_damage_whatever_it_calls_it(level: int, line: str) -> None:
    assert is_damage(level, line)


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (16, "mmco: unref short failure"),
        (16, "co located POCs unavailable"),
        (24, "deprecated pixel format used, make sure you did set range correctly"),
        (24, "st: 0 edit list: 1 Missing key frame while searching for timestamp: 1000"),
        (32, "Reinit context to 240x432, pix_fmt: yuvj420p"),
        (48, "detected corrupt or not"),
    ],
)
def test_what_healthy_movies_make_the_decoder_say_is_no_damage(level: int, line: str) -> None:
    assert not is_damage(level, line)


def test_a_frame_that_is_lost_in_the_middle_of_a_movie_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container announces one frame more than it has, and the times leave room for it."""
    path = movie(tmp_path / "a.mp4")
    walked = movies._walked(path, threads=1)
    walked["times"].pop(4)
    monkeypatch.setattr(movies, "_walked", lambda path, threads: walked)
    with pytest.raises(PlateError, match="states 12 frames but holds 11: frame 5 is missing"):
        index_movie(path)


def test_a_movie_whose_frames_come_unevenly_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames are counted one by one; a host that counts them by time gives them other numbers."""
    path = movie(tmp_path / "a.mp4")
    assert Plate.open(path).remark == ""
    walked = movies._walked(path, threads=1)
    walked["times"][6:] = [time + 200.0 for time in walked["times"][6:]]
    monkeypatch.setattr(movies, "_walked", lambda path, threads: walked)
    os.utime(path, ns=(1, 1))
    plate = Plate.open(path)
    assert plate.frames == tuple(range(1, 13))
    assert "do not come at a constant rate" in plate.remark


@pytest.mark.skipif(os.name != "posix", reason="elsewhere FFmpeg tells no levels")
def test_mere_information_of_the_decoder_is_heard(tmp_path: Path) -> None:
    """FFmpeg logs concealed errors as information, so the check reads that level."""
    program = Path(movies.__file__).with_name("movie_walk.py")
    said = subprocess.run(
        [sys.executable, "-I", "-c", LISTENING, str(program), str(movie(tmp_path / "a.avi"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["32", "information"]


LISTENING = """
import ctypes, runpy, sys
walker = runpy.run_path(sys.argv[1])
walk = walker["walk"]
capture = walker["cv2"].VideoCapture
library = ctypes.CDLL(None)

def spoken(*words):
    library.printf(b"[OPENCV:FFMPEG:32] information\\n")
    return capture(*words)

import os
answer = os.dup(1)
walker["cv2"].VideoCapture = spoken
((frame, level, text),) = walk(sys.argv[2], 1)["complaints"]
os.write(answer, f"{level} {text}".encode())
"""


# ---- plates that change ----

Walk = Callable[[], list[int]]


@pytest.fixture
def shot(make_plate: PlateMaker, tmp_path: Path) -> Shot:
    network = CountingNetwork()
    plate = PlateDescription("files", make_plate(frames=FRAMES, attributes={"compression": "none"}))
    made = Shot.create(tmp_path / "chair", plate, SETTINGS, network=network.factory)
    made.add_key(1001, {"chair": square()})
    made.propagate()
    return made


def mattes(shot: Shot) -> dict[int, FloatArray]:
    return {frame: shot.matte(frame).mattes["chair"] for frame in FRAMES}


def test_frames_that_were_renumbered_are_noticed(shot: Shot, tmp_path: Path) -> None:
    same = (1_700_000_000_000_000_000,) * 2
    for frame in FRAMES:
        os.utime(tmp_path / f"plate.{frame}.exr", ns=same)
    shot.propagate()
    before = mattes(shot)
    swapped = {1003: 1004, 1004: 1003}
    for frame in swapped:
        (tmp_path / f"plate.{frame}.exr").rename(tmp_path / f"away.{frame}.exr")
    for frame, other in swapped.items():
        (tmp_path / f"away.{frame}.exr").rename(tmp_path / f"plate.{other}.exr")
    assert shot.status().network_frames > 0
    shot.propagate()
    assert not np.array_equal(mattes(shot)[1003], before[1003])


def test_a_frame_that_was_edited_in_place_with_its_time_restored_is_noticed(
    shot: Shot, tmp_path: Path
) -> None:
    path = tmp_path / "plate.1004.exr"
    other, status = (tmp_path / "plate.1002.exr").read_bytes(), path.stat()
    with path.open("r+b") as stream:
        stream.write(other)
        stream.truncate()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shot.status().network_frames > 0


def test_a_hard_link_changes_no_plate_and_is_no_output(shot: Shot, tmp_path: Path) -> None:
    before = tmp_path.joinpath("plate.1003.exr").read_bytes()
    linked = tmp_path / "linked.1003.exr"
    os.link(tmp_path / "plate.1003.exr", linked)
    why = shot.plan().words()
    assert "touched on 1003" in why and "changed" not in why
    with pytest.raises(OutputError, match=r"would overwrite the plate.*plate\.1003"):
        shot.export(MatteWriter(str(tmp_path / "linked.####.exr"), shot.plate, overwrite=True))
    shot.export(MatteWriter(str(tmp_path / "out" / "m.####.exr"), shot.plate))
    assert shot.status().network_frames == 0
    assert linked.read_bytes() == before
    assert len(list((tmp_path / "out").glob("m.*.exr"))) == len(FRAMES)


def test_after_a_surprise_every_frame_is_looked_at_again(
    shot: Shot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without useful time stamps: two frames change, one is found, then the other."""
    for module in ("frame_loader", "propagation"):
        monkeypatch.setattr(f"stm_plugin.propagation.{module}.signature_of", lambda plate, frame: f"{frame}")
    shot.close()
    shot.store.forget_plate()
    shot.propagate()
    shot.clean(results=False)
    content = (tmp_path / "plate.1001.exr").read_bytes()
    for frame in (1002, 1005):
        (tmp_path / f"plate.{frame}.exr").write_bytes(content)
    shot.close()
    events: list[Event] = []
    shot.add_key(1006, {"chair": square()})
    shot.propagate(on_event=events.append)
    assert any(isinstance(event, PlateChanged) for event in events)
    known = shot.store.plate_index.load()
    hashes = {frame: known[frame]["hash"] for frame in FRAMES}
    assert hashes[1002] == hashes[1001] == hashes[1005]


# ---- settings ----


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour_space": "nope"}, "no colour space 'nope'"),
        ({"ocio_config": "absent.ocio"}, "does not exist"),
        ({"ocio_config": "random.ocio"}, "cannot be used"),
        ({"weights": "nope"}, "no such weights"),
    ],
)
def test_a_shot_with_a_setting_that_cannot_be_used_is_not_made_and_a_made_one_keeps_its_own(
    values: dict[str, str],
    words: str,
    make_plate: PlateMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("random.ocio").write_bytes(random.randbytes(3000))
    plate = PlateDescription("files", make_plate(FRAMES))
    with pytest.raises(StmError, match=words):
        Shot.create(tmp_path / "new.stmshot", plate, Settings(**values))  # type: ignore[arg-type]
    assert not (tmp_path / "new.stmshot").exists()
    with Shot.create(tmp_path / "new.stmshot", plate) as shot:
        before = shot.settings
        with pytest.raises(StmError, match=words):
            shot.set_settings(replace(before, **values))  # type: ignore[arg-type]
        shot.refresh()
        assert shot.settings == before
