"""What NATS' usual client was seen to do under a server that is killed, frozen or cut off, and ours must not.

Each test is one trap. Times are bounds of patience, not of speed: what they must show is that waits have an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count

import pytest

from groundplane.backends.nats import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    MARKER_REASON,
    Address,
    Changed,
    ConsumerConfig,
    Gone,
    JetStream,
    Link,
    Message,
    Pool,
    PublishWindow,
    Pull,
    Stored,
    StreamConfig,
    Synced,
    Watcher,
)
from groundplane.core.errors import (
    Conflict,
    DeadlineExceeded,
    GroundplaneError,
    InvalidArgument,
    Unavailable,
)
from groundplane.testing import Proxy, eventually
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.nats, pytest.mark.timeout(120)]

NOTICED_S = 8.0
"""A frozen server is taken for dead after 2 s; a machine under load may take longer to look."""
_numbers = count(1)


@pytest.fixture(scope="module")
def server(own_server_of_module: Callable[..., Running]) -> Running:
    """A NATS of this module's own."""
    return own_server_of_module("nats")


@pytest.fixture
def proxy(server: Running) -> Iterator[Proxy]:
    with Proxy.to("127.0.0.1", server.port) as one:
        yield one


@pytest.fixture
async def link(server: Running) -> AsyncIterator[Link]:
    async with await Link.open(Address.parse(server.url), name="test") as one:
        yield one


@pytest.fixture
async def stream(server: Running) -> str:
    """The name of a stream that takes `<name>.>`."""
    name = f"S{next(_numbers)}"
    async with await Link.open(Address.parse(server.url)) as link:
        await JetStream(link).create_stream(
            StreamConfig(
                name=name, subjects=(f"{name}.>",), allow_direct=True, duplicate_window_s=120, max_msgs_per_subject=1,
                allow_msg_ttl=True, subject_delete_marker_ttl_s=60, allow_rollup_hdrs=True,
            )
        )  # fmt: skip
    return name


async def _kill(server: Running) -> None:
    await asyncio.to_thread(server.kill)


async def _start(server: Running) -> None:
    await asyncio.to_thread(server.start)


# -- the connection


async def test_a_frozen_server_is_noticed_and_publishing_to_it_fails_at_once_and_is_not_made_up_for(
    server: Running, link: Link
) -> None:
    seen: list[Message] = []
    link.subscribe("late", seen.append)
    await link.flush()
    server.pause()
    try:
        await eventually(lambda: not link.is_connected, timeout_s=NOTICED_S)
        assert link.statistics().error
        with pytest.raises(Unavailable, match="nothing was sent") as caught:
            link.publish("late", b"not now")
        assert caught.value.reason == "not_connected"
    finally:
        server.resume()
    await link.connected(NOTICED_S)
    link.publish("late", b"now")
    await eventually(lambda: seen)
    assert [one.payload for one in seen] == [b"now"]
    assert link.statistics().reconnects >= 1


async def test_a_late_pong_after_a_flush_that_was_given_up_does_not_make_the_connection_deaf(
    server: Running, proxy: Proxy
) -> None:
    async with await Link.open(Address.parse(proxy.through(server.url) + "?ping_interval=60")) as link:
        link.subscribe("echo", lambda message: link.publish(message.reply, message.payload))
        await link.flush()
        proxy.stall()
        with pytest.raises(DeadlineExceeded):
            await link.flush(0.1)
        cancelled = asyncio.create_task(link.flush(60))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        proxy.restore()
        assert (await link.request("echo", b"1")).payload == b"1"
        await link.flush()
        assert link.statistics().connects == 1


async def _fill_up(link: Link) -> None:
    while True:
        link.publish("backlog", bytes(500_000))
        await asyncio.sleep(0)


@pytest.mark.parametrize("closed_while_frozen", [False, True])
async def test_a_backlog_to_a_frozen_server_neither_hangs_the_reconnect_nor_the_closing(
    server: Running, closed_while_frozen: bool
) -> None:
    link = await Link.open(Address.parse(server.url + "?pending_bytes_max=8000000"))
    server.pause()
    try:
        with pytest.raises(GroundplaneError) as caught:
            await _fill_up(link)
        assert caught.value.code in ("resource_exhausted", "unavailable")
        if closed_while_frozen:
            async with asyncio.timeout(10):
                await link.aclose()
        await eventually(lambda: not link.is_connected, timeout_s=NOTICED_S)
    finally:
        server.resume()
    if not closed_while_frozen:
        await link.connected(NOTICED_S)
        assert await link.flush() >= 0
        await link.aclose()


