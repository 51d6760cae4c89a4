"""The guard of outputs: every command asks it before it writes the first byte.

Four kinds of output are refused, also under another name (links, `..`, letter case):

1. an output that is an input: a plate frame, a movie, a key's mask, weights, a colour configuration;
2. an output inside a folder of inputs: a data set, training data;
3. an output inside a shot store;
4. a file that this product did not make, unless `--overwrite` is given.

A row of files (`matte.####.exr`) also has one owner at a time (`Ownership`). `place_of` reads the
disk; `refusal` decides and reads nothing.
"""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from stm_plugin.errors import OutputError, StoreError, StoreFullError
from stm_plugin.files.journal import Journal
from stm_plugin.files.lock import StoreLock
from stm_plugin.files.whole import store_error, write_atomically

STORE_SUFFIX = ".stmshot"
LIST_NAME = ".stm-outputs.jsonl"
OVERWRITE_HINT = "Give the output another name or folder, or say --overwrite."

_OTHER_NAME = "Give the output another name or folder."
_HASH_CHUNK = 1 << 20

FrameOrNone = int | None


@dataclass(frozen=True)
class Given:
    """An input, which must never be written: what it is ("the mask of the key on 1001"), and its path."""

    what: str
    path: Path


@dataclass(frozen=True)
class Row:
    """The file names of a sequence: `head`, digits, `tail`, in `folder`."""

    folder: Path
    head: str
    tail: str

    def __str__(self) -> str:
        return str(self.folder / f"{self.head}####{self.tail}")

    def matches(self, name: str) -> bool:
        """Whether a file's name belongs to the row, in any letter case."""
        pattern = re.escape(_folded(self.head)) + r"-?[0-9]+" + re.escape(_folded(self.tail))
        return re.fullmatch(pattern, _folded(name)) is not None


@dataclass(frozen=True)
class Place:
    """What identifies the file at a path.

    Attributes:
        folder, name: the real folder and the file's name, in a form that ignores letter case.
        file: device and inode of the file, links followed; None where no file exists.
        kind: "other" is a folder, a device or a link to nothing.
    """

    path: Path
    folder: str
    name: str
    file: tuple[int, int] | None
    kind: Literal["nothing", "file", "other"]


@dataclass(frozen=True)
class Refusal:
    """Why nothing may be written."""

    what: str
    path: Path
    hint: str
    frame: FrameOrNone = None

    def error(self) -> OutputError:
        return OutputError(self.what, frame=self.frame, path=self.path, hint=self.hint)


def check_outputs(
    outputs: Iterable[tuple[FrameOrNone, Path]],
    given: Iterable[Given],
    *,
    row: Row | None = None,
    given_rows: Sequence[tuple[str, Row]] = (),
    folders: Iterable[Given] = (),
    overwrite: bool = False,
    is_ours: Callable[[FrameOrNone, Path], bool],
) -> None:
    """Ask whether these files may be written.

    Args:
        outputs: the files, each with its frame if it has one.
        given: the files that must never be written.
        row: the pattern of the outputs; every frame that it could take is checked against `given`.
        given_rows: patterns of inputs ("the plate"): the outputs must not have the same pattern.
        folders: folders of inputs ("the data set"): no output may lie inside one.
        overwrite: whether files that this product did not make may be replaced.
        is_ours: whether this product made the file of a frame, and it was not changed since.

    Raises:
        OutputError: they may not. Both files are named.
    """
    wanted = [(frame, place_of(path)) for frame, path in outputs]
    siblings = [] if row is None else [place_of(path) for path in files_of(row)]
    found = refusal(
        wanted,
        siblings,
        [(one, place_of(one.path)) for one in given],
        row=row,
        given_rows=given_rows,
        folders=[(one, _folder_id(one.path)) for one in folders],
        overwrite=overwrite,
        is_ours=is_ours,
    )
    if found is not None:
        raise found.error()


def check_folder(folder: Path, folders: Iterable[Given]) -> None:
    """Ask whether new files may be made in a folder.

    Args:
        folders: folders of inputs. It must not be one of them, nor lie inside one.

    Raises:
        OutputError: it does. Both folders are named.
    """
    found = _inside(_folder_id(folder), folder, [(one, _folder_id(one.path)) for one in folders])
    if found is not None:
        raise found.error()


