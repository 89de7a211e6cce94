"""Leadership: the façade of one election, as a member of it holds it."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import msgspec

from groundplane.core.clock import SYSTEM_CLOCK
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    NotFound,
    Unavailable,
)
from groundplane.core.fencing import Fence
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.names import check_name
from groundplane.kv import KV, ChangeKind
from groundplane.services.leadership.blocks import Blocks
from groundplane.services.leadership.election import (
    Election,
    ElectionEvent,
    Leader,
    Record,
    Wait,
    Write,
    decoded,
    encoded,
)
from groundplane.services.leadership.policies import Policy, PolicyName, chosen
from groundplane.telemetry.logs import get_logger

KEY_PREFIX = "leader/"
_HAND_OVER_S = 2.0
"""How long handlers get to end before a hand-over, and each call to the store in it."""
_WATCH_AGAIN_S = 0.2
_REFUSALS = (AlreadyExists, NotFound, Conflict)
_log = get_logger("leadership")

P = ParamSpec("P")
T = TypeVar("T")
Listener = Callable[[ElectionEvent], None]


def lease_clock() -> float:
    """Seconds that pass while this process, or this machine, is suspended too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of this member since it was opened; `lease_left_s` is 0 where it is not active."""

    terms: int
    losses: int
    renewals: int
    failures: int
    lease_left_s: float


class Leadership:
    """One member of one election. Everything may be called concurrently, in the loop that opened it.

    At most one member is active at a time, as `election` says and why; what a former leader had under way may still
    arrive anywhere, so show `fence()` to whatever stores the effects.
    """

    def __init__(
        self, kv: KV, name: str, *, policy: Policy, member: str, clock: Callable[[], float] = lease_clock
    ) -> None:
        self.name, self.member = name, member
        self._kv, self._key = kv, KEY_PREFIX + name
        self._clock = clock
        self._election = Election(member, uuid.uuid4().hex, policy, clock, self._happened)
        self._lifecycle = Lifecycle(f"leadership {name}")
        self._lifecycle.on_close(self._hand_over)
        self._listeners: list[Listener] = []
        self._blocks = Blocks(name)
        self._news = asyncio.Event()
        self._elected = asyncio.Event()
        self._resigning: asyncio.Future[None] | None = None
        self._stop_timer: asyncio.TimerHandle | None = None
        self._since_ms: int | None = None
        self._terms = self._losses = self._renewals = self._failures = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        kv: KV,
        name: str,
        *,
        policy: PolicyName | Policy = "balanced",
        member: str | None = None,
        on_event: Listener | None = None,
        clock: Callable[[], float] = lease_clock,
    ) -> AsyncIterator[Leadership]:
        """Become a candidate for `name` among all who open it on the same bucket.

        `member` is what the others are told (default: host and process); two may have the same. `policy` is
        `aggressive` (lease 0.8 s), `balanced` (1.5 s), `conservative` (7 s), or a `Policy`. On leaving, whoever leads
        hands over at once. `clock` must go on while the process is stopped.
        """
        leadership = cls(
            kv,
            check_name("name", name),
            policy=chosen(policy),
            member=check_name("member", member or f"{socket.gethostname()[:100]}-{os.getpid()}"),
            clock=clock,
        )
        if on_event is not None:
            leadership.listen(on_event)
        for work, task in ((leadership._watch(), "watch"), (leadership._campaign(), "campaign")):
            leadership._lifecycle.spawn(work, name=task).add_done_callback(leadership._ended)
        try:
            yield leadership
        finally:
            await leadership.aclose()

    @property
    def policy(self) -> Policy:
        """The lease, and when it is renewed."""
        return self._election.policy

    @property
    def is_active(self) -> bool:
        """Whether this member may act now. Look right before each effect: it costs a clock reading."""
        return self._election.is_active

    @property
    def term(self) -> int | None:
        """The number of the present term, higher than that of every one before; None where this is a standby."""
        return self._election.term

    def fence(self) -> Fence:
        """What a store is shown with each effect. Raises `unavailable` (`not_active`, the leader in its details)."""
        term = self._election.term
        if term is None:
            raise self.not_active()
        return Fence(self.name, term)

    def not_active(self) -> Unavailable:
        """What a standby answers. Details: name, member, and leader (None where none is known)."""
        leader = self._election.leader()
        told = leader.member if leader is not None else None
        return Unavailable(
            f"{self.name}: {self.member!r} is not active; " + (f"ask {told!r}" if told else "none is known to be"),
            reason="not_active",
            details={"name": self.name, "member": self.member, "leader": told},
        )

    def leader(self) -> Leader | None:
        """Who leads, by what this member has heard; None where nobody does or nothing was heard yet."""
        return self._election.leader()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event from now on, in the loop; what it raises is logged. Returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def elected(self) -> int:
        """Wait until this member is active; its term. Raises `closed`, also where the store was closed first, and
        whatever else has ended the campaign.
        """
        while True:
            self._lifecycle.check_open()
            if self._election.term is not None:
                return self._election.term
            if self._lifecycle.failure is not None:
                raise self._lifecycle.failure
            self._elected.clear()
            await self._lifecycle.run(self._elected.wait())

    @asynccontextmanager
    async def acting(self) -> AsyncIterator[Fence]:
        """Wait until this member is active, and run the block as long as it is.

        The block is cancelled before the lease ends, and what comes out of it then is `conflict` (`leadership_lost`).
        It starts after the blocks of earlier terms have ended. Raises `closed` while it waits.
        """
        term = await self.elected()
        while self._blocks.of_others(term):
            await self._lifecycle.run(self._blocks.others_ended(term))
            term = await self.elected()
        with self._blocks.run(term):
            yield Fence(self.name, term)

    async def lead(self, work: Callable[[Fence], Awaitable[None]]) -> None:
        """Run `work` in each term of this member, anew after each loss, until it returns. Raises `closed`."""
        while True:
            try:
                async with self.acting() as fence:
                    return await work(fence)
            except Conflict as error:
                if error.reason != "leadership_lost" or error.details.get("name") != self.name:
                    raise

    def guarded(self, handler: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """The handler of an endpoint that only the leader serves. A standby answers `not_active`; a handler that loses
        its term meanwhile is cancelled, and the answer is `leadership_lost`; what the handler raises is
        `execution_error`, with its code and reason in the details: the caller does not ask again.
        """

        @functools.wraps(handler)
        async def serve(*args: P.args, **kwargs: P.kwargs) -> T:
            term = self._election.term
            if term is None:
                raise self.not_active()
            with self._blocks.run(term):
                try:
                    return await handler(*args, **kwargs)
                except Exception as error:
                    raise _execution_error(self.name, error) from error

        return serve

    async def resign(self) -> None:
        """Hand over at once: blocks are cancelled, their end awaited (at most 2 s), the lease released. For as long as
        a lease lasts this member is no candidate. Not within a block of `acting`.
        """
        self._lifecycle.check_open()
        if self._blocks.current_task_is_in():
            raise FailedPrecondition("resign: called within acting(); leave the block first, or return from it")
        if self._lifecycle.failure is not None:
            raise self._lifecycle.failure
        if self._resigning is None:
            self._resigning = asyncio.get_running_loop().create_future()
        self._news.set()
        await self._lifecycle.run(asyncio.shield(self._resigning))

    def statistics(self) -> Statistics:
        """Counters."""
        return Statistics(
            terms=self._terms,
            losses=self._losses,
            renewals=self._renewals,
            failures=self._failures,
            lease_left_s=max(0.0, self._election.until - self._clock()) if self.is_active else 0.0,
        )

    def complaint(self) -> str | None:
        """Why this member cannot take part in the election, or None: for readiness."""
        if self._lifecycle.failure is not None:
            return f"the campaign has ended: {self._lifecycle.failure}"
        return None

    async def aclose(self) -> None:
        """Stop acting, hand over, be no candidate any more. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._lifecycle.closed else f"active, term {self.term}" if self.is_active else "standby"
        return f"<Leadership {self.name} {self.member} {state}>"

    async def _campaign(self) -> None:
        while True:
            self._news.clear()
            if self._resigning is not None:
                await self._resign(self._resigning)
            step = self._election.step()
            if isinstance(step, Wait):
                await self._wait(step.until)
            elif isinstance(step, Write):
                await self._write(step, self.policy.renew_s)
            else:
                await self._read(self.policy.renew_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """No term will come any more: who waits for one looks again, who waits to hand over is told why."""
        self._elected.set()
        resigning, failure = self._resigning, self._lifecycle.failure
        if resigning is not None and not resigning.done() and failure is not None:
            resigning.set_exception(failure)

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(0.001, until - self._clock())):
                await self._news.wait()
        except TimeoutError:
            return

    async def _read(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                entry = await self._kv.get(self._key)
        except Closed:
            self._election.release()
            raise
        except (GroundplaneError, TimeoutError) as error:
            self._failed("read", error)
            self._election.unreachable()
            return
        self._election.saw(
            entry.revision if entry is not None else None,
            decoded(entry.value) if entry is not None else None,
            read=True,
        )
        self._set_stop_timer()  # a lost answer may have been found by it

    async def _write(self, write: Write, timeout_s: float) -> bool:
        value = encoded(self._dated(write.record))
        self._election.sent(write)
        try:
            async with asyncio.timeout(timeout_s):
                if write.expected is None:
                    revision = await self._kv.create(self._key, value)
                else:
                    revision = await self._kv.update(self._key, value, revision=write.expected)
        except _REFUSALS:
            self._election.refused(write)
        except Closed:
            self._election.release()
            raise
        except (GroundplaneError, TimeoutError) as error:
            self._failed("write", error)
            self._election.unanswered(write)
        else:
            self._renewals += write.record.term is not None
            self._election.written(write, revision)
            self._set_stop_timer()
            return True
        return False

    def _dated(self, record: Record) -> Record:
        """The record, and since when its term is, for those who look."""
        if record.term is None and not record.released:
            self._since_ms = SYSTEM_CLOCK.now_ms()
        return record if record.released else msgspec.structs.replace(record, since_ms=self._since_ms)

    async def _watch(self) -> None:
        """What the others do is known sooner by it; without it each of them is only found by trying."""
        while True:
            try:
                async with self._kv.watch(self._key) as watch:
                    async for change in watch:
                        there = change.kind is ChangeKind.PUT
                        record = decoded(change.value) if there else None
                        self._election.saw(change.revision if there else None, record)
                        self._set_stop_timer()
                        self._news.set()
            except Closed:
                raise
            except GroundplaneError as error:
                self._failed("watch", error)
            await asyncio.sleep(_WATCH_AGAIN_S)

    async def _resign(self, resigning: asyncio.Future[None]) -> None:
        self._election.rest(self.policy.lease_s)
        await self._hand_over()
        self._resigning = None
        if not resigning.done():
            resigning.set_result(None)

    async def _hand_over(self) -> None:
        """Stop being active; once nothing acts any more, say so. Where that fails the others wait the lease out."""
        write = self._election.release()
        self._blocks.end_all()
        if not await self._blocks.ended(_HAND_OVER_S):
            _log.warning("handler_outlives_its_term", name=self.name, member=self.member)
            return
        if write is None and not self._election.in_doubt:
            return
        try:
            if write is None or not await self._write(write, _HAND_OVER_S):
                await self._read(_HAND_OVER_S)  # an answer was lost: the record may be this member's all the same
                write = self._election.release()
                if write is not None:
                    await self._write(write, _HAND_OVER_S)
        except Closed:
            return  # the store was closed first: the others wait the lease out

    def _set_stop_timer(self) -> None:
        """The loop's own end of the lease, where it would be busy with something else just then."""
        if self._stop_timer is not None:
            self._stop_timer.cancel()
            self._stop_timer = None
        if self._election.is_active:
            delay = max(0.001, self._election.until - self._clock())
            self._stop_timer = asyncio.get_running_loop().call_later(delay, self._stop)

    def _stop(self) -> None:
        self._election.lapse()
        self._set_stop_timer()
        self._news.set()

    def _failed(self, what: str, error: Exception) -> None:
        self._failures += 1
        _log.debug("election_call_failed", name=self.name, call=what, error=str(error) or type(error).__name__)

    def _happened(self, event: ElectionEvent) -> None:
        if event.leader == self.member and event.kind == "LeaderElected" and self._election.term == event.term:
            self._terms += 1
            self._elected.set()
            _log.info("leader_elected", name=self.name, member=self.member, term=event.term)
        elif event.kind == "LeaderLost" and event.term is not None and self._blocks.end(event.term, event.reason):
            _log.info("handlers_cancelled", name=self.name, term=event.term, reason=event.reason)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001 - a listener is a user's; the election goes on
                _log.warning("listener_failed", name=self.name, kind=event.kind, error=repr(error))


def _execution_error(name: str, error: Exception) -> Internal:
    details: dict[str, object] = {"name": name, "type": type(error).__name__}
    if isinstance(error, GroundplaneError):
        details |= {"code": error.code, "reason": error.reason, "details": error.details}
    return Internal(f"{name}: {error}", reason="execution_error", details=details)
