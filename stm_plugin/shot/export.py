"""Writing mattes: one file per frame, valid as soon as it is there, and never written twice for nothing."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_plugin.errors import MatteError, StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.images.matte import MetadataValue, check_kind, read_matte, write_matte
from stm_plugin.images.plate import Plate, PlateSource
from stm_plugin.images.sequence import FrameSequence, output_sequence
from stm_plugin.propagation.propagation import FinishedFrame

ADDRESS_ATTRIBUTE = "stm:address"
LEFTOVER = ".part.exr"


@dataclass(frozen=True)
class Written:
    """What became of a frame: its file, and whether it had to be written."""

    frame: int
    path: Path
    written: bool


class MatteWriter:
    """Writes finished frames to a sequence.

    Args:
        out: the sequence as the artist writes it (`matte.####.exr`).
        plate: must not be overwritten.
        channel: the channel, where there is one object.
        with_ids: whether the files hold a Cryptomatte layer too.

    Raises:
        MatteError: the sequence is no EXR, or would overwrite the plate.
    """

    def __init__(
        self,
        out: str | Path | FrameSequence,
        plate: PlateSource,
        *,
        channel: str = "A",
        with_ids: bool = False,
    ) -> None:
        self.sequence = out if isinstance(out, FrameSequence) else output_sequence(out)
        check_kind(self.sequence.path((self.sequence.frames or plate.frames)[0]))
        self._channel, self._with_ids = channel, with_ids
        self._notes: Journal | None = None
        self._noted: dict[Any, dict[str, Any]] = {}
        self._written: dict[int, bool] = {}  # whether it had to be written
        if isinstance(plate, Plate):
            for frame in plate.frames:
                if self.sequence.path(frame).resolve() == plate.sequence.path(frame).resolve():
                    raise MatteError(
                        "The mattes would overwrite the plate.",
                        frame=frame,
                        path=self.sequence.path(frame),
                        hint="Give another name or folder for the mattes.",
                    )

    @property
    def written(self) -> tuple[Written, ...]:
        """What became of each frame, ascending."""
        return tuple(
            Written(frame, self.sequence.path(frame), written)
            for frame, written in sorted(self._written.items())
        )

    def tidy(self, frames: Iterable[int]) -> None:
        """Remove the temporary files of mattes that a killed process left."""
        for frame in frames:
            path = self.sequence.path(frame)
            for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*{LEFTOVER}"):
                leftover.unlink(missing_ok=True)

    def remember_in(self, notes: Journal) -> None:
        """Keep what is known of written files in `notes`, so that they need not be read to be checked.

        What is noted from here on is not held in memory: a long shot would fill it. Call it again to know it.
        """
        self._notes, self._noted = notes, notes.load()

    def is_current(self, frame: int, address: str) -> bool:
        """Whether the file of a frame is whole and was made from exactly this.

        A file that is as it was when it was written, by size and time, is not read again.
        """
        path = self.sequence.path(frame)
        note = _note_of(path, address)
        if note is None:
            return False
        if self._noted.get(note["file"]) == note:
            return True
        try:
            metadata = read_matte(path, frame=frame).metadata
        except MatteError:
            return False
        is_current = bool(metadata.get_string_attribute(ADDRESS_ATTRIBUTE) == address)
        if is_current:
            self._note(note)
        return is_current

    def _note(self, note: dict[str, Any] | None) -> None:
        if note is not None and self._notes is not None:
            with suppress(StoreError):  # then the file is read the next time
                self._notes.append(note)

    def skip(self, frame: int) -> None:
        """Note that the file of a frame is as it should be."""
        self._written.setdefault(frame, False)

    def write(self, finished: FinishedFrame, address: str, metadata: Mapping[str, MetadataValue]) -> None:
        """Write one frame. MatteError or StoreError where it cannot be."""
        path = self.sequence.path(finished.frame)
        write_matte(
            path,
            finished.mattes,
            finished.plate_frame,
            channel=self._channel,
            with_ids=self._with_ids,
            metadata={**metadata, ADDRESS_ATTRIBUTE: address},
        )
        self._note(_note_of(path, address))
        self._written[finished.frame] = True


def _note_of(path: Path, address: str) -> dict[str, Any] | None:
    """What tells this file from any other that could lie in its place; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    file = str(path.absolute())
    return {"file": file, "address": address, "size": status.st_size, "time": status.st_mtime_ns}
