"""The effect for OpenFX hosts: compiled on this machine, optionally linked where hosts search."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from stm_plugin.installation.prefix import (
    OFX,
    InstallationError,
    Prefix,
    content_of,
    copy_files,
    digest,
    files_below,
    is_our_link,
    leads_to,
    read_stamp,
    remove_tree,
    replace_link,
    write_stamp,
)
from stm_plugin.installation.programs import ProgramError, first_lines, install_locked, run, ticking

BUNDLE = "STM.ofx.bundle"
BUILD = "build.py"
SOURCES = (BUILD, "source", "bundle")  # below the folder ofx_bridge
LOCK_FILE = "ofx.txt"  # the packages that build it
BUILT = "built"  # folder beside the sources: the effect from the bundle
STAMP = "stamp.txt"  # in it: what it was built from


def effect_stamp(root: Path) -> str:
    """A hash of everything that the effect is built from, in a prefix or a checkout."""
    lock = root / "locks" / LOCK_FILE
    parts = [content_of(root / "ofx_bridge", SOURCES).encode()]
    return digest([*parts, lock.read_bytes() if lock.is_file() else b""])


def machine_ofx_folder() -> Path:
    """The folder that OpenFX hosts of every user of this machine search for effects."""
    if os.name == "nt":
        common = os.environ.get("COMMONPROGRAMFILES")
        return Path(common or r"C:\Program Files\Common Files") / "OFX" / "Plugins"
    return Path("/Library/OFX/Plugins" if sys.platform == "darwin" else "/usr/OFX/Plugins")


class OfxEffect:
    """The bundle: taken as it was built, or built from the sources in the prefix."""

    host = OFX
    words = "OpenFX effect"

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    def wanted(self, hosts: Collection[str]) -> bool:
        """Whether it belongs to an installation that is set up for these hosts."""
        return OFX in hosts

    def binaries(self) -> list[Path]:
        """The binaries of the effect, one for each system in the bundle."""
        return sorted(self.prefix.ofx.glob(f"{BUNDLE}/Contents/*/*.ofx"))

    def stamp(self) -> str:
        """A hash of everything that the bundle depends on."""
        return effect_stamp(self.prefix.root)

    def trouble(self) -> str:
        """Why the bundle is not in order; empty if it is."""
        if not any(binary.stat().st_size for binary in self.binaries()):
            return f"there is none in {self.prefix.ofx}"
        if read_stamp(self.prefix.root, OFX) != self.stamp():
            return "it was made from other sources, or building it was interrupted"
        return ""

    def bring(self, built: Path) -> None:
        """Keep an effect that was built elsewhere, so that none has to be built here."""
        target = self.prefix.ofx_sources / BUILT
        if _read(built / STAMP) != _read(target / STAMP):
            copy_files(files_below(built, [BUNDLE]), built, target)
            shutil.copyfile(built / STAMP, target / STAMP)

    def add(self) -> None:
        """Take the built effect, or build it with the locked compiler; then replace an existing one.

        Raises:
            InstallationError: the compiler cannot be fetched, or fails.
        """
        prefix, python = self.prefix, self.prefix.python
        if python is None or not prefix.ofx_sources.is_dir():
            raise InstallationError(
                f"There is no complete installation in {prefix.root}.", hint="Run `python3 install.py` first."
            )
        write_stamp(prefix.root, OFX, None)
        built = prefix.ofx_sources / BUILT
        if _read(built / STAMP) == self.stamp():
            copy_files(files_below(built, [BUNDLE]), built, prefix.temporary / OFX)
            remove_tree(prefix.ofx)
            os.replace(prefix.temporary / OFX, prefix.ofx)
        else:
            self._build(python)
        for binary in self.binaries():
            binary.chmod(0o755)
            os.utime(binary)  # a host that failed to load it tries again only if its time changes
        prefix.set_listed("hosts", OFX, True)
        write_stamp(prefix.root, OFX, self.stamp())

    def _build(self, python: Path) -> None:
        prefix = self.prefix
        if OFX not in prefix.listed("groups"):
            install_locked(prefix, python, [prefix.locks / LOCK_FILE])
            prefix.set_listed("groups", OFX, True)
        cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(prefix.temporary / "zig"))
        local = os.environ.get("ZIG_LOCAL_CACHE_DIR", str(prefix.temporary / "zig-local"))
        command = [python, "-I", "-B", prefix.ofx_sources / BUILD, "--output", prefix.ofx]
        try:
            with ticking("compiling the effect; the first time takes a minute or two"):
                run(prefix, command, ZIG_GLOBAL_CACHE_DIR=cache, ZIG_LOCAL_CACHE_DIR=local)
        except ProgramError as error:
            raise InstallationError(
                "The effect for OpenFX hosts could not be built. Everything else is installed and works.",
                hint=f"The compiler's output is in {prefix.log}. Its beginning:\n{first_lines(error.output)}",
            ) from error

    def remove(self) -> bool:
        """Remove the bundle; returns whether there was one."""
        was_there = self.prefix.ofx.exists() or OFX in self.prefix.listed("hosts")
        remove_tree(self.prefix.ofx)
        write_stamp(self.prefix.root, OFX, None)
        self.prefix.set_listed("hosts", OFX, False)
        return was_there


class OfxLink:
    """A link to the bundle in a folder that hosts search by default."""

    host = OFX
    words = "link to the OpenFX effect"

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix

    @property
    def place(self) -> Path | None:
        """The path of the link, if one was requested."""
        found = self.prefix.record().get("ofx_link")
        return Path(found) if isinstance(found, str) else None

    def wanted(self, hosts: Collection[str]) -> bool:
        """Whether it belongs to an installation that is set up for these hosts."""
        return OFX in hosts and self.place is not None

    def trouble(self) -> str:
        """Why the link is not in order; empty if it is."""
        place = self.place
        if place is None or leads_to(place, self.prefix.ofx / BUNDLE):
            return ""
        return f"{place} does not lead to the effect"

    def ask_for(self, folder: Path) -> None:
        """Put the link into this folder from now on.

        Raises:
            InstallationError: another file has its name there.
        """
        place = folder / BUNDLE
        if (place.exists() or place.is_symlink()) and not is_our_link(place):
            raise InstallationError(
                f"{place} is another file and was not changed. Everything else is installed and works.",
                hint=f"Move it away and run this again, or set OFX_PLUGIN_PATH={self.prefix.ofx}",
            )
        if place != self.place:
            self.remove()
            self.prefix.change_record(ofx_link=str(place))

    def add(self) -> None:
        """Make the link.

        Raises:
            InstallationError: it cannot be made; the request for it is removed.
        """
        place = self.place
        if place is None:
            return
        try:
            self.ask_for(place.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_link(place, self.prefix.ofx / BUNDLE)
        except OSError as error:
            self.prefix.change_record(ofx_link=None)
            raise InstallationError(
                f"No link could be made at {place}: {error.strerror}. "
                "Everything else is installed and works.",
                hint=f"A user who may write there can link {self.prefix.ofx / BUNDLE} to it; or set "
                f"OFX_PLUGIN_PATH={self.prefix.ofx}",
            ) from error

    def remove(self) -> bool:
        """Remove the link; returns whether there was one."""
        place = self.place
        if place is None:
            return False
        try:
            if leads_to(place, self.prefix.ofx / BUNDLE):
                place.unlink()
        except OSError as error:
            print(f"    {place} could not be removed: {error.strerror}.")
        self.prefix.change_record(ofx_link=None)
        return True


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return None
