"""What may be sent, declared and settled: the checks of the façade, decided before any input or output."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from groundplane.core.errors import InvalidArgument
from groundplane.core.names import check_name
from groundplane.queues.port import MESSAGE_BYTES_MAX, OutgoingMessage, QueueSpec

DELAY_S_MAX = 366 * 86_400.0
DEPTH_MAX = 1_000_000_000
ATTEMPTS_LIMIT = 1000
IN_FLIGHT_MAX = 10_000
LEASE_S_MAX = 86_400.0
ID_CHARACTERS_MAX = 255
KEY_CHARACTERS_MAX = 1024
MESSAGES_MAX = 10_000
PAGE_MAX = 1000


def check_spec(spec: QueueSpec) -> None:
    """`invalid_argument` names the field of the queue that is out of range."""
    check_name("name", spec.name)
    check_whole("attempts_max", spec.attempts_max, 1, ATTEMPTS_LIMIT)
    check_whole("depth_max", spec.depth_max, 1, DEPTH_MAX)


def check_messages(messages: Sequence[OutgoingMessage]) -> None:
    """`invalid_argument` for a message that is too large (`payload_too_large`) or has a bad field."""
    if len(messages) > MESSAGES_MAX:
        raise InvalidArgument(f"messages: {len(messages)!r} in one call; send at most {MESSAGES_MAX} at once")
    for message in messages:
        _check_message(message)


def message_bytes(message: OutgoingMessage) -> int:
    """What counts against the limit: payload, id, and names and values of headers in UTF-8."""
    size = len(message.payload) + len(message.id)
    if message.headers:
        size += len("".join(message.headers).encode()) + len("".join(message.headers.values()).encode())
    return size


def _check_message(message: OutgoingMessage) -> None:
    if not isinstance(message, OutgoingMessage):
        raise InvalidArgument(
            f"messages: {type(message).__name__!r} is no OutgoingMessage; give each as an argument: send(*messages)"
        )
    if isinstance(message.queue, str):
        _check_queue(message.queue)
    else:
        check_name("queue", message.queue)
    if not isinstance(message.payload, bytes):
        raise InvalidArgument(f"payload: {type(message.payload).__name__!r} is not bytes; encode it first")
    if not message.id or len(message.id) > ID_CHARACTERS_MAX:
        raise InvalidArgument(f"id: {message.id[:40]!r} must have 1 to {ID_CHARACTERS_MAX} characters")
    if message.delay_s:
        check_seconds("delay_s", message.delay_s, DELAY_S_MAX)
    if message.attempt != 1:
        check_whole("attempt", message.attempt, 1, 1_000_000)
    if message.dedup_key is not None and not 1 <= len(message.dedup_key) <= KEY_CHARACTERS_MAX:
        raise InvalidArgument(
            f"dedup_key: {message.dedup_key[:40]!r} must have 1 to {KEY_CHARACTERS_MAX} characters, or be None"
        )
    size = _size(message)
    if size > MESSAGE_BYTES_MAX:
        raise InvalidArgument(
            f"payload: the message {message.id!r} has {size} bytes with its headers, the limit is "
            f"{MESSAGE_BYTES_MAX} (1 MiB); send less, or put the data into blobs and send its key",
            reason="payload_too_large",
            details={"bytes": size, "bytes_max": MESSAGE_BYTES_MAX, "id": message.id},
        )


@functools.lru_cache(maxsize=1024)
def _check_queue(name: str) -> None:
    """A check that was passed is not made again: most messages go to few queues."""
    check_name("queue", name)


def _size(message: OutgoingMessage) -> int:
    try:
        return message_bytes(message)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidArgument(f"headers: {error}; names and values must be Unicode strings") from error


def check_whole(field: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgument(f"{field}: {value!r} must be a whole number from {least} to {most}")


def check_seconds(field: str, value: object, most: float, *, zero: bool = True) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= most or (value == 0 and not zero):  # type: ignore[operator]
        raise InvalidArgument(f"{field}: {value!r} must be {'0' if zero else 'more than 0'} to {most:g} seconds")
