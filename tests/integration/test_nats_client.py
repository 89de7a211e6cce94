"""The NATS client against a real server: what it promises about messages, and what it calls the server's refusals."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from groundplane.backends.nats import (
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    Address,
    Changed,
    ConsumerConfig,
    JetStream,
    Link,
    Message,
    Pool,
    PublishWindow,
    Pull,
    StreamConfig,
    Synced,
    Watcher,
)
from groundplane.backends.nats.burst import Burst
from groundplane.core.errors import (
    Closed,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from groundplane.testing import eventually
from groundplane.testing.servers import certificates
from groundplane.testing.servers.contract import Running

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

EVENTS = StreamConfig(name="EVENTS", subjects=("events.>",), allow_direct=True, duplicate_window_s=120)


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[Link]:
    async with await Link.open(Address.parse(nats_url), name="test") as one:
        yield one


@pytest.fixture
async def jetstream(link: Link) -> JetStream:
    one = JetStream(link)
    await one.create_stream(EVENTS)
    return one


def _echo(link: Link, subject: str, queue: str = "") -> list[Message]:
    seen: list[Message] = []

    def answer(message: Message) -> None:
        seen.append(message)
        link.publish(message.reply, message.payload, headers=message.headers)

    link.subscribe(subject, answer, queue=queue)
    return seen


# -- core


async def test_a_request_is_answered_with_payload_and_headers(link: Link) -> None:
    _echo(link, "echo")
    answer = await link.request("echo", b"\0\r\nbytes", headers={"Trace": "ä 1"})
    assert (answer.payload, answer.headers) == (b"\0\r\nbytes", {"Trace": "ä 1"})
    assert answer.status == 0


async def test_many_requests_at_once_each_get_their_own_answer(link: Link) -> None:
    _echo(link, "echo")
    answers = await asyncio.gather(*(link.request("echo", str(n).encode()) for n in range(500)))
    assert [one.payload for one in answers] == [str(n).encode() for n in range(500)]
    assert link.statistics().requests == 0


async def test_a_subject_that_nobody_serves_is_told_at_once(link: Link) -> None:
    with pytest.raises(Unavailable, match="nobody serves") as caught:
        await link.request("nobody", timeout_s=30)
    assert (caught.value.reason, caught.value.retryable) == ("no_responder", False)


async def test_an_answer_that_does_not_come_ends_in_time_and_a_late_one_is_counted(link: Link) -> None:
    asked: list[Message] = []
    link.subscribe("silent", asked.append)
    with pytest.raises(DeadlineExceeded, match=r"silent.*0\.1 s"):
        await link.request("silent", timeout_s=0.1)
    await eventually(lambda: asked)
    link.publish(asked[0].reply, b"late")
    await eventually(lambda: link.statistics().replies_late == 1)


async def test_a_queue_group_shares_messages_and_an_unsubscribed_member_gets_none(link: Link) -> None:
    members = [[], []]  # type: list[list[Message]]
    subscriptions = [link.subscribe("work", one.append, queue="workers") for one in members]
    await subscriptions[0].confirmed()
    for _ in range(200):
        link.publish("work")
    await eventually(lambda: sum(map(len, members)) == 200)
    assert min(map(len, members)) > 20
    subscriptions[0].unsubscribe()
    await link.flush()
    before = len(members[0])
    for _ in range(50):
        link.publish("work")
    await eventually(lambda: sum(map(len, members)) == 250)
    assert len(members[0]) == before


async def test_a_callback_that_raises_does_not_make_others_deaf(link: Link) -> None:
    def fail(_: Message) -> None:
        raise RuntimeError("mine")

    bad = link.subscribe("both", fail)
    good: list[Message] = []
    link.subscribe("both", good.append)
    for _ in range(3):
        link.publish("both")
    await eventually(lambda: len(good) == 3)
    assert isinstance(bad.failure, RuntimeError)
    assert link.statistics().callback_failures == 3


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a\tb"])
async def test_a_subject_that_would_break_the_protocol_is_refused(link: Link, subject: str) -> None:
    for call in (link.publish, lambda one: link.subscribe(one, print)):
        with pytest.raises(InvalidArgument, match="subject"):
            call(subject)
    await link.flush()


@pytest.mark.parametrize("headers", [{"a b": "1"}, {"a": "1\r\n2"}, {"": "1"}, {"a": " edge"}])
async def test_headers_that_would_not_arrive_as_they_are_are_refused(link: Link, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        link.publish("a", headers=headers)


async def test_a_closed_link_says_so_and_what_waited_is_told(nats_url: str) -> None:
    link = await Link.open(Address.parse(nats_url))
    link.subscribe("silent", lambda _: None)
    waiting = asyncio.create_task(link.request("silent", timeout_s=60))
    await eventually(lambda: link.statistics().requests == 1)
    await asyncio.gather(link.aclose(), link.aclose())
    for call in (waiting, link.request("a"), link.flush(), link.connected(1)):
        with pytest.raises(Closed):
            await call
    with pytest.raises(Closed):
        link.publish("a")


async def test_replies_of_handlers_that_still_run_are_not_lost_by_a_drain(nats_url: str, link: Link) -> None:
    server = await Link.open(Address.parse(nats_url))
    go, tasks = asyncio.Event(), set()  # type: tuple[asyncio.Event, set[asyncio.Task[None]]]

    async def handle(message: Message) -> None:
        await go.wait()
        server.publish(message.reply, b"done")

    server.subscribe("slow", lambda message: tasks.add(asyncio.create_task(handle(message))))
    await server.flush()
    waiting = [asyncio.create_task(link.request("slow", timeout_s=10)) for _ in range(5)]
    await eventually(lambda: len(tasks) == 5)
    await server.drain()
    with pytest.raises(Unavailable):
        await link.request("slow")
    go.set()
    await asyncio.gather(*tasks)
    await server.aclose()
    assert [(await one).payload for one in waiting] == [b"done"] * 5


# -- login


async def test_a_wrong_password_is_refused_and_never_shown(nats_url: str) -> None:
    user = nats_url.partition("://")[2].partition(":")[0]
    wrong = nats_url.replace(f":{user}@", ":wr0ngpassword@")
    with pytest.raises(PermissionDenied) as caught:
        await Link.open(Address.parse(wrong))
    assert caught.value.reason == "login_refused"
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("greeting", [b"", b"220 mail.example ESMTP\r\n", b"\1\2\3" * 9, b"INFO {no json}\r\n"])
async def test_what_is_no_nats_is_told_in_time(greeting: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable) as caught:
            await Link.open(Address.parse(f"nats://127.0.0.1:{port}?connect_timeout=0.3"))
    assert caught.value.reason in ("broker_silent", "malformed_frame", "broker_unreachable")


# -- JetStream


async def test_a_message_id_is_stored_once(jetstream: JetStream) -> None:
    first = await jetstream.publish("events.a", b"1", message_id="one")
    again = await jetstream.publish("events.a", b"1", message_id="one")
    assert (first.seq, first.duplicate, again.seq, again.duplicate) == (1, False, 1, True)


async def test_direct_gets_tell_what_is_stored_and_what_is_not(jetstream: JetStream) -> None:
    for n in range(3):
        await jetstream.publish(f"events.{n}", str(n).encode(), headers={"N": str(n)})
    last = await jetstream.get_last("EVENTS", "events.1")
    assert last is not None
    assert (last.subject, last.seq, last.payload, last.headers["N"]) == ("events.1", 2, b"1", "1")
    assert await jetstream.get_last("EVENTS", "events.none") is None
    assert await jetstream.get("EVENTS", 99) is None
    following = await jetstream.get_next("EVENTS", "events.>", 3)
    assert following is not None
    assert following.seq == 3


async def test_the_last_of_many_subjects_come_together_however_many(jetstream: JetStream) -> None:
    async with _window(jetstream) as window:
        for n in range(1500):
            await window.put(f"events.{n}", bytes(2000), message_id=str(n))
    wanted = [f"events.{n}" for n in range(0, 1500, 2)]
    found = await jetstream.get_last_many("EVENTS", [*wanted, "events.none"])
    assert sorted(one.subject for one in found) == sorted(wanted)
    assert await jetstream.get_last_many("EVENTS", ["events.none"]) == []
    with pytest.raises(GroundplaneError) as caught:
        await jetstream.get_last_many("EVENTS", ["events.*"])
    assert caught.value.code == "resource_exhausted"


async def test_large_answers_come_in_parts_and_are_whole(jetstream: JetStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as the server sends by itself is as much as it lets wait for a slow reader, whom it drops then."""
    collect, parts = Link.collect, list[list[Message]]()

    async def collected(link: Link, *more: Any, **named: Any) -> list[Message]:
        found = await collect(link, *more, **named)
        parts.append(list(found))
        return found

    monkeypatch.setattr(Link, "collect", collected)
    for n in range(80):
        await jetstream.publish(f"events.{n}", bytes(1_000_000))
    found = await jetstream.get_last_many("EVENTS", [f"events.{n}" for n in range(80)])
    assert len({one.subject for one in found}) == len(found) == 80
    assert [one.seq for one in await jetstream.get_batch("EVENTS", "events.*", batch=80)] == list(range(1, 81))
    assert max(sum(len(one.payload) for one in part) for part in parts) < 10_000_000


