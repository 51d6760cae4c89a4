"""Running pip and the compiler for an installation: isolated, logged, and with errors for people."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from stm_plugin.installation.packages import site_packages
from stm_plugin.installation.prefix import ON_WINDOWS, InstallationError, Prefix

LOG_TAIL = 25  # lines of a program's output that are shown when it fails
TICK_SECONDS = 10.0  # seconds between lines of a log while a program is silent
BENT = ("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE", "PYTHONSTARTUP", "PIP_TARGET", "PIP_PREFIX")
NETWORK_SIGNS = (
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


class ProgramError(Exception):
    """A program ended with an error."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)} ended with status {status}")
        self.status = status
        self.output = output


def clean_environment() -> dict[str, str]:
    """The process environment without variables that would change what Python or pip use."""
    kept = {name: value for name, value in os.environ.items() if name not in BENT}
    kept.update(PYTHONNOUSERSITE="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    kept.update(PIP_NO_WARN_SCRIPT_LOCATION="1", PIP_ROOT_USER_ACTION="ignore")
    return kept


def run(prefix: Prefix, command: Sequence[object], **changes: str) -> str:
    """Run a program to its end, log its output, and return it.

    Children inherit the lock, so that it is held as long as a pip that outlives a killed installer.

    Args:
        changes: environment variables for it.

    Raises:
        ProgramError: it ended with an error.
    """
    prefix.temporary.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    lines: list[str] = []
    shared = () if ON_WINDOWS or prefix.lock_descriptor is None else (prefix.lock_descriptor,)
    with prefix.log.open("a", encoding="utf-8", errors="replace") as log:
        log.write(f"\n$ {' '.join(words)}\n")
        log.flush()
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), "TMPDIR": str(prefix.temporary), **changes},
            cwd=prefix.root,
            pass_fds=shared,
            encoding="utf-8",
            errors="replace",
        ) as child:
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
                Progress.clear()
    output = "\n".join(lines)
    if status != 0:
        raise ProgramError(words, status, output)
    return output


