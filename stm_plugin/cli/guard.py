"""The guard of outputs for commands without a shot: tables, label pictures, weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stm_plugin.errors import OutputError
from stm_plugin.files.lock import check_wait
from stm_plugin.files.outputs import Given, check_outputs

if TYPE_CHECKING:  # heavy modules are imported in the functions
    from model.data.davis import VideoSequence


def _waiting(seconds: float) -> float:
    """SettingsError for an invalid time."""
    check_wait(seconds)
    return seconds


Wait = Annotated[
    float,
    typer.Option(help="Seconds to wait for another process that holds the shot.", callback=_waiting),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that STM did not make.")]


def check_single(
    files: Iterable[Path], given: Iterable[Given], overwrite: bool, folders: Iterable[Given] = ()
) -> None:
    """Check outputs that are valuable even if STM made them: replacing any of them needs `--overwrite`.

    Raises:
        OutputError: one exists already, is an input, or lies inside one of the `folders`, which hold inputs.
    """
    wanted = [(None, path) for path in files]
    check_outputs(wanted, given, folders=folders, overwrite=overwrite, is_ours=lambda _, path: False)


def check_new(folder: Path) -> None:
    """Check that a folder does not exist or is empty, so that what is unpacked there replaces nothing.

    Raises:
        OutputError: it holds files.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError("The folder is not empty.", path=folder, hint="Give a new folder.")


def folders_of(what: str, *paths: Path | str) -> list[Given]:
    """Folders of inputs. A run or results that STM made are not among them: they may get further files."""
    return [Given(what, Path(path)) for path in paths]


def given_of(sequences: Iterable[VideoSequence], *others: tuple[str, Path | None]) -> list[Given]:
    """The files of a data set, and other inputs by name (a folder stands for all files in it)."""
    given = [
        Given(what, path)
        for sequence in sequences
        for what, paths in (("a picture", sequence.pictures), ("an annotation", sequence.annotations))
        for path in paths.values()
    ]
    for what, path in others:
        if path is not None and path.is_dir():
            given += [Given(what, one) for one in path.rglob("*") if one.is_file()]
        elif path is not None:
            given.append(Given(what, path))
    return given
