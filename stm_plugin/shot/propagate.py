"""From one key to a matte sequence in one call: what the command line and farm jobs run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.training.adapt import AdaptOptions
from stm_plugin.errors import KeyframeError
from stm_plugin.images.mask import MaskMode
from stm_plugin.images.plate import PlateSource
from stm_plugin.images.sequence import output_sequence
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.values import Directions, Request
from stm_plugin.propagation.events import Notice
from stm_plugin.settings import Settings
from stm_plugin.shot.export import MatteWriter, Written
from stm_plugin.shot.inputs import Inputs, inputs_of
from stm_plugin.shot.opening import check_frames, check_key_frame, open_plate
from stm_plugin.shot.shot import (
    Cancelled,
    Emit,
    MaskReading,
    NetworkFactory,
    PropagationSummary,
    Shot,
    never,
    silent,
)
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import SUFFIX, ShotStore, with_suffix
from stm_plugin.windows import FloatArray


@dataclass(frozen=True)
class Summary:
    """What `propagate` did.

    Attributes:
        files: every matte file of the range, and whether it had to be written.
        shot: the folder that holds the shot; running again with it recomputes only what changed.
    """

    propagation: PropagationSummary
    files: tuple[Written, ...]
    shot: Path


Check = Callable[[PlateSource, Inputs, Sequence[int]], None]


def unchecked(plate: PlateSource, inputs: Inputs, frames: Sequence[int]) -> None:
    """Nothing else is going to be written."""


def propagate(
    plate: str | Path,
    keys: Mapping[int, str | Path | Mapping[str, FloatArray]],
    out: str | Path,
    *,
    settings: Settings | None = None,
    shot_folder: str | Path | None = None,
    frame_range: tuple[int, int] | None = None,
    directions: Directions = "both",
    layer: str | None = None,
    view: str | None = None,
    movie_first_frame: int = 1,
    objects: Sequence[str] | None = None,
    mask_mode: MaskMode = "auto",
    mask_channel: str | None = None,
    adapt: bool = False,
    adapt_options: AdaptOptions | None = None,
    on_event: Emit = silent,
    cancelled: Cancelled = never,
    wait: float | None = 0.0,
    network: NetworkFactory | None = None,
    overwrite: bool = False,
    check: Check = unchecked,
) -> Summary:
    """Propagate the keys through the plate and write a matte for every frame of the range.

    Every matte is on disk, whole, as soon as it is final. Called again with the same `out` (or
    `shot_folder`), it computes what has changed and goes on where it was interrupted.

    Args:
        plate: the sequence in any form that people write.
        keys: the masks by frame: an image file, or arrays by object name over the plate's canvas. Keys and
            objects that the shot has besides are kept, and named in a notice (`Shot.remove_key` removes one).
        out: the matte sequence (`matte.####.exr`).
        shot_folder: where the shot is kept; beside the mattes if None.
        frame_range: first and last frame to compute; the whole plate if None. Keys may lie outside.
        objects, mask_mode, mask_channel: how mask files are understood (`read_mask`). With several keys
            a mask may be empty: the object is not there.
        adapt: let the network learn from the keys first, unless it has learnt from just these before.
        adapt_options: how; the measured defaults if None.
        overwrite: whether files that STM did not make, or that belong to another shot, may be replaced.
        check: is asked before anything is written, with the plate, the shot's inputs and the frames of the
            range; it may raise.

    Raises:
        OutputError: a matte would overwrite an input, or somebody else's file; nothing was written.
        StmError: what happened, on which frame and file, and what to do; finished mattes stay valid.
        PropagationCancelled: `cancelled` said so.
    """
    if not keys:
        raise KeyframeError("There is no key.", hint="Give the mask of at least one frame: --key FRAME=MASK.")
    settings = settings or Settings()
    text = str(Path(plate).expanduser().absolute())
    description = PlateDescription("files", text, layer=layer, view=view, movie_first_frame=movie_first_frame)
    folder = with_suffix(shot_folder) if shot_folder is not None else default_shot_folder(out)
    first, last = frame_range or (None, None)
    request = Request(first, last, directions)
    source = open_plate(folder, description, settings)
    check_frames(source, frame_range)
    for frame in keys:
        check_key_frame(source, frame)
    masks = {frame: Path(mask) for frame, mask in keys.items() if not isinstance(mask, Mapping)}
    inputs, frames = inputs_of(source, settings, folder, masks), frames_in_range(source.frames, request)
    writer = MatteWriter(
        out, source, channel=settings.channel, with_ids=settings.cryptomatte, overwrite=overwrite
    )
    writer.remember_in(ShotStore(folder).exported)
    writer.check(inputs, folder, frames)
    check(source, inputs, frames)
    with _opened(folder, description, settings, network, wait) as shot:
        shot.store.lock.acquire(wait, cancelled)
        try:
            reading = MaskReading(objects, mask_mode, mask_channel)
            _give_keys(shot, keys, reading, on_event)
            if adapt:
                _adapted(shot, adapt_options, cancelled, on_event)
            summary = shot.propagate(request, on_event=on_event, cancelled=cancelled, writer=writer)
        finally:
            shot.store.lock.release()
        return Summary(summary, writer.written, shot.folder)


def _give_keys(
    shot: Shot,
    keys: Mapping[int, str | Path | Mapping[str, FloatArray]],
    reading: MaskReading,
    on_event: Emit,
) -> None:
    """Give a shot these keys. What it has besides is kept, and said."""
    before = {key.frame: key for key in shot.keys}
    others = [frame for frame in before if frame not in keys]
    if others:
        frames = ", ".join(map(str, others))
        word, verb = ("key on", "is kept") if len(others) == 1 else ("keys on", "are kept")
        on_event(
            Notice(
                f"The {word} {frames}, not given here, {verb}; "
                f"`stm shot key remove {shot.folder} FRAME` takes one away."
            )
        )
    for frame, mask in keys.items():
        key = shot.add_key(
            frame,
            mask,
            reading=reading,
            allow_empty=len(keys) + len(others) > 1,
            replace_all=False,
        )
        if key.kept:
            on_event(
                Notice(
                    f"The key on {frame} keeps its mask of {', '.join(key.kept)}, not given here; "
                    f"`stm shot key remove {shot.folder} {frame} --object {key.kept[0]}` takes it away."
                )
            )


def default_shot_folder(out: str | Path) -> Path:
    """Where the shot of a matte sequence is kept: beside it, under its name without the frame number."""
    first = output_sequence(out).path(1)
    stem = re.sub(r"[._-]*\d+$", "", first.stem) or "mattes"
    return first.parent / f"{stem}{SUFFIX}"


def _adapted(shot: Shot, options: AdaptOptions | None, cancelled: Cancelled, on_event: Emit) -> None:
    """Switch on what the network learnt from the keys; learn it where they are not the same any more."""
    on = replace(shot.settings, adapt=True)
    if shot.adaptation_fits:
        shot.set_settings(on)
        return
    on_event(Notice("The network learns from the keys first."))
    shot.adapt(options, cancelled=cancelled)


def _opened(
    folder: Path,
    plate: PlateDescription,
    settings: Settings,
    network: NetworkFactory | None,
    wait: float | None,
) -> Shot:
    """The shot in `folder`, made or brought up to date."""
    if not (folder / "shot.json").exists():
        return Shot.create(folder, plate, settings, network=network)
    shot = Shot.open(folder, network=network)
    shot.set_settings(settings, wait=wait)
    shot.set_plate(plate, wait=wait)
    return shot
