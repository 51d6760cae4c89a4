"""Words of a script by Tcl's rules: bare, in quotes, in braces, in brackets."""

from __future__ import annotations

import os
import re

_BARE = re.compile(r"[^\s\"{}\[\]$\\;#]+")
_ESCAPES = {
    "\n": "\\n",
    "\t": "\\t",
    '"': '\\"',
    "\\": "\\\\",
    "[": "\\[",
    "]": "\\]",
    "$": "\\$",
    "{": "\\{",
    "}": "\\}",
}
_UNESCAPES = {"n": "\n", "t": "\t"}


def quote(text: str) -> str:
    """`text` as one word."""
    if _BARE.fullmatch(text):
        return text
    return '"' + "".join(_ESCAPES.get(letter, letter) for letter in text) + '"'


def words_of(text: str) -> list[str]:
    """The words of one command, without their quotes or braces."""
    return [word for command in commands_of(text) for word in command]


def commands_of(text: str) -> list[list[str]]:
    """Commands (separated by lines or semicolons) as lists of words. ValueError if a brace stays open."""
    commands: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        letter = text[at]
        if letter in "\n;":
            commands.append([])
            at += 1
        elif letter.isspace():
            at += 1
        elif letter == "#" and not commands[-1]:
            at = (text + "\n").index("\n", at)
        else:
            word, at = _word(text, at)
            commands[-1].append(word)
    return [command for command in commands if command]


def _word(text: str, at: int) -> tuple[str, int]:
    if text[at] == '"':
        return _quoted(text, at + 1)
    if text[at] == "{":
        end = _closing(text, at, "{", "}")
        return text[at + 1 : end], end + 1
    if text[at] == "[":
        end = _closing(text, at, "[", "]")
        return text[at : end + 1], end + 1
    end = at
    while end < len(text) and not text[end].isspace() and text[end] != ";":
        end += 1
    return text[at:end], end


def _quoted(text: str, at: int) -> tuple[str, int]:
    word = ""
    while text[at] != '"':
        if text[at] == "\\":
            at += 1
            word += _UNESCAPES.get(text[at], text[at])
        else:
            word += text[at]
        at += 1
    return word, at + 1


def _closing(text: str, at: int, opening: str, closing: str) -> int:
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == '"' and opening == "{":
            at = _quoted(text, at + 1)[1] - 1
        elif text[at] == opening:
            depth += 1
        elif text[at] == closing:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise ValueError(f"a {opening} stays open")


_ENVIRONMENT = re.compile(r"\[getenv (\w+)\]")
_SCRIPT_FOLDER = "[file dirname [value root.name]]"


def without_tcl(text: str) -> str:
    """A file name with its TCL evaluated: the two commands that artists use most."""
    if _SCRIPT_FOLDER in text:
        from ._host import host

        assert host.root is not None
        text = text.replace(_SCRIPT_FOLDER, os.path.dirname(host.root.name()))
    return _ENVIRONMENT.sub(lambda found: os.environ.get(found[1], ""), text)
