"""Writing mattes: one file per frame, whole as soon as it exists, and written only if it changed."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm_plugin.errors import MatteError, StoreError
from stm_plugin.files.journal import Journal
from stm_plugin.files.outputs import Ownership, Row, check_outputs
from stm_plugin.images.matte import ADDRESS_ATTRIBUTE, MetadataValue, channels_beside, check_kind, write_matte
from stm_plugin.images.plate import PlateSource
from stm_plugin.images.provenance import FoundMatte, inspect_matte
from stm_plugin.images.sequence import FrameSequence, output_sequence
from stm_plugin.propagation.frame_finisher import FinishedFrame
from stm_plugin.shot.inputs import Inputs

LEFTOVER = ".part.exr"


@dataclass(frozen=True)
class Written:
    """The file of a frame, and whether it had to be written."""

    frame: int
    path: Path
    written: bool


class MatteWriter:
    """Writes finished frames to a sequence.

    Args:
        out: the sequence as the artist writes it (`matte.####.exr`).
        plate: its frames are written.
        channel: the channel, where there is one object.
        with_ids: whether the files hold a Cryptomatte layer too.
        overwrite: whether files that STM did not make, or that belong to another shot, may be replaced. An
            input is never replaced.

    Raises:
        MatteError: the sequence is no EXR.
    """

    def __init__(
        self,
        out: str | Path | FrameSequence,
        plate: PlateSource,
        *,
        channel: str = "A",
        with_ids: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.sequence = out if isinstance(out, FrameSequence) else output_sequence(out)
        check_kind(self.sequence.path((self.sequence.frames or plate.frames)[0]))
        self._channel, self._with_ids, self._overwrite = channel, with_ids, overwrite
        self._row = Row(self.sequence.folder, self.sequence.head, self.sequence.tail)
        self._owner: Ownership | None = None
        self._notes: Journal | None = None
        self._noted: dict[Any, dict[str, Any]] = {}
        self._found: dict[str, tuple[dict[str, Any], FoundMatte]] = {}  # by file: record and finding
        self._written: dict[int, bool] = {}  # whether it had to be written

    def check(self, inputs: Inputs, shot: Path, frames: Iterable[int]) -> None:
        """Check whether these frames may be written for a shot. Nothing is written.

        Raises:
            OutputError: they may not; the text names both files.
        """
        check_outputs(
            [(frame, self.sequence.path(frame)) for frame in frames],
            inputs.given,
            row=self._row,
            given_rows=inputs.rows,
            overwrite=self._overwrite,
            is_ours=self._is_ours,
        )
        Ownership(self._row, shot).check_free(overwrite=self._overwrite)

    def begin(self, inputs: Inputs, shot: Path, frames: Iterable[int]) -> str | None:
        """`check`, and become the owner of the sequence. Returns a sentence for people if another shot
        was."""
        self.check(inputs, shot, frames)
        self._owner = Ownership(self._row, shot)
        return self._owner.take(overwrite=self._overwrite)

    def withdraw(self) -> None:
        """Take back that the sequence belongs to the shot, if this object said so and no file exists."""
        if self._owner is not None:
            self._owner.withdraw()

    @property
    def written(self) -> tuple[Written, ...]:
        """The file of each frame, and whether it had to be written, ascending."""
        return tuple(
            Written(frame, self.sequence.path(frame), written)
            for frame, written in sorted(self._written.items())
        )

    def tidy(self, frames: Iterable[int]) -> None:
        """Remove the temporary matte files of a killed process."""
        for frame in frames:
            path = self.sequence.path(frame)
            for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*{LEFTOVER}"):
                leftover.unlink(missing_ok=True)

    def remember_in(self, notes: Journal) -> None:
        """Record written files in `notes`, so that they need not be read to be checked.

        Later records are not held in memory, which a long shot would fill. Call it again to load them.
        """
        self._notes, self._noted = notes, notes.load()

    def is_current(self, frame: int, address: str) -> bool:
        """Whether the file of a frame is whole and has this address.

        A file whose size, times and inode did not change since it was written is not read again.
        """
        path = self.sequence.path(frame)
        note = _note_of(path, address)
        if note is None:
            return False
        noted = self._noted.get(note["file"], {})
        if {**noted, "address": address} == note:  # unchanged since it was written
            return bool(noted["address"] == address)
        is_current = self._inspected(path, frame).address == address
        if is_current:
            self._note(note)
        return is_current

    def _is_ours(self, frame: int | None, path: Path) -> bool:
        """Whether this product wrote a file, and it was not changed since."""
        noted = self._noted.get(str(path.absolute()))
        if noted is not None and noted == _note_of(path, noted.get("address", "")):
            return True
        return self._inspected(path, frame).is_ours

    def _inspected(self, path: Path, frame: int | None) -> FoundMatte:
        """The file at a matte's path; it is read once, and again when it changes."""
        file, note = str(path.absolute()), _note_of(path, "") or {}
        if file not in self._found or self._found[file][0] != note:
            self._found[file] = note, inspect_matte(path, frame)
        return self._found[file][1]

    def _note(self, note: dict[str, Any] | None) -> None:
        if note is not None and self._notes is not None:
            with suppress(StoreError):  # then the file is read the next time
                self._notes.append(note)

    def skip(self, frame: int) -> None:
        """Record that the file of a frame is current."""
        self._written.setdefault(frame, False)

    def write(self, finished: FinishedFrame, address: str, metadata: Mapping[str, MetadataValue]) -> None:
        """Write one frame. MatteError or StoreError where it cannot be written, OutputError where it must not
        be."""
        if self._owner is not None and self._owner.check(finished.frame) is None:
            self._check_last(finished.frame)
        path = self.sequence.path(finished.frame)
        write_matte(
            path,
            finished.mattes,
            finished.plate_frame,
            channel=self._channel,
            with_ids=self._with_ids,
            beside=channels_beside(finished.confidence_map, finished.foreground),
            metadata={**metadata, ADDRESS_ATTRIBUTE: address},
        )
        self._note(_note_of(path, address))
        self._written[finished.frame] = True

    def check_there(self) -> None:
        """To be called at the end: check that every file is still there. MatteError where one is not."""
        for one in self.written:
            if not one.path.is_file():
                raise _gone(one.frame, one.path)

    def _check_last(self, frame: int) -> None:
        """MatteError where the file that was written last is gone: the rest would go to another place."""
        last = next(reversed(self._written), None)
        if last is not None and not self.sequence.path(last).is_file():
            raise _gone(frame, self.sequence.path(last))


def _gone(frame: int, path: Path) -> MatteError:
    return MatteError(
        "A matte of this run is no longer there: it or its folder was removed or renamed, or its disk left.",
        frame=frame,
        path=path,
        hint="Look at the folder and its disk, and run the same command again: what is computed is kept.",
    )


def _note_of(path: Path, address: str) -> dict[str, Any] | None:
    """The record that identifies this file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return {
        "file": str(path.absolute()),
        "address": address,
        "size": status.st_size,
        "time": status.st_mtime_ns,
        "inode": status.st_ino,
        "changed": status.st_ctime_ns,
    }
