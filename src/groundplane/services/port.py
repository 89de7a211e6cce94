"""The port of service discovery: what a source of instances must do, and the values that cross it.

A source tells which instances of which services there are. The registry over `kv` is one, Kubernetes another; whoever
looks for a service (`services.discovery.Discovery`) takes either.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import msgspec

SCHEMA_VERSION = 1
ActiveStatus = Literal["ACTIVE", "STANDBY"]


class Status(enum.StrEnum):
    """What an instance says of itself. ACTIVE and STANDBY are able to work; a standby waits for its turn."""

    ACTIVE = "ACTIVE"
    STANDBY = "STANDBY"
    UNHEALTHY = "UNHEALTHY"
    SHUTDOWN = "SHUTDOWN"

    @property
    def healthy(self) -> bool:
        """Whether an instance of this status is able to work."""
        return self in (Status.ACTIVE, Status.STANDBY)


class Instance(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One instance of a service, as it is stored: JSON with these names in camelCase.

    `last_heartbeat` is ISO 8601 in UTC by the instance's own clock, None where a source has no heartbeats; nobody
    compares it with another clock. `sticky_active_group` names the group of which one instance at a time is active, and
    `sticky_active_status` whether it is this one. `registration_id` tells the registrations of one instance id apart: a
    later one is greater.
    """

    service_name: str
    instance_id: str
    version: str = ""
    status: Status = Status.ACTIVE
    last_heartbeat: str | None = None
    sticky_active_group: str | None = None
    sticky_active_status: ActiveStatus | None = None
    metadata: dict[str, Any] = {}
    registration_id: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def healthy(self) -> bool:
        """Whether it says that it is able to work."""
        return self.status.healthy

    def same_as(self, other: Instance | None) -> bool:
        """Whether nothing but the time of the heartbeat differs."""
        return other is not None and msgspec.structs.replace(other, last_heartbeat=self.last_heartbeat) == self


class InstanceChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a watch tells. `present`: the instance is there, new or as it is now. `gone`: it is not there any more.
    `synced`: all that was there when the watch began has been told; it names no instance.
    """

    kind: Literal["present", "gone", "synced"]
    service_name: str = ""
    instance_id: str = ""
    instance: Instance | None = None


class InstanceSource(Protocol):
    """Where instances are looked up. Everything may be called concurrently; nothing is cached or retried here.

    Every method raises `unavailable` where the source does not answer, never an empty list. All statuses are told.
    """

    @property
    def name(self) -> str:
        """What messages and metrics call it: `registry`, `kubernetes`."""
        ...

    async def services(self) -> list[str]:
        """The names of the services that have instances, sorted. One round trip or a few, bounded by the source's own
        timeout.
        """
        ...

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The instances of one service, or of all, sorted by service and instance id. Empty only where the source has
        answered that there are none.
        """
        ...

    def watch(self, service: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[InstanceChange]]:
        """Follow the instances of one service, or of all: first those that are there as `present`, then `synced`, then
        every change in order and without a gap.

        A heartbeat may come as `present` though nothing but its time differs. The iterator ends with an error where the
        source is lost and it cannot go on without a gap: watch again, compare with what was known. One that goes on by
        itself may have an attribute `flowing`, false while it does not hear.
        """
        ...


__all__ = ["SCHEMA_VERSION", "ActiveStatus", "Instance", "InstanceChange", "InstanceSource", "Status"]
