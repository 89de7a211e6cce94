"""A job's events as a stream of server-sent events, in our words or in the older ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request

from groundplane.gateway.limits import principal_of
from groundplane.gateway.problems import HTTPProblem
from groundplane.gateway.services import Services
from groundplane.gateway.shapes import asya_json, event_json, job_json
from groundplane.gateway.sse import KEEPALIVE, EventStream, frame, retry_hint
from groundplane.jobs.checks import FINAL_KINDS
from groundplane.jobs.feed import Subscription
from groundplane.jobs.port import Job, JobEvent
from groundplane.jobs.words import ASYA, ASYA_UNKNOWN

_ASYA = {state.value: word for state, word in ASYA.items()}


async def job_stream(services: Services, request: Request, job: Job, *, older_words: bool = False) -> EventStream:
    """`status` with the job as it is, then an `update` per event: first those since `Last-Event-ID`, then live ones.

    Ends after the final event, which carries the whole job. A drain ends it with a retry hint. Raises
    `resource_exhausted` (`too_many_streams`).
    """
    after = last_event_id(request)
    words = _Words(asya_json, _asya_event) if older_words else _Words(job_json, event_json)
    writer = _Writer(services, job, after, words)
    held = ExitStack()
    held.enter_context(services.limiter.stream(principal_of(request.scope)))
    return EventStream(writer.chunks(), writer.leave, stall_s=services.settings.stall_s, held=held)


def last_event_id(request: Request) -> int:
    """The id that the client has seen, 0 without one."""
    text = request.headers.get("last-event-id", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise HTTPProblem(400, f"last-event-id: {text[:100]!r} is not an event id", details={"field": "last-event-id"})
    return int(text)


def is_final(event: JobEvent) -> bool:
    """Whether the job ended with this event."""
    return event.kind in FINAL_KINDS


class _Words:
    def __init__(self, job: Callable[[Job], dict[str, Any]], event: Callable[[JobEvent], dict[str, Any]]) -> None:
        self.job = job
        self.event = event


def _asya_event(event: JobEvent) -> dict[str, Any]:
    shown = event_json(event)
    state = str(shown.get("state", ""))
    shown["id"] = event.job_id
    shown["status"] = _ASYA.get(state, ASYA_UNKNOWN)
    shown["progress_percent"] = shown.get("progress", 0.0)
    return shown


class _Writer:
    """Turns what a subscription finds into frames; knows when the stream is over."""

    def __init__(self, services: Services, job: Job, after: int, words: _Words) -> None:
        self._services = services
        self._job = job
        self._after = after
        self._words = words
        self._subscription: Subscription | None = None
        self._left = False

    def leave(self) -> None:
        """The client has left."""
        self._left = True
        if self._subscription is not None:
            self._subscription.end()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The stream, frame by frame; several frames in one chunk where they are there at once."""
        services = self._services
        settings = services.settings
        with services.feed.subscribe(self._job, self._after) as events, services.metrics.streams.track_inprogress():
            self._subscription = events
            if self._left:
                events.end()
            yield frame(
                "status",
                self._words.job(self._job),
                event_id=self._after or None,
                retry_ms=settings.retry_ms,
            )
            while True:
                found = await events.batch(0.0 if self._job.state.terminal else settings.keepalive_s)
                if self._left:
                    return
                yield b"".join([await self._frame(event) for event in found]) or KEEPALIVE
                if any(map(is_final, found)):
                    return
                if not found and self._job.state.terminal:
                    yield self._final(self._job, self._job.last_event_id)
                    return
                if events.ended and not found:
                    yield retry_hint(settings.retry_ms, "the gateway shuts down; the job goes on")
                    return

    async def _frame(self, event: JobEvent) -> bytes:
        if is_final(event):
            job = await self._services.jobs.get(event.job_id)
            return self._final(job, event.id, self._words.event(event))
        return frame("update", self._words.event(event), event_id=event.id)

    def _final(self, job: Job, event_id: int, event: dict[str, Any] | None = None) -> bytes:
        shown = {"event_id": event_id, "kind": job.state.value, **(event or {}), **self._words.job(job), "final": True}
        return frame("update", shown, event_id=event_id)
