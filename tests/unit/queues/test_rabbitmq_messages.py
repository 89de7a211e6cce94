"""What a message of the queues is on the wire of RabbitMQ, and which attempt a delivery is."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.backends.amqp import Message, encode_properties
from groundplane.backends.amqp.errors import from_reply
from groundplane.backends.amqp.tables import decode_properties
from groundplane.core.errors import ErrorRecord, FailedPrecondition, Unavailable
from groundplane.queues import OutgoingMessage
from groundplane.queues.drivers.rabbitmq import messages
from groundplane.queues.drivers.rabbitmq.link import _batches, check_is_missing
from groundplane.queues.drivers.rabbitmq.messages import Note
from groundplane.queues.drivers.rabbitmq.names import DELIVERY_LIMIT, Names
from groundplane.queues.drivers.rabbitmq.returns import Returned, Returns, counts_returns

pytestmark = [pytest.mark.req("QUEUE-06", "QUEUE-14.1")]

NAMES = Names("acme")


class Delivered:
    """What the client hands over."""

    def __init__(self, properties: bytes, body: bytes = b"", *, redelivered: bool = False, **extra: Any) -> None:
        self.properties = decode_properties(properties)
        self.headers = {**(self.properties.headers or {}), **extra}
        self.body = body
        self.redelivered = redelivered
        self.routing_key = "acme:q"


def sent(**fields: Any) -> tuple[Note, Delivered]:
    """A message as it is sent, and as it comes."""
    message = OutgoingMessage(**{"queue": "q", "id": "m", "payload": b"\xff", **fields})
    note = messages.first_note(message, 1_000)
    wire = messages.encode("groundplane", "acme:q", note, message.payload)
    return note, Delivered(wire.properties, wire.body)


@given(
    st.text(min_size=1, max_size=255),
    st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=4),
    st.integers(1, 1000),
)
def test_a_message_comes_as_it_was_sent(name: str, headers: dict[str, str], attempt: int) -> None:
    note, delivered = sent(id=name, headers=headers, attempt=attempt, dedup_key="k")
    assert messages.note_of(delivered) == note  # type: ignore[arg-type]
    assert (note.id, note.headers, note.attempt, note.dedup_key, note.enqueued_at) == (
        name,
        headers,
        attempt,
        "k",
        1000,
    )
    assert delivered.properties.message_id in (name, None)
    assert delivered.properties.delivery_mode == 2


@given(st.binary(max_size=70_000), st.text(min_size=1, max_size=255))
def test_properties_are_the_bytes_that_the_client_would_write(stored: bytes, name: str) -> None:
    message_id = name if len(name.encode()) <= 255 else None
    assert messages.properties(stored, name.encode()) == encode_properties({"gp": stored}, message_id=message_id)


def test_a_delay_is_never_rounded_down() -> None:
    assert sent(delay_s=0.0001)[0].due_at == 1_001
    assert sent(delay_s=1.0)[0].due_at == 2_000
    assert sent()[0].due_at == 0


def test_copies_of_one_process_sort_in_the_order_of_publishing() -> None:
    copies = [messages.new_copy(now) for now in (5, 5, 7, 6, 7)]  # the clock went back
    assert all(a < b for a, b in itertools.pairwise(copies))
    assert Note(1, copies[2], "m", 1, 0).since >= 7


def test_a_copy_for_the_next_attempt_keeps_what_it_is_and_is_a_new_copy() -> None:
    note, _ = sent(headers={"traceparent": "00-a-b-01"}, dedup_key="k")
    error = ErrorRecord("internal", "it broke")
    again = messages.again(note, now_ms=5_000, delay_s=2, attempt=2, error=error)
    assert (again.id, again.headers, again.dedup_key, again.enqueued_at) == ("m", note.headers, "k", 1_000)
    assert (again.attempt, again.due_at, again.error) == (2, 7_000, error)
    assert again.copy > note.copy
    moved = messages.moved(again, repeat=True)
    assert (moved.due_at, moved.repeat, moved.attempt) == (7_000, True, 2)
    assert moved.copy > again.copy


def test_headers_of_the_broker_are_never_taken_over() -> None:
    delivered = Delivered(encode_properties({"x-death": "again", "a": "b", "n": 1}, message_id="theirs"))
    note = messages.note_of(delivered)  # type: ignore[arg-type]
    assert (note.id, note.headers, note.attempt) == ("theirs", {"a": "b"}, 1)


def test_a_newer_note_is_refused_by_name_and_one_with_more_fields_is_read() -> None:
    note, _ = sent()
    values = msgspec.to_builtins(note, builtin_types=(bytes,))
    more = encode_properties({"gp": msgspec.msgpack.encode([*values, "new"])})
    assert messages.note_of(Delivered(more)) == note  # type: ignore[arg-type]
    for newer in ([2, *values[1:]], [2, "other"]):
        with pytest.raises(FailedPrecondition) as caught:
            messages.note_of(Delivered(encode_properties({"gp": msgspec.msgpack.encode(newer)})))  # type: ignore[arg-type]
        assert caught.value.reason == "schema_newer"


@pytest.mark.parametrize(
    "stored", [b"\xc1", b"", b"\x90", msgspec.msgpack.encode(["1"]), msgspec.msgpack.encode([1, 2])]
)
def test_a_message_with_somebody_elses_note_is_a_foreign_one_and_holds_up_nobody(stored: bytes) -> None:
    delivered = Delivered(encode_properties({"gp": stored, "a": "b"}, message_id="theirs"))
    note = messages.note_of(delivered)  # type: ignore[arg-type]
    assert (note.id, note.headers, note.attempt) == ("theirs", {"a": "b"}, 1)


def test_the_count_is_that_of_the_broker() -> None:
    note, _ = sent()
    properties = messages.encode("e", "k", note, b"").properties
    assert messages.count_of(Delivered(properties)) == 0  # type: ignore[arg-type]
    assert messages.count_of(Delivered(properties, **{"x-delivery-count": 3})) == 3  # type: ignore[arg-type]


def returns(*records: Returned) -> Returns:
    """What was handed back, as it is known after reading."""
    known = Returns.__new__(Returns)
    known._known = {}
    for record in records:
        known._fold(msgspec.msgpack.encode([record]))
    return known


@pytest.mark.parametrize(
    ("records", "attempt", "count", "expected"),
    [
        ([], 1, 0, (1, False)),
        ([], 1, 2, (3, True)),  # crashed twice
        ([], 2, 1, (3, True)),  # retried once, crashed once
        ([(1, 1, False)], 1, 1, (1, True)),  # handed back by who had seen it
        ([(1, 1, True)], 1, 1, (1, False)),  # handed back out of a buffer
        ([(1, 1, True)], 1, 2, (2, True)),  # and crashed afterwards
        ([(1, 1, False), (1, 2, False), (1, 3, False)], 1, 3, (1, True)),  # handed back three times
        ([(2, 2, False)], 1, 2, (2, True)),  # crashed, then handed back
        ([(1, 5, False)], 1, 2, (3, True)),  # a record of what has not happened yet counts for nothing
    ],
)
def test_the_attempt_counts_crashes_and_not_what_was_handed_back(
    records: list[tuple[int, int, bool]], attempt: int, count: int, expected: tuple[int, bool]
) -> None:
    known = returns(*(Returned(b"copy", at, broker, unseen) for at, broker, unseen in records))
    assert known.attempt(b"copy", attempt, count) == expected
    assert known.attempt(b"other", attempt, count) == (attempt + count, count > 0)


def test_newer_brokers_do_not_count_what_is_handed_back() -> None:
    assert [counts_returns(version) for version in ("3.10.8", "4.0.1", "4.2.0", "4.3.0", "5.0.0-beta.1")] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_records_are_bounded_and_strange_ones_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundplane.queues.drivers.rabbitmq.returns._REMEMBERED", 3)
    known = returns(*(Returned(b"%d" % n, 1, 1, False) for n in range(5)))
    known._fold(b"\xc1 no record")
    assert list(known._known) == [b"2", b"3", b"4"]


def test_no_two_queues_and_no_two_planes_share_a_name() -> None:
    taken: set[str] = set()
    for namespace, queue in (("a", "b.c"), ("a.b", "c"), ("a", "b"), ("a", "b.dead"), ("a", "registry"), ("a", "ask")):
        names = Names(namespace)
        mine = {one.name for one in names.of_queue(queue)} | {names.asks(names.ready(queue))}
        assert not mine & taken
        taken |= mine | {one.name for one in names.of_namespace()}


def test_every_queue_is_one_that_the_broker_never_drops_from() -> None:
    for one in NAMES.of_queue("q"):
        assert one.arguments == {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    assert DELIVERY_LIMIT > 1_000_000


@given(st.lists(st.integers(0, 3_000_000), max_size=60))
def test_large_calls_are_published_in_slices_that_keep_their_order(sizes: list[int]) -> None:
    published = [Message("e", str(n), bytes(size)) for n, size in enumerate(sizes)]
    slices = _batches(published)
    assert [one for part in slices for one in part] == published
    assert all(part for part in slices)
    assert all(len(part) == 1 or sum(len(one.body) for one in part) <= 4_000_000 for part in slices)


def test_a_queue_that_is_not_up_yet_is_not_missing() -> None:
    """What RabbitMQ 3.10 says of either, with the same code, while it starts."""
    down = "NOT_FOUND - home node 'kit@localhost' of durable queue 'n::registry' in vhost '/' is down or inaccessible"
    with pytest.raises(Unavailable) as caught:
        check_is_missing(from_reply("channel", 404, down, (50, 10)))  # type: ignore[arg-type]
    assert caught.value.retryable
    check_is_missing(from_reply("channel", 404, "NOT_FOUND - no queue 'q' in vhost '/'", (50, 10)))  # type: ignore[arg-type]
