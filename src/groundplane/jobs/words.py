"""The states of a job in other vocabularies. Each table is total: every `JobState` has a word.

| ours | Asya | MCP task | agent run |
|---|---|---|---|
| pending | Pending | working | pending |
| running | Running | working | running |
| paused | Running | input_required | running |
| succeeded | Succeeded | completed | completed |
| failed | Failed | failed | failed |
| cancelled | Failed | cancelled | cancelled |
| timed_out | Failed | failed | timeout |

Asya has no word for a pause (the work is not over: Running), nor for a cancel or a deadline (it will not succeed:
Failed); `Unknown` is its word for a job that is not there. An MCP task that is paused waits for somebody outside:
input_required. The other states of an agent run (starting, completing, dead) are of the run, not of its job.

Sources: the gateway of Asya; MCP extension `io.modelcontextprotocol/tasks` of 2026-07-28.
"""

from __future__ import annotations

from typing import Final

from groundplane.jobs.port import JobState

ASYA_UNKNOWN: Final = "Unknown"

ASYA: Final[dict[JobState, str]] = {
    JobState.PENDING: "Pending",
    JobState.RUNNING: "Running",
    JobState.PAUSED: "Running",
    JobState.SUCCEEDED: "Succeeded",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Failed",
    JobState.TIMED_OUT: "Failed",
}

MCP_TASK: Final[dict[JobState, str]] = {
    JobState.PENDING: "working",
    JobState.RUNNING: "working",
    JobState.PAUSED: "input_required",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.TIMED_OUT: "failed",
}

AGENT: Final[dict[JobState, str]] = {
    JobState.PENDING: "pending",
    JobState.RUNNING: "running",
    JobState.PAUSED: "running",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.TIMED_OUT: "timeout",
}
