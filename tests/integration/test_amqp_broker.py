"""The AMQP client against a real RabbitMQ: what it promises about messages, and what it calls the broker's refusals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from groundplane.backends.amqp import Address, Channel, Connection, Delivery, Message, encode_properties
from groundplane.core.errors import (
    FailedPrecondition,
    GroundplaneError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.rabbitmq import Management
from pace import at_most

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

QUORUM = {"x-queue-type": "quorum"}


async def _open(url: str, **parameters: object) -> Connection:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return await Connection.open(Address.parse(f"{url}?{query}"), name="test")


@pytest.fixture
async def connection(rabbitmq_url: str) -> AsyncIterator[Connection]:
    one = await _open(rabbitmq_url)
    yield one
    await one.aclose()


@pytest.fixture
async def channel(connection: Connection) -> Channel:
    one = await connection.channel(confirms=True, prefetch=1000)
    await one.declare_queue("work", arguments=QUORUM)
    return one


async def _until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


async def _depth(connection: Connection, queue: str, wanted: int, timeout_s: float = 10.0) -> None:
    """Wait until the queue has `wanted` messages ready."""
    probe = await connection.channel()
    deadline = time.monotonic() + timeout_s
    while (found := (await probe.declare_queue(queue, passive=True)).ready) != wanted:
        assert time.monotonic() < deadline, f"{queue} has {found} messages, not {wanted}"
        await asyncio.sleep(0.02)
    await probe.aclose()


async def _refusal(work: Any) -> GroundplaneError:
    with pytest.raises(GroundplaneError) as caught:
        await work
    return caught.value


# -- opening


async def test_the_brokers_version_and_abilities_are_known(connection: Connection) -> None:
    assert connection.server.product == "RabbitMQ"
    assert tuple(map(int, connection.server.version.split(".")[:2])) >= (3, 10)
    assert {"publisher_confirms", "consumer_cancel_notify"} <= connection.server.capabilities


async def test_wrong_passwords_and_virtual_hosts_and_ports_each_have_a_name(
    rabbitmq_url: str, rabbitmq_server: Running
) -> None:
    parts = urlsplit(rabbitmq_url)
    host = f"{parts.hostname}:{parts.port}"
    login = f"{parts.username}:{parts.password}"
    wrong = {
        f"amqp://{parts.username}:wr0ng@{host}{parts.path}": (PermissionDenied, "login_refused"),
        f"amqp://{login}@{host}/missing": (PermissionDenied, "vhost_refused"),
        f"amqps://{login}@{host}/": (FailedPrecondition, "tls_failed"),
        f"amqp://{login}@{parts.hostname}:{rabbitmq_server.ports['management']}/": (FailedPrecondition, "not_amqp"),
        f"amqp://{login}@{parts.hostname}:1/": (Unavailable, "broker_unreachable"),
    }
    for url, (kind, reason) in wrong.items():
        began = time.monotonic()
        error = await _refusal(_open(url))
        assert (type(error), error.reason) == (kind, reason), url
        assert time.monotonic() - began < at_most(3.5)
        assert "wr0ng" not in str(error)


async def test_of_several_hosts_the_one_that_lives_is_used(rabbitmq_url: str) -> None:
    parts = urlsplit(rabbitmq_url)
    url = f"amqp://{parts.username}:{parts.password}@127.0.0.1:1,{parts.hostname}:{parts.port}{parts.path}"
    async with await _open(url) as connection:
        assert connection.peer == f"{parts.hostname}:{parts.port}"


# -- messages


@pytest.mark.req("QUEUE-11.1")
async def test_bodies_come_back_unchanged_at_every_size_around_a_frame(
    connection: Connection, channel: Channel
) -> None:
    payload_max = 131_072 - 8
    sizes = [0, 1, 255, payload_max - 1, payload_max, payload_max + 1, 2 * payload_max, 1024 * 1024, 3 * 1024 * 1024]
    bodies = [(bytes(range(256)) * (size // 256 + 1))[:size] for size in sizes]
    got: list[Delivery] = []
    await channel.consume("work", got.append)
    outcomes = await channel.publish_batch(
        [Message("", "work", body, encode_properties({"n": str(n)})) for n, body in enumerate(bodies)]
    )
    assert outcomes == [None] * len(bodies)
    await _until(lambda: len(got) == len(bodies))
    assert [one.body for one in got] == bodies
    assert [one.headers["n"] for one in got] == [str(n) for n in range(len(bodies))]
    channel.ack(got[-1].tag, multiple=True)
    await _depth(connection, "work", 0)


async def test_a_small_agreed_frame_splits_what_is_sent(rabbitmq_url: str) -> None:
    async with await _open(rabbitmq_url, frame_max=4096) as connection:
        channel = await connection.channel(confirms=True)
        await channel.declare_queue("split", arguments=QUORUM)
        body = bytes(range(256)) * 100
        await channel.publish("", "split", body)
        delivery = await channel.get("split")
        assert delivery is not None
        assert delivery.body == body


async def test_headers_and_properties_reach_the_other_side_with_their_types(channel: Channel) -> None:
    headers = {"text": "ü", "n": -7, "large": 2**40, "yes": True, "half": 0.5, "list": ["a", 1], "map": {"a": None}}
    properties = encode_properties(
        headers, message_id="m-1", content_type="application/msgpack", priority=3, timestamp=9
    )
    await channel.publish("", "work", b"x", properties)
    delivery = await channel.get("work")
    assert delivery is not None
    assert {name: value for name, value in delivery.headers.items() if name != "x-delivery-count"} == headers
    found = delivery.properties
    assert (found.message_id, found.content_type, found.priority, found.timestamp, found.delivery_mode) == (
        "m-1", "application/msgpack", 3, 9, 2,
    )  # fmt: skip


@pytest.mark.req("QUEUE-10.1")
async def test_one_consumer_gets_messages_in_the_order_of_publishing(channel: Channel) -> None:
    got: list[int] = []
    await channel.consume("work", lambda d: (got.append(int(d.body)), channel.ack(d.tag))[0])
    for start in range(0, 2000, 500):
        assert not any(await channel.publish_batch([Message("", "work", b"%d" % n) for n in range(start, start + 500)]))
    await _until(lambda: len(got) == 2000)
    assert got == list(range(2000))


async def test_what_was_not_settled_comes_back_and_the_broker_counts_how_often(connection: Connection) -> None:
    publisher = await connection.channel(confirms=True)
    await publisher.declare_queue("work", arguments=QUORUM)
    await publisher.publish("", "work", b"x")
    for expected in (None, 1, 2):
        channel = await connection.channel(prefetch=1)
        got: list[Delivery] = []
        await channel.consume("work", got.append)
        await _until(lambda got=got: got)
        assert got[0].headers.get("x-delivery-count") in ((None, 0) if expected is None else (expected,))
        assert got[0].redelivered is (expected is not None)
        await channel.aclose()


async def test_nack_gives_back_and_reject_sends_to_the_dead(connection: Connection) -> None:
    channel = await connection.channel(confirms=True)
    await channel.declare_queue("dead", arguments=QUORUM)
    await channel.declare_queue(
        "alive", arguments={**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    )
    await channel.publish("", "alive", b"x")
    first = await channel.get("alive")
    assert first is not None
    channel.nack(first.tag)
    await _depth(connection, "alive", 1)
    second = await channel.get("alive")
    assert second is not None
    assert second.redelivered
    channel.reject(second.tag)
    await _depth(connection, "dead", 1)
    dead = await channel.get("dead")
    assert dead is not None
    assert dead.headers["x-death"][0]["reason"] == "rejected"
    assert dead.headers["x-death"][0]["queue"] == "alive"


async def test_a_consumer_that_is_cancelled_gets_nothing_more_and_keeps_what_it_has(
    connection: Connection, channel: Channel
) -> None:
    got: list[Delivery] = []
    tag = await channel.consume("work", got.append)
    await channel.publish("", "work", b"1")
    await _until(lambda: got)
    await channel.cancel(tag)
    await channel.publish("", "work", b"2")
    await _depth(connection, "work", 1)
    assert len(got) == 1
    channel.ack(got[0].tag)
    assert channel.is_open


# -- unroutable


@pytest.mark.req("QUEUE-02")
async def test_of_two_messages_with_one_id_in_flight_the_unroutable_one_fails_every_time(channel: Channel) -> None:
    same = encode_properties({"id": "same"}, message_id="same")
    for number in range(40):
        good, lost = Message("", "work", b"x", same), Message("", "nowhere", b"x", same)
        order = [good, lost] if number % 2 else [lost, good]
        outcomes = dict(zip(order, await channel.publish_batch(order), strict=True))
        assert outcomes[good] is None
        error = outcomes[lost]
        assert isinstance(error, NotFound)
        assert error.reason == "queue_not_found"
        assert "'nowhere'" in error.message


@pytest.mark.req("QUEUE-02")
async def test_returns_among_many_confirms_are_never_mistaken(connection: Connection, channel: Channel) -> None:
    waiting: list[tuple[bool, asyncio.Future[None]]] = []
    for number in range(3000):
        lost = number % 3 == 0
        waiting.append((lost, channel.publish("", "nowhere" if lost else "work", b"%d" % number)))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.wait([future for _, future in waiting])
    assert [isinstance(future.exception(), NotFound) for _, future in waiting] == [lost for lost, _ in waiting]
    await _depth(connection, "work", 2000)


async def test_a_missing_exchange_fails_its_own_channel_and_the_connection_lives_on(
    connection: Connection, channel: Channel
) -> None:
    for _ in range(10):
        unlucky = await connection.channel(confirms=True)
        told: list[GroundplaneError] = []
        unlucky.on_closed(told.append)
        futures = [unlucky.publish("" if n != 20 else "missing", "work", b"%d" % n) for n in range(40)]
        other = channel.publish("", "work", b"elsewhere")
        await asyncio.wait(futures)
        await other
        errors = [future.exception() for future in futures]
        assert isinstance(errors[20], NotFound)
        assert errors[20].reason == "exchange_not_found"
        for n, error in enumerate(errors):
            assert error is None or n == 20 or (isinstance(error, Unavailable) and error.reason == "connection_lost")
        assert [error.reason for error in told] == ["exchange_not_found"]
        assert connection.is_open
        with pytest.raises(Unavailable, match="nothing was sent"):
            unlucky.publish("", "work", b"after")


@pytest.mark.req("QUEUE-01.1")
async def test_a_full_queue_refuses_and_says_so(connection: Connection) -> None:
    channel = await connection.channel(confirms=True)
    await channel.declare_queue("small", arguments={**QUORUM, "x-max-length": 5, "x-overflow": "reject-publish"})
    outcomes = []
    for n in range(60):
        outcomes += await channel.publish_batch([Message("", "small", b"%d" % n)])
    refused = [error for error in outcomes if error is not None]
    assert refused
    assert all(isinstance(error, ResourceExhausted) and error.reason == "message_refused" for error in refused)
    await _depth(connection, "small", len(outcomes) - len(refused))


async def test_publishes_that_are_given_up_arrive_all_the_same_and_disturb_nobody(
    connection: Connection, channel: Channel
) -> None:
    futures = [channel.publish("", "work", b"%d" % n) for n in range(200)]
    for future in futures[::2]:
        future.cancel()
    await asyncio.gather(*futures[1::2])
    await _depth(connection, "work", 200)


# -- refusals


async def test_refusals_of_the_broker_are_named(connection: Connection, channel: Channel, rabbitmq_url: str) -> None:
    async def probe() -> Channel:
        return await connection.channel()

    error = await _refusal((await probe()).declare_queue("work"))
    assert (type(error), error.reason) == (FailedPrecondition, "queue_exists_with_other_arguments")
    error = await _refusal((await probe()).declare_queue("none", passive=True))
    assert (type(error), error.reason) == (NotFound, "queue_not_found")
    error = await _refusal((await probe()).consume("none", lambda _: None))
    assert (type(error), error.reason) == (NotFound, "queue_not_found")
    error = await _refusal((await probe()).declare_exchange("none", passive=True))
    assert (type(error), error.reason) == (NotFound, "exchange_not_found")
    error = await _refusal((await probe()).declare_exchange("amq.mine"))
    assert (type(error), error.reason) == (PermissionDenied, "access_refused")
    await channel.declare_queue("classic")
    await channel.consume("classic", lambda _: None)
    error = await _refusal((await probe()).delete_queue("classic", if_unused=True))
    assert (type(error), error.reason) == (FailedPrecondition, "queue_in_use")
    await channel.declare_queue("mine", exclusive=True, durable=False)
    async with await _open(rabbitmq_url) as other:
        error = await _refusal((await other.channel()).declare_queue("mine", passive=True))
        assert (type(error), error.reason) == (FailedPrecondition, "resource_locked")
    assert connection.is_open
    assert channel.is_open


async def test_settling_what_is_not_held_closes_the_channel_by_name(connection: Connection) -> None:
    channel = await connection.channel()
    told: list[GroundplaneError] = []
    channel.on_closed(told.append)
    channel.ack(4711)
    await _until(lambda: told)
    assert (type(told[0]), told[0].reason) == (FailedPrecondition, "delivery_lost")


async def test_a_user_without_permissions_is_told_so(
    rabbitmq_server: Running, rabbitmq_url: str, unique_name: str
) -> None:
    management = Management(rabbitmq_server.ports["management"])
    parts = urlsplit(rabbitmq_url)
    vhost = parts.path.lstrip("/")
    await asyncio.to_thread(management.call, "PUT", f"/api/users/{unique_name}", {"password": "pw", "tags": ""})
    try:
        url = f"amqp://{unique_name}:pw@{parts.hostname}:{parts.port}{parts.path}"
        error = await _refusal(_open(url))
        assert (type(error), error.reason) == (PermissionDenied, "vhost_refused")
        rights = {"configure": "^$", "write": "^$", "read": "^$"}
        await asyncio.to_thread(management.call, "PUT", f"/api/permissions/{vhost}/{unique_name}", rights)
        async with await _open(url) as connection:
            error = await _refusal((await connection.channel()).declare_queue("q", arguments=QUORUM))
            assert (type(error), error.reason) == (PermissionDenied, "access_refused")
    finally:
        await asyncio.to_thread(management.call, "DELETE", f"/api/users/{unique_name}")


async def test_a_consumer_whose_queue_is_deleted_is_told_at_once(connection: Connection, channel: Channel) -> None:
    told: list[GroundplaneError] = []
    await channel.consume("work", lambda _: None, on_cancel=told.append)
    began = time.monotonic()
    await (await connection.channel()).delete_queue("work")
    await _until(lambda: told)
    assert told[0].reason == "consumer_cancelled"
    assert time.monotonic() - began < at_most(2.0)
    assert channel.is_open


async def test_a_virtual_host_that_vanishes_ends_its_connections_by_name(
    rabbitmq_server: Running, unique_name: str
) -> None:
    management = Management(rabbitmq_server.ports["management"])
    await asyncio.to_thread(management.create, unique_name)
    parts = urlsplit(rabbitmq_server.url)
    connection = await _open(f"amqp://{parts.username}:{parts.password}@{parts.hostname}:{parts.port}/{unique_name}")
    try:
        told: list[GroundplaneError] = []
        connection.on_closed(told.append)
        channel = await connection.channel()
        await channel.declare_queue("work", arguments=QUORUM)
    finally:
        await asyncio.to_thread(management.delete, unique_name)
    await _until(lambda: told)
    assert (told[0].code, told[0].reason) == ("unavailable", "connection_forced")
    await connection.aclose()


# -- closing


@pytest.mark.req("CORE-03.1")
async def test_closing_is_quick_while_everything_waits(rabbitmq_url: str) -> None:
    connection = await _open(rabbitmq_url)
    channel = await connection.channel(confirms=True, prefetch=5)
    await channel.declare_queue("work", arguments=QUORUM)
    await channel.consume("work", lambda _: None)
    futures = [channel.publish("", "work", b"x" * 10_000) for _ in range(500)]
    began = time.monotonic()
    await asyncio.gather(connection.aclose(), connection.aclose())
    assert time.monotonic() - began < at_most(2.0)
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert {getattr(one, "code", "confirmed") for one in outcomes} <= {"closed", "confirmed"}


async def test_a_hundred_openings_leave_nothing_on_the_broker(rabbitmq_url: str) -> None:
    for _ in range(20):
        async with contextlib.AsyncExitStack() as stack:
            opened = await asyncio.gather(*(_open(rabbitmq_url) for _ in range(5)))
            for one in opened:
                await stack.enter_async_context(one)
            await asyncio.gather(*(one.channel() for one in opened for _ in range(3)))
    async with await _open(rabbitmq_url) as connection:
        channel = await connection.channel()
        assert (await channel.declare_queue("work", arguments=QUORUM)).consumers == 0
