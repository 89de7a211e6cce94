"""What somebody does to the broker under the queues: each is an error by name, and mended, all goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from groundplane.backends.amqp import Address, Channel, Connection, encode_properties
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.queues import Ack, Delivery, OutgoingMessage, Queues, QueueSpec
from groundplane.testing.faults import Proxy
from groundplane.testing.servers.contract import Running
from pace import at_most

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration]


@asynccontextmanager
async def a_queue(url: str, **limits: int) -> AsyncIterator[Queues]:
    """Queues of the namespace `plane`, with the queue `q`."""
    async with Queues.open(f"{url}?guard=0", namespace="plane") as queues:
        await queues.declare(QueueSpec(name="q", **limits))
        yield queues


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[Channel]:
    """A channel beside the queues."""
    async with await Connection.open(Address.parse(url), name="test") as connection:
        yield await connection.channel(confirms=True)


def message(name: str = "m", **fields: object) -> OutgoingMessage:
    return OutgoingMessage(queue="q", id=name, payload=b"payload", **fields)  # type: ignore[arg-type]


def through(proxy: Proxy, url: str) -> str:
    return f"{proxy.through(url)}?guard=0"


def address(url: str) -> tuple[str, int]:
    return Address.parse(url).hosts[0]


@pytest.mark.req("QUEUE-12", "QUEUE-02")
async def test_a_consumer_of_a_deleted_queue_says_so_and_goes_on_when_it_is_declared_again(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url) as queues, raw(rabbitmq_url) as channel, queues.consume("q") as consumer:
        waiting = asyncio.create_task(consumer.receive(1, 20))
        await asyncio.sleep(0)
        await channel.delete_queue("plane:q")
        with pytest.raises(NotFound) as caught:
            await waiting
        assert caught.value.reason == "queue_not_found"
        with pytest.raises(NotFound):
            await queues.send(message())
        with pytest.raises(NotFound):
            await queues.depth("q")
        await queues.declare(QueueSpec(name="q"))
        await queues.send(message("after"))
        got: list[Delivery] = []
        async with asyncio.timeout(15):
            while not got:
                try:
                    got = await consumer.receive(1, 5)
                except NotFound:
                    await asyncio.sleep(0.05)
        assert [one.id for one in got] == ["after"]
        await consumer.ack(got[0])


@pytest.mark.parametrize("arguments", [{}, {"x-queue-type": "quorum", "x-delivery-limit": 3}], ids=["classic", "limit"])
async def test_a_queue_that_exists_with_other_arguments_is_refused_by_name(
    rabbitmq_url: str, arguments: dict[str, object]
) -> None:
    async with raw(rabbitmq_url) as channel:
        await channel.declare_queue("plane:q", arguments=arguments)
        with pytest.raises(FailedPrecondition) as caught:
            async with a_queue(rabbitmq_url):
                pytest.fail("it was accepted")
    assert caught.value.reason == "queue_exists_with_other_arguments"
    assert "plane:q" in caught.value.message


async def test_a_message_of_a_foreign_sender_is_taken_as_it_is(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url, attempts_max=2) as queues, raw(rabbitmq_url) as channel:
        properties = encode_properties({"traceparent": "00-a-b-01", "n": 1, "x-death": "no"}, message_id="theirs")
        await channel.publish("groundplane", "plane:q", b"\xff{}", properties)
        async with queues.consume("q") as consumer:
            (one,) = await consumer.receive(1, 5)
            assert (one.id, one.payload, one.attempt) == ("theirs", b"\xff{}", 1)
            assert one.headers == {"traceparent": "00-a-b-01"}
            await consumer.nack(one)
            (again,) = await consumer.receive(1, 5)
            assert (again.id, again.attempt) == ("theirs", 2)
            await consumer.nack(again)
        (letter,) = (await queues.list_dead("q")).items
        assert (letter.message_id, letter.trace, letter.payload) == ("theirs", "00-a-b-01", b"\xff{}")
        await channel.publish("groundplane", "plane:q:dead", b"put there", properties)
        letters = (await queues.list_dead("q")).items
        assert [one.payload for one in letters] == [b"\xff{}", b"put there"]
        assert (await queues.get_dead(letters[1].id)).payload == b"put there"
        await queues.redrive(letters[1].id)
        assert await queues.purge(letters[0].id) == 1


@pytest.mark.req("QUEUE-12")
async def test_while_the_broker_is_away_calls_fail_by_name_and_a_receive_waits(rabbitmq_url: str) -> None:
    async with Proxy.to(*address(rabbitmq_url)) as proxy, Queues.open(through(proxy, rabbitmq_url)) as queues:
        await queues.declare(QueueSpec(name="q"))
        async with queues.consume("q") as consumer:
            await queues.send(message())
            (held,) = await consumer.receive(1, 5)
            proxy.down()
            start = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await queues.send(message())
            assert time.monotonic() - start < at_most(5)
            assert "broker" in caught.value.reason or "connection" in caught.value.reason
            assert await consumer.receive(1, 0.3) == []
            start = time.monotonic()
            with pytest.raises(GroundplaneError):
                await queues.depth("q")
            assert time.monotonic() - start < at_most(4), "a check of readiness must not wait long"
            proxy.restore()
            (again,) = await consumer.receive(1, 10)
            assert (again.id, again.attempt, again.redelivered) == ("m", 2, True)
            with pytest.raises(FailedPrecondition) as lost:
                await consumer.ack(held)
            assert lost.value.reason == "delivery_lost"
            await consumer.ack(again)


@pytest.mark.req("QUEUE-12")
async def test_a_frozen_broker_is_noticed_and_closing_does_not_wait_for_it(rabbitmq_url: str) -> None:
    async with Proxy.to(*address(rabbitmq_url)) as proxy:
        async with Queues.open(through(proxy, rabbitmq_url)) as queues:
            await queues.declare(QueueSpec(name="q"))
            async with queues.consume("q") as consumer:
                await queues.send(message())
                await consumer.receive(1, 5)
                proxy.half_open()
                start = time.monotonic()
                with pytest.raises(Unavailable):
                    await queues.send(message())
                assert time.monotonic() - start < at_most(8)
                start = time.monotonic()
            assert time.monotonic() - start < 10
        proxy.restore()


async def test_a_consumer_that_hears_nothing_is_opened_again(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected but deaf: the broker has messages, this consumer has room, and nothing comes."""
    from groundplane.queues.drivers.rabbitmq import consumer as module
    from groundplane.queues.drivers.rabbitmq.intake import Intake

    monkeypatch.setattr(module, "_DEAF_S", 0.2)
    deaf: list[Intake] = []
    consume = Intake._consume

    async def deafened(self: Intake, count: int) -> None:
        if deaf and self is not deaf[0]:
            return await consume(self, count)
        deaf[:] = [self]
        self.granted, self._tag = count, "nobody"  # as if the broker had lost it
        return None

    monkeypatch.setattr(Intake, "_consume", deafened)
    async with a_queue(rabbitmq_url) as queues, queues.consume("q") as consumer:
        await consumer.receive(1, 0.01)
        await queues.send(message())
        got: list[Delivery] = []
        async with asyncio.timeout(10):
            while not got:  # as a sidecar does: none of the calls waits long
                got = await consumer.receive(1, 0.05)
        await consumer.ack(got[0])
    assert deaf


