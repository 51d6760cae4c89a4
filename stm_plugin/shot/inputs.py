"""The input files of a shot, which no output may overwrite."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.weights_file import WeightsFileError, find_edges, find_weights
from stm_plugin.errors import StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.files.outputs import Given, Row, files_of
from stm_plugin.images.plate import Plate, PlateSource
from stm_plugin.images.provenance import row_of
from stm_plugin.settings import Settings

_SOURCES = "sources.jsonl"


@dataclass(frozen=True)
class Inputs:
    """The input files of a shot.

    Attributes:
        given: each file: plate frames, masks, weights, colour configuration.
        rows: the patterns of sequences among them.
    """

    given: tuple[Given, ...]
    rows: tuple[tuple[str, Row], ...] = ()


def inputs_of(
    plate: PlateSource, settings: Settings, folder: Path, masks: Mapping[int, Path] | None = None
) -> Inputs:
    """The inputs of a shot.

    Args:
        folder: of the shot; the masks that were given to it before are read there.
        masks: files that will become keys, by frame.
    """
    given: list[Given] = []
    rows: list[tuple[str, Row]] = []
    if isinstance(plate, Plate):
        sequence = plate.sequence
        row = row_of(sequence)
        paths = (
            [sequence.path(frame) for frame in sequence.frames]
            if sequence.movie is None
            else [sequence.movie]
        )
        if row is not None:
            rows.append(("the plate", row))
            paths += files_of(row)  # those outside the range too
        given += [Given("the plate", path) for path in dict.fromkeys(paths)]
    given += [Given(f"the mask of the key on {frame}", path) for frame, path in (masks or {}).items()]
    given += [Given(f"the mask of the key on {frame}", path) for path, frame in _sources(folder).items()]
    with suppress(WeightsFileError):  # loading them reports the error
        given.append(Given("the weights", find_weights(settings.weights)))
    with suppress(WeightsFileError):
        given.append(Given("the weights of the edges", find_edges(settings.finish.edge_weights)))
    config = settings.ocio_config or os.environ.get("OCIO", "").strip()
    if config and not config.startswith("ocio://"):
        given.append(Given("the colour config", Path(config).expanduser()))
    return Inputs(tuple(given), tuple(rows))


def record_source(folder: Path, frame: int, path: Path) -> None:
    """Record which file a key's mask was read from."""
    with suppress(StoreError):  # the disk is full: the next step reports it
        _journal(folder).append({"file": str(path.expanduser().absolute()), "frame": frame})


def _sources(folder: Path) -> dict[Path, int]:
    found: dict[Path, int] = {}
    with suppress(StoreError):
        for file, entry in _journal(folder).load().items():
            if isinstance(file, str) and isinstance(entry.get("frame"), int):
                found[Path(file)] = entry["frame"]
    return found


def _journal(folder: Path) -> Journal:
    return Journal(folder / "keys" / _SOURCES, "file")
