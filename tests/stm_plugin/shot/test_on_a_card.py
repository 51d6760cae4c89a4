"""The way of a frame on a graphics card, as torch code on the processor, against the processor's own way."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from benchmarks.io import ToyNetwork
from stm_plugin.demo.plate import DemoPlate, PlateSettings, build_plate
from stm_plugin.finishing import guided
from stm_plugin.finishing.whole_frame import follow_plate_on
from stm_plugin.images.device_pictures import DevicePictures, pictures_on
from stm_plugin.propagation.propagation import Propagation
from stm_plugin.settings import FinishSettings, Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray

NEAR = 1 / 1024
FRAMES = (1002, 1003)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoPlate:
    small = PlateSettings(frame_count=3, width=720, height=560, overscan_x=0, overscan_y=0, shutter_samples=2)
    return build_plate(tmp_path_factory.mktemp("plate"), small)


def mattes(made: DemoPlate, folder: Path, settings: Settings) -> list[FloatArray]:
    """The mattes of a shot whose network finds the key's mask everywhere."""
    toy = ToyNetwork()
    description = PlateDescription("files", made.plate)
    with Shot.create(folder / "shot", description, settings, network=lambda *_: toy) as shot:
        shot.add_key(made.settings.first_frame, made.key)
        shot.propagate()
        return [next(iter(shot.matte(frame).mattes.values())) for frame in FRAMES]


@pytest.mark.parametrize("edges", ["guided", "learned"])
def test_mattes_are_those_of_the_processor(
    made: DemoPlate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edges: Literal["guided", "learned"]
) -> None:
    settings = Settings(
        working_size=120, precision="float32", device="cpu", finish=FinishSettings(edges=edges)
    )
    theirs = mattes(made, tmp_path / "processor", settings)
    filtered: list[int] = []

    def pictures(self: Propagation) -> DevicePictures | None:
        return pictures_on(self.colour.tables(), self.geometry, "cpu")

    def counted(*of: object) -> FloatArray:
        filtered.append(1)
        return follow_plate_on(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(Propagation, "_pictures", pictures)
    monkeypatch.setattr(guided, "follow_plate_on", counted)
    mine = mattes(made, tmp_path / "card", settings)
    assert len(filtered) >= len(FRAMES)
    for one, other in zip(mine, theirs, strict=True):
        assert other.any() and np.abs(one - other).max() < NEAR
