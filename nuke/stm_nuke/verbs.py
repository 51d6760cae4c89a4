"""The actions of an STM node, one function each. Buttons and the batch API call these.

The knobs hold the state: a verb changes them in Nuke's main thread (one undo each), and a task updates the
engine from them. So an undo, or an engine that died, needs no special handling: the next verb updates the
engine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Literal, Optional

import nuke
from stm_nuke import (
    cache,
    capture,
    exr,
    farm,
    fingerprint,
    finish,
    fixes,
    group,
    knobs,
    live,
    locks,
    roto,
    rotokeys,
    session,
    tasks,
    untouched,
)
from stm_nuke.errors import BusyError, KeyframeError, NoNodeError, StmNodeError, UsageError
from stm_nuke.exr import Picture
from stm_nuke.frames import Range, counted, frames_of, in_words, ranges_of
from stm_nuke.keys import (
    KEYS_TOUCHED,
    Key,
    digest_of,
    format_keys,
    mask_path,
    neighbours,
    with_key,
    without_key,
)
from stm_nuke.node import Snapshot, StmNode, find_by_id, full_size, unrecorded
from stm_nuke.session import Session
from stm_nuke.tasks import Task, in_main
from stm_nuke.wire import Aborted, EngineError, Header, Window, never

Direction = Literal["forward", "backward", "both"]
Ended = Optional[Callable[[Task], None]]

CONFIDENCE_ATTRIBUTE = "stm:confidence"
SURE = 0.999
"""Confidence from which a matte needs no further key; keys have 1."""
FROM_FILE, FROM_FIX = "file", "fix"
"""Instead of a key's fingerprint: its mask was not rendered from the mask input."""
FARM_STM = "stm"
MOST_FROM_ROTO = 100
COVERAGE_STEP, INSIDE, ALMOST_ALL = 97, 0.5, 0.95
"""The step of sampled pixels of a mask, the value that counts as inside, the share that is suspicious."""
CAPTURE_SECONDS, MOST_AT_ONCE = 1.0, 32
"""Seconds for which Nuke renders plate frames at a time, and the most frames."""
FOREGROUND_IN_FILES = (
    "{name} takes its matte live, and the foreground colours are in matte files only. "
    "Choose 'files' under 'matte from', or switch the foreground colours off."
)
METADATA_AT_ONCE = 8
"""Frames whose metadata Nuke is asked for at a time: it opens each file."""
BUSY_SECONDS = 0.2
"""Seconds between checks whether another render of Nuke has ended."""
ENGINE_TRIES = 3
"""How often a propagation is tried again after the engine died."""


# ---- keys


def set_key(
    node: StmNode,
    frame: int,
    view: str,
    mask_file: Path | None = None,
    ended: Ended = None,
    source: int = group.MASK,
) -> Key:
    """Take the mask at `frame` as a keyframe: from the mask input, the fix input, or from an image file.

    Raises:
        KeyframeError, PlateError, CacheError, UsageError, Stopped.
    """
    snapshot = node.snapshot(view)
    first, last = snapshot.frames
    if not first <= frame <= last:
        raise KeyframeError(
            f"The frame is not in the range {first}-{last} of {node.name}.",
            frame=frame,
            hint="Go to a frame inside, or change the range.",
        )
    key, note = _take_mask(node, frame, view, mask_file, source)
    with _undo(f"Set STM key {frame}"):
        node.set_keys(with_key(node.keys, key))
        node.offer_objects()
    cache.retire_mattes(snapshot.cache, view, [frame], snapshot.keep_stale)
    _sync_task(node, view, f"Keyframe {frame} is set.{note}", ended, [frame])
    return key


def _take_mask(
    node: StmNode, frame: int, view: str, mask_file: Path | None, source: int = group.MASK
) -> tuple[Key, str]:
    """Render a mask and keep it in the cache; returns its key, and a remark for the artist."""
    if mask_file is None:
        picture = capture.masks(node, frame, view, source)
        fingerprint = node.mask_fingerprint() if source == group.MASK else FROM_FIX
    else:
        picture = capture.masks_from_file(node, mask_file, node.objects, frame, view)
        fingerprint = FROM_FILE
    digest = digest_of(picture)
    path = mask_path(node.cache, digest)
    if not path.is_file():
        exr.write(path, picture)
    return Key(view, frame, digest, fingerprint), _remark_on(picture)


def _remark_on(mask: Picture) -> str:
    """A remark on an unusual mask; empty if it is usual."""
    if not any(any(plane) for plane in mask.planes.values()):
        return " Its mask is empty: the object counts as not in the picture."
    for name, plane in mask.planes.items():
        values = memoryview(plane).cast("B").cast("f") if mask.format == "float" else ()
        some = list(values[::COVERAGE_STEP])
        if some and sum(value > INSIDE for value in some) > ALMOST_ALL * len(some):
            return (
                f" The mask of {name} covers almost the whole picture, as a Roto over an opaque alpha does. "
                "Switch the Roto's 'replace' on."
            )
    return ""


