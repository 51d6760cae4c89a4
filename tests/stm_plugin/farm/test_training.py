"""A bundle for training: its format, its task, and the collected results."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import model.training.archive as archive_room
from model.data.pictures import write_labels
from model.training.archive import collect, pack
from model.training.clips import ClipOptions
from model.training.trainer import TrainingConfig, saved_config
from stm_plugin.cli import main
from stm_plugin.errors import OutputError, SettingsError
from stm_plugin.farm.bundle import ASSETS, PLAIN_VALUES, TEMPLATE


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A packed run with two stills."""
    for number in range(2):
        mask = np.zeros((48, 64), np.uint8)
        mask[10:40, 8 + 8 * number : 40] = 1
        picture = tmp_path / "stills" / "images" / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([mask * 200] * 3, axis=-1)).save(picture)
        write_labels(tmp_path / "stills" / "masks" / f"{number}.png", mask)
    clip = ClipOptions(size=32, frames=2)
    config = TrainingConfig(batch=1, stills=(str(tmp_path / "stills"),), bf16=False, clip=clip)
    pack(config, tmp_path / "away.tar")
    return tmp_path / "away.tar"


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
