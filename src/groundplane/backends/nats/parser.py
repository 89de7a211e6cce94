"""The protocol of NATS clients, incoming side: bytes in any pieces in, whole operations out.

Source: docs.nats.io, "Client Protocol". A control line is at most 4 KiB by default, one of INFO larger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from groundplane.backends.nats.message import Message

CONTROL_LINE_MAX = 1024 * 1024
SIZE_MAX = 64 * 1024 * 1024


class ProtocolError(Exception):
    """The peer sent what is no NATS."""


class Listener(Protocol):
    """What is told of operations."""

    def on_info(self, document: bytes) -> None:
        """INFO with its JSON."""

    def on_ping(self) -> None:
        """PING."""

    def on_pong(self) -> None:
        """PONG."""

    def on_refusal(self, words: str) -> None:
        """-ERR with its words."""


class Parser:
    """Feed it what the socket gives. Messages go to `deliver(sid, message)`, all else to the listener.

    `ProtocolError` from `feed` ends the connection: nothing after it can be trusted.
    """

    def __init__(self, listener: Listener, deliver: Callable[[int, Message], None]) -> None:
        self._listener = listener
        self._deliver = deliver
        self._pieces: list[bytes] = []
        self._held = 0
        self._need = 0

    def feed(self, data: bytes) -> None:
        """Take a piece; hand out every operation that is whole."""
        if self._pieces:
            self._pieces.append(data)
            self._held += len(data)
            if self._held < self._need:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        used, self._need = self._read(data)
        if used < len(data):
            self._pieces.append(data[used:])
            self._held = len(data) - used

    def _read(self, data: bytes) -> tuple[int, int]:
        """Hand out what is whole; how many bytes that were, and how many the rest must have to be worth a look."""
        at, find = 0, data.find
        while True:
            end = find(b"\r\n", at)
            if end < 0:
                if len(data) - at > CONTROL_LINE_MAX:
                    raise ProtocolError(f"a control line of more than {CONTROL_LINE_MAX} bytes")
                return at, 0
            kind = data[at]
            if kind == 77 or kind == 72 or kind == 109 or kind == 104:  # M, H and in small letters
                next_at = self._message(data, at, end)
                if next_at > len(data):
                    return at, next_at - at
                at = next_at
            else:
                self._operation(data[at:end])
                at = end + 2

    def _message(self, data: bytes, at: int, end: int) -> int:
        """Hand out the message whose control line is `data[at:end]`, if it is whole; where it ends."""
        words = data[at:end].split()
        operation = words[0].upper()
        headed = operation == b"HMSG"
        if not (headed or operation == b"MSG") or not 4 + headed <= len(words) <= 5 + headed:
            raise ProtocolError(f"the line {data[at : at + 80]!r}")
        try:
            size, sid = int(words[-1]), int(words[2])
            head_size = int(words[-2]) if headed else 0
            subject = words[1].decode()
            reply = words[3].decode() if len(words) == 5 + headed else ""
        except ValueError as error:
            raise ProtocolError(f"the line {data[at : at + 80]!r}") from error
        if not 0 <= head_size <= size <= SIZE_MAX:
            raise ProtocolError(f"a message of {size} bytes with {head_size} of headers")
        begin = end + 2
        stop = begin + size
        if len(data) < stop + 2:
            return stop + 2
        if data[stop : stop + 2] != b"\r\n":
            raise ProtocolError(f"a message on {subject!r} that is longer than it says")
        body = begin + head_size
        self._deliver(sid, Message(subject, reply, data[body:stop], data[begin:body]))
        return stop + 2

    def _operation(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        match word.upper():
            case b"PING":
                self._listener.on_ping()
            case b"PONG":
                self._listener.on_pong()
            case b"+OK":
                pass
            case b"INFO":
                self._listener.on_info(rest)
            case b"-ERR":
                self._listener.on_refusal(rest.decode(errors="replace").strip().strip("'"))
            case _:
                raise ProtocolError(f"the line {line[:80]!r}")
