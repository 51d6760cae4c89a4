"""The installer on a miniature of the project: real environments and pip, hand-made packages, no network."""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stm_nuke import launch

import install

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the miniature's scripts are POSIX ones")

INSTALLER = Path(install.__file__).resolve()
TIMEOUT = 120


def write_wheel(folder: str, name: str, files: dict[str, str], entry: str = "", needs: str = "") -> str:
    """Write a wheel NAME-1.0 of text files; its file name. This source is also the miniature's backend."""
    info = f"{name}-1.0.dist-info"
    files = dict(files)
    needed = f"Requires-Dist: {needs}\n" if needs else ""
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}"
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
    wheel = f"{name}-1.0-py3-none-any.whl"
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
        for path in sorted(pathlib.Path(package).glob("*.py")):
            files[f"{{package}}/{{path.name}}"] = path.read_text()
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


BUILD = """
import os, pathlib, sys
if "MINIATURE_COMPILER_SAYS" in os.environ:
    print("Error: c++ effect.cpp", os.environ["MINIATURE_COMPILER_SAYS"], sep="\\n")
    sys.exit(1)
assert sys.argv[1] == "--output"
binary = pathlib.Path(sys.argv[2], "STM.ofx.bundle", "Contents", "Linux-x86-64", "STM.ofx")
binary.parent.mkdir(parents=True, exist_ok=True)
binary.write_bytes(pathlib.Path(__file__).with_name("source").joinpath("effect.cpp").read_bytes())
os.utime(binary, (1, 1))
"""


class Miniature(NamedTuple):
    """A checkout with little in it, and a home and a package index to install it with."""

    checkout: Path
    prefix: Path
    links: Path
    environment: dict[str, str]

    @property
    def cli(self) -> Path:
        return self.checkout / "stm_plugin" / "cli.py"

    @property
    def requirements(self) -> Path:
        return self.checkout / "requirements.txt"

    @property
    def init(self) -> Path:
        """The home's ~/.nuke/init.py."""
        return Path(self.environment["HOME"], ".nuke", "init.py")

    @property
    def record(self) -> dict[str, object]:
        """What engine.json says."""
        read: dict[str, object] = json.loads((self.prefix / "engine.json").read_text())
        return read

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
        """What the installed command prints through its link."""
        call = [str(self.links / "stm"), "hello"]
        return subprocess.run(
            call, capture_output=True, text=True, check=True, timeout=TIMEOUT
        ).stdout.strip()


