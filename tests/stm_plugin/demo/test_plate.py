"""The demo plate: its windows, frame numbers, light and true matte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from stm_plugin.demo.plate import (
    CUP_CENTRE,
    DemoPlate,
    PlateSettings,
    Scene,
    build_plate,
    cup_layer,
    frame_path,
    photograph,
    timecode,
)

SMALL = PlateSettings(
    frame_count=9, width=160, height=90, overscan_x=8, overscan_y=4, shutter_samples=4, fps=24
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoPlate]:
    yield build_plate(tmp_path_factory.mktemp("demo"), SMALL)


def exr(path: Path) -> OpenEXR.File:
    """The file as the OpenEXR library reads it."""
    return OpenEXR.File(str(path), separate_channels=True)


def alpha_of(plate: DemoPlate, frame: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(exr(frame_path(plate.truth, frame)).channels()["A"].pixels, np.float32)


def test_a_plate_has_overscan_and_frames_in_the_hosts_numbers(built: DemoPlate) -> None:
    files = sorted(path.name for path in Path(built.plate).parent.iterdir())
    assert files == [f"plate.{frame}.exr" for frame in range(1001, 1010)]
    header = exr(frame_path(built.plate, 1001)).header()
    low, high = header["dataWindow"]
    assert (tuple(low), tuple(high)) == ((-8, -4), (167, 93))
    low, high = header["displayWindow"]
    assert (tuple(low), tuple(high)) == ((0, 0), (159, 89))


def test_the_plate_states_its_colours_and_timecode(built: DemoPlate) -> None:
    header = exr(frame_path(built.plate, 1003)).header()
    primaries = np.ravel(header["chromaticities"])
    np.testing.assert_allclose(
        primaries, [0.713, 0.293, 0.165, 0.830, 0.128, 0.044, 0.32168, 0.33767], atol=1e-6
    )
    code = header["timeCode"]
    assert (code.hours, code.minutes, code.seconds, code.frame) == (0, 0, 41, 1003 - 41 * 24)


def test_highlights_are_above_one_and_pixels_are_half_floats(built: DemoPlate) -> None:
    channels = exr(frame_path(built.plate, 1001)).channels()
    assert {name: channel.pixels.dtype for name, channel in channels.items()} == dict.fromkeys(
        "RGB", np.float16
    )
    assert max(float(channel.pixels.max()) for channel in channels.values()) > 2.0


def test_the_true_matte_is_soft_and_moves_with_the_cup(built: DemoPlate) -> None:
    centres = []
    for frame in (1001, 1009):
        alpha = alpha_of(built, frame)
        assert alpha.min() >= 0.0 and alpha.max() == pytest.approx(1.0, abs=1e-3)
        soft = np.mean((alpha > 0.02) & (alpha < 0.98)) / np.mean(alpha > 0.02)
        assert 0.01 < soft < 0.5
        centres.append(float((alpha.sum(axis=0) * np.arange(alpha.shape[1])).sum() / alpha.sum()))
    assert centres[1] - centres[0] > 0.3 * SMALL.width


def test_what_passes_in_front_is_missing_from_the_true_matte() -> None:
    scene = Scene(SMALL)
    seen = {time: float(scene.instant(time)[1].sum()) for time in (0.0, 4.0)}
    grown = (0.68 + 0.20 * 0.5) ** 2 / 0.68**2
    assert seen[4.0] < 0.85 * grown * seen[0.0]


def test_plate_and_matte_agree_where_the_matte_is_solid() -> None:
    """Where alpha is one, the colours are exactly those of the layer, so matte and picture agree."""
    scene = Scene(SMALL)
    picture, alpha = scene.instant(0.0)
    placed = scene.warp(scene.cup, scene.cup_pose(0.0))
    solid = alpha >= 1.0
    assert solid.sum() > 100
    np.testing.assert_array_equal(picture[solid], placed[..., :3][solid])


def test_the_cut_out_holds_no_table() -> None:
    """Outside the contour the cup's rim continues. The table's wood is paler than the red saucer."""
    cup = cup_layer()
    x, y = (round(value) for value in CUP_CENTRE)
    assert cup[y, x, 3] == 1.0
    assert cup[5, 5, 3] == 0.0 and cup[395, 30, 3] == 0.0
    edge = (cup[..., 3] > 0.3) & (cup[..., 3] < 0.9)
    low = np.zeros(edge.shape, bool)
    low[300:, :] = True  # the saucer's lower rim
    colours = (cup[..., :3] / np.maximum(cup[..., 3:], 1e-6))[edge & low]
    assert np.median(colours[:, 0] / np.maximum(colours[:, 1], 1e-4)) > 3.0


def test_the_plate_is_the_same_every_time(built: DemoPlate, tmp_path: Path) -> None:
    again = build_plate(tmp_path, PlateSettings(**{**vars(SMALL), "frame_count": 9}))
    first = exr(frame_path(built.plate, 1002)).channels()
    second = exr(frame_path(again.plate, 1002)).channels()
    for name in "RGB":
        np.testing.assert_array_equal(first[name].pixels, second[name].pixels)


def test_photographs_open_clipped_lights_and_keep_the_rest() -> None:
    coffee = photograph("coffee")
    assert coffee.max() > 1.5
    assert coffee.min() >= 0.0 and np.median(coffee) < 0.3


@pytest.mark.parametrize(
    ("frame", "digits"),
    [(0, 0x00000000), (1001, 0x00004117), (86400, 0x01000000), (24 * 59 + 23, 0x00005923)],
)
def test_timecodes_are_packed_decimal_digits(frame: int, digits: int) -> None:
    assert timecode(frame, 24) == (digits, 0)
