"""`groundplane audit`: who did what."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from groundplane.cli.jobs import opened
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.durations import parse_duration
from groundplane.security import AuditEntry, AuditQuery

_COLUMNS = ("at", "principal", "caller", "action", "resource", "outcome", "detail", "count")


def list_(
    *,
    principal: Annotated[str | None, Parameter(help="Only what this principal did.")] = None,
    caller: Annotated[str | None, Parameter(help="Only what this key or client did.")] = None,
    action: Annotated[str | None, Parameter(help="Only this, as tools.call or jobs.control.")] = None,
    resource: Annotated[str | None, Parameter(help="Only to this, as job:ID or tool:NAME.")] = None,
    outcome: Annotated[Literal["done", "refused", "failed"] | None, Parameter(help="Only with this outcome.")] = None,
    since: Annotated[str | None, Parameter(help="Not older than this, as 24h.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, 1 to 1000.")] = 100,
    before: Annotated[int | None, Parameter(help="Go on where the page before ended: its last entry id.")] = None,
    common: Common = COMMON,
) -> int:
    """List the audit log, newest first.

    Examples:

      groundplane audit list --outcome refused --since 24h

      groundplane audit list --principal team-a --json
    """
    began = None if since is None else SYSTEM_CLOCK.now_ms() - round(parse_duration("since", since) * 1000)
    query = AuditQuery(
        principal=principal, caller=caller, action=action, resource=resource, outcome=outcome, since=began, limit=limit,
        before=before,
    )  # fmt: skip

    async def inside() -> int:
        async with opened(common, "security") as plane:
            rows = [_row(entry) for entry in await plane.security.list_audit(query)]
        common.output.table(rows, _COLUMNS, empty="no entries", value={"entries": rows})
        if len(rows) == limit:
            common.output.note(f"more: --before {rows[-1]['entry_id']}")
        return EXIT_OK

    return asyncio.run(inside())


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {**msgspec.structs.asdict(entry), "at": iso_z(entry.at)}
