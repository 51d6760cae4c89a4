"""The page's server: a Starlette application over a `ReviewSession`, on the loopback interface only.

Pictures are sent as WebP, everything else as JSON. Errors for people are JSON with a sentence: `{"error":
...}`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from stm_plugin.errors import MatteError, OutputError, StmError
from stm_plugin.review.connections import ImpatientProtocol
from stm_plugin.review.guard import Guard
from stm_plugin.review.proxies import Size, decode_mask
from stm_plugin.review.session import ReviewSession
from stm_plugin.review.start_mask import Hints

PAGE: Final = Path(__file__).parent / "page"
MOST_AT_ONCE: Final = 64
_KEEP_ALIVE_SECONDS: Final = 15.0
_WAITING_EVENTS: Final = 1000

Handler = Callable[[ReviewSession, Request], Awaitable[Response]]


@dataclass(frozen=True)
class ReviewServer:
    """A server whose port is open already; `run` serves until it is stopped.

    Attributes:
        address: the URL for the browser; its token works once.
    """

    address: str
    server: uvicorn.Server
    listening: socket.socket

    def run(self) -> None:
        """Serve until Ctrl-C, which is the usual end and no error."""
        with suppress(KeyboardInterrupt):
            self.server.run(sockets=[self.listening])


def make_server(session: ReviewSession, port: int = 0) -> ReviewServer:
    """A server that only this machine can reach.

    Args:
        port: 0 chooses a free one.

    Raises:
        StmError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise StmError(
            f"Port {port} cannot be used: {error.strerror}.", hint="Give another --port."
        ) from error
    listening.listen(MOST_AT_ONCE)
    port = listening.getsockname()[1]
    guard = Guard(make_app(session), port)
    config = uvicorn.Config(
        guard,
        http=ImpatientProtocol,
        log_level="warning",
        access_log=False,
        limit_concurrency=MOST_AT_ONCE,
        timeout_graceful_shutdown=2,
    )
    return ReviewServer(f"http://127.0.0.1:{port}/?token={guard.token}", uvicorn.Server(config), listening)


def make_app(session: ReviewSession) -> Starlette:
    """The application without its guard."""

    def on(path: str, handler: Handler, method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                return await handler(session, request)
            except OutputError as error:
                return JSONResponse({"error": str(error)}, 422)
            except MatteError as error:  # not done yet, or stale
                return JSONResponse({"error": str(error)}, 409)
            except StmError as error:
                return JSONResponse({"error": str(error)}, 422)
            except (ValueError, KeyError, TypeError) as error:
                return JSONResponse({"error": f"The request cannot be understood: {error}"}, 400)
            except ClientDisconnect:
                return PlainTextResponse("The request is too large, or was cancelled.", 413)

        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            Route("/", _index),
            on("/api/state", _state),
            on("/api/plate/{frame:int}", _plate),
            on("/api/look/{frame:int}", _look, "POST"),
            on("/api/matte/{frame:int}", _matte),
            on("/api/confidence/{frame:int}", _confidence),
            on("/api/start/{frame:int}", _start, "POST"),
            on("/api/key/{frame:int}", _set_key, "POST"),
            on("/api/key/{frame:int}", _remove_key, "DELETE"),
            on("/api/propagate", _propagate, "POST"),
            on("/api/stop", _stop, "POST"),
            on("/api/settings", _settings, "POST"),
            on("/api/export", _export, "POST"),
            on("/api/bundle", _bundle, "POST"),
            on("/api/nuke", _nuke),
            on("/api/events", _events),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
    )


async def _index(_request: Request) -> Response:
    return Response((PAGE / "index.html").read_bytes(), media_type="text/html; charset=utf-8")


async def _state(session: ReviewSession, _request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(session.state), headers={"cache-control": "no-store"})


async def _plate(session: ReviewSession, request: Request) -> Response:
    picture = await run_in_threadpool(session.plate, request.path_params["frame"], _size(request))
    return Response(picture, media_type="image/webp", headers={"cache-control": "no-cache"})


