"""A connection on which nothing waits for the client without an end.

uvicorn bounds the time between two requests; the rest is bounded here: until a head is complete, until a body is, until
an answer is read. Each connection is looked at about once a second (`check`), which costs less than a timer for each
request. What is refused here gets a problem document like everything else, is closed for writing, and has a moment to
read it: a socket that is closed with bytes unread would take the answer back.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from groundplane.gateway.problems import problem
from groundplane.gateway.settings import GatewaySettings
from groundplane.gateway.statuses import CODE_OF_STATUS

BODY_BYTES_PER_S = 16 * 1024
LINGER_S = 2.0
REFUSING_MAX = 256
"""How many connections above the limit are told so; beyond them they are cut."""
_DESCRIPTORS_KEPT = 128
"""For stores, logs and listeners."""
_quiet = logging.getLogger("groundplane.http")
_quiet.setLevel(logging.ERROR)  # a client that talks nonsense is no news


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """See `GatewaySettings`. `refused` counts, by limit."""

    connections_max: int
    head_s: float
    body_s: float
    stall_s: float
    refused: Callable[[str], None]

    @classmethod
    def of(cls, settings: GatewaySettings, refused: Callable[[str], None]) -> Bounds:
        """What the settings and the machine allow."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = settings.connections_max
        if descriptors != resource.RLIM_INFINITY:
            most = max(1, min(most, descriptors - _DESCRIPTORS_KEPT - REFUSING_MAX))
        return cls(
            connections_max=most,
            head_s=settings.head_s,
            body_s=settings.body_s,
            stall_s=settings.stall_s,
            refused=refused,
        )

    @property
    def interval_s(self) -> float:
        """How often connections are to be looked at: what is overdue ends at most this much later."""
        return min(1.0, self.head_s / 4, self.body_s / 4, self.stall_s / 4)


class Connection(H11Protocol):
    """HTTP/1.1 and 1.0 for one client."""

    def __init__(self, *arguments: Any, bounds: Bounds, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = _quiet
        self._bounds = bounds
        self._refused = False
        self._awaited: tuple[str, object] = ("", None)
        self._since = self._read_since = time.monotonic()
        self._received = 0
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse it where there are too many."""
        super().connection_made(transport)
        most = self._bounds.connections_max
        if len(self.connections) <= most:
            return
        self._bounds.refused("connections")
        if len(self.connections) > most + REFUSING_MAX:
            transport.abort()
            return
        text = f"connections: {most} are open, which is the limit; call again"
        self._refuse(503, text, "too_many_connections", {"limit": "connections", "max": most})

    def data_received(self, data: bytes) -> None:
        """Read on, unless it was refused."""
        if not self._refused:
            self._received += len(data)
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read: 400, 431 for a head that does not end, 501 for an unknown transfer coding."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(status, "request: is no HTTP/1.1 that can be read; the connection ends here")

    def check(self, now: float) -> None:
        """End the connection where the client is overdue. `now` is monotonic."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size() == 0:
            return
        self._check_unread(now)
        awaited = self._awaits()
        if (awaited, self.cycle) != self._awaited:
            self._awaited, self._since, self._received = (awaited, self.cycle), now, 0
            return
        waited_s = now - self._since
        if awaited == "head" and waited_s > self._bounds.head_s:
            self._end_head()
        elif awaited == "body" and waited_s > self._bounds.body_s + self._received / BODY_BYTES_PER_S:
            self._bounds.refused("body")
            self._refuse(408, "body: did not come in time", "too_slow", {"limit": "body"})
        elif (awaited == "rest" and waited_s > self._bounds.body_s) or (awaited == "close" and waited_s > LINGER_S):
            self.transport.abort()

    def _awaits(self) -> str:
        """What the client has to do next; nothing while it waits for us."""
        if self._refused:
            return "close"
        state, cycle = self.conn.their_state, self._cycle
        answered = cycle is None or cycle.response_complete
        if state is h11.IDLE and answered:
            return "head" if cycle is None or self.conn.trailing_data[0] else ""
        if state is not h11.SEND_BODY or self.conn.they_are_waiting_for_100_continue:
            return ""
        if answered:
            return "rest"
        return "" if self.flow.read_paused else "body"

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        """The request that came last; uvicorn does not say that there may be none."""
        return self.cycle

    def _check_unread(self, now: float) -> None:
        """Abort where the client has read nothing of what waits for it, for `stall_s`."""
        size = self.transport.get_write_buffer_size()
        if size == 0 or size < self._unread:
            self._read_since = now
        self._unread = size
        if size and now - self._read_since > self._bounds.stall_s:
            self._bounds.refused("unread")
            self.transport.abort()

    def _end_head(self) -> None:
        if not self.conn.trailing_data[0]:
            self.transport.close()  # connected and said nothing
            return
        self._bounds.refused("head")
        self._refuse(408, "headers: did not come in time", "too_slow", {"limit": "head"})

    def _refuse(self, status: int, text: str, reason: str = "", details: dict[str, Any] | None = None) -> None:
        """The last answer; what is under way is told that the client is gone. Half an answer is cut instead."""
        self._refused = True
        self._unset_keepalive_if_required()
        cycle = self._cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        self.flow.resume_reading()
        self.transport.write(_written(status, text, reason, details or {}))
        self.transport.write_eof()

    def _should_upgrade(self) -> bool:
        """Never: a request that asks for another protocol is answered as the request that it is (RFC 9110, 7.8)."""
        return False


def _written(status: int, text: str, reason: str, details: dict[str, Any]) -> bytes:
    response = problem(status, CODE_OF_STATUS[status], text, reason, details, {"Connection": "close"})
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    return b"".join([head, *(b"%b: %b\r\n" % pair for pair in response.raw_headers), b"\r\n", bytes(response.body)])
