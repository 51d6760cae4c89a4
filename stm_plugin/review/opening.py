"""Opening a shot from a shot store, or from a plate, for which a store is made."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.images.sequence import parse_sequence
from stm_plugin.shot.propagate import default_place
from stm_plugin.shot.shot import Shot
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import SUFFIX, with_suffix


def open_for_review(text: str, new: Path | None = None) -> Shot:
    """Open a shot store, or make one for a plate.

    Args:
        text: the store's folder, with or without its suffix; else a plate in any form that `stm propagate`
            accepts.
        new: the folder of a plate's store; beside the plate if None, or in the configuration's
            `cache_folder`. An existing store is opened.

    Raises:
        StoreError: the store cannot be opened or made.
        PlateError: it is neither a store nor a plate.
    """
    folder = with_suffix(Path(text).expanduser())
    if new is None and (folder / "shot.json").is_file():
        return Shot.open(folder)
    plate = str(Path(text).expanduser().absolute())
    sequence = parse_sequence(plate)
    stem = sequence.movie.stem if sequence.movie is not None else sequence.head.rstrip("._-") or "shot"
    store = default_place(sequence.folder / f"{stem}{SUFFIX}") if new is None else with_suffix(new)
    if (store / "shot.json").is_file():
        return Shot.open(store)
    return Shot.create(store, PlateDescription("files", plate))
