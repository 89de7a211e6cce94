"""schemathesis over the OpenAPI document that a gateway serves: what it promises is what it does, whatever comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup

from fault.record import record
from fuzz.held import held, let_go
from fuzz.invariants import Broken, check_text
from groundplane.core.envelope import Envelope
from groundplane.core.errors import ErrorRecord
from groundplane.jobs.port import Finish
from groundplane.queues.port import OutgoingMessage, QueueSpec
from groundplane.services import Definition
from served_gateway import VALUE, House, actors, double, eventually, fail, house, tool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.integration,
    pytest.mark.timeout(0),
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning"),  # schemathesis names cases
]

EXAMPLES = int(os.environ.get("GROUNDPLANE_TEST_FUZZ_EXAMPLES", "10"))
SEED = int(os.environ.get("GROUNDPLANE_TEST_FUZZ_SEED", "20261122"))
ANSWER_S = 30.0
HANDLED = ("200", "201", "202", "401", "403", "404", "409", "410")
"""Statuses that only handlers give on a known route; what is refused before them has others."""
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


SERVICES = ("quotes", "orders", "nobody")


class Subjects:
    """What there is to be found: jobs in every state, their tokens, dead letters, services."""

    def __init__(self) -> None:
        self.live: list[str] = []
        self.ended: list[str] = []
        self.tokens: dict[str, str] = {}
        self.dead: list[str] = []


async def subjects(one: House) -> Subjects:
    found = Subjects()
    async with one.http() as http:
        for _ in range(12):
            job_id = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
            found.tokens[job_id] = await one.token_of(job_id, "stuck")
            found.live.append(job_id)
        for end in range(6):
            job_id = (await http.post("/v1/jobs", json={"tool": "stuck"})).json()["job_id"]
            error = ErrorRecord(code="internal", message="it broke") if end % 2 else None
            await one.jobs.apply(Finish(job_id=job_id, envelope_id=job_id, result={"n": end}, error=error))
            found.ended.append(job_id)
    await one.queues.declare(QueueSpec(name="work"))
    for n in range(12):
        payload = Envelope.new(["work"], {"value": n}).to_bytes() if n % 2 else b"\xff no envelope"
        await one.queues.send(OutgoingMessage(queue="work", payload=payload, id=f"m{n}"))
    async with one.queues.consume("work", max_in_flight=12) as consumer:
        taken = 0
        while taken < 12:
            for delivery in await consumer.receive(12, 10.0):
                await consumer.reject(delivery, "processing_error")
                taken += 1
    for service in SERVICES[:2]:
        await one.registry.definitions.create(Definition(service_name=service))
    found.dead = [letter.id for letter in (await one.queues.list_dead("work", cursor=None, limit=100)).items]
    return found


def aimed(case: Any, found: Subjects, rng: random.Random) -> None:
    """Mostly at what exists: ids, tokens and names of tools that no generator would hit upon."""
    path, streams = case.operation.path, case.operation.path.endswith(("/events", "/stream"))
    if "job_id" in (case.path_parameters or {}) and rng.random() < 0.75:
        case.path_parameters["job_id"] = rng.choice(found.ended if streams or rng.random() < 0.2 else found.live)
        token = found.tokens.get(case.path_parameters["job_id"])
        if token and path.startswith("/jobs/") and rng.random() < 0.8:
            case.headers["x-groundplane-job-token"] = token
    if "dead_id" in (case.path_parameters or {}) and rng.random() < 0.75:
        case.path_parameters["dead_id"] = rng.choice(found.dead)
    fits = case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
    if fits and isinstance(case.body, dict) and path in ("/v1/jobs", "/tools/call") and rng.random() < 0.75:
        name = "tool" if path == "/v1/jobs" else "name"
        if isinstance(case.body.get(name), str):
            case.body[name] = rng.choice(("stuck", "stuck", "double", "fail"))
    if "service" in (case.path_parameters or {}) and rng.random() < 0.75:
        case.path_parameters["service"] = rng.choice(SERVICES)
    if "instance" in (case.path_parameters or {}) and rng.random() < 0.75:
        case.path_parameters["instance"] = "a"
    if isinstance(wait := (case.query or {}).get("wait"), int | float) and wait > 0.01:
        case.query["wait"] = 0.01


def explore(url: str, found: Subjects, examples: int) -> Counter[str]:
    """Every operation with data that fits and data that does not; the number of cases of each. In a thread."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schemathesis.checks.load_all_checks()
    checks = [schemathesis.checks.CHECKS.get_one(name) for name in CHECKS]
    sent: Counter[str] = Counter()
    failures: dict[str, str] = {}
    session = requests.Session()

    def one(case: Any, rng: random.Random) -> None:
        aimed(case, found, rng)
        sent[f"{case.method} {case.operation.path}"] += 1
        try:
            answer = case.call(base_url=url, session=session, timeout=ANSWER_S)
            check_text(answer.text, f"{case.body} {case.path_parameters} {case.query} {case.headers}")
            case.validate_response(answer, checks=checks, transport_kwargs={"session": session, "timeout": ANSWER_S})
        except (FailureGroup, Broken, requests.RequestException) as error:
            shown = [f"{one.title}: {one.message}" for one in getattr(error, "exceptions", [])] or [str(error)]
            failures.setdefault(f"{case.operation.label}: {shown[0]}"[:150], f"{shown}\n{case.as_curl_command()}")

    with session:
        for operation, mode in _operations(schema):
            test = hypothesis.given(operation.as_strategy(mode), st.randoms(use_true_random=False))(one)
            run = hypothesis.settings(
                max_examples=examples, deadline=None, database=None, phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )(hypothesis.seed(SEED)(test))  # fmt: skip
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing that does not fit: it takes no input
                run()
    if failures:
        raise Broken(f"seed {SEED}: {len(failures)} failures\n" + "\n\n".join(failures.values()))
    return sent


