"""The log lines of a plane at work: whose they are, and what they never hold. Nothing asks for traces here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import StdioServerParameters
from mcp.client.client import Client as McpClient
from mcp.client.stdio import stdio_client

from groundplane.testing.servers import otlp
from groundplane.testing.servers.instance import Instance
from integration import dev_plane
from spans import Trace, of_trace, received

pytestmark = [pytest.mark.integration]

APP = Path(__file__).resolve().parent.parent / "apps" / "traces_app.py"
CANARY = "canary-91f0"
STATE = "vendor=1"


def serving(folder: Path, tools: str, **variables: str) -> Any:
    shutil.copy(APP, folder / "app.py")
    options = ("dev", "app:app", "--port", "0", "--state", "state", "--json")
    return dev_plane.serving(*options, folder=folder, TRACED_TOOLS=tools, **variables)


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line that is JSON; what the supervisor says of its children is plain text."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def start(plane: dev_plane.Running, tool: str, arguments: dict[str, Any], trace: Trace, flags: str = "01") -> Any:
    """The job of a call in this trace, ended."""
    headers = {"traceparent": trace.header(flags), "tracestate": STATE}
    status, job = dev_plane.request(f"{plane.url}/v1/jobs", {"tool": tool, "arguments": arguments}, headers=headers)
    assert status == 202, job
    status, job = dev_plane.request(f"{plane.url}/v1/jobs/{job['job_id']}/result?wait=50", timeout_s=60)
    assert status == 200, job
    return job


@pytest.mark.req("TEL-06.1", "TEL-06.2", "GATE-10", "MESH-11")
def test_each_line_about_work_has_its_trace_job_and_actor_and_none_has_a_payload_or_a_secret(tmp_path: Path) -> None:
    trace = Trace()
    with serving(tmp_path, "seen,flaky,broken", GROUNDPLANE_LOG_LEVEL="debug", OTEL_TRACES_EXPORTER="none") as plane:
        seen = start(plane, "seen", {"value": CANARY}, trace)
        flaky = start(plane, "flaky", {"value": CANARY}, trace)
        broken = start(plane, "broken", {"secret": CANARY}, trace)
        assert broken["error"]["message"] == f"no use for {CANARY}"
        assert plane.stop() == 0
        log = plane.log
    assert seen["result"]["headers"]["traceparent"] == trace.header()
    assert seen["result"]["headers"]["tracestate"] == STATE

    assert CANARY not in log.read_text()
    assert "job-token" not in log.read_text()
    told = {
        (line["event"], line["logger"], line.get("actor"), line["job_id"])
        for line in lines(log)
        if line.get("trace_id") == trace.trace_id
    }
    assert told >= {
        ("job_started", "gateway", "seen", seen["job_id"]),
        ("handled", "sidecar", "seen", seen["job_id"]),
        ("persisted", "ends", "happy-end", seen["job_id"]),
        ("retry", "sidecar", "flaky", flaky["job_id"]),
        ("handled", "sidecar", "flaky", flaky["job_id"]),
        ("dead_letter", "sidecar", "broken", broken["job_id"]),
        ("persisted", "ends", "error-end", broken["job_id"]),
    }
    about_work = [line for line in lines(log) if "message_id" in line or "job_id" in line]
    assert [line for line in about_work if line.get("trace_id") != trace.trace_id or not line.get("actor")] == []
    (dead,) = [line for line in lines(log) if line["event"] == "dead_letter"]
    assert (dead["level"], dead["reason"], dead["attempts"]) == ("WARNING", "max_retries_exhausted", 1)


@pytest.mark.req("TEL-06.3")
def test_the_level_of_a_plane_comes_from_the_customary_variable_too(tmp_path: Path) -> None:
    with serving(tmp_path, "broken", LOG_LEVEL="ERROR") as plane:
        assert start(plane, "broken", {}, Trace())["state"] == "failed"
        assert plane.stop() == 0
        assert lines(plane.log) == []


@pytest.fixture
def receiver(otlp_server: Instance) -> Iterator[Instance]:
    yield otlp_server
    otlp.answer_with(otlp_server.url)


@pytest.mark.otlp
@pytest.mark.req("TEL-05.1")
def test_a_sampler_that_samples_nothing_makes_no_spans_and_the_header_says_so(
    tmp_path: Path, receiver: Instance
) -> None:
    variables = {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving(tmp_path, "seen", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **variables) as plane:
        job = dev_plane.run_job(plane.url, "seen", {})
        begun = job["result"]["traceparent"]
        sampled = Trace()
        start(plane, "seen", {}, sampled)
        assert plane.stop() == 0
    assert begun.startswith("00-")
    assert int(begun[-2:], 16) & 1 == 0
    trace_ids = {span.trace_id for span in received(receiver.url)}
    assert sampled.trace_id in trace_ids  # its caller had sampled it; all spans are flushed by the stop
    assert begun[3:35] not in trace_ids


@pytest.mark.otlp
@pytest.mark.fault
@pytest.mark.req("TEL-05.3")
def test_a_receiver_that_refuses_or_is_away_hurts_no_job_and_is_told_once(tmp_path: Path, receiver: Instance) -> None:
    otlp.answer_with(receiver.url, 400)
    trace = Trace()
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with serving(tmp_path, "pipeline", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **variables) as plane:
        for value in range(5):
            job = start(plane, "pipeline", {"value": value}, trace)
            assert (job["state"], job["result"]) == ("succeeded", value * 2 + 5)

        def troubled() -> list[dict[str, Any]]:
            return [line for line in lines(plane.log) if line["event"] == "traces_not_exported"]

        dev_plane.eventually(lambda: len(troubled()) >= 4, "not every process said that its spans were refused", 30)
        assert plane.stop() == 0
        assert len(troubled()) == 4  # gateway, ends, two sidecars
        lost = [line["spans"] for line in lines(plane.log) if line["event"] == "traces_lost"]
        assert sum(lost) >= 50
        assert "Traceback" not in plane.log.read_text()
    assert of_trace(receiver.url, trace.trace_id) == []


@pytest.mark.otlp
@pytest.mark.fault
@pytest.mark.req("TEL-05.1")
def test_a_sidecar_that_is_killed_and_its_successor_are_in_one_trace(tmp_path: Path, receiver: Instance) -> None:
    trace = Trace()
    variables = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving(tmp_path, "slow_once", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **variables) as plane:
        headers = {"traceparent": trace.header()}
        body = {"tool": "slow_once", "arguments": {"marker": str(tmp_path / "begun")}}
        status, job = dev_plane.request(f"{plane.url}/v1/jobs", body, headers=headers)
        assert status == 202, job
        dev_plane.eventually((tmp_path / "begun").exists, "the handler has not begun", 30)
        dev_plane.kill(plane.children()["sidecar slow_once"])
        status, job = dev_plane.request(f"{plane.url}/v1/jobs/{job['job_id']}/result?wait=50", timeout_s=60)
        assert (job["state"], job["result"]) == ("succeeded", 2)
        assert plane.stop() == 0
    found = of_trace(receiver.url, trace.trace_id)
    (process,) = [span for span in found if span.name == "process slow_once"]  # that of the killed one died with it
    assert process.attributes["groundplane.attempt"] == 2
    (creation,) = [span for span in found if span.name == "create slow_once"]
    assert process.parent_id == creation.span_id


@pytest.mark.anyio
@pytest.mark.otlp
@pytest.mark.req("TEL-05.1", "GATE-10")
async def test_a_call_over_standard_input_is_in_the_trace_of_its_meta(tmp_path: Path, receiver: Instance) -> None:
    trace = Trace()
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "TRACED_TOOLS": "seen"}
    shutil.copy(APP, tmp_path / "app.py")
    upgraded = dev_plane.groundplane("db", "upgrade", "--state", "state", folder=tmp_path)
    assert upgraded.returncode == 0, upgraded.stderr
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "groundplane.cli", "mcp", "app:app", "--state", "state"],
        env=dev_plane.environment(**variables),
        cwd=tmp_path,
    )
    meta: Any = {"traceparent": trace.header()}
    async with McpClient(stdio_client(server)) as mcp:
        refused = await mcp.call_tool("seen", {"unknown": 1}, meta=meta)
        assert refused.is_error
    (span,) = of_trace(receiver.url, trace.trace_id)  # all are flushed before the process ends
    assert (span.name, span.kind, span.parent_id) == ("tools/call seen", "SERVER", trace.span_id)
    assert (span.attributes["network.transport"], span.attributes["error.type"]) == ("pipe", "tool_error")
