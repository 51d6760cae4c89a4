"""A journal: one JSON object per line, appended; for each key the last line counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import store_error, write_atomically

Kinds = type | tuple[type, ...]


class Journal:
    """A file with one JSON object per line; for each key the last line counts.

    A line that a killed process left incomplete is skipped. Only a writer makes a long file shorter: a reader
    in another process could lose the line that is written meanwhile.

    Args:
        path: the file; need not exist.
        key: the name of the field that identifies an object: a number or a text.
        fields: the other fields that an object must have, and their types; other lines are skipped.
    """

    def __init__(self, path: Path, key: str, fields: Mapping[str, Kinds] | None = None) -> None:
        self._path, self._key = path, key
        self._fields = {key: (int, str), **(fields or {})}
        self._mutex = threading.RLock()
        self._is_long = False

    def load(self) -> dict[Any, dict[str, Any]]:
        """The last object of every key."""
        entries: dict[Any, dict[str, Any]] = {}
        count = 0
        for entry in self._lines():
            entries[entry[self._key]] = entry
            count += 1
        self._is_long = count > 64 and count > 4 * len(entries)
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Add one object. A file that was found to be long is first rewritten without older lines.

        Raises:
            StoreError: the disk is full or cannot be written.
        """
        line = "\n" + json.dumps(entry, separators=(",", ":")) + "\n"  # ends an incomplete line
        with self._mutex:
            if self._is_long:
                self._shorten()
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as stream:
                    stream.write(line.encode())
            except OSError as error:
                raise store_error(error, self._path) from error

    def _shorten(self) -> None:
        """Rewrite the file without lines that no longer count."""
        entries = self.load().values()
        self._is_long = False
        lines = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
        with suppress(StoreError):  # the longer journal holds the same
            write_atomically(self._path, lines.encode())

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
