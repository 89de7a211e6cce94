"""Jobs: the durable record of work, its state machine, event log and outbox.

    async with Jobs.open("embedded://", state=Path(".groundplane")) as jobs:
        created = await jobs.create(new_job, [first_message])
        job = await jobs.wait_finished(created.job.job_id, timeout_s=30)

`Jobs` is the façade a user holds; `port` is the contract of a driver, `conformance` the suite it must pass, `words` the
tables to other vocabularies.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundplane.jobs.port import Job, JobEvent, JobQuery, JobState, NewJob, Retention
    from groundplane.jobs.store import Jobs

__all__ = ["Job", "JobEvent", "JobQuery", "JobState", "Jobs", "NewJob", "Retention"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'store' if name == 'Jobs' else 'port'}"), name)
