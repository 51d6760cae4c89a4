"""Kinds of machines that a bundle can be made for, besides the one that makes it."""

from __future__ import annotations

import ast
import operator
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from stm_plugin.installation.prefix import InstallationError

_NEWEST_GLIBC: Final = 28
"""The packages run on Linux with glibc 2.28 and newer: that is what torch needs."""
_COMPARE: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Target:
    """A system with its processor, and a Python.

    Attributes:
        name: what --platform calls it.
        system: as `sys.platform` has it.
        machine: what `platform.system()` and `platform.machine()` say there.
        tags: the platforms in the names of packages that run there, as pip takes them.
        effect: what the builder of the OpenFX effect calls it.
    """

    name: str
    system: str
    machine: tuple[str, str]
    tags: tuple[str, ...]
    effect: str
    python: tuple[int, int] = (sys.version_info[0], sys.version_info[1])

    def __str__(self) -> str:
        return described(*self.machine, self.python)

    def pip_options(self) -> tuple[str, ...]:
        """Options that make `pip download` take packages for it."""
        platforms = tuple(f"--platform={tag}" for tag in self.tags)
        version = f"{self.python[0]}.{self.python[1]}"
        return (*platforms, "--implementation=cp", f"--python-version={version}")

    def takes(self, marker: str) -> bool:
        """Whether a marker of a lock (the words behind `;`) holds there.

        Raises:
            ValueError: the marker asks for something that is not known of it.
        """
        version = f"{self.python[0]}.{self.python[1]}"
        known = {
            "sys_platform": self.system,
            "platform_system": self.machine[0],
            "platform_machine": self.machine[1],
            "platform_python_implementation": "CPython",
            "python_version": version,
            "python_full_version": f"{version}.0",
        }
        return _holds(ast.parse(marker.strip(), mode="eval").body, known)

    def lock(self, text: str) -> str:
        """The part of a lock that is for it, without markers: pip asks those of its own machine."""
        kept, takes = [], True
        for line in text.splitlines():
            if line[:1].isalnum():
                release, has_marker, rest = line.partition(" ; ")
                marker, hashes, more = rest.partition(" --hash")
                takes = not has_marker or self.takes(marker.rstrip(" \\"))
                if has_marker:
                    line = release + (f"{hashes}{more}" if hashes else " \\" * rest.endswith("\\"))
            if takes:
                kept.append(line)
        return "\n".join(kept) + "\n"


def _linux(processor: str) -> tuple[str, ...]:
    old = [f"manylinux{year}_{processor}" for year in ("2014", "2010", "1")]
    glibc = [f"manylinux_2_{minor}_{processor}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    return (*glibc, *old, f"linux_{processor}")


TARGETS: Final[Mapping[str, Target]] = {
    one.name: one
    for one in (
        Target("linux-x86_64", "linux", ("Linux", "x86_64"), _linux("x86_64"), "linux-x86-64"),
        Target("linux-aarch64", "linux", ("Linux", "aarch64"), _linux("aarch64"), "linux-aarch64"),
        Target("windows-x86_64", "win32", ("Windows", "AMD64"), ("win_amd64",), "windows-x86-64"),
        Target("macos-arm64", "darwin", ("Darwin", "arm64"), ("macosx_14_0_arm64",), "macos"),
    )
}


def described(system: str, machine: str, python: tuple[int, int]) -> str:
    """A kind of machine for people, and for the manifest of a bundle."""
    return f"{system} {machine}, Python {python[0]}.{python[1]}"


def this_machine() -> str:
    """This one's kind."""
    return described(platform.system(), platform.machine(), (sys.version_info[0], sys.version_info[1]))


def named_target(name: str, python: str) -> Target | None:
    """The target that is asked for; None for this machine.

    Args:
        name: one of TARGETS; empty if none was named.
        python: as in `3.12`; empty for the version of this Python.

    Raises:
        InstallationError: the name or the version is none.
    """
    version = (sys.version_info[0], sys.version_info[1])
    if python:
        major, _, minor = python.partition(".")
        if major != "3" or not minor.isdecimal():
            raise InstallationError(f"--for-python {python} is no version.", hint="Write it as 3.12.")
        version = (3, int(minor))
    if not name:
        if version == (sys.version_info[0], sys.version_info[1]):
            return None
        own = (platform.system(), platform.machine())
        name = next((one.name for one in TARGETS.values() if one.machine == own), "")
    if name not in TARGETS:
        raise InstallationError(
            f"Bundles are made for {', '.join(TARGETS)}.", hint="Name one of them with --platform."
        )
    found = TARGETS[name]
    return Target(found.name, found.system, found.machine, found.tags, found.effect, version)


def _holds(node: ast.expr, known: Mapping[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        both = all if isinstance(node.op, ast.And) else any
        return both(_holds(part, known) for part in node.values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        compare = _COMPARE.get(type(node.ops[0]))
        sides = [_side(one, known) for one in (node.left, node.comparators[0])]
        if compare is not None:
            names = [one.id for one in (node.left, node.comparators[0]) if isinstance(one, ast.Name)]
            if names and names[0] in ("python_version", "python_full_version"):
                return compare(*(_numbers(side) for side in sides))
            if compare in (operator.eq, operator.ne):
                return compare(*sides)
    raise ValueError(f"unknown marker: {ast.unparse(node)}")


def _side(node: ast.expr, known: Mapping[str, str]) -> str:
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError(f"unknown marker: {ast.unparse(node)}")


def _numbers(version: str) -> tuple[int, ...]:
    """3.15 -> (3, 15, 0)."""
    numbers = [int(part) for part in version.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))
