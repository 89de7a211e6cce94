"""Who did what, to what, and what came of it: every change on every lane is in the audit log.

What has to be there is made from the tables of the gateway: an operation, page or method that changes something and has
no deed here fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane import App
from groundplane.core.envelope import Envelope
from groundplane.gateway import Catalogue, ToolTable
from groundplane.gateway.callbacks import TOKEN_HEADER
from groundplane.gateway.dashboard.mount import PAGES
from groundplane.gateway.mcp.access import METHODS
from groundplane.queues.port import OutgoingMessage, QueueSpec
from groundplane.security import Action, AuditEntry
from groundplane.services import Definition
from integration.test_dashboard_requests import post, token_in
from served_gateway import Gate, House, actors, asking_actor, echo, eventually, house, tool
from wire.test_mcp_lanes import MODERN, MODERN_META, Legacy
from wire.test_mcp_tasks import ASKED, Caller

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.req("GATE-18.3")]

app = App("audited")


@app.actor
def towns(value: str) -> list[str]:
    return [value]


app.prompt("greeting", route=[towns], complete={"value": towns})
app.resource("notes://{value}/text", route=[towns], complete={"value": towns})


@dataclass
class Doer:
    """Somebody with a key, and the ways in."""

    one: House
    http: httpx2.AsyncClient
    name: str

    async def job(self, name: str = "stuck") -> str:
        made = await self.http.post("/v1/jobs", json={"tool": name, "arguments": {}})
        assert made.status_code == 202, made.text
        return str(made.json()["job_id"])

    async def asking(self) -> str:
        """A job that has put its question."""
        job_id = await self.job("ask")

        async def asked() -> bool:
            return bool((await self.one.jobs.get(job_id)).questions)

        await eventually(asked, 30)
        return job_id

    async def dead(self) -> str:
        envelope = Envelope.new(["buried"], {})
        await self.one.queues.declare(QueueSpec(name="buried"))
        await self.one.queues.send(OutgoingMessage(queue="buried", payload=envelope.to_bytes(), id=envelope.id))
        async with self.one.queues.consume("buried") as consumer:
            await consumer.reject((await consumer.receive(1, 30.0))[0], "processing_error")
        return str((await self.one.queues.list_dead("buried", limit=1)).items[0].id)

    async def form(self, path: str, **fields: str) -> None:
        page = (await self.http.get("/dashboard/tools/stuck")).text
        answer = await post(self.http, path, {"_token": token_in(page), **fields})
        assert answer.status_code == 303, (path, answer.status_code, answer.text)

    async def legacy(self) -> Legacy:
        return await Legacy(self.http).open()

    @property
    def modern(self) -> Caller:
        return Caller(self.http, elicitation={})


Deed = Callable[[Doer], Awaitable[str]]
"""Does it, and returns the resource that the entry names."""


def of_job(job_id: str) -> str:
    return f"job:{job_id}"


async def create(do: Doer) -> str:
    await do.job("echo")
    return "tool:echo"


async def call(do: Doer) -> str:
    assert (await do.http.post("/tools/call", json={"name": "echo", "arguments": {}})).status_code == 200
    return "tool:echo"


def steer(action: str) -> Deed:
    async def deed(do: Doer) -> str:
        job_id = await do.job()
        if action == "resume":
            await do.one.jobs.pause(job_id)
        assert (await do.http.post(f"/v1/jobs/{job_id}/{action}")).status_code == 200
        return of_job(job_id)

    return deed


async def answer(do: Doer) -> str:
    job_id = await do.asking()
    path = f"/v1/jobs/{job_id}/questions/{ASKED.question_id}/answer"
    assert (await do.http.post(path, json={"action": "decline"})).status_code == 200
    return of_job(job_id)


def report(kind: str, **body: Any) -> Deed:
    async def deed(do: Doer) -> str:
        made = await do.job("told")
        headers = {TOKEN_HEADER: await do.one.token_of(made, "told")}
        assert (await do.http.post(f"/jobs/{made}/{kind}", json=body, headers=headers)).status_code == 200
        return of_job(made)

    return deed


async def redrive(do: Doer) -> str:
    dead_id = await do.dead()
    assert (await do.http.post(f"/v1/dead/{dead_id}/redrive", json={})).status_code == 200
    return f"dead:{dead_id}"


async def purge(do: Doer) -> str:
    dead_id = await do.dead()
    assert (await do.http.delete(f"/v1/dead/{dead_id}")).status_code == 200
    return f"dead:{dead_id}"


async def purge_all(do: Doer) -> str:
    await do.dead()
    assert (await do.http.post("/v1/dead/purge", json={"queue": "buried"})).status_code == 200
    return "queue:buried"


async def define(do: Doer) -> str:
    assert (await do.http.post("/v1/services", json={"serviceName": "quotes"})).status_code == 201
    return "service:quotes"


async def redefine(do: Doer) -> str:
    await do.one.registry.definitions.create(Definition(service_name="orders"))
    assert (await do.http.put("/v1/services/orders", json={"owner": "team-a"})).status_code == 200
    return "service:orders"


async def undefine(do: Doer) -> str:
    await do.one.registry.definitions.create(Definition(service_name="old"))
    assert (await do.http.delete("/v1/services/old")).status_code == 200
    return "service:old"


async def clean(do: Doer) -> str:
    assert (await do.http.post("/v1/instances/clean")).status_code == 200
    return "instances"


OPERATIONS: dict[str, Deed] = {
    "createService": define, "replaceService": redefine, "deleteService": undefine, "cleanInstances": clean,
    "purgeDead": purge, "purgeAllDead": purge_all,
    "createJob": create, "callTool": call, "cancelJob": steer("cancel"), "pauseJob": steer("pause"),
    "resumeJob": steer("resume"), "answerQuestion": answer, "redriveDead": redrive,
    "reportFinal": report("final", status="failed", error="no luck"),
    "reportHeartbeat": report("heartbeat", status="error", error="no luck"),
}  # fmt: skip
IN_THE_JOBS_LOG = {"reportProgress"}
"""What the job's own log has, with the actor: how far the work is."""


