"""One client's connection: reading messages, keeping order, sending replies and events."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from stm_plugin import protocol as p
from stm_plugin.errors import StmError, as_stm_error
from stm_plugin.protocol import FramingError, Kind, Message, RequestError, error_header
from stm_plugin.server.jobs import Job, internal_error
from stm_plugin.server.replies import configured_json
from stm_plugin.server.runtime import Endpoint
from stm_plugin.server.service import Service

log = logging.getLogger("stm.server")

HELLO_SECONDS: Final = 10.0
STALL_SECONDS: Final = 60.0
_CHUNK: Final = 1 << 20
_OVERTAKING: Final = (p.Ping, p.Cancel, p.JobRequest)
_FATAL: Final = ("framing", "version", "token", "hello", "shutting_down")


class ByteBudget:
    """The bytes of payloads in the engine at one time, over all connections.

    Bytes count when they have arrived, so an announcement delays no client. The payload that is under way for
    the longest never waits: there is no deadlock, and at most `most` bytes and one payload are held together.
    """

    def __init__(self, most: int = p.MAX_PAYLOAD) -> None:
        self._free = most
        self._changed = asyncio.Condition()
        self._under_way: dict[PayloadShare, None] = {}  # oldest first

    @contextlib.asynccontextmanager
    async def payload(self) -> AsyncIterator[PayloadShare]:
        """The share of one payload, released at the end."""
        share = PayloadShare(self)
        self._under_way[share] = None
        try:
            yield share
        finally:
            async with self._changed:
                del self._under_way[share]
                self._free += share.bytes
                self._changed.notify_all()

    async def take(self, share: PayloadShare, count: int) -> None:
        """Wait for `count` more bytes to be free."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= count or next(iter(self._under_way)) is share)
            self._free -= count
            share.bytes += count


