"""An installation for those who choose versions by show: a package for rez, a file for environment modules.

Both only set variables, and name this installation by its absolute path. They give each version a runtime
folder of its own, so that engines of two versions stand side by side.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stm_plugin.installation.prefix import REZ, InstallationError, Prefix, write_atomically

NAME = "stm_for_nuke"
PACKAGE = "package.py"
MARK = "# Kept by STM for Nuke; `stm host rez --remove` takes this file away."

_REZ = """\
{mark}
name = "{name}"
version = "{version}"
description = "STM for Nuke: from one roto key to a matte channel for the whole shot"
requires = ["~nuke-13+"]
build_command = False


def commands():
    import os

    prefix = {prefix!r}
    env.STM_PREFIX = prefix
    env.PATH.prepend(os.path.join(prefix, "bin"))
    env.NUKE_PATH.append(os.path.join(prefix, "nuke"))
    env.OFX_PLUGIN_PATH.append(os.path.join(prefix, "ofx"))
    if hasattr(os, "getuid"):
        env.STM_RUNTIME_DIR = "/tmp/stm-for-nuke-%d-{version}" % os.getuid()
"""

_MODULES = """\
#%Module1.0
# STM for Nuke, version {version}; written by `stm host modules`.
module-whatis {{STM for Nuke {version}: from one roto key to a matte channel for the whole shot}}
conflict stm-for-nuke
set prefix {{{prefix}}}
setenv STM_PREFIX $prefix
prepend-path PATH [file join $prefix bin]
append-path NUKE_PATH [file join $prefix nuke]
append-path OFX_PLUGIN_PATH [file join $prefix ofx]
setenv STM_RUNTIME_DIR "/tmp/stm-for-nuke-[exec id -u]-{version}"
"""


class RezPackage:
    """A package for rez, in every folder that it was asked for in: FOLDER/stm_for_nuke/VERSION/package.py."""

    host = REZ
    words = "package for rez"

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def wanted(self, hosts: Collection[str]) -> bool:
        """Whether it belongs to an installation that is set up for these hosts."""
        return REZ in hosts

    @property
    def recorded(self) -> list[Path]:
        """The files that were written for this installation."""
        return [Path(one) for one in self.prefix.listed("rez_packages")]

    def file(self, folder: Path) -> Path:
        """Where the package is in a folder of REZ_PACKAGES_PATH."""
        return folder / NAME / version_of(self.prefix) / PACKAGE

    def content(self) -> bytes:
        """The package's definition."""
        version = version_of(self.prefix)
        text = _REZ.format(mark=MARK, name=NAME, version=version, prefix=str(self.prefix.root))
        return text.encode("utf-8")

    def trouble(self) -> str:
        """Why it is not in order; empty if it is."""
        for file in self.recorded:
            if file != self.file(file.parents[2]) or not _holds(file, self.content()):
                return f"{file} is not as it should be"
        return ""

    def write(self, folder: Path) -> Path:
        """Write the package into a folder, without an account of it; the file.

        Raises:
            InstallationError: the folder cannot be written, or something else has the package's place.
        """
        file = self.file(folder)
        if file.exists() and not _is_ours(file):
            raise InstallationError(f"{file} is another file and was not changed.", hint="Move it away.")
        try:
            write_atomically(file, self.content())
        except OSError as error:
            raise InstallationError(f"{file} cannot be written: {error.strerror}.") from error
        return file

    def ask_for(self, folder: Path) -> None:
        """Keep the package in this folder, too, from now on. InstallationError where it cannot be."""
        self.prefix.set_listed("rez_packages", str(self.write(folder)), True)
        self.prefix.set_listed("hosts", REZ, True)

    def add(self) -> None:
        """Write the package anew, in every folder that it was asked for in; those of older versions go."""
        for file in self.recorded:
            folder = file.parents[2]
            if file != self.file(folder):
                take_away(file)
                self.prefix.set_listed("rez_packages", str(file), False)
            self.ask_for(folder)

    def remove(self) -> bool:
        """Take the packages away; whether there was one."""
        files = self.recorded
        for file in files:
            take_away(file)
        self.prefix.change_record(rez_packages=None)
        was_kept_up = REZ in self.prefix.listed("hosts")
        self.prefix.set_listed("hosts", REZ, False)
        return bool(files) or was_kept_up


def module_file(prefix: Prefix) -> str:
    """A file for environment modules (Tcl; Lmod reads it, too).

    Raises:
        InstallationError: the prefix has letters that Tcl would take for its own.
    """
    if set(str(prefix.root)) & set("{}\\"):
        raise InstallationError(f"{prefix.root} cannot be written in a module file: it has braces.")
    return _MODULES.format(version=version_of(prefix), prefix=prefix.root)


def version_of(prefix: Prefix) -> str:
    """The version of an installation, as its record says."""
    return str(prefix.record().get("version", "0.0.0"))


def take_away(file: Path) -> bool:
    """Remove a package that we wrote, and the folders of it that are empty then; whether there was one."""
    if not _is_ours(file):
        return False
    file.unlink()
    for folder in (file.parent, file.parents[1]):
        if not any(folder.iterdir()):
            folder.rmdir()
    return True


def _is_ours(file: Path) -> bool:
    try:
        return file.read_bytes().startswith(MARK.encode("utf-8"))
    except OSError:
        return False


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False
