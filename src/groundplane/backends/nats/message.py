"""What arrives, and its headers: text names and values under a version line, as NATS writes them.

Source: NATS ADR-4 (message headers). Of a repeated name the first value counts; names keep their case.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from groundplane.core.errors import InvalidArgument

VERSION_LINE = "NATS/1.0"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAK = re.compile(r"[\r\n\0]")


class Message(msgspec.Struct, eq=False, gc=False):
    """One message as it came. `head` are the raw headers, empty where there are none; they are decoded when asked."""

    subject: str
    reply: str
    payload: bytes
    head: bytes = b""
    _headers: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"Message({self.subject!r}, {len(self.payload)} bytes, status {self.status or '-'})"

    @property
    def headers(self) -> dict[str, str]:
        """Names and values, decoded once."""
        if self._headers is None:
            self._headers = decode_headers(self.head) if self.head else {}
        return self._headers

    @property
    def status(self) -> int:
        """The number on the version line (100, 404, 503 …); 0 where it has none: an ordinary message."""
        digits = self.head[9:12]
        return int(digits) if digits.isdigit() else 0

    @property
    def status_text(self) -> str:
        """The words behind the number; they are shown, nothing depends on them."""
        return self.head.partition(b"\r\n")[0][13:].decode(errors="replace")


def is_no_responder(message: Message) -> bool:
    """Whether the server answers a request that nobody serves."""
    return not message.payload and message.status == 503


class Place(NamedTuple):
    """Where JetStream says that a delivery stands: `time_ns` since 1970 is when the stream stored it."""

    stream: str
    consumer: str
    deliveries: int
    stream_seq: int
    consumer_seq: int
    time_ns: int
    pending: int


def place_of(reply: str) -> Place:
    """What the reply subject of a delivery tells (NATS ADR-15, both forms). `ValueError` for another subject."""
    tokens = reply.split(".")
    if len(tokens) >= 11:  # $JS.ACK.<domain>.<account>.<stream>…, with or without a last random token
        tokens = [*tokens[:2], *tokens[4:11]]
    if len(tokens) != 9 or tokens[0] != "$JS" or tokens[1] != "ACK":
        raise ValueError(f"{reply!r} is no acknowledgement subject of JetStream")
    _, _, stream, consumer, deliveries, stream_seq, consumer_seq, time_ns, pending = tokens
    numbers = (int(deliveries), int(stream_seq), int(consumer_seq), int(time_ns), int(pending))
    return Place(stream, consumer, *numbers)


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The bytes of headers. `invalid_argument` for a name or value that cannot be written without changing it."""
    text = VERSION_LINE
    for name, value in headers.items():
        if not _is_name(name):
            raise InvalidArgument(f"headers: {name!r} is no name of a header; use letters, digits and -_.")
        if _BREAK.search(value) or value != value.strip(" \t"):
            raise InvalidArgument(f"headers: {name}={value!r} cannot be sent; use a text without line ends and edges")
        text += f"\r\n{name}: {value}"
    return f"{text}\r\n\r\n".encode()


@functools.lru_cache(maxsize=1024)
def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def decode_headers(head: bytes) -> dict[str, str]:
    """Names and values of raw headers; bytes that are no UTF-8 are shown as the replacement character."""
    found: dict[str, str] = {}
    for line in head.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name, value.strip(" \t"))
    return found
