"""`groundplane health`: how the plane is, as its processes say."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from groundplane.cli import state_folder
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_FAILURE, EXIT_OK
from groundplane.core.errors import FailedPrecondition, InvalidArgument, Unavailable
from groundplane.telemetry.scraping import read_page

_TIMEOUT_S = 15.0
"""A check of a store has failed after five seconds, or ten."""


def health(
    *,
    url: Annotated[str | None, Parameter(help="Admin address of one process, as http://127.0.0.1:9090.")] = None,
    stored: Annotated[bool, Parameter(negative="", help="What was found within the last minute.")] = False,
    common: Common = COMMON,
) -> int:
    """Tell each check with its reason and latency: of all processes of `dev`, else of the gateway; 1 when one failed.

    Examples:

      groundplane health

      groundplane health --url http://127.0.0.1:9090 --json
    """
    address = (url or _address(common)).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise InvalidArgument(f"url: {address!r} is not an http:// or https:// URL; write http://127.0.0.1:9090")
    page = read_page(f"{address}/healthz{'?stored' if stored else ''}", also=(503,), timeout_s=_TIMEOUT_S)
    try:
        document: dict[str, Any] = msgspec.json.decode(page)
        checks: dict[str, dict[str, Any]] = document["checks"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Unavailable(f"url: {address!r} answers with what is no health of ours; give an admin address") from error
    rows = [{"check": name, **one} for name, one in checks.items()]
    common.output.table(
        rows, ["check", "status", "latency_ms", "reason"], empty=f"{document['role']}: no checks yet", value=document
    )
    return EXIT_OK if document["status"] == "ok" else EXIT_FAILURE


def _address(common: Common) -> str:
    running = state_folder.running(common.settings().state)
    address = running.plane or running.admin
    if not address:
        raise FailedPrecondition("admin: the gateway has no admin server; start it with --admin-port, or give --url")
    return address