def correct(node: StmNode, frame: int, view: str) -> nuke.Node:
    """Start to correct a frame: its matte under a RotoPaint beside the node; returns the node to paint in.

    Raises:
        KeyframeError: it has no matte. PlateError, CacheError, UsageError.
    """
    node.claim()
    with _undo(f"Correct STM matte {frame}"):
        return fixes.take_in_hand(node, frame, view)


def set_key_from_fix(node: StmNode, frame: int, view: str, ended: Ended = None) -> Key:
    """Set a keyframe from matte and paint at `frame`.

    Raises:
        KeyframeError: the frame is not being corrected. PlateError, CacheError, UsageError, Stopped.
    """
    fixes.check_in_hand(node, frame)
    return set_key(node, frame, view, ended=ended, source=group.FIX)


def roto_frames(node: StmNode, view: str) -> list[int]:
    """The frames of the range on which the Roto above the mask input has a key.

    Raises:
        KeyframeError: there is no Roto, or no key in the range, or there are too many.
    """
    node.claim()
    first, last = node.snapshot(view).frames
    roto = rotokeys.roto_above(node.connected_mask())
    found = [frame for frame in rotokeys.keyed_frames(roto, view) if first <= frame <= last]
    if not found:
        raise KeyframeError(f"{roto.fullName()} has no key from {first} to {last}.")
    if len(found) > MOST_FROM_ROTO:
        raise KeyframeError(
            f"{roto.fullName()} has keys on {len(found)} frames, more than {MOST_FROM_ROTO}.",
            hint="It looks tracked: set keyframes on the frames where it is right.",
        )
    return found


def keys_from_roto(node: StmNode, view: str, frames: Sequence[int], ended: Ended = None) -> list[int]:
    """Set keyframes from the mask input on all these frames, in one step.

    Raises:
        KeyframeError, PlateError, CacheError, UsageError, Stopped.
    """
    snapshot = node.snapshot(view)
    masks = [_take_mask(node, frame, view, None) for frame in frames]
    taken = [key for key, _ in masks]
    with _undo(f"Set {len(taken)} STM keys"):
        keys = node.keys
        for key in taken:
            keys = with_key(keys, key)
        node.set_keys(keys)
        node.offer_objects()
    cache.retire_mattes(snapshot.cache, view, frames, snapshot.keep_stale)
    unusual = {note: [key.frame for key, one in masks if one == note] for _, note in masks if note}
    notes = "".join(f" On {in_words(some)}:{note}" for note, some in unusual.items())
    _sync_task(node, view, f"Keyframes {in_words(frames)} are set.{notes}", ended, list(frames))
    return list(frames)


def delete_key(node: StmNode, frame: int, view: str, ended: Ended = None) -> None:
    """Delete the keyframe at `frame`. KeyframeError where there is none."""
    if frame not in {key.frame for key in node.keys_of(view)}:
        raise KeyframeError(
            f"{node.name} has no keyframe here.", frame=frame, hint=_keys_in_words(node, view)
        )
    with _undo(f"Delete STM key {frame}"):
        node.set_keys(without_key(node.keys, view, frame))
    cache.retire_mattes(node.cache, view, [frame], node.keeps_old_mattes)
    _sync_task(node, view, f"Keyframe {frame} is deleted.", ended, [frame])


def neighbouring_key(node: StmNode, frame: float, view: str, step: int) -> int:
    """The frame of the next (`step` 1) or previous (-1) key. KeyframeError where there is none."""
    before, after = neighbours((key.frame for key in node.keys_of(view)), frame)
    found = after if step > 0 else before
    if found is None:
        where = "after" if step > 0 else "before"
        raise KeyframeError(f"There is no keyframe {where} frame {frame:g}.", hint=_keys_in_words(node, view))
    return found


def changed_keys(node: StmNode, view: str) -> dict[int, Key]:
    """The keys whose mask input renders another mask now, with that mask; compared by content.

    Keys from files and fixes are never among them. Only keys with another fingerprint of the mask input are
    rendered.
    """
    now = node.mask_fingerprint()
    found = {}
    untouched: list[Key] = []
    for key in node.keys_of(view):
        if key.fingerprint not in (now, FROM_FILE, FROM_FIX):
            taken, _ = _take_mask(node, key.frame, view, None)
            if taken.digest != key.digest:
                found[key.frame] = taken
            else:
                untouched.append(taken)
    if untouched:
        keys = node.keys
        for key in untouched:
            keys = with_key(keys, key)
        with unrecorded():
            node.set_keys(keys)
    return found


