"""Who made a picture: whether STM wrote it, and it was not changed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import OpenImageIO as oiio

from stm_plugin.errors import MatteError
from stm_plugin.files.outputs import Row, WrittenList
from stm_plugin.images.matte import ADDRESS_ATTRIBUTE, PIXELS_ATTRIBUTE, read_matte
from stm_plugin.images.picture_file import open_image
from stm_plugin.images.sequence import FrameSequence

MAKER = "STM for Nuke"
MAKER_ATTRIBUTE = "Software"
"""The attribute of PNG and JPEG files that names the program that wrote them."""


@dataclass(frozen=True)
class FoundMatte:
    """An existing file where a matte is to be written.

    Attributes:
        is_ours: STM wrote it, and its pixels were not changed. A truncated file counts as ours, and so does a
            file of an earlier version, which has no hash of its pixels.
        address: of its ingredients; empty where the file is truncated or was changed.
    """

    is_ours: bool
    address: str = ""


def inspect_matte(path: Path, frame: int | None = None) -> FoundMatte:
    """Find out whether STM wrote a file. The whole file is read."""
    header = _header(path)
    address = "" if header is None else header.get_string_attribute(ADDRESS_ATTRIBUTE)
    if header is None or not address:
        return FoundMatte(is_ours=False)
    try:
        matte = read_matte(path, frame=frame)
    except MatteError:
        return FoundMatte(is_ours=True)
    if matte.is_as_written:
        return FoundMatte(is_ours=True, address=address)
    return FoundMatte(is_ours=not header.get_string_attribute(PIXELS_ATTRIBUTE))


def our_pictures(paths: Iterable[Path]) -> set[Path]:
    """The overlays and movies that STM made and that were not changed since.

    What a file says of itself does not count: a program that a person paints in keeps it.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    return {one for folder, files in by_folder.items() for one in WrittenList(folder).has(files)}


def row_of(sequence: FrameSequence) -> Row | None:
    """The file names of a sequence's frames; None for a movie and for a still."""
    if sequence.movie is not None or sequence.padding is None:
        return None
    return Row(sequence.folder, sequence.head, sequence.tail)


def _header(path: Path) -> oiio.ImageSpec | None:
    image = open_image(path)
    if image is None:
        oiio.geterror()  # clears the error, which would be reported with the next file
        return None
    try:
        return oiio.ImageSpec(image.spec())
    finally:
        image.close()
