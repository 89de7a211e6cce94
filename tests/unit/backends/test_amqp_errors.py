"""Reply codes and what they become."""

from __future__ import annotations

import pytest

from groundplane.backends.amqp import EMPTY, Message, encode_properties
from groundplane.backends.amqp.confirms import Confirms, Many, One
from groundplane.backends.amqp.content import Returned
from groundplane.backends.amqp.errors import MEANINGS, from_reply
from groundplane.backends.amqp.tables import WireError
from groundplane.core.errors import GroundplaneError, NotFound, Unavailable
from groundplane.core.reasons import REASONS

DECLARE, DELETE, PUBLISH, ACK, NOTHING = (50, 10), (50, 40), (60, 40), (60, 80), (0, 0)


@pytest.mark.req("CORE-02")
@pytest.mark.parametrize(
    "code, method, expected",
    [
        (320, NOTHING, ("unavailable", "connection_forced", True)),
        (403, DECLARE, ("permission_denied", "access_refused", False)),
        (404, DECLARE, ("not_found", "queue_not_found", False)),
        (404, PUBLISH, ("not_found", "exchange_not_found", False)),
        (405, DECLARE, ("failed_precondition", "resource_locked", False)),
        (406, DECLARE, ("failed_precondition", "queue_exists_with_other_arguments", False)),
        (406, DELETE, ("failed_precondition", "queue_in_use", False)),
        (406, ACK, ("failed_precondition", "delivery_lost", False)),
        (406, NOTHING, ("failed_precondition", "delivery_lost", False)),
        (406, PUBLISH, ("invalid_argument", "message_invalid", False)),
        (504, NOTHING, ("internal", "protocol_error", False)),
        (506, NOTHING, ("resource_exhausted", "broker_error", True)),
        (530, (10, 40), ("permission_denied", "vhost_refused", False)),
        (541, DECLARE, ("unavailable", "broker_error", True)),
        (799, DECLARE, ("unavailable", "broker_error", True)),
    ],
)
def test_a_reply_code_means_the_same_whatever_the_brokers_words_are(
    code: int, method: tuple[int, int], expected: tuple[str, str, bool]
) -> None:
    for text in ("NOT_FOUND", "ACCESS_REFUSED", ""):
        error = from_reply("channel", code, text, method)
        assert (error.code, error.reason, error.retryable) == expected
        assert error.message.startswith("channel: the broker answered")
        assert error.details["reply_code"] == code


def test_every_reason_of_the_table_is_documented_with_a_code_that_fits() -> None:
    for meaning in MEANINGS.values():
        row = REASONS.get(meaning.reason)
        assert row is not None or meaning.reason == ""
        if row is not None and meaning.reason != "broker_error":  # a broker short of something says so by its code
            assert row.code == meaning.error.code


class Noted:
    """A waiter that notes what it was told."""

    def __init__(self) -> None:
        self.told: dict[int, GroundplaneError | None] = {}

    def settle(self, index: int, error: GroundplaneError | None) -> None:
        assert index not in self.told, "told twice"
        self.told[index] = error

    def outcome(self) -> dict[int, str]:
        return {index: "ok" if error is None else error.reason for index, error in sorted(self.told.items())}


def _published(*messages: Message) -> tuple[Confirms, Noted]:
    confirms, noted = Confirms(), Noted()
    for index, message in enumerate(messages, 1):
        confirms.add(noted, index, message)
    return confirms, noted


def _back(message: Message) -> Returned:
    back = Returned(312, "NO_ROUTE", message.exchange, message.routing_key)
    back.body, back.raw_properties = message.body, message.properties
    return back


A, B, C = (Message("", name, name.encode()) for name in "abc")


def test_confirms_settle_one_or_all_up_to_their_number_and_each_once() -> None:
    confirms, noted = _published(A, B, C, A)
    confirms.acknowledge(3, False)
    confirms.acknowledge(2, True)
    confirms.acknowledge(2, True)
    confirms.refuse(0, True)  # 0: all that there are
    assert noted.outcome() == {1: "ok", 2: "ok", 3: "ok", 4: "message_refused"}
    assert len(confirms) == 0
    assert (confirms.published, confirms.confirmed, confirms.refused) == (4, 3, 1)


def test_a_confirm_of_what_was_never_published_is_no_confirm() -> None:
    confirms, _ = _published(A)
    with pytest.raises(WireError, match="message 2; only 1"):
        confirms.acknowledge(2, False)


@pytest.mark.req("QUEUE-02")
def test_a_returned_message_is_found_by_what_came_back_although_other_confirms_come_between() -> None:
    confirms, noted = _published(A, B, C)
    confirms.give_back(_back(C))
    confirms.acknowledge(2, True)  # RabbitMQ sends confirms that it had gathered before
    confirms.acknowledge(3, False)
    assert noted.outcome() == {1: "ok", 2: "ok", 3: "queue_not_found"}