async def _look(session: ReviewSession, request: Request) -> Response:
    session.look_at(request.path_params["frame"])
    return JSONResponse({"ok": True})


async def _matte(session: ReviewSession, request: Request) -> Response:
    name = request.query_params["object"]
    picture, address = await run_in_threadpool(
        session.matte, request.path_params["frame"], name, _size(request)
    )
    headers = {"cache-control": "no-cache", "x-address": address}
    return Response(picture, media_type="image/webp", headers=headers)


async def _confidence(session: ReviewSession, request: Request) -> Response:
    name, frame = request.query_params["object"], request.path_params["frame"]
    picture = await run_in_threadpool(session.confidence, frame, name)
    return Response(picture, media_type="image/webp", headers={"cache-control": "no-cache"})


async def _start(session: ReviewSession, request: Request) -> Response:
    given = await _json(request)
    box = given.get("box")
    hints = Hints(
        box=None if box is None else cast(tuple[float, float, float, float], tuple(map(float, box))),
        inside=_strokes(given.get("inside", [])),
        outside=_strokes(given.get("outside", [])),
        width=float(given.get("width", 8.0)),
    )
    picture = await run_in_threadpool(session.start_mask, request.path_params["frame"], hints)
    return Response(picture, media_type="image/webp")


async def _set_key(session: ReviewSession, request: Request) -> Response:
    width, height = int(request.query_params["width"]), int(request.query_params["height"])
    mask = decode_mask(await request.body(), width, height)
    empty = request.query_params.get("empty") == "1"
    name = request.query_params["object"]
    frame = request.path_params["frame"]
    await run_in_threadpool(lambda: session.set_key(frame, name, mask, empty=empty))
    return JSONResponse({"ok": True})


async def _remove_key(session: ReviewSession, request: Request) -> Response:
    await run_in_threadpool(session.remove_key, request.path_params["frame"])
    return JSONResponse({"ok": True})


async def _propagate(session: ReviewSession, _request: Request) -> Response:
    return JSONResponse({"started": await run_in_threadpool(session.propagate)})


async def _stop(session: ReviewSession, _request: Request) -> Response:
    session.stop()
    return JSONResponse({"ok": True})


async def _settings(session: ReviewSession, request: Request) -> Response:
    await run_in_threadpool(session.choose, await _json(request))
    return JSONResponse({"ok": True})


async def _export(session: ReviewSession, request: Request) -> Response:
    given = await _json(request)
    out = str(given["out"])
    overwrite, ids = given.get("overwrite") is True, given.get("cryptomatte") is True
    words = await run_in_threadpool(lambda: session.export(out, overwrite=overwrite, cryptomatte=ids))
    return JSONResponse({"text": words})


async def _bundle(session: ReviewSession, request: Request) -> Response:
    given = await _json(request)
    mattes, overwrite = str(given.get("out", "")), given.get("overwrite") is True
    words = await run_in_threadpool(lambda: session.bundle(mattes, overwrite=overwrite))
    return JSONResponse({"text": words})


async def _nuke(session: ReviewSession, _request: Request) -> Response:
    return PlainTextResponse(session.nuke_text())


async def _events(session: ReviewSession, _request: Request) -> Response:
    """Server-sent events: changes of the shot."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]](_WAITING_EVENTS)

    def put(what: dict[str, Any]) -> None:
        with suppress(asyncio.QueueFull):  # a page that does not read now gets the state when it does
            queue.put_nowait(what)

    def listener(what: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(put, what)

    async def stream() -> AsyncIterator[bytes]:
        end = session.listen(listener)
        try:
            yield b"retry: 1000\n\n"
            while True:
                try:
                    what = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_SECONDS)
                    yield f"data: {json.dumps(what)}\n\n".encode()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            end()

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _size(request: Request) -> Size:
    return "full" if request.query_params.get("size") == "full" else "proxy"


async def _json(request: Request) -> dict[str, Any]:
    given = json.loads(await request.body())
    if not isinstance(given, dict):
        raise ValueError("an object was expected")
    return given


def _strokes(given: list[list[list[float]]]) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y in stroke] for stroke in given if stroke]