def update_keys(node: StmNode, view: str, ended: Ended = None) -> list[int]:
    """Update the masks of keys whose mask input has changed; returns their frames."""
    node.snapshot(view)
    found = changed_keys(node, view)
    with _undo("Update STM keys"):
        keys = node.keys
        for key in found.values():
            keys = with_key(keys, key)
        node.set_keys(keys)
    cache.retire_mattes(node.cache, view, found, node.keeps_old_mattes)
    words = f"Keyframes {in_words(found)} are updated." if found else "No mask has changed."
    _sync_task(node, view, words, ended, sorted(found))
    return sorted(found)


def rename_object(node: StmNode, old: str, new: str, view: str, ended: Ended = None) -> None:
    """Rename an object, in its keys too. UsageError where that is impossible."""
    names = [one.name for one in node.objects]
    if old not in names or new in names:
        raise UsageError(f"{old} cannot become {new}: the objects are {', '.join(names)}.")
    lines = [f"{new if one.name == old else one.name} = {one.channel}" for one in node.objects]
    renamed = []
    for key in node.keys:
        mask = exr.read(mask_path(node.cache, key.digest))
        planes = {new if name == old else name: plane for name, plane in mask.planes.items()}
        picture = Picture(mask.format, planes, mask.data_window, mask.display_window, mask.pixel_aspect)
        digest = digest_of(picture)
        exr.write(mask_path(node.cache, digest), picture)
        renamed.append(Key(key.view, key.frame, digest, key.fingerprint))
    with _undo(f"Rename STM object {old}"):
        node.set(knobs.OBJECTS, "\n".join(lines))
        node.set_keys(renamed)
        node.offer_objects()
    _sync_task(node, view, f"{old} is called {new} now.", ended)


def _keys_in_words(node: StmNode, view: str) -> str:
    frames = [key.frame for key in node.keys_of(view)]
    return f"It has keyframes at {in_words(frames)}." if frames else "It has no keyframe yet."


# ---- propagating


def span_around(node: StmNode, frame: int, view: str) -> Range:
    """From the key before `frame` (or the first frame) to the key after it (or the last).

    On a keyframe these are its spans on both sides, which a correction makes stale.
    """
    first, last = node.frames
    before, after = neighbours([key.frame for key in node.keys_in_range(view)], frame)
    return (first if before is None else before), (last if after is None else after)


def propagate(
    node: StmNode, view: str, frames: Range | None = None, direction: Direction = "both", ended: Ended = None
) -> Task:
    """Make the mattes of `frames` (default: all) in a task: plate, network, files.

    Raises:
        KeyframeError: there is no key. PlateError, CacheError, UsageError.
    """
    snapshot = node.snapshot(view)
    _check_keys(snapshot)
    node.offer_objects()
    wanted = _within(snapshot.frames, frames or snapshot.frames)
    work = _Propagation(snapshot, wanted, direction, node.plate_fingerprint())
    return tasks.start(Task(snapshot.node_id, f"STM {snapshot.name}", work), _then(view, ended))


def check_plate(node: StmNode, view: str, ended: Ended = None) -> Task:
    """Render the whole plate again and compare by content; frames that differ become stale."""
    snapshot = node.snapshot(view)
    work = _PlateCheck(snapshot, node.plate_fingerprint())
    return tasks.start(Task(snapshot.node_id, f"STM {snapshot.name}: plate", work), _then(view, ended))


def write_mattes(node: StmNode, view: str, frames: Range | None = None, ended: Ended = None) -> Task:
    """Write the matte files of all finished frames, which a live node does not need."""
    snapshot = node.snapshot(view)
    work = _MatteFiles(snapshot, _within(snapshot.frames, frames or snapshot.frames))
    return tasks.start(Task(snapshot.node_id, f"STM {snapshot.name}: files", work), _then(view, ended))


def take_finish(node: StmNode, view: str, ended: Ended = None) -> Task | None:
    """Write the matte files again with the edges and the layers that the panel asks for.

    Nothing is computed. None where there is nothing to write, or a task of the node is running: it is written
    after the task.

    Raises:
        UsageError: the width cannot be, or a live matte has no layer with the foreground. CacheError.
    """
    node.claim()
    if node.is_live:
        if node.has_foreground:
            raise UsageError(FOREGROUND_IN_FILES.format(name=node.name))
        return refresh(node, view, ended)
    if not finish.NARROWEST <= node.finish.width <= finish.WIDEST:
        raise UsageError(f"The width of edges is {node.finish.width:g}.", hint="Give a value from 0.25 to 4.")
    if not cache.matte_frames(node.cache, view) or not node.keys_in_range(view):
        return None
    if tasks.running(node.id) is not None:
        return None  # its end comes back here
    finish.retire_others(node.cache, view, node.frames, node.finish, node.keeps_old_mattes)
    return write_mattes(node, view, ended=ended)


