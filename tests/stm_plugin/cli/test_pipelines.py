"""Output for pipelines: JSON follows its schemas, exit codes their table, logs have one record a line."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stm_plugin import errors, logs
from stm_plugin.errors import StmError
from stm_plugin.exit_codes import ExitCode
from tests.conftest import PlateMaker
from tests.stm_plugin.command import Command

REPOSITORY = Path(__file__).resolve().parents[3]
SCHEMAS = REPOSITORY / "docs" / "schemas"


@pytest.fixture(autouse=True)
def own_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A separate log folder."""
    monkeypatch.setenv("STM_LOG_FOLDER", str(tmp_path / "log"))
    logs.start_log(None)
    yield tmp_path / "log"
    logs.start_log(None)


def check(text: str, schema: str) -> dict[str, Any]:
    """The one JSON object of a text; it must follow a schema of docs/schemas."""
    found: dict[str, Any] = json.loads(text)
    described = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(found, described, cls=jsonschema.Draft202012Validator)
    return found


# ---- JSON --------------------------------------------------------------------------------------


def test_every_json_output_keeps_to_its_schema(
    tmp_path: Path, make_plate: PlateMaker, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plate = make_plate(frames=range(1001, 1004))
    mask = plate.replace(".####.exr", ".mask.1001.png")
    shot, out = tmp_path / "hero.stmshot", str(tmp_path / "m" / "m.####.exr")
    monkeypatch.setenv("STM_LOG", "json")
    said = stm(
        *("propagate", plate, "--key", f"1001={mask}", "--out", out, "--shot", shot, "--working-size", 64),
        *("--overlay", tmp_path / "look", "--json"),
    )
    assert said.code == 0, said.err
    done = check(said.out, "propagate")
    assert done["computed"] == 2 and [one["frame"] for one in done["mattes"]] == [1001, 1002, 1003]
    assert all(Path(one["file"]).is_file() and one["written"] for one in done["mattes"])
    lines = [check(line, "log-line") for line in said.err.splitlines()]
    assert [one["frame"] for one in lines if one.get("event") == "frame_finished"] == [1001, 1002, 1003]
    assert [one["event"] for one in lines][:2] == ["command", "plan"]
    monkeypatch.delenv("STM_LOG")
    status = check(stm("shot", "status", shot, "--json").out, "status")
    assert status["states"]["done"] == [[1002, 1003]] and status["states"]["key"] == [[1001, 1001]]
    assert check(stm("shot", "propagate", shot, "--json").out, "shot-propagate")["computed"] == 0
    second = tmp_path / "second.####.exr"
    exported = check(stm("shot", "export", shot, second, "--frames", "1002", "--json").out, "export")
    assert [one["frame"] for one in exported["mattes"]] == [1002]
    info = check(stm("info", "--json", "--spaces", "--shot", shot).out, "info")
    assert "stm-lite" in [one["name"] for one in info["weights"]] and info["ocio"]["spaces"]
    assert str(tmp_path / "log" / "stm.log") in info["logs"]
    check(stm("config", "--json", "--shot", shot).out, "config")


def test_a_schema_refuses_what_it_does_not_describe() -> None:
    for file in SCHEMAS.glob("*.schema.json"):
        with pytest.raises(jsonschema.ValidationError):
            check('{"something": "else"}', file.name.removesuffix(".schema.json"))


def test_the_docs_name_every_schema() -> None:
    text = (REPOSITORY / "docs" / "studio.md").read_text()
    for file in SCHEMAS.glob("*.schema.json"):
        assert file.name.removesuffix(".schema.json") in text, file.name


# ---- exit codes ----------------------------------------------------------------------------------


def test_the_table_of_exit_codes_is_the_module() -> None:
    text = (REPOSITORY / "docs" / "exit-codes.md").read_text()
    table = {
        int(number): name for number, name in re.findall(r"^\| (\d+) \| ([A-Z]+) \|", text, re.MULTILINE)
    }
    assert table == {code.value: code.name for code in ExitCode}


def test_nukes_side_ends_with_the_same_codes() -> None:
    from stm_nuke import errors as nuke_errors

    kinds: dict[type[nuke_errors.StmNodeError], ExitCode] = {
        nuke_errors.StmNodeError: ExitCode.FAILED,
        nuke_errors.UsageError: ExitCode.USAGE,
        nuke_errors.ScriptError: ExitCode.SCRIPT,
        nuke_errors.NoNodeError: ExitCode.NODE,
        nuke_errors.KeyframeError: ExitCode.KEY,
        nuke_errors.PlateError: ExitCode.PLATE,
        nuke_errors.EngineFailure: ExitCode.ENGINE,
        nuke_errors.Stopped: ExitCode.STOPPED,
        nuke_errors.CacheError: ExitCode.STORE,
    }
    for kind, code in kinds.items():
        assert kind.exit_code == code, kind


def test_every_error_ends_with_a_code_of_the_table() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, StmError)]
    assert len(kinds) > 15
    for kind in kinds:
        assert isinstance(kind.exit_code, ExitCode) and kind.exit_code is not ExitCode.DONE, kind


