"""The suite of jobs on the embedded store, in both ways to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.jobs import Jobs
from groundplane.jobs.conformance import JobConformance, OpenJobs


class TestEmbeddedJobs(JobConformance):
    @pytest.fixture
    def open_jobs(self, tmp_path: Path) -> OpenJobs:
        return lambda: Jobs.open(state=tmp_path, namespace="conformance")


class TestEmbeddedJobsInline(JobConformance):
    @pytest.fixture
    def open_jobs(self, tmp_path: Path) -> OpenJobs:
        return lambda: Jobs.open(f"embedded://{tmp_path}/state", namespace="conformance", inline=True)
