"""The foreground's colours, as a host gets them."""

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

SETTINGS = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene", foreground=True)


@pytest.fixture
def inner(tmp_path: Path, make_plate: Callable[..., str]) -> Shot:
    plate = PlateDescription("files", make_plate(frames=range(1001, 1005)))
    inner = Shot.create(tmp_path / "shot", plate, SETTINGS, network=CountingNetwork().factory)
    inner.add_key(1001, tmp_path / "plate.mask.1001.png")
    inner.propagate()
    return inner


@pytest.fixture
def shot(inner: Shot) -> Iterator[EngineShot]:
    opened = EngineShot(inner)
    yield opened
    opened.close()


def test_the_colours_are_those_of_the_files(shot: EngineShot, inner: Shot) -> None:
    in_file = inner.matte(1003).foreground
    matte = shot.matte(1003, (), False, "foreground")
    assert isinstance(matte, Matte) and in_file is not None and matte.colours is not None
    np.testing.assert_array_equal(matte.colours, in_file)
    plain = shot.matte(1003, (), False)
    assert isinstance(plain, Matte) and plain.colours is None
    np.testing.assert_array_equal(plain.union, matte.union)
    (only,) = matte.mattes
    by_name = shot.matte(1003, (only,), False, "foreground")
    assert isinstance(by_name, Matte) and by_name.colours is not None
    np.testing.assert_array_equal(by_name.colours, matte.colours)


def test_an_old_matte_has_colours_and_a_fresh_one_is_asked_for_otherwise(
    shot: EngineShot, tmp_path: Path
) -> None:
    shot._edit(lambda: shot._shot.add_key(1004, tmp_path / "plate.mask.1004.png"))
    now = shot.matte(1002, (), False, "foreground")
    assert isinstance(now, NoMatte) and now.state == "stale"
    old = shot.matte(1002, (), True, "foreground")
    assert isinstance(old, Matte) and old.stale and old.colours is not None
