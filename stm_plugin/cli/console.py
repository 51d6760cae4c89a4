"""The command's output: results to stdout, progress and errors to stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

_LONG_MOVIE = 20_000_000

output = Console()
errors = Console(stderr=True)


class Stopped(typer.Exit):
    """Ctrl-C ended the command, and it has said what is kept."""


def printable(text: str) -> str:
    r"""Text that every terminal can show: invalid characters become `\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tell_of_movie(plate: str | None, shot: Path) -> None:
    """Report that a movie is being decoded once to find its frames, which may take long.

    Args:
        shot: the folder of the shot, which may know the frames already.
    """
    from stm_plugin.images.movie import is_movie
    from stm_plugin.images.movie_notes import recall_index
    from stm_plugin.store.store import ShotStore

    path = Path(plate or "").expanduser()
    if not plate or not is_movie(path) or not path.is_file() or path.stat().st_size <= _LONG_MOVIE:
        return
    if recall_index(ShotStore(shot).movie_notes) != path:
        text = f"{printable(plate)}: looking at every frame of the movie."
        errors.print(text, markup=False, highlight=False)


def progress_bar(unit: str = "frames") -> Progress:
    """A progress bar on stderr with steps done, time spent and time left."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from stm_plugin.cli.bar import Bar, DoneColumn

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DoneColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
    )
    bar.unit = unit
    return bar
