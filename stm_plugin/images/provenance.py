"""Who made a picture: whether STM did, and nobody has changed it since."""

from __future__ import annotations

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
"""Where PNG and JPEG files say what made them."""


@dataclass(frozen=True)
class FoundMatte:
    """A file that lies where a matte is to be written.

    Attributes:
        is_ours: STM wrote it, and nobody has changed its pixels. A truncated one counts as ours, and so does
            one of an earlier version, which does not know its pixels.
        address: what it was made from; empty where it is not whole, or not as it was written.
    """

    is_ours: bool
    address: str = ""


def look_at_matte(path: Path, frame: int | None = None) -> FoundMatte:
    """Find out whose a file is; it is read as a whole."""
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


def is_our_picture(path: Path) -> bool:
    """Whether STM made this file to be looked at: a PNG or JPEG that says so, or one in its folder's list."""
    header = _header(path)
    if header is not None and header.get_string_attribute(MAKER_ATTRIBUTE) == MAKER:
        return True
    return path in WrittenList(path.parent).has([path])


def row_of(sequence: FrameSequence) -> Row | None:
    """The names that the frames of a sequence may have; None for a movie and for a still."""
    if sequence.movie is not None or sequence.padding is None:
        return None
    return Row(sequence.folder, sequence.head, sequence.tail)


def _header(path: Path) -> oiio.ImageSpec | None:
    image = open_image(path)
    if image is None:
        oiio.geterror()  # it would come up with the next file's
        return None
    try:
        return oiio.ImageSpec(image.spec())
    finally:
        image.close()