def shapes_from_matte(node: StmNode, view: str, ended: Ended = None) -> Task:
    """Make a Roto node of the finished mattes, beside the node; one undo removes it."""
    work = _Shapes(node.snapshot(view), node.plate_fingerprint())
    return tasks.start(Task(node.id, f"STM {node.name}: shapes", work), _then(view, ended))


def farm_bundle(
    node: StmNode,
    view: str,
    out: Path | None = None,
    frames: Range | None = None,
    stm: str = FARM_STM,
    ended: Ended = None,
) -> Task:
    """Write a job bundle for a render farm, in a task: plate, keyframes, and the tasks of the whole shot.

    The farm writes the node's own matte files.

    Args:
        out: the folder of the bundle; in the node's cache if None.
        stm: the command `stm` on the farm's machines.

    Raises:
        KeyframeError: there is no key. UsageError: the matte is live. PlateError, CacheError.
    """
    snapshot = node.snapshot(view)
    if snapshot.is_live:
        raise UsageError(
            f"{node.name} takes its matte live, and a farm writes files.",
            hint="Choose 'files' under 'matte from'.",
        )
    _check_keys(snapshot)
    node.offer_objects()
    folder = out or snapshot.cache / f"farm.{view}"
    wanted = _within(snapshot.frames, frames or snapshot.frames)
    work = _FarmBundle(snapshot, node.plate_fingerprint(), folder, wanted, stm)
    return tasks.start(Task(snapshot.node_id, f"STM {snapshot.name}: farm", work), _then(view, ended))


def take_matte_from(node: StmNode, source: str) -> None:
    """Choose the matte from files, or live from the effect (`knobs.FILES`, `knobs.LIVE`).

    Raises:
        UsageError: it cannot be live here; files are used.
    """
    node.set(knobs.MATTE_FROM, source)
    if node[knobs.MATTE_FROM] != source:
        raise UsageError(str(node[knobs.STATUS]))  # the callback of the knob refused it
    problem = node.arrange_live()
    if problem:
        with unrecorded():
            node.set(knobs.MATTE_FROM, knobs.FILES)
        node.arrange_live()
        raise UsageError(problem, hint="It stays on files.")
    if source == knobs.FILES and nuke.GUI and node.keys_in_range(node.view()):
        write_mattes(node, node.view())


def refresh(node: StmNode, view: str, ended: Ended = None) -> Task:
    """Get the status from the engine and show it in the panel."""
    return _sync_task(node, view, "", ended)


def stop(node: StmNode) -> bool:
    """Stop the running task of this node; returns whether there was one."""
    task = tasks.running(node.id)
    if task is not None:
        task.stop()
    return task is not None


def _check_keys(snapshot: Snapshot) -> None:
    """KeyframeError where there is no key."""
    if not snapshot.keys:
        raise KeyframeError(
            f"{snapshot.name} has no keyframe.", hint="Go to a frame with a good mask and press Set key."
        )


def _within(shot: Range, frames: Range) -> Range:
    first, last = max(shot[0], frames[0]), min(shot[1], frames[1])
    if last < first:
        raise UsageError(
            f"The frames {frames[0]}-{frames[1]} are not in the range {shot[0]}-{shot[1]} of the shot."
        )
    return first, last


