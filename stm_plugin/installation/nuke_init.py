"""The lines in ~/.nuke/init.py that put the node on Nuke's plug-in path. The rest of the file is kept."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from stm_plugin.installation.prefix import NUKE, InstallationError, Prefix, write_atomically

BLOCK_START = b"# >>> STM for Nuke >>>"
BLOCK_END = b"# <<< STM for Nuke <<<"


class BlockError(Exception):
    """The lines that mark this product's block are not in pairs."""


class NukeInit:
    """A block of lines in ~/.nuke/init.py; the rest of the file is kept, byte for byte."""

    host = NUKE
    words = "lines in ~/.nuke/init.py"

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def wanted(self, hosts: Collection[str]) -> bool:
        """Whether it is part of an installation for these hosts."""
        return NUKE in hosts

    @property
    def file(self) -> Path:
        """The file of the current user."""
        return Path.home() / ".nuke" / "init.py"

    @property
    def recorded(self) -> Path | None:
        """The file that holds the block, if any does."""
        found = self.prefix.record().get("nuke_init")
        return Path(found) if isinstance(found, str) else None

    @property
    def folder(self) -> bytes:
        """The folder as a Python text: ASCII, as the file may be in any encoding."""
        return ascii(self.prefix.nuke.as_posix()).encode("ascii")

    def lines(self) -> list[bytes]:
        """The block: it does nothing if the folder does not exist."""
        return [
            BLOCK_START,
            b"# Kept by STM for Nuke; `stm host nuke --remove` takes these lines out again.",
            b"import os",
            b"import nuke",
            b"if os.path.isdir(%b):" % self.folder,
            b"    nuke.pluginAddPath(%b)" % self.folder,
            BLOCK_END,
        ]

    def trouble(self) -> str:
        """Why the lines are not in order; empty if they are."""
        try:
            content = self.file.read_bytes().replace(b"\r\n", b"\n")
        except OSError as error:
            return f"{self.file} cannot be read: {error.strerror}"
        if content.count(BLOCK_START) == 1 and b"\n".join(self.lines()) in content:
            return "" if self.recorded == self.file else f"they were written to {self.recorded}"
        return f"{self.file} does not hold the right lines"

    def add(self) -> None:
        """Write the block in its old place, or at the end of the file.

        Raises:
            InstallationError: the file cannot be written, or holds half a block; it is unchanged.
        """
        file = self.file
        if self.recorded is not None and self.recorded != file:
            self.remove()
        made = {*self._made(), *(str(path) for path in (file.parent, file) if not path.exists())}
        self.prefix.change_record(nuke_init=str(file), nuke_init_made=sorted(made))
        try:
            content = file.read_bytes() if file.exists() else b""
            write_where_it_is(file, with_block(content, self.lines()))
        except OSError as error:
            raise InstallationError(
                f"{file} cannot be changed: {error.strerror}. Everything else is installed and works.",
                hint=f"NUKE_PATH={self.prefix.nuke} in the environment of Nuke does the same as those lines.",
            ) from error
        except BlockError as error:
            raise InstallationError(
                f"{file}: {error} Everything else is installed and works.",
                hint="Delete the rest of those lines by hand, then run this again.",
            ) from error
        self.prefix.set_listed("hosts", NUKE, True)

    def remove(self) -> bool:
        """Remove the block; returns whether there was one. A message names a file that cannot be changed."""
        file = self.recorded
        if file is not None:
            try:
                self._take_out(file)
            except (OSError, BlockError) as error:  # without the folder the lines do nothing
                why = error.strerror if isinstance(error, OSError) else error
                print(f"    {file} was not changed: {why}")
            self.prefix.change_record(nuke_init=None, nuke_init_made=None)
        was_kept_up = NUKE in self.prefix.listed("hosts")
        self.prefix.set_listed("hosts", NUKE, False)
        return file is not None or was_kept_up

    def _take_out(self, file: Path) -> None:
        """Remove the block from a file; then file and folder, if they were made for it and are empty."""
        if file.is_file():
            content = file.read_bytes()
            found = find_block(content)
            if found is not None and self.folder in content[found[0] : found[1]]:  # not another prefix's
                rest = without_block(content)
                write_where_it_is(file, rest)
                if not rest and str(file) in self._made():
                    file.unlink()
        if str(file.parent) in self._made():
            with contextlib.suppress(OSError):  # it holds other files by now
                file.parent.rmdir()

    def _made(self) -> list[str]:
        """Which of file and folder this product made."""
        return self.prefix.listed("nuke_init_made")


def write_where_it_is(file: Path, content: bytes) -> None:
    """Write a file through a link, if it is writable.

    Raises:
        OSError: it is not writable.
    """
    real = Path(os.path.realpath(file))
    if real.exists() and not os.access(real, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only", str(real))
    write_atomically(real, content)


def find_block(content: bytes) -> tuple[int, int] | None:
    """Beginning and end of the block, including the line break before it.

    Raises:
        BlockError: it has no end.
    """
    start = content.find(BLOCK_START)
    if start < 0:
        return None
    end = content.find(BLOCK_END, start)
    if end < 0 or content.find(BLOCK_START, start + 1, end) >= 0:
        line = content.count(b"\n", 0, start) + 1
        start_words, end_words = BLOCK_START.decode(), BLOCK_END.decode()
        raise BlockError(f"line {line} has `{start_words}`, and no `{end_words}` follows it.")
    end += len(BLOCK_END)
    line_break = b"\r\n" if content.startswith(b"\r\n", start + len(BLOCK_START)) else b"\n"
    if content.startswith(line_break, end):
        end += len(line_break)
    if content.endswith(line_break, 0, start):
        start -= len(line_break)
    return start, end


def without_block(content: bytes) -> bytes:
    """The content of a file without the block, however often it occurs."""
    found = find_block(content)
    if found is None:
        return content
    head, tail = content[: found[0]], without_block(content[found[1] :])
    between = b"\n" if head and tail and not head.endswith(b"\n") else b""
    return head + between + tail


def with_block(content: bytes, lines: Sequence[bytes]) -> bytes:
    """A file's content with the block, in its old place or at the end, with the file's line breaks."""
    found = find_block(content)
    start, end = (len(content), len(content)) if found is None else found
    head, tail = content[:start], without_block(content[end:])
    line_break = b"\r\n" if b"\r\n" in head + tail else b"\n"
    return line_break.join((head, *lines, tail))