async def page_retry(do: Doer) -> str:
    await do.form(f"/dashboard/jobs/{await do.job()}/retry")
    return "tool:stuck"


async def page_answer(do: Doer) -> str:
    job_id = await do.asking()
    await do.form(f"/dashboard/jobs/{job_id}/questions/{ASKED.question_id}", action="cancel")
    return of_job(job_id)


async def page_control(do: Doer) -> str:
    job_id = await do.job()
    await do.form(f"/dashboard/jobs/{job_id}/cancel")
    return of_job(job_id)


async def page_redrive(do: Doer) -> str:
    dead_id = await do.dead()
    await do.form(f"/dashboard/dead/{dead_id}/redrive")
    return f"dead:{dead_id}"


async def page_start(do: Doer) -> str:
    await do.form("/dashboard/tools/stuck")
    return "tool:stuck"


async def page_purge(do: Doer) -> str:
    dead_id = await do.dead()
    await do.form(f"/dashboard/dead/{dead_id}/purge")
    return f"dead:{dead_id}"


async def page_purge_all(do: Doer) -> str:
    await do.dead()
    await do.form("/dashboard/dead/purge", queue="buried", count="1")
    return "queue:buried"


OF_PAGES: dict[str, Deed] = {
    "purge_pages.purge": page_purge, "purge_pages.purge_all": page_purge_all,
    "job_page.retry": page_retry, "job_page.answer": page_answer, "job_page.control": page_control,
    "dead_pages.redrive": page_redrive, "tools_pages.start": page_start,
}  # fmt: skip
OF_THE_VISITOR = {"login_pages.enter", "login_pages.leave", "preferences.theme"}
"""Pages that change nothing of the plane. Logging in and out is told all the same (see below)."""


async def older_call(do: Doer) -> str:
    await (await do.legacy()).post(2, "tools/call", {"name": "echo", "arguments": {}})
    return "tool:echo"


async def newer_call(do: Doer) -> str:
    assert (await Caller(do.http, tasks=False).call("echo"))["isError"] is False
    return "tool:echo"


async def older_cancel(do: Doer) -> str:
    legacy = await do.legacy()
    stuck = legacy.body(2, "tools/call", {"name": "stuck", "arguments": {}})
    async with do.http.stream("POST", "/mcp", json=stuck, headers=legacy.headers):
        job_id = await eventually(lambda: _newest(do), 30)
        told = await legacy.post(None, "notifications/cancelled", {"requestId": 2, "reason": "enough"})
        assert told.status_code == 202
        await eventually(lambda: _ended(do, job_id), 30)
    return of_job(job_id)


