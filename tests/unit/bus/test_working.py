"""Workers, listeners and followers of a bus over a driver that fails now and then."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from groundplane.bus import Bus, Message, client, commands, working
from groundplane.bus.drivers.embedded import EmbeddedBus
from groundplane.bus.events import OutgoingEvent
from groundplane.bus.port import ConsumerSpec, Settlement
from groundplane.core.errors import GroundplaneError, Internal, Unavailable
from groundplane.core.retry import RetryPolicy
from groundplane.testing import eventually

pytestmark = [pytest.mark.anyio]


class Failing:
    """The embedded driver: what is in `failures` by the name of a call is raised instead of making it."""

    def __init__(self, inner: EmbeddedBus) -> None:
        self.inner = inner
        self.failures: dict[str, list[Exception]] = {}
        self.deaf: set[str] = set()
        self.settled = 0
        self.settles = asyncio.Event()
        self.settles.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def fail(self, name: str) -> None:
        if failures := self.failures.get(name):
            raise failures.pop()

    async def publish(self, message: Message) -> None:
        self.fail("publish" if message.subject.startswith("commands.progress.") else "")
        await self.inner.publish(message)

    async def append(self, messages: Sequence[Message]) -> None:
        self.fail("append")
        if any(message.subject.startswith("commands.callback.") for message in messages) and self.deaf:
            subscriptions, self.inner._exchange._switch._local = self.inner._exchange._switch._local, {}
            self.inner._exchange._switch._rebuild()
            await self.inner.append(messages)
            self.inner._exchange._switch._local = subscriptions
            self.inner._exchange._switch._rebuild()
        else:
            await self.inner.append(messages)

    @asynccontextmanager
    async def consume(self, spec: ConsumerSpec) -> AsyncIterator[Any]:
        self.fail("consume")
        async with self.inner.consume(spec) as consumer:
            yield _Consumer(self, consumer)


class _Consumer:
    def __init__(self, driver: Failing, inner: Any) -> None:
        self.driver, self.inner = driver, inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        self.driver.fail("settle")
        await self.driver.settles.wait()
        await self.inner.settle(settlements)
        self.driver.settled += len(settlements)

    async def extend(self, deliveries: Sequence[Any]) -> None:
        self.driver.fail("extend")
        await self.inner.extend(deliveries)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Failing]:
    async with EmbeddedBus.open(state=tmp_path) as inner:
        yield Failing(inner)


@pytest.fixture
async def bus(driver: Failing) -> AsyncIterator[Bus]:
    bus = Bus(driver, name="test", retry=RetryPolicy(attempts=2, base_s=0.001))
    yield bus
    await bus.aclose()


def _away(count: int) -> list[Exception]:
    return [Unavailable("away", reason="not_connected") for _ in range(count)]


@pytest.mark.req("BUS-17")
async def test_what_runs_goes_on_while_the_backend_is_away_and_is_settled_once_it_is_back(
    bus: Bus, driver: Failing
) -> None:
    begun: list[int] = []
    go = asyncio.Event()

    async def handler(event: Any) -> None:
        begun.append(event.payload)
        if event.payload == 1:
            await go.wait()

    async with bus.subscribe("orders.*", handler, group="g", concurrency=2) as subscription:
        await bus.publish("orders", "x", 1)
        await eventually(lambda: begun == [1])
        driver.failures = {"settle": _away(10_000)}
        await bus.publish("orders", "x", 2)
        await eventually(lambda: subscription.failure is not None)
        assert not (await bus.status())[0].ready
        assert driver.settled == 0
        driver.failures = {}
        await eventually(lambda: driver.settled == 1)
        go.set()
        await eventually(lambda: driver.settled == 2)
        assert (begun, subscription.failure, bus.statistics().events) == ([1, 2], None, {"ok": 2})


async def test_a_consumer_that_breaks_is_told_and_opened_again(bus: Bus, driver: Failing) -> None:
    seen: list[int] = []

    async def handler(event: Any) -> None:
        seen.append(event.payload)

    async with bus.subscribe("orders.*", handler, group="g") as subscription:
        driver.failures = {"settle": [ZeroDivisionError("a fault of ours")]}
        await bus.publish("orders", "x", 1)
        await eventually(lambda: not driver.failures["settle"])
        await bus.publish("orders", "x", 2)
        await eventually(lambda: 2 in seen and subscription.failure is None)
    driver.failures = {"consume": [ZeroDivisionError("a fault of ours")]}
    with pytest.raises(Internal, match="a fault of ours"):
        async with asyncio.timeout(10), bus.subscribe("orders.*", handler, group="other"):
            pass


@pytest.mark.req("BUS-13.1")
async def test_progress_that_cannot_be_sent_is_left_out_and_the_command_is_done_once(bus: Bus, driver: Failing) -> None:
    runs: list[int] = []

    async def work(ctx: commands.CommandContext) -> str:
        runs.append(ctx.attempt)
        await ctx.progress(50)
        return "done"

    driver.failures = {"publish": _away(3)}  # 0, 50 and 100
    async with bus.handle("worker", {"work": work}), bus.track("worker", "work", max_retries=0) as tracked:
        assert await tracked.result() == "done"
    assert (runs, driver.failures["publish"]) == ([1], [])


@pytest.mark.req("BUS-13.1")
async def test_of_progress_that_waits_to_be_read_the_latest_is_kept(bus: Bus) -> None:
    most, read = commands.UPDATES_MAX, asyncio.Event()

    async def work(ctx: commands.CommandContext) -> None:
        for number in range(2 * most):
            await ctx.progress(50, f"{number}")
        await read.wait()
        await ctx.progress(60, "read")

    async with bus.handle("worker", {"work": work}), bus.track("worker", "work") as tracked:
        reader = tracked.progress()
        first = await anext(reader)
        await eventually(lambda: tracked._told == 1 + 2 * most)
        kept = [await anext(reader) for _ in range(most)]
        read.set()
        rest = [one async for one in reader]
        again = [one async for one in tracked.progress()]
    assert (first.percent, [one.message for one in kept]) == (0, [f"{number}" for number in range(most, 2 * most)])
    assert [one.percent for one in rest] == [60, 100]
    assert again == [*kept, *rest][-most:]


async def test_a_bus_that_fails_before_the_handler_begins_costs_no_attempt(bus: Bus, driver: Failing) -> None:
    attempts: list[int] = []
    driver.inner.last, last = _failing_once(driver.inner.last), driver.inner.last  # type: ignore[method-assign]

    async def work(ctx: commands.CommandContext) -> None:
        attempts.append(ctx.attempt)

    async with bus.handle("worker", {"work": work}, backoff=RetryPolicy(base_s=0.01)):
        async with bus.track("worker", "work", max_retries=0) as tracked:
            await tracked.result()
    driver.inner.last = last  # type: ignore[method-assign]
    assert attempts == [1]


def _failing_once(call: Any) -> Any:
    failures: list[GroundplaneError] = [Unavailable("away") for _ in range(2)]

    async def failing(subjects: Sequence[str]) -> Any:
        if failures:
            raise failures.pop()
        return await call(subjects)

    return failing


async def test_an_end_that_was_told_while_nobody_could_hear_it_is_found_long_before_the_timeout(
    bus: Bus, driver: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "LOOK_S", 0.2)

    async def work() -> str:
        return "done"

    driver.deaf = {"callback"}
    async with bus.handle("worker", {"work": work}), bus.track("worker", "work", timeout_s=600) as tracked:
        async with asyncio.timeout(30):
            assert await tracked.result() == "done"


async def test_a_listener_that_raises_disturbs_nobody(bus: Bus) -> None:
    heard: list[str] = []

    def broken(message: Message) -> None:
        raise ValueError("mine alone")

    async with bus.listen("events.a.*", broken), bus.listen("events.a.*", lambda one: heard.append(one.subject)):
        await bus.publish("a", "b")
    assert heard == ["events.a.b"]


async def test_a_handler_that_does_not_listen_to_cancellation_does_not_keep_the_driver_open(
    bus: Bus, driver: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PARTS_S", 0.2)
    go, begun = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    async def serve() -> None:
        async with bus.serve("asked", {"hang": stubborn}):
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await eventually(lambda: "1 parts" in repr(bus))
    asking = asyncio.create_task(bus.request("asked", "hang", timeout_s=60))
    await begun.wait()
    async with asyncio.timeout(9):
        await bus.aclose()
    assert driver.inner._closing is not None
    go.set()
    serving.cancel()
    await asyncio.wait([serving, asking])
    assert asking.exception() is not None


@pytest.mark.req("BUS-20")
async def test_handlers_that_never_wait_let_others_run_by_the_clock_and_not_after_each_event_that_is_to_be_settled(
    bus: Bus, driver: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) * 1e-4)  # each event takes a tenth of a millisecond
    monkeypatch.setattr(working, "time", clock)
    turns, seen, all_seen = 0, list[int](), asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not all_seen.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def handle(_: Any) -> None:
        seen.append(turns)
        if len(seen) == 500:
            all_seen.set()

    await bus.publish_many([OutgoingEvent(domain="shop", type="seen") for _ in range(500)])
    driver.settles.clear()
    counting = asyncio.create_task(count())
    async with bus.subscribe("shop.seen", handle, group="turns", prefetch=500, replay=True):
        await counting
        driver.settles.set()
    assert 20 <= seen[-1] - seen[0] <= 50, "about one each two milliseconds"
