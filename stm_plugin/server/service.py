"""The engine for all its clients: open shots, jobs, devices, and the work of each request."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from stm_plugin import protocol as p
from stm_plugin.errors import PlateError, StmError
from stm_plugin.protocol import RequestError, ranges_of
from stm_plugin.server import pixels
from stm_plugin.server.backend import (
    Backend,
    Change,
    ExportOrder,
    Matte,
    PushedFrame,
    PushedMasks,
    ShapesOrder,
    ShotBackend,
)
from stm_plugin.server.jobs import REMEMBERED_SECONDS, DeviceQueue, Job, Work
from stm_plugin.server.mapped import MapFolder
from stm_plugin.server.plate_file import read_plate_file
from stm_plugin.server.replies import (
    configured_json,
    information_json,
    keys_json,
    no_matte,
    plan_json,
    range_words,
    reasons_json,
    state_words,
)
from stm_plugin.server.scratch import PushedPicture, ScratchFolder

log = logging.getLogger("stm.server")

T = TypeVar("T")
Reply = tuple[dict[str, Any], memoryview | bytes]

WORKER_THREADS: Final = 8
JOB_END_SECONDS: Final = 30.0
"""The most seconds for a job to stop when the engine ends."""
_END_POLL_SECONDS: Final = 0.02
_INTERRUPT_SECONDS: Final = 300.0


class Client(Protocol):
    """The service's interface of a connection."""

    prefix: str
    name: str

    def job_changed(self, job: Job) -> None:
        """A job of this connection has changed; called on the event loop."""


