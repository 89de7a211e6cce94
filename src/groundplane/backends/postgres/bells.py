"""Bells: who waits for a topic is rung by NOTIFY, by this process itself, and by a poll where nothing is heard.

One connection of its own listens while anybody does. NOTIFY takes a lock that all commits of a database share, so
topics are collected for a moment and told in one statement after their transactions.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import psycopg

from groundplane.backends.postgres.cutting import CutOff, bounded, shut_down
from groundplane.backends.postgres.settings import Settings
from groundplane.backends.postgres.transaction import Connection, Statement
from groundplane.core.errors import GroundplaneError

TOLD_AT_MOST_EVERY_S = 0.01
POLL_S = 1.0
POLL_DEAF_S = 0.25
_RETRY_S = 0.5
_CANARY_S = 2.0
_HEARTBEAT_S = 3.0
_PAYLOADS = 50


class Listener:
    """Rings after commits that rang its topic. A ring between two waits is never lost; spurious ones are allowed."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Let the waiting caller go."""
        self._rung.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True when rung, False after `timeout_s` seconds. One caller at a time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Bells:
    """All bells of a database in this loop. `deaf` while notifications do not come: then polls are quicker."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Awaitable[Connection]],
        tell: Callable[[Sequence[Statement]], Awaitable[None]],
    ) -> None:
        self.heard = 0
        self.deaf = True
        self._channel = f"groundplane:{settings.schema}"
        self._connect = connect
        self._tell = tell
        self._listeners: dict[str, set[Listener]] = {}
        self._topics: dict[str, None] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False
        self._ear: Connection | None = None

    def ring(self, topic: str) -> None:
        """Ring at once in this process, and a moment later in the others."""
        for one in self._listeners.get(topic, ()):
            one.ring()
        if not self._closed:
            self._topics[topic] = None
            self._spawn("tell", self._tell_others)

    def listen(self, topic: str) -> Listener:
        """A listener of a topic; give it back with `leave`."""
        listener = Listener(topic)
        self._listeners.setdefault(topic, set()).add(listener)
        self._spawn("hear", self._hear)
        self._spawn("poll", self._poll)
        return listener

    def leave(self, listener: Listener) -> None:
        """It rings no more."""
        remaining = self._listeners.get(listener.topic, set())
        remaining.discard(listener)
        if not remaining:
            self._listeners.pop(listener.topic, None)

    async def aclose(self) -> None:
        """Tell what is still to be told, end the tasks."""
        self._closed = True
        if self._ear is not None:
            shut_down(self._ear)
        telling = self._tasks.pop("tell", None)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if telling is not None:
            await asyncio.wait([telling], timeout=1.0)
            telling.cancel()
            tasks.append(telling)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        task = self._tasks.get(name)
        if task is None or task.done():
            self._tasks[name] = asyncio.ensure_future(work())

    async def _tell_others(self) -> None:
        while self._topics:
            topics, self._topics = list(self._topics), {}
            for start in range(0, len(topics), _PAYLOADS):
                payload = "\n".join(topics[start : start + _PAYLOADS])
                with contextlib.suppress(GroundplaneError):  # their polls find it
                    await self._tell([("SELECT pg_notify(%s, %s)", (self._channel, payload))])
            await asyncio.sleep(TOLD_AT_MOST_EVERY_S)

    async def _poll(self) -> None:
        while self._listeners:
            await asyncio.sleep(POLL_DEAF_S if self.deaf else POLL_S)
            self._ring_all()

    async def _hear(self) -> None:
        """Listen while anybody does; begin anew where the connection breaks or goes silent."""
        while self._listeners and not self._closed:
            try:
                self._ear = await self._connect()
            except GroundplaneError:
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                await self._hear_on(self._ear)
            except (psycopg.Error, CutOff):
                await asyncio.sleep(_RETRY_S)
            finally:
                self.deaf = True
                self._ear.pgconn.finish()
                self._ear = None

    async def _hear_on(self, connection: Connection) -> None:
        async with bounded(connection, _CANARY_S):
            await connection.execute(f'LISTEN "{self._channel}"')
        own = f"canary {id(self)} {connection.info.backend_pid}"
        while self._listeners:
            # what is told to oneself proves that notifications come; behind PgBouncer they do not
            async with bounded(connection, _CANARY_S):
                await connection.execute("SELECT pg_notify(%s, %s)", (self._channel, own))
            heard = False
            async for notification in connection.notifies(timeout=_HEARTBEAT_S):
                heard |= notification.payload == own
                self._take(notification.payload)
                if heard and self.deaf:
                    self.deaf = False
                    self._ring_all()  # what came before anything could be heard
            self.deaf = not heard

    def _take(self, payload: str) -> None:
        for topic in payload.split("\n"):
            for one in self._listeners.get(topic, ()):
                self.heard += 1
                one.ring()

    def _ring_all(self) -> None:
        for listeners in self._listeners.values():
            for one in listeners:
                one.ring()
