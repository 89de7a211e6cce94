"""Subscriptions of a plane's bus as a process shows them that has no part in it: opened when somebody looks.

A bus that is away holds up nobody: then whoever looks is told, and the next look tries again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from groundplane.bus import Bus
from groundplane.core.errors import Unavailable
from groundplane.core.lazily import Lazily


class Behind(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One subscription: `waiting` were not handed out yet, or are to be again; `in_flight` are being handled."""

    consumer: str
    pattern: str
    waiting: int
    in_flight: int


class Subscriptions:
    """The durable subscriptions of a bus, events and commands. Made by `open`; may be used concurrently."""

    def __init__(self, bus: Lazily[Bus]) -> None:
        self._bus = bus

    @classmethod
    @asynccontextmanager
    async def open(cls, opening: Callable[[], AbstractAsyncContextManager[Bus]]) -> AsyncIterator[Subscriptions]:
        """Over the bus that `opening` makes, with the first look."""
        bus = Lazily("bus", opening)
        try:
            yield cls(bus)
        finally:
            await bus.aclose()

    async def all(self) -> list[Behind]:
        """How far each is behind, by name, whether anybody handles it now or not. Raises `unavailable` where the bus
        cannot be asked.
        """
        status, lags = await (await self._bus.get()).status()
        if not status.ready:
            raise Unavailable(f"bus: {status.problem}", details={"port": "bus"})
        return [
            Behind(consumer=one.consumer, pattern=one.pattern, waiting=one.waiting, in_flight=one.in_flight)
            for one in lags
        ]


__all__ = ["Behind", "Subscriptions"]
