"""Adaptation makes every matte stale once; without it the earlier ones return; refusals state why."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from model.network.config import network_config
from model.network.stm import SpaceTimeMemoryNetwork
from model.training.adapt import AdaptOptions
from model.weights_file import Manifest, save_network
from stm_plugin.cli.main import app
from stm_plugin.errors import (
    DeviceError,
    KeyframeError,
    MaskError,
    PropagationCancelled,
    SettingsError,
    StmError,
    StoreBusyError,
    WeightsError,
)
from stm_plugin.images.matte import read_matte
from stm_plugin.images.plate import Plate
from stm_plugin.planning.values import State
from stm_plugin.propagation.adaptation import adaptation_path, read_adaptation_manifest
from stm_plugin.propagation.events import Event, Notice
from stm_plugin.propagation.memory_forecast import AdaptationForecast
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.propagate import RunOptions, propagate
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.windows import FloatArray
from tests.conftest import PlateMaker, write_exr
from tests.stm_plugin.small_network import CountingNetwork

FRAMES = range(1001, 1006)
OPTIONS = AdaptOptions(steps=2, crop=32)
LICENCE = "for tests only"


def advice_of(shot: Shot) -> tuple[str, ...]:
    """What the status says, but that the small plate's object is small."""
    return tuple(one for one in shot.status().advice if "is small for the network" not in one)


