"""What the gateway tells of its own security: the metadata that clients find their issuer by, and the audit log."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.clock import iso_z
from groundplane.core.errors import FailedPrecondition
from groundplane.gateway.authentication import MCP_PATH, METADATA_PATH, Authenticator
from groundplane.gateway.endpoints import Answer, Call, Endpoint, Parameter
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.rest import reply
from groundplane.security.access import Action
from groundplane.security.port import PAGE_MAX, AuditEntry, AuditQuery
from groundplane.security.store import Security

_TEXT = {"type": "string"}
_MOMENT = {"type": "integer", "minimum": 0, "maximum": 2**62}


class SecurityApi:
    """`/.well-known/oauth-protected-resource` and `/v1/audit`."""

    def __init__(self, authenticator: Authenticator, security: Security | None, name: str) -> None:
        self._authenticator = authenticator
        self._security = security
        self._name = name

    async def root_metadata(self, call: Call) -> ASGIApp:
        """Where tokens for this gateway come from (RFC 9728)."""
        return self._metadata("")

    async def mcp_metadata(self, call: Call) -> ASGIApp:
        """Where tokens for `/mcp` come from (RFC 9728)."""
        return self._metadata(MCP_PATH)

    async def audit(self, call: Call) -> ASGIApp:
        """Who did what to what, newest first; go on with `before`."""
        if self._security is None:
            raise FailedPrecondition("audit: this gateway was opened without a store of security")
        page = await self._security.list_audit(AuditQuery(**call.query))
        before = page[-1].entry_id if page else None
        return reply({"entries": [entry_json(entry) for entry in page], "before": before})

    def _metadata(self, path: str) -> ASGIApp:
        found = self._authenticator.metadata(path, self._name)
        if found is None:
            raise HTTPProblem(404, "metadata: this gateway takes no tokens of an issuer")
        return reply(found)


def entry_json(entry: AuditEntry) -> dict[str, Any]:
    """An entry of the audit log."""
    return {
        "entry_id": entry.entry_id,
        "at": iso_z(entry.at),
        "principal": entry.principal,
        "caller": entry.caller,
        "kind": entry.kind,
        "key_id": entry.key_id,
        "action": entry.action,
        "resource": entry.resource,
        "outcome": entry.outcome,
        "detail": entry.detail,
        "count": entry.count,
    }


def security_endpoints(api: SecurityApi) -> list[Endpoint]:
    """The rows of the route table."""
    metadata = Answer(description="The metadata.", schema="ProtectedResource")
    rows = (("", "describeResource", api.root_metadata), (MCP_PATH, "describeMcpResource", api.mcp_metadata))
    return [
        *(
            Endpoint(
                method="GET",
                path=f"{METADATA_PATH}{path}",
                operation=operation,
                action=Action.DESCRIBE,
                summary=(handler.__doc__ or "").strip(),
                handler=handler,
                answers={200: metadata},
                problems=(404,),
                tag="security",
            )
            for path, operation, handler in rows
        ),
        Endpoint(
            method="GET",
            path="/v1/audit",
            operation="listAudit",
            action=Action.READ_AUDIT,
            summary=(api.audit.__doc__ or "").strip(),
            handler=api.audit,
            query=(
                *(Parameter(name=name, schema=_TEXT) for name in ("principal", "caller", "resource")),
                Parameter(name="action", schema={"type": "string", "enum": [one.value for one in Action]}),
                Parameter(name="outcome", schema={"type": "string", "enum": ["done", "refused", "failed"]}),
                Parameter(name="since", schema=_MOMENT, description="Unix milliseconds."),
                Parameter(name="until", schema=_MOMENT, description="Unix milliseconds."),
                Parameter(name="before", schema=_MOMENT, description="`before` of the page before."),
                Parameter(name="limit", schema={"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 100}),
            ),
            answers={200: Answer(description="A page.", schema="AuditPage")},
            problems=(409,),
            tag="security",
        ),
    ]
