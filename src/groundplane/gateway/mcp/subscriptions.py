"""Subscriptions to resources: a tool that says `updates=[uri]` has changed those resources when a job of it succeeds.

Every replica watches the ends of jobs while somebody listens to it, so that it does not matter where the job was
started. `resources/subscribe` is of the older revisions: the record of the session has its subscriptions, and the
replica that has its client's stream tells it. Streams of the newer revision are in `listening`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from mcp.server.connection import Connection
from mcp.server.lowlevel.server import Server
from mcp_types import EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from groundplane.core.errors import GroundplaneError, NotFound, ResourceExhausted
from groundplane.gateway.mcp.context import STDIO, Context, session_id
from groundplane.gateway.mcp.listening import URIS_MAX, Listening
from groundplane.gateway.mcp.offers import Offers, unknown_resource
from groundplane.gateway.mcp.session_records import Handshake
from groundplane.gateway.mcp.sessions import SessionManager
from groundplane.gateway.services import Services
from groundplane.jobs.port import JobState
from groundplane.telemetry.logs import get_logger

_SAFETY_S = 5.0
_PAGE = 500
CHARS_MAX = 16 * 1024
"""Of the URIs that a session is subscribed to, together: its record has 64 KiB."""
_log = get_logger("gateway")

Send = Callable[[str], Awaitable[None]]


class _Subscriber:
    """One session, and what it is still to be told. Nobody waits for a client that reads slowly, and no URI waits twice
    for it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._due: dict[str, None] = {}
        self._telling: asyncio.Task[None] | None = None

    def tell(self, uri: str) -> None:
        """The resource was changed."""
        self._due[uri] = None
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="mcp:updated")

    def leave(self) -> None:
        """Tell nothing more."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self) -> None:
        while self._due:
            uri = next(iter(self._due))
            del self._due[uri]
            await self._send(uri)


class Subscriptions:
    """Who is told of which resource, and the watch on the jobs that change one."""

    def __init__(
        self,
        services: Services,
        offers: Offers,
        listening: Listening,
        manager: SessionManager,
        updates: Mapping[str, Sequence[str]],
    ) -> None:
        self._services = services
        self._offers = offers
        self._listening = listening
        self._manager = manager
        self._updates = updates
        self._changed = {uri for uris in updates.values() for uri in uris}
        self._sessions: dict[str, _Subscriber] = {}
        self._of_stdio: tuple[str, ...] = ()

    def register(self, server: Server[Any]) -> None:
        """Serve the methods of the older revisions."""
        server.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe)

    def forget(self, session: str) -> None:
        """The session has ended, or is not held here any more."""
        if (found := self._sessions.pop(session, None)) is not None:
            found.leave()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell subscribers while open; without a tool that changes anything there is nothing to do."""
        watching = asyncio.create_task(self._watch(), name="mcp:updates") if self._updates else None
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.wait({watching})
            for session in list(self._sessions):
                self.forget(session)

    async def _subscribe(self, ctx: Context, params: SubscribeRequestParams) -> EmptyResult:
        uri = str(params.uri)
        if self._offers.find(uri) is None:
            raise unknown_resource(uri)
        await self._change(ctx, lambda uris: _with(uris, uri))
        return EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        uri = str(params.uri)
        await self._change(ctx, lambda uris: tuple(one for one in uris if one != uri))
        return EmptyResult()

    async def _change(self, ctx: Context, changed: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        session = session_id(ctx)
        if session == STDIO:
            self._of_stdio = changed(self._of_stdio)
            self._sessions.setdefault(STDIO, _Subscriber(ctx.session.send_resource_updated))
        elif session is not None:

            def kept(handshake: Handshake) -> Handshake:
                return msgspec.structs.replace(handshake, subscriptions=changed(handshake.subscriptions))

            await self._manager.change(session, kept)

    async def _watch(self) -> None:
        jobs, position = self._services.jobs, -1
        while True:
            try:
                async with jobs.watch("ends") as watch:
                    while True:
                        if position < 0:
                            position = (await jobs.events(limit=0)).last_id
                        await watch.wait(_SAFETY_S)
                        position = await self._step(position)
            except GroundplaneError as error:
                _log.warning("updates_interrupted", code=error.code, error=error.message)
                await asyncio.sleep(_SAFETY_S)

    async def _step(self, position: int) -> int:
        """Tell what the jobs that ended since have changed; the position to go on from."""
        if not self._wanted():
            return -1
        page = await self._services.jobs.events(position, limit=_PAGE, final=True)
        changed: dict[str, None] = {}
        for event in page.items:
            if event.kind == JobState.SUCCEEDED.value:
                job = await self._services.jobs.get(event.job_id)
                changed |= dict.fromkeys(self._updates.get(job.tool, ()))
        if changed:
            await self._tell(list(changed))
        return page.last_id

    def _wanted(self) -> bool:
        """Whether somebody may want to know: what a session is subscribed to, another replica may have been told."""
        return bool(self._manager.streaming() or self._of_stdio) or self._listening.wants(self._changed)

    async def _tell(self, uris: Sequence[str]) -> None:
        for uri in uris:
            self._listening.resource_updated(uri)
            if uri in self._of_stdio:
                self._sessions[STDIO].tell(uri)
        for held in self._manager.streaming():
            try:
                wanted = await self._manager.subscriptions(held)
            except NotFound:
                continue  # it was ended on another replica
            connection = held.connection
            if not self._manager.holds(held):
                continue  # it went while the store was asked; who adopts it again has another connection
            for uri in uris:
                if uri in wanted and connection is not None and held.streams:
                    told = self._sessions.setdefault(held.session_id, _Subscriber(_sender(connection)))
                    told.tell(uri)


def _sender(connection: Connection) -> Send:
    async def send(uri: str) -> None:
        await connection.notify("notifications/resources/updated", {"uri": uri})

    return send


def _with(uris: tuple[str, ...], uri: str) -> tuple[str, ...]:
    if uri in uris:
        return uris
    if len(uris) >= URIS_MAX or sum(map(len, uris)) + len(uri) > CHARS_MAX:
        raise ResourceExhausted(
            f"uri: the session has {len(uris)} subscriptions; {URIS_MAX} of {CHARS_MAX} characters together are kept"
        )
    return (*uris, uri)


__all__ = ["Subscriptions"]
