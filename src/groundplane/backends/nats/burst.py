"""Many requests at once, each answered by itself: none of them has a future, a callback or a timer of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from groundplane.backends.nats.errors import too_late
from groundplane.backends.nats.link import Link
from groundplane.backends.nats.message import Message

Request = tuple[str, bytes, bytes]
"""Subject, payload, encoded headers."""


class Burst:
    """The answers to requests that were sent in their order, up to `window` of them under way.

    `run` sends and waits; `timeout_s` is from one half of a window to the next. What it raises (`deadline_exceeded`,
    `connection_lost`, what `Link.publish` raises) is that of the first request that failed; those sent may be done, and
    hardly any is sent after one has failed.
    """

    def __init__(self, link: Link, *, what: str, window: int, timeout_s: float) -> None:
        self._link = link
        self._what = what
        self._window = window
        self._timeout_s = timeout_s
        self._under_way: dict[str, None] = {}
        self._enough = 0
        self._waiting: asyncio.Future[None] | None = None
        self._failed: Exception | None = None
        self.answers: list[Message] = []

    async def run(self, requests: Iterable[Request]) -> list[Message]:
        """The answers, in the order of the requests."""
        found: list[_Answer] = []
        try:
            for subject, payload, head in requests:
                if len(self._under_way) >= self._window:
                    await self._until(self._window // 2)
                if self._failed is not None:
                    break
                if self._link.is_full:
                    await self._link.room()
                answer = _Answer(self)
                found.append(answer)
                answer.token = self._link.call_with(answer, subject, payload, head)
                self._under_way[answer.token] = None
            await self._until(0)
        finally:
            for token in self._under_way:
                self._link.give_up(token)
        if self._failed is not None:
            raise self._failed
        return [answer.message for answer in found if answer.message is not None]

    def ended(self, token: str, failure: Exception | None) -> None:
        """One has its answer, or never gets it."""
        self._under_way.pop(token, None)
        self._failed = self._failed or failure
        waiting = self._waiting
        if waiting is not None and len(self._under_way) <= self._enough and not waiting.done():
            waiting.set_result(None)

    async def _until(self, few: int) -> None:
        """Wait until no more than so many are under way."""
        if len(self._under_way) <= few:
            return
        self._enough, self._waiting = few, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._waiting
        except TimeoutError as error:
            raise too_late(self._what, self._timeout_s) from error


class _Answer:
    """Where `Requests` puts the answer to one request, as if it were a future."""

    __slots__ = ("_burst", "message", "token")

    def __init__(self, burst: Burst) -> None:
        self._burst = burst
        self.message: Message | None = None
        self.token = ""

    def done(self) -> bool:
        return False

    def set_result(self, message: Message) -> None:
        self.message = message
        self._burst.ended(self.token, None)

    def set_exception(self, error: Exception) -> None:
        self._burst.ended(self.token, error)
