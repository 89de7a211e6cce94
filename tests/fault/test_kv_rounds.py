"""NATS is killed, restarted, paused, out of reach, silent, cut off and slow in every window of a key: what was answered
is there, done once, what is away is an error, no watch is deaf, and two planes never meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

import pytest

from fault.nats_lab import AWAY, ENTERED_S, MARKS, PATIENCE_S, QUICK, TwoPlanes, patiently, rounds, running, under_way
from fault.server_lab import Backstage
from groundplane.core.errors import Conflict
from groundplane.kv import KV, Watch
from groundplane.kv.port import ChangeKind
from groundplane.testing import eventually, unique

pytestmark = MARKS


class KvPlane:
    """Who writes and who watches one bucket, what was answered, and what the watch has told."""

    def __init__(self, name: str, writer: KV, watch: Watch) -> None:
        self.name, self.writer, self.watch = name, writer, watch
        self.known: dict[str, bytes] = {}
        self.answered: dict[str, int] = {}
        self.added = self.doubtful = 0
        self._numbers = count()

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, url: str) -> AsyncIterator[KvPlane]:
        async with KV.open(url, namespace=name) as writer, KV.open(url, namespace=name) as watcher:
            await writer.put("sum", b"0")
            async with watcher.watch() as watch:
                plane = cls(name, writer, watch)
                async with running(plane._follow):
                    yield plane

    def new_key(self) -> str:
        return f"k{next(self._numbers)}"

    async def create(self, key: str) -> bool:
        """Whether it was answered; refusals are wrong, as nobody else has the key."""
        try:
            self.answered[key] = await self.writer.create(key, self._value(key))
        except AWAY:
            return False
        return True

    async def add(self) -> None:
        while True:
            try:
                entry = await self.writer.get("sum")
                assert entry is not None, "what is away is never a missing key"
                await self.writer.update("sum", b"%d" % (int(entry.value) + 1), revision=entry.revision)
                self.added += 1
            except Conflict:
                continue
            except (*AWAY, asyncio.CancelledError) as error:
                self.doubtful += 1
                if isinstance(error, asyncio.CancelledError):
                    raise
            await asyncio.sleep(0.01)

    async def passes(self) -> None:
        """A new key is written and seen."""
        keys: list[str] = []

        async def written() -> bool:
            keys.append(self.new_key())
            return await self.create(keys[-1])

        await eventually(written, f"a key of {self.name} is written", timeout_s=PATIENCE_S)
        await eventually(lambda: keys[-1] in self.known, f"{keys[-1]} is seen", timeout_s=PATIENCE_S)

    async def check(self, near: KV) -> None:
        """All that was answered is there, as it was answered; the watch knows that and no more; the sum is right."""
        there = await near.get_many((await near.keys()).items)
        await eventually(lambda: self.known == {key: one.value for key, one in there.items()}, timeout_s=PATIENCE_S)
        total = int(there.pop("sum").value)
        assert self.added <= total <= self.added + self.doubtful
        assert {key: there[key].revision for key in self.answered} == self.answered
        assert {key: one.value for key, one in there.items()} == {key: self._value(key) for key in there}

    def _value(self, key: str) -> bytes:
        return f"{self.name} {key}".encode()

    async def _follow(self) -> None:
        async for change in self.watch:
            assert change.kind is ChangeKind.PUT
            self.known[change.key] = change.value


class KvWindows(TwoPlanes[KvPlane]):
    """Rounds on one plane, another counts beside it under the same names; `near` does not go through the proxy."""

    def __init__(self, backstage: Backstage, plane: KvPlane, other: KvPlane, near: KV) -> None:
        super().__init__(backstage, plane, other)
        self._near = near

    async def enter(self, window: str) -> None:
        enter: dict[str, Callable[[str], Awaitable[None]]] = {
            "write": self._write, "answer": self._answer, "watch": self._watch
        }  # fmt: skip
        await patiently(lambda: self._near.exists("sum"), "the server that was killed before is back")
        await enter[window](self._plane.new_key())

    async def _write(self, key: str) -> None:
        """It is on its way to the server."""
        self._proxy.stall("to_server")
        self._arm(self._plane.create(key))
        await eventually(lambda: under_way(self._plane.writer), timeout_s=ENTERED_S)

    async def _answer(self, key: str) -> None:
        """The server has stored it, and its answer is lost."""
        self._proxy.half_open("to_client")
        self._arm(self._plane.create(key))
        await eventually(lambda: self._near.exists(key), timeout_s=ENTERED_S)
        assert key not in self._plane.answered

    async def _watch(self, key: str) -> None:
        """It is stored, and on its way to who watches."""
        self._proxy.stall("to_client")
        value = f"{self._plane.name} {key}".encode()
        self._plane.answered[key] = await self._near.create(key, value)

    async def red(self) -> bool:
        return not self._plane.watch.flowing and not self._other.watch.flowing

    async def green(self) -> bool:
        return self._plane.watch.flowing and self._other.watch.flowing


@pytest.mark.req("KV-16", "KV-14", "KV-10.1")
@pytest.mark.parametrize("window", ["write", "answer", "watch"])
async def test_a_key_that_meets_a_fault_is_written_once_and_seen(window: str, nats_backstage: Backstage) -> None:
    names = [unique("plane"), unique("plane")]
    far_url, near_url = nats_backstage.url + QUICK, nats_backstage.server.url + QUICK
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(KvPlane.open(name, far_url)) for name in names]
        near, there = [await stack.enter_async_context(KV.open(near_url, namespace=name)) for name in names]
        windows = KvWindows(nats_backstage, one, other, near)
        stack.push_async_callback(windows.aclose)
        async with running(other.add, other.add):
            await rounds(window, windows, nats_backstage)
            await eventually(lambda: other.added, "the other plane counts", timeout_s=PATIENCE_S)
        await one.check(near)
        await other.check(there)
