"""One shot on many machines: parts, tasks in any order, bundle, plain commands, merged folders."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from openjd.cli import main as openjd
from openjd.model import DocumentType, decode_job_template, document_string_to_object

from stm_plugin.cli import main
from stm_plugin.errors import MatteError, SettingsError, StoreError
from stm_plugin.exit_codes import ExitCode
from stm_plugin.farm.bundle import TEMPLATE, job_of, template, values
from stm_plugin.farm.commands import commands
from stm_plugin.farm.merge import merge
from stm_plugin.farm.outline import layer_name, outline_script
from stm_plugin.farm.parts import parse_pass, parts_of
from stm_plugin.farm.work import FarmShot
from stm_plugin.images.mask import MaskReading
from stm_plugin.planning.values import Request
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import ShotStore
from tests.stm_plugin.small_network import WORKING_SIZE, CountingNetwork

FRAMES = range(1001, 1010)
KEYS = (1001, 1005, 1009)
Mattes = dict[int, bytes]


@pytest.fixture
def plate(make_plate: Callable[..., str]) -> str:
    return make_plate(frames=FRAMES)


def make_shot(folder: Path, plate: str) -> Path:
    settings = Settings(working_size=WORKING_SIZE, memory_rule="every:3", colour_space="lin_rec709_scene")
    with Shot.create(folder, PlateDescription("files", plate), settings) as shot:
        for frame in KEYS:
            mask = Path(plate).parent / f"plate.mask.{frame}.png"
            shot.add_key(frame, mask, reading=MaskReading(objects=["ball"]))
    return folder


@pytest.fixture
def folder(tmp_path: Path, plate: str) -> Path:
    return make_shot(tmp_path / "hero.stmshot", plate)


@pytest.fixture
def single(tmp_path: Path, plate: str) -> Mattes:
    """The mattes of a single machine."""
    out = tmp_path / "single" / "matte.####.exr"
    with Shot.open(make_shot(tmp_path / "single.stmshot", plate), network=CountingNetwork().factory) as shot:
        shot.propagate(writer=MatteWriter(out, shot.plate))
    return mattes_in(out)


def mattes_in(out: Path) -> Mattes:
    return {frame: Path(str(out).replace("####", str(frame))).read_bytes() for frame in FRAMES}


class Farm:
    """Runs tasks as separate machines do: each opens the shot again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network = folder, CountingNetwork()
        self.out = folder.parent / folder.stem / "matte.####.exr"
        with self.open() as opened:
            self.address = opened.address
            self.plan = opened.propagation.plan()
            self.parts = parts_of(self.plan, 4)

    def open(self, request: Request | None = None, expects: str | None = None) -> FarmShot:
        return FarmShot(self.folder, request or Request(), expects=expects, network=self.network.factory)

    def prepare(self) -> None:
        with self.open(expects=self.address) as opened:
            opened.prepare(str(self.out))

    def run_pass(self, text: str) -> int:
        with self.open(expects=self.address) as opened:
            return opened.run_pass(parse_pass(text))

    def finish(self, first: int, last: int) -> int:
        with self.open(Request(first, last), self.address) as opened:
            return opened.finish(str(self.out))

    def finish_all(self) -> None:
        for chunk in reversed(self.parts.chunks):
            self.finish(chunk.first, chunk.last)


@pytest.mark.slow
def test_tasks_in_odd_order_and_twice_give_the_bytes_of_one_machine(folder: Path, single: Mattes) -> None:
    farm = Farm(folder)
    farm.prepare()
    for passed in reversed(farm.parts.passes):
        assert farm.run_pass(passed.text) == passed.frames
    for passed in farm.parts.passes:
        assert farm.run_pass(passed.text) == 0
    farm.network.calls.clear()
    farm.finish_all()
    with farm.open(expects=farm.address) as opened:
        report = opened.check(str(farm.out))
    assert report.problems == {}
    assert set(report.qualities) == set(FRAMES)
    assert not farm.network.calls, "finishing and checking must not run the network"
    assert mattes_in(farm.out) == single


