"""Actors: how much waits for each, how much passes, how much fails, how long it takes."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp

from groundplane.core.errors import NotFound
from groundplane.core.names import did_you_mean
from groundplane.gateway.dashboard.flow import TICK_S
from groundplane.gateway.dashboard.live import stream
from groundplane.gateway.dashboard.site import Visit
from groundplane.mesh.spec import ERROR_END, HAPPY_END

SPARK_WIDTH, SPARK_HEIGHT = 120, 24


async def listing(visit: Visit) -> ASGIApp:
    """All actors, with the last minute of each."""
    context, _ = await _all(visit)
    return visit.page("actors.html", **context)


async def listing_live(visit: Visit) -> ASGIApp:
    """The table as it changes."""
    return stream(visit, "actors.html", lambda: _all(visit), every_s=TICK_S)


async def show(visit: Visit) -> ASGIApp:
    """One actor with its charts."""
    context, _ = await _one(visit)
    return visit.page("actor.html", **context)


async def live(visit: Visit) -> ASGIApp:
    """Its numbers and charts as they change."""
    await _one(visit)
    return stream(visit, "actor.html", lambda: _one(visit), every_s=TICK_S)


async def _all(visit: Visit) -> tuple[dict[str, Any], bool]:
    flow = visit.site.flow
    await flow.wanted()
    names = sorted({*flow.depths, *flow.troubles}, key=lambda name: (name in (HAPPY_END, ERROR_END), name))
    rows = [_row(visit, name) for name in names]
    return {"actors": rows, "partial": flow.partial}, False


async def _one(visit: Visit) -> tuple[dict[str, Any], bool]:
    flow, name = visit.site.flow, visit.path("actor")
    await flow.wanted()
    known = {*flow.depths, *flow.troubles}
    if name not in known:
        raise NotFound(f"actor: {name[:200]!r} does not exist{did_you_mean(name, known)}", reason="queue_not_found")
    tools = [tool.spec.name for tool in visit.services.tools if name in tool.spec.route]
    series = flow.track(name).series(flow.now_ms())
    return {"actor": _row(visit, name), "series": series, "tools": tools, "partial": flow.partial}, False


def _row(visit: Visit, name: str) -> dict[str, Any]:
    flow = visit.site.flow
    track, now = flow.track(name), flow.now_ms()
    rates = track.series(now)["rate"]
    return {
        "name": name,
        "end": name in (HAPPY_END, ERROR_END),
        "depth": flow.depths.get(name),
        "trouble": flow.troubles.get(name, ""),
        "spark": spark(rates),
        "most": max(rates, default=0.0),
        **track.lately(now),
    }


def spark(values: list[float]) -> str:
    """The points of a line over the last minutes, for an SVG of `SPARK_WIDTH` by `SPARK_HEIGHT`; empty of nothing."""
    most = max(values, default=0.0)
    if most <= 0 or len(values) < 2:
        return ""
    step, room = SPARK_WIDTH / (len(values) - 1), SPARK_HEIGHT - 3
    return " ".join(f"{n * step:.1f},{SPARK_HEIGHT - 1.5 - value / most * room:.1f}" for n, value in enumerate(values))