@dataclass
class SharedShot:
    """One open shot store and its users."""

    handle: str
    folder: Path
    backend: ShotBackend
    owner: str | None
    users: set[Client] = field(default_factory=set)
    edit: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while keys, settings or the plate change, so that changes of several clients do not mix."""
    scratch: dict[Client, ScratchFolder] = field(default_factory=dict)

    def state_json(self, frames: p.Range | None, jobs: Sequence[str]) -> dict[str, Any]:
        """The reply to `status`."""
        state = self.backend.state(frames)
        return {
            "shot": self.handle,
            "frames": [state.first, state.last],
            "objects": list(state.objects),
            "keys": list(state.keys),
            "done": ranges_of(state.done),
            "stale": ranges_of(state.stale),
            "missing": ranges_of(state.missing),
            "plate_missing": ranges_of(state.plate_missing),
            "reasons": reasons_json(state.reasons),
            "text": state_words(state.done, state.stale, state.missing),
            "advice": None if state.advice is None else {"frame": state.advice[0], "text": state.advice[1]},
            "no_advice": state.no_advice,
            "notes": list(state.notes),
            "jobs": list(jobs),
            **configured_json(),
        }


class Service:
    """Carries out requests. It runs on the event loop; long work runs in threads."""

    def __init__(self, load_backend: Callable[[], Backend], maps: MapFolder) -> None:
        self.maps = maps
        self.stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="request")
        self._load_backend = load_backend
        self._loading: asyncio.Future[Backend] | None = None
        self._shots: dict[str, SharedShot] = {}
        self._opening: dict[Path, asyncio.Lock] = {}
        self._jobs: dict[str, Job] = {}
        self._starters: dict[str, tuple[Client, bool]] = {}  # job id -> who started it, detached
        self._job_news: dict[str, asyncio.Event] = {}
        self._devices: dict[str, DeviceQueue] = {}
        self._handles = itertools.count(1)
        self._tidying: set[asyncio.Task[None]] = set()
        self._worked_at: float | None = None
        self._has_ended = False

    # ---- housekeeping

    @property
    def is_working(self) -> bool:
        """Whether any job is running."""
        return any(not job.has_ended for job in self._jobs.values())

    @property
    def worked_at(self) -> float | None:
        """When pixels or a whole shot were last used, by the monotonic clock; None since the last release."""
        return time.monotonic() if self.is_working else self._worked_at

    def begin_loading(self) -> asyncio.Future[Backend]:
        """Start to load the engine in a thread, unless that has begun: it takes seconds."""
        if self._loading is None:
            self._loading = self._loop.run_in_executor(self._threads, self._load_backend)
        return self._loading

    async def rest(self) -> None:
        """Release memory that is only kept for speed."""
        self._worked_at = None
        await self.in_thread((await self._backend()).rest)

    def counts(self) -> dict[str, int]:
        """The numbers of running jobs and open shots."""
        working = sum(not job.has_ended for job in self._jobs.values())
        return {"jobs": working, "shots": len(self._shots)}

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking work beside the event loop."""
        return await self._loop.run_in_executor(self._threads, partial(work, *args))

    async def leave(self, client: Client) -> None:
        """After the end of a connection, close its shots, cancel its jobs, remove its files."""
        if self._has_ended:
            return  # the shots are closed, and the folder of all files is removed
        for shot in list(self._shots.values()):
            if client in shot.users:
                await self._leave_shot(client, shot)
        await self.in_thread(self.maps.remove, client.prefix)

    async def end(self) -> None:
        """Cancel all jobs, wait for them, close all shots."""
        until = time.monotonic() + JOB_END_SECONDS
        while self.is_working and time.monotonic() < until:  # not in a thread: all of them may be blocked
            for job in self._jobs.values():
                job.cancel()
            await asyncio.sleep(_END_POLL_SECONDS)
        for job in self._jobs.values():
            if not job.has_ended:
                log.warning("job %s did not stop in time", job.id)
        for shot in list(self._shots.values()):
            if not self._working_jobs(shot):
                await self._close(shot)
        self._has_ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def tidy(self) -> None:
        """Forget jobs that ended long ago, close shots that only a job kept open."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.ended_at is not None and now - job.ended_at > REMEMBERED_SECONDS:
                del self._jobs[job.id]
                self._job_news.pop(job.id, None)
                self._starters.pop(job.id, None)
        for shot in list(self._shots.values()):
            await self._close_if_unused(shot)

    # ---- requests

    async def carry_out(self, client: Client, request: p.Request, data: pixels.Bytes) -> Reply:
        """Carry out one request (all but hello, ping and shutdown).

        Raises:
            StmError: it cannot be carried out.
        """
        if isinstance(request, p.PushPlate | p.PushKey | p.GetMatte):
            self._worked_at = time.monotonic()
        answer: dict[str, Any]
        match request:
            case p.Info():
                answer = information_json(await self.in_thread((await self._backend()).information))
            case p.OpenShot():
                answer = await self._open_shot(client, request)
            case p.JobRequest():
                answer = await self._job(client, request)
            case p.Cancel():
                answer = self._cancel(client, request)
            case p.ShotRequest():
                return await self._about_shot(client, self._shot_of(client, request.shot), request, data)
            case _:
                raise RequestError("bad_request", f"{request.op} is not possible now.")
        return answer, b""

    async def _about_shot(
        self, client: Client, shot: SharedShot, request: p.ShotRequest, data: pixels.Bytes
    ) -> Reply:
        answer: dict[str, Any]
        backend = shot.backend
        match request:
            case p.CloseShot():
                await self._leave_shot(client, shot)
                answer = {}
            case p.PlateNeeded():
                needed = await self.in_thread(backend.plate_needed, request.frames, request.digests)
                answer = {"needed": ranges_of(needed)}
            case p.PushPlate():
                answer = await self._push_plate(client, shot, request, data)
            case p.PushKey():
                answer = await self._push_key(client, shot, request, data)
            case p.ListKeys():
                answer = {"keys": keys_json(await self.in_thread(backend.keys))}
            case p.RemoveKey() | p.RestoreKey():
                answer = await self._change_key(shot, request)
            case p.GetSettings():
                answer = {"settings": await self.in_thread(backend.settings)}
            case p.SetSettings():
                change = await self._edit(
                    shot, request.interrupt, partial(backend.set_settings, request.settings)
                )
                answer = {
                    "settings": await self.in_thread(backend.settings),
                    "dirty": ranges_of(change.dirty),
                }
            case p.SetObjects():
                change = await self._edit(
                    shot, request.interrupt, partial(backend.set_objects, request.rename, request.remove)
                )
                state = await self.in_thread(backend.state, None)
                answer = {"objects": list(state.objects), "dirty": ranges_of(change.dirty)}
            case p.Status():
                answer = await self._status(shot, request.frames)
            case p.PlanRequest():
                answer = await self.in_thread(plan_json, backend, request)
            case p.Propagate():
                answer = await self._propagate(client, shot, request)
            case p.Export():
                answer = await self._export(client, shot, request)
            case p.Shapes():
                answer = await self._make_shapes(client, shot, request)
            case p.GetMatte():
                return await self._get_matte(client, shot, request)
            case _:
                raise RequestError("bad_request", f"{request.op} is not possible now.")
        return answer, b""

    async def _backend(self) -> Backend:
        """The engine, after it is loaded."""
        return await asyncio.shield(self.begin_loading())

    # ---- shots

    def _shot_of(self, client: Client, handle: str) -> SharedShot:
        shot = self._shots.get(handle)
        if shot is None or client not in shot.users:
            raise RequestError("unknown_shot", f"This connection has no shot {handle} open.")
        return shot

    async def _open_shot(self, client: Client, request: p.OpenShot) -> dict[str, Any]:
        if not os.path.isabs(request.folder):
            raise RequestError(
                "bad_request", "The shot folder must be an absolute path.", path=request.folder
            )
        if sum(client in shot.users for shot in self._shots.values()) >= p.MAX_SHOTS:
            raise RequestError("limit", f"More than {p.MAX_SHOTS} shots are open.", hint="Close one.")
        scratch = None if request.scratch is None else ScratchFolder(request.scratch)
        engine = await self._backend()
        folder = Path(os.path.realpath(engine.locate(Path(request.folder))))
        async with self._opening.setdefault(folder, asyncio.Lock()):
            shot = next((one for one in self._shots.values() if one.folder == folder), None)
            if shot is not None:
                _check_owner(shot, request.owner)
                created = False
            else:
                shot, created = await self._open_store(engine, folder, request)
            shot.owner = shot.owner or request.owner
            shot.users.add(client)
            if scratch is not None:
                shot.scratch[client] = scratch
        try:
            if not created and await self.in_thread(shot.backend.differs, request.plate, request.settings):
                describe = partial(shot.backend.describe, request.plate, request.settings)
                await self._edit(shot, False, describe)
            status = await self._status(shot, None)
        except BaseException:
            await self._leave_shot(client, shot)
            raise
        return {"shot": shot.handle, "folder": str(folder), "created": created, "status": status}

    async def _open_store(
        self, engine: Backend, folder: Path, request: p.OpenShot
    ) -> tuple[SharedShot, bool]:
        exists = await self.in_thread(engine.exists, folder)
        if exists:
            backend = await self.in_thread(engine.open, folder)
        elif not request.create:
            raise RequestError(
                "store", "There is no shot store.", path=str(folder), hint="Set a key to make one."
            )
        elif request.plate is None:
            raise RequestError("bad_request", "open_shot: a new shot needs a plate.", path=str(folder))
        elif (origin := _origin(engine, request)) is not None:
            backend = await self.in_thread(engine.copy, origin, folder)
            await self.in_thread(backend.describe, request.plate, request.settings)
        else:
            backend = await self.in_thread(
                engine.create, folder, request.plate, request.settings, request.objects
            )
        shot = SharedShot(f"s{next(self._handles)}", folder, backend, request.owner)
        self._shots[shot.handle] = shot
        return shot, not exists

    async def _leave_shot(self, client: Client, shot: SharedShot) -> None:
        shot.users.discard(client)
        shot.scratch.pop(client, None)
        for job in self._working_jobs(shot):
            starter, detached = self._starters[job.id]
            if starter is client and not detached:
                job.cancel()
        if not shot.users:
            shot.owner = None
        await self._close_if_unused(shot)

    async def _close_if_unused(self, shot: SharedShot) -> None:
        opening = self._opening.setdefault(shot.folder, asyncio.Lock())
        async with opening:
            if not shot.users and not self._working_jobs(shot) and shot.handle in self._shots:
                await self._close(shot)

    async def _close(self, shot: SharedShot) -> None:
        del self._shots[shot.handle]
        try:
            async with shot.edit:
                await self.in_thread(shot.backend.close)
        except StmError as error:
            log.warning("closing %s: %s", shot.folder, error)
        self._worked_at = time.monotonic()

    async def _edit(self, shot: SharedShot, interrupt: bool, work: Callable[[], T]) -> T:
        """Change a shot while no job is running on it."""
        async with shot.edit:
            jobs = self._working_jobs(shot)
            if jobs and not interrupt:
                raise _busy()
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not await self.in_thread(job.join, _INTERRUPT_SECONDS):
                    raise RequestError("busy", "The computation does not stop.", hint="Try again in a while.")
            return await self.in_thread(work)

    async def _status(self, shot: SharedShot, frames: p.Range | None) -> dict[str, Any]:
        jobs = [job.id for job in self._working_jobs(shot)]
        return await self.in_thread(shot.state_json, frames, jobs)

    # ---- pixels

    async def _picture(
        self, client: Client, shot: SharedShot, request: p.PixelRequest, data: pixels.Bytes
    ) -> PushedPicture:
        """What a request brings: inline, in a mapped file, or in a file of the client's scratch folder."""
        image = request.image
        if image is not None:
            if image.mapped is not None:
                data = await self.in_thread(self.maps.read, image.mapped, client.prefix)
            return PushedPicture(image, data)
        assert request.file is not None, "the request was checked"
        scratch = shot.scratch.get(client)
        if scratch is None:
            raise request.refusal("open_shot named no scratch folder")
        return await self.in_thread(scratch.read, request.file.name, request.frame)

    async def _push_plate(
        self, client: Client, shot: SharedShot, request: p.PushPlate, data: pixels.Bytes
    ) -> dict[str, Any]:
        if request.path is not None:
            pushed = await self.in_thread(read_plate_file, request)
        else:
            picture = await self._picture(client, shot, request, data)
            pushed = await self.in_thread(_pushed_frame, request, picture)
        async with shot.edit:
            try:
                change = await self.in_thread(shot.backend.push_plate, pushed)
            except PlateError as error:
                details = {"data_window": list(pushed.data_window)}
                raise RequestError(
                    "plate", error.what, frame=error.frame, hint=error.hint, details=details
                ) from error
        return {
            "frame": request.frame,
            "content": change.content,
            "changed": change.changed,
            "dirty": ranges_of(change.dirty),
        }

    async def _push_key(
        self, client: Client, shot: SharedShot, request: p.PushKey, data: pixels.Bytes
    ) -> dict[str, Any]:
        picture = await self._picture(client, shot, request, data)
        request.check_channels(picture.layout)

        def push() -> Change:
            masks = {
                one.name: pixels.read_mask(picture.layout, picture.data, one.channel, request.frame)
                for one in request.objects
            }
            pushed = PushedMasks(
                frame=request.frame,
                masks=masks,
                data_window=picture.layout.data_window,
                digest=request.digest,
                replace=request.replace,
                allow_empty=request.allow_empty,
            )
            return shot.backend.push_key(pushed)

        change = await self._edit(shot, request.interrupt, push)
        return {
            "frame": request.frame,
            "changed": change.changed,
            "dirty": ranges_of(change.dirty),
            "keys": keys_json(await self.in_thread(shot.backend.keys)),
        }

    async def _change_key(self, shot: SharedShot, request: p.RemoveKey | p.RestoreKey) -> dict[str, Any]:
        work = partial(shot.backend.remove_key, request.frame)
        if isinstance(request, p.RestoreKey):
            masks = {one.name: one.content for one in request.objects}
            work = partial(shot.backend.restore_key, request.frame, masks, request.digest)
        change = await self._edit(shot, request.interrupt, work)
        return {
            "frame": request.frame,
            "dirty": ranges_of(change.dirty),
            "keys": keys_json(await self.in_thread(shot.backend.keys)),
        }

    async def _get_matte(self, client: Client, shot: SharedShot, request: p.GetMatte) -> Reply:
        if request.layer == "foreground" and len(request.objects) > 1:
            raise RequestError("bad_request", "get_matte: the foreground is of one object, or of all.")
        until = time.monotonic() + request.wait_ms / 1000
        looked_after: set[str] = set()  # jobs that had finished the frame before this check
        while True:
            jobs = [job for job in self._working_jobs(shot) if request.frame in job.frames]
            looked_after |= {job.id for job in jobs if job.has_finished_frame(request.frame)}
            found = await self.in_thread(
                shot.backend.matte, request.frame, request.objects, request.stale, request.layer
            )
            if isinstance(found, Matte):
                return await self.in_thread(self._matte_reply, client, request, found)
            if not jobs or found.state == "outside":
                raise no_matte(request.frame, found)
            await self._wait_for_frame(request.frame, jobs, looked_after, until)

    async def _wait_for_frame(
        self, frame: int, jobs: Sequence[Job], looked_after: set[str], until: float
    ) -> None:
        """Wait until one of `jobs` has ended, or has finished the frame since the last check."""
        while True:
            news = [self._news_of(job) for job in jobs]
            for job in jobs:
                if job.has_ended or (job.id not in looked_after and job.has_finished_frame(frame)):
                    return
            left = until - time.monotonic()
            if left <= 0:
                raise RequestError(
                    "timeout", "The matte is not finished yet.", frame=frame, hint="It is being computed."
                )
            waits = [asyncio.ensure_future(event.wait()) for event in news]
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()

    def _matte_reply(self, client: Client, request: p.GetMatte, found: Matte) -> Reply:
        window = request.window or found.data_window
        names = request.objects
        unknown = [name for name in names if name not in found.mattes]
        if unknown:
            raise RequestError(
                "matte",
                f"The shot has no object {unknown[0]}.",
                frame=request.frame,
                hint=f"It has {', '.join(found.mattes)}." if found.mattes else None,
            )
        arrays = [found.mattes[name] for name in names] if names else [found.union]
        channels = names or ("A",)
        if found.colours is not None:
            arrays = [*np.moveaxis(found.colours, -1, 0), *arrays]
            channels = ("R", "G", "B", "A")
        cut = [_cut(one, found.data_window, window) for one in arrays]
        layout, planes = pixels.write_mattes(cut, channels, window, request.format, request.rows)
        image = layout.to_json()
        payload: memoryview | bytes = planes
        if request.into is not None:
            self.maps.write(request.into, client.prefix, planes)
            image["offset"] += request.into.offset
            image["mapped"] = {"name": request.into.name, "bytes": request.into.bytes}
            payload = b""
        return {
            "frame": request.frame,
            "image": image,
            "display_window": list(found.display_window),
            "source": found.source,
            "state": "stale" if found.stale else "done",
            "content": found.content,
            "confidence": found.confidence,
        }, payload

    # ---- jobs

    def _working_jobs(self, shot: SharedShot) -> list[Job]:
        return [job for job in self._jobs.values() if job.shot == shot.handle and not job.has_ended]

    def _news_of(self, job: Job) -> asyncio.Event:
        """An event that is set with the job's next change."""
        event = self._job_news.get(job.id)
        if event is None or event.is_set():
            event = self._job_news[job.id] = asyncio.Event()
        return event

    async def _propagate(self, client: Client, shot: SharedShot, request: p.Propagate) -> dict[str, Any]:
        async with shot.edit:
            self._refuse_if_working(shot)
            forecast = await self.in_thread(shot.backend.forecast, request.frames, request.direction)
            if forecast.plate_needed:
                needed = ranges_of(forecast.plate_needed)
                raise RequestError(
                    "plate_missing",
                    f"The plate frames {range_words(forecast.plate_needed)} are missing.",
                    frame=needed[0][0],
                    hint="Send them to the engine first.",
                    details={"frames": needed},
                )

            def work(report: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
                shot.backend.propagate(request.frames, request.direction, report, cancelled)

            job = self._start(
                client, shot, "propagate", list(forecast.frames), forecast.compute, request.detach, work
            )
        return {
            "job": job.id,
            "compute": forecast.compute,
            "frames": ranges_of(forecast.frames),
            "text": forecast.text,
        }

    async def _export(self, client: Client, shot: SharedShot, request: p.Export) -> dict[str, Any]:
        if not os.path.isabs(request.pattern):
            raise RequestError("bad_request", "The files' path must be absolute.", path=request.pattern)
        order = ExportOrder(
            request.pattern,
            request.frames,
            request.channel,
            request.objects,
            request.cryptomatte,
            request.overwrite,
        )
        async with shot.edit:
            self._refuse_if_working(shot)
            frames = await self.in_thread(shot.backend.export_frames, order)

            def work(report: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
                shot.backend.export(order, report, cancelled)

            job = self._start(client, shot, "export", [], len(frames), request.detach, work)
        return {
            "job": job.id,
            "compute": len(frames),
            "frames": ranges_of(frames),
            "text": f"{len(frames)} matte files will be written",
        }

    async def _make_shapes(self, client: Client, shot: SharedShot, request: p.Shapes) -> dict[str, Any]:
        if not os.path.isabs(request.file):
            raise RequestError("bad_request", "The file's path must be absolute.", path=request.file)
        order = ShapesOrder(request.file, request.format, request.frames, request.objects, request.tolerance)
        async with shot.edit:
            self._refuse_if_working(shot)
            frames = await self.in_thread(
                shot.backend.export_frames, ExportOrder("", request.frames, None, request.objects)
            )

            def work(report: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
                shot.backend.shapes(order, report, cancelled)

            job = self._start(client, shot, "shapes", [], len(frames), request.detach, work)
        return {
            "job": job.id,
            "compute": len(frames),
            "frames": ranges_of(frames),
            "text": f"the mattes of {len(frames)} frames become shapes",
        }

    def _refuse_if_working(self, shot: SharedShot) -> None:
        if self._working_jobs(shot):
            raise _busy()

    def _start(
        self,
        client: Client,
        shot: SharedShot,
        kind: str,
        frames: list[int],
        total: int,
        detach: bool,
        work: Work,
    ) -> Job:
        def changed(job: Job) -> None:  # in the job's thread
            self._loop.call_soon_threadsafe(self._job_changed, job)

        job = Job(shot.handle, kind, frames, total, changed)
        self._jobs[job.id] = job
        self._starters[job.id] = (client, detach)
        job.start(self._devices.setdefault(shot.backend.device(), DeviceQueue()), work)
        return job

    def _job_changed(self, job: Job) -> None:
        event = self._job_news.pop(job.id, None)
        if event is not None:
            event.set()
        starter = self._starters.get(job.id)
        if starter is not None:
            starter[0].job_changed(job)
        if job.has_ended:
            self._worked_at = time.monotonic()
            tidying = asyncio.ensure_future(self.tidy())
            self._tidying.add(tidying)
            tidying.add_done_callback(self._tidying.discard)

    def _job_of(self, client: Client, number: str) -> Job:
        job = self._jobs.get(number)
        if job is not None:
            starter = self._starters[job.id][0]
            shot = self._shots.get(job.shot)
            if starter is client or (shot is not None and client in shot.users):
                return job
        raise RequestError("unknown_job", f"There is no job {number}.")

    async def _job(self, client: Client, request: p.JobRequest) -> dict[str, Any]:
        job = self._job_of(client, request.job)
        until = time.monotonic() + request.wait_ms / 1000
        while job.version <= request.seen and not job.has_ended:
            event = self._news_of(job)
            left = until - time.monotonic()
            if left <= 0 or job.version > request.seen:
                break
            await _wait_quietly(event.wait(), left)
        return job.snapshot()

    def _cancel(self, client: Client, request: p.Cancel) -> dict[str, Any]:
        job = self._job_of(client, request.job)
        job.cancel()
        return {"job": job.id, "state": job.state}


async def _wait_quietly(wait: Awaitable[Any], seconds: float) -> None:
    try:
        await asyncio.wait_for(wait, seconds)
    except TimeoutError:
        return


def _origin(engine: Backend, request: p.OpenShot) -> Path | None:
    """The store that a new shot takes over; None where none is asked for, or where it has gone."""
    if request.copy_of is None:
        return None
    if not os.path.isabs(request.copy_of):
        raise RequestError("bad_request", "copy_of must be an absolute path.", path=request.copy_of)
    origin = Path(os.path.realpath(engine.locate(Path(request.copy_of))))
    return origin if engine.exists(origin) else None


def _check_owner(shot: SharedShot, owner: str | None) -> None:
    if shot.owner is not None and owner is not None and shot.owner != owner:
        raise RequestError(
            "shot_open",
            "Another node uses this shot folder.",
            path=str(shot.folder),
            hint="Give this node another folder.",
            details={"owner": shot.owner},
        )


def _busy() -> RequestError:
    return RequestError("busy", "This shot is being computed.", hint="Stop it first, or wait for its end.")


def _cut(matte: pixels.FloatArray, window: p.Rectangle, wanted: p.Rectangle) -> pixels.FloatArray:
    """`matte` over `window`, cut to `wanted`; 0 outside."""
    if window == wanted:
        return matte
    x, y, width, height = window
    to_x, to_y, to_width, to_height = wanted
    left, top = max(x, to_x), max(y, to_y)
    right, bottom = min(x + width, to_x + to_width), min(y + height, to_y + to_height)
    result = np.zeros((to_height, to_width), np.float32)
    if left < right and top < bottom:
        result[top - to_y : bottom - to_y, left - to_x : right - to_x] = matte[
            top - y : bottom - y, left - x : right - x
        ]
    return result


def _pushed_frame(request: p.PushPlate, picture: PushedPicture) -> PushedFrame:
    """The frame that a request brings in a message or in a scratch file."""
    image = picture.layout
    if image.channels[:3] != ("R", "G", "B") and image.channels[0] != "Y":
        raise request.refusal(f"the file has the channels {' '.join(image.channels)}, not R G B or Y")
    metadata = dict(request.metadata)
    if picture.time_code is not None:
        metadata["smpte:TimeCode"] = picture.time_code
    return PushedFrame(
        frame=request.frame,
        pixels=pixels.read_plate(image, picture.data),
        data_window=image.data_window,
        display_window=picture.display_window or request.display_window,
        pixel_aspect=picture.pixel_aspect or request.pixel_aspect,
        digest=request.digest,
        metadata=metadata,
        is_half=image.format == "half" and not image.premultiplied,
    )
