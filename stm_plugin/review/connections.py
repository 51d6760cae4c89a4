"""Connections to the page that send no request are ended, so that nobody can take up all of them."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

SILENT_SECONDS: Final = 10.0
"""The same time as the engine gives a client to say hello."""


class ImpatientProtocol(H11Protocol):
    """HTTP that ends a connection whose first request is not complete after `silent_seconds`."""

    silent_seconds = SILENT_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self.loop.call_later(self.silent_seconds, self._end_if_silent)

    def _end_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()
