"""The AMQP client when the broker is killed, frozen, out of disk, behind TLS or behind a bad network."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from groundplane.backends.amqp import Address, Channel, Connection, Delivery, encode_properties
from groundplane.core.errors import FailedPrecondition, GroundplaneError, ResourceExhausted, Unavailable
from groundplane.testing.faults import Proxy
from groundplane.testing.servers.contract import Running
from pace import at_most

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.fault, pytest.mark.slow]

QUORUM = {"x-queue-type": "quorum"}
QUORUM_KEPT_S = 1.5
"""A broker killed sooner after a quorum queue was declared can forget the queue's leader."""


@pytest.fixture(scope="module")
def broker(own_server_of_module: Callable[..., Running]) -> Running:
    """A broker of this module's own, with TLS."""
    return own_server_of_module("rabbitmq", tls=True)


@pytest.fixture
def plain(broker: Running) -> str:
    return f"amqp://guest:guest@127.0.0.1:{broker.port}/"


async def _open(url: str, **parameters: object) -> Connection:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return await Connection.open(Address.parse(f"{url}?{query}"), name="test")


async def _open_again(url: str, timeout_s: float = 60.0) -> Connection:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await _open(url)
        except GroundplaneError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


async def _reason(work: Any) -> str:
    with pytest.raises(GroundplaneError) as caught:
        await work
    return caught.value.reason


async def _queue(connection: Connection, name: str) -> Channel:
    channel = await connection.channel(confirms=True, prefetch=500)
    await channel.declare_queue(name, arguments=QUORUM)
    return channel


# -- TLS


async def test_tls_works_with_the_authority_that_signed_the_broker(broker: Running) -> None:
    authority = broker.urls["GROUNDPLANE_TEST_RABBITMQ_CA"]
    async with await _open(broker.url, cafile=authority) as connection:
        channel = await _queue(connection, "tls")
        body = os.urandom(700_000)
        await channel.publish("", "tls", body)
        got = await channel.get("tls")
        assert got is not None
        assert got.body == body
        await channel.delete_queue("tls")


async def test_tls_that_cannot_be_trusted_is_refused_by_name(broker: Running, tmp_path: Path) -> None:
    port = broker.ports["amqps"]
    for url in (broker.url, f"amqps://guest:guest@127.0.0.1:{port}/"):
        with pytest.raises(FailedPrecondition, match="certificate") as caught:
            await _open(url)
        assert caught.value.reason == "tls_failed"
    async with await _open(broker.url, verify="off") as connection:
        assert connection.is_open


async def test_a_tls_port_without_tls_is_found_out(broker: Running) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{broker.ports['amqps']}/"
    with pytest.raises(GroundplaneError) as caught:
        await _open(url, connect_timeout=1)
    assert caught.value.reason in ("not_amqp", "broker_unreachable")
    assert "amqps://" in caught.value.message


async def test_a_broker_that_asks_for_a_certificate_gets_it_or_says_that_it_misses(
    own_server: Callable[..., Running],
) -> None:
    strict = {"ssl_options.verify": "verify_peer", "ssl_options.fail_if_no_peer_cert": True}
    broker = await asyncio.to_thread(own_server, "rabbitmq", tls=True, config=strict)
    files = broker.folder / "tls"
    authority = {"cafile": files / "ca.pem"}
    mine = {"certfile": files / "server.pem", "keyfile": files / "server.key"}
    async with await _open(broker.url, **authority, **mine) as connection:
        assert connection.is_open
    with pytest.raises(GroundplaneError, match="certificate") as caught:
        await _open(broker.url, **authority)
    assert caught.value.reason in ("tls_failed", "broker_unreachable")  # its alert may be lost in a reset


# -- the network


async def test_a_cut_connection_is_noticed_at_once_and_nobody_waits(broker: Running, plain: str) -> None:
    async with Proxy.to("127.0.0.1", broker.port) as proxy:
        connection = await _open(proxy.through(plain))
        channel = await _queue(connection, "cut")
        proxy.stall()
        future = channel.publish("", "cut", b"x")
        asking = asyncio.ensure_future(channel.purge_queue("cut"))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        proxy.cut()
        assert await _reason(future) == "connection_lost"
        assert await _reason(asking) == "connection_lost"
        assert time.monotonic() - began < at_most(1.0)
        await connection.aclose()


async def test_a_half_open_connection_is_noticed_by_heartbeats(broker: Running, plain: str) -> None:
    async with Proxy.to("127.0.0.1", broker.port) as proxy:
        connection = await _open(proxy.through(plain))
        channel = await _queue(connection, "half")
        proxy.half_open()
        began = time.monotonic()
        future = channel.publish("", "half", b"x")
        assert await _reason(future) == "broker_silent"
        assert 3.0 < time.monotonic() - began < at_most(4.8)
        await connection.aclose()


