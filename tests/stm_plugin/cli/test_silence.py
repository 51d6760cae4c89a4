"""No command is silent for long, and every message can be understood alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from stm_plugin.cli import console
from stm_plugin.errors import StmError
from stm_plugin.store.store import StoreSize
from tests.conftest import PlateMaker
from tests.stm_plugin.command import Command


@pytest.mark.parametrize("is_watched", [False, True])
def test_a_log_gets_a_line_every_ten_seconds_where_a_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, is_watched: bool
) -> None:
    paper, clock = io.StringIO(), iter(range(0, 1000, 4))
    monkeypatch.setattr(console, "errors", Console(file=paper, force_terminal=is_watched, width=80))
    monkeypatch.setattr("stm_plugin.cli.bar.time.monotonic", lambda: next(clock))
    bar = console.progress_bar("frames")
    task = bar.add_task("overlay", total=9)
    for _ in range(9):
        bar.advance(task)
    lines = (
        [] if is_watched else ["overlay: 3 of 9 frames", "overlay: 6 of 9 frames", "overlay: 9 of 9 frames"]
    )
    assert paper.getvalue().splitlines() == lines


def test_a_bar_that_nothing_began_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(file=written, force_terminal=True))
    with pytest.raises(StmError), console.progress_bar():
        raise StmError("Nothing was begun.")
    assert written.getvalue() == ""
    with console.progress_bar() as bar:
        bar.add_task("export", total=2)
    assert "export" in written.getvalue()


def test_a_large_movie_is_said_to_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = tmp_path / "plate.mov"
    movie.write_bytes(bytes(9))
    shot = tmp_path / "a.stmshot"
    console.tell_of_movie(str(movie), shot)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "_LONG_MOVIE", 8)
    for plate in (str(movie), str(tmp_path / "absent.mov"), str(tmp_path / "p.####.exr"), "", None):
        console.tell_of_movie(plate, shot)
    said = "".join(capsys.readouterr().err.split())  # long paths are broken
    assert said.endswith("plate.mov:lookingateveryframeofthemovie.") and said.count("looking") == 1


def test_a_shot_without_a_key_says_what_it_needs(
    make_plate: PlateMaker, tmp_path: Path, stm: Command
) -> None:
    plate, mask = make_plate(frames=range(1001, 1003)), tmp_path / "plate.mask.1001.png"
    shot = tmp_path / "a"
    assert stm("shot", "new", shot, plate).code == 0
    assert "no key" in stm("shot", "status", shot).out
    assert "no key" not in stm("shot", "key", "add", shot, 1001, mask).out
    removed = "".join(stm("shot", "key", "remove", shot, 1001).out.split())  # long paths are broken
    assert "".join(f"`stm shot key add {shot} FRAME MASK`".split()) in removed


def test_a_setting_that_makes_nothing_stale_says_so(
    make_plate: PlateMaker, tmp_path: Path, stm: Command
) -> None:
    shot = tmp_path / "a"
    assert (
        stm("shot", "new", shot, make_plate(frames=range(1001, 1003)), "--set", "working_size=48").code == 0
    )
    assert stm("shot", "key", "add", shot, 1001, tmp_path / "plate.mask.1001.png").code == 0
    assert stm("shot", "propagate", shot).code == 0
    assert "Nothing has changed" in stm("shot", "set", shot, "working_size=48").out
    assert "finished anew when they are written" in stm("shot", "set", shot, "finish.radius=8").out
    assert "Nothing has to be computed again" in stm("shot", "set", shot, "device=cpu").out
    assert "memory_cap changed from 20 to 7" in stm("shot", "set", shot, "memory_cap=7").out
    said = stm("shot", "set", shot, "memory_cap=7").out
    assert said.startswith("No setting has changed. What waits to be computed, as before:\nframe"), said
    assert "Nothing has changed" not in said and "memory_cap changed from 20 to 7" in said


def test_what_is_on_disk_is_never_nothing_point_nothing() -> None:
    assert str(StoreSize(20_000, 12_300_000, 3, 0)) == (
        "20 kB for keys, 12.3 MB for results, 1 kB for cached features"
    )
