"""The access matrix: every operation, page and method of MCP, for every kind of caller, by key and by token.

The verdicts are written out here and the operations are the gateway's own: a new one without a verdict fails.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.core.errors import Internal
from groundplane.gateway.dashboard.mount import PAGES
from groundplane.gateway.mcp.access import METHODS, check_served
from groundplane.security import Action, AuditQuery
from served_gateway import House, house, tool
from token_issuer import Issuer, issuing

pytestmark = [pytest.mark.anyio, pytest.mark.req("GATE-18.2")]

CALLERS = ("none", "bad", "revoked", "carol", "alice", "bob", "reader", "operator", "admin")
"""Carol may call another tool, alice (who owns the job) and bob this one."""
SCOPES = {
    "revoked": ["tools:*", "admin"],
    "carol": ["tools:other"],
    "alice": ["tools:echo"],
    "bob": ["tools:*"],
    "reader": ["read"],
    "operator": ["operate"],
    "admin": ["admin"],
}
# + allowed, ? who are you (401), ! not with these scopes (403), - looks as if it did not exist (404)
OPEN, KNOWN = "+++++++++", "???++++++"
CALL, SEE, STEER = "???!++!!!", "???-+-+++", "???-+-!++"
READ, OPERATE, ADMIN = "???!!!+++", "???!!!!++", "???!!!!!+"
TOKEN = "?tttttttt"  # t: that is not the job's own token, which alone counts here
VERDICTS = {
    "createJob": CALL, "callTool": CALL,
    "listJobs": KNOWN, "listTools": KNOWN,
    "getJob": SEE, "getResult": SEE, "followJob": SEE, "listQuestions": SEE,
    "getOlderJob": SEE, "followOlderJob": SEE, "isActive": "?tt-+-+++",
    "cancelJob": STEER, "pauseJob": STEER, "resumeJob": STEER, "answerQuestion": STEER,
    "reportHeartbeat": TOKEN, "reportProgress": TOKEN, "reportFinal": TOKEN,
    "listDead": READ, "getDead": READ, "redriveDead": OPERATE,
    "purgeDead": OPERATE, "purgeAllDead": OPERATE,
    "listAudit": ADMIN,
    "listServices": READ, "getService": READ, "listInstances": READ, "getInstance": READ,
    "listAllInstances": READ, "summarizeServices": READ, "listLeaders": READ, "listSubscriptions": READ,
    "createService": OPERATE, "replaceService": OPERATE, "deleteService": OPERATE, "cleanInstances": OPERATE,
    "isLive": OPEN, "hasStarted": OPEN, "isReady": OPEN, "isHealthy": OPEN,
    "describeResource": OPEN, "describeMcpResource": OPEN,
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "createJob": {"tool": "echo", "arguments": {}},
    "callTool": {"name": "echo", "arguments": {}},
    "answerQuestion": {"action": "cancel"},
    "purgeAllDead": {"queue": "none"},
    "createService": {"serviceName": "none"},
    "reportHeartbeat": {"status": "processing"},
    "reportProgress": {"progress": 1},
    "reportFinal": {"status": "succeeded"},
}


PUBLIC = "https://gateway.example.com"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing(PUBLIC) as one:
        yield one


@pytest.fixture
async def one(tmp_path: Path, issuer: Issuer) -> AsyncIterator[House]:
    tokens = {"auth": "keys+oauth", "issuer": issuer.url, "public_url": PUBLIC}
    unbound = {"rate": "none", "streams": "none", "live_jobs": "none"}
    async with house(tmp_path, tool("echo"), tool("other"), **tokens, **unbound) as opened:
        yield opened


@pytest.fixture
async def keys(one: House, issuer: Issuer, request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """The headers of each caller: API keys, or tokens of the issuer where the test's parameter says so."""
    if getattr(request, "param", "keys") == "tokens":
        return _by_token(issuer)
    found: dict[str, dict[str, str]] = {"none": {}, "bad": {"Authorization": f"Bearer gp_{'a' * 16}_{'b' * 43}"}}
    for name, scopes in SCOPES.items():
        made = await one.security.create_key(name, scopes)
        found[name] = {"Authorization": f"Bearer {made.secret.reveal()}"}
        if name == "revoked":
            await one.security.revoke_key(made.key.key_id)
    return found


