"""The bus on NATS when its server is killed, frozen, or cut off: nothing durable is lost, and all flows again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest

from groundplane.bus import Bus, serving
from groundplane.core.errors import DeadlineExceeded, GroundplaneError, Unavailable
from groundplane.testing import Proxy, eventually
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.nats, pytest.mark.timeout(120)]

NOTICED_S = 10.0
_planes = count(1)


@pytest.fixture(scope="module")
def server(own_server_of_module: Callable[..., Running]) -> Running:
    """A NATS of this module's own."""
    return own_server_of_module("nats")


@pytest.fixture
def plane() -> str:
    return f"p{next(_planes)}"


@pytest.fixture
async def bus(server: Running, plane: str) -> AsyncIterator[Bus]:
    async with Bus.open(server.url, namespace=plane, name="one") as one:
        yield one


@pytest.fixture
def proxy(server: Running) -> Iterator[Proxy]:
    with Proxy.to("127.0.0.1", server.port) as one:
        yield one


async def _until_it_works(call: Callable[[], object]) -> None:
    async def once() -> bool:
        await call()  # type: ignore[misc]
        return True

    await eventually(once, timeout_s=NOTICED_S, tolerate=(GroundplaneError,))


@pytest.mark.req("BUS-17")
async def test_after_a_restart_all_kinds_flow_within_two_seconds_and_readiness_was_red(
    server: Running, bus: Bus
) -> None:
    got: set[str] = set()

    async def ask(word: str) -> str:
        return word

    async def seen(event: object) -> None:
        got.add(str(event.payload))  # type: ignore[attr-defined]

    async def work(word: str) -> str:
        got.add(f"did {word}")
        return word

    took: list[float] = []
    async with (
        bus.serve("asked", {"ask": ask}),
        bus.subscribe("orders.*", seen, lease_s=2.0),  # what a kill takes on its way comes again
        bus.handle("worker", {"work": work}),
    ):
        assert (await bus.status())[0].ready
        for n in range(3):
            await bus.publish("orders", "created", f"before {n}")
            await asyncio.to_thread(server.kill)
            await eventually(lambda: not bus.driver._link.is_connected, timeout_s=NOTICED_S)  # type: ignore[attr-defined]
            status, _ = await bus.status()
            assert (status.ready, bool(status.problem)) == (False, True)
            await asyncio.to_thread(server.start)
            began = time.monotonic()
            await _until_it_works(lambda: bus.request("asked", "ask", {"word": "x"}, timeout_s=1))
            await _until_it_works(lambda n=n: bus.publish("orders", "created", f"after {n}"))  # type: ignore[misc]
            await _until_it_works(lambda n=n: bus.send("worker", "work", {"word": str(n)}))  # type: ignore[misc]
            await eventually(
                lambda n=n: {f"before {n}", f"after {n}", f"did {n}"} <= got,  # type: ignore[misc]
                timeout_s=NOTICED_S,
            )
            took.append(time.monotonic() - began)
            await eventually(lambda: _ready(bus), timeout_s=NOTICED_S)
    assert min(took) < 2.0, took
    assert bus.statistics().reconnects >= 3


async def _ready(bus: Bus) -> bool:
    return (await bus.status())[0].ready


@pytest.mark.req("BUS-17")
async def test_a_frozen_server_turns_readiness_red_and_what_is_sent_meanwhile_fails_at_once(
    server: Running, bus: Bus
) -> None:
    async with bus.subscribe("orders.*", lambda _: None):
        await eventually(lambda: _ready(bus))
        server.pause()
        try:
            await eventually(lambda: not bus.driver._link.is_connected, timeout_s=NOTICED_S)  # type: ignore[attr-defined]
            assert not await _ready(bus)
            with pytest.raises(Unavailable):
                await bus.request("nobody", "x", timeout_s=5)
        finally:
            server.resume()
        await eventually(lambda: _ready(bus), timeout_s=NOTICED_S)


@pytest.mark.req("BUS-17", "BUS-09.3")
async def test_events_published_and_consumed_across_kills_and_cuts_are_all_handled(
    server: Running, proxy: Proxy, plane: str, bus: Bus
) -> None:
    wanted, handled = {f"e{n}" for n in range(300)}, set()  # type: tuple[set[str], set[str]]

    async def seen(event: object) -> None:
        handled.add(event.payload)  # type: ignore[attr-defined]

    async def publish(through: Bus) -> None:
        for word in sorted(wanted):
            await eventually(
                lambda word=word: _published(through, word),  # type: ignore[misc]
                timeout_s=60,
                tolerate=(GroundplaneError,),
            )

    async with (
        Bus.open(proxy.through(server.url), namespace=plane, name="two") as through,
        bus.subscribe("orders.*", seen, group="g", lease_s=2.0),
        through.subscribe("orders.*", seen, group="g", lease_s=2.0),
    ):
        publishing = asyncio.create_task(publish(through))
        await eventually(lambda: len(handled) > 30, timeout_s=30)
        proxy.cut()
        await eventually(lambda: len(handled) > 60, timeout_s=30)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await eventually(lambda: len(handled) > 90, timeout_s=30)
        proxy.drop_after(0, direction="to_client", times=1)
        await publishing
        await eventually(lambda: handled == wanted, timeout_s=30)


