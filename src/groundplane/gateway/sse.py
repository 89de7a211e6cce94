"""Server-sent events: a small response that keeps alive, notices a client that left, and ends when it is over.

Format and reconnection: WHATWG HTML, section 9.2. A source yields frames and stops; between frames it yields nothing
for at most the keep-alive interval. The client's departure ends the source through `on_disconnect`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

MEDIA_TYPE = "text/event-stream"
KEEPALIVE = b": keep-alive\n\n"
_ENCODER = msgspec.json.Encoder(enc_hook=str)
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def frame(event: str, data: Any, *, event_id: int | None = None, retry_ms: int | None = None) -> bytes:
    """One event. `data` is written as one line of JSON."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    head += f"retry: {retry_ms}\n" if retry_ms is not None else ""
    return f"{head}event: {event}\ndata: ".encode() + _ENCODER.encode(data) + b"\n\n"


def retry_hint(retry_ms: int, why: str) -> bytes:
    """The last words of a stream that is cut while work goes on: come back, and when."""
    return f"retry: {retry_ms}\n: {why}\n\n".encode()


class EventStream:
    """An ASGI response. `stall_s` bounds how long a client that does not read holds it; `held` is let go at its end."""

    def __init__(
        self, source: AsyncIterator[bytes], on_disconnect: Callable[[], None], *, stall_s: float, held: ExitStack
    ) -> None:
        self._source = source
        self._on_disconnect = on_disconnect
        self._stall_s = stall_s
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the source ends, the client leaves, or it has not read for `stall_s` seconds."""
        with self._held:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        watcher = asyncio.create_task(self._watch(receive), name="sse:disconnect")
        try:
            async for chunk in self._source:
                if watcher.done():
                    return
                async with asyncio.timeout(self._stall_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # the connection is closed under a client that does not read; it may resume
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._on_disconnect()
