"""Lane (iv): the REST operations against a served gateway, and every error as a problem document."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import msgspec
import pytest

from groundplane.core import codec
from groundplane.core.envelope import Claim, Envelope
from groundplane.gateway.openapi import EVERYWHERE
from groundplane.jobs.port import Finish
from groundplane.mesh.spec import ToolSpec
from groundplane.queues.port import OutgoingMessage, QueueSpec
from served_gateway import VALUE, Gate, House, actors, double, echo, eventually, fail, house, raw, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

UNKNOWN = "00000000-0000-7000-8000-000000000000"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    tools: list[ToolSpec] = [
        tool("double", schema=VALUE),
        tool("pipeline", "double", "echo", schema=VALUE),
        tool("echo"),
        tool("fail"),
        tool("stuck"),
        tool("slow", "gate"),
        tool("short", "stuck", timeout_s=0.2),
    ]
    async with house(tmp_path, *tools) as opened:
        yield opened


async def start(http: httpx2.AsyncClient, name: str, arguments: Any = None, **options: Any) -> dict[str, Any]:
    response = await http.post("/v1/jobs", json={"tool": name, "arguments": arguments or {}}, **options)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def result(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    response = await http.get(f"/v1/jobs/{job_id}/result", params={"wait": 20})
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


@pytest.mark.req("GATE-04.1", "GATE-03.4")
async def test_a_job_is_accepted_with_its_location_and_exactly_the_promised_members(one: House) -> None:
    async with one.http() as http:
        response = await http.post("/v1/jobs", json={"tool": "stuck", "arguments": {"a": 1}})
        job = response.json()
        assert response.status_code == 202
        assert response.headers["location"] == f"/v1/jobs/{job['job_id']}"
        assert list(job) == [
            "job_id",
            "tool",
            "state",
            "progress",
            "message",
            "actor",
            "steps_completed",
            "total_steps",
            "result",
            "error",
            "created_at",
            "updated_at",
            "finished_at",
            "deadline_at",
            "questions",
        ]
        assert (job["state"], job["progress"], job["result"], job["error"]) == ("pending", 0.0, None, None)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["deadline_at"])
        assert (await http.get(response.headers["location"])).json() == job


@pytest.mark.req("GATE-02")
async def test_a_result_is_read_from_blobs_where_the_mesh_put_it_there_alone(one: House) -> None:
    """What a handler returns may look like the mesh's own word for a large result; it reads nobody's objects."""
    await one.blobs.put("k", codec.encode({"payload": "the whole"}))
    named = {"$blob": "k"}
    async with one.http() as http:
        for result_key, expected in (("k", "the whole"), ("another", named), (None, named)):
            job_id = (await start(http, "stuck"))["job_id"]
            end = Finish(job_id=job_id, envelope_id=job_id, result=named, result_key=result_key)
            assert (await one.jobs.apply(end))[0].applied
            assert (await result(http, job_id))["result"] == expected


@pytest.mark.req("GATE-04.1", "GATE-04.2")
async def test_the_result_is_202_while_the_job_runs_and_200_once_it_has_ended(one: House) -> None:
    gate = Gate()
    async with one.http() as http, actors(one, {"gate": gate}):
        job = await start(http, "slow", {"x": [1, None, "ü"]})
        await gate.reached.wait()
        early = await http.get(f"/v1/jobs/{job['job_id']}/result")
        assert (early.status_code, early.json()["state"]) == (202, "running")
        short = await http.get(f"/v1/jobs/{job['job_id']}/result", params={"wait": "0.05"})
        assert short.status_code == 202
        waiting = asyncio.create_task(http.get(f"/v1/jobs/{job['job_id']}/result", params={"wait": 30}))
        await eventually(lambda: _waits(one))
        gate.opened.set()
        late = await waiting
        assert (late.status_code, late.json()["state"], late.json()["progress"]) == (200, "succeeded", 100.0)
        assert late.json()["result"] == {"x": [1, None, "ü"]}
        again = await http.get(f"/v1/jobs/{job['job_id']}/result")
        assert again.json() == late.json()


async def _waits(one: House) -> bool:
    return "1 subscriptions" in repr(one.gateway._services.feed)


@pytest.mark.req("GATE-04.1")
async def test_a_pipeline_gives_its_last_output_and_the_updates_of_every_hop(one: House) -> None:
    async with one.http() as http, actors(one, {"double": double, "echo": echo}):
        job = await result(http, (await start(http, "pipeline", {"value": 21}))["job_id"])
        assert (job["result"], job["steps_completed"], job["total_steps"]) == ({"value": 42}, 2, 2)


@pytest.mark.req("GATE-04.1")
async def test_a_failed_job_has_its_error_with_code_message_and_details_and_progress_below_100(one: House) -> None:
    async with one.http() as http, actors(one, {"fail": fail}):
        job = await result(http, (await start(http, "fail"))["job_id"])
        assert job["state"] == "failed"
        assert job["progress"] < 100
        assert list(job["error"]) == ["code", "message", "details"]
        assert job["error"]["message"] == "the handler is not amused"
        assert job["error"]["details"] == {"reason": "processing_error", "type": "ValueError"}


@pytest.mark.req("GATE-04.1")
async def test_the_older_call_has_the_id_in_its_text_and_beside_it(one: House) -> None:
    async with one.http() as http, actors(one, {"echo": echo}):
        answer = (await http.post("/tools/call", json={"name": "echo", "arguments": {"message": "hi"}})).json()
        (found,) = re.findall(r"ID: ([0-9a-f-]{36})", answer["content"][0]["text"])
        assert found == answer["job_id"]
        assert (await result(http, found))["result"] == {"message": "hi"}


@pytest.mark.req("GATE-04.1")
async def test_jobs_are_listed_newest_first_by_state_and_tool_page_by_page(one: House) -> None:
    async with one.http() as http, actors(one, {"echo": echo}):
        stuck = [(await start(http, "stuck"))["job_id"] for _ in range(3)]
        done = (await start(http, "echo"))["job_id"]
        await result(http, done)
        everything = (await http.get("/v1/jobs")).json()
        assert [job["job_id"] for job in everything["jobs"]] == [done, *reversed(stuck)]
        assert everything["cursor"] is None
        pending = (await http.get("/v1/jobs", params={"state": "pending,running", "tool": "stuck", "limit": 2})).json()
        assert [job["job_id"] for job in pending["jobs"]] == [stuck[2], stuck[1]]
        rest = (await http.get("/v1/jobs?state=pending&state=running", params={"cursor": pending["cursor"]})).json()
        assert [job["job_id"] for job in rest["jobs"]][-1] == stuck[0]


@pytest.mark.req("GATE-04.1", "JOB-07")
async def test_a_job_is_paused_resumed_and_cancelled_once(one: House) -> None:
    async with one.http() as http:
        path = f"/v1/jobs/{(await start(http, 'stuck'))['job_id']}"
        assert (await http.post(f"{path}/pause")).json()["state"] == "paused"
        assert (await http.post(f"{path}/resume", json={"reason": "go on"})).json()["state"] in ("pending", "running")
        assert (await http.post(f"{path}/cancel", json={})).json()["state"] == "cancelled"
        again = await http.post(f"{path}/cancel")
        assert (again.status_code, again.json()["reason"]) == (409, "job_terminal")
        assert (await http.get(path)).json()["state"] == "cancelled"


@pytest.mark.req("GATE-10", "JOB-06.1", "JOB-06.2")
async def test_a_repeated_idempotency_key_answers_with_the_same_job_and_other_arguments_conflict(one: House) -> None:
    async with one.http() as http:
        key = {"Idempotency-Key": "order 17"}
        first = await http.post("/v1/jobs", json={"tool": "stuck", "arguments": {"a": 1}}, headers=key)
        again = await http.post("/v1/jobs", json={"arguments": {"a": 1}, "tool": "stuck"}, headers=key)
        assert again.json()["job_id"] == first.json()["job_id"]
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        other = await http.post("/v1/jobs", json={"tool": "stuck", "arguments": {"a": 2}}, headers=key)
        assert (other.status_code, other.json()["reason"]) == (409, "idempotency_mismatch")
        assert len((await http.get("/v1/jobs")).json()["jobs"]) == 1


@pytest.mark.req("GATE-10")
@pytest.mark.parametrize(("given", "carried"), [(TRACE, TRACE), ("nonsense", None), (TRACE.replace("0a", "0g"), None)])
async def test_the_trace_context_of_the_request_is_carried_into_the_envelope(
    one: House, given: str, carried: str | None
) -> None:
    async with one.http() as http:
        job = await start(http, "stuck", headers={"traceparent": given})
        async with one.queues.consume("stuck", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 10.0)
        envelope = Envelope.from_bytes(delivery.payload)
        assert envelope.headers.get("traceparent") == carried
        assert envelope.job_id == job["job_id"]


@pytest.mark.req("GATE-01", "GATE-04.4")
async def test_defaults_of_arguments_reach_the_actor(one: House) -> None:
    async with one.http() as http:
        await start(http, "double", {"value": 1})
        async with one.queues.consume("double", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 10.0)
        assert Envelope.from_bytes(delivery.payload).payload == {"value": 1, "mode": "fast"}


@pytest.mark.req("GATE-04.1", "GATE-01")
async def test_the_timeout_of_the_tool_ends_the_job_and_a_request_may_only_shorten_it(one: House) -> None:
    async with one.http() as http:
        assert (await result(http, (await start(http, "short"))["job_id"]))["state"] == "timed_out"
        response = await http.post("/v1/jobs", json={"tool": "stuck", "timeout": 0.2})
        assert (await result(http, response.json()["job_id"]))["state"] == "timed_out"
        longer = await http.post("/v1/jobs", json={"tool": "stuck", "timeout": 3000})
        assert longer.status_code == 422
        assert longer.json()["detail"].startswith("timeout: 3000 is longer than the tool's 300 seconds")


@pytest.mark.req("GATE-04.1", "MESH-15")
async def test_arguments_over_the_inline_limit_are_carried(one: House) -> None:
    text = "ü" * 2_000_000
    async with one.http() as http:
        job = await start(http, "stuck", {"text": text})
        async with one.queues.consume("stuck", max_in_flight=1) as consumer:
            (delivery,) = await consumer.receive(1, 10.0)
        envelope = Envelope.from_bytes(delivery.payload)
        assert envelope.job_id == job["job_id"]
        assert envelope.claim is not None


@pytest.mark.req("GATE-04.2", "QUEUE-08")
async def test_dead_letters_are_listed_shown_and_redriven_with_an_edited_payload(one: House) -> None:
    await one.queues.declare(QueueSpec(name="work"))
    envelope = Envelope.new(["work"], {"value": "bad"}, job_id=UNKNOWN)
    await one.queues.send(OutgoingMessage(queue="work", payload=envelope.to_bytes(), id=envelope.id))
    await one.queues.send(OutgoingMessage(queue="work", payload=b"\x00 no envelope", id="raw"))
    async with one.queues.consume("work", max_in_flight=2) as consumer, one.http() as http:
        for delivery in await eventually(lambda: consumer.receive(2)):
            await consumer.reject(delivery, "processing_error")
        if len((await http.get("/v1/dead")).json()["dead"]) < 2:
            (delivery,) = await consumer.receive(2)
            await consumer.reject(delivery, "processing_error")
        page = (await http.get("/v1/dead", params={"queue": "work", "limit": 1})).json()
        (letter,) = page["dead"]
        assert (letter["queue"], letter["message_id"], letter["job_id"]) == ("work", envelope.id, UNKNOWN)
        (other,) = (await http.get("/v1/dead", params={"cursor": page["cursor"]})).json()["dead"]
        assert (await http.get(f"/v1/dead/{letter['id']}")).json()["payload"] == {"value": "bad"}
        assert (await http.get(f"/v1/dead/{other['id']}")).json()["payload_base64"] == "ACBubyBlbnZlbG9wZQ=="
        edited = await http.post(f"/v1/dead/{letter['id']}/redrive", json={"payload": {"value": 3}})
        assert edited.json()["redriven"] is True
        refused = await http.post(f"/v1/dead/{other['id']}/redrive", json={"payload": 1})
        assert (refused.status_code, refused.json()["code"]) == (409, "failed_precondition")
        assert (await http.post(f"/v1/dead/{other['id']}/redrive")).status_code == 200
        assert (await http.post(f"/v1/dead/{letter['id']}/redrive")).status_code == 404
        (again,) = await consumer.receive(1, 10.0)
        back = Envelope.from_bytes(again.payload)
        assert (back.id, back.payload, again.attempt, again.redrives) == (envelope.id, {"value": 3}, 1, 1)


@pytest.mark.req("GATE-04.2", "QUEUE-08", "GATE-18.3")
async def test_dead_letters_are_deleted_one_by_one_or_the_oldest_of_a_queue_and_the_audit_log_says_so(
    one: House,
) -> None:
    await one.queues.declare(QueueSpec(name="work"))
    await one.queues.send(*(OutgoingMessage(queue="work", payload=b"x", id=f"m{n}") for n in range(4)))
    async with one.queues.consume("work") as consumer, one.http() as http:
        for _ in range(4):
            await consumer.reject((await consumer.receive(1, 10.0))[0], "processing_error")
        ids = [letter["id"] for letter in (await http.get("/v1/dead")).json()["dead"]]
        assert (await http.delete(f"/v1/dead/{ids[1]}")).json() == {"queue": "work", "purged": 1}
        assert (await http.delete(f"/v1/dead/{ids[1]}")).status_code == 404
        two = await http.post("/v1/dead/purge", json={"queue": "work", "limit": 2})
        assert two.json() == {"queue": "work", "purged": 2}
        assert [letter["id"] for letter in (await http.get("/v1/dead")).json()["dead"]] == ids[3:]
        assert (await http.post("/v1/dead/purge", json={})).status_code == 422
        assert (await http.post("/v1/dead/purge", json={"queue": "none"})).status_code == 404
        assert (await http.post("/v1/dead/purge", json={"queue": "work"})).json()["purged"] == 1
        entries = (await http.get("/v1/audit", params={"action": "dead.purge"})).json()["entries"]
    told = [(entry["resource"], entry["outcome"], entry["detail"]) for entry in reversed(entries)]
    assert told == [
        (f"dead:{ids[1]}", "done", "queue work"),
        (f"dead:{ids[1]}", "failed", "not_found"),
        ("queue:work", "done", "2 dead letters"),
        ("queue:none", "failed", "queue_not_found"),
        ("queue:work", "done", "1 dead letters"),
    ]


@pytest.mark.req("GATE-04.2", "QUEUE-08")
async def test_an_edited_payload_takes_the_place_of_a_claim(one: House) -> None:
    await one.queues.declare(QueueSpec(name="work"))
    envelope = msgspec.structs.replace(Envelope.new(["work"], None), claim=Claim("claims/x", 9, "sum"))
    await one.queues.send(OutgoingMessage(queue="work", payload=envelope.to_bytes(), id=envelope.id))
    async with one.queues.consume("work") as consumer, one.http() as http:
        await consumer.reject((await consumer.receive(1, 10.0))[0], "processing_error")
        (letter,) = (await http.get("/v1/dead")).json()["dead"]
        edited = await http.post(f"/v1/dead/{letter['id']}/redrive", json={"payload": {"value": 3}})
        assert edited.json()["redriven"] is True
        back = Envelope.from_bytes((await consumer.receive(1, 10.0))[0].payload)
    assert (back.id, back.payload, back.claim) == (envelope.id, {"value": 3}, None)


@pytest.mark.req("GATE-04.2", "GATE-04.1")
async def test_health_answers_and_the_tools_are_listed(one: House) -> None:
    async with one.http() as http:
        for path in ("/livez", "/readyz", "/healthz"):
            assert (await http.get(path)).json()["status"] == "ok"
        listed = {found["name"]: found for found in (await http.get("/v1/tools")).json()["tools"]}
        assert listed["double"]["input_schema"] == VALUE
        assert listed["pipeline"]["route"] == ["double", "echo"]


# what a request is, the status, the start of `detail`
Request = Callable[[httpx2.AsyncClient], Any]


def post(path: str, content: Any, **headers: str) -> Request:
    sent = {"content-type": "application/json", **headers}
    return lambda http: http.post(path, content=content, headers=sent)


def get(path: str, **headers: str) -> Request:
    return lambda http: http.get(path, headers=headers)


PROBLEMS: dict[str, tuple[Request, int, str]] = {
    "empty body": (post("/v1/jobs", b""), 400, "body: is empty"),
    "no JSON": (post("/v1/jobs", b"{'a'}"), 400, "body: is not JSON"),
    "duplicate key": (post("/v1/jobs", b'{"tool": "echo", "tool": "fail"}'), 400, "body: has the key 'tool' twice"),
    "NaN": (post("/v1/jobs", b'{"tool": "echo", "arguments": {"a": NaN}}'), 400, "body: has NaN"),
    "no UTF-8": (post("/v1/jobs", b'{"tool": "\xff"}'), 400, "body: is not UTF-8"),
    "depth bomb": (post("/v1/jobs", b'{"arguments":' + b"[" * 50_000), 400, "body: is nested deeper"),
    "lone surrogate": (post("/v1/jobs", b'{"tool": "echo", "arguments": {"a": "\\ud800"}}'), 400, "body: has half of"),
    "huge integer": (
        post("/v1/jobs", b'{"tool": "echo", "arguments": {"a": 99999999999999999999999}}'),
        422,
        "body.arguments.a: 99999999999999999999999 has more than 64 bits",
    ),
    "a list": (post("/v1/jobs", b"[]"), 422, "body: [] is not an object"),
    "no tool": (post("/v1/jobs", b"{}"), 422, "body.tool: is missing"),
    "ill-typed tool": (post("/v1/jobs", b'{"tool": 3}'), 422, "body.tool: 3 is not text"),
    "unknown member": (
        post("/v1/jobs", b'{"tool": "echo", "argument": {}}'),
        422,
        "body.argument: {} is unknown to this request; did you mean 'arguments'?",
    ),
    "negative timeout": (post("/v1/jobs", b'{"tool": "echo", "timeout": -1}'), 422, "body.timeout: -1 is less"),
    "missing argument": (post("/v1/jobs", b'{"tool": "double"}'), 422, "arguments.value: is missing"),
    "ill-typed argument": (
        post("/v1/jobs", b'{"tool": "double", "arguments": {"value": "x"}}'),
        422,
        "arguments.value: 'x' is not an integer",
    ),
    "unknown argument": (
        post("/tools/call", b'{"name": "double", "arguments": {"value": 1, "mod": "fast"}}'),
        422,
        "arguments.mod: 'fast' is unknown to tool 'double'; did you mean 'mode'?",
    ),
    "unknown tool": (post("/v1/jobs", b'{"tool": "doubel"}'), 404, "tool: 'doubel' does not exist; did you mean"),
    "wrong content type": (
        post("/v1/jobs", b"{}", **{"content-type": "text/plain"}),
        415,
        "content-type: 'text/plain'; send application/json",
    ),
    "compressed body": (
        post("/v1/jobs", b'{"tool": "echo"}', **{"content-encoding": "gzip"}),
        415,
        "content-encoding: 'gzip'; send the body as it is",
    ),
    "bad idempotency key": (
        post("/v1/jobs", b'{"tool": "echo"}', **{"Idempotency-Key": "x" * 300}),
        422,
        "idempotency-key: 'xxx",
    ),
    "two idempotency keys": (
        lambda http: http.post(
            "/v1/jobs", json={"tool": "echo"}, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        ),
        422,
        "idempotency-key: is there 2 times; give it once",
    ),
    "unknown path": (get("/v2/jobs"), 404, "path: '/v2/jobs' does not exist"),
    "trailing slash": (get("/v1/jobs/"), 404, "path: '/v1/jobs/' does not exist"),
    "unknown job": (get(f"/v1/jobs/{UNKNOWN}"), 404, "job_id: no job has the id"),
    "unknown job's events": (get(f"/v1/jobs/{UNKNOWN}/events"), 404, "job_id: "),
    "unknown job's result": (get(f"/v1/jobs/{UNKNOWN}/result"), 404, "job_id: "),
    "cancel of an unknown job": (post(f"/v1/jobs/{UNKNOWN}/cancel", b""), 404, "job_id: "),
    "unknown older job": (get(f"/jobs/{UNKNOWN}"), 404, "job_id: "),
    "unknown dead letter": (get("/v1/dead/none"), 404, ""),
    "unknown queue": (get("/v1/dead?queue=none"), 404, ""),
    "wrong method": (lambda http: http.put("/v1/jobs", json={}), 405, "method: 'PUT' is not for '/v1/jobs'"),
    "wrong method of a job": (lambda http: http.delete(f"/v1/jobs/{UNKNOWN}"), 405, "method: 'DELETE'"),
    "bad limit": (get("/v1/jobs?limit=many"), 400, "limit: 'many' is not a whole number from 1 to 1000"),
    "limit of zero": (get("/v1/jobs?limit=0"), 400, "limit: '0' is not"),
    "bad state": (get("/v1/jobs?state=runing"), 400, "state: 'runing' is not one of"),
    "bad cursor": (get("/v1/jobs?cursor=%00x"), 400, "cursor: "),
    "unknown query parameter": (get("/v1/jobs?stat=running"), 400, "stat: 'running' is for an unknown query parameter"),
    "repeated query parameter": (get("/v1/jobs?limit=1&limit=2"), 400, "limit: is there 2 times"),
    "wait too long": (get(f"/v1/jobs/{UNKNOWN}/result?wait=61"), 400, "wait: '61' is not a number from 0 to 60"),
    "wait is no number": (get(f"/v1/jobs/{UNKNOWN}/result?wait=nan"), 400, "wait: 'nan' is not"),
    "bad origin": (get("/v1/jobs", origin="https://evil.example"), 403, "origin: 'https://evil.example' may not"),
    "null origin": (get("/v1/jobs", origin="null"), 403, "origin: 'null' may not"),
    "bad host": (get("/v1/jobs", host="evil.example:8080"), 421, "host: 'evil.example:8080' is not served here"),
    "rebound host": (get("/v1/jobs", host="127.0.0.1.evil.example"), 421, "host: "),
    "large headers": (get("/v1/jobs", **{"x-padding": "x" * 20_000}), 431, "headers: have 20"),
    "very large headers": (get("/v1/jobs", **{"x-padding": "x" * 100_000}), 431, "headers: have 100"),
}


@pytest.mark.req("GATE-04.2", "GATE-04.3", "GATE-04.4")
async def test_every_bad_request_is_a_problem_document_with_the_right_status(one: House) -> None:
    async with one.http() as http:
        for what, (request, status, detail) in PROBLEMS.items():
            response = await request(http)
            assert response.status_code == status, f"{what}: {response.text}"
            assert response.headers["content-type"] == "application/problem+json", what
            found = response.json()
            assert list(found) == ["type", "title", "status", "detail", "code", "reason", "details"], what
            assert found["status"] == status, what
            assert found["detail"].startswith(detail), f"{what}: {found['detail']}"
        assert (await http.put("/v1/jobs")).headers["allow"] == "GET, HEAD, POST"


@pytest.mark.req("GATE-04.2")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_16_mib_is_413_declared_or_not(one: House, chunked: bool) -> None:
    size = 16 * 1024 * 1024 + 1
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if chunked:
        part = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + part * 17
    else:
        request = head + f"Content-Length: {size}\r\n\r\n".encode()
    status, headers, body = await raw(one, request)
    assert (status, headers["content-type"]) == (413, "application/problem+json")
    assert json.loads(body)["reason"] == "payload_too_large"


@pytest.mark.req("GATE-04.2")
async def test_a_body_of_16_mib_is_read(one: House) -> None:
    async with one.http() as http:
        text = "x" * (16 * 1024 * 1024 - 100)
        response = await http.post("/v1/jobs", json={"tool": "stuck", "arguments": {"text": text}})
        assert response.status_code == 202


@pytest.mark.req("GATE-04.2")
async def test_two_host_headers_are_400(one: House) -> None:
    status, _, body = await raw(one, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: 127.0.0.1\r\n\r\n")
    assert status == 400, body


@pytest.mark.req("GATE-04.2")
async def test_no_answer_allows_another_origin(one: House) -> None:
    async with one.http() as http:
        for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"):
            response = await http.get("/livez", headers={"Origin": origin})
            assert response.status_code == 200
            assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.req("GATE-04.4")
async def test_the_openapi_document_lists_exactly_the_routes_and_describes_the_answers(one: House) -> None:
    async with one.http() as http, actors(one, {"echo": echo}):
        document = (await http.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        routes = {
            (path, method.lower())
            for path, methods in ((route.path, route.methods) for route in one.gateway.asgi.routes)
            if path not in ("/mcp", "/openapi.json", "/") and not path.startswith("/dashboard")
            for method in methods - {"HEAD"}
        }
        documented = {(path, method) for path, methods in document["paths"].items() for method in methods}
        assert documented == routes
        job_id = (await start(http, "echo"))["job_id"]
        await result(http, job_id)
        for path, method in sorted(documented):
            concrete = path.replace("{job_id}", job_id).replace("{dead_id}", "none")
            response = await http.request(method, concrete, headers={"content-type": "application/json"})
            _check_answer(document, document["paths"][path][method], response)


def _check_answer(document: dict[str, Any], operation: dict[str, Any], response: httpx2.Response) -> None:
    declared = operation["responses"][str(response.status_code)]
    if "$ref" in declared:
        declared = document["components"]["responses"]["Problem"]
    kind = response.headers["content-type"].partition(";")[0]
    schema = declared["content"][kind]["schema"]
    if kind != "text/event-stream":
        whole = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(whole).validate(response.json())


@pytest.mark.req("GATE-04.2")
async def test_statuses_that_any_operation_may_give_are_documented_for_all(one: House) -> None:
    for methods in one.gateway.openapi["paths"].values():
        for operation in methods.values():
            assert {str(status) for status in EVERYWHERE} <= set(operation["responses"]) | {"503"}


@pytest.mark.req("GATE-04.2")
async def test_a_draining_gateway_answers_503_with_retry_after(one: House) -> None:
    async with one.http() as http:
        one.gateway.drain()
        response = await http.post("/v1/jobs", json={"tool": "echo"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["detail"].startswith("gateway: is shutting down")


@pytest.mark.req("GATE-04.2", "GATE-15")
async def test_a_fault_of_the_gateway_is_500_and_tells_nothing(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(one.gateway._services.jobs, "get", broken)
    async with one.http() as http:
        response = await http.get(f"/v1/jobs/{UNKNOWN}")
        assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
        assert "hunter2" not in response.text
        assert response.json()["detail"] == "the gateway failed; its log says why"


async def test_requests_jobs_and_streams_are_counted(one: House) -> None:
    from groundplane.telemetry.metrics import render

    async with one.http() as http, actors(one, {"echo": echo}):
        job_id = (await start(http, "echo"))["job_id"]
        await http.get(f"/v1/jobs/{job_id}/events")
        await http.get("/no/such/path")
    text = render(one.gateway.registry).decode()
    assert 'groundplane_gateway_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0' in text
    assert 'groundplane_gateway_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'groundplane_gateway_jobs_accepted_total{lane="rest",tool="echo"} 1.0' in text
    assert "groundplane_gateway_streams_open 0.0" in text
    assert 'groundplane_gateway_request_seconds_count{route="/v1/jobs/{job_id}/events"}' not in text