async def test_headers_count_against_the_limit_and_the_connection_stays(link: Link) -> None:
    seen: list[int] = []
    link.subscribe("large", lambda message: seen.append(len(message.payload)))
    headers = {"Name": "x" * 100}
    room = link.max_payload - len("NATS/1.0\r\nName: \r\n\r\n") - 100
    link.publish("large", bytes(room), headers=headers)
    with pytest.raises(InvalidArgument, match="with headers") as caught:
        link.publish("large", bytes(room + 1), headers=headers)
    assert caught.value.reason == "payload_too_large"
    await eventually(lambda: seen == [room])
    assert link.statistics().connects == 1


async def test_connecting_to_a_server_that_is_down_or_frozen_ends_in_time(server: Running, proxy: Proxy) -> None:
    address = Address.parse(proxy.through(server.url) + "?connect_timeout=0.5")
    proxy.refuse()
    with pytest.raises(Unavailable) as caught:
        await Link.open(address)
    assert caught.value.reason == "broker_unreachable"
    proxy.restore()
    proxy.pause_accept()
    with pytest.raises(Unavailable) as caught:
        await Link.open(address)
    assert caught.value.reason == "broker_silent"


async def test_a_drain_and_a_close_without_a_connection_return_and_do_not_raise(server: Running, proxy: Proxy) -> None:
    link = await Link.open(Address.parse(proxy.through(server.url)))
    link.subscribe("a", lambda _: None)
    proxy.down()
    await eventually(lambda: not link.is_connected)
    async with asyncio.timeout(10):
        await link.drain()
        await link.aclose()
    assert link.statistics().subscriptions == 0


async def test_calls_under_way_fail_when_the_connection_breaks_and_say_that_they_may_have_happened(
    server: Running, proxy: Proxy
) -> None:
    async with await Link.open(Address.parse(proxy.through(server.url))) as link:
        link.subscribe("silent", lambda _: None)
        waiting = asyncio.create_task(link.request("silent", timeout_s=60))
        await eventually(lambda: link.statistics().requests == 1)
        await link.flush()
        proxy.cut()
        with pytest.raises(Unavailable, match="unknown") as caught:
            await waiting
        assert caught.value.reason == "connection_lost"


@pytest.mark.req("BUS-16.3")
async def test_the_next_server_of_the_address_takes_over(server: Running, own_server: Callable[..., Running]) -> None:
    other = await asyncio.to_thread(own_server, "nats")
    url = f"{other.url},{server.url.partition('://')[2]}"
    async with await Pool.open(Address.parse(url), size=2) as pool:
        assert pool.link().peer.endswith(str(other.port))
        await _kill(other)
        await eventually(
            lambda: all(one.connected and one.reconnects for one in pool.statistics()), timeout_s=NOTICED_S
        )
        assert pool.link().peer.endswith(str(server.port))
        await pool.link().flush()


@pytest.mark.req("BUS-16.1")
async def test_a_pool_skips_dead_links_and_is_unavailable_when_all_are_dead(server: Running, proxy: Proxy) -> None:
    address = Address.parse(proxy.through(server.url) + "?reconnect_wait=0.05&reconnect_jitter=1&ping_interval=60")
    async with await Pool.open(address, size=3) as pool:
        proxy.down()
        await eventually(lambda: not any(link.is_connected for link in pool.links))
        with pytest.raises(Unavailable) as caught:
            pool.link()
        assert (caught.value.reason, caught.value.retryable) == ("not_connected", True)
        proxy.restore()
        await eventually(lambda: all(link.is_connected for link in pool.links))
        proxy.refuse()  # who is connected stays so
        proxy.drop_after(0, times=1)
        pool.links[0].publish("a")
        await eventually(lambda: not pool.links[0].is_connected)
        names = {pool.link().name for _ in range(6)}
        assert names == {link.name for link in pool.links[1:]}
        proxy.restore()


