"""The steps of an installation: environment, locked packages, engine, folders for the hosts, command.

A step is done again if its stamp changed, if it was interrupted (it then has no stamp), or if its result is
missing. Hosts are set up after them (`hosts.py`).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from stm_plugin.installation.bundle import Bundle
from stm_plugin.installation.packages import broken_packages, clear_broken_packages, site_packages
from stm_plugin.installation.prefix import (
    EXE,
    OFX,
    ON_WINDOWS,
    SCRIPTS,
    SIDE_NAMES,
    SIDES,
    InstallationError,
    Prefix,
    content_of,
    copy_files,
    digest,
    files_below,
    is_our_link,
    missing_folders,
    read_stamp,
    remove_tree,
    replace_link,
    write_atomically,
)
from stm_plugin.installation.programs import (
    ProgramError,
    bundled_pip,
    install_locked,
    pip,
    run,
    torch_only_from,
)
from stm_plugin.installation.torch_build import AUTO, CPU, check_installed

PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
ENGINE, DEMO, TRAIN, REVIEW, TEST = "engine", "demo", "train", "review", "test"
GROUPS = (ENGINE, DEMO, TRAIN, OFX, REVIEW, TEST)  # the groups of packages, each with a lock
ENGINE_SOURCES = ("pyproject.toml", "model", "stm_plugin")  # the sources that are copied and built
GIGABYTE = 10**9
ROOM_CUDA_TORCH = 9 * GIGABYTE  # Linux: 4.9 GB installed, and 3 GB of downloads while installing
ROOM_SMALL_TORCH = 3 * GIGABYTE


class Options(NamedTuple):
    """The options of an installation."""

    prefix: Path
    source: Path  # the checkout
    groups: tuple[str, ...] = (ENGINE,)
    torch: str | None = None  # the wanted build; None: as before
    torch_index: str = ""
    link_folder: Path | None = None
    hosts: tuple[str, ...] = ()  # to set up, besides those that are set up
    dropped: tuple[str, ...] = ()  # hosts whose setup is to be removed
    ofx_folder: Path | None = None  # gets a link to the effect
    bundle: Bundle | None = None  # the source of packages, if not an index


class Installation:
    """The wanted state of a prefix, from these sources and the options of this and earlier runs."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.prefix = Prefix(options.prefix)
        self.source = options.source
        before = {} if options.torch == AUTO else self.prefix.record()
        self.torch = options.torch or str(before.get("torch", AUTO))
        self.torch_index = options.torch_index or str(before.get("torch_index", ""))
        if options.bundle is not None:
            self.torch_index = options.bundle.torch_index
            self.torch = options.bundle.torch if options.torch in (None, AUTO) else self.torch
        kept_up = (set(options.hosts) | set(self.prefix.listed("hosts"))) - set(options.dropped)
        compiled = kept_up if options.bundle is None else set()  # a bundle brings the effect along
        wanted = set(options.groups) | set(self.prefix.listed("groups")) | ({OFX} & compiled)
        self.groups = tuple(group for group in GROUPS if group in wanted)

    @property
    def environment(self) -> Path:
        """The environment of this Python and this torch.

        Another torch has another folder, so that a failed update does not change the working environment."""
        parts = [PYTHON_VERSION, self.torch_index, *self.torch_pins()]
        return self.prefix.root / f"env-{digest(part.encode() for part in parts)}"

    @property
    def python(self) -> Path:
        return self.environment / SCRIPTS / ("python" + EXE)

    @property
    def site_packages(self) -> Path:
        return site_packages(self.environment)

    @property
    def version(self) -> str:
        """The version of the sources."""
        project = tomllib.loads((self.source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])

    def pip_variables(self) -> dict[str, str]:
        """Variables that tell pip the source of packages; empty for this machine's configuration."""
        return {} if self.options.bundle is None else self.options.bundle.pip_variables()

    def lock(self, name: str) -> Path:
        return self.source / "locks" / f"{name}.txt"

    def locks(self) -> list[Path]:
        """The locks of this installation; torch's only where its default build is used."""
        return [self.lock(name) for name in (*self.groups, *(() if self.torch_index else ("torch",)))]

    def pins(self, lock: Path) -> list[str]:
        """The releases that a lock names, with their markers and without the hashes."""
        lines = lock.read_text(encoding="utf-8").splitlines()
        return [line.partition(" --hash")[0].rstrip(" \\") for line in lines if line[:1].isalnum()]

    def torch_pins(self) -> list[str]:
        """The two packages of torch, of any build."""
        return [pin for pin in self.pins(self.lock("torch")) if pin.startswith(("torch==", "torchvision=="))]