async def test_bytes_that_trickle_and_stop_in_the_middle_of_a_frame_lose_nothing(broker: Running, plain: str) -> None:
    async with await _open(plain) as setup:
        channel = await _queue(setup, "trickle")
        await channel.purge_queue("trickle")
        for n in range(5):
            await channel.publish("", "trickle", b"%d" % n + bytes(100_000))
    async with Proxy.to("127.0.0.1", broker.port) as proxy:
        first = await _open(proxy.through(plain))
        got: list[Delivery] = []
        await (await first.channel(prefetch=5)).consume("trickle", got.append)
        await _until(lambda: got)
        await first.aclose()
        proxy.drop_after(150_000, direction="to_client")
        second = await _open(proxy.through(plain))
        told: list[GroundplaneError] = []
        second.on_closed(told.append)
        await (await second.channel(prefetch=5)).consume("trickle", lambda _: None)
        await _until(lambda: told)
        assert told[0].reason == "connection_lost"
        await second.aclose()
        proxy.restore()
        proxy.throttle(400_000)
        third = await _open(proxy.through(plain))
        whole: list[Delivery] = []
        await (await third.channel(prefetch=5)).consume("trickle", whole.append)
        await _until(lambda: len(whole) == 5)
        assert sorted(one.body[:1] for one in whole) == [b"0", b"1", b"2", b"3", b"4"]
        assert {len(one.body) for one in whole} == {100_001}
        await third.aclose()


# -- the broker frozen


async def test_a_frozen_broker_is_noticed_in_time_and_found_again_when_it_wakes(broker: Running, plain: str) -> None:
    connection = await _open(plain)
    channel = await _queue(connection, "frozen")
    await asyncio.to_thread(broker.pause)
    try:
        began = time.monotonic()
        futures = [channel.publish("", "frozen", b"%d" % n) for n in range(100)]
        asking = asyncio.ensure_future(connection.channel())
        reasons = {await _reason(future) for future in futures}
        assert reasons == {"broker_silent"}
        assert await _reason(asking) == "broker_silent"
        assert time.monotonic() - began < at_most(4.8)
        began = time.monotonic()
        await connection.aclose()
        assert time.monotonic() - began < at_most(2.0)
        began = time.monotonic()
        assert await _reason(_open(plain)) == "broker_silent"
        assert time.monotonic() - began < at_most(3.6)
    finally:
        await asyncio.to_thread(broker.resume)
    async with await _open_again(plain) as again:
        probe = await again.channel(confirms=True)
        await probe.publish("", "frozen", b"again")


async def test_closing_on_a_frozen_broker_takes_no_longer_than_two_seconds(broker: Running, plain: str) -> None:
    connection = await _open(plain)
    channel = await _queue(connection, "frozen")
    await asyncio.to_thread(broker.pause)
    try:
        future = channel.publish("", "frozen", b"x")
        began = time.monotonic()
        await channel.aclose()
        await connection.aclose()
        assert time.monotonic() - began < at_most(4.0)
        assert await _reason(future) == ""
    finally:
        await asyncio.to_thread(broker.resume)


# -- the broker killed


async def _publish_until_killed(
    plain: str, kill: Callable[[], None], total: int, kill_at: int
) -> tuple[set[int], set[int]]:
    """What was confirmed, and what is in doubt, when `kill` comes after `kill_at` confirms."""
    connection = await _open(plain)
    channel = await connection.channel(confirms=True)
    confirmed: set[int] = set()
    doubtful: set[int] = set()
    killing: asyncio.Task[None] | None = None
    pending: dict[asyncio.Future[None], int] = {}
    number = 0
    while number < total or pending:
        while number < total and len(pending) < 500 and channel.is_open:
            pending[channel.publish("", "killed", b"%d" % number + bytes(300), encode_properties({"n": number}))] = (
                number
            )
            number += 1
        if not channel.is_open and number < total:
            number = total
        if not pending:
            break
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert done, "a publish waits for ever"
        for future in done:
            (doubtful if future.exception() else confirmed).add(pending.pop(future))
        if len(confirmed) >= kill_at and killing is None:
            killing = asyncio.create_task(asyncio.to_thread(kill))
    assert killing is not None
    await killing
    assert connection.error is not None
    assert connection.error.reason in ("connection_lost", "broker_silent", "connection_forced")
    await connection.aclose()
    return confirmed, doubtful


async def _everything_in(plain: str, queue: str) -> set[int]:
    async with await _open_again(plain) as connection:
        channel = await connection.channel(prefetch=1000)
        found: set[int] = set()
        while (delivery := await channel.get(queue)) is not None:
            found.add(int(delivery.headers["n"]))
            channel.ack(delivery.tag)
        return found


