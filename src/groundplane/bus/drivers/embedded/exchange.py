"""Transient messages: to those here at once, to other processes of the state folder over their sockets.

A process learns what the others subscribe to when they tell it, and looks again before it says that nobody is there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import msgspec

from groundplane.bus.drivers.embedded.links import Door, Frame, Link
from groundplane.bus.drivers.embedded.sessions import Session
from groundplane.bus.drivers.embedded.switch import NOWHERE, Local, Route, Switch, shared_pattern
from groundplane.bus.port import Message
from groundplane.core.deadline_timer import DeadlineTimer
from groundplane.core.errors import Closed, DeadlineExceeded, ResourceExhausted, Unavailable
from groundplane.core.pools import PoolState, announce

_INBOX = "_inbox."
_TELL = "_tell"
_TOLD_S = 1.0


class _Waiting:
    """A request that has no answer yet; `session` is who got it, 0 where it is here."""

    __slots__ = ("future", "session")

    def __init__(self, future: asyncio.Future[Message]) -> None:
        self.future = future
        self.session = 0


class Exchange:
    """The transient half of the driver."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._switch = Switch()
        self._door: Door | None = None
        self._sockets: dict[int, str] = {}
        self._links: dict[int, Link] = {}
        self._linking: dict[int, asyncio.Lock] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[str, _Waiting] = {}
        self._deadlines = DeadlineTimer(self._expire)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._shared: set[str] = set()
        self._sharing = asyncio.Lock()
        self._relinked = self._dropped = 0
        self._closed = False
        announce(self)

    async def open(self) -> None:
        """Be reachable."""
        self._session.lock()
        self._door = Door(self._session.folder, self._session.socket, self._take)
        await self._door.open()
        await self._session.join()
        await self.refresh()

    def counts(self) -> tuple[int, int, int]:
        """Links that are open, links made again, messages dropped."""
        return sum(one.alive for one in self._links.values()), self._relinked, self._dropped

    def pools(self) -> list[PoolState]:
        """The links to other processes."""
        return [PoolState(backend="bus", in_use=self.counts()[0], idle=0, waiting=0, reconnects=self._relinked)]

    async def add(self, local: Local) -> None:
        """Subscribe; in effect everywhere when it returns."""
        shared = shared_pattern(local)
        if shared:
            self._switch.add(local)
            await self._share(shared)
            return
        async with self._changing:
            members = self._switch.add(local)
            await self._session.set_interest(local.pattern, local.team, members)
        await self._tell()

    async def remove(self, local: Local) -> None:
        """Unsubscribe. What is shared stays told until closing; after closing there is nobody left to tell."""
        if shared_pattern(local):
            self._switch.remove(local)
            return
        async with self._changing:
            members = self._switch.remove(local)
            if self._closed:
                return
            await self._session.set_interest(local.pattern, local.team, members)
        await self._tell()

    def is_heard(self, subject: str) -> bool:
        """Whether somebody subscribes to it, as far as is known here."""
        return self._switch.route(subject) != NOWHERE

    async def publish(self, message: Message) -> None:
        """Send to whoever subscribes; those that cannot take it are passed over."""
        if message.subject.startswith(_INBOX):
            await self._answer(message)
        else:
            await self._send(message, self._switch.route(message.subject), None)

    async def request(self, message: Message, timeout_s: float) -> Message:
        """Send and wait for the first answer."""
        inbox = f"{_INBOX}{self._session.id}.{next(self._numbers)}"
        waiting = self._waiting[inbox] = _Waiting(asyncio.get_running_loop().create_future())
        asked = msgspec.structs.replace(message, reply_to=inbox)
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            route = self._switch.route(message.subject)
            if route.is_here:
                await self._send(asked, route, waiting)  # at once
            else:
                async with asyncio.timeout_at(until):
                    await self._send_away(asked, route, waiting)
            self._deadlines.set(inbox, until)
            return await waiting.future
        except TimeoutError:
            raise DeadlineExceeded(
                f"timeout_s: no answer on {message.subject!r} within {timeout_s:g} s", reason="deadline_exceeded"
            ) from None
        finally:
            self._deadlines.drop(inbox)
            del self._waiting[inbox]

    async def refresh(self) -> None:
        """Look what the others subscribe to."""
        sockets, interests = await self._session.others()
        self._sockets = sockets
        self._switch.learn(interests)
        for session in [one for one in self._links if one not in sockets]:
            self._links.pop(session).close()
            self._linking.pop(session, None)

    async def aclose(self) -> None:
        """Leave, hang up, end what waits with `Closed`."""
        self._closed = True
        self._deadlines.clear()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(Closed("bus: was closed during the request; its outcome is unknown"))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        try:
            await self._session.leave()
        finally:
            for link in list(self._links.values()):
                link.close()
            if self._door is not None:
                self._door.close()

    async def _share(self, pattern: str) -> None:
        if pattern in self._shared:
            return
        async with self._sharing:
            if pattern not in self._shared:
                await self._session.set_interest(pattern, "", 1)
                await self._tell()
                self._shared.add(pattern)

    async def _send(self, message: Message, route: Route, waiting: _Waiting | None) -> int:
        """Hand it to everybody on the route, one of each team; how many got it."""
        reached = 0
        for local in route.here:
            local.deliver(message)
            reached += 1
        for session in route.sessions:
            if await self._send_to(session, message, plain=True):
                reached += 1
                _note(waiting, session, reached)
        for team in route.teams:
            gone: frozenset[int] = frozenset()
            while (member := team.next(gone)) is not None:
                if isinstance(member, Local):
                    member.deliver(message)
                elif not await self._send_to(member, message, teams=[team.key]):
                    gone |= {member}
                    continue
                else:
                    _note(waiting, member, reached + 1)
                reached += 1
                break
        return reached

    async def _send_away(self, message: Message, route: Route, waiting: _Waiting) -> None:
        """Hand a request to another process, or to one that has just come; `no_responder` where there is none."""
        if await self._send(message, route, waiting):
            return
        await self.refresh()
        if not await self._send(message, self._switch.route(message.subject), waiting):
            raise Unavailable(
                f"subject: nobody answers {message.subject!r}; start its service, or mend the name",
                reason="no_responder",
                details={"subject": message.subject},
            )

    def _expire(self, inbox: str) -> None:
        future = self._waiting[inbox].future
        if not future.done():
            future.set_exception(TimeoutError())

    async def _send_to(
        self, session: int, message: Message, *, plain: bool = False, teams: Sequence[tuple[str, str]] = ()
    ) -> bool:
        frame = Frame(
            message.subject, message.payload, message.id, message.headers, message.reply_to, plain, list(teams)
        )
        try:
            (await self._link(session)).send(frame)
        except (Unavailable, ResourceExhausted):
            self._dropped += 1
            return False
        return True

    async def _answer(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject)
        if waiting is not None:
            if not waiting.future.done():
                waiting.future.set_result(message)
            return
        session = int(message.subject.split(".")[1])
        if session == self._session.id:
            return  # nobody waits for it any more
        if session not in self._sockets:
            await self.refresh()
        await self._send_to(session, message)

    async def _link(self, session: int) -> Link:
        link = self._links.get(session)
        if link is not None and link.alive:
            return link
        async with self._linking.setdefault(session, asyncio.Lock()):
            link = self._links.get(session)
            if link is None or not link.alive:
                name = self._sockets.get(session)
                if name is None:
                    raise Unavailable("bus: the other process of this plane has gone")
                self._relinked += link is not None
                link = await Link.connect(self._session.folder, name, partial(self._lost, session))
                self._links[session] = link
            return link

    def _lost(self, session: int) -> None:
        """Whoever waits for an answer from there waits in vain."""
        for waiting in self._waiting.values():
            if waiting.session == session and not waiting.future.done():
                waiting.future.set_exception(
                    Unavailable("bus: the process that handled the request has gone", details={"sent": True})
                )

    def _take(self, frame: Frame) -> None:
        """A frame came from another process."""
        if self._closed:
            return
        if frame.subject == _TELL:
            self._spawn(frame)
            return
        message = Message(
            subject=frame.subject,
            payload=frame.payload,
            id=frame.id,
            headers=frame.headers,
            reply_to=frame.reply_to,
        )
        waiting = self._waiting.get(frame.subject)
        if waiting is not None:
            if not waiting.future.done():
                waiting.future.set_result(message)
            return
        for pattern, team in frame.teams:
            members = self._switch.members(pattern, team)
            if members:
                members.append(members.pop(0))
                members[-1].deliver(message)
        if frame.plain:
            for local in self._switch.route(frame.subject).here:
                local.deliver(message)

    def _spawn(self, frame: Frame) -> None:
        task = asyncio.create_task(self._learn(frame), name="groundplane-bus-learn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn(self, frame: Frame) -> None:
        """Another says that its subscriptions changed: look, and say so."""
        await self.refresh()
        await self._answer(Message(subject=frame.reply_to, payload=b""))

    async def _tell(self) -> None:
        """Let the others look again, and wait for them a little; one that hangs is not waited for."""
        await self.refresh()
        told = [self._tell_one(session) for session in self._sockets]
        if told:
            await asyncio.gather(*told)

    async def _tell_one(self, session: int) -> None:
        inbox = f"{_INBOX}{self._session.id}.{next(self._numbers)}"
        waiting = self._waiting[inbox] = _Waiting(asyncio.get_running_loop().create_future())
        waiting.session = session
        try:
            with suppress(TimeoutError, Unavailable):
                async with asyncio.timeout(_TOLD_S):
                    if await self._send_to(session, Message(subject=_TELL, payload=b"", reply_to=inbox)):
                        await waiting.future
        finally:
            del self._waiting[inbox]


def _note(waiting: _Waiting | None, session: int, reached: int) -> None:
    """Remember the one process that got a request: when that dies, nobody answers."""
    if waiting is not None:
        waiting.session = session if reached == 1 else 0