class _Work:
    """The common part of tasks: update the engine from the node's knobs, and try again when it died."""

    title = "Asking the engine"

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __call__(self, task: Task) -> None:
        task.report(self.title)
        try:
            self._try_again(task)
        finally:
            self._hand_over()

    def _try_again(self, task: Task) -> None:
        for attempt in range(1, ENGINE_TRIES + 1):
            try:
                self._try(task)
                return
            except EngineError as error:
                if not session.is_gone(error) or attempt == ENGINE_TRIES:
                    self._retire_after_error()
                    raise
                task.report("The engine has stopped. Starting it again; finished frames are kept.")
            except StmNodeError:
                self._retire_after_error()
                raise

    def _try(self, task: Task) -> None:
        cache.complete(self.snapshot.cache)
        with Session.opened(self.snapshot, host_name(), task.stopped) as opened:
            in_main(_show_configuration, self.snapshot.node_id, opened.taken)
            status = opened.sync()
            self._retire(opened, status)
            cache.record_keys(self.snapshot.cache, self.snapshot.view, format_keys(self.snapshot.keys))
            self._retire_other_finish(opened)
            self._show_weights(opened)
            self._do(opened, status, task)
            status = opened.status()
            task.done = frozenset(frames_of(status["done"]))
            self._report(status)

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        """The actual work, after keys and objects are updated."""

    def _hand_over(self) -> None:
        """Give the mattes to the node where it has got another cache since the start.

        That is so where the script was saved under another name, or the cache was moved. What the node's next
        task finds in its copy of the shot store is complete, as that is copied at its start.
        """
        with contextlib.suppress(NoNodeError):  # deleted, or the script is closed
            place = in_main(self._other_place)
            if place is not None:
                cache.take_mattes(self.snapshot.cache, place, self.snapshot.view)
                if self.snapshot.is_live:
                    cache.take_results(self.snapshot.cache, place)
                in_main(self._remember_after)

    def _other_place(self) -> Path | None:
        """The node's cache, if it is another one and its mattes are to be made from the same keys."""
        one, node = self.snapshot, find_by_id(self.snapshot.node_id)
        if node.cache == one.cache or node.keys_in_range(one.view) != one.keys:
            return None
        return node.cache

    def _remember_after(self) -> None:
        """Record in the node what is known of the mattes that it has got."""

    def _retire(self, opened: Session, status: Mapping[str, Any]) -> None:
        """Retire mattes that differ from the engine's present result."""
        first, last = self.snapshot.frames
        done = set(frames_of(status["done"])) - opened.dirty
        out_of_date = [frame for frame in range(first, last + 1) if frame not in done]
        cache.retire_mattes(self.snapshot.cache, self.snapshot.view, out_of_date, self.snapshot.keep_stale)
        opened.dirty.clear()

    def _retire_other_finish(self, opened: Session) -> None:
        """Retire matte files with other edges or layers than the engine would write."""
        one = self.snapshot
        if not one.is_live:
            wanted = finish.Finish.of(opened.settings)
            finish.retire_others(one.cache, one.view, one.frames, wanted, one.keep_stale)

    def _retire_after_error(self) -> None:
        """After an error, retire mattes that may be out of date."""

    def _show_weights(self, opened: Session) -> None:
        """Show the weights and their licence, once for each."""
        name = str(opened.taken.values.get("weights", self.snapshot.settings["weights"]))
        if name not in _weights_in_words:
            _weights_in_words[name] = opened.weights_in_words()
        in_main(_show_in, self.snapshot.node_id, knobs.WEIGHTS_INFO, _weights_in_words[name])

    def _report(self, status: Header) -> None:
        in_main(_show_status, self.snapshot, status)


class _Sync(_Work):
    """Update keys and objects in the engine, and get the status."""

    def __init__(self, snapshot: Snapshot, edited: Sequence[int]) -> None:
        """`edited`: the keys that were changed, set or deleted just now."""
        super().__init__(snapshot)
        self.edited = edited

    def _retire_after_error(self) -> None:
        """The engine cannot tell what the edit makes stale: retire all mattes that may depend on it."""
        first, last = self.snapshot.frames
        for frame in self.edited:
            before, after = neighbours((key.frame for key in self.snapshot.keys), frame, KEYS_TOUCHED)
            around = range(first if before is None else before + 1, last + 1 if after is None else after)
            cache.retire_mattes(self.snapshot.cache, self.snapshot.view, around, self.snapshot.keep_stale)


