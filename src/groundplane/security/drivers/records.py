"""What the drivers share: how rows become values, and the errors that both raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundplane.core.errors import AlreadyExists, ResourceExhausted
from groundplane.security.port import ApiKey, AuditEntry, AuditQuery, FoundKey, NewKey

KEY_COLUMNS = "key_id, name, principal, scopes, created_at, expires_at, last_used_at, revoked_at"
AUDIT_COLUMNS = "action, outcome, principal, caller, kind, key_id, resource, detail, count"
PRUNED_AT_ONCE = 5000


def key_of(row: Sequence[Any]) -> ApiKey:
    """The key of a row of `KEY_COLUMNS`, times in milliseconds."""
    key_id, name, principal, scopes, created_at, expires_at, last_used_at, revoked_at = row[:8]
    return ApiKey(
        key_id=key_id,
        name=name,
        principal=principal,
        scopes=tuple(scopes.split()),
        created_at=created_at,
        expires_at=expires_at,
        last_used_at=last_used_at,
        revoked_at=revoked_at,
    )


def found_key(row: Sequence[Any], now_ms: int) -> FoundKey:
    """The key of a row of `KEY_COLUMNS` and the digest."""
    key = key_of(row)
    left_s = None if key.expires_at is None else (key.expires_at - now_ms) / 1000
    return FoundKey(key=key, digest=bytes(row[8]), left_s=left_s)


def audit_row(entry: AuditEntry) -> tuple[Any, ...]:
    """The values of `AUDIT_COLUMNS`."""
    return (
        entry.action, entry.outcome, entry.principal, entry.caller, entry.kind, entry.key_id, entry.resource,
        entry.detail, entry.count,
    )  # fmt: skip


def entry_of(row: Sequence[Any]) -> AuditEntry:
    """The entry of a row of id, time and `AUDIT_COLUMNS`."""
    entry_id, at, action, outcome, principal, caller, kind, key_id, resource, detail, count = row
    return AuditEntry(
        entry_id=entry_id,
        at=at,
        action=action,
        outcome=outcome,
        principal=principal,
        caller=caller,
        kind=kind,
        key_id=key_id,
        resource=resource,
        detail=detail,
        count=count,
    )


def audit_filters(query: AuditQuery) -> dict[str, Any]:
    """Column and operator → value, of the filters that are given; those of time are the driver's."""
    given = {
        "principal =": query.principal,
        "caller =": query.caller,
        "action =": query.action,
        "resource =": query.resource,
        "outcome =": query.outcome,
        "entry_id <": query.before,
    }
    return {condition: value for condition, value in given.items() if value is not None}


def name_taken(key: NewKey) -> AlreadyExists:
    """A key of that name is there."""
    return AlreadyExists(
        f"name: a key {key.name!r} is there already; revoke it first, or give the new one another name and --principal "
        f"{key.principal!r}",
        details={"name": key.name},
    )


def too_many_sessions(owner: str, most: int) -> ResourceExhausted:
    """The owner has as many as anybody may have."""
    return ResourceExhausted(
        f"session: {owner!r} has {most} open ones, and may have no more; end some, or wait until they expire",
        reason="too_many_sessions",
        details={"most": most},
    )
