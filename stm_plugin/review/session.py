"""The shot of the page: its state, its pictures, its changes, and one propagation at a time.

The engine makes every change and computes, as for any other client. What is only read (plate, mattes, keys,
the plan) is read from the shot store here.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from stm_plugin.errors import (
    ConfigurationError,
    OutputError,
    PlateError,
    PropagationCancelled,
    SettingsError,
    StmError,
)
from stm_plugin.farm.writing import make_job, tasks_of, write_bundle
from stm_plugin.files.lock import Holder
from stm_plugin.images.overlay import OBJECT_COLOURS, Colour, object_colours
from stm_plugin.images.plate import Plate
from stm_plugin.images.sequence import output_sequence
from stm_plugin.propagation.frame_loader import signature_of
from stm_plugin.review.ahead import MadeAhead
from stm_plugin.review.engine_client import RESTARTED, Header, ShotClient
from stm_plugin.review.engine_process import EngineProcess
from stm_plugin.review.proxies import PictureCache, Size, encode_matte, encode_picture
from stm_plugin.review.start_mask import Hints, first_mask
from stm_plugin.settings import flat_settings
from stm_plugin.shot.shot import Shot
from stm_plugin.windows import FloatArray, on_window, place

CHOICES: Final = ("finish.edges", "finish.width", "foreground")
"""Settings that the page offers."""
_WATCH_SECONDS: Final = 0.25
_LOCKS: Final = 32  # frames that can be made at once
Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """The progress of a propagation for the page: steps done and all steps, and how it ended."""

    running: bool = False
    done: int = 0
    total: int = 0
    frame: int | None = None
    seconds_left: float | None = None
    message: str = ""
    failed: bool = False
    other: bool = False
    """Whether another client of the engine started it."""


class ReviewSession:
    """One open shot and the pages that show it. Thread-safe.

    Args:
        shot: an open shot, which is only read; `close` closes it.
        cache: for pictures of this shot.
    """

    def __init__(self, shot: Shot, cache: PictureCache) -> None:
        self._shot, self._cache = shot, cache
        self._process = EngineProcess()
        self._engine = self._new_client()
        self._engine_state = "starting"
        self._mutex = threading.RLock()
        self._listeners: set[Listener] = set()
        self._run = Run()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._finished: set[int] = set()
        self._exported: tuple[str, int, int] | None = None
        self._colours: dict[tuple[str, ...], tuple[Colour, ...]] = {}
        self._frame_locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self._ahead = MadeAhead(
            lambda: self._shot.plate.frames,
            lambda frame: self.plate(frame, "proxy"),
            lambda: self._run.running,
        )
        self._ended = threading.Event()
        self._marks = self._marks_now()
        self._held_by = self._shot.store.lock.held_by_another()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    # ---- state and pictures ----

    def state(self) -> dict[str, Any]:
        """The state that the page shows, without pictures.

        Raises:
            StmError: the plate is missing or the store is damaged.
        """
        with self._mutex:
            status, shot = self._shot.status(), self._shot
            canvas, display = shot.plate.canvas, shot.plate.display_window
            names = shot.objects or ("object",)
            return {
                "name": shot.folder.stem,
                "folder": str(shot.folder),
                "frames": list(shot.plate.frames),
                "missing": list(status.plate_missing),
                "canvas": [canvas.x, canvas.y, canvas.width, canvas.height],
                "display": [display.x, display.y, display.width, display.height],
                "pixelAspect": shot.plate.pixel_aspect,
                "fps": shot.plate.fps or 24.0,
                "objects": [
                    {"name": name, "colour": list(colour)}
                    for name, colour in zip(names, self._colours_of(names), strict=True)
                ],
                "keys": [{"frame": key.frame, "objects": key.objects} for key in status.keys],
                "states": {str(frame): state.value for frame, state in status.states.items()},
                "confidence": self._confidence(),
                "dirty": [str(one) for one in status.dirty],
                "networkFrames": status.network_frames,
                "advice": list(status.advice),
                "next": None
                if status.next_key is None
                else {"frame": status.next_key.frame, "text": status.next_key.text},
                "noAdvice": status.no_advice,
                "heldBy": self._words_of(status.holder),
                "engine": self._engine_state,
                "run": asdict(self._run),
                "cryptomatte": shot.settings.cryptomatte,
                "settings": {name: flat_settings(shot.settings)[name] for name in CHOICES},
                "locked": self._locked(),
                "bundle": str(self._bundle_folder()),
                "exported": None if self._exported is None else self._exported[0],
            }

    def _locked(self) -> dict[str, str]:
        """Which of the page's settings the configuration locks, and the sentence that says who did."""
        try:
            locked = self._shot.configuration.locked
        except ConfigurationError:  # the engine names it with the first change
            return {}
        return {name: locked[name].why_locked or "" for name in (*CHOICES, "cryptomatte") if name in locked}

    def _colours_of(self, names: tuple[str, ...]) -> tuple[Colour, ...]:
        """The colours of the objects, chosen for contrast on the first key and kept from then on."""
        keys = self._shot.keys
        if names not in self._colours and keys:
            frame = keys[0].frame
            shown = self._shot.matte(frame).mattes if set(keys[0].objects) == set(names) else {}
            if shown:
                self._colours[names] = object_colours(self._shot.display(frame), shown)
        fallback = tuple(OBJECT_COLOURS[index % len(OBJECT_COLOURS)] for index in range(len(names)))
        return self._colours.get(names, fallback)

    def _words_of(self, holder: Holder | None) -> str | None:
        """Who holds the shot, for people; None if it is nobody, or the engine that the page uses."""
        is_known = holder is not None and holder.pid != 0  # the holder has yet to write its name
        return str(holder) if is_known and not self._is_engine(holder) else None

    def _is_engine(self, holder: Holder | None) -> bool:
        """Whether the engine that the page uses holds the shot."""
        return holder is not None and (holder.pid, holder.host) == (self._engine.pid, socket.gethostname())

    def _confidence(self) -> dict[str, float]:
        """The confidence of each finished frame, in [0, 1]."""
        return {str(frame): round(one.confidence, 4) for frame, one in self._shot.store.qualities().items()}

    def plate(self, frame: int, size: Size) -> bytes:
        """A plate frame over the canvas, as WebP.

        Raises:
            PlateError: it cannot be read.
        """
        plate, mark = self._shot.plate, signature_of(self._shot.plate, frame)
        if isinstance(plate, Plate) and frame in plate.frames and mark is None:
            raise PlateError("The plate frame is missing.", frame=frame, path=plate.sequence.path(frame))
        signature = f"{mark} {self._shot.settings.id('picture')}"
        found = self._cache.get("plate", str(frame), signature, size)
        if found is not None:
            return found
        with self._frame_locks[frame % _LOCKS]:  # the second one who wants it waits for the first
            found = self._cache.get("plate", str(frame), signature, size)
            if found is None:
                found = encode_picture(self._display(frame), size)
                self._cache.put(found, "plate", str(frame), signature, size)
        return found

    def look_at(self, frame: int) -> None:
        """State which frame is looked at: small pictures of the plate are made ahead from there."""
        self._ahead.look_at(frame)

    @property
    def engine_pid(self) -> int:
        """The engine's process; 0 before it was reached."""
        return self._engine.pid

    @property
    def proxies_left(self) -> int:
        """How many small pictures of the plate have not been made ahead."""
        return self._ahead.left

    def matte(self, frame: int, name: str, size: Size) -> tuple[bytes, str]:
        """An object's matte over the canvas as WebP (alpha), and its address.

        Raises:
            MatteError: it is not done; the text states why.
            PlateError: the plate frame cannot be read.
        """
        finished = self._shot.matte(frame)
        found = self._cache.get("matte", finished.address, name, size)
        if found is None:
            window, canvas = finished.plate_frame.data_window, self._shot.plate.canvas
            matte = finished.mattes.get(name)
            pixels = (
                np.zeros((canvas.height, canvas.width), np.float32)
                if matte is None
                else place(matte, window, canvas)
            )
            found = encode_matte(pixels, size)
            self._cache.put(found, "matte", finished.address, name, size)
        return found, finished.address

    def confidence(self, frame: int, name: str) -> bytes:
        """The uncertain pixels of an object: bright over the canvas, as WebP (alpha).

        Raises:
            MatteError, PlateError: as `matte`.
        """
        address = self._shot.matte(frame).address
        found = self._cache.get("confidence", address, name)
        if found is None:
            sure = self._shot.confidence(frame).get(name)
            window, canvas = self._shot.plate.header(frame).data_window, self._shot.plate.canvas
            uncertainty = np.zeros((1, 1), np.float32) if sure is None else place(1 - sure, window, canvas)
            found = encode_matte(uncertainty, "proxy")
            self._cache.put(found, "confidence", address, name)
        return found

    def start_mask(self, frame: int, hints: Hints) -> bytes:
        """A first mask over the canvas from strokes and a box, as WebP (alpha).

        Raises:
            MaskError: no object was found at the hints.
            PlateError: the plate frame cannot be read.
        """
        return encode_matte(first_mask(self._display(frame), hints), "full")

    def _display(self, frame: int) -> FloatArray:
        """(H, W, 3) sRGB in [0, 1] over the canvas."""
        window = self._shot.plate.header(frame).data_window
        return on_window(self._shot.display(frame), window, self._shot.plate.canvas)

    # ---- changes, all by the engine ----

    def set_key(self, frame: int, name: str, mask: FloatArray, *, empty: bool = False) -> None:
        """Set an object's mask on a frame; other objects of the key are kept.

        Args:
            mask: float32 (H, W) in [0, 1] over the canvas.
            empty: whether an empty mask is accepted; it means "not here".

        Raises:
            StmError: the engine refuses it.
        """
        canvas, (height, width) = self._shot.plate.canvas, mask.shape
        image = {
            "format": "float",
            "channels": ["A"],
            "data_window": [canvas.x, canvas.y, width, height],
            "layout": "interleaved",
            "row_bytes": 4 * width,
        }
        objects = [{"name": name, "channel": "A"}]
        pixels = mask.astype("<f4").tobytes()
        self._engine.call("push_key", pixels, frame=frame, objects=objects, image=image, allow_empty=empty)
        self._changed()

    def remove_key(self, frame: int) -> None:
        """Remove a key. StmError where the engine refuses it."""
        self._engine.call("remove_key", frame=frame)
        self._changed()

    def choose(self, settings: Mapping[str, Any]) -> None:
        """Change some of the settings `CHOICES`.

        Raises:
            StmError: a value is wrong, or the configuration locks it.
        """
        unknown = sorted(set(settings) - set(CHOICES))
        if unknown:
            raise SettingsError(f"The page does not set {unknown[0]}.", hint=f"It sets {', '.join(CHOICES)}.")
        self._engine.call("set_settings", settings=dict(settings))
        self._changed()

    def propagate(self) -> bool:
        """Start a propagation; False where one is running."""
        with self._mutex:
            if self._run.running:
                return False
            self._follow(self._propagate, Run(running=True))
        self._notify({"kind": "state"})
        return True

    def stop(self) -> None:
        """Stop a propagation after its current frame. Finished frames are kept."""
        self._stop.set()

    def export(self, out: str, *, overwrite: bool = False, cryptomatte: bool = False) -> str:
        """Write the mattes as EXR files; returns a text that says so.

        Raises:
            StmError: a file must not be replaced, or a frame is not done.
        """
        if not out.strip():
            raise OutputError("The mattes have no name.", hint="Write one, such as /folder/matte.####.exr.")
        sequence, frames = output_sequence(Path(out).expanduser().absolute()), self._shot.plate.frames
        order = {"pattern": str(sequence), "cryptomatte": cryptomatte, "overwrite": overwrite}

        def on_state(state: Header) -> None:
            self._notify({"kind": "export", "done": state["done"], "total": state["total"]})

        with contextlib.closing(self._new_client()) as client:
            client.run("export", order, on_state, self._ended.is_set)
        self._exported = (str(sequence), frames[0], frames[-1])
        self._notify({"kind": "state"})
        return f"{len(frames)} frames: {sequence}"

    def _changed(self) -> None:
        with self._mutex:
            self._shot.refresh()
        self._notify({"kind": "state"})

    def bundle(self, mattes: str = "", *, overwrite: bool = False) -> str:
        """Write the job bundle of the shot beside it, as NAME.bundle; returns a text that says so.

        Args:
            mattes: the sequence that the farm writes; NAME.####.exr beside the shot if empty.
            overwrite: whether files in the bundle's folder that STM did not make may be replaced.

        Raises:
            OutputError: a file must not be replaced.
            StmError: there is no key, or the shot does not fit this machine.
        """
        folder = self._bundle_folder()
        job = make_job(self._shot.folder, mattes or None)
        write_bundle(job, folder, overwrite=overwrite)
        return f"{folder}: {tasks_of(job)}. The farm writes {job.out}."

    def _bundle_folder(self) -> Path:
        return self._shot.folder.absolute().with_suffix(".bundle")

    def nuke_text(self) -> str:
        """A Read of the exported mattes as text to paste into Nuke's node graph.

        Raises:
            StmError: nothing was exported.
        """
        if self._exported is None:
            raise StmError("Nothing was exported yet.", hint="Export first: Nuke reads the files.")
        file, first, last = self._exported
        return (
            "set cut_paste_input [stack 0]\n"
            "push $cut_paste_input\n"
            "Read {\n"
            " inputs 0\n"
            f" file {json.dumps(file)}\n"
            f" first {first}\n last {last}\n origfirst {first}\n origlast {last}\n"
            " origset true\n raw true\n on_error error\n"
            f" name {self._shot.folder.stem.replace(' ', '_')}_matte\n"
            "}\n"
        )

    # ---- listeners ----

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after every change, from any thread; returns a function that ends this."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def close(self) -> None:
        """Stop, wait for the current frame, and close the shot."""
        self.stop()
        self._ended.set()
        self._ahead.close()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._engine.close()
        self._watcher.join()
        self._process.let_go()
        self._shot.close()

    def _notify(self, what: dict[str, Any]) -> None:
        for listener in tuple(self._listeners):
            listener(what)

    # ---- the engine, other processes, other clients ----

    def _watch(self) -> None:
        """Keep the engine running; notify the pages when another process takes, frees or changes the shot.

        The lock is tried only where its file changed, and while another process holds it.
        """
        self._keep_connected()
        while not self._ended.wait(_WATCH_SECONDS):
            if self._engine.has_ended() or self._engine_state != "ready":
                self._keep_connected()
            marks = self._marks_now()
            if marks == self._marks and self._held_by is None:
                continue
            holder = self._shot.store.lock.held_by_another()
            if (marks, holder) == (self._marks, self._held_by):
                continue
            self._marks, self._held_by = marks, holder
            if self._is_engine(holder):
                self._join_others_job()
            self._notify({"kind": "state"})

    def _keep_connected(self) -> None:
        """Find or start the engine; what does not work is said, and tried again."""
        before = self._engine_state
        try:
            self._engine.connect()
            self._engine_state = "ready"
        except StmError as error:
            self._engine_state = str(error)
        if self._engine_state != before:
            self._notify({"kind": "state"})

    def _new_client(self) -> ShotClient:
        """A connection to the engine. A job has one, so that it does not delay other requests."""
        return ShotClient(self._shot.folder, self._process, self._say_restarted)

    def _say_restarted(self) -> None:
        if not self._ended.is_set():
            self._notify({"kind": "notice", "text": RESTARTED})

    def _join_others_job(self) -> None:
        """Show the progress of a propagation that another client of the engine started."""
        if self._run.running:
            return
        try:
            jobs = self._engine.call("status")["jobs"]
        except StmError:
            return
        with self._mutex:
            if jobs and not self._run.running:
                self._follow(lambda: self._follow_other(jobs[0]), Run(running=True, other=True))

    def _marks_now(self) -> tuple[int, int]:
        """The times of the description and of the lock's file; 0 where there is none."""
        found = []
        for name in ("shot.json", "LOCK"):
            try:
                found.append(os.stat(self._shot.folder / name).st_mtime_ns)
            except OSError:
                found.append(0)
        return found[0], found[1]

    # ---- jobs ----

    def _follow(self, work: Callable[[], Run], begun: Run) -> None:
        """Run `work`, which returns how a job ended, in the thread of jobs."""
        self._stop.clear()
        self._run, self._finished = begun, set()
        self._thread = threading.Thread(target=self._until_end, args=(work,), name="job", daemon=True)
        self._thread.start()

    def _until_end(self, work: Callable[[], Run]) -> None:
        ended = Run()
        try:
            ended = work()
        except PropagationCancelled:
            ended = Run(message="Stopped. Finished frames are kept; propagating again continues from here.")
        except StmError as error:
            ended = Run(message=str(error), failed=True)
        except Exception as error:
            ended = Run(message=f"The page failed: {error!r}. Finished frames are kept.", failed=True)
            raise
        finally:
            with self._mutex:
                self._run = ended
            self._notify({"kind": "state"})

    def _propagate(self) -> Run:
        started = time.monotonic()
        with contextlib.closing(self._new_client()) as client:
            replies = client.run("propagate", {}, self._on_job, self._stop.is_set)
        computed = max(reply["compute"] for reply in replies)
        return Run(message=f"{computed} computed, {time.monotonic() - started:.1f} s")

    def _follow_other(self, job: str) -> Run:
        with contextlib.closing(self._new_client()) as client:
            client.connect()
            client.follow(job, self._on_job, self._stop.is_set)
        return Run(message="Another program propagated this shot.")

    def _on_job(self, state: Header) -> None:
        self._run = replace(
            self._run,
            done=state["done"],
            total=state["total"],
            frame=state["frame"],
            seconds_left=state["seconds_left"],
        )
        self._notify({"kind": "progress", "run": asdict(self._run)})
        finished = {frame for first, last in state["finished"] for frame in range(first, last + 1)}
        for frame in sorted(finished - self._finished):
            self._notify({"kind": "frame", "frame": frame})
        self._finished = finished
