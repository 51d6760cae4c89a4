"""Pictures of a shot's mattes for people: a contact sheet, and an overlay sequence or movie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stm_plugin.cli.console import counted, errors, progress_bar
from stm_plugin.errors import MatteError
from stm_plugin.files.outputs import Ownership, WrittenList, check_outputs
from stm_plugin.images.overlay import (
    ByteArray,
    Colour,
    OverlayWriter,
    contact_sheet,
    object_colours,
    overlay_picture,
    pick_frames,
    write_picture,
)
from stm_plugin.images.provenance import our_pictures, row_of
from stm_plugin.images.sequence import describe_frames, output_sequence
from stm_plugin.planning.values import State
from stm_plugin.shot.inputs import Inputs, inputs_of
from stm_plugin.shot.opening import check_frames
from stm_plugin.shot.shot import Shot

_FOLDER_PATTERN = "overlay.####.jpg"
_CONTACT_SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class OverlayTarget:
    """The target of overlays.

    Attributes:
        text: a folder, a sequence (`overlay.####.jpg`) or a movie (`overlay.mp4`).
        overwrite: whether files that STM did not make may be replaced.
    """

    text: str
    overwrite: bool = False

    @property
    def overlay(self) -> Path:
        """The sequence, as a pattern, or the movie."""
        path = Path(self.text).expanduser()
        return path / _FOLDER_PATTERN if path.is_dir() or not path.suffix else path

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.overlay.parent / _CONTACT_SHEET

    def check(self, inputs: Inputs, shot: Path, frames: Sequence[int]) -> None:
        """Check the outputs before anything is written. OutputError where one must not be written."""
        OverlayWriter(self.overlay)  # checks that this kind of file can be written
        sequence = output_sequence(self.overlay)
        if sequence.movie is not None:
            wanted: list[tuple[int | None, Path]] = [(None, sequence.movie)]
        else:
            wanted = [(frame, sequence.path(frame)) for frame in frames]
        row = row_of(sequence)
        wanted.append((None, self.sheet))
        ours = our_pictures(path for _, path in wanted)
        check_outputs(
            wanted,
            inputs.given,
            row=row,
            given_rows=inputs.rows,
            overwrite=self.overwrite,
            is_ours=lambda _, path: path in ours,
        )
        if row is not None:
            Ownership(row, shot).check_free(overwrite=self.overwrite)

    def take(self, shot: Path) -> None:
        """Become the owner of the row of pictures."""
        row = row_of(output_sequence(self.overlay))
        notice = None if row is None else Ownership(row, shot).take(overwrite=self.overwrite)
        if notice is not None:
            errors.print(notice, markup=False, highlight=False)


def write_overlays(
    folder: Path, target: OverlayTarget, frame_range: tuple[int, int] | None = None
) -> list[str]:
    """Writes the overlay of every finished frame, and a contact sheet beside it.

    Args:
        folder: of the shot.
        frame_range: first and last frame; all if None.

    Returns:
        the overlay and the contact sheet that were written, in words.

    Raises:
        OutputError: a picture would overwrite an input or a file of another program; nothing was written.
        PlateError: the plate does not have all frames of the range.
        MatteError: no frame of the range is done.
    """
    with Shot.open(folder) as shot:
        check_frames(shot.plate, frame_range)
        states = shot.status().states
        first, last = frame_range or (min(states), max(states))
        asked = [frame for frame in sorted(states) if first <= frame <= last]
        target.check(inputs_of(shot.plate, shot.settings, shot.folder), shot.folder, asked)
        done = [frame for frame in asked if states[frame] in (State.KEY, State.DONE)]
        if not done:
            raise MatteError(
                "No frame is done, so there is nothing to show.",
                path=shot.folder,
                hint="Run `stm shot propagate` first.",
            )
        if left_out := sorted(set(asked) - set(done)):
            errors.print(f"Left out, as they are not done: {describe_frames(left_out)}.", highlight=False)
        return _write(shot, target, done)


def _write(shot: Shot, target: OverlayTarget, done: Sequence[int]) -> list[str]:
    keys = {key.frame for key in shot.keys}
    on_sheet = set(pick_frames(done, keys & set(done)))
    sheet: dict[int, ByteArray] = {}
    colours: tuple[Colour, ...] = ()
    target.take(shot.folder)
    with OverlayWriter(target.overlay) as writer, progress_bar() as bar:
        for frame in bar.track(done, description="overlay"):
            display, mattes = shot.display(frame), shot.matte(frame).mattes
            colours = colours or object_colours(display, mattes)
            picture = overlay_picture(display, mattes, colours)
            writer.write(frame, picture)
            if frame in on_sheet:
                sheet[frame] = picture
    note = f"{len(on_sheet)} of {counted(len(done), 'frame')}"
    picture = contact_sheet(sheet, keys, pixel_aspect=shot.plate.pixel_aspect, note=note)
    write_picture(target.sheet, picture, listed=WrittenList(target.sheet.parent))
    return [str(target.overlay), f"{target.sheet} ({note})"]
