"""From keys to a matte sequence in one call, as the command line and farm jobs do it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from model.training.adapt import AdaptOptions
from stm_plugin.configuration import configuration
from stm_plugin.errors import KeyframeError
from stm_plugin.images.mask import AS_FOUND, MaskReading
from stm_plugin.images.plate import PlateSource
from stm_plugin.images.sequence import output_sequence
from stm_plugin.planning.plan import frames_in_range
from stm_plugin.planning.values import Request
from stm_plugin.propagation.events import Notice
from stm_plugin.settings import Settings, changed_settings
from stm_plugin.shot.export import MatteWriter, Written
from stm_plugin.shot.inputs import Inputs, inputs_of
from stm_plugin.shot.opening import check_frames, check_key_frame, open_plate
from stm_plugin.shot.shot import (
    Cancelled,
    Emit,
    NetworkFactory,
    PropagationSummary,
    Shot,
    never,
    silent,
)
from stm_plugin.store.description import PlateDescription
from stm_plugin.store.store import SUFFIX, ShotStore, with_suffix
from stm_plugin.store.undo import removed_where_refused
from stm_plugin.windows import FloatArray


@dataclass(frozen=True)
class Summary:
    """The result of `propagate`.

    Attributes:
        propagation: what was computed, and how long it took.
        files: every matte file of the range, and whether it had to be written.
        shot: the folder that holds the shot; running again with it recomputes only what changed.
    """

    propagation: PropagationSummary
    files: tuple[Written, ...]
    shot: Path


Check = Callable[[PlateSource, Inputs, Sequence[int]], None]
KeyMask = str | Path | Mapping[str, FloatArray]
"""The mask of a key: an image file, or float32 (H, W) in [0, 1] by object name over the plate's canvas."""


def unchecked(plate: PlateSource, inputs: Inputs, frames: Sequence[int]) -> None:
    """The check of a run that writes nothing but mattes."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. No value of a matte depends on it, but for `network`.

    Attributes:
        shot_folder: where the shot is kept; beside the mattes if None.
        overwrite: whether files that STM did not make, or that belong to another shot, may be replaced.
        wait: seconds to wait for another process that holds the shot; None for as long as it takes.
        on_event: is called with every event.
        cancelled: is asked between two steps; the run stops when it returns True.
        check: is called before anything is written, with the plate, the shot's inputs and the frames of the
            range; it may raise.
        network: makes the network from the settings; the weights that the settings name if None.
    """

    shot_folder: str | Path | None = None
    overwrite: bool = False
    wait: float | None = 0.0
    on_event: Emit = silent
    cancelled: Cancelled = never
    check: Check = unchecked
    network: NetworkFactory | None = None


_PLAIN_RUN = RunOptions()
_WHOLE_PLATE = Request()


def propagate(
    plate: str | Path | PlateDescription,
    keys: Mapping[int, KeyMask],
    out: str | Path,
    *,
    settings: Settings | None = None,
    request: Request = _WHOLE_PLATE,
    reading: MaskReading = AS_FOUND,
    adapt: bool | AdaptOptions = False,
    run: RunOptions = _PLAIN_RUN,
) -> Summary:
    """Propagate the keys through the plate and write a matte for every frame of the range.

    Every matte is on disk, whole, as soon as it is final. Called again with the same `out` (or
    `run.shot_folder`), it computes what has changed and continues where it was interrupted.

    Args:
        plate: the sequence in any form that people write; a `PlateDescription` names its layer or view too.
        keys: the masks by frame. Keys and objects that the shot has besides are kept, and named in a notice
            (`Shot.remove_key` removes one).
        out: the matte sequence (`matte.####.exr`).
        settings: `base_settings` of the shot if None.
        request: the frames to compute, and the directions. Keys may lie outside the range.
        reading: how mask files are understood (`read_mask`). With several keys a mask may be empty: the
            object is not in that frame.
        adapt: whether the network adapts to the keys first, unless an adaptation to these keys exists; or
            the options of the adaptation, instead of the measured defaults.
        run: how it is carried out: folder, overwriting, events, cancelling.

    Raises:
        OutputError: a matte would overwrite an input or a file of another program; nothing was written.
        StmError: what happened, on which frame and file, and what to do; finished mattes stay valid. Where
            there are none, nothing of a new shot is left.
        PropagationCancelled: `run.cancelled` returned True.
    """
    if not keys:
        raise KeyframeError("There is no key.", hint="Give the mask of at least one frame: --key FRAME=MASK.")
    folder = default_shot_folder(out) if run.shot_folder is None else with_suffix(run.shot_folder)
    settings = settings or base_settings(folder)
    if not isinstance(plate, PlateDescription):
        plate = PlateDescription("files", str(Path(plate).expanduser().absolute()))
    source = open_plate(ShotStore(folder), plate, settings)
    _check_frames(source, keys, request)
    masks = {frame: Path(mask) for frame, mask in keys.items() if not isinstance(mask, Mapping)}
    inputs, frames = inputs_of(source, settings, folder, masks), frames_in_range(source.frames, request)
    writer = MatteWriter(
        out, source, channel=settings.channel, with_ids=settings.cryptomatte, overwrite=run.overwrite
    )
    writer.remember_in(ShotStore(folder).exported)
    writer.check(inputs, folder, frames)
    run.check(source, inputs, frames)
    undo = removed_where_refused(
        folder, writer.sequence.folder, withdraw=writer.withdraw, has_made=lambda: bool(writer.written)
    )
    with undo, _opened(folder, plate, settings, run) as shot, _held(shot, run):
        _give_keys(shot, keys, reading, run.on_event)
        if adapt:
            _adapt(shot, adapt if isinstance(adapt, AdaptOptions) else None, run)
        summary = shot.propagate(request, on_event=run.on_event, cancelled=run.cancelled, writer=writer)
        return Summary(summary, writer.written, shot.folder)