def _by_token(issuer: Issuer) -> dict[str, dict[str, str]]:
    """Bad is one for somebody else; the revoked one has expired."""
    texts = {"bad": issuer.token(aud="https://other.example.com")}
    for name, scopes in SCOPES.items():
        ended = {"exp": int(time.time()) - 3600} if name == "revoked" else {}
        texts[name] = issuer.token(sub=name, scope=" ".join(scopes), **ended)
    return {"none": {}, **{name: {"Authorization": f"Bearer {text}"} for name, text in texts.items()}}


by_key_and_token = pytest.mark.parametrize("keys", ["keys", "tokens"], indirect=True)


async def job_of_alice(http: httpx2.AsyncClient, keys: dict[str, dict[str, str]]) -> str:
    made = await http.post("/v1/jobs", json=BODIES["createJob"], headers=keys["alice"])
    assert made.status_code == 202, made.text
    return str(made.json()["job_id"])


async def verdict(http: httpx2.AsyncClient, method: str, path: str, **given: Any) -> str:
    async with http.stream(method, path, **given) as answer:
        if answer.status_code not in (401, 403, 404):
            assert answer.status_code < 500, (path, answer.status_code)
            return "+"
        reason = "" if "text/html" in answer.headers["content-type"] else _reason(await answer.aread())
        if answer.status_code == 401:
            assert "Bearer" in answer.headers["www-authenticate"]
            return "?"
        if reason == "insufficient_scope":
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
            return "!"
        return {"job_not_found": "-", "bad_token": "t"}.get(reason, "+")


def _reason(body: bytes) -> str:
    return str(httpx2.Response(200, content=body).json().get("reason", ""))


@by_key_and_token
async def test_every_operation_is_decided_about_for_every_caller(one: House, keys: dict[str, dict[str, str]]) -> None:
    operations = {endpoint.operation: endpoint for endpoint in one.gateway.endpoints}
    assert set(operations) == set(VERDICTS), "an operation without a verdict"
    documented = {op["operationId"] for path in one.gateway.openapi["paths"].values() for op in path.values()}
    assert documented == set(operations)
    async with one.http() as http:
        for operation, endpoint in operations.items():
            found = ""
            for name in CALLERS:
                names = dict.fromkeys(("dead_id", "question_id", "service", "instance"), "none")
                path = endpoint.path.format(job_id=await job_of_alice(http, keys), **names)
                body = {"json": BODIES.get(operation, {})} if endpoint.method in ("POST", "PUT") else {}
                found += await verdict(http, endpoint.method, path, headers=keys[name], **body)
            assert found == VERDICTS[operation], operation


async def test_every_route_is_an_operation_a_page_or_one_of_two_others(one: House) -> None:
    known = {endpoint.path for endpoint in one.gateway.endpoints} | {page.path for page in PAGES}
    assert {route.path for route in one.gateway.asgi.routes} - known == {"/mcp", "/openapi.json"}


@by_key_and_token
async def test_no_page_of_the_dashboard_is_for_strangers(one: House, keys: dict[str, dict[str, str]]) -> None:
    async with one.http() as http:
        for page in PAGES:
            path = page.path.format(
                job_id="x", question_id="x", action="cancel", actor="x", dead_id="x", tool="echo", digest="x", name="x"
            )
            for name in ("none", "bad", "revoked"):
                async with http.stream(page.method, path, headers=keys[name]) as answer:
                    to_login = answer.status_code == 303 and "login" in answer.headers["location"]
                    assert (answer.status_code == 401 or to_login) is (page.action is not Action.DESCRIBE), page


@by_key_and_token
async def test_every_method_of_mcp_is_decided_about_for_every_caller(
    one: House, keys: dict[str, dict[str, str]]
) -> None:
    known = {method: CALL if method == "tools/call" else KNOWN for method in METHODS}
    async with one.http() as http:
        for method, expected in known.items():
            found = ""
            for name in CALLERS:
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"name": "echo", "arguments": 3}}
                accept = {"Accept": "application/json, text/event-stream"}
                found += await verdict(http, "POST", "/mcp", json=body, headers={**keys[name], **accept})
            assert found == expected, method
        for verb in ("GET", "DELETE"):
            assert await verdict(http, verb, "/mcp") == "?"


def test_a_method_of_mcp_that_nobody_decides_about_is_not_served() -> None:
    check_served(METHODS)
    with pytest.raises(Internal, match="tools/forget are served and have no action"):
        check_served([*METHODS, "tools/forget"])


