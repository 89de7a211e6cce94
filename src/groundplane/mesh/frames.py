"""Frames of the socket protocol: a length of 4 bytes, big-endian, then the body. Pure; no input or output.

A message longer than a frame is cut into several; the top bit of a length says that the next frame continues it
(only where both sides named a `message_max` above the frame's).
"""

from __future__ import annotations

from groundplane.core.errors import InvalidArgument

FRAME_MAX = 16 * 1024 * 1024
MESSAGE_MAX = 128 * 1024 * 1024
_MORE = 0x80000000


def frames(body: bytes, frame_max: int = FRAME_MAX, message_max: int = FRAME_MAX) -> list[bytes]:
    """What is written for `body`, in pieces that need no copy. `payload_too_large` when it is over `message_max`."""
    size = len(body)
    if size <= frame_max:
        return [size.to_bytes(4, "big") + body] if size < 65536 else [size.to_bytes(4, "big"), body]
    if size > message_max:
        raise InvalidArgument(
            f"message: {size} bytes are over the runtime's limit of {message_max}; send less",
            reason="payload_too_large",
        )
    pieces: list[bytes] = []
    for start in range(0, size, frame_max):
        piece = body[start : start + frame_max]
        more = _MORE if start + frame_max < size else 0
        pieces += [(len(piece) | more).to_bytes(4, "big"), piece]
    return pieces


class FrameReader:
    """Cuts a stream into messages."""

    def __init__(self, frame_max: int = FRAME_MAX, message_max: int = FRAME_MAX) -> None:
        self.frame_max = frame_max
        self.message_max = message_max
        self._data = bytearray()
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. `payload_too_large` for one over the limits: close the connection."""
        self._data += data
        whole: list[bytes] = []
        start = 0
        held = self._data
        while len(held) - start >= 4:
            length = int.from_bytes(held[start : start + 4], "big")
            more = bool(length & _MORE) and self.message_max > self.frame_max
            length = length & ~_MORE if more else length
            if length > self.frame_max or self._size + length > self.message_max:
                raise InvalidArgument(
                    f"frame: {length} bytes are over the limit of {self.frame_max}", reason="payload_too_large"
                )
            end = start + 4 + length
            if len(held) < end:
                break
            body = bytes(held[start + 4 : end])
            start = end
            if more or self._parts:
                self._parts.append(body)
                self._size += length
                if more:
                    continue
                body = b"".join(self._parts)
                self._parts, self._size = [], 0
            whole.append(body)
        if start:
            del held[:start]
        return whole
