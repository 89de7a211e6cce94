"""Jobs that are started by other parts of an App than its gateway: handlers of the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from groundplane.core.errors import InvalidArgument, NotFound
from groundplane.core.lazily import Lazily
from groundplane.core.names import did_you_mean
from groundplane.core.settings import Settings
from groundplane.plane import Plane
from groundplane.telemetry import traces

if TYPE_CHECKING:
    from groundplane.gateway.tools import Tool
    from groundplane.mesh.spec import ToolSpec


class ToolJobs:
    """Starts jobs of an App's tools, as their gateway would: they belong to the plane itself (the local caller). Jobs
    and blobs are opened with the first.
    """

    def __init__(self, settings: Settings, tools: Mapping[str, ToolSpec]) -> None:
        self._plane = Lazily("jobs", partial(Plane.open, settings, ports=("jobs", "blobs")))
        self._specs = tools
        self._tools: dict[str, Tool] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, tools: Mapping[str, ToolSpec]) -> AsyncIterator[ToolJobs]:
        """Ready to start jobs of these tools; nothing is opened yet."""
        found = cls(settings, tools)
        try:
            yield found
        finally:
            await found._plane.aclose()

    async def start(
        self, tool: str, arguments: Mapping[str, Any], *, idempotency_key: str, timeout_s: float | None
    ) -> str:
        """See `bus.JobStarter`. `timeout_s` may not be longer than the tool's."""
        from groundplane.gateway.tracing import first_sent, told_of
        from groundplane.mesh.claims import Claims
        from groundplane.mesh.start import start_job

        found = self._tool(tool)
        checked = found.arguments(dict(arguments))
        if timeout_s is not None and not 0 < timeout_s <= found.spec.timeout_s:
            raise InvalidArgument(
                f"timeout_s: {timeout_s!r} is not more than 0 and at most the {found.spec.timeout_s:g} s of {tool!r}"
            )
        plane = await self._plane.get()
        with first_sent(found.spec.route[0]) as span:
            trace = traces.outgoing()
            created = await start_job(
                plane.jobs, found.spec, checked, idempotency_key=idempotency_key, timeout_s=timeout_s,
                headers=trace.headers() if trace is not None else {}, claims=Claims(plane.blobs),
            )  # fmt: skip
            told_of(span, created)
        return created.job.job_id

    def _tool(self, name: str) -> Tool:
        if name not in self._specs:
            near = did_you_mean(name, self._specs)
            raise NotFound(f"tool: {name[:200]!r} is not declared in the App{near}", reason="tool_not_found")
        if name not in self._tools:
            from groundplane.gateway.tools import Tool  # what checks arguments takes a while to load

            self._tools[name] = Tool(self._specs[name])
        return self._tools[name]


__all__ = ["ToolJobs"]
