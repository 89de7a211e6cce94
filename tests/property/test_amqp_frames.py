"""The AMQP client against bytes that nobody should send: cut anywhere, changed, made up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands, decode, encode, frame, header

from amqp_peer import FakeBroker, MemoryTransport, channel_close, connection_close, content, deliver, method
from groundplane.backends.amqp import Address, Connection, Delivery, Message, Properties, encode_properties
from groundplane.backends.amqp import connection as connections
from groundplane.backends.amqp.content import Assembly, read_confirm, read_deliver, read_get_ok, read_return
from groundplane.backends.amqp.frames import (
    HEARTBEAT_FRAME,
    FrameReader,
    content_frames,
    publish_method,
    read_content_header,
    settle_method,
)
from groundplane.backends.amqp.methods import decode_method
from groundplane.backends.amqp.tables import (
    WireError,
    decode_headers,
    decode_properties,
    decode_table,
    encode_table,
)
from groundplane.core.errors import Closed, GroundplaneError, InvalidArgument

FRAME_MAX = 4096
untimed = settings(deadline=None)

names = st.text(min_size=1, max_size=40)
texts = st.text(max_size=60)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.integers(0, 2**32 - 1).map(lambda s: datetime.fromtimestamp(s, UTC))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
tables = st.dictionaries(names, values, max_size=8)


def _valid_frames() -> list[bytes]:
    return [
        HEARTBEAT_FRAME,
        deliver(1, "c", 1, b"payload", kind="order", n=7),
        method(1, commands.Basic.Ack(1, True)),
        method(1, commands.Basic.Nack(1, False)),
        method(1, commands.Basic.Return(312, "NO_ROUTE", "", "work")) + content(1, b"payload"),
        method(1, commands.Basic.Cancel("c")),
        method(0, commands.Connection.Blocked("low on memory")),
        method(0, commands.Connection.Unblocked()),
        channel_close(1, 404, "NOT_FOUND", 60, 40),
        connection_close(320, "CONNECTION_FORCED"),
        deliver(1, "c", 2, b"x" * 9000),
        deliver(1, "c", 3, b""),
    ]


streams = st.lists(st.sampled_from(_valid_frames()), min_size=1, max_size=6).map(b"".join)


@st.composite
def chunks(draw: Any, stream: bytes) -> list[bytes]:
    """The stream in pieces of any size."""
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    ends = [*cuts, len(stream)]
    return [stream[a:b] for a, b in zip([0, *cuts], ends, strict=True)]


@st.composite
def mutated(draw: Any) -> bytes:
    """A valid stream with bytes changed, left out, repeated or cut off; or bytes of no meaning at all."""
    data = bytearray(draw(streams))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "drop", "insert", "cut", "repeat")))
        if kind == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "cut":
            del data[at:]
        else:
            data[at:at] = data[at : at + 30]
    return bytes(data)


def _read(reader: FrameReader, pieces: list[bytes]) -> list[tuple[int, int, bytes]]:
    return [one for piece in pieces for one in reader.feed(piece)]


# -- frames


@untimed
@given(st.data())
def test_a_stream_means_the_same_however_it_is_cut(data: st.DataObject) -> None:
    stream = data.draw(streams)
    whole = _read(FrameReader(FRAME_MAX), [stream])
    assert _read(FrameReader(FRAME_MAX), data.draw(chunks(stream))) == whole
    assert _read(FrameReader(FRAME_MAX), [stream[i : i + 1] for i in range(len(stream))]) == whole


@untimed
@given(mutated() | st.binary(max_size=200), st.data())
def test_broken_frames_are_refused_by_name_and_never_held_beyond_the_agreed_size(
    stream: bytes, data: st.DataObject
) -> None:
    reader = FrameReader(FRAME_MAX)
    for piece in data.draw(chunks(stream)):
        try:
            found = list(reader.feed(piece))
        except WireError:
            return
        assert reader.held_bytes < FRAME_MAX
        assert all(len(payload) <= FRAME_MAX - 8 for _, _, payload in found)


def test_a_frame_that_announces_more_than_was_agreed_is_refused_before_it_arrives() -> None:
    reader = FrameReader(FRAME_MAX)
    with pytest.raises(WireError, match="4294967295 bytes; 4096 were agreed on"):
        list(reader.feed(b"\x03\x00\x01\xff\xff\xff\xff"))
    assert reader.held_bytes == 0


@pytest.mark.parametrize("end", [0x00, 0xCD, 0xCF, 0xFF])
def test_a_frame_that_does_not_end_as_it_must_is_refused(end: int) -> None:
    whole = method(1, commands.Basic.Ack(1))
    with pytest.raises(WireError, match="instead of 0xce"):
        list(FrameReader(FRAME_MAX).feed(whole[:-1] + bytes((end,))))


@pytest.mark.parametrize(
    "table",
    [
        b"\x00\x00\x00\x07\x01aS\x00\x00\x00\x02xx",
        b"\x00\x00\x00\x04\x01al\x00" + bytes(7),
        b"\x00\x00\x00\x07\x01aA\x00\x00\x00\x01t\x01",
        b"\x00\x00\x00\x08\x01aA\x00\x00\x00\x01t\x01",
        b"\x00\x00\x00\x02\x09abcdefghi",
        b"\x00\x00\x00\x02\x01aV",
    ],
)
def test_a_value_that_reaches_beyond_its_table_is_refused_although_the_bytes_are_there(table: bytes) -> None:
    with pytest.raises(WireError):
        decode_headers(b"\x20\x00" + table + bytes(40))


@untimed
@given(st.binary(max_size=200))
def test_no_decoder_of_methods_raises_anything_but_its_own_error(payload: bytes) -> None:
    decoders: tuple[Callable[[bytes], object], ...] = (
        read_deliver, read_get_ok, read_return, read_confirm, read_content_header, decode_method,
    )  # fmt: skip
    for decoder in decoders:
        try:
            decoder(payload)
        except WireError:
            continue


@untimed
@given(st.sampled_from(list(commands.INDEX_MAPPING)), st.binary(max_size=120))
def test_arguments_of_any_method_may_be_nonsense(index: int, arguments: bytes) -> None:
    try:
        assert decode_method(index.to_bytes(4, "big") + arguments).index == index
    except WireError:
        pass


# -- what is written by hand is what pamqp reads, and the other way round


@untimed
@given(st.integers(1, 2047), texts, texts, st.booleans())
def test_a_publish_is_written_as_pamqp_reads_it(channel: int, exchange: str, key: str, mandatory: bool) -> None:
    try:
        data = publish_method(channel, exchange, key, mandatory)
    except InvalidArgument:
        assert max(len(exchange.encode()), len(key.encode())) > 255
        return
    _, number, what = frame.unmarshal(data)
    assert number == channel
    assert isinstance(what, commands.Basic.Publish)
    assert (what.exchange, what.routing_key, what.mandatory, what.immediate) == (exchange, key, mandatory, False)


@untimed
@given(st.binary(max_size=20_000), st.dictionaries(names, texts, max_size=5), st.integers(FRAME_MAX, 9000))
def test_content_is_split_into_frames_of_at_most_the_agreed_size(
    data: bytes, headers: dict[str, str], frame_max: int
) -> None:
    stream = b"".join(content_frames(5, encode_properties(headers, message_id="m"), data, frame_max))
    _, _, first = frame.unmarshal(stream)
    assert isinstance(first, header.ContentHeader)
    assert first.body_size == len(data)
    assert (first.properties.headers or {}, first.properties.message_id) == (headers, "m")
    bodies = [p for kind, _, p in FrameReader(frame_max).feed(stream) if kind == 3]
    assert b"".join(bodies) == data


@untimed
@given(st.integers(1, 2047), st.integers(1, 2**63 - 1), st.booleans(), st.booleans())
def test_settlements_are_written_as_pamqp_reads_them(channel: int, tag: int, multiple: bool, requeue: bool) -> None:
    _, _, ack = frame.unmarshal(settle_method(channel, 80, tag, 1 if multiple else 0))
    assert isinstance(ack, commands.Basic.Ack)
    assert (ack.delivery_tag, ack.multiple) == (tag, multiple)
    _, _, nack = frame.unmarshal(settle_method(channel, 120, tag, multiple | requeue << 1))
    assert isinstance(nack, commands.Basic.Nack)
    assert (nack.delivery_tag, nack.multiple, nack.requeue) == (tag, multiple, requeue)


@untimed
@given(st.text(max_size=60), st.integers(0, 2**63), st.booleans(), texts, texts)
def test_a_delivery_is_read_as_pamqp_wrote_it(
    consumer: str, tag: int, redelivered: bool, exchange: str, key: str
) -> None:
    written = commands.Basic.Deliver(consumer, tag, redelivered, "", key)
    written.exchange = exchange
    try:
        data = frame.marshal(written, 1)
    except (ValueError, TypeError):  # pamqp checks names; texts of more than 255 bytes are nobody's
        return
    (found,) = FrameReader(FRAME_MAX).feed(data)
    delivery = read_deliver(found[2])
    assert (delivery.consumer, delivery.tag, delivery.redelivered) == (consumer, tag, redelivered)
    assert (delivery.exchange, delivery.routing_key) == (exchange, key)


# -- tables and properties


@untimed
@given(tables)
def test_a_table_comes_back_as_it_was(table: dict[str, Any]) -> None:
    data = encode_table(table)
    assert decode_table(data, 0) == (table, len(data))


@untimed
@given(tables)
def test_pamqp_reads_the_tables_that_are_written_by_hand(table: dict[str, Any]) -> None:
    assert decode.field_table(encode_table(table))[1] == table


@untimed
@given(
    st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=40), st.booleans() | texts, max_size=6)
)
def test_tables_of_pamqp_are_read_by_hand(table: dict[str, Any]) -> None:
    assert decode_table(encode.field_table(table), 0)[0] == table


@untimed
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: b"\x20\x00" + data))
@example(b"\x20\x00\x00\x00\x00\x07\x01aA\x00\x00\x00\xff")
@example(b"\x20\x00\x00\x00\x00\x05\x01aS\x00\x00")
@example(b"\x20\x00\x00\x00\x00\x08\x01aF\x00\x00\x00\x09\x01")
@example(b"\x20\x00\x00\x00\x00\x0b\x01aT" + b"\xff" * 8)
def test_broken_properties_are_refused_and_nothing_else_is_raised(data: bytes) -> None:
    for decoder in (decode_properties, decode_headers):
        try:
            decoder(data)
        except WireError:
            continue


def test_nesting_is_bounded_in_both_directions() -> None:
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(InvalidArgument, match="levels"):
        encode_table(deep)
    nested = b""
    for _ in range(2000):
        nested = b"\x01aF" + len(nested).to_bytes(4, "big") + nested
    with pytest.raises(WireError, match="deeper"):
        decode_table(len(nested).to_bytes(4, "big") + nested, 0)


@untimed
@given(
    st.builds(
        Properties,
        content_type=st.none() | texts,
        content_encoding=st.none() | texts,
        headers=st.none() | tables.filter(bool),
        delivery_mode=st.none() | st.sampled_from((1, 2)),
        priority=st.none() | st.integers(0, 255),
        correlation_id=st.none() | texts,
        reply_to=st.none() | texts,
        expiration=st.none() | st.integers(0, 2**40).map(str),
        message_id=st.none() | texts,
        timestamp=st.none() | st.integers(0, 2**40),
        type=st.none() | texts,
        user_id=st.none() | texts,
        app_id=st.none() | texts,
    )
)
def test_properties_come_back_as_they_were(properties: Properties) -> None:
    fields = {name: getattr(properties, name) for name in properties.__struct_fields__}
    data = encode_properties(**fields)
    assert decode_properties(data) == properties
    assert decode_headers(data) == (properties.headers or {})


@untimed
@given(st.none() | tables, st.none() | texts, st.none() | st.integers(0, 2**40).map(str), st.sampled_from((None, 1, 2)))
def test_the_short_way_of_writing_properties_is_the_long_way(
    headers: dict[str, Any] | None, message_id: str | None, expiration: str | None, mode: int | None
) -> None:
    common = {"message_id": message_id, "expiration": expiration, "delivery_mode": mode}
    assert encode_properties(headers, **common) == encode_properties(headers, **common, user_id=None)


@untimed
@given(st.dictionaries(names | st.just("\ud800"), st.binary(max_size=40) | st.just("\udfff") | texts, max_size=4))
def test_names_and_texts_that_are_no_unicode_are_refused_by_name(table: dict[str, Any]) -> None:
    broken = any("\ud800" in key or value == "\udfff" for key, value in table.items())
    if broken:
        with pytest.raises(InvalidArgument, match=r"\\ud"):
            encode_table(table)
    else:
        assert decode.field_table(encode_table(table))[1].keys() == table.keys()


# -- a message out of frames


@untimed
@given(st.lists(st.sampled_from(("header", "body", "empty", "long")), max_size=6), st.integers(0, 3000))
def test_an_assembly_never_holds_more_than_was_announced(parts: list[str], size: int) -> None:
    assembly = Assembly(body_max=2000)
    assembly.begin(Delivery(1, False, "", "q"))
    frames = {
        "header": (2, b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + b"\x00\x00"),
        "body": (3, b"x" * 500),
        "empty": (3, b""),
        "long": (3, b"x" * 2500),
    }
    try:
        for name in parts:
            whole = assembly.add(*frames[name])
            if whole is not None:
                assert len(whole.body) == size <= 2000
                return
    except WireError:
        return
    assert assembly.busy


# -- the whole client


async def _connected(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> tuple[Connection, MemoryTransport]:
    loop = asyncio.get_running_loop()
    made: list[MemoryTransport] = []

    async def create_connection(factory: Callable[[], Any], *_: Any, **__: Any) -> tuple[Any, Any]:
        protocol = factory()
        made.append(MemoryTransport(protocol, broker))
        protocol.connection_made(made[0])
        return made[0], protocol

    monkeypatch.setattr(loop, "create_connection", create_connection)
    connection = await Connection.open(Address.parse("amqp://127.0.0.1/?frame_max=4096"), name="fuzz")
    return connection, made[0]


def _run(work: Callable[[Connection, MemoryTransport], Awaitable[None]], broker: FakeBroker) -> None:
    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connections, "CLOSE_S", 0.05)  # a frame that is never whole swallows the answer to a close
            connection, transport = await _connected(broker, patch)
            await work(connection, transport)
            await connection.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


NAMED = {"malformed_frame", "connection_forced", "broker_error", "exchange_not_found"}


@given(mutated() | st.binary(max_size=100), st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_peer_sends_the_client_lives_on_or_ends_with_a_named_error_and_nobody_waits(
    stream: bytes, data: st.DataObject
) -> None:
    pieces = data.draw(chunks(stream))

    async def work(connection: Connection, transport: MemoryTransport) -> None:
        channel = await connection.channel(confirms=True)
        await channel.consume("work", lambda delivery: None)
        channel._consumers["c"] = next(iter(channel._consumers.values()))  # the streams name their consumer so
        waiting: list[asyncio.Future[Any]] = [
            channel.publish("", "work", b"payload"),
            channel.publish_batch([Message("", "work", b"payload"), Message("x", "y", b"")]),
        ]
        for piece in pieces:
            transport.arrive(piece)
            await asyncio.sleep(0)
        if connection.error is not None:
            assert connection.error.reason, repr(connection.error)
            assert connection.error.code != "internal" or connection.error.reason == "protocol_error"
            assert all(future.done() for future in waiting)
            assert not channel.is_open
            with pytest.raises(GroundplaneError):
                channel.publish("", "work", b"more")
        elif channel.error is not None:
            assert all(future.done() for future in waiting)
        await connection.aclose()
        assert all(future.done() for future in waiting)
        for future in waiting:
            error = future.exception()
            assert error is None or isinstance(error, GroundplaneError)
        with pytest.raises(Closed if connection.error is None else GroundplaneError):
            await connection.channel()

    _run(work, FakeBroker(Basic_Publish=b""))


@given(mutated() | st.binary(max_size=100), st.sampled_from(("greeting", "Connection.StartOk", "Connection.Open")))
@settings(max_examples=150, deadline=None)
def test_whatever_answers_a_login_opening_ends_at_once_with_a_named_error_or_in_time(stream: bytes, when: str) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            broker = FakeBroker()
            broker.answers[when] = stream
            url = Address.parse("amqp://127.0.0.1/?connect_timeout=0.1")
            began = loop.time()

            async def create_connection(factory: Callable[[], Any], *_: Any, **__: Any) -> tuple[Any, Any]:
                protocol = factory()
                transport = MemoryTransport(protocol, broker)
                protocol.connection_made(transport)
                return transport, protocol

            patch.setattr(loop, "create_connection", create_connection)
            with pytest.raises(GroundplaneError) as caught:
                await Connection.open(url, name="fuzz")
            assert caught.value.reason
            assert caught.value.code != "internal" or caught.value.reason == "protocol_error"
            assert loop.time() - began < 10

    asyncio.run(run())