async def _published(bus: Bus, word: str) -> bool:
    await bus.publish("orders", "created", word)
    return True


@pytest.mark.req("BUS-09.3")
async def test_an_event_whose_acknowledgement_was_lost_is_handled_once(
    server: Running, proxy: Proxy, plane: str, bus: Bus
) -> None:
    seen: list[object] = []

    async def take(event: object) -> None:
        seen.append(event.payload)  # type: ignore[attr-defined]

    async with Bus.open(proxy.through(server.url), namespace=plane, name="two") as through, bus.subscribe("a.*", take):
        proxy.drop_after(0, direction="to_client", times=1)
        await through.publish("a", "b", 1)
        await through.publish("a", "b", 2)
        await eventually(lambda: 2 in seen)
        assert seen == [1, 2]


@pytest.mark.req("BUS-03")
async def test_a_request_that_timed_out_while_the_server_was_frozen_arrives_when_it_is_back_and_is_not_run(
    server: Running, plane: str
) -> None:
    ran: list[str] = []

    async def buy(word: str) -> None:
        ran.append(word)

    url = server.url + "?ping_interval=60"  # nobody reconnects: what was sent arrives
    async with Bus.open(url, namespace=plane) as taking, Bus.open(url, namespace=plane) as asking:
        arrived: list[object] = []
        async with taking.serve("desk", {"buy": buy}), taking.listen("rpc.desk.>", arrived.append):
            await asking.request("desk", "buy", {"word": "before"})
            server.pause()
            try:
                with pytest.raises(DeadlineExceeded):
                    await asking.request("desk", "buy", {"word": "late"}, timeout_s=0.3)
                stale_at = time.monotonic() + serving.SKEW_S + 0.5  # nobody relies on clocks being closer than that
                await eventually(lambda: time.monotonic() > stale_at)
            finally:
                server.resume()
            await asking.request("desk", "buy", {"word": "after"}, timeout_s=30)
            assert ran == ["before", "after"]
            await eventually(lambda: len(arrived) == 3)


@pytest.mark.req("BUS-16.4")
async def test_calls_that_run_when_their_server_closes_are_answered(server: Running, plane: str, bus: Bus) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go.wait()
        return "done"

    async with Bus.open(server.url, namespace=plane, name="two") as other, other.serve("slow", {"slow": slow}):
        asked = asyncio.create_task(bus.request("slow", "slow", timeout_s=20))
        await begun.wait()
        closing = asyncio.create_task(other.aclose())
        await asyncio.sleep(0)
        go.set()
        assert await asked == "done"
        await closing


@pytest.mark.req("BUS-16.1", "BUS-16.2")
async def test_without_any_connection_calls_are_unavailable_and_it_comes_back(
    server: Running, proxy: Proxy, plane: str
) -> None:
    url = proxy.through(server.url) + "?connections=2&reconnect_wait=0.05&reconnect_wait_max=0.2"
    async with Bus.open(url, namespace=plane) as bus, bus.serve("a", {"b": lambda: 1}):
        assert await bus.request("a", "b") == 1
        proxy.down()
        await eventually(lambda: not any(one.connected for one in bus.driver._pool.statistics()))  # type: ignore[attr-defined]
        with pytest.raises(Unavailable):
            await bus.request("a", "b", timeout_s=1)
        proxy.restore()
        await _until_it_works(lambda: bus.request("a", "b", timeout_s=1))
        await eventually(lambda: _connections(bus, 2))


async def _connections(bus: Bus, count: int) -> bool:
    return (await bus.status())[0].connections == count


async def test_two_planes_on_one_server_never_meet(server: Running, bus: Bus) -> None:
    mine: list[object] = []

    async def take(event: object) -> None:
        mine.append(event.payload)  # type: ignore[attr-defined]

    async with Bus.open(server.url, namespace="elsewhere", name="one") as other, bus.subscribe("a.*", take, group="g"):
        await other.publish("a", "b", "theirs")
        await bus.publish("a", "b", "ours")
        with pytest.raises(Unavailable):
            await other.request("one", "x", timeout_s=10)
        await eventually(lambda: mine)
        assert mine == ["ours"]
        assert [lag.consumer for lag in (await other.status())[1]] == []
