"""The locks: every package that the project asks for, in one exact release, with hashes."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from stm_plugin.installation import steps

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK_FILES = tuple(sorted((REPOSITORY / "locks").glob("*.txt")))
HASHES = r"((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)"
RELEASE = re.compile(r"([a-z0-9-]+)==([^\s;]+)( ; [^\\]+)? \\\n" + HASHES)


def locked() -> dict[str, str]:
    """Name -> release of all packages in the locks."""
    return {name: release for lock in LOCK_FILES for name, release, *_ in RELEASE.findall(lock.read_text())}


def plain(name: str) -> str:
    """A package's name in its normalised form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_locks_hold_releases_with_hashes_and_nothing_else() -> None:
    releases: dict[str, str] = {}
    for lock in LOCK_FILES:
        text = lock.read_text()
        left = RELEASE.sub("", text)
        assert [line for line in left.splitlines() if not line.startswith("#")] == [], lock.name
        for name, release, *_ in RELEASE.findall(text):
            assert releases.setdefault(name, release) == release, f"{name} in {lock.name}"
    assert {lock.stem for lock in LOCK_FILES} == {*steps.GROUPS, "torch"}


@pytest.mark.slow
def test_everything_the_tests_import_is_locked(repository: Path) -> None:
    """Every package that tests import must be in pyproject.toml, or tests fail on other machines."""
    declared = set(declarations(repository))
    distributions = distributions_by_module()
    own = {"benchmarks", "install", "model", "nuke", "stm_batch", "stm_nuke", "stm_plugin", "tests", "tiny"}
    unlocked = {}
    for folder in ("model", "stm_plugin", "tests", "benchmarks"):
        for file in (repository / folder).rglob("*.py"):
            for module in imported(file) - own - sys.stdlib_module_names:
                names = {plain(name) for name in [module, *distributions.get(module, [])]}
                if not names & declared and not (file.parent / f"{module}.py").exists():
                    unlocked[module] = file.relative_to(repository).as_posix()
    assert unlocked == {}


@pytest.mark.slow
def test_a_base_installation_holds_nothing_that_is_not_used(repository: Path) -> None:
    from tomllib import loads

    asked = loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    files = [file for folder in ("model", "stm_plugin") for file in (repository / folder).rglob("*.py")]
    modules = {module for file in files for module in imported(file)}
    distributions = distributions_by_module()
    # a compiled module says of no distribution: then it is named as the module
    used = {plain(name) for module in modules for name in distributions.get(module, [module])}
    assert {plain(re.split(r"[>=]", one)[0]) for one in asked} - used == set()


@functools.cache
def distributions_by_module() -> Mapping[str, list[str]]:
    """Top-level module -> names of the installed distributions with it. Reads every file list: seconds."""
    return packages_distributions()


def declarations(repository: Path) -> dict[str, str]:
    """Package name -> its list in pyproject.toml."""
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())
    lists = {"engine": project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    lists.update(project["dependency-groups"])
    return {plain(one.partition(">=")[0]): name for name, listed in lists.items() for one in listed}


def imported(file: Path) -> set[str]:
    """The top-level names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_everything_the_project_declares_is_locked(repository: Path) -> None:
    in_locks = {lock.stem: {name for name, *_ in RELEASE.findall(lock.read_text())} for lock in LOCK_FILES}
    home = {"build": "engine", "test-alone": "test"}
    for name, listed in declarations(repository).items():
        lock = "torch" if name in ("torch", "torchvision") else home.get(listed, listed)
        assert name in in_locks[lock], f"{name} is declared for {listed}: run .ci/locks.py"


def test_installed_versions_are_the_locked_ones() -> None:
    """The environment that runs these tests has the locked releases."""
    from importlib.metadata import distributions

    releases = locked()
    found = {plain(one.name): one.version.partition("+")[0] for one in distributions()}
    different = {name: (release, found[name]) for name, release in releases.items() if name in found}
    assert {name: both for name, both in different.items() if both[0] != both[1]} == {}
    linux_only = {name for name in releases if name.startswith(("nvidia-", "cuda-", "triton"))}
    absent = set(releases) - set(found) - (set() if sys.platform == "linux" else linux_only)
    assert absent <= {"colorama", "pywin32"}, "Windows alone has those"
