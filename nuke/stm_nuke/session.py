"""A node's shot in the engine, and its updates from the node's knobs.

It does not use `nuke`, so it runs in any thread.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from stm_nuke import cache, exr, locks
from stm_nuke.client import Engine, Shot
from stm_nuke.errors import CacheError, KeyframeError
from stm_nuke.frames import Range, frames_of
from stm_nuke.keys import Key, mask_path, parse_keys
from stm_nuke.node import Snapshot, union
from stm_nuke.wire import Aborted, AbortedError, EngineError, EngineGoneError, Header, Window, never

DIGESTS_AT_ONCE = 5000
STOP_SECONDS = 60.0
"""The most seconds for the last frame of a cancelled job."""
STOP_STEP_MS = 200
PROTOCOL_OF_PATHS = (1, 3)
"""The protocol in which the engine reads plate frames from their own files."""
GONE_CODES = frozenset(("gone", "unknown_job", "unknown_shot"))
"""The error codes of an engine that died and was replaced."""

_engine: Engine | None = None
_lock = threading.Lock()


def engine(host: str) -> Engine:
    """The engine of this process. It is started by the first call."""
    global _engine
    with _lock:
        if _engine is None:
            _engine = Engine(host)
        return _engine


def leave_engine() -> None:
    """Close the connection; the engine keeps running for others."""
    global _engine
    with _lock:
        if _engine is not None:
            _engine.close()
        _engine = None


def is_gone(error: EngineError) -> bool:
    """Whether the engine has died, so that a new one may be tried."""
    return isinstance(error, EngineGoneError) or error.code in GONE_CODES


class Session:
    """An open shot in the engine, for one task.

    Attributes:
        scratch: a folder of mode 0700. The engine reads rendered pictures from it, and from nowhere else.
    """

    def __init__(self, snapshot: Snapshot, host: str, aborted: Aborted, scratch: Path) -> None:
        self.snapshot = snapshot
        self.scratch = scratch
        self.dirty: set[int] = set()
        """Frames whose matte became out of date by changes of this session."""
        self._engine = engine(host)
        self._aborted = aborted
        is_new = not cache.store_folder(snapshot.cache, snapshot.view).is_dir()
        described = self._engine.info(aborted)["settings"]
        self.taken = locks.taken(snapshot.settings, described, is_new)
        """What the configuration of site and show gives in the place of the node's own settings."""
        self._shot: Shot = self._engine.shot(self._opening())

    @classmethod
    @contextlib.contextmanager
    def opened(cls, snapshot: Snapshot, host: str, aborted: Aborted) -> Iterator[Session]:
        """Open the shot, and close it at the end, so that other programs may use it."""
        with tempfile.TemporaryDirectory(prefix="stm-") as scratch:
            session = cls(snapshot, host, aborted, Path(scratch))
            try:
                session._open()
                yield session
            finally:
                with contextlib.suppress(EngineError):
                    session._shot.close()

    def _opening(self) -> Header:
        """The fields of `open_shot`."""
        return {**self.snapshot.opening(), "settings": self.settings, "scratch": str(self.scratch)}

    @property
    def settings(self) -> Header:
        """The settings of the shot, by the engine's names."""
        return {**self.snapshot.settings, **self.taken.values}

    def _open(self) -> None:
        """Open the shot. Keys outside its range are removed first, as the engine refuses them."""
        first, last = self.snapshot.frames
        noted = parse_keys(cache.recorded_keys(self.snapshot.cache, self.snapshot.view) or "")
        outside = {key.frame for key in noted if not first <= key.frame <= last}
        folder = cache.store_folder(self.snapshot.cache, self.snapshot.view)
        if outside and folder.is_dir():
            as_it_was = {name: self._shot.opening[name] for name in ("folder", "owner")}
            shot = self._engine.shot(as_it_was)
            for found in shot.list_keys():
                frame = int(found["frame"])
                if frame in outside:
                    self._record_dirty(shot.remove_key(frame, interrupt=True), frame)
            shot.close()
        self._shot.open(self._aborted)

    # ---- updates from the node

    def sync(self) -> Header:
        """Update objects and keys from the node; returns the status.

        Raises:
            KeyframeError: the mask of a key is missing. EngineError.
        """
        snapshot = self.snapshot
        wanted = {key.frame: key for key in snapshot.keys}
        names = {one.name for one in snapshot.objects}
        for found in self._shot.list_keys():
            frame = int(found["frame"])
            if frame not in wanted:
                self._record_dirty(self._shot.remove_key(frame, interrupt=True), frame)
        present = {int(found["frame"]): found for found in self._shot.list_keys()}
        for frame, key in sorted(wanted.items()):
            self._sync_key(key, present.get(frame), names)
        gone = [name for name in self._shot.status()["objects"] if name not in names]
        if gone:
            reply = self._shot.set_objects(remove=gone, interrupt=True)
            self.dirty.update(frames_of(reply["dirty"]))
        return self.status()

    def _sync_key(self, key: Key, present: Mapping[str, Any] | None, names: set[str]) -> None:
        in_engine = set() if present is None else {str(one["name"]) for one in present["objects"]}
        if present is not None and present["digest"] == key.digest and in_engine <= names:
            return
        path = mask_path(self.snapshot.cache, key.digest)
        objects = {name: name for name in self._objects_of(key, path) if name in names}
        if not objects:
            raise KeyframeError(
                "The keyframe has none of the objects any more.",
                frame=key.frame,
                hint="Set it again, or delete it, or restore the object's name.",
            )
        copy = self.scratch / "key.exr"  # the engine reads nothing outside this folder
        try:
            shutil.copyfile(path, copy)
            reply = self._shot.push_key_file(
                key.frame,
                copy.name,
                objects,
                self._aborted,
                digest=key.digest,
                allow_empty=True,  # the artist was told: the object is not in the picture
                replace=True,
                interrupt=True,
            )
        except OSError as error:
            raise _gone(key, path) from error
        except EngineError as error:
            if error.code != "file":
                raise
            raise _gone(key, path) from error
        finally:
            copy.unlink(missing_ok=True)
        self._record_dirty(reply, key.frame)

    def _objects_of(self, key: Key, path: Path) -> list[str]:
        try:
            return exr.channel_names(path)
        except (OSError, exr.ExrError) as error:
            raise _gone(key, path) from error

    def _record_dirty(self, reply: Mapping[str, Any], frame: int) -> None:
        self.dirty.update(frames_of(reply.get("dirty", [])))
        if reply.get("changed", True):
            self.dirty.add(frame)

    # ---- the plate

    def plate_needed(self, frames: Range, fingerprint: str) -> list[int]:
        """The plate frames that the engine lacks, or that come from another state of the graph."""
        needed: set[int] = set()
        every = range(self.snapshot.frames[0], self.snapshot.frames[1] + 1)
        for start in range(0, len(every), DIGESTS_AT_ONCE):
            digests = dict.fromkeys(every[start : start + DIGESTS_AT_ONCE], fingerprint)
            asked = set(frames_of(self._shot.plate_needed(frames, digests)))
            needed |= asked if len(every) <= DIGESTS_AT_ONCE else asked & set(digests)
        return sorted(needed)

    def push_plate(self, frame: int, path: Path, fingerprint: str, metadata: Mapping[str, Any]) -> bool:
        """Push one frame, from its file below `scratch`; returns whether its content was new.

        A frame that reaches beyond `snapshot.canvas` extends it.
        """

        def push() -> Header:
            name = path.relative_to(self.scratch).as_posix()
            return self._shot.push_plate_file(
                frame, name, self._aborted, digest=fingerprint, metadata=dict(metadata) or None
            )

        before = self.snapshot.canvas
        try:
            reply = push()
        except EngineError as error:
            window = error.details.get("data_window")
            grown = before if error.code != "plate" or window is None else union(before, tuple(window))
            if grown == before:
                raise
            self._change_canvas(grown)
            try:
                reply = push()
            except EngineError:
                self._change_canvas(before)  # it was not the window: another size, or another aspect
                raise
        self.dirty.update(frames_of(reply["dirty"]))
        return bool(reply["changed"])

    def push_file(self, frame: int, path: Path, fingerprint: str, metadata: Mapping[str, Any]) -> bool | None:
        """Let the engine read one frame from the plate's own file.

        Returns:
            Whether its content was new; None where the engine does not take it, and the host must render it.
        """
        if self._engine.connection(self._aborted).protocol < PROTOCOL_OF_PATHS:
            return None
        try:
            reply = self._shot.push_plate_path(
                frame, str(path), self._aborted, digest=fingerprint, metadata=dict(metadata) or None
            )
        except EngineError as error:
            if error.code != "plate":
                raise
            return None
        self.dirty.update(frames_of(reply["dirty"]))
        return bool(reply["changed"])

    def _change_canvas(self, canvas: Window) -> None:
        self.snapshot = replace(self.snapshot, canvas=canvas)
        self._shot.close()
        self._shot = self._engine.shot(self._opening())
        self._shot.open(self._aborted)

    # ---- status and computing

    def status(self) -> Header:
        """The state of all frames."""
        return self._shot.status()

    def weights_in_words(self) -> str:
        """The weights in use, their training data and their licence."""
        name = self.taken.values.get("weights", self.snapshot.settings["weights"])
        for one in self._engine.info(self._aborted)["weights"]:
            if name in (one["name"], one["id"]):
                return (
                    f"{one['name']} ({one['architecture']}), {str(one['id'])[:12]}. "
                    f"Licence: {one['licence']}. Trained on {one['training_data']}."
                )
        return f"{name}: what these weights are is in their file."

    def plan(self, frames: Range, direction: str) -> Header:
        """The plan of a propagation."""
        return self._shot.plan(frames, direction)

    def propagate(self, frames: Range, direction: str, on_progress: Callable[[Header], None]) -> None:
        """Compute the frames that are not done."""
        self._wait(self._shot.propagate(frames, direction), on_progress, self._aborted)

    def _wait(self, job: str, on_progress: Callable[[Header], None], aborted: Aborted) -> None:
        try:
            self._engine.wait(job, on_progress=on_progress, aborted=aborted)
        except AbortedError:
            self._wait_until_stopped(job)
            raise

    def _wait_until_stopped(self, job: str) -> None:
        """Wait for a cancelled job to end its frame; until then the shot accepts no other request."""
        end = time.monotonic() + STOP_SECONDS
        state = self._engine.job(job)
        while state["state"] in ("queued", "running") and time.monotonic() < end:
            state = self._engine.job(job, wait_ms=STOP_STEP_MS, seen=state["version"])

    def shapes(self, file: Path, on_progress: Callable[[Header], None]) -> None:
        """Write the mattes of the whole range as splines (JSON)."""
        known = self._shot.status(self.snapshot.frames)["objects"]
        objects = [one.name for one in self.snapshot.objects if one.name in known]
        job = self._shot.shapes(str(file), "json", self.snapshot.frames, objects)
        self._engine.wait(job, on_progress=on_progress)

    def export(
        self, frames: Iterable[Range], on_progress: Callable[[Header], None], aborted: Aborted = never
    ) -> None:
        """Write the matte files for the node's Read.

        CacheError where a file does not exist afterwards.
        """
        folder, view = self.snapshot.cache, self.snapshot.view
        pattern = cache.matte_pattern(folder, view)
        objects = [one.name for one in self.snapshot.objects]
        for first, last in frames:
            known = self._shot.status((first, last))["objects"]
            job = self._shot.export(pattern, (first, last), "A", [name for name in objects if name in known])
            self._wait(job, on_progress, aborted)
            for frame in range(first, last + 1):
                if not cache.matte_path(folder, view, frame).is_file():
                    raise CacheError("The matte file was not written.", frame=frame)
            cache.renew_mattes(folder, view, range(first, last + 1))


def _gone(key: Key, path: Path) -> KeyframeError:
    return KeyframeError(
        f"The mask of the keyframe is gone: {path}.", frame=key.frame, hint="Set the keyframe again."
    )
