"""The sidecar's side of the runtime's socket: calls in, outcomes out, over protocol 1 or 0.

A call never raises for what the runtime does: it has an outcome (`Result` or `Failure`). It raises `Unavailable`
(reason `runtime_not_ready`) when no connection could be had in time: then the handler was not called.

A sync handler has one connection for each call at once (a worker process each); an async one multiplexes. A call past
its timeout gets a `cancel` frame, and after `kill_grace_s` its worker is killed through the hello of the connection
that replaces the old one. Calls that shared the worker end as `runtime_crashed` and are retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from groundplane.core.errors import GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.ids import new_id
from groundplane.mesh.frames import FRAME_MAX, MESSAGE_MAX
from groundplane.mesh.routing import Failure, Outcome
from groundplane.mesh.runtime_link import Link, RunningCall, connect
from groundplane.mesh.runtime_old import OldRuntime

T = TypeVar("T")

KILL_GRACE_S = 0.25
CONNECT_TIMEOUT_S = 30.0
EXIT_WAIT_S = 2.0
_BACKOFF_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the runtime is and how it is spoken to. `calls` at once over all connections; times in seconds."""

    socket: str
    calls: int = 1
    protocol: Literal["auto", "0", "1"] = "auto"
    codecs: tuple[str, ...] = ("msgpack", "json")
    frame_max: int = FRAME_MAX
    message_max: int = MESSAGE_MAX
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    kill_grace_s: float = KILL_GRACE_S


class CallRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call: the envelope as a map with its payload in it, and what the handler's context needs."""

    envelope: dict[str, Any]
    timeout_s: float | None = None
    deadline_ms: int | None = None
    attempt: int = 1
    idempotency_key: str = ""
    join: dict[str, Any] | None = None


class CallEvents(Protocol):
    """What happens during a call. All but `ask`, which may take its time, must return at once."""

    def progress(self, percent: float, message: str) -> None:
        """The handler reports how far it is."""
        ...

    def heartbeat(self) -> None:
        """The handler says that it is alive."""
        ...

    def metric(self, name: str, kind: str, value: float, labels: dict[str, str]) -> None:
        """The handler records a value of its own metric."""
        ...

    def log(self, level: str, message: str, data: dict[str, Any]) -> None:
        """The handler writes a line for the job's log."""
        ...

    async def ask(self, op: str, fields: dict[str, Any]) -> Any:
        """The handler asks for something; a `GroundplaneError` is its answer too."""
        ...


