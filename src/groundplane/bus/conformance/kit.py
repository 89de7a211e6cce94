"""What the tests of the suite share: the hooks of a driver's author, and short words for what tests do all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from groundplane.bus.client import Bus
from groundplane.core.dead_letters import DeadLetter
from groundplane.core.ids import new_id
from groundplane.core.retry import RetryPolicy

PATIENCE_S = 15.0
"""How long a test waits for what must happen."""

QUIET_S = 0.3
"""How long a test looks for what must not happen."""

QUICK = RetryPolicy(attempts=1, base_s=0.05, factor=1.0, cap_s=0.05, jitter=False)
GROWING = RetryPolicy(attempts=1, base_s=0.05, factor=2.0, cap_s=1.0, jitter=False)


@pytest.mark.anyio
class Kit:
    """Hooks, to be overridden where the driver's backend allows it."""

    death_noticed_s = 35.0
    """How soon others get what a process held that was killed."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def bus(self) -> Any:
        """The façade over the driver under test. Override this one."""
        raise NotImplementedError("bus: override this fixture with one that yields an open Bus")

    def another_client(self, instance: str | None = None) -> AbstractAsyncContextManager[Bus]:
        """Another `Bus` on the same backend and plane, closed when the block ends."""
        pytest.skip(f"{type(self).__name__} has no hook another_client()")

    def other_plane(self) -> AbstractAsyncContextManager[Bus]:
        """A `Bus` on the same backend, of another plane."""
        pytest.skip(f"{type(self).__name__} has no hook other_plane()")


def a_name(prefix: str = "n") -> str:
    """A name of the bus that nobody used."""
    return f"{prefix}-{new_id()[-12:]}"


class Seen:
    """A handler of events that remembers them."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def __call__(self, event: Any) -> None:
        self.events.append(event)

    @property
    def payloads(self) -> list[Any]:
        return [one.payload for one in self.events]


async def eventually(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; fail after `within_s`."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"it did not become true within {within_s} s: {condition.__qualname__}")
        await asyncio.sleep(0.005)


async def in_turn(bus: Bus, service: str, count: int) -> None:
    """Return once `count` instances of the service answer `who` in turn. Those that answered late when the caller asked
    who is there are known a moment after the others.
    """
    until, rounds = time.monotonic() + PATIENCE_S, 0
    while rounds < 3:
        answered = {await bus.request(service, "who") for _ in range(count)}
        rounds = rounds + 1 if len(answered) == count else 0
        if time.monotonic() > until:
            pytest.fail(f"of {count} instances of {service} only {sorted(answered)} are called")


async def dead_letters(bus: Bus, queue: str, count: int = 1) -> list[DeadLetter]:
    """The dead letters of a consumer, once there are so many."""
    until = time.monotonic() + PATIENCE_S
    while True:
        page = await bus.dead_letters.list_dead(queue)
        if len(page.items) >= count:
            return page.items
        if time.monotonic() > until:
            pytest.fail(f"{len(page.items)} of {count} dead letters of {queue}")
        await asyncio.sleep(0.01)
