"""What a bus did since it was opened, and how long its calls took."""

from __future__ import annotations

from collections import deque

import msgspec

from groundplane.telemetry.calls import Calls, calls_of

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


class Ends:
    """How the requests of a bus ended, or what it served, or its events, or its commands."""

    __slots__ = ("_calls", "_seconds", "outcomes")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.outcomes: dict[str, int] = {}
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def ended(self, outcome: str, seconds: float) -> None:
        """One ended."""
        self._calls.end(outcome, seconds)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self._seconds.append(seconds)

    def latency(self) -> Latency:
        """How long they took."""
        seconds = sorted(self._seconds)
        if not seconds:
            return Latency(count=0, p50=0.0, p99=0.0)
        p50, p99 = (seconds[min(len(seconds) - 1, int(len(seconds) * q))] for q in (0.5, 0.99))
        return Latency(count=sum(self.outcomes.values()), p50=p50, p99=p99)


class Counters:
    """Where the parts of a bus count."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._ends = {kind: Ends(calls) for kind, calls in _HANDLING.items()}

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self._counts[name] = self._counts.get(name, 0) + count

    def of(self, kind: str) -> Ends:
        """Where `rpc`, `served`, `events` or `commands` end."""
        return self._ends[kind]

    def ended(self, kind: str, outcome: str, seconds: float) -> None:
        """A call, event or command ended."""
        self._ends[kind].ended(outcome, seconds)

    def read(self, *, connections: int, reconnects: int) -> Statistics:
        """The counts now."""
        return Statistics(
            rpc=dict(self._ends["rpc"].outcomes),
            served=dict(self._ends["served"].outcomes),
            published=self._counts.get("published", 0),
            events=dict(self._ends["events"].outcomes),
            sent=self._counts.get("sent", 0),
            commands=dict(self._ends["commands"].outcomes),
            retries=self._counts.get("retries", 0),
            connections=connections,
            reconnects=reconnects,
            latency={kind: ends.latency() for kind, ends in self._ends.items()},
        )
