"""The folder of an installation: its paths, its record and its lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stm_plugin.errors import StmError

PRODUCT = "STM for Nuke"
FOLDER_NAME = "stm-for-nuke"  # for folder names without spaces and capitals
NUKE, OFX = "nuke", "ofx"
REZ = "rez"
HOSTS = (NUKE, OFX)  # set up on request only, and repaired from then on

RECORD = "engine.json"  # the record, by which hosts find the engine; marks the folder
RECORD_SCHEMA = 1
LOG = "install.log"
LOCK = ".lock"
STAMPS = "stamps"
SIDES = "sides"  # the stamp of the hosts' files
SIDE_NAMES = ("nuke", "ofx_bridge/build.py", "ofx_bridge/source", "ofx_bridge/bundle", "locks")
HOST_DATA = ("shots", "run")  # files of hosts in the default prefix, which exist without an installation, too
LOCK_POLL_SECONDS = 0.5

ON_WINDOWS = os.name == "nt"
SCRIPTS = "Scripts" if ON_WINDOWS else "bin"
EXE = ".exe" if ON_WINDOWS else ""


class InstallationError(StmError):
    """An error of an installation, with a text for people."""


def default_prefix() -> Path:
    """The default folder of this user's installation, in which the hosts' plug-ins search for it."""
    if ON_WINDOWS:
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / PRODUCT
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / PRODUCT
    return Path.home() / ".local" / "share" / FOLDER_NAME


def own_prefix() -> Path:
    """The installation that this Python belongs to; the default one if it belongs to none."""
    above = Path(sys.prefix).parent
    return above if (above / RECORD).is_file() else default_prefix()


class Prefix:
    """An installation's folder. Its record is read anew each time, as another process may change it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock_descriptor: int | None = None
        self._made: Sequence[Path] = ()  # the folders made for the lock

    # paths

    @property
    def log(self) -> Path:
        """The output of the programs that the last installation ran."""
        return self.root / LOG

    @property
    def temporary(self) -> Path:
        """The temporary folder of pip and the compiler. /tmp is often too small for torch."""
        return self.root / "tmp"

    @property
    def cache(self) -> Path:
        """The cache of the checks' compiler."""
        return self.root / "cache"

    @property
    def launcher(self) -> Path:
        """The engine's command, at a path that does not change."""
        return self.root / "bin" / ("stm.cmd" if ON_WINDOWS else "stm")

    @property
    def nuke(self) -> Path:
        """The folder for Nuke's plug-in path."""
        return self.root / "nuke"

    @property
    def ofx(self) -> Path:
        """The folder for OFX_PLUGIN_PATH."""
        return self.root / "ofx"

    @property
    def ofx_sources(self) -> Path:
        """The sources of the effect."""
        return self.root / "ofx_bridge"

    @property
    def locks(self) -> Path:
        """The lock files of the installation."""
        return self.root / "locks"

    @property
    def python(self) -> Path | None:
        """The engine's Python; None before the first installation is complete."""
        found = self.record().get("python")
        return Path(found) if isinstance(found, str) else None

    # the record

    def record(self) -> dict[str, object]:
        """The record of the last installation; empty if none can be read."""
        try:
            record = json.loads((self.root / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def change_record(self, **changes: object) -> None:
        """Write fields of the record. None removes a field."""
        record = {**self.record(), "schema": RECORD_SCHEMA, **changes}
        kept = {name: value for name, value in record.items() if value is not None}
        text = json.dumps(kept, indent=2, sort_keys=True) + "\n"
        write_atomically(self.root / RECORD, text.encode("utf-8"))

    def listed(self, name: str) -> list[str]:
        """The words of a list in the record; empty if it does not exist."""
        found = self.record().get(name)
        return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []

    def set_listed(self, name: str, word: str, wanted: bool) -> None:
        """Add a word to a list of the record, or remove it."""
        words = set(self.listed(name))
        if (word in words) != wanted:
            self.change_record(**{name: sorted(words ^ {word})})

    def remember_folders(self, folders: Iterable[Path]) -> None:
        """Record folders outside that were made for this installation. They are removed with it, if empty."""
        for folder in folders:
            if folder != self.root:
                self.set_listed("made_folders", str(folder), True)

    @property
    def is_installation(self) -> bool:
        """Whether the folder is marked as an installation, finished or not."""
        return (self.root / RECORD).is_file()

    def foreign(self) -> list[str]:
        """The names of foreign files in a folder without an installation."""
        known = (LOCK, *HOST_DATA) if self.root == default_prefix() else (LOCK,)
        return sorted(item.name for item in self.root.iterdir() if item.name not in known)

    def open(self) -> None:
        """Make the folder and mark it as an installation; record the new folders above it.

        Raises:
            InstallationError: it cannot be written, or holds other files.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            others = self.foreign()
            if others and not self.is_installation:
                raise InstallationError(
                    f"{self.root} holds other files ({', '.join(others[:3])}) and no installation.",
                    hint="Name an empty or a new folder with --prefix.",
                )
            self.change_record()
            self.remember_folders(self._made)
        except OSError as error:
            raise not_writable(self.root, error) from error

    # the lock

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; a second installer waits and prints that it does.

        Raises:
            InstallationError: the folder cannot be written.
        """
        missing = missing_folders(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise not_writable(self.root, error) from error
        waiting = False
        try:
            while not _try_lock(descriptor):
                if not waiting:
                    print(f"Another installer is running in {self.root}; waiting for it.", flush=True)
                    waiting = True
                time.sleep(LOCK_POLL_SECONDS)
            self.lock_descriptor = descriptor
            self._made = missing
            yield
        finally:
            self.lock_descriptor = None
            os.close(descriptor)


def not_writable(folder: Path, error: OSError) -> InstallationError:
    """The error for a prefix that cannot be written."""
    return InstallationError(
        f"{folder} cannot be written: {error.strerror}.",
        hint="Choose a folder that you may write with --prefix, or ask the owner of this one.",
    )


def _try_lock(descriptor: int) -> bool:
    """Lock an open file if nobody holds the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


# --- stamps: hashes of a step's inputs
# ------------------------------------------------------------------------


def read_stamp(home: Path, name: str) -> str | None:
    """The stamp of a finished step; None if it was never finished."""
    try:
        return (home / STAMPS / name).read_text(encoding="utf-8")
    except OSError:
        return None


def write_stamp(home: Path, name: str, stamp: str | None) -> None:
    """Mark a step as done; None marks it as not done, before its work begins."""
    if stamp is None:
        with contextlib.suppress(FileNotFoundError):
            (home / STAMPS / name).unlink()
    else:
        write_atomically(home / STAMPS / name, stamp.encode("utf-8"))


def digest(parts: Iterable[bytes]) -> str:
    """A short hash over byte strings and their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(str(len(part)).encode() + b":" + part)
    return total.hexdigest()[:16]


def files_below(root: Path, names: Iterable[str]) -> list[Path]:
    """The files of named files and folders below `root`, in a fixed order, without Python's caches."""
    found: list[Path] = []
    for name in names:
        path = root / name
        found += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    kept = [file for file in found if not any(ignored("", [part]) for part in file.relative_to(root).parts)]
    return sorted(kept, key=lambda file: file.relative_to(root).as_posix())


def content_of(root: Path, names: Iterable[str]) -> str:
    """A hash of the content and the names of those files."""
    parts: list[bytes] = []
    for file in files_below(root, names):
        parts += [file.relative_to(root).as_posix().encode(), file.read_bytes()]
    return digest(parts)


# --- files and links ----------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a small file atomically: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    if mode is not None:
        partial.chmod(mode)
    elif path.exists():
        shutil.copymode(path, partial)
    os.replace(partial, path)


def remove_tree(path: Path) -> None:
    """Remove a folder or a file; it may be absent."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def copy_files(files: Iterable[Path], root: Path, target: Path) -> None:
    """Copy files below `root` to the same relative paths below `target`, which is made anew."""
    remove_tree(target)
    for file in files:
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def missing_folders(folder: Path) -> tuple[Path, ...]:
    """The folder and those above it that do not exist, the innermost first."""
    return tuple(one for one in (folder, *folder.parents) if not one.exists())


def leads_to(link: Path, target: Path) -> bool:
    """Whether `link` is a symbolic link to exactly `target`."""
    return link.is_symlink() and os.readlink(link) == str(target)


def replace_link(link: Path, target: Path) -> None:
    """Replace a symbolic link atomically."""
    partial = link.with_name(f"{link.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    os.replace(partial, link)


def is_our_link(link: Path) -> bool:
    """Whether this is a link into an installation of this product, or one that leads nowhere."""
    if not link.is_symlink():
        return False
    target = Path(os.path.join(link.parent, os.readlink(link)))
    return not target.exists() or (target.parent.parent / RECORD).is_file()
