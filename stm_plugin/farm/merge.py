"""Merges results of the same shot that were computed in other folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stm_plugin.errors import StoreError
from stm_plugin.files.whole import DamagedFileError, read_sealed, write_sealed
from stm_plugin.store.store import ShotStore, with_suffix


@dataclass(frozen=True)
class Merged:
    """The results copied from one folder.

    Attributes:
        copied, known: numbers of new results, and of results that existed already.
        damaged: damaged files, which were left out.
    """

    folder: Path
    copied: int
    known: int
    damaged: tuple[Path, ...]


def merge(shot: str | Path, sources: list[Path], *, wait: float | None = 0.0) -> list[Merged]:
    """Copy the undamaged results from other folders of a shot. Nothing else of it changes.

    A result's name is its address, so it cannot replace another one; existing undamaged results are kept.

    Raises:
        StoreError: a folder holds no shot, the same one, or one without a key in common.
        StoreBusyError: another process holds the shot.
    """
    target = ShotStore.open(with_suffix(shot))
    opened = [ShotStore.open(with_suffix(one)) for one in sources]
    for one in opened:
        _check_same(target, one)
    target.lock.acquire(wait)
    try:
        return [_merged(target, one) for one in opened]
    finally:
        target.lock.release()


def _merged(target: ShotStore, source: ShotStore) -> Merged:
    copied = known = 0
    damaged: list[Path] = []
    for path in sorted((source.folder / "mattes").glob("??/*.prob")):
        place = target.folder / "mattes" / path.parent.name / path.name
        if _whole(place) is not None:
            known += 1
            continue
        body = _whole(path)
        if body is None:
            damaged.append(path)
            continue
        write_sealed(place, body)
        copied += 1
    return Merged(source.folder, copied, known, tuple(damaged))


def _whole(path: Path) -> bytes | None:
    """The body of a result; None where it is missing or damaged."""
    try:
        return read_sealed(path)
    except DamagedFileError:
        return None


def _check_same(target: ShotStore, source: ShotStore) -> None:
    if target.folder.resolve() == source.folder.resolve():
        raise StoreError("A shot cannot be merged with itself.", path=source.folder, hint="Name others.")

    def masks(store: ShotStore) -> set[tuple[int, str]]:
        return {(key.frame, mask.hash) for key in store.description().keys for mask in key.masks.values()}

    if masks(target).isdisjoint(masks(source)):
        raise StoreError(
            "This is another shot: it has no key in common.",
            path=source.folder,
            hint=f"Merge folders that were copied from {target.folder}.",
        )