def refusal(
    wanted: Sequence[tuple[FrameOrNone, Place]],
    siblings: Sequence[Place],
    given: Sequence[tuple[Given, Place]],
    *,
    row: Row | None = None,
    given_rows: Sequence[tuple[str, Row]] = (),
    folders: Sequence[tuple[Given, str]] = (),
    overwrite: bool = False,
    is_ours: Callable[[FrameOrNone, Path], bool],
) -> Refusal | None:
    """The decision of `check_outputs`; None where the files may be written.

    Args:
        wanted: the files that will be written, by frame.
        siblings: the existing files with a name of the row.
        given: the inputs, with their places.
        folders: the folders of inputs, with their real folders (`_folder_id`).
    """
    by_file = {place.file: one for one, place in given if place.file is not None}
    by_name = {(place.folder, place.name): one for one, place in given}
    for frame, place in [*wanted, *((None, one) for one in siblings)]:
        hit = by_name.get((place.folder, place.name)) or (by_file.get(place.file) if place.file else None)
        if hit is not None:
            return _overwrites(hit, place.path, frame)
    if row is not None:
        folder = _folder_id(row.folder)
        for one, place in given:
            if place.folder == folder and row.matches(place.path.name):
                return _overwrites(one, row.folder / place.path.name, None)
        for what, other in given_rows:
            same = (_folded(row.head), _folded(row.tail)) == (_folded(other.head), _folded(other.tail))
            if same and folder == _folder_id(other.folder):
                return _overwrites(Given(what, Path(str(other))), Path(str(row)), None)
    for frame, place in wanted:
        inside = _inside(place.folder, place.path, folders, frame)
        if inside is not None:
            return inside
    return _in_a_store(wanted) or _foreign(wanted, overwrite, is_ours)


def place_of(path: Path) -> Place:
    """Find out which file a path leads to."""
    folder, name = path.parent, path.name
    try:
        found = path.stat()
    except FileNotFoundError:
        kind: Literal["nothing", "other"] = "other" if path.is_symlink() else "nothing"
        return Place(path, _folder_id(folder), _folded(name), None, kind)
    except OSError as error:
        raise OutputError(
            f"The file cannot be used: {error.strerror or error}.", path=path, hint=_OTHER_NAME
        ) from error
    file = (found.st_dev, found.st_ino)
    is_file = stat.S_ISREG(found.st_mode)
    return Place(path, _folder_id(folder), _folded(name), file, "file" if is_file else "other")


def files_of(row: Row) -> list[Path]:
    """The existing files with a name of the row."""
    try:
        names = os.listdir(row.folder)
    except OSError:  # the folder does not exist yet
        return []
    return [row.folder / name for name in sorted(names) if row.matches(name)]


def _overwrites(hit: Given, path: Path, frame: FrameOrNone) -> Refusal:
    return Refusal(f"This output would overwrite {hit.what}: {hit.path}.", path, _OTHER_NAME, frame)


def _inside(
    folder: str, path: Path, folders: Sequence[tuple[Given, str]], frame: FrameOrNone = None
) -> Refusal | None:
    for one, outer in folders:
        if f"{folder}/".startswith(f"{outer.rstrip('/')}/"):
            what = f"This output would lie inside {one.what}: {one.path}."
            return Refusal(what, path, _OTHER_NAME, frame)
    return None


def _in_a_store(wanted: Sequence[tuple[FrameOrNone, Place]]) -> Refusal | None:
    for frame, place in wanted:
        if any(part.endswith(STORE_SUFFIX) for part in place.folder.split("/")):
            return Refusal("Outputs cannot lie inside a shot store.", place.path, _OTHER_NAME, frame)
    return None


def _foreign(
    wanted: Sequence[tuple[FrameOrNone, Place]],
    overwrite: bool,
    is_ours: Callable[[FrameOrNone, Path], bool],
) -> Refusal | None:
    for frame, place in wanted:
        if place.kind == "other":
            what = "This is not a plain file, so it is not replaced."
            return Refusal(what, place.path, _OTHER_NAME, frame)
        if place.kind == "file" and not overwrite and not is_ours(frame, place.path):
            what = "STM did not write this file, or it was changed since; it is not replaced."
            return Refusal(what, place.path, OVERWRITE_HINT, frame)
    return None


def _folder_id(folder: Path) -> str:
    """The real folder, without letter case: the folder may be copied to a disk that ignores it."""
    return _folded(os.path.realpath(folder)).replace(os.sep, "/")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


# ---- the owner of a row ----


