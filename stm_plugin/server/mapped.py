"""Mapped files: pixels outside the socket, read and written without trusting the client.

The client maps its files. The engine reads and writes them instead, so that a file that shrinks meanwhile is
an error with a text and not a bus error, and pixels cannot change after they were read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path

from stm_plugin.protocol import MappedPixels, MappedTarget, RequestError
from stm_plugin.server.runtime import make_private_folder

_LONGEST_OWN_PART = 32
_AT_ONCE = 1 << 30
"""Bytes of one system call; Linux moves no more than 2 GiB."""


class MapFolder:
    """The folder of the mapped files of all clients."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, or use an existing one and remove the files of an earlier engine."""
        make_private_folder(folder)
        self.path = folder
        self._count = 0
        self.remove("")

    def new_prefix(self) -> str:
        """The prefix of file names of a new connection."""
        self._count += 1
        return f"c{self._count}-{secrets.token_hex(4)}-"

    def remove(self, prefix: str) -> None:
        """Unlink all files whose names begin with `prefix`."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.name.startswith(prefix):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)

    def close(self) -> None:
        """Remove the folder and its content."""
        self.remove("")
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def read(self, mapped: MappedPixels, prefix: str) -> bytearray:
        """The first `mapped.bytes` bytes of a client's file.

        Raises:
            RequestError: code `map`, when the file is not as the protocol requires.
        """
        pixels = bytearray(mapped.bytes)
        view = memoryview(pixels)
        with self._opened(mapped, prefix, os.O_RDONLY) as file:
            done = 0
            while done < len(view):
                got = _read_at(file, view[done : done + _AT_ONCE], done)
                if not got:
                    raise RequestError("map", f"The mapped file {mapped.name} has become shorter.")
                done += got
        return pixels

    def write(self, mapped: MappedTarget, prefix: str, pixels: memoryview) -> None:
        """Write all of `pixels` into a client's file, from `mapped.offset` on.

        Raises:
            RequestError: code `map`, when the file is not as the protocol requires, or too small.
        """
        if mapped.offset + len(pixels) > mapped.bytes:
            raise RequestError(
                "map", f"The matte needs {len(pixels)} bytes and the mapped file {mapped.name} has less room."
            )
        with self._opened(mapped, prefix, os.O_RDWR) as file:
            done = 0
            while done < len(pixels):
                try:
                    done += _write_at(file, pixels[done : done + _AT_ONCE], mapped.offset + done)
                except OSError as error:
                    raise RequestError("map", f"The mapped file cannot be written: {error}.") from error

    @contextlib.contextmanager
    def _opened(self, mapped: MappedPixels, prefix: str, flags: int):  # type: ignore[no-untyped-def]
        own = mapped.name.removeprefix(prefix)
        if own == mapped.name or not 1 <= len(own) <= _LONGEST_OWN_PART:
            raise RequestError("map", f"The mapped file {mapped.name} is not one of this connection's.")
        flags |= (
            getattr(os, "O_NOFOLLOW", 0)
            | getattr(os, "O_CLOEXEC", 0)
            | getattr(os, "O_NONBLOCK", 0)
            | getattr(os, "O_BINARY", 0)
            | getattr(os, "O_NOINHERIT", 0)
        )
        try:
            file = os.open(self.path / mapped.name, flags)
        except OSError as error:
            raise RequestError(
                "map", f"The mapped file {mapped.name} cannot be opened: {error.strerror}."
            ) from error
        try:
            _check_file(file, mapped)
            yield file
        finally:
            os.close(file)


def _check_file(file: int, mapped: MappedPixels) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise RequestError("map", f"The mapped file {mapped.name} is not a plain file.")
    if sys.platform != "win32":
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o177:
            raise RequestError("map", f"The mapped file {mapped.name} is not private to this user.")
    if found.st_size < mapped.bytes:
        raise RequestError(
            "map", f"The mapped file {mapped.name} has {found.st_size} bytes, not {mapped.bytes}."
        )


def _read_at(file: int, into: memoryview, offset: int) -> int:
    if sys.platform == "win32":
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, len(into))
        into[: len(data)] = data
        return len(data)
    return os.preadv(file, [into], offset)


def _write_at(file: int, data: memoryview, offset: int) -> int:
    if sys.platform == "win32":
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, data)
    return os.pwrite(file, data, offset)