@pytest.mark.slow
def test_a_pass_that_was_stopped_goes_on_from_what_is_there(folder: Path, single: Mattes) -> None:
    farm = Farm(folder)
    farm.prepare()
    for passed in farm.parts.passes:
        farm.run_pass(passed.text)
    results = sorted((folder / "mattes").glob("??/*.prob"))
    results[0].unlink()
    results[1].write_bytes(results[1].read_bytes()[:100])
    again = sum(farm.run_pass(passed.text) for passed in farm.parts.passes)
    assert again == 2
    farm.finish_all()
    assert mattes_in(farm.out) == single


def test_tasks_write_nothing_but_results_without_the_lock(folder: Path) -> None:
    farm = Farm(folder)
    farm.prepare()

    def others() -> dict[Path, bytes]:
        files = [one for one in folder.rglob("*") if one.is_file() and one.suffix != ".prob"]
        return {one: one.read_bytes() for one in files}

    before = others()
    for passed in farm.parts.passes:
        farm.run_pass(passed.text)
    farm.finish_all()
    assert others() == before


@pytest.mark.slow
def test_two_folders_that_were_apart_are_merged(tmp_path: Path, folder: Path, single: Mattes) -> None:
    farm = Farm(folder)
    farm.prepare()
    apart = [Farm(Path(shutil.copytree(folder, tmp_path / f"apart{number}.stmshot"))) for number in (1, 2)]
    for number, passed in enumerate(farm.parts.passes):
        apart[number % 2].run_pass(passed.text)
    bad = sorted((apart[0].folder / "mattes").glob("??/*.prob"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    sources = [one.folder for one in apart]
    assert [one.damaged for one in merge(folder, sources)] == [(bad,), ()]
    bad.write_bytes(whole)
    assert [(one.copied, one.damaged) for one in merge(folder, sources)] == [(1, ()), (0, ())]
    farm.finish_all()
    assert mattes_in(farm.out) == single


def test_merging_refuses_another_shot(tmp_path: Path, folder: Path, plate: str) -> None:
    other = tmp_path / "other.stmshot"
    with Shot.create(other, PlateDescription("files", plate)) as shot:
        shot.add_key(1003, tmp_path / "plate.mask.1003.png")
    with pytest.raises(StoreError, match="no key in common"):
        merge(folder, [other])
    with pytest.raises(StoreError, match="with itself"):
        merge(folder, [folder])


def test_the_check_names_what_is_missing_and_damaged(folder: Path) -> None:
    farm = Farm(folder)
    farm.prepare()
    with pytest.raises(MatteError, match=r"frame 1002: .*not done.*stm farm pass"):
        farm.finish(1002, 1004)
    for passed in farm.parts.passes:
        farm.run_pass(passed.text)
    farm.finish_all()
    gone, cut = (Path(str(farm.out).replace("####", str(one))) for one in (1003, 1007))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-200])
    with farm.open() as opened:
        report = opened.check(str(farm.out))
    assert set(report.problems) == {1003, 1007}
    with pytest.raises(MatteError, match=r"frame 1003: The matte .*matte.1003.exr does not exist. 1 more"):
        report.raise_if_wrong()
    assert farm.finish(1001, 1009) == 2
    gone.unlink()
    for result in (folder / "mattes").rglob("*.prob"):
        result.write_bytes(result.read_bytes()[:-9] + bytes(9))
    with pytest.raises(MatteError, match=r"frame 1003, .*\.prob: .* is damaged.*stm farm pass"):
        farm.finish(1001, 1009)


def test_a_task_refuses_a_shot_that_changed_since_the_bundle(folder: Path) -> None:
    farm = Farm(folder)
    farm.prepare()
    with Shot.open(folder) as shot:
        shot.remove_key(1005)
    with pytest.raises(StoreError, match="changed since the job was made"):
        farm.run_pass("1001:forward")
    farm.address = ""
    with pytest.raises(SettingsError, match="no pass 1005:forward"):
        farm.run_pass("1005:forward")