class PayloadShare:
    """The share of one payload in the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self.bytes = 0
        self._budget = budget

    async def take(self, count: int) -> None:
        """Wait for `count` more bytes to be free, and take them."""
        await self._budget.take(self, count)


class Connection:
    """One client. `run` ends when the connection does."""

    def __init__(
        self,
        service: Service,
        endpoint: Endpoint,
        budget: ByteBudget,
        count_clients: Callable[[], int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.name = "a client"
        self.pid = 0
        self.said_hello = False
        self.prefix = service.maps.new_prefix()
        self._service = service
        self._endpoint = endpoint
        self._budget = budget
        self._count_clients = count_clients
        self._reader = reader
        self._writer = writer
        self._wants_events = False
        self._writing = asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._last_ordered: asyncio.Event | None = None
        self._job_requests: dict[str, int] = {}  # job id -> request id of its events
        self._news: dict[str, Job] = {}
        self._has_news = asyncio.Event()

    # ---- from start to end

    async def run(self) -> None:
        """Serve the client until either side ends the connection."""
        events = asyncio.ensure_future(self._send_events())
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                opening = await self._read_opening()
            if opening is None or not await self._greet(*opening):
                return
            while not self._service.stop.is_set():
                opening = await self._read_opening()
                if opening is None:
                    return
                await self._read_rest_and_begin(*opening)
        except FramingError as error:
            await self._refuse(error)
        except TimeoutError:
            await self._refuse(FramingError("The message did not come to its end in time."))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            events.cancel()
            await self._end()

    async def _end(self) -> None:
        waiting = list(self._tasks.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._service.leave(self)
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self._writer.wait_closed()

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()

    # ---- reading

    async def _read_opening(self) -> tuple[p.Prefix, dict[str, Any]] | None:
        """Prefix and header of the next message, or None at the end of the stream."""
        try:
            first = await self._reader.readexactly(1)
        except asyncio.IncompleteReadError:
            return None
        async with asyncio.timeout(STALL_SECONDS):
            prefix = p.decode_prefix(
                first + await self._reader.readexactly(p.PREFIX.size - 1),
                max_header=p.MAX_HEADER if self.said_hello else p.MAX_HEADER_BEFORE_HELLO,
                max_payload=p.MAX_PAYLOAD if self.said_hello else 0,
            )
            if prefix.kind is not Kind.REQUEST:
                raise FramingError("A client sends requests only.")
            return prefix, p.decode_header(await self._reader.readexactly(prefix.header_bytes))

    async def _read_rest_and_begin(self, prefix: p.Prefix, header: dict[str, Any]) -> None:
        if not prefix.payload_bytes:
            await self._begin(Message(prefix.kind, prefix.request_id, header))
            return
        async with self._budget.payload() as share:
            payload = bytearray()
            until = time.monotonic() + STALL_SECONDS
            while len(payload) < prefix.payload_bytes:
                async with asyncio.timeout(until - time.monotonic()):
                    part = await self._reader.read(min(_CHUNK, prefix.payload_bytes - len(payload)))
                if not part:
                    raise ConnectionError
                began = time.monotonic()
                await share.take(len(part))
                until += time.monotonic() - began  # the client is not responsible for bytes of other clients
                payload += part
            task = await self._begin(Message(prefix.kind, prefix.request_id, header, payload))
            await asyncio.wait([task])  # nothing more is read meanwhile, so the client has to wait

    # ---- hello

    async def _greet(self, prefix: p.Prefix, header: dict[str, Any]) -> bool:
        try:
            hello = p.read_request(header, 0)
            if not isinstance(hello, p.Hello):
                raise RequestError("hello", "The first request must be hello.")
            if not hmac.compare_digest(hello.token, self._endpoint.token):
                raise RequestError(
                    "token",
                    "The token is wrong.",
                    hint="Read the endpoint file again: the engine may be a new one.",
                )
        except StmError as error:
            await self._send(Message(Kind.ERROR, prefix.request_id, error_header(error)))
            return False
        if self._count_clients() >= p.MAX_CLIENTS:
            refusal = RequestError(
                "limit",
                f"The engine has {p.MAX_CLIENTS} clients already.",
                hint="Close a host, or a node that is not used.",
            )
            await self._send(Message(Kind.ERROR, prefix.request_id, error_header(refusal)))
            return False
        self.said_hello = True
        self.name = hello.client
        self.pid = hello.pid
        self._wants_events = hello.events
        answer = {
            "protocol": [p.VERSION[0], min(p.VERSION[1], hello.protocol[1])],
            "answer": self._endpoint.answer,
            "engine": self._endpoint.engine,
            "pid": self._endpoint.pid,
            "map_folder": str(self._service.maps.path),
            "map_prefix": self.prefix,
            "limits": {
                "header": p.MAX_HEADER,
                "payload": p.MAX_PAYLOAD,
                "requests": p.MAX_UNANSWERED,
                "shots": p.MAX_SHOTS,
            },
            **configured_json(),
        }
        await self._send(Message(Kind.REPLY, prefix.request_id, answer))
        self._service.begin_loading()  # after the reply: a host must not wait for torch here
        return True

    # ---- carrying out

    async def _begin(self, message: Message) -> asyncio.Task[None]:
        """Start one request. The requests of a connection run in order, except for the overtaking ones."""
        if message.request_id in self._tasks:
            raise FramingError(f"The request id {message.request_id} is in use.")
        while self._unanswered >= p.MAX_UNANSWERED:
            self._answered.clear()
            await self._answered.wait()
        self._unanswered += 1
        task = asyncio.ensure_future(self._answer(message, *self._place_in_order(message)))
        self._tasks[message.request_id] = task
        return task

    def _place_in_order(self, message: Message) -> tuple[asyncio.Event | None, asyncio.Event]:
        """The event to wait for, and the one to set when later requests may start."""
        done = asyncio.Event()
        if message.header.get("op") in [kind.op for kind in _OVERTAKING]:  # it may be of any type
            return None, done
        before, self._last_ordered = self._last_ordered, done
        return before, done

    async def _answer(self, message: Message, before: asyncio.Event | None, done: asyncio.Event) -> None:
        try:
            if before is not None:
                await before.wait()
            if self._service.stop.is_set():
                raise RequestError("shutting_down", "The engine is ending.")
            request = p.read_request(message.header, len(message.payload))
            if isinstance(request, p.GetMatte) and request.wait_ms:
                done.set()  # a waiting request does not block later ones
            header, payload = await self._carry_out(request, message)
            reply = Message(Kind.REPLY, message.request_id, header, payload)
        except StmError as error:
            reply = Message(Kind.ERROR, message.request_id, error_header(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("a request of %s failed: %.200s", self.name, message.header)
            reply = Message(
                Kind.ERROR, message.request_id, error_header(as_stm_error(error) or internal_error())
            )
        finally:
            done.set()
        await self._finish(message, reply)

    async def _finish(self, message: Message, reply: Message) -> None:
        del self._tasks[message.request_id]  # before the client can see the reply
        with contextlib.suppress(ConnectionError):
            await self._send(reply)
        self._unanswered -= 1
        self._answered.set()
        if reply.kind is Kind.ERROR:
            if reply.header["code"] in _FATAL:
                self._writer.close()
        elif message.header["op"] in (p.Propagate.op, p.Export.op, p.Shapes.op):
            self._job_requests[reply.header["job"]] = message.request_id
            self._has_news.set()
        elif message.header["op"] == p.Shutdown.op:
            self._service.stop.set()

    async def _carry_out(self, request: p.Request, message: Message) -> tuple[dict[str, Any], Any]:
        match request:
            case p.Hello():
                raise RequestError("hello", "Hello has been said.")
            case p.Ping():
                counts = self._service.counts()
                return {"time": time.time(), **counts, "clients": self._count_clients()}, b""
            case p.Shutdown():
                return {}, b""
            case _:
                return await self._service.carry_out(self, request, message.payload)

    # ---- writing

    async def _send(self, message: Message) -> None:
        data = p.encode_message(message)
        async with self._writing:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    self._writer.write(data)
                    if message.payload:
                        self._writer.write(message.payload)
                    await self._writer.drain()
            except TimeoutError:
                log.warning("%s does not read; its connection is ended", self.name)
                self.abort()

    async def _refuse(self, error: StmError) -> None:
        with contextlib.suppress(ConnectionError):
            await self._send(Message(Kind.ERROR, 0, error_header(error)))

    # ---- events

    def job_changed(self, job: Job) -> None:
        """Queue an event; a newer state replaces an older one that was not sent."""
        if self._wants_events:
            self._news[job.id] = job
            self._has_news.set()

    async def _send_events(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._has_news.wait()
                self._has_news.clear()
                for job_id in [one for one in self._news if one in self._job_requests]:
                    state = self._news.pop(job_id).snapshot()
                    ended = state["state"] not in ("queued", "running")
                    header = {"event": "ended" if ended else "progress", **state}
                    await self._send(Message(Kind.EVENT, self._job_requests[job_id], header))
                    if ended:
                        del self._job_requests[job_id]