async def test_subscriptions_flow_again_after_kill_9(server: Running, link: Link) -> None:
    seen: list[bytes] = []
    link.subscribe("flow", lambda message: seen.append(message.payload), queue="group")
    await link.flush()
    await _kill(server)
    await _start(server)
    await link.connected(NOTICED_S)
    link.publish("flow", b"1")
    await eventually(lambda: seen == [b"1"])


# -- storing


async def test_a_lost_acknowledgement_never_loses_a_future_and_the_message_is_stored_once(
    server: Running, proxy: Proxy, stream: str, link: Link
) -> None:
    async with await Link.open(Address.parse(proxy.through(server.url))) as through:
        window = PublishWindow(JetStream(through))
        await (await window.put(f"{stream}.first", b"", message_id="first"))
        swallowed = proxy.traffic().swallowed_bytes
        proxy.half_open("to_client")
        acks = [await window.put(f"{stream}.{n}", b"", message_id=f"m{n}") for n in range(100)]
        await eventually(lambda: _holds(link, stream, 101))
        await eventually(lambda: proxy.traffic().swallowed_bytes > swallowed, "the connection has lost an answer")
        proxy.restore()
        done = [await ack for ack in acks]
        assert all(ack.duplicate for ack in done)
        assert sorted(ack.seq for ack in done) == list(range(2, 102))
        assert window.resent >= 100
        await window.aclose()
    assert (await JetStream(link).stream_info(stream)).state.last_seq == 101


async def _holds(link: Link, stream: str, messages: int) -> bool:
    return (await JetStream(link).stream_info(stream)).state.messages == messages


@pytest.mark.req("BUS-09.3")
async def test_an_awaited_publish_whose_acknowledgement_was_lost_is_stored_once(
    server: Running, proxy: Proxy, stream: str, link: Link
) -> None:
    async with await Link.open(Address.parse(proxy.through(server.url) + "?ping_interval=60")) as through:
        proxy.drop_after(0, direction="to_client", times=1)
        ack = await JetStream(through).publish(f"{stream}.a", b"", message_id="one")
        assert (ack.seq, ack.duplicate) == (1, True)
        proxy.drop_after(0, direction="to_client", times=1)
        with pytest.raises(Unavailable) as caught:
            await JetStream(through).publish(f"{stream}.b", b"")
        assert caught.value.reason == "connection_lost"
    assert (await JetStream(link).stream_info(stream)).state.last_seq == 2


async def test_a_condition_whose_answer_was_lost_is_not_tried_again_behind_the_callers_back(
    server: Running, proxy: Proxy, stream: str, link: Link
) -> None:
    subject, condition = f"{stream}.a", {EXPECTED_LAST_SUBJECT_SEQUENCE: "0"}
    async with await Link.open(Address.parse(proxy.through(server.url) + "?ping_interval=60")) as through:
        proxy.drop_after(0, direction="to_client", times=1)
        with pytest.raises(Unavailable):
            await JetStream(through).publish(subject, b"mine", headers=condition, message_id="one")
        await through.connected(NOTICED_S)
        with pytest.raises(Conflict):  # the condition is looked at before the id
            await JetStream(through).publish(subject, b"mine", headers=condition, message_id="one")
    found = await JetStream(link).get_last(stream, subject)
    assert found is not None
    assert (found.payload, found.headers["Nats-Msg-Id"]) == (b"mine", "one")


async def test_what_was_acknowledged_survives_kill_9_and_is_still_known_by_its_id(
    server: Running, stream: str, link: Link
) -> None:
    jetstream = JetStream(link)
    window = PublishWindow(jetstream, timeout_s=60)
    acks = []
    for n in range(300):
        acks.append(await window.put(f"{stream}.{n}", b"", message_id=f"k{n}"))
        if n == 150:
            await _kill(server)
            await _start(server)
    await window.flush()
    assert len({(await ack).seq for ack in acks}) == 300
    await window.aclose()
    assert (await jetstream.publish(f"{stream}.7", b"", message_id="k7")).duplicate
    assert (await jetstream.stream_info(stream)).state.messages == 300


