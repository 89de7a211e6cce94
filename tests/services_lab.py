"""Registries for tests, on every store of keys that there is, and one that can be taken away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import Unavailable
from groundplane.core.retry import RetryPolicy
from groundplane.kv import KV
from groundplane.kv.drivers import DRIVERS
from groundplane.services import RegistrationSettings, Registry

STORES = ["embedded", *(["nats"] if "nats" in DRIVERS else [])]
QUICK = RegistrationSettings(ttl_s=30.0, heartbeat_s=0.2, readiness_s=10.0)
"""Many heartbeats, and none that fails, or comes after the TTL, because the machine stalls."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a registry is kept, for this process and for others."""

    url: str
    state: Path
    namespace: str

    def registry(self, settings: RegistrationSettings = QUICK) -> Any:
        return Registry.open(self.url, state=self.state, namespace=self.namespace, settings=settings, upgrade=True)


def place_of(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> Place:
    """The place that the test's parameter names."""
    url = "embedded://" if request.param == "embedded" else str(request.getfixturevalue("nats_url"))
    return Place(url=url, state=tmp_path / "state", namespace=namespace)


class Flaky:
    """A driver that can be taken away: calls fail before they reach the one behind it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.down = False
        self.deaf = False
        """Whether writes are done and their answers lost."""
        self.error: Exception = Unavailable("kv: does not answer")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    async def get(self, keys: Any) -> Any:
        self._check()
        return await self.driver.get(keys)

    async def write(self, writes: Any, options: Any) -> Any:
        self._check()
        written = await self.driver.write(writes, options)
        if self.deaf:
            raise self.error
        return written

    async def keys(self, prefix: str, *, cursor: str | None, limit: int) -> Any:
        self._check()
        return await self.driver.keys(prefix, cursor=cursor, limit=limit)

    def _check(self) -> None:
        if self.down:
            raise self.error


@asynccontextmanager
async def impatient_registry(url: str, settings: RegistrationSettings = QUICK) -> AsyncIterator[Registry]:
    """A registry whose calls are not tried again, so that a loss shows at once."""
    async with KV.open(url, bucket="services", ttl=True) as kv:
        yield Registry(KV(kv.driver, retry=RetryPolicy(attempts=1)), settings)


@asynccontextmanager
async def flaky_registry(state: Path, settings: RegistrationSettings = QUICK) -> AsyncIterator[tuple[Registry, Flaky]]:
    """A registry on embedded keys, and the switch that takes the store away."""
    async with KV.open(state=state, bucket="services", ttl=True, upgrade=True) as kv:
        driver = Flaky(kv.driver)
        yield Registry(KV(driver, retry=RetryPolicy(attempts=1)), settings), driver
