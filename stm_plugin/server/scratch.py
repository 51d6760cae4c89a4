"""Picture files that a client lays into its own scratch folder instead of sending pixels.

A file is opened once, without following a link anywhere below the folder, and checked by what is open. So
another file cannot take its place, and a file that changes while it is read is an error in words.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stm_plugin.errors import StmError
from stm_plugin.protocol import MAX_PAYLOAD, ImageLayout, Rectangle, RequestError

if TYPE_CHECKING:
    import OpenImageIO as oiio

_MAGIC = b"\x76\x2f\x31\x01"
_TIME_CODE = "smpte:TimeCode"
_READ = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe without a writer is no file, and must not be waited for
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOINHERIT", 0)
)
_ENTER = _READ | getattr(os, "O_DIRECTORY", 0)


@dataclass(frozen=True)
class PushedPicture:
    """Pixels that a client brings, and what the header of its file says of them, where they are in a file."""

    layout: ImageLayout
    data: bytes | bytearray | memoryview
    display_window: Rectangle | None = None
    pixel_aspect: float | None = None
    time_code: str | None = None


class ScratchFolder:
    """The folder that a client named when it opened a shot."""

    def __init__(self, folder: str) -> None:
        """Raises RequestError (code `file`) where the folder is not the user's own, or is open to others."""
        self.path = Path(folder)
        if not self.path.is_absolute():
            raise RequestError("bad_request", "The scratch folder must be an absolute path.", path=folder)
        with self._entered() as descriptor:
            if descriptor is None and not self.path.is_dir():
                raise self._refusal("it is not a folder")

    def read(self, name: str, frame: int) -> PushedPicture:
        """The picture in the file `name` below the folder.

        Raises:
            RequestError: code `file`, when it is no plain file of the user, no whole OpenEXR picture, or has
                changed meanwhile.
        """
        path = self.path / name
        with self._opened(name, frame) as file:
            before = _identity(file)
            _check_file(file, path, frame)
            picture = _read_exr(_name_of(file, path), path, frame)
            if _identity(file) != before:
                raise _refused(path, frame, "it has changed while it was read")
        return picture

    @contextlib.contextmanager
    def _opened(self, name: str, frame: int) -> Iterator[int]:
        *folders, last = name.split("/")
        with contextlib.ExitStack() as opened:
            parent = opened.enter_context(self._entered())
            try:
                for folder in folders if parent is not None else ():
                    parent = os.open(folder, _ENTER, dir_fd=parent)
                    opened.callback(os.close, parent)
                path = last if parent is not None else self._without_links(name)
                file = os.open(path, _READ, dir_fd=parent)
            except OSError as error:
                words = f"it cannot be opened: {error.strerror}"
                raise _refused(self.path / name, frame, words) from error
            opened.callback(os.close, file)
            yield file

    @contextlib.contextmanager
    def _entered(self) -> Iterator[int | None]:
        """The folder itself, open and checked; None on Windows, which opens no folders."""
        if sys.platform == "win32":
            yield None
            return
        try:
            descriptor = os.open(self.path, _ENTER)
        except OSError as error:
            raise self._refusal(f"it cannot be opened: {error.strerror}") from error
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise self._refusal("it is not private to this user")
            yield descriptor
        finally:
            os.close(descriptor)

    def _without_links(self, name: str) -> str:
        path = self.path / name
        if Path(os.path.realpath(path)) != Path(os.path.realpath(self.path)) / name:
            raise OSError(0, "a link is in its path")
        return str(path)

    def _refusal(self, words: str) -> RequestError:
        return RequestError("file", f"The scratch folder cannot be used: {words}.", path=str(self.path))


def _refused(path: Path, frame: int, words: str) -> RequestError:
    return RequestError("file", f"The rendered file cannot be used: {words}.", frame=frame, path=str(path))


def _identity(file: int) -> tuple[int, ...]:
    found = os.fstat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_file(file: int, path: Path, frame: int) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise _refused(path, frame, "it is not a plain file")
    if sys.platform != "win32" and found.st_uid != os.geteuid():
        raise _refused(path, frame, "it belongs to another user")
    if found.st_size > MAX_PAYLOAD:
        raise _refused(path, frame, f"it has {found.st_size} bytes; {MAX_PAYLOAD} are allowed")
    if os.read(file, len(_MAGIC)) != _MAGIC:
        raise _refused(path, frame, "it is not an OpenEXR file")


def _name_of(file: int, path: Path) -> str:
    """A name for the open file itself, where the system has one, whatever its path names by now."""
    for names in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(names):
            return f"{names}/{file}"
    return str(path)


def _read_exr(name: str, path: Path, frame: int) -> PushedPicture:
    import OpenImageIO as oiio

    from stm_plugin.images.picture_file import reason_of, specs_of

    image = oiio.ImageInput.open(name)
    if image is None:
        raise _refused(path, frame, f"it is damaged: {reason_of(oiio.geterror())}")
    try:
        specs = specs_of(image)
        if len(specs) != 1 or specs[0].deep:
            raise _refused(path, frame, "it has several parts or deep pixels")
        layout = _layout_of(specs[0], path, frame)
        values = image.read_image(0, 0, 0, len(layout.channels), layout.format)
        if values is None:
            raise _refused(path, frame, f"it is damaged: {reason_of(image.geterror())}")
    finally:
        image.close()
    spec = specs[0]
    return PushedPicture(
        layout,
        values.data.cast("B"),
        (spec.full_x, spec.full_y, spec.full_width, spec.full_height),
        float(spec.get_float_attribute("PixelAspectRatio", 1.0)),
        spec.get_string_attribute(_TIME_CODE) or None,
    )


def _layout_of(spec: oiio.ImageSpec, path: Path, frame: int) -> ImageLayout:
    """Where the values of a picture will lie, tight and interleaved. Its size is checked first."""
    kinds = {str(one) for one in spec.channelformats} or {str(spec.format)}
    if not kinds <= {"half", "float"}:
        raise _refused(path, frame, "its channels are not all half or all float")
    kind = "half" if kinds == {"half"} else "float"
    try:
        layout = ImageLayout.read(
            {
                "format": kind,
                "channels": list(spec.channelnames),
                "data_window": [spec.x, spec.y, spec.width, spec.height],
                "layout": "interleaved",
                "row_bytes": spec.width * len(spec.channelnames) * (2 if kind == "half" else 4),
            }
        )
        layout.check_inside(MAX_PAYLOAD)
    except StmError as error:
        raise _refused(path, frame, error.what.rstrip(".")) from error
    return layout
