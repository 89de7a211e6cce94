"""The relay in a thread of its own, so that synchronous code can use it as well, and a busy loop cannot hold it up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from groundplane.core.errors import Closed
from groundplane.testing.faults.pipe import Direction
from groundplane.testing.faults.relay import Relay, Traffic

T = TypeVar("T")

_START_S, _ACT_S, _CLOSE_S = 10.0, 10.0, 5.0


class Proxy:
    """A TCP proxy with faults: `with Proxy.to(host, port) as proxy`, or `async with`.

    May be called from any thread. Every method acts before it returns (well under a millisecond), on connections that
    are open as on those that come, and every fault stays until `restore`. Closing takes less than a second.
    """

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self._make: Callable[[], Relay] = lambda: Relay(host, port, seed=seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._relay: Relay | None = None

    @classmethod
    def to(cls, host: str, port: int, *, seed: int = 0) -> Proxy:
        """A proxy in front of `host:port`, which listens when it is entered. `seed` is that of the jitter."""
        return cls(host, port, seed=seed)

    @property
    def host(self) -> str:
        """Where it listens: an address of the loopback."""
        return self._opened().host

    @property
    def port(self) -> int:
        """Where it listens; the same from opening to closing, also while it refuses."""
        return self._opened().port

    def through(self, url: str) -> str:
        """The URL with host and port of the proxy; all else as it was."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{user}{'@' if user else ''}{self.host}:{self.port}").geturl()

    def latency(self, latency_s: float, *, jitter_s: float = 0.0, direction: Direction = "both") -> None:
        """Each piece arrives `latency_s`, and up to `jitter_s` more, later than it was sent; order is kept."""
        self._act(lambda relay: relay.latency(latency_s, jitter_s=jitter_s, direction=direction))

    def throttle(self, bytes_per_s: float, *, direction: Direction = "both") -> None:
        """All connections together carry so many bytes a second in a direction."""
        self._act(lambda relay: relay.throttle(bytes_per_s, direction=direction))

    def stall(self, direction: Direction = "both") -> None:
        """Bytes are held back, and go on after `restore` as if nothing had been."""
        self._act(lambda relay: relay.stall(direction))

    def half_open(self, direction: Direction = "both") -> None:
        """Bytes, ends and resets are swallowed; the connections stay."""
        self._act(lambda relay: relay.half_open(direction))

    def drop_after(
        self,
        after_bytes: int,
        *,
        direction: Direction = "both",
        then: Literal["cut", "swallow"] = "cut",
        times: int | None = None,
    ) -> None:
        """Each connection carries so many bytes more in a direction, then is cut, or swallows what follows there;
        `times` bounds how many connections are hit.
        """
        self._act(lambda relay: relay.drop_after(after_bytes, direction=direction, then=then, times=times))

    def cut(self, *, existing: bool = True, new: bool = False) -> int:
        """Reset (RST) the connections that are open; with `new` also each that comes. How many there were."""
        return self._act(lambda relay: relay.cut(existing=existing, new=new))

    def pause_accept(self) -> None:
        """New connections are established by the kernel, but nobody answers; those that are open go on."""
        self._act(Relay.pause_accept)

    def refuse(self) -> None:
        """New connections are refused; those that are open go on."""
        self._act(Relay.refuse)

    def down(self) -> None:
        """As when the server's process is gone: connections are reset, new ones refused."""
        self._act(Relay.down)

    def restore(self) -> None:
        """Lift every fault; connections that lost bytes are reset."""
        self._act(Relay.restore)

    def retarget(self, host: str, port: int) -> None:
        """New connections lead there."""
        self._act(lambda relay: relay.retarget(host, port))

    def traffic(self) -> Traffic:
        """Counters since it was opened."""
        return self._act(Relay.traffic)

    def close(self) -> None:
        """Reset what is open, end the thread. Idempotent."""
        if self._loop is not None and self._relay is not None:
            asyncio.run_coroutine_threadsafe(self._relay.aclose(), self._loop).result(_CLOSE_S)
        self._end()

    async def aclose(self) -> None:
        """`close`, without holding up the loop."""
        if self._loop is not None and self._relay is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._relay.aclose(), self._loop))
        self._end()

    def __enter__(self) -> Proxy:
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="fault-proxy", daemon=True)
        self._thread.start()
        self._loop = loop
        try:
            self._relay = self._wait(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Proxy:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self._relay is None or self._loop is None:
            return "<Proxy closed>"
        traffic = self.traffic()
        return f"<Proxy {self.host}:{self.port} open={traffic.open} accepted={traffic.accepted} cut={traffic.cut}>"

    async def _start(self) -> Relay:
        relay = self._make()
        relay.listen()
        return relay

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.run_forever()
        finally:
            loop.close()

    def _opened(self) -> Relay:
        if self._relay is None or self._loop is None:
            raise Closed("proxy: it is not open; use it in a `with` block")
        return self._relay

    def _act(self, call: Callable[[Relay], T]) -> T:
        relay = self._opened()

        async def act() -> T:
            return call(relay)

        return self._wait(act())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(_ACT_S)

    def _end(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_S)
        self._loop = self._thread = self._relay = None
