"""`/v1/services`, `/v1/instances` and `/v1/subscriptions`: what services there are meant to be, which instances of them
there are, how they are, and how far they are behind.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import ASGIApp

from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.gateway.access import Access
from groundplane.gateway.endpoints import Answer, Call, Endpoint, Parameter
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.rest import reply
from groundplane.security.access import Action
from groundplane.services.directory import Directory
from groundplane.services.names import VERSION_CHARS_MAX
from groundplane.services.port import Instance, Status
from groundplane.services.records import TEXT_CHARS_MAX, Defined, Definition
from groundplane.services.registry import Registry
from groundplane.services.subscriptions import Subscriptions
from groundplane.services.summary import service_health, summary

LIMIT_DEFAULT, LIMIT_MAX = 100, 1000
_REVISION: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 2**62}
_SERVICE: dict[str, Any] = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"}
_TEXT: dict[str, Any] = {"type": "string", "maxLength": TEXT_CHARS_MAX, "default": ""}
_WORDS: dict[str, Any] = {
    "owner": _TEXT,
    "description": _TEXT,
    "version": {"type": "string", "maxLength": VERSION_CHARS_MAX, "default": ""},
    "metadata": {"type": "object", "description": "Anything; at most 64 KiB of JSON."},
}


class ServicesApi:
    """Definitions and instances in the registry of services, and subscriptions of the bus."""

    def __init__(self, access: Access, directory: Directory | None, subscriptions: Subscriptions | None = None) -> None:
        self._access = access
        self._directory = directory
        self._subscriptions = subscriptions

    async def list_services(self, call: Call) -> ASGIApp:
        """The definitions, by name."""
        limit = call.query.get("limit", LIMIT_DEFAULT)
        try:
            page = await self._of().definitions.page(cursor=call.query.get("cursor"), limit=limit)
        except InvalidArgument as error:
            raise HTTPProblem(400, error.message, details=error.details) from error
        return reply({"services": [defined_json(one) for one in page.items], "cursor": page.cursor})

    async def create(self, call: Call) -> ASGIApp:
        """Define a service that is not defined yet."""
        definition = _definition(call.body["serviceName"], call.body)
        with self._access.changing(call.caller, Action.CHANGE_SERVICES, _resource(definition.service_name)) as change:
            made = await self._of().definitions.create(definition)
            change.detail = "defined"
        return reply(defined_json(made), 201, {"Location": f"/v1/services/{made.definition.service_name}"})

    async def get(self, call: Call) -> ASGIApp:
        """The definition of a service."""
        return reply(defined_json(await self._of().definitions.get(call.path("service"))))

    async def replace(self, call: Call) -> ASGIApp:
        """Write a definition over the one that is there; with `revision` only over that one."""
        definition = _definition(call.path("service"), call.body)
        with self._access.changing(call.caller, Action.CHANGE_SERVICES, _resource(call.path("service"))) as change:
            made = await self._of().definitions.update(definition, revision=call.body.get("revision"))
            change.detail = f"changed to revision {made.revision}"
        return reply(defined_json(made))

    async def delete(self, call: Call) -> ASGIApp:
        """Delete a definition; the instances stay."""
        service = call.path("service")
        with self._access.changing(call.caller, Action.CHANGE_SERVICES, _resource(service)) as change:
            await self._of().definitions.delete(service, revision=call.query.get("revision"))
            change.detail = "deleted"
        return reply({"serviceName": service, "deleted": True})

    async def instances(self, call: Call) -> ASGIApp:
        """The instances of a service, sick ones too, and how it is; none of them is an empty list."""
        service = call.path("service")
        found = await self._of().instances(service)
        return reply({"health": service_health(service, found), "instances": _chosen(found, call)})

    async def instance(self, call: Call) -> ASGIApp:
        """One instance of a service."""
        return reply(await self._of().instance(call.path("service"), call.path("instance")))

    async def all_instances(self, call: Call) -> ASGIApp:
        """The instances of all services."""
        return reply({"instances": _chosen(await self._of().instances(), call)})

    async def summary(self, call: Call) -> ASGIApp:
        """How every service is that is defined or has an instance."""
        registry = self._of()
        defined = [one.definition.service_name for one in await registry.definitions.all()]
        return reply(summary(await registry.instances(), defined))

    async def clean(self, call: Call) -> ASGIApp:
        """Remove the entries that have stood still for three TTLs under the eyes of this gateway."""
        cleaner = self._shown().cleaner
        with self._access.changing(call.caller, Action.CHANGE_SERVICES, "instances") as change:
            removed = await cleaner.sweep()
            change.detail = f"{len(removed)} removed"
        return reply({"removed": removed, "staleS": cleaner.stale_s})

    async def leaders(self, call: Call) -> ASGIApp:
        """Who leads each election of the plane's services, and since when; `leader` is null where nobody does."""
        return reply({"leaders": self._shown().leaders()})

    async def subscriptions(self, call: Call) -> ASGIApp:
        """The durable subscriptions of the plane's bus, and how many messages each has before it."""
        if self._subscriptions is None:
            raise FailedPrecondition(
                "bus: this gateway has none; set bus to a server that all of the plane's processes share"
            )
        return reply({"subscriptions": await self._subscriptions.all()})

    def _of(self) -> Registry:
        return self._shown().registry

    def _shown(self) -> Directory:
        if self._directory is None:
            raise _without()
        return self._directory


