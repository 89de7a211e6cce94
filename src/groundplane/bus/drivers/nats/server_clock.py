"""The server's clock, as it is known here: asked now and then, told on by our monotonic clock in between.

All hosts of a plane measure by it, so that none compares its own wall clock with another's.
"""

from __future__ import annotations

import time

from groundplane.backends.nats import JetStream
from groundplane.backends.nats.jetstream import nanoseconds
from groundplane.core.clock import Clock

DRIFT = 1e-4
"""Seconds per second by which two clocks part at most: what was heard long ago is worth less."""


class ServerClock:
    """A `Clock`. `ask` it before it is used; right to half of the answer's way, a millisecond as a rule."""

    def __init__(self) -> None:
        self._at_ms = 0.0
        self._since_s = 0.0
        self._error_s = float("inf")

    def now_ms(self) -> int:
        """Unix time in milliseconds, by the server's clock."""
        return round(self._at_ms + (time.monotonic() - self._since_s) * 1000)

    def monotonic(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()

    async def ask(self, jetstream: JetStream, stream: str) -> None:
        """Ask the server for its time; an answer that was longer under way than the best one is worth is left aside."""
        sent_s = time.monotonic()
        info = await jetstream.stream_info(stream)
        self.heard(nanoseconds(info.ts) / 1e6, sent_s, time.monotonic())

    def heard(self, server_ms: float, sent_s: float, received_s: float) -> None:
        """The server said `server_ms` between these two moments of our monotonic clock."""
        error_s = (received_s - sent_s) / 2
        if error_s < self._error_s + DRIFT * (received_s - self._since_s):
            self._at_ms, self._since_s, self._error_s = server_ms, sent_s + error_s, error_s


def _conforms(clock: ServerClock) -> Clock:
    return clock
