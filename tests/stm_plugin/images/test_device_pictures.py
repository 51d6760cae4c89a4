"""Colour and narrowing as torch code, as they run on a graphics card, against those of the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stm_plugin.images.colour import ColourTransform, load_config
from stm_plugin.images.device_pictures import DevicePictures, pictures_on
from stm_plugin.images.working_picture import WorkingGeometry, to_working, working_geometry
from stm_plugin.propagation.frame_loader import LoadedFrame
from stm_plugin.windows import PixelArray, Window

NEAR = 1 / 1024
SPACES = [
    *("ACEScg", "Linear Rec.709 (sRGB)", "sRGB - Texture", "Gamma 2.4 Rec.709 - Texture", "Raw"),
    *("ARRI LogC3 (EI800)", "ARRI LogC4", "S-Log3 S-Gamut3.Cine", "ACEScct"),
]
WINDOW = Window(-8, -6, 230, 170)


@pytest.fixture(autouse=True)
def no_environment_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCIO", raising=False)


def plate(kind: type, seed: int = 3) -> PixelArray:
    """(170, 230, 3) from -0.2 to 1.2, and a few values that are none, negative or far above 1."""
    random = np.random.default_rng(seed)
    pixels: PixelArray = random.uniform(-0.2, 1.2, (WINDOW.height, WINDOW.width, 3)).astype(kind)
    pixels[3, 5] = (np.nan, np.inf, -np.inf)
    pixels[60:70, 80:90] = 900
    return pixels


def pictures(space: str, geometry: WorkingGeometry) -> tuple[ColourTransform, DevicePictures]:
    transform = ColourTransform(load_config(), space)
    found = pictures_on(transform.tables(), geometry, "cpu")
    assert found is not None, "the space has tables"
    return transform, found


@pytest.mark.parametrize("space", SPACES)
def test_colours_are_those_of_the_processor(space: str) -> None:
    transform, made = pictures(space, working_geometry(WINDOW, 1.0, 90))
    pixels = plate(np.float16)
    if space not in ("ACEScg", "Raw"):  # Inf in a camera's curve is no colour in either way
        pixels[3, 5] = 0.5
        pixels[60:70, 80:90] = 1.5
    shown = made.display(pixels).numpy()
    assert np.abs(shown - transform.to_display(pixels)).max() < NEAR


def test_a_curve_by_half_floats_takes_no_floats_but_a_matrix_does() -> None:
    geometry = working_geometry(WINDOW, 1.0, 90)
    transform, made = pictures("ACEScg", geometry)
    pixels = plate(np.float32)
    assert np.abs(made.display(pixels).numpy() - transform.to_display(pixels)).max() < NEAR
    _, log = pictures("ARRI LogC4", geometry)
    assert log.takes(plate(np.float16)) and not log.takes(pixels)
    assert log.working(pixels, WINDOW) is None


def test_a_look_that_mixes_channels_otherwise_has_no_tables() -> None:
    transform = ColourTransform(load_config(), "ACEScg")
    transform._matrix = None
    transform._cpu = _Crossing()
    assert transform.tables() is None


class _Crossing:
    """A processor in which red bends with green."""

    def applyRGB(self, pixels: np.ndarray) -> None:
        pixels[..., 0] *= np.clip(pixels[..., 1], 0, 1)


@pytest.mark.parametrize("region", [None, Window(11, 7, 133, 99), Window(-8, -6, 230, 100)])
@pytest.mark.parametrize("data", [WINDOW, Window(20, 30, 90, 60), Window(-40, -50, 400, 300)])
def test_working_pictures_are_those_of_the_processor(region: Window | None, data: Window) -> None:
    canvas = WINDOW
    geometry = working_geometry(canvas, 1.0, 60, region)
    transform, made = pictures("ACEScg", geometry)
    random = np.random.default_rng(5)
    pixels = random.uniform(0, 1, (data.height, data.width, 3)).astype(np.float16)
    mine = made.working(pixels, data)
    assert mine is not None and mine.dtype == np.float16
    theirs = to_working(pixels, data, geometry, transform.to_display)
    assert np.abs(mine.astype(np.float32) - theirs.transpose(2, 0, 1)).max() < NEAR


def test_a_plate_that_is_enlarged_is_left_to_the_processor() -> None:
    geometry = working_geometry(Window(0, 0, 60, 40), 1.0, 480)
    _, made = pictures("ACEScg", geometry)
    assert made.working(np.zeros((40, 60, 3), np.float16), geometry.canvas) is None


def test_a_full_card_leaves_the_picture_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = working_geometry(WINDOW, 1.0, 90)
    _, made = pictures("ACEScg", geometry)

    def full(pixels: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made, "to_display", full)
    assert made.working(plate(np.float16), WINDOW) is None


def test_frames_take_their_working_picture_from_the_card_that_they_are_given() -> None:
    geometry = working_geometry(WINDOW, 1.0, 90)
    transform, made = pictures("ACEScg", geometry)
    frame = _Frame(plate(np.float16))
    without = LoadedFrame(frame, "", None, transform, geometry)  # type: ignore[arg-type]
    assert without.device_guide() is None
    with_card = LoadedFrame(frame, "", None, transform, geometry, made)  # type: ignore[arg-type]
    off = np.abs(with_card.picture.astype(np.float32) - without.picture.astype(np.float32)).max()
    assert off < NEAR
    assert with_card.device_guide() is not None


class _Frame:
    data_window = WINDOW

    def __init__(self, pixels: PixelArray) -> None:
        self.pixels = pixels
