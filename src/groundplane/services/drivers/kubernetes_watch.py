"""A watch that goes on: listed once, followed from that version, resumed after each end, listed again after a 410.

It runs in the task of whoever iterates: nothing is held for a slow reader but what the connection holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

import msgspec

from groundplane.backends.kubernetes.client import ApiServer
from groundplane.backends.kubernetes.errors import VERSION_EXPIRED
from groundplane.backends.kubernetes.slices import Event
from groundplane.core.errors import GroundplaneError
from groundplane.core.retry import RetryPolicy
from groundplane.services.drivers.kubernetes_instances import Key, View
from groundplane.services.port import Instance, InstanceChange

_WORKED_S = 1.0
_Change = tuple[Key, Instance | None]


class WatchStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the source was opened. `resumed`: watches that went on from their version, whether they ended in
    order or broke; `failures`: those that broke; `relists`: lists after a version that the server had forgotten.
    """

    lists: int = 0
    relists: int = 0
    resumed: int = 0
    failures: int = 0
    events: int = 0
    bookmarks: int = 0

    def plus(self, other: WatchStatistics) -> WatchStatistics:
        """The sum, count by count."""
        return WatchStatistics(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Watch:
    """One watch of one service or of all: an asynchronous iterator for one reader."""

    def __init__(self, server: ApiServer, service: str | None) -> None:
        self._server = server
        self._service = service
        self._view = View()
        self._version = ""
        self._backoff = RetryPolicy(base_s=server.address.backoff_s, cap_s=server.address.backoff_max_s)
        self._changes_of: AsyncGenerator[InstanceChange, None] | None = None
        self.flowing = False
        """Whether it is connected: the last thing that the server did was to answer."""
        self.statistics = WatchStatistics()

    async def begin(self) -> None:
        """List. Raises what keeps it from that."""
        self._changes_of = self._changes(await self._list())

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> InstanceChange:
        if self._changes_of is None:
            raise StopAsyncIteration
        return await anext(self._changes_of)

    async def aclose(self) -> None:
        """End it. Idempotent."""
        self.flowing = False
        if self._changes_of is not None:
            await self._changes_of.aclose()

    async def _changes(self, first: list[_Change]) -> AsyncGenerator[InstanceChange, None]:
        for one in first:
            yield _told(one)
        yield InstanceChange(kind="synced")
        failed = 0
        while True:
            began, events = _now(), self.statistics.events
            try:
                async with aclosing(self._followed()) as found:
                    async for change in found:
                        yield change
                broke = False
            except GroundplaneError as error:
                self.flowing = False
                if not error.retryable and error.reason != VERSION_EXPIRED:
                    raise
                broke = True
                self._count(failures=1)
            # a server that ends watches as soon as they begin is as bad as one that breaks them
            worked = _now() - began > _WORKED_S or self.statistics.events > events
            failed = (0 if worked else failed) + (broke or not worked)
            if failed:
                await asyncio.sleep(self._backoff.delay_s(failed))
            self._count(resumed=1)

    async def _followed(self) -> AsyncGenerator[InstanceChange, None]:
        """The changes of one watch, and of the list that follows where its version is gone."""
        try:
            async with self._server.watch(self._version, self._service) as events:
                self.flowing = True
                async for event in events:
                    for one in self._applied(event):
                        yield _told(one)
        except GroundplaneError as error:
            if error.reason != VERSION_EXPIRED:
                raise
            changes = await self._list()
            self._count(relists=1)
            for one in changes:
                yield _told(one)

    async def _list(self) -> list[_Change]:
        listed = await self._server.slices(self._service)
        self._count(lists=1)
        self._version = listed.version
        self.flowing = True
        return self._view.replace(listed.slices)

    def _applied(self, event: Event) -> list[_Change]:
        self._version = event.version
        if event.kind == "BOOKMARK":
            self._count(bookmarks=1)
            return []
        self._count(events=1)
        if event.kind == "DELETED":
            return self._view.drop(event.slice.metadata.name)
        return self._view.put(event.slice)

    def _count(self, **more: int) -> None:
        self.statistics = self.statistics.plus(WatchStatistics(**more))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _told(change: _Change) -> InstanceChange:
    key, instance = change
    kind: Literal["present", "gone"] = "gone" if instance is None else "present"
    return InstanceChange(kind=kind, service_name=key.service, instance_id=key.instance, instance=instance)


__all__ = ["Watch", "WatchStatistics"]
