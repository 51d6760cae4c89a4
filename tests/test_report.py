"""`stm doctor --report`: the files that a supporter needs, and nothing else."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from stm_plugin.installation.prefix import InstallationError, Prefix
from stm_plugin.installation.report import write_report
from tests.conftest import REPOSITORY, PlateMaker
from tests.stm_plugin.command import Command
from tests.stm_plugin.conftest import stm as stm


def test_a_report_holds_versions_configuration_logs_and_errors_and_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_plate: PlateMaker, stm: Command
) -> None:
    monkeypatch.setattr("stm_plugin.logs._handlers", [])  # an earlier test may have a log
    home = tmp_path / "home" / "mona"
    (home / "log").mkdir(parents=True)
    for name, value in {
        "HOME": home,
        "PYTHONPATH": REPOSITORY,
        "STM_LOG_FOLDER": home / "log",
        "STM_CONFIG": home / "site.toml",
        "STM_RUNTIME_DIR": home / "run",
        "STM_SECRET_TOKEN": "hunter2",
    }.items():
        monkeypatch.setenv(name, str(value))
    (home / "site.toml").write_text("\nlocked = ['device']\ndevice = 'cpu'\n")
    make_plate()
    mask = home / "mask.png"
    (tmp_path / "plate.mask.1001.png").rename(mask)
    assert stm("propagate", home / "none.####.exr", "--key", f"1001={mask}", "-o", home / "m.#.exr").code == 6
    (home / "run").mkdir()
    (home / "run" / "engine.log").write_text("2026-01-01 ERROR a request failed\n")
    file = tmp_path / "report.zip"
    said = stm("doctor", "--prefix", tmp_path / "nowhere", "--report", file)
    assert said.code == 0 and "read them before you send" in said.out, said.err
    with zipfile.ZipFile(file) as archive:
        texts = {name: archive.read(name).decode("utf-8") for name in archive.namelist()}
    assert set(texts) == {
        *("README.txt", "doctor.txt", "information.json", "configuration.json", "environment.json"),
        *("errors.txt", "logs/stm.log", "logs/engine.log"),
    }
    assert "not installed" in texts["doctor.txt"]
    assert json.loads(texts["information.json"])["packages"]["torch"]
    values = {one["name"]: one for one in json.loads(texts["configuration.json"])["values"]}
    assert values["device"]["lock"] == {"file": "~/site.toml", "line": 2}
    assert "none.####.exr" in texts["errors.txt"] and "a request failed" in texts["errors.txt"]
    assert json.loads(texts["environment.json"])["variables"]["STM_CONFIG"] == "~/site.toml"
    whole = "".join(texts.values())
    assert str(home) not in whole and "hunter2" not in whole and "\x89PNG" not in whole
    for name in texts:
        assert f"{name.split('/')[0]}" in texts["README.txt"] + "README.txt", "the report says what it holds"


def test_a_report_replaces_no_other_file(tmp_path: Path) -> None:
    file = tmp_path / "plate.zip"
    file.write_bytes(b"precious")
    with pytest.raises(InstallationError, match="another file"):
        write_report(Prefix(tmp_path / "nowhere"), Path(sys.executable), file)
    assert file.read_bytes() == b"precious"
