"""The bus's driver for NATS, at its port: what is its own, beside what the conformance suite asks of every driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace

import pytest

from groundplane.backends.nats import Address, JetStream, Link, StreamConfig
from groundplane.bus import Bus
from groundplane.bus.drivers.nats import NatsBus, commands, server_clock
from groundplane.bus.drivers.nats.diagnosis import diagnose
from groundplane.bus.drivers.nats.server_clock import ServerClock
from groundplane.bus.port import Ack, ConsumerSpec, Delivery, Message, Nack, Priority, Reject
from groundplane.core.clock import SystemClock
from groundplane.core.errors import (
    Closed,
    ErrorRecord,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from groundplane.testing import eventually
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    async with NatsBus.open(nats_url, namespace="acme") as one:
        yield one


def _message(subject: str, payload: bytes = b"", id: str = "", **more: object) -> Message:  # noqa: A002
    return Message(subject=subject, payload=payload, id=id, **more)  # type: ignore[arg-type]


# -- transient


async def test_a_request_is_answered_and_nobody_is_told_at_once(bus: NatsBus) -> None:
    async def answer(message: Message) -> None:
        await bus.publish(_message(message.reply_to, message.payload * 2, headers=message.headers))

    tasks: set[asyncio.Task[None]] = set()
    await bus.subscribe("rpc.quotes.get", lambda m: tasks.add(asyncio.ensure_future(answer(m))), group="service")
    found = await bus.request(_message("rpc.quotes.get", b"ab", "1", headers={"a": "b"}), 5)
    assert (found.payload, found.headers) == (b"abab", {"a": "b"})
    with pytest.raises(Unavailable) as caught:
        await bus.request(_message("rpc.quotes.none"), 5)
    assert caught.value.reason == "no_responder"


async def test_patterns_take_what_fits_and_nothing_of_the_drivers_own(bus: NatsBus, nats_url: str) -> None:
    seen: dict[str, list[str]] = {}
    for pattern in ("events.>", "commands.*.run", "*.a.run", "commands.a.>", "commands.progress.x"):
        await bus.subscribe(pattern, lambda message, p=pattern: seen.setdefault(p, []).append(message.subject))
    async with NatsBus.open(nats_url, namespace="other") as other:
        await other.append([_message("events.a.b", b"not yours")])
    await bus.append([_message("events.a.b", id="1"), _message("commands.a.run", id="2", priority=Priority.HIGH)])
    await bus.publish(_message("commands.progress.x"))
    await eventually(lambda: sum(map(len, seen.values())) == 5)
    assert seen == {
        "events.>": ["events.a.b"],
        "commands.*.run": ["commands.a.run"],
        "*.a.run": ["commands.a.run"],
        "commands.a.>": ["commands.a.run"],
        "commands.progress.x": ["commands.progress.x"],
    }


@pytest.mark.req("BUS-19")
async def test_a_plain_client_sends_events_and_commands_and_listens(bus: NatsBus, nats_url: str) -> None:
    async with (
        bus.consume(ConsumerSpec(name="e", pattern="events.>")) as events,
        bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*")) as commands,
        await Link.open(Address.parse(nats_url)) as plain,
    ):
        heard: list[bytes] = []
        plain.subscribe("acme.commands.callback.7", lambda message: heard.append(message.payload))
        await plain.flush()
        await JetStream(plain).publish("acme.events.orders.created", b"{}", message_id="one")
        plain.publish("acme.commands.svc.run", b"{}")
        [event] = await events.receive(10, 5)
        [command] = await commands.receive(10, 5)
        assert (event.message.subject, event.message.id) == ("events.orders.created", "one")
        assert (command.message.subject, command.message.priority) == ("commands.svc.run", Priority.NORMAL)
        await bus.append([_message("commands.callback.7", b"done", "x")])
        await eventually(lambda: heard == [b"done"])
    assert (await bus.last(["commands.callback.7", "commands.callback.8"]))["commands.callback.7"].payload == b"done"


# -- durable


async def test_events_wait_for_their_consumer_and_come_in_order(bus: NatsBus) -> None:
    spec = ConsumerSpec(name="worker", pattern="events.orders.*")
    async with bus.consume(spec):
        pass
    await bus.append([_message(f"events.orders.{n}", b"%d" % n, f"id{n}", headers={"h": "ü"}) for n in range(1200)])
    await bus.append([_message("events.orders.0", b"again", "id0"), _message("events.other.0")])
    seen: list[Delivery] = []
    async with bus.consume(spec) as consumer:
        while len(seen) < 1200:
            got = await consumer.receive(100, 10)
            assert got
            seen += got
            await consumer.settle([Ack(one) for one in got])
        assert await consumer.receive(1, 0.2) == []
    assert [one.message.payload for one in seen] == [b"%d" % n for n in range(1200)]
    first = seen[0]
    assert (first.attempt, first.redrives, first.message.headers, first.message.id) == (1, 0, {"h": "ü"}, "id0")
    _, [lag] = await bus.status()
    assert (lag.consumer, lag.pattern, lag.waiting, lag.in_flight) == ("worker", "events.orders.*", 0, 0)


@pytest.mark.req("BUS-07.1")
async def test_a_nack_comes_back_after_its_delay_with_its_attempt_and_a_settled_one_never(bus: NatsBus) -> None:
    async with bus.consume(ConsumerSpec(name="worker", pattern="events.>", lease_s=30)) as consumer:
        await bus.append([_message("events.a.a", b"x", "1")])
        [one] = await consumer.receive(10, 5)
        began = time.monotonic()
        await consumer.settle([Nack(one, delay_s=0.5)])
        [again] = await consumer.receive(10, 10)
        assert time.monotonic() - began >= 0.45
        assert (again.attempt, again.message) == (2, one.message)
        await consumer.settle([Ack(again)])
        await consumer.settle([Ack(again), Nack(one)])  # settled already: no error, and in time
        assert await consumer.receive(10, 0.2) == []


async def test_a_lease_that_ends_hands_the_delivery_to_another_and_extending_keeps_it(bus: NatsBus) -> None:
    spec = ConsumerSpec(name="worker", pattern="events.>", lease_s=2.5)
    async with bus.consume(spec) as first, bus.consume(spec) as second:
        await bus.append([_message("events.a.a", b"x", "1")])
        await eventually(lambda: len(first._holding) + len(second._holding))  # type: ignore[attr-defined]
        holder, other = (first, second) if len(first._holding) else (second, first)  # type: ignore[attr-defined]
        [held] = await holder.receive(1, 5)
        for _ in range(14):
            await asyncio.sleep(0.2)
            await holder.extend([held])
        assert await other.receive(1, 0.1) == []
        await eventually(lambda: other._ready or holder._ready)  # type: ignore[attr-defined]
        [taken] = await other.receive(1, 0.1) or await holder.receive(1, 0.1)
        assert taken.attempt == 2
        with pytest.raises(FailedPrecondition) as caught:
            await holder.extend([held])
        assert caught.value.reason == "delivery_lost"
        await holder.settle([Nack(held)])  # not its own any more: nobody else gets it now
        assert await other.receive(1, 0.3) == [] == await holder.receive(1, 0.3)


@pytest.mark.req("BUS-21.1")
@pytest.mark.parametrize("subject", ["events.a.b", "commands.svc.run"])
async def test_a_rejected_message_is_a_dead_letter_with_its_bytes_and_is_redriven_to_its_consumer_alone(
    bus: NatsBus, subject: str
) -> None:
    pattern = subject.rpartition(".")[0] + ".*"
    async with AsyncExitStack() as stack:
        consumer = await stack.enter_async_context(bus.consume(ConsumerSpec(name="worker", pattern=pattern)))
        others = []
        if subject.startswith("events"):
            others.append(await stack.enter_async_context(bus.consume(ConsumerSpec(name="other", pattern=pattern))))
        bad = _message(subject, b"\xff\0bad", "1", headers={"traceparent": "tp", "x": "1"}, priority=Priority.NORMAL)
        await bus.append([bad])
        for one in others:
            await one.settle([Ack(*await one.receive(1, 5))])
        [delivery] = await consumer.receive(1, 5)
        error = ErrorRecord("internal", "Zürich 😀", traceback="t" * 100_000)
        await consumer.settle([Reject(delivery, "msg_parsing_error", error)])
        page = await bus.dead_letters.list_dead("worker")
        [letter] = page.items
        assert (letter.payload, letter.message_id, letter.attempts, letter.trace) == (b"\xff\0bad", "1", 1, "tp")
        assert letter.headers == {"traceparent": "tp", "x": "1", "groundplane-subject": subject}
        assert letter.error is not None
        assert letter.error.message == "Zürich 😀"
        assert letter.enqueued_at == delivery.stored_at
        assert (await bus.dead_letters.get_dead(letter.id)) == letter
        await bus.dead_letters.redrive(letter.id, payload=b"mended")
        with pytest.raises(NotFound):
            await bus.dead_letters.redrive(letter.id)
        [back] = await consumer.receive(1, 5)
        assert (back.message.payload, back.attempt, back.redrives) == (b"mended", 1, 1)
        assert (back.message.subject, back.message.id, back.stored_at) == (subject, "1", delivery.stored_at)
        assert back.message.headers == bad.headers
        for one in others:
            assert await one.receive(1, 0.2) == []
        await consumer.settle([Reject(back, "again")])
        [letter] = (await bus.dead_letters.list_dead()).items
        assert letter.redrives == 1
        assert await bus.dead_letters.purge([letter.id, "999"]) == 1
        assert (await bus.dead_letters.list_dead("worker")).items == []
    with pytest.raises(NotFound):
        await bus.dead_letters.list_dead("nobody")


async def test_a_dead_letter_of_the_largest_message_keeps_its_bytes(bus: NatsBus) -> None:
    payload = bytes(bus.limits.payload_bytes_max)
    async with bus.consume(ConsumerSpec(name="worker", pattern="events.>")) as consumer:
        await bus.append([_message("events.a.a", payload, "1")])
        [delivery] = await consumer.receive(1, 10)
        await consumer.settle([Reject(delivery, "x", ErrorRecord("internal", "m", traceback="t" * 5000))])
        [letter] = (await bus.dead_letters.list_dead("worker")).items
        assert letter.payload == payload
        await bus.dead_letters.redrive(letter.id)
        [back] = await consumer.receive(1, 10)
        assert back.message.payload == payload
    assert (await bus.native.stream_info(bus.naming.dead)).state.messages == 0


async def test_pages_of_dead_letters_follow_each_other(bus: NatsBus) -> None:
    async with bus.consume(ConsumerSpec(name="worker", pattern="events.>")) as consumer:
        await bus.append([_message("events.a.a", b"%d" % n) for n in range(25)])
        seen = 0
        while seen < 25:
            got = await consumer.receive(25, 5)
            seen += len(got)
            await consumer.settle([Reject(one, "x") for one in got])
    payloads: list[bytes] = []
    cursor: str | None = None
    while True:
        page = await bus.dead_letters.list_dead("worker", cursor=cursor, limit=10)
        payloads += [one.payload for one in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert payloads == [b"%d" % n for n in range(25)]


@pytest.mark.req("BUS-15.2")
async def test_commands_come_by_urgency_and_a_receiver_holds_no_more_than_it_may(bus: NatsBus) -> None:
    for priority in Priority:
        await bus.append(
            [_message("commands.svc.run", b"%d" % priority, f"{priority}-{n}", priority=priority) for n in range(5)]
        )
    spec = ConsumerSpec(name="svc", pattern="commands.svc.*", max_in_flight=2)
    seen = []
    async with bus.consume(spec) as consumer:
        held = await consumer.receive(10, 5)
        assert len(held) == 2
        assert await consumer.receive(10, 0.2) == []
        while held:
            seen += [one.message.priority for one in held]
            await consumer.settle([Ack(one) for one in held])
            held = await consumer.receive(1, 10) if len(seen) < 20 else []
        assert await consumer.receive(1, 0.2) == []
        await bus.append([_message("commands.svc.run", id="late")])
        assert len(await consumer.receive(1, 5)) == 1
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 20
    info = await bus.native.stream_info(bus.naming.stream_of("commands.svc.*"))
    assert info.state.messages == 1  # done commands are gone, the one that was handed back is not


async def test_a_consumer_that_closes_hands_back_what_it_holds_at_once(bus: NatsBus) -> None:
    for pattern in ("events.>", "commands.svc.*"):
        spec = ConsumerSpec(name="worker", pattern=pattern, lease_s=60)
        async with bus.consume(spec) as first:
            await bus.append([_message(pattern.replace(">", "a.b").replace("*", "run"), b"x")])
            assert await first.receive(1, 5)
        async with bus.consume(spec) as second:
            [back] = await second.receive(1, 10)
            await second.settle([Ack(back)])
        with pytest.raises(Closed):
            await second.receive(1)


async def test_a_blocked_receive_is_woken_by_closing_and_a_cancelled_one_loses_nothing(bus: NatsBus) -> None:
    for pattern in ("events.>", "commands.svc.*"):
        async with bus.consume(ConsumerSpec(name="worker", pattern=pattern)) as consumer:
            waiting = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await bus.append([_message(pattern.replace(">", "a.b").replace("*", "run"), b"x")])
            [one] = await consumer.receive(1, 5)
            await consumer.settle([Ack(one)])
            waiting = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0)
            await consumer.aclose()
            with pytest.raises(Closed):
                await waiting


async def test_another_pattern_under_the_same_name_and_overlapping_commands_are_refused(bus: NatsBus) -> None:
    async with (
        bus.consume(ConsumerSpec(name="a", pattern="events.a.*")),
        bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*")),
        bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*", lease_s=7)),
    ):
        for spec in (
            ConsumerSpec(name="a", pattern="events.b.*"),
            ConsumerSpec(name="d", pattern="commands.svc.run"),
            ConsumerSpec(name="c", pattern="commands.svc.run"),
        ):
            with pytest.raises(FailedPrecondition) as caught:
                async with bus.consume(spec):
                    pass
            assert caught.value.reason == "subscription_differs"
    with pytest.raises(Unsupported):
        async with bus.consume(ConsumerSpec(name="all", pattern="commands.>")):
            pass


async def test_replay_begins_with_what_is_kept(bus: NatsBus) -> None:
    await bus.append([_message("events.a.a", b"old", "1")])
    async with (
        bus.consume(ConsumerSpec(name="all", pattern="events.>", replay=True)) as replayed,
        bus.consume(ConsumerSpec(name="new", pattern="events.>")) as fresh,
    ):
        await bus.append([_message("events.a.a", b"new", "2")])
        assert [one.message.payload for one in await _all(replayed, 2)] == [b"old", b"new"]
        assert [one.message.payload for one in await _all(fresh, 1)] == [b"new"]


async def _all(consumer: object, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        found += await consumer.receive(count, 5)  # type: ignore[attr-defined]
    return found


@pytest.mark.req("BUS-16.1")
async def test_several_connections_take_turns_with_requests(nats_url: str) -> None:
    async with NatsBus.open(f"{nats_url}?connections=3", namespace="acme") as bus:
        assert (await bus.status())[0].connections == 3
        await bus.subscribe("rpc.a.b", lambda message: bus._link.publish(message.reply_to, b""))
        for _ in range(6):
            await bus.request(_message("rpc.a.b"), 5)
        assert [one.published >= 2 for one in bus._pool.statistics()] == [True] * 3
    for query in ("connections=0", "connections=x", "replicas=9", "conections=1"):
        with pytest.raises(InvalidArgument, match="bus: "):
            async with NatsBus.open(f"{nats_url}?{query}"):
                pass
    with pytest.raises(Closed):
        await bus.publish(_message("rpc.a.b"))


# -- looking at a server


async def test_a_look_tells_the_server_and_leaves_nothing_there(nats_url: str) -> None:
    found = await diagnose(nats_url, namespace="acme")
    assert (found.server.partition(" ")[0], found.stored) == ("NATS", False)
    async with await Link.open(Address.parse(nats_url)) as link:
        assert await JetStream(link).stream_names() == []
        async with NatsBus.open(nats_url, namespace="acme"):
            assert (await diagnose(nats_url, namespace="acme")).stored
        await JetStream(link).create_stream(StreamConfig(name="FOREIGN", subjects=("other.events.a",)))
    for call in (diagnose(nats_url, namespace="other"), NatsBus.open(nats_url, namespace="other").__aenter__()):
        with pytest.raises(FailedPrecondition) as caught:
            await call
        assert caught.value.reason == "subjects_overlap"


async def test_a_server_without_jetstream_is_refused_by_name(own_server: Callable[..., Running]) -> None:
    config = {"jetstream": None, "accounts": None, "no_auth_user": None}
    server = await asyncio.to_thread(own_server, "nats", config=config)
    for call in (diagnose(server.url, namespace="a"), NatsBus.open(server.url, namespace="a").__aenter__()):
        with pytest.raises(FailedPrecondition) as caught:
            await call
        assert caught.value.reason == "jetstream_disabled"


# -- time


@pytest.mark.req("BUS-03", "BUS-15.4")
async def test_hosts_whose_clocks_are_hours_apart_call_each_other_and_do_commands(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = count(1)

    def jumping(self: object) -> int:  # each look at the machine's clock is that of another host
        return time.time_ns() // 1_000_000 + next(hours) * 3_600_000

    async def double(value: int) -> int:
        return value * 2

    monkeypatch.setattr(SystemClock, "now_ms", jumping)
    async with (
        Bus.open(nats_url, namespace="acme", name="one") as one,
        Bus.open(nats_url, namespace="acme", name="two") as two,
        one.serve("sums", {"double": double}),
        one.handle("sums", {"double": double}),
    ):
        assert await two.request("sums", "double", {"value": 2}, timeout_s=30) == 4
        async with two.track("sums", "double", {"value": 3}, timeout_s=30, max_retries=0) as tracked:
            assert await tracked.result() == 6
        now_ms = time.time_ns() / 1e6
        assert all(abs(bus.driver.clock.now_ms() - now_ms) < 60_000 for bus in (one, two))


def test_the_clock_of_the_server_believes_the_quickest_answer_until_that_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, now_s = ServerClock(), 1000.0
    monkeypatch.setattr(server_clock, "time", SimpleNamespace(monotonic=lambda: now_s))

    def ahead_ms() -> float:
        return clock.now_ms()

    clock.heard(1000.0, now_s - 0.01, now_s + 0.01)
    clock.heard(9000.0, now_s - 2.0, now_s + 2.0)  # it may be off by two seconds
    assert abs(ahead_ms() - 1000) < 5
    clock.heard(2000.0, now_s - 0.001, now_s + 0.001)
    assert abs(ahead_ms() - 2000) < 5
    clock.heard(3000.0, now_s + 3600.0, now_s + 3600.2)  # an hour later: the first may be off by 0.36 s by now
    assert abs(ahead_ms() + 3_600_100 - 3000) < 5


@pytest.mark.req("BUS-15.2")
async def test_of_what_waited_too_long_one_each_goes_before_the_urgent_and_not_all(
    bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STARVED_S", 0.0)
    sent = [
        _message("commands.svc.x", f"{priority.name} {n}".encode(), f"{priority}{n}", priority=priority)
        for priority in (Priority.LOW, Priority.NORMAL, Priority.CRITICAL)
        for n in range(3)
    ]
    await bus.append(sent)
    async with bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*")) as consumer:
        found: list[Delivery] = []
        while len(found) < 6:
            found += await consumer.receive(6 - len(found), 10)
        assert [one.message.payload.decode() for one in found] == [
            "NORMAL 0", "LOW 0", "CRITICAL 0", "CRITICAL 1", "CRITICAL 2", "NORMAL 1",
        ]  # fmt: skip


@pytest.mark.req("BUS-15.2")
async def test_where_there_is_room_for_one_each_of_those_that_waited_too_long_gets_its_turn(
    bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STARVED_S", 0.0)
    monkeypatch.setattr(commands, "_STARVING_EVERY_S", 0.0)
    sent = [
        _message("commands.svc.x", f"{priority.name} {n}".encode(), f"{priority}{n}", priority=priority)
        for priority in (Priority.LOW, Priority.NORMAL, Priority.CRITICAL)
        for n in range(2)
    ]
    await bus.append(sent)
    found: list[str] = []
    async with bus.consume(ConsumerSpec(name="c", pattern="commands.svc.*", max_in_flight=1)) as consumer:
        while len(found) < 6:
            (one,) = await consumer.receive(1, 10)
            found.append(one.message.payload.decode())
            await consumer.settle([Ack(one)])
    assert found == ["NORMAL 0", "LOW 0", "NORMAL 1", "LOW 1", "CRITICAL 0", "CRITICAL 1"]
