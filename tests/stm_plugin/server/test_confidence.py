"""The confidence of each pixel, as a host gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stm_plugin.server.backend import Matte, NoMatte
from stm_plugin.server.shot_service import EngineShot
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")


@pytest.fixture
def shot(tmp_path: Path, make_plate: Callable[..., str]) -> Iterator[EngineShot]:
    plate = PlateDescription("files", make_plate(frames=range(1001, 1005)))
    inner = Shot.create(tmp_path / "shot", plate, SETTINGS, network=CountingNetwork().factory)
    inner.add_key(1001, tmp_path / "plate.mask.1001.png")
    inner.propagate()
    opened = EngineShot(inner)
    yield opened
    opened.close()


def found(shot: EngineShot, frame: int, stale: bool = False) -> Matte:
    matte = shot.matte(frame, (), stale, "confidence")
    assert isinstance(matte, Matte)
    return matte


def test_confidence_is_one_on_a_key_and_varies_from_pixel_to_pixel_elsewhere(shot: EngineShot) -> None:
    assert (found(shot, 1001).union == 1).all()
    sure = found(shot, 1003).union
    assert 0 <= sure.min() < sure.max() <= 1
    matte = shot.matte(1003, (), False)
    assert isinstance(matte, Matte) and not np.array_equal(matte.union, sure)
    assert matte.data_window == found(shot, 1003).data_window


def test_confidence_of_all_objects_is_the_least_of_theirs(shot: EngineShot, tmp_path: Path) -> None:
    matte = found(shot, 1003)
    (only,) = matte.mattes.values()
    np.testing.assert_array_equal(matte.union, np.minimum(only, 1))


def test_there_is_confidence_where_there_is_a_matte_and_nowhere_else(
    shot: EngineShot, tmp_path: Path
) -> None:
    shot._edit(lambda: shot._shot.add_key(1004, tmp_path / "plate.mask.1004.png"))
    before = shot.matte(1002, (), False, "confidence")
    assert isinstance(before, NoMatte) and before.state == "stale"
    old = found(shot, 1002, stale=True)
    assert old.stale and 0 <= old.union.min() < old.union.max() <= 1
    outside = shot.matte(2000, (), False, "confidence")
    assert isinstance(outside, NoMatte) and outside.state == "outside"
