"""Services over HTTP: definitions, instances, how they are, and cleaning up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from groundplane.core.errors import FailedPrecondition
from groundplane.gateway import Gateway, ToolTable
from groundplane.gateway.services_api import ServicesApi
from groundplane.jobs import Jobs
from groundplane.queues import Queues
from groundplane.services import Instance, RegistrationSettings, Status
from served_gateway import House, eventually, house

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("SVC-05")]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, registration=RegistrationSettings(ttl_s=10, heartbeat_s=0.3)) as opened:
        yield opened


@pytest.fixture
async def http(one: House) -> AsyncIterator[httpx2.AsyncClient]:
    async with one.http() as client:
        yield client


def problem(answer: httpx2.Response, status: int, reason: str = "") -> dict[str, Any]:
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert (body["status"], body["reason"]) == (status, reason)
    return dict(body)


async def define(http: httpx2.AsyncClient, name: str, **words: Any) -> dict[str, Any]:
    answer = await http.post("/v1/services", json={"serviceName": name, **words})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_definition_is_made_read_changed_and_deleted(http: httpx2.AsyncClient) -> None:
    made = await http.post("/v1/services", json={"serviceName": "quotes", "owner": "team-a", "metadata": {"tier": 1}})
    assert (made.status_code, made.headers["location"]) == (201, "/v1/services/quotes")
    body = made.json()
    assert (await http.get("/v1/services/quotes")).json() == body
    assert {key: body[key] for key in ("serviceName", "owner", "description", "version", "metadata")} == {
        "serviceName": "quotes", "owner": "team-a", "description": "", "version": "", "metadata": {"tier": 1},
    }  # fmt: skip
    changed = await http.put("/v1/services/quotes", json={"version": "2.0", "revision": body["revision"]})
    assert changed.status_code == 200
    assert (changed.json()["version"], changed.json()["owner"]) == ("2.0", "")
    assert changed.json()["createdAt"] == body["createdAt"]
    assert changed.json()["revision"] > body["revision"]
    deleted = await http.delete("/v1/services/quotes")
    assert (deleted.status_code, deleted.json()) == (200, {"serviceName": "quotes", "deleted": True})
    problem(await http.get("/v1/services/quotes"), 404, "service_not_found")


async def test_what_is_not_defined_is_404(http: httpx2.AsyncClient) -> None:
    for call in (http.get, http.delete):
        problem(await call("/v1/services/nobody"), 404, "service_not_found")
    problem(await http.put("/v1/services/nobody", json={}), 404, "service_not_found")
    problem(await http.get("/v1/services/nobody/instances/a"), 404, "instance_not_found")


async def test_what_is_defined_already_or_was_changed_meanwhile_is_409(http: httpx2.AsyncClient) -> None:
    made = await define(http, "quotes")
    problem(await http.post("/v1/services", json={"serviceName": "quotes"}), 409, "service_defined")
    newer = (await http.put("/v1/services/quotes", json={})).json()["revision"]
    refused = problem(await http.put("/v1/services/quotes", json={"revision": made["revision"]}), 409)
    assert (refused["details"]["expected"], refused["details"]["actual"]) == (made["revision"], newer)
    problem(await http.delete("/v1/services/quotes", params={"revision": made["revision"]}), 409)
    assert (await http.get("/v1/services/quotes")).json()["revision"] == newer


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("body.serviceName", {}),
        ("body.serviceName", {"serviceName": "a.b"}),
        ("body.serviceName", {"serviceName": ""}),
        ("body.serviceName", {"serviceName": 7}),
        ("body.version", {"serviceName": "a", "version": "x" * 65}),
        ("body.owner", {"serviceName": "a", "owner": ["me"]}),
        ("body.metadata", {"serviceName": "a", "metadata": "none"}),
        ("body.color", {"serviceName": "a", "color": "blue"}),
    ],
)
async def test_what_is_no_definition_is_422_by_field(
    http: httpx2.AsyncClient, field: str, body: dict[str, Any]
) -> None:
    refused = problem(await http.post("/v1/services", json=body), 422)
    assert refused["details"]["field"] == field
    assert (await http.get("/v1/services")).json() == {"services": [], "cursor": None}


async def test_a_bad_name_in_the_path_is_422(http: httpx2.AsyncClient) -> None:
    for path in ("/v1/services/a.b", "/v1/services/a%20b/instances", "/v1/services/a/instances/%2A"):
        problem(await http.get(path), 422)


async def test_definitions_come_in_pages(http: httpx2.AsyncClient) -> None:
    for name in ("c", "a", "b"):
        await define(http, name)
    first = (await http.get("/v1/services", params={"limit": 2})).json()
    rest = (await http.get("/v1/services", params={"limit": 2, "cursor": first["cursor"]})).json()
    assert [one["serviceName"] for one in first["services"] + rest["services"]] == ["a", "b", "c"]
    assert rest["cursor"] is None
    problem(await http.get("/v1/services", params={"cursor": "\n"}), 400)


async def test_instances_are_shown_as_they_are_registered(one: House, http: httpx2.AsyncClient) -> None:
    async def red() -> str:
        return "no database"

    async with (
        one.registry.register("quotes", instance_id="a", version="1.0", metadata={"zone": "eu"}),
        one.registry.register("quotes", instance_id="b", version="1.1", readiness=red),
        one.registry.register("orders", instance_id="a"),
    ):
        found = (await http.get("/v1/services/quotes/instances")).json()
        assert [(each["instanceId"], each["status"]) for each in found["instances"]] == [
            ("a", "ACTIVE"),
            ("b", "UNHEALTHY"),
        ]
        assert found["health"] == {
            "serviceName": "quotes", "health": "degraded", "instances": 2, "healthy": 1, "versions": ["1.0", "1.1"],
            "byStatus": {"ACTIVE": 1, "STANDBY": 0, "UNHEALTHY": 1, "SHUTDOWN": 0},
        }  # fmt: skip
        shown = (await http.get("/v1/services/quotes/instances/a")).json()
        assert (shown["serviceName"], shown["metadata"], shown["stickyActiveGroup"]) == ("quotes", {"zone": "eu"}, None)
        for query, expected in (
            ({"healthy": "true"}, ["a"]),
            ({"healthy": "false"}, ["b"]),
            ({"status": "UNHEALTHY"}, ["b"]),
        ):
            some = (await http.get("/v1/services/quotes/instances", params=query)).json()["instances"]
            assert [each["instanceId"] for each in some] == expected
        everyone = (await http.get("/v1/instances")).json()["instances"]
        assert [each["serviceName"] for each in everyone] == ["orders", "quotes", "quotes"]
    assert (await http.get("/v1/services/quotes/instances")).json()["instances"] == []


async def test_the_summary_tells_of_what_is_defined_and_of_what_is_there(one: House, http: httpx2.AsyncClient) -> None:
    await define(http, "quotes")
    await define(http, "missing")
    async with one.registry.register("quotes"), one.registry.register("undefined"):
        found = (await http.get("/v1/instances/summary")).json()
    assert (found["services"], found["instances"], found["healthy"]) == (3, 2, 2)
    assert found["byHealth"] == {"healthy": 2, "degraded": 0, "down": 0, "absent": 1}
    assert [(each["serviceName"], each["health"]) for each in found["details"]] == [
        ("missing", "absent"), ("quotes", "healthy"), ("undefined", "healthy"),
    ]  # fmt: skip


async def test_entries_that_stand_still_are_cleaned_up_by_the_gateway(tmp_path: Path) -> None:
    settings = RegistrationSettings(ttl_s=1, heartbeat_s=0.3)
    async with house(tmp_path, registration=settings) as one, one.http() as http:
        record = Instance(service_name="quotes", instance_id="old", status=Status.ACTIVE)
        await one.registry.kv.put("instances.quotes.old", msgspec.json.encode(record))
        cleaned = (await http.post("/v1/instances/clean")).json()
        assert cleaned == {"removed": [], "staleS": 3.0}  # it has been seen for the first time
        async with one.registry.register("quotes", instance_id="alive"):

            async def gone() -> bool:
                found = (await http.get("/v1/services/quotes/instances")).json()["instances"]
                return [each["instanceId"] for each in found] == ["alive"]

            await eventually(gone, 30)


async def test_who_may_only_call_tools_sees_no_services_and_who_may_read_changes_none(tmp_path: Path) -> None:
    async with house(tmp_path, auth="keys") as one, one.http() as http:

        async def status(scope: str, method: str, path: str, **more: Any) -> int:
            made = await one.security.create_key(f"{scope[:4]}-{len(await one.security.list_keys())}", [scope])
            headers = {"Authorization": f"Bearer {made.secret.reveal()}"}
            return (await http.request(method, path, headers=headers, **more)).status_code

        body = {"json": {"serviceName": "quotes"}}
        assert await status("tools:*", "GET", "/v1/services") == 403
        assert await status("read", "GET", "/v1/services") == 200
        assert await status("read", "POST", "/v1/services", **body) == 403
        assert await status("operate", "POST", "/v1/services", **body) == 201
        assert await status("read", "DELETE", "/v1/services/quotes") == 403
        assert await status("read", "POST", "/v1/instances/clean") == 403
        assert (await http.get("/v1/services")).status_code == 401
        refused = [entry for entry in await one.security.list_audit() if entry.outcome == "refused"]
        assert {entry.action for entry in refused} >= {"services.change", "services.read"}


async def test_a_registry_that_is_away_is_503_and_never_an_empty_list(one: House, http: httpx2.AsyncClient) -> None:
    await one.registry.kv.aclose()
    paths = ("/v1/services", "/v1/services/quotes", "/v1/services/quotes/instances", "/v1/instances/summary")
    for path in paths:
        problem(await http.get(path), 503)
    problem(await http.post("/v1/services", json={"serviceName": "quotes"}), 503)
    failed = [entry for entry in await one.security.list_audit() if entry.outcome == "failed"]
    assert [(entry.action, entry.resource, entry.detail) for entry in failed] == [
        ("services.change", "service:quotes", "closed"),
    ]


async def test_a_gateway_without_a_registry_says_so(tmp_path: Path) -> None:
    async with (
        Jobs.open(state=tmp_path, upgrade=True) as jobs,
        Queues.open(state=tmp_path, upgrade=True) as queues,
        Gateway.open(jobs=jobs, queues=queues, tools=ToolTable()) as gateway,
    ):
        assert "/v1/services" in gateway.openapi["paths"]
        handlers = {each.operation: each.handler for each in gateway.endpoints if each.tag == "services"}
        assert len(handlers) == 12
        api = handlers["summarizeServices"].__self__  # type: ignore[attr-defined]
        assert isinstance(api, ServicesApi)
        with pytest.raises(FailedPrecondition, match="bus: this gateway has none"):
            await api.subscriptions(None)  # type: ignore[arg-type]
        for call in (api.summary(None), api.clean(None)):  # type: ignore[arg-type]
            with pytest.raises(FailedPrecondition, match="services: this gateway has no registry"):
                await call
