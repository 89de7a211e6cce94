"""A look at the database of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.backends.postgres.diagnosis import look
from groundplane.core.diagnosis import Diagnose, Diagnosis
from groundplane.jobs.drivers.postgres.store import MIGRATIONS


async def diagnose(url: str, *, namespace: str, names: Sequence[str] = ()) -> Diagnosis:
    """See `core.diagnosis`."""
    return await look(url, [MIGRATIONS], field="jobs")


_: Diagnose = diagnose
