"""The configuration of a site, a show and a user: TOML files in layers, each value with its line.

The layers, the later over the earlier: built-in defaults, the files of `STM_CONFIG` in their order, the
user's own file, the shot, the command line. A file may lock values (`locked = ["device"]`): then no later
layer changes them. `docs/studio.md` is the page for people.

What a layer says reaches a shot in one of three ways:

- Settings that decide about a shot's bytes are taken over when the shot is made, and kept in it. A layer that
  changes later changes no shot. `Configuration.news` says what has become different.
- Settings of the machine (device, budgets) change no byte. A shot follows the layers, unless one was chosen
  for that shot alone.
- A lock is asked each time: a shot that says something else is not computed and not exported, in words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from stm_plugin.errors import ConfigurationError, LicenceError, LockedError, SettingsError
from stm_plugin.settings import Settings, changed_settings, describe_settings, flat_settings

VARIABLE: Final = "STM_CONFIG"
"""Names the files of site and show, as PATH does folders; later ones count more."""
USER_VARIABLE: Final = "STM_USER_CONFIG"
"""Names the user's own file, where it is not the one in the user's configuration folder; empty: none."""
FOLDER_NAME: Final = "stm-for-nuke"
FILE_NAME: Final = "config.toml"

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class Option:
    """A value that a layer can say and that is no setting of a shot."""

    default: Any
    reason: str
    choices: tuple[str, ...] = ()


OPTIONS: Final[Mapping[str, Option]] = {
    "allowed_licences": Option(
        ("*",), "licences of weights that may be used; * and ? stand for any letters, capitals do not count"
    ),
    "cache_folder": Option(
        None, "the folder of shots without a chosen place; without it they are beside their mattes"
    ),
    "log_level": Option("info", "the least that is written into logs", get_args(LogLevel)),
    "log_format": Option("text", "json: one JSON object for each line of a log", get_args(LogFormat)),
}

_LOCKED: Final = "locked"
_PATHS: Final = frozenset({"weights", "finish.edge_weights", "ocio_config", "cache_folder"})
_SIZE = re.compile(r"(\d+)\s*([KMGT])iB", re.IGNORECASE)
_DEFAULTS: Final[Mapping[str, Any]] = flat_settings(Settings())
_MACHINE: Final = tuple(one.name for one in describe_settings() if one.part == "machine")
_PLACE_IN_ERROR = re.compile(r"\(at line (\d+), column \d+\)|\(at end of document\)")


@dataclass(frozen=True)
class Place:
    """A line of a configuration file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Value:
    """What the layers say of one name.

    Attributes:
        place: the line that says it; None for a built-in default.
        lock: the line that locks it, if one does.
    """

    name: str
    value: Any
    place: Place | None = None
    lock: Place | None = None

    @property
    def why_locked(self) -> str | None:
        """A sentence that names the lock of a value; None without a lock."""
        if self.lock is None:
            return None
        return f"The setting {self.name} is locked to {shown(self.value)} by {self.lock}."


