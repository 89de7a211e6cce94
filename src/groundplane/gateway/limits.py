"""How much one caller may ask: requests by a token bucket, streams that are open, jobs that have not ended.

Requests and streams are counted by each gateway for itself: behind a balancer, N replicas together let N times as many
through. Jobs are counted by the store, in the transaction that creates one (`NewJob.live_max`): replicas share that
limit. A caller is known by its principal; without authentication all are one.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from groundplane.core.errors import ResourceExhausted
from groundplane.gateway import problems
from groundplane.gateway.settings import GatewaySettings, Limit

CALLERS_MAX = 10_000


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Per caller: requests per second and how many at once, jobs that have not ended, open streams. None: no limit."""

    rate: float | None = 50.0
    burst: int = 100
    live_jobs: int | None = 100
    streams: int | None = 20

    @classmethod
    def of(cls, settings: GatewaySettings, *, authenticated: bool) -> Limits:
        """What the settings come to."""
        default = cls()

        def chosen(given: Limit, usual: float | None) -> float | None:
            if given is None:
                return usual if authenticated else None
            return None if given == "none" else given

        return cls(
            rate=chosen(settings.rate, default.rate),
            burst=settings.burst or default.burst,
            live_jobs=_whole(chosen(settings.live_jobs, default.live_jobs)),
            streams=_whole(chosen(settings.streams, default.streams)),
        )


class Limiter:
    """The callers of one gateway. Belongs to one event loop.

    At most `callers_max` are kept in mind; who has not called for as long as a bucket takes to fill is forgotten, which
    changes nothing. Beyond that the one that was quiet longest is, and has a full bucket again.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        callers_max: int = CALLERS_MAX,
        refused: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._callers_max = callers_max
        self._refused = refused
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._streams: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Limiter {len(self._full_at)} callers, {self._streams.total()} streams>"

    def __len__(self) -> int:
        """How many callers are kept in mind."""
        return len(self._full_at)

    def admit(self, principal: str) -> None:
        """Take a token of the caller's bucket. Raises `resource_exhausted` (`rate_exceeded`) with the seconds until
        there is one.
        """
        rate, burst = self.limits.rate, self.limits.burst
        if rate is None:
            return
        now = self._clock()
        full_at = max(self._full_at.get(principal, now), now)
        wait_s = (full_at - now) - (burst - 1) / rate
        if wait_s > 1e-9:
            self._refused("rate")
            raise ResourceExhausted(
                f"rate: is over {rate:g} requests per second, of which {burst} may come at once; "
                f"call again in {wait_s:.3f} s",
                reason="rate_exceeded",
                details={"limit": "rate", "max": rate, "burst": burst, "retry_after_s": round(wait_s, 6)},
            )
        self._full_at[principal] = full_at + 1 / rate
        self._full_at.move_to_end(principal)
        self._forget(now)

    @contextmanager
    def stream(self, principal: str) -> Iterator[None]:
        """Hold one of the caller's streams. Raises `resource_exhausted` (`too_many_streams`)."""
        most = self.limits.streams
        if most is None:
            yield
            return
        if self._streams[principal] >= most:
            self._refused("streams")
            raise ResourceExhausted(
                f"streams: {most} of this caller are open, which is the limit; close one, or follow fewer jobs",
                reason="too_many_streams",
                details={"limit": "streams", "max": most},
            )
        self._streams[principal] += 1
        try:
            yield
        finally:
            self._streams[principal] -= 1
            if not self._streams[principal]:
                del self._streams[principal]

    def _forget(self, now: float) -> None:
        """Those at the old end whose bucket is full; at least as many as are too many."""
        while self._full_at:
            principal, full_at = next(iter(self._full_at.items()))
            if full_at > now and len(self._full_at) <= self._callers_max:
                return
            del self._full_at[principal]


class Limited:
    """ASGI middleware, behind whatever tells who calls: 429 for a request over the rate. `exempt` are paths of probes
    and of actors that report, which no caller's limit may silence.
    """

    def __init__(self, app: ASGIApp, limiter: Limiter, exempt: Callable[[str], bool]) -> None:
        self._app = app
        self._limiter = limiter
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, or refuse with a problem document."""
        answer = self._app
        if scope["type"] == "http" and not self._exempt(scope["path"]):
            try:
                self._limiter.admit(principal_of(scope))
            except ResourceExhausted as error:
                answer = problems.of_error(error)
        await answer(scope, receive, send)


def principal_of(scope: Scope) -> str:
    """Who calls; "" where callers are not told apart."""
    caller = scope.get("state", {}).get("caller")
    return "" if caller is None else str(caller.principal)


def _whole(value: float | None) -> int | None:
    return None if value is None else math.floor(value)
