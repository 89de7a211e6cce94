"""`groundplane keys`: API keys of a plane's gateways."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.jobs import opened
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK, Output
from groundplane.core.clock import SYSTEM_CLOCK, iso_z
from groundplane.core.durations import parse_duration
from groundplane.gateway.access import Access
from groundplane.security import Action, ApiKey, Caller, Security
from groundplane.security.keys import key_id_of

_COLUMNS = ("key_id", "name", "principal", "scopes", "state", "expires_at", "last_used_at")


def create(
    name: str,
    /,
    *,
    scope: Annotated[list[str], Parameter(negative="", help="tools:PATTERN, read, operate or admin; may be repeated.")],
    principal: Annotated[str | None, Parameter(help="Who owns what is started with it (default: the name).")] = None,
    expires: Annotated[str | None, Parameter(help="How long it is valid, as 90d; without it there is no end.")] = None,
    common: Common = COMMON,
) -> int:
    """Make an API key and print it: once, nobody can show it again.

    Examples:

      groundplane keys create ci --scope 'tools:build.*' --expires 90d

      groundplane keys create operator --scope 'tools:*' --scope operate --principal team-a
    """
    ttl_s = parse_duration("expires", expires) if expires is not None else None
    settings = common.settings()
    if settings.security.scheme == "embedded":  # a gateway that needs keys starts after its first one is made
        state_folder.make(settings.state)

    async def work(security: Security, output: Output) -> int:
        with Access(security).changing(_operator(), Action.CHANGE_KEYS, f"key:{name[:200]}") as change:
            made = await security.create_key(name, scope, principal=principal, ttl_s=ttl_s)
            change.detail = f"created {made.key.key_id} of {made.key.principal!r}: {' '.join(made.key.scopes)}"
        secret = made.secret.reveal()
        output.note(f"key {made.key.key_id} of {made.key.principal!r}; it is shown only now")
        output.result({**_row(made.key), "key": secret}, secret)
        return EXIT_OK

    return _run(common, work)


def list_(*, common: Common = COMMON) -> int:
    """List API keys with their scopes, without their secrets.

    Examples:

      groundplane keys list --json
    """

    async def work(security: Security, output: Output) -> int:
        keys: list[ApiKey] = []
        while page := await security.list_keys(after=keys[-1].key_id if keys else ""):
            keys += page
        rows = [_row(key) for key in sorted(keys, key=lambda one: one.created_at)]
        shown = [{**row, "scopes": " ".join(row["scopes"])} for row in rows]
        output.table(shown, _COLUMNS, empty="no keys", value={"keys": rows})
        return EXIT_OK

    return _run(common, work)


def revoke(key_id: str, /, *, common: Common = COMMON) -> int:
    """End an API key: gateways refuse it within 5 seconds. The whole key names it too.

    Examples:

      groundplane keys revoke KEY_ID
    """

    async def work(security: Security, output: Output) -> int:
        found = key_id_of(key_id) or key_id
        shown = found if len(found) <= 16 else "unknown"  # it may be most of a key
        with Access(security).changing(_operator(), Action.CHANGE_KEYS, f"key:{shown}") as change:
            key = await security.revoke_key(found)
            change.detail = f"revoked {key.name!r} of {key.principal!r}"
        output.result(_row(key), f"revoked: {key.key_id} ({key.name})")
        return EXIT_OK

    return _run(common, work)


def _run(common: Common, work: Callable[[Security, Output], Awaitable[int]]) -> int:
    async def inside() -> int:
        async with opened(common, "security") as plane:
            return await work(plane.security, common.output)

    return asyncio.run(inside())


def _operator() -> Caller:
    """Whoever runs the command, who has the store's URL; by the name that the machine knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        name = f"uid {os.getuid()}"
    return Caller(principal="", name=f"cli:{name}", kind="local")


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "principal": key.principal,
        "scopes": list(key.scopes),
        "state": _state(key),
        "created_at": iso_z(key.created_at),
        "expires_at": _time(key.expires_at),
        "last_used_at": _time(key.last_used_at),
        "revoked_at": _time(key.revoked_at),
    }


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= SYSTEM_CLOCK.now_ms() else "live"


def _time(moment: int | None) -> str | None:
    return iso_z(moment) if moment is not None else None
