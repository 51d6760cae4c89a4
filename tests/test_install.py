"""The installer on a miniature of the project: real environments and pip, local packages, no network."""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stm_nuke import launch

import install
from stm_plugin.installation import (
    bundle,
    doctor,
    nuke_init,
    prefix,
    programs,
    removal,
    setup,
    steps,
    torch_build,
)
from stm_plugin.installation.prefix import InstallationError, Prefix
from stm_plugin.installation.steps import Installation, Options
from stm_plugin.installation.targets import TARGETS, Target

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the miniature's scripts are POSIX ones")

INSTALLER = Path(install.__file__).resolve()
REPOSITORY = INSTALLER.parent
TIMEOUT = 120


def write_wheel(
    folder: str, name: str, files: dict[str, str], entry: str = "", needs: str = "", version: str = "1.0"
) -> str:
    """Write a wheel of text files; returns its name. The miniature's build backend uses this source, too."""
    info = f"{name}-{version}.dist-info"
    files = dict(files)
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
    files[f"{info}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    if entry:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{entry}\n"
    lines = [f"{info}/RECORD,,"]
    for path, text in files.items():
        sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={sha},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join(lines)
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


BACKEND = f"""
from __future__ import annotations
import base64, hashlib, os, pathlib, time, zipfile

{inspect.getsource(write_wheel)}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    time.sleep(float(os.environ.get("MINIATURE_BUILD_SECONDS", "0")))
    files = {{}}
    for package in ("model", "stm_plugin"):
        for path in sorted(pathlib.Path(package).rglob("*.py")):
            files[path.as_posix()] = path.read_text()
    return write_wheel(folder, "stm_miniature", files, "stm = stm_plugin.cli:main")
"""

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["stm_plugin"]
[project]
name = "stm-miniature"
version = "1.0"
[tool.uv]
override-dependencies = ["absent ; sys_platform == 'none'"]
"""

CLI = """
import sys
import tiny

def main():
    print("miniature", tiny.VALUE, *sys.argv[1:])
    sys.exit(int(tiny.VALUE == "broken"))
"""

CHECK = """
import os, sys
print({name!r}, "ran", *sys.argv[1:])
sys.exit(int({name!r} in os.environ.get("MINIATURE_FAILS", "")))
"""

DEMO = """
import pathlib, sys
out = pathlib.Path(sys.argv[2], "plate")
out.mkdir(parents=True)
(out / "plate.1001.exr").write_text("a frame")
(out.parent / "report.txt").write_text("scores")
"""

BUILD = """
import os, pathlib, sys
if "MINIATURE_COMPILER_SAYS" in os.environ:
    print("Error: c++ effect.cpp", os.environ["MINIATURE_COMPILER_SAYS"], sep="\\n")
    sys.exit(1)
assert sys.argv[-2] == "--output"
folder = sys.argv[2] if sys.argv[1] == "--target" else "Linux-x86-64"
binary = pathlib.Path(sys.argv[-1], "STM.ofx.bundle", "Contents", folder, "STM.ofx")
binary.parent.mkdir(parents=True, exist_ok=True)
binary.write_bytes(pathlib.Path(__file__).with_name("source").joinpath("effect.cpp").read_bytes())
os.utime(binary, (1, 1))
"""


class Miniature(NamedTuple):
    """A small checkout, and a home folder and a package index to install it with."""

    checkout: Path
    prefix: Path
    links: Path
    environment: dict[str, str]

    @property
    def cli(self) -> Path:
        return self.checkout / "stm_plugin" / "cli.py"

    @property
    def engine_lock(self) -> Path:
        return self.checkout / "locks" / "engine.txt"

    @property
    def init(self) -> Path:
        """The home's ~/.nuke/init.py."""
        return Path(self.environment["HOME"], ".nuke", "init.py")

    @property
    def record(self) -> dict[str, object]:
        """The content of engine.json."""
        read: dict[str, object] = json.loads((self.prefix / "engine.json").read_text())
        return read

    @property
    def groups(self) -> list[str]:
        """The installed groups, by the record."""
        return Prefix(self.prefix).listed("groups")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its install.py to the end."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        where = ["--prefix", str(self.prefix), "--link-dir", str(self.links)]
        return [sys.executable, str(self.checkout / "install.py"), *where, *arguments]

    def stm(self) -> str:
        """The output of the installed command, started through its link."""
        call = [str(self.links / "stm"), "hello"]
        return subprocess.run(
            call, capture_output=True, text=True, check=True, timeout=TIMEOUT
        ).stdout.strip()


PACKAGES = {
    "engine": {"tiny": {"tiny/__init__.py": "VALUE = 'works'\n"}},
    "torch": {
        "torch": {"torch.py": "BUILD = 'default'\n", "torch/version.py": "cuda: Optional[str] = '13.0'\n"},
        "torchvision": {"torchvision.py": ""},
    },
    "demo": {},
    "train": {"trunk": {"trunk.py": ""}},
    "ofx": {"compiler": {"compiler.py": ""}},
    "review": {"pages": {"pages.py": ""}},
    "test": {
        "lonely": {"lonely.py": ""},
        **{
            name: {f"{name}/__init__.py": "", f"{name}/__main__.py": CHECK.format(name=name)}
            for name in ("ruff", "mypy", "pytest")
        },
    },
}
NOBODYS_HASH = "sha256:" + "0" * 64


def make_miniature(folder: Path) -> Miniature:
    checkout, wheels = folder / "checkout", folder / "wheels"
    for package in ("model", "stm_plugin", "locks"):
        (checkout / package).mkdir(parents=True)
    wheels.mkdir()
    shutil.copy(INSTALLER, checkout / "install.py")
    for name in ("__init__.py", "__main__.py", "errors.py", "exit_codes.py"):
        shutil.copy(REPOSITORY / "stm_plugin" / name, checkout / "stm_plugin" / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        REPOSITORY / "stm_plugin" / "installation", checkout / "stm_plugin" / "installation", ignore=ignored
    )
    (checkout / "model" / "__init__.py").touch()
    (checkout / "pyproject.toml").write_text(PYPROJECT)
    (checkout / "stm_plugin" / "backend.py").write_text(BACKEND)
    (checkout / "stm_plugin" / "cli.py").write_text(CLI)
    (checkout / "stm_plugin" / "demo.py").write_text(DEMO)
    (checkout / "nuke" / "stm_nuke").mkdir(parents=True)
    (checkout / "nuke" / "init.py").write_text("LOADED = True\n")
    (checkout / "nuke" / "stm_nuke" / "client.py").write_text("# the client\n")
    (checkout / "ofx_bridge" / "source").mkdir(parents=True)
    (checkout / "ofx_bridge" / "build.py").write_text(BUILD)
    (checkout / "ofx_bridge" / "source" / "effect.cpp").write_text("effect")
    own_pip = programs.bundled_pip()
    if own_pip is None:
        pytest.skip("this Python brings no wheel of pip along")
    shutil.copy(own_pip, wheels)
    for group, named in PACKAGES.items():
        lock = "# comment\n"
        for name, files in named.items():
            wheel = write_wheel(str(wheels), name, files, needs="absent" if name == "lonely" else "")
            sha = hashlib.sha256((wheels / wheel).read_bytes()).hexdigest()
            lock += f"{name}==1.0 \\\n    --hash={NOBODYS_HASH} \\\n    --hash=sha256:{sha}\n"
        if group == "engine":
            sha = hashlib.sha256(own_pip.read_bytes()).hexdigest()
            lock += f"pip=={own_pip.name.split('-')[1]} --hash=sha256:{sha}\n"
            wheel = write_wheel(str(wheels), "winonly", {"winonly.py": ""})
            sha = hashlib.sha256((wheels / wheel).read_bytes()).hexdigest()
            lock += f"winonly==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{sha}\n"
        (checkout / "locks" / f"{group}.txt").write_text(lock)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    kept.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), PIP_CONFIG_FILE=os.devnull)
    kept["HOME"] = str(folder / "home")
    return Miniature(checkout, folder / "prefix", folder / "links", kept)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    """A miniature for tests that begin or end an installation."""
    return make_miniature(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    """An installed miniature that tests share; they leave it installed and complete."""
    made = make_miniature(tmp_path_factory.mktemp("shared"))
    done = made.run()
    assert done.returncode == 0, done.stdout + done.stderr
    yield made


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets how many gigabytes the disk reports as free."""

    def set_free(gigabytes: float) -> None:
        usage = shutil.disk_usage("/")._replace(free=int(gigabytes * steps.GIGABYTE))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    return set_free


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Give a file another text inside the block."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def wait_for(lines: Iterable[str], words: str) -> None:
    """Read until a line contains the words."""
    assert any(words in line for line in lines), f"never said: {words}"


def site_packages(miniature: Miniature) -> Path:
    return next(miniature.prefix.glob("env-*/lib/python3.*/site-packages"))


# --- installing ---------------------------------------------------------------------------------------------


def test_the_command_works_and_the_record_says_where_the_engine_is(shared: Miniature) -> None:
    assert shared.stm() == "miniature works hello"
    record = shared.record
    assert record["command"] == str(shared.prefix / "bin" / "stm")
    asked = subprocess.run(
        [str(record["python"]), "-c", "import stm_plugin; print(stm_plugin.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=shared.prefix,
    )
    assert asked.stdout.startswith(str(shared.prefix))


def test_a_second_run_has_nothing_to_do(shared: Miniature) -> None:
    done = shared.run()
    assert done.returncode == 0
    assert "Nothing to do." in done.stdout
    assert (shared.prefix / "install.log").read_text() == "", "no program was run"


def test_a_path_that_lacks_the_link_is_mentioned(shared: Miniature) -> None:
    assert f"{shared.links} is not on PATH" in shared.run().stdout
    on_path = shared.run(PATH=f"{shared.links}{os.pathsep}{os.environ['PATH']}")
    assert "not on PATH" not in on_path.stdout


def test_changed_sources_reinstall_the_engine_and_nothing_else(shared: Miniature) -> None:
    with changed(shared.cli, CLI.replace('"miniature"', '"changed"')):
        done = shared.run()
        assert shared.stm() == "changed works hello"
        assert "locked packages: ready" in done.stdout and "engine: done" in done.stdout
    assert shared.run().returncode == 0


def test_the_checkout_stays_as_it_was(shared: Miniature) -> None:
    made = [path for path in shared.checkout.rglob("*") if path.suffix == ".pyc" or path.name == "build"]
    assert made == []
    assert (shared.checkout / "ofx_bridge" / "build.py").read_text() == BUILD


def test_the_hosts_python_settings_do_not_reach_the_engine(shared: Miniature, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("VALUE = 'from somewhere else'\n")
    shutil.rmtree(shared.prefix / "stamps")
    engine = next(shared.prefix.glob("env-*/stamps/engine"))
    engine.unlink()
    (tmp_path / "tomllib.py").write_text("raise ImportError('the caller decides what is imported')\n")
    done = shared.run(PYTHONPATH=str(tmp_path), PIP_TARGET=str(tmp_path / "target"), PIP_USER="1")
    assert done.returncode == 0, done.stderr
    assert "miniature works info" in (shared.prefix / "install.log").read_text()
    assert not (tmp_path / "target").exists()


def test_the_command_imports_nothing_that_its_caller_chose(shared: Miniature, tmp_path: Path) -> None:
    for name in ("tiny", "sitecustomize", "stm_plugin"):
        (tmp_path / f"{name}.py").write_text("VALUE = 'from somewhere else'\nprint('hijacked')\n")
    bent = {"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "tiny.py"), "PYTHONHOME": "/nowhere"}
    done = subprocess.run(
        [shared.links / "stm", "hello"],
        env={**os.environ, **bent},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("miniature works hello\n", "")


@pytest.mark.parametrize(("root", "option"), [(None, "-I"), ("/a/checkout", "-sP")])
def test_hosts_start_the_engine_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None, option: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setenv("STM_RUNTIME_DIR", str(tmp_path / "run"))
    installed = launch.Installation(str(python), "1.0", root)
    assert launch.Launcher()._start(installed, tmp_path / "run", lambda: False) is None
    launch.reap()
    called = (tmp_path / "called").read_text()
    assert called.startswith(f"{option} -m stm_plugin.server --parent {os.getpid()}")


def test_installing_needs_the_standard_library_only() -> None:
    rooms = [path.stem for path in Path(prefix.__file__).parent.glob("[!_]*.py")]
    modules = ", ".join(f"stm_plugin.installation.{room}" for room in rooms)
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import {modules}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and len(rooms) > 5, done.stderr


# --- the locks ----------------------------------------------------------------------------------------------


def test_a_package_whose_hash_is_not_in_the_lock_is_not_installed(shared: Miniature) -> None:
    site = site_packages(shared)
    text = shared.engine_lock.read_text()
    shutil.rmtree(site / "tiny-1.0.dist-info")
    with changed(shared.engine_lock, re.sub("[0-9a-f]{64}", "0" * 64, text)):
        done = shared.run()
    assert done.returncode == 1
    assert "its hash is not in the lock" in done.stderr and "Nothing of it was installed" in done.stderr
    assert not (site / "tiny-1.0.dist-info").exists()
    with changed(shared.engine_lock, f"{text}trunk==1.0\n"):
        assert "hash" in shared.run().stderr, "a lock without hashes is no lock"
    assert shared.run().returncode == 0 and shared.stm() == "miniature works hello"


def test_another_build_of_torch_comes_from_its_own_index_and_nothing_else_does(
    shared: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "torch": ("1.0+own", {"torch.py": "BUILD = 'own'\n"}, "cudalike"),
        "torchvision": ("1.0+own", {"torchvision.py": ""}, ""),
        "cudalike": ("3.0", {"cudalike.py": ""}, ""),
        "tiny": ("2.0", {"tiny/__init__.py": "VALUE = 'of the index'\n"}, ""),
    }
    for name, (version, files, needs) in own.items():
        (tmp_path / "index" / name).mkdir(parents=True)
        wheel = write_wheel(str(tmp_path / "index" / name), name, files, needs=needs, version=version)
        (tmp_path / "index" / name / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    index = (tmp_path / "index").as_uri()
    for name, value in shared.environment.items():
        monkeypatch.setenv(name, value)
    at = Installation(Options(shared.prefix, shared.checkout, torch_index=index))
    assert "torch" not in [lock.stem for lock in at.locks()]
    environment = Installation(Options(shared.prefix, shared.checkout)).environment
    assert at.environment != environment, "an update that fails leaves the environment that works"
    monkeypatch.setattr(Installation, "environment", environment)
    site = site_packages(shared)
    for name in ("torch-1.0", "torchvision-1.0"):
        shutil.rmtree(site / f"{name}.dist-info")
    steps.PackagesStep().do(at)
    assert (site / "torch.py").read_text() == "BUILD = 'own'\n", "the default index has the same release"
    assert (site / "cudalike.py").exists()
    assert not (site / "tiny-2.0.dist-info").exists() and shared.stm() == "miniature works hello"
    for metadata in site.glob("torch*.dist-info"):
        shutil.rmtree(metadata)
    (environment / "stamps" / "dependencies").unlink()
    assert shared.run().returncode == 0


def test_what_training_begins_with_is_installed_when_asked_for(shared: Miniature) -> None:
    trunk = site_packages(shared) / "trunk.py"
    if "train" not in shared.groups:
        assert not trunk.exists()
    assert shared.run("--train").returncode == 0
    assert trunk.exists() and "train" in shared.groups


def test_groups_once_installed_stay(shared: Miniature) -> None:
    assert shared.run("--test").returncode == 0
    assert "Nothing to do." in shared.run().stdout
    assert shared.record["groups"] == ["engine", "demo", "train", "ofx", "review", "test"]


def test_packages_that_do_not_fit_together_are_named_unless_they_are_meant_to(shared: Miniature) -> None:
    assert shared.run("--test").returncode == 0, "what stands alone may lack what it asks for"
    site = site_packages(shared)
    metadata = site / "tiny-1.0.dist-info" / "METADATA"
    with changed(metadata, metadata.read_text() + "Requires-Dist: missing-friend\n"):
        at = Installation(Options(shared.prefix, shared.checkout, steps.GROUPS))
        with pytest.raises(InstallationError, match=r"tiny 1\.0 requires missing-friend") as caught:
            steps.PackagesStep().check(at)
        assert "lonely" not in str(caught.value)


# --- without a network --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Miniature, Path]:
    """A checkout, and a bundle of it."""
    made = make_miniature(tmp_path_factory.mktemp("bundled"))
    folder = made.checkout.parent / "bundle"
    done = made.run("--bundle", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return made, folder


@pytest.fixture(scope="module")
def no_network() -> list[str]:
    """What to put in front of a command so that it has no network interface; skipped where that cannot be."""
    reason = "there is no `unshare`"
    for words in (["unshare", "-n"], ["unshare", "--user", "--map-root-user", "-n"]):
        if shutil.which("unshare") is None:
            break
        tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return words
        reason = tried.stderr.strip()
    pytest.skip(f"this system gives nobody a namespace without a network: {reason}")


def test_a_bundle_installs_without_a_network_and_stays_as_it_is(
    made_bundle: tuple[Miniature, Path], tmp_path: Path, no_network: list[str]
) -> None:
    made, folder = made_bundle
    before = bundle.open_bundle(folder)
    shutil.move(made.checkout, made.checkout.with_name("gone"))
    shutil.move(made.checkout.with_name("wheels"), made.checkout.with_name("no wheels"))
    own = made._replace(checkout=before.sources)
    nowhere = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    kept = {name: value for name, value in own.environment.items() if not name.startswith("PIP_")}
    for arguments in (["--ofx"], ["--demo", "--out", str(tmp_path / "demo")], ["--test"]):
        done = subprocess.run(
            [*no_network, *own.command("--from", str(folder), *arguments)],
            env={**kept, **nowhere},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert own.stm() == "miniature works hello"
    assert (own.prefix / "ofx" / "STM.ofx.bundle").is_dir() and (tmp_path / "demo" / "report.txt").exists()
    assert bundle.open_bundle(folder) == before
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {*json.loads((folder / "bundle.json").read_text())["files"], "bundle.json"}


def test_the_same_sources_make_the_same_bundle(made_bundle: tuple[Miniature, Path], tmp_path: Path) -> None:
    _, folder = made_bundle
    again = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
        sources = folder / "sources"
        locks = [sources / "locks" / f"{name}.txt" for name in PACKAGES]
        bundle.make_bundle(again, bundle.Order(sources, locks))
    assert (again / "bundle.json").read_bytes() == (folder / "bundle.json").read_bytes()
    damaged = again / "wheels" / "tiny-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(InstallationError, match=f"{damaged} is damaged; nothing was installed"):
        bundle.open_bundle(again)
    damaged.unlink()
    with pytest.raises(InstallationError, match=f"{damaged} is missing"):
        bundle.open_bundle(again)


def test_a_bundle_for_another_machine_and_half_a_bundle_are_refused(
    made_bundle: tuple[Miniature, Path], tmp_path: Path
) -> None:
    _, folder = made_bundle
    manifest = json.loads((folder / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**manifest, "machine": "Amiga 68000, Python 3.11"}))
    with pytest.raises(InstallationError, match=r"was made for Amiga 68000, Python 3\.11; this is "):
        bundle.open_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text("[]")
    with pytest.raises(InstallationError, match="is no complete bundle"):
        bundle.open_bundle(tmp_path)
    with pytest.raises(InstallationError, match=r"holds other files \(thesis\.txt\)"):
        (tmp_path / "thesis.txt").touch()
        bundle.make_bundle(tmp_path, bundle.Order(folder / "sources", []))
    (tmp_path / "bundle.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(InstallationError, match="another version of the installer"):
        bundle.open_bundle(tmp_path)


def test_a_bundle_for_a_named_platform_holds_its_packages_and_its_effect(
    miniature: Miniature, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "old-1.0-py3-none-any.whl").write_text("of an earlier bundle")
    python = f"3.{(sys.version_info[1] - 10) % 4 + 11}"  # another one
    done = miniature.run("--bundle", str(folder), "--platform", "windows-x86_64", "--for-python", python)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["machine"] == f"Windows AMD64, Python {python}"
    assert {"wheels/winonly-1.0-py3-none-any.whl", "wheels/tiny-1.0-py3-none-any.whl"} <= set(
        manifest["files"]
    )
    assert "wheels/old-1.0-py3-none-any.whl" not in manifest["files"]
    assert "effect/STM.ofx.bundle/Contents/windows-x86-64/STM.ofx" in manifest["files"]
    (folder / "wheels" / "tiny-1.0-py3-none-any.whl").unlink()
    (folder / "wheels" / "old-1.0-py3-none-any.whl").write_text("of an earlier bundle")
    again = miniature.run("--bundle", str(folder), "--platform", "windows-x86_64", "--for-python", python)
    assert again.returncode == 0 and json.loads((folder / "bundle.json").read_text()) == manifest
    refused = miniature.run("--from", str(folder))
    assert refused.returncode == 1 and f"was made for Windows AMD64, Python {python}; this" in refused.stderr
    assert miniature.run("--platform", "windows-x86_64").returncode == 2, "it means nothing without --bundle"


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_markers_of_the_locks_are_understood_as_pip_does(target: Target) -> None:
    from packaging.requirements import Requirement

    known = {"sys_platform": target.system, "platform_machine": target.machine[1]}
    known.update(python_full_version=".".join(map(str, target.python)) + ".0")
    for lock in sorted((REPOSITORY / "locks").glob("*.txt")):
        text = lock.read_text()
        wanted = []
        for line in text.splitlines():
            if line[:1].isalnum():
                one = Requirement(line.rstrip(" \\"))
                if one.marker is None or one.marker.evaluate(known):
                    wanted.append(f"{one.name}{one.specifier} \\")
        kept = target.lock(text)
        assert [line for line in kept.splitlines() if line[:1].isalnum()] == wanted, lock.name
        assert kept.count("--hash") <= text.count("--hash") and not kept.rstrip().endswith("\\")


# --- one installation for many users ------------------------------------------------------------------------


def python_of_every_user() -> str | None:
    """A Python that other users may run and that can make environments."""
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        found = shutil.which(name, path="/usr/bin:/usr/local/bin")
        if found and subprocess.run([found, "-c", "import ensurepip, venv"], check=False).returncode == 0:
            return found
    return None


@pytest.mark.slow
def test_a_read_only_prefix_serves_two_other_users_at_once() -> None:
    python = python_of_every_user()
    needed = (python, shutil.which("unshare"), shutil.which("setpriv"), os.geteuid() == 0 or None)
    if None in needed:
        pytest.skip("needs root, unshare, setpriv, and a Python of the system with venv")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        made = make_miniature(Path(name))
        command = [str(python), *made.command()[1:]]
        done = subprocess.run(command, env=made.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        before = sorted(path for path in made.prefix.rglob("*"))
        stm = made.prefix / "bin" / "stm"
        asked = [
            f"mount --bind {made.prefix} {made.prefix} && mount -o remount,bind,ro {made.prefix}",
            f"! touch {made.prefix}/x 2>/dev/null",
            *(f"{{ setpriv --reuid {user} --clear-groups {stm} hello {user} & }}" for user in (12345, 12346)),
            "wait",
        ]
        call = ["unshare", "-m", "sh", "-c", " && ".join(asked)]
        both = subprocess.run(call, capture_output=True, text=True, check=True, cwd="/", timeout=TIMEOUT)
        said = ["miniature works hello 12345", "miniature works hello 12346"]
        assert sorted(both.stdout.splitlines()) == said, both.stderr
        assert sorted(path for path in made.prefix.rglob("*")) == before


def test_a_shared_prefix_whose_python_others_cannot_run_says_so() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = Prefix(folder / "stm")
        home = folder / "home"
        for one in (made.root, home):
            one.mkdir()
        (home / "python3").write_text("")
        (made.root / "python").symlink_to(home / "python3")
        record = {"schema": 1, "python": str(made.root / "python")}
        (made.root / "engine.json").write_text(json.dumps(record))
        assert made.python is not None
        assert doctor.closed_to_others(made) == "", "nobody else reaches the prefix"
        folder.chmod(0o755)
        assert doctor.closed_to_others(made) == ""
        home.chmod(0o700)
        said = doctor.closed_to_others(made)
        assert f"its Python is {home.resolve() / 'python3'}, and {home.resolve()} is closed to them" in said
        made.root.chmod(0o700)
        assert doctor.closed_to_others(made) == ""


# --- repairing ----------------------------------------------------------------------------------------------


def test_a_package_that_pip_did_not_finish_is_installed_again(shared: Miniature) -> None:
    site = site_packages(shared)
    (site / "tiny-1.0.dist-info" / "RECORD").unlink()
    (site / "tiny" / "__init__.py").unlink()
    (site / "~iny").mkdir()
    assert shared.run("--doctor").returncode == 1
    assert shared.run().returncode == 0
    assert shared.stm() == "miniature works hello"
    assert not (site / "~iny").exists()
    assert shared.run("--doctor").returncode == 0


def test_repair_finds_files_that_were_damaged(shared: Miniature) -> None:
    module = site_packages(shared) / "tiny" / "__init__.py"
    module.write_text("")
    looked = shared.run("--doctor")
    assert looked.returncode == 1 and "damaged package: tiny-1.0" in looked.stdout
    assert shared.run("--repair").returncode == 0
    assert module.read_text() == "VALUE = 'works'\n"


def test_doctor_says_why_from_other_sources(shared: Miniature, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shared.checkout, copy)
    other = shared._replace(checkout=copy)
    same = other.run("--doctor")
    assert same.returncode == 1 and "What differs: stm command." in same.stdout, "it would name this copy"
    other.cli.write_text(CLI + "# newer\n")
    looked = other.run("--doctor")
    assert looked.returncode == 1
    assert "not in order" not in looked.stdout
    assert f"not made from the present sources in {copy}" in looked.stdout
    assert f"but from {shared.checkout}. What differs: engine, stm command." in looked.stdout
    assert shared.run("--doctor").returncode == 0


def test_doctor_says_why_a_part_is_not_in_order(
    shared: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", shared.environment["HOME"])
    at, launcher = Prefix(shared.prefix), shared.prefix / "bin" / "stm"
    with changed(shared.prefix / "nuke" / "init.py", "damaged"):
        assert doctor.doctor(at) == 1
    said = capsys.readouterr().out
    assert f"folders for the hosts: not in order: files in {shared.prefix} were changed or lost" in said
    advice = f"`python3 {shared.checkout}/install.py --prefix {shared.prefix} --repair` repairs it."
    assert advice in said
    hidden = launcher.rename(launcher.with_name("hidden"))
    assert doctor.doctor(at) == 1
    assert f"stm command: not in order: {launcher} does not exist" in capsys.readouterr().out
    hidden.rename(launcher)
    with changed(site_packages(shared) / "tiny" / "__init__.py", "VALUE = 'broken'\n"):
        assert doctor.doctor(at) == 1
    said = capsys.readouterr().out
    assert "engine: not in order: `stm info` ends with 1:\n    miniature broken info" in said


def test_a_killed_installer_is_repaired_by_the_next_run(miniature: Miniature) -> None:
    assert "is not installed" in miniature.run("--doctor").stdout
    child = subprocess.Popen(
        miniature.command(),
        env={**miniature.environment, "MINIATURE_BUILD_SECONDS": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    wait_for(child.stdout, "engine ...")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (miniature.links / "stm").exists()
    assert "command" not in miniature.record
    assert "was interrupted" in miniature.run("--doctor").stdout
    done = miniature.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "locked packages: ready" in done.stdout
    assert miniature.stm() == "miniature works hello"


def test_a_prefix_that_was_moved_works_and_doctor_says_so(
    shared: Miniature, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shared.prefix.rename(shared.prefix.with_name("moved here"))
    call = [str(moved / "bin" / "stm"), "hello"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stdout == "miniature works hello\n"
    assert doctor.doctor(Prefix(moved)) == 1
    assert f"it was made for {shared.prefix}, and was moved here" in capsys.readouterr().out
    moved.rename(shared.prefix)
    assert "Nothing to do." in shared.run().stdout


def test_of_two_at_once_the_second_waits_and_finds_it_done(shared: Miniature) -> None:
    with changed(shared.cli, CLI + "# another engine\n"):
        slow = {**shared.environment, "MINIATURE_BUILD_SECONDS": "2"}
        first = subprocess.Popen(shared.command(), env=slow, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        wait_for(first.stdout, "engine ...")
        second = shared.run()
        output, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 0, output
    assert second.returncode == 0, second.stderr
    assert "waiting for it" in second.stdout and "Nothing to do." in second.stdout


def test_sigterm_stops_pip_too_and_says_how_to_go_on(shared: Miniature) -> None:
    with changed(shared.cli, CLI + "# yet another engine\n"):
        child = subprocess.Popen(
            shared.command(),
            env={**shared.environment, "MINIATURE_BUILD_SECONDS": "60"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        wait_for(child.stdout, "engine ...")
        child.terminate()
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "The same command goes on from here." in errors
    assert shared.run().returncode == 0


# --- where hosts look ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_the_default_prefix_is_where_the_hosts_look(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(prefix, "ON_WINDOWS", system == "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert prefix.default_prefix() == launch.default_prefix()
    monkeypatch.delenv("LOCALAPPDATA")
    assert prefix.default_prefix() == launch.default_prefix()


def test_the_client_reads_the_record(shared: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STM_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("STM_PREFIX", str(shared.prefix))
    python = str(next(shared.prefix.glob("env-*/bin/python")))
    assert launch.Installation.find() == launch.Installation(python=python, version="1.0", root=None)


def test_a_new_version_is_recorded(shared: Miniature) -> None:
    project = shared.checkout / "pyproject.toml"
    with changed(project, project.read_text().replace("1.0", "1.1")):
        assert shared.run().returncode == 0
        assert shared.record["version"] == "1.1"
    assert shared.run().returncode == 0


def test_the_client_in_the_prefix_finds_its_engine(repository: Path, tmp_path: Path) -> None:
    at = Installation(Options(prefix=tmp_path / "prefix", source=repository))
    at.prefix.change_record(python="/the/python", version="7")
    steps.SidesStep().do(at)
    assert steps.SidesStep().intact(at)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STM_", "PYTHON"))}
    found = subprocess.run(
        [sys.executable, "-c", "from stm_nuke.launch import Installation as i; print(i.find())"],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(at.prefix.nuke)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    assert "'/the/python'" in found and "'7'" in found


def test_what_hosts_keep_in_the_default_prefix_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    at = Prefix(prefix.default_prefix())
    shot = at.root / "shots" / "a.stmshot"
    shot.mkdir(parents=True)
    for _ in range(2):
        removal.uninstall(at, None)
        assert "is not installed" in capsys.readouterr().out
        at.open()
        removal.uninstall(at, None)
        assert "shots" in capsys.readouterr().out
        assert shot.is_dir() and [path.name for path in at.root.iterdir()] == ["shots"]


# --- Nuke ---------------------------------------------------------------------------------------------------

OWN_INIT = b"# -*- coding: latin-1 -*-\nname = '\xe9'\n"


def add_paths(file: Path) -> list[str]:
    """The folders that an init.py adds to Nuke's plug-in path."""
    (file.parent.parent / "nuke.py").write_text("def pluginAddPath(path): print(path)\n")
    call = [sys.executable, "-s", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(file.parent.parent)}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_folder_for_nuke_is_there_and_is_repaired(shared: Miniature) -> None:
    client = shared.prefix / "nuke" / "stm_nuke" / "client.py"
    assert client.read_text() == "# the client\n"
    client.write_text("")
    (shared.prefix / "nuke" / "old.py").touch()
    assert shared.run("--doctor").returncode == 1
    done = shared.run()
    assert "folders for the hosts: done" in done.stdout and "engine: ready" in done.stdout
    assert client.read_text() == "# the client\n" and not (shared.prefix / "nuke" / "old.py").exists()


def test_without_being_asked_nukes_own_folder_is_not_touched(shared: Miniature) -> None:
    done = shared.run()
    assert "`stm host nuke --add` (lines in ~/.nuke/init.py), or " in done.stdout
    assert f"set NUKE_PATH={shared.prefix}/nuke\n" in done.stdout
    assert not shared.init.parent.exists()


def test_nuke_finds_the_folder_and_the_rest_of_init_stays_byte_for_byte(shared: Miniature) -> None:
    shared.init.parent.mkdir(parents=True)
    shared.init.write_bytes(OWN_INIT)
    shared.init.chmod(0o600)
    assert shared.run("--nuke").returncode == 0
    assert add_paths(shared.init) == [str(shared.prefix / "nuke")]
    assert shared.init.stat().st_mode & 0o777 == 0o600

    whole = shared.init.read_bytes()
    assert whole.startswith(OWN_INIT)
    assert "Nothing to do." in shared.run("--nuke").stdout
    shared.init.write_bytes(whole.replace(b"    nuke.pluginAddPath", b"    pass  # ") + b"mine = 1\n")
    assert shared.run("--doctor").returncode == 1
    assert "init.py: done" in shared.run().stdout, "it is kept up without being asked for again"
    assert shared.init.read_bytes() == whole + b"mine = 1\n"

    assert shared.run("--no-nuke").returncode == 0
    assert shared.init.read_bytes() == OWN_INIT + b"mine = 1\n"
    assert "Nothing to do." in shared.run().stdout
    shutil.rmtree(shared.init.parent)


def test_a_prefix_that_was_deleted_does_not_stop_nuke(tmp_path: Path) -> None:
    at = Prefix(tmp_path / "gone")
    file = tmp_path / ".nuke" / "init.py"
    file.parent.mkdir()
    file.write_bytes(nuke_init.with_block(b"", nuke_init.NukeInit(at).lines()))
    assert add_paths(file) == []
    at.nuke.mkdir(parents=True)
    assert add_paths(file) == [str(at.nuke)]


def test_a_link_to_an_init_elsewhere_stays_one_and_a_read_only_one_is_said(shared: Miniature) -> None:
    real = shared.init.parent.parent / "dotfiles" / "init.py"
    for folder in (shared.init.parent, real.parent):
        folder.mkdir(parents=True)
    real.write_text("mine = 1\n")
    shared.init.symlink_to(real)
    lines = nuke_init.NukeInit(Prefix(shared.prefix))
    nuke_init.write_where_it_is(shared.init, nuke_init.with_block(real.read_bytes(), lines.lines()))
    assert shared.init.is_symlink() and nuke_init.BLOCK_START in real.read_bytes()
    real.write_text("mine = 1\n")
    with pytest.MonkeyPatch.context() as patch:  # root may write anything
        patch.setattr(os, "access", lambda _path, _mode: False)
        patch.setenv("HOME", str(shared.init.parent.parent))
        with pytest.raises(InstallationError, match="read-only") as caught:
            lines.add()
    assert f"NUKE_PATH={shared.prefix}" in str(caught.value.hint) and real.read_text() == "mine = 1\n"
    shutil.rmtree(shared.init.parent)
    assert "Nothing to do." in shared.run().stdout


def test_half_a_block_is_left_to_its_owner(shared: Miniature) -> None:
    shared.init.parent.mkdir(parents=True)
    half = b"a = 1\n" + nuke_init.BLOCK_START + b"\nimport nuke\n"
    shared.init.write_bytes(half)
    done = shared.run("--nuke")
    assert done.returncode == 1
    assert "line 2 has `# >>> STM for Nuke >>>`" in done.stderr and "by hand" in done.stderr
    assert shared.init.read_bytes() == half
    assert shared.stm() == "miniature works hello"
    shared.init.write_bytes(b"a = 1\n")
    assert shared.run("--no-nuke").returncode == 0
    assert shared.init.read_bytes() == b"a = 1\n"
    shutil.rmtree(shared.init.parent)


def test_of_two_prefixes_the_latter_has_the_lines(tmp_path: Path) -> None:
    file = tmp_path / ".nuke" / "init.py"
    both = [Prefix(tmp_path / name) for name in ("one", "two")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        for at in both:
            nuke_init.NukeInit(at).add()
            at.nuke.mkdir(parents=True)
    assert add_paths(file) == [str(both[1].nuke)]
    nuke_init.NukeInit(both[0]).remove()
    assert add_paths(file) == [str(both[1].nuke)]


LINES = (nuke_init.BLOCK_START, b"import nuke", nuke_init.BLOCK_END)
TEXTS = st.lists(st.sampled_from([b"a = 1", b" ", b"\n", b"\r\n", b"\r", b"\xe9", b"# <", b"\\"]), max_size=8)


@given(TEXTS.map(b"".join), TEXTS.map(b"".join))
def test_a_block_comes_and_goes_without_a_trace(text: bytes, after: bytes) -> None:
    whole = nuke_init.with_block(text, LINES)
    assert nuke_init.without_block(whole) == text
    assert nuke_init.with_block(whole, LINES) == whole
    assert nuke_init.without_block(whole + whole) in (text + text, text + b"\n" + text)
    assert nuke_init.without_block(whole + after).split() == (text + b"\n" + after).split()


def test_hosts_are_set_up_and_forgotten_by_the_command(
    shared: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stm_plugin.cli import host

    monkeypatch.setenv("HOME", shared.environment["HOME"])
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, shared.environment[name])
    effect = shared.prefix / "ofx" / "STM.ofx.bundle"
    host.nuke(True, shared.prefix)
    host.ofx(True, prefix=shared.prefix)
    said = capsys.readouterr().out
    assert add_paths(shared.init) == [str(shared.prefix / "nuke")] and f"{shared.init} names" in said
    assert effect.is_dir() and f"OFX_PLUGIN_PATH={shared.prefix / 'ofx'}" in said
    host.ofx(True, prefix=shared.prefix)
    assert "Nothing to do." in capsys.readouterr().out
    kept_up = shared.run().stdout
    assert "init.py: ready" in kept_up and "OpenFX effect: ready" in kept_up
    host.nuke(False, shared.prefix)
    host.ofx(False, prefix=shared.prefix)
    assert not shared.init.exists() and not effect.exists()
    assert shared.run().returncode == 0
    with pytest.raises(InstallationError, match="no complete installation"):
        host.nuke(True, shared.prefix / "elsewhere")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write anything
    with pytest.raises(InstallationError, match="not writable for you") as caught:
        host.nuke(True, shared.prefix)
    assert f"NUKE_PATH={shared.prefix / 'nuke'}" in str(caught.value.hint) and not shared.init.exists()


# --- OpenFX -------------------------------------------------------------------------------------------------


def test_the_effect_is_built_when_asked_for_and_kept_up_from_then_on(shared: Miniature) -> None:
    effect = shared.prefix / "ofx" / "STM.ofx.bundle"
    binary = effect / "Contents" / "Linux-x86-64" / "STM.ofx"
    assert "OFX" not in shared.run().stdout and not effect.exists()
    done = shared.run("--ofx")
    assert done.returncode == 0, done.stderr
    assert f"OFX_PLUGIN_PATH={shared.prefix}/ofx\n" in done.stdout
    assert binary.read_text() == "effect"
    assert binary.stat().st_mtime > 1, "a host that shunned it looks at it again"
    assert (site_packages(shared) / "compiler.py").exists()
    assert "Nothing to do." in shared.run().stdout

    with changed(shared.checkout / "ofx_bridge" / "source" / "effect.cpp", "better"):
        broken = shared.run(MINIATURE_COMPILER_SAYS="effect.cpp:7: error: no such thing")
        assert broken.returncode == 1
        assert "could not be built. Everything else is installed" in broken.stderr
        assert "effect.cpp:7: error: no such thing" in broken.stderr
        assert shared.stm() == "miniature works hello"
        assert binary.read_text() == "effect", "the one that was there stays"
        assert "OpenFX effect: done" in shared.run().stdout
        assert binary.read_text() == "better"

    assert shared.run("--no-ofx").returncode == 0
    assert not effect.parent.exists()
    assert "Nothing to do." in shared.run().stdout


def test_a_long_compilation_says_that_it_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "TICK_SECONDS", 0.01)
    with programs.ticking("compiling"):
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and set(lines) == {"    compiling, 0 s"}


def test_an_effect_that_never_could_be_built_does_not_stop_later_runs(shared: Miniature) -> None:
    assert shared.run("--ofx", MINIATURE_COMPILER_SAYS="there is no compiler").returncode == 1
    assert shared.run(MINIATURE_COMPILER_SAYS="there is no compiler").returncode == 0


def test_the_effect_is_linked_where_it_is_asked_for_and_nothing_else_is_replaced(
    shared: Miniature, tmp_path: Path
) -> None:
    link = tmp_path / "Plugins" / "STM.ofx.bundle"
    assert shared.run("--ofx-link", str(link.parent)).returncode == 0
    assert link.resolve() == shared.prefix / "ofx" / "STM.ofx.bundle"
    link.unlink()
    assert shared.run("--doctor").returncode == 1
    assert shared.run().returncode == 0 and link.is_symlink()

    other = tmp_path / "Other" / "STM.ofx.bundle"
    other.mkdir(parents=True)
    done = shared.run("--ofx-link", str(other.parent))
    assert done.returncode == 1
    assert "is another file" in done.stderr and other.is_dir() and not other.is_symlink()
    (tmp_path / "file").touch()
    assert "No link could be made" in shared.run("--ofx-link", str(tmp_path / "file" / "Plugins")).stderr

    assert shared.run("--ofx-link", str(link.parent)).returncode == 0
    assert shared.run("--no-ofx").returncode == 0
    assert not link.is_symlink()


# --- uninstalling -------------------------------------------------------------------------------------------


def test_uninstall_leaves_nothing(miniature: Miniature, tmp_path: Path) -> None:
    out = tmp_path / "stm-demo"
    assert miniature.run("--nuke", "--ofx-link", str(miniature.links)).returncode == 0
    assert miniature.run("--demo", "--out", str(out)).returncode == 0
    (miniature.prefix / "cache" / "zig").mkdir(parents=True)  # what the compiler of the checks keeps
    assert add_paths(miniature.init) == [str(miniature.prefix / "nuke")]
    assert len(list(miniature.links.iterdir())) == 2 and len(list(out.iterdir())) == 2
    done = miniature.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert "private environment: removed" in done.stdout and f"{out}: removed" in done.stdout
    assert not miniature.prefix.exists()
    assert not miniature.links.exists(), "the installer made it"
    assert not miniature.init.parent.exists()
    assert not out.exists() and tmp_path.exists()
    assert "is not installed" in miniature.run("--uninstall").stdout
    looked = miniature.run("--doctor")
    assert looked.returncode == 1 and "`python3 install.py` installs it" in looked.stdout
    assert "--repair" not in looked.stdout


def test_uninstall_keeps_what_was_changed_since_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at, out = Prefix(tmp_path / "prefix"), tmp_path / "mine" / "demo"
    out.mkdir(parents=True)
    (out / "before.txt").write_text("mine")
    at.open()
    with removal.remembering_demo(at, out):
        for name in ("matte.exr", "look/sheet.png"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("made")
    (out / "matte.exr").write_text("painted on")
    removal.uninstall(at, None)
    assert sorted(path.name for path in out.rglob("*")) == ["before.txt", "matte.exr"]
    assert f"{out}: kept" in capsys.readouterr().out and not at.root.exists()


def test_uninstall_keeps_what_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at, links = Prefix(tmp_path / "prefix"), tmp_path / "links"
    at.open()
    (at.root / "env-0123").mkdir()
    (at.root / "notes.txt").write_text("mine")
    links.mkdir()
    (links / "stm").write_text("another program")
    removal.uninstall(at, links)
    assert [path.name for path in at.root.iterdir()] == ["notes.txt"]
    assert (links / "stm").read_text() == "another program"
    assert "notes.txt" in capsys.readouterr().out


def test_a_folder_that_is_not_ours_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    at = Prefix(tmp_path)
    with pytest.raises(InstallationError, match=r"thesis\.txt"):
        at.open()
    with pytest.raises(InstallationError, match="nothing was removed"):
        removal.uninstall(at, None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- what goes wrong, in words ------------------------------------------------------------------------------


def test_a_small_disk_is_refused_before_anything_is_made(
    tmp_path: Path, roomy: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy(2.0)
    monkeypatch.setattr(sys, "platform", "linux")
    at = Installation(Options(tmp_path / "prefix", REPOSITORY))
    with pytest.raises(InstallationError, match=r"has 2\.0 GB free; about 9 GB are needed"):
        setup.install(at)
    assert not at.environment.exists()


def test_a_disk_that_runs_full_later_is_said() -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    error = programs.explain_pip(Prefix(Path("/nowhere")), said)
    assert "disk ran full" in error.what and "--prefix" in str(error.hint)


@pytest.mark.parametrize(
    ("system", "index", "driver", "words"),
    [
        ("win32", "", True, "no CUDA"),
        ("win32", "", False, ""),
        ("linux", "", False, "4 GB for NVIDIA cards"),
        ("linux", "", True, ""),
        ("linux", "/wheels", False, ""),
        ("darwin", "", False, ""),
    ],
)
def test_the_build_of_torch_is_explained_where_the_default_one_does_not_fit(
    system: str, index: str, driver: bool, words: str
) -> None:
    said = torch_build.advice(system, torch_build.AUTO, index, driver)
    assert (words in said and "--torch-index" in said) if words else said == ""


@pytest.mark.parametrize(
    ("wanted", "system", "index", "words"),
    [
        ("auto", "linux", "", ""),
        ("cuda", "linux", "", ""),
        ("cpu", "linux", "", "holds a build with CUDA of torch for Linux, and not the build for CPUs"),
        ("cpu", "linux", "/wheels", ""),
        ("cpu", "win32", "", ""),
        ("cuda", "win32", "", "holds the build for CPUs of torch for Windows, and not a build with CUDA"),
        ("cuda", "win32", "/wheels", ""),
        ("cpu", "darwin", "", ""),
        ("cuda", "darwin", "/wheels", "There is no CUDA on macOS"),
    ],
)
def test_a_build_of_torch_that_cannot_be_had_is_refused_before_anything_is_fetched(
    wanted: str, system: str, index: str, words: str
) -> None:
    if words:
        with pytest.raises(InstallationError, match=words) as refused:
            torch_build.check_wanted(wanted, index, system)
        assert "--torch-index URL" in str(refused.value.hint) or system == "darwin"
    else:
        torch_build.check_wanted(wanted, index, system)


def test_the_build_of_torch_that_came_is_compared_with_the_wanted_one(
    miniature: Miniature, tmp_path: Path
) -> None:
    (tmp_path / "torch").mkdir()
    builds = {"cpu": "cuda: Optional[str] = None\nhip: Optional[str] = None", "cuda": "cuda = '12.8'"}
    for build, text in builds.items():
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2'\n{text}\n")
        other = "cpu" if build == "cuda" else "cuda"
        torch_build.check_installed(build, tmp_path, "/wheels")
        torch_build.check_installed("auto", tmp_path, "/wheels")
        with pytest.raises(InstallationError, match=f"torch of /wheels is .* --torch {other} was asked for"):
            torch_build.check_installed(other, tmp_path, "/wheels")
    (tmp_path / "torch" / "version.py").write_text("cuda = None\nhip: Optional[str] = '7.1'\n")
    with pytest.raises(InstallationError, match="is a build for hip"):
        torch_build.check_installed("cpu", tmp_path, "")
    refused = miniature.run("--torch", "cpu", STM_TORCH_INDEX="")
    assert refused.returncode == 1 and "--torch cpu --torch-index URL" in refused.stderr
    assert not (miniature.prefix / "install.log").exists(), "nothing was begun"
    folder = tmp_path / "bundle"
    wrong = miniature.run("--bundle", str(folder), "--platform", "windows-x86_64", "--torch", "cpu")
    assert wrong.returncode == 1 and "is a build with CUDA, and --torch cpu was asked for" in wrong.stderr
    assert not (folder / "bundle.json").exists()


def test_the_wanted_build_of_torch_is_kept_until_another_is_asked_for(tmp_path: Path) -> None:
    at = Prefix(tmp_path)
    at.change_record(torch="cpu", torch_index="/wheels")
    kept = Installation(Options(tmp_path, REPOSITORY))
    assert (kept.torch, kept.torch_index) == ("cpu", "/wheels")
    back = Installation(Options(tmp_path, REPOSITORY, torch="auto"))
    assert (back.torch, back.torch_index) == ("auto", "")
    assert steps.PackagesStep().stamp(kept) != steps.PackagesStep().stamp(back)


def test_no_network_is_said(shared: Miniature) -> None:
    closed_port = "http://127.0.0.1:9/simple"
    environment = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": closed_port, "PIP_RETRIES": "1"}
    with changed(shared.engine_lock, f"{shared.engine_lock.read_text()}absent==1.0 --hash={NOBODYS_HASH}\n"):
        done = shared.run(**environment)
    assert done.returncode == 1
    assert "Error: The package index cannot be reached" in done.stderr
    assert shared.stm() == "miniature works hello", "what was there still works"
    assert shared.run().returncode == 0


def test_a_package_that_the_index_lacks_is_named_with_the_machine(shared: Miniature) -> None:
    with changed(shared.engine_lock, f"{shared.engine_lock.read_text()}absent==1.0 --hash={NOBODYS_HASH}\n"):
        done = shared.run()
    assert done.returncode == 1
    assert "has no absent==1.0 for this machine" in done.stderr
    assert shared.run().returncode == 0


def test_a_constraint_of_the_machine_that_forbids_a_pin_is_named_as_one(
    shared: Miniature, tmp_path: Path
) -> None:
    limit = tmp_path / "limit.txt"
    limit.write_text("tiny<1.0\n")
    next(shared.prefix.glob("env-*/stamps/dependencies")).unlink()
    done = shared.run(PIP_CONSTRAINT=str(limit))
    assert done.returncode == 1
    assert "pip's own configuration on this machine limits a package" in done.stderr
    assert shared.run().returncode == 0


def test_an_engine_that_does_not_start_is_an_error_with_its_words(shared: Miniature) -> None:
    with changed(shared.cli, "raise ImportError('libnothing.so: no such file')\n"):
        done = shared.run()
    assert done.returncode == 1
    assert "does not start" in done.stderr and "libnothing.so: no such file" in done.stderr
    assert shared.run().returncode == 0


def test_a_prefix_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    at = Installation(Options(tmp_path / "file" / "prefix", REPOSITORY))
    with pytest.raises(InstallationError, match="cannot be written"):
        setup.install(at)


def test_a_python_without_venv_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    at = Installation(Options(tmp_path / "prefix", REPOSITORY))
    with pytest.raises(InstallationError, match=r"has no `ensurepip` module") as caught:
        setup.install(at)
    assert "-venv" in str(caught.value.hint)


def test_another_program_called_stm_is_left_alone(shared: Miniature, tmp_path: Path) -> None:
    (tmp_path / "stm").write_text("#!/bin/sh\necho statistics\n")
    done = shared.run("--link-dir", str(tmp_path))
    assert done.returncode == 0
    assert (tmp_path / "stm").read_text().endswith("statistics\n")
    assert f"The command is {shared.prefix / 'bin' / 'stm'}" in done.stdout
    assert shared.run().returncode == 0


# --- which Python -------------------------------------------------------------------------------------------


def test_an_old_python_can_read_the_installer() -> None:
    ast.parse(INSTALLER.read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("version", "bits", "fits"),
    [
        ((3, 10), 64, False),
        ((3, 11), 64, True),
        ((3, 14), 64, True),
        ((3, 15), 64, False),
        ((3, 11), 32, False),
    ],
)
def test_a_python_fits_if_the_pins_exist_for_it(version: tuple[int, int], bits: int, fits: bool) -> None:
    assert install.python_fits(version, bits) is fits


def test_a_python_that_is_too_old_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "THIS_PYTHON", (3, 9))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"needs a 64-bit Python 3\.11 to 3\.14") as caught:
        install.ensure_python([])
    assert "Install Python 3.11" in str(caught.value)


def test_another_python_on_the_machine_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, answer in (
        ("python3.11", "3 10 True /old"),
        ("python3.12", "3 12 True /opt/python 3.12/bin/python"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.probe_python("python3.11") is None
    assert install.probe_python("python3.12") == "/opt/python 3.12/bin/python"
    assert install.probe_python("python3") is None
    assert install.probe_python("python3.13") is None


# --- checks -------------------------------------------------------------------------------------------------


def test_the_checks_run_all_and_one_failure_fails(shared: Miniature) -> None:
    good = shared.run("--test", "--", "-k", "colour")
    assert good.returncode == 0
    last = good.stdout.splitlines()[-1]
    assert last.startswith("pytest ran ") and last.endswith(" -k colour"), "pytest's last line is the last"
    for name in ("ruff", "mypy", "pytest"):
        bad = shared.run("--test", MINIATURE_FAILS=name)
        assert bad.returncode == 1
        assert f"Failed: {name}" in bad.stdout and "pytest ran" in bad.stdout


def test_a_digest_tells_where_one_part_ends() -> None:
    assert prefix.digest([b"ab", b"c"]) != prefix.digest([b"a", b"bc"])
    assert len(prefix.digest([])) == 16 and hashlib.sha256().hexdigest().startswith(prefix.digest([]))
