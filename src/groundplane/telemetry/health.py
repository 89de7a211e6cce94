"""Health of one process: named checks, each bounded in time, and what they found, kept for a minute.

    health = Health("sidecar double")
    health.add("queue", check, backend="rabbitmq")
    report = await health.ready()          # runs the checks, at most once in a quarter of a second
    health.results()                       # what was found last, not older than 60 s; runs nothing

A check returns None when it is fine and the reason when it is not. It is *slow* where it takes longer than its backend
usually may, and that is told; it is *failed* where it gives a reason or takes five times as long as that. Slow is not
red: every replica sees the same slow database, and taking them all out of service would make an outage of it.

    /livez      the event loop answers, nothing else is asked
    /startupz   what the process needs to begin was there once; it stays green from then on
    /readyz     every check is fine: dependencies, and flow (work that waits is being taken)
    /healthz    all three, as a document, with each check's reason, latency and age; `?stored` runs no check
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.errors import GroundplaneError
from groundplane.telemetry.logs import get_logger

Check: TypeAlias = Callable[[], Awaitable[str | None]]

STORED_S = 60.0
"""How long a result is kept and told."""
EVERY_S = 15.0
"""How often `keep` runs the checks, so that results are there when nobody probes."""
SLOW_S = {"redis": 0.1, "postgresql": 1.0, "rabbitmq": 1.0, "nats": 0.5, "kafka": 2.0, "s3": 2.0, "sqlite": 1.0}
"""What an answer of a backend usually may take, in seconds; others have 1 s."""
TIMEOUTS = 5.0
"""After so many times that a check has failed."""
_FRESH_S = 0.25
_log = get_logger("health")


_BACKENDS = {
    "embedded": "sqlite",
    "postgres": "postgresql",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "rediss": "redis",
}


def backend_of(url: str) -> str:
    """The backend behind the URL of a port, as `SLOW_S` names it."""
    scheme = url.partition("://")[0].lower()
    return _BACKENDS.get(scheme, scheme)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found. `reason` is empty when it was fine and not slow; `checked_at` is in Unix milliseconds."""

    name: str
    backend: str
    ok: bool
    slow: bool
    reason: str
    latency_s: float
    checked_at: int

    def shown(self) -> str:
        """`ok` or the reason, and how long it took."""
        return f"{self.reason or 'ok'} ({self.latency_s * 1000:.1f} ms)"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "status": "slow" if self.ok and self.slow else "ok" if self.ok else "failed",
            "reason": self.reason,
            "backend": self.backend,
            "latency_ms": round(self.latency_s * 1000, 3),
            "checked_at": iso_z(self.checked_at),
        }


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts of one run, or those that are stored."""

    verdicts: list[Verdict]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(one.ok for one in self.verdicts)

    @property
    def failures(self) -> dict[str, str]:
        """The reason of each check that failed."""
        return {one.name: one.reason for one in self.verdicts if not one.ok}


class Health:
    """The checks of one process. Used from one event loop."""

    def __init__(self, role: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.role = role
        self._clock = clock
        self._checks: dict[str, tuple[Check, str]] = {}
        self._stored: dict[str, tuple[float, Verdict]] = {}
        self._waits_for: str | None = None
        self._turn = asyncio.Lock()
        self._ran_at = float("-inf")
        self._changed = False

    def __repr__(self) -> str:
        bad = [name for name, (_, verdict) in self._stored.items() if not verdict.ok]
        return f"<Health of {self.role}: {len(self._checks)} checks{f', failed: {bad}' if bad else ''}>"

    def starting(self, wanted: str) -> None:
        """Not started until `started`: readiness and `/startupz` are red and say that it waits for `wanted`."""
        self._waits_for = wanted
        self._changed = True

    def started(self) -> None:
        """What the process needs to begin was there. It stays so."""
        self._waits_for = None
        self._changed = True

    @property
    def startup(self) -> str | None:
        """What the process still waits for, or None."""
        return None if self._waits_for is None else f"waits for {self._waits_for}"

    def add(self, name: str, check: Check, *, backend: str = "process") -> None:
        """Ask `check` from now on; `backend` says what is asked, and so how long it may take."""
        self._checks[name] = (check, backend)
        self._changed = True

    def replace(self, checks: Mapping[str, Check]) -> None:
        """Ask exactly these from now on: what is watched comes and goes."""
        if set(checks) != set(self._checks):
            self._changed = True
        self._checks = {name: (check, "process") for name, check in checks.items()}

    async def ready(self) -> Report:
        """Run the checks side by side, and keep what they found. Calls within a quarter of a second, from however many
        callers, get the same answer: strangers cannot make it ask more often.
        """
        async with self._turn:
            now = self._clock.monotonic()
            if self._changed or now - self._ran_at >= _FRESH_S:
                self._changed = False
                verdicts = await asyncio.gather(*(self._run(name) for name in list(self._checks)))
                self._ran_at = self._clock.monotonic()
                self._stored = {one.name: (self._ran_at, one) for one in verdicts}
            return Report(verdicts=[*self._startup(), *(verdict for _, verdict in self._stored.values())])

    def results(self) -> Report:
        """What was found last, without what is older than 60 s. Runs nothing."""
        oldest = self._clock.monotonic() - STORED_S
        kept = [verdict for at, verdict in self._stored.values() if at > oldest]
        return Report(verdicts=[*self._startup(), *kept])

    async def keep(self, every_s: float = EVERY_S) -> None:
        """Run the checks every so many seconds until cancelled."""
        while True:
            await self.ready()
            await asyncio.sleep(every_s)

    def document(self, report: Report) -> dict[str, Any]:
        """All of it for JSON: `status` is `ok`, `starting` or `failed`."""
        startup = self.startup
        status = "starting" if startup is not None else "ok" if report.ok else "failed"
        return {
            "status": status,
            "role": self.role,
            "started": startup is None,
            "checks": {one.name: one.document() for one in report.verdicts},
        }

    def _startup(self) -> list[Verdict]:
        reason = self.startup
        if reason is None:
            return []
        return [
            Verdict(
                name="start",
                backend="process",
                ok=False,
                slow=False,
                reason=reason,
                latency_s=0.0,
                checked_at=self._clock.now_ms(),
            )
        ]

    async def _run(self, name: str) -> Verdict:
        check, backend = self._checks[name]
        slow_s = SLOW_S.get(backend, 1.0)
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(slow_s * TIMEOUTS):
                reason = await check()
        except TimeoutError:
            reason = f"did not answer within {slow_s * TIMEOUTS:g} s"
        except GroundplaneError as error:
            reason = error.message
        except Exception as error:  # noqa: BLE001 - a check that is broken proves nothing: it is red, and says so
            reason = f"the check broke: {type(error).__name__}: {error}"
            _log.error("health_check_broke", check=name, error=repr(error))
        took_s = self._clock.monotonic() - began
        slow = took_s > slow_s
        said = f"slow: took {took_s:.2f} s, over the {slow_s:g} s that {backend} usually may take" if slow else ""
        return Verdict(
            name=name,
            backend=backend,
            ok=reason is None,
            slow=slow,
            reason=reason if reason is not None else said,
            latency_s=took_s,
            checked_at=self._clock.now_ms(),
        )


__all__ = ["EVERY_S", "SLOW_S", "STORED_S", "Check", "Health", "Report", "Verdict", "backend_of"]
