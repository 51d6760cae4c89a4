"""Frees the disk space of caches that no script uses any more:

    python -m stm_nuke.prune /shots/010/comp            lists them
    python -m stm_nuke.prune /shots/010/comp --delete   removes their mattes and shot stores

The folder is the one with the scripts; the caches are in `stm` in it. A cache is in use when a script, or an
autosave, in that folder names it. The masks of keyframes are never removed: they are the artist's. No Nuke is
needed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from stm_nuke.errors import CacheError, StmNodeError

_CACHE = re.compile(r"STM_([0-9a-f]+)")
_SCRIPTS = ("*.nk", "*.nk~", "*.nk.autosave", "*.autosave", "*.nk[0-9]*")
_SEALED = ("*.nkind", "*.nknc")
"""Scripts in a format that only Nuke can read."""


def unused_caches(folder: Path) -> list[Path]:
    """The caches beside the scripts of a folder that none of them names.

    Raises:
        CacheError: a script cannot be read, so its caches are unknown.
    """
    sealed = sorted(one for pattern in _SEALED for one in folder.glob(pattern))
    if sealed:
        raise CacheError(
            f"What {sealed[0]} uses cannot be read.", hint="Only Nuke itself reads scripts of this edition."
        )
    used: set[str] = set()
    for script in {one for pattern in _SCRIPTS for one in folder.glob(pattern)}:
        try:
            used |= set(_CACHE.findall(script.read_text("utf-8", "replace")))
        except OSError as error:
            raise CacheError(f"{script} cannot be read: {error.strerror}.") from error
    found = []
    for cache in sorted((folder / "stm").glob("STM_*")):
        match = _CACHE.fullmatch(cache.name)
        if match is not None and match[1] not in used and cache.is_dir():
            found.append(cache)
    return found


def empty(cache: Path) -> int:
    """Remove everything but the masks of keyframes; returns the freed bytes."""
    size = size_of(cache)
    for part in cache.iterdir():
        if part.is_dir() and part.name != "keys":
            shutil.rmtree(part)
        elif part.is_file():
            part.unlink()
    return size


def size_of(cache: Path) -> int:
    """The bytes of a cache without its keyframes. A file with other links counts as 0."""
    facts = [one.stat() for one in cache.rglob("*") if one.is_file() and one.parent.name != "keys"]
    return sum(one.st_size for one in facts if one.st_nlink == 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m stm_nuke.prune", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder with the scripts")
    parser.add_argument("--delete", action="store_true", help="remove them; without it they are only listed")
    options = parser.parse_args(arguments)
    try:
        found = unused_caches(options.folder)
    except StmNodeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    for cache in found:
        size = empty(cache) if options.delete else size_of(cache)
        print(f"{'emptied' if options.delete else 'unused'}  {size / 1e6:.1f} MB  {cache}")
    if not found:
        print("No cache is unused.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
