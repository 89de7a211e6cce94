"""How much work an actor has, as one number for autoscalers: `/depth/<queue>` on the admin port.

Triggers of KEDA are not added up: it takes the largest. So ready, in flight and delayed are added here, and told apart
beside the sum.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import msgspec

from groundplane.core.errors import GroundplaneError, NotFound
from groundplane.queues import Queues
from groundplane.telemetry.admin import Page

PREFIX = "/depth/"
TIMEOUT_S = 4.0


def depth_page(queues: Queues, *, timeout_s: float = TIMEOUT_S) -> Page:
    """Answers `{"queue", "depth", "ready", "in_flight", "delayed"}`: counts now, `depth` is the sum of the other three.

    404 for a queue that does not exist; 503 when the broker does not tell within `timeout_s`, never a guess.
    """

    async def page(rest: str) -> tuple[int, bytes]:
        name = unquote(rest)
        try:
            async with asyncio.timeout(timeout_s):
                found = await queues.depth(name)
        except TimeoutError:
            return _refused(503, name, f"queue: {name!r} was not counted within {timeout_s:g} s")
        except GroundplaneError as error:
            unknown = isinstance(error, NotFound) or error.code == "invalid_argument"
            return _refused(404 if unknown else 503, name, error.message)
        counts = {"ready": found.ready, "in_flight": found.in_flight, "delayed": found.delayed}
        return 200, msgspec.json.encode({"queue": name, "depth": found.total, **counts})

    return page


def _refused(status: int, name: str, why: str) -> tuple[int, bytes]:
    return status, msgspec.json.encode({"queue": name[:200], "error": why})
