"""Access to the page: one browser of this user on this machine, and no other web page.

The address that `stm review` opens holds a token that works once. The first visit exchanges it for a cookie.
From then on every request needs the cookie, the host name of the page, and (for changes) its origin.
"""

from __future__ import annotations

import secrets
from http.cookies import SimpleCookie
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE: Final = "stm_review"
MOST_BODY_BYTES: Final = 64 << 20
"""The largest request: a painted mask of an 8K plate as PNG is smaller."""

_PAGE_ONLY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware that admits one browser and refuses all others.

    Args:
        app: the guarded application.
        port: the page's port on the loopback interface.

    Attributes:
        token: of the first visit; None after it.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.token: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets
        refused = self._refusal(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The response that refuses a request; None for an allowed request."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return PlainTextResponse("This page can be reached under its own address only.", 421)
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return PlainTextResponse("Another page must not change anything here.", 403)
        if int(headers.get("content-length", "0") or 0) > MOST_BODY_BYTES:
            return PlainTextResponse("The request is too large.", 413)
        shown = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        if shown is not None and secrets.compare_digest(shown.value, self._session):
            return None
        return self._enter(scope)

    def _enter(self, scope: Scope) -> Response:
        """Exchange the token for the cookie, once."""
        query = dict(part.split("=", 1) for part in scope["query_string"].decode().split("&") if "=" in part)
        given = query.get("token", "")
        if self.token is None or not secrets.compare_digest(given, self.token):
            return PlainTextResponse(
                "This address has been used, or is not complete. Run `stm review` again for a new one.", 403
            )
        self.token = None
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/")
        return answer


def _limited(receive: Receive) -> Receive:
    """`receive` that stops a body that exceeds the limit, whatever size its header states."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BODY_BYTES:
            return {"type": "http.disconnect"}
        return message

    return limited


def _with_headers(send: Send) -> Send:
    """`send` that adds security headers to every response."""

    async def added(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", ()),
                (b"content-security-policy", _PAGE_ONLY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
                (b"cross-origin-resource-policy", b"same-origin"),
                (b"cross-origin-opener-policy", b"same-origin"),
            ]
        await send(message)

    return added
