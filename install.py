#!/usr/bin/env python3
"""Installs STM for Nuke into a private environment of its own; nothing of it enters Nuke's Python.

    python3 install.py              install, update or repair; quick when there is nothing to do
    python3 install.py --demo       install, then build a short plate and make mattes of it
    python3 install.py --test       install, then run every check of the project
    python3 install.py --doctor     say what is in order and what is not; changes nothing
    python3 install.py --uninstall  take away everything that an installation put on this machine

The standard library is all it needs. It is written so that an old Python can still read it, say in words that
it is too old, and hand over to a newer one on the same machine.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

PRODUCT = "STM for Nuke"
FOLDER_NAME = "stm-nuke"
SOURCE = Path(__file__).resolve().parent

THIS_PYTHON = (sys.version_info[0], sys.version_info[1])
OLDEST_PYTHON = (3, 11)  # the oldest one that the pinned NumPy and SciPy are built for
NEWEST_PYTHON = (3, 14)
WANTED_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python")
HANDED_OVER = "STM_INSTALL_HANDED_OVER"  # set when an older Python has passed the work on

ENGINE, DEMO, TEST = "engine", "demo", "test"
GROUPS = (ENGINE, DEMO, TEST)  # what can be installed, each with a requirements file
REQUIREMENTS = {ENGINE: "requirements.txt", DEMO: "requirements-demo.txt", TEST: "requirements-test.txt"}
ALONE = {TEST: "requirements-test-alone.txt"}  # installed without what they ask for; the file says why
CONSTRAINTS = "constraints.txt"
TORCH_CONSTRAINTS = "constraints-torch.txt"
TORCH_PACKAGES = ("torch", "torchvision")
ENGINE_SOURCES = ("pyproject.toml", "model", "stm_plugin")  # what is copied and built, and nothing else
IGNORED_SOURCES = ("__pycache__", "*.pyc", "*.egg-info")

GIGABYTE = 10**9
ROOM_CUDA_TORCH = 9 * GIGABYTE  # Linux: 5.6 GB installed, and 3 GB of downloads while installing
ROOM_SMALL_TORCH = 3 * GIGABYTE
LOG_TAIL = 25  # lines of pip's output that are shown when it fails

RECORD = "install.json"  # where the engine is, for the hosts' sides to read; also marks a folder as ours
RECORD_SCHEMA = 1
LOG = "install.log"
LOCK = ".lock"
STAMPS = "stamps"
ON_WINDOWS = os.name == "nt"
SCRIPTS = "Scripts" if ON_WINDOWS else "bin"
EXE = ".exe" if ON_WINDOWS else ""


class InstallError(Exception):
    """Something that the person at the keyboard can act on."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


# --- the right Python ---------------------------------------------------------------------------------------


def version_words(version: Tuple[int, ...]) -> str:
    """(3, 11) -> "3.11"."""
    return ".".join(str(number) for number in version[:2])


def python_fits(version: Tuple[int, ...], bits: int) -> bool:
    """Whether the pinned packages exist for this Python."""
    return OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON and bits == 64


