"""Time as a value that is injected: wall clock in UTC milliseconds for what is stored, monotonic for durations."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Tests inject one that they move themselves."""

    def now_ms(self) -> int:
        """Unix time in milliseconds, UTC. May jump; never compare it with another host's."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()


SYSTEM_CLOCK: Clock = SystemClock()


def boot_id() -> str:
    """A name of the machine's present boot: while it stays the same, no power was lost."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # not Linux: the minute of the start
        return str(int((time.time() - time.monotonic()) // 60))


@functools.lru_cache(maxsize=64)
def iso_z(unix_ms: int) -> str:
    """ISO 8601 in UTC with milliseconds and a `Z`, as on the wire: `2026-01-31T12:00:00.250Z`."""
    second, ms = divmod(unix_ms, 1000)
    return f"{_to_the_second(second)}.{ms:03d}Z"


@functools.lru_cache(maxsize=16)
def _to_the_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()[:19]


def from_iso(text: str) -> int:
    """Unix milliseconds of an ISO 8601 time; one without an offset is taken for UTC."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