@by_key_and_token
@pytest.mark.req("GATE-08.3")
async def test_lists_hold_what_is_the_callers_own_and_everything_for_readers(
    one: House, keys: dict[str, dict[str, str]]
) -> None:
    async with one.http() as http:
        of_alice = await job_of_alice(http, keys)
        of_bob = (await http.post("/v1/jobs", json=BODIES["createJob"], headers=keys["bob"])).json()["job_id"]
        seen = {
            name: {job["job_id"] for job in (await http.get("/v1/jobs", headers=keys[name])).json()["jobs"]}
            for name in ("alice", "bob", "carol", "reader")
        }
        bobs = {"owner": (await one.jobs.get(of_bob)).owner}
        of_bobs = {
            name: {
                job["job_id"] for job in (await http.get("/v1/jobs", params=bobs, headers=keys[name])).json()["jobs"]
            }
            for name in ("alice", "bob", "carol", "reader")
        }
        tools = {
            name: {each["name"] for each in (await http.get("/v1/tools", headers=keys[name])).json()["tools"]}
            for name in ("alice", "bob", "carol", "reader")
        }
    assert seen == {"alice": {of_alice}, "bob": {of_bob}, "carol": set(), "reader": {of_alice, of_bob}}
    assert of_bobs == {"alice": set(), "bob": {of_bob}, "carol": set(), "reader": {of_bob}}
    both = {"echo", "other"}
    assert tools == {"alice": {"echo"}, "bob": both, "carol": {"other"}, "reader": both}


@by_key_and_token
@pytest.mark.req("GATE-08.3")
async def test_two_callers_may_use_one_idempotency_key(one: House, keys: dict[str, dict[str, str]]) -> None:
    async with one.http() as http:
        ids = {}
        for name in ("alice", "bob", "alice"):
            headers = {**keys[name], "Idempotency-Key": "same"}
            made = await http.post("/v1/jobs", json=BODIES["createJob"], headers=headers)
            assert ids.setdefault(name, made.json()["job_id"]) == made.json()["job_id"]
    assert ids["alice"] != ids["bob"]


@pytest.mark.req("GATE-18.3")
async def test_the_audit_log_tells_who_did_what_and_who_was_refused(
    one: House, keys: dict[str, dict[str, str]]
) -> None:
    async with one.http() as http:
        job_id = await job_of_alice(http, keys)
        await http.post(f"/v1/jobs/{job_id}/cancel", headers=keys["bob"])
        await http.post(f"/v1/jobs/{job_id}/cancel", headers=keys["operator"])
        assert (await http.post(f"/v1/jobs/{job_id}/pause", headers=keys["operator"])).status_code == 409
        await http.get("/v1/jobs")
        page = (await http.get("/v1/audit", headers=keys["admin"])).json()
    told = [(one["principal"], one["action"], one["resource"], one["outcome"]) for one in page["entries"]]
    assert sorted(told) == sorted(
        [
            ("", "jobs.list", "/v1/jobs", "refused"),
            ("operator", "jobs.control", f"job:{job_id}", "done"),
            ("operator", "jobs.control", f"job:{job_id}", "failed"),
            ("bob", "jobs.control", f"job:{job_id}", "refused"),
            ("alice", "tools.call", "tool:echo", "done"),
        ]
    )
    details = {entry.outcome: entry.detail for entry in await one.security.list_audit(AuditQuery(principal="operator"))}
    assert details == {"done": "cancel", "failed": "job_terminal"}
    query = AuditQuery(action=Action.CALL_TOOL.value)
    assert [entry.detail for entry in await one.security.list_audit(query)] == [f"job:{job_id}"]


@pytest.mark.req("GATE-08.1")
async def test_without_authentication_whoever_reaches_the_loopback_may_do_everything(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo")) as one, one.http() as http:
        job_id = (await http.post("/v1/jobs", json=BODIES["createJob"])).json()["job_id"]
        assert (await http.get(f"/v1/jobs/{job_id}")).status_code == 200
        assert (await http.get("/v1/audit")).status_code == 200
        ready = (await http.get("/readyz")).json()
        assert "checks" in ready


@pytest.mark.req("GATE-08.3")
async def test_probes_answer_strangers_without_details(one: House, keys: dict[str, dict[str, str]]) -> None:
    async with one.http() as http:
        assert (await http.get("/readyz")).json() == {"status": "ok"}
        assert (await http.get("/readyz", headers=keys["alice"])).json() == {"status": "ok"}
        assert "checks" in (await http.get("/readyz", headers=keys["reader"])).json()
