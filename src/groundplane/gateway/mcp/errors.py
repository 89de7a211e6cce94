"""Errors over MCP: what a client is told of one, and the boundary that lets nothing else out.

The SDK sends an unhandled exception's text to clients of the older revisions; behind `Boundary` there is none.
"""

from __future__ import annotations

import traceback
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, MISSING_REQUIRED_CLIENT_CAPABILITY
from pydantic import ValidationError

from groundplane.core.errors import ErrorRecord, GroundplaneError
from groundplane.gateway.access import told
from groundplane.gateway.mcp.context import Context, caller
from groundplane.gateway.shapes import error_json
from groundplane.jobs.port import Job
from groundplane.telemetry.logs import get_logger

_FAULT = "the gateway failed; its log says why"
_OF_THE_CALLER = frozenset({"invalid_argument", "not_found", "permission_denied"})
_log = get_logger("gateway")


class Boundary:
    """A middleware of the SDK's server: every error leaves as one of the protocol's."""

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Handle the message."""
        try:
            return await call_next(ctx)
        except (MCPError, ValidationError):
            raise  # the SDK makes an answer of either
        except GroundplaneError as error:
            raise protocol_error(told(caller(ctx), error)) from error
        except Exception as error:  # noqa: BLE001 - the log has the cause
            fault(error, ctx.method)
            raise MCPError(INTERNAL_ERROR, _FAULT) from None


def fault(error: Exception, method: str) -> ErrorRecord:
    """A fault of the gateway itself: the log has its cause, the client is told that there is one."""
    _log.error("mcp_failed", method=method, traceback="".join(traceback.format_exception(error)))
    return ErrorRecord(code="internal", message=_FAULT)


def public(record: ErrorRecord) -> ErrorRecord:
    """Faults of the gateway itself are not told."""
    return record if record.code != "internal" else ErrorRecord(code="internal", message=_FAULT)


def protocol_error(error: GroundplaneError, **data: Any) -> MCPError:
    """The error as one of JSON-RPC's: invalid parameters where the caller can mend it."""
    code = INVALID_PARAMS if error.code in _OF_THE_CALLER else INTERNAL_ERROR
    record = public(error.to_record())
    return MCPError(code, record.message, {**(error_json(record) or {}), **data})


def job_error(job: Job, **data: Any) -> MCPError:
    """The error of work that did not succeed."""
    record = job.error or ErrorRecord(code="unavailable", message=job.message or f"the job is {job.state.value}")
    return MCPError(INTERNAL_ERROR, record.message, {**(error_json(record) or {}), "job_id": job.job_id, **data})


class MissingCapability(MCPError):
    """The client does not declare what an answer needs: `required`, as it would have declared it."""

    def __init__(self, message: str, **required: Any) -> None:
        super().__init__(MISSING_REQUIRED_CLIENT_CAPABILITY, message, {"requiredCapabilities": required})


__all__ = ["Boundary", "MissingCapability", "fault", "job_error", "protocol_error", "public"]
