"""The command's output: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

SILENCE = 10.0
"""Seconds between two lines that report running work."""
_LONG_MOVIE = 20_000_000

output = Console()
errors = Console(stderr=True)


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
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Bar(Progress):
        """Without a terminal, as in a log, a line every ten seconds shows the progress."""

        _told = time.monotonic()

        _is_asked_for = False

        def start(self) -> None:
            self._is_asked_for = True
            if self.tasks:  # rich draws a bar without a task as an empty line
                super().start()

        def stop(self) -> None:
            if self.live.is_started:
                super().stop()

        def add_task(self, *args: Any, **options: Any) -> TaskID:
            made = super().add_task(*args, **options)
            if self._is_asked_for:
                super().start()
            return made

        def update(self, *args: Any, **options: Any) -> None:
            super().update(*args, **options)
            self._tell(args[0])

        def advance(self, task_id: TaskID, advance: float = 1) -> None:
            super().advance(task_id, advance)
            self._tell(task_id)

        def _tell(self, task_id: TaskID) -> None:
            now = time.monotonic()
            if self.console.is_terminal or self.disable or now - self._told < SILENCE:
                return
            self._told = now
            task = next(one for one in self.tasks if one.id == task_id)
            of = "" if task.total is None else f" of {int(task.total)}"
            self.console.print(f"{task.description}: {int(task.completed)}{of} {unit}", highlight=False)

    class DoneColumn(ProgressColumn):
        """`12/25`; `12` while the total is unknown."""

        def render(self, task: Task) -> Text:
            done = int(task.completed)
            return Text(f"{done}" if task.total is None else f"{done}/{int(task.total)}")

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        DoneColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
    )
