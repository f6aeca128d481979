"""Connections to the demo page: bounded in number, and closed where they bring no request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
"""At a time; an open page holds a few."""

BURST = 64
"""Connections that asyncio accepts before it closes those beyond ``MAX_CONNECTIONS``."""

FIRST_REQUEST_SECONDS = 10.0
"""Within which the head of the first request must be complete."""


class BoundedProtocol(H11Protocol):
    """HTTP on one connection; those beyond ``MAX_CONNECTIONS`` are closed at once, before they use up open files."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Accept the connection, or close it."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(FIRST_REQUEST_SECONDS, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()
