"""One trace for each job, through real processes into a real receiver, embedded and on servers."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client as McpClient

import spans
from groundplane.core.envelope import ERROR_END
from groundplane.gateway.mcp.calls import IDEMPOTENCY_META
from groundplane.telemetry import trace_names
from groundplane.testing.servers.instance import Instance
from integration import dev_plane
from spans import SOON, Trace, grown, only
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.otlp]

APP = Path(__file__).resolve().parent.parent / "apps" / "traces_app.py"
STATE = "vendor=t61rcWkgMzE,other=1"
CANARY = "canary-7c1e"


@dataclass(frozen=True)
class Traced:
    """A plane whose processes all export to the receiver at `otlp`."""

    url: str
    otlp: str
    folder: Path
    embedded: bool

    def relayed(self, line: str) -> str:
        """The line of what only happens where jobs and queues share no transaction."""
        return "" if self.embedded else line


@pytest.fixture(scope="module")
def plane(module_stack: Stack, otlp_server: Instance) -> Iterator[Traced]:
    folder = module_stack.state.parent
    shutil.copy(APP, folder / "app.py")
    lines = ['name = "traced"', *(f'{port} = "{url}"' for port, url in module_stack.urls.items())]
    (folder / "groundplane.toml").write_text("\n".join(["[plane]", *lines, ""]))
    options = ("dev", "app:app", "--port", "0", "--state", folder / "state", "--json")
    tools = "pipeline,spread,broken,flaky,seen,own_span"
    variables = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_server.url, "TRACED_TOOLS": tools}
    with dev_plane.serving(*options, folder=folder, **variables) as running:
        yield Traced(running.url, otlp_server.url, folder, module_stack.embedded)
        assert running.stop() == 0
        assert '"logger": "traces"' not in running.log.read_text()


@pytest.fixture
async def http(plane: Traced) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=plane.url, timeout=60) as client:
        yield client


async def started(http: httpx2.AsyncClient, tool: str, arguments: Any, **headers: str) -> dict[str, Any]:
    answer = await http.post("/v1/jobs", json={"tool": tool, "arguments": arguments}, headers=headers)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def ended(http: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await http.get(f"/v1/jobs/{job_id}/result", params={"wait": "50"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def complete(plane: Traced, trace_id: str, **leaves: int) -> list[spans.Seen]:
    """The spans of a trace once that of the happy end is there, so many of each of the `leaves` (`call_total`), and all
    that they stand below: each process exports when it likes.
    """
    found: list[spans.Seen] = []

    def is_there() -> bool:
        found[:] = spans.of_trace(plane.otlp, trace_id)
        known = {one.span_id for one in found}
        names = Counter(one.name.replace(" ", "_") for one in found)
        unknown = [one for one in found if one.parent_id and one.parent_id not in known]
        wanted = {"process_happy-end": 1, **leaves}
        return len(unknown) <= 1 and all(names[name] >= count for name, count in wanted.items())  # one: the test's own

    dev_plane.eventually(is_there, "the trace is not complete", spans.WAIT_S)
    return found


@pytest.mark.req("TEL-05.1", "TEL-05.3", "GATE-10")
async def test_a_job_over_rest_is_one_tree_from_the_header_to_the_end(plane: Traced, http: httpx2.AsyncClient) -> None:
    trace = Trace()
    job = await started(http, "pipeline", {"value": 5}, traceparent=trace.header(), tracestate=STATE)
    assert (await ended(http, job["job_id"]))["result"] == 15
    found = grown(
        plane.otlp,
        trace,
        "SERVER POST /v1/jobs @groundplane-gateway\n"
        "  PRODUCER create double @groundplane-gateway\n"
        "    CONSUMER process double @groundplane-actor-double\n"
        "      INTERNAL call double @groundplane-actor-double\n"
        "      PRODUCER send add_five @groundplane-actor-double\n"
        "        CONSUMER process add_five @groundplane-actor-add_five\n"
        "          INTERNAL call add_five @groundplane-actor-add_five\n"
        "          PRODUCER send happy-end @groundplane-actor-add_five\n"
        "            CONSUMER process happy-end @groundplane-ends\n"
        "              INTERNAL persist outcome @groundplane-ends\n"
        + plane.relayed("    CLIENT send double @groundplane-gateway\n"),
    )
    assert {span.state for span in found} == {STATE}
    assert not any(span.error for span in found)


@pytest.mark.req("TEL-05.2")
async def test_spans_have_the_attributes_of_the_conventions(plane: Traced, http: httpx2.AsyncClient) -> None:
    trace = Trace()
    job = await started(http, "pipeline", {"value": 1}, traceparent=trace.header())
    await ended(http, job["job_id"])
    job_id, system = job["job_id"], "groundplane" if plane.embedded else "rabbitmq"
    found = complete(plane, trace.trace_id, call_double=1, call_add_five=1, persist_outcome=1)
    server = only(found, "POST /v1/jobs").attributes
    assert server == {
        "http.request.method": "POST", "http.route": "/v1/jobs", "url.path": "/v1/jobs", "url.scheme": "http",
        "http.response.status_code": 202, "groundplane.job.id": job_id, "groundplane.tool": "pipeline",
    }  # fmt: skip
    message = {"messaging.system": system, "groundplane.job.id": job_id}
    assert only(found, "create double").attributes == {
        **message, "messaging.operation.name": "create", "messaging.operation.type": "create",
        "messaging.destination.name": "double", "messaging.message.id": job_id, "groundplane.tool": "pipeline",
    }  # fmt: skip
    process = only(found, "process add_five").attributes
    assert process.pop("messaging.message.body.size") > 100
    assert process == {
        **message, "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": "add_five", "messaging.message.id": job_id,
        "messaging.message.conversation_id": job_id, "groundplane.actor": "add_five", "groundplane.attempt": 1,
        "groundplane.tool": "pipeline", "groundplane.hop": 1, "groundplane.hops": 2,
    }  # fmt: skip
    sent = only(found, "send happy-end").attributes
    assert (sent["messaging.operation.type"], sent["messaging.destination.name"]) == ("send", "happy-end")
    assert only(found, "call double").attributes["groundplane.actor"] == "double"
    assert only(found, "persist outcome").attributes["groundplane.blob.key"].endswith(f"{job_id}.json")
    resources = {span.service: span.resource for span in found}
    assert {name: one["groundplane.role"] for name, one in resources.items()} == {
        "groundplane-gateway": "gateway", "groundplane-actor-double": "sidecar",
        "groundplane-actor-add_five": "sidecar", "groundplane-ends": "ends",
    }  # fmt: skip
    assert len({one["process.pid"] for one in resources.values()}) == 4
    assert len({one["service.instance.id"] for one in resources.values()}) == 4
    assert {one["service.namespace"] for one in resources.values()} == {"traced"}


@pytest.mark.req("TEL-05.1")
async def test_the_children_of_a_fan_out_are_branches_and_their_join_is_linked_with_each(
    plane: Traced, http: httpx2.AsyncClient
) -> None:
    trace = Trace()
    job = await started(http, "spread", {"numbers": [1, 2, 3]}, traceparent=trace.header())
    assert (await ended(http, job["job_id"]))["result"] == 14
    found = complete(plane, trace.trace_id, call_square=3, process_total=3, call_total=1)
    by_id = {span.span_id: span for span in found}
    parent = only(found, "process split")
    sent = [span for span in found if span.name == "send square"]
    assert [span.parent_id for span in sent] == [parent.span_id] * 3
    squares = [span for span in found if span.name == "process square"]
    assert {span.parent_id for span in squares} == {span.span_id for span in sent}
    joining = [span for span in found if span.name == "send total"]
    assert {span.parent_id for span in joining} == {span.span_id for span in squares}
    call = only(found, "call total")
    last = by_id[call.parent_id]
    assert (last.name, last.kind) == ("process total", "CONSUMER")
    assert last.attributes["groundplane.children"] == 3
    assert sorted(last.links) == sorted(f"{trace.trace_id}/{span.span_id}" for span in joining)
    waiting = [span for span in found if span.name == "process total" and span is not last]
    joined = sorted(dict(span.events)["child_joined"]["groundplane.joined"] for span in waiting if span.events)
    assert joined == [1, 2]
    assert by_id[only(found, "process happy-end").parent_id].parent_id == last.span_id


@pytest.mark.req("TEL-05.1")
async def test_each_attempt_is_a_span_of_the_same_trace(plane: Traced, http: httpx2.AsyncClient) -> None:
    trace = Trace()
    job = await started(http, "flaky", {}, traceparent=trace.header())
    assert (await ended(http, job["job_id"]))["result"] == 2
    found = grown(
        plane.otlp,
        trace,
        "SERVER POST /v1/jobs @groundplane-gateway\n"
        "  PRODUCER create flaky @groundplane-gateway\n"
        "    CONSUMER process flaky @groundplane-actor-flaky\n"
        "      INTERNAL call flaky @groundplane-actor-flaky\n"
        "    CONSUMER process flaky @groundplane-actor-flaky\n"
        "      INTERNAL call flaky @groundplane-actor-flaky\n"
        "      PRODUCER send happy-end @groundplane-actor-flaky\n"
        "        CONSUMER process happy-end @groundplane-ends\n"
        "          INTERNAL persist outcome @groundplane-ends\n"
        + plane.relayed("    CLIENT send flaky @groundplane-gateway\n"),
    )
    first, second = sorted(
        (span for span in found if span.name == "process flaky"),
        key=lambda span: span.attributes["groundplane.attempt"],
    )
    assert (first.error, second.error) == (True, False)
    ((event, said),) = first.events
    assert (event, said["groundplane.reason"], said["groundplane.attempt"]) == ("retry", "processing_error", 1)
    assert said["groundplane.delay_s"] <= 0.1
    failed = next(span for span in found if span.name == "call flaky" and span.error)
    assert failed.attributes["error.type"] == "processing_error"
    assert failed.events == [("exception", {"exception.type": "RuntimeError"})]


@pytest.mark.req("TEL-05.1")
async def test_a_dead_letter_keeps_its_trace_and_what_is_redriven_goes_on_in_it(
    plane: Traced, http: httpx2.AsyncClient
) -> None:
    trace = Trace()
    job = await started(http, "broken", {"secret": CANARY}, traceparent=trace.header())
    assert (await ended(http, job["job_id"]))["state"] == "failed"
    once = (
        "    CONSUMER process broken @groundplane-actor-broken\n"
        "      INTERNAL call broken @groundplane-actor-broken\n"
        "      PRODUCER send error-end @groundplane-actor-broken\n"
        "        CONSUMER process error-end @groundplane-ends\n"
        "          INTERNAL persist outcome @groundplane-ends\n"
    )
    before = "SERVER POST /v1/jobs @groundplane-gateway\n  PRODUCER create broken @groundplane-gateway\n"
    after = plane.relayed("    CLIENT send broken @groundplane-gateway\n")
    found = grown(plane.otlp, trace, before + once + after)
    process = only(found, "process broken")
    assert process.error
    assert [name for name, _ in process.events] == ["dead_letter"]
    dead = (await http.get("/v1/dead", params={"queue": "broken"})).json()["dead"]
    letter = next(one for one in dead if one["message_id"] == job["job_id"])
    assert letter["trace"] == f"00-{trace.trace_id}-{process.parent_id}-01"

    again = Trace()
    answer = await http.post(f"/v1/dead/{letter['id']}/redrive", headers={"traceparent": again.header()})
    assert answer.status_code == 200, answer.text
    found = grown(plane.otlp, trace, before + once + once + after)
    redriven = [span for span in found if span.attributes.get("groundplane.redrives") == 1]
    assert {span.name for span in redriven} == {"process broken"}
    (asked,) = grown(plane.otlp, again, "SERVER POST /v1/dead/{dead_id}/redrive @groundplane-gateway\n")
    assert asked.links == [f"{trace.trace_id}/{process.parent_id}"]
    everything = repr(spans.of_trace(plane.otlp, trace.trace_id))
    assert CANARY not in everything


@pytest.mark.req("TEL-05.1")
async def test_readers_have_traces_of_their_own_that_are_linked_with_the_job(
    plane: Traced, http: httpx2.AsyncClient
) -> None:
    work, reader = Trace(), Trace()
    job = await started(http, "pipeline", {"value": 3}, traceparent=work.header())
    for path in ("result?wait=50", "events", ""):
        found = await http.get(f"/v1/jobs/{job['job_id']}/{path}".rstrip("/"), headers={"traceparent": reader.header()})
        assert found.status_code == 200
    found = grown(
        plane.otlp,
        reader,
        "SERVER GET /v1/jobs/{job_id} @groundplane-gateway\n"
        "SERVER GET /v1/jobs/{job_id}/events @groundplane-gateway\n"
        "SERVER GET /v1/jobs/{job_id}/result @groundplane-gateway\n",
    )
    creation = only(spans.of_trace(plane.otlp, work.trace_id), "create double")
    for span in found:
        assert span.links == [f"{work.trace_id}/{creation.span_id}"]
        assert span.attributes["groundplane.job.id"] == job["job_id"]


@pytest.mark.req("TEL-05.1", "TEL-05.2", "GATE-10")
@pytest.mark.parametrize("mode", ["2025-11-25", "2026-07-28"])
async def test_a_job_over_mcp_is_in_the_trace_of_its_meta(plane: Traced, mode: str) -> None:
    trace, transport = Trace(), Trace()
    meta: Any = {
        "traceparent": trace.header(),
        "tracestate": STATE,
        IDEMPOTENCY_META: f"traces {mode} {plane.embedded}",
    }
    headers = {"traceparent": transport.header()}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as client,
        mcp_client(plane.url, mode, client) as mcp,
    ):
        result = await mcp.call_tool("seen", {}, meta=meta)
        assert not result.is_error, result
        again = await mcp.call_tool("seen", {}, meta=meta)
        assert again.meta == result.meta
    shown = result.structured_content
    below = (
        "    CONSUMER process seen @groundplane-actor-seen\n"
        "      INTERNAL call seen @groundplane-actor-seen\n"
        "      PRODUCER send happy-end @groundplane-actor-seen\n"
        "        CONSUMER process happy-end @groundplane-ends\n"
        "          INTERNAL persist outcome @groundplane-ends\n"
        + plane.relayed("    CLIENT send seen @groundplane-gateway\n")
    )
    call = "SERVER tools/call seen @groundplane-gateway\n  PRODUCER create seen @groundplane-gateway\n"

    orders = (call + below + call, call + call + below)
    dev_plane.eventually(
        lambda: spans.tree(spans.of_trace(plane.otlp, trace.trace_id), trace.span_id) in orders,
        f"the trace is not {call + below + call}",
        spans.WAIT_S,
    )
    found = spans.of_trace(plane.otlp, trace.trace_id)
    server = [span for span in found if span.name == "tools/call seen"]
    for span in server:
        assert span.attributes.pop("jsonrpc.request.id")
        session = span.attributes.pop("mcp.session.id", None)
        assert (session is not None) == (mode == "2025-11-25")
        assert span.attributes == {
            "mcp.method.name": "tools/call", "mcp.protocol.version": mode, "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "seen", "network.transport": "tcp", "network.protocol.name": "http",
            "groundplane.job.id": result.meta["io.groundplane/job_id"], "groundplane.tool": "seen",
        }  # fmt: skip
        assert span.links == [f"{transport.trace_id}/{transport.span_id}"]
    repeated = [span for span in found if span.attributes.get("groundplane.job.repeated")]
    assert [span.name for span in repeated] == ["create seen"]
    in_call = only(found, "call seen")
    assert shown["traceparent"] == f"00-{trace.trace_id}-{in_call.span_id}-01"
    assert (shown["headers"]["traceparent"], shown["headers"]["tracestate"]) == (shown["traceparent"], STATE)


@pytest.mark.req("TEL-05.1")
async def test_spans_that_a_handler_makes_itself_go_on_in_the_trace(plane: Traced, http: httpx2.AsyncClient) -> None:
    trace = Trace()
    job = await started(http, "own_span", {}, traceparent=trace.header())
    assert (await ended(http, job["job_id"]))["result"] == trace.trace_id


@pytest.mark.req("TEL-05.1")
async def test_a_trace_that_its_caller_did_not_sample_is_carried_unchanged_and_makes_no_spans(
    plane: Traced, http: httpx2.AsyncClient
) -> None:
    quiet, loud = Trace(), Trace()
    for trace, flags in ((quiet, "00"), (loud, "01")):  # when the second is there, the first would be
        job = await started(http, "seen", {}, traceparent=trace.header(flags), tracestate=STATE)
        shown = (await ended(http, job["job_id"]))["result"]
        assert (shown["traceparent"] == trace.header(flags)) == (trace is quiet)
        assert shown["traceparent"][3:35] == trace.trace_id
        assert shown["headers"]["tracestate"] == STATE
    complete(plane, loud.trace_id)
    assert spans.of_trace(plane.otlp, quiet.trace_id) == []


@pytest.mark.req("TEL-05.1")
async def test_the_command_starts_the_trace_of_its_job(plane: Traced) -> None:
    shell = f"shell-{plane.folder.name}"
    variables = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": plane.otlp, "OTEL_SERVICE_NAME": shell}
    done = dev_plane.groundplane(
        "call", "pipeline", "value=4", "--json", "--url", plane.url, folder=plane.folder, **variables
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (root,) = [span for span in spans.received(plane.otlp) if span.service == shell and not span.parent_id]
    assert (root.name, root.resource["groundplane.role"]) == ("groundplane call", "call")
    found = complete(plane, root.trace_id, process_double=1)
    by_id = {span.span_id: span for span in found}
    way = [only(found, "process double")]
    while way[-1].parent_id:
        way.append(by_id[way[-1].parent_id])
    assert [f"{one.kind} {one.name} @{one.service}" for one in reversed(way)] == [
        f"INTERNAL groundplane call @{shell}",
        f"CLIENT POST @{shell}",
        "SERVER POST /v1/jobs @groundplane-gateway",
        "PRODUCER create double @groundplane-gateway",
        "CONSUMER process double @groundplane-actor-double",
    ]
    assert ERROR_END not in {span.attributes.get("messaging.destination.name") for span in found}


@pytest.mark.req("TEL-05.2")
async def test_every_span_of_a_plane_is_as_the_page_about_traces_says(plane: Traced, http: httpx2.AsyncClient) -> None:
    trace, shell = Trace(), f"page-{plane.folder.name}"
    variables = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": plane.otlp, "OTEL_SERVICE_NAME": shell}
    done = dev_plane.groundplane(
        "call", "spread", "numbers:=[1, 2]", "--url", plane.url, folder=plane.folder, **variables
    )
    assert done.returncode == 0, done.stderr
    ids = {span.trace_id for span in spans.received(plane.otlp) if span.service == shell} | {trace.trace_id}
    for tool in ("broken", "flaky", "spread"):
        arguments = {"numbers": [1, 2]} if tool == "spread" else {}
        await ended(http, (await started(http, tool, arguments, traceparent=trace.header()))["job_id"])
    async with httpx2.AsyncClient(timeout=60) as client, mcp_client(plane.url, "2026-07-28", client) as mcp:
        meta: Any = {"traceparent": trace.header()}
        assert (await mcp.call_tool("broken", {}, meta=meta)).is_error
    rows = [row for row in spans.documented() if not row.of_bus]  # those are seen where actors use it
    silent = [row for row in rows if plane.embedded and _relays(row)]

    def found() -> list[spans.Seen]:
        return [span for span in spans.received(plane.otlp) if span.trace_id in ids]

    def unseen() -> list[spans.Row]:
        came = found()
        return [row for row in rows if not any(row.describes(span) for span in came)]

    dev_plane.eventually(lambda: unseen() == silent, f"of {len(rows)} rows of the page some were never seen", 30)
    assert [span for span in found() if not any(row.describes(span) for row in rows)] == []
    told = spans.PAGE.read_text()
    constants = [value for name, value in vars(trace_names).items() if name.isupper() and isinstance(value, str)]
    ours = [value for value in constants if value.startswith("groundplane.")]
    assert [name for name in ours if f"`{name}`" not in told and name not in ON_EVENTS] == []


ON_EVENTS = {"groundplane.reason", "groundplane.joined", "groundplane.job.state"}


def _relays(row: spans.Row) -> bool:
    return row.kind == "CLIENT" and row.processes == ["gateway"]


@contextlib.asynccontextmanager
async def mcp_client(url: str, mode: str, http: httpx2.AsyncClient) -> AsyncIterator[McpClient]:
    """A client of that revision whose requests have the headers of `http`."""
    from mcp.client.streamable_http import streamable_http_client

    transport = streamable_http_client(f"{url}/mcp", http_client=http)
    async with McpClient(transport, mode="legacy" if mode == "2025-11-25" else mode) as client:
        yield client