class Step:
    """A step of an installation."""

    name = ""
    words = ""

    def home(self, at: Installation) -> Path:
        """The folder of the step's stamp, which is removed together with the step's result."""
        return at.environment

    def stamp(self, at: Installation) -> str:
        """A hash of everything that the result depends on."""
        raise NotImplementedError

    def intact(self, at: Installation) -> bool:
        """A quick check whether the step's result still exists."""
        raise NotImplementedError

    def do(self, at: Installation) -> None:
        """Do the step, also after an interrupted run."""
        raise NotImplementedError

    def ready(self, at: Installation) -> bool:
        """Whether there is nothing to do."""
        return read_stamp(self.home(at), self.name) == self.stamp(at) and self.intact(at)


class EnvironmentStep(Step):
    """The private environment: an interpreter and pip."""

    name = "environment"
    words = "private environment"

    def stamp(self, at: Installation) -> str:
        return digest([str(at.environment).encode(), sys.base_prefix.encode()])

    def intact(self, at: Installation) -> bool:
        return at.python.exists()

    def do(self, at: Installation) -> None:
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError as error:
            raise InstallationError(
                f"{sys.executable} has no `{error.name}` module, which makes private environments.",
                hint="On Debian and Ubuntu it is in a separate package: apt install "
                f"python{PYTHON_VERSION}-venv. Then run this again.",
            ) from error
        self.check_room(at)
        try:
            without = [] if bundled_pip() is None else ["--without-pip"]  # the locked one is installed anyway
            run(at.prefix, [sys.executable, "-I", "-m", "venv", "--clear", *without, at.environment])
        except ProgramError as error:
            raise InstallationError(
                f"The private environment could not be made at {at.environment}.",
                hint=f"{sys.executable} -m venv said:\n{error.output}",
            ) from error

    def check_room(self, at: Installation) -> None:
        """Raise InstallationError before anything is downloaded if the disk is too small for it."""
        is_large = sys.platform.startswith("linux") and at.torch != CPU
        needed = ROOM_CUDA_TORCH if is_large else ROOM_SMALL_TORCH
        remove_tree(at.environment)  # the environment is made anew, so its room is free as well
        free = shutil.disk_usage(at.prefix.root).free
        if free < needed:
            raise InstallationError(
                f"{at.prefix.root} has {free / GIGABYTE:.1f} GB free; about {needed / GIGABYTE:.0f} GB are "
                "needed (PyTorch is most of it).",
                hint="Free some room, or choose another disk with --prefix.",
            )


class PackagesStep(Step):
    """The locked packages of every requested group, and torch."""

    name = "dependencies"
    words = "locked packages"

    def stamp(self, at: Installation) -> str:
        parts = [at.torch_index.encode(), *([] if at.torch == AUTO else [at.torch.encode()])]
        for lock in at.locks():
            parts += [lock.name.encode(), lock.read_bytes()]
        return digest(parts)

    def intact(self, at: Installation) -> bool:
        return not broken_packages(at.site_packages, thorough=False)

    def do(self, at: Installation) -> None:
        clear_broken_packages(at.site_packages)
        install_locked(at.prefix, at.python, at.locks(), **at.pip_variables())
        if at.torch_index:
            self.take_torch_from_its_own_index(at)
        self.check(at)
        check_installed(at.torch, at.site_packages, at.torch_index)

    def take_torch_from_its_own_index(self, at: Installation) -> None:
        """Install torch, and the packages that only its build needs, from that index only.

        Packages of the locks are installed already and are kept. The hashes of another build are unknown.
        """
        pins = at.prefix.temporary / "pins.txt"
        pins.parent.mkdir(parents=True, exist_ok=True)
        pins.write_text("\n".join(pin for lock in at.locks() for pin in at.pins(lock)), encoding="utf-8")
        only = at.pip_variables() or torch_only_from(at.torch_index, at.prefix.temporary)
        plain = ("install", "--only-binary=:all:", "--progress-bar=off", "-c", pins)
        pip(at.prefix, at.python, *plain, *at.torch_pins(), **only)

    def check(self, at: Installation) -> None:
        """Raise InstallationError if a package lacks another one, unless that one is never installed."""
        try:
            run(at.prefix, [at.python, "-I", "-m", "pip", "check"])
        except ProgramError as error:
            excused = tuple(
                f" requires {name}, which is not installed." for name in never_installed(at.source)
            )
            lacking = [line for line in error.output.splitlines() if not line.endswith(excused)]
            if lacking:
                raise InstallationError(
                    "The packages that were installed do not fit together:\n    " + "\n    ".join(lacking),
                    hint="`python3 install.py --repair` installs them again.",
                ) from error


