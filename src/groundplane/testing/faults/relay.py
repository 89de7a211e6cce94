"""The proxy itself, in the loop of its caller: listens, connects on, and carries bytes both ways through faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from groundplane.core.errors import InvalidArgument
from groundplane.testing.faults.pipe import Broken, Direction, Drop, Pipe, Way

_BACKLOG = 128
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay has done since it was opened, but `open`, which is now. Bytes as they left it, or were swallowed."""

    accepted: int
    open: int
    cut: int
    to_server_bytes: int
    to_client_bytes: int
    swallowed_bytes: int


class Relay:
    """A TCP proxy with faults. Its methods are called in the loop it was opened in and act at once, on connections
    that are open as on those that come; every fault stays until `restore`.

    A connection that lost bytes has a hole: `restore` resets it, as the network would.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._target = _address(host, port)
        self._ways = {"to_server": Way(seed), "to_client": Way(seed + 1)}
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._held = _bound(0)  # keeps the port while nobody listens
        self._answers = True
        self._resets_new = False
        self._accepted = self._cut = 0
        self.host: str
        self.port: int
        self.host, self.port = self._held.getsockname()

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, port: int, *, seed: int = 0) -> AsyncIterator[Relay]:
        """Listen on a free port of the loopback for what is meant for `host:port`. `seed` is that of the jitter."""
        relay = cls(host, port, seed=seed)
        try:
            relay.listen()
            yield relay
        finally:
            await relay.aclose()

    def latency(self, latency_s: float, *, jitter_s: float = 0.0, direction: Direction = "both") -> None:
        """Each piece arrives `latency_s`, and up to `jitter_s` more, later than it was sent; order is kept."""
        _at_least_zero("latency_s", latency_s)
        _at_least_zero("jitter_s", jitter_s)
        for way in self._chosen(direction):
            way.latency_s, way.jitter_s = latency_s, jitter_s
            way.changed()

    def throttle(self, bytes_per_s: float, *, direction: Direction = "both") -> None:
        """All connections together carry so many bytes a second in a direction."""
        if not bytes_per_s > 0:
            raise InvalidArgument(f"bytes_per_s: {bytes_per_s!r} must be more than 0; to hold all back use stall()")
        for way in self._chosen(direction):
            way.bytes_per_s = bytes_per_s
            way.changed()

    def stall(self, direction: Direction = "both") -> None:
        """Bytes are held back, and go on after `restore` as if nothing had been."""
        for way in self._chosen(direction):
            way.stalled = True
            way.changed()

    def half_open(self, direction: Direction = "both") -> None:
        """Bytes, ends and resets are swallowed; the connections stay. New ones reach the server only where `direction`
        is `to_client`.
        """
        for way in self._chosen(direction):
            way.swallows = True
            way.changed()

    def drop_after(
        self,
        after_bytes: int,
        *,
        direction: Direction = "both",
        then: Literal["cut", "swallow"] = "cut",
        times: int | None = None,
    ) -> None:
        """Each connection carries so many bytes more in a direction, and is then cut, or swallows what follows there.

        `times` bounds how many connections are hit; a cut in the middle of a transfer that is tried again needs 1.
        """
        _at_least_zero("after_bytes", after_bytes)
        drop = Drop(after_bytes, then, times)
        for way in self._chosen(direction):
            way.drop = drop
            way.changed()

    def cut(self, *, existing: bool = True, new: bool = False) -> int:
        """Reset (RST) the connections that are open; with `new` also each that comes. How many there were."""
        self._resets_new = self._resets_new or new
        chosen = list(self._links) if existing else []
        for link in chosen:
            self._reset(link)
        return len(chosen)

    def pause_accept(self) -> None:
        """New connections are established by the kernel, but nobody answers; those that are open go on."""
        if self._answers and self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._answers = False

    def refuse(self) -> None:
        """New connections are refused; the port stays ours. Those that are open go on."""
        self._stop_listening()

    def down(self) -> None:
        """As when the server's process is gone: connections are reset, new ones refused."""
        self.refuse()
        self.cut()

    def restore(self) -> None:
        """Lift every fault, and reset the connections that lost bytes or never reached the server."""
        self._resets_new, self._answers = False, True
        for link in list(self._links):
            if link.lost:
                self._reset(link)
        for way in self._ways.values():
            way.restore()
        self.listen()

    def retarget(self, host: str, port: int) -> None:
        """New connections lead there."""
        self._target = _address(host, port)

    def traffic(self) -> Traffic:
        """Counters."""
        ways = self._ways
        return Traffic(
            accepted=self._accepted,
            open=len(self._links),
            cut=self._cut,
            to_server_bytes=ways["to_server"].passed_bytes,
            to_client_bytes=ways["to_client"].passed_bytes,
            swallowed_bytes=sum(way.swallowed_bytes for way in ways.values()),
        )

    async def aclose(self) -> None:
        """Reset what is open and let go of the port. Idempotent, < 1 s."""
        self._stop_listening()
        self._held.close()
        tasks = list(self._links.values())
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    def listen(self) -> None:
        """Accept connections."""
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it went away before it was accepted
        client.setblocking(False)
        self._accepted += 1
        if self._resets_new:
            self._cut += 1
            _close(client, reset=True)
            return
        link = _Link(client, self._ways)
        task = asyncio.get_running_loop().create_task(link.run(self._target), name="fault-proxy-link")
        self._links[link] = task
        task.add_done_callback(lambda _: self._ended(link))

    def _ended(self, link: _Link) -> None:
        self._links.pop(link, None)
        link.close()

    def _reset(self, link: _Link) -> None:
        self._cut += 1
        self._links.pop(link).cancel()

    def _chosen(self, direction: Direction) -> Iterable[Way]:
        if direction == "both":
            return list(self._ways.values())
        if direction not in self._ways:
            raise InvalidArgument(f"direction: {direction!r} must be 'to_server', 'to_client' or 'both'")
        return [self._ways[direction]]