async def _newest(do: Doer) -> str:
    jobs = [job for job in (await do.one.jobs.list_jobs()).items if job.tool == "stuck" and not job.state.terminal]
    return jobs[0].job_id if jobs else ""


async def _ended(do: Doer, job_id: str) -> bool:
    return (await do.one.jobs.get(job_id)).state.terminal


async def task_cancel(do: Doer) -> str:
    job_id = str((await do.modern.call("stuck"))["taskId"])
    await do.modern.task("cancel", job_id)
    return of_job(job_id)


async def task_update(do: Doer) -> str:
    job_id = await do.asking()
    await do.modern.task("update", job_id, inputResponses={ASKED.question_id: {"action": "decline"}})
    return of_job(job_id)


def starting(method: str, resource: str, **params: Any) -> Deed:
    async def deed(do: Doer) -> str:
        found = (await (await do.legacy()).post(2, method, params)).text
        assert '"result"' in found, found
        await do.modern.ask(method, params, params.get("name") or params.get("uri"))
        return resource

    return deed


async def older_answer(do: Doer) -> str:
    job_id = await do.asking()
    response = {"jsonrpc": "2.0", "id": f"question:{job_id}:{ASKED.question_id}", "result": {"action": "decline"}}
    legacy = await do.legacy()
    assert (await do.http.post("/mcp", json=response, headers=legacy.headers)).status_code == 202
    return of_job(job_id)


async def repeated_call(do: Doer) -> str:
    caller = Caller(do.http, tasks=False, elicitation={})
    asked = await caller.call("ask")
    (key,) = asked["inputRequests"]
    found = await caller.call("ask", requestState=asked["requestState"], inputResponses={key: {"action": "decline"}})
    return of_job(found["_meta"]["io.groundplane/job_id"])


OF_METHODS: dict[str, tuple[Action, tuple[Deed, ...]]] = {
    "tools/call": (Action.CALL_TOOL, (older_call, newer_call)),
    "notifications/cancelled": (Action.CONTROL_JOB, (older_cancel,)),
    "tasks/cancel": (Action.CONTROL_JOB, (task_cancel,)),
    "tasks/update": (Action.ANSWER_QUESTION, (task_update,)),
}
_COMPLETED = {"argument": {"name": "value", "value": "o"}, "ref": {"type": "ref/prompt", "name": "greeting"}}
STARTING: tuple[Deed, ...] = (
    starting("prompts/get", "tool:prompt:greeting", name="greeting", arguments={"value": "oslo"}),
    starting("resources/read", "tool:resource:notes://{value}/text", uri="notes://oslo/text"),
    starting("completion/complete", "tool:complete:prompt:greeting", **_COMPLETED),
)
"""Methods that are no change themselves, and may start a job."""


@pytest.fixture
async def do(tmp_path: Path) -> AsyncIterator[Doer]:
    tools = [tool("echo"), tool("stuck", task_after_s=0.0), tool("ask", task_after_s=0.0), tool("told")]
    table, catalogue = ToolTable([*tools, *app.offer.tools]), Catalogue(app.offer.prompts, app.offer.resources)
    unbound = {"rate": "none", "streams": "none", "live_jobs": "none"}
    async with house(tmp_path, table=table, catalogue=catalogue, auth="keys", **unbound) as one, AsyncExitStack() as on:
        made = await one.security.create_key("doer", ["tools:*", "operate"])
        headers = {"Authorization": f"Bearer {made.secret.reveal()}"}
        http = await on.enter_async_context(httpx2.AsyncClient(base_url=one.url, headers=headers, timeout=60))
        await on.enter_async_context(actors(one, {"echo": echo, "towns": towns_of}))
        await on.enter_async_context(asking_actor(one, "ask", [ASKED]))
        yield Doer(one, http, "doer")


async def towns_of(payload: Any, report: Any) -> Any:
    return [payload["value"]]