def test_commands_end_with_the_code_of_their_error(
    tmp_path: Path, make_plate: PlateMaker, stm: Command
) -> None:
    plate = make_plate()
    mask, shot = plate.replace(".####.exr", ".mask.1001.png"), tmp_path / "hero.stmshot"
    out = tmp_path / "m.####.exr"
    key = ("--key", f"1001={mask}")
    assert stm("propagate", plate, "--out", out).code == ExitCode.USAGE
    assert stm("propagate", plate, *key, "--out", out, "--device", "tpu").code == ExitCode.USAGE
    assert stm("propagate", plate, "--key", "7=none.png", "--out", out).code == ExitCode.KEY
    assert stm("propagate", "none.####.exr", *key, "--out", out).code == ExitCode.PLATE
    assert stm("propagate", plate, *key, "--out", out, "--weights", "none").code == ExitCode.ENGINE
    assert stm("shot", "new", shot, plate).code == ExitCode.DONE
    assert stm("shot", "new", shot, plate).code == ExitCode.STORE
    assert stm("shot", "key", "add", shot, 1001, mask).code == ExitCode.DONE
    assert stm("shot", "export", shot, out).code == ExitCode.STORE
    description = json.loads((shot / "shot.json").read_text())
    (shot / "shot.json").write_text(json.dumps({**description, "schema": 99}))
    said = stm("shot", "status", shot)
    assert said.code == ExitCode.STORE and "newer" in said.err, "going back refuses what it cannot read"


# ---- logs ----------------------------------------------------------------------------------------


def test_an_error_stands_in_the_log_with_its_frame_and_its_code(
    own_logs: Path, stm: Command, make_plate: PlateMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STM_LOG", "json")
    said = stm("propagate", make_plate(), "--key", "1001=none.png", "--out", tmp_path / "m.####.exr")
    last = check(said.err.splitlines()[-1], "log-line")
    assert (last["event"], last["exit_code"], last["frame"]) == ("error", ExitCode.KEY, 1001)
    assert last["path"] == "none.png" and last["hint"]
    file = own_logs / "stm.log"
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["command", "error"]
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_logs_are_files_in_turn_with_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MOST_BYTES", 2000)
    logs.start_log(tmp_path / "engine.log")
    log = logging.getLogger("stm.server")
    for number in range(200):
        logs.event(log, "frame_finished", frame=number)
        logs.event(log, "progress", logging.DEBUG, frame=number)
    files = logs.log_files(tmp_path, "engine.log")
    assert [one.name for one in files] == ["engine.log", "engine.log.1", "engine.log.2", "engine.log.3"]
    assert all(one.stat().st_size <= 2000 for one in files)
    assert "INFO frame_finished frame=199" in files[0].read_text() and "progress" not in files[0].read_text()
    monkeypatch.setenv("STM_LOG_LEVEL", "debug")
    logs.start_log(tmp_path / "loud.log")
    logs.event(log, "progress", logging.DEBUG, frame=5)
    assert "DEBUG progress frame=5" in (tmp_path / "loud.log").read_text()


def test_a_locked_level_is_not_changed_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text("log_level = 'warning'\nlog_format = 'json'\nlocked = ['log_level']")
    monkeypatch.setenv("STM_CONFIG", str(tmp_path / "site.toml"))
    monkeypatch.setenv("STM_LOG_LEVEL", "debug")
    logs.start_log(tmp_path / "engine.log")
    logs.event(logging.getLogger("stm.server"), "notice", text="quiet")
    logs.event(logging.getLogger("stm.server"), "notice", logging.WARNING, text="loud")
    lines = (tmp_path / "engine.log").read_text().splitlines()
    assert [check(line, "log-line")["text"] for line in lines] == ["loud"]


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, stm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STM_LOG_FOLDER", str(tmp_path / "file" / "log"))
    said = stm("shot", "status", tmp_path / "nothing")
    assert said.code == ExitCode.STORE and "Traceback" not in said.err and said.err.count("Error:") == 1
