"""One registered instance: its entry, its heartbeats, and what it says of itself.

The entry is this object's: every write is a compare-and-set. What others have changed in it meanwhile (ACTIVE or
STANDBY, the group, metadata) is taken over; what a later registration of the same instance id has written is left alone
(`superseded`), until that one is gone.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    InvalidArgument,
    NotFound,
)
from groundplane.core.ids import new_id
from groundplane.core.lifecycle import Lifecycle
from groundplane.kv import KV
from groundplane.services import records
from groundplane.services.names import check_metadata, check_token, check_version
from groundplane.services.port import ActiveStatus, Instance, Status
from groundplane.services.settings import RegistrationSettings
from groundplane.telemetry.logs import get_logger

WRITE_TRIES = 50
CLOSE_S = 5.0
Readiness = Callable[[], Awaitable[str | None]]
"""Says why the instance is not able to work, or None where it is."""
_log = get_logger("services")


class RegistrationStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since it was opened: heartbeats that were written, those that failed in all and in a row, entries that
    were lost and made again, writes that met a change of somebody else.
    """

    heartbeats: int
    failures: int
    failures_in_a_row: int
    recreated: int
    conflicts: int


class Registration:
    """An instance that is registered. Made by `Registry.register`; everything may be called concurrently."""

    def __init__(
        self,
        kv: KV,
        instance: Instance,
        *,
        readiness: Readiness | None,
        settings: RegistrationSettings,
        clock: Clock,
    ) -> None:
        self._kv, self._settings, self._clock = kv, settings, clock
        self._readiness = readiness
        self._key = records.instance_key(instance.service_name, instance.instance_id)
        self._wanted = instance
        self._untold: dict[str, Any] = {}
        """What was said of the instance and is in no entry yet, by field."""
        self._revision: int | None = None
        self._lock = asyncio.Lock()
        self._draining = False
        self._unready: str | None = None
        self._superseded = False
        self._failure: BaseException | None = None
        self._heartbeats = self._failures = self._row = self._recreated = self._conflicts = 0
        self._told = instance.status
        self._lifecycle = Lifecycle("registration")
        self._lifecycle.on_close(self._leave)

    def __repr__(self) -> str:
        return f"<Registration {self.service_name} {self.instance_id} {self.status}, {self._row} failures in a row>"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        kv: KV,
        service: str,
        *,
        instance_id: str | None = None,
        version: str = "",
        metadata: Mapping[str, Any] | None = None,
        readiness: Readiness | None = None,
        settings: RegistrationSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> AsyncIterator[Registration]:
        """Write the entry, keep it with heartbeats, delete it at the end of the block (the TTL does where the store is
        away then).

        `instance_id` names the instance, made from the host's name where it is left out; an entry of that id that is
        there is taken over. `readiness` is asked before every heartbeat. Raises as `KV.create`; then nothing is kept.
        """
        instance = Instance(
            service_name=check_token("service", service),
            instance_id=check_token("instance", instance_id if instance_id is not None else made_instance_id()),
            version=check_version(version),
            metadata=check_metadata(metadata or {}),
            registration_id=new_id(),
        )
        settings = settings or RegistrationSettings()
        registration = cls(kv, instance, readiness=readiness, settings=settings, clock=clock)
        try:
            await registration._begin()
            registration._lifecycle.spawn(registration._beat_for_ever(), name="heartbeats")
            yield registration
        finally:
            await registration.aclose()

    @property
    def service_name(self) -> str:
        """The service."""
        return self._wanted.service_name

    @property
    def instance_id(self) -> str:
        """The id of this instance."""
        return self._wanted.instance_id

    @property
    def status(self) -> Status:
        """What is told of this instance, or would be if the store answered: UNHEALTHY also after `failures_max`
        heartbeats in a row that failed, until one succeeds.
        """
        if not self._draining and self._row >= self._settings.failures_max:
            return Status.UNHEALTHY
        return self._shown(self._wanted).status

    @property
    def instance(self) -> Instance:
        """The record as the next heartbeat will tell it."""
        return self._shown(self._wanted)

    async def set_status(self, status: Status | Literal["ACTIVE", "STANDBY"]) -> None:
        """Say ACTIVE or STANDBY from now on. UNHEALTHY is said by readiness and failures, SHUTDOWN by `drain`. Raises
        as `KV.update`; the next heartbeat that succeeds tells it then.
        """
        chosen = _own_status(status)
        await self._change(status=chosen)

    async def set_sticky_active(self, group: str | None, status: ActiveStatus | None) -> None:
        """Say which group of single-active instances this one belongs to, and whether it is the active one. Raises as
        `set_status`.
        """
        _check_group(group, status)
        await self._change(sticky_active_group=group, sticky_active_status=status)

    async def set_single_active(self, group: str, status: ActiveStatus) -> None:
        """`set_sticky_active` and `set_status` in one write: what an instance is that takes part in one election."""
        _check_group(group, status)
        await self._change(status=_own_status(status), sticky_active_group=group, sticky_active_status=status)

    async def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Say this of the instance instead of what was said before. Raises as `set_status`."""
        await self._change(metadata=check_metadata(metadata))

    async def beat(self) -> bool:
        """A heartbeat now; whether it succeeded. Never raises but `closed`."""
        self._lifecycle.check_open()
        return await self._beat()

    async def drain(self) -> None:
        """Say SHUTDOWN from now on: nobody chooses this instance any more while it finishes. Raises as `set_status`."""
        self._draining = True
        await self._change()

    async def check(self) -> str | None:
        """For readiness: None, or why the entry is not as it should be."""
        if self._superseded:
            return f"another registration of {self.service_name} {self.instance_id} is there, later than this"
        if self._row >= self._settings.failures_max:
            return f"{self._row} heartbeats in a row have failed: {self._failure}"
        return None

    def statistics(self) -> RegistrationStatistics:
        """Counters."""
        return RegistrationStatistics(
            heartbeats=self._heartbeats,
            failures=self._failures,
            failures_in_a_row=self._row,
            recreated=self._recreated,
            conflicts=self._conflicts,
        )

    async def aclose(self) -> None:
        """End the heartbeats and delete the entry. Idempotent, ≤ 10 s; where the store is away, the TTL deletes it."""
        await self._lifecycle.aclose()

    async def _begin(self) -> None:
        async with self._lock:
            self._unready = await self._ask_readiness()
            await self._write()
            self._heartbeats += 1

    async def _beat_for_ever(self) -> None:
        """Nothing but closing ends it. Each wait is a little shorter than the interval, so that instances that began
        together do not beat together.
        """
        while True:
            began = time.monotonic()
            await self._beat()
            interval_s = self._settings.heartbeat_s * random.uniform(0.9, 1.0)
            await asyncio.sleep(max(interval_s - (time.monotonic() - began), interval_s / 10))

    async def _beat(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.heartbeat_s + self._settings.readiness_s):
                async with self._lock:
                    self._unready = await self._ask_readiness()
                    await self._write()
        except Exception as error:  # noqa: BLE001 - the loop never ends; what went wrong is counted, logged and told
            self._failed(error)
            return False
        self._heartbeats += 1
        if self._row >= self._settings.failures_max:
            _log.info("heartbeat_back", service=self.service_name, instance=self.instance_id, failures=self._row)
        self._row, self._failure = 0, None
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._row += 1
        self._failure = error
        event = "heartbeat_failed" if self._row != self._settings.failures_max else "instance_unhealthy"
        names = {"service": self.service_name, "instance": self.instance_id}
        _log.warning(event, **names, in_a_row=self._row, error=f"{type(error).__name__}: {error}")

    async def _ask_readiness(self) -> str | None:
        if self._readiness is None:
            return None
        try:
            async with asyncio.timeout(self._settings.readiness_s):
                return await self._readiness()
        except TimeoutError:
            return f"readiness did not answer within {self._settings.readiness_s:g} s"
        except Exception as error:  # noqa: BLE001 - a check that is broken proves nothing: it is red
            return f"the readiness check broke: {type(error).__name__}: {error}"

    async def _change(self, **said: Any) -> None:
        self._lifecycle.check_open()
        async with self._lock:
            self._untold |= said
            await self._write()

    async def _write(self) -> None:
        """Tell the record with all that is untold, over whatever was written meanwhile."""
        for _ in range(WRITE_TRIES):
            self._wanted = msgspec.structs.replace(self._wanted, **self._untold)
            shown = self._shown(self._wanted)
            value, ttl_s = records.encode(shown), self._settings.ttl_s
            try:
                if self._revision is None:
                    self._revision = await self._kv.create(self._key, value, ttl_s=ttl_s)
                else:
                    self._revision = await self._kv.update(self._key, value, revision=self._revision, ttl_s=ttl_s)
            except NotFound:
                self._revision = None
                self._recreated += 1
            except (AlreadyExists, Conflict):
                self._conflicts += 1
                await self._look()
            else:
                self._superseded, self._untold = False, {}
                self._note(shown.status)
                return
        raise Conflict(f"instance: {self.instance_id!r} was changed by others {WRITE_TRIES} times in a row")

    async def _look(self) -> None:
        """Find out what others have made of the entry."""
        entry = await self._kv.get(self._key)
        self._revision = None if entry is None else entry.revision
        if entry is None:
            return
        try:
            found = records.decode_instance(entry.key, entry.value)
        except InvalidArgument:
            return  # no record at all: it is written over
        mine = self._wanted.registration_id
        if found.registration_id > mine:
            self._superseded = True
            self._revision = None
            raise FailedPrecondition(
                f"instance: a later registration has taken {self.service_name!r} {self.instance_id!r}; give every "
                "instance an id of its own",
                reason="superseded",
            )
        if found.registration_id == mine:
            status = found.status if found.status.healthy else self._wanted.status
            self._wanted = msgspec.structs.replace(
                self._wanted,
                status=status,
                sticky_active_group=found.sticky_active_group,
                sticky_active_status=found.sticky_active_status,
                metadata=found.metadata,
            )

    def _shown(self, wanted: Instance) -> Instance:
        status = wanted.status
        if self._draining:
            status = Status.SHUTDOWN
        elif self._unready is not None:
            status = Status.UNHEALTHY
        return msgspec.structs.replace(wanted, status=status, last_heartbeat=iso_z(self._clock.now_ms()))

    def _note(self, status: Status) -> None:
        if status is not self._told:
            why = {"why": self._unready} if self._unready is not None else {}
            names = {"service": self.service_name, "instance": self.instance_id}
            _log.info("instance_status", **names, before=self._told.value, status=status.value, **why)
            self._told = status

    async def _leave(self) -> None:
        """Delete the entry where it is ours."""
        try:
            async with asyncio.timeout(CLOSE_S), self._lock:
                for _ in range(WRITE_TRIES):
                    if await self._left():
                        return
        except (GroundplaneError, TimeoutError) as error:
            names = {"service": self.service_name, "instance": self.instance_id}
            _log.warning("not_deregistered", **names, error=str(error), remedy="its entry ends with its TTL")

    async def _left(self) -> bool:
        entry = await self._kv.get(self._key)
        if entry is None:
            return True
        try:
            found = records.decode_instance(entry.key, entry.value)
        except InvalidArgument:
            return True
        if found.registration_id != self._wanted.registration_id:
            return True
        try:
            await self._kv.delete(self._key, revision=entry.revision)
        except (Conflict, NotFound):
            return False
        return True


def made_instance_id() -> str:
    """An id for an instance that was given none: the host's name, the process, and enough of chance."""
    host = "".join(one if one.isascii() and (one.isalnum() or one == "-") else "-" for one in socket.gethostname())
    return f"{host.strip('-')[:32] or 'host'}-{os.getpid()}-{os.urandom(4).hex()}"


def _check_group(group: str | None, status: ActiveStatus | None) -> None:
    if group is not None:
        check_token("group", group)
    if status not in ("ACTIVE", "STANDBY", None) or (group is None) != (status is None):
        raise InvalidArgument(f"status: {status!r} with group {group!r}; give a group and ACTIVE or STANDBY, or None")


def _own_status(status: object) -> Status:
    try:
        chosen = Status(str(status))
    except ValueError:
        chosen = Status.SHUTDOWN
    if not chosen.healthy:
        raise InvalidArgument(
            f"status: {status!r} is neither ACTIVE nor STANDBY; readiness says UNHEALTHY, drain SHUTDOWN"
        )
    return chosen


__all__ = ["Readiness", "Registration", "RegistrationStatistics", "made_instance_id"]
