"""Definitions of services: what people write down of them, by compare-and-set."""

from __future__ import annotations

import msgspec

from groundplane.core import codec
from groundplane.core.clock import SYSTEM_CLOCK, Clock, iso_z
from groundplane.core.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidArgument, NotFound
from groundplane.kv import KV, Entry
from groundplane.services import records
from groundplane.services.records import Defined, Definition
from groundplane.telemetry.logs import get_logger

PAGE_MAX = 1000
_TRIES = 20
_log = get_logger("services")


class DefinitionPage(msgspec.Struct, frozen=True, kw_only=True):
    """Definitions by name; `cursor` of the next page, or None at the end."""

    items: list[Defined]
    cursor: str | None = None


class Definitions:
    """The definitions in a registry. Everything may be called concurrently; raises as `KV` does."""

    def __init__(self, kv: KV, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._kv, self._clock = kv, clock

    async def create(self, definition: Definition) -> Defined:
        """Write a new one. Raises `already_exists` (`service_defined`), `invalid_argument`."""
        now = iso_z(self._clock.now_ms())
        made = msgspec.structs.replace(records.checked(definition), created_at=now, updated_at=now)
        try:
            revision = await self._kv.create(records.definition_key(made.service_name), records.encode(made))
        except AlreadyExists as error:
            raise AlreadyExists(
                f"serviceName: {made.service_name!r} is defined already; change it instead",
                reason="service_defined",
                details=error.details,
            ) from error
        return Defined(definition=made, revision=revision)

    async def get(self, service: str) -> Defined:
        """The definition of a service. Raises `not_found` (`service_not_found`)."""
        entry = await self._kv.get(records.definition_key(service))
        if entry is None:
            raise _missing(service)
        found = _read(entry)
        if found is None:
            raise FailedPrecondition(
                f"serviceName: the definition of {service!r} cannot be read; write it anew, or delete it",
                details={"service": service, "revision": entry.revision},
            )
        return found

    async def update(self, definition: Definition, *, revision: int | None = None) -> Defined:
        """Write what is given over the definition that is there; `created_at` stays. Raises `not_found`, and `conflict`
        (details: expected, actual) where it has another `revision` than the one named.
        """
        wanted = records.checked(definition)
        for _ in range(_TRIES):
            key = records.definition_key(wanted.service_name)
            entry = await self._kv.get(key)
            if entry is None:
                raise _missing(wanted.service_name)
            found, now = _read(entry), iso_z(self._clock.now_ms())
            expected = entry.revision if revision is None else revision
            created_at = found.definition.created_at if found is not None else now
            made = msgspec.structs.replace(wanted, created_at=created_at, updated_at=now)
            try:
                return Defined(
                    definition=made, revision=await self._kv.update(key, records.encode(made), revision=expected)
                )
            except NotFound as error:
                raise _missing(wanted.service_name) from error
            except Conflict:
                if revision is not None:
                    raise
        raise Conflict(f"serviceName: {wanted.service_name!r} was changed by others {_TRIES} times; try again")

    async def delete(self, service: str, *, revision: int | None = None) -> None:
        """Delete a definition; instances of the service stay. Raises `not_found`, `conflict`."""
        for _ in range(_TRIES):
            key = records.definition_key(service)
            entry = await self._kv.get(key)
            if entry is None:
                raise _missing(service)
            try:
                await self._kv.delete(key, revision=entry.revision if revision is None else revision)
            except NotFound as error:
                raise _missing(service) from error
            except Conflict:
                if revision is not None:
                    raise
            else:
                return
        raise Conflict(f"serviceName: {service!r} was changed by others {_TRIES} times; try again")

    async def page(self, *, cursor: str | None = None, limit: int = PAGE_MAX) -> DefinitionPage:
        """A page of definitions by name. Those that nobody can read are left out, and logged."""
        if cursor is not None and not cursor.startswith(records.DEFINITIONS):
            raise InvalidArgument(
                f"cursor: {cursor[:100]!r} is none of a page; take that of the page before", details={"field": "cursor"}
            )
        keys = await self._kv.keys(records.DEFINITIONS, cursor=cursor, limit=limit)
        entries = await self._kv.get_many(keys.items) if keys.items else {}
        found = (_read(one) for one in entries.values())
        return DefinitionPage(items=[one for one in found if one is not None], cursor=keys.cursor)

    async def all(self) -> list[Defined]:
        """Every definition, by name."""
        found: list[Defined] = []
        cursor = None
        while True:
            page = await self.page(cursor=cursor)
            found += page.items
            cursor = page.cursor
            if cursor is None:
                return found


def _read(entry: Entry) -> Defined | None:
    try:
        return Defined(definition=codec.decode(entry.value, Definition), revision=entry.revision)
    except InvalidArgument as error:
        _log.warning("record_malformed", key=entry.key, error=error.message)
        return None


def _missing(service: str) -> NotFound:
    return NotFound(
        f"serviceName: {service!r} is not defined; look at the list of services",
        reason="service_not_found",
        details={"service": service},
    )


__all__ = ["DefinitionPage", "Definitions"]
