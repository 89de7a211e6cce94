"""Deadlines: absolute Unix milliseconds that travel, turned into time left where they are used."""

from __future__ import annotations

from groundplane.core.clock import SYSTEM_CLOCK, Clock


def remaining_s(deadline_at: int | None, clock: Clock = SYSTEM_CLOCK) -> float | None:
    """Seconds until `deadline_at` (Unix ms), 0 or less when it has passed; None without one."""
    return None if deadline_at is None else (deadline_at - clock.now_ms()) / 1000


def effective_timeout_s(timeout_s: float | None, deadline_at: int | None, clock: Clock = SYSTEM_CLOCK) -> float | None:
    """The lesser of a timeout and the time left until the deadline; never below 0. None where neither is set."""
    left = remaining_s(deadline_at, clock)
    present = [value for value in (timeout_s, left) if value is not None]
    return max(0.0, min(present)) if present else None
