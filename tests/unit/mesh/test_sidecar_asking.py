"""What a sidecar lets a handler ask: as many questions as a job takes, and nothing of a job that has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundplane.core.envelope import Envelope
from groundplane.core.errors import FailedPrecondition, InvalidArgument
from groundplane.jobs import Jobs
from groundplane.jobs.checks import ASKED_MAX
from groundplane.jobs.conformance.subjects import message, started
from groundplane.jobs.port import Ask
from groundplane.mesh.reporting import JobReporter
from groundplane.mesh.sidecar.asking import Asking
from groundplane.mesh.start import ENDED_JOB

pytestmark = [pytest.mark.anyio, pytest.mark.req("GATE-16.1")]


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with Jobs.open(state=tmp_path) as opened:
        yield opened


def _asked(key: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"value": {"type": "boolean"}}, "required": ["value"]}
    return {"key": key, "kind": "elicit", "message": f"{key}?", "schema": schema, "params": {}}


async def test_more_questions_at_once_than_a_job_takes_are_refused_before_the_run_ends(jobs: Jobs) -> None:
    envelope = Envelope.new(["a"], {}, job_id=await started(jobs))
    reporter = JobReporter(jobs)
    asking = Asking(reporter, envelope, "a", "")
    for count in (0, ASKED_MAX + 1):
        with pytest.raises(InvalidArgument, match=f"questions: {count} at once"):
            await asking.answers([_asked(f"k{n}") for n in range(count)])
    assert asking.open == []
    assert await asking.answers([_asked(f"k{n}") for n in range(ASKED_MAX)]) == {"state": "suspended"}
    assert len(asking.open) == ASKED_MAX
    await reporter.aclose()


async def test_of_a_job_that_has_ended_answers_are_there_and_nothing_new_is_asked(jobs: Jobs) -> None:
    job_id = await started(jobs)
    envelope = Envelope.new(["a"], {}, job_id=job_id)
    reporter = JobReporter(jobs)
    asking = Asking(reporter, envelope, "a", "")
    await asking.answers([_asked("sure")])
    await jobs.apply(Ask(job_id=job_id, questions=asking.open, message=message(envelope.id)))
    await jobs.answer(job_id, asking.open[0].question_id, {"value": True})
    await jobs.cancel(job_id)
    redriven = msgspec.structs.replace(envelope, job_id=None, headers={ENDED_JOB: job_id})
    late = Asking(reporter, redriven, "a", "")
    found = await late.answers([_asked("sure")])
    assert found == {"state": "answered", "answers": [{"action": "accept", "content": {"value": True}}]}
    with pytest.raises(FailedPrecondition) as refused:
        await late.answers([_asked("really")])
    assert (refused.value.reason, late.open) == ("job_terminal", [])
    await reporter.aclose()