def probe_python(command: str) -> Optional[str]:
    """The path of the interpreter behind a command name if it fits, else None."""
    found = shutil.which(command)
    if found is None:
        return None
    question = "import sys; print(*sys.version_info[:2], sys.maxsize > 2**32, sys.executable)"
    try:
        answer = subprocess.run(
            [found, "-c", question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=20,
            check=False,
        )
        major, minor, wide, executable = answer.stdout.strip().split(" ", 3)
        fits = python_fits((int(major), int(minor)), 64 if wide == "True" else 32)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return executable if fits else None


def ensure_python(arguments: Sequence[str]) -> None:
    """Return if this Python fits; else go on in one that does, or say what is needed."""
    bits = 64 if sys.maxsize > 2**32 else 32
    if python_fits(THIS_PYTHON, bits):
        return
    mine = f"Python {platform.python_version()} ({bits} bit)"
    if HANDED_OVER not in os.environ:
        for command in WANTED_PYTHONS:
            other = probe_python(command)
            if other is not None:
                print(f"This is {mine}; going on with {other}.", flush=True)
                os.environ[HANDED_OVER] = "1"
                call = [other, str(Path(__file__).resolve()), *arguments]
                if ON_WINDOWS:
                    sys.exit(subprocess.call(call))
                os.execv(other, call)
    raise InstallError(
        f"The engine needs a 64-bit Python {version_words(OLDEST_PYTHON)} to {version_words(NEWEST_PYTHON)}. "
        f"This is {mine} at {sys.executable}, and no other was found on PATH.",
        f"Install Python {version_words(OLDEST_PYTHON)} beside it (nothing else has to use it), "
        "then run this command again with that Python.",
    )


# --- folders ------------------------------------------------------------------------------------------------


def default_prefix() -> Path:
    """Where this user's installation goes when nothing is said."""
    if ON_WINDOWS:
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / FOLDER_NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / FOLDER_NAME
    data = os.environ.get("XDG_DATA_HOME")
    return Path(data or Path.home() / ".local" / "share") / FOLDER_NAME


def default_link_folder() -> Optional[Path]:
    """Where the `stm` command is linked for this user; None where links are not usual."""
    return None if ON_WINDOWS else Path.home() / ".local" / "bin"


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(str(partial), str(path))


def digest(parts: Iterable[bytes]) -> str:
    """A short hash over byte strings; where one ends and the next begins counts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(str(len(part)).encode() + b":" + part)
    return total.hexdigest()[:16]


def remove_tree(path: Path) -> None:
    """Remove a folder or a file; it may be absent."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(str(path))


# --- one installation ---------------------------------------------------------------------------------------


class Options(NamedTuple):
    """What was asked for."""

    prefix: Path
    groups: Tuple[str, ...] = (ENGINE,)
    torch_index: str = ""
    link_folder: Optional[Path] = None
    source: Path = SOURCE


class Installation:
    """A prefix folder: its environments, its record, and the programs that are run on its behalf."""

    def __init__(self, options: Options) -> None:
        self.prefix = options.prefix
        self.source = options.source
        self.link_folder = options.link_folder
        record = self.read_record()
        self.torch_index = options.torch_index or str(record.get("torch_index", ""))
        known = record.get("groups", [])
        wanted = set(options.groups) | set(known if isinstance(known, list) else [])
        self.groups = tuple(group for group in GROUPS if group in wanted)
        self.lock_descriptor: Optional[int] = None

    # where things are

    @property
    def temporary(self) -> Path:
        """pip's working room: the prefix's own disk, since /tmp is often too small for torch."""
        return self.prefix / "tmp"

    @property
    def log(self) -> Path:
        return self.prefix / LOG

    @property
    def environment(self) -> Path:
        """The environment of this Python and this torch. Another torch is another folder, so that an update
        that fails leaves the working environment as it was."""
        torch = [
            line for line in self.pins(REQUIREMENTS[ENGINE]) if re.split("[=<>! ]", line)[0] in TORCH_PACKAGES
        ]
        parts = [version_words(THIS_PYTHON), self.torch_index, *torch]
        return self.prefix / f"env-{digest(part.encode() for part in parts)}"

    @property
    def python(self) -> Path:
        return self.environment / SCRIPTS / ("python" + EXE)

    @property
    def stm(self) -> Path:
        """The engine's command inside the environment."""
        return self.environment / SCRIPTS / ("stm" + EXE)

    @property
    def launcher(self) -> Path:
        """The engine's command at an address that does not change."""
        return self.prefix / "bin" / ("stm.cmd" if ON_WINDOWS else "stm")

    @property
    def site_packages(self) -> Path:
        if ON_WINDOWS:
            return self.environment / "Lib" / "site-packages"
        return self.environment / "lib" / f"python{version_words(THIS_PYTHON)}" / "site-packages"

    # what it should be made of

    def pins(self, file: str) -> List[str]:
        """The lines of a requirements file that are requirements."""
        lines = (self.source / file).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def alone(self) -> List[str]:
        """The requirements files whose packages are installed without what they ask for."""
        return [ALONE[group] for group in self.groups if group in ALONE]

    def pip_files(self) -> List[str]:
        """The arguments that name every requirements and constraints file of this installation."""
        arguments = []  # type: List[str]
        for group in self.groups:
            arguments += ["-r", str(self.source / REQUIREMENTS[group])]
        arguments += ["-c", str(self.source / CONSTRAINTS)]
        if not self.torch_index:
            arguments += ["-c", str(self.source / TORCH_CONSTRAINTS)]
        return arguments

    def sources(self) -> List[Path]:
        """Every file that the engine is built from, in a fixed order."""
        files = []  # type: List[Path]
        for name in ENGINE_SOURCES:
            path = self.source / name
            files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        ignored = shutil.ignore_patterns(*IGNORED_SOURCES)
        kept = [
            file
            for file in files
            if not any(ignored("", [part]) for part in file.relative_to(self.source).parts)
        ]
        return sorted(kept, key=lambda file: file.relative_to(self.source).as_posix())

    # the record

    def read_record(self) -> Dict[str, object]:
        """What the last installation wrote about itself; empty if there is none that can be read."""
        try:
            record = json.loads((self.prefix / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, **changes: object) -> None:
        """Write the record; it names where the engine is only once the engine works."""
        record = dict(self.read_record(), schema=RECORD_SCHEMA, **changes)
        write_atomically(self.prefix / RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")

    # running programs

    def clean_environment(self) -> Dict[str, str]:
        """The process environment without what would bend Python or pip away from the private environment."""
        bent = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "PYTHONSTARTUP", "PIP_TARGET", "PIP_PREFIX")
        kept = {name: value for name, value in os.environ.items() if name not in (*bent, HANDED_OVER)}
        kept.update(PYTHONNOUSERSITE="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
        kept.update(PIP_NO_WARN_SCRIPT_LOCATION="1", PIP_ROOT_USER_ACTION="ignore")
        return kept

    def run(self, command: Sequence[object], **changes: str) -> str:
        """Run a program to its end, log what it prints, and return that.

        Children inherit the lock, so that it lasts as long as a pip that outlives a killed installer.

        Raises:
            ProgramError: it ended with an error.
        """
        self.temporary.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        lines = []  # type: List[str]
        shared = () if ON_WINDOWS or self.lock_descriptor is None else (self.lock_descriptor,)
        with self.log.open("a", encoding="utf-8", errors="replace") as log:
            log.write("\n$ {}\n".format(" ".join(words)))
            log.flush()
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(self.clean_environment(), TMPDIR=str(self.temporary), **changes),
                cwd=str(self.prefix),
                pass_fds=shared,
                encoding="utf-8",
                errors="replace",
            )
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    log.write(line)
                    lines.append(line.rstrip())
                    Progress.show(line)
                status = child.wait()
            except BaseException:
                child.terminate()
                child.wait()
                raise
            finally:
                child.stdout.close()
                Progress.clear()
        output = "\n".join(lines)
        if status != 0:
            raise ProgramError(words, status, output)
        return output

    def pip(self, *arguments: object) -> str:
        """Run the environment's pip as this machine's user has it configured.

        Raises:
            InstallError: with the cause in words.
        """
        try:
            return self.run([self.python, "-m", "pip", *arguments])
        except ProgramError as error:
            raise explain_pip(self, error.output) from error


class ProgramError(Exception):
    """A program that was run ended with an error."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__("{} ended with status {}".format(" ".join(command), status))
        self.status = status
        self.output = output


class Progress:
    """What pip is busy with, on one line of a terminal; a log gets only the downloads."""

    @staticmethod
    def show(line: str) -> None:
        text = line.strip()
        telling = ("Collecting", "Downloading", "Installing", "Building", "Attempting", "Processing")
        if not text.startswith(telling):
            return
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 5
            sys.stdout.write(f"\r\033[K    {text[:width]}")
            sys.stdout.flush()
        elif text.startswith("Downloading"):
            print("    " + text, flush=True)

    @staticmethod
    def clear() -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


def explain_pip(installation: Installation, output: str) -> InstallError:
    """Turn pip's output into what happened and what to do."""
    tail = "\n".join("    " + line for line in output.splitlines()[-LOG_TAIL:])
    where = f"pip's output is in {installation.log}. Its end:\n{tail}"
    network = (
        "Temporary failure in name resolution",
        "Failed to establish a new connection",
        "NewConnectionError",
        "NameResolutionError",
        "Max retries exceeded",
        "Network is unreachable",
        "ReadTimeoutError",
        "ConnectTimeoutError",
        "ProxyError",
    )
    if "No space left on device" in output or "Errno 28" in output:
        return InstallError(
            f"The disk ran full while installing into {installation.prefix}.",
            f"Free some room or choose another disk with --prefix, then run this again. {where}",
        )
    if "The user requested (constraint)" in output and "ResolutionImpossible" in output:
        own = {CONSTRAINTS, TORCH_CONSTRAINTS}
        return InstallError(
            "pip's own configuration on this machine limits a package to a release that the engine was not "
            f"tested with, against {', '.join(sorted(own))} and the requirements here.",
            f"`pip config list` shows the constraint; lift it for this installation. {where}",
        )
    if any(sign in output for sign in network):
        return InstallError(
            "The package index cannot be reached: no network, or a proxy or index setting that is wrong.",
            "Check the connection and `pip config list`, then run this again; what is there already is kept. "
            + where,
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        machine = f"{platform.system()} {platform.machine()}, Python {version_words(THIS_PYTHON)}"
        return InstallError(
            f"The package index that pip uses has no {missing.group(1)} for this machine ({machine}).",
            "If a mirror is configured (`pip config list`), it may lack it or be out of reach; another build "
            f"of torch can be named with --torch-index URL. {where}",
        )
    return InstallError("pip could not install the packages.", where)


# --- the steps ----------------------------------------------------------------------------------------------


class Step:
    """One thing that an installation consists of.

    It is done again when its stamp has changed, when it was interrupted (then it has no stamp), or when what
    it made is no longer there.
    """

    name = ""
    words = ""

    def home(self, at: Installation) -> Path:
        """The folder that the step's stamp lies in: it goes away together with what the step made."""
        return at.environment

    def stamp(self, at: Installation) -> str:
        """What the result depends on."""
        raise NotImplementedError

    def intact(self, at: Installation) -> bool:
        """A cheap look whether what the step made is still there."""
        raise NotImplementedError

    def do(self, at: Installation) -> None:
        """Make it, whatever an interrupted run has left."""
        raise NotImplementedError

    def undo(self, at: Installation) -> None:
        """Take it away; it may be half there or absent."""
        raise NotImplementedError

    def ready(self, at: Installation) -> bool:
        """Whether there is nothing to do."""
        try:
            done = (self.home(at) / STAMPS / self.name).read_text(encoding="utf-8")
        except OSError:
            return False
        return done == self.stamp(at) and self.intact(at)

    def forget(self, at: Installation) -> None:
        """Remove the stamp, so that an interrupted run is seen as one."""
        with contextlib.suppress(FileNotFoundError):
            (self.home(at) / STAMPS / self.name).unlink()

    def remember(self, at: Installation) -> None:
        """Write the stamp of what was just done."""
        write_atomically(self.home(at) / STAMPS / self.name, self.stamp(at))


class EnvironmentStep(Step):
    """The private environment: an interpreter and pip."""

    name = "environment"
    words = "private environment"

    def stamp(self, at: Installation) -> str:
        return digest([str(at.environment).encode(), sys.base_prefix.encode()])

    def intact(self, at: Installation) -> bool:
        return at.python.exists() and (at.site_packages / "pip").is_dir()

    def do(self, at: Installation) -> None:
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError as error:
            version = version_words(THIS_PYTHON)
            raise InstallError(
                f"{sys.executable} has no `{error.name}` module, which makes private environments.",
                f"On Debian and Ubuntu it is a package of its own: apt install python{version}-venv. "
                "Then run this again.",
            ) from error
        self.check_room(at)
        try:
            at.run([sys.executable, "-m", "venv", "--clear", at.environment])
        except ProgramError as error:
            raise InstallError(
                f"The private environment could not be made at {at.environment}.",
                f"{sys.executable} -m venv said:\n{error.output}",
            ) from error

    def check_room(self, at: Installation) -> None:
        """Raise InstallError before anything is downloaded if the disk is too small for it."""
        needed = ROOM_CUDA_TORCH if sys.platform.startswith("linux") else ROOM_SMALL_TORCH
        if at.environment.is_dir():  # made anew: what lies there is room as well
            remove_tree(at.environment)
        free = shutil.disk_usage(str(at.prefix)).free
        if free < needed:
            raise InstallError(
                f"{at.prefix} has {free / GIGABYTE:.1f} GB free; about {needed / GIGABYTE:.0f} GB are needed "
                "(PyTorch is most of it).",
                "Free some room, or choose another disk with --prefix.",
            )

    def undo(self, at: Installation) -> None:
        for folder in at.prefix.glob("env-*"):
            remove_tree(folder)


class DependenciesStep(Step):
    """The pinned packages of every group that was asked for."""

    name = "dependencies"
    words = "pinned packages"

    def stamp(self, at: Installation) -> str:
        files = [Path(argument) for argument in at.pip_files() if not argument.startswith("-")]
        files += [at.source / name for name in at.alone()]
        parts = [at.torch_index.encode()]
        for file in files:
            parts += [file.name.encode(), file.read_bytes()]
        return digest(parts)

    def intact(self, at: Installation) -> bool:
        return not broken_packages(at.site_packages, thorough=False)

    def do(self, at: Installation) -> None:
        clear_broken_packages(at.site_packages)
        index = ["--extra-index-url", at.torch_index] if at.torch_index else []
        plain = ["install", "--only-binary=:all:", "--progress-bar=off"]
        at.pip(*plain, *index, *at.pip_files())
        for name in at.alone():
            at.pip(*plain, "--no-deps", "-r", at.source / name)
        self.check(at)

    def check(self, at: Installation) -> None:
        """Raise InstallError if a package lacks what it asks for and is not meant to."""
        try:
            at.run([at.python, "-m", "pip", "check"])
        except ProgramError as error:
            excused = tuple(pin.partition("==")[0] + " " for name in at.alone() for pin in at.pins(name))
            lacking = [line for line in error.output.splitlines() if not line.startswith(excused or ("\n",))]
            if lacking:
                raise InstallError(
                    "The packages that were installed do not fit together:\n    " + "\n    ".join(lacking),
                    "`python3 install.py --repair` installs them again.",
                ) from error

    def undo(self, at: Installation) -> None:
        """The packages lie in the environment and go with it."""


class EngineStep(Step):
    """The engine itself, built from a copy so that the checkout stays as it is."""

    name = "engine"
    words = "engine"

    def stamp(self, at: Installation) -> str:
        parts = []  # type: List[bytes]
        for file in at.sources():
            parts += [file.relative_to(at.source).as_posix().encode(), file.read_bytes()]
        return digest(parts)

    def intact(self, at: Installation) -> bool:
        return at.stm.exists() and (at.site_packages / "stm_plugin").is_dir()

    def do(self, at: Installation) -> None:
        copy = at.temporary / "engine"
        remove_tree(copy)
        for file in at.sources():
            target = copy / file.relative_to(at.source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file), str(target))
        own = ["--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", "--no-cache-dir"]
        at.pip("install", *own, copy)
        try:
            at.run([at.stm, "info"], OCIO="")  # the studio's own config is not what is being looked at
        except (OSError, ProgramError) as error:
            said = error.output if isinstance(error, ProgramError) else str(error)
            raise InstallError(
                "The engine is installed but does not start.",
                f"`stm info` said:\n{said}\nA system library may be missing; all output is in {at.log}.",
            ) from error

    def undo(self, at: Installation) -> None:
        """The engine lies in the environment and goes with it."""


class CommandStep(Step):
    """The `stm` command at a fixed address, a link to it on the user's PATH, and the record for the hosts."""

    name = "command"
    words = "stm command"

    def home(self, at: Installation) -> Path:
        return at.prefix

    def link(self, at: Installation) -> Optional[Path]:
        return None if at.link_folder is None else at.link_folder / "stm"

    def stamp(self, at: Installation) -> str:
        groups = ",".join(at.groups)
        parts = [str(at.stm), str(self.link(at)), at.torch_index, groups, str(at.source)]
        return digest(part.encode() for part in parts)

    def intact(self, at: Installation) -> bool:
        link = self.link(at)
        linked = link is None or link.exists()
        return at.launcher.exists() and linked and at.read_record().get("command") == str(at.launcher)

    def do(self, at: Installation) -> None:
        at.launcher.parent.mkdir(parents=True, exist_ok=True)
        if ON_WINDOWS:
            write_atomically(at.launcher, f'@"{at.stm}" %*\r\n')
        else:
            replace_link(at.launcher, at.stm)
        at.write_record(
            python=str(at.python),
            command=str(at.launcher),
            torch_index=at.torch_index,
            groups=list(at.groups),
            source=str(at.source),
        )
        link = self.link(at)
        if link is None:
            return
        if (link.exists() or link.is_symlink()) and not is_our_link(link):
            print(f"    {link} is something else and is left as it is.")
            return
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            replace_link(link, at.launcher)
        except OSError as error:
            print(f"    No link at {link}: {error.strerror}.")

    def undo(self, at: Installation) -> None:
        link = default_link_folder() if at.link_folder is None else at.link_folder
        if link is not None:
            path = link / "stm"
            if path.is_symlink() and os.readlink(str(path)) == str(at.launcher):
                path.unlink()
        remove_tree(at.launcher.parent)


STEPS = (EnvironmentStep(), DependenciesStep(), EngineStep(), CommandStep())  # type: Tuple[Step, ...]


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link somewhere else in one move."""
    partial = link.with_name(f"{link.name}.{os.getpid()}.partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(target)
    os.replace(str(partial), str(link))


def is_our_link(link: Path) -> bool:
    """Whether an existing `stm` is a link into an installation of this product, or leads nowhere."""
    if not link.is_symlink():
        return False
    target = Path(os.path.join(str(link.parent), os.readlink(str(link))))
    return not target.exists() or (target.parent.parent / RECORD).is_file()


def broken_packages(site_packages: Path, thorough: bool) -> List[Path]:
    """Metadata folders of packages that pip did not finish, or that have lost files since.

    pip writes RECORD at the very end, so a package without one was interrupted, though pip would take it for
    installed. A thorough look also compares every file with its size in RECORD.
    """
    broken = []
    for metadata in site_packages.glob("*.dist-info"):
        record = metadata / "RECORD"
        if not record.is_file() or (thorough and not files_match(site_packages, record)):
            broken.append(metadata)
    return sorted(broken)


def files_match(site_packages: Path, record: Path) -> bool:
    """Whether every file of a package is there in the size that its RECORD states."""
    for line in record.read_text(encoding="utf-8").splitlines():
        name, _, size = line.rsplit(",", 2)
        path = site_packages / name.strip('"')
        if size and (not path.is_file() or path.stat().st_size != int(size)):
            return False
    return True


def clear_broken_packages(site_packages: Path) -> None:
    """Make pip see unfinished and damaged packages as missing; remove what it set aside meanwhile."""
    for metadata in broken_packages(site_packages, thorough=True):
        remove_tree(metadata)
    for aside in site_packages.glob("~*"):
        remove_tree(aside)


# --- the verbs ----------------------------------------------------------------------------------------------


def open_prefix(at: Installation) -> None:
    """Make the prefix and mark it as ours.

    Raises:
        InstallError: it cannot be written, or holds something else.
    """
    try:
        at.prefix.mkdir(parents=True, exist_ok=True)
        foreign = [item.name for item in at.prefix.iterdir() if item.name != LOCK]
        if foreign and not (at.prefix / RECORD).is_file():
            raise InstallError(
                f"{at.prefix} holds other files ({', '.join(sorted(foreign)[:3])}) and no installation.",
                "Name an empty or a new folder with --prefix.",
            )
        at.write_record()
    except OSError as error:
        raise InstallError(
            f"{at.prefix} cannot be written: {error.strerror}.",
            "Choose a folder that you may write with --prefix, or ask the owner of this one.",
        ) from error


@contextlib.contextmanager
def locked(at: Installation) -> Iterator[None]:
    """Hold the prefix for this process; a second installer waits and says so."""
    try:
        at.prefix.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(str(at.prefix / LOCK), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InstallError(
            f"{at.prefix} cannot be written: {error.strerror}.",
            "Choose a folder that you may write with --prefix, or ask the owner of this one.",
        ) from error
    waiting = False
    try:
        while not try_lock(descriptor):
            if not waiting:
                print(f"Another installer is at work in {at.prefix}; waiting for it.", flush=True)
                waiting = True
            time.sleep(0.5)
        at.lock_descriptor = descriptor
        yield
    finally:
        at.lock_descriptor = None
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file if nobody holds it."""
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


def install(at: Installation, repair: bool = False) -> None:
    """Bring the installation to what this checkout says; does only what is not done yet."""
    started = time.monotonic()
    with locked(at):
        open_prefix(at)
        at.log.write_text("", encoding="utf-8")
        print(f"{PRODUCT}: installing into {at.prefix}", flush=True)
        did = False
        for number, step in enumerate(STEPS, start=1):
            label = f"[{number}/{len(STEPS)}] {step.words}"
            if step.ready(at) and not (repair and step.name != EnvironmentStep.name):
                print(f"  {label}: ready", flush=True)
                continue
            print(f"  {label} ...", flush=True)
            at_step = time.monotonic()
            step.forget(at)
            step.do(at)
            step.remember(at)
            did = True
            print(f"  {label}: done in {time.monotonic() - at_step:.0f} s", flush=True)
        for folder in at.prefix.glob("env-*"):
            if folder != at.environment:
                remove_tree(folder)
        remove_tree(at.temporary)
    print(f"Installed in {time.monotonic() - started:.0f} s." if did else "Nothing to do.")
    print_where(at)


def print_where(at: Installation) -> None:
    """Say how the command is called from now on."""
    link = CommandStep().link(at)
    shown = link if link is not None and link.exists() and is_our_link(link) else at.launcher
    folders = os.environ.get("PATH", "").split(os.pathsep)
    print(f"The command is {shown}", flush=True)
    if str(shown.parent) not in folders:
        print(
            f"  {shown.parent} is not on PATH: add it there, or call the command by its full name.",
            flush=True,
        )


def doctor(at: Installation) -> int:
    """Say for every step whether it is in order; 0 if all are."""
    status = 0
    for step in STEPS:
        good = step.ready(at)
        status = status if good else 1
        print("  {}: {}".format(step.words, "in order" if good else "not in order"))
    damaged = broken_packages(at.site_packages, thorough=True)
    for metadata in damaged:
        print(f"  damaged package: {metadata.name[: -len('.dist-info')]}")
    if status or damaged:
        print("`python3 install.py --repair` puts it in order.")
        return 1
    print_where(at)
    return 0


def uninstall(at: Installation) -> None:
    """Take away everything that the steps made; shot stores, caches and pip's own cache stay."""
    if not at.prefix.exists():
        print(f"{PRODUCT} is not installed at {at.prefix}.")
        return
    if not (at.prefix / RECORD).is_file():
        raise InstallError(
            f"{at.prefix} holds no installation of {PRODUCT}; nothing was removed.",
            "Name the folder of the installation with --prefix.",
        )
    with locked(at):
        for step in reversed(STEPS):
            step.undo(at)
        for name in ("tmp", STAMPS, LOG, RECORD):
            remove_tree(at.prefix / name)
        left = sorted(item.name for item in at.prefix.iterdir() if item.name != LOCK)
        (at.prefix / LOCK).unlink()
    if left:
        print(f"Uninstalled. Not ours and left in {at.prefix}: {', '.join(left)}")
    else:
        at.prefix.rmdir()
        print(f"Uninstalled from {at.prefix}. Shot stores and caches are yours and were not touched.")


def run_demo(at: Installation, out: Path) -> int:
    """Build the demo plate and make its mattes; its exit status."""
    return subprocess.call(
        [str(at.python), "-m", "stm_plugin.demo", "--out", str(out)],
        env=at.clean_environment(),
        cwd=str(at.prefix),
    )


def run_checks(at: Installation, more: Sequence[str]) -> int:
    """Run every check on the checkout; 0 only if all pass. pytest comes last, so that its summary ends it."""
    checks = (["ruff", "check", "."], ["mypy"], ["pytest", *more])
    failed = []
    for arguments in checks:
        print("\n$ python -m {}".format(" ".join(arguments)), flush=True)
        command = [str(at.python), "-m", *arguments]
        if subprocess.call(command, env=at.clean_environment(), cwd=str(at.source)) != 0:
            failed.append(arguments[0])
    if failed:
        print("Failed: {}".format(", ".join(failed)), flush=True)
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"Installs {PRODUCT} into a private environment.",
        epilog="Words after -- go to pytest: install.py --test -- -k colour",
    )
    verbs = parser.add_mutually_exclusive_group()
    verbs.add_argument(
        "--demo", action="store_true", help="install, then make mattes of a plate it builds itself"
    )
    verbs.add_argument("--test", action="store_true", help="install, then run every check of the project")
    verbs.add_argument("--doctor", action="store_true", help="say what is in order; changes nothing")
    verbs.add_argument(
        "--repair", action="store_true", help="look through every package and mend what is damaged"
    )
    verbs.add_argument(
        "--uninstall", action="store_true", help="take everything away but your caches and shots"
    )
    parser.add_argument(
        "--prefix", type=Path, help=f"the folder to install into (default: {default_prefix()})"
    )
    parser.add_argument(
        "--link-dir", type=Path, help="link the stm command here (default: ~/.local/bin, without --prefix)"
    )
    parser.add_argument(
        "--torch-index", default="", metavar="URL", help="package index with another build of torch"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stm-demo"), help="where --demo writes (default: ./stm-demo)"
    )
    parser.add_argument("pytest", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args(list(arguments))
    if asked.pytest and not asked.test:
        parser.error("words after the options go to pytest and need --test")
    return asked


def options_of(asked: argparse.Namespace) -> Options:
    """What the command line means for an installation."""
    groups = (ENGINE, DEMO, TEST) if asked.test else (ENGINE, DEMO) if asked.demo else (ENGINE,)
    own = asked.prefix is None
    prefix = default_prefix() if own else Path(os.path.abspath(str(asked.prefix.expanduser())))
    link = (
        asked.link_dir.expanduser().absolute() if asked.link_dir else default_link_folder() if own else None
    )
    return Options(prefix=prefix, groups=groups, torch_index=asked.torch_index, link_folder=link)


def stop(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM ends the children and the run as Ctrl-C does."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run one verb; the exit status."""
    try:
        asked = parse(arguments)
        ensure_python(arguments)
        signal.signal(signal.SIGTERM, stop)
        at = Installation(options_of(asked))
        if asked.uninstall:
            uninstall(at)
            return 0
        if asked.doctor:
            return doctor(at)
        install(at, repair=asked.repair)
        if asked.demo:
            return run_demo(at, asked.out.expanduser().absolute())
        return run_checks(at, asked.pytest) if asked.test else 0
    except InstallError as error:
        print(f"\nError: {error.what}\n{error.hint}".rstrip(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