def _check_frames(plate: PlateSource, keys: Iterable[int], request: Request) -> None:
    """Check that the plate has the frames of the request and of the keys."""
    check_frames(plate, (request.first, request.last))
    for frame in keys:
        check_key_frame(plate, frame)


@contextmanager
def _held(shot: Shot, run: RunOptions) -> Iterator[None]:
    """Hold the shot's lock, so that no other process changes it between the keys and the mattes."""
    shot.store.lock.acquire(run.wait, run.cancelled)
    try:
        yield
    finally:
        shot.store.lock.release()


def _give_keys(
    shot: Shot,
    keys: Mapping[int, KeyMask],
    reading: MaskReading,
    on_event: Emit,
) -> None:
    """Give a shot these keys. Other keys and objects are kept, and notices name them."""
    before = {key.frame: key for key in shot.keys}
    others = [frame for frame in before if frame not in keys]
    if others:
        frames = ", ".join(map(str, others))
        word, verb = ("key on", "is kept") if len(others) == 1 else ("keys on", "are kept")
        on_event(
            Notice(
                f"The {word} {frames}, not given here, {verb}; "
                f"`stm shot key remove {shot.folder} FRAME` removes one."
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
                    f"`stm shot key remove {shot.folder} {frame} --object {key.kept[0]}` removes it."
                )
            )


def default_shot_folder(out: str | Path) -> Path:
    """Where the shot of a matte sequence is kept: beside it, under its name without the frame number.

    With a `cache_folder` in the configuration it is there, with a hash of the mattes' folder in its name. A
    shot that is beside its mattes already stays there.
    """
    first = output_sequence(out).path(1)
    stem = re.sub(r"[._-]*\d+$", "", first.stem) or "mattes"
    return default_place(first.parent / f"{stem}{SUFFIX}")


def default_place(beside: Path) -> Path:
    """Where a shot is kept that nobody places.

    Args:
        beside: its place where the configuration has no `cache_folder`. A shot that is there stays there.
    """
    cache = configuration()["cache_folder"]
    if cache is None or beside.exists():
        return beside
    place = hashlib.sha256(str(beside.parent.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(cache) / f"{beside.stem}-{place[:12]}{SUFFIX}"


def base_settings(folder: Path) -> Settings:
    """The settings to which a caller's choices are added: those that the configuration gives.

    A shot that exists keeps what the configuration gave when it was made; what it says now of the machine
    holds.
    """
    layers = configuration()
    if not (folder / "shot.json").exists():
        return layers.settings()
    kept = changed_settings(Settings(), ShotStore.open(folder).description().configured)
    return layers.on_this_machine(kept, ())


def _adapt(shot: Shot, options: AdaptOptions | None, run: RunOptions) -> None:
    """Use the adaptation of the shot; adapt anew where it was made from other keys."""
    on = replace(shot.settings, adapt=True)
    if shot.adaptation_fits:
        shot.set_settings(on)
        return
    run.on_event(Notice("The network adapts to the keys first."))
    shot.adapt(options, cancelled=run.cancelled)


def _opened(folder: Path, plate: PlateDescription, settings: Settings, run: RunOptions) -> Shot:
    """The shot in `folder`, made or brought up to date."""
    if not (folder / "shot.json").exists():
        return Shot.create(folder, plate, settings, network=run.network)
    shot = Shot.open(folder, network=run.network)
    shot.set_settings(settings, wait=run.wait)
    shot.set_plate(plate, wait=run.wait)
    return shot
