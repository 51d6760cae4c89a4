"""The stand-in has only what the published stubs of Nuke's Python have."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

STUBS = Path(sysconfig.get_paths()["purelib"]) / "nuke-stubs"
OF_THE_LANGUAGE = frozenset(("__init__", "__getitem__", "__getattr__", "__call__", "__enter__", "__exit__"))


class Stubs:
    """The top level of the stub package."""

    def __init__(self) -> None:
        self.functions: dict[str, list[ast.FunctionDef]] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: set[str] = set()
        for path in sorted(STUBS.glob("*.pyi")):
            if path.stem.startswith("_") and path.stem not in ("_nuke", "__init__"):
                continue
            for one in ast.parse(path.read_text("utf-8")).body:
                if isinstance(one, ast.FunctionDef):
                    self.functions.setdefault(one.name, []).append(one)
                elif isinstance(one, ast.ClassDef):
                    self.classes[one.name] = one
                elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    self.values.add(one.target.id)

    def bases(self, name: str) -> list[str]:
        """The class and its base classes in the stubs."""
        found = [name]
        for base in self.classes[name].bases:
            if isinstance(base, ast.Name) and base.id in self.classes:
                found += self.bases(base.id)
        return found

    def methods(self, class_name: str, method: str) -> list[ast.FunctionDef]:
        """A method's signatures, of the nearest class that has it."""
        for name in self.bases(class_name):
            found = [
                one
                for one in self.classes[name].body
                if isinstance(one, ast.FunctionDef) and one.name == method
            ]
            if found:
                return found
        return []


@pytest.fixture(scope="module")
def stubs() -> Stubs:
    return Stubs()


def parameters_of_stub(function: ast.FunctionDef, is_method: bool) -> list[tuple[str, bool]] | None:
    """Names, and whether each has a default; None if the stub accepts any arguments."""
    if function.args.vararg is not None:
        return None if not function.args.kwonlyargs else _keyword_only(function)
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    defaults = len(function.args.defaults)
    found = [(name, index >= len(names) - defaults) for index, name in enumerate(names)]
    return found[1:] if is_method else found


