"""What actors of other makes call back with: tokens, heartbeats, progress, outcomes, the older words."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.gateway.callbacks import STATUSES, TEXT_CHARS_MAX
from served_gateway import House, house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("one", "first"), tool("two", "first", "second")) as opened:
        yield opened


class Actor:
    """A job that was handed to an actor which reports over HTTP."""

    def __init__(self, http: httpx2.AsyncClient, job_id: str, token: str) -> None:
        self.http = http
        self.job_id = job_id
        self.token = token

    async def report(self, kind: str, **body: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return await self.http.post(f"/jobs/{self.job_id}/{kind}", json=body, headers=headers)

    async def job(self) -> dict[str, Any]:
        return (await self.http.get(f"/jobs/{self.job_id}")).json()  # type: ignore[no-any-return]


async def begin(one: House, http: httpx2.AsyncClient, name: str = "one") -> Actor:
    response = await http.post("/v1/jobs", json={"tool": name, "arguments": {"a": 1}})
    job_id = response.json()["job_id"]
    return Actor(http, job_id, await one.token_of(job_id, "first"))


@pytest.mark.req("GATE-07.1", "JOB-05")
async def test_heartbeats_raise_the_progress_of_one_hop_to_10_and_50_and_never_to_100(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        seen = []
        for status in ("picked_up", "processing", "completed"):
            response = await actor.report("heartbeat", status=status, message=f"now {status}")
            assert response.status_code == 200
            seen.append((response.json()["progress"], response.json()["status"], response.json()["message"]))
    assert seen[:2] == [(10.0, "Running", "now picked_up"), (50.0, "Running", "now processing")]
    assert seen[2] == (50.0, "Running", "now completed")  # 100 belongs to the recorded success alone


@pytest.mark.req("GATE-07.1", "GATE-09")
async def test_what_a_heartbeat_says_is_kept_up_to_a_bound(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        for kind, body in (("heartbeat", {"status": "processing"}), ("progress", {"progress": 50})):
            response = await actor.report(kind, message="x" * 1_000_000, **body)
            assert (response.status_code, response.json()["message"]) == (200, "x" * TEXT_CHARS_MAX)


@pytest.mark.req("GATE-07.1", "JOB-05")
async def test_the_hop_is_found_by_the_actor_or_given(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http, "two")
        assert (await actor.report("heartbeat", status="picked_up", actor="first")).json()["progress"] == 5.0
        assert (await actor.report("heartbeat", status="processing", actor="first", progress=100)).json()[
            "progress"
        ] == 50.0
        assert (await actor.report("heartbeat", status="picked_up", actor="second")).json()["progress"] == 55.0
        assert (await actor.report("progress", progress=50, hop=1)).json()["progress"] == 77.5
        wrong = await actor.report("heartbeat", status="processing", actor="secnod")
        assert (wrong.status_code, wrong.json()["details"]["field"]) == (422, "actor")
        assert "did you mean 'second'?" in wrong.json()["detail"]
        assert (await actor.report("progress", progress=5, hop=2)).status_code == 422


@pytest.mark.req("GATE-07.2")
@pytest.mark.parametrize("status", ["proccessing", "", "Completed", 7, None])
async def test_a_bad_status_is_400_and_changes_nothing(one: House, status: Any) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        before = await actor.job()
        response = await actor.report("heartbeat", status=status)
        assert response.status_code in ((400,) if isinstance(status, str) else (422,))
        assert response.json()["detail"].startswith(("status: ", "body.status: "))
        assert await actor.job() == before


@pytest.mark.req("GATE-07.3")
async def test_an_error_heartbeat_fails_the_job_with_its_text_and_progress_below_100(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        await actor.report("heartbeat", status="processing")
        response = await actor.report("heartbeat", status="error", error="the oven is cold", actor="first")
        assert response.status_code == 200
        job = await actor.job()
        assert (job["status"], job["state"], job["error"]) == ("Failed", "failed", "the oven is cold")
        assert job["error_details"]["details"]["reason"] == "processing_error"
        assert job["progress"] == 50.0


@pytest.mark.req("GATE-07.3", "GATE-04.2")
async def test_an_error_record_keeps_its_code_reason_type_and_details(one: House) -> None:
    record = {
        "code": "deadline_exceeded",
        "reason": "timeout_error",
        "message": "too slow",
        "type": "TimeoutError",
        "details": {"limit_s": 3},
        "traceback": "Traceback: secrets of the handler",
    }
    async with one.http() as http:
        actor = await begin(one, http)
        text = (await actor.report("final", status="failed", error=record)).text
        error = (await http.get(f"/v1/jobs/{actor.job_id}")).json()["error"]
    details = {"limit_s": 3, "reason": "timeout_error", "type": "TimeoutError"}
    assert error == {"code": "deadline_exceeded", "message": "too slow", "details": details}
    assert "secrets of the handler" not in text


@pytest.mark.req("GATE-07.4")
@pytest.mark.parametrize("kind", ["heartbeat", "progress", "final"])
async def test_callbacks_without_the_jobs_own_token_are_refused(one: House, kind: str) -> None:
    body = {"status": "failed" if kind == "final" else "error", "progress": 50}
    async with one.http() as http:
        actor, other = await begin(one, http), await begin(one, http)
        before = await actor.job()
        path = f"/jobs/{actor.job_id}/{kind}"
        digest = hashlib.sha256(actor.token.encode()).hexdigest()
        missing = await http.post(path, json=body)
        assert (missing.status_code, missing.json()["reason"]) == (401, "bad_token")
        assert missing.headers["www-authenticate"].startswith("Bearer")
        for wrong in (other.token, digest, actor.token[:-1], actor.token + "x", "ü"):
            response = await http.post(path, json=body, headers={"X-Groundplane-Job-Token": wrong.encode()})
            assert (response.status_code, response.json()["reason"]) == (403, "bad_token")
        assert actor.token not in missing.text
        assert await actor.job() == before
        right = await http.post(path, json=body, headers={"X-Groundplane-Job-Token": actor.token})
        assert right.status_code == 200


@pytest.mark.req("GATE-07.4")
async def test_the_token_is_in_no_answer(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        digest = hashlib.sha256(actor.token.encode()).hexdigest()
        for path in (f"/jobs/{actor.job_id}", f"/v1/jobs/{actor.job_id}", "/v1/jobs"):
            text = (await http.get(path)).text
            assert actor.token not in text
            assert digest not in text


@pytest.mark.req("GATE-04.2")
async def test_final_reports_the_outcome_and_then_the_job_is_gone(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        assert (await http.get(f"/jobs/{actor.job_id}/active")).json()["active"] is True
        assert (await actor.report("final", status="nonsense")).status_code == 400
        assert (await actor.report("final", status="Succeeded", result={"x": 1})).status_code == 200
        job = await actor.job()
        assert (job["status"], job["state"], job["progress_percent"]) == ("Succeeded", "succeeded", 100.0)
        assert (job["result"], job["error"], job["id"]) == ({"x": 1}, "", actor.job_id)
        active = await http.get(f"/jobs/{actor.job_id}/active")
        assert (active.status_code, active.json()["reason"]) == (410, "job_terminal")
        late = await actor.report("heartbeat", status="error", error="too late")
        assert late.status_code == 410
        assert (await actor.job())["state"] == "succeeded"


@pytest.mark.req("GATE-04.2")
async def test_members_that_older_handlers_send_and_we_do_not_know_are_ignored(one: House) -> None:
    async with one.http() as http:
        actor = await begin(one, http)
        response = await actor.report("heartbeat", status="processing", step="first", timestamp=1.5, job_id="x")
        assert response.status_code == 200


def test_the_statuses_are_those_of_the_older_gateway() -> None:
    assert STATUSES == ("picked_up", "processing", "completed", "error")