def defined_json(one: Defined) -> dict[str, Any]:
    """A definition and its revision."""
    shown: dict[str, Any] = msgspec.to_builtins(one.definition)
    del shown["schemaVersion"]
    return {**shown, "revision": one.revision}


def services_endpoints(api: ServicesApi) -> list[Endpoint]:
    """The rows of the route table."""
    return [*_definitions(api), *_definition_rows(api), *_instances(api), *_of_all(api)]


def _definitions(api: ServicesApi) -> list[Endpoint]:
    limit: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    body = {"type": "object", "properties": {"serviceName": _SERVICE, **_WORDS}, "required": ["serviceName"]}
    return [
        _row(
            "GET",
            "/v1/services",
            "listServices",
            api.list_services,
            "ServicePage",
            query=(
                Parameter(name="cursor", schema={"type": "string"}, description="`cursor` of the page before."),
                Parameter(name="limit", schema=limit),
            ),
        ),
        Endpoint(
            method="POST",
            path="/v1/services",
            operation="createService",
            action=Action.CHANGE_SERVICES,
            summary=(api.create.__doc__ or "").strip(),
            handler=api.create,
            body={**body, "additionalProperties": False},
            answers={201: Answer(description="It is defined. Location names it.", schema="Service")},
            problems=(409,),
            tag="services",
        ),
    ]


def _definition_rows(api: ServicesApi) -> list[Endpoint]:
    path, change = "/v1/services/{service}", Action.CHANGE_SERVICES
    body = {"type": "object", "properties": {**_WORDS, "revision": _REVISION}, "additionalProperties": False}
    revision = Parameter(name="revision", schema=_REVISION, description="Only where it has this revision.")
    return [
        _row("GET", path, "getService", api.get, "Service", problems=(404, 409)),
        _row("PUT", path, "replaceService", api.replace, "Service", action=change, problems=(404, 409), body=body),
        _row(
            "DELETE",
            path,
            "deleteService",
            api.delete,
            "ServiceDeleted",
            action=change,
            problems=(404, 409),
            query=(revision,),
        ),
    ]


def _instances(api: ServicesApi) -> list[Endpoint]:
    path = "/v1/services/{service}/instances"
    return [
        _row("GET", path, "listInstances", api.instances, "InstanceList", query=_filters()),
        _row(
            "GET",
            f"{path}/{{instance}}",
            "getInstance",
            api.instance,
            "Instance",
            problems=(404, 409),
        ),
    ]


def _of_all(api: ServicesApi) -> list[Endpoint]:
    clean = Action.CHANGE_SERVICES
    return [
        _row("GET", "/v1/instances", "listAllInstances", api.all_instances, "AllInstances", query=_filters()),
        _row("GET", "/v1/instances/summary", "summarizeServices", api.summary, "ServicesSummary"),
        _row("GET", "/v1/leaders", "listLeaders", api.leaders, "LeaderList"),
        _row("GET", "/v1/subscriptions", "listSubscriptions", api.subscriptions, "SubscriptionList"),
        _row("POST", "/v1/instances/clean", "cleanInstances", api.clean, "InstancesCleaned", action=clean),
    ]


def _filters() -> tuple[Parameter, ...]:
    statuses = {"type": "array", "items": {"type": "string", "enum": [one.value for one in Status]}}
    flag = {"type": "string", "enum": ["true", "false"]}
    return (
        Parameter(name="status", schema=statuses, many=True),
        Parameter(name="healthy", schema=flag, description="Only those that are able to work, or only the others."),
    )


def _row(
    method: str,
    path: str,
    operation: str,
    handler: Any,
    schema: str,
    *,
    action: Action = Action.READ_SERVICES,
    problems: tuple[int, ...] = (409,),
    **more: Any,
) -> Endpoint:
    return Endpoint(
        method=method,
        path=path,
        operation=operation,
        action=action,
        summary=(handler.__doc__ or "").strip(),
        handler=handler,
        answers={200: Answer(description="As it is now.", schema=schema)},
        problems=problems,
        tag="services",
        **more,
    )


def _definition(service: str, body: Any) -> Definition:
    return Definition(
        service_name=service,
        owner=body["owner"],
        description=body["description"],
        version=body["version"],
        metadata=body.get("metadata", {}),
    )


def _chosen(found: list[Instance], call: Call) -> list[Instance]:
    statuses, healthy = call.query.get("status"), call.query.get("healthy")
    if statuses:
        found = [one for one in found if one.status.value in statuses]
    return found if healthy is None else [one for one in found if one.healthy is (healthy == "true")]


def _resource(service: str) -> str:
    return f"service:{service[:100]}"


def _without() -> FailedPrecondition:
    return FailedPrecondition(
        "services: this gateway has no registry of services; set kv to a server that all of the plane's processes share"
    )


__all__ = ["ServicesApi", "defined_json", "services_endpoints"]
