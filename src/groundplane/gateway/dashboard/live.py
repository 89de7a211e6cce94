"""A page that changes while it is looked at: its live part is made again, and sent when it is another than before.

The stream says when to come back where it ends on a drain. It makes the part at most once in `every_s` seconds, however
much happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from groundplane.core.errors import GroundplaneError
from groundplane.gateway.dashboard.site import Visit
from groundplane.gateway.limits import principal_of
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.sse import KEEPALIVE, EventStream

EVERY_S = 1.0
STREAM_S = 300.0
"""A stream ends after that long and the browser comes back: who looks is found anew."""
LOGIN_S = 5.0
"""So often a stream asks whether its login still holds, and ends where it does not."""
Part = Callable[[], Awaitable[tuple[dict[str, Any], bool]]]
"""Makes the context of the live part, and says whether it will not change any more."""
Wait = Callable[[float], Awaitable[Any]]


def stream(visit: Visit, template: str, part: Part, wait: Wait | None = None, every_s: float = EVERY_S) -> EventStream:
    """The live part of `template` as it changes, until it does not any more, the browser leaves or the gateway drains.

    `wait` returns when there may be something new, at the latest after the seconds that it is given.
    """
    one = _Stream(visit, template, part, wait, every_s)
    held = ExitStack()
    held.enter_context(visit.services.limiter.stream(principal_of(visit.request.scope)))
    return EventStream(one.chunks(), one.stop.set, stall_s=visit.services.settings.stall_s, held=held)


class _Stream:
    def __init__(self, visit: Visit, template: str, part: Part, wait: Wait | None, every_s: float) -> None:
        self.stop = asyncio.Event()
        self._visit = visit
        self._template = template
        self._part = part
        self._wait = wait
        self._every_s = every_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The frames."""
        services = self._visit.services
        settings = services.settings
        last, silent_s, loop = "", 0.0, asyncio.get_running_loop()
        with services.feed.ending(self.stop), services.metrics.streams.track_inprogress():
            until, asked = loop.time() + STREAM_S, loop.time()
            while not self.stop.is_set():
                began = loop.time()
                holds, asked = (await self._holds(), began) if began - asked >= LOGIN_S else (True, asked)
                if began >= until or not holds:
                    yield f"retry: {settings.retry_ms}\nevent: again\ndata: again\n\n".encode()
                    return
                html, over = await self._made()
                if html is not None and html != last:
                    last, silent_s = html, 0.0
                    yield frame(html, settings.retry_ms)
                elif silent_s >= settings.keepalive_s:
                    silent_s = 0.0
                    yield KEEPALIVE
                if over:
                    yield b"event: over\ndata: over\n\n"
                    return
                await self._pause()
                silent_s += loop.time() - began
            if services.draining:
                yield f"retry: {settings.retry_ms}\nevent: drain\ndata: the gateway shuts down\n\n".encode()

    async def _holds(self) -> bool:
        """Whether who looks may go on; a store that does not answer just now ends nobody's login."""
        try:
            return await self._visit.lasts()
        except GroundplaneError as error:
            if not error.retryable:
                raise
            return True

    async def _made(self) -> tuple[str | None, bool]:
        """The part; None where what it shows does not answer, and the last one stays."""
        try:
            context, over = await self._part()
        except (GroundplaneError, HTTPProblem) as error:
            over = isinstance(error, HTTPProblem) or not error.retryable
            return self._visit.site.fragment("problem.html", {"message": error.message}) if over else None, over
        return self._visit.site.fragment(self._template, {**self._visit.context(), **context}), over

    async def _pause(self) -> None:
        """Until there may be something new, and at least `every_s` seconds; at once when it is to stop."""
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.stop.wait())]
        try:
            await asyncio.wait(waiting, timeout=self._every_s)
            if self._wait is not None and not self.stop.is_set():
                waiting.append(asyncio.ensure_future(self._news(self._wait)))
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure

    async def _news(self, wait: Wait) -> None:
        """What is waited for. A store that does not answer is looked at again: making the part then says what is."""
        with contextlib.suppress(GroundplaneError):
            await wait(min(LOGIN_S, self._visit.services.settings.keepalive_s))


def frame(html: str, retry_ms: int) -> bytes:
    """A message without a name: htmx puts it into the page."""
    lines = "".join(f"data: {line}\n" for line in re.split("\r\n|\r|\n", html.encode("utf-8", "replace").decode()))
    return f"retry: {retry_ms}\n{lines}\n".encode()
