"""`subscriptions/listen` of revision 2026-07-28: what clients are told without asking.

Changes of the list of tools, resources that a tool has changed, and the tasks of `taskIds`. Each stream begins with
what of the wish is granted, carries its request's id in every frame, and holds a bounded number of frames for a client
that reads slowly; beyond that it ends, and the client listens anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, cast

from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import INVALID_PARAMS, ServerNotification, SubscriptionsListenRequestParams, SubscriptionsListenResult
from pydantic import BaseModel

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.mcp.context import Context, takes_tasks
from groundplane.gateway.mcp.tasks import Tasks, missing_tasks
from groundplane.gateway.services import Services
from groundplane.gateway.streams import is_final
from groundplane.jobs.port import Job, JobEvent
from groundplane.telemetry.logs import get_logger

STREAMS_MAX = 1024
FRAMES_MAX = 1024
TASKS_MAX = 64
URIS_MAX = 1024
_log = get_logger("gateway")
_TELLING = frozenset({"asked", "answered", "paused", "resumed", "progress"})


class Notice(BaseModel):
    """A notification as it goes out."""

    method: str
    params: dict[str, Any]


class _Stream:
    """One client's wish, and the frames that wait for it. None ends it."""

    def __init__(self, subscription: Any, wish: Mapping[str, Any], granted: dict[str, Any]) -> None:
        self.meta = {SUBSCRIPTION_ID_META_KEY: subscription}
        self.granted = granted
        self.frames: asyncio.Queue[Notice | None] = asyncio.Queue(FRAMES_MAX)

    def put(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        if self.frames.full():
            self.end()
        else:
            self.frames.put_nowait(Notice(method=method, params={**(params or {}), "_meta": self.meta}))

    def end(self) -> None:
        if self.frames.full():
            self.frames.get_nowait()
        self.frames.put_nowait(None)


class Listening:
    """The streams of this gateway."""

    def __init__(self, services: Services, tasks: Tasks, *, resources: bool) -> None:
        self._services = services
        self._tasks = tasks
        self._resources = resources
        self._streams: set[_Stream] = set()
        self._draining = False

    async def __call__(self, ctx: Context, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        """Serve one stream, until its client leaves or the gateway drains."""
        wish: Mapping[str, Any] = (ctx.params or {}).get("notifications") or {}
        jobs = [await self._tasks.read(ctx, task_id) for task_id in _task_ids(ctx, wish)]
        if len(self._streams) >= STREAMS_MAX:  # nothing is awaited from here until it is one of them
            raise MCPError(INVALID_PARAMS, f"{STREAMS_MAX} streams are open; listen on one of yours, or later")
        stream = _Stream(ctx.request_id, wish, self._granted(wish, jobs))
        self._streams.add(stream)
        try:
            async with AsyncExitStack() as stack:
                group = await stack.enter_async_context(asyncio.TaskGroup())
                stream.put("notifications/subscriptions/acknowledged", {"notifications": stream.granted})
                followers = [group.create_task(self._follow(ctx, stream, job)) for job in jobs]
                if self._draining:
                    stream.end()
                while (notice := await stream.frames.get()) is not None:
                    await ctx.session.send_notification(cast(ServerNotification, notice), ctx.request_id)
                for one in followers:
                    one.cancel()
        finally:
            self._streams.discard(stream)
        return SubscriptionsListenResult(_meta=stream.meta)

    def tools_changed(self) -> None:
        """The list of tools is another."""
        for one in self._streams:
            if one.granted.get("toolsListChanged"):
                one.put("notifications/tools/list_changed")

    def resource_updated(self, uri: str) -> None:
        """What the URI names is other than before."""
        for one in self._streams:
            if uri in one.granted.get("resourceSubscriptions", ()):
                one.put("notifications/resources/updated", {"uri": uri})

    def wants(self, uris: set[str]) -> bool:
        """Whether somebody listens for one of them."""
        return any(not uris.isdisjoint(one.granted.get("resourceSubscriptions", ())) for one in self._streams)

    def drain(self) -> None:
        """End every stream, and those to come, with their last frame."""
        self._draining = True
        for one in self._streams:
            one.end()

    def _granted(self, wish: Mapping[str, Any], jobs: list[Job]) -> dict[str, Any]:
        granted: dict[str, Any] = {}
        if wish.get("toolsListChanged"):
            granted["toolsListChanged"] = True
        if self._resources and (uris := wish.get("resourceSubscriptions")):
            granted["resourceSubscriptions"] = list(uris)[:URIS_MAX]
        if jobs:
            granted["taskIds"] = [job.job_id for job in jobs]
        return granted

    async def _follow(self, ctx: Context, stream: _Stream, job: Job) -> None:
        """Tell a task until it ends. Where the store does not answer the stream ends, and the client listens anew."""
        try:
            await self._tell_all(ctx, stream, job)
        except GroundplaneError as error:
            _log.warning("listening_interrupted", job_id=job.job_id, code=error.code, error=error.message)
            stream.end()

    async def _tell_all(self, ctx: Context, stream: _Stream, job: Job) -> None:
        """Tell a task as it is now, and after each event that changes what is told of it."""
        told: dict[str, Any] | None = None
        with self._services.feed.subscribe(job, job.last_event_id) as events:
            while True:
                told = await self._tell(ctx, stream, job, told)
                if job.state.terminal:
                    return
                found: list[JobEvent] = []
                while not any(is_final(one) or one.kind in _TELLING for one in found):
                    found = await events.batch()
                    if events.ended:
                        return
                job = await self._services.jobs.get(job.job_id)

    async def _tell(self, ctx: Context, stream: _Stream, job: Job, told: dict[str, Any] | None) -> dict[str, Any]:
        shown = self._tasks.detailed(ctx, await self._services.whole(job))
        new = {key: value for key, value in shown.items() if key != "lastUpdatedAt"}
        if new != told:
            stream.put("notifications/tasks", shown)
        return new


def _task_ids(ctx: Context, wish: Mapping[str, Any]) -> list[str]:
    ids = wish.get("taskIds") or []
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids) or len(ids) > TASKS_MAX:
        raise MCPError(INVALID_PARAMS, f"notifications.taskIds: is not a list of at most {TASKS_MAX} task ids")
    if ids and not takes_tasks(ctx):
        raise missing_tasks()
    return list(dict.fromkeys(ids))


__all__ = ["Listening", "Notice"]
