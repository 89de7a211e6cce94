"""Deleting dead letters: a page that asks first, as it is for good, and the change itself."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from starlette.types import ASGIApp

from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.problems import HTTPProblem


async def show(visit: Visit) -> ASGIApp:
    """Delete this one?"""
    letter = await visit.ask("getDead", path={"dead_id": visit.path("dead_id")})
    path = f"{ROOT}/dead/{quote(letter['id'], safe='')}"
    return visit.page(
        "dead_purge.html", letter=letter, queue=letter["queue"], count=1, action=f"{path}/purge", back=path
    )


async def purge(visit: Visit) -> ASGIApp:
    """Delete it."""
    return _gone(visit, await visit.ask("purgeDead", path={"dead_id": visit.path("dead_id")}))


async def show_all(visit: Visit) -> ASGIApp:
    """Delete all of this queue? The form has how many there were, so that what dies meanwhile stays."""
    queue = visit.query("queue")
    if not queue:
        raise HTTPProblem(400, "queue: is missing; dead letters are deleted queue by queue")
    count = (await visit.services.queues.depth(queue)).dead
    back = f"{ROOT}/dead?{urlencode({'queue': queue})}"
    return visit.page("dead_purge.html", letter=None, queue=queue, count=count, action=f"{ROOT}/dead/purge", back=back)


async def purge_all(visit: Visit) -> ASGIApp:
    """Delete as many as were asked about, the oldest first."""
    count = visit.form.get("count", "")
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise HTTPProblem(422, f"count: {count[:50]!r} is not a number of dead letters; begin at their list")
    body = {"queue": visit.form.get("queue", ""), "limit": int(count)}
    return _gone(visit, await visit.ask("purgeAllDead", body=body))


def _gone(visit: Visit, done: dict[str, Any]) -> ASGIApp:
    return visit.go(f"{ROOT}/dead?{urlencode({'purged': done['purged']})}")
