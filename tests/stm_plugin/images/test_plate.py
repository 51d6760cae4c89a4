"""Plates have the pixels, windows and metadata of the file; errors name the frame."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import OpenImageIO as oiio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm_plugin.errors import PlateError
from stm_plugin.images import picture_file
from stm_plugin.images.movie import rational_rate
from stm_plugin.images.picture_file import open_image, read_stored, reason_of
from stm_plugin.images.plate import Plate, PlateFrame
from stm_plugin.images.quiet import no_prints
from stm_plugin.windows import FloatArray, Window, place
from tests.conftest import write_image

PlateMaker = Callable[..., str]
TRUNCATED_KINDS = ["exr", "png", "jpg", "tif", "dpx"]


@pytest.fixture
def noise(rng: np.random.Generator) -> FloatArray:
    return rng.random((24, 32, 3), dtype=np.float32)


def test_an_exr_comes_back_bit_for_bit_with_its_windows(tmp_path: Path) -> None:
    values = np.array([0.0, -0.25, 1.5, 65504.0, np.nan, np.inf, -np.inf, 6e-8], np.float32)
    pixels = np.tile(values, (6, 1))[:, :, None].repeat(3, axis=2)
    write_image(
        tmp_path / "p.1001.exr",
        pixels,
        data=(-3, -2),
        display=(0, 0, 4, 3),
        attributes={"PixelAspectRatio": 2.0},
    )
    plate = Plate.open(tmp_path / "p.####.exr")
    frame = plate.read(1001)
    assert np.array_equal(frame.pixels, pixels.astype(np.float16).astype(np.float32), equal_nan=True)
    assert frame.data_window == Window(-3, -2, 8, 6) == plate.canvas
    assert frame.display_window == Window(0, 0, 4, 3) == plate.display_window
    assert frame.pixel_aspect == plate.pixel_aspect == 2.0
    assert frame.path == tmp_path / "p.1001.exr"


@pytest.mark.parametrize(
    ("name", "kind", "step"),
    [
        ("p.1.png", "uint8", 255),
        ("p.1.png", "uint16", 65535),
        ("p.1.tif", "uint16", 65535),
        ("p.1.tif", "float", 2**30),
        ("p.1.dpx", "uint16", 65535),
        ("p.1.exr", "float", 2**30),
        ("p.1.exr", "uint", 2**30),
    ],
)
def test_every_kind_of_file_gives_float_values(
    tmp_path: Path, noise: FloatArray, name: str, kind: str, step: int
) -> None:
    write_image(tmp_path / name, noise, kind)
    frame = Plate.open(tmp_path / name).read(1)
    assert frame.pixels.dtype == np.float32
    assert np.abs(frame.pixels - noise).max() <= 0.5 / step + 1e-6
    with_library = oiio.ImageBuf(str(tmp_path / name)).get_pixels(oiio.FLOAT)
    assert with_library is not None
    assert np.abs(frame.pixels - with_library).max() <= 1e-7


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "p.0007.jpg", np.full((16, 16, 3), 0.5, np.float32), "uint8")
    assert np.abs(Plate.open(tmp_path).read(7).pixels - 0.5).max() < 0.02


def test_one_channel_becomes_grey_and_alpha_is_left_out(tmp_path: Path, noise: FloatArray) -> None:
    write_image(tmp_path / "y.1.exr", noise[..., :1], channels=("Y",))
    grey = Plate.open(tmp_path / "y.1.exr").read(1).pixels
    assert grey.shape == (24, 32, 3)
    assert np.ptp(grey, axis=2).max() == 0
    rgba = np.concatenate([noise, np.full_like(noise[..., :1], 0.25)], axis=2)
    write_image(tmp_path / "a.1.exr", rgba, "float", channels=("R", "G", "B", "A"))
    assert np.array_equal(Plate.open(tmp_path / "a.1.exr").read(1).pixels, noise)
    write_image(tmp_path / "b.1.png", rgba, "uint16", attributes={"oiio:UnassociatedAlpha": 1})
    assert np.abs(Plate.open(tmp_path / "b.1.png").read(1).pixels - noise).max() < 1e-4


def test_channels_are_found_by_name_in_any_order(tmp_path: Path, noise: FloatArray) -> None:
    mixed = np.stack([noise[..., 2], noise[..., 0] * 9, noise[..., 1], noise[..., 0]], axis=2)
    write_image(tmp_path / "p.1.tif", mixed, "float", channels=("blue", "Z", "green", "red"))
    image = oiio.ImageBuf(str(tmp_path / "p.1.tif"))
    assert image.spec().nchannels == 4
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    channels = {
        "beauty.red": noise[..., 0].copy(),
        "beauty.green": noise[..., 1].copy(),
        "beauty.blue": noise[..., 2].copy(),
        "depth.Z": noise[..., 0] * 9,
    }
    with OpenEXR.File(header, channels) as file:
        file.write(str(tmp_path / "q.1.exr"))
    assert np.array_equal(Plate.open(tmp_path / "q.1.exr").read(1).pixels, noise)
    depth = Plate.open(tmp_path / "q.1.exr", layer="depth").read(1).pixels
    assert np.array_equal(depth, (noise[..., :1] * 9).repeat(3, axis=2))


@pytest.mark.parametrize("kind", ["singlepart", "multipart"])
def test_layers_and_views_of_single_part_and_multi_part_files(shared_data: Path, kind: str) -> None:
    text = shared_data / "clips" / "beachball" / f"{kind}.####.exr"
    plates = {view: Plate.open(text, view=view) for view in (None, "left", "right")}
    for plate in plates.values():
        assert plate.frames == (1, 2)
        assert plate.display_window == plate.canvas == Window(0, 0, 2048, 1556)
    frames = {view: plate.read(1) for view, plate in plates.items()}
    assert np.array_equal(frames[None].pixels, frames["right"].pixels), "the hero view is the right one"
    assert frames["left"].content_hash() != frames["right"].content_hash()
    canvas = plates[None].canvas
    masks = {
        view: Plate.open(text, layer="whitebarmask", view=view).read(2) for view in (None, "left", "right")
    }
    full = {view: place(mask.pixels, mask.data_window, canvas) for view, mask in masks.items()}
    assert np.array_equal(full[None], full["right"])
    assert 0 < np.abs(full["left"] - full["right"]).max() <= 1.0
    assert np.ptp(full["left"], axis=2).max() == 0


def test_single_part_and_multi_part_files_hold_the_same_picture(shared_data: Path) -> None:
    clip = shared_data / "clips" / "beachball"
    for view in ("left", "right"):
        both = [Plate.open(clip / f"{kind}.####.exr", view=view) for kind in ("singlepart", "multipart")]
        single, multi = (place(p.read(2).pixels, p.read(2).data_window, p.canvas) for p in both)
        assert np.array_equal(single, multi)


def test_an_unknown_layer_or_view_is_an_error_that_lists_what_there_is(shared_data: Path) -> None:
    text = shared_data / "clips" / "beachball" / "multipart.####.exr"
    with pytest.raises(PlateError, match=r"no layer 'beauty'\. Its layers are depth, rgba, whitebarmask"):
        Plate.open(text, layer="beauty")
    with pytest.raises(PlateError, match=r"no view 'centre'; its views are right, left"):
        Plate.open(text, view="centre")
    with pytest.raises(PlateError, match=r"layer 'forward' has the channels u, v, which are no picture"):
        Plate.open(text, layer="forward")


def test_luminance_and_chroma_files_are_refused_in_words(tmp_path: Path, noise: FloatArray) -> None:
    write_image(tmp_path / "p.1.exr", noise, channels=("Y", "RY", "BY"))
    with pytest.raises(PlateError, match=r"frame 1, .*p\.1\.exr: .*luminance and chroma"):
        Plate.open(tmp_path / "p.1.exr")


@pytest.mark.parametrize("kind", TRUNCATED_KINDS)
@pytest.mark.parametrize("part", [0.0, 0.2, 0.9])
def test_a_truncated_file_is_an_error_that_names_frame_and_file(
    tmp_path: Path, noise: FloatArray, kind: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (1001, 1002):
        write_image(tmp_path / f"p.{number}.{kind}", noise, "half" if kind == "exr" else "uint8")
    broken = tmp_path / f"p.1002.{kind}"
    content = broken.read_bytes()
    broken.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(PlateError) as caught:
        Plate.open(tmp_path / f"p.####.{kind}").read(1002)
    assert caught.value.frame == 1002
    assert caught.value.path == str(broken)
    assert caught.value.hint
    assert np.isfinite(
        Plate.open(tmp_path / f"p.####.{kind}", frame_range=(1001, 1001)).read(1001).pixels
    ).all()


def half_exr(path: Path, rng: np.random.Generator, compression: str, channels: str = "RGB") -> None:
    """A half-float picture of 70 lines whose data window does not begin at 0."""
    spec = oiio.ImageSpec(33, 70, len(channels), "half")
    spec.x, spec.y, spec.full_width, spec.full_height = -5, 3, 40, 80
    spec.channelnames = tuple(channels)
    spec.attribute("compression", compression)
    output = oiio.ImageOutput.create(str(path))
    assert output is not None and output.open(str(path), spec)
    assert output.write_image(rng.random((70, 33, len(channels)), dtype=np.float32).astype(np.float16))
    assert output.close()


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
@pytest.mark.parametrize("compression", ["none", "rle", "zip", "zips", "piz"])
def test_a_plain_exr_read_by_openexr_is_the_one_that_openimageio_reads(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    channels: str,
) -> None:
    half_exr(tmp_path / "p.1.exr", rng, compression, channels)
    image = open_image(tmp_path / "p.1.exr")
    assert image is not None
    wanted = read_stored(image, 0, (0, 1, 2))

    def forbidden(*given: object) -> None:
        raise AssertionError("read by OpenImageIO")

    monkeypatch.setattr(picture_file, "read_stored", forbidden)
    read = Plate.open(tmp_path / "p.#.exr").read(1)
    assert read.pixels.dtype == np.float16 and np.array_equal(read.pixels, wanted)
    assert read.data_window == Window(-5, 3, 33, 70)


def test_a_plain_exr_that_is_damaged_in_the_middle_is_a_named_error(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.1.exr"
    half_exr(path, rng, "zip")
    plate = Plate.open(tmp_path / "p.#.exr")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(PlateError, match="truncated or damaged") as told:
        plate.read(1)
    assert told.value.frame == 1 and str(path) in str(told.value)
    assert capsys.readouterr().out == "", "what a command prints is the command's alone"


def test_what_a_library_prints_is_dropped_in_its_thread_only(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with no_prints():
        print("of the library")
        other = threading.Thread(target=print, args=("of another thread",))
        other.start()
        other.join()
        with no_prints():
            print("of the library")
    print("after it")
    assert sys.stdout is before
    assert capsys.readouterr().out == "of another thread\nafter it\n"


def test_a_file_of_something_else_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "p.1.exr").write_text(
        "no picture at all, but long enough to be read as a header of something"
    )
    with pytest.raises(PlateError, match=r"frame 1, .*p\.1\.exr: The file cannot be opened"):
        Plate.open(tmp_path / "p.#.exr")


def test_why_a_file_cannot_be_opened_is_said_without_its_name_again(tmp_path: Path) -> None:
    (tmp_path / "p.1.exr").touch()
    with pytest.raises(PlateError, match="The file is empty: render or copy it again") as caught:
        Plate.open(tmp_path / "p.#.exr")
    assert str(caught.value).count("p.1.exr") == 1 and "EXR_ERR" not in str(caught.value)
    (tmp_path / "p.1.xyz").touch()
    open_image(tmp_path / "p.1.xyz")
    assert reason_of(oiio.geterror()) == "OpenImageIO cannot read this kind of file"


@pytest.mark.parametrize("kind", ["half", "float"])
def test_a_picture_without_a_number_is_refused_and_some_bad_pixels_are_kept(
    tmp_path: Path, kind: str
) -> None:
    pixels = np.full((70, 130, 3), np.nan, np.float32)
    path = write_image(tmp_path / "p.1001.exr", pixels, kind)
    with pytest.raises(PlateError, match=r"frame 1001.*holds no number.*Render it again"):
        Plate.open(path).read(1001)
    assert Plate.open(path).header(1001).data_window == Window(0, 0, 130, 70)
    pixels[3, 5, 1] = 0.5
    write_image(path, pixels, kind)
    read = Plate.open(path).read(1001).pixels
    assert np.isnan(read).sum() == pixels.size - 1 and read[3, 5, 1] == 0.5


def test_a_header_says_what_the_frame_says_without_its_pixels(make_plate: PlateMaker) -> None:
    plate = Plate.open(make_plate(overscan=4))
    header, frame = plate.header(1002), plate.read(1002)
    assert (header.frame, header.path, header.data_window) == (frame.frame, frame.path, frame.data_window)
    assert header.metadata.to_xml() == frame.metadata.to_xml()
    with pytest.raises(PlateError, match=r"frame 7.*not in the plate"):
        plate.header(7)


def test_a_missing_frame_is_an_error_and_never_black(make_plate: PlateMaker, tmp_path: Path) -> None:
    text = make_plate(frames=range(1001, 1006))
    (tmp_path / "plate.1003.exr").unlink()
    plate = Plate.open(text)
    assert plate.missing == (1003,)
    assert plate.read(1004).frame == 1004
    with pytest.raises(
        PlateError, match=r"frame 1003, .*plate\.1003\.exr: The file of this frame is missing"
    ):
        plate.read(1003)
    with pytest.raises(PlateError, match=r"frame 99.*not in the plate, which has 1001-1005"):
        plate.read(99)


def test_the_canvas_is_the_union_of_every_data_window(tmp_path: Path, noise: FloatArray) -> None:
    display = (0, 0, 40, 30)
    write_image(tmp_path / "p.1.exr", noise, data=(-5, 2), display=display)
    write_image(tmp_path / "p.2.exr", noise[:10], data=(15, 25), display=display)
    plate = Plate.open(tmp_path / "p.#.exr")
    assert plate.canvas == Window(-5, 0, 52, 35)
    second = plate.read(2)
    assert second.data_window == Window(15, 25, 32, 10)
    full = place(second.pixels, second.data_window, plate.canvas)
    assert full.shape == (35, 52, 3)
    assert np.array_equal(place(full, plate.canvas, second.data_window), second.pixels)
    assert full.sum() == pytest.approx(float(second.pixels.sum(dtype=np.float32)), rel=1e-5)


def test_a_change_of_format_in_mid_plate_is_a_named_error(tmp_path: Path, noise: FloatArray) -> None:
    write_image(tmp_path / "p.1.exr", noise)
    write_image(tmp_path / "p.2.exr", noise[:20])
    with pytest.raises(
        PlateError, match=r"frame 2, .*display window is 32x20 at \(0, 0\), but 32x24 .* frame 1"
    ):
        Plate.open(tmp_path / "p.#.exr")
    write_image(tmp_path / "p.2.exr", noise, attributes={"PixelAspectRatio": 2.0})
    with pytest.raises(PlateError, match=r"frame 2, .*pixel aspect is 2, but 1 on frame 1"):
        Plate.open(tmp_path / "p.#.exr")


@pytest.mark.parametrize("said", [0.0, -1.0, float("inf"), float("nan"), 4e9])
def test_a_senseless_pixel_aspect_is_taken_as_square(tmp_path: Path, noise: FloatArray, said: float) -> None:
    write_image(tmp_path / "p.1.dpx", noise, "uint8", attributes={"PixelAspectRatio": said})
    assert Plate.open(tmp_path / "p.1.dpx").pixel_aspect == 1.0


def test_a_file_that_changes_after_opening_is_an_error(tmp_path: Path, noise: FloatArray) -> None:
    write_image(tmp_path / "p.1.exr", noise)
    plate = Plate.open(tmp_path / "p.#.exr")
    write_image(tmp_path / "p.1.exr", noise, data=(4, 4), display=(0, 0, 32, 24))
    with pytest.raises(PlateError, match="the file has changed since the plate was opened"):
        plate.read(1)


def test_the_content_hash_knows_pixels_and_windows_and_nothing_else(
    tmp_path: Path, noise: FloatArray
) -> None:
    same = [
        write_image(tmp_path / "a.1.exr", noise, attributes={"DateTime": "2020:01:01 00:00:00"}),
        write_image(
            tmp_path / "b.7.exr", noise, attributes={"DateTime": "2024:01:01 00:00:00", "compression": "piz"}
        ),
    ]
    first, second = (Plate.open(path).read(frame) for path, frame in zip(same, (1, 7), strict=True))
    assert first.content_hash() == second.content_hash()
    pushed = PlateFrame(5, None, first.pixels.copy(), first.data_window, first.display_window)
    assert pushed.content_hash() == first.content_hash()
    brighter = first.pixels.copy()
    brighter[3, 4, 1] = np.nextafter(brighter[3, 4, 1], np.float16(2))
    moved = Window(1, 0, 32, 24)
    others = [
        PlateFrame(1, None, brighter, first.data_window, first.display_window),
        PlateFrame(1, None, first.pixels, moved, first.display_window),
        PlateFrame(1, None, first.pixels, first.data_window, moved),
        PlateFrame(1, None, first.pixels, first.data_window, first.display_window, pixel_aspect=2.0),
    ]
    assert len({frame.content_hash() for frame in [first, *others]}) == 5


def test_pixels_that_do_not_fill_the_data_window_are_refused(noise: FloatArray) -> None:
    with pytest.raises(PlateError, match="frame 3"):
        PlateFrame(3, None, noise, Window(0, 0, 10, 10), Window(0, 0, 10, 10))


def test_frames_per_second_and_metadata_are_kept(tmp_path: Path, noise: FloatArray) -> None:
    header = {
        "compression": OpenEXR.ZIP_COMPRESSION,
        "type": OpenEXR.scanlineimage,
        "framesPerSecond": Fraction(24000, 1001),
        "owner": "studio",
    }
    with OpenEXR.File(header, {"RGB": noise.astype(np.float16)}) as file:
        file.write(str(tmp_path / "p.1.exr"))
    plate = Plate.open(tmp_path / "p.1.exr")
    assert plate.fps == pytest.approx(24000 / 1001)
    assert plate.read(1).metadata.get_string_attribute("Copyright") == "studio"


def test_a_movie_is_a_plate(tmp_path: Path) -> None:
    path = tmp_path / "plate.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for number in range(5):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[..., 2] = 50 * number  # OpenCV's order is B, G, R
        writer.write(picture)
    writer.release()
    plate = Plate.open(path, movie_first_frame=1001, frame_range="1002-1005")
    assert plate.frames == (1002, 1003, 1004, 1005)
    assert plate.fps == 25
    assert plate.canvas == Window(0, 0, 64, 48)
    assert plate.header(1003).metadata.getattribute("FramesPerSecond") == (25, 1)
    for frame in (1005, 1002, 1003):
        pixels = plate.read(frame).pixels
        assert pixels[..., 0].mean() == pytest.approx(50 * (frame - 1001) / 255, abs=0.03)
        assert pixels[..., 2].mean() < 0.03


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        *((23.976, (24000, 1001)), (30000 / 1001, (30000, 1001)), (59.94, (60000, 1001)), (24.0, (24, 1))),
        *((25.0, (25, 1)), (7.3, (73, 10)), (0.5, (1, 2)), (1000.0, (1000, 1)), (12.5, (25, 2))),
    ],
)
def test_rates_are_ratios_and_those_of_television_exact_ones(fps: float, rate: tuple[int, int]) -> None:
    assert rational_rate(fps) == rate


windows = st.builds(
    Window, st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 30), st.integers(1, 30)
)


@given(windows, windows)
def test_windows_obey_the_laws_of_sets(one: Window, other: Window) -> None:
    union = one.union(other)
    assert union == other.union(one)
    assert union.contains(one)
    assert union.contains(other)
    shared = one.intersection(other)
    assert shared == other.intersection(one)
    if shared is not None:
        assert one.contains(shared)
        assert other.contains(shared)
    assert one.contains(other) == (one.union(other) == one)


@given(windows, windows)
def test_placing_and_cutting_keeps_every_pixel_that_both_windows_share(one: Window, other: Window) -> None:
    pixels = np.arange(1, one.width * one.height + 1, dtype=np.float32).reshape(one.height, one.width)
    placed = place(pixels, one, other)
    assert placed.shape == (other.height, other.width)
    back = place(placed, other, one)
    shared = one.intersection(other)
    inside = np.zeros_like(pixels, dtype=bool)
    if shared is not None:
        rows = slice(shared.y - one.y, shared.bottom - one.y)
        inside[rows, shared.x - one.x : shared.right - one.x] = True
    assert np.array_equal(back, np.where(inside, pixels, 0))