def save_weights(path: Path, seed: int) -> Path:
    """Random weights of `stm-lite` as a file."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SpaceTimeMemoryNetwork(network_config("stm-lite"))
    save_network(network, Manifest(path.stem, "stm-lite", LICENCE, ("noise",)), path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "noise.safetensors", seed=7)


def box(left: int) -> FloatArray:
    values = np.zeros((48, 64), np.float32)
    values[12:36, left : left + 20] = 1.0
    return values


@pytest.fixture
def settings(weights: Path) -> Settings:
    return Settings(weights=str(weights), working_size=32, colour_space="lin_rec709_scene", device="cpu")


@pytest.fixture
def shot(tmp_path: Path, make_plate: PlateMaker, settings: Settings) -> Iterator[Shot]:
    """A finished shot with one key."""
    plate = PlateDescription("files", make_plate(frames=FRAMES))
    with Shot.create(tmp_path / "disc", plate, settings) as made:
        made.add_key(1001, {"disc": box(10)})
        made.propagate()
        yield made


def mattes(shot: Shot) -> list[FloatArray]:
    return [shot.matte(frame).mattes["disc"] for frame in FRAMES]


def switch(shot: Shot, on: bool) -> None:
    shot.set_settings(replace(shot.settings, adapt=on))


# ---- what it does ----


def test_every_matte_is_stale_once_and_off_gives_the_earlier_ones_back(shot: Shot) -> None:
    before = mattes(shot)
    assert not shot.settings.adapt
    shot.adapt(OPTIONS)
    status = shot.status()
    assert status.states[1001] is State.KEY
    assert {status.states[frame] for frame in FRAMES[1:]} == {State.STALE}
    assert "setting adapt changed" in str(status.dirty[0])
    assert shot.propagate().computed == len(FRAMES) - 1
    after = mattes(shot)
    assert shot.status().dirty == () and shot.propagate().computed == 0
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))

    switch(shot, on=False)
    assert shot.status().network_frames == 0
    assert all(np.array_equal(*pair) for pair in zip(before, mattes(shot), strict=True))
    assert shot.propagate().computed == 0
    switch(shot, on=True)
    assert shot.propagate().computed == 0
    assert all(np.array_equal(*pair) for pair in zip(after, mattes(shot), strict=True))


def test_changed_keys_bring_advice_and_nothing_breaks(shot: Shot) -> None:
    shot.adapt(OPTIONS)
    assert advice_of(shot) == ()
    shot.add_key(1005, {"disc": box(30)})
    shot.add_key(1001, {"disc": box(11)})
    (sentence,) = advice_of(shot)
    assert "1001 changed" in sentence and "1005 added" in sentence and "stm adapt" in sentence
    assert shot.propagate().computed > 0
    switch(shot, on=False)
    assert advice_of(shot) == ()
    shot.adapt(OPTIONS)
    assert advice_of(shot) == ()
    shot.remove_key(1005)
    assert "1005 removed" in advice_of(shot)[0]


def test_the_same_keys_and_seed_give_the_same_weights(shot: Shot) -> None:
    first = shot.adapt(OPTIONS)
    shot.propagate()
    assert shot.adapt(OPTIONS) == first
    assert shot.status().dirty == ()
    assert shot.adapt(replace(OPTIONS, seed=1)).id != first.id


def test_the_file_holds_what_changed_and_says_what_it_is(shot: Shot) -> None:
    record = shot.adapt(OPTIONS)
    path = adaptation_path(shot.folder, record.id)
    with safe_open(path, framework="pt") as stream:
        assert all(name.startswith("decoder.") for name in stream.keys())  # noqa: SIM118
    manifest = read_adaptation_manifest(path)
    assert manifest["licence"] == LICENCE and manifest["data"] == ["noise"]
    assert manifest["base"] == record.base and manifest["steps"] == 2
    assert list(record.keys) == [1001]
    options = manifest["options"]
    assert isinstance(options, dict) and options["seed"] == 0
    json.loads((shot.folder / "shot.json").read_text())  # still plain JSON


def test_the_matte_says_what_it_was_made_with(shot: Shot, tmp_path: Path) -> None:
    record = shot.adapt(OPTIONS)
    shot.propagate()
    writer = MatteWriter(tmp_path / "matte.####.exr", shot.plate)
    shot.export(writer)
    metadata = read_matte(writer.written[1].path).metadata
    assert metadata["stm:adaptation"] == record.id
    assert metadata["stm:adaptation_keys"] == "1001"
    assert metadata["stm:weights_licence"] == LICENCE
    switch(shot, on=False)
    writer = MatteWriter(tmp_path / "plain.####.exr", shot.plate)
    shot.export(writer)
    assert "stm:adaptation" not in read_matte(writer.written[1].path).metadata


def test_a_shot_that_is_open_elsewhere_sees_it(shot: Shot) -> None:
    with Shot.open(shot.folder) as other:
        assert other.status().adapted is None
        record = shot.adapt(OPTIONS)
        assert other.status().adapted == record
        assert other.propagate().computed == len(FRAMES) - 1


def test_replaced_adaptations_are_cleaned_away(shot: Shot) -> None:
    shot.adapt(replace(OPTIONS, seed=1))
    record = shot.adapt(OPTIONS)
    assert len(list((shot.folder / "adapted").iterdir())) == 2
    shot.clean()
    assert [path.stem for path in (shot.folder / "adapted").iterdir()] == [record.id]


def test_the_time_given_is_kept(shot: Shot) -> None:
    assert shot.adapt(replace(OPTIONS, steps=1000), seconds=0).steps == 1


def test_one_call_adapts_once(tmp_path: Path, make_plate: PlateMaker, settings: Settings) -> None:
    plate, said = make_plate(frames=range(1001, 1003)), list[str]()

    def on_event(event: Event) -> None:
        if isinstance(event, Notice):
            said.append(event.text)

    def run(mask: FloatArray) -> int:
        said.clear()
        done = propagate(
            plate,
            {1001: {"disc": mask}},
            tmp_path / "matte.####.exr",
            settings=settings,
            adapt=OPTIONS,
            run=RunOptions(on_event=on_event),
        )
        return done.propagation.computed

    assert run(box(10)) == 1 and said[:1] == ["The network adapts to the keys first."]
    assert run(box(10)) == 0 and not said
    assert run(box(12)) == 1 and said


# ---- refusals ----


def test_without_a_key_there_is_nothing_to_learn_from(shot: Shot) -> None:
    shot.remove_key(1001)
    with pytest.raises(KeyframeError, match="no key to adapt to"):
        shot.adapt(OPTIONS)
    shot.add_key(1002, {"disc": np.zeros((48, 64), np.float32)}, allow_empty=True)
    with pytest.raises(KeyframeError, match="no key to adapt to"):
        shot.adapt(OPTIONS)
    assert shot.adaptation is None and not shot.settings.adapt


def test_an_object_too_small_to_learn_from_is_named(shot: Shot) -> None:
    speck = np.zeros((48, 64), np.float32)
    speck[20:23, 20:23] = 1
    shot.add_key(1001, {"disc": speck})
    with pytest.raises(KeyframeError, match="too small") as refused:
        shot.adapt(OPTIONS)
    assert refused.value.frame == 1001 and "region" in str(refused.value)


def test_it_says_its_memory_and_refuses_where_there_is_too_little(
    shot: Shot, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[AdaptationForecast] = []
    shot.adapt(OPTIONS, on_forecast=said.append)
    assert len(said) == 1 and said[0].working > 0
    before, settings = shot.adaptation, shot.settings
    monkeypatch.setattr("stm_plugin.propagation.propagation.free_memory", lambda device: 100 << 20)
    with pytest.raises(DeviceError, match=r"Adapting needs .* cpu has \d+ MB free.*nothing has changed"):
        shot.adapt(OPTIONS)
    assert (shot.adaptation, shot.settings) == (before, settings)


def test_it_cannot_be_switched_on_before_it_is_there(shot: Shot) -> None:
    with pytest.raises(SettingsError, match="not been adapted"):
        switch(shot, on=True)
    assert shot.status().dirty == ()


def test_a_busy_shot_is_named(shot: Shot) -> None:
    holding, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with Shot.open(shot.folder) as other, other.store.lock:
            holding.set()
            go_on.wait(60)

    worker = threading.Thread(target=hold)
    worker.start()
    try:
        assert holding.wait(60)
        with pytest.raises(StoreBusyError, match="held by process"):
            shot.adapt(OPTIONS)
    finally:
        go_on.set()
        worker.join(60)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "words"), [(Path.unlink, "is missing"), (truncate, "is damaged")])
def test_a_missing_or_damaged_adaptation_is_refused_and_comes_back(
    shot: Shot, harm: Callable[[Path], None], words: str
) -> None:
    record = shot.adapt(OPTIONS)
    harm(adaptation_path(shot.folder, record.id))
    assert words in advice_of(shot)[0]
    with pytest.raises(WeightsError, match=words) as refused:
        shot.propagate()
    assert "stm adapt" in str(refused.value)
    assert shot.adapt(OPTIONS) == record
    assert shot.propagate().computed == len(FRAMES) - 1


def test_a_damaged_key_is_named(shot: Shot) -> None:
    (path,) = (shot.folder / "keys").glob("*.mask")
    truncate(path)
    with pytest.raises(MaskError, match="mask of this key is damaged"):
        shot.adapt(OPTIONS)
    assert path.exists() and shot.adaptation is None


def test_a_plate_that_changed_under_a_key_is_read_anew(shot: Shot) -> None:
    before = shot.adapt(OPTIONS)
    assert isinstance(shot.plate, Plate)
    picture = Path(shot.plate.sequence.path(1001))
    content = picture.read_bytes()
    write_exr(picture, np.full((48, 64, 3), 0.5, np.float32))
    (sentence,) = advice_of(shot)
    assert "1001 with another plate under it" in sentence and "stm adapt" in sentence
    picture.write_bytes(content)
    assert advice_of(shot) == (), "rendered again, and the same pixels"
    picture.unlink()
    assert advice_of(shot) == (), "a frame that is not there says nothing"
    write_exr(picture, np.full((48, 64, 3), 0.5, np.float32))
    assert shot.adapt(OPTIONS).id != before.id
    assert advice_of(shot) == ()


def test_records_of_before_the_plate_was_kept_are_read(shot: Shot) -> None:
    shot.adapt(OPTIONS)
    path = shot.folder / "shot.json"
    values = json.loads(path.read_text("utf-8"))
    del values["adaptation"]["plate"], values["checksum"]
    path.write_text(json.dumps(values), "utf-8")
    with Shot.open(shot.folder) as opened:
        assert opened.adaptation is not None and opened.adaptation.plate == {}
        assert advice_of(opened) == ()


def test_other_base_weights_are_refused(shot: Shot, tmp_path: Path) -> None:
    shot.adapt(OPTIONS)
    other = save_weights(tmp_path / "other.safetensors", seed=8)
    with pytest.raises(WeightsError, match="adapted from other weights"):
        shot.set_settings(replace(shot.settings, weights=str(other)))
    shot.set_settings(replace(shot.settings, weights=str(other), adapt=False))
    with pytest.raises(WeightsError, match="adapted from other weights"):
        switch(shot, on=True)
    shot.adapt(OPTIONS)  # anew, from these
    assert shot.propagate().computed == len(FRAMES) - 1


def test_weights_that_were_replaced_under_an_adaptation_are_refused(shot: Shot, tmp_path: Path) -> None:
    mine = save_weights(tmp_path / "mine.safetensors", seed=9)
    shot.set_settings(replace(shot.settings, weights=str(mine)))
    shot.adapt(OPTIONS)
    save_weights(mine, seed=10)
    assert "other weights" in advice_of(shot)[0]
    with pytest.raises(WeightsError, match="adapted from other weights"):
        shot.propagate()


def test_stopping_changes_nothing(shot: Shot) -> None:
    with pytest.raises(PropagationCancelled):
        shot.adapt(OPTIONS, cancelled=lambda: True)
    assert shot.adaptation is None and not shot.settings.adapt
    assert shot.status().dirty == ()


def test_a_network_that_was_brought_along_is_refused(shot: Shot) -> None:
    with Shot.open(shot.folder, network=CountingNetwork().factory) as other, pytest.raises(SettingsError):
        other.adapt(OPTIONS)


# ---- the command ----


def test_the_command_adapts_and_says_what_is_stale(shot: Shot) -> None:
    said = CliRunner().invoke(app, ["adapt", str(shot.folder), "--steps", "1", "--seed", "3"])
    assert said.exit_code == 0, said.output
    assert "noise adapted to the keys 1001 in 1 steps" in said.output and LICENCE in said.output
    assert "1002-1005 will be recomputed" in said.output
    said = CliRunner().invoke(app, ["shot", "status", str(shot.folder)])
    assert "noise adapted to the keys 1001" in said.output
    said = CliRunner().invoke(app, ["info", "--shot", str(shot.folder)])
    assert LICENCE in said.output and "switched off" not in said.output
    shot.refresh()
    shot.remove_key(1001)
    refused = CliRunner().invoke(app, ["adapt", str(shot.folder)])
    assert isinstance(refused.exception, StmError) and "no key" in str(refused.exception)
