"""No command prints a traceback: errors name the file and say what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from stm_plugin.cli.main import DEBUG_VARIABLE
from stm_plugin.cli.main import main as command
from stm_plugin.exit_codes import ExitCode

LONG = "a" * 300


def said_by(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The text on stderr of a command that fails."""
    monkeypatch.setattr(sys, "argv", ["stm", *arguments])
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code in set(ExitCode) - {ExitCode.DONE}
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.splitlines()[-1].startswith("Error: "), said
    assert said.endswith(".\n"), said
    return said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "--ocio", "bad.ocio"], ("bad.ocio", "leave it out")),
        (["info", "--ocio", "absent.ocio"], ("absent.ocio", "Correct the path")),
        (["shot", "status", LONG], (LONG, "too long")),
        (["shot", "status", "/".join([LONG[:200]] * 30)], ("too long",)),
        (["shot", "status", "bad.ocio/x"], ("bad.ocio", "Not a directory")),
        (["propagate", "plate.#.png", "--key", f"1={LONG}.exr", "-o", "m.#.exr"], (LONG, "shorter")),
        (["weights", "convert", "bad.ocio", "out.safetensors"], ("bad.ocio", "get the file again")),
        (["train", "clips", "made", "--seed", "9000500"], ("only measure", "--seed")),
        (["train", "video", "absent", "--from", "absent"], ("absent",)),
    ],
)
def test_what_cannot_be_done_is_said_with_the_file_and_what_to_do(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.ocio").write_text("garbage: [")
    said = said_by(arguments, monkeypatch, capsys)
    assert all(one in said for one in words), said


def test_weights_that_cannot_be_read_end_every_command_with_the_code_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_text("no weights")
    monkeypatch.setattr(
        sys, "argv", ["stm", "weights", "convert", str(bad), str(tmp_path / "out.safetensors")]
    )
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == ExitCode.ENGINE


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    said = said_by(["shot", "status", str(closed / "a")], monkeypatch, capsys)
    assert "closed" in said and "permissions" in said


def test_a_fault_of_the_program_is_a_sentence_too_and_a_report_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(sys.modules["stm_plugin.cli.main"], "app", broken)
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    said = said_by([], monkeypatch, capsys)
    assert "ZeroDivisionError" in said and DEBUG_VARIABLE in said and "test_words.py" in said
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        command()
