"""What the broker's reply codes mean here: one table, by code and by the method that failed, never by words.

Sources: AMQP 0-9-1 specification, section 1.2 (reply codes); RabbitMQ's use of them (`rabbit_channel`, 3.10 to 4.x).
"""

from __future__ import annotations

from typing import NamedTuple

from groundplane.core.errors import (
    Closed,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unsupported,
    from_record,
)

_QUEUE_DECLARE = (50, 10)
_QUEUE_DELETE = (50, 40)
_EXCHANGE_DECLARE = (40, 10)
_EXCHANGE_DELETE = (40, 20)
_QUEUE_BIND = (50, 20)
PUBLISH = (60, 40)
_ACK, _REJECT, _NACK = (60, 80), (60, 90), (60, 120)
_ANY = None


class Meaning(NamedTuple):
    """The error's class, its reason, and what to do about it."""

    error: type[
        Closed
        | FailedPrecondition
        | Internal
        | InvalidArgument
        | NotFound
        | PermissionDenied
        | ResourceExhausted
        | Unavailable
        | Unsupported
    ]
    reason: str
    remedy: str


_OTHER_ARGUMENTS = Meaning(
    FailedPrecondition,
    "queue_exists_with_other_arguments",
    "it exists and was declared differently: drain and delete it, or use another namespace",
)
_IN_USE = Meaning(FailedPrecondition, "queue_in_use", "stop its consumers and drain it first")
_LOST = Meaning(FailedPrecondition, "delivery_lost", "the delivery is held no longer; it is handed out again")
_BROKEN = Meaning(Internal, "protocol_error", "this is a fault of the client: report it with the broker's log")

MEANINGS: dict[tuple[int, tuple[int, int] | None], Meaning] = {
    (311, _ANY): Meaning(InvalidArgument, "message_invalid", "send a smaller message"),
    (320, _ANY): Meaning(Unavailable, "connection_forced", "the broker stops or an operator closed the connection"),
    (402, _ANY): Meaning(PermissionDenied, "vhost_refused", "add the virtual host, or mend the URL's path"),
    (403, _ANY): Meaning(PermissionDenied, "access_refused", "give the user permissions: rabbitmqctl set_permissions"),
    (404, _ANY): Meaning(NotFound, "queue_not_found", "declare it first"),
    (404, PUBLISH): Meaning(NotFound, "exchange_not_found", "declare the exchange first"),
    (404, _EXCHANGE_DECLARE): Meaning(NotFound, "exchange_not_found", "declare the exchange first"),
    (404, _EXCHANGE_DELETE): Meaning(NotFound, "exchange_not_found", "declare the exchange first"),
    (405, _ANY): Meaning(FailedPrecondition, "resource_locked", "another connection holds it for itself: end that"),
    (406, _ANY): _LOST,  # with no method: a delivery was held longer than the broker's consumer_timeout
    (406, _ACK): _LOST,
    (406, _NACK): _LOST,
    (406, _REJECT): _LOST,
    (406, _QUEUE_DECLARE): _OTHER_ARGUMENTS,
    (406, _EXCHANGE_DECLARE): _OTHER_ARGUMENTS,
    (406, _QUEUE_DELETE): _IN_USE,
    (406, _EXCHANGE_DELETE): _IN_USE,
    (406, PUBLISH): Meaning(InvalidArgument, "message_invalid", "look at the message's size and properties"),
    (501, _ANY): _BROKEN,
    (502, _ANY): _BROKEN,
    (503, _ANY): _BROKEN,
    (504, _ANY): _BROKEN,
    (505, _ANY): _BROKEN,
    (506, _ANY): Meaning(ResourceExhausted, "broker_error", "raise the broker's limits, or use less of it"),
    (530, _ANY): Meaning(
        PermissionDenied,
        "vhost_refused",
        "the virtual host is missing or closed to the user: rabbitmqctl add_vhost and set_permissions",
    ),
    (540, _ANY): Meaning(Unsupported, "", "the broker does not have this"),
    (541, _ANY): Meaning(Unavailable, "broker_error", "read the broker's log"),
}
_UNKNOWN = Meaning(Unavailable, "broker_error", "read the broker's log")


def from_reply(field: str, code: int, text: str, method: tuple[int, int]) -> GroundplaneError:
    """The error of a `channel.close` or `connection.close`: `method` is the class and method id that the broker blames.

    `field` begins the message. The broker's words are quoted, and in `details` with the code; nothing depends on them.
    """
    meaning = MEANINGS.get((code, method)) or MEANINGS.get((code, _ANY), _UNKNOWN)
    return meaning.error(
        f"{field}: the broker answered {code} {text!r}; {meaning.remedy}",
        reason=meaning.reason,
        details={"reply_code": code, "reply_text": text, "method": list(method)},
    )


def unroutable(exchange: str, routing_key: str, code: int, text: str) -> NotFound:
    """The error of a mandatory message that came back: nothing is bound there."""
    return NotFound(
        f"queue: {routing_key!r} takes no messages (exchange {exchange!r}: {code} {text!r}); declare it first",
        reason="queue_not_found",
        details={"exchange": exchange, "routing_key": routing_key, "reply_code": code},
    )


def refused(exchange: str, routing_key: str) -> ResourceExhausted:
    """The error of a message that the broker did not take (`basic.nack`)."""
    return ResourceExhausted(
        f"queue: {routing_key!r} refused the message (exchange {exchange!r}); it is full or has no leader, "
        "try again later",
        reason="message_refused",
        details={"exchange": exchange, "routing_key": routing_key},
    )


def malformed(what: str) -> Unavailable:
    """The error of bytes that are no AMQP 0-9-1; the connection cannot go on."""
    return Unavailable(f"connection: the peer sent {what}; the connection was closed", reason="malformed_frame")


def again(error: GroundplaneError) -> GroundplaneError:
    """The same error once more, for another who waits: each raises one of its own, all with the same cause."""
    copy = from_record(error.to_record())
    copy.__cause__ = error.__cause__
    return copy


def in_doubt(what: str, error: GroundplaneError) -> Unavailable:
    """For who used a channel that was closed because of somebody else: whether it was done is unknown."""
    lost = Unavailable(
        f"queue: {what!r}: the channel was closed because of another call ({error.reason or error.code}); whether this "
        "was done is unknown",
        reason="connection_lost",
    )
    lost.__cause__ = error
    return lost


def afterwards(error: GroundplaneError) -> GroundplaneError:
    """For calls on a channel that has ended with `error`: nothing is sent. Another's fault is not theirs."""
    if isinstance(error, Closed | Unavailable):
        return again(error)
    ended = Unavailable(
        f"channel: it was closed before ({error.reason or error.code}); nothing was sent, open another one",
        reason="connection_lost",
    )
    ended.__cause__ = error
    return ended
