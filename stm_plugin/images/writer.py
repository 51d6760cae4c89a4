"""Image files that exist as a whole or not at all.

The library that writes them does not always notice a full disk: data that it still buffers when a file is
closed may be lost without an error. So every file is checked before it gets its name.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
import OpenImageIO as oiio

from stm_plugin.errors import MatteError, MatteFullError
from stm_plugin.images.exr_pixels import add_pixels, is_plain_exr
from stm_plugin.images.picture_file import open_image, reason_of

_NAME_LENGTH = 200
_JPEG = frozenset({".jpg", ".jpeg"})
_PROBE_BYTES = 1 << 16
"""Bytes of the probe; more than the free rest of the last block on a full disk."""


def write_image(
    path: Path,
    spec: oiio.ImageSpec,
    pixels: npt.NDArray[Any],
    *,
    frame: int | None,
    durable: bool,
    on_whole: Callable[[Path], None] | None = None,
) -> None:
    """Write one picture atomically: a reader sees the old file or the new one. Folders are made.

    Args:
        pixels: (h, w, C) as the spec says.
        durable: wait until the disk has it.
        on_whole: is called with the finished temporary file, before it gets the picture's name.

    Raises:
        MatteError: the disk is full, or the folder cannot be written. No partial file is left.
    """
    temporary = path.with_name(f".{path.stem[:_NAME_LENGTH]}.{uuid.uuid4().hex[:12]}{_part(path)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _write_whole(temporary, spec, pixels)
        if durable:
            _sync(temporary)
        if on_whole is not None:
            on_whole(temporary)
        os.replace(temporary, path)
        if durable and os.name == "posix":
            _sync(path.parent)
    except OSError as error:
        raise image_error(error, frame, path) from error
    finally:
        remove_quietly(temporary)


def image_error(error: OSError, frame: int | None, path: Path) -> MatteError:
    """The error for people that an operating system's error stands for."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "no space" in reason.lower():
        return MatteFullError(
            "The disk is full.", frame=frame, path=path, hint="Free some space and run again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MatteError(
            f"The folder cannot be written ({reason}).",
            frame=frame,
            path=path,
            hint="Choose another folder, or ask for the right to write there.",
        )
    return MatteError(
        f"The file cannot be written: {reason}.",
        frame=frame,
        path=path,
        hint="Look at the folder, its disk and the free memory of the machine, and run again.",
    )


def probe_disk(path: Path) -> None:
    """Write some bytes to a file that is too short. OSError where the disk is full."""
    with path.open("ab") as stream:
        stream.write(bytes(_PROBE_BYTES))
        stream.flush()
        os.fsync(stream.fileno())


def remove_quietly(path: Path) -> None:
    """Remove a file that this product made, if it exists."""
    with suppress(OSError):  # the folder is gone or read-only: no file of this product is in it
        path.unlink(missing_ok=True)


def _part(path: Path) -> str:
    """How the names of temporary files end."""
    return f".part{path.suffix}"


def _write_whole(path: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any]) -> None:
    """Write one file and check it. OSError where it is not whole, with the system's reason."""
    try:
        _write(path, spec, pixels)
        _check_whole(path)
    except OSError as error:
        if error.errno is None:
            probe_disk(path)
        raise


def _write(path: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any]) -> None:
    """Write one file, or raise OSError."""
    # Opening the file here gives a clear reason (a missing folder, no permission); the library's is vague.
    with open(path, "xb"):
        pass
    if is_plain_exr(path, spec, pixels):
        _write_by(path, spec, None)
        beside = path.with_name(f"{path.name.removesuffix(_part(path))}.pixels{_part(path)}")
        if add_pixels(path, beside, spec, pixels):
            return
    if path.suffix.lower() in _JPEG:
        _write_jpeg(path, spec, pixels)
    else:
        _write_by(path, spec, pixels)


def _write_jpeg(path: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any]) -> None:
    """Write a JPEG. On a full disk its library ends the process, so it writes into memory, or, where files in
    memory do not exist, after as much as the file can need was written."""
    if not hasattr(os, "memfd_create"):
        _reserve(path, pixels.nbytes + _PROBE_BYTES)
        _write_by(path, spec, pixels)
        return
    descriptor = os.memfd_create(path.name[:_NAME_LENGTH])
    with open(descriptor, "rb") as memory:
        _write_by(path, spec, pixels, name=f"/proc/self/fd/{descriptor}")
        content = memory.read()
    with path.open("wb") as stream:
        stream.write(content)


def _reserve(path: Path, size: int) -> None:
    """Write this many bytes into a file and empty it. OSError where the disk has no room for them."""
    with path.open("wb") as stream:
        for start in range(0, size, _PROBE_BYTES):
            stream.write(bytes(min(_PROBE_BYTES, size - start)))
        stream.flush()
        os.fsync(stream.fileno())
        stream.truncate(0)


def _write_by(
    path: Path, spec: oiio.ImageSpec, pixels: npt.NDArray[Any] | None, *, name: str | None = None
) -> None:
    """Write one file through OpenImageIO, of the kind that `path` says; its header alone without pixels.

    Args:
        name: of the file that is written, if it is not `path`.
    """
    output = oiio.ImageOutput.create(str(path))
    if output is None:
        raise OSError(reason_of(oiio.geterror()))
    opened = output.open(name or str(path), spec)
    written = opened and (pixels is None or output.write_image(pixels))
    problem = output.geterror()
    closed = output.close()
    if not (opened and written and closed):
        raise OSError(reason_of(problem or output.geterror()))


def _check_whole(path: Path) -> None:
    """OSError where the last lines, which are written last, are missing."""
    image = open_image(path)
    if image is not None:
        spec = image.spec()
        bottom = spec.y + spec.height
        lines = image.read_scanlines(bottom - 1, bottom, 0, 0, spec.nchannels, spec.format)
        problem = image.geterror()
        image.close()
        if lines is not None and not problem:
            return
    oiio.geterror()  # clears the error, which would be reported with the next file
    raise OSError("it was not written as a whole")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
