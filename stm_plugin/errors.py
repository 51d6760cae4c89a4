"""Errors for people: what happened, on which frame and file, and what to do next."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm_plugin.exit_codes import ExitCode


class StmError(Exception):
    """An error with a text for an artist or a TD.

    Args:
        what: what happened, one sentence without the frame or the file.
        frame: the host's number of the frame with the fault, if one frame has it.
        path: the file or folder with the fault, if there is one.
        hint: what to do next, one sentence.
    """

    exit_code: int = ExitCode.FAILED

    def __init__(
        self, what: str, *, frame: int | None = None, path: Path | str | None = None, hint: str | None = None
    ) -> None:
        self.what = what
        self.frame = frame
        self.path = None if path is None else str(path)
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        where = []
        if self.frame is not None:
            where.append(f"frame {self.frame}")
        if self.path is not None:
            where.append(self.path)
        text = f"{', '.join(where)}: {self.what}" if where else self.what
        return f"{text} {self.hint}" if self.hint else text


@contextmanager
def concerning(frame: int) -> Iterator[None]:
    """Add this frame number to errors raised inside that name no frame."""
    try:
        yield
    except StmError as error:
        if error.frame is None:
            error.frame = frame
        raise


class DiskFullError(StmError):
    """The disk is full; the file was not written."""

    exit_code = ExitCode.FULL


class PlateError(StmError):
    """The plate, or one frame of it, cannot be used."""

    exit_code = ExitCode.PLATE


class MaskError(StmError):
    """A key's mask cannot be used."""

    exit_code = ExitCode.KEY


class KeyframeError(StmError):
    """A key is missing, doubled or outside the range."""

    exit_code = ExitCode.KEY


class ColourError(StmError):
    """The colour configuration or a colour space cannot be used."""

    exit_code = ExitCode.PLATE


class MatteError(StmError):
    """A matte cannot be written, or does not exist."""

    exit_code = ExitCode.STORE


class OutputError(MatteError):
    """An output must not be written: it is an input, or a file of another program."""


class StoreError(StmError):
    """The shot store cannot be read or written."""

    exit_code = ExitCode.STORE


class StoreFullError(StoreError, DiskFullError):
    """The disk of the shot store is full."""

    exit_code = ExitCode.FULL


class MatteFullError(MatteError, DiskFullError):
    """The disk of the mattes is full."""

    exit_code = ExitCode.FULL


class StoreBusyError(StoreError):
    """Another process holds the shot store."""

    exit_code = ExitCode.BUSY


class WeightsError(StmError):
    """A weights file cannot be used."""

    exit_code = ExitCode.ENGINE


class DeviceError(StmError):
    """The requested device does not exist, or has too little memory."""

    exit_code = ExitCode.ENGINE


class SettingsError(StmError):
    """A setting has a value that cannot be used."""

    exit_code = ExitCode.USAGE


class ConfigurationError(SettingsError):
    """A configuration file is missing, or has an invalid value."""


class LockedError(SettingsError):
    """A setting is locked by a configuration file."""


class LicenceError(WeightsError):
    """The configuration does not allow the licence of weights."""


class ProtocolError(StmError):
    """A message between a host and the engine breaks the protocol."""


class PropagationCancelled(StmError):
    """The user stopped the propagation; finished frames are kept."""

    exit_code = ExitCode.STOPPED


@contextmanager
def memory_errors(path: Path | str | None = None, frame: int | None = None) -> Iterator[None]:
    """Errors of memory inside the block name the file and the frame that needed it.

    Raises:
        DeviceError: in place of a MemoryError, or of what a library raises in its place.
    """
    try:
        yield
    except StmError:
        raise
    except Exception as error:
        if not isinstance(error, MemoryError) and not speaks_of_memory(error):
            raise
        raise DeviceError(
            "The machine has too little memory for this picture.",
            frame=frame,
            path=path,
            hint="Finished frames are kept. Close other programs or raise the limit "
            "(ulimit -v), and run again.",
        ) from error


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("insufficient memory", "bad_alloc", "failed to map segment", "can't start new thread"),
    *("unable to allocate", "failed to allocate", "memoryerror"),
)
_NO_MEMORY_FOR_A_LAYER = re.compile(r"could not (create|execute) a (primitive|memory object)\W*$")
"""What oneDNN says, in full, if it accepted a layer and then found no memory for it. A layer that it does not
know fails before, with the name of the layer."""


def as_stm_error(error: BaseException) -> StmError | None:
    """The text for people of an error of the system or of a library; None if only a bug explains it."""
    if isinstance(error, StmError):
        return error
    if isinstance(error, MemoryError) or speaks_of_memory(error):
        return DeviceError(
            "The machine has too little memory.",
            hint="Finished frames are kept. Close other programs, raise the limit (ulimit -v), or give a "
            "smaller working size or a region, and run again.",
        )
    if isinstance(error, OSError):
        return _as_file_error(error)
    return None


def speaks_of_memory(error: BaseException | str) -> bool:
    """Whether an error of a library, or the output of a program, means that memory was short."""
    text = str(error).lower()
    if not isinstance(error, Exception | str):
        return False
    return any(words in text for words in _NO_MEMORY) or bool(_NO_MEMORY_FOR_A_LAYER.search(text))


def _as_file_error(error: OSError) -> StmError:
    if error.errno is None:  # a text that this product wrote
        return StoreError(str(error) or type(error).__name__)
    path = None if error.filename is None else str(error.filename)
    what = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    if error.errno in _FULL:
        return StoreFullError(
            "The disk is full.", path=path, hint="Free some space and run again: what is finished is kept."
        )
    if error.errno in _FORBIDDEN:
        hint = "Change the permissions of the file and its folder, or use another folder."
        return StoreError(f"{what}.", path=path, hint=hint)
    hints = {
        errno.ENAMETOOLONG: "A name has at most 255 bytes and a path at most 4096: give a shorter one.",
        errno.ENOENT: "Check the name.",
        errno.ENOTDIR: "A part of this path is a file: check the name.",
        errno.EISDIR: "This is a folder: give a file.",
        errno.ENOMEM: "The machine has too little memory: close other programs and run again.",
        errno.EMFILE: "Too many files are open: raise the limit (ulimit -n) and run again.",
    }
    hint = hints.get(error.errno, "Look at the file, its folder and its disk.")
    return StoreError(f"{what}.", path=path, hint=hint)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error. A library that is stopped while it is loaded makes an ImportError of
    it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