class Ticket:
    """A call that can be cancelled from outside, at once or before it has begun."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.also: Callable[[str], None] | None = None
        """Who else is told."""
        self._cancel: Callable[[str], None] | None = None

    def cancel(self, reason: str) -> None:
        """Tell the handler; it ends by itself or at its timeout."""
        if self.reason is None:
            self.reason = reason
            for tell in (self._cancel, self.also):
                if tell is not None:
                    tell(reason)

    def attach(self, cancel: Callable[[str], None] | None) -> None:
        """Used by the client: whom to tell."""
        self._cancel = cancel
        if cancel is not None and self.reason is not None:
            cancel(self.reason)


class RuntimeClient:
    """The connections of one sidecar to its runtime. Calls may be made concurrently, `settings.calls` run at once."""

    def __init__(self, settings: RuntimeSettings) -> None:
        self.settings = settings
        self.session = new_id()
        self.about: dict[str, Any] = {}
        """What the runtime said of itself in its latest hello."""
        self.crashes = 0
        self._room = asyncio.Semaphore(settings.calls)
        self._links: list[Link] = []
        self._opening = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._old: OldRuntime | None = None
        if settings.protocol == "0":
            self._old = OldRuntime(settings.socket, settings.frame_max)
        self._closed = False

    def __repr__(self) -> str:
        protocol = 0 if self._old else 1
        return f"<RuntimeClient {self.settings.socket!r} protocol {protocol}, {len(self._links)} connections>"

    @property
    def connected(self) -> bool:
        """Whether a connection stands (always true of protocol 0 once a call or `start` succeeded)."""
        return bool(self._links) or (self._old is not None and self._old.reachable)

    @property
    def protocol(self) -> int:
        """The version that is spoken."""
        return 0 if self._old else 1

    async def start(self) -> None:
        """Wait until the runtime answers. Raises `Unavailable` (`runtime_not_ready`) after `connect_timeout_s`."""
        if self._old is not None:
            await self._patiently(self._old.probe)
        elif not self._links:
            await self._patiently(self._open_any)

    async def call(self, request: CallRequest, events: CallEvents, ticket: Ticket | None = None) -> Outcome:
        """Call the handler; wait for room first. Cancelling the wait cancels the call."""
        async with self._room:
            if self._old is None:
                link = await self._link()
                if link is not None:
                    return await self._call(link, request, events, ticket or Ticket())
            assert self._old is not None
            return await self._old.call(request.envelope, request.timeout_s)

    async def aclose(self) -> None:
        """Close the connections; calls that run end as `connection_error`."""
        self._closed = True
        for link in list(self._links):
            link.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(self, link: Link, request: CallRequest, events: CallEvents, ticket: Ticket) -> Outcome:
        running = RunningCall(link, events)
        try:
            running.send(request)
        except InvalidArgument as error:
            running.drop()
            return Failure(reason=error.reason or "msg_parsing_error", message=error.message, retryable=False)
        ticket.attach(running.cancel)
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        if request.timeout_s is not None:
            timers.append(loop.call_later(request.timeout_s, self._too_late, running, request.timeout_s, timers))
        try:
            return await running.outcome
        except asyncio.CancelledError:
            running.cancel("drain")
            raise
        finally:
            ticket.attach(None)
            for timer in timers:
                timer.cancel()
            running.drop()
            self._changed.set()

    def _too_late(self, running: RunningCall, timeout_s: float, timers: list[asyncio.TimerHandle]) -> None:
        running.timed_out = Failure(
            reason="timeout_error",
            message=f"timeout: the handler ran longer than {timeout_s:g} s",
            type="TimeoutError",
            details={"timeout_s": timeout_s},
        )
        running.cancel("timeout")
        loop = asyncio.get_running_loop()
        timers.append(loop.call_later(self.settings.kill_grace_s, self._kill, running))

    def _kill(self, running: RunningCall) -> None:
        """The handler did not end when it was told: replace its worker."""
        assert running.timed_out is not None
        link = running.link
        running.end(running.timed_out)
        self._forget(link)
        self._spawn(self._after_loss(link, kill=True))

    async def _link(self) -> Link | None:
        """A connection with room for a call; None when the peer turns out to speak protocol 0."""
        while True:
            free = next((link for link in self._links if link.has_room), None)
            if free is not None:
                return free
            if len(self._links) + self._opening < self.settings.calls:
                if await self._patiently(self._open_any) is None:
                    return None
                continue
            self._changed.clear()
            await self._changed.wait()

    async def _open(self, *, kill: int | None = None, after: int | None = None) -> Link | None:
        """One more connection. None when the peer speaks protocol 0."""
        hello: dict[str, Any] = {
            "protocol": 1,
            "codecs": list(self.settings.codecs),
            "session": self.session,
            "frame_max": self.settings.frame_max,
            "message_max": self.settings.message_max,
            "purpose": "calls",
        }
        hello.update({key: pid for key, pid in (("kill", kill), ("after", after)) if pid is not None})
        self._opening += 1
        try:
            link = await connect(self.settings, hello, self._lost)
        finally:
            self._opening -= 1
        if link is None:
            if self.settings.protocol == "1":
                raise Unavailable("protocol: the runtime speaks version 0, and 1 was asked for")
            self._old = OldRuntime(self.settings.socket, self.settings.frame_max)
            self._old.reachable = True
            return None
        if self._closed:
            link.close()
            raise Unavailable("runtime: the client was closed")
        self.about = {key: value for key, value in link.about.items() if key != "exit"}
        self._links.append(link)
        self._changed.set()
        return link

    async def _open_any(self) -> Link | None:
        return await self._open()

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works or `connect_timeout_s` is over."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.settings.connect_timeout_s
        for tries in range(1_000_000):
            try:
                async with asyncio.timeout_at(give_up_at):
                    return await attempt()
            except (OSError, TimeoutError, Unavailable) as error:
                wait_s = _BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)]
                if loop.time() + wait_s >= give_up_at:
                    raise Unavailable(
                        f"socket: the runtime at {self.settings.socket!r} did not answer within "
                        f"{self.settings.connect_timeout_s:g} s: {error!r}",
                        reason="runtime_not_ready",
                    ) from error
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    def _lost(self, link: Link) -> None:
        """A connection broke by itself."""
        if link not in self._links:
            return
        self._forget(link)
        if link.calls and not self._closed:
            self._spawn(self._after_loss(link, kill=False))
        else:
            link.end_all(_broken("the connection was closed"))

    def _forget(self, link: Link) -> None:
        if link in self._links:
            self._links.remove(link)
        self._changed.set()

    async def _after_loss(self, link: Link, *, kill: bool) -> None:
        """Find out what became of the worker, and tell the calls that it had."""
        outcome = _broken("the runtime's connection broke during the call")
        try:
            async with asyncio.timeout(EXIT_WAIT_S):
                pid = link.worker
                fresh = await self._open(kill=pid if kill else None, after=pid)
                exited = fresh.about.get("exit") if fresh is not None else None
                if exited and not kill:
                    self.crashes += 1
                outcome = _crash(exited) if exited else outcome
        except (OSError, TimeoutError, GroundplaneError):
            pass  # the runtime is away as a whole: `outcome` says so, and the next call waits for it
        finally:
            link.close()
            link.end_all(outcome)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _broken(message: str) -> Failure:
    return Failure(reason="connection_error", message=f"runtime: {message}", type="ConnectionError")


def _crash(exited: dict[str, Any]) -> Failure:
    reason = str(exited.get("reason") or "runtime_crashed")
    how = f"signal {exited['signal']}" if exited.get("signal") else f"status {exited.get('status')}"
    return Failure(
        reason=reason,
        message=f"worker: process {exited.get('worker')} ended under the handler ({how})",
        details={key: exited.get(key) for key in ("worker", "signal", "status")},
    )