async def check(do: Doer, action: Action, deed: Deed) -> None:
    """Do it; exactly one entry more tells of it."""
    before = {entry.entry_id for entry in await do.one.security.list_audit()}
    resource = await deed(do)

    async def found() -> list[AuditEntry]:  # of a notification nobody waits for an answer: its entry comes in a moment
        new = [entry for entry in await do.one.security.list_audit() if entry.entry_id not in before]
        return [one for one in new if (one.action, one.resource) == (action.value, resource)]

    told = await eventually(found, 30)
    assert {(one.outcome, _who(one)) for one in told} == {("done", _by(action, do, resource))}
    if action is not Action.CALL_TOOL:
        assert len(told) == 1, told
    assert all(one.detail for one in told)


def _who(entry: AuditEntry) -> tuple[str, str]:
    return entry.principal, entry.kind


def _by(action: Action, do: Doer, resource: str) -> tuple[str, str]:
    return (resource, "job") if action is Action.REPORT_JOB else (do.name, "key")


async def test_every_operation_that_changes_something_is_told(do: Doer) -> None:
    changing = {one.operation: one for one in do.one.gateway.endpoints if one.method != "GET"}
    assert {name for name, one in changing.items() if not one.action.changes} == set(), "let the action say so"
    assert set(changing) == set(OPERATIONS) | IN_THE_JOBS_LOG, "an operation without a deed"
    for operation, deed in OPERATIONS.items():
        await check(do, changing[operation].action, deed)


async def test_every_page_that_changes_something_is_told(do: Doer) -> None:
    changing = {page.handler: page.action for page in PAGES if page.method != "GET"}
    assert {name for name, action in changing.items() if not action.changes} == OF_THE_VISITOR
    assert set(changing) - OF_THE_VISITOR == set(OF_PAGES), "a page without a deed"
    for handler, deed in OF_PAGES.items():
        await check(do, changing[handler], deed)


async def test_every_method_of_mcp_that_changes_something_is_told(do: Doer) -> None:
    assert {name for name, action in METHODS.items() if action.changes} == set(OF_METHODS), "a method without a deed"
    for method, (action, deeds) in OF_METHODS.items():
        assert METHODS[method] is action
        for deed in deeds:
            await check(do, action, deed)
    for deed in STARTING:
        await check(do, Action.CALL_TOOL, deed)
    for deed in (older_answer, repeated_call):
        await check(do, Action.ANSWER_QUESTION, deed)


async def test_every_action_that_changes_something_has_a_way_in_that_is_told(do: Doer) -> None:
    told = {one.action for one in do.one.gateway.endpoints if one.operation in OPERATIONS}
    by_command = {Action.CHANGE_KEYS}  # tests/integration/test_cli_keys.py
    assert {action for action in Action if action.changes} == told | by_command


async def test_logging_in_and_out_is_told(do: Doer) -> None:
    made = await do.one.security.create_key("visitor", ["read"])
    async with do.one.http() as http:
        for path in ("/dashboard/login", "/dashboard/logout"):
            token = token_in((await http.get("/dashboard/login")).text)
            key = made.secret.reveal()
            assert (await post(http, path, {"_token": token, "key": key, "back": "/"})).status_code == 303
    told = [entry for entry in await do.one.security.list_audit() if entry.principal == "visitor"]
    assert [(entry.action, entry.resource, entry.detail) for entry in told] == [
        ("gateway.connect", "dashboard", "logout"),
        ("gateway.connect", "dashboard", "login"),
    ]


async def test_a_client_that_leaves_a_call_that_it_ends_with_is_told(tmp_path: Path) -> None:
    gate = Gate()
    params = {"name": "tied", "arguments": {}, "_meta": {**MODERN_META, "progressToken": 1}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    async with (
        house(tmp_path, tool("tied", "gate", on_disconnect="cancel"), auth="keys") as one,
        actors(one, {"gate": gate}),
    ):
        made = await one.security.create_key("doer", ["tools:*"])
        headers = {**MODERN, "mcp-name": "tied", "Authorization": f"Bearer {made.secret.reveal()}"}
        async with one.http() as http, http.stream("POST", "/mcp", json=request, headers=headers) as answer:
            assert answer.status_code == 200
            await gate.reached.wait()

        async def told() -> list[AuditEntry]:
            return [entry for entry in await one.security.list_audit() if entry.action == Action.CONTROL_JOB.value]

        (entry,) = await eventually(told, 30)
        (job,) = (await one.jobs.list_jobs()).items
        assert (entry.principal, entry.resource, entry.outcome) == ("doer", of_job(job.job_id), "done")
        gate.opened.set()
