"""NATS is killed, restarted, paused, out of reach, silent, cut off and slow in every window of an event: nothing is
lost, nothing is stored twice, all flows again, and two planes never meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from fault.nats_lab import ENTERED_S, MARKS, PATIENCE_S, QUICK, TwoPlanes, patiently, rounds, running, under_way
from fault.server_lab import Backstage
from groundplane.bus import Bus, ReceivedEvent
from groundplane.testing import eventually, unique
from groundplane.testing.checkers import History

pytestmark = MARKS

LEASE_S = 2.5


class BusPlane:
    """Who publishes and asks, and who handles and answers, in one plane; and what they did."""

    def __init__(self, name: str, sending: Bus, taking: Bus) -> None:
        self.name, self.sending, self.taking = name, sending, taking
        self.history = History()
        self.handled: set[str] = set()
        self.when_handling: Callable[[str], object] = lambda _: None
        self._numbers = count()

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, url: str) -> AsyncIterator[BusPlane]:
        async with Bus.open(url, namespace=name, name="desk") as sending, Bus.open(url, namespace=name) as taking:
            plane = cls(name, sending, taking)
            async with (
                taking.serve("asked", {"who": lambda: name}),
                taking.subscribe("orders.*", plane._take, group="g", lease_s=LEASE_S, attempts_max=1000),
            ):
                yield plane

    def new_id(self) -> str:
        return f"{self.name}-{next(self._numbers)}"

    async def publish(self, event_id: str, through: Bus | None = None) -> None:
        """Under one id, until it is confirmed."""
        bus = through or self.sending
        self.history.maybe_sent(event_id)
        await patiently(lambda: bus.publish("orders", "created", self.name, event_id=event_id), f"{event_id} is stored")
        self.history.sent(event_id)

    async def publish_on(self) -> None:
        while True:
            await self.publish(self.new_id())
            await asyncio.sleep(0.02)

    async def passes(self) -> None:
        """A new event is handled, and a request answered."""
        event_id = self.new_id()
        await self.publish(event_id)
        await eventually(lambda: event_id in self.handled, f"{event_id} is handled", timeout_s=PATIENCE_S)
        assert await patiently(lambda: self.sending.request("asked", "who", timeout_s=1)) == self.name

    async def check(self, stored: list[str]) -> None:
        """`stored` are the ids that the server has: each once, and whatever was confirmed; all of it was handled."""
        assert len(stored) == len(set(stored)), sorted(one for one in set(stored) if stored.count(one) > 1)
        await eventually(lambda: set(stored) <= self.handled, "all that is stored is handled", timeout_s=PATIENCE_S)
        self.history.ended(*stored)
        self.history.check_nothing_lost()
        self.history.check_nothing_invented()

    async def _take(self, event: ReceivedEvent) -> None:
        assert event.payload == self.name
        self.history.done(event.id)
        self.handled.add(event.id)
        self.when_handling(event.id)


class BusWindows(TwoPlanes[BusPlane]):
    """Rounds on one plane, while another works beside it under the same names; `near` does not go through the proxy."""

    def __init__(self, backstage: Backstage, plane: BusPlane, other: BusPlane, near: Bus) -> None:
        super().__init__(backstage, plane, other)
        self._near = near

    async def enter(self, window: str) -> None:
        enter: dict[str, Callable[[str], Awaitable[None]]] = {
            "publish": self._publish, "ack": self._ack, "deliver": self._deliver, "settle": self._settle,
        }  # fmt: skip
        await enter[window](self._plane.new_id())

    async def _publish(self, event_id: str) -> None:
        """It is on its way to the server."""
        self._proxy.stall("to_server")
        self._arm(self._plane.publish(event_id))
        await eventually(lambda: under_way(self._plane.sending), timeout_s=ENTERED_S)

    async def _ack(self, event_id: str) -> None:
        """The server has stored it, and its confirmation is lost."""
        before = await self._stored()
        self._proxy.half_open("to_client")
        self._arm(self._plane.publish(event_id))
        await eventually(lambda: self._holds_more(before), timeout_s=ENTERED_S)
        assert event_id not in self._plane.handled

    async def _deliver(self, event_id: str) -> None:
        """The server has handed it out, and it is on its way."""
        self._proxy.stall("to_client")
        await self._plane.publish(event_id, through=self._near)
        await eventually(self._is_out, timeout_s=ENTERED_S)

    async def _settle(self, event_id: str) -> None:
        """It was handled, and the server never learns of it."""

        def swallow(handled: str) -> None:
            if handled == event_id:
                self._plane.when_handling = lambda _: None  # once: it comes again
                self._proxy.half_open("to_server")

        self._plane.when_handling = swallow
        self._arm(self._plane.publish(event_id))
        await eventually(lambda: event_id in self._plane.handled, timeout_s=PATIENCE_S)

    async def red(self) -> bool:
        sending, taking = await asyncio.gather(self._plane.sending.status(), self._plane.taking.status())
        return not sending[0].ready and not taking[0].ready

    async def green(self) -> bool:
        sending, taking = await asyncio.gather(self._plane.sending.status(), self._plane.taking.status())
        return sending[0].ready and taking[0].ready

    async def _stored(self) -> int:
        driver: Any = self._near.driver
        info: Any = await patiently(lambda: driver.native.stream_info(driver.naming.events))
        last: int = info.state.last_seq
        return last

    async def _holds_more(self, before: int) -> bool:
        return await self._stored() > before

    async def _is_out(self) -> bool:
        _, lags = await self._near.status()
        return any(lag.in_flight for lag in lags)


async def stored_ids(bus: Bus) -> list[str]:
    """Of all events that the server has, in order."""
    driver: Any = bus.driver
    stream, subjects = driver.naming.events, f"{driver.naming.token}.events.>"
    found, at = [], 1
    while (one := await driver.native.get_next(stream, subjects, at)) is not None:
        found.append(one.headers["Nats-Msg-Id"])
        at = one.seq + 1
    return found


@pytest.mark.req("BUS-17", "BUS-09.3", "BUS-06", "BUS-07")
@pytest.mark.parametrize("window", ["publish", "ack", "deliver", "settle"])
async def test_an_event_that_meets_a_fault_is_stored_once_and_handled(window: str, nats_backstage: Backstage) -> None:
    names = [unique("plane"), unique("plane")]
    far_url, near_url = nats_backstage.url + QUICK, nats_backstage.server.url + QUICK
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(BusPlane.open(name, far_url)) for name in names]
        near, there = [await stack.enter_async_context(Bus.open(near_url, namespace=name)) for name in names]
        windows = BusWindows(nats_backstage, one, other, near)
        stack.push_async_callback(windows.aclose)
        async with running(other.publish_on):
            await rounds(window, windows, nats_backstage)
        await one.check(await stored_ids(near))
        await other.check(await stored_ids(there))
