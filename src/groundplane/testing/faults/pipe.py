"""One direction of one connection through the relay, and the faults that its bytes meet on the way."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

Direction = Literal["to_server", "to_client", "both"]

_PIECE_BYTES = 64 * 1024
_WAITING_BYTES_MAX = 4 * 1024 * 1024
_SLICES_PER_S = 50


class Drop:
    """Each connection passes `after_bytes` more bytes, then it is cut, or swallows all that follows.

    `times` bounds how many connections it hits; None: every one.
    """

    def __init__(self, after_bytes: int, then: Literal["cut", "swallow"], times: int | None) -> None:
        self.after_bytes = after_bytes
        self.then = then
        self.times = times

    @property
    def armed(self) -> bool:
        return self.times is None or self.times > 0

    def hit(self) -> None:
        if self.times is not None:
            self.times -= 1


class Way:
    """One direction of the relay: the faults that all its connections share, and what went through."""

    def __init__(self, seed: int) -> None:
        self.passed_bytes = 0
        self.swallowed_bytes = 0
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._changed = asyncio.Event()
        self._faultless()

    def _faultless(self) -> None:
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.swallows = False
        self.stalled = False
        self.drop: Drop | None = None

    def restore(self) -> None:
        """No fault any more."""
        self._faultless()
        self._free_at = 0.0
        self.changed()

    def changed(self) -> None:
        """Tell those who wait that a fault was set or lifted."""
        self._changed.set()
        self._changed = asyncio.Event()

    def share(self) -> float:
        """Which part of the jitter a piece gets."""
        return self._random.random()

    async def arrive(self, entered: float, share: float) -> None:
        """Until a piece that set out at `entered` is there."""
        await self.wait_until(lambda: entered + self.latency_s + self.jitter_s * share)
        await self.wait_while(lambda: self.stalled)

    async def wait_until(self, moment: Callable[[], float]) -> None:
        """Until the loop's time is `moment()`, asked anew whenever a fault changes."""
        loop = asyncio.get_running_loop()
        while (left := moment() - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    async def wait_while(self, condition: Callable[[], bool]) -> None:
        """Until a change of the faults after which the condition does not hold."""
        while condition():
            await self._changed.wait()

    def slice_bytes(self) -> int:
        """How much is passed on at once."""
        if self.bytes_per_s is None:
            return _PIECE_BYTES
        return max(1, min(_PIECE_BYTES, int(self.bytes_per_s / _SLICES_PER_S)))

    async def take_turn(self, size: int) -> None:
        """Wait until the line, which all connections share, has room for `size` more bytes."""
        if self.bytes_per_s is None:
            return
        start = max(asyncio.get_running_loop().time(), self._free_at)
        self._free_at = start + size / self.bytes_per_s
        await self.wait_until(lambda: start if self.bytes_per_s is not None else 0.0)


class Broken(Exception):
    """The connection is to be reset on both sides."""


class Pipe:
    """Reads from one socket and writes to another. Bytes are delayed, held, swallowed or passed, never reordered."""

    def __init__(self, source: socket.socket, sink: socket.socket | None, way: Way) -> None:
        self._source = source
        self._sink = sink
        self._way = way
        self._waiting: deque[tuple[float, float, bytes | None]] = deque()
        self._waiting_bytes = 0
        self._moved = asyncio.Event()
        self._swallows = sink is None
        self._drop: Drop | None = None
        self._passed = self._passed_at_drop = 0
        self.lost = False

    async def run(self) -> None:
        """Until the end of the bytes was passed on (or swallowed). Raises `Broken` where the connection is reset."""
        reader = asyncio.create_task(self._read(), name="fault-proxy-read")
        try:
            await self._write()
        except OSError as error:
            raise Broken from error
        finally:
            reader.cancel()
            await asyncio.wait({reader})

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._waiting_bytes >= _WAITING_BYTES_MAX:
                self._moved.clear()
                await self._moved.wait()
            try:
                data = await loop.sock_recv(self._source, _PIECE_BYTES)
            except OSError:
                self._put(None)
                return
            self._put(data)
            if not data:
                return

    def _put(self, data: bytes | None) -> None:
        """None: the source was reset."""
        self._waiting_bytes += len(data or b"")
        self._waiting.append((asyncio.get_running_loop().time(), self._way.share(), data))
        self._moved.set()

    async def _write(self) -> None:
        while True:
            while not self._waiting:
                self._moved.clear()
                await self._moved.wait()
            entered, share, data = self._waiting[0]
            await self._way.arrive(entered, share)
            if not data:
                self._end(reset=data is None)
                return
            for piece in self._pieces(data):
                await self._pass_on(piece)
            self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._moved.set()

    def _end(self, *, reset: bool) -> None:
        if self._swallowing():
            self.lost = True
        elif reset:
            raise Broken
        elif self._sink is not None:
            self._sink.shutdown(socket.SHUT_WR)

    async def _pass_on(self, piece: bytes) -> None:
        way = self._way
        while piece:
            await way.wait_while(lambda: way.stalled)
            if self._sink is None or self._swallowing():
                self.lost = True
                way.swallowed_bytes += len(piece)
                return
            room = self._room()
            if room == 0:
                self._dropped()
                continue
            allowed, piece = piece[:room], piece[len(piece[:room]) :]
            await way.take_turn(len(allowed))
            await asyncio.get_running_loop().sock_sendall(self._sink, allowed)
            self._passed += len(allowed)
            way.passed_bytes += len(allowed)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            size = self._way.slice_bytes()
            yield data[at : at + size]
            at += size

    def _swallowing(self) -> bool:
        return self._swallows or self._way.swallows

    def _room(self) -> int | None:
        """How many bytes may pass before the drop, None without one."""
        drop = self._way.drop
        if drop is None or not drop.armed:
            return None
        if drop is not self._drop:
            self._drop, self._passed_at_drop = drop, self._passed
        return max(0, drop.after_bytes - (self._passed - self._passed_at_drop))

    def _dropped(self) -> None:
        assert self._drop is not None
        self._drop.hit()
        if self._drop.then == "cut":
            raise Broken
        self._swallows = True