@dataclass(frozen=True)
class Configuration:
    """What all layers say together.

    Attributes:
        values: by name, every setting and every option.
        files: those that were read, the strongest last.
    """

    values: Mapping[str, Value] = field(
        default_factory=lambda: {name: Value(name, value) for name, value in _builtin().items()}
    )
    files: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    @property
    def locked(self) -> dict[str, Value]:
        """The locked values by name."""
        return {name: one for name, one in self.values.items() if one.lock is not None}

    def settings(self) -> Settings:
        """The settings that a new shot has."""
        return changed_settings(Settings(), self._said(_DEFAULTS))

    def taken_over(self) -> dict[str, Any]:
        """What a new shot takes from the layers and keeps: values by name, without those of the machine."""
        return self._said(name for name in _DEFAULTS if name not in _MACHINE)

    def _said(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self[name] for name in names if self.values[name].place is not None}

    # ---- the machine's settings of a shot

    def machine_choices(self, settings: Settings) -> tuple[str, ...]:
        """The shot's settings of the machine that differ from the layers."""
        return tuple(name for name in _MACHINE if getattr(settings, name) != self[name])

    def on_this_machine(self, settings: Settings, chosen: Collection[str] | None) -> Settings:
        """The settings of a shot as they hold here.

        Args:
            chosen: settings of the machine that the shot does not leave to the layers; None for a shot of
                before this was kept: those that are not the built-in default.
        """
        if chosen is None:
            chosen = [name for name in _MACHINE if getattr(settings, name) != _DEFAULTS[name]]
        left = [name for name in _MACHINE if self.values[name].lock is not None or name not in chosen]
        changes = {name: self[name] for name in left if getattr(settings, name) != self[name]}
        return replace(settings, **changes) if changes else settings

    # ---- what is refused

    def check_change(self, before: Settings, after: Settings) -> None:
        """Ask whether settings may be changed.

        Raises:
            LockedError: a locked value would become another one.
        """
        old, new = flat_settings(before), flat_settings(after)
        for name, one in self.locked.items():
            if name in new and new[name] not in (old[name], one.value):
                hint = f"It cannot be {shown(new[name])}; ask whoever keeps that file."
                raise LockedError(one.why_locked or "", hint=hint)

    def check(self, settings: Settings) -> None:
        """Ask whether a shot with these settings may be computed and exported.

        Raises:
            LockedError: it has another value than a lock says.
        """
        values = flat_settings(settings)
        for name, one in self.locked.items():
            if name in values and not _fits(name, values[name], one.value):
                raise LockedError(
                    f"{one.why_locked} This shot has {shown(values[name])}.",
                    hint=f"`stm shot set SHOT {name}={shown(one.value)}` takes it over, and says what is "
                    "computed again.",
                )

    def check_licence(self, weights: str, licence: str) -> None:
        """Ask whether weights may be used.

        Args:
            weights: their name, for people.
            licence: as their file states it.

        Raises:
            LicenceError: no allowed licence fits.
        """
        allowed = self.values["allowed_licences"]
        if any(fnmatchcase(licence.lower(), pattern.lower()) for pattern in allowed.value):
            return
        names = ", ".join(allowed.value) or "none"
        raise LicenceError(
            f"The weights {weights} may not be used: their licence is {licence!r}. "
            f"Allowed licences: {names}.",
            path=str(allowed.place),
            hint="Choose other weights (`stm weights list`), or ask whoever keeps that file.",
        )

    # ---- what is said

    def news(self, settings: Settings, taken_over: Mapping[str, Any]) -> list[str]:
        """Sentences on the shot's settings that the layers have changed since it was made.

        Args:
            taken_over: what the shot took from the layers (`taken_over` at that time).
        """
        values = flat_settings(settings)
        sentences = []
        for name in _DEFAULTS:
            one = self.values[name]
            if name in _MACHINE or one.value == taken_over.get(name, _DEFAULTS[name]):
                continue
            if _fits(name, values[name], one.value):
                continue
            said = f"is {shown(one.value)} by {one.place or 'default'}"
            sentences.append(
                f"For new shots {name} {said} now; this one keeps {shown(values[name])} "
                f"(`stm shot set SHOT {name}={shown(one.value)}` takes it over)."
            )
        return sentences


def _fits(name: str, kept: Any, said: Any) -> bool:
    """Whether a shot's value is what a layer says. A precision of `auto` is any: the shot keeps what it
    chose."""
    return bool(kept == said) or (name == "precision" and said == "auto")


def shown(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(shown, value)) if isinstance(value, list | tuple) else str(value)


# ---- the files ---------------------------------------------------------------------------------


def configuration() -> Configuration:
    """What all layers say now: the files are read again when they have changed.

    Raises:
        ConfigurationError: a file is missing or has an invalid value; file and line are named.
    """
    return _read_all(tuple(_states(configuration_files())))


