"""Sockets between the processes of one state folder: frames of MessagePack, one way on each connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from groundplane.core.errors import ResourceExhausted, Unavailable

FRAME_BYTES_MAX = 8 * 1024 * 1024
BUFFER_BYTES_MAX = 64 * 1024 * 1024
WRITE_AT_ONCE_BYTES = 64 * 1024
_CONNECT_S = 2.0


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A transient message on its way to another process: to its subscribers with `plain`, and to one of each team."""

    subject: str
    payload: bytes
    id: str = ""
    headers: dict[str, str] = {}
    reply_to: str = ""
    plain: bool = False
    teams: list[tuple[str, str]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


class Door:
    """The socket on which this bus takes frames from others."""

    def __init__(self, folder: Path, name: str, take: Callable[[Frame], None]) -> None:
        self._folder = folder
        self._name = name
        self._take = take
        self._server: asyncio.Server | None = None
        self._open: set[_Inbound] = set()

    async def open(self) -> None:
        """Listen."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listening.setblocking(False)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listening.bind(_address(folder, self._name))
        except BaseException:
            listening.close()
            raise
        finally:
            os.close(folder)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Inbound(self._take, self._open), sock=listening)

    def close(self) -> None:
        """Stop listening, and hang up."""
        if self._server is not None:
            self._server.close()
        for one in list(self._open):
            one.hang_up()
        with suppress(FileNotFoundError):
            os.unlink(self._folder / self._name)


class _Inbound(asyncio.Protocol):
    def __init__(self, take: Callable[[Frame], None], all_open: set[_Inbound]) -> None:
        self._take = take
        self._all_open = all_open
        self._data = bytearray()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._all_open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._all_open.discard(self)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._data
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > FRAME_BYTES_MAX:
                self.hang_up()
                return
            end = start + 4 + size
            if len(buffer) < end:
                break
            try:
                frame = _decode(buffer[start + 4 : end])
            except msgspec.MsgspecError:
                self.hang_up()
                return
            self._take(frame)
            start = end
        del buffer[:start]


class Link(asyncio.Protocol):
    """A connection on which this bus sends frames to one other."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out = bytearray()

    @classmethod
    async def connect(cls, folder: Path, name: str, lost: Callable[[], None]) -> Link:
        """Raises `unavailable` where nobody listens."""
        loop = asyncio.get_running_loop()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, link = await loop.create_unix_connection(lambda: cls(lost), _address(descriptor, name))
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"bus: another process of this plane does not answer: {error}") from error
        finally:
            os.close(descriptor)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost()

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, frame: Frame) -> None:
        """Send a frame with the others of this turn of the loop. `resource_exhausted` where the other has stopped
        reading.
        """
        if self._transport is None:
            raise Unavailable("bus: the other process of this plane has gone")
        if self._transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            raise ResourceExhausted(
                "bus: another process of this plane does not read what is sent to it", reason="queue_full"
            )
        if not self._out:
            self._loop.call_soon(self._flush)
        data = _encode(frame)
        self._out += len(data).to_bytes(4, "big") + data
        if len(self._out) >= WRITE_AT_ONCE_BYTES:
            self._flush()

    def close(self) -> None:
        """What was sent still goes."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        out, self._out = self._out, bytearray()
        if out and self._transport is not None:
            self._transport.write(out)


def _address(folder: int, name: str) -> str:
    """A path that fits into the 107 bytes of a unix address, however deep the folder is."""
    return f"/proc/self/fd/{folder}/{name}"
