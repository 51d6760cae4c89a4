"""Pictures of a shot's mattes for people: a contact sheet, and an overlay sequence or movie."""

from __future__ import annotations

from pathlib import Path

from stm_plugin.cli.console import progress_bar
from stm_plugin.images.overlay import (
    ByteArray,
    OverlayWriter,
    contact_sheet,
    overlay_picture,
    pick_frames,
    write_picture,
)
from stm_plugin.planning.values import State
from stm_plugin.shot.shot import Shot

_FOLDER_PATTERN = "overlay.####.jpg"
_CONTACT_SHEET = "contact_sheet.png"


def write_overlays(folder: Path, target: str, frame_range: tuple[int, int] | None = None) -> list[Path]:
    """Writes the overlay of every finished frame, and a contact sheet beside it.

    Args:
        folder: of the shot.
        target: a folder, a sequence (`overlay.####.jpg`) or a movie (`overlay.mp4`).
        frame_range: first and last frame; all if None.

    Returns:
        what was written: the overlay, and the contact sheet.
    """
    path = Path(target).expanduser()
    is_folder = path.is_dir() or not path.suffix
    overlay = path / _FOLDER_PATTERN if is_folder else path
    overlay.parent.mkdir(parents=True, exist_ok=True)
    with Shot.open(folder) as shot:
        status = shot.status()
        first, last = frame_range or (min(status.states), max(status.states))
        done = [
            frame
            for frame, state in sorted(status.states.items())
            if first <= frame <= last and state in (State.KEY, State.DONE)
        ]
        keys = {key.frame for key in shot.keys}
        on_sheet = set(pick_frames(done, keys & set(done)))
        sheet: dict[int, ByteArray] = {}
        with OverlayWriter(overlay) as writer, progress_bar() as bar:
            for frame in bar.track(done, description="overlay"):
                picture = overlay_picture(shot.display(frame), shot.matte(frame).mattes)
                writer.write(frame, picture)
                if frame in on_sheet:
                    sheet[frame] = picture
        sheet_path = overlay.parent / _CONTACT_SHEET
        write_picture(sheet_path, contact_sheet(sheet, keys, pixel_aspect=shot.plate.pixel_aspect))
    return [overlay, sheet_path]
