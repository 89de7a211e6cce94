"""How work enters the mesh: what the job keeps, what its first envelope carries, which queues there must be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.envelope import ERROR_END, HAPPY_END, Envelope
from groundplane.core.errors import InvalidArgument
from groundplane.core.retry import RetryPolicy
from groundplane.jobs import Jobs
from groundplane.mesh.spec import ActorSpec, ToolSpec
from groundplane.mesh.start import JOB_TOKEN, arguments_hash, check_route, queue_specs, start_job
from groundplane.queues.port import ATTEMPTS_MAX

pytestmark = pytest.mark.anyio

TOOL = ToolSpec(name="t", route=["a", "b"], timeout_s=30.0)


@pytest.mark.req("JOB-06.2")
def test_the_order_of_keys_makes_no_other_arguments_and_a_tool_or_a_value_does() -> None:
    one = arguments_hash("t", {"a": 1, "b": {"c": 2, "d": 3}})
    assert one == arguments_hash("t", {"b": {"d": 3, "c": 2}, "a": 1})
    assert len({one, arguments_hash("u", {"a": 1, "b": {"c": 2, "d": 3}}), arguments_hash("t", {"a": 1})}) == 3


@pytest.mark.req("JOB-02.1", "JOB-04.1")
async def test_a_job_keeps_the_hash_of_its_token_and_its_deadline_and_its_envelope_the_token(tmp_path: Path) -> None:
    async with Jobs.open(state=tmp_path) as jobs:
        before = SYSTEM_CLOCK.now_ms()
        created = await start_job(jobs, TOOL, {"x": 1}, headers={"traceparent": "00-1"})
        ((_, message),) = await jobs.driver.outbox.take(9)
    envelope = Envelope.from_bytes(message.payload)
    token = envelope.headers[JOB_TOKEN]
    job = created.job
    assert job.token_hash == hashlib.sha256(token.encode()).hexdigest()
    assert len(token) >= 43  # 32 bytes
    assert job.deadline_at is not None
    assert before + 30_000 <= job.deadline_at <= SYSTEM_CLOCK.now_ms() + 30_000
    assert (envelope.id, envelope.job_id, envelope.deadline_at) == (job.job_id, job.job_id, job.deadline_at)
    assert (message.queue, message.id, message.headers["traceparent"]) == ("a", job.job_id, "00-1")
    assert token not in str(message.headers)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
async def test_a_time_that_is_none_is_refused(tmp_path: Path, timeout_s: float) -> None:
    async with Jobs.open(state=tmp_path) as jobs:
        with pytest.raises(InvalidArgument, match=r"^timeout_s: "):
            await start_job(jobs, TOOL, {}, timeout_s=timeout_s)


@pytest.mark.parametrize("route", [[], ["a", HAPPY_END], [ERROR_END], ["a"] * 1000])
def test_a_route_that_is_none_is_refused(route: list[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"^route: "):
        check_route(route)


@pytest.mark.req("QUEUE-07")
def test_queues_leave_one_attempt_to_tell_of_the_last_crash_and_ends_do_not_give_up() -> None:
    actors = [ActorSpec(name="a", handler="m.f"), ActorSpec(name="b", handler="m.f", retry=RetryPolicy(attempts=9))]
    assert {spec.name: spec.attempts_max for spec in queue_specs(actors)} == {
        "a": ATTEMPTS_MAX + 1,
        "b": 10,
        HAPPY_END: 1000,
        ERROR_END: 1000,
    }
