"""What is said, once, before weights are used that are for non-commercial use only."""

from __future__ import annotations

import contextlib
from typing import Final

from model.weights_file import (
    PUBLISHED_LICENCE,
    Manifest,
    WeightsFileError,
    find_weights,
    read_manifest,
    shipped_weights,
)
from stm_plugin.logs import log_folder

NOTED: Final = "licences-noted.txt"
"""In the folder of the logs: the sha256 of each weights file of which people were told, one a line."""


def note_of_licence(weights: str) -> str | None:
    """The note on these weights, if they are for non-commercial use only and it was not given before.

    A user without a home, who has no folder for logs, reads it each time.

    Args:
        weights: a shipped name or a file; one that cannot be read has no note, as its run names the error.
    """
    try:
        manifest = _quick_manifest(weights)
    except WeightsFileError:
        return None
    if manifest.use != "non-commercial only" or not _is_first(manifest):
        return None
    return f"{manifest.name}: {manifest.licence}. {_others()}"


def _quick_manifest(weights: str) -> Manifest:
    """The manifest; of a released `.pth` what is known without reading its tensors, which takes seconds."""
    path = find_weights(weights)
    if path.suffix in (".pth", ".pt"):
        return Manifest(
            path.stem, "stm-r50", PUBLISHED_LICENCE, sha256=f"released:{path.name}".replace(" ", "_")
        )
    return read_manifest(path)


def _others() -> str:
    """How to choose weights that may be used on a show."""
    free = [path.stem for path in shipped_weights() if read_manifest(path).use == "commercial use allowed"]
    if free:
        return f"For commercial use choose --weights {free[0]}, or the same in the configuration."
    return (
        "For commercial use train your own (docs/learning.md) and choose them with --weights FILE, "
        "or the same in the configuration."
    )


def _is_first(manifest: Manifest) -> bool:
    """Whether there was no note before; it is remembered from now on."""
    folder = log_folder()
    file = folder / NOTED
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file.exists() and manifest.sha256 in file.read_text(encoding="utf-8").split():
            return False
        if folder.is_absolute():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"{manifest.sha256}\n")
    return True
