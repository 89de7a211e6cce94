"""The suite of jobs on PostgreSQL."""

from __future__ import annotations

import pytest

from groundplane.jobs import Jobs
from groundplane.jobs.conformance import JobConformance, OpenJobs


class TestPostgresJobs(JobConformance):
    @pytest.fixture
    def open_jobs(self, postgres_url: str) -> OpenJobs:
        return lambda: Jobs.open(postgres_url, namespace="conformance")