def _keyword_only(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    return [(one.arg, True) for one in function.args.kwonlyargs]


def parameters_of(function: Any, is_method: bool) -> list[tuple[str, bool]] | None:
    found = list(inspect.signature(function).parameters.values())
    if is_method and found and found[0].name in ("self", "cls"):
        found = found[1:]
    if any(one.kind is one.VAR_POSITIONAL for one in found) and not any(
        one.kind is one.KEYWORD_ONLY for one in found
    ):
        return None
    return [(one.name, one.default is not one.empty) for one in found if one.kind is not one.VAR_POSITIONAL]


def differences(stubs: Stubs, module: Any) -> list[str]:
    """The names and signatures of the stand-in that differ from the stubs."""
    found = []
    for name in module.__all__:
        offered = getattr(module, name)
        if inspect.isclass(offered):
            found += class_differences(stubs, name, offered)
        elif inspect.isfunction(offered):
            signatures = [parameters_of_stub(one, False) for one in stubs.functions.get(name, [])]
            if not fits(parameters_of(offered, False), signatures):
                found.append(f"{name}{inspect.signature(offered)}")
        elif name not in stubs.values:
            found.append(name)
    public = {name for name in vars(module) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(getattr(module, name))}
    borrowed = {"annotations", "Any", "Callable", "Path", "Host", "delete_node", "every_node", "new_node"}
    borrowed |= {"without_tcl"}
    return found + sorted(public - set(module.__all__) - modules - borrowed)


def class_differences(stubs: Stubs, name: str, offered: type) -> list[str]:
    if name not in stubs.classes:
        return [name]
    found = []
    for owner in offered.__mro__[:-1]:
        if not owner.__module__.startswith("nuke"):
            continue
        for member, value in vars(owner).items():
            is_private = member.startswith("_") and member not in OF_THE_LANGUAGE
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if is_private or not callable(function):
                continue
            known = stubs.methods(name, member)
            signatures = [parameters_of_stub(one, True) for one in known]
            # Making one of these by hand is the stand-in's own affair, as is what the stubs leave to Python.
            if member == "__init__" or (member == "__getattr__" and name == "Nodes"):
                continue
            if getattr(offered, member, None) is not None and function is not _last(offered, member):
                continue  # overridden below
            if not fits(parameters_of(function, True), signatures):
                found.append(f"{name}.{member}{inspect.signature(function)}")
    return found


def _last(offered: type, member: str) -> Any:
    value = inspect.getattr_static(offered, member)
    return value.__func__ if isinstance(value, (classmethod, staticmethod)) else value


def fits(mine: list[tuple[str, bool]] | None, stubs_say: list[list[tuple[str, bool]] | None]) -> bool:
    """Whether a signature is one of those that the stubs give.

    Overloads are one function: with open arguments, or with those of the longest of them.
    """
    if any(theirs is None or mine == theirs for theirs in stubs_say):
        return True
    if len(stubs_say) < 2:
        return False
    longest = max((theirs or [] for theirs in stubs_say), key=len)
    return mine is None or [name for name, _ in mine] == [name for name, _ in longest]


def test_the_stand_in_offers_only_what_the_published_stubs_have_with_the_same_signatures(
    stubs: Stubs, nuke: Any
) -> None:
    assert differences(stubs, nuke) == []


def test_something_that_nuke_does_not_have_is_found_out(stubs: Stubs, nuke: Any, monkeypatch: Any) -> None:
    def invented(anything: int) -> None:
        """No such function."""

    def execute(node: Any) -> None:
        """The stubs have one with other parameters."""

    monkeypatch.setattr(nuke, "invented", invented, raising=False)
    monkeypatch.setattr(nuke, "execute", execute)
    monkeypatch.setattr(nuke.Node, "teleport", lambda self: None, raising=False)
    monkeypatch.setattr(nuke.Node, "fullName", lambda self, loud: "")
    monkeypatch.setattr(nuke, "__all__", [*nuke.__all__, "invented"])
    found = " ".join(differences(stubs, nuke))
    for one in ("invented", "execute", "teleport", "Node.fullName"):
        assert one in found


def test_the_code_for_nuke_uses_only_what_the_stand_in_or_the_stubs_have(stubs: Stubs) -> None:
    folder = Path(__file__).resolve().parents[2] / "nuke"
    known = set(stubs.functions) | set(stubs.classes) | stubs.values
    used = set()
    for path in sorted(folder.rglob("*.py")):
        used |= set(re.findall(r"(?<![.\w-])nuke\.([A-Za-z_]\w*)", _code_of(path)))
    assert used, "nothing was found to look at"
    assert used - known == set()


def _code_of(path: Path) -> str:
    return ast.unparse(ast.parse(path.read_text("utf-8")))


def test_the_code_for_nuke_is_python_3_9_and_imports_only_the_standard_library_and_nuke() -> None:
    folder = Path(__file__).resolve().parents[2] / "nuke"
    allowed = set(sys.stdlib_module_names) | {"nuke", "stm_nuke"}
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
        for one in ast.walk(tree):
            names = [alias.name for alias in one.names] if isinstance(one, ast.Import) else []
            if isinstance(one, ast.ImportFrom):
                names = [one.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
    assert not (folder / "__init__.py").exists()


def test_the_engine_never_imports_nuke_which_would_take_a_licence() -> None:
    repository = Path(__file__).resolve().parents[2]
    for folder in ("stm_plugin", "model"):
        for path in sorted((repository / folder).rglob("*.py")):
            for one in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in one.names] if isinstance(one, ast.Import) else []
                if isinstance(one, ast.ImportFrom) and one.level == 0:
                    names = [one.module or ""]
                assert not {name.split(".")[0] for name in names} & {"nuke", "stm_nuke"}, path


def test_nuke_starts_without_loading_more_of_the_plug_in_than_its_callbacks(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "nuke"
    code = (
        "import sys, nuke\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "import init\n"
        "print(sorted(name for name in sys.modules if name.startswith('stm_nuke')))\n"
        "print(sorted({one.node_class for some in nuke._host.listeners.values() for one in some}))\n"
        "print({'socket', 'subprocess', 'torch', 'numpy'} & set(sys.modules) - before)\n"
    ).replace("import sys, nuke\n", "import sys, nuke\nbefore = set(sys.modules)\n", 1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder.parent / "tests/hosts/nuke_stand_in")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, classes, heavy = done.stdout.splitlines()
    assert loaded == "['stm_nuke', 'stm_nuke.callbacks', 'stm_nuke.knobs']"
    assert classes == "['Group', 'Root', 'Write']", "a callback for every node is never asked for"
    assert heavy == "set()"
    assert done.stderr == ""
