"""Everything at once on a NATS cluster, through three clients that begin at a node each, and the books of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count
from typing import TypeVar

from groundplane.bus import Bus
from groundplane.bus.events import OutgoingEvent
from groundplane.core.errors import AlreadyExists, Conflict, DeadlineExceeded, Unavailable
from groundplane.kv import KV
from groundplane.testing import eventually
from groundplane.testing.servers.nats_cluster import NatsCluster

T = TypeVar("T")

PLANE = "acme"
_BATCH = 10
PATIENCE_S = 90.0
_PACE_S = 0.01
OUTAGE = (Unavailable, DeadlineExceeded)


class Load:
    """Its callers try again, under the same id, what failed by an outage; any other failure ends the test."""

    def __init__(self, buses: list[Bus], stores: list[KV]) -> None:
        self.buses, self.stores = buses, stores
        self.counts: Counter[str] = Counter()
        self.published: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.sent: dict[str, int] = {}
        self.noted: set[str] = set()
        self.refused: set[str] = set()
        self.deleted: set[str] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`; then every call that was begun is ended."""
        async with AsyncExitStack() as stack:
            for bus in self.buses:
                await opened(stack, lambda bus=bus: bus.serve("quotes", {"get": self._quote}))  # type: ignore[misc]
            for bus in self.buses[1:]:
                await opened(stack, lambda bus=bus: bus.subscribe("orders.*", self._seen, group="g", lease_s=5.0))  # type: ignore[misc]
                await opened(stack, lambda bus=bus: bus.handle("desk", {"square": self._square}, lease_s=5.0))  # type: ignore[misc]
            async with asyncio.TaskGroup() as group:
                for n in range(3):
                    for work in (self._publish, self._send, self._ask, self._note, self._delete):
                        group.create_task(work(n))
            await self._settle()

    def stop(self) -> None:
        self._over.set()

    async def goes_on(self, task: asyncio.Task[None]) -> None:
        """Wait until each kind of work has been done so often, from now on."""
        wanted = dict.fromkeys(("published", "handled", "asked"), 50) | dict.fromkeys(
            ("sent", "squared", "noted", "deleted"), 5
        )
        since = Counter(self.counts)

        def missing() -> bool:
            return task.done() or all(self.counts[kind] - since[kind] >= least for kind, least in wanted.items())

        await eventually(missing, "everything goes on", timeout_s=PATIENCE_S)
        if task.done():
            await task

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that may be made again."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await call()
                except OUTAGE:
                    self.counts["again"] += 1
                    await asyncio.sleep(0.1)

    # -- what is done

    async def _quote(self, number: int) -> int:
        return number + 1

    async def _seen(self, event: object) -> None:
        self.handled[event.payload] += 1  # type: ignore[attr-defined]
        self.counts["handled"] += 1

    async def _square(self, number: int) -> int:
        self.counts["squared"] += 1
        return number * number

    async def _publish(self, n: int) -> None:
        """In batches: several are under way when a node is lost."""
        async for number in self._numbers(2):
            names = [f"e{n}-{number}-{at}" for at in range(_BATCH)]
            batch = [OutgoingEvent(domain="orders", type="made", payload=name, id=name) for name in names]
            await self.until_done(lambda batch=batch: self.buses[n].publish_many(batch))  # type: ignore[misc]
            self.published.update(names)
            self.counts["published"] += _BATCH

    async def _send(self, n: int) -> None:
        async for number in self._numbers(5):
            name = f"c{n}-{number}"
            words = {"number": number}
            await self.until_done(
                lambda name=name, words=words: self.buses[n].send("desk", "square", words, command_id=name)  # type: ignore[misc]
            )
            self.sent[name] = number
            self.counts["sent"] += 1

    async def _ask(self, n: int) -> None:
        async for number in self._numbers():
            try:
                assert await self.buses[n].request("quotes", "get", {"number": number}, timeout_s=2) == number + 1
                self.counts["asked"] += 1
            except OUTAGE:
                self.counts["not answered"] += 1

    async def _note(self, n: int) -> None:
        """Add names to one value, on condition that nobody else has: what is refused was not done."""
        store = self.stores[n]
        async for number in self._numbers(3):
            name = f"{n}-{number}"
            try:
                entry = await store.get("names")
                value = json.dumps([*json.loads(entry.value if entry else b"[]"), name]).encode()
                if entry is None:
                    await store.create("names", value)
                else:
                    await store.update("names", value, revision=entry.revision)
            except (AlreadyExists, Conflict):
                self.refused.add(name)
            except OUTAGE:
                self.counts["not known"] += 1
            else:
                self.noted.add(name)
                self.counts["noted"] += 1

    async def _delete(self, n: int) -> None:
        """What one client has stored another can delete, for good. A write that failed may still come, after all."""
        first, second = self.stores[n], self.stores[(n + 1) % 3]
        async for number in self._numbers(5):
            key = f"k{n}-{number}"
            try:
                await first.put(key, b"")
                await second.delete(key)
            except OUTAGE:
                self.counts["not known"] += 1
            else:
                self.deleted.add(key)
                self.counts["deleted"] += 1

    # -- how

    async def _numbers(self, steps: int = 1) -> AsyncIterator[int]:
        for number in count():
            if self._over.is_set():
                return
            yield number
            await asyncio.sleep(_PACE_S * steps)

    async def _settle(self) -> None:
        """Until what was accepted is done."""
        await eventually(lambda: self.handled.keys() >= self.published, "every event is handled", timeout_s=PATIENCE_S)
        for name in self.sent:
            await eventually(
                lambda name=name: self.buses[0].command_end(name),  # type: ignore[misc]
                f"command {name} has ended",
                timeout_s=PATIENCE_S,
                tolerate=OUTAGE,
            )


async def opened(stack: AsyncExitStack, open_it: Callable[[], AbstractAsyncContextManager[T]]) -> T:
    """Opened until the stack ends, also where the server is too slow for the first attempts."""
    return await eventually(
        lambda: stack.enter_async_context(open_it()), "it is opened", timeout_s=PATIENCE_S, tolerate=OUTAGE
    )


@asynccontextmanager
async def load_on(cluster: NatsCluster) -> AsyncIterator[tuple[Load, asyncio.Task[None]]]:
    """The load, on streams and a bucket of three replicas; it runs when it is given."""
    async with AsyncExitStack() as stack:
        urls = [f"{cluster.url_from(n)}?replicas=3&request_timeout=2" for n in range(3)]
        buses = [
            await opened(stack, lambda n=n: Bus.open(urls[n], namespace=PLANE, name="load", instance=f"i{n}"))  # type: ignore[misc]
            for n in range(3)
        ]
        stores = [await opened(stack, lambda url=url: KV.open(url, namespace=PLANE, bucket="load")) for url in urls]  # type: ignore[misc]
        load = Load(buses, stores)
        task = asyncio.create_task(load.run())
        try:
            yield load, task
        finally:
            task.cancel()
            await asyncio.wait([task])
