"""Messages that arrive: a method that announces one, a content header, bodies; put together per channel.

Nothing may come between the three on one channel (AMQP 0-9-1, section 4.2.6.1); what does is a `WireError`.
"""

from __future__ import annotations

import struct
from typing import Any

from groundplane.backends.amqp.frames import BODY, HEADER, read_content_header
from groundplane.backends.amqp.tables import Properties, WireError, decode_headers, decode_properties
from groundplane.core.errors import InvalidArgument

_TAG = struct.Struct(">QB")
_COUNT = struct.Struct(">I")
_CODE = struct.Struct(">H")
_CUT_SHORT = "a method that is cut short or too long"


class Delivery:
    """A message as the broker handed it over. `tag` settles it, on its own channel alone.

    `message_count` is what stayed in the queue, for `get` alone; `consumer` is the tag of the consumer, else empty.
    `headers` and `properties` are decoded when they are first asked for: `invalid_argument` (reason
    `msg_parsing_error`) where another client wrote what cannot be read; the body is there all the same.
    """

    __slots__ = (
        "_headers", "body", "consumer", "exchange", "message_count", "raw_properties", "redelivered", "routing_key",
        "tag",
    )  # fmt: skip

    def __init__(self, tag: int, redelivered: bool, exchange: str, routing_key: str) -> None:
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.consumer = ""
        self.message_count = 0
        self.raw_properties = b""
        self.body = b""
        self._headers: dict[str, Any] | None = None

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, those of the broker (`x-delivery-count`, `x-death`) among them. Decoded once."""
        if self._headers is None:
            try:
                self._headers = decode_headers(self.raw_properties)
            except WireError as error:
                raise self._unreadable(error) from error
        return self._headers

    @property
    def properties(self) -> Properties:
        """All properties, the headers among them."""
        try:
            return decode_properties(self.raw_properties)
        except WireError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: WireError) -> InvalidArgument:
        return InvalidArgument(
            f"message: {self.routing_key!r} delivered {error}; mend what published it", reason="msg_parsing_error"
        )

    def __repr__(self) -> str:
        again = ", redelivered" if self.redelivered else ""
        return f"Delivery(tag={self.tag}, routing_key={self.routing_key!r}, {len(self.body)} bytes{again})"


class Returned:
    """A mandatory message that came back because nothing is bound where it went."""

    __slots__ = ("body", "code", "exchange", "raw_properties", "routing_key", "text")

    def __init__(self, code: int, text: str, exchange: str, routing_key: str) -> None:
        self.code = code
        self.text = text
        self.exchange = exchange
        self.routing_key = routing_key
        self.raw_properties = b""
        self.body = b""


class Assembly:
    """The message that is arriving on one channel. Holds no more than `body_max` bytes of it."""

    __slots__ = ("_body_max", "_missing", "_parts", "_what")

    def __init__(self, body_max: int) -> None:
        self._body_max = body_max
        self._what: Delivery | Returned | None = None
        self._parts: list[bytes] | None = None
        self._missing = 0

    def begin(self, what: Delivery | Returned) -> None:
        """A method has announced `what`; its header must be next."""
        self._what = what

    @property
    def busy(self) -> bool:
        """True between the announcement and the last byte."""
        return self._what is not None

    def abandon(self) -> None:
        """Drop what has arrived so far: the channel is being closed."""
        self._what = self._parts = None

    def add(self, kind: int, payload: bytes) -> Delivery | Returned | None:
        """Take a header or a body; the whole message when that was its last part."""
        what = self._what
        if what is None:
            raise WireError("content that nothing announced")
        if kind == HEADER:
            return self._add_header(what, payload)
        if kind != BODY or self._parts is None:
            raise WireError("a body before its content header")
        size = len(payload)
        if size > self._missing:
            raise WireError("a body that is longer than announced")
        self._missing -= size
        if self._missing:
            if payload:
                self._parts.append(payload)
            return None
        what.body = b"".join((*self._parts, payload)) if self._parts else payload
        self._what = self._parts = None
        return what

    def _add_header(self, what: Delivery | Returned, payload: bytes) -> Delivery | Returned | None:
        if self._parts is not None:
            raise WireError("a second content header for one message")
        size, what.raw_properties = read_content_header(payload)
        if size > self._body_max:
            raise WireError(f"a message of {size} bytes; body_max is {self._body_max}")
        if size == 0:
            self._what = None
            return what
        self._missing, self._parts = size, []
        return None


def read_deliver(payload: bytes) -> Delivery:
    """`basic.deliver`: consumer tag, delivery tag, redelivered, exchange, routing key."""
    try:
        end = 5 + payload[4]
        tag, redelivered = _TAG.unpack_from(payload, end)
        exchange, routing_key, last = _two_texts(payload, end + 9)
        delivery = Delivery(tag, redelivered == 1, exchange, routing_key)
        delivery.consumer = payload[5:end].decode()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(_CUT_SHORT) from error
    if last != len(payload):
        raise WireError(_CUT_SHORT)
    return delivery


def read_get_ok(payload: bytes) -> Delivery:
    """`basic.get-ok`: delivery tag, redelivered, exchange, routing key, message count."""
    try:
        tag, redelivered = _TAG.unpack_from(payload, 4)
        exchange, routing_key, last = _two_texts(payload, 13)
        delivery = Delivery(tag, redelivered == 1, exchange, routing_key)
        (delivery.message_count,) = _COUNT.unpack_from(payload, last)
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(_CUT_SHORT) from error
    return delivery


def read_return(payload: bytes) -> Returned:
    """`basic.return`: reply code, reply text, exchange, routing key."""
    try:
        (code,) = _CODE.unpack_from(payload, 4)
        start = 7 + payload[6]
        exchange, routing_key, last = _two_texts(payload, start)
        text = payload[7:start].decode()
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise WireError(_CUT_SHORT) from error
    if last != len(payload):
        raise WireError(_CUT_SHORT)
    return Returned(code, text, exchange, routing_key)


def read_confirm(payload: bytes) -> tuple[int, int]:
    """`basic.ack` or `basic.nack`: the tag and the bits (1: multiple)."""
    if len(payload) != 13:
        raise WireError(_CUT_SHORT)
    tag, bits = _TAG.unpack_from(payload, 4)
    return tag, bits


def _two_texts(payload: bytes, at: int) -> tuple[str, str, int]:
    end = at + 1 + payload[at]
    last = end + 1 + payload[end]
    return payload[at + 1 : end].decode(), payload[end + 1 : last].decode(), last
