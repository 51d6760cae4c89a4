"""A bundle for training: its format, its task, and the collected results."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import model.training.archive as archive_room
import stm_plugin.farm.training as training_room
from model.data.pictures import write_labels
from model.training.archive import collect, pack
from model.training.clips import ClipOptions
from model.training.trainer import TrainingConfig, saved_config
from stm_plugin.cli import main
from stm_plugin.errors import OutputError, SettingsError
from stm_plugin.farm.bundle import ASSETS, PLAIN_VALUES, TEMPLATE


def packed(folder: Path, batch: int) -> Path:
    """A packed run with two stills."""
    for number in range(2):
        mask = np.zeros((48, 64), np.uint8)
        mask[10:40, 8 + 8 * number : 40] = 1
        picture = folder / "stills" / "images" / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([mask * 200] * 3, axis=-1)).save(picture)
        write_labels(folder / "stills" / "masks" / f"{number}.png", mask)
    clip = ClipOptions(size=32, frames=2)
    config = TrainingConfig(batch=batch, stills=(str(folder / "stills"),), bf16=False, clip=clip)
    pack(config, folder / "away.tar")
    return folder / "away.tar"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return packed(tmp_path, batch=1)


def stm(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["stm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else int(code is not None)


def task_of(bundle: Path) -> list[str]:
    """The command of the bundle's task, as a farm runs it."""
    action = json.loads((bundle / TEMPLATE).read_text("utf-8"))["steps"][0]["script"]["actions"]["onRun"]
    given = json.loads((bundle / PLAIN_VALUES).read_text("utf-8"))
    given["Scratch"] = str(bundle.parent)
    words = [one.replace("{{Session.WorkingDirectory}}", "{{Param.Scratch}}") for one in action["args"]]
    return [re.sub(r"{{Param\.(\w+)}}", lambda one: str(given[one[1]]), word) for word in words]


def test_the_bundle_for_training_passes_the_formats_check_and_asks_for_a_gpu(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    assert stm(monkeypatch, "farm", "training", archive, "--out", bundle, "--minutes", 12.5) == 0
    words = [sys.executable, "-m", "openjd", "check", str(bundle / TEMPLATE)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((bundle / TEMPLATE).read_text("utf-8"))
    (step,) = made["steps"]
    assert {"name": "amount.worker.gpu", "min": 1} in step["hostRequirements"]["amounts"]
    given = json.loads((bundle / PLAIN_VALUES).read_text("utf-8"))
    assert {one["name"] for one in made["parameterDefinitions"]} == set(given)
    assert given["Archive"] == str(archive) and given["Minutes"] == 12.5
    assets = json.loads((bundle / ASSETS).read_text("utf-8"))["assetReferences"]
    assert assets["inputs"]["filenames"] == [str(archive)]
    assert assets["outputs"]["directories"] == [str(Path(given["Result"]).parent)]
    assert stm(monkeypatch, "farm", "training", archive, "--out", bundle, "--device", "cpu") == 0
    (step,) = json.loads((bundle / TEMPLATE).read_text("utf-8"))["steps"]
    assert "gpu" not in json.dumps(step["hostRequirements"])


def test_a_bundle_for_several_machines_has_a_task_for_each_and_is_refused_where_they_cannot_share(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    words: list[object] = ["farm", "training", archive, "--out", bundle, "--machines", 2]
    assert stm(monkeypatch, *words) == SettingsError.exit_code, "no address where they meet"
    words += ["--rendezvous", "node1:29400"]
    assert stm(monkeypatch, *words) == SettingsError.exit_code, "a batch of one is for one process"
    assert not bundle.exists()
    monkeypatch.setattr(training_room, "packed_config", lambda _: TrainingConfig(batch=8))
    assert stm(monkeypatch, *words, "--processes", 4) == 0
    check = [sys.executable, "-m", "openjd", "check", str(bundle / TEMPLATE)]
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0
    (step,) = json.loads((bundle / TEMPLATE).read_text("utf-8"))["steps"]
    (machine,) = step["parameterSpace"]["taskParameterDefinitions"]
    assert machine["range"] == "1-2"
    assert {"name": "amount.worker.gpu", "min": 4} in step["hostRequirements"]["amounts"]
    assert "--rendezvous node1:29400" in " ".join(task_of(bundle))


STM = """
import itertools, types
import model.training.archive as room
from stm_plugin.cli import main
room.time = types.SimpleNamespace(monotonic=itertools.count(step=2).__next__)
main()
"""
"""`stm` with a clock that goes on by two seconds each time it is asked."""
TASK = """
import sys
import stm_plugin.farm.training as room
room._PROGRAM = (sys.argv[1],)
sys.argv[:2] = ["stm"]
from stm_plugin.cli import main
main()
"""


@pytest.mark.slow
def test_the_tasks_of_two_machines_train_together_and_write_one_result(tmp_path: Path) -> None:
    archive, result, root = packed(tmp_path, batch=2), tmp_path / "result.tar", Path(__file__).parents[3]
    (tmp_path / "stm.py").write_text(STM)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    words = ["farm", "train", "--minutes", "1", "--device", "cpu", "--workers", "0", "--machines", "2"]
    words += ["--rendezvous", meeting, str(archive), str(result)]
    command = [sys.executable, "-c", TASK, str(tmp_path / "stm.py"), *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert sum(text.count("written") for text in said) == 1, "the first process writes"
    collect(result, tmp_path / "home")
    assert saved_config(tmp_path / "home") is not None


@pytest.mark.slow
def test_the_task_of_training_gives_a_result_that_comes_home_and_may_run_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    options = ("--minutes", 1, "--device", "cpu", "--workers", 0)
    assert stm(monkeypatch, "farm", "training", archive, "--out", bundle, *options) == 0
    # a clock that goes on by two seconds each time it is asked: what is tested is not this machine's speed
    clock = SimpleNamespace(monotonic=itertools.count(step=2).__next__)
    monkeypatch.setattr(archive_room, "time", clock)
    capsys.readouterr()
    for _ in range(2):
        assert stm(monkeypatch, *task_of(bundle)) == 0
    progress = re.findall(r"^openjd_progress: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert progress and all(0 < float(one) <= 100 for one in progress)
    collect(bundle / "result.tar", tmp_path / "home")
    assert saved_config(tmp_path / "home") is not None
    assert sorted(one.name for one in bundle.iterdir() if not one.name.startswith(".stm-outputs")) == [
        "asset_references.yaml", "parameter_values.yaml", "parameters.json", "result.tar", "template.yaml"
    ]  # fmt: skip
    assert not list(tmp_path.glob("stm-train-*")), "the scratch folder is removed"


def test_training_on_a_farm_replaces_no_input_and_nothing_that_is_no_result(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, before = tmp_path / "thesis.tar", archive.read_bytes()
    with tarfile.open(other, "w") as tar:
        tar.add(tmp_path / "stills", arcname="stills")
    mine = other.read_bytes()
    for result in (archive, other):
        words = (archive, "--out", tmp_path / "bundle", "--result", result)
        assert stm(monkeypatch, "farm", "training", *words) == OutputError.exit_code
        assert stm(monkeypatch, "farm", "train", "--device", "cpu", archive, result) == OutputError.exit_code
    assert (
        stm(monkeypatch, "farm", "training", other, "--out", tmp_path / "bundle") == SettingsError.exit_code
    )
    assert "stm train pack" in capsys.readouterr().err
    assert (archive.read_bytes(), other.read_bytes()) == (before, mine)
    assert not (tmp_path / "bundle").exists()
