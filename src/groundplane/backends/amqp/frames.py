"""Frames: cut out of a stream of bytes, and written for the methods that every message needs.

`FrameReader` does no I/O. It holds at most one incomplete frame, never more than `frame_max` bytes, and raises
`WireError` for a stream that is no AMQP 0-9-1; nothing of it can be read afterwards.
Source: AMQP 0-9-1, section 2.3.5 and 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from groundplane.backends.amqp.tables import RefusedHeader, WireError, short_text

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
_END = 0xCE
OVERHEAD = 8  # of a frame: type, channel, size, end
CONTENT_HEADER = 12  # class, weight and size of the body, before the properties

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">BHIHHQ")
_CONTENT = struct.Struct(">HHQ")
_ACK = struct.Struct(">BHIHHQBB")
_KINDS = frozenset((METHOD, HEADER, BODY, HEARTBEAT))

HEARTBEAT_FRAME = _FRAME.pack(HEARTBEAT, 0, 0) + END

BASIC = 60
ACK, REJECT, NACK = 80, 90, 120


class FrameReader:
    """Cuts frames out of bytes that come in pieces of any size.

    `frame_max` bounds a whole frame; it may be lowered when it has been agreed on.
    """

    __slots__ = ("_needed", "_partial", "frame_max")

    def __init__(self, frame_max: int) -> None:
        self.frame_max = frame_max
        self._partial = bytearray()
        self._needed = 0

    @property
    def held_bytes(self) -> int:
        """What is kept of a frame that is not whole yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are whole now: type, channel, payload. Take all of them before more is fed."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at, end = 0, len(data)
        unpack, payload_max = _FRAME.unpack_from, self.frame_max - OVERHEAD
        self._needed = 7
        while end - at >= 7:
            kind, channel, size = unpack(data, at)
            if kind not in _KINDS:
                raise _foreign(data[at : at + 16])
            if size > payload_max:
                raise WireError(f"a frame of {size} bytes; {self.frame_max} were agreed on")
            stop = at + 7 + size
            if stop >= end:
                self._needed = size + OVERHEAD
                break
            if data[stop] != _END:
                raise WireError(f"a frame that ends with {data[stop]:#04x} instead of 0xce")
            yield kind, channel, data[at + 7 : stop]
            at = stop + 1
        if at < end:
            self._partial += data[at:]


def _foreign(start: bytes) -> WireError:
    if start.startswith(PROTOCOL_HEADER):
        return RefusedHeader("its own protocol header, as it did not understand ours")
    if start.startswith(b"AMQP"):
        return WireError(f"the protocol header of another version ({start[4:8].hex(' ')}); AMQP 0-9-1 is needed")
    if start.startswith((b"HTTP/", b"<")):
        return WireError(f"HTTP ({start!r}…); that is no broker's AMQP port")
    if start[:2] in (b"\x15\x03", b"\x16\x03"):
        return WireError("TLS; write amqps:// for this port")
    return WireError(f"no frame ({start!r}…)")


def method_frame(channel: int, class_id: int, method_id: int, arguments: bytes) -> bytes:
    """A method frame out of encoded arguments."""
    return b"".join((
        _FRAME.pack(METHOD, channel, len(arguments) + 4), struct.pack(">HH", class_id, method_id), arguments, END,
    ))  # fmt: skip


def publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The first frame of a message: `basic.publish`."""
    bits = b"\x01" if mandatory else b"\x00"
    arguments = b"\x00\x00" + short_text("exchange", exchange) + short_text("routing_key", routing_key) + bits
    return method_frame(channel, BASIC, 40, arguments)


def content_frames(channel: int, properties: bytes, body: bytes, frame_max: int) -> list[bytes]:
    """The frames that follow: the content header and as many bodies as the size needs, as pieces to be joined."""
    size = len(body)
    parts = [_HEADER.pack(HEADER, channel, CONTENT_HEADER + len(properties), BASIC, 0, size), properties, END]
    payload_max = frame_max - OVERHEAD
    if size <= payload_max:
        if size:
            parts += (_FRAME.pack(BODY, channel, size), body, END)
        return parts
    for at in range(0, size, payload_max):
        piece = body[at : at + payload_max]
        parts += (_FRAME.pack(BODY, channel, len(piece)), piece, END)
    return parts


def settle_method(channel: int, method_id: int, tag: int, bits: int) -> bytes:
    """`basic.ack`, `basic.nack` or `basic.reject` of one tag (bits as these define them)."""
    return _ACK.pack(METHOD, channel, 13, BASIC, method_id, tag, bits, _END)


def read_content_header(payload: bytes) -> tuple[int, bytes]:
    """The size of the body and the bytes of the properties."""
    if len(payload) < CONTENT_HEADER + 2:
        raise WireError("a content header that is cut short")
    class_id, _, size = _CONTENT.unpack_from(payload)
    if class_id != BASIC:
        raise WireError(f"a content header of class {class_id}")
    return size, payload[CONTENT_HEADER:]
