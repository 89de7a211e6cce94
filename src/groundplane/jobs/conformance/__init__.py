"""The suite that a job store must pass. Subclass it and give it one fixture:

class TestMyJobs(JobConformance):
    @pytest.fixture
    def open_jobs(self):
        return lambda: Jobs.open("mine://…", namespace=name_of_this_test)

Each call opens the same store once more, as another process would; it is empty before each test. The tests are
asynchronous: run them with AnyIO's pytest plugin on asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from groundplane.jobs.conformance.control import ControlConformance
from groundplane.jobs.conformance.fan_out import FanOutConformance
from groundplane.jobs.conformance.fences import FenceConformance
from groundplane.jobs.conformance.live import LiveConformance
from groundplane.jobs.conformance.log import LogConformance
from groundplane.jobs.conformance.outbox import OutboxConformance
from groundplane.jobs.conformance.questions import QuestionConformance
from groundplane.jobs.conformance.records import RecordConformance
from groundplane.jobs.conformance.subjects import OpenJobs
from groundplane.jobs.conformance.times import TimeConformance
from groundplane.jobs.store import Jobs

__all__ = ["JobConformance", "OpenJobs"]


class JobConformance(
    RecordConformance,
    FenceConformance,
    ControlConformance,
    QuestionConformance,
    FanOutConformance,
    LiveConformance,
    LogConformance,
    OutboxConformance,
    TimeConformance,
):
    """What every store of jobs does."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    async def jobs(self, open_jobs: OpenJobs) -> AsyncIterator[Jobs]:
        """The store under test."""
        async with open_jobs() as opened:
            yield opened