class _PlateWork(_Work):
    """Work that pushes plate frames to the engine."""

    def __init__(self, snapshot: Snapshot, fingerprint: str) -> None:
        super().__init__(snapshot)
        self.fingerprint = fingerprint
        self.is_compared = False

    def _push(self, opened: Session, frames: Sequence[int], task: Task) -> list[int]:
        """Give plate frames to the engine; returns those with new content.

        The engine reads the files of an untouched plate itself. Nuke renders all others, some frames at a
        time, for about a second, so that its window responds.
        """
        changed, rest = self._push_files(opened, frames, task)
        at_once, number = 1, len(frames) - len(rest)
        for first, last in ranges_of(rest):
            while first <= last:
                some = first, min(last, first + at_once - 1)
                task.report(f"Reading the plate, {number + 1} of {len(frames)}", number, len(frames))
                begin = time.monotonic()
                found, metadata = self._rendered(some, opened.scratch, task)
                seconds = time.monotonic() - begin
                try:
                    for frame in range(some[0], some[1] + 1):
                        task.check()
                        if self._push_frame(opened, found, frame, metadata[frame]):
                            changed.append(frame)
                finally:
                    found.close()
                number += some[1] - some[0] + 1
                first = some[1] + 1
                is_quick = seconds < CAPTURE_SECONDS
                at_once = min(MOST_AT_ONCE, at_once * 2) if is_quick else max(1, at_once // 2)
        return changed

    def _push_files(self, opened: Session, frames: Sequence[int], task: Task) -> tuple[list[int], list[int]]:
        """Let the engine read the frames of an untouched plate.

        Returns:
            The frames with new content, and those that Nuke must render.
        """
        source: untouched.Source | None = in_main(self._source)
        if source is None:
            return [], list(frames)
        changed: list[int] = []
        rest: list[int] = []
        metadata: dict[int, dict[str, Any]] = {}
        for number, frame in enumerate(frames):
            task.check()
            task.report(f"Reading the plate, {number + 1} of {len(frames)}", number, len(frames))
            if frame not in metadata:
                metadata = in_main(self._metadata_of, frames[number : number + METADATA_AT_ONCE])
            path = source.file(frame)
            is_new = (
                None if path is None else opened.push_file(frame, path, self.fingerprint, metadata[frame])
            )
            if is_new is None:
                rest.append(frame)
            elif is_new:
                changed.append(frame)
            if opened.dirty:
                self._retire(opened, opened.status())
        return changed, rest

    def _source(self) -> untouched.Source | None:
        with full_size():
            return untouched.source_of(find_by_id(self.snapshot.node_id).plate, self.snapshot.view)

    def _metadata_of(self, frames: Sequence[int]) -> dict[int, dict[str, Any]]:
        node = find_by_id(self.snapshot.node_id)
        return {frame: _metadata(node, frame, self.snapshot.view) for frame in frames}

    def _rendered(
        self, frames: Range, scratch: Path, task: Task
    ) -> tuple[capture.PlateFrames, dict[int, dict[str, Any]]]:
        """The next frames and their metadata. It waits while Nuke renders something else."""
        while True:
            task.check()
            try:
                return in_main(self._capture, frames, scratch)
            except BusyError:
                if not nuke.GUI:
                    raise
                task.report("Waiting for Nuke to end another render")
                time.sleep(BUSY_SECONDS)

    def _capture(self, frames: Range, scratch: Path) -> tuple[capture.PlateFrames, dict[int, dict[str, Any]]]:
        node = find_by_id(self.snapshot.node_id)
        metadata = self._metadata_of(range(frames[0], frames[1] + 1))
        return capture.render_plate(node, frames, self.snapshot.view, scratch), metadata

    def _push_frame(
        self, opened: Session, found: capture.PlateFrames, frame: int, metadata: dict[str, Any]
    ) -> bool:
        path, canvas = found.path(frame), opened.snapshot.canvas
        is_new = opened.push_plate(frame, path, self.fingerprint, metadata)
        path.unlink()
        if opened.snapshot.canvas != canvas:
            in_main(self._grow_canvas, opened.snapshot.canvas)
        if opened.dirty:
            self._retire(opened, opened.status())
        return is_new

    def _grow_canvas(self, window: Window) -> None:
        find_by_id(self.snapshot.node_id).grow_canvas(self.snapshot.display_window, window)

    def _check_objects(self, status: Header) -> None:
        """KeyframeError where an object is in no keyframe."""
        keyless = {one.name for one in self.snapshot.objects} - set(status["objects"])
        if keyless:
            raise KeyframeError(
                f"No keyframe shows the object {', '.join(sorted(keyless))}.",
                hint="Go to a frame with its mask and press Set key, or remove it from the objects.",
            )

    def _remember_print(self) -> None:
        """Record that the mattes in the shot's cache fit this state of the graph."""
        self.is_compared = True
        node = find_by_id(self.snapshot.node_id)
        if node.cache == self.snapshot.cache:
            self._set_print(node)

    def _remember_after(self) -> None:
        if self.is_compared:
            self._set_print(find_by_id(self.snapshot.node_id))

    def _set_print(self, node: StmNode) -> None:
        with unrecorded():
            node.set(knobs.PLATE_FINGERPRINT, self.fingerprint)


class _PlateCheck(_PlateWork):
    """All frames rendered again and compared."""

    title = "Checking the plate"

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        first, last = self.snapshot.frames
        self._push(opened, range(first, last + 1), task)
        in_main(self._remember_print)


class _Propagation(_PlateWork):
    """Push missing plate frames, run the network, write matte files."""

    title = "Starting the engine"

    def __init__(self, snapshot: Snapshot, frames: Range, direction: Direction, fingerprint: str) -> None:
        super().__init__(snapshot, fingerprint)
        self.frames = frames
        self.direction = direction

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        self._check_objects(status)
        self._push(opened, opened.plate_needed(self.frames, self.fingerprint), task)
        in_main(self._remember_print)
        task.report(str(opened.plan(self.frames, self.direction)["text"]))

        def on_progress(state: Header) -> None:
            left = tasks.time_left(state["seconds_left"])
            frame = state["frame"]
            task.report(f"{state['text']}{left}", int(state["done"]), int(state["total"]), frame)

        try:
            opened.propagate(self.frames, self.direction, on_progress)
        except EngineError as error:
            if not session.is_gone(error):
                self._export(opened, task)  # finished frames are shown, also after Stop
            raise
        self._export(opened, task)

    def _export(self, opened: Session, task: Task) -> None:
        if not self.snapshot.is_live:
            _write_mattes(opened, task, self.frames)


class _MatteFiles(_Work):
    """The matte files of finished frames."""

    title = "Writing mattes"

    def __init__(self, snapshot: Snapshot, frames: Range) -> None:
        super().__init__(snapshot)
        self.frames = frames

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        _write_mattes(opened, task, self.frames, task.stopped)


class _Shapes(_PlateWork):
    """The mattes as a Roto node."""

    title = "Making shapes"

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        self._push(opened, opened.plate_needed(self.snapshot.frames, self.fingerprint), task)
        in_main(self._remember_print)
        path = self.snapshot.cache / f"shapes.{self.snapshot.view}.json"

        def on_progress(state: Header) -> None:
            task.report(self.title, int(state["done"]), int(state["total"]))

        opened.shapes(path, on_progress)
        in_main(_make_roto, self.snapshot.node_id, path)


class _FarmBundle(_PlateWork):
    """A job bundle of the shot: its plate goes to the shot store first."""

    title = "Preparing the farm's bundle"

    def __init__(self, snapshot: Snapshot, fingerprint: str, folder: Path, frames: Range, stm: str) -> None:
        super().__init__(snapshot, fingerprint)
        self.folder, self.frames, self.stm = folder, frames, stm
        self.words = ""

    def _do(self, opened: Session, status: Header, task: Task) -> None:
        self._check_objects(status)
        self._push(opened, opened.plate_needed(self.frames, self.fingerprint), task)
        in_main(self._remember_print)
        task.report("Writing the bundle")
        store = cache.store_folder(self.snapshot.cache, self.snapshot.view)
        mattes = cache.matte_pattern(self.snapshot.cache, self.snapshot.view)
        self.words = farm.write_bundle(store, self.folder, mattes, self.frames, self.stm, task.stopped)

    def _report(self, status: Header) -> None:
        in_main(self._say)

    def _say(self) -> None:
        show_text(find_by_id(self.snapshot.node_id), f"Farm bundle {self.words}.")


def _make_roto(node_id: str, path: Path) -> None:
    node = find_by_id(node_id)
    shapes = roto.read_shapes(path)
    with _undo(f"Shapes from {node.name}"), node.group.parent():
        made = roto.make_roto(shapes, f"{node.name}_shapes")
        made.setXYpos(node.group.xpos() + 110, node.group.ypos())
    count = len(shapes["shapes"])
    show_text(node, f"{made.name()}: {count} shape{'' if count == 1 else 's'}.")


def _write_mattes(opened: Session, task: Task, frames: Range, aborted: Aborted = never) -> None:
    """Write missing matte files of finished frames."""
    folder, view = opened.snapshot.cache, opened.snapshot.view
    done = set(frames_of(opened.status()["done"])) & set(range(frames[0], frames[1] + 1))
    missing = done - cache.fresh_mattes(folder, view, done)

    def on_progress(state: Header) -> None:
        task.report("Writing mattes", int(state["done"]), int(state["total"]), state["frame"])

    opened.export(ranges_of(missing), on_progress, aborted)


def _metadata(node: StmNode, frame: int, view: str) -> dict[str, Any]:
    """The plate's metadata: plain values only."""
    found: dict[str, Any] = {}
    with contextlib.suppress(RuntimeError, TypeError, ValueError):  # no propagation fails because of it
        found = node.connected_plate().metadata(float(frame), view) or {}
    plain = {name: value for name, value in found.items() if isinstance(value, (str, int, float))}
    time_code = plain.get("input/timecode")
    if isinstance(time_code, str):
        plain["smpte:TimeCode"] = time_code
    return plain


# ---- showing


def _sync_task(node: StmNode, view: str, words: str, ended: Ended, edited: Sequence[int] = ()) -> Task:
    task = Task(node.id, f"STM {node.name}", _Sync(node.snapshot(view), edited))
    if words:
        show_text(node, words)
    return tasks.start(task, _then(view, ended))


def _then(view: str, ended: Ended) -> Callable[[Task], None]:
    """The work in the main thread after a task."""

    def finish(task: Task) -> None:
        try:
            node = find_by_id(task.node_id)
        except StmNodeError:
            return  # deleted meanwhile
        if node.is_live:
            live.look_again(node.group)
        else:
            group.reload_matte(node.group)
        done = task.done if node.is_live else None
        node.show_timeline(view, done, _advised.get(node.id))
        show_keys(node, view)
        if task.error is not None:
            show_text(node, str(task.error))
        elif nuke.GUI and not node.is_live and not node.finish.fits(node.cache, view):
            _finish_again(node, view)
        if ended is not None:
            ended(task)

    return finish


def _finish_again(node: StmNode, view: str) -> None:
    """After a task during which edges or layers were changed in the panel."""
    try:
        take_finish(node, view)
    except StmNodeError as error:
        show_text(node, str(error))


def show_text(node: StmNode, words: str) -> None:
    """Show a text in the status line, without marking the script as modified."""
    _quietly(node, knobs.STATUS, words)


def show_keys(node: StmNode, view: str, seconds: float | None = None) -> None:
    """Show the list: keys, whether their mask input changed, the advised frame, frames without a matte.

    Args:
        seconds: the most time for checking the mask input; after it the state is unknown.
    """
    try:
        now = node.mask_fingerprint(seconds)
    except fingerprint.TookTooLong:
        now = ""
    first, last = node.frames
    lines = []
    for key in node.keys_of(view):
        if not first <= key.frame <= last:
            state = "outside the range"
        elif key.fingerprint in _ORIGINS:
            state = _ORIGINS[key.fingerprint]
        else:
            changed = "mask input changed" if now else "press Refresh status"
            state = "fresh" if key.fingerprint == now else changed
        lines.append(f"{key.frame}  {state}")
    advised = _advised.get(node.id)
    if advised is not None:
        lines.append(f"{advised}  advised")
    lines += [f"{in_words(frames)}  {what}" for what, frames in node.frames_by_state() if frames]
    _quietly(node, knobs.KEY_LIST, "\n".join(lines) or "none")


_ORIGINS = {FROM_FILE: "from a file", FROM_FIX: "from a fix"}
_weights_in_words: dict[str, str] = {}


def _show_configuration(node_id: str, found: locks.Taken) -> None:
    node = find_by_id(node_id)
    with unrecorded():
        locks.show(node, found)


def _show_in(node_id: str, knob: str, words: str) -> None:
    _quietly(find_by_id(node_id), knob, words)


def _show_status(snapshot: Snapshot, status: Header) -> None:
    node = find_by_id(snapshot.node_id)
    first, last = snapshot.frames
    ready = cache.fresh_mattes(snapshot.cache, snapshot.view, range(first, last + 1))
    no_advice = str(status.get("no_advice", ""))
    advice = status.get("advice") or (None if no_advice else _least_sure(snapshot, ready))
    _advised[node.id] = None if advice is None else int(advice["frame"])
    words = (
        str(status["text"])
        if snapshot.keys
        else "No key yet. Go to a frame with a good mask and press Set key."
    )
    if advice is not None:
        words += f". Next key: {advice['text']}"
    words += "."
    if no_advice and snapshot.keys:
        words += f" {no_advice}"
    for note in status.get("notes") or ():
        words += f" {note}"
    if not snapshot.is_live:
        words += f" {counted(len(ready), 'matte file')} of {last - first + 1} ready."
    show_text(node, words)


def _least_sure(snapshot: Snapshot, frames: Iterable[int]) -> Mapping[str, Any] | None:
    """The frame with the least confidence, by the headers of the matte files."""
    found = {}
    for frame in frames:
        path = cache.matte_path(snapshot.cache, snapshot.view, frame)
        confidence = exr.number_attribute(path, CONFIDENCE_ATTRIBUTE)
        if confidence is not None and confidence < SURE:
            found[frame] = confidence
    if not found:
        return None
    frame = min(found, key=lambda one: (found[one], one))
    return {"frame": frame, "text": f"{frame}, where the confidence is least ({found[frame]:.2f} of 1)"}


_advised: dict[str, int | None] = {}


def advised_frame(node: StmNode) -> int:
    """Where the next key would help most, by the engine's last status. KeyframeError if it gave none."""
    frame = _advised.get(node.id)
    if frame is None:
        raise KeyframeError("There is no advice.", hint="Propagate first, or press Refresh status.")
    return frame


def _quietly(node: StmNode, knob: str, words: str) -> None:
    root = nuke.root()
    was_modified = root.modified()
    with unrecorded():
        node.set(knob, words)
    root.setModified(was_modified)


def host_name() -> str:
    """The name of this program for the engine."""
    return f"nuke {nuke.NUKE_VERSION_STRING}"


class _undo:
    """Make all changes inside one step of undo."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        nuke.Undo.begin(self._name)

    def __exit__(self, *error: object) -> None:
        nuke.Undo.end()
