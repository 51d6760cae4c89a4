"""A bundle: a folder with everything for an installation on machines without a network.

FOLDER/bundle.json   the manifest: sha256 of every file, the kind of machine, and the index of torch
FOLDER/wheels/       the packages of the locks
FOLDER/sources/      this project: `python3 FOLDER/sources/install.py --from FOLDER`
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stm_plugin.installation.prefix import (
    InstallationError,
    Prefix,
    copy_files,
    files_below,
    remove_tree,
    write_atomically,
)
from stm_plugin.installation.programs import pip, torch_only_from

MANIFEST = "bundle.json"
SCHEMA = 1
WHEELS = "wheels"
SOURCES = "sources"
WORK = ".work"  # while it is being made
LEFT_OUT = ("build",)  # folders of the checkout that are left out, as hidden ones are
CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A complete bundle for this machine and Python.

    Attributes:
        torch_index: the index of its torch; empty for the default build.
    """

    folder: Path
    torch_index: str

    @property
    def sources(self) -> Path:
        """The sources of the project in the bundle."""
        return self.folder / SOURCES

    def pip_variables(self) -> dict[str, str]:
        """Variables that make pip install from the bundle only."""
        wheels = str(self.folder / WHEELS)
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}


def machine() -> str:
    """System, processor and Python, for which packages are built."""
    return f"{platform.system()} {platform.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"


def make_bundle(
    folder: Path, source: Path, locks: Sequence[Path], torch_pins: Sequence[str] = (), torch_index: str = ""
) -> None:
    """Collect packages and sources for this kind of machine.

    Args:
        folder: new or empty, or a bundle, which is made anew; its packages are not fetched again.
        locks: lock files of the packages to collect, with hashes.
        torch_pins: the packages to take from `torch_index`, if that is given.

    Raises:
        InstallationError: the folder holds other files, or a package cannot be fetched.
    """
    known = {MANIFEST, WHEELS, SOURCES, WORK}
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(item.name for item in folder.iterdir() if item.name not in known)
    if others:
        raise InstallationError(
            f"{folder} holds other files ({', '.join(others[:3])}).", hint="Name a new folder with --bundle."
        )
    (folder / MANIFEST).unlink(missing_ok=True)  # only a complete bundle has a manifest
    print(f"Collecting packages for {machine()} ...", flush=True)
    _fetch(folder, locks, torch_pins, torch_index)
    names = [item.name for item in source.iterdir() if not item.name.startswith(".")]
    names = [name for name in names if name not in LEFT_OUT]
    copy_files(files_below(source, [*names, ".ci"]), source, folder / SOURCES)
    files = {name: _sha256(folder / name) for name in _names(folder)}
    manifest = {"schema": SCHEMA, "machine": machine(), "torch_index": torch_index, "files": files}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST, text.encode("utf-8"))
    size = sum((folder / name).stat().st_size for name in files)
    print(f"{folder}: {len(files)} files, {size / 1e9:.1f} GB")
    print("On a machine of this kind, which needs no network:")
    print(f"    python3 {folder / SOURCES / 'install.py'} --from {folder}")


def _fetch(folder: Path, locks: Sequence[Path], torch_pins: Sequence[str], torch_index: str) -> None:
    """Fill the folder of packages."""
    work = Prefix(folder / WORK)
    remove_tree(work.root)
    work.root.mkdir()
    python = Path(sys.executable)
    into = ("download", "--only-binary=:all:", "--progress-bar=off", "--dest", folder / WHEELS)
    named = [word for lock in locks for word in ("-r", lock)]
    pip(work, python, *into, "--require-hashes", "--no-deps", *named)
    if torch_index:
        only = torch_only_from(torch_index, work.root, folder / WHEELS)
        pip(work, python, *into, *torch_pins, **only)
    remove_tree(work.root)


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and check every file's hash.

    Raises:
        InstallationError: it is no bundle, is for another machine, or a file is damaged or missing.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, made_for = dict(manifest["files"]), manifest["machine"]
        torch_index = str(manifest["torch_index"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InstallationError(
            f"{folder} is no complete bundle: {MANIFEST} cannot be read.",
            hint="`python3 install.py --bundle FOLDER` makes one.",
        ) from error
    if made_for != machine():
        raise InstallationError(
            f"{folder} was made for {made_for}; this is {machine()}.",
            hint="Make one on a machine of this kind, with this Python.",
        )
    print(f"Checking {folder} ...", flush=True)
    for name, sha256 in sorted(files.items()):
        path = folder / name
        if not path.is_file() or _sha256(path) != sha256:
            what = "is damaged" if path.is_file() else "is missing"
            raise InstallationError(f"{path} {what}; nothing was installed.", hint="Copy the bundle again.")
    return Bundle(folder, torch_index)


def _names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix()


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()
