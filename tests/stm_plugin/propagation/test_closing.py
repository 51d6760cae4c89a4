"""A propagation ends its threads while they read plate frames."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stm_plugin.images.plate import Plate, PlateFrame
from stm_plugin.propagation.frame_loader import LoadedFrame
from stm_plugin.propagation.memory_forecast import MemoryRequest
from stm_plugin.propagation.propagation import Propagation
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.conftest import PlateMaker
from tests.stm_plugin.small_network import CountingNetwork


@pytest.fixture
def shot(tmp_path: Path, make_plate: PlateMaker) -> Shot:
    plate = PlateDescription("files", make_plate(frames=range(1001, 1004)))
    settings = Settings(working_size=32, colour_space="lin_rec709_scene", device="cpu")
    return Shot.create(tmp_path / "disc", plate, settings, network=CountingNetwork().factory)


def close(propagation: Propagation, run: MemoryRequest) -> None:
    propagation.close()


def change_workers(propagation: Propagation, run: MemoryRequest) -> None:
    propagation.keep_within(run)


@pytest.mark.parametrize("end", [close, change_workers])
def test_a_frame_that_is_being_read_is_recorded_and_the_threads_end(
    end: Callable[[Propagation, MemoryRequest], None], shot: Shot, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = shot.plate.canvas
    shot.add_key(1001, {"disc": np.ones((canvas.height, canvas.width), np.float32)})
    run = replace(shot.forecast(shot.plan()).run, workers=3)
    propagation = Propagation(shot.store, shot.plate, shot._description, CountingNetwork().factory, print)
    reading, go_on = threading.Event(), threading.Event()
    read, recorded = Plate.read, []

    def slowly(self: Plate, frame: int) -> PlateFrame:
        reading.set()
        assert go_on.wait(20)
        return read(self, frame)

    record = propagation._record

    def noticed(loaded: LoadedFrame) -> None:
        record(loaded)
        recorded.append(loaded.plate_frame.frame)

    monkeypatch.setattr(propagation, "_record", noticed)
    monkeypatch.setattr(Plate, "read", slowly)
    propagation.frames.read_ahead(1002)
    assert reading.wait(20)
    ending = threading.Thread(target=end, args=(propagation, run), daemon=True)
    ending.start()
    ending.join(0.2)
    assert ending.is_alive(), "it waits for the frame"
    go_on.set()
    ending.join(20)
    assert not ending.is_alive() and recorded == [1002]
    shot.close()


def test_features_are_freed_at_once_whoever_still_holds_the_cache(shot: Shot) -> None:
    propagation = Propagation(shot.store, shot.plate, shot._description, CountingNetwork().factory, print)
    cache = propagation.context().cache
    cache.put("x", {"a": torch.ones(1 << 16)}, on_disk=False)
    assert cache.ram.bytes
    propagation.close()
    assert cache.ram.bytes == 0 and not cache.has("x")
    shot.close()