@pytest.mark.req("QUEUE-05")
async def test_delayed_messages_whose_payloads_are_too_much_to_hold_come_in_time(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundplane.queues.drivers.rabbitmq import delays

    monkeypatch.setattr(delays, "BYTES_MAX", 20)
    async with a_queue(rabbitmq_url) as queues, queues.consume("q") as consumer:
        took_s: list[float] = []
        while len(took_s) < 4 and min(took_s, default=9.0) >= at_most(0.3 + 0.2 + 0.2):  # a machine may stall
            start = time.monotonic()
            await queues.send(*(message(str(n), delay_s=0.3 + n / 50) for n in range(10)))
            got: list[str] = []
            while len(got) < 10:
                for one in await consumer.receive(10, 5):
                    got.append(one.id)
                    assert time.monotonic() - start >= 0.3 + int(one.id) / 50
                    await consumer.ack(one)
            took_s.append(time.monotonic() - start)
            assert got == [str(n) for n in range(10)]
        assert min(took_s) < at_most(0.3 + 0.2 + 0.2)


@pytest.mark.req("QUEUE-05")
async def test_a_short_delay_behind_more_long_ones_than_a_consumer_holds_comes_all_the_same(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundplane.queues.drivers.rabbitmq import delays

    monkeypatch.setattr(delays, "HELD_MAX", 20)
    monkeypatch.setattr(delays, "ROTATE_S", 0.05)
    async with a_queue(rabbitmq_url) as queues:
        await queues.send(*(message(f"long-{n}", delay_s=3600) for n in range(90)))
        async with queues.consume("q") as consumer:
            await queues.send(message("short", delay_s=0.2))
            (one,) = await consumer.receive(1, 10)
            assert one.id == "short"
            await consumer.ack(one)
            assert (await queues.depth("q")).delayed == 90
    assert (await queues_depth(rabbitmq_url)) == (0, 90)


async def queues_depth(url: str) -> tuple[int, int]:
    async with Queues.open(url, namespace="plane") as queues:
        depth = await queues.depth("q")
        return depth.ready, depth.delayed


@pytest.mark.req("QUEUE-08.1")
async def test_dead_letters_that_are_too_much_to_hold_are_shown_whole(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundplane.queues.drivers.rabbitmq import desk

    monkeypatch.setattr(desk, "BYTES_MAX", 20)
    async with a_queue(rabbitmq_url) as queues:
        await queues.send(*(OutgoingMessage(queue="q", id=str(n), payload=b"%03d" % n * 5) for n in range(10)))
        async with queues.consume("q") as consumer:
            rejected = 0
            while rejected < 10:
                for one in await consumer.receive(10, 5):
                    await consumer.reject(one, "bad")
                    rejected += 1
        async with Queues.open(rabbitmq_url, namespace="plane") as other:
            for reader in (queues, other, queues):  # one after the other: each gives back what it read
                page = await reader.list_dead("q")
                assert [letter.payload for letter in page.items] == [b"%03d" % n * 5 for n in range(10)]
            assert (await queues.depth("q")).dead == 10
            await other.redrive((await other.list_dead("q")).items[4].id)
        assert (await queues.depth("q")).dead == 9


@pytest.mark.req("QUEUE-09")
async def test_the_depth_that_another_process_asks_for_counts_what_consumers_hold(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url) as queues, Queues.open(rabbitmq_url, namespace="plane") as asking:
        await queues.send(*(message(str(n)) for n in range(10)), message("later", delay_s=3600))
        async with queues.consume("q", max_in_flight=8) as first, queues.consume("q", max_in_flight=8) as second:
            held = await first.receive(3, 5) + await second.receive(2, 5)
            depth = await asking.depth("q")
            assert (depth.ready, depth.in_flight, depth.delayed, depth.dead) == (10 - len(held), len(held), 1, 0)
            assert depth.total == 11
            await first.ack(held[0])
            assert (await asking.depth("q")).in_flight == len(held) - 1
        depth = await asking.depth("q")
        assert (depth.ready, depth.in_flight, depth.delayed) == (9, 0, 1)


@pytest.mark.parametrize("option", ["guard=-1", "guard=x", "exchange=amq.direct", "exchang=x"])
async def test_a_bad_option_of_the_url_is_refused_by_name(option: str) -> None:
    with pytest.raises(InvalidArgument):
        async with Queues.open(f"amqp://127.0.0.1:1/?{option}"):
            pytest.fail("it was accepted")


@pytest.mark.req("QUEUE-14.1")
async def test_the_exchange_of_the_url_is_the_one_that_is_used(rabbitmq_url: str) -> None:
    async with raw(rabbitmq_url) as channel:
        with pytest.raises(NotFound):
            await channel.declare_exchange("work", passive=True)
    async with Queues.open(f"{rabbitmq_url}?guard=0&exchange=work", namespace="plane") as queues:
        await queues.declare(QueueSpec(name="q"))
        await queues.send(message())
        assert (await queues.depth("q")).ready == 1
    async with raw(rabbitmq_url) as channel:
        await channel.declare_exchange("work", passive=True)
        await channel.publish("work", "plane:q", b"")


@pytest.mark.req("QUEUE-03.1", "QUEUE-06")
async def test_what_lies_in_an_idle_buffer_goes_to_others_at_no_cost(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url, attempts_max=1) as queues:
        async with queues.consume("q", max_in_flight=50) as idle:
            await queues.send(message("first"))
            (held,) = await idle.receive(20, 5)
            await queues.send(*(message(str(n)) for n in range(10)))  # pushed to it, for it asked for 20
            async with queues.consume("q", max_in_flight=50) as busy:
                got: list[Delivery] = []
                while len(got) < 10:
                    batch = await busy.receive(10, 5)
                    assert batch
                    got += batch
                    await busy.settle([Ack(one) for one in batch])
                assert [(one.id, one.attempt, one.redelivered) for one in got] == [
                    (str(n), 1, False) for n in range(10)
                ]
            await idle.ack(held)


async def test_a_broker_that_blocks_publishers_is_an_error_by_name(own_server: Callable[..., Running]) -> None:
    config = {"disk_free_limit.absolute": "900000GB"}
    server = await asyncio.to_thread(own_server, "rabbitmq", config=config)
    start = time.monotonic()
    with pytest.raises(GroundplaneError) as caught:
        async with a_queue(server.url):
            pytest.fail("it published")
    assert caught.value.reason == "broker_blocked"
    assert time.monotonic() - start < 15