class _Link:
    """One connection: the client's socket, the server's, and a pipe each way."""

    def __init__(self, client: socket.socket, ways: dict[str, Way]) -> None:
        self._client = client
        self._ways = ways
        self._unreached = False
        self._pipes: list[Pipe] = []

    @property
    def lost(self) -> bool:
        """Bytes are missing, or the server that the client believes to have reached."""
        return self._unreached or any(pipe.lost for pipe in self._pipes)

    def close(self) -> None:
        """For the task that was cancelled before it began."""
        _close(self._client, reset=True)

    async def run(self, target: tuple[int, tuple[str, int]]) -> None:
        """Carry bytes until both sides have ended. Cancelled, both are reset."""
        server: socket.socket | None = None
        reset = True
        try:
            self._unreached = self._ways["to_server"].swallows
            if not self._unreached:
                server = socket.socket(target[0], socket.SOCK_STREAM)
                server.setblocking(False)
                await asyncio.get_running_loop().sock_connect(server, target[1])
            await self._carry(server)
            reset = False
        except (Broken, OSError):
            pass  # both sides are reset below
        finally:
            for one in (self._client, server):
                if one is not None:
                    _close(one, reset=reset)

    async def _carry(self, server: socket.socket | None) -> None:
        self._pipes = [Pipe(self._client, server, self._ways["to_server"])]
        if server is not None:
            self._pipes.append(Pipe(server, self._client, self._ways["to_client"]))
        for one in (self._client, server):
            if one is not None:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tasks = [asyncio.create_task(pipe.run(), name="fault-proxy-pipe") for pipe in self._pipes]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.lost or server is None:
            await asyncio.Event().wait()  # one side does not know that the other has ended, until it is reset


def _address(host: str, port: int) -> tuple[int, tuple[str, int]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidArgument(f"host: {host!r} cannot be resolved; give the address of the server") from error
    return family, (str(address[0]), int(address[1]))


def _bound(port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", port))
    except BaseException:
        one.close()
        raise
    return one


def _close(one: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):  # the peer was quicker
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    one.close()


def _at_least_zero(field: str, value: float) -> None:
    if not value >= 0:
        raise InvalidArgument(f"{field}: {value!r} must be at least 0")
