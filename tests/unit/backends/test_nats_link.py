"""The NATS client against a server that misbehaves on purpose, and calls that are given up half way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from groundplane.backends.nats import Address, JetStream, Link, Pool, PublishWindow, Watcher
from groundplane.backends.nats.config import ConsumerConfig
from groundplane.backends.nats.jetstream import ConsumerInfo, StreamInfo, StreamState
from groundplane.core.errors import Closed
from groundplane.testing import eventually

pytestmark = [pytest.mark.anyio]


class Odd:
    """Takes clients and answers so many PINGs of each: one for the login, one for the subscriptions. Then it is silent,
    or hangs up.
    """

    def __init__(self, *, pongs: int = 1000, hangs_up: bool = False, silent_from: int = 1000) -> None:
        self.taken = self.open = self.answered = 0
        self.port = 0
        self._pongs, self._hangs_up, self._silent_from = pongs, hangs_up, silent_from

    @property
    def address(self) -> Address:
        return Address.parse(
            f"nats://127.0.0.1:{self.port}?connect_timeout=20&ping_interval=30"
            "&reconnect_wait=0.1&reconnect_wait_max=5&reconnect_jitter=0"
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Odd]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self.open += 1
        try:
            if self.taken < self._silent_from:
                writer.write(b'INFO {"headers":true,"max_payload":1048576}\r\n')
            left = self._pongs
            while line := await reader.readline():
                if line.startswith(b"PING") and left:
                    left -= 1
                    self.answered += 1
                    writer.write(b"PONG\r\n")
                    if not left and self._hangs_up:
                        await writer.drain()
                        break
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.mark.req("BUS-16.3")
async def test_a_server_that_takes_clients_and_drops_them_at_once_is_not_asked_in_a_hot_loop() -> None:
    async with Odd(pongs=2, hangs_up=True).running() as odd:
        began = time.monotonic()
        async with await Link.open(odd.address):
            await eventually(lambda: odd.taken >= 5, timeout_s=30)
        assert time.monotonic() - began >= 0.7  # 0.1, 0.2 and 0.4 at least


async def test_closing_that_is_given_up_closes_all_the_same() -> None:
    async with Odd(pongs=2).running() as odd:
        link = await Link.open(odd.address)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await link.aclose()
        await eventually(lambda: odd.open == 0)
        await link.aclose()


async def test_ending_a_subscription_that_is_given_up_ends_it_all_the_same() -> None:
    async with Odd(pongs=2).running() as odd, await Link.open(odd.address) as link:
        subscription = link.subscribe("a", lambda _: None, queue="g")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await subscription.drain(20)
        assert link.statistics().subscriptions == 0


async def test_a_pool_whose_opening_is_given_up_leaves_no_connection() -> None:
    async with Odd(silent_from=2).running() as odd:
        opening = asyncio.create_task(Pool.open(odd.address, size=3))
        await eventually(lambda: odd.taken == 3 and odd.answered == 2)
        await asyncio.sleep(0.05)  # the first is up, as far as we are concerned
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await eventually(lambda: odd.open == 0)


async def test_a_window_holds_no_more_than_it_may_however_many_wait_for_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Odd().running() as odd, await Link.open(odd.address) as link:

        async def room() -> None:
            await asyncio.sleep(0)

        monkeypatch.setattr(link, "room", room)
        window = PublishWindow(JetStream(link), window=2, timeout_s=0.5, ack_timeout_s=0.1)
        puts = [asyncio.create_task(window.put("a", b"", message_id=str(n))) for n in range(6)]
        await eventually(lambda: len(window) > 0)
        assert len(window) == 2
        for one in puts:
            one.cancel()
        acks = [one for one in await asyncio.gather(*puts, return_exceptions=True) if isinstance(one, asyncio.Future)]
        await window.aclose()
        await asyncio.gather(*acks, return_exceptions=True)
        assert len(acks) == 2


async def test_whoever_waits_for_changes_is_told_when_the_link_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def info(self: JetStream, name: str) -> StreamInfo:
        return StreamInfo(config={}, state=StreamState())

    async def create(self: JetStream, stream: str, config: ConsumerConfig, *, action: str = "") -> ConsumerInfo:
        return ConsumerInfo(stream_name=stream, name=config.name)

    monkeypatch.setattr(JetStream, "stream_info", info)
    monkeypatch.setattr(JetStream, "create_consumer", create)
    async with Odd().running() as odd:
        link = await Link.open(odd.address)
        async with Watcher(JetStream(link), "S", ["a"]) as watcher:
            await anext(watcher)  # Synced
            waiting = asyncio.ensure_future(anext(watcher))
            await asyncio.sleep(0)
            await link.aclose()
            async with asyncio.timeout(10):
                with pytest.raises(StopAsyncIteration):
                    await waiting
    with pytest.raises(Closed):
        link.publish("a")
