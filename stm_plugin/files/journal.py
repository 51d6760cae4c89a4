"""A journal: one JSON object per line, appended; the last line of a key counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import store_error, write_atomically

Kinds = type | tuple[type, ...]


class Journal:
    """A file of one JSON object per line, the last of a key counts; a line torn by a kill is passed over.

    Args:
        path: the file; need not exist.
        key: the name of the entry that tells objects apart: a number or a text.
        fields: what else an entry must have, and of which types; a line that makes no sense is passed over.
    """

    def __init__(self, path: Path, key: str, fields: Mapping[str, Kinds] | None = None) -> None:
        self._path, self._key = path, key
        self._fields = {key: (int, str), **(fields or {})}

    def load(self) -> dict[Any, dict[str, Any]]:
        """The last object of every key. Rewrites the file where it has grown long and may be written."""
        entries: dict[Any, dict[str, Any]] = {}
        count = 0
        for entry in self._lines():
            entries[entry[self._key]] = entry
            count += 1
        if count > 64 and count > 4 * len(entries):
            lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries.values())
            with suppress(StoreError):  # a longer journal says the same
                write_atomically(self._path, lines.encode())
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Add one object. StoreError where the disk does not take it."""
        line = "\n" + json.dumps(entry, separators=(",", ":")) + "\n"  # ends a torn line, if there is one
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                stream.write(line.encode())
        except OSError as error:
            raise store_error(error, self._path) from error

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            text = self._path.read_text(errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise store_error(error, self._path) from error
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and all(
                name in entry and isinstance(entry[name], kinds) for name, kinds in self._fields.items()
            ):
                yield entry
