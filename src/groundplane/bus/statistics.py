"""What a bus did since it was opened, and how long its calls took."""

from __future__ import annotations

from collections import deque

import msgspec

from groundplane.telemetry.calls import calls_of

_KEPT = 1000
REQUESTS = calls_of("bus", "request")
_HANDLING = {"rpc": REQUESTS} | {kind: calls_of("bus", f"handle_{kind}") for kind in ("served", "events", "commands")}
"""Of this process, for Prometheus."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the last thousand calls, in seconds; 0 where there was none."""

    count: int
    p50: float
    p99: float


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since opening. `rpc`, `served`, `events` and `commands` count by outcome: `ok` or the code of the error,
    for events also `retried`, `dead` and `skipped`, for commands how they ended. `latency` is by kind.
    """

    rpc: dict[str, int]
    served: dict[str, int]
    published: int
    events: dict[str, int]
    sent: int
    commands: dict[str, int]
    retries: int
    connections: int
    reconnects: int
    latency: dict[str, Latency]


class Counters:
    """Where the parts of a bus count."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._outcomes: dict[str, dict[str, int]] = {"rpc": {}, "served": {}, "events": {}, "commands": {}}
        self._seconds: dict[str, deque[float]] = {kind: deque(maxlen=_KEPT) for kind in self._outcomes}
        self._totals = dict.fromkeys(self._outcomes, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self._counts[name] = self._counts.get(name, 0) + count

    def ended(self, kind: str, outcome: str, seconds: float) -> None:
        """A call, event or command ended."""
        _HANDLING[kind].end(outcome, seconds)
        outcomes = self._outcomes[kind]
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        self._seconds[kind].append(seconds)
        self._totals[kind] += 1

    def read(self, *, connections: int, reconnects: int) -> Statistics:
        """The counts now."""
        return Statistics(
            rpc=dict(self._outcomes["rpc"]),
            served=dict(self._outcomes["served"]),
            published=self._counts.get("published", 0),
            events=dict(self._outcomes["events"]),
            sent=self._counts.get("sent", 0),
            commands=dict(self._outcomes["commands"]),
            retries=self._counts.get("retries", 0),
            connections=connections,
            reconnects=reconnects,
            latency={kind: self._latency(kind) for kind in self._outcomes},
        )

    def _latency(self, kind: str) -> Latency:
        seconds = sorted(self._seconds[kind])
        if not seconds:
            return Latency(count=0, p50=0.0, p99=0.0)
        p50, p99 = (seconds[min(len(seconds) - 1, int(len(seconds) * q))] for q in (0.5, 0.99))
        return Latency(count=self._totals[kind], p50=p50, p99=p99)