class Ownership:
    """The shot that a row of files belongs to; a small hidden file beside the row names it.

    Args:
        row: the files.
        shot: the folder of the shot that wants to write them.
    """

    def __init__(self, row: Row, shot: Path) -> None:
        self._row, self._shot = row, shot
        self._path = row.folder / f".{row.head}####{row.tail}.owner"
        self._is_new = False

    def take(self, *, overwrite: bool = False) -> str | None:
        """Become the owner.

        Returns:
            A sentence for people if another shot wrote these files before.

        Raises:
            OutputError: the row belongs to another shot and `overwrite` is not set; or that shot is
                being worked on now.
            StoreError: the folder cannot be written.
        """
        if self._make():
            self._is_new = True
            return None
        before = self.check_free(overwrite=overwrite)
        owner = self.owner()
        if owner is None or not _same_folder(owner, self._shot):
            with suppress(StoreFullError):  # the first wrong file raises the error, with its frame
                write_atomically(self._path, self._text())
        if before is None:
            return None
        return f"The files {self._row} were written by {before}; from now on {self._shot} writes them."

    def withdraw(self) -> None:
        """Remove the file that names the owner, where `take` made it and the row has no file yet."""
        if self._is_new and not files_of(self._row):
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def check_free(self, *, overwrite: bool = False) -> Path | None:
        """Ask whether this shot may become the owner; nothing is written.

        Returns:
            The shot that wrote these files before, if it was another.

        Raises:
            OutputError: as `take`.
        """
        owner = self.owner()
        if owner is None or _same_folder(owner, self._shot) or not files_of(self._row):
            return None
        self._check_owner(owner, overwrite)
        return owner

    def check(self, frame: int) -> Path | None:
        """To be called before each file is written; returns the owner, as `owner` does.

        Raises:
            OutputError: another shot owns the row by now.
        """
        owner = self.owner()
        if owner is not None and not _same_folder(owner, self._shot):
            raise OutputError(
                f"The shot {owner} has taken these files over.",
                frame=frame,
                path=str(self._row),
                hint=_OTHER_NAME,
            )
        return owner

    def owner(self) -> Path | None:
        """The shot that writes the row; None where it is not known."""
        try:
            stated = json.loads(self._path.read_text("utf-8"))["shot"]
            return Path(os.path.normpath(Path(os.path.realpath(self._row.folder)) / str(stated)))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _check_owner(self, owner: Path, overwrite: bool) -> None:
        if not (owner / "shot.json").is_file():
            return  # it was deleted or moved
        holder = StoreLock(owner / "LOCK").held_by_another()
        if holder is not None:
            raise OutputError(
                f"Another shot, {owner}, is writing these files: {holder}.",
                path=str(self._row),
                hint=_OTHER_NAME,
            )
        if not overwrite:
            raise OutputError(
                f"These files belong to another shot: {owner}.", path=str(self._row), hint=OVERWRITE_HINT
            )

    def _make(self) -> bool:
        """Write the file that names the owner; False if it exists already."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(self._text())
        except FileExistsError:
            return False
        except OSError as error:
            problem = store_error(error, self._path)
            if not isinstance(problem, StoreFullError):
                raise problem from error
        return True

    def _text(self) -> bytes:
        """A relative path, which stays right where a folder is copied together with its shot."""
        shot = os.path.realpath(self._shot)
        with suppress(ValueError):  # another drive
            shot = os.path.relpath(shot, os.path.realpath(self._row.folder))
        return json.dumps({"shot": shot}).encode()


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


# ---- files whose header cannot name their maker ----


class WrittenList:
    """The files of a folder that this product made, for kinds without metadata: pictures, movies, tables.

    A finished file is identified by its content. An unfinished one is identified by its name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = Journal(folder / LIST_NAME, "file")

    def begin(self, paths: Iterable[Path]) -> None:
        """Record that these files will be written now. StoreError where the folder cannot be written."""
        for path in paths:
            self._journal.append({"file": self._name(path), "hash": None})

    def finish(self, paths: Iterable[Path]) -> None:
        """Record the content of these files: they are finished."""
        for path in paths:
            with suppress(StoreError):  # then it stays unfinished
                try:
                    content = _content_hash(path)
                except OSError:
                    content = ""  # it was not written
                self._journal.append({"file": self._name(path), "hash": content})

    def finish_as(self, path: Path, content: Path) -> None:
        """Record the content of a file that will appear in one step; until then it does not change."""
        before = None
        with suppress(OSError):  # there is none
            before = _content_hash(path)
        with suppress(OSError, StoreError):
            entry = {"file": self._name(path), "hash": _content_hash(content), "before": before}
            self._journal.append(entry)

    def has(self, paths: Iterable[Path]) -> set[Path]:
        """The files that this product made and that were not changed since."""
        entries = self._journal.load()
        return {path for path in paths if self._is_ours(path, entries.get(self._name(path)))}

    def _is_ours(self, path: Path, entry: Mapping[str, object] | None) -> bool:
        if entry is None or "hash" not in entry:
            return False
        try:
            return entry["hash"] is None or _content_hash(path) in (entry["hash"], entry.get("before"))
        except OSError:
            return False

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self._folder).replace(os.sep, "/")


@contextmanager
def listed_outputs(
    folder: Path | None,
    files: Collection[Path],
    given: Iterable[Given],
    overwrite: bool,
    folders: Iterable[Given] = (),
) -> Iterator[None]:
    """Write files into a folder, and record in it that STM made them.

    Args:
        folder: nothing is written where it is None.
        files: all that may be written.
        given: what must never be written.
        folders: folders of inputs; no file may lie inside one.

    Raises:
        OutputError: a file is an input, inside a folder of inputs, or not made by STM; nothing was written.
    """
    if folder is None:
        yield
        return
    listed = WrittenList(folder)
    ours = listed.has(path for path in files if path.is_file())
    wanted = [(None, path) for path in files]
    check_outputs(wanted, given, folders=folders, overwrite=overwrite, is_ours=lambda _, path: path in ours)
    listed.begin(files)
    try:
        yield
    finally:
        listed.finish(files)


def _content_hash(path: Path) -> str:
    digest = blake3.blake3()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
