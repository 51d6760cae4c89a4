"""Objects that jump, are lost or leave the region are reported with the frame, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stm_plugin.planning.areas import FrameAreas, area_warnings
from stm_plugin.propagation.events import Event, Notice
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import Window
from tests.conftest import PlateMaker
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

FRAMES = tuple(range(1001, 1011))


def areas(*values: float) -> dict[int, FrameAreas]:
    return {frame: FrameAreas({"cup": value}) for frame, value in zip(FRAMES, values, strict=False)}


def test_an_object_that_changes_slowly_is_not_told_of() -> None:
    assert area_warnings(areas(1000, 1200, 1400, 1300, 900), FRAMES) == []


def test_a_jump_names_its_frame_and_both_areas() -> None:
    (text,) = area_warnings(areas(1_510_000, 210_000, 210_000), FRAMES)
    assert text.startswith("Frame 1002: the area of cup jumps from 1,510,000 to 210,000 pixels")


def test_only_neighbours_are_compared() -> None:
    known = areas(1000, 0, 0, 4000)
    del known[1002], known[1003]
    assert area_warnings(known, FRAMES) == []


def test_a_lost_object_is_named_with_its_frames_once() -> None:
    (text,) = area_warnings(areas(1000, 900, 0, 0, 5, 900), FRAMES)
    assert text.startswith("cup is lost on frames 1003-1005") and "empty mask" in text


def test_an_object_that_an_empty_mask_calls_absent_is_not_lost() -> None:
    known = areas(1000, 900, 0, 0)
    for frame in (1003, 1004):
        known[frame] = FrameAreas({"cup": 0.0}, absent=frozenset(["cup"]))
    assert area_warnings(known, FRAMES) == []


def test_many_jumps_are_counted() -> None:
    told = area_warnings(areas(*[1000, 4000] * 5), FRAMES)
    assert len(told) == 5 and "5 further frames" in told[-1]


def test_a_region_that_cuts_an_object_is_told_of_on_the_key(make_plate: PlateMaker, tmp_path: Path) -> None:
    network = CountingNetwork()
    settings = Settings(
        working_size=WORKING_SIZE, colour_space="lin_rec709_scene", region=Window(0, 0, 32, 48)
    )
    plate = PlateDescription("files", make_plate(frames=range(1001, 1004)))
    mask = np.zeros((48, 64), np.float32)
    mask[12:36, 16:48] = 1
    events: list[Event] = []
    with Shot.create(tmp_path / "cup", plate, settings, network=network.factory) as shot:
        shot.add_key(1001, {"cup": mask})
        shot.propagate(on_event=events.append)
        told = " ".join(one.text for one in events if isinstance(one, Notice))
        assert "Frame 1001: 50.0 % of the mask of cup is outside the region" in told
        shot.set_settings(Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene"))
        events.clear()
        shot.propagate(on_event=events.append)
        assert not any("region" in one.text for one in events if isinstance(one, Notice))


def test_an_object_that_touches_the_regions_edge_is_told_of() -> None:
    known = {1002: FrameAreas({"cup": 9.0}, touching=frozenset(["cup"])), 1003: FrameAreas({"cup": 9.0})}
    (text,) = area_warnings(known, FRAMES)
    assert "cup touches the edge of the region on frame 1002" in text
