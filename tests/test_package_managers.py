"""Packages for studios that choose versions by show: built and resolved by the real programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stm_plugin.installation.package_managers import RezPackage, module_file
from stm_plugin.installation.prefix import InstallationError, Prefix
from tests.stm_plugin.command import Command
from tests.stm_plugin.conftest import stm as stm

ASK = """\
import json, sys
from rez.resolved_context import ResolvedContext
from rez.exceptions import PackageNotFoundError
for request in sys.argv[2:]:
    try:
        context = ResolvedContext([request], package_paths=[sys.argv[1]], package_filter=None)
    except PackageNotFoundError:
        print(json.dumps({"ok": False}))
        continue
    found = context.get_environ(parent_environ={"PATH": "/usr/bin"}) if context.success else {}
    print(json.dumps({"ok": context.success, "environment": found}))
"""

BUILD = """\
import os, sys
from rez.build_process import create_build_process
from rez.build_system import create_build_system
os.chdir(sys.argv[1])
system = create_build_system(os.getcwd())
process = create_build_process("local", os.getcwd(), build_system=system)
assert process.build(install_path=sys.argv[2], clean=True, install=True) == 1
"""


def installed(root: Path, version: str = "0.2.0") -> Prefix:
    """An installation with a record, and with a command that prints its version."""
    prefix = Prefix(root)
    python = root / "env-1" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    prefix.change_record(python=str(python), version=version)
    (root / "bin").mkdir()
    (root / "bin" / "stm").write_text(f"#!/bin/sh\necho {version}\n")
    (root / "bin" / "stm").chmod(0o755)
    return prefix


def rez(program: str, *words: object) -> str:
    """The output of a program that uses the real rez; skipped if rez is not installed."""
    pytest.importorskip("rez", reason="rez is not installed")
    call = [sys.executable, "-c", program, *map(str, words)]
    environment = {**os.environ, "REZ_DISABLE_HOME_CONFIG": "1"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def resolved(packages: Path, *requests: str) -> list[dict[str, Any]]:
    """rez's answer to each request."""
    return [json.loads(line) for line in rez(ASK, packages, *requests).splitlines()[-len(requests) :]]


@pytest.mark.slow
def test_a_show_chooses_a_version_by_rez(tmp_path: Path, stm: Command) -> None:
    for version in ("0.2.0", "0.3.0"):
        installed(tmp_path / version, version)
        said = stm("host", "rez", "--add", "--to", tmp_path / "packages", "--prefix", tmp_path / version)
        assert said.code == 0, said.err
    *answers, absent = resolved(tmp_path / "packages", "stm_for_nuke-0.2", "stm_for_nuke", "stm_for_nuke-0.4")
    assert not absent["ok"]
    for found, version in zip(answers, ("0.2.0", "0.3.0"), strict=True):
        assert found["ok"]
        variables = found["environment"]
        prefix = tmp_path / version
        assert variables["PATH"].split(os.pathsep)[0] == str(prefix / "bin")
        assert variables["NUKE_PATH"] == str(prefix / "nuke")
        assert variables["OFX_PLUGIN_PATH"] == str(prefix / "ofx")
        assert variables["STM_PREFIX"] == str(prefix)
        assert variables["STM_RUNTIME_DIR"] == f"/tmp/stm-for-nuke-{os.getuid()}-{version}"
        done = subprocess.run(["stm"], env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == version


def test_the_package_is_built_by_rez(tmp_path: Path) -> None:
    file = RezPackage(installed(tmp_path / "prefix")).write(tmp_path / "packages")
    rez(BUILD, file.parent, tmp_path / "released")
    (found,) = resolved(tmp_path / "released", "stm_for_nuke-0.2.0")
    assert found["environment"]["STM_PREFIX"] == str(tmp_path / "prefix")


def test_the_package_for_rez_is_kept_up_and_taken_away(tmp_path: Path, stm: Command) -> None:
    prefix, packages = installed(tmp_path / "prefix"), tmp_path / "packages"
    words = ("--prefix", prefix.root)
    assert stm("host", "rez", "--add", *words).code == 1, "it must be told where"
    assert stm("host", "rez", "--add", "--to", packages, *words).code == 0
    file = packages / "stm_for_nuke" / "0.2.0" / "package.py"
    assert RezPackage(prefix).trouble() == ""
    file.write_text(f"{file.read_text()}# changed")
    assert str(file) in RezPackage(prefix).trouble()
    prefix.change_record(version="0.3.0")
    RezPackage(prefix).add()
    assert not file.exists() and RezPackage(prefix).trouble() == ""
    assert stm("host", "rez", "--remove", *words).code == 0
    assert not list(packages.iterdir()) and prefix.listed("hosts") == []


def test_a_package_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    package = RezPackage(installed(tmp_path / "prefix"))
    file = package.file(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text("name = 'stm_for_nuke'\n")
    with pytest.raises(InstallationError, match="another file"):
        package.ask_for(tmp_path)
    assert package.remove() is False and file.is_file()


MODULES = """\
proc module-whatis {words} {}
proc conflict {name} {}
proc setenv {name value} {puts "$name=$value"}
proc prepend-path {name value} {puts "$name=$value:"}
proc append-path {name value} {puts "$name=:$value"}
"""


@pytest.mark.skipif(shutil.which("tclsh") is None, reason="needs tclsh")
def test_the_module_file_sets_what_chooses_a_version(tmp_path: Path, stm: Command) -> None:
    prefix = installed(tmp_path / "a prefix")
    said = stm("host", "modules", "--prefix", prefix.root)
    assert said.code == 0 and said.out == module_file(prefix) and said.out.startswith("#%Module1.0\n")
    done = subprocess.run(["tclsh"], input=MODULES + said.out, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"STM_PREFIX={prefix.root}",
        f"PATH={prefix.root}/bin:",
        f"NUKE_PATH=:{prefix.root}/nuke",
        f"OFX_PLUGIN_PATH=:{prefix.root}/ofx",
        f"STM_RUNTIME_DIR=/tmp/stm-for-nuke-{os.getuid()}-0.2.0",
    ]
    assert not done.stderr