def configuration_files() -> list[Path]:
    """The files in the order in which they count; the last is the user's, if there is one.

    Raises:
        ConfigurationError: `STM_CONFIG` names a file that does not exist, or not by its whole path.
    """
    files = []
    for text in os.environ.get(VARIABLE, "").split(os.pathsep):
        if not text.strip():
            continue
        path = Path(text.strip()).expanduser()
        if not path.is_absolute():
            raise ConfigurationError(f"{VARIABLE} must name files by their whole path.", path=text)
        if not path.is_file():
            raise ConfigurationError(
                f"This file, which {VARIABLE} names, does not exist.", path=path, hint="Correct the variable."
            )
        files.append(path)
    own = user_file()
    return [*files, own] if own is not None and own.is_file() else files


def user_file() -> Path | None:
    """The user's own file; it may not exist."""
    given = os.environ.get(USER_VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given else None
    from platformdirs import user_config_path

    return user_config_path(FOLDER_NAME, appauthor=False) / FILE_NAME


def _states(files: Iterable[Path]) -> Iterator[tuple[str, int, int]]:
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigurationError(f"The file cannot be read: {error.strerror}.", path=path) from error
        yield str(path), status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _read_all(states: tuple[tuple[str, int, int], ...]) -> Configuration:
    files = [path for path, _, _ in states]
    return read_layers(Path(path) for path in files)


def read_layers(files: Iterable[Path]) -> Configuration:
    """Read files, each over those before it.

    Raises:
        ConfigurationError: a name, a type or a range is wrong, or a locked value is changed.
    """
    values = {name: Value(name, value) for name, value in _builtin().items()}
    read: list[str] = []
    for path in files:
        layer = _Layer(path)
        read.append(str(path))
        for name, value in layer.values():
            place, before = layer.place(name), values[name]
            if before.lock is not None and before.value != value:
                raise ConfigurationError(
                    f"{before.why_locked} It cannot be {shown(value)} here.",
                    path=str(place),
                    hint="Take this line out.",
                )
            values[name] = Value(name, value, place, before.lock)
        for name in layer.locked():
            before = values[name]
            values[name] = Value(name, before.value, before.place, before.lock or layer.place(_LOCKED))
    return Configuration(values, tuple(read))


def _builtin() -> dict[str, Any]:
    return {**_DEFAULTS, **{name: one.default for name, one in OPTIONS.items()}}


class _Layer:
    """One file: what it says, checked, with the line of each name."""

    def __init__(self, path: Path) -> None:
        import tomllib  # help and completion do not wait for it

        self.path = path
        try:
            self._text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The file cannot be read: {error}.", path=path) from error
        try:
            table = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            found = _PLACE_IN_ERROR.search(str(error))
            line = int(found[1]) if found and found[1] else len(self._text.splitlines())
            what = _PLACE_IN_ERROR.sub("", str(error)).strip()
            place = str(Place(str(path), line))
            raise ConfigurationError(f"This is not TOML: {what}.", path=place) from error
        finish = table.pop("finish", {})
        if not isinstance(finish, dict):
            raise self._error("finish", "finish is a table, [finish].")
        self._table = {**table, **{f"finish.{name}": value for name, value in finish.items()}}
        for name in self._table:
            if name != _LOCKED:
                self._check_name(name, name)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each name with its value as the engine takes it."""
        for name, value in self._table.items():
            if name in OPTIONS:
                yield name, self._option(name, value)
            elif name != _LOCKED:
                yield name, self._setting(name, value)

    def locked(self) -> Sequence[str]:
        """The names that this file locks."""
        names = self._table.get(_LOCKED, [])
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise self._error(_LOCKED, 'locked is a list of names, for example ["device", "finish.edges"].')
        for name in names:
            self._check_name(name, _LOCKED)
        return names

    def place(self, name: str) -> Place:
        """The line that says a name."""
        return Place(str(self.path), line_of(self._text, name))

    def _check_name(self, name: str, where: str) -> None:
        known = _builtin()
        if name in known:
            return
        import difflib

        close = difflib.get_close_matches(name, known, 1)
        hint = f"Is {close[0]} meant?" if close else "`stm config` lists the names."
        raise self._error(where, f"There is no setting {name!r}.", hint)

    def _setting(self, name: str, value: Any) -> Any:
        default = _DEFAULTS[name]
        if isinstance(value, str) and name.endswith("_budget"):
            value = self._bytes(name, value)
        if isinstance(value, str) and name in _PATHS:
            value = self._path(name, value)
        if name == "adapt" and value is True:
            hint = "`stm adapt SHOT` switches it on."
            raise self._error(name, "adapt cannot be true for every shot.", hint)
        wanted = _kind(default)
        found = _kind(value)
        fits = found == wanted or (wanted == "a number" and found == "a whole number") or name == "region"
        if not fits:
            raise self._error(name, f"The setting {name} is {found}, {shown(value)}; it must be {wanted}.")
        try:
            return flat_settings(changed_settings(Settings(), {name: value}))[name]
        except SettingsError as error:
            raise self._error(name, error.what, error.hint) from error

    def _option(self, name: str, value: Any) -> Any:
        option = OPTIONS[name]
        if name == "allowed_licences":
            if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
                raise self._error(name, "allowed_licences is a list of texts.")
            return tuple(value)
        if not isinstance(value, str):
            raise self._error(name, f"{name} is {_kind(value)}; it is a text.")
        if option.choices and value not in option.choices:
            raise self._error(name, f"{name} is {value!r}.", f"Use one of {', '.join(option.choices)}.")
        return self._path(name, value) if name in _PATHS else value

    def _bytes(self, name: str, text: str) -> int:
        found = _SIZE.fullmatch(text.strip())
        if found is None:
            raise self._error(name, f"{name} is {text!r}.", 'Give bytes, or a text such as "8 GiB".')
        return int(found[1]) << (10 * ("KMGT".index(found[2].upper()) + 1))

    def _path(self, name: str, text: str) -> str:
        """A file or folder, seen from the folder of this file; `~` and `$VARIABLES` are replaced."""
        path = os.path.expanduser(os.path.expandvars(text))
        is_name = name in ("weights", "finish.edge_weights") and not re.search(r"[/\\]|\.", path)
        if is_name or path.startswith("ocio://"):
            return path
        if "$" in path:
            raise self._error(name, f"{name} names a variable that is not set: {text}.")
        return os.path.normpath(self.path.absolute().parent / path)

    def _error(self, name: str, what: str, hint: str | None = None) -> ConfigurationError:
        return ConfigurationError(what, path=str(self.place(name)), hint=hint)


def line_of(text: str, name: str) -> int:
    """The line of a TOML document, from 1, on which a name is given its value.

    Args:
        text: valid TOML.
        name: of a value, in its table: `device`, `finish.edges`.
    """
    import tomllib

    *tables, last = name.split(".")
    lines = text.splitlines()
    asked = re.compile(rf"\s*(?:[\w.\"' -]+\.\s*)?[\"']?{re.escape(last)}[\"']?\s*=")
    for number, line in enumerate(lines):
        if not asked.match(line):
            continue
        try:  # a line inside of a text or a list begins no statement
            before = tomllib.loads("\n".join(lines[:number]))
            upto = _first_valid(lines, number)
        except tomllib.TOMLDecodeError:
            continue
        if not _has(before, name) and _has(upto, name):
            return number + 1
    return line_of(text, tables[0]) if tables else 1


def _first_valid(lines: Sequence[str], start: int) -> Mapping[str, Any]:
    """The shortest beginning of a document that holds the whole statement of a line."""
    import tomllib

    for end in range(start + 1, len(lines) + 1):
        try:
            return tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
    return {}


def _has(table: Mapping[str, Any], name: str) -> bool:
    first, dot, rest = name.partition(".")
    if not dot:
        return first in table
    inner = table.get(first)
    return isinstance(inner, Mapping) and _has(inner, rest)


def _kind(value: Any) -> str:
    """The kind of a value, for people."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    return "a text" if value is None else kinds.get(type(value), "a text")
