"""A second store that begins with everything another one has: keys, masks, results and pushed frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import store_error, write_atomically
from stm_plugin.store.store import with_suffix

_DESCRIPTION: Final = "shot.json"
_SHARED: Final = ("keys/*.mask", "mattes/??/*.prob", "adapted/*.safetensors", "plate/*.frame")
"""Files that are replaced as a whole and never written in place: both stores may have the same one."""
_OWN: Final = ("keys/*", "mattes/*.jsonl", "plate/*.jsonl", "plate.jsonl")
"""Journals, which are appended to in place, and the artist's files: each store has its own."""
_PUSHED: Final = ".frame"
"""Not copied where it cannot be shared: it is large, and the host pushes it again."""


def copy_store(source: str | Path, target: str | Path) -> None:
    """Make the store `target` with what `source` has. `source` is only read, and may be in use.

    Results are shared by hard links where the disk has them, so that a copy costs no room and no time.
    Features that can be computed again, and the list of exported files, are left out.

    Raises:
        StoreError: there is a shot at `target` already, none at `source`, or the disk does not take it.
    """
    origin, place = with_suffix(source), with_suffix(target)
    if not (origin / _DESCRIPTION).exists():
        raise StoreError("There is no shot here.", path=origin, hint="Nothing can be taken over from it.")
    if (place / _DESCRIPTION).exists():
        raise StoreError("There is a shot here already.", path=place, hint="Choose another name.")
    try:
        for name in ("keys", "mattes", "memory"):
            (place / name).mkdir(parents=True, exist_ok=True)
        for path in _files(origin, _SHARED):
            _share(path, place / path.relative_to(origin))
        for path in _files(origin, _OWN):
            _copy(path, place / path.relative_to(origin))
        _copy(origin / _DESCRIPTION, place / _DESCRIPTION)  # the last one: now it is a store
    except OSError as error:
        raise store_error(error, place) from error


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        yield from (one for one in found if one.is_file() and not one.is_symlink() and one.name[0] != ".")


def _share(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):  # what was removed meanwhile is computed again
        return
    except OSError:  # another disk, or one without links
        if source.suffix != _PUSHED:
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        write_atomically(target, source.read_bytes(), durable=False)
