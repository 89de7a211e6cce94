"""`groundplane mcp`: MCP on standard input and output, for clients that start their servers themselves."""

from __future__ import annotations

import asyncio
from typing import Annotated

from cyclopts import Parameter

from groundplane.cli.loading import load_app
from groundplane.cli.options import COMMON, Common
from groundplane.cli.output import EXIT_OK
from groundplane.core.settings import Settings
from groundplane.mesh.spec import Offer
from groundplane.plane import Plane
from groundplane.telemetry.traces import tracing


def mcp(
    app: Annotated[str | None, Parameter(help="Where the tools come from: module:attribute or a file.")] = None,
    /,
    *,
    common: Common = COMMON,
) -> int:
    """Serve MCP on standard input and output; the actors run elsewhere, under `groundplane dev` or `run`.

    Examples:

      groundplane mcp app:app --state .groundplane
    """
    settings = common.settings()
    declared = load_app(app)[0] if app is not None else None
    offer = declared.offer if declared is not None else Offer()
    asyncio.run(_serve(settings, offer, declared.name if declared is not None else "groundplane"))
    return EXIT_OK


async def _serve(settings: Settings, offer: Offer, name: str) -> None:
    from groundplane.gateway import Catalogue, Gateway, ToolTable

    table = ToolTable(offer.tools, files=[settings.routes] if settings.routes else [])
    async with (
        tracing("groundplane-gateway", "gateway", namespace=settings.name, queues=settings.queues.reveal()),
        Plane.open(settings, ports=("queues", "jobs", "blobs", "security")) as plane,
    ):
        async with Gateway.open(
            jobs=plane.jobs,
            queues=plane.queues,
            blobs=plane.blobs,
            security=plane.security,
            tools=table,
            catalogue=Catalogue(offer.prompts, offer.resources),
            name=name,
        ) as one:
            await one.serve_stdio()
