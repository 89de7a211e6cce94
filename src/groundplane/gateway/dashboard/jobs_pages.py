"""The list of jobs, newest first: filters, pages by cursor, live on the first page. Nothing is counted."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from starlette.types import ASGIApp

from groundplane.gateway.dashboard.live import EVERY_S, stream
from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.dashboard.site import Visit
from groundplane.jobs.port import JobState
from groundplane.security.access import Action

LIMIT = 50
STATES = tuple(state.value for state in JobState)


async def listing(visit: Visit) -> ASGIApp:
    """The page; a whole job id in the search field leads to that job."""
    wanted = visit.query("id")
    if wanted:
        job = await visit.ask("getJob", path={"job_id": wanted})
        return visit.go(f"{ROOT}/jobs/{job['job_id']}")
    tools = (await visit.ask("listTools"))["tools"]
    return visit.page("jobs.html", tools=sorted(tool["name"] for tool in tools), **await _listed(visit))


async def listing_live(visit: Visit) -> ASGIApp:
    """The rows as they change."""
    await _listed(visit)  # what is refused is refused before the stream begins
    jobs, seen = visit.services.jobs, -1

    async def part() -> tuple[dict[str, Any], bool]:
        nonlocal seen
        seen = (await jobs.events(limit=0)).last_id
        return await _listed(visit), False

    async def news(within_s: float) -> None:
        """One number is read a second, and the rows only when it has changed."""
        for _ in range(max(1, int(within_s / EVERY_S))):
            if (await jobs.events(limit=0)).last_id != seen:
                return
            await asyncio.sleep(EVERY_S)

    return stream(visit, "jobs.html", part, news)


async def _listed(visit: Visit) -> dict[str, Any]:
    chosen = _filters(visit)
    page = await visit.ask("listJobs", query={**chosen, "cursor": visit.query("cursor"), "limit": LIMIT})
    kept = {name: value for name, value in chosen.items() if value}
    following = f"/?{urlencode({**kept, 'cursor': page['cursor']}, doseq=True)}" if page["cursor"] else None
    mine = visit.caller.principal if visit.caller is not None else ""
    return {
        "jobs": page["jobs"],
        "mine": mine,
        "of_mine": f"/?{urlencode({**kept, 'owner': mine}, doseq=True)}" if mine and mine != chosen["owner"] else "",
        "everybody": visit.may(Action.READ_PLANE),
        "states": STATES,
        "chosen": chosen,
        "filtered": bool(kept),
        "paged": bool(visit.query("cursor")),
        "first": f"/?{urlencode(kept, doseq=True)}" if kept else "/",
        "following": following,
        "live_query": urlencode(kept, doseq=True),
        "kept": visit.services.jobs.statistics().swept,
    }


def _filters(visit: Visit) -> dict[str, Any]:
    given = visit.request.query_params
    states = [one for text in given.getlist("state") for one in text.split(",") if one]
    return {"state": states, "tool": visit.query("tool"), "owner": visit.query("owner")}
