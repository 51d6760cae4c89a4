"""Functions stay short enough to be read at once: at most 60 lines and 8 parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST_LINES = 60
MOST_PARAMETERS = 8
CODE = ("stm_plugin", "model", "nuke", "install.py")
COMMAND_LINE = "stm_plugin/cli"
"""Its functions declare options: one parameter for each, which typer shows to people."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _files(repository: Path) -> Iterator[Path]:
    for name in CODE:
        place = repository / name
        yield from sorted(place.rglob("*.py")) if place.is_dir() else (place,)


def _functions(tree: ast.Module) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def _parameters(function: Function) -> int:
    """The number of parameters, without `self` and `cls`, with `*args` and `**kwargs`."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if names[:1] in (["self"], ["cls"]):
        names.pop(0)
    return len(names) + (given.vararg is not None) + (given.kwarg is not None)


def _declares_a_command(function: Function) -> bool:
    """Whether a function's parameters are options of a command: their annotations name typer."""
    return any("typer." in ast.unparse(one.annotation) for one in function.args.args if one.annotation)


def _too_large(file: Path, name: str) -> list[str]:
    found = []
    for function in _functions(ast.parse(file.read_text("utf-8"))):
        where = f"{name}:{function.lineno} {function.name}"
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        in_command_line = name.startswith(COMMAND_LINE)
        if lines > MOST_LINES and not (in_command_line and _declares_a_command(function)):
            found.append(f"{where}: {lines} lines")
        if _parameters(function) > MOST_PARAMETERS and not in_command_line:
            found.append(f"{where}: {_parameters(function)} parameters")
    return found


def test_no_function_is_too_long_or_takes_too_much(repository: Path) -> None:
    files = list(_files(repository))
    assert len(files) > 200
    found = [words for file in files for words in _too_large(file, file.relative_to(repository).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def long():\n" + "    x = 1\n" * MOST_LINES, f"{MOST_LINES + 1} lines"),
        ("def f(a, b, c, d, *, e, f, g, h, i): ...", "9 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f, g, h, *i): ...", "9 parameters"),
    ],
)
def test_the_check_finds_what_is_too_large(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert [one.split(": ")[1] for one in _too_large(file, "model/a.py")] == [words]


@pytest.mark.parametrize(
    "text",
    [
        "def short():\n" + "    x = 1\n" * (MOST_LINES - 1),
        "class A:\n    def f(self, a, b, c, d, e, f, g, h): ...",
    ],
)
def test_the_check_lets_pass_what_is_at_the_limit(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    assert not _too_large(file, "model/a.py")
