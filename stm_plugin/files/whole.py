"""Files that exist as a whole or not at all: atomic writes, and sealed files (with a checksum)."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from stm_plugin.errors import StoreError, StoreFullError

_MAGIC = b"STMSEAL1"
_HEADER = struct.Struct("<8sQ32s")  # magic, length of the body in bytes, sha256 of the body
SEAL_BYTES = _HEADER.size
"""How much longer a sealed file is than its body."""

TEMPORARY_SUFFIX = ".part"


class DamagedFileError(Exception):
    """A sealed file is truncated or altered; its content must be computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is damaged")


Bytes = bytes | memoryview


def write_atomically(path: Path, *parts: Bytes, durable: bool = True) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part.

    Args:
        parts: the content, one behind the other.
        durable: wait until the data is on the disk (it survives a power cut).

    Raises:
        StoreError: the disk is full, the folder is not writable, or the disk fails.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines(parts)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # the folder is gone or read-only: no leftover of this product is in it
            temporary.unlink(missing_ok=True)
        raise store_error(error, path) from error


def store_error(error: OSError, path: Path) -> StoreError:
    """The error for people that an operating system's error stands for."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            "The disk is full.",
            path=path,
            hint="Free some space (`stm shot clean` empties caches) and run again: finished frames are kept.",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(
            "The folder cannot be written.",
            path=path,
            hint="Change its permissions, or choose another folder.",
        )
    return StoreError(
        f"The file cannot be used: {error.strerror or error}.",
        path=path,
        hint="Look at the folder and its disk, or choose another folder.",
    )


def _seal_of(parts: Sequence[Bytes]) -> bytes:
    """What stands before the body of a sealed file: its length and checksum."""
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return _HEADER.pack(_MAGIC, sum(len(part) for part in parts), checksum.digest())


def unseal(data: bytes, path: Path) -> bytes:
    """The body of a sealed file.

    Raises:
        DamagedFileError: it is not exactly what was sealed.
    """
    if len(data) < _HEADER.size:
        raise DamagedFileError(path)
    magic, length, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != _MAGIC or length != len(body) or hashlib.sha256(body).digest() != checksum:
        raise DamagedFileError(path)
    return body


def write_sealed(path: Path, *body: Bytes, durable: bool = True) -> None:
    """Write a sealed file atomically; the parts of its body are not copied. StoreError as in
    `write_atomically`."""
    write_atomically(path, _seal_of(body), *body, durable=durable)


def read_sealed(path: Path) -> bytes | None:
    """The body of a sealed file, or None where there is no file.

    Raises:
        DamagedFileError: truncated or altered.
        StoreError: the file cannot be read.
    """
    try:
        return unseal(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, path) from error


def looks_whole(path: Path) -> bool:
    """Whether a sealed file exists and has the length that it states; the checksum is not computed."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER.size)
            size = os.fstat(stream.fileno()).st_size
    except OSError:
        return False
    if len(header) < _HEADER.size:
        return False
    magic, length, _ = _HEADER.unpack(header)
    return bool(magic == _MAGIC and size == _HEADER.size + length)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a killed process; only the holder of the lock may call this."""
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