def test_a_chunk_waits_for_every_pass_that_comes_by(folder: Path) -> None:
    farm = Farm(folder)
    with farm.open() as opened:
        job = job_of(opened, farm.plan, farm.parts, str(farm.out))
    found = commands(job)
    by_name = {one.name: one for one in found}
    for chunk in farm.parts.chunks:
        for passed in farm.plan.passes:
            comes_by = any(chunk.first <= frame <= chunk.last for frame in passed.frames)
            name = f"pass {passed.key}:{passed.direction}"
            assert (name in by_name[f"finish {chunk.text}"].after) == comes_by
    names = [one.name for one in found]
    assert all(names.index(before) < names.index(one.name) for one in found for before in one.after)
    assert names[0] == "plan" and names[-1] == "check"


def test_a_plate_that_a_host_pushed_is_no_parameter(folder: Path) -> None:
    farm = Farm(folder)
    with farm.open() as opened:
        job = replace(job_of(opened, farm.plan, farm.parts, str(farm.out)), plate="")
    made = decode_job_template(template=template(job))
    assert {one.name for one in made.parameterDefinitions or ()} == set(values(job))
    assert "Plate" not in json.dumps(template(job))


def stm(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else int(code is not None)


def test_the_bundle_is_a_template_of_the_open_job_format(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    assert stm(monkeypatch, "farm", "bundle", folder, "--out", bundle, "--chunk", 4) == 0
    text = (bundle / TEMPLATE).read_text("utf-8")
    for kind in (DocumentType.YAML, DocumentType.JSON):
        document = document_string_to_object(document=text, document_type=kind)
        made = decode_job_template(template=document)
    assert [step.name for step in made.steps] == ["plan", "propagate", "finish", "check"]
    listed = json.loads((bundle / "parameter_values.yaml").read_text("utf-8"))["parameterValues"]
    given = {one["name"]: one["value"] for one in listed}
    assert given == json.loads((bundle / "parameters.json").read_text("utf-8"))
    assert {one.name for one in made.parameterDefinitions or ()} == set(given)
    assets = json.loads((bundle / "asset_references.yaml").read_text("utf-8"))["assetReferences"]
    assert str(tmp_path / "plate.1001.exr") in assets["inputs"]["filenames"]
    assert stm(monkeypatch, "farm", "bundle", folder, "--out", bundle) == 0, "our own files may be replaced"


def test_progress_and_failure_are_told_as_the_format_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", folder.parent / "told.####.exr", "--openjd")
    assert stm(monkeypatch, "farm", "plan", folder, *out) == 0
    told = capsys.readouterr().out
    progress = [float(one) for one in re.findall(r"^openjd_progress: (\S+)$", told, re.MULTILINE)]
    assert progress == sorted(progress) and progress[-1] == 100.0
    (folder.parent / "plate.1004.exr").unlink()
    assert stm(monkeypatch, "farm", "plan", folder, *out) == ExitCode.PLATE
    failed = re.findall(r"^openjd_fail: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(failed) == 1 and "frame 1004" in failed[0] and "plate.1004.exr" in failed[0]


def test_a_bundle_of_a_plate_and_its_keys_makes_the_shot_and_passes_the_formats_check(
    tmp_path: Path, plate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "hero.bundle"
    keys = [word for one in KEYS for word in ("--key", f"{one}={tmp_path}/plate.mask.{one}.png")]
    roundabout = Path(plate).parent / ".." / Path(plate).parent.name / Path(plate).name
    assert stm(monkeypatch, "farm", "bundle", roundabout, *keys, "--out", bundle, "--chunk", 4) == 0
    check_format(bundle, monkeypatch, capsys)
    shot = tmp_path / "hero.bundle.stmshot"
    given = json.loads((bundle / "parameters.json").read_text("utf-8"))
    assert (given["Shot"], given["Plate"]) == (str(shot), plate)
    assert tuple(one.frame for one in ShotStore.open(shot).description().keys) == KEYS
    assert stm(monkeypatch, "farm", "bundle", plate, *keys, "--out", bundle) == ExitCode.STORE, (
        "never replaced"
    )

    task = plan_of(bundle)
    assert stm(monkeypatch, *task) == 0
    (tmp_path / "plate.1004.exr").write_bytes(b"none")
    capsys.readouterr()
    assert stm(monkeypatch, *task) == ExitCode.PLATE
    failed = re.findall(r"^openjd_fail: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(failed) == 1 and "1004" in failed[0]


def test_a_bundle_of_wrong_input_leaves_no_shot_behind(
    tmp_path: Path, plate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "hero.bundle"
    key = f"1001={tmp_path}/plate.mask.1001.png"
    for wrong in (
        ("--key", f"1001={tmp_path}/none.png"),
        ("--key", f"2001={tmp_path}/plate.mask.1001.png"),
        ("--key", key, "--chunk", 0),
        ("--key", key, "--frames", "2001-2010"),
        ("--key", key, "--frames", "1001-2000"),
        ("--key", key, "--mattes", plate),
    ):
        assert stm(monkeypatch, "farm", "bundle", plate, *wrong, "--out", bundle) != 0, wrong
        assert not (tmp_path / "hero.bundle.stmshot").exists(), wrong
        assert not bundle.exists(), wrong


def check_format(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run `openjd check` on a bundle."""
    monkeypatch.setattr(sys, "argv", ["openjd", "check", str(bundle / TEMPLATE)])
    try:
        openjd()
    except SystemExit as ended:
        assert ended.code in (0, None), capsys.readouterr().out


def plan_of(bundle: Path) -> list[str]:
    """The command of the plan's task with the values of the bundle, as a farm runs it."""
    made = json.loads((bundle / TEMPLATE).read_text("utf-8"))["steps"][0]["script"]["actions"]["onRun"]
    given = json.loads((bundle / "parameters.json").read_text("utf-8"))
    return [re.sub(r"{{Param\.(\w+)}}", lambda one: given[one[1]], word) for word in made["args"]]


OUTLINE_PYTHON = os.environ.get("STM_OUTLINE_PYTHON") or (sys.executable if find_spec("outline") else "")


def test_the_script_for_opencue_has_a_layer_per_task_and_its_dependencies(folder: Path) -> None:
    farm = Farm(folder)
    with farm.open() as opened:
        job = replace(job_of(opened, farm.plan, farm.parts, str(farm.out)), gpu=True)
    layers = ast.literal_eval(outline_script(job).split("LAYERS = ")[1].split("\n\n\ndef build")[0])
    found = commands(job)
    assert [(name, after, line) for name, after, line, _ in layers] == [
        (layer_name(one.name), [layer_name(before) for before in one.after], one.line) for one in found
    ]
    assert {one["memory"] for name, _, _, one in layers if "gpus" in one} == {
        f"{-(-job.memory.total // 2**20)}m"
    }
    assert sum("gpus" in one for *_, one in layers) == len(job.parts.passes)
    assert layer_name("finish -5--1") == "finish_m5_m1"
    assert layer_name("pass -5:backward") == "pass_m5_backward"


@pytest.mark.skipif(not OUTLINE_PYTHON, reason="opencue-pyoutline is not installed")
def test_the_script_for_opencue_builds_and_serialises_without_a_server(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stm(monkeypatch, "farm", "commands", folder, "--chunk", 4, "--format", "opencue") == 0
    script = tmp_path / "hero.py"
    script.write_text(capsys.readouterr().out, "utf-8")
    assert stm(monkeypatch, "farm", "commands", folder, "--chunk", 4, "--json") == 0
    tasks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setenv("OUTLINE_OUTLINE_SESSION_DIR", str(tmp_path / "sessions"))
    done = subprocess.run(
        [OUTLINE_PYTHON, str(script), "--print"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    spec = ElementTree.fromstring(done.stdout)
    lines = {one.get("name"): one.findtext("cmd") for one in spec.iter("layer")}
    assert lines == {layer_name(one["name"]): shlex.join(one["command"]) for one in tasks}
    waits = {(one.findtext("deplayer"), one.findtext("onlayer")) for one in spec.iter("depend")}
    assert waits == {(layer_name(one["name"]), layer_name(two)) for one in tasks for two in one["after"]}
