"""A source of instances in memory that a test changes, breaks, slows and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from groundplane.core.errors import Unavailable
from groundplane.services.port import Instance, InstanceChange, InstanceSource, Status


def instance(service: str, instance_id: str, status: Status = Status.ACTIVE, beat: str | None = None) -> Instance:
    return Instance(service_name=service, instance_id=instance_id, status=status, last_heartbeat=beat)


class ScriptedSource:
    """Keeps the promises of `InstanceSource` while it is up."""

    name = "scripted"

    def __init__(self, *instances: Instance) -> None:
        self.kept = {(one.service_name, one.instance_id): one for one in instances}
        self.lookups: list[str | None] = []
        self.watches = 0
        self.down = False
        self.gate: asyncio.Event | None = None
        self._feeds: list[asyncio.Queue[InstanceChange | None]] = []

    async def services(self) -> list[str]:
        self._check()
        return sorted({service for service, _ in self.kept})

    async def instances(self, service: str | None = None) -> list[Instance]:
        self.lookups.append(service)
        self._check()
        found = [one for (name, _), one in sorted(self.kept.items()) if service in (None, name)]
        if self.gate is not None:
            await self.gate.wait()
        return found

    @asynccontextmanager
    async def watch(self, service: str | None = None) -> AsyncIterator[AsyncIterator[InstanceChange]]:
        self._check()
        self.watches += 1
        feed: asyncio.Queue[InstanceChange | None] = asyncio.Queue()
        for one in self.kept.values():
            if service in (None, one.service_name):
                feed.put_nowait(_present(one))
        feed.put_nowait(InstanceChange(kind="synced"))
        self._feeds.append(feed)
        try:
            yield self._changes(feed, service)
        finally:
            self._feeds.remove(feed)

    def put(self, one: Instance) -> None:
        self.kept[one.service_name, one.instance_id] = one
        self._tell(_present(one))

    def remove(self, service: str, instance_id: str) -> None:
        del self.kept[service, instance_id]
        self._tell(InstanceChange(kind="gone", service_name=service, instance_id=instance_id))

    def lose_watches(self) -> None:
        for feed in self._feeds:
            feed.put_nowait(None)

    async def _changes(
        self, feed: asyncio.Queue[InstanceChange | None], service: str | None
    ) -> AsyncIterator[InstanceChange]:
        while True:
            change = await feed.get()
            if change is None:
                raise Unavailable("scripted: the watch is lost")
            if service in (None, change.service_name) or change.kind == "synced":
                yield change

    def _tell(self, change: InstanceChange) -> None:
        for feed in self._feeds:
            feed.put_nowait(change)

    def _check(self) -> None:
        if self.down:
            raise Unavailable("scripted: is down")


def _present(one: Instance) -> InstanceChange:
    return InstanceChange(kind="present", service_name=one.service_name, instance_id=one.instance_id, instance=one)


_: type[InstanceSource] = ScriptedSource
