"""The client in conversations with a broker that says what the test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from pamqp import commands

from amqp_peer import (
    SERVER_PROPERTIES,
    FakeBroker,
    channel_close,
    connection_close,
    content,
    deliver,
    method,
    served,
)
from groundplane.backends.amqp import Address, Channel, Connection, Delivery, Message, encode_properties
from groundplane.backends.amqp import confirms as bounds
from groundplane.backends.amqp import connection as connections
from groundplane.backends.amqp import wire as wires
from groundplane.backends.amqp.frames import PROTOCOL_HEADER
from groundplane.core.errors import (
    Closed,
    DeadlineExceeded,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from pace import at_most

pytestmark = pytest.mark.anyio


async def _open(url: str, **parameters: object) -> Connection:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return await Connection.open(Address.parse(f"{url}?{query}"), name="test")


async def _until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


async def _reason(work: Any) -> str:
    with pytest.raises(GroundplaneError) as caught:
        await work
    return caught.value.reason


def _start(**properties: Any) -> bytes:
    return method(0, commands.Connection.Start(0, 9, {**SERVER_PROPERTIES, **properties}, "PLAIN", "en_US"))


# -- opening


async def test_opening_logs_in_enters_the_virtual_host_and_agrees_on_limits() -> None:
    broker = FakeBroker(Connection_StartOk=method(0, commands.Connection.Tune(16, 8192, 1)))
    async with served(broker) as peer, await _open(peer.url.rstrip("/") + "/my%2Fhost") as connection:
        login = broker.said["Connection.StartOk"]
        assert login.response == "\0guest\0guest"
        assert login.client_properties["connection_name"] == "test"
        assert login.client_properties["capabilities"]["consumer_cancel_notify"] is True
        agreed = broker.said["Connection.TuneOk"]
        assert (agreed.channel_max, agreed.frame_max, agreed.heartbeat) == (16, 8192, 1)
        assert broker.said["Connection.Open"].virtual_host == "my/host"
        assert (connection.server.product, connection.server.version) == ("RabbitMQ", "3.13.7")
        assert "publisher_confirms" in connection.server.capabilities
        assert connection.is_open
        assert "open" in repr(connection)


@pytest.mark.parametrize(
    "answers, code, reason, said",
    [
        ({"Connection_StartOk": connection_close(403, "ACCESS_REFUSED")}, "permission_denied", "login_refused", "user"),
        ({"Connection_Open": connection_close(530, "NOT_ALLOWED")}, "permission_denied", "vhost_refused", "'/'"),
        (
            {"greeting": _start(version="3.9.29")},
            "failed_precondition",
            "server_too_old",
            "3.10 is the least",
        ),
        ({"greeting": _start(version="strange")}, "failed_precondition", "server_too_old", "'strange'"),
        ({"greeting": _start(product="Qpid")}, "failed_precondition", "not_amqp", "'Qpid'"),
        ({"greeting": b"AMQP\x00\x01\x00\x00"}, "failed_precondition", "not_amqp", "another version (00 01 00 00)"),
        ({"greeting": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "failed_precondition", "not_amqp", "HTTP"),
        ({"greeting": b"\x15\x03\x01\x00\x02\x02\x46"}, "failed_precondition", "not_amqp", "write amqps://"),
        ({"greeting": b"220 mail ready\r\n"}, "failed_precondition", "not_amqp", "no frame"),
        ({"Connection_Open": b"garbage after the login"}, "unavailable", "malformed_frame", "no frame"),
        ({"Connection_StartOk": method(0, commands.Connection.OpenOk())}, "unavailable", "malformed_frame", "turn"),
        ({"Connection_StartOk": method(0, commands.Connection.Tune(1, 100, 1))}, "unavailable", "malformed_frame", ""),
        ({"Connection_Open": connection_close(320, "bye")}, "unavailable", "connection_forced", "320"),
    ],
)
async def test_a_broker_that_refuses_or_is_none_is_named_with_what_to_do(
    answers: dict[str, bytes], code: str, reason: str, said: str
) -> None:
    async with served(FakeBroker(**answers)) as peer:
        with pytest.raises(GroundplaneError) as caught:
            await _open(peer.url)
        assert (caught.value.code, caught.value.reason) == (code, reason)
        assert said in caught.value.message
        assert "guest:guest" not in str(caught.value)


async def test_a_broker_without_a_password_login_is_named() -> None:
    start = method(0, commands.Connection.Start(0, 9, SERVER_PROPERTIES, "EXTERNAL", "en_US"))
    async with served(FakeBroker(greeting=start)) as peer:
        assert await _reason(_open(peer.url)) == "login_refused"


async def test_a_peer_that_accepts_and_is_silent_is_given_up_in_time() -> None:
    async with served() as peer:
        peer.frozen = True
        began = time.monotonic()
        assert await _reason(_open(peer.url, connect_timeout=0.3)) == "broker_silent"
        assert 0.25 < time.monotonic() - began < at_most(1.5)


async def test_a_broker_that_freezes_during_the_login_is_given_up_in_time() -> None:
    async with served(FakeBroker(Connection_Open=b"")) as peer:
        with pytest.raises(Unavailable, match=r"did not answer within 0.3 s \(virtual host\)") as caught:
            await _open(peer.url, connect_timeout=0.3)
        assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_web_server_that_waits_for_a_line_is_found_out() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for timeout_s in (0.5, 2, 10):  # the answer has a tenth of the time, which a stall may take
            reason = await _reason(_open(f"amqp://127.0.0.1:{port}/", connect_timeout=timeout_s))
            if reason == "not_amqp":
                break
        assert reason == "not_amqp"


async def test_a_slow_broker_that_refuses_what_finds_out_a_web_server_is_one_that_was_silent() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(PROTOCOL_HEADER)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await _reason(_open(f"amqp://127.0.0.1:{port}/", connect_timeout=0.5)) == "broker_silent"


async def test_a_peer_that_hangs_up_at_once_may_be_starting_and_is_worth_another_try() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable) as caught:
            await _open(f"amqp://127.0.0.1:{port}/")
        assert (caught.value.reason, caught.value.retryable) == ("broker_unreachable", True)


async def test_the_next_host_is_used_when_the_first_is_dead_or_frozen() -> None:
    async with served() as frozen, served() as good:
        frozen.frozen = True
        for first in ("127.0.0.1:1", f"127.0.0.1:{frozen.port}"):
            url = f"amqp://guest:guest@{first},127.0.0.1:{good.port}/"
            began = time.monotonic()
            async with await _open(url, connect_timeout=5) as connection:
                assert time.monotonic() - began < at_most(2.2)  # an even share for each
                assert connection.peer == f"127.0.0.1:{good.port}"


async def test_hosts_that_are_all_dead_are_all_named() -> None:
    with pytest.raises(Unavailable) as caught:
        await _open("amqp://u:secret@127.0.0.1:1,127.0.0.1:2/")
    assert "none of 2 hosts" in caught.value.message
    assert "127.0.0.1:1 cannot be reached" in caught.value.message
    assert "127.0.0.1:2 cannot be reached" in caught.value.message
    assert "secret" not in str(caught.value)


async def test_a_refusal_that_no_other_host_would_mend_is_told_at_once() -> None:
    refusing = FakeBroker(Connection_StartOk=connection_close(403, "ACCESS_REFUSED"))
    async with served(refusing) as one, served() as other:
        url = f"amqp://guest:guest@127.0.0.1:{one.port},127.0.0.1:{other.port}/"
        assert await _reason(_open(url)) == "login_refused"
        assert other.connections == 0


async def test_cancelling_an_opening_leaves_nothing_open() -> None:
    async with served() as peer:
        peer.frozen = True
        opening = asyncio.create_task(_open(peer.url))
        await _until(lambda: peer.connections)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


# -- requests


async def test_requests_are_answered_in_order_also_when_they_are_made_at_once() -> None:
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel(prefetch=7)
        assert peer.broker.said["Basic.Qos"].prefetch_count == 7
        declared, purged, deleted = await asyncio.gather(
            channel.declare_queue("q", arguments={"x-queue-type": "quorum", "x-delivery-limit": 5}),
            channel.purge_queue("q"),
            channel.delete_queue("q"),
        )
        assert (declared.name, declared.ready, declared.consumers, purged, deleted) == ("q", 3, 1, 3, 3)
        assert peer.broker.said["Queue.Declare"].arguments == {"x-queue-type": "quorum", "x-delivery-limit": 5}
        await channel.declare_exchange("e", "topic")
        await channel.bind_queue("q", "e", "key")
        await channel.unbind_queue("q", "e", "key")
        await channel.bind_exchange("e", "f")
        await channel.delete_exchange("e")
        assert await channel.get("q") is None
        assert peer.broker.said["Exchange.Declare"].exchange_type == "topic"


async def test_a_request_without_an_answer_ends_in_time_and_closes_its_channel_alone() -> None:
    async with served(FakeBroker(Queue_Purge=b"")) as peer, await _open(peer.url, rpc_timeout=1) as connection:
        slow, other = await connection.channel(confirms=True), await connection.channel()
        waiting = asyncio.create_task(slow.purge_queue("q"))
        with pytest.raises(DeadlineExceeded, match=r"Queue.Purge: no answer within 1.0 s") as caught:
            await waiting
        assert caught.value.reason == "broker_slow"
        with pytest.raises(Unavailable, match="nothing was sent"):
            slow.publish("", "q", b"")
        assert (await other.declare_queue("q")).ready == 3
        number = slow.number
        await _until(lambda: number not in connection._channels)
        assert (await connection.channel()).number == number


async def test_a_request_that_was_cancelled_does_not_shift_the_answers_of_others() -> None:
    held: list[int] = []
    broker = FakeBroker(Queue_Purge=lambda c, m: held.append(c) or b"")
    async with served(broker) as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        cancelled = asyncio.create_task(channel.purge_queue("q"))
        await _until(lambda: held)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        second = asyncio.create_task(channel.purge_queue("q"))
        await _until(lambda: len(held) == 2)
        peer.say(method(1, commands.Queue.PurgeOk(1)) + method(1, commands.Queue.PurgeOk(2)))
        assert await second == 2


async def test_a_message_that_was_got_for_nobody_goes_back() -> None:
    asked: list[int] = []
    broker = FakeBroker(Basic_Get=lambda c, m: asked.append(c) or b"")
    async with served(broker) as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        getting = asyncio.create_task(channel.get("q"))
        await _until(lambda: asked)
        getting.cancel()
        await asyncio.wait([getting])
        peer.say(method(1, commands.Basic.GetOk(9, False, "", "q", 4)) + content(1, b"x"))
        await _until(lambda: "Basic.Nack" in broker.heard)
        assert (broker.said["Basic.Nack"].delivery_tag, broker.said["Basic.Nack"].requeue) == (9, True)


async def test_a_message_that_is_got_tells_how_many_are_left() -> None:
    answer = method(1, commands.Basic.GetOk(5, True, "e", "q", 41)) + content(1, b"x")
    async with served(FakeBroker(Basic_Get=answer)) as peer, await _open(peer.url) as connection:
        delivery = await (await connection.channel()).get("q")
        assert delivery is not None
        assert (delivery.tag, delivery.redelivered, delivery.exchange, delivery.message_count) == (5, True, "e", 41)


async def test_a_name_that_amqp_cannot_carry_is_refused_before_it_is_sent() -> None:
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        for work in (
            channel.declare_queue("q" * 300),
            channel.declare_queue("tab\there"),
            channel.declare_queue("q", arguments={"x": object()}),
        ):
            with pytest.raises(InvalidArgument, match=r"Queue\.Declare"):
                await work
        assert "Queue.Declare" not in peer.broker.heard
        with pytest.raises(InvalidArgument, match="routing_key"):
            channel.publish("", "k" * 256, b"")
        assert channel.is_open


async def test_a_refused_declaration_closes_its_channel_and_leaves_the_others() -> None:
    refusal = FakeBroker(Queue_Declare=lambda c, m: channel_close(c, 406, "PRECONDITION_FAILED", 50, 10))
    async with served(refusal) as peer, await _open(peer.url) as connection:
        probe, other = await connection.channel(), await connection.channel(confirms=True)
        told: list[GroundplaneError] = []
        probe.on_closed(told.append)
        with pytest.raises(FailedPrecondition) as caught:
            await probe.declare_queue("q")
        assert caught.value.reason == "queue_exists_with_other_arguments"
        assert (
            "Channel.CloseOk" in peer.broker.heard
            or await _until(lambda: "Channel.CloseOk" in peer.broker.heard) is None
        )
        assert [error.reason for error in told] == ["queue_exists_with_other_arguments"]
        heard = len(peer.broker.heard)
        for call in (lambda: probe.ack(1), lambda: probe.publish("", "q", b""), lambda: probe.nack(1)):
            with pytest.raises(Unavailable, match="nothing was sent") as after:
                call()
            assert after.value.__cause__ is probe.error
        with pytest.raises(Unavailable):
            await probe.purge_queue("q")
        await probe.aclose()
        await other.publish("", "q", b"x")
        assert peer.broker.heard[heard:] == ["Basic.Publish"]


async def test_only_the_request_that_was_refused_is_told_so_and_its_neighbours_are_in_doubt() -> None:
    refusal = FakeBroker(
        Queue_Declare=lambda c, m: channel_close(c, 406, "PRECONDITION_FAILED", 50, 10) if m.queue == "bad" else b"",
        Basic_Publish=b"",
    )
    async with served(refusal) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        published = channel.publish("", "q", b"x")
        outcomes = await asyncio.gather(
            channel.declare_queue("bad"), channel.purge_queue("q"), published, return_exceptions=True
        )
        assert [getattr(one, "reason", None) for one in outcomes] == [
            "queue_exists_with_other_arguments", "connection_lost", "connection_lost",
        ]  # fmt: skip


async def test_a_settlement_that_the_broker_refuses_is_not_blamed_on_a_request() -> None:
    refusal = FakeBroker(
        Basic_Ack=lambda c, m: channel_close(c, 406, "unknown delivery tag 9", 60, 80), Queue_Purge=b""
    )
    async with served(refusal) as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        told: list[GroundplaneError] = []
        channel.on_closed(told.append)
        asking = asyncio.ensure_future(channel.purge_queue("q"))
        channel.ack(9)
        assert await _reason(asking) == "connection_lost"
        assert [error.reason for error in told] == ["delivery_lost"]


# -- publishing


async def test_a_publish_is_done_when_it_is_confirmed_and_not_before() -> None:
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        future = channel.publish("e", "key", b"body", encode_properties({"a": "b"}))
        await _until(lambda: peer.broker.bodies)
        assert not future.done()
        assert channel.unconfirmed == 1
        peer.say(method(1, commands.Basic.Ack(1)))
        await future
        assert channel.unconfirmed == 0
        sent = peer.broker.said["Basic.Publish"]
        assert (sent.exchange, sent.routing_key, sent.mandatory, peer.broker.bodies) == ("e", "key", True, [b"body"])


async def test_a_batch_is_written_at_once_and_each_of_its_messages_has_an_outcome() -> None:
    def answer(channel: int, what: Any) -> bytes:
        tag = broker.published[channel]
        back = method(channel, commands.Basic.Return(312, "NO_ROUTE", "", "none")) + content(
            channel, b"2", commands.Basic.Properties(delivery_mode=2)
        )
        return {
            1: b"",
            2: back + method(channel, commands.Basic.Ack(2, True)),
            3: method(channel, commands.Basic.Nack(3)),
        }[tag]

    broker = FakeBroker(Basic_Publish=answer)
    async with served(broker) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        future = channel.publish_batch([Message("", "a", b"1"), Message("", "none", b"2"), Message("", "c", b"3")])
        first, second, third = await future
        assert first is None
        assert isinstance(second, NotFound)
        assert second.reason == "queue_not_found"
        assert isinstance(third, ResourceExhausted)
        assert third.reason == "message_refused"
        assert await channel.publish_batch([]) == []
        assert connection.statistics()["published"] == 3


async def test_without_confirms_a_publish_is_done_at_once() -> None:
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        assert channel.publish("", "reply", b"x", mandatory=False).done()
        await _until(lambda: peer.broker.bodies)
        assert peer.broker.said["Basic.Publish"].mandatory is False


async def test_properties_that_fit_into_no_frame_are_refused_before_anything_of_the_batch_is_sent() -> None:
    async with served() as peer, await _open(peer.url, frame_max=4096) as connection:
        channel = await connection.channel(confirms=True)
        large = encode_properties({"x": "y" * 5000})
        with pytest.raises(InvalidArgument) as caught:
            channel.publish_batch([Message("", "q", b""), Message("", "q", b"", large)])
        assert caught.value.reason == "payload_too_large"
        await channel.publish("", "q", b"only")
        assert peer.broker.published == {1: 1}


async def test_a_message_that_was_given_up_is_forgotten_and_its_late_confirm_harms_nobody() -> None:
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        given_up, kept = channel.publish("", "q", b"1"), channel.publish("", "q", b"2")
        given_up.cancel()
        await _until(lambda: len(peer.broker.bodies) == 2)
        peer.say(method(1, commands.Basic.Ack(2, True)))
        await kept
        assert given_up.cancelled()
        assert channel.is_open


async def test_too_many_unconfirmed_messages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PENDING_MAX", 2)
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        futures = [channel.publish("", "q", b"1"), channel.publish("", "q", b"2")]
        with pytest.raises(ResourceExhausted) as caught:
            channel.publish("", "q", b"3")
        assert caught.value.reason == "queue_full"
        assert len(futures) == channel.unconfirmed == 2


async def _publish_without_end(channel: Channel) -> None:
    for _ in range(200):
        channel.publish("", "q", bytes(1024 * 1024))
        await asyncio.sleep(0)


async def test_too_many_unconfirmed_bytes_are_refused_until_some_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PENDING_BYTES_MAX", 1000)
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url) as connection:
        channel = await connection.channel(confirms=True)
        futures = [channel.publish("", "q", bytes(600)), channel.publish("", "q", bytes(600))]
        with pytest.raises(ResourceExhausted) as caught:
            channel.publish("", "q", b"")
        assert caught.value.reason == "queue_full"
        await _until(lambda: len(peer.broker.bodies) == 2)
        peer.say(method(1, commands.Basic.Ack(2, True)))
        await asyncio.gather(*futures)
        third = channel.publish("", "q", bytes(600))
        await _until(lambda: len(peer.broker.bodies) == 3)
        peer.say(method(1, commands.Basic.Ack(3)))
        await third


async def test_a_peer_that_does_not_read_stops_the_publisher_before_memory_fills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wires, "WRITE_BYTES_MAX", 4 * 1024 * 1024)
    stopped = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker = FakeBroker()
        while "Confirm.Select" not in broker.heard:
            for answer in broker.feed(await reader.read(65536)):
                writer.write(answer)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await stopped.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with await _open(f"amqp://127.0.0.1:{port}/", blocked_timeout=0.2) as connection:
            channel = await connection.channel(confirms=True)
            with pytest.raises(ResourceExhausted) as caught:
                await _publish_without_end(channel)
            assert caught.value.reason == "queue_full"
            assert connection.statistics()["bytes_buffered"] < 6 * 1024 * 1024
            with pytest.raises(ResourceExhausted, match=r"read nothing for 0\.2 s"):
                await channel.drain()
            stopped.set()
    finally:
        stopped.set()
        server.close()
        await server.wait_closed()


# -- blocked


async def test_a_blocked_broker_refuses_at_once_and_gives_up_what_is_in_flight_after_a_while() -> None:
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url, blocked_timeout=0.2) as connection:
        channel = await connection.channel(confirms=True)
        in_flight = channel.publish("", "q", b"1")
        peer.say(method(0, commands.Connection.Blocked("low on memory")))
        await _until(lambda: connection.blocked)
        with pytest.raises(ResourceExhausted, match="low on memory") as caught:
            channel.publish("", "q", b"2")
        assert (caught.value.reason, caught.value.retryable) == ("broker_blocked", True)
        assert await _reason(in_flight) == "broker_blocked"
        assert await _reason(channel.drain()) == "broker_blocked"
        peer.say(method(0, commands.Connection.Unblocked()) + method(1, commands.Basic.Ack(1)))
        await _until(lambda: connection.blocked is None)
        await channel.drain()
        sent = channel.publish("", "q", b"3")
        await _until(lambda: peer.broker.published[1] == 2)
        peer.say(method(1, commands.Basic.Ack(2)))
        await sent


async def test_a_short_block_only_delays() -> None:
    async with served(FakeBroker(Basic_Publish=b"")) as peer, await _open(peer.url, blocked_timeout=5) as connection:
        channel = await connection.channel(confirms=True)
        in_flight = channel.publish("", "q", b"1")
        peer.say(method(0, commands.Connection.Blocked("low on disk")))
        await _until(lambda: connection.blocked)
        waiting = asyncio.create_task(channel.drain())
        peer.say(method(0, commands.Connection.Unblocked()) + method(1, commands.Basic.Ack(1)))
        await asyncio.wait_for(waiting, 4)  # less than `blocked_timeout`
        await in_flight


async def test_closing_does_not_wait_for_a_blocked_broker() -> None:
    async with served(FakeBroker(Basic_Publish=b"", Connection_Close=b"")) as peer:
        connection = await _open(peer.url)
        channel = await connection.channel(confirms=True)
        in_flight = channel.publish("", "q", b"1")
        peer.say(method(0, commands.Connection.Blocked("low on memory")))
        await _until(lambda: connection.blocked)
        began = time.monotonic()
        await channel.aclose()
        await connection.aclose()
        assert time.monotonic() - began < at_most(1.0)
        with pytest.raises(Closed):
            await in_flight


# -- consuming


async def test_deliveries_reach_their_consumer_whole_and_are_settled_by_tag() -> None:
    got: list[Delivery] = []
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel(prefetch=10)
        tag = await channel.consume("q", got.append, arguments={"x-priority": 3}, exclusive=True)
        for number, body in enumerate((b"", b"small", b"x" * 10_000), 1):
            peer.say(deliver(1, tag, number, body, **{"x-delivery-count": number, "kind": "order"}))
        await _until(lambda: len(got) == 3)
        assert [one.body for one in got] == [b"", b"small", b"x" * 10_000]
        assert got[2].headers == {"x-delivery-count": 3, "kind": "order"}
        assert got[0].properties.headers == {"x-delivery-count": 1, "kind": "order"}
        assert "redelivered" not in repr(got[0])
        channel.ack(2, multiple=True)
        channel.nack(3)
        channel.reject(3)
        await _until(lambda: "Basic.Reject" in peer.broker.heard)
        said = peer.broker.said
        assert (said["Basic.Ack"].delivery_tag, said["Basic.Ack"].multiple) == (2, True)
        assert (said["Basic.Nack"].requeue, said["Basic.Reject"].requeue) == (True, False)
        await channel.cancel(tag)
        assert said["Basic.Consume"].arguments == {"x-priority": 3}


async def test_a_delivery_in_the_same_breath_as_the_consumers_start_is_not_lost() -> None:
    def answer(channel: int, what: Any) -> bytes:
        return method(channel, commands.Basic.ConsumeOk(what.consumer_tag)) + deliver(
            channel, what.consumer_tag, 1, b"x"
        )

    got: list[Delivery] = []
    async with served(FakeBroker(Basic_Consume=answer)) as peer, await _open(peer.url) as connection:
        await (await connection.channel()).consume("q", got.append)
        await _until(lambda: got)


async def test_a_consumer_that_the_broker_ends_is_told() -> None:
    told: list[GroundplaneError] = []
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        tag = await channel.consume("q", lambda _: None, on_cancel=told.append)
        peer.say(method(1, commands.Basic.Cancel(tag)))
        await _until(lambda: told)
        assert (told[0].code, told[0].reason) == ("unavailable", "consumer_cancelled")
        assert channel.is_open


async def test_what_a_consumer_gets_that_was_given_up_while_it_started_goes_back() -> None:
    tags: list[str] = []
    broker = FakeBroker(Basic_Consume=lambda c, m: tags.append(m.consumer_tag) or b"")
    async with served(broker) as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        starting = asyncio.create_task(channel.consume("q", lambda _: pytest.fail("nobody waits for it")))
        await _until(lambda: tags)
        starting.cancel()
        await asyncio.wait([starting])
        peer.say(method(1, commands.Basic.ConsumeOk(tags[0])) + deliver(1, tags[0], 4, b"x"))
        await _until(lambda: "Basic.Nack" in broker.heard)
        assert broker.said["Basic.Cancel"].consumer_tag == tags[0]
        assert broker.said["Basic.Nack"].delivery_tag == 4


async def test_headers_that_cannot_be_read_are_an_error_of_that_message_alone() -> None:
    got: list[Delivery] = []
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        tag = await channel.consume("q", got.append)
        good = deliver(1, tag, 1, b"x", kind="order")
        peer.say(good.replace(b"S\x00\x00\x00\x05order", b"?\x00\x00\x00\x05order") + good)
        await _until(lambda: len(got) == 2)
        for read in (lambda: got[0].headers, lambda: got[0].properties):
            with pytest.raises(InvalidArgument) as caught:
                read()
            assert caught.value.reason == "msg_parsing_error"
        assert (got[0].body, got[1].headers) == (b"x", {"kind": "order"})


# -- endings


async def _busy(connection: Connection) -> tuple[Channel, list[asyncio.Future[Any]], list[GroundplaneError]]:
    """A channel with a publish, a batch, a request and a drain that wait, and what its listeners were told."""
    channel = await connection.channel(confirms=True)
    told: list[GroundplaneError] = []
    channel.on_closed(told.append)
    connection.on_closed(told.append)
    waiting: list[asyncio.Future[Any]] = [
        channel.publish("", "q", b"1"),
        channel.publish_batch([Message("", "q", b"2")]),
        asyncio.ensure_future(channel.purge_queue("q")),
        asyncio.ensure_future(connection.channel()),
    ]
    await asyncio.sleep(0.02)
    return channel, waiting, told


def _deaf() -> FakeBroker:
    """Answers what opens a channel once, and nothing of what work needs."""
    opened: list[int] = []

    def open_once(channel: int, what: Any) -> bytes:
        opened.append(channel)
        return method(channel, commands.Channel.OpenOk()) if len(opened) == 1 else b""

    return FakeBroker(Basic_Publish=b"", Queue_Purge=b"", Channel_Open=open_once)


async def _outcomes(waiting: list[asyncio.Future[Any]]) -> list[str]:
    _, pending = await asyncio.wait(waiting, timeout=10)
    assert not pending
    found = []
    for one in waiting:
        error = one.exception() or one.result()[0]
        assert isinstance(error, GroundplaneError)
        found.append(error.reason or error.code)
    return found


@pytest.mark.parametrize(
    "ending, reason",
    [
        (b"", "connection_lost"),
        (connection_close(320, "CONNECTION_FORCED - broker forced connection closure"), "connection_forced"),
        (connection_close(541, "INTERNAL_ERROR"), "broker_error"),
        (connection_close(504, "CHANNEL_ERROR", 60, 40), "protocol_error"),
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x50\x00", "malformed_frame"),
        (method(1, commands.Basic.Ack(99)), "malformed_frame"),
        (method(7, commands.Basic.Ack(1)), "malformed_frame"),
        (method(1, commands.Queue.DeclareOk("q", 1, 1)), "malformed_frame"),
        (content(1, b"x"), "malformed_frame"),
        (deliver(1, "nobody", 1, b"x"), "malformed_frame"),
        (deliver(1, "c", 1, b"xx")[:-11] + method(1, commands.Basic.Ack(1)), "malformed_frame"),
        (method(0, commands.Connection.Tune(1, 4096, 1)), "malformed_frame"),
    ],
)
async def test_however_a_connection_ends_everybody_who_waits_is_told_at_once(ending: bytes, reason: str) -> None:
    async with served(_deaf()) as peer:
        connection = await _open(peer.url)
        channel, waiting, told = await _busy(connection)
        if ending:
            peer.say(ending)
        else:
            peer.hang_up()
        assert await _outcomes(waiting) == [reason] * 4
        assert [error.reason for error in told] == [reason] * 2
        assert connection.error is not None
        assert not connection.is_open
        assert not channel.is_open
        assert reason in repr(connection)
        with pytest.raises(GroundplaneError):
            await connection.channel()
        with pytest.raises(GroundplaneError):
            channel.publish("", "q", b"")
        late: list[GroundplaneError] = []
        connection.on_closed(late.append)
        channel.on_closed(late.append)
        await asyncio.sleep(0)
        assert [error.reason for error in late] == [reason] * 2
        await connection.aclose()
        await connection.aclose()


async def test_closing_is_bounded_idempotent_and_safe_while_calls_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CLOSE_S", 0.2)
    broker = _deaf()
    broker.answers["Connection.Close"] = b""
    async with served(broker) as peer:
        connection = await _open(peer.url)
        channel, waiting, told = await _busy(connection)
        began = time.monotonic()
        await asyncio.gather(connection.aclose(), connection.aclose(), channel.aclose())
        assert time.monotonic() - began < at_most(1.5)
        assert await _outcomes(waiting) == ["closed"] * 4
        await _until(lambda: len(told) == 2)
        with pytest.raises(Closed):
            await connection.channel()
        with pytest.raises(Closed):
            await channel.drain()


async def test_closing_that_is_cancelled_still_drops_the_socket() -> None:
    async with served(FakeBroker(Connection_Close=b"")) as peer:
        connection = await _open(peer.url)
        closing = asyncio.create_task(connection.aclose())
        await _until(lambda: "Connection.Close" in peer.broker.heard)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await _until(lambda: not connection.is_open)
        await connection.aclose()


async def test_a_connection_that_is_closed_for_a_reason_tells_everybody_that_reason() -> None:
    async with served(_deaf()) as peer:
        connection = await _open(peer.url)
        channel, waiting, told = await _busy(connection)
        await connection.aclose(Unavailable("queues: the other connection broke", reason="connection_lost"))
        assert await _outcomes(waiting) == ["connection_lost"] * 4
        await _until(lambda: len(told) == 2)
        assert [error.reason for error in told] == ["connection_lost"] * 2
        with pytest.raises(Unavailable, match="the other connection broke"):
            channel.publish("", "q", b"")


async def test_deliveries_that_come_after_the_end_of_their_consumer_are_still_its_own() -> None:
    got: list[Delivery] = []
    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        first = await channel.consume("q", got.append)
        second = await channel.consume("q", got.append)
        await channel.cancel(first)
        peer.say(
            deliver(1, first, 1, b"late") + method(1, commands.Basic.Cancel(second)) + deliver(1, second, 2, b"too")
        )
        await _until(lambda: len(got) == 2)
        assert connection.is_open


async def test_a_channel_is_closed_alone_and_its_number_used_again() -> None:
    async with served() as peer, await _open(peer.url) as connection:
        first, second = await connection.channel(), await connection.channel()
        await first.aclose()
        await first.aclose()
        assert (await connection.channel()).number == first.number == 1
        assert second.is_open
        with pytest.raises(Closed):
            first.ack(1)


async def test_deliveries_under_way_to_a_channel_that_is_being_closed_are_passed_over() -> None:
    got: list[Delivery] = []
    async with served(FakeBroker(Channel_Close=b"")) as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        tag = await channel.consume("q", got.append)
        closing = asyncio.create_task(channel.aclose())
        await _until(lambda: "Channel.Close" in peer.broker.heard)
        peer.say(deliver(1, tag, 1, b"late") + method(1, commands.Channel.CloseOk()))
        await closing
        assert (got, connection.is_open) == ([], True)


async def test_all_channels_in_use_is_an_error_with_a_name() -> None:
    tune = method(0, commands.Connection.Tune(2, 131072, 2))
    async with served(FakeBroker(Connection_StartOk=tune)) as peer, await _open(peer.url) as connection:
        await connection.channel()
        await connection.channel()
        assert await _reason(connection.channel()) == "queue_full"


async def test_a_callback_that_fails_ends_the_connection_with_its_cause() -> None:
    def fail(delivery: Delivery) -> None:
        raise RuntimeError("a fault of the driver")

    async with served() as peer, await _open(peer.url) as connection:
        channel = await connection.channel()
        tag = await channel.consume("q", fail)
        peer.say(deliver(1, tag, 1, b"x"))
        await _until(lambda: not connection.is_open)
        assert isinstance(connection.error, Internal)
        assert isinstance(connection.error.__cause__, RuntimeError)


# -- heartbeats


async def test_a_peer_that_falls_silent_is_dead_after_two_heartbeats() -> None:
    async with served(_deaf()) as peer:
        connection = await _open(peer.url, heartbeat=1)
        began = time.monotonic()
        _, waiting, _ = await _busy(connection)
        peer.frozen = True
        await _until(lambda: not connection.is_open)
        assert 1.5 < time.monotonic() - began < at_most(2.6)
        assert await _outcomes(waiting) == ["broker_silent"] * 4
        await connection.aclose()


async def test_heartbeats_keep_an_idle_connection_alive_in_both_directions() -> None:
    async with served() as peer, await _open(peer.url, heartbeat=1) as connection:
        before = connection.statistics()["bytes_sent"]
        began, took_s, beats = time.monotonic(), 0.0, 0.0
        while took_s < 2.6 or (beats < 4 and took_s < 15):
            peer.say(b"\x08\x00\x00\x00\x00\x00\x00\xce")
            await asyncio.sleep(0.1)
            took_s, beats = time.monotonic() - began, (connection.statistics()["bytes_sent"] - before) / 8
        assert connection.is_open
        assert 4 <= beats <= 2 + 2 * took_s


async def test_a_loop_that_stood_still_does_not_take_its_peer_for_dead() -> None:
    async with served() as peer, await _open(peer.url, heartbeat=1) as connection:
        time.sleep(2.5)  # noqa: ASYNC251 - the loop is blocked on purpose
        for _ in range(3):  # the look that was due, before anything can have come
            await asyncio.sleep(0)
            assert connection.is_open
        peer.say(b"\x08\x00\x00\x00\x00\x00\x00\xce")
        await asyncio.sleep(0.3)
        assert connection.is_open


async def test_a_server_that_refuses_the_permission_is_an_error_of_permission() -> None:
    refusal = FakeBroker(Queue_Declare=lambda c, m: channel_close(c, 403, "ACCESS_REFUSED", 50, 10))
    async with served(refusal) as peer, await _open(peer.url) as connection:
        with pytest.raises(PermissionDenied) as caught:
            await (await connection.channel()).declare_queue("q")
        assert caught.value.reason == "access_refused"
