"""The bytes of one connection: frames out, once per turn of the loop; frames in; heartbeats both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from groundplane.backends.amqp.errors import malformed
from groundplane.backends.amqp.frames import HEARTBEAT, HEARTBEAT_FRAME, FrameReader
from groundplane.backends.amqp.tables import WireError
from groundplane.core.errors import GroundplaneError, Internal, Unavailable

WRITE_AT_ONCE_BYTES = 256 * 1024
WRITE_BYTES_MAX = 64 * 1024 * 1024


class Wire(asyncio.Protocol):
    """Hands each frame to `on_frame(kind, channel, payload)` and the end to `on_lost(error)`, once.

    The error is `malformed_frame`, `broker_silent` (nothing came for twice the heartbeat), `connection_lost`, or
    `internal` where a callback of ours failed.
    """

    def __init__(
        self,
        on_frame: Callable[[int, int, bytes], None],
        on_lost: Callable[[GroundplaneError], None],
        frame_max: int,
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(frame_max)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._scheduled = False
        self._gone = self._loop.create_future()
        self._over = False
        self._tick: asyncio.TimerHandle | None = None
        self._heartbeat_s = 0.0
        self._received_at = self._sent_at = self._loop.time()
        self._resumed: list[asyncio.Future[None]] = []
        self.paused = False
        self.bytes_received = 0
        self.bytes_sent = 0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there; nothing is sent by itself."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand out the frames that are whole. Whatever is wrong with them ends the connection, with a name."""
        self._received_at = self._loop.time()
        self.bytes_received += len(data)
        try:
            for kind, channel, payload in self._reader.feed(data):
                if self._over:
                    return
                if kind != HEARTBEAT:
                    self._on_frame(kind, channel, payload)
        except WireError as error:
            failure: GroundplaneError = malformed(str(error))
            failure.__cause__ = error
            self.fail(failure)
        except Exception as error:  # noqa: BLE001 - a callback's fault must not leave a deaf connection behind
            broken = Internal(f"connection: a callback failed with {error!r}; the connection was closed")
            broken.__cause__ = error
            self.fail(broken)

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone; says so once."""
        error = Unavailable(
            f"connection: it broke ({exc or 'the broker closed it'}); what was under way may have happened",
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

    # -- ours

    @property
    def over(self) -> bool:
        """True when nothing is sent or handed out any more."""
        return self._over

    @property
    def buffered_bytes(self) -> int:
        """What has been given to `send` and not to the kernel."""
        return self._out_bytes + (self._transport.get_write_buffer_size() if self._transport else 0)

    @property
    def full(self) -> bool:
        """True while more messages would only fill memory."""
        return self.paused and self.buffered_bytes > WRITE_BYTES_MAX

    def send(self, parts: Iterable[bytes], size: int) -> None:
        """Queue pieces of frames, about `size` bytes; they are written together at the end of this turn."""
        self._out.extend(parts)
        self._out_bytes += size
        if self._out_bytes >= WRITE_AT_ONCE_BYTES:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def flush(self) -> None:
        """Give the kernel what was queued."""
        out = self._out
        if not out or self._over or self._transport is None:
            return
        data = b"".join(out)
        out.clear()
        self._out_bytes = 0
        self._sent_at = self._loop.time()
        self.bytes_sent += len(data)
        self._transport.write(data)

    def agree(self, frame_max: int, heartbeat_s: float) -> None:
        """What was negotiated: from now on larger frames and longer silence end the connection."""
        self._reader.frame_max = frame_max
        self._heartbeat_s = heartbeat_s
        self._received_at = self._loop.time()
        self._schedule_tick()

    async def resumed(self) -> None:
        """Wait until writing may go on, or the connection is over, or someone calls `wake`."""
        waiting = self._loop.create_future()
        self._resumed.append(waiting)
        try:
            await waiting
        finally:
            if waiting in self._resumed:
                self._resumed.remove(waiting)

    def wake(self) -> None:
        """Let everybody in `resumed` look again."""
        self._wake()

    def fail(self, error: GroundplaneError, *, politely: bool = False) -> None:
        """End it now: nothing more is sent or handed out. `on_lost` is told the first error.

        `politely` lets the kernel have what was written; otherwise the socket is dropped.
        """
        if self._over:
            return
        self._over = True
        if self._tick is not None:
            self._tick.cancel()
        self._out.clear()
        self._out_bytes = 0
        if self._transport is not None:
            (self._transport.close if politely else self._transport.abort)()
        self._on_lost(error)
        self._wake()

    async def gone(self, timeout_s: float) -> None:
        """Wait until the transport is closed, at most `timeout_s`; then drop it."""
        if self._transport is None:
            return
        done, _ = await asyncio.wait([self._gone], timeout=timeout_s)
        if not done:
            self.drop()
            await asyncio.wait([self._gone], timeout=timeout_s)

    def drop(self) -> None:
        """Close the socket now, whatever is still to be written."""
        if self._transport is not None and not self._gone.done():
            self._transport.abort()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def _wake(self) -> None:
        for waiting in self._resumed:
            if not waiting.done():
                waiting.set_result(None)

    def _schedule_tick(self) -> None:
        self._tick = self._loop.call_later(self._heartbeat_s / 4, self._look, self._loop.time())

    def _look(self, scheduled_at: float) -> None:
        """Four times per heartbeat: is the peer alive, and does it know that we are?"""
        now, beat = self._loop.time(), self._heartbeat_s
        if now - scheduled_at > beat:  # our own loop stood still: what the peer sent meanwhile may be unread
            self._received_at = max(self._received_at, now - 1.5 * beat)
        silent_s = now - self._received_at
        if silent_s >= 2 * beat:
            self.fail(
                Unavailable(
                    f"connection: the broker sent nothing for {silent_s:.1f} s, two heartbeats; it is taken for dead",
                    reason="broker_silent",
                )
            )
            return
        if now - self._sent_at >= beat / 2 and not self.paused:
            self.send((HEARTBEAT_FRAME,), len(HEARTBEAT_FRAME))
        self._schedule_tick()
