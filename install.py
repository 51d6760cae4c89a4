#!/usr/bin/env python3
"""Installs STM for Nuke into a private environment of its own; nothing of it enters Nuke's Python.

    python3 install.py              install, update or repair; quick when there is nothing to do
    python3 install.py --nuke       the same, and let Nuke find the node through ~/.nuke/init.py
    python3 install.py --ofx        the same, and build the effect for OpenFX hosts
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
FOLDER_NAME = "stm-for-nuke"  # where folder names have neither spaces nor capitals
SOURCE = Path(__file__).resolve().parent

THIS_PYTHON = (sys.version_info[0], sys.version_info[1])
OLDEST_PYTHON = (3, 11)  # the oldest one that the pinned NumPy and SciPy are built for
NEWEST_PYTHON = (3, 14)
WANTED_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python")
HANDED_OVER = "STM_INSTALL_HANDED_OVER"  # set when an older Python has passed the work on

ENGINE, DEMO, TRAIN, OFX, TEST, NUKE = "engine", "demo", "train", "ofx", "test", "nuke"
GROUPS = (ENGINE, DEMO, TRAIN, OFX, TEST)  # what can be installed, each with a requirements file
HOSTS = (NUKE, OFX)  # what is set up only when asked for, and is kept up from then on
REQUIREMENTS = {
    ENGINE: "requirements.txt",
    DEMO: "requirements-demo.txt",
    TRAIN: "requirements-train.txt",
    OFX: "requirements-ofx.txt",
    TEST: "requirements-test.txt",
}
ALONE = {TEST: "requirements-test-alone.txt"}  # installed without what they ask for; the file says why
CONSTRAINTS = "constraints.txt"
TORCH_CONSTRAINTS = "constraints-torch.txt"
TORCH_PACKAGES = ("torch", "torchvision")
ENGINE_SOURCES = ("pyproject.toml", "model", "stm_plugin")  # what is copied and built, and nothing else
NUKE_SOURCES = ("nuke",)
OFX_SOURCES = ("ofx_bridge/build.py", "ofx_bridge/source", "ofx_bridge/bundle")
OFX_BUNDLE = "STM.ofx.bundle"
IGNORED_SOURCES = ("__pycache__", "*.pyc", "*.egg-info")

GIGABYTE = 10**9
ROOM_CUDA_TORCH = 9 * GIGABYTE  # Linux: 5.6 GB installed, and 3 GB of downloads while installing
ROOM_SMALL_TORCH = 3 * GIGABYTE
LOG_TAIL = 25  # lines of a program's output that are shown when it fails

BLOCK_START = b"# >>> STM for Nuke >>>"  # of the lines in ~/.nuke/init.py that are the installer's
BLOCK_END = b"# <<< STM for Nuke <<<"

RECORD = "engine.json"  # where the engine is, for the hosts' sides to read; also marks a folder as ours
RECORD_SCHEMA = 1
LOG = "install.log"
LOCK = ".lock"
STAMPS = "stamps"
HOST_DATA = ("shots", "run")  # what hosts keep in the default prefix, whether or not anything is installed
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
    """Where this user's installation goes when nothing is said, and where the hosts' sides look for it."""
    if ON_WINDOWS:
        local = os.environ.get("LOCALAPPDATA")
        return Path(local or Path.home() / "AppData" / "Local") / PRODUCT
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / PRODUCT
    return Path.home() / ".local" / "share" / FOLDER_NAME


def default_link_folder() -> Optional[Path]:
    """Where the `stm` command is linked for this user; None where links are not usual."""
    return None if ON_WINDOWS else Path.home() / ".local" / "bin"


def machine_ofx_folder() -> Path:
    """Where the OpenFX hosts of every user of this machine look for effects."""
    if ON_WINDOWS:
        common = os.environ.get("COMMONPROGRAMFILES")
        return Path(common or r"C:\Program Files\Common Files") / "OFX" / "Plugins"
    return Path("/Library/OFX/Plugins" if sys.platform == "darwin" else "/usr/OFX/Plugins")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    if path.exists():
        shutil.copymode(str(path), str(partial))
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


def copy_files(files: Iterable[Path], root: Path, target: Path) -> None:
    """Copy files below `root` to the same places below `target`, which is made anew."""
    remove_tree(target)
    for file in files:
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file), str(copy))


# --- one installation ---------------------------------------------------------------------------------------


class Options(NamedTuple):
    """What was asked for."""

    prefix: Path
    groups: Tuple[str, ...] = (ENGINE,)
    torch_index: str = ""
    link_folder: Optional[Path] = None
    source: Path = SOURCE
    hosts: Tuple[str, ...] = ()  # to be set up, besides those that are
    dropped: Tuple[str, ...] = ()  # hosts that are not to be set up any more
    ofx_folder: Optional[Path] = None  # to be given a link to the bundle


class Installation:
    """A prefix folder: its environments, its record, and the programs that are run on its behalf."""

    def __init__(self, options: Options) -> None:
        self.prefix = options.prefix
        self.source = options.source
        self.link_folder = options.link_folder
        record = self.read_record()
        self.torch_index = options.torch_index or str(record.get("torch_index", ""))
        hosts = (set(options.hosts) | set(self.listed("hosts"))) - set(options.dropped)
        self.hosts = tuple(host for host in HOSTS if host in hosts)
        wanted = set(options.groups) | set(self.listed("groups")) | ({OFX} & hosts)
        self.groups = tuple(group for group in GROUPS if group in wanted)
        linked = record.get("ofx_link")
        self.ofx_link = Path(linked) if isinstance(linked, str) else None
        if options.ofx_folder is not None:
            self.ofx_link = options.ofx_folder / OFX_BUNDLE
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

    @property
    def nuke(self) -> Path:
        """What goes on Nuke's plug-in path."""
        return self.prefix / "nuke"

    @property
    def ofx(self) -> Path:
        """What goes on OFX_PLUGIN_PATH."""
        return self.prefix / "ofx"

    # what it should be made of

    @property
    def version(self) -> str:
        """The version of the sources."""
        import tomllib

        project = tomllib.loads((self.source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])

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

    def files(self, names: Sequence[str]) -> List[Path]:
        """The files of the checkout behind names of files and folders, in a fixed order."""
        files = []  # type: List[Path]
        for name in names:
            path = self.source / name
            files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        ignored = shutil.ignore_patterns(*IGNORED_SOURCES)
        kept = [
            file
            for file in files
            if not any(ignored("", [part]) for part in file.relative_to(self.source).parts)
        ]
        return sorted(kept, key=lambda file: file.relative_to(self.source).as_posix())

    def content(self, names: Sequence[str]) -> str:
        """A hash of what is in those files, and of what they are called."""
        parts = []  # type: List[bytes]
        for file in self.files(names):
            parts += [file.relative_to(self.source).as_posix().encode(), file.read_bytes()]
        return digest(parts)

    # the record

    def read_record(self) -> Dict[str, object]:
        """What the last installation wrote about itself; empty if there is none that can be read."""
        try:
            record = json.loads((self.prefix / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, **changes: object) -> None:
        """Write the record; it names the engine only once that works. None takes a field away."""
        record = dict(self.read_record(), schema=RECORD_SCHEMA, **changes)
        kept = {name: value for name, value in record.items() if value is not None}
        text = json.dumps(kept, indent=2, sort_keys=True) + "\n"
        write_atomically(self.prefix / RECORD, text.encode("utf-8"))

    def listed(self, name: str) -> List[str]:
        """The words of a list in the record; none if it is not there."""
        found = self.read_record().get(name)
        return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []

    def record_host(self, host: str, is_set_up: bool) -> None:
        """Note that a host is kept up from now on, or is not."""
        hosts = set(self.listed("hosts"))
        if (host in hosts) != is_set_up:
            self.write_record(hosts=sorted(hosts ^ {host}))

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


def beginning(output: str) -> str:
    """The first lines of what a program said; a compiler's first error is the one that counts."""
    return "\n".join("    " + line for line in output.splitlines()[:LOG_TAIL])


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

    def wanted(self, _at: Installation) -> bool:
        """Whether it belongs to this installation; what is not wanted is undone."""
        return True

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
        write_atomically(self.home(at) / STAMPS / self.name, self.stamp(at).encode("utf-8"))


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
        return at.content(ENGINE_SOURCES)

    def intact(self, at: Installation) -> bool:
        return at.stm.exists() and (at.site_packages / "stm_plugin").is_dir()

    def do(self, at: Installation) -> None:
        copy = at.temporary / "engine"
        copy_files(at.files(ENGINE_SOURCES), at.source, copy)
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


class PrefixStep(Step):
    """A step whose result lies in the prefix and outlives a change of environments."""

    def home(self, at: Installation) -> Path:
        return at.prefix


class CommandStep(PrefixStep):
    """The `stm` command at a fixed address, a link to it on the user's PATH, and the record for the hosts."""

    name = "command"
    words = "stm command"

    def link(self, at: Installation) -> Optional[Path]:
        return None if at.link_folder is None else at.link_folder / "stm"

    def stamp(self, at: Installation) -> str:
        groups = ",".join(at.groups)
        parts = [str(at.stm), str(self.link(at)), at.torch_index, groups, str(at.source), at.version]
        return digest(part.encode() for part in parts)

    def intact(self, at: Installation) -> bool:
        link = self.link(at)
        linked = link is None or link.exists()
        return at.launcher.exists() and linked and at.read_record().get("command") == str(at.launcher)

    def do(self, at: Installation) -> None:
        at.launcher.parent.mkdir(parents=True, exist_ok=True)
        if ON_WINDOWS:
            write_atomically(at.launcher, f'@"{at.stm}" %*\r\n'.encode())
        else:
            replace_link(at.launcher, at.stm)
        at.write_record(
            python=str(at.python),
            version=at.version,
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
            if leads_to(path, at.launcher):
                path.unlink()
        remove_tree(at.launcher.parent)


class NukeStep(PrefixStep):
    """The folder for Nuke's plug-in path, beside the record that it finds the engine by."""

    name = "nuke"
    words = "folder for Nuke"

    def stamp(self, at: Installation) -> str:
        return at.content(NUKE_SOURCES)

    def intact(self, at: Installation) -> bool:
        for file in at.files(NUKE_SOURCES):
            copy = at.prefix / file.relative_to(at.source)
            if not copy.is_file() or copy.read_bytes() != file.read_bytes():
                return False
        return True

    def do(self, at: Installation) -> None:
        copy = at.temporary / "nuke"
        copy_files(at.files(NUKE_SOURCES), at.source, copy)
        remove_tree(at.nuke)
        os.replace(str(copy / "nuke"), str(at.nuke))

    def undo(self, at: Installation) -> None:
        remove_tree(at.nuke)


class NukeInitStep(PrefixStep):
    """A block of lines in ~/.nuke/init.py that puts the folder on Nuke's plug-in path; the rest of the file
    stays as it is, byte for byte."""

    name = "nuke-init"
    words = "lines in ~/.nuke/init.py"

    def wanted(self, at: Installation) -> bool:
        return NUKE in at.hosts

    def file(self) -> Path:
        return Path.home() / ".nuke" / "init.py"

    def folder(self, at: Installation) -> bytes:
        """The folder in Python: ASCII, since the file may be in any encoding."""
        return ascii(at.nuke.as_posix()).encode("ascii")

    def lines(self, at: Installation) -> List[bytes]:
        """The block: it does nothing where the folder is gone."""
        return [
            BLOCK_START,
            b"# Kept by install.py of STM for Nuke; --no-nuke and --uninstall take these lines out again.",
            b"import os",
            b"import nuke",
            b"if os.path.isdir(%b):" % self.folder(at),
            b"    nuke.pluginAddPath(%b)" % self.folder(at),
            BLOCK_END,
        ]

    def stamp(self, at: Installation) -> str:
        return digest([str(self.file()).encode("utf-8", "surrogateescape"), *self.lines(at)])

    def intact(self, at: Installation) -> bool:
        try:
            content = self.file().read_bytes().replace(b"\r\n", b"\n")
        except OSError:
            return False
        return content.count(BLOCK_START) == 1 and b"\n".join(self.lines(at)) in content

    def do(self, at: Installation) -> None:
        file = self.file()
        previous = self.recorded(at)
        if previous is not None and previous != file:
            self.undo(at)
        made = {*self.made(at), *(str(path) for path in (file.parent, file) if not path.exists())}
        at.write_record(nuke_init=str(file), nuke_init_made=sorted(made))
        try:
            content = file.read_bytes() if file.exists() else b""
            self.write(file, with_block(content, self.lines(at)))
        except OSError as error:
            raise InstallError(
                f"{file} cannot be changed: {error.strerror}. Everything else is installed and works.",
                f"NUKE_PATH={at.nuke} in the environment of Nuke does the same as those lines.",
            ) from error
        except BlockError as error:
            raise InstallError(
                f"{file}: {error} Everything else is installed and works.",
                "Delete what is left of those lines by hand, then run this again.",
            ) from error
        at.record_host(NUKE, True)

    def undo(self, at: Installation) -> None:
        file = self.recorded(at)
        if file is not None:
            try:
                self.take_out(at, file)
            except (OSError, BlockError) as error:  # the lines do nothing once the folder is gone
                why = error.strerror if isinstance(error, OSError) else error
                print(f"    {file} was left as it is: {why}")
            at.write_record(nuke_init=None, nuke_init_made=None)
        at.record_host(NUKE, False)

    def take_out(self, at: Installation, file: Path) -> None:
        """Remove our block from a file; then the file and its folder, if we made them and they are empty."""
        if file.is_file():
            content = file.read_bytes()
            found = find_block(content)
            if found is not None and self.folder(at) in content[found[0] : found[1]]:  # not another prefix's
                rest = without_block(content)
                self.write(file, rest)
                if not rest and str(file) in self.made(at):
                    file.unlink()
        if str(file.parent) in self.made(at):
            with contextlib.suppress(OSError):  # something else lies in it by now
                file.parent.rmdir()

    def recorded(self, at: Installation) -> Optional[Path]:
        """The file that holds our lines, if any does."""
        found = at.read_record().get("nuke_init")
        return Path(found) if isinstance(found, str) else None

    def made(self, at: Installation) -> List[str]:
        """What was not there before we came."""
        return at.listed("nuke_init_made")

    def write(self, file: Path, content: bytes) -> None:
        """Write the file where it really is, if its owner lets it be written."""
        real = Path(os.path.realpath(str(file)))
        if real.exists() and not os.access(str(real), os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only", str(real))
        write_atomically(real, content)


class BlockError(Exception):
    """The lines that mark our block are not in pairs."""


def find_block(content: bytes) -> Optional[Tuple[int, int]]:
    """Where our block begins and ends, with the line break before it, which is ours as well.

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
    """A file without our block, however often it is in there."""
    found = find_block(content)
    if found is None:
        return content
    head, tail = content[: found[0]], without_block(content[found[1] :])
    between = b"\n" if head and tail and not head.endswith(b"\n") else b""
    return head + between + tail


def with_block(content: bytes, lines: Sequence[bytes]) -> bytes:
    """A file with our block: where it was, else at the end, in the file's own kind of line breaks."""
    found = find_block(content)
    start, end = (len(content), len(content)) if found is None else found
    head, tail = content[:start], without_block(content[end:])
    line_break = b"\r\n" if b"\r\n" in head + tail else b"\n"
    return line_break.join((head, *lines, tail))


class OfxStep(PrefixStep):
    """The effect for OpenFX hosts, compiled on this machine."""

    name = "ofx"
    words = "OpenFX effect"

    def wanted(self, at: Installation) -> bool:
        return OFX in at.hosts

    def binaries(self, at: Installation) -> List[Path]:
        return sorted(at.ofx.glob(f"{OFX_BUNDLE}/Contents/*/*.ofx"))

    def stamp(self, at: Installation) -> str:
        parts = [at.content(OFX_SOURCES), *at.pins(REQUIREMENTS[OFX])]
        return digest(part.encode() for part in parts)

    def intact(self, at: Installation) -> bool:
        return any(binary.stat().st_size for binary in self.binaries(at))

    def do(self, at: Installation) -> None:
        cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(at.temporary / "zig"))
        local = os.environ.get("ZIG_LOCAL_CACHE_DIR", str(at.temporary / "zig-local"))
        build = at.source / OFX_SOURCES[0]
        try:
            at.run(
                [at.python, "-B", build, "--output", at.ofx],
                ZIG_GLOBAL_CACHE_DIR=cache,
                ZIG_LOCAL_CACHE_DIR=local,
            )
        except ProgramError as error:
            raise InstallError(
                "The effect for OpenFX hosts could not be built. Everything else is installed and works.",
                f"All that the compiler said is in {at.log}. Its beginning:\n{beginning(error.output)}",
            ) from error
        for binary in self.binaries(at):
            os.utime(str(binary))  # a host that once failed to load it looks again only if its time changes
        at.record_host(OFX, True)

    def undo(self, at: Installation) -> None:
        remove_tree(at.ofx)
        at.record_host(OFX, False)


class OfxLinkStep(PrefixStep):
    """A link to the effect in a folder that hosts look into by themselves."""

    name = "ofx-link"
    words = "link to the OpenFX effect"

    def wanted(self, at: Installation) -> bool:
        return OFX in at.hosts and at.ofx_link is not None

    def stamp(self, at: Installation) -> str:
        return digest([str(at.ofx_link).encode("utf-8", "surrogateescape")])

    def intact(self, at: Installation) -> bool:
        return at.ofx_link is not None and leads_to(at.ofx_link, at.ofx / OFX_BUNDLE)

    def do(self, at: Installation) -> None:
        link = at.ofx_link
        assert link is not None, "only done when wanted"
        self.undo(at)
        if (link.exists() or link.is_symlink()) and not is_our_link(link):
            raise InstallError(
                f"{link} is something else and was left as it is. Everything else is installed and works.",
                f"Move it away and run this again, or set OFX_PLUGIN_PATH={at.ofx}",
            )
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            replace_link(link, at.ofx / OFX_BUNDLE)
        except OSError as error:
            raise InstallError(
                f"No link could be made at {link}: {error.strerror}. Everything else is installed and works.",
                f"Someone who may write there can link {at.ofx / OFX_BUNDLE} to it; or set "
                f"OFX_PLUGIN_PATH={at.ofx}",
            ) from error
        at.write_record(ofx_link=str(link))

    def undo(self, at: Installation) -> None:
        recorded = at.read_record().get("ofx_link")
        if not isinstance(recorded, str):
            return
        try:
            if leads_to(Path(recorded), at.ofx / OFX_BUNDLE):
                Path(recorded).unlink()
        except OSError as error:
            print(f"    {recorded} could not be removed: {error.strerror}.")
        at.write_record(ofx_link=None)


STEPS = (
    EnvironmentStep(),
    DependenciesStep(),
    EngineStep(),
    CommandStep(),
    NukeStep(),
    NukeInitStep(),
    OfxStep(),
    OfxLinkStep(),
)  # type: Tuple[Step, ...]


def leads_to(link: Path, target: Path) -> bool:
    """Whether `link` is a symbolic link to exactly that."""
    return link.is_symlink() and os.readlink(str(link)) == str(target)


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link somewhere else in one move."""
    partial = link.with_name(f"{link.name}.{os.getpid()}.partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(target)
    os.replace(str(partial), str(link))


def is_our_link(link: Path) -> bool:
    """Whether what exists there is a link into an installation of this product, or leads nowhere."""
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


def foreign(at: Installation) -> List[str]:
    """What lies in a prefix that holds no installation and should not be there."""
    known = (LOCK, *HOST_DATA) if at.prefix == default_prefix() else (LOCK,)
    return sorted(item.name for item in at.prefix.iterdir() if item.name not in known)


def open_prefix(at: Installation) -> None:
    """Make the prefix and mark it as ours.

    Raises:
        InstallError: it cannot be written, or holds something else.
    """
    try:
        at.prefix.mkdir(parents=True, exist_ok=True)
        others = foreign(at)
        if others and not (at.prefix / RECORD).is_file():
            raise InstallError(
                f"{at.prefix} holds other files ({', '.join(others[:3])}) and no installation.",
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
        try:
            did = run_steps(at, repair)
        finally:
            if CommandStep().ready(at):  # nothing leads to the environments of earlier ones any more
                for folder in at.prefix.glob("env-*"):
                    if folder != at.environment:
                        remove_tree(folder)
                remove_tree(at.temporary)
    print(f"Installed in {time.monotonic() - started:.0f} s." if did else "Nothing to do.")
    print_where(at)


def run_steps(at: Installation, repair: bool) -> bool:
    """Do every step that is wanted and not done, and undo those that are not wanted; whether any was."""
    did = False
    for step in reversed(STEPS):
        if not step.wanted(at):
            was_there = (step.home(at) / STAMPS / step.name).exists()
            step.undo(at)
            step.forget(at)
            if was_there:
                did = True
                print(f"  {step.words}: removed", flush=True)
    steps = [step for step in STEPS if step.wanted(at)]
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.words}"
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
    return did


def print_where(at: Installation) -> None:
    """Say how the command is called from now on, and how hosts find their sides."""
    link = CommandStep().link(at)
    shown = link if link is not None and link.exists() and is_our_link(link) else at.launcher
    folders = os.environ.get("PATH", "").split(os.pathsep)
    print(f"The command is {shown}", flush=True)
    if str(shown.parent) not in folders:
        print(
            f"  {shown.parent} is not on PATH: add it there, or call the command by its full name.",
            flush=True,
        )
    if NUKE in at.hosts:
        print(f"Nuke finds the node at its next start: {NukeInitStep().file()} names {at.nuke}", flush=True)
    else:
        print(
            f"For Nuke: run this again with --nuke (lines in ~/.nuke/init.py), or set NUKE_PATH={at.nuke}",
            flush=True,
        )
    if OFX in at.hosts:
        print(f"For OpenFX hosts: OFX_PLUGIN_PATH={at.ofx}", flush=True)


def doctor(at: Installation) -> int:
    """Say for every step whether it is in order; 0 if all are."""
    status = 0
    for step in STEPS:
        if not step.wanted(at):
            continue
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
    if not at.prefix.exists() or not foreign(at):
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
        print(f"Uninstalled. Left in {at.prefix}, since no installer made it: {', '.join(left)}")
    else:
        at.prefix.rmdir()
        print(f"Uninstalled from {at.prefix}. Shot stores and caches are yours and were not touched.")


def run_demo(at: Installation, out: Path) -> int:
    """Build the demo plate and make its mattes; its exit status."""
    return subprocess.call(
        [str(at.python), "-m", "stm_plugin.demo.demo", "--out", str(out)],
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
        "--train", action="store_true", help="install what training from ImageNet weights begins with, too"
    )
    parser.add_argument(
        "--prefix", type=Path, help=f"the folder to install into (default: {default_prefix()})"
    )
    parser.add_argument(
        "--link-dir", type=Path, help="link the stm command here (default: ~/.local/bin, without --prefix)"
    )
    nuke = parser.add_mutually_exclusive_group()
    nuke.add_argument(
        "--nuke", action="store_true", help="keep lines in ~/.nuke/init.py that let Nuke find the node"
    )
    nuke.add_argument("--no-nuke", action="store_true", help="take those lines out again")
    ofx = parser.add_mutually_exclusive_group()
    ofx.add_argument("--ofx", action="store_true", help="build the effect for OpenFX hosts")
    ofx.add_argument(
        "--ofx-link",
        type=Path,
        nargs="?",
        const=machine_ofx_folder(),
        metavar="FOLDER",
        help=f"build it, and link it into a folder that hosts look into (default: {machine_ofx_folder()})",
    )
    ofx.add_argument("--no-ofx", action="store_true", help="take the effect away again")
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
    groups: Tuple[str, ...] = GROUPS if asked.test else (ENGINE, DEMO) if asked.demo else (ENGINE,)
    if asked.train:
        groups += (TRAIN,)
    own = asked.prefix is None
    prefix = default_prefix() if own else Path(os.path.abspath(str(asked.prefix.expanduser())))
    link = (
        asked.link_dir.expanduser().absolute() if asked.link_dir else default_link_folder() if own else None
    )
    ofx_folder = asked.ofx_link.expanduser().absolute() if asked.ofx_link else None
    hosts = {NUKE: asked.nuke, OFX: asked.ofx or ofx_folder is not None}
    dropped = {NUKE: asked.no_nuke, OFX: asked.no_ofx}
    return Options(
        prefix=prefix,
        groups=groups,
        torch_index=asked.torch_index,
        link_folder=link,
        hosts=tuple(host for host in HOSTS if hosts[host]),
        dropped=tuple(host for host in HOSTS if dropped[host]),
        ofx_folder=ofx_folder,
    )


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
