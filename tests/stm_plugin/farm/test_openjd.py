"""A bundle runs with `openjd run`, as on a farm: tasks in separate processes, one of them killed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stm_plugin.images.mask import MaskReading
from stm_plugin.planning.values import Request
from stm_plugin.settings import Settings
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from tests.nuke.comps import small_clip

REPOSITORY = Path(__file__).resolve().parents[3]
FRAMES = range(1001, 1010)
KEYS = (1001, 1005, 1009)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The `stm` command of this checkout."""
    made = tmp_path / "stm"
    words = f"PYTHONPATH={shlex.quote(str(REPOSITORY))} OMP_NUM_THREADS=1 exec {shlex.quote(sys.executable)}"
    made.write_text(f'#!/bin/sh\n{words} -m stm_plugin "$@"\n')
    made.chmod(0o755)
    return made


@dataclass(frozen=True)
class Footage:
    """A plate from 1001 on with a mask for each frame."""

    plate: str
    mask: str
    colour_space: str


@pytest.fixture(params=["a real clip", "a generated plate"])
def footage(request: pytest.FixtureRequest, tmp_path: Path, make_plate: Callable[..., str]) -> Footage:
    """Frames of the given clip `chair`, made small. Where there is none: a generated plate."""
    if request.param == "a real clip":
        clip = request.getfixturevalue("shared_data") / "clips" / "chair"
        small_clip(clip, tmp_path, len(FRAMES), (160, 90))
        plate, mask = str(tmp_path / "plate.####.png"), str(tmp_path / "mask.{}.png")
        return Footage(plate, mask, "sRGB Encoded Rec.709 (sRGB)")
    try:
        request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return generated(make_plate(frames=FRAMES, size=(128, 96)))
    pytest.skip("the given clip is run")


def generated(plate: str) -> Footage:
    return Footage(plate, plate.replace("####.exr", "mask.{}.png"), "lin_rec709_scene")


def make_shot(folder: Path, footage: Footage) -> None:
    settings = Settings(working_size=64, colour_space=footage.colour_space, device="cpu")
    with Shot.create(folder, PlateDescription("files", footage.plate), settings) as shot:
        for frame in KEYS:
            mask = Path(footage.mask.format(frame))
            shot.add_key(frame, mask, reading=MaskReading(objects=["ball"]))


class OpenJd:
    """Runs steps and tasks of a bundle."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle

    def start(self, step: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "openjd", "run", str(self._bundle / "template.yaml"), "--step", step]
        command += ["--job-param", f"file://{self._bundle / 'parameters.json'}", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, step: str, *words: str) -> str:
        return ended(self.start(step, *words))

    def fail(self, step: str) -> str:
        process = self.start(step)
        text, _ = process.communicate(timeout=300)
        assert process.returncode != 0, text
        return text


def run(*words: object) -> str:
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ended(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the command of the test is a shell script")
def test_a_bundle_runs_in_parallel_processes_with_one_killed_and_gives_the_bytes_of_one_machine(
    tmp_path: Path, footage: Footage, command: Path
) -> None:
    make_shot(tmp_path / "single.stmshot", footage)
    make_shot(tmp_path / "hero.stmshot", footage)
    with Shot.open(tmp_path / "hero.stmshot") as shot:
        names = [f"{one.key}:{one.direction.value}" for one in shot.plan(Request()).passes]

    run(command, "shot", "propagate", tmp_path / "single.stmshot")
    run(command, "shot", "export", tmp_path / "single.stmshot", tmp_path / "single.####.exr")
    bundle, mattes = tmp_path / "bundle", tmp_path / "hero.####.exr"
    options = ("--out", bundle, "--mattes", mattes, "--chunk", 4, "--stm", command)
    run(command, "farm", "bundle", tmp_path / "hero.stmshot", *options)
    run(sys.executable, "-m", "openjd", "check", bundle / "template.yaml")

    farm = OpenJd(bundle)
    farm.run("plan")
    kill_one_pass_after_its_first_result(tmp_path / "hero.stmshot", command, names[0])
    running = [farm.start("propagate", "--task-param", f"Pass={name}") for name in reversed(names)]
    for one in running:
        ended(one)
    farm.run("finish")
    assert "9 frames, 0 wrong" in farm.run("check")
    assert_same_mattes(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the command of the test is a shell script")
def test_the_printed_command_lines_give_the_bytes_of_one_machine_in_any_order_that_they_allow(
    tmp_path: Path, footage: Footage, command: Path
) -> None:
    """Each line goes through a shell as it is printed; of those that may run, the last one runs first."""
    make_shot(tmp_path / "hero.stmshot", footage)
    shutil.copytree(tmp_path / "hero.stmshot", tmp_path / "single.stmshot")
    run(command, "shot", "propagate", tmp_path / "single.stmshot")
    run(command, "shot", "export", tmp_path / "single.stmshot", tmp_path / "single.####.exr")
    words = ("--mattes", tmp_path / "hero.####.exr", "--chunk", 4, "--stm", command)
    told = run(command, "farm", "commands", tmp_path / "hero.stmshot", *words)
    lines = told.splitlines()
    waiting: dict[str, tuple[set[str], str]] = {}
    for head, line in zip(lines[::2], lines[1::2], strict=True):
        name, _, after = head.removeprefix("# ").partition(", after ")
        waiting[name] = (set(after.split(", ")) - {""}, line)
    assert len(waiting) == 1 + 4 + 3 + 1, "plan, passes, chunks, check"
    order: list[str] = []
    while waiting:
        name = [one for one, (after, _) in waiting.items() if after <= set(order)][-1]
        done = subprocess.run(waiting.pop(name)[1], shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        order.append(name)
    assert order[0] == "plan" and order[-1] == "check"
    assert_same_mattes(tmp_path)


def assert_same_mattes(folder: Path) -> None:
    for frame in FRAMES:
        ours, theirs = (folder / f"{name}.{frame}.exr" for name in ("hero", "single"))
        assert ours.read_bytes() == theirs.read_bytes(), frame


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the command of the test is a shell script")
def test_path_mapping_finds_the_plate_that_machines_mount_elsewhere(
    tmp_path: Path, make_plate: Callable[..., str], command: Path
) -> None:
    plate = make_plate(frames=FRAMES, size=(128, 96))
    make_shot(tmp_path / "hero.stmshot", generated(plate))
    bundle, elsewhere = tmp_path / "bundle", tmp_path / "elsewhere"
    run(command, "farm", "bundle", tmp_path / "hero.stmshot", "--out", bundle, "--stm", command)
    elsewhere.mkdir()
    for frame in FRAMES:
        (tmp_path / f"plate.{frame}.exr").rename(elsewhere / f"plate.{frame}.exr")
    rule = {"source_path_format": "POSIX", "source_path": plate}
    rule["destination_path"] = str(elsewhere / Path(plate).name)
    rules = {"version": "pathmapping-1.0", "path_mapping_rules": [rule]}
    (tmp_path / "rules.json").write_text(json.dumps(rules), "utf-8")
    mapping = ("--path-mapping-rules", f"file://{tmp_path / 'rules.json'}")
    assert "openjd_fail" in OpenJd(bundle).fail("plan"), "without the rule the plate is not found"
    told = OpenJd(bundle).run("plan", *mapping)
    assert "openjd_fail" not in told and "frames through the network" in told


def kill_one_pass_after_its_first_result(folder: Path, command: Path, name: str) -> None:
    words = [str(command), "farm", "pass", str(folder), name]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list((folder / "mattes").glob("??/*.prob")) and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
