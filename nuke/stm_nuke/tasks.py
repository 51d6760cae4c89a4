"""Background work: one task per node, in a thread if there is a window, else in the calling thread.

Nuke may be used in its main thread only; `in_main` runs a call there and returns its result, or raises its
error.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, TypeVar

import nuke
from stm_nuke.errors import (
    CacheError,
    EngineFailure,
    KeyframeError,
    PlateError,
    StmNodeError,
    Stopped,
    UsageError,
)
from stm_nuke.frames import counted
from stm_nuke.wire import AbortedError, EngineError

T = TypeVar("T")


class Task:
    """One piece of work for one node.

    Attributes:
        error: the error that ended it, or None.
        done: the frames with a fresh matte, by the engine's last status.
    """

    def __init__(self, node_id: str, title: str, work: Callable[[Task], None]) -> None:
        self.node_id = node_id
        self.title = title
        self.error: StmNodeError | None = None
        self.done: frozenset[int] = frozenset()
        self._work = work
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._panel: Any = None
        self._told: tuple[str, int] = ("", -1)

    def stop(self) -> None:
        """Request its end."""
        self._stopped.set()

    def stopped(self) -> bool:
        """Whether its end was requested, by `stop` or by the Cancel of the progress bar."""
        if not self._stopped.is_set() and self._panel is not None and self._panel.isCancelled():
            self._stopped.set()
        return self._stopped.is_set()

    def check(self) -> None:
        """Raises Stopped if its end was requested."""
        if self.stopped():
            raise Stopped()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end; returns whether it has ended. Not in the main thread while the task needs
        that."""
        return self._ended.wait(seconds)

    def report(self, message: str, done: int = 0, total: int = 0, frame: int | None = None) -> None:
        """Report the progress."""
        percent = 0 if total <= 0 else min(100, 100 * done // total)
        if (message, percent) == self._told:
            return
        before = self._told[1]
        self._told = message, percent
        if self._panel is not None:
            self._panel.setMessage(message)
            self._panel.setProgress(percent)
        elif not nuke.GUI:
            print(message if frame is None else f"Frame {frame} ({done} of {total})", flush=True)
            if percent != before:
                print(f"Progress: {percent}%", flush=True)

    def run(self) -> None:
        """Do the work in this thread; an error is kept, not raised."""
        try:
            if nuke.GUI:
                self._panel = nuke.ProgressTask(self.title)
            self._work(self)
        except StmNodeError as error:
            self.error = error
        except AbortedError:
            self.error = Stopped()
        except EngineError as error:
            self.error = _as_node_error(error)
        except Exception as error:  # a bug: the thread must not end without a message
            self.error = StmNodeError(f"STM for Nuke has failed: {type(error).__name__}: {error}")
            sys.excepthook(*sys.exc_info())
        finally:
            self._panel = None  # closes the progress bar
            self._ended.set()


def _as_node_error(error: EngineError) -> StmNodeError:
    """The error with the exit code of its kind. Its text names the frame already."""
    if error.code == "cancelled":
        return Stopped()
    found = _KINDS.get(error.code, EngineFailure)(str(error))
    found.frame = error.frame
    return found


_KINDS: dict[str, type[StmNodeError]] = {
    "key": KeyframeError,
    "mask": KeyframeError,
    "plate": PlateError,
    "file": PlateError,
    "plate_missing": PlateError,
    "colour": PlateError,
    "matte": CacheError,
    "store": CacheError,
    "store_busy": CacheError,
    "shot_open": CacheError,
    "settings": UsageError,
    "bad_request": UsageError,
}
"""By the protocol's codes; all others are failures of the engine."""

_running: dict[str, Task] = {}
_renamed: dict[str, str] = {}
"""Nodes that got another id while a task knew the old one: old id -> new id."""
_lock = threading.RLock()  # a signal's handler may come in between


def running(node_id: str) -> Task | None:
    """The running task of a node."""
    with _lock:
        task = _running.get(node_id)
    return None if task is None or task.wait(0) else task


def start(task: Task, ended: Callable[[Task], None]) -> Task:
    """Start a task; a running task of the same node is stopped first.

    `ended` is called in the main thread.
    """
    with _lock:
        before = _running.get(task.node_id)
        _running[task.node_id] = task

    def run() -> None:
        if before is not None:
            before.stop()
            before.wait()
        task.run()
        in_main(ended, task)

    if nuke.GUI:
        threading.Thread(target=run, name=f"STM {task.title}", daemon=True).start()
    else:
        run()
    return task


def rename(old: str, new: str) -> None:
    """A node has got another id: its running task is now that of the new id."""
    with _lock:
        _renamed.pop(new, None)
        _renamed[old] = new
        if old in _running:
            task = _running[new] = _running.pop(old)
            task.node_id = new


def present_id(node_id: str) -> str:
    """The id that the node has now; the same one if it was not renamed."""
    with _lock:
        while node_id in _renamed:
            node_id = _renamed[node_id]
        return node_id


def stop_all() -> int:
    """Request the end of every task; returns how many were running."""
    with _lock:
        tasks = [task for task in _running.values() if not task.wait(0)]
    for task in tasks:
        task.stop()
    return len(tasks)


def in_main(call: Callable[..., T], *arguments: Any) -> T:
    """Call it in Nuke's main thread and wait. Its errors are raised here."""
    if threading.current_thread() is threading.main_thread():
        return call(*arguments)
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:  # Nuke drops the error of a call: pass it on
        try:
            results.append(call(*arguments))
        except BaseException as error:
            errors.append(error)

    nuke.executeInMainThreadWithResult(work)  # type: ignore[no-untyped-call]
    if errors:
        raise errors[0]
    if not results:
        raise StmNodeError("Nuke is closing: the work was not done.")
    return results[0]


def time_left(seconds: float | None) -> str:
    """`, about 2 minutes left`, or nothing."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {counted(max(1, round(seconds)), 'second')} left"
    return f", about {counted(round(seconds / 60), 'minute')} left"
