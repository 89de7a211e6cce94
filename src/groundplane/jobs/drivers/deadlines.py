"""What becomes of a job whose deadline has passed."""

from __future__ import annotations

from groundplane.core.clock import iso_z
from groundplane.core.errors import ErrorRecord
from groundplane.jobs.drivers import branches
from groundplane.jobs.drivers.unit import Steps, Unit, end
from groundplane.jobs.port import JobState


def end_overdue_job(unit: Unit, seq: int, deadline_at: int, *, fan_out: bool) -> Steps[bool]:
    """End it as timed out, with the results of the branches that had ended. False where it ended before, or is paused:
    its deadline stands still.
    """
    message = f"The job did not end by its deadline, {iso_z(deadline_at)}."
    error = ErrorRecord("deadline_exceeded", message, "deadline_exceeded")
    if fan_out:
        error = (yield from branches.ending(seq)).error(error)
    return (yield from end(unit, seq, JobState.TIMED_OUT, error=error, message=message))