def make_miniature(folder: Path) -> Miniature:
    checkout, wheels = folder / "checkout", folder / "wheels"
    for package in ("model", "stm_plugin"):
        (checkout / package).mkdir(parents=True)
        (checkout / package / "__init__.py").touch()
    wheels.mkdir()
    shutil.copy(INSTALLER, checkout / "install.py")
    (checkout / "pyproject.toml").write_text(PYPROJECT)
    (checkout / "stm_plugin" / "backend.py").write_text(BACKEND)
    (checkout / "stm_plugin" / "cli.py").write_text(CLI)
    (checkout / "requirements.txt").write_text("# comment\ntiny==1.0\n")
    (checkout / "requirements-demo.txt").touch()
    (checkout / "requirements-train.txt").write_text("trunk==1.0\n")
    (checkout / "requirements-ofx.txt").write_text("compiler==1.0\n")
    (checkout / "nuke" / "stm_nuke").mkdir(parents=True)
    (checkout / "nuke" / "init.py").write_text("LOADED = True\n")
    (checkout / "nuke" / "stm_nuke" / "client.py").write_text("# the client\n")
    (checkout / "ofx_bridge" / "source").mkdir(parents=True)
    (checkout / "ofx_bridge" / "build.py").write_text(BUILD)
    (checkout / "ofx_bridge" / "source" / "effect.cpp").write_text("effect")
    (checkout / "requirements-test.txt").write_text("ruff==1.0\nmypy==1.0\npytest==1.0\n")
    (checkout / "requirements-test-alone.txt").write_text("lonely==1.0\n")
    (checkout / "constraints.txt").touch()
    (checkout / "constraints-torch.txt").touch()
    write_wheel(str(wheels), "lonely", {"lonely.py": ""}, needs="absent")
    write_wheel(str(wheels), "compiler", {"compiler.py": ""})
    write_wheel(str(wheels), "trunk", {"trunk.py": ""})
    write_wheel(str(wheels), "tiny", {"tiny/__init__.py": "VALUE = 'works'\n"})
    for name in ("ruff", "mypy", "pytest"):
        write_wheel(
            str(wheels), name, {f"{name}/__init__.py": "", f"{name}/__main__.py": CHECK.format(name=name)}
        )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    kept.update(HOME=str(folder / "home"), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    return Miniature(checkout, folder / "prefix", folder / "links", kept)


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    """Not installed yet."""
    return make_miniature(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    """Installed once; tests that use it leave it installed and whole."""
    made = make_miniature(tmp_path_factory.mktemp("shared"))
    done = made.run()
    assert done.returncode == 0, done.stdout + done.stderr
    yield made


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets how many gigabytes the disk seems to have free."""

    def set_free(gigabytes: float) -> None:
        usage = shutil.disk_usage("/")._replace(free=int(gigabytes * install.GIGABYTE))
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    return set_free


@contextlib.contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """A file with another text for a while."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def wait_for(lines: Iterable[str], words: str) -> None:
    """Read until a line holds the words."""
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
        assert "pinned packages: ready" in done.stdout and "engine: done" in done.stdout
    assert shared.run().returncode == 0


def test_the_checkout_stays_as_it_was(shared: Miniature) -> None:
    names = {
        path.relative_to(shared.checkout).as_posix() for path in shared.checkout.rglob("*") if path.is_file()
    }
    assert names == {
        "install.py",
        "pyproject.toml",
        "requirements.txt",
        "requirements-demo.txt",
        "requirements-train.txt",
        "requirements-ofx.txt",
        "requirements-test.txt",
        "requirements-test-alone.txt",
        "constraints.txt",
        "constraints-torch.txt",
        "model/__init__.py",
        "stm_plugin/__init__.py",
        "stm_plugin/backend.py",
        "stm_plugin/cli.py",
        "nuke/init.py",
        "nuke/stm_nuke/client.py",
        "ofx_bridge/build.py",
        "ofx_bridge/source/effect.cpp",
    }


def test_the_hosts_python_settings_do_not_reach_the_engine(shared: Miniature, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("VALUE = 'from somewhere else'\n")
    shutil.rmtree(shared.prefix / "stamps")
    engine = next(shared.prefix.glob("env-*/stamps/engine"))
    engine.unlink()
    done = shared.run(PYTHONPATH=str(tmp_path), PIP_TARGET=str(tmp_path / "target"), PIP_USER="1")
    assert done.returncode == 0, done.stderr
    assert "miniature works info" in (shared.prefix / "install.log").read_text()
    assert not (tmp_path / "target").exists()


def test_what_training_begins_with_is_installed_when_asked_for(miniature: Miniature) -> None:
    assert miniature.run().returncode == 0
    assert not (site_packages(miniature) / "trunk.py").exists()
    assert miniature.run("--train").returncode == 0
    assert (site_packages(miniature) / "trunk.py").exists()
    assert miniature.record["groups"] == ["engine", "train"]


def test_groups_once_installed_stay(shared: Miniature) -> None:
    assert shared.run("--test").returncode == 0
    assert "Nothing to do." in shared.run().stdout
    assert shared.record["groups"] == ["engine", "demo", "train", "ofx", "test"]


def test_packages_that_do_not_fit_together_are_named_unless_they_are_meant_to(shared: Miniature) -> None:
    assert shared.run("--test").returncode == 0, "what stands alone may lack what it asks for"
    site = site_packages(shared)
    metadata = site / "tiny-1.0.dist-info" / "METADATA"
    with changed(metadata, metadata.read_text() + "Requires-Dist: missing-friend\n"):
        at = install.Installation(install.Options(shared.prefix, install.GROUPS, source=shared.checkout))
        with pytest.raises(install.InstallError, match=r"tiny 1\.0 requires missing-friend") as caught:
            install.DependenciesStep().check(at)
        assert "lonely" not in str(caught.value)


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
    doctor = shared.run("--doctor")
    assert doctor.returncode == 1 and "damaged package: tiny-1.0" in doctor.stdout
    assert shared.run("--repair").returncode == 0
    assert module.read_text() == "VALUE = 'works'\n"


def test_a_killed_installer_is_repaired_by_the_next_run(miniature: Miniature) -> None:
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
    done = miniature.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pinned packages: ready" in done.stdout
    assert miniature.stm() == "miniature works hello"


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
    monkeypatch.setattr(install, "ON_WINDOWS", system == "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setenv("XDG_DATA_HOME", "/elsewhere")
    assert install.default_prefix() == launch.default_prefix()
    monkeypatch.delenv("LOCALAPPDATA")
    assert install.default_prefix() == launch.default_prefix()


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
    at = install.Installation(install.Options(prefix=tmp_path / "prefix", source=repository))
    at.write_record(python="/the/python", version="7")
    install.NukeStep().do(at)
    assert install.NukeStep().intact(at)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("STM_", "PYTHON"))}
    found = subprocess.run(
        [sys.executable, "-c", "from stm_nuke.launch import Installation as i; print(i.find())"],
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(at.nuke)},
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
    at = install.Installation(install.Options(prefix=install.default_prefix()))
    shot = at.prefix / "shots" / "a.stmshot"
    shot.mkdir(parents=True)
    for _ in range(2):
        install.uninstall(at)
        assert "is not installed" in capsys.readouterr().out
        install.open_prefix(at)
        install.uninstall(at)
        assert "shots" in capsys.readouterr().out
        assert shot.is_dir() and [path.name for path in at.prefix.iterdir()] == ["shots"]


# --- Nuke ---------------------------------------------------------------------------------------------------

OWN_INIT = b"# -*- coding: latin-1 -*-\nname = '\xe9'\n"


def add_paths(file: Path) -> list[str]:
    """What an init.py adds to the plug-in path of a Nuke that runs it."""
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
    assert "folder for Nuke: done" in done.stdout and "engine: ready" in done.stdout
    assert client.read_text() == "# the client\n" and not (shared.prefix / "nuke" / "old.py").exists()


def test_without_being_asked_nukes_own_folder_is_not_touched(shared: Miniature) -> None:
    done = shared.run()
    assert "run this again with --nuke (lines in ~/.nuke/init.py), or " in done.stdout
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


def test_a_prefix_that_was_deleted_does_not_stop_nuke(shared: Miniature, tmp_path: Path) -> None:
    at = install.Installation(install.Options(prefix=tmp_path / "gone", source=shared.checkout))
    file = tmp_path / ".nuke" / "init.py"
    file.parent.mkdir()
    file.write_bytes(install.with_block(b"", install.NukeInitStep().lines(at)))
    assert add_paths(file) == []
    at.nuke.mkdir(parents=True)
    assert add_paths(file) == [str(at.nuke)]


def test_a_link_to_an_init_elsewhere_stays_one_and_a_read_only_one_is_said(shared: Miniature) -> None:
    real = shared.init.parent.parent / "dotfiles" / "init.py"
    for folder in (shared.init.parent, real.parent):
        folder.mkdir(parents=True)
    real.write_text("mine = 1\n")
    shared.init.symlink_to(real)
    at = install.Installation(install.Options(shared.prefix, source=shared.checkout))
    step = install.NukeInitStep()
    step.write(shared.init, install.with_block(real.read_bytes(), step.lines(at)))
    assert shared.init.is_symlink() and install.BLOCK_START in real.read_bytes()
    real.write_text("mine = 1\n")
    with pytest.MonkeyPatch.context() as patch:  # root may write anything
        patch.setattr(os, "access", lambda _path, _mode: False)
        patch.setenv("HOME", str(shared.init.parent.parent))
        with pytest.raises(install.InstallError, match="read-only") as caught:
            step.do(at)
    assert f"NUKE_PATH={shared.prefix}" in caught.value.hint and real.read_text() == "mine = 1\n"
    shutil.rmtree(shared.init.parent)
    assert "Nothing to do." in shared.run().stdout


def test_half_a_block_is_left_to_its_owner(shared: Miniature) -> None:
    shared.init.parent.mkdir(parents=True)
    half = b"a = 1\n" + install.BLOCK_START + b"\nimport nuke\n"
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


def test_of_two_prefixes_the_latter_has_the_lines(shared: Miniature, tmp_path: Path) -> None:
    file, step = tmp_path / ".nuke" / "init.py", install.NukeInitStep()
    both = [
        install.Installation(install.Options(tmp_path / name, source=shared.checkout))
        for name in ("one", "two")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        for at in both:
            step.do(at)
            at.nuke.mkdir(parents=True)
    assert add_paths(file) == [str(both[1].nuke)]
    step.undo(both[0])
    assert add_paths(file) == [str(both[1].nuke)]


LINES = (install.BLOCK_START, b"import nuke", install.BLOCK_END)
TEXTS = st.lists(st.sampled_from([b"a = 1", b" ", b"\n", b"\r\n", b"\r", b"\xe9", b"# <", b"\\"]), max_size=8)


@given(TEXTS.map(b"".join), TEXTS.map(b"".join))
def test_a_block_comes_and_goes_without_a_trace(text: bytes, after: bytes) -> None:
    whole = install.with_block(text, LINES)
    assert install.without_block(whole) == text
    assert install.with_block(whole, LINES) == whole
    assert install.without_block(whole + whole) in (text + text, text + b"\n" + text)
    assert install.without_block(whole + after).split() == (text + b"\n" + after).split()


# --- OpenFX -------------------------------------------------------------------------------------------------


def test_the_effect_is_built_when_asked_for_and_kept_up_from_then_on(shared: Miniature) -> None:
    bundle = shared.prefix / "ofx" / "STM.ofx.bundle"
    binary = bundle / "Contents" / "Linux-x86-64" / "STM.ofx"
    assert "OFX" not in shared.run().stdout and not bundle.exists()
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
    assert not bundle.parent.exists()
    assert "Nothing to do." in shared.run().stdout


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
    assert "is something else" in done.stderr and other.is_dir() and not other.is_symlink()
    (tmp_path / "file").touch()
    assert "No link could be made" in shared.run("--ofx-link", str(tmp_path / "file" / "Plugins")).stderr

    assert shared.run("--ofx-link", str(link.parent)).returncode == 0
    assert shared.run("--no-ofx").returncode == 0
    assert not link.is_symlink()


# --- uninstalling -------------------------------------------------------------------------------------------


def test_uninstall_leaves_nothing(miniature: Miniature) -> None:
    assert miniature.run("--nuke", "--ofx-link", str(miniature.links)).returncode == 0
    assert add_paths(miniature.init) == [str(miniature.prefix / "nuke")]
    assert len(list(miniature.links.iterdir())) == 2
    done = miniature.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert not miniature.prefix.exists()
    assert list(miniature.links.iterdir()) == []
    assert not miniature.init.parent.exists()
    assert "is not installed" in miniature.run("--uninstall").stdout


def test_uninstall_keeps_what_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = install.Installation(install.Options(prefix=tmp_path / "prefix", link_folder=tmp_path / "links"))
    install.open_prefix(at)
    (at.prefix / "env-0123").mkdir()
    (at.prefix / "notes.txt").write_text("mine")
    at.link_folder = tmp_path / "links"
    at.link_folder.mkdir()
    (at.link_folder / "stm").write_text("another program")
    install.uninstall(at)
    assert [path.name for path in at.prefix.iterdir()] == ["notes.txt"]
    assert (at.link_folder / "stm").read_text() == "another program"
    assert "notes.txt" in capsys.readouterr().out


def test_a_folder_that_is_not_ours_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    at = install.Installation(install.Options(prefix=tmp_path))
    with pytest.raises(install.InstallError, match=r"thesis\.txt"):
        install.open_prefix(at)
    with pytest.raises(install.InstallError, match="nothing was removed"):
        install.uninstall(at)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- what goes wrong, in words ------------------------------------------------------------------------------


def test_a_small_disk_is_refused_before_anything_is_made(
    tmp_path: Path, roomy: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy(2.0)
    monkeypatch.setattr(sys, "platform", "linux")
    at = install.Installation(install.Options(prefix=tmp_path / "prefix"))
    with pytest.raises(install.InstallError, match=r"has 2\.0 GB free; about 9 GB are needed"):
        install.install(at)
    assert not at.environment.exists()


def test_a_disk_that_runs_full_later_is_said() -> None:
    at = install.Installation(install.Options(prefix=Path("/nowhere")))
    error = install.explain_pip(
        at, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    assert "disk ran full" in error.what and "--prefix" in error.hint


def test_no_network_is_said(shared: Miniature) -> None:
    closed_port = "http://127.0.0.1:9/simple"
    environment = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": closed_port, "PIP_RETRIES": "1"}
    with changed(shared.requirements, shared.requirements.read_text() + "absent==1.0\n"):
        done = shared.run(**environment)
    assert done.returncode == 1
    assert "Error: The package index cannot be reached" in done.stderr
    assert shared.stm() == "miniature works hello", "what was there still works"
    assert shared.run().returncode == 0


def test_a_package_that_the_index_lacks_is_named_with_the_machine(shared: Miniature) -> None:
    with changed(shared.requirements, shared.requirements.read_text() + "absent==1.0\n"):
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
    at = install.Installation(install.Options(prefix=tmp_path / "file" / "prefix"))
    with pytest.raises(install.InstallError, match="cannot be written"):
        install.install(at)


def test_a_python_without_venv_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    at = install.Installation(install.Options(prefix=tmp_path / "prefix"))
    with pytest.raises(install.InstallError, match=r"has no `ensurepip` module") as caught:
        install.install(at)
    assert "-venv" in caught.value.hint


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
    with pytest.raises(install.InstallError, match=r"needs a 64-bit Python 3\.11 to 3\.14") as caught:
        install.ensure_python([])
    assert "Install Python 3.11" in caught.value.hint


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
    assert good.stdout.rstrip().endswith("pytest ran -k colour"), "pytest's last line is the last line"
    for name in ("ruff", "mypy", "pytest"):
        bad = shared.run("--test", MINIATURE_FAILS=name)
        assert bad.returncode == 1
        assert f"Failed: {name}" in bad.stdout and "pytest ran" in bad.stdout


def test_every_pin_is_exact_and_named_once(repository: Path) -> None:
    names = []
    constraints = (install.CONSTRAINTS, install.TORCH_CONSTRAINTS)
    for file in [*install.REQUIREMENTS.values(), *install.ALONE.values(), *constraints]:
        for line in (repository / file).read_text().splitlines():
            if line and not line.startswith("#"):
                name, exact, version = line.partition("==")
                assert exact and version and ";" not in version, f"{file}: {line}"
                names.append(name.lower().replace("_", "-"))
    assert len(names) == len(set(names))


def test_everything_the_tests_import_is_pinned(repository: Path) -> None:
    """A test that imports what no requirements file names would fail on the next machine."""
    from importlib.metadata import packages_distributions

    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for file in [*install.REQUIREMENTS.values(), *install.ALONE.values()]
        for line in (repository / file).read_text().splitlines()
    }
    packages = packages_distributions()
    own = {"benchmarks", "install", "model", "nuke", "stm_batch", "stm_nuke", "stm_plugin", "tests", "tiny"}
    unpinned = {}
    for folder in ("model", "stm_plugin", "tests", "benchmarks"):
        for file in (repository / folder).rglob("*.py"):
            for module in imported(file) - own - sys.stdlib_module_names:
                names = {name.lower().replace("_", "-") for name in [module, *packages.get(module, [])]}
                if not names & pinned and not (file.parent / f"{module}.py").exists():
                    unpinned[module] = file.relative_to(repository).as_posix()
    assert unpinned == {}


def imported(file: Path) -> set[str]:
    """The first parts of the names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_everything_the_project_declares_is_pinned(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for group, declared in (
        ("engine", project["dependencies"]),
        ("demo", extras["demo"]),
        ("ofx", extras["ofx"]),
        ("test", extras["test"]),
    ):
        pins = (repository / install.REQUIREMENTS[group]).read_text().lower()
        for requirement in declared:
            name = requirement.partition(">=")[0].lower()
            assert f"\n{name}==" in pins, f"{name} is declared for {group} and has no pin"


def test_installed_versions_are_the_pinned_ones(repository: Path) -> None:
    """The environment that runs these tests is the one that the pins describe."""
    from importlib.metadata import PackageNotFoundError, version

    different = {}
    for file in [*install.REQUIREMENTS.values(), *install.ALONE.values()]:
        for line in (repository / file).read_text().splitlines():
            if line and not line.startswith("#"):
                name, _, pinned = line.partition("==")
                try:
                    found = version(name).partition("+")[0]
                except PackageNotFoundError:
                    found = "absent"
                if found != pinned:
                    different[name] = (pinned, found)
    assert different == {}


def test_a_digest_tells_where_one_part_ends() -> None:
    assert install.digest([b"ab", b"c"]) != install.digest([b"a", b"bc"])
    assert len(install.digest([])) == 16 and hashlib.sha256().hexdigest().startswith(install.digest([]))
