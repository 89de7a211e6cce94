"""What the tests of the suite share: the hooks of a driver's author, and short words for what tests do all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from groundplane.core.ids import new_id
from groundplane.queues.client import Consumer, Queues
from groundplane.queues.port import Ack, Delivery, Depth, OutgoingMessage, QueueSpec

PATIENCE_S = 10.0
"""How long a test waits for what must happen."""

QUIET_S = 0.3
"""How long a test looks for what must not happen."""


@pytest.mark.anyio
class Kit:
    """Hooks, to be overridden where the driver's backend allows it."""

    death_noticed_s = 5.0
    """How soon the deliveries of a consumer that died must be back."""

    resumes_s = 5.0
    """How soon a consumer must go on after a restart of the backend."""

    forgets_settlements = False
    """Whether the restart may forget a settlement of the last moment: what comes again must say `redelivered`."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def queues(self) -> Any:
        """The façade over the driver under test. Override this one."""
        raise NotImplementedError("queues: override this fixture with one that yields an open Queues")

    def another_client(self) -> AbstractAsyncContextManager[Queues]:
        """A second `Queues` on the same backend and namespace, closed when the block ends."""
        pytest.skip(f"{type(self).__name__} has no hook another_client()")

    async def restart(self, queues: Queues) -> Queues:
        """Restart the backend under `queues`; returns what to go on with once calls are accepted again.

        That is `queues` itself where the backend is a server, and one opened again where it lives in the process.
        """
        pytest.skip(f"{type(self).__name__} has no hook restart()")

    async def die_holding(self, queue: str, count: int) -> list[str]:
        """In another process receive `count` deliveries, settle none, and be killed with SIGKILL; their ids.

        Returns when the process is dead.
        """
        pytest.skip(f"{type(self).__name__} has no hook die_holding()")

    def other_namespace(self) -> AbstractAsyncContextManager[Queues]:
        """A second `Queues` on the same backend, in another namespace."""
        pytest.skip(f"{type(self).__name__} has no hook other_namespace()")


async def a_queue(queues: Queues, **limits: int) -> str:
    """A new queue."""
    name = f"q-{new_id()}"
    await queues.declare(QueueSpec(name=name, **limits))
    return name


def message(queue: str, payload: bytes = b"payload", **fields: Any) -> OutgoingMessage:
    """A message with an id of its own."""
    return OutgoingMessage(queue=queue, payload=payload, **{"id": new_id(), **fields})


async def fill(queues: Queues, queue: str, count: int) -> list[str]:
    """Send `count` messages in one call; their ids."""
    messages = [message(queue, str(n).encode()) for n in range(count)]
    await queues.send(*messages)
    return [one.id for one in messages]


async def take(consumer: Consumer, count: int, within_s: float = PATIENCE_S) -> list[Delivery]:
    """Exactly `count` deliveries, or a failure."""
    found: list[Delivery] = []
    until = time.monotonic() + within_s
    while len(found) < count:
        left_s = until - time.monotonic()
        got = await consumer.receive(count - len(found), max(0.0, left_s))
        if not got and left_s <= 0:
            pytest.fail(f"only {len(found)} of {count} deliveries came within {within_s} s")
        found += got
    return found


async def take_one(queues: Queues, queue: str, within_s: float = PATIENCE_S) -> Delivery:
    """The next delivery, acknowledged."""
    async with queues.consume(queue, max_in_flight=1) as consumer:
        delivery = (await take(consumer, 1, within_s))[0]
        await consumer.ack(delivery)
        return delivery


async def take_all(queues: Queues, queue: str) -> list[Delivery]:
    """Everything that is ready now, acknowledged, in the order of delivery."""
    found: list[Delivery] = []
    async with queues.consume(queue, max_in_flight=1000) as consumer:
        while (got := await consumer.receive(1000, QUIET_S)) or _left(await queues.depth(queue)):
            await consumer.settle([Ack(one) for one in got])
            found += got
    return found


def _left(depth: Depth) -> int:
    """Also what is on its way to the consumer counts."""
    return depth.ready + depth.in_flight


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; fail after `within_s`."""
    until = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > until:
            pytest.fail(f"it did not become true within {within_s} s: {condition.__qualname__}")
        await asyncio.sleep(0.01)
