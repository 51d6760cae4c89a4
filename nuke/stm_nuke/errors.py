"""The errors on Nuke's side: a type for each kind, with the exit code of a batch run.

`str()` of each is a whole sentence for people: what happened, on which frame, what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class StmNodeError(Exception):
    """An error that a person can correct. The base of all errors here."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, frame: int | None = None, hint: str | None = None) -> None:
        place = "" if frame is None else f"frame {frame}: "
        super().__init__(" ".join(part for part in (place + what, hint) if part))
        self.frame = frame


class UsageError(StmNodeError):
    """The command line, or the arguments of a call, make no sense."""

    exit_code = 2


class ScriptError(StmNodeError):
    """The comp cannot be opened or saved."""

    exit_code = 3


class NoNodeError(StmNodeError):
    """There is no such STM node."""

    exit_code = 4


class KeyframeError(StmNodeError):
    """There is no key, or its mask cannot be used."""

    exit_code = 5


class PlateError(StmNodeError):
    """The plate input cannot be rendered or does not fit the shot."""

    exit_code = 6


class EngineFailure(StmNodeError):
    """The engine cannot be started, has failed, or refuses."""

    exit_code = 7


class Stopped(StmNodeError):
    """Somebody pressed Stop or Cancel. Finished frames are kept."""

    exit_code = 8

    def __init__(self) -> None:
        super().__init__("Stopped. What was finished is kept.")


class BusyError(StmNodeError):
    """Nuke is rendering something else at the moment."""

    def __init__(self) -> None:
        super().__init__("Nuke is rendering something else.", hint="Wait for its end, then try again.")


class CacheError(StmNodeError):
    """The cache folder cannot be used, or belongs to another node."""

    exit_code = 9
