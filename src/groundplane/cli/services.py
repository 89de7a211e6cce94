"""`groundplane services`: who is there, how they are, and what changes; on the registry itself, or on another source.
No gateway is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, NamedTuple

import msgspec
from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.services import (
    Defined,
    Definitions,
    Discovery,
    DiscoverySettings,
    Instance,
    InstanceChange,
    InstanceSource,
    Registry,
    open_source,
)
from groundplane.services.names import check_token
from groundplane.services.summary import service_health, summary

Source = Annotated[
    str | None, Parameter(help="Look there instead of in the plane's registry, as kubernetes:///NAMESPACE.")
]
_COLUMNS = ("service_name", "health", "instances", "healthy", "versions", "owner")
_INSTANCE_COLUMNS = ("instance_id", "status", "version", "last_heartbeat", "group", "metadata")


def list_(*, source: Source = None, common: Common = COMMON) -> int:
    """List the services that are defined or have instances, and how they are.

    Examples:

      groundplane services list

      groundplane services list --source kubernetes:///shop --json
    """

    async def work(place: _Place, output: Output) -> int:
        written = await place.definitions.all() if place.definitions is not None else []
        defined = {one.definition.service_name: one for one in written}
        found = summary(await place.source.instances(), defined)
        rows = []
        for one in found.details:
            row = {field: getattr(one, field) for field in _COLUMNS[:4]}
            known = defined.get(one.service_name)
            rows.append({**row, "versions": " ".join(one.versions), "owner": known and known.definition.owner})
        output.table(rows, _COLUMNS, empty="no services", value=found)
        return EXIT_OK

    return _run(common, source, work)


def show(service: str, /, *, source: Source = None, common: Common = COMMON) -> int:
    """Show one service: what is written of it, how it is, and each of its instances.

    Examples:

      groundplane services show quotes --json
    """

    async def work(place: _Place, output: Output) -> int:
        instances = await place.source.instances(check_token("service", service))
        written = await _written(place.definitions, service)
        if written is None and not instances:
            raise NotFound(
                f"service: {service!r} is not defined and has no instance; look at `groundplane services list`",
                reason="service_not_found",
            )
        health = service_health(service, instances)
        if output.json:
            definition = (
                None if written is None else {**msgspec.to_builtins(written.definition), "revision": written.revision}
            )
            output.result({"definition": definition, "health": health, "instances": instances})
            return EXIT_OK
        said = f", {written.definition.description}" if written is not None and written.definition.description else ""
        output.result(None, f"{service}: {health.health}, {health.healthy} of {health.instances} healthy{said}")
        output.table([_row(one) for one in instances], _INSTANCE_COLUMNS, empty="no instances")
        return EXIT_OK

    return _run(common, source, work)


def watch(
    service: str | None = None,
    /,
    *,
    count: Annotated[int | None, Parameter(help="End after so many changes; else with Ctrl-C.")] = None,
    source: Source = None,
    common: Common = COMMON,
) -> int:
    """Tell of instances as they come, change and go: first those that are there. Heartbeats are not told.

    Examples:

      groundplane services watch

      groundplane services watch quotes --json
    """
    if count is not None and count < 1:
        raise InvalidArgument(f"count: {count!r} must be at least 1")

    async def work(place: _Place, output: Output) -> int:
        told = 0
        async with (
            Discovery.open(place.source, DiscoverySettings(watch=False)) as discovery,
            aclosing(discovery.changes(service)) as changes,
        ):
            async for change in changes:
                _tell(output, change)
                told += 1
                if told == count:
                    break
        return EXIT_OK

    return _run(common, source, work)


def _tell(output: Output, change: InstanceChange) -> None:
    at = iso_z(SYSTEM_CLOCK.now_ms())
    if change.kind == "synced":
        output.result({"time": at, "kind": "synced"}, f"{at}  synced   this is all there is now")
        return
    names = {"serviceName": change.service_name, "instanceId": change.instance_id}
    status = change.instance.status.value if change.instance is not None else ""
    value = {"time": at, "kind": change.kind, **names, "instance": change.instance}
    output.result(value, f"{at}  {change.kind:<7}  {change.service_name}  {change.instance_id}  {status}".rstrip())


async def _written(definitions: Definitions | None, service: str) -> Defined | None:
    if definitions is None:
        return None
    try:
        return await definitions.get(service)
    except NotFound:
        return None


def _row(one: Instance) -> dict[str, Any]:
    group = f"{one.sticky_active_group} {one.sticky_active_status}" if one.sticky_active_group else None
    return {
        "instance_id": one.instance_id,
        "status": one.status.value,
        "version": one.version or None,
        "last_heartbeat": one.last_heartbeat,
        "group": group,
        "metadata": one.metadata or None,
    }


@asynccontextmanager
async def registry_of(common: Common) -> AsyncIterator[Registry]:
    """The registry of an existing plane; looking never makes one."""
    settings = common.settings()
    if settings.kv.scheme == "embedded":
        state_folder.existing(settings.state)
    opening = Registry.open(settings.kv.reveal(), namespace=settings.name, state=settings.state)
    async with opening as registry:
        yield registry


class _Place(NamedTuple):
    """Where is looked; definitions are in the registry alone."""

    source: InstanceSource
    definitions: Definitions | None


@asynccontextmanager
async def _place(common: Common, source: str | None) -> AsyncIterator[_Place]:
    if source is None:
        async with registry_of(common) as registry:
            yield _Place(registry, registry.definitions)
    else:
        async with open_source(source) as found:
            yield _Place(found, None)


def _run(common: Common, source: str | None, work: Callable[[_Place, Output], Awaitable[int]]) -> int:
    async def inside() -> int:
        async with _place(common, source) as place:
            return await work(place, common.output)

    return asyncio.run(inside())
