"""The bytes of one connection: operations out, once per turn of the loop; operations in; PING both ways."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from groundplane.backends.nats.message import Message
from groundplane.backends.nats.parser import Parser, ProtocolError
from groundplane.core.errors import GroundplaneError, Internal, Unavailable

WRITE_AT_ONCE_BYTES = 64 * 1024
_PING, _PONG = b"PING\r\n", b"PONG\r\n"


class Owner(Protocol):
    """What is told of a wire: each once per operation, `on_lost` once at all."""

    def on_info(self, document: bytes) -> None:
        """INFO with its JSON."""

    def on_refusal(self, words: str) -> None:
        """-ERR with its words."""

    def deliver(self, sid: int, message: Message) -> None:
        """A message for a subscription."""

    def on_lost(self, wire: Wire, error: GroundplaneError) -> None:
        """It has ended: `malformed_frame`, `broker_silent`, `connection_lost`, or why it was failed."""


class Wire(asyncio.Protocol):
    """One socket. It has no task; all of it runs in callbacks of the loop."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._parser = Parser(self, owner.deliver)
        self.transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._scheduled = False
        self._gone = self._loop.create_future()
        self._tick: asyncio.TimerHandle | None = None
        self._interval_s = 0.0
        self._received_at = self._pinged_at = self._loop.time()
        self._pongs: deque[asyncio.Future[bool] | None] = deque()
        self._resumed: asyncio.Future[None] | None = None
        self.over = False
        self.paused = False
        self.bytes_received = 0
        self.bytes_sent = 0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there; nothing is sent by itself."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand out what is whole. Whatever is wrong with it ends the connection, with a name: it is never deaf."""
        if self.over:
            return
        self._received_at = self._loop.time()
        self.bytes_received += len(data)
        try:
            self._parser.feed(data)
        except ProtocolError as error:
            failure: GroundplaneError = Unavailable(
                f"nats: the peer sent {error}; the connection was closed", reason="malformed_frame"
            )
            failure.__cause__ = error
            self.fail(failure)
        except Exception as error:  # noqa: BLE001 - a callback's fault must not leave a deaf connection behind
            broken = Internal(f"nats: a callback failed with {error!r}; the connection was closed")
            broken.__cause__ = error
            self.fail(broken)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; says so once."""
        error = Unavailable(
            f"nats: the connection broke ({exc or 'the server closed it'}); what was under way may have happened",
            reason="connection_lost",
        )
        error.__cause__ = exc
        self.fail(error)
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        """The peer reads slower than we write."""
        self.paused = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.paused = False
        self._wake()

    # -- parser.Listener

    def on_info(self, document: bytes) -> None:
        """INFO: at the beginning, and again when the cluster changes."""
        self._owner.on_info(document)

    def on_ping(self) -> None:
        """The server wants to know whether we live."""
        self.send(_PONG)

    def on_pong(self) -> None:
        """The answer to the oldest PING. Whoever asked may have gone away meanwhile; that changes nothing."""
        if self._pongs:
            asked = self._pongs.popleft()
            if asked is not None and not asked.done():
                asked.set_result(True)

    def on_refusal(self, words: str) -> None:
        """-ERR."""
        self._owner.on_refusal(words)

    # -- ours

    @property
    def buffered_bytes(self) -> int:
        """What has been given to `send` and not to the kernel."""
        return self._out_bytes + (self.transport.get_write_buffer_size() if self.transport else 0)

    def send(self, data: bytes) -> None:
        """Queue bytes; they are written together at the end of this turn of the loop."""
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= WRITE_AT_ONCE_BYTES:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def flush(self) -> None:
        """Give the kernel what was queued."""
        out = self._out
        if not out or self.over or self.transport is None:
            return
        data = b"".join(out)
        out.clear()
        self._out_bytes = 0
        self.bytes_sent += len(data)
        self.transport.write(data)

    def ping(self) -> asyncio.Future[bool]:
        """Send PING; True when its PONG came, and so all that was sent before was read by the server; False when the
        connection ended before.
        """
        asked: asyncio.Future[bool] = self._loop.create_future()
        if self.over:
            asked.set_result(False)
            return asked
        self._pongs.append(asked)
        self._pinged_at = self._loop.time()
        self.send(_PING)
        return asked

    def watch(self, interval_s: float) -> None:
        """From now on: PING after each interval of silence, dead after two."""
        self._interval_s = interval_s
        self._received_at = self._loop.time()
        self._schedule_tick()

    async def resumed(self) -> None:
        """Wait until the peer reads on, or the connection is over."""
        while self.paused and not self.over:
            if self._resumed is None or self._resumed.done():
                self._resumed = self._loop.create_future()
            await asyncio.shield(self._resumed)

    def fail(self, error: GroundplaneError, *, politely: bool = False) -> None:
        """End it now: nothing more is sent or handed out. The owner is told the first error.

        `politely` lets the kernel have what was written; otherwise the socket is dropped, unsent bytes and all.
        """
        if self.over:
            return
        if politely:
            self.flush()
        self.over = True
        if self._tick is not None:
            self._tick.cancel()
        self._out.clear()
        self._out_bytes = 0
        if self.transport is not None:
            (self.transport.close if politely else self.transport.abort)()
        for asked in self._pongs:
            if asked is not None and not asked.done():
                asked.set_result(False)
        self._pongs.clear()
        self._wake()
        self._owner.on_lost(self, error)

    async def gone(self, timeout_s: float) -> None:
        """Wait until the transport is closed, at most `timeout_s`; then drop it."""
        if self.transport is None:
            return
        done, _ = await asyncio.wait([self._gone], timeout=timeout_s)
        if not done:
            self.transport.abort()
            await asyncio.wait([self._gone], timeout=timeout_s)

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def _wake(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def _schedule_tick(self) -> None:
        self._tick = self._loop.call_later(self._interval_s / 4, self._look, self._loop.time())

    def _look(self, scheduled_at: float) -> None:
        """Four times per interval: does the peer live?"""
        now, interval_s = self._loop.time(), self._interval_s
        if now - scheduled_at > interval_s:  # our own loop stood still: what the peer sent meanwhile may be unread
            self._received_at = max(self._received_at, now - interval_s)
        silent_s = now - self._received_at
        if silent_s >= 2 * interval_s:
            self.fail(
                Unavailable(
                    f"nats: the server sent nothing for {silent_s:.1f} s, two intervals of PING; it is taken for dead",
                    reason="broker_silent",
                )
            )
            return
        if silent_s >= interval_s and now - self._pinged_at >= interval_s:
            self._pongs.append(None)
            self._pinged_at = now
            self.send(_PING)
        self._schedule_tick()
