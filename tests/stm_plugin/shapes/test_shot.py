"""Shapes of a shot: `Shot.shapes()` and `stm shot shapes`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stm_plugin.cli import main
from stm_plugin.errors import MatteError, OutputError, PlateError, SettingsError
from stm_plugin.exit_codes import ExitCode
from stm_plugin.images.mask import MaskReading
from stm_plugin.planning.values import Request
from stm_plugin.settings import Settings
from stm_plugin.shapes.json_file import shapes_from_json
from stm_plugin.shapes.nuke import read_nuke_script
from stm_plugin.shapes.raster import rasterised
from stm_plugin.shot.shapes import write_shapes
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.stm_plugin.shapes.shape_pictures import overlap
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

FRAMES = range(1001, 1005)
OVERSCAN = 6
MakePlate = Callable[..., str]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, make_plate: MakePlate) -> Path:
    """A shot whose every frame but the last is a key."""
    plate = make_plate(frames=FRAMES, size=(128, 96), overscan=OVERSCAN)
    settings = Settings(working_size=WORKING_SIZE, colour_space="lin_rec709_scene")
    made = tmp_path / "hero.stmshot"
    with Shot.create(made, PlateDescription("files", plate), settings) as shot:
        for frame in FRAMES[:-1]:
            shot.add_key(frame, tmp_path / f"plate.mask.{frame}.png", reading=MaskReading(objects=["ball"]))
    return made


@pytest.fixture
def shot(folder: Path) -> Shot:
    return Shot.open(folder, network=CountingNetwork().factory)


DONE = Request(1001, 1003)


def test_shapes_of_a_shot_are_its_mattes_in_plate_pixels(shot: Shot) -> None:
    made = shot.shapes(DONE)
    assert made.frames == (1001, 1002, 1003)
    assert made.display_window == shot.plate.display_window
    for frame in made.frames:
        finished = shot.matte(frame)
        window = finished.plate_frame.data_window
        assert window.x == -OVERSCAN
        assert overlap(rasterised(made, "ball", frame, window), finished.mattes["ball"]) > 0.98


def test_a_frame_that_is_not_done_is_named_before_anything_is_computed(shot: Shot) -> None:
    with pytest.raises(MatteError, match=r"frame 1004: The frame is not done[^.]*\. Run `stm shot propagate"):
        shot.shapes()


def test_an_object_that_is_not_there_is_named_with_those_that_are(shot: Shot) -> None:
    with pytest.raises(SettingsError, match=r"“cat”.*ball"):
        shot.shapes(DONE, objects=["cat"])


def test_shapes_are_never_written_over_the_plate_or_a_strangers_file(shot: Shot, tmp_path: Path) -> None:
    made = shot.shapes(DONE)
    with pytest.raises(OutputError, match="overwrite"):
        write_shapes(shot, made, tmp_path / "plate.1001.exr", "json", overwrite=True)
    stranger = tmp_path / "hero.nk"
    stranger.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_shapes(shot, made, stranger, "nuke")
    assert stranger.read_text() == "mine"
    write_shapes(shot, made, stranger, "nuke", overwrite=True)
    write_shapes(shot, made, stranger, "nuke")  # its own file now
    assert stranger.read_text().startswith("Roto {")


def test_frames_that_the_plate_lacks_and_files_that_stay_are_named_before_the_work(
    shot: Shot, folder: Path, tmp_path: Path, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlateError, match="does not have the frames 990-1000"):
        shot.shapes(Request(990, DONE.last))
    (tmp_path / "plate.1001.nk").hardlink_to(tmp_path / "plate.1001.exr")
    monkeypatch.setattr("stm_plugin.shot.shapes.make_shapes", None)
    for words in (["--overwrite"], []):
        code, said = stm("shot", "shapes", folder, "--out", tmp_path / "plate.1001.nk", *words)
        assert code == ExitCode.STORE and "overwrite the plate" in said


@pytest.fixture
def stm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["stm", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def test_the_command_writes_every_format(folder: Path, tmp_path: Path, stm: Command) -> None:
    for name in ("hero.nk", "hero.py", "hero.json", "hero.####.svg"):
        code, said = stm("shot", "shapes", folder, "--out", tmp_path / name, "--frames", "1001-1003")
        assert code == 0, said
        assert "1 shape, " in said
    text = (tmp_path / "hero.nk").read_text()
    with Shot.open(folder) as shot:
        display = shot.plate.display_window
    made = shapes_from_json(json.loads((tmp_path / "hero.json").read_text()))
    again = read_nuke_script(text, display, made.frames)
    assert np.allclose(again.shapes[0].at(1002).centre, made.shapes[0].at(1002).centre, atol=1e-3)
    assert sorted(path.name for path in tmp_path.glob("hero.*.svg")) == [
        f"hero.{frame}.svg" for frame in (1001, 1002, 1003)
    ]


def test_the_command_says_which_frame_is_not_done(folder: Path, tmp_path: Path, stm: Command) -> None:
    code, said = stm("shot", "shapes", folder, "--out", tmp_path / "hero.nk")
    assert code != 0
    assert "1004" in said
    assert not (tmp_path / "hero.nk").exists()
