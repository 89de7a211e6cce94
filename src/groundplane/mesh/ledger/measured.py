"""A ledger whose calls are counted and timed like those of every port."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from groundplane.mesh.ledger.port import JoinKey, JoinState, Ledger, Once
from groundplane.telemetry.calls import measured


class MeasuredLedger:
    """Hands every call on to `driver`. Its guarantees are the driver's."""

    def __init__(self, driver: Ledger) -> None:
        self.driver = driver

    def __repr__(self) -> str:
        return repr(self.driver)

    @measured("ledger")
    async def once_begin(self, key: str) -> Once:
        """See the port."""
        return await self.driver.once_begin(key)

    @measured("ledger")
    async def once_end(self, key: str, value: Any) -> None:
        """See the port."""
        await self.driver.once_end(key, value)

    @measured("ledger")
    async def join_add(self, key: JoinKey, index: int, total: int, payload: bytes) -> JoinState:
        """See the port."""
        return await self.driver.join_add(key, index, total, payload)

    @measured("ledger")
    async def join_items(self, key: JoinKey) -> dict[int, bytes]:
        """See the port."""
        return await self.driver.join_items(key)

    @measured("ledger")
    async def join_release(self, key: JoinKey) -> None:
        """See the port."""
        await self.driver.join_release(key)

    @measured("ledger")
    async def handled(self, *, ask: Iterable[str] = (), done: Iterable[str] = ()) -> frozenset[str]:
        """See the port."""
        return await self.driver.handled(ask=ask, done=done)

    @measured("ledger")
    async def collect(self, older_than_s: float) -> int:
        """See the port."""
        return await self.driver.collect(older_than_s)

    async def aclose(self) -> None:
        """See the port."""
        await self.driver.aclose()


_: type[Ledger] = MeasuredLedger
