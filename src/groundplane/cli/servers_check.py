"""What `groundplane doctor` sees of servers: those of all ports at once, within the timeouts of their URLs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from groundplane.cli.finding import Finding, of_error
from groundplane.core.diagnosis import Diagnosis
from groundplane.core.errors import DeadlineExceeded, GroundplaneError
from groundplane.core.settings import Settings
from groundplane.plane import PORTS, Plane, diagnose

CLOCK_TOLERANCE_MS = 1000
LOOK_TIMEOUT_S = 30.0
"""For what a URL's own timeouts do not bound."""


async def examine_servers(settings: Settings, queues: Sequence[str]) -> list[Finding]:
    """A finding for each port that is on a server, and one for each clock that differs."""
    ports = [port for port in PORTS if getattr(settings, port).scheme != "embedded"]
    answers = await asyncio.gather(*(_look(settings, port, queues) for port in ports))
    found: list[Finding] = []
    for port, answer in zip(ports, answers, strict=True):
        if isinstance(answer, GroundplaneError):
            found.append(of_error(port, answer))
            if answer.reason == "clock_skew":
                found[-1] = _clock_of_error(answer)
            continue
        url = getattr(settings, port).masked()
        found.append(Finding(check=port, severity="ok", message=_told(port, answer, url)))
        if answer is not None:
            found += _clock(port, answer)
    return found


async def _look(settings: Settings, port: str, queues: Sequence[str]) -> Diagnosis | GroundplaneError | None:
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            found = await diagnose(settings, port, names=queues)
            if found is None:  # a driver without a look of its own: opened as a role would
                async with Plane.open(settings, ports=(port,)) as plane:
                    return (await plane.check())[port]
            return found
    except GroundplaneError as error:
        return error
    except TimeoutError:
        return DeadlineExceeded(f"{port}: did not answer within {LOOK_TIMEOUT_S:g} s; look at the server's load")


def _told(port: str, found: Diagnosis | None, url: str) -> str:
    if found is None:
        return f"{url} answers"
    hint = "" if port in ("blobs", "kv") else " (`groundplane db upgrade`)"  # a bucket has no schema
    stored = "" if found.stored else f"; nothing of this plane is there yet{hint}"
    return f"{found.server} at {url}{stored}"


def _clock(port: str, found: Diagnosis) -> list[Finding]:
    """Nothing where the clocks agree as far as can be told."""
    if found.clock_ahead_ms is None or abs(found.clock_ahead_ms) <= CLOCK_TOLERANCE_MS + found.clock_error_ms:
        return []
    seconds = abs(found.clock_ahead_ms) / 1000
    where = "ahead of" if found.clock_ahead_ms > 0 else "behind"
    return [Finding(
        check="clock", severity="error", reason="clock_skew",
        message=f"the clock of {found.server} ({port}) is {seconds:.1f} s {where} this machine's",
        remedy="Set both clocks (NTP); until then deadlines, delays and retention are off by that.",
    )]  # fmt: skip


def _clock_of_error(error: GroundplaneError) -> Finding:
    found = of_error("clock", error)
    return Finding(check="clock", severity="error", reason="clock_skew", message=found.message, remedy=found.remedy)
