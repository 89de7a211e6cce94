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
        self._answers: dict[str, Message | None] = {}
        self._under_way = 0
        self._enough = 0
        self._waiting: asyncio.Future[None] | None = None
        self._failed: Exception | None = None

    async def run(self, requests: Iterable[Request]) -> list[Message]:
        """The answers, in the order of the requests."""
        link, answers = self._link, self._answers
        try:
            for subject, payload, head in requests:
                if self._under_way >= self._window:
                    await self._until(self._window // 2)
                if self._failed is not None:
                    break
                if link.is_full:
                    await link.room()
                answers[link.call_with(self, subject, payload, head)] = None
                self._under_way += 1
            await self._until(0)
        finally:
            for token, answer in answers.items():
                if answer is None:
                    link.give_up(token)
        if self._failed is not None:
            raise self._failed
        return [answer for answer in answers.values() if answer is not None]

    # -- requests.Answer, for all of them

    def done(self) -> bool:
        """Never: others are to come."""
        return False

    def set_result(self, message: Message) -> None:
        """One is answered."""
        self._answers[message.subject.rpartition(".")[2]] = message
        self._ended()

    def set_exception(self, error: Exception) -> None:
        """One will not be answered."""
        self._failed = self._failed or error
        self._ended()

    def _ended(self) -> None:
        self._under_way -= 1
        waiting = self._waiting
        if waiting is not None and self._under_way <= self._enough and not waiting.done():
            waiting.set_result(None)

    async def _until(self, few: int) -> None:
        """Wait until no more than so many are under way."""
        if self._under_way <= few:
            return
        self._enough, self._waiting = few, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._waiting
        except TimeoutError as error:
            raise too_late(self._what, self._timeout_s) from error
