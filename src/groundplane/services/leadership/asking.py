"""The caller's side: ask whoever leads, and again while that changes."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.deadline import remaining_s
from groundplane.core.errors import GroundplaneError, InvalidArgument
from groundplane.core.retry import RetryPolicy

T = TypeVar("T")

PATIENCE_S = 10.0
BACKOFF = RetryPolicy(base_s=0.1, factor=2.0, cap_s=1.0)
"""100 ms, doubled each time up to 1 s, with full jitter."""
RETRIED = frozenset({"not_active", "no_responder"})
"""Nothing was done: a standby has refused, or nobody was there to hear it. Everything else is the answer."""


async def ask_leader(
    call: Callable[[str | None], Awaitable[T]],
    *,
    timeout_s: float = PATIENCE_S,
    deadline_at: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
    rand: Callable[[], float] = random.random,
) -> T:
    """`call(leader)` until a leader has answered: `leader` is None at first, then who the last standby said it is.

    Again after `not_active` (and `no_responder`: it may have died just now), until `timeout_s` or `deadline_at` (Unix
    ms), whichever is first; then the last of these errors. What the handler raises (`execution_error`), and a timeout,
    whose outcome is unknown, are raised at once. `call` bounds its own time.
    """
    _check_timeout(timeout_s)
    left = remaining_s(deadline_at, clock)
    allowed = timeout_s if left is None else min(timeout_s, left)
    start, attempt, leader = clock.monotonic(), 0, None
    while True:
        attempt += 1
        try:
            return await call(leader)
        except GroundplaneError as error:
            if error.reason not in RETRIED:
                raise
            delay = BACKOFF.delay_s(attempt, rand)
            if clock.monotonic() - start + delay >= allowed:
                raise
            told = error.details.get("leader") if error.reason == "not_active" else None
            leader = told if isinstance(told, str) and told else None
        await asyncio.sleep(delay)


def _check_timeout(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InvalidArgument(f"timeout_s: {value!r} must be a number of seconds, at least 0")
