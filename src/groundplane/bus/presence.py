"""Which instances of a service there are: servers tell, callers listen and choose."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

from groundplane.bus import wire
from groundplane.bus.port import BusSubscription, Message
from groundplane.bus.sending import Sender
from groundplane.bus.subjects import check_token
from groundplane.core.errors import DeadlineExceeded, GroundplaneError, InvalidArgument, Unavailable

Select = Literal["round_robin", "random", "sticky"]
_SELECTS = get_args(Select)
INTERVAL_S = 2.0
INSTANCES_MAX = 10_000
GONE_AFTER = 3
"""Intervals without a word after which an instance is taken for gone."""
_ASK_S = 0.3
_GATHER_S = 0.02
_ASK_AGAIN_S = 1.0


def check_select(select: object, key: object) -> None:
    """`invalid_argument` for no way to choose, or a key without use."""
    if select not in _SELECTS:
        raise InvalidArgument(f"select: {select!r} is not one of {', '.join(_SELECTS)}")
    if (select == "sticky") != isinstance(key, str):
        raise InvalidArgument(f"key: {key!r} goes with select='sticky', and must be a text")


class Announcer:
    """Tells that an instance is here, when asked and by itself."""

    def __init__(self, sender: Sender, service: str, instance: str, methods: Sequence[str]) -> None:
        self._sender = sender
        self._service = service
        self._instance = instance
        self._methods = list(methods)
        self._subscription: BusSubscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin."""
        self._subscription = await self._sender.driver.subscribe(f"control.who.{self._service}", self._asked)
        await self._tell()
        self._task = asyncio.create_task(self._run(), name="groundplane-bus-presence")

    async def aclose(self) -> None:
        """Say that it leaves."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task, *self._answers])
            self._task = None
        if self._subscription is not None:
            await self._subscription.aclose()
            with suppress(GroundplaneError):
                await self._tell(leaving=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            with suppress(GroundplaneError):  # disconnected: it tells again at the next turn
                await self._tell()

    def _asked(self, message: Message) -> None:
        task = asyncio.create_task(self._answer(message.reply_to), name="groundplane-bus-here")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, reply_to: str) -> None:
        with suppress(GroundplaneError):
            await self._tell()
            if reply_to:
                await self._sender.driver.publish(self._message(reply_to, leaving=False))

    async def _tell(self, *, leaving: bool = False) -> None:
        await self._sender.driver.publish(self._message(f"control.presence.{self._service}", leaving=leaving))

    def _message(self, subject: str, *, leaving: bool) -> Message:
        presence = wire.Presence(
            **wire.head(self._sender.source),
            service=self._service,
            instance=self._instance,
            methods=self._methods,
            interval=INTERVAL_S,
            leaving=leaving,
        )
        return self._sender.transient(subject, presence)


class Directory:
    """The instances of one service, as a caller knows them."""

    def __init__(self, sender: Sender, service: str) -> None:
        self._sender = sender
        self._service = service
        self._known: dict[str, tuple[frozenset[str], float]] = {}
        self._turns: dict[str, int] = {}
        self._by_method: dict[str, list[str]] = {}
        self._holds_until = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._subscription: BusSubscription | None = None
        self._asked_at = float("-inf")

    def choose(self, method: str, select: Select, key: str | None, now: float) -> str | None:
        """An instance that has `method` and is not gone `now`, by the loop's clock; None where nobody told of one."""
        if now > self._holds_until:
            self._drop_gone(now)
        found = self._by_method.get(method) or self._with(method)
        if not found:
            return None
        if select == "random":
            return random.choice(found)
        if select == "sticky":
            return max(found, key=lambda one: hashlib.blake2b(f"{key}\0{one}".encode(), digest_size=8).digest())
        self._turns[method] = turn = self._turns.get(method, -1) + 1
        return found[turn % len(found)]

    def forget(self, instance: str) -> None:
        """It did not answer where it should be."""
        self._known.pop(instance, None)
        self._by_method.clear()

    async def aclose(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.aclose()

    def _with(self, method: str) -> list[str]:
        found = [name for name, (methods, _) in self._known.items() if method in methods]
        if found:
            self._by_method[method] = found
        return found

    def _drop_gone(self, now: float) -> None:
        self._known = {name: told for name, told in self._known.items() if told[1] >= now}
        self._holds_until = min((until for _, until in self._known.values()), default=float("inf"))
        self._by_method.clear()

    @property
    def may_ask(self) -> bool:
        """Whether the last question is so long ago that another is worth it."""
        return self._loop.time() - self._asked_at > _ASK_AGAIN_S

    async def ask(self) -> None:
        """Ask who is there; the first answer is waited for, and a moment more for those of the others."""
        async with self._lock:
            if not self.may_ask:
                return
            if self._subscription is None:
                subject = f"control.presence.{self._service}"
                self._subscription = await self._sender.driver.subscribe(subject, self._told)
            who = wire.Who(**wire.head(self._sender.source), service=self._service)
            with suppress(Unavailable, DeadlineExceeded):
                asked = self._sender.transient(f"control.who.{self._service}", who)
                self._told(await self._sender.driver.request(asked, _ASK_S))
                await asyncio.sleep(_GATHER_S)
            self._asked_at = self._loop.time()

    def _told(self, message: Message) -> None:
        try:
            presence, _ = wire.read(message.payload, wire.Presence)
            check_token("instance", presence.instance)
        except InvalidArgument:
            return  # of a foreign peer that is none of ours: nobody waits for it, and nothing is lost
        self._by_method.clear()
        if presence.leaving or (presence.instance not in self._known and len(self._known) >= INSTANCES_MAX):
            self._known.pop(presence.instance, None)
            return
        until = self._loop.time() + GONE_AFTER * min(max(presence.interval, 0.1), 60.0)
        self._known[presence.instance] = (frozenset(presence.methods), until)
        self._holds_until = min(self._holds_until, until)
