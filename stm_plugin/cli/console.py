"""The command's output: results to stdout, progress and errors to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

output = Console()
errors = Console(stderr=True)


def printable(text: str) -> str:
    r"""Text that every terminal can show: invalid characters become `\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def counted(number: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def progress_bar(unit: str = "frames") -> Progress:
    """A progress bar on stderr with steps done, time spent and time left."""
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class DoneColumn(ProgressColumn):
        """`12/25`; `12` while the total is unknown."""

        def render(self, task: Task) -> Text:
            done = int(task.completed)
            return Text(f"{done}" if task.total is None else f"{done}/{int(task.total)}")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DoneColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
    )