async def test_a_subject_that_is_stored_anew_between_two_parts_is_found(
    jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StreamConfig(name="LATEST", subjects=("latest.>",), max_msgs_per_subject=1, allow_direct=True)
    await jetstream.create_stream(config)
    for n in range(30):
        await jetstream.publish(f"latest.{n}", bytes(1_000_000))
    collect, parts = Link.collect, list[int]()

    async def collected(link: Link, *more: Any, **named: Any) -> list[Message]:
        found = await collect(link, *more, **named)
        if not parts:
            await jetstream.publish("latest.29", b"anew")
            await jetstream.publish("latest.0", b"anew")
        parts.append(len(found))
        return found

    monkeypatch.setattr(Link, "collect", collected)
    found = await jetstream.get_last_many("LATEST", [f"latest.{n}" for n in range(30)])
    assert len(parts) > 1
    assert [one.subject for one in found] == [f"latest.{n}" for n in (*range(1, 29), 29, 0)]
    assert [one.payload for one in found[-2:]] == [b"anew", b"anew"]


async def test_a_stream_is_changed_where_it_differs_and_counted(jetstream: JetStream) -> None:
    await jetstream.ensure_stream(StreamConfig(name="EVENTS", subjects=("events.>", "more.>"), max_msgs=10))
    await jetstream.publish("more.a", b"")
    info = await jetstream.stream_info("EVENTS", subjects=">")
    assert (info.config["max_msgs"], info.state.subjects) == (10, {"more.a": 1})
    assert info.config["allow_direct"]
    assert await jetstream.purge("EVENTS", subject="more.>") == 1
    assert await jetstream.stream_names() == ["EVENTS"]
    await jetstream.delete_stream("EVENTS")
    assert await jetstream.stream_names() == []


async def test_refusals_have_their_codes(jetstream: JetStream) -> None:
    await jetstream.publish("events.a", b"")
    wrong = {EXPECTED_LAST_SUBJECT_SEQUENCE: "7"}
    for call, error, reason in (
        (jetstream.stream_info("NONE"), NotFound, "stream_not_found"),
        (jetstream.consumer_info("EVENTS", "none"), NotFound, "consumer_not_found"),
        (jetstream.publish("events.a", b"", headers=wrong), Conflict, "wrong_sequence"),
        (jetstream.publish("events.a", b"", headers={"Nats-TTL": "1"}), Unsupported, "ttl_disabled"),
        (_make(jetstream, "OTHER", "events.a"), FailedPrecondition, "subjects_overlap"),
        (_make(jetstream, "EVENTS", "x"), FailedPrecondition, "stream_exists_differently"),
        (_make(jetstream, "R3", "x", replicas=3), FailedPrecondition, "not_a_cluster"),
        (jetstream.stream_info("a.b"), InvalidArgument, ""),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            await call
        assert caught.value.reason == reason


async def _make(jetstream: JetStream, name: str, subject: str, *, replicas: int = 1) -> None:
    await jetstream.create_stream(StreamConfig(name=name, subjects=(subject,), num_replicas=replicas))


def _window(jetstream: JetStream) -> _Closing:
    return _Closing(jetstream)


class _Closing:
    def __init__(self, jetstream: JetStream) -> None:
        self._window = PublishWindow(jetstream)

    async def __aenter__(self) -> PublishWindow:
        return self._window

    async def __aexit__(self, *_: object) -> None:
        await self._window.aclose()


async def test_a_window_of_publishes_ends_each_with_its_own_answer(jetstream: JetStream) -> None:
    async with _window(jetstream) as window:
        acks = [await window.put("events.a", b"", message_id=f"id-{n}") for n in range(1200)]
        lost = await window.put("elsewhere", b"", message_id="lost")
        await window.flush()
        assert [ack.result().seq for ack in acks] == list(range(1, 1201))
        with pytest.raises(Unavailable, match="no stream takes"):
            lost.result()
        with pytest.raises(InvalidArgument, match="payload"):
            await window.put("events.a", bytes(2**20 + 1), message_id="large")
        assert len(window) == 0


async def test_a_pull_delivers_all_and_holds_no_more_than_its_window(jetstream: JetStream) -> None:
    async with _window(jetstream) as window:
        for n in range(300):
            await window.put("events.a", str(n).encode(), message_id=str(n))
    await jetstream.create_consumer("EVENTS", ConsumerConfig(durable_name="worker"))
    held: list[Message] = []
    pull = Pull(jetstream, "EVENTS", "worker", held.append, window=50)
    await eventually(lambda: len(held) == 50)
    await jetstream.link.flush()
    assert len(held) == 50
    seen = []
    while len(seen) < 300:
        await eventually(lambda: held)
        message = held.pop(0)
        seen.append(message.payload)
        jetstream.ack(message)
        pull.release()
    assert seen == [str(n).encode() for n in range(300)]
    await eventually(lambda: pull.requested > 0 and pull.flowing)
    await pull.aclose()
    assert (await jetstream.consumer_info("EVENTS", "worker")).num_ack_pending == 0


async def test_a_pull_makes_its_consumer_again_when_it_is_gone(jetstream: JetStream) -> None:
    made: list[int] = []

    async def make() -> None:
        made.append(1)
        await jetstream.create_consumer("EVENTS", ConsumerConfig(durable_name="worker"))

    seen: list[Message] = []

    def take(message: Message) -> None:
        seen.append(message)
        jetstream.ack(message)
        pull.release()

    pull = Pull(jetstream, "EVENTS", "worker", take, make=make)
    await jetstream.publish("events.a", b"1")
    await eventually(lambda: len(seen) == 1)
    await jetstream.link.flush()
    await jetstream.delete_consumer("EVENTS", "worker")
    await eventually(lambda: len(made) == 2)
    await jetstream.publish("events.a", b"2")
    await eventually(lambda: any(one.payload == b"2" for one in seen))
    await pull.aclose()


async def test_a_watcher_tells_what_is_there_and_then_what_comes(jetstream: JetStream) -> None:
    await jetstream.publish("events.a", b"1")
    await jetstream.publish("events.a", b"2")
    async with Watcher(jetstream, "EVENTS", ["events.>"]) as watcher:
        first, synced = await anext(watcher), await anext(watcher)
        assert isinstance(first, Changed)
        assert (first.message.payload, first.message.seq) == (b"2", 2)
        assert isinstance(synced, Synced)
        await jetstream.publish("events.b", b"3")
        change = await anext(watcher)
        assert isinstance(change, Changed)
        assert (change.message.subject, change.message.seq) == ("events.b", 3)
        assert watcher.hearing
    with pytest.raises(StopAsyncIteration):
        await anext(watcher)
    await eventually(lambda: _no_consumers(jetstream))


async def _no_consumers(jetstream: JetStream) -> bool:
    return await jetstream.consumer_names("EVENTS") == []


async def test_a_slow_reader_of_a_watcher_gets_all_in_order(jetstream: JetStream) -> None:
    async with Watcher(jetstream, "EVENTS", ["events.>"]) as watcher:
        assert isinstance(await anext(watcher), Synced)
        async with _window(jetstream) as window:
            for n in range(3000):
                await window.put("events.a", bytes(10_000), message_id=str(n))
        seen = [0]
        while seen[-1] < 3000:
            event = await anext(watcher)
            assert isinstance(event, Changed)
            seen.append(event.message.seq)
        assert seen == (sorted(set(seen)) if watcher.rebuilt else list(range(3001)))


async def test_a_stream_that_is_missing_is_told_to_who_watches_it(link: Link) -> None:
    with pytest.raises(NotFound) as caught:
        async with Watcher(JetStream(link), "NONE", [">"]):
            pass
    assert caught.value.reason == "stream_not_found"


# -- pool


async def test_a_pool_rotates_over_its_links(nats_url: str) -> None:
    async with await Pool.open(Address.parse(nats_url), size=3, name="pool") as pool:
        assert [pool.link().name for _ in range(4)] == ["pool-1", "pool-2", "pool-3", "pool-1"]
        [state] = pool.pools()
        assert (state.backend, state.idle, state.size_max) == ("nats", 3, 3)
    with pytest.raises(Closed):
        pool.link()


# -- a server with other ways in


SEED = "SUAEL6GG2L2HIF7DUGZJGMRUFKXELGGYFMHF76UO2AYBG3K4YLWR3FKC2Q"
PUBLIC = "UD6OU4D3CIOGIDZVL4ANXU3NWXOW5DCDE2YPZDBHPBXCVKHSODUA4FKI"


async def test_a_key_a_token_and_permissions(own_server: Callable[..., Running], tmp_path: Path) -> None:
    allowed = {"publish": ["open.>", "_INBOX.>"], "subscribe": ["open.>", "_INBOX.>"]}
    key = {"nkey": PUBLIC, "permissions": allowed}
    config = {"accounts": {"ONE": {"users": [key]}}, "no_auth_user": None}
    server = await asyncio.to_thread(own_server, "nats", config=config)
    path = tmp_path / "user.nk"
    path.write_text(SEED)
    async with await Link.open(Address.parse(f"{server.url}?nkey={path}")) as link:
        link.subscribe("open.echo", lambda message: link.publish(message.reply, message.payload))
        assert (await link.request("open.echo", b"1")).payload == b"1"
        with pytest.raises(PermissionDenied, match=r"shut\.a") as caught:
            await link.request("shut.a", timeout_s=10)
        assert caught.value.reason == "access_refused"
        with pytest.raises(PermissionDenied, match=r"shut\.b"):
            await link.subscribe("shut.b", lambda _: None).confirmed()
        assert link.statistics().connects == 1
    with pytest.raises(PermissionDenied):
        await Link.open(Address.parse(server.url))


async def test_a_token_opens_what_asks_for_one(own_server: Callable[..., Running]) -> None:
    config = {"accounts": None, "no_auth_user": None, "authorization": {"token": "t0ken"}}
    server = await asyncio.to_thread(own_server, "nats", config=config)
    async with await Link.open(Address.parse(server.url.replace("://", "://t0ken@"))) as link:
        assert await link.flush() >= 0
    with pytest.raises(PermissionDenied) as caught:
        await Link.open(Address.parse(server.url.replace("://", "://wr0ng@")))
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("first", [False, True])
async def test_tls_is_agreed_on_and_its_lack_is_refused(
    own_server: Callable[..., Running], nats_url: str, tmp_path: Path, first: bool
) -> None:
    files = tmp_path / "tls"
    certificates.make(files)
    tls = {"cert_file": str(files / "server.pem"), "key_file": str(files / "server.key"), "handshake_first": first}
    server = await asyncio.to_thread(own_server, "nats", config={"tls": tls})
    url = server.url.replace("nats://", "tls://") + f"?tls_first={'on' if first else 'off'}"
    async with await Link.open(Address.parse(f"{url}&cafile={files / 'ca.pem'}")) as link:
        link.subscribe("echo", lambda message: link.publish(message.reply, message.payload))
        assert len((await link.request("echo", bytes(900_000))).payload) == 900_000
    with pytest.raises(FailedPrecondition, match="certificate") as caught:
        await Link.open(Address.parse(url))
    assert caught.value.reason == "tls_failed"
    with pytest.raises(FailedPrecondition, match="offers no TLS") as caught:
        await Link.open(Address.parse(nats_url.replace("nats://", "tls://")))
    assert caught.value.reason == "tls_failed"


def _nkey(kind: int, raw: bytes) -> str:
    checked = bytes([kind << 3]) + raw
    return base64.b32encode(checked + binascii.crc_hqx(checked, 0).to_bytes(2, "little")).decode().rstrip("=")


def _seed(kind: int, key: Ed25519PrivateKey) -> str:
    checked = bytes([18 << 3 | kind >> 2, (kind & 3) << 6]) + key.private_bytes_raw()
    return base64.b32encode(checked + binascii.crc_hqx(checked, 0).to_bytes(2, "little")).decode().rstrip("=")


def _jwt(signer: Ed25519PrivateKey, issuer: str, subject: str, claims: dict[str, object]) -> str:
    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    body = {"jti": "1", "iat": 1, "iss": issuer, "sub": subject, "name": "test", "nats": {**claims, "version": 2}}
    head = part(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    text = f"{head}.{part(json.dumps(body).encode())}"
    return f"{text}.{part(signer.sign(text.encode()))}"


async def test_a_creds_file_opens_a_server_that_trusts_its_operator(
    own_server: Callable[..., Running], tmp_path: Path
) -> None:
    operator, account, user = (Ed25519PrivateKey.generate() for _ in range(3))
    names = {
        kind: _nkey(kind, key.public_key().public_bytes_raw())
        for kind, key in ((14, operator), (0, account), (20, user))
    }
    free = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1,
            "leaf": -1}  # fmt: skip
    config = {
        "accounts": None, "no_auth_user": None, "jetstream": None, "resolver": "MEMORY",
        "operator": _jwt(operator, names[14], names[14], {"type": "operator"}),
        "resolver_preload": {names[0]: _jwt(operator, names[14], names[0], {"type": "account", "limits": free})},
    }  # fmt: skip
    server = await asyncio.to_thread(own_server, "nats", config=config)
    limits = {"type": "user", "subs": -1, "data": -1, "payload": -1}
    path = tmp_path / "user.creds"
    parts = (("NATS USER JWT", _jwt(account, names[0], names[20], limits)), ("USER NKEY SEED", _seed(20, user)))
    path.write_text("".join(f"-----BEGIN {name}-----\n{text}\n------END {name}------\n\n" for name, text in parts))
    async with await Link.open(Address.parse(f"{server.url}?creds={path}")) as link:
        link.subscribe("echo", lambda message: link.publish(message.reply, message.payload))
        assert (await link.request("echo", b"1")).payload == b"1"
    path.write_text(path.read_text().replace(_seed(20, user), _seed(20, Ed25519PrivateKey.generate())))
    with pytest.raises(PermissionDenied) as caught:
        await Link.open(Address.parse(f"{server.url}?creds={path}"))
    assert caught.value.reason == "login_refused"


async def test_a_burst_is_answered_in_its_order_and_never_has_more_under_way_than_its_window(link: Link) -> None:
    most = 0

    def answer(message: Message) -> None:
        nonlocal most
        most = max(most, link.statistics().requests)
        link.publish(message.reply, message.payload)

    link.subscribe("burst.echo", answer)
    requests = [("burst.echo", str(number).encode(), b"") for number in range(200)]
    answers = await Burst(link, what="echoes", window=16, timeout_s=30).run(requests)
    assert [one.payload for one in answers] == [payload for _, payload, _ in requests]
    assert most <= 16
    assert link.statistics().requests == 0


async def test_a_burst_ends_with_the_first_failure_and_leaves_nothing_waiting(link: Link) -> None:
    link.subscribe("burst.deaf", lambda _: None)
    with pytest.raises(DeadlineExceeded) as late:
        await Burst(link, what="the deaf", window=4, timeout_s=0.1).run([("burst.deaf", b"", b"")] * 8)
    assert late.value.reason == "broker_slow"
    assert link.statistics().requests == 0
    with pytest.raises(InvalidArgument):
        await Burst(link, what="spaces", window=4, timeout_s=30).run([("burst.deaf", b"", b""), ("a b", b"", b"")])
    assert link.statistics().requests == 0
    burst = asyncio.create_task(Burst(link, what="the deaf", window=4, timeout_s=30).run([("burst.deaf", b"", b"")]))
    await eventually(lambda: link.statistics().requests == 1)
    await link.aclose()
    with pytest.raises(Closed):
        await burst
