"""`stm doctor`: checks every part of an installation and says how to repair it."""

from __future__ import annotations

import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stm_plugin.installation.hosts import host_parts, where_hosts_look
from stm_plugin.installation.packages import broken_packages, site_packages
from stm_plugin.installation.prefix import (
    ON_WINDOWS,
    PRODUCT,
    SIDE_NAMES,
    SIDES,
    Prefix,
    content_of,
    default_prefix,
    is_our_link,
    leads_to,
    read_stamp,
)
from stm_plugin.installation.programs import clean_environment, last_lines

ENGINE_SECONDS = 120.0  # seconds for `stm info` on a slow disk


@dataclass(frozen=True)
class Finding:
    """The state of one part.

    Attributes:
        words: its name for people.
        trouble: why it is not in order; empty if it is.
    """

    words: str
    trouble: str = ""

    def __str__(self) -> str:
        return f"{self.words}: not in order: {self.trouble}" if self.trouble else f"{self.words}: in order"


def examine(prefix: Prefix) -> Iterator[Finding]:
    """Check every part of a complete installation thoroughly; changes nothing."""
    python = prefix.python
    assert python is not None, "must be called for a complete installation only"
    environment = python.parents[1]
    runs = python.exists() and status_of([python, "-I", "-c", "pass"])[0] == 0
    moved = f"it was made for {environment.parent}, and was moved here; hosts do not find it"
    trouble = moved if environment.parent != prefix.root else "" if runs else f"{python} does not run"
    yield Finding("private environment", trouble)
    broken = broken_packages(site_packages(environment), thorough=True)
    names = ", ".join(metadata.name.removesuffix(".dist-info") for metadata in broken)
    yield Finding("pinned packages", f"damaged package: {names}" if broken else "")
    if runs:
        status, said = status_of([python, "-I", "-m", "stm_plugin", "info"])
        yield Finding("engine", f"`stm info` ends with {status}:\n{last_lines(said)}" if status else "")
    same = read_stamp(prefix.root, SIDES) == content_of(prefix.root, SIDE_NAMES)
    yield Finding("folders for the hosts", "" if same else f"files in {prefix.root} were changed or lost")
    yield Finding("stm command", command_trouble(prefix))
    hosts = prefix.listed("hosts")
    for part in host_parts(prefix):
        if part.wanted(hosts):
            yield Finding(part.words, part.trouble())


def command_trouble(prefix: Prefix) -> str:
    """Why the command is not in order; empty if it is."""
    if not prefix.launcher.is_file():
        return f"{prefix.launcher} does not exist"
    link = prefix.record().get("link")
    if isinstance(link, str) and is_our_link(Path(link)) and not leads_to(Path(link), prefix.launcher):
        return f"{link} leads to another installation"
    if isinstance(link, str) and not Path(link).exists():
        return f"{link} does not exist"
    return ""


def closed_to_others(prefix: Prefix) -> str:
    """Why other users cannot run an installation that they can reach; empty if they can.

    So it is where an administrator installs for many users with a Python of the own home.
    """
    if ON_WINDOWS or prefix.python is None or _closed_folder(prefix.launcher) is not None:
        return ""
    python = prefix.python.resolve()
    closed = _closed_folder(python)
    if closed is None:
        return ""
    return (
        f"Other users cannot run it: its Python is {python}, and {closed} is closed to them. For a shared "
        "installation run install.py with a Python that all may run, such as /usr/bin/python3."
    )


def _closed_folder(path: Path) -> Path | None:
    """The outermost folder above a file that others may not enter."""
    for folder in reversed(path.parents):
        if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def doctor(prefix: Prefix) -> int:
    """Print the state of every part and how to repair it; returns 0 if all are in order."""
    if not prefix.is_installation:
        print(f"{PRODUCT} is not installed in {prefix.root}. `python3 install.py` installs it.")
        return 1
    if prefix.python is None:
        print(f"The installation in {prefix.root} was interrupted. `{installer(prefix)}` continues it.")
        return 1
    print(f"{PRODUCT} {prefix.record().get('version', '')} in {prefix.root}", flush=True)
    good = True
    for finding in examine(prefix):
        print(f"  {finding}", flush=True)
        good = good and not finding.trouble
    if not good:
        print(f"`{installer(prefix)} --repair` repairs it.")
        return 1
    for line in (*where_hosts_look(prefix), closed_to_others(prefix)):
        if line:
            print(line)
    return 0


def installer(prefix: Prefix) -> str:
    """The command that repairs this installation, run from its sources."""
    script = Path(str(prefix.record().get("source", ""))) / "install.py"
    known = script.is_absolute() and script.is_file()
    elsewhere = "" if prefix.root == default_prefix() else f" --prefix {shlex.quote(str(prefix.root))}"
    return f"python3 {shlex.quote(str(script)) if known else 'install.py'}{elsewhere}"


def status_of(command: list[object], *, keep: bool = False) -> tuple[int, str]:
    """Run a program; returns its exit status and its output.

    Args:
        keep: its environment is the caller's own, and only standard output counts where it ends well.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if keep else subprocess.STDOUT,
            env=None if keep else {**clean_environment(), "OCIO": ""},
            encoding="utf-8",
            errors="replace",
            timeout=ENGINE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, done.stdout + (done.stderr if keep and done.returncode else "")