def bundled_pip() -> Path | None:
    """The wheel of pip that ships with this Python, or None."""
    import ensurepip

    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR"), Path(ensurepip.__file__).parent / "_bundled"]
    wheels = [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    return wheels[0] if wheels else None


def pip_command(python: Path) -> list[object]:
    """The command of an environment's pip. Before there is one, the wheel of this Python is run.

    Raises:
        InstallationError: there is neither.
    """
    if any(site_packages(python.parents[1]).glob("pip-*.dist-info/RECORD")):
        return [python, "-I", "-m", "pip"]
    wheel = bundled_pip()
    if wheel is None:
        raise InstallationError("The private environment has no pip.", hint="Delete it, then run this again.")
    return [python, "-I", wheel / "pip"]


def pip(prefix: Prefix, python: Path, *arguments: object, **changes: str) -> str:
    """Run an environment's pip with the user's configuration.

    Raises:
        InstallationError: with the cause in words.
    """
    try:
        return run(prefix, [*pip_command(python), *arguments], **changes)
    except ProgramError as error:
        raise explain_pip(prefix, error.output) from error


def torch_only_from(index: str, work: Path, files: Path | None = None) -> dict[str, str]:
    """Variables that make pip install from one index only, whatever its configuration.

    Args:
        work: a folder in which an empty one is made.
        files: a folder with more packages.
    """
    nothing = work / "no-files"
    nothing.mkdir(parents=True, exist_ok=True)
    return {
        "PIP_NO_INDEX": "0",
        "PIP_INDEX_URL": index,
        "PIP_EXTRA_INDEX_URL": index,
        "PIP_FIND_LINKS": str(nothing if files is None else files),
    }


def install_locked(
    prefix: Prefix, python: Path, locks: Sequence[Path], *options: object, **changes: str
) -> None:
    """Install the packages of lock files: these releases, and only files with these hashes.

    Args:
        options: more of them for pip.
        changes: environment variables for pip.

    Raises:
        InstallationError: with the cause in words.
    """
    named = [word for lock in locks for word in ("-r", lock)]
    plain = ("install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--progress-bar=off")
    pip(prefix, python, *plain, *options, *named, **changes)


def last_lines(output: str) -> str:
    """The last lines of a program's output."""
    return "\n".join("    " + line for line in output.splitlines()[-LOG_TAIL:])


def first_lines(output: str) -> str:
    """The first lines of a program's output, as a compiler's first error is the important one."""
    return "\n".join("    " + line for line in output.splitlines()[:LOG_TAIL])


class Progress:
    """Shows pip's work on one line of a terminal; a log gets only the downloads."""

    @staticmethod
    def show(line: str) -> None:
        """Show a line of pip's output, if it is of interest."""
        text = line.strip()
        telling = ("Collecting", "Downloading", "Installing", "Building", "Attempting", "Processing")
        if not text.startswith(telling):
            return
        if sys.stdout.isatty():
            Progress.line(text)
        elif text.startswith("Downloading"):
            print("    " + text, flush=True)

    @staticmethod
    def line(text: str) -> None:
        """Show a text on the terminal's last line, instead of its present text."""
        width = shutil.get_terminal_size().columns - 5
        sys.stdout.write(f"\r\033[K    {text[:width]}")
        sys.stdout.flush()

    @staticmethod
    def clear() -> None:
        """Clear the terminal's last line."""
        if sys.stdout.isatty():
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


@contextlib.contextmanager
def ticking(words: str) -> Iterator[None]:
    """Show while the block runs how long it has run: each second on a terminal, else every 10 s."""
    done = threading.Event()
    on_terminal = sys.stdout.isatty()
    started = time.monotonic()

    def tick() -> None:
        while not done.wait(1.0 if on_terminal else TICK_SECONDS):
            text = f"{words}, {time.monotonic() - started:.0f} s"
            if on_terminal:
                Progress.line(text)
            else:
                print(f"    {text}", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        Progress.clear()


def explain_pip(prefix: Prefix, output: str, machine: str = "") -> InstallationError:
    """The error for people that pip's output stands for.

    Args:
        machine: the kind of machine that packages were asked for; empty for this one.
    """
    where = f"pip's output is in {prefix.log}. Its end:\n{last_lines(output)}"
    if "No space left on device" in output or "Errno 28" in output:
        return InstallationError(
            f"The disk ran full while installing into {prefix.root}.",
            hint=f"Free some room or choose another disk with --prefix, then run this again. {where}",
        )
    if "DO NOT MATCH THE HASHES" in output:
        return InstallationError(
            "A fetched package is not the tested one: its hash is not in the lock.",
            hint="Nothing of it was installed. A mirror or a proxy may have changed it (`pip config list`); "
            f"if it happens again, inform the maintainer of the index. {where}",
        )
    if "The user requested (constraint)" in output and "ResolutionImpossible" in output:
        return InstallationError(
            "pip's own configuration on this machine limits a package to a release that the engine was not "
            "tested with, against the locks here.",
            hint=f"`pip config list` shows the constraint; lift it for this installation. {where}",
        )
    if any(sign in output for sign in NETWORK_SIGNS):
        return InstallationError(
            "The package index cannot be reached: no network, or a proxy or index setting that is wrong.",
            hint="Check the connection and `pip config list`, then run this again; finished parts are "
            f"kept. {where}",
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        own = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
        kind = machine or f"this machine ({own})"
        return InstallationError(
            f"The package index that pip uses has no {missing.group(1)} for {kind}.",
            hint="If a mirror is configured (`pip config list`), it may lack it or be out of reach; another "
            f"build of torch can be named with --torch-index URL. {where}",
        )
    return InstallationError("pip could not install the packages.", hint=where)
