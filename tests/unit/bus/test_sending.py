"""Publishing over a store that fails now and then: repeated, not doubled, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus, Message
from groundplane.bus.commands import consumer_name
from groundplane.bus.drivers.embedded import EmbeddedBus
from groundplane.core.errors import GroundplaneError, ResourceExhausted, Unavailable
from groundplane.core.retry import RetryPolicy

QUICK = RetryPolicy(attempts=4, base_s=0.001)


class Flaky:
    """The embedded driver, whose `append` fails: before it stored anything, or after, as a lost acknowledgement."""

    def __init__(self, inner: EmbeddedBus) -> None:
        self.inner = inner
        self.before: list[GroundplaneError] = []
        self.after: list[GroundplaneError] = []
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def append(self, messages: Sequence[Message]) -> None:
        self.calls += 1
        if self.before:
            raise self.before.pop()
        await self.inner.append(messages)
        if self.after:
            raise self.after.pop()


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Flaky]:
    async with EmbeddedBus.open(state=tmp_path) as inner:
        yield Flaky(inner)


@pytest.fixture
async def bus(driver: Flaky) -> AsyncIterator[Bus]:
    bus = Bus(driver, name="test", retry=QUICK)
    yield bus
    await bus.aclose()


async def payloads(bus: Bus, last: Any) -> list[Any]:
    """What a new subscriber gets of what is kept, up to `last`."""
    seen: list[Any] = []

    async def handler(event: Any) -> None:
        seen.append(event.payload)

    async with bus.subscribe("orders.*", handler, group="late", replay=True), asyncio.timeout(10):
        while last not in seen:
            await asyncio.sleep(0.005)
    return seen


@pytest.mark.anyio
@pytest.mark.req("BUS-09.2")
async def test_publishing_is_tried_three_more_times_when_the_error_may_pass(bus: Bus, driver: Flaky) -> None:
    driver.before = [Unavailable("away")] * 3
    await bus.publish("orders", "x", 1)
    assert (driver.calls, bus.statistics().retries) == (4, 3)
    driver.before = [Unavailable("away")] * 4
    with pytest.raises(Unavailable):
        await bus.publish("orders", "x", 2)
    assert driver.calls == 8


@pytest.mark.anyio
@pytest.mark.req("BUS-09.3")
async def test_what_was_stored_although_its_acknowledgement_was_lost_is_not_doubled(bus: Bus, driver: Flaky) -> None:
    driver.after = [Unavailable("no answer"), Unavailable("no answer")]
    await bus.publish("orders", "x", "once")
    await bus.publish("orders", "x", "last")
    assert driver.calls == 4
    assert await payloads(bus, "last") == ["once", "last"]


@pytest.mark.anyio
async def test_a_bus_whose_subscription_gets_nothing_is_not_ready_until_it_does(bus: Bus, driver: Flaky) -> None:
    async def handler(event: Any) -> None: ...

    async with bus.subscribe("orders.*", handler, group="g") as subscription:
        assert (await bus.status())[0].ready
        subscription._worker.failure = Unavailable("no consumer")
        status, _ = await bus.status()
        assert (status.ready, "no consumer" in status.problem) == (False, True)
        await driver.inner.native.write(lambda tx: tx.execute("DELETE FROM bus_consumers"))
        await bus.publish("orders", "x", 1)
        async with asyncio.timeout(20):
            while not (await bus.status())[0].ready:
                await asyncio.sleep(0.01)
    assert bus.statistics().retries == 0


def test_the_consumer_of_a_service_has_a_name_of_its_own_however_long_that_of_the_service() -> None:
    names = {consumer_name(f"{'s' * 62}{n}") for n in range(3)} | {consumer_name("s" * 60), consumer_name("s")}
    assert len(names) == 5
    assert max(map(len, names)) == 64


@pytest.mark.anyio
async def test_a_full_store_is_told_at_once(bus: Bus, driver: Flaky) -> None:
    driver.before = [ResourceExhausted("full", reason="queue_full")]
    with pytest.raises(ResourceExhausted):
        await bus.publish("orders", "x")
    assert driver.calls == 1
