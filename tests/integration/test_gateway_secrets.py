"""Credentials that callers send to a served gateway are in nothing that it says or keeps.

Every library of the gateway logs all that it has to say here, and every span is exported.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.gateway.dashboard.logins import COOKIE
from groundplane.testing.servers import otlp
from groundplane.testing.servers.instance import Instance
from groundplane.testing.servers.ports import Ports
from integration import dev_plane
from integration.dev_plane import PIPELINE
from integration.test_dashboard_requests import token_in
from spans import SOON
from wire.test_mcp_lanes import Legacy
from wire.test_mcp_tasks import Caller

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.otlp, pytest.mark.req("CORE-09.1", "CORE-09.2")]

STATE = "c4n4ryState-91f0"
CODE = "c4n4ryCode-91f0"
OPAQUE = "c4n4ryToken-91f0"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjNG40cnkifQ.c4n4rySignature-91f0"
BASIC = "Basic YWxpY2U6YzRuNHJ5"
UNKNOWN = f"gp_{'c' * 16}_{'c4n4ryKey' * 5}"[: 3 + 16 + 1 + 43]
COOKIES = {COOKIE: "c4n4ryLogin-91f0", "groundplane_visit": "c4n4ryVisit-91f0", "other": "c4n4ryOther-91f0"}
PLANTED = (STATE, CODE, OPAQUE, JWT.rpartition(".")[2], BASIC.partition(" ")[2], UNKNOWN[20:], *COOKIES.values())
LOUD = "import logging, sys\nlogging.basicConfig(level=logging.DEBUG, stream=sys.stderr)\n"
PATHS = (
    "/v1/jobs", "/v1/jobs/nobody", "/v1/jobs/nobody/events", "/v1/jobs/nobody/result", "/v1/tools", "/v1/dead",
    "/v1/audit", "/jobs/nobody", "/jobs/nobody/active", "/readyz", "/healthz", "/openapi.json", "/nowhere",
    "/.well-known/oauth-protected-resource", "/mcp",
)  # fmt: skip
POSTS = ("/v1/jobs", "/tools/call", "/v1/jobs/nobody/cancel", "/jobs/nobody/heartbeat", "/mcp", "/v1/dead/none/redrive")
CREDENTIALS: tuple[dict[str, str], ...] = (
    {"Authorization": f"Bearer {UNKNOWN}"},
    {"Authorization": f"Bearer {OPAQUE}"},
    {"Authorization": f"Bearer {JWT}"},
    {"Authorization": BASIC},
    {"X-Groundplane-Job-Token": OPAQUE},
    {},
)


class Told:
    """What the gateway said to its callers, but for the answers that are to carry a credential."""

    def __init__(self, url: str) -> None:
        self.http = httpx2.AsyncClient(base_url=url, timeout=60)
        self.texts: dict[str, str] = {}

    async def ask(self, method: str, path: str, **given: Any) -> httpx2.Response:
        answer = await self.http.request(method, path, **given)
        self.texts[f"{len(self.texts)} {method} {path}"] = f"{answer.headers!r} {answer.text}"
        return answer


async def badly(told: Told) -> None:
    """Requests of strangers, everywhere."""
    cookies = "; ".join(f"{name}={value}" for name, value in COOKIES.items())
    carried = {"Cookie": cookies, "Referer": f"https://issuer.example.com/?state={STATE}&code={CODE}"}
    query = {"state": STATE, "code": CODE, "access_token": OPAQUE}
    for credential in CREDENTIALS:
        for path in PATHS:
            await told.ask("GET", path, params=query, headers={**carried, **credential})
        for path in POSTS:
            await told.ask("POST", path, params=query, headers={**carried, **credential}, json={"token": OPAQUE})


async def well(told: Told, key: str) -> str:
    """Requests of a caller who is known, with mistakes in them; the id of the job that is made."""
    bearer = {"Authorization": f"Bearer {key}"}
    made = await told.ask("POST", "/v1/jobs", json={"tool": "pipeline", "arguments": {"value": 1}}, headers=bearer)
    job_id = str(made.json()["job_id"])
    for path in (
        "/v1/jobs",
        f"/v1/jobs/{job_id}/result?wait=50",
        f"/v1/jobs/{job_id}/events",
        "/v1/audit",
        "/v1/tools",
    ):
        found = await told.ask("GET", path, headers=bearer)
        assert found.status_code == 200, found.text
    for path in (*PATHS, f"/v1/jobs/{job_id}"):
        refused = await told.ask("GET", path, params={"state": STATE, "access_token": OPAQUE}, headers=bearer)
        assert refused.status_code < 500
    for body in ({"tool": "pipeline", "arguments": {"token": OPAQUE}}, {"tool": 1, "access_token": OPAQUE}):
        refused = await told.ask("POST", "/v1/jobs", json=body, headers=bearer)
        assert refused.status_code == 422
        assert "token" in refused.text
    return job_id


async def over_mcp(told: Told, key: str) -> None:
    told.http.headers["Authorization"] = f"Bearer {key}"
    legacy = await Legacy(told.http).open()
    call = {"name": "pipeline", "arguments": {"value": 2}}
    assert '"result":9' in (await legacy.post(2, "tools/call", call)).text
    assert '"isError":true' in (await legacy.post(3, "tools/call", {**call, "arguments": {"token": OPAQUE}})).text
    modern = await Caller(told.http, tasks=False).call("pipeline", {"value": 2, "client_secret": OPAQUE})
    assert modern["isError"] is True
    told.texts["mcp"] = repr(modern)
    del told.http.headers["Authorization"]


async def by_browser(told: Told, key: str) -> dict[str, str]:
    """Log in; the cookies."""
    wrong = await _login(told, UNKNOWN)
    assert wrong.status_code == 401
    entered = await _login(told, key)
    assert entered.status_code == 303, entered.text
    cookies = dict(told.http.cookies.items())
    assert len(cookies[COOKIE]) > 20
    for path in ("/", "/dashboard/tools", "/dashboard/jobs/nobody", "/dashboard/health"):
        await told.ask("GET", path)
    told.http.cookies.clear()
    return cookies


async def broken(told: Told, key: str, store: Path) -> None:
    """Requests that fail for a fault that nobody foresaw, with its traceback in the log."""
    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute("ALTER TABLE jobs RENAME TO jobs_away")
        for path in ("/v1/jobs", "/"):
            headers = {"Authorization": f"Bearer {key}", "Cookie": f"{COOKIE}={COOKIES[COOKIE]}"}
            failed = await told.ask("GET", path, headers=headers)
            assert failed.status_code == 500, failed.text
        database.execute("ALTER TABLE jobs_away RENAME TO jobs")


async def _login(told: Told, key: str) -> httpx2.Response:
    page = await told.http.get("/dashboard/login", params={"back": "/"})
    form = {"key": key, "back": "/", "_token": token_in(page.text)}
    return await told.http.post("/dashboard/login", data=form, headers={"Sec-Fetch-Site": "same-origin"})


async def test_no_credential_of_a_caller_is_logged_traced_counted_audited_or_answered(
    tmp_path: Path, otlp_server: Instance
) -> None:
    (tmp_path / "app.py").write_text(PIPELINE)
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "sitecustomize.py").write_text(LOUD)
    made = dev_plane.groundplane(
        "keys", "create", "boss", "--scope", "admin", "--scope", "tools:*", "--state", "s", folder=tmp_path
    )
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    variables = {
        **SOON,
        "GROUNDPLANE_LOG_LEVEL": "debug",
        "GROUNDPLANE_AUTH": "keys",
        "GROUNDPLANE_RATE": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_server.url,
        "PYTHONPATH": f"{tmp_path / 'loud'}:{dev_plane.environment().get('PYTHONPATH', '')}",
    }
    held = Ports()
    admin = held.take()
    variables["GROUNDPLANE_ADMIN_PORT"] = str(admin)
    options = ("dev", "app:app", "--port", "0", "--state", "s", "--json")
    with dev_plane.serving(*options, folder=tmp_path, **variables) as plane:
        told = Told(plane.url)
        await badly(told)
        await well(told, key)
        await over_mcp(told, key)
        cookies = await by_browser(told, key)
        await broken(told, key, tmp_path / "s" / "plane.db")
        told.texts["metrics"] = (await told.http.get(f"http://127.0.0.1:{admin}/metrics")).text
        told.texts["audit"] = dev_plane.groundplane("audit", "list", "--state", "s", "--json", folder=tmp_path).stdout
        assert '"refused"' in told.texts["audit"]
        assert "groundplane_gateway_requests_total" in told.texts["metrics"]
        await told.http.aclose()
        held.release()
        assert plane.stop() == 0
        told.texts["log"] = plane.log.read_text()
    told.texts["spans"] = repr(otlp.received(otlp_server.url))
    assert "GET /v1/jobs" in told.texts["spans"]
    assert "request_failed" in told.texts["log"]
    assert "DEBUG:" in told.texts["log"]  # of libraries
    assert '"DEBUG"' in told.texts["log"]  # of ours
    for file in (tmp_path / "s").rglob("*"):
        told.texts[str(file)] = file.read_bytes().decode("latin-1") if file.is_file() else ""
    secrets = (*PLANTED, key[20:], *cookies.values())
    found = {where: secret for where, text in told.texts.items() for secret in secrets if secret in text}
    assert found == {}
