"""Host plates are read back exactly as they were pushed, within their budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stm_plugin.errors import PlateError
from stm_plugin.images.host_plate import HostPlate
from stm_plugin.server.shot_service import EngineShot
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import Window
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

FORMAT = Window(0, 0, 40, 30)
CANVAS = Window(-4, -4, 48, 38)


def open_plate(folder: Path, budget: int = 1 << 30) -> HostPlate:
    return HostPlate(folder, 1001, 1004, FORMAT, CANVAS, pixel_aspect=2.0, fps=24.0, budget=budget)


def pixels(rng: np.random.Generator, window: Window, half: bool = False) -> npt.NDArray[np.float32]:
    values = rng.normal(0.5, 1.0, (window.height, window.width, 3)).astype(np.float32)
    return values.astype(np.float16).astype(np.float32) if half else values


def test_frames_come_back_as_they_were_pushed(tmp_path: Path, rng: np.random.Generator) -> None:
    whole, part = pixels(rng, CANVAS), pixels(rng, Window(3, -2, 10, 12), half=True)
    whole[0, 0] = (np.nan, np.inf, -2.0)
    plate = open_plate(tmp_path)
    plate.push(1001, whole, CANVAS, metadata={"smpte:TimeCode": "01:00:00:00"})
    plate.push(1003, part.astype(np.float16), Window(3, -2, 10, 12), digest="abc")
    again = open_plate(tmp_path)
    first, third = again.read(1001), again.read(1003)
    assert np.array_equal(first.pixels, whole, equal_nan=True)
    assert np.array_equal(third.pixels, part)
    assert third.data_window == Window(3, -2, 10, 12) and third.display_window == FORMAT
    assert first.pixel_aspect == 2.0
    assert first.metadata.get_string_attribute("smpte:TimeCode") == "01:00:00:00"
    assert again.missing == (1002, 1004)
    assert again.signature(1001) == first.content_hash()
    assert again.records[1003].digest == "abc"


def test_a_pushed_plate_with_a_key_outside_its_range_has_a_status(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    def described(last: int) -> PlateDescription:
        return PlateDescription("pushed", frames=(1001, last), display_window=FORMAT, canvas=FORMAT)

    shot = Shot.create(tmp_path / "pushed", described(1006), Settings(working_size=WORKING_SIZE))
    mask = np.ones((FORMAT.height, FORMAT.width), np.float32)
    engine = EngineShot(shot)
    for frame in (1002, 1006):
        shot.add_key(frame, {"chair": mask})
    shot.set_plate(described(1004))
    state = engine.state(None)  # no picture has been pushed yet
    assert state.missing == [1001, 1003, 1004] and 1002 in state.done
    assert engine.forecast(None, "both").compute == 3
    shot.remove_key(1002)
    state = engine.state(None)
    assert state.missing == [1001, 1002, 1003, 1004]
    assert [reason.text for reason in state.reasons] == ["there is no keyframe yet"]
    plate = shot.plate
    assert isinstance(plate, HostPlate)
    with shot.store.lock:
        plate.push(1001, pixels(rng, FORMAT), FORMAT)
    assert engine.state(None).plate_missing == [1002, 1003, 1004]
    engine.close()


def test_pushing_the_same_pixels_again_writes_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    plate, values = open_plate(tmp_path), pixels(rng, FORMAT)
    plate.push(1001, values, FORMAT)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    plate.push(1001, values, FORMAT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    plate.push(1002, values, FORMAT)
    assert len(list(tmp_path.glob("*.frame"))) == 1


def test_the_frames_pushed_first_leave_when_the_budget_is_spent(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    size = 30 * 40 * 3 * 4
    plate = open_plate(tmp_path, budget=int(2.5 * size))
    for frame in (1001, 1002, 1003):
        plate.push(frame, pixels(rng, FORMAT), FORMAT)
    assert plate.missing == (1001, 1004)
    with pytest.raises(PlateError, match=r"frame 1001: .*have not been pushed.*push this frame again"):
        plate.read(1001)
    assert plate.read(1003).frame == 1003


def test_what_does_not_fit_the_plate_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    plate = open_plate(tmp_path)
    with pytest.raises(PlateError, match=r"frame 999: .*not in the range 1001-1004"):
        plate.push(999, pixels(rng, FORMAT), FORMAT)
    with pytest.raises(PlateError, match="exceeds the canvas"):
        plate.push(1001, pixels(rng, Window(0, 0, 400, 30)), Window(0, 0, 400, 30))
    with pytest.raises(PlateError, match=r"frame 1001: The pixels are"):
        plate.push(1001, pixels(rng, FORMAT), CANVAS)
    with pytest.raises(PlateError, match="holds no frame"):
        HostPlate(tmp_path, 5, 4, FORMAT)


def test_damaged_pixels_are_named_and_asked_for_again(tmp_path: Path, rng: np.random.Generator) -> None:
    plate = open_plate(tmp_path)
    plate.push(1001, pixels(rng, FORMAT), FORMAT)
    path = next(tmp_path.glob("*.frame"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PlateError, match=r"frame 1001, .*damaged.*push this frame again"):
        plate.read(1001)
    assert 1001 in plate.missing


def test_a_shot_of_pushed_frames_waits_for_its_plate_and_knows_what_changed(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    network = CountingNetwork()
    description = PlateDescription("pushed", frames=(1001, 1004), display_window=FORMAT, canvas=FORMAT)
    settings = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
    mask = np.zeros((30, 40), np.float32)
    mask[5:20, 5:20] = 1
    with Shot.create(tmp_path / "pushed", description, settings, network=network.factory) as shot:
        assert isinstance(shot.plate, HostPlate)
        shot.add_key(1001, {"chair": mask})
        for frame in (1001, 1002, 1004):
            shot.plate.push(frame, pixels(rng, FORMAT), FORMAT)
        with pytest.raises(PlateError, match="frame 1003: 1 frame of the plate is missing"):
            shot.propagate()
        shot.plate.push(1003, pixels(rng, FORMAT), FORMAT)
        assert shot.propagate().computed == 3
        shot.plate.push(1003, pixels(rng, FORMAT), FORMAT)
        assert str(shot.status().dirty[0]) == (
            "frames 1003-1004 will be recomputed: the plate was touched on 1003, and was not read again yet"
        )
        assert shot.propagate().computed == 2
        assert shot.matte(1004).mattes["chair"].shape == (30, 40)
