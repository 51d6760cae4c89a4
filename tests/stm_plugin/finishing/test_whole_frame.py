"""The guided filter as torch code, as it runs on a graphics card, against that of the processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stm_plugin.finishing.band import Guide, steeper
from stm_plugin.finishing.guided import finish, follow_plate
from stm_plugin.finishing.whole_frame import DeviceGuide
from stm_plugin.images.colour_tables import ColourTables
from stm_plugin.images.device_pictures import DevicePictures
from stm_plugin.images.working_picture import WorkingGeometry
from stm_plugin.settings import FinishSettings
from stm_plugin.windows import FloatArray
from tests.stm_plugin.finishing.test_guided import SETTINGS, WINDOW, prepared, scene, soft_disc

NEAR = 1 / 1024


def on_device(guide: Guide, picture: FloatArray, geometry: WorkingGeometry) -> Guide:
    """The guide with the same plate for a card: display-referred floats, as `scene` makes them."""
    tables = ColourTables(np.zeros(65536, np.float32), True, None, None)
    return replace(guide, on_device=DeviceGuide(DevicePictures(tables, geometry, "cpu"), picture))


@pytest.mark.parametrize("softness", [1.0, 6.0, 30.0])
@pytest.mark.parametrize("changed", [{}, {"radius": 4, "sharpness": 1.0, "sure": 0.02}, {"radius": 2}])
def test_mattes_are_those_of_the_processor(softness: float, changed: dict[str, float]) -> None:
    alpha = soft_disc(softness)
    probability, guide, geometry = prepared(alpha)
    settings = replace(SETTINGS, **changed)  # type: ignore[arg-type]
    theirs = finish(probability, guide, geometry, settings)
    mine = finish(probability, on_device(guide, scene(alpha), geometry), geometry, settings)
    assert mine.dtype == np.float32 and mine.shape == (WINDOW.height, WINDOW.width)
    assert np.abs(mine - theirs).max() < NEAR


def test_the_object_may_touch_every_border_and_lie_in_parts() -> None:
    alpha = np.maximum(soft_disc(3.0, (0, 0), 90), soft_disc(5.0, (399, 299), 120))
    alpha = np.maximum(alpha, soft_disc(2.0, (300, 40), 9))
    probability, guide, geometry = prepared(alpha)
    theirs = finish(probability, guide, geometry, SETTINGS)
    mine = finish(probability, on_device(guide, scene(alpha), geometry), geometry, SETTINGS)
    assert np.abs(mine - theirs).max() < NEAR


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_is_certain_everywhere_stays_exact(value: float) -> None:
    alpha = np.full((300, 400), value, np.float32)
    _, guide, geometry = prepared(alpha)
    clean = steeper(np.full((geometry.height, geometry.width), value, np.float32), 1.0, 0.02)
    mine = follow_plate(clean, on_device(guide, scene(alpha), geometry), geometry, FinishSettings())
    assert (mine == value).all()
