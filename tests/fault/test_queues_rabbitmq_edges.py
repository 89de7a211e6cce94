"""Queues on RabbitMQ at their edges: what must not be stranded, overtaken, doubled or waited for in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from groundplane.backends.amqp import Address, Channel, Connection
from groundplane.core.errors import ErrorRecord, GroundplaneError, InvalidArgument, NotFound, Unavailable
from groundplane.queues import Consumer, OutgoingMessage, Queues, QueueSpec
from groundplane.queues.drivers.rabbitmq import desk
from groundplane.queues.drivers.rabbitmq.consumer import RabbitConsumer
from groundplane.queues.drivers.rabbitmq.dead_letters import RabbitDeadLetters
from groundplane.queues.port import Reject

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
        yield await connection.channel()


def message(name: str = "m", **fields: object) -> OutgoingMessage:
    return OutgoingMessage(queue="q", id=name, payload=b"payload", **fields)  # type: ignore[arg-type]


def inner(consumer: Consumer) -> RabbitConsumer:
    """The driver's consumer under the façade's."""
    found = consumer._inner
    assert isinstance(found, RabbitConsumer)
    return found


async def taken(consumer: Consumer, count: int) -> list[tuple[str, int]]:
    """Id and attempt of the next `count`, each acked before the next is asked for."""
    found: list[tuple[str, int]] = []
    while len(found) < count:
        batch = await consumer.receive(1, 5)
        assert batch, f"only {found} came"
        found += [(one.id, one.attempt) for one in batch]
        for one in batch:
            await consumer.ack(one)
    return found


@pytest.mark.req("QUEUE-06.1")
async def test_a_dead_letter_is_there_before_what_is_sent_with_it_and_a_second_try_does_not_double_it(
    rabbitmq_url: str,
) -> None:
    async with a_queue(rabbitmq_url) as queues, queues.consume("q") as consumer:
        await queues.send(message())
        (delivery,) = await consumer.receive(1, 5)
        reject = Reject(delivery, "poison")
        with pytest.raises(NotFound):
            await consumer.settle([reject], [OutgoingMessage(queue="nowhere", id="news", payload=b"")])
        assert [one.message_id for one in (await queues.list_dead("q")).items] == ["m"]
        await consumer.settle([reject], [OutgoingMessage(queue="q", id="news", payload=b"")])
        assert [one.message_id for one in (await queues.list_dead("q")).items] == ["m"]
        assert await taken(consumer, 1) == [("news", 1)]


class Recording:
    """Stands before the log of what was handed back: fails, or waits, as the test wants."""

    def __init__(self, consumer: RabbitConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.error: GroundplaneError | None = None
        returns = consumer._parts.returns
        record = returns.record

        async def before(*arguments: object) -> None:
            self.asked.set()
            await self.gate.wait()
            if self.error is not None:
                error, self.error = self.error, None
                self.asked.clear()
                raise error
            await record(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(returns, "record", before)


async def with_a_full_buffer(queues: Queues, consumer: Consumer) -> None:
    """The consumer works on `first`, and has asked for more than it got."""
    await queues.send(message("first"))
    (held,) = await consumer.receive(20, 5)
    await queues.send(*(message(str(n)) for n in range(10)))
    await consumer.ack(held)


@pytest.mark.req("QUEUE-02", "QUEUE-03.1")
async def test_what_could_not_be_handed_back_is_not_stranded(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_queue(rabbitmq_url) as queues, queues.consume("q", max_in_flight=50) as consumer:
        recording = Recording(inner(consumer), monkeypatch)
        recording.error = Unavailable("queues: the stream did not answer", reason="broker_slow")
        recording.gate.set()
        await with_a_full_buffer(queues, consumer)
        async with asyncio.timeout(15):
            await recording.asked.wait()
        assert await taken(consumer, 10) == [(str(n), 1) for n in range(10)]


@pytest.mark.req("QUEUE-10.1")
async def test_nothing_overtakes_what_is_being_handed_back(rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_queue(rabbitmq_url) as queues, queues.consume("q", max_in_flight=50) as consumer:
        recording = Recording(inner(consumer), monkeypatch)
        await with_a_full_buffer(queues, consumer)
        async with asyncio.timeout(15):
            await recording.asked.wait()
        await queues.send(message("10"))
        assert await consumer.receive(1, 0) == []  # it is nowhere: neither waited for long, nor passed over
        receiving = asyncio.create_task(taken(consumer, 11))
        await asyncio.sleep(0)
        recording.gate.set()
        assert await receiving == [(str(n), 1) for n in range(11)]


@pytest.mark.req("QUEUE-09", "QUEUE-10.1")
async def test_who_asks_for_the_depth_does_not_change_the_order(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url) as queues, Queues.open(rabbitmq_url, namespace="plane") as asking:
        await queues.send(*(message(str(n)) for n in range(300)))
        async with queues.consume("q", max_in_flight=1) as consumer:
            first = await taken(consumer, 1)

            async def ask() -> None:
                while True:
                    await asking.depth("q")

            looking = asyncio.create_task(ask())
            try:
                rest = await taken(consumer, 299)
            finally:
                looking.cancel()
                await asyncio.wait([looking])
        assert [*first, *rest] == [(str(n), 1) for n in range(300)]


@pytest.mark.req("QUEUE-02")
async def test_a_broker_that_lost_its_logs_is_declared_anew_by_those_who_knew_them(rabbitmq_url: str) -> None:
    """As a broker does whose disk was thrown away while processes of the plane lived."""
    async with a_queue(rabbitmq_url) as queues, raw(rabbitmq_url) as channel:
        for limit in range(1, 8):
            await queues.declare(QueueSpec(name="q", attempts_max=limit))
        for stream in ("plane::registry", "plane::returns"):
            await channel.delete_queue(stream)
        started = time.monotonic()
        await queues.declare(QueueSpec(name="q", attempts_max=7))
        assert time.monotonic() - started < 7.5
        assert [(one.name, one.attempts_max) for one in await queues.queues()] == [("q", 7)]
        async with Queues.open(rabbitmq_url, namespace="plane") as other:
            assert [(one.name, one.attempts_max) for one in await other.queues()] == [("q", 7)]
        await queues.send(message())
        async with queues.consume("q") as consumer:
            assert await taken(consumer, 1) == [("m", 1)]


@asynccontextmanager
async def with_dead_letters(url: str) -> AsyncIterator[tuple[Queues, RabbitDeadLetters]]:
    async with a_queue(url) as queues:
        await queues.send(*(OutgoingMessage(queue="q", id=str(n), payload=bytes(100)) for n in range(20)))
        async with queues.consume("q") as consumer:
            count = 0
            while count < 20:
                for one in await consumer.receive(20, 5):
                    await consumer.reject(one, "bad")
                    count += 1
        letters = queues.driver.dead_letters
        assert isinstance(letters, RabbitDeadLetters)
        yield queues, letters


@pytest.mark.req("QUEUE-08.1")
async def test_dead_letters_that_were_shown_are_not_kept_beyond_the_bound(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "BYTES_MAX", 500)
    async with with_dead_letters(rabbitmq_url) as (queues, letters):
        async with letters._desk("q") as open_desk:
            for key in sorted(open_desk.letters):
                assert await open_desk.body(open_desk.letters[key]) == bytes(100)
            kept = sum(len(letter.body or b"") for letter in open_desk.letters.values())
            assert kept == open_desk._bytes <= 500
        assert (await queues.depth("q")).dead == 20


@pytest.mark.req("QUEUE-02", "QUEUE-08.1")
async def test_who_waits_for_a_dead_letter_is_told_that_the_connection_broke(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "BYTES_MAX", 0)
    async with with_dead_letters(rabbitmq_url) as (queues, letters):
        async with letters._desk("q") as open_desk:
            monkeypatch.setattr(open_desk._channel, "nack", lambda tag: None)  # the broker never answers
            waiting = asyncio.create_task(open_desk.body(next(iter(open_desk.letters.values()))))
            await asyncio.sleep(0)
            open_desk._channel.lose(Unavailable("broker: the connection broke", reason="connection_lost"))
            with pytest.raises(Unavailable):
                async with asyncio.timeout(5):
                    await waiting
        await queues.driver.native._session.publishing.aclose(  # type: ignore[attr-defined]
            Unavailable("broker: the connection broke", reason="connection_lost")
        )


@pytest.mark.req("QUEUE-07", "QUEUE-08.1")
async def test_whatever_could_be_sent_can_die_with_its_error(rabbitmq_url: str) -> None:
    async with a_queue(rabbitmq_url) as queues:
        await queues.send(message("full", headers={"a": "y" * 99_000}))
        with pytest.raises(InvalidArgument, match=r"headers: .* put the data into the payload") as caught:
            await queues.send(message("over", headers={"a": "y" * 101_000}))
        assert caught.value.reason == "payload_too_large"
        error = ErrorRecord("internal", "z" * 60_000, traceback="t" * 60_000, details={"a": "b" * 60_000})
        async with queues.consume("q") as consumer:
            (one,) = await consumer.receive(1, 5)
            await consumer.nack(one, 0.01, error=error)
            (one,) = await consumer.receive(1, 5)
            await consumer.reject(one, "bad", error)
        (letter,) = (await queues.list_dead("q")).items
        assert len(letter.headers["a"]) == 99_000
        assert letter.error is not None
        assert letter.error.message == "z" * 500


@pytest.mark.req("QUEUE-01")
async def test_names_that_do_not_fit_together_are_refused_before_anything_is_made(rabbitmq_url: str) -> None:
    plane = "p" * 128
    async with Queues.open(f"{rabbitmq_url}?guard=0", namespace=plane) as queues:
        with pytest.raises(InvalidArgument, match=r"name: .* at most 244"):
            await queues.declare(QueueSpec(name="q" * 117))
        longest = "q" * 116
        await queues.declare(QueueSpec(name=longest))
        await queues.send(OutgoingMessage(queue=longest, id="1", payload=b""))
        async with queues.consume(longest) as consumer:
            (one,) = await consumer.receive(1, 5)
            await consumer.reject(one, "bad")
        assert [letter.message_id for letter in (await queues.list_dead(longest)).items] == ["1"]
