"""Jobs: long work on a shot, in separate threads, taking turns on each device frame by frame."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

from stm_plugin.errors import PropagationCancelled, StmError, as_stm_error
from stm_plugin.protocol import RequestError, error_header, ranges_of
from stm_plugin.server.backend import Cancelled, Progress, Report

JobState = Literal["queued", "running", "finished", "cancelled", "failed"]
Work = Callable[[Report, Cancelled], None]

ABREAST = 2
"""Jobs that share a device, frame by frame. More jobs wait, as each has a memory bank on the device."""
REMEMBERED_SECONDS = 600.0
_POLL_SECONDS = 0.05

log = logging.getLogger("stm.server")


class DeviceQueue:
    """One device's jobs: the first `ABREAST` are admitted and take turns, frame by frame, in order."""

    def __init__(self, abreast: int = ABREAST) -> None:
        self._abreast = abreast
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._admitted: set[object] = set()
        self._turns: deque[object] = deque()

    @contextlib.contextmanager
    def admitted(self, cancelled: Cancelled) -> Iterator[object]:
        """Wait to be admitted to the device, and for the first turn.

        Raises:
            PropagationCancelled: cancelled while it waited.
        """
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or len(self._admitted) >= self._abreast:
                    if cancelled():
                        raise PropagationCancelled("The job was cancelled before it began.")
                    self._changed.wait(_POLL_SECONDS)
                self._admitted.add(ticket)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            self._take_turn(ticket, cancelled)
            yield ticket
        finally:
            with self._changed:
                self._admitted.discard(ticket)
                with contextlib.suppress(ValueError):
                    self._turns.remove(ticket)
                self._changed.notify_all()

    def pass_on(self, ticket: object, cancelled: Cancelled) -> None:
        """Let the other jobs have a frame each, then return."""
        with self._changed:
            with contextlib.suppress(ValueError):
                self._turns.remove(ticket)
            self._changed.notify_all()
        self._take_turn(ticket, cancelled)

    def _take_turn(self, ticket: object, cancelled: Cancelled) -> None:
        with self._changed:
            self._turns.append(ticket)
            while self._turns[0] is not ticket and not cancelled():
                self._changed.wait(_POLL_SECONDS)


class Job:
    """One propagation or export. Written by its own thread, read by the server's."""

    _numbers = itertools.count(1)

    def __init__(
        self, shot: str, kind: str, frames: list[int], total: int, changed: Callable[[Job], None]
    ) -> None:
        self.id = f"j{next(self._numbers)}"
        self.shot = shot
        self.kind = kind
        self.frames = frozenset(frames)
        self.ended_at: float | None = None
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._changed = changed
        self._state: JobState = "queued"
        self._version = 1
        self._progress = Progress(0, total, None, None)
        self._finished: set[int] = set()
        self._error: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> JobState:
        return self._state

    @property
    def version(self) -> int:
        return self._version

    @property
    def has_ended(self) -> bool:
        return self._state not in ("queued", "running")

    def has_finished_frame(self, frame: int) -> bool:
        """Whether this job has completed `frame`."""
        with self._lock:
            return frame in self._finished

    def cancel(self) -> None:
        """Request its end; it stops after its current frame."""
        self._cancel.set()

    def start(self, queue: DeviceQueue, work: Work) -> None:
        """Run `work` in a thread, once the device admits it."""
        self._thread = threading.Thread(target=self._run, args=(queue, work), name=self.id, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for its end; returns whether it has ended."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self.has_ended

    def snapshot(self) -> dict[str, Any]:
        """The state of the job: the reply to `job`, PROTOCOL.md section 4."""
        with self._lock:
            progress = self._progress
            return {
                "job": self.id,
                "shot": self.shot,
                "kind": self.kind,
                "state": self._state,
                "version": self._version,
                "done": progress.done,
                "total": progress.total,
                "frame": progress.frame,
                "seconds_left": progress.seconds_left,
                "text": self._words(),
                "finished": ranges_of(self._finished),
                "error": self._error,
            }

    def _words(self) -> str:
        progress = self._progress
        if self._state == "running" and progress.frame is not None:
            return progress.text or f"frame {progress.frame}, {progress.done} of {progress.total}"
        if self._state == "failed" and self._error is not None:
            return str(self._error["text"])
        return {
            "queued": "waiting for the device",
            "running": "starting",
            "finished": f"{progress.done} frames done",
            "cancelled": f"stopped; {len(self._finished)} finished frames are kept",
        }.get(self._state, self._state)

    def _run(self, queue: DeviceQueue, work: Work) -> None:
        cancelled = self._cancel.is_set
        try:
            with queue.admitted(cancelled) as ticket:
                self._set("running")

                def report(progress: Progress) -> None:
                    self._record(progress)
                    queue.pass_on(ticket, cancelled)

                work(report, cancelled)
            self._set("finished")
        except PropagationCancelled:
            self._set("cancelled")
        except StmError as error:
            self._set("failed", error_header(error))
        except Exception as error:
            log.exception("job %s failed", self.id)
            self._set("failed", error_header(as_stm_error(error) or internal_error()))

    def _record(self, progress: Progress) -> None:
        with self._lock:
            self._progress = progress
            self._finished.update(progress.finished)
            self._version += 1
        self._changed(self)

    def _set(self, state: JobState, error: dict[str, Any] | None = None) -> None:
        with self._lock:
            if state == "finished":
                total = self._progress.total
                self._progress = Progress(total, total, self._progress.frame, 0.0)
            self._state = state
            self._error = error
            self._version += 1
            if self.has_ended:
                self.ended_at = time.monotonic()
        self._changed(self)


def internal_error() -> RequestError:
    """The error that a client gets for a bug; the log has the rest."""
    return RequestError(
        "internal", "The engine has failed.", hint="The details are in engine.log in the runtime folder."
    )
