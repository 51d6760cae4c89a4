"""What is removed or replaced during a run is said; the run never ends as if all were there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.weights_file import Manifest, save_network
from stm_plugin.errors import MatteError, StoreError, WeightsError
from stm_plugin.files.whole import DamagedFileError
from stm_plugin.propagation.events import Event, FrameFinished, PlanMade
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.conftest import PlateMaker
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

SETTINGS = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")
FRAMES = range(1001, 1041)


@pytest.fixture
def shot(make_plate: PlateMaker, tmp_path: Path) -> Shot:
    plate = PlateDescription("files", make_plate(frames=FRAMES))
    made = Shot.create(tmp_path / "disk" / "a", plate, SETTINGS, network=CountingNetwork().factory)
    made.add_key(1001, tmp_path / "plate.mask.1001.png")
    return made


def once(frame: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """Do something when a frame is finished."""

    def on_event(event: Event) -> None:
        if isinstance(event, FrameFinished) and event.frame == frame:
            act()

    return on_event


@pytest.mark.parametrize("way", ["removed", "renamed"])
def test_a_folder_of_mattes_that_vanishes_during_a_run_ends_it(shot: Shot, tmp_path: Path, way: str) -> None:
    """A disk that is gone looks the same: new files would lie in the folder that it was mounted on."""
    out = tmp_path / "out"
    acts = {
        "removed": lambda: shutil.rmtree(out, ignore_errors=True),
        "renamed": lambda: out.rename(tmp_path / "away"),
    }
    with pytest.raises(MatteError, match=r"frame 10\d\d, .*m\.10\d\d\.exr") as refused:
        shot.propagate(
            writer=MatteWriter(str(out / "m.####.exr"), shot.plate), on_event=once(1005, acts[way])
        )
    assert "run" in (refused.value.hint or "")
    shot.propagate(writer=MatteWriter(str(out / "m.####.exr"), shot.plate))
    assert len(list(out.glob("m.*.exr"))) == len(FRAMES)


def test_a_matte_that_is_removed_during_a_run_is_named_at_its_end(shot: Shot, tmp_path: Path) -> None:
    pattern = str(tmp_path / "out" / "m.####.exr")
    first = tmp_path / "out" / "m.1001.exr"
    with pytest.raises(MatteError, match=r"frame 1001, .*no longer there"):
        shot.propagate(writer=MatteWriter(pattern, shot.plate), on_event=once(1020, first.unlink))
    with pytest.raises(MatteError, match=r"frame 1001, .*no longer there"):
        shot.export(MatteWriter(pattern, shot.plate), on_event=once(1020, first.unlink))
    shot.export(MatteWriter(pattern, shot.plate))
    assert first.is_file()


def test_a_shot_that_vanishes_during_a_run_is_not_made_anew_without_its_keys(
    shot: Shot, tmp_path: Path
) -> None:
    moved = tmp_path / "away"
    with pytest.raises(StoreError, match=r"shot is gone|No such file"):
        shot.propagate(on_event=once(1005, lambda: shot.folder.rename(moved)))
    shutil.rmtree(shot.folder, ignore_errors=True)
    moved.rename(shot.folder)
    shot.propagate()
    assert shot.status().network_frames == 0
    shot.propagate()
    assert shot.status().network_frames == 0


def test_weights_that_are_replaced_before_they_are_loaded_never_make_results_of_the_planned_ones(
    make_plate: PlateMaker, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"

    def train() -> None:
        manifest = Manifest("mine", "stm-lite", "mine", ("mine",))
        save_network(SpaceTimeMemoryNetwork(network_config("stm-lite")), manifest, weights)

    train()
    settings = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene", weights=str(weights))
    plate = PlateDescription("files", make_plate(frames=range(1001, 1004)))

    def on_event(event: Event) -> None:
        if isinstance(event, PlanMade):
            train()

    with Shot.create(tmp_path / "a", plate, settings) as shot:
        shot.add_key(1001, tmp_path / "plate.mask.1001.png")
        with pytest.raises(WeightsError, match=r"w\.safetensors: The file of the weights was replaced"):
            shot.propagate(on_event=on_event)
        assert not list((shot.folder / "mattes").rglob("*.prob"))
        shot.propagate()
        assert shot.status().network_frames == 0


def test_a_result_under_the_name_of_another_is_computed_again(shot: Shot) -> None:
    shot.propagate()
    mattes = {frame: shot.matte(frame).mattes["object1"] for frame in FRAMES}
    one, other, *_ = sorted((shot.folder / "mattes").rglob("*.prob"))
    shutil.copyfile(one, other)
    with pytest.raises(DamagedFileError):
        shot.store.probabilities(other.stem)
    shot.close()
    shot.propagate()
    while shot.status().network_frames:  # a read of the damaged one removed it
        shot.propagate()
    for frame, before in mattes.items():
        try:
            found = shot.matte(frame).mattes["object1"]
        except MatteError:
            shot.propagate()
            found = shot.matte(frame).mattes["object1"]
        assert np.array_equal(found, before)


def test_a_mask_under_the_name_of_another_is_refused(shot: Shot, tmp_path: Path) -> None:
    shot.add_key(1010, tmp_path / "plate.mask.1010.png")
    one, other = sorted((shot.folder / "keys").glob("*.mask"))
    shutil.copyfile(one, other)
    with pytest.raises(DamagedFileError):
        shot.store.mask(other.stem)
    assert shot.store.mask(one.stem)[0].any()