def never_installed(source: Path) -> tuple[str, ...]:
    """The packages that others ask for and that are left out; pyproject.toml gives the reasons."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    named = project.get("tool", {}).get("uv", {}).get("override-dependencies", ())
    return tuple(one.partition(" ;")[0] for one in named)


class EngineStep(Step):
    """The engine, built from a copy so that the checkout is not changed."""

    name = "engine"
    words = "engine"

    def stamp(self, at: Installation) -> str:
        return content_of(at.source, ENGINE_SOURCES)

    def intact(self, at: Installation) -> bool:
        return (at.site_packages / "stm_plugin").is_dir()

    def do(self, at: Installation) -> None:
        copy = at.prefix.temporary / "engine"
        copy_files(files_below(at.source, ENGINE_SOURCES), at.source, copy)
        own = ("--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", "--no-cache-dir")
        pip(at.prefix, at.python, "install", *own, copy)
        try:  # the studio's OCIO config is not checked here
            run(at.prefix, [at.python, "-I", "-m", "stm_plugin", "info"], OCIO="")
        except ProgramError as error:
            raise InstallationError(
                "The engine is installed but does not start.",
                hint=f"`stm info` said:\n{error.output}\nA system library may be missing; all output is in "
                f"{at.prefix.log}.",
            ) from error


class SidesStep(Step):
    """The files of the hosts' plug-ins, beside the record by which they find the engine."""

    name = SIDES
    words = "folders for the hosts"

    def home(self, at: Installation) -> Path:
        return at.prefix.root

    def stamp(self, at: Installation) -> str:
        return content_of(at.source, SIDE_NAMES)

    def intact(self, at: Installation) -> bool:
        return content_of(at.prefix.root, SIDE_NAMES) == self.stamp(at)

    def do(self, at: Installation) -> None:
        copy = at.prefix.temporary / "sides"
        copy_files(files_below(at.source, SIDE_NAMES), at.source, copy)
        for folder in copy.iterdir():
            remove_tree(at.prefix.root / folder.name)
            os.replace(folder, at.prefix.root / folder.name)


class CommandStep(Step):
    """The `stm` command at a fixed address, a link to it on the user's PATH, and the record for the hosts."""

    name = "command"
    words = "stm command"

    def home(self, at: Installation) -> Path:
        return at.prefix.root

    def link(self, at: Installation) -> Path | None:
        return None if at.options.link_folder is None else at.options.link_folder / "stm"

    def launcher(self, at: Installation) -> bytes:
        """The launcher: it starts the engine's Python, which ignores PYTHON* variables.

        It finds Python by a path relative to itself, so that a moved prefix works.
        """
        python = os.path.relpath(at.python, at.prefix.launcher.parent)
        if ON_WINDOWS:
            return f'@"%~dp0{python}" -I -m stm_plugin %*\r\n'.encode()
        here = '$(dirname -- "$(readlink -f -- "$0")")'
        return f'#!/bin/sh\nexec "{here}"/{shlex.quote(python)} -I -m stm_plugin "$@"\n'.encode()

    def record(self, at: Installation) -> dict[str, object]:
        return {
            "python": str(at.python),
            "version": at.version,
            "command": str(at.prefix.launcher),
            "torch": None if at.torch == AUTO else at.torch,
            "torch_index": at.torch_index,
            "groups": list(at.groups),
            "source": str(at.source),
        }

    def stamp(self, at: Installation) -> str:
        parts = [self.launcher(at), str(self.link(at)).encode(), repr(self.record(at)).encode()]
        return digest(parts)

    def intact(self, at: Installation) -> bool:
        link = self.link(at)
        launcher = at.prefix.launcher
        written = launcher.is_file() and launcher.read_bytes() == self.launcher(at)
        return written and (link is None or link.exists()) and at.prefix.python == at.python

    def do(self, at: Installation) -> None:
        write_atomically(at.prefix.launcher, self.launcher(at), mode=0o755)
        at.prefix.change_record(**self.record(at))
        link = self.link(at)
        if link is None:
            return
        if (link.exists() or link.is_symlink()) and not is_our_link(link):
            print(f"    {link} is another file and is not changed.")
            return
        try:
            at.prefix.remember_folders(missing_folders(link.parent))
            link.parent.mkdir(parents=True, exist_ok=True)
            replace_link(link, at.prefix.launcher)
            at.prefix.change_record(link=str(link))
        except OSError as error:
            print(f"    No link at {link}: {error.strerror}.")


STEPS: tuple[Step, ...] = (EnvironmentStep(), PackagesStep(), EngineStep(), SidesStep(), CommandStep())
