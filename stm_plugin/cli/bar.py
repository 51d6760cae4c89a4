"""The progress bar of the commands. It is loaded with the first bar: rich.progress takes a while."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.text import Text

SILENCE: Final = 10.0
"""Seconds between two lines that report running work."""


class Bar(Progress):
    """Without a terminal, as in a log, a line every ten seconds shows the progress."""

    unit = "frames"
    _is_asked_for = False

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._told = time.monotonic()

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
        self.console.print(f"{task.description}: {int(task.completed)}{of} {self.unit}", highlight=False)


class DoneColumn(ProgressColumn):
    """`12/25`; `12` while the total is unknown."""

    def render(self, task: Task) -> Text:
        done = int(task.completed)
        return Text(f"{done}" if task.total is None else f"{done}/{int(task.total)}")
