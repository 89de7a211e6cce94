"""Dead letters: what is not tried again and why, live; edited and put back."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

from starlette.types import ASGIApp

from groundplane.core.errors import GroundplaneError
from groundplane.gateway import strict_json
from groundplane.gateway.dashboard import shown
from groundplane.gateway.dashboard.flow import TICK_S
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.mount import ROOT
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.problems import HTTPProblem, of_error
from groundplane.security.access import Action

LIMIT = 50


async def listing(visit: Visit) -> ASGIApp:
    """A page of them, oldest first, of one queue or of all."""
    redriven, purged = visit.query("redriven"), visit.query("purged")
    return visit.page("dead.html", redriven=redriven, purged=purged, **await _listed(visit))


async def listing_live(visit: Visit) -> ASGIApp:
    """The rows as letters come and go."""
    await _listed(visit)  # what is refused is refused before the stream begins
    flow, seen = visit.site.flow, dict[str, int]()

    async def part() -> tuple[dict[str, Any], bool]:
        nonlocal seen
        seen = _counts(visit)
        return await _listed(visit), False

    async def news(within_s: float) -> None:
        """Depths are looked at; letters are listed only when there are more or fewer, as a broker may have to hand out
        all of them for that.
        """
        for _ in range(max(1, int(within_s / TICK_S))):
            await flow.wanted()
            if _counts(visit) != seen:
                return
            await asyncio.sleep(TICK_S / 2)

    return stream(visit, "dead.html", part, news)


def _counts(visit: Visit) -> dict[str, int]:
    return {name: depth.dead for name, depth in visit.site.flow.depths.items() if depth.dead}


async def _listed(visit: Visit) -> dict[str, Any]:
    queue = visit.query("queue")
    page = await visit.ask("listDead", query={"queue": queue, "cursor": visit.query("cursor"), "limit": LIMIT})
    await visit.site.flow.wanted()
    counts = _counts(visit)
    kept = {"queue": queue} if queue else {}
    following = f"{ROOT}/dead?{urlencode({**kept, 'cursor': page['cursor']})}" if page["cursor"] else None
    return {
        "letters": page["dead"],
        "queue": queue,
        "counts": sorted(counts.items()),
        "total": sum(counts.values()),
        "following": following,
        "paged": bool(visit.query("cursor")),
        "live_query": urlencode(kept),
        "purges": visit.may(Action.PURGE_DEAD),
    }


async def show(visit: Visit) -> ASGIApp:
    """One, whole."""
    letter = await visit.ask("getDead", path={"dead_id": visit.path("dead_id")})
    return await _page(visit, letter, shown.pretty(letter["payload"]))


async def redrive(visit: Visit) -> ASGIApp:
    """Put it back, with the payload of the form where that differs from the letter's."""
    dead_id = visit.path("dead_id")
    letter = await visit.ask("getDead", path={"dead_id": dead_id})
    body: dict[str, Any] = {}
    typed = visit.form.get("payload")
    if typed is not None and letter["payload_base64"] is None:
        try:
            payload = strict_json.parse(typed.encode())
        except (HTTPProblem, GroundplaneError) as error:
            return await _page(visit, letter, typed, error.message, 422)
        if payload != letter["payload"]:
            body = {"payload": payload}
    try:
        await visit.ask("redriveDead", path={"dead_id": dead_id}, body=body)
    except GroundplaneError as error:
        status = of_error(error).status_code
        if status in (404, 500):
            raise
        return await _page(visit, letter, typed or "", error.message, status)
    return visit.go(f"{ROOT}/dead?{urlencode({'redriven': letter['message_id']})}")


async def _page(visit: Visit, letter: dict[str, Any], typed: str, wrong: str = "", status: int = 200) -> ASGIApp:
    record = await visit.services.queues.get_dead(letter["id"])
    traceback = record.error.traceback if record.error is not None else ""
    uneditable = letter["payload_base64"] is not None or len(typed) > shown.TEXT_MAX
    return visit.page(
        "dead_letter.html",
        status,
        letter=letter,
        typed=typed,
        wrong=wrong,
        traceback=traceback,
        uneditable=uneditable,
        redrives=visit.may(Action.REDRIVE_DEAD),
        purges=visit.may(Action.PURGE_DEAD),
    )