def _operations(schema: Any) -> Iterator[tuple[Any, GenerationMode]]:
    for result in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield result.ok(), mode


@pytest.mark.req("GATE-15.1", "GATE-04.3")
async def test_the_gateway_keeps_what_its_openapi_document_promises_whatever_comes(tmp_path: Path) -> None:
    tools = (tool("double", schema=VALUE), tool("fail"), tool("stuck", timeout_s=3600.0))
    async with (
        house(tmp_path, *tools) as one,
        actors(one, {"double": double, "fail": fail}),
        one.registry.register("quotes", instance_id="a", metadata={"zone": "eu"}),
    ):
        await one.gateway.loaded()
        found = await subjects(one)
        before = held()
        began = time.monotonic()
        sent = await asyncio.to_thread(explore, one.url, found, EXAMPLES)
        await eventually(lambda: let_go(before), 30.0)
        answered: Counter[tuple[str, str, str]] = Counter()
        for metric in one.gateway.registry.collect():
            if metric.name == "groundplane_gateway_requests":
                for sample in metric.samples:
                    key = sample.labels
                    if sample.name.endswith("_total"):
                        answered[key["method"], key["route"], key["status"]] += int(sample.value)
        total = sum(sent.values())
        handled = sum(n for (_, route, status), n in answered.items() if route != "unmatched" and status in HANDLED)
        seconds = time.monotonic() - began
        record(test="fuzz-rest", cases=total, reached=handled, seed=SEED, seconds=seconds)
        print(f"{total} cases, {handled} reached a handler")
        assert not [key for key in answered if key[2].startswith("5")]
        assert handled >= 0.3 * total
        for endpoint in one.gateway.endpoints:
            assert sent[f"{endpoint.method} {endpoint.path}"] > 0, endpoint.path
            reached = [key for key in answered if key[:2] == (endpoint.method, endpoint.path) and key[2] in HANDLED]
            assert reached, f"{endpoint.method} {endpoint.path}: no case reached its handler"
