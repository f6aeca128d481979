"""Connections to the demo page: bounded in number, and closed where they bring no request."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
"""At a time; an open page holds a few."""

BURST = 64
"""Connections that asyncio accepts before it closes those beyond ``MAX_CONNECTIONS``."""

HEAD_SECONDS = 10.0
"""Within which the head of a request must be complete, from the connection or from its first byte on."""


class BoundedProtocol(H11Protocol):
    """HTTP on one connection; those beyond ``MAX_CONNECTIONS`` are closed at once, before they use up open files."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """Accept the connection, or close it."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._timer = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; uvicorn's timer between two requests ends with the first byte of the second."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