def test_of_two_messages_with_one_id_the_one_that_came_back_fails() -> None:
    one = Message("", "here", b"x", encode_properties(message_id="same"))
    other = Message("", "nowhere", b"x", encode_properties(message_id="same"))
    for order in ((one, other), (other, one)):
        confirms, noted = _published(*order)
        confirms.give_back(_back(other))
        confirms.acknowledge(2, True)
        assert noted.told[1 + order.index(one)] is None
        assert isinstance(noted.told[1 + order.index(other)], NotFound)


def test_of_two_messages_alike_in_all_but_their_headers_the_right_one_fails() -> None:
    first = Message("", "gone", b"x", encode_properties({"n": "1"}))
    second = Message("", "gone", b"x", encode_properties({"n": "2"}))
    confirms, noted = _published(first, second)
    confirms.give_back(_back(second))
    confirms.acknowledge(2, True)
    assert noted.outcome() == {1: "ok", 2: "queue_not_found"}


def test_headers_that_the_broker_wrote_anew_are_still_recognised() -> None:
    first = Message("", "gone", b"x", encode_properties({"n": 1, "m": "x"}))
    second = Message("", "gone", b"x", encode_properties({"n": 2, "m": "x"}))
    back = _back(second)
    back.raw_properties = (
        EMPTY[:0] + b"\x30\x00" + b"\x00\x00\x00\x0f" + b"\x01mS\x00\x00\x00\x01x" + b"\x01nI\x00\x00\x00\x02" + b"\x02"
    )
    confirms, noted = _published(first, second)
    confirms.give_back(back)
    confirms.acknowledge(2, True)
    assert noted.outcome() == {1: "ok", 2: "queue_not_found"}


def test_two_returns_of_the_same_message_fail_two_of_its_copies() -> None:
    confirms, noted = _published(A, A, A)
    confirms.give_back(_back(A))
    confirms.give_back(_back(A))
    confirms.acknowledge(3, True)
    assert sorted(noted.outcome().values()) == ["ok", "queue_not_found", "queue_not_found"]


def test_a_return_of_what_is_not_in_flight_harms_nobody() -> None:
    confirms, noted = _published(A)
    confirms.give_back(_back(B))
    confirms.acknowledge(1, False)
    assert noted.outcome() == {1: "ok"}


def test_a_missing_exchange_blames_its_own_message_and_leaves_the_neighbours_in_doubt() -> None:
    missing = Message("missing", "k", b"")
    error = from_reply("channel", 404, "NOT_FOUND - no exchange 'missing' in vhost '/'", PUBLISH)
    confirms, noted = _published(A, missing, Message("other", "k", b""))
    confirms.fail(error, PUBLISH)
    assert noted.outcome() == {1: "connection_lost", 2: "exchange_not_found", 3: "connection_lost"}
    neighbour = noted.told[1]
    assert isinstance(neighbour, Unavailable)
    assert neighbour.retryable
    assert neighbour.__cause__ is error


def test_an_exchange_that_has_confirmed_before_is_not_the_missing_one() -> None:
    confirms, noted = _published(Message("proven", "k", b""))
    confirms.acknowledge(1, False)
    confirms.add(noted, 2, Message("proven", "k", b""))
    confirms.add(noted, 3, Message("new", "k", b""))
    confirms.fail(from_reply("channel", 404, "in other words", PUBLISH), PUBLISH)
    assert noted.outcome() == {1: "ok", 2: "connection_lost", 3: "exchange_not_found"}


def test_what_another_call_did_is_not_told_to_the_publishers_of_its_channel_as_their_fault() -> None:
    confirms, noted = _published(A, B)
    confirms.fail(from_reply("channel", 406, "PRECONDITION_FAILED", DECLARE), DECLARE)
    assert noted.outcome() == {1: "connection_lost", 2: "connection_lost"}


def test_a_message_that_the_broker_finds_invalid_is_blamed_when_it_is_alone_and_in_doubt_among_others() -> None:
    error = from_reply("channel", 406, "invalid expiration", PUBLISH)
    alone, told_alone = _published(A)
    alone.fail(error, PUBLISH)
    assert told_alone.outcome() == {1: "message_invalid"}
    among, told_among = _published(A, B)
    among.fail(error, PUBLISH)
    assert told_among.outcome() == {1: "connection_lost", 2: "connection_lost"}


def test_any_other_failure_is_told_to_everybody_each_with_an_error_of_its_own() -> None:
    confirms, noted = _published(A, B)
    cause = OSError("cut")
    error = Unavailable("connection: it broke", reason="connection_lost")
    error.__cause__ = cause
    confirms.fail(error)
    first, second = noted.told[1], noted.told[2]
    assert noted.outcome() == {1: "connection_lost", 2: "connection_lost"}
    assert first is not second
    assert first is not None
    assert first.__cause__ is cause
    confirms.acknowledge(2, True)  # late, from the network's buffers: passed over
    assert len(noted.told) == 2


@pytest.mark.anyio
async def test_waiters_that_were_given_up_are_left_alone() -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    single: asyncio.Future[None] = loop.create_future()
    batch: asyncio.Future[list[GroundplaneError | None]] = loop.create_future()
    single.cancel()
    batch.cancel()
    One(single).settle(0, None)
    One(single).settle(0, Unavailable("x"))
    Many(batch, 1).settle(0, None)
    assert single.cancelled()
    assert batch.cancelled()
