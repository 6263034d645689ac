"""Connections with bounds: a head has its time, a refused body its end, and old idle ones make room for new ones.

uvicorn reads HTTP; it bounds neither of these, and its own errors are text, not JSON.
"""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["connection_class"]

_MOST_DISCARDED = 64 * 2**20  # bytes of a body that are read after the response, so that its sender can read that


def connection_class(most: int, seconds: float) -> type[H11Protocol]:
    """Return the class of a server's connections.

    Args:
        most: Most connections. One more takes the place of the oldest whose request has not arrived.
        seconds: Time for the head of a request, and for the rest of a body that nobody reads, to arrive.
    """

    class Connection(_Connection):
        most_connections, patience = most, seconds

    return Connection


class _Connection(H11Protocol):
    most_connections: int
    patience: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request; make room if there are too many connections."""
        super().connection_made(transport)
        self._since = monotonic()
        self._discarded = 0
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.patience, self._late)
        if len(self.connections) > self.most_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._set_timer(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; bound the time of a head, and the bytes that are read for nobody."""
        if self._body_is_refused():
            self._discarded += len(data)
            if self._discarded > _MOST_DISCARDED:
                self.transport.abort()
                return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Bound the time and bytes of a body that still arrives."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in JSON."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, f"{msg.rstrip('.')}: send HTTP/1.1 with a complete head of at most 64 KiB")
        self.transport.close()

    def waits(self) -> bool:
        """Return whether no complete request is here: its head or body is missing."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _watch(self) -> None:
        """Let the timer run exactly while a begun head, or a refused body, is incomplete."""
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        self._set_timer(not self.transport.is_closing() and (begun or self._body_is_refused()))

    def _body_is_refused(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def _set_timer(self, on: bool) -> None:
        if self._timer is not None and not on:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and on:
            self._discarded = 0
            self._timer = self.loop.call_later(self.patience, self._late)

    def _late(self) -> None:
        if not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
                self._refuse(408, f"the head of the request did not arrive within {self.patience:g} seconds")
            self.transport.close()

    def _make_room(self) -> None:
        """Close the oldest connection that has no complete request; this one if there is none."""
        everyone: list[Any] = [other for other in self.connections if not other.transport.is_closing()]
        if len(everyone) <= self.most_connections:
            return
        others = [other for other in everyone if other is not self and other.waits()]
        if others:
            min(others, key=lambda other: other._since).transport.abort()
        else:
            self._refuse(503, "all connections are at work; try again in a second")
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        parts = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
