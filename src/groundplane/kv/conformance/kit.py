"""What the tests of the suite share: the hook of a driver's author, and short words for what tests do all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import pytest

from groundplane.core.errors import Unsupported
from groundplane.kv.port import Capability, Change, ChangeKind
from groundplane.kv.store import KV
from groundplane.kv.watching import Watch

PATIENCE_S = 30.0
"""How long a test waits for what must happen."""

QUIET_S = 0.2
"""How long a test looks for what must not happen."""


class OpenKV(Protocol):
    """Opens a handle on the store under test, with the options of `KV.open`."""

    def __call__(self, **options: Any) -> AbstractAsyncContextManager[KV]:
        """Another handle."""
        ...


@pytest.mark.anyio
class Kit:
    """Fixtures; override `open_kv`."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def open_kv(self) -> Any:
        """Opens handles on an empty store. Override this one."""
        raise NotImplementedError("open_kv: override this fixture with one that returns a function like KV.open")

    @pytest.fixture
    async def kv(self, open_kv: OpenKV) -> Any:
        """A bucket with neither history nor TTL."""
        async with open_kv() as opened:
            yield opened

    @pytest.fixture
    async def brief(self, open_kv: OpenKV) -> Any:
        """A bucket with TTL."""
        async with open_kv(bucket="brief", ttl=True) as opened:
            if Capability.TTL not in opened.capabilities:
                pytest.skip(f"{opened!r} has no Capability.TTL")
            yield opened

    @pytest.fixture
    async def deep(self, open_kv: OpenKV) -> Any:
        """A bucket with a history of 3."""
        async with open_kv(bucket="deep") as flat:
            if Capability.HISTORY not in flat.capabilities:
                with pytest.raises(Unsupported, match="history: "):
                    async with open_kv(bucket="deep", history=3):
                        pass
                pytest.skip(f"{flat!r} has no Capability.HISTORY, and says so")
        async with open_kv(bucket="deep", history=3) as opened:
            yield opened


async def take(watch: Watch, count: int, within_s: float = PATIENCE_S) -> list[Change]:
    """The next `count` changes, or a failure."""
    until = time.monotonic() + within_s
    found: list[Change] = []
    while len(found) < count:
        change = await watch.receive(max(0.0, until - time.monotonic()))
        if change is None:
            pytest.fail(f"only {len(found)} of {count} changes came within {within_s} s: {found}")
        found.append(change)
    return found


async def told(watch: Watch, key: str, kind: ChangeKind, value: bytes = b"", within_s: float = PATIENCE_S) -> Change:
    """The change of that key, kind and value; others before it are left out."""
    until = time.monotonic() + within_s
    while True:
        [change] = await take(watch, 1, max(0.0, until - time.monotonic()))
        if (change.key, change.kind, change.value) == (key, kind, value):
            return change


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; fail after `within_s`."""
    until = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > until:
            pytest.fail(f"it did not become true within {within_s} s: {condition.__qualname__}")
        await asyncio.sleep(0.01)


def tick_of(kv: KV) -> float:
    """A short TTL of this store, in seconds."""
    return max(0.6, kv.limits.ttl_resolution_s or 0.0)
