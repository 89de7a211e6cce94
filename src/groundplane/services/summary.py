"""How the services are: counts by status, and one word for each. No input or output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from groundplane.services.port import Instance, Status

Word = Literal["healthy", "degraded", "down", "absent"]


class ServiceHealth(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One service. `healthy`: all of its instances are, those that shut down left out; `degraded`: some are; `down`:
    none is; `absent`: it is defined and has no instance.
    """

    service_name: str
    health: Word
    instances: int
    healthy: int
    by_status: dict[str, int]
    versions: list[str]


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All services: counts, and each of them by name."""

    services: int
    instances: int
    healthy: int
    by_health: dict[str, int]
    by_status: dict[str, int]
    details: list[ServiceHealth]


def summary(instances: Iterable[Instance], defined: Iterable[str] = ()) -> Summary:
    """The summary of these instances, and of services that are defined."""
    by_service: dict[str, list[Instance]] = {service: [] for service in defined}
    for one in instances:
        by_service.setdefault(one.service_name, []).append(one)
    details = [service_health(service, by_service[service]) for service in sorted(by_service)]
    words = [one.health for one in details]
    return Summary(
        services=len(details),
        instances=sum(one.instances for one in details),
        healthy=sum(one.healthy for one in details),
        by_health={word: words.count(word) for word in ("healthy", "degraded", "down", "absent")},
        by_status={status.value: sum(one.by_status[status.value] for one in details) for status in Status},
        details=details,
    )


def service_health(service: str, instances: Iterable[Instance]) -> ServiceHealth:
    """How one service is."""
    found = list(instances)
    healthy = sum(one.healthy for one in found)
    staying = sum(one.status is not Status.SHUTDOWN for one in found)
    word: Word = "absent" if not found else "down" if not healthy else "healthy" if healthy == staying else "degraded"
    return ServiceHealth(
        service_name=service,
        health=word,
        instances=len(found),
        healthy=healthy,
        by_status={status.value: sum(one.status is status for one in found) for status in Status},
        versions=sorted({one.version for one in found if one.version}),
    )


__all__ = ["ServiceHealth", "Summary", "service_health", "summary"]
