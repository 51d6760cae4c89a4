"""A bundle: a folder with everything for an installation on machines without a network.

FOLDER/bundle.json   the manifest: sha256 of every file, the kind of machine, and the build of torch
FOLDER/wheels/       the packages of the locks
FOLDER/effect/       the effect for OpenFX hosts, built
FOLDER/sources/      this project: `python3 FOLDER/sources/install.py --from FOLDER`
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stm_plugin.installation.ofx_effect import BUILD, LOCK_FILE, STAMP, effect_stamp
from stm_plugin.installation.prefix import (
    InstallationError,
    Prefix,
    copy_files,
    files_below,
    remove_tree,
    write_atomically,
)
from stm_plugin.installation.programs import (
    ProgramError,
    explain_pip,
    first_lines,
    install_locked,
    pip_command,
    run,
    ticking,
    torch_only_from,
)
from stm_plugin.installation.targets import Target, this_machine
from stm_plugin.installation.torch_build import AUTO, check_collected, check_wanted

MANIFEST = "bundle.json"
SCHEMA = 2
WHEELS = "wheels"
SOURCES = "sources"
EFFECT = "effect"
WORK = ".work"  # while it is being made
LEFT_OUT = ("build",)  # folders of the checkout that are left out, as hidden ones are
CHUNK = 1 << 20
_GOT = re.compile(r"^ *(?:Saved|File was already downloaded) (\S.*\.whl)$", re.MULTILINE)


class Order(NamedTuple):
    """What a bundle is to hold.

    Attributes:
        source: the checkout.
        locks: lock files of the packages to collect, with hashes.
        torch_pins: the packages to take from `torch_index`, if that is given.
        torch: the wanted build.
        target: the kind of machine; None for this one.
    """

    source: Path
    locks: Sequence[Path]
    torch_pins: Sequence[str] = ()
    torch_index: str = ""
    torch: str = AUTO
    target: Target | None = None

    @property
    def machine(self) -> str:
        """The kind of machine that the bundle is for."""
        return this_machine() if self.target is None else str(self.target)

    @property
    def system(self) -> str:
        """Its system, as `sys.platform` has it."""
        return sys.platform if self.target is None else self.target.system


@dataclass(frozen=True)
class Bundle:
    """A complete bundle for this machine and Python.

    Attributes:
        torch_index: the index of its torch; empty for the registry's own build.
        torch: the build that was asked for.
    """

    folder: Path
    torch_index: str
    torch: str = AUTO

    @property
    def sources(self) -> Path:
        """The sources of the project in the bundle."""
        return self.folder / SOURCES

    @property
    def effect(self) -> Path:
        """The folder with the built effect."""
        return self.folder / EFFECT

    def pip_variables(self) -> dict[str, str]:
        """Variables that make pip install from the bundle only."""
        wheels = str(self.folder / WHEELS)
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "PIP_CONFIG_FILE": os.devnull}


def make_bundle(folder: Path, order: Order) -> None:
    """Collect packages and sources, and build the effect.

    Args:
        folder: new or empty, or a bundle, which is made anew; its packages are not fetched again.

    Raises:
        InstallationError: the folder holds other files, a package cannot be fetched, torch is not the wanted
            build, or the effect cannot be built.
    """
    check_wanted(order.torch, order.torch_index, order.system)
    known = {MANIFEST, WHEELS, SOURCES, EFFECT, WORK}
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(item.name for item in folder.iterdir() if item.name not in known)
    if others:
        raise InstallationError(
            f"{folder} holds other files ({', '.join(others[:3])}).", hint="Name a new folder with --bundle."
        )
    (folder / MANIFEST).unlink(missing_ok=True)  # only a complete bundle has a manifest
    print(f"Collecting packages for {order.machine} ...", flush=True)
    work = Prefix(folder / WORK)
    remove_tree(work.root)
    work.root.mkdir()
    _fetch(work, folder / WHEELS, order)
    check_collected(order.torch, folder / WHEELS, order.torch_index)
    names = [item.name for item in order.source.iterdir() if not item.name.startswith(".")]
    names = [name for name in names if name not in LEFT_OUT]
    copy_files(files_below(order.source, [*names, ".ci"]), order.source, folder / SOURCES)
    _build_effect(work, folder, order)
    remove_tree(work.root)
    _write_manifest(folder, order)


def _write_manifest(folder: Path, order: Order) -> None:
    """Write the manifest, and say what to do with the bundle."""
    files = {name: _sha256(folder / name) for name in _names(folder)}
    manifest = {
        "schema": SCHEMA,
        "machine": order.machine,
        "torch": order.torch,
        "torch_index": order.torch_index,
        "files": files,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / MANIFEST, text.encode("utf-8"))
    size = sum((folder / name).stat().st_size for name in files)
    print(f"{folder}: {len(files)} files, {size / 1e9:.1f} GB")
    print(f"On a machine with {order.machine}, which needs no network:")
    print(f"    python3 {folder / SOURCES / 'install.py'} --from {folder}")


def _fetch(work: Prefix, wheels: Path, order: Order) -> None:
    """Fill the folder of packages; what is left there of an earlier bundle and not asked for now goes."""
    locks, options = list(order.locks), ["--require-hashes", "--no-deps"]
    if order.target is not None:
        locks = []
        for lock in order.locks:
            locks.append(work.root / lock.name)
            locks[-1].write_text(order.target.lock(lock.read_text(encoding="utf-8")), encoding="utf-8")
    got = _download(work, wheels, order, [*options, *(word for lock in locks for word in ("-r", lock))])
    if order.torch_index:
        only = torch_only_from(order.torch_index, work.root, wheels)
        got |= _download(work, wheels, order, [*_torch_alone(order), *order.torch_pins], **only)
    for wheel in wheels.iterdir() if got else ():
        if wheel.name not in got:
            wheel.unlink()


def _torch_alone(order: Order) -> list[str]:
    """Options for torch of its own index.

    pip asks the markers of this system, so that the packages that another system's torch brings along are
    unknown. Those builds for Windows and macOS bring none.

    Raises:
        InstallationError: it is for Linux, and this is another system.
    """
    if order.target is None or order.system == sys.platform:
        return []
    if order.system == "linux":
        raise InstallationError(
            "Another build of torch for Linux can be collected on Linux only.", hint="Make the bundle there."
        )
    return ["--no-deps"]


def _download(work: Prefix, wheels: Path, order: Order, words: Sequence[object], **changes: str) -> set[str]:
    """Run `pip download`; returns the names of the files."""
    options = () if order.target is None else order.target.pip_options()
    into = ("download", "--only-binary=:all:", "--progress-bar=off", "--dest", wheels)
    try:
        output = run(work, [*pip_command(Path(sys.executable)), *into, *options, *words], **changes)
    except ProgramError as error:
        raise explain_pip(work, error.output, order.machine) from error
    return {Path(path).name for path in _GOT.findall(output)}


def _build_effect(work: Prefix, folder: Path, order: Order) -> None:
    """Build the effect for the target with the compiler that this machine runs."""
    remove_tree(folder / EFFECT)
    tools = work.root / "tools"
    lock = folder / SOURCES / "locks" / LOCK_FILE
    wheels = {"PIP_FIND_LINKS": str(folder / WHEELS), "PIP_NO_INDEX": "1"} if order.target is None else {}
    install_locked(work, Path(sys.executable), [lock], "--target", tools, **wheels)
    for_target = [] if order.target is None else ["--target", order.target.effect]
    command = [sys.executable, "-B", "-s", folder / SOURCES / "ofx_bridge" / BUILD, *for_target]
    try:
        with ticking("compiling the effect for OpenFX hosts; it takes a minute or two"):
            run(
                work,
                [*command, "--output", folder / EFFECT],
                PYTHONPATH=str(tools),
                ZIG_GLOBAL_CACHE_DIR=os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(work.root / "zig")),
                ZIG_LOCAL_CACHE_DIR=str(work.root / "zig-local"),
            )
    except ProgramError as error:
        raise InstallationError(
            f"The effect for OpenFX hosts could not be built for {order.machine}.",
            hint=f"The compiler's output is in {work.log}. Its beginning:\n{first_lines(error.output)}",
        ) from error
    write_atomically(folder / EFFECT / STAMP, effect_stamp(folder / SOURCES).encode("utf-8"))


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and check every file's hash.

    Raises:
        InstallationError: it is no bundle, is for another machine, or a file is damaged or missing.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, made_for, schema = dict(manifest["files"]), manifest["machine"], manifest["schema"]
        torch_index, torch = str(manifest["torch_index"]), str(manifest.get("torch", AUTO))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InstallationError(
            f"{folder} is no complete bundle: {MANIFEST} cannot be read.",
            hint="`python3 install.py --bundle FOLDER` makes one.",
        ) from error
    if schema != SCHEMA:
        raise InstallationError(
            f"{folder} was made by another version of the installer.",
            hint=f"Its own one reads it: python3 {folder / SOURCES / 'install.py'} --from {folder}",
        )
    if made_for != this_machine():
        raise InstallationError(
            f"{folder} was made for {made_for}; this is {this_machine()}.",
            hint="Make one on a machine of this kind with this Python, or name them with --platform and "
            "--for-python.",
        )
    print(f"Checking {folder} ...", flush=True)
    for name, sha256 in sorted(files.items()):
        path = folder / name
        if not path.is_file() or _sha256(path) != sha256:
            what = "is damaged" if path.is_file() else "is missing"
            raise InstallationError(f"{path} {what}; nothing was installed.", hint="Copy the bundle again.")
    return Bundle(folder, torch_index, torch)


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