@pytest.mark.req("QUEUE-12")
async def test_a_broker_killed_under_ten_thousand_publishes_loses_nothing_that_was_confirmed(
    broker: Running, plain: str
) -> None:
    async with await _open_again(plain) as setup:
        await _queue(setup, "killed")
    await asyncio.sleep(QUORUM_KEPT_S)
    confirmed, doubtful = await _publish_until_killed(plain, broker.kill, 10_000, 2_000)
    assert len(confirmed) >= 2_000
    assert doubtful
    await asyncio.to_thread(broker.start)
    found = await _everything_in(plain, "killed")
    assert confirmed - found == set()
    assert found <= confirmed | doubtful


# -- the broker out of disk


@pytest.fixture
async def control(broker: Running) -> AsyncIterator[Callable[..., Any]]:
    """`rabbitmqctl` on this module's broker."""
    environment = {
        **os.environ,
        "HOME": str(broker.folder / "home"),
        "ERL_EPMD_PORT": str(broker.ports["epmd"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONF_ENV_FILE": str(broker.folder / "env.conf"),
    }

    async def run(*words: str) -> None:
        argv = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-n", f"kit{broker.port}@localhost", *words]
        done = await asyncio.to_thread(subprocess.run, argv, env=environment, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    yield run
    await run("set_disk_free_limit", "50MB")


async def _publish_until_blocked(connection: Connection, channel: Channel) -> list[asyncio.Future[None]]:
    """Publish twenty at a time until the alarm has reached the connection; most of the last twenty are held up."""
    futures: list[asyncio.Future[None]] = []
    async with asyncio.timeout(20):
        while not connection.blocked:
            futures += [channel.publish("", "alarm", b"under alarm %d" % n) for n in range(20)]
            await asyncio.wait(futures, timeout=0.1)
    return futures


async def test_a_broker_whose_alarm_is_on_refuses_publishers_by_name_and_serves_consumers(
    plain: str, control: Callable[..., Any]
) -> None:
    publishing, consuming = await _open_again(plain), await _open(plain)
    setup = await _queue(publishing, "alarm")
    await setup.purge_queue("alarm")
    for n in range(3):
        await setup.publish("", "alarm", b"%d" % n)
    await publishing.aclose()
    publishing = await _open(plain, blocked_timeout=1)
    channel = await publishing.channel(confirms=True)
    await control("set_disk_free_limit", "900000GB")
    futures = await _publish_until_blocked(publishing, channel)
    with pytest.raises(ResourceExhausted) as caught:
        channel.publish("", "alarm", b"refused")
    assert caught.value.reason == "broker_blocked"
    assert "disk" in caught.value.message
    began = time.monotonic()
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert time.monotonic() - began < at_most(2.0)
    assert {getattr(one, "reason", "confirmed") for one in outcomes} <= {"broker_blocked", "confirmed"}
    assert "broker_blocked" in {getattr(one, "reason", "") for one in outcomes}
    assert await _reason(channel.drain()) == "broker_blocked"
    got: list[bytes] = []
    reader = await consuming.channel(prefetch=10)
    await reader.consume("alarm", lambda d: (got.append(d.body), reader.ack(d.tag))[0])
    await _until(lambda: len(got) >= 3)
    await control("set_disk_free_limit", "50MB")
    await _until(lambda: publishing.blocked is None)
    await channel.drain()
    await channel.publish("", "alarm", b"after")
    await _until(lambda: b"after" in got)
    began = time.monotonic()
    await publishing.aclose()
    await consuming.aclose()
    assert time.monotonic() - began < at_most(2.0)


async def test_closing_a_publisher_that_is_blocked_is_quick(plain: str, control: Callable[..., Any]) -> None:
    connection = await _open_again(plain)
    channel = await _queue(connection, "alarm")
    await control("set_disk_free_limit", "900000GB")
    futures = await _publish_until_blocked(connection, channel)
    began = time.monotonic()
    await connection.aclose()
    assert time.monotonic() - began < at_most(2.0)
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert {getattr(one, "code", "confirmed") for one in outcomes} <= {"closed", "confirmed"}


async def test_a_broker_that_is_stopped_in_good_order_says_so(broker: Running, plain: str) -> None:
    connection = await _open_again(plain)
    told: list[GroundplaneError] = []
    connection.on_closed(told.append)
    await asyncio.to_thread(broker.stop)
    try:
        await _until(lambda: told)
        assert isinstance(told[0], Unavailable)
        assert told[0].reason in ("connection_forced", "connection_lost")
        assert await _reason(_open(plain)) == "broker_unreachable"
    finally:
        await asyncio.to_thread(broker.start)
        await connection.aclose()
    async with await _open_again(plain) as again:
        assert again.is_open
