"""The registry of services over key-value: who is there, by entries that expire without heartbeats.

async with Registry.open("nats://127.0.0.1:4222") as registry:
    async with registry.register("quotes", version="1.4.0") as registration:
        …
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import Conflict, InvalidArgument, NotFound
from groundplane.kv import KV, Change, ChangeKind, Entry, Watch
from groundplane.services import records
from groundplane.services.definitions import Definitions
from groundplane.services.port import Instance, InstanceChange, InstanceSource
from groundplane.services.registration import Readiness, Registration
from groundplane.services.settings import RegistrationSettings
from groundplane.telemetry.logs import get_logger

CHANGE_TRIES = 50
_GET_MANY = 500
_log = get_logger("services")


class Registry:
    """Instances and definitions of services in one bucket. Everything may be called concurrently; calls take as long as
    those of `KV` and raise as they do.
    """

    name = "registry"

    def __init__(self, kv: KV, settings: RegistrationSettings | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Over a bucket that was opened with `ttl=True` and stays the caller's."""
        self.kv = kv
        self.settings = settings or RegistrationSettings()
        self.clock = clock
        self.definitions = Definitions(kv, clock=clock)
        self.malformed = 0
        """How many records that nobody can read were met."""

    def __repr__(self) -> str:
        return f"<Registry on {self.kv!r}>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "groundplane",
        state: str | os.PathLike[str] = ".groundplane",
        settings: RegistrationSettings | None = None,
        upgrade: bool = False,
        inline: bool = False,
    ) -> AsyncIterator[Registry]:
        """The registry in the bucket `services` of the store that the URL names (`KV.open`)."""
        opening = KV.open(
            url, bucket=records.BUCKET, namespace=namespace, state=state, ttl=True, upgrade=upgrade, inline=inline
        )
        async with opening as kv:
            yield cls(kv, settings)

    def register(
        self,
        service: str,
        *,
        instance_id: str | None = None,
        version: str = "",
        metadata: Mapping[str, Any] | None = None,
        readiness: Readiness | None = None,
        settings: RegistrationSettings | None = None,
    ) -> AbstractAsyncContextManager[Registration]:
        """Register an instance for the time of the block: visible when it is entered, gone when it ends. See
        `Registration.open`.
        """
        return Registration.open(
            self.kv,
            service,
            instance_id=instance_id,
            version=version,
            metadata=metadata,
            readiness=readiness,
            settings=settings or self.settings,
            clock=self.clock,
        )

    async def services(self) -> list[str]:
        """The names of services that have instances, sorted."""
        found = [records.names_of(key) for key in await self._keys(records.INSTANCES)]
        return sorted({names[0] for names in found if names is not None})

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The instances of a service, or of all, sorted by service and id. Records that nobody can read are left out,
        logged and counted in `malformed`.
        """
        keys = await self._keys(records.instances_prefix(service))
        found: list[Instance] = []
        for start in range(0, len(keys), _GET_MANY):
            entries = await self.kv.get_many(keys[start : start + _GET_MANY])
            found += filter(None, (self._read(entry.key, entry.value) for entry in entries.values()))
        return sorted(found, key=lambda one: (one.service_name, one.instance_id))

    async def instance(self, service: str, instance_id: str) -> Instance:
        """One instance. Raises `not_found` (`instance_not_found`), also where its record cannot be read."""
        entry = await self.entry(service, instance_id)
        found = self._read(entry.key, entry.value) if entry is not None else None
        if found is None:
            raise _missing(service, instance_id)
        return found

    async def entry(self, service: str, instance_id: str) -> Entry | None:
        """The stored record of an instance with its revision."""
        return await self.kv.get(records.instance_key(service, instance_id))

    async def change(self, service: str, instance_id: str, change: Callable[[Instance], Instance]) -> Instance:
        """Change the record of an instance from outside, by compare-and-set: `change` gets the record as it is and may
        be called again. The record as it is then; its TTL begins anew. Raises `not_found`; `conflict` after 50 tries.

        The instance itself takes over ACTIVE or STANDBY, group and metadata with its next heartbeat.
        """
        for attempt in range(CHANGE_TRIES):
            entry = await self.entry(service, instance_id)
            if entry is None:
                raise _missing(service, instance_id)
            changed = change(records.decode_instance(entry.key, entry.value))
            if (changed.service_name, changed.instance_id) != (service, instance_id):
                raise InvalidArgument(f"change: {changed!r} is another instance than {service!r} {instance_id!r}")
            value = records.encode(changed)
            try:
                await self.kv.update(entry.key, value, revision=entry.revision, ttl_s=self.settings.ttl_s)
            except Conflict:
                await asyncio.sleep(random.uniform(0, min(0.1, 0.002 * 2**attempt)))
            except NotFound:
                raise _missing(service, instance_id) from None
            else:
                return changed
        raise Conflict(
            f"instance: {instance_id!r} of {service!r} was changed by others {CHANGE_TRIES} times; try again"
        )

    async def remove(self, service: str, instance_id: str, *, revision: int | None = None) -> None:
        """Delete the record of an instance; one that lives comes back with its next heartbeat. Without `revision` a
        missing one is no error; with it `not_found` or `conflict` where it is not as it was.
        """
        await self.kv.delete(records.instance_key(service, instance_id), revision=revision)

    @asynccontextmanager
    async def watch(self, service: str | None = None) -> AsyncIterator[AsyncIterator[InstanceChange]]:
        """As `InstanceSource.watch`; it goes on by itself when the store was away."""
        async with self.kv.watch(prefix=records.instances_prefix(service)) as watch:
            yield _RegistryWatch(watch, self._read)

    async def _keys(self, prefix: str) -> list[str]:
        keys: list[str] = []
        cursor = None
        while True:
            page = await self.kv.keys(prefix, cursor=cursor)
            keys += page.items
            cursor = page.cursor
            if cursor is None:
                return keys

    def _read(self, key: str, value: bytes) -> Instance | None:
        try:
            return records.decode_instance(key, value)
        except InvalidArgument as error:
            self.malformed += 1
            _log.warning("record_malformed", key=key, error=error.message)
            return None


class _RegistryWatch:
    """Changes of keys as changes of instances."""

    def __init__(self, watch: Watch, read: Callable[[str, bytes], Instance | None]) -> None:
        self._watch, self._read = watch, read
        self._snapshot: list[Change] | None = None
        self._synced = False

    @property
    def flowing(self) -> bool:
        """Whether it hears."""
        return self._watch.flowing

    def __aiter__(self) -> AsyncIterator[InstanceChange]:
        return self

    async def __anext__(self) -> InstanceChange:
        if self._snapshot is None:
            self._snapshot = (await self._watch.snapshot())[::-1]
        while self._snapshot:
            found = self._told(self._snapshot.pop())
            if found is not None:
                return found
        if not self._synced:
            self._synced = True
            return InstanceChange(kind="synced")
        while True:
            found = self._told(await anext(self._watch))
            if found is not None:
                return found

    def _told(self, change: Change) -> InstanceChange | None:
        names = records.names_of(change.key)
        if names is None:
            return None
        instance = self._read(change.key, change.value) if change.kind is ChangeKind.PUT else None
        kind = "gone" if instance is None else "present"
        return InstanceChange(kind=kind, service_name=names[0], instance_id=names[1], instance=instance)  # type: ignore[arg-type]


def _missing(service: str, instance_id: str) -> NotFound:
    return NotFound(
        f"instance: {service!r} has no instance {instance_id!r}; look at the list of its instances",
        reason="instance_not_found",
        details={"service": service, "instance": instance_id},
    )


def _conforms(registry: Registry) -> InstanceSource:
    return registry


__all__ = ["CHANGE_TRIES", "Registry"]
