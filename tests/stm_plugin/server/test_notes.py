"""What a host is told about a shot besides the state of its frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stm_plugin.server.shot_service import EngineShot
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork


def test_a_host_is_told_of_hidden_keys_and_small_objects(
    tmp_path: Path, make_plate: Callable[..., str]
) -> None:
    plate = PlateDescription("files", make_plate(frames=range(1001, 1004)))
    settings = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
    with Shot.create(tmp_path / "shot", plate, settings, network=CountingNetwork().factory) as shot:
        opened = EngineShot(shot)
        assert opened.state(None).notes == ()
        canvas = shot.plate.canvas
        whole = np.zeros((canvas.height, canvas.width), np.float32)
        whole[8:28, 10:30] = 1
        part = np.zeros_like(whole)
        part[8:10, 10:14] = 1
        shot.add_key(1001, {"hero": whole})
        (small,) = opened.state(None).notes
        assert small.startswith("hero is small for the network") and "a region around it" in small
        shot.add_key(1003, {"hero": part})
        hidden, _ = opened.state(None).notes
        assert hidden.startswith("The key on 1003 shows little of hero (2 %")
