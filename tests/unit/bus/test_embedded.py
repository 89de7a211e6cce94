"""What the embedded driver asks of its file: few writes, any bytes, and that nobody fails for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.bus.drivers.embedded import EmbeddedBus, rows
from groundplane.bus.drivers.embedded import consumer as embedded_consumer
from groundplane.bus.port import Ack, ConsumerSpec, Delivery, Message, Nack, Priority
from groundplane.core.errors import ResourceExhausted

pytestmark = pytest.mark.anyio
SPEC = ConsumerSpec(name="all", pattern="events.orders.*")
AWKWARD = [b"", bytes(range(256)), b"\x00\x00", b"", "ü€".encode(), b"\xff\xfe\x00", b'"', b"x" * 70_000]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EmbeddedBus]:
    async with EmbeddedBus.open(state=tmp_path) as opened:
        yield opened


def _event(number: int, payload: bytes = b"", **more: str) -> Message:
    return Message(subject="events.orders.made", payload=payload, id=more.pop("id", f"m{number}"), headers=more)


async def _received(bus: EmbeddedBus, count: int, spec: ConsumerSpec = SPEC) -> list[list[Delivery]]:
    """What each receive gave until there were so many, acknowledged."""
    found: list[list[Delivery]] = []
    async with bus.consume(spec) as consumer:
        while sum(map(len, found)) < count:
            found.append(await consumer.receive(100, 30.0))
            assert found[-1]
            await consumer.settle([Ack(one) for one in found[-1]])
    return found


@pytest.mark.req("BUS-06.1", "BUS-12")
async def test_any_bytes_come_back_as_they_were_many_at_once(bus: EmbeddedBus) -> None:
    async with bus.consume(SPEC):
        sent = [_event(n, payload, id=f"ü'{n}\"", name=f"v{n}") for n, payload in enumerate(AWKWARD)]
        sent.append(_event(len(sent)))
        await bus.append(sent)
    (found,) = await _received(bus, len(sent))
    assert [one.message for one in found] == sent


async def test_a_claim_loads_so_many_bytes_and_leaves_the_rest_for_the_next(
    bus: EmbeddedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_CLAIM_BYTES_MAX", 10)
    async with bus.consume(SPEC):
        await bus.append([_event(n, b"x" * size) for n, size in enumerate((4, 4, 4, 50, 1))])
    found = await _received(bus, 5)
    assert [[one.message.id for one in some] for some in found] == [["m0", "m1"], ["m2"], ["m3"], ["m4"]]


@pytest.mark.req("BUS-06.1", "BUS-07.1")
async def test_more_than_fit_into_one_statement_come_in_order_and_some_of_them_again(bus: EmbeddedBus) -> None:
    async with bus.consume(SPEC):
        await bus.append([_event(n) for n in range(205)])
    async with bus.consume(ConsumerSpec(name="all", pattern="events.orders.*", max_in_flight=500)) as consumer:
        first = await consumer.receive(500, 30.0)
        assert [one.message.id for one in first] == [f"m{n}" for n in range(205)]
        await consumer.settle([Ack(one) for one in first[:100]])
        await consumer.settle([Nack(one) for one in first[100:103]] + [Ack(one) for one in first[103:]])
        again = await consumer.receive(500, 30.0)
        assert [(one.message.id, one.attempt) for one in again] == [("m100", 2), ("m101", 2), ("m102", 2)]
        await consumer.settle([Ack(one) for one in again])
        assert await consumer.receive(500, 0.0) == []
    _, (lag,) = await bus.status()
    assert (lag.waiting, lag.in_flight) == (0, 0)


@pytest.mark.req("BUS-09.1")
async def test_those_who_append_at_once_share_a_commit_and_each_is_durable(bus: EmbeddedBus) -> None:
    before = bus.native.statistics()
    await asyncio.gather(*(bus.append([_event(n)]) for n in range(200)))
    after = bus.native.statistics()
    assert after.syncs > before.syncs
    assert after.writes - before.writes < 20
    stored = await bus.native.read(lambda tx: tx.execute("SELECT count(*) FROM bus_log"))
    assert stored == [(200,)]


@pytest.mark.req("BUS-09.3")
async def test_of_those_who_append_one_id_at_once_one_is_heard(bus: EmbeddedBus) -> None:
    heard: list[Message] = []
    await bus.subscribe("events.orders.*", heard.append)
    same = [_event(1, b"%d" % n) for n in range(10)]
    await asyncio.gather(*(bus.append([one]) for one in same), bus.append([_event(2)]))
    await bus.append([_event(1)])
    assert [one.id for one in heard] == ["m1", "m2"]


async def test_a_full_store_refuses_whom_it_has_no_room_for_and_nobody_else(
    bus: EmbeddedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "KEPT_MAX", 3)
    appends = [[_event(1)], [_event(2), _event(3), _event(4)], [_event(5)], [_event(6)]]
    outcomes = await asyncio.gather(*map(bus.append, appends), return_exceptions=True)
    assert [type(one) for one in outcomes] == [type(None), ResourceExhausted, type(None), type(None)]


@pytest.mark.req("BUS-13.1")
async def test_all_that_follow_commands_here_are_told_to_others_as_one(bus: EmbeddedBus, tmp_path: Path) -> None:
    heard: list[Message] = []
    followed = [await bus.subscribe(f"commands.callback.c{n}", heard.append) for n in range(20)]
    sql = "SELECT pattern, members FROM bus_interest"
    assert await bus.native.read(lambda tx: tx.execute(sql)) == [("commands.callback.*", 1)]
    for one in followed[1:]:
        await one.aclose()
    async with EmbeddedBus.open(state=tmp_path) as other:
        for n in (1, 0):
            await other.publish(Message(subject=f"commands.callback.c{n}", payload=b""))
        async with asyncio.timeout(30):
            while not heard:
                await asyncio.sleep(0.005)
    assert [one.subject for one in heard] == ["commands.callback.c0"]


async def _in_turn(bus: EmbeddedBus, count: int) -> list[str]:
    """What one gets who does one after the other."""
    found: list[str] = []
    async with bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*", max_in_flight=1)) as consumer:
        while len(found) < count:
            (one,) = await consumer.receive(1, 30.0)
            found.append(one.message.payload.decode())
            await consumer.settle([Ack(one)])
    return found


@pytest.mark.req("BUS-15.2")
async def test_what_waited_too_long_takes_its_turn_and_the_urgent_the_others(
    bus: EmbeddedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent(run: str) -> list[Message]:
        levels = (Priority.LOW, Priority.NORMAL, Priority.CRITICAL)
        return [
            Message(subject="commands.svc.x", payload=f"{one.name} {n}".encode(), id=f"{run}{one}{n}", priority=one)
            for one in levels
            for n in range(2)
        ]

    await bus.append(sent("a"))
    critical, normal, low = ([f"{name} {n}" for n in range(2)] for name in ("CRITICAL", "NORMAL", "LOW"))
    assert await _in_turn(bus, 6) == critical + normal + low
    monkeypatch.setattr(rows, "_STARVED_MS", 0)
    monkeypatch.setattr(embedded_consumer, "_STARVING_EVERY_S", 1e9)
    await bus.append(sent("b"))
    assert await _in_turn(bus, 6) == [normal[0], low[0], *critical, normal[1], low[1]]
    monkeypatch.setattr(embedded_consumer, "_STARVING_EVERY_S", 0.0)
    await bus.append(sent("c"))
    assert await _in_turn(bus, 6) == [normal[0], low[0], normal[1], low[1], *critical]
