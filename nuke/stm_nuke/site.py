"""What the configuration of a site, a show and a user says of the place of caches.

A node needs its place before there is an engine that could be asked. So the one value `cache_folder` is read
here, from the files that `stm_plugin/configuration.py` reads. What is wrong in them is the engine's to say.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "STM_CONFIG"
USER_VARIABLE = "STM_USER_CONFIG"

_NAME = "cache_folder"
_LINE = re.compile(rf"""\s*["']?{_NAME}["']?\s*=\s*(?:'([^']*)'|"([^"\\]*)")\s*(?:#.*)?""")


def cache_folder() -> str:
    """The folder for caches that nobody places; empty where no file says one. The last file counts."""
    found = ""
    for file in _files():
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        found = _path(file, _value(text)) or found
    return found


def _files() -> Iterator[Path]:
    for text in os.environ.get(VARIABLE, "").split(os.pathsep):
        if text.strip():
            yield Path(text.strip()).expanduser()
    given = os.environ.get(USER_VARIABLE)
    if given is None:
        yield _user_folder() / "stm-for-nuke" / "config.toml"
    elif given:
        yield Path(given).expanduser()


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _value(text: str) -> str:
    """The value as it is written: a separate line before the first table. Python 3.9 reads no TOML."""
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            break
        match = _LINE.fullmatch(line)
        if match:
            return match[1] or match[2] or ""
    return ""


def _path(file: Path, text: str) -> str:
    """Seen from the folder of its file; `~` and `$VARIABLES` are replaced. Empty where one is not set."""
    path = os.path.expanduser(os.path.expandvars(text))
    if not path or "$" in path:
        return ""
    return Path(os.path.normpath(file.absolute().parent / path)).as_posix()
