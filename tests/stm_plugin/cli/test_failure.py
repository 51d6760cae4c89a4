"""No command prints a traceback: every error is a message and an exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stm_plugin.cli import main
from stm_plugin.cli.console import printable
from stm_plugin.exit_codes import ExitCode
from tests.conftest import PlateMaker
from tests.stm_plugin.command import Command

MAIN = "from stm_plugin.cli import main; main()"


def fresh(repository: Path, *words: str | bytes, stdout: int | None = subprocess.PIPE) -> tuple[int, str]:
    """The exit code and standard error of a fresh command."""
    program: list[str | bytes] = [sys.executable, "-c", MAIN, *words]
    done = subprocess.run(program, cwd=repository, stdout=stdout, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["x" * 300 + ".exr", "d/" * 2100 + "x.exr"])
def test_a_name_that_is_too_long_is_told_in_words(
    repository: Path, tmp_path: Path, name: str, stm: Command
) -> None:
    out = tmp_path / "x.####.exr"
    for words in (
        ("propagate", tmp_path / name, "--key", f"1={repository / 'README.md'}", "-o", out),
        ("propagate", "p.####.exr", "--key", f"1={tmp_path / name}", "-o", out),
    ):
        said = stm(*words)
        assert said.code == ExitCode.STORE and said.err.count("Error:") == 1, said.err
        assert "too long" in said.err, said.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take such names")
def test_a_name_that_is_not_utf_8_is_told_in_words(
    repository: Path, tmp_path: Path, make_plate: PlateMaker
) -> None:
    plate = make_plate(frames=range(1001, 1003))
    mask = os.fsencode(tmp_path) + b"/m\xff.png"
    os.link(tmp_path / "plate.mask.1001.png", mask)
    out = str(tmp_path / "o.####.exr")
    for words in (
        ("propagate", plate, "--key", b"1001=" + mask, "-o", out),
        ("propagate", os.fsencode(plate).replace(b"plate", b"p\xfe"), "--key", "1001=README.md", "-o", out),
    ):
        code, said = fresh(repository, *words)
        assert code in (ExitCode.USAGE, ExitCode.PLATE), said
        assert said.count("Error:") == 1 and "Traceback" not in said, said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take such names")
def test_a_shot_is_not_made_for_a_name_that_is_not_utf_8(
    tmp_path: Path, make_plate: PlateMaker, stm: Command
) -> None:
    plate = make_plate(frames=range(1001, 1003))
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff"))
    odd.mkdir()
    for path in tmp_path.glob("plate.1*"):
        os.link(path, odd / path.name)
    for shot, source, whose in (
        (odd / "a", plate, "shot"),
        (tmp_path / "a", odd / "plate.####.exr", "plate"),
    ):
        said = stm("shot", "new", shot, source)
        assert said.code in (ExitCode.STORE, ExitCode.PLATE), said
        assert f"The {whose}'s name is not valid text (UTF-8)" in said.err.replace("\n", " "), said
        assert not list(tmp_path.rglob("*.stmshot"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_an_error_in_words(repository: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        code, said = fresh(repository, "weights", "list", stdout=full)
    finally:
        os.close(full)
    assert code == ExitCode.FULL, said
    assert "Error:" in said and "Free some space" in said and "Traceback" not in said, said


def test_text_that_is_no_text_is_printable() -> None:
    assert printable(os.fsdecode(b"m\xff.png")) == "m\\xff.png"


@pytest.mark.parametrize("variable", ["LD_LIBRARY_PATH", None])
def test_a_library_that_cannot_be_loaded_is_told_in_words(
    repository: Path, tmp_path: Path, variable: str | None
) -> None:
    """As where LD_LIBRARY_PATH of the caller leads to another library."""
    (tmp_path / "typer.py").write_text("raise ImportError('libz.so.1: cannot load')")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LD_", "DYLD_"))},
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(repository))),
        **({variable: str(tmp_path)} if variable else {}),
    }
    command = [sys.executable, "-m", "stm_plugin", "info"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.count("Error:") == 1 and "Traceback" not in done.stderr, done.stderr
    assert "libz.so.1" in done.stderr and (variable or "--repair") in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of a terminal")
def test_ctrl_c_at_any_moment_and_more_than_once_prints_no_traceback(
    repository: Path, tmp_path: Path, make_plate: PlateMaker
) -> None:
    plate = make_plate(frames=range(1001, 1041))
    key = f"1001={tmp_path / 'plate.mask.1001.png'}"
    words = ("propagate", plate, "--key", key, "-o", str(tmp_path / "o.####.exr"), "--working-size", "48")
    program = [sys.executable, "-m", "stm_plugin", *words]
    said = []
    for seconds in (0.1, 0.4, 0.8, 1.6, 3.2, 3.3, 3.4):
        shutil.rmtree(tmp_path / "o.stmshot", ignore_errors=True)
        run = subprocess.Popen(program, cwd=repository, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        for pause in (0.02, 0.05, 0.2, 0.5):
            run.send_signal(signal.SIGINT)
            time.sleep(pause)
        text = run.communicate(timeout=60)[1].decode()
        assert "Traceback" not in text and "KeyboardInterrupt" not in text, text
        assert run.returncode in (-signal.SIGINT, ExitCode.INTERRUPTED, 0), text
        said.append(text)
    assert not list(tmp_path.glob("*.part.exr"))


def test_ctrl_c_while_a_library_is_loaded_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt

    monkeypatch.setattr(sys.modules["stm_plugin.cli.main"], "app", stopped)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.INTERRUPTED
    assert "initialization" not in capsys.readouterr().err


def test_a_command_that_ctrl_c_ends_says_so(
    monkeypatch: pytest.MonkeyPatch, stm: Command, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stm_plugin.store.store.ShotStore.open", interrupted)
    said = stm("shot", "status", tmp_path / "a")
    assert said.code == ExitCode.INTERRUPTED
    assert said.err.startswith("Stopped. What was finished is kept."), said.err
