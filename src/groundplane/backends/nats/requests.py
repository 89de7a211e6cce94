"""Answers on one inbox: each request has a token, the last one of the subject that it is answered on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from itertools import count
from typing import Protocol

from groundplane.backends.nats.errors import again, too_late
from groundplane.backends.nats.message import Message
from groundplane.core.deadline_timer import DeadlineTimer
from groundplane.core.errors import GroundplaneError


class Collector:
    """Takes many answers to one request, until `ended(message)`; the last one is among them."""

    def __init__(self, ended: Callable[[Message], bool]) -> None:
        self._ended = ended
        self._found: list[Message] = []
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, message: Message) -> None:
        """One more."""
        self._found.append(message)
        if self._ended(message) and not self._over.done():
            self._over.set_result(None)

    def fail(self, error: GroundplaneError) -> None:
        """No more will come."""
        if not self._over.done():
            self._over.set_exception(again(error))

    async def all(self, subject: str, timeout_s: float) -> list[Message]:
        """All of them; `deadline_exceeded` where none came for `timeout_s`."""
        while True:
            seen = len(self._found)
            done, _ = await asyncio.wait([self._over], timeout=timeout_s)
            if done:
                self._over.result()
                return self._found
            if len(self._found) == seen:
                self._over.cancel()
                raise too_late(subject, timeout_s)


class Answer(Protocol):
    """Where an answer goes: a future, or what looks like one."""

    def done(self) -> bool:
        """Whether it is there."""

    def set_result(self, result: Message, /) -> None:
        """It is here."""

    def set_exception(self, exception: Exception, /) -> None:
        """It never comes."""


class Requests:
    """The requests of one connection that wait, by token. `late` counts answers that nobody waited for any more."""

    def __init__(self, inbox: str) -> None:
        self._inbox = inbox
        self._prefix = f"{inbox}.{secrets.token_urlsafe(15).replace('_', 'a').replace('-', 'b')}."
        self._prefix_size = len(self._prefix)
        self._tokens = count(1)
        self._waiting: dict[str, tuple[str, Answer, float]] = {}
        self._collecting: dict[str, tuple[str, Collector]] = {}
        self._loop = asyncio.get_running_loop()
        self._deadlines = DeadlineTimer(self._expire)
        self.late = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._collecting)

    @property
    def subject(self) -> str:
        """What to subscribe to."""
        return self._prefix + "*"

    def new_inbox(self) -> str:
        """A subject outside of it."""
        return f"{self._inbox}.{secrets.token_hex(12)}"

    def begin(self, answer: Answer, subject: str, timeout_s: float | None = None) -> tuple[str, str]:
        """Token and reply subject of the answer to come; `deadline_exceeded` after `timeout_s`, None: never."""
        token = str(next(self._tokens))
        self._waiting[token] = (subject, answer, timeout_s or 0.0)
        if timeout_s is not None:
            self._deadlines.set(token, self._loop.time() + timeout_s)
        return token, self._prefix + token

    def begin_collecting(self, subject: str, collector: Collector) -> tuple[str, str]:
        """Token and reply subject."""
        token = str(next(self._tokens))
        self._collecting[token] = (subject, collector)
        return token, self._prefix + token

    def forget(self, token: str) -> None:
        """Nobody waits any more. Idempotent."""
        self._deadlines.drop(token)
        if self._waiting.pop(token, None) is None:
            self._collecting.pop(token, None)

    def deliver(self, message: Message) -> None:
        """An answer came."""
        token = message.subject[self._prefix_size :]
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            answer = waiting[1]
            if waiting[2]:
                self._deadlines.drop(token)
            if not answer.done():
                answer.set_result(message)
        elif token in self._collecting:
            self._collecting[token][1].take(message)
        else:
            self.late += 1

    def _expire(self, token: str) -> None:
        waiting = self._waiting.pop(token, None)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_exception(too_late(waiting[0], waiting[2]))

    def refuse(self, subject: str, error: GroundplaneError) -> None:
        """The server refuses what was sent to `subject`."""
        for token, (asked, answer, _) in list(self._waiting.items()):
            if asked == subject:
                del self._waiting[token]
                if not answer.done():
                    answer.set_exception(again(error))
        for token, (asked, collector) in list(self._collecting.items()):
            if asked == subject:
                del self._collecting[token]
                collector.fail(error)

    def fail(self, error: GroundplaneError) -> None:
        """No answer will come to any of them."""
        waiting, self._waiting = self._waiting, {}
        collecting, self._collecting = self._collecting, {}
        self._deadlines.clear()
        for _, answer, _ in waiting.values():
            if not answer.done():
                answer.set_exception(again(error))
        for _, collector in collecting.values():
            collector.fail(error)
