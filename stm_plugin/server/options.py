"""The options of an engine process: plain values, which the command line shows without loading the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFAULT_IDLE_SECONDS: Final = 900.0
DEFAULT_REST_SECONDS: Final = 5.0
"""Longer than a pause between two frames; getting released memory again takes a fraction of it."""
DEFAULT_END_SECONDS: Final = 45.0
"""Longer than jobs get to stop (`service.JOB_END_SECONDS`)."""


@dataclass(frozen=True)
class ServeOptions:
    """The options of an engine process.

    Attributes:
        idle_seconds: it ends after this time without a client or a job.
        rest_seconds: it releases memory that is kept for speed only after this time without work.
        parent: it ends when this process ends; None for no process.
        to_log: whether messages go into the log file instead of to standard error.
        end_seconds: the most seconds from the order to end until the process has ended.
    """

    idle_seconds: float = DEFAULT_IDLE_SECONDS
    parent: int | None = None
    to_log: bool = True
    rest_seconds: float = DEFAULT_REST_SECONDS
    end_seconds: float = DEFAULT_END_SECONDS