async def test_an_empty_value_is_a_value_and_an_expiry_marker_is_told_apart(stream: str, link: Link) -> None:
    jetstream = JetStream(link)
    await jetstream.publish(f"{stream}.empty", b"")
    empty = await jetstream.get_last(stream, f"{stream}.empty")
    assert empty is not None
    assert (empty.payload, MARKER_REASON in empty.headers) == (b"", False)
    first = await jetstream.publish(f"{stream}.short", b"x", headers={"Nats-TTL": "1"})

    async def marker() -> Stored | None:
        found = await jetstream.get_last(stream, f"{stream}.short")
        return found if found is not None and found.seq > first.seq else None

    gone = await eventually(marker)
    assert gone is not None
    assert gone.headers[MARKER_REASON] == "MaxAge"
    with pytest.raises(Conflict):
        await jetstream.publish(f"{stream}.short", b"y", headers={EXPECTED_LAST_SUBJECT_SEQUENCE: "0"})
    await jetstream.publish(f"{stream}.short", b"y", headers={EXPECTED_LAST_SUBJECT_SEQUENCE: str(gone.seq)})


@pytest.mark.parametrize("ttl", ["0.8", "0", "-1s", "1.0"])
async def test_a_ttl_that_the_server_would_not_keep_is_refused(stream: str, link: Link, ttl: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await JetStream(link).publish(f"{stream}.a", b"", headers={"Nats-TTL": ttl})
    assert caught.value.reason == "ttl_invalid"


# -- consuming


async def _freeze(server: Running, notice: Callable[[], object]) -> None:
    server.pause()
    try:
        await eventually(notice, timeout_s=NOTICED_S)
    finally:
        server.resume()


async def _restart(server: Running, notice: Callable[[], object]) -> None:
    await _kill(server)
    await eventually(notice, timeout_s=NOTICED_S)
    await _start(server)


@pytest.mark.parametrize("break_it", [_freeze, _restart])
async def test_a_pull_knows_that_it_does_not_flow_and_flows_again(
    server: Running, stream: str, link: Link, break_it: Callable[..., object]
) -> None:
    jetstream = JetStream(link)
    await jetstream.create_consumer(stream, ConsumerConfig(durable_name="worker", ack_wait_s=2))
    seen: list[bytes] = []

    def take(message: Message) -> None:
        jetstream.ack(message)
        seen.append(message.payload)
        pull.release()

    pull = Pull(jetstream, stream, "worker", take)
    await jetstream.publish(f"{stream}.a", b"1")
    await eventually(lambda: seen == [b"1"])
    assert pull.flowing
    await break_it(server, lambda: not pull.flowing)  # type: ignore[misc]
    await link.connected(NOTICED_S)
    await jetstream.publish(f"{stream}.b", b"2", message_id="2")
    await eventually(lambda: b"2" in seen)
    await eventually(lambda: pull.flowing)
    await pull.aclose()


async def test_a_pull_behind_a_peer_that_swallows_everything_begins_anew(
    server: Running, proxy: Proxy, stream: str, link: Link
) -> None:
    jetstream = JetStream(link)
    # what went to the swallowed connection, before the server knew that it was gone, comes again after `ack_wait`
    await jetstream.create_consumer(stream, ConsumerConfig(durable_name="worker", ack_wait_s=2))
    async with await Link.open(Address.parse(proxy.through(server.url))) as through:
        seen: list[bytes] = []
        pull = Pull(JetStream(through), stream, "worker", lambda message: seen.append(message.payload))
        await eventually(lambda: pull.requested)
        proxy.half_open()
        await eventually(lambda: not pull.flowing, timeout_s=NOTICED_S)
        await jetstream.publish(f"{stream}.a", b"1")
        proxy.restore()
        await eventually(lambda: seen == [b"1"], timeout_s=NOTICED_S)
        await pull.aclose()


def _is_gone(message: Stored) -> bool:
    return MARKER_REASON in message.headers or message.headers.get("KV-Operation") == "DEL"


async def _next_of(watcher: Watcher) -> Changed | Gone | Synced:
    async with asyncio.timeout(NOTICED_S):
        return await anext(watcher)


@pytest.mark.parametrize("break_it", [_freeze, _restart])
async def test_a_watcher_sees_what_was_stored_while_it_was_deaf(
    server: Running, stream: str, link: Link, break_it: Callable[..., object]
) -> None:
    jetstream = JetStream(link)
    async with Watcher(jetstream, stream, [f"{stream}.>"], is_gone=_is_gone) as watcher:
        assert isinstance(await _next_of(watcher), Synced)
        await jetstream.publish(f"{stream}.a", b"1")
        assert isinstance(await _next_of(watcher), Changed)
        await break_it(server, lambda: not watcher.hearing)  # type: ignore[misc]
        await link.connected(NOTICED_S)
        await jetstream.publish(f"{stream}.b", b"2", message_id="2")
        change = await _next_of(watcher)
        assert isinstance(change, Changed)
        assert change.message.payload == b"2"
        await eventually(lambda: watcher.hearing)


async def test_a_watcher_without_a_connection_says_at_once_that_it_hears_nothing(
    server: Running, proxy: Proxy, stream: str
) -> None:
    async with (
        await Link.open(Address.parse(proxy.through(server.url))) as through,
        Watcher(JetStream(through), stream, [f"{stream}.>"]) as watcher,
    ):
        assert isinstance(await _next_of(watcher), Synced)
        heard: list[bool] = []
        through.on_state(lambda connected: heard.append(watcher.hearing))
        proxy.down()
        await eventually(lambda: heard)
        assert heard[0] is False
        proxy.restore()
        await eventually(lambda: watcher.hearing)


async def test_a_watcher_that_was_cut_off_tells_of_removals_whose_markers_are_gone(
    server: Running, proxy: Proxy, stream: str, link: Link
) -> None:
    jetstream = JetStream(link)
    for name in ("kept", "purged", "deleted"):
        await jetstream.publish(f"{stream}.{name}", b"1")
    async with (
        await Link.open(Address.parse(proxy.through(server.url))) as through,
        Watcher(JetStream(through), stream, [f"{stream}.>"], is_gone=_is_gone) as watcher,
    ):
        while not isinstance(await _next_of(watcher), Synced):
            pass
        proxy.down()
        await eventually(lambda: not through.is_connected)
        await jetstream.purge(stream, subject=f"{stream}.purged")
        await jetstream.publish(f"{stream}.deleted", b"", headers={"KV-Operation": "DEL"})
        await jetstream.publish(f"{stream}.new", b"2")
        proxy.restore()
        events = [await _next_of(watcher) for _ in range(3)]
        told = [one.message.subject if isinstance(one, Changed) else one for one in events]
        last = (await jetstream.stream_info(stream)).state.last_seq
        assert told == [f"{stream}.deleted", f"{stream}.new", Gone(f"{stream}.purged", last)]


async def test_a_watcher_of_a_stream_that_was_made_anew_begins_anew(stream: str, link: Link) -> None:
    jetstream = JetStream(link)
    for _ in range(5):
        await jetstream.publish(f"{stream}.old", b"1")
    async with Watcher(jetstream, stream, [f"{stream}.>"]) as watcher:
        assert isinstance(await _next_of(watcher), Changed)
        assert isinstance(await _next_of(watcher), Synced)
        await jetstream.delete_stream(stream)
        await jetstream.create_stream(StreamConfig(name=stream, subjects=(f"{stream}.>",)))
        await jetstream.publish(f"{stream}.new", b"2")
        events = [await _next_of(watcher) for _ in range(2)]
        assert sorted(_subject(one) for one in events) == [f"{stream}.new", f"{stream}.old"]


def _subject(event: Changed | Gone | Synced) -> str:
    return event.message.subject if isinstance(event, Changed) else event.subject if isinstance(event, Gone) else ""


async def test_a_watcher_whose_consumer_was_deleted_builds_another(stream: str, link: Link) -> None:
    jetstream = JetStream(link)
    async with Watcher(jetstream, stream, [f"{stream}.>"]) as watcher:
        assert isinstance(await _next_of(watcher), Synced)
        [name] = await jetstream.consumer_names(stream)
        await jetstream.delete_consumer(stream, name)
        await jetstream.publish(f"{stream}.a", b"1")
        assert isinstance(await _next_of(watcher), Changed)
        await eventually(lambda: watcher.rebuilt >= 1)
