"""What a tool call answers: the result of its job, or an error as data beside its text."""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.core.errors import ErrorRecord, InvalidArgument
from groundplane.gateway.mcp.content import content_blocks
from groundplane.gateway.shapes import carryable, error_json
from groundplane.gateway.tools import Tool
from groundplane.jobs.port import Job, JobState

JOB_META = "io.groundplane/job_id"
_ENCODER = msgspec.json.Encoder(enc_hook=str)


def outcome(job: Job, tool: Tool | None = None) -> dict[str, Any]:
    """The result of a call of `tool` (None: it is there no longer) for a job that ended, or that goes on while the
    gateway stops.

    Where the tool gives content the job's result is blocks; what it promises by `output_schema` it has to keep (MCP,
    tools, "Output Schema"). Where it does not, that is an error that names the field.
    """
    if job.state is JobState.SUCCEEDED:
        if tool is not None and tool.spec.content:
            return _blocks(job)
        result = carryable(job.result)
        text = result if isinstance(result, str) else _ENCODER.encode(result).decode()
        built = msgspec.to_builtins(result, builtin_types=(), enc_hook=str)
        structured = built if isinstance(built, dict) else {"result": built}
        try:
            if tool is not None:
                tool.check_result(structured)
        except InvalidArgument as mismatch:
            return failed(_broken(mismatch), job.job_id, job.state.value)
        return {
            "content": [{"type": "text", "text": text}],
            "structuredContent": structured,
            "isError": False,
            "resultType": "complete",
            "_meta": {JOB_META: job.job_id},
        }
    if job.state.terminal:
        error = job.error or ErrorRecord(code="internal", message=job.message or f"the job ended as {job.state.value}")
        return failed(error, job.job_id, job.state.value)
    message = f"the gateway is shutting down; the job goes on, read it later at /v1/jobs/{job.job_id}"
    return failed(ErrorRecord(code="unavailable", message=message), job.job_id, job.state.value)


def _broken(error: InvalidArgument) -> ErrorRecord:
    """The fault is the tool's, and not the caller's."""
    message = f"{error.message}: the result breaks the tool's output_schema"
    return ErrorRecord(code="internal", reason="output_mismatch", message=message, details=dict(error.details))


def _blocks(job: Job) -> dict[str, Any]:
    try:
        blocks = content_blocks(job.result)
    except InvalidArgument as error:
        return failed(error.to_record(), job.job_id, job.state.value)
    return {"content": blocks, "isError": False, "resultType": "complete", "_meta": {JOB_META: job.job_id}}


def failed(error: ErrorRecord, job_id: str | None = None, state: str | None = None) -> dict[str, Any]:
    """An `isError` result: the message as text, the error as data."""
    structured: dict[str, Any] = {"error": error_json(error)}
    if state is not None:
        structured["state"] = state
    return {
        "content": [{"type": "text", "text": error.message}],
        "structuredContent": msgspec.to_builtins(structured, enc_hook=repr),
        "isError": True,
        "resultType": "complete",
        "_meta": {JOB_META: job_id} if job_id else {},
    }
