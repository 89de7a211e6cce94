"""The façade of jobs: checks, retries, following, relaying and sweeping, over any driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from groundplane.core import failpoints
from groundplane.core.clock import SYSTEM_CLOCK, Clock
from groundplane.core.errors import AlreadyExists, Closed, GroundplaneError, InvalidArgument, Unavailable
from groundplane.core.lifecycle import Lifecycle
from groundplane.core.names import check_name
from groundplane.core.retry import RetryPolicy
from groundplane.jobs.checks import check_changes, check_job_id, check_new_job, check_page, check_query
from groundplane.jobs.drivers import open_driver
from groundplane.jobs.feed import Feed, Subscription
from groundplane.jobs.following import follow
from groundplane.jobs.port import (
    TOPICS,
    Answer,
    AnswerAction,
    Change,
    Control,
    Created,
    Events,
    Job,
    JobEvent,
    JobPage,
    JobQuery,
    JobState,
    JobStore,
    NewJob,
    OutboxMessage,
    Outcome,
    Question,
    Retention,
    Standing,
    Swept,
    Topic,
    Watch,
)
from groundplane.jobs.refusals import answer_refused, control_refused
from groundplane.jobs.relay import LEASE_OFFERED_S, LEASE_S, Relay, Send
from groundplane.telemetry.calls import measured
from groundplane.telemetry.logs import get_logger

T = TypeVar("T")

SWEEP_INTERVAL_S = 2.0
DEAF_S = 12.0
"""More than twice the five seconds after which everything here looks by itself."""
_RETRY = RetryPolicy(attempts=3, base_s=0.05, cap_s=1.0)
_RETRY_WITHIN_S = 2.0
"""A store that took longer to say that it is away is not asked again: its callers wait for seconds already."""
_CLOCKS_DIFFER_S = 0.1
_log = get_logger("jobs")


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of this object since it was opened, and the last sweep's sizes (None before the first).

    `outbox_age_s`: the oldest message that may be relayed has waited at least so long, as far as this object's sweeps
    have seen it; 0 where none waits.
    """

    created: int
    changes: int
    refused: int
    retries: int
    followers: int
    delivered: int
    relayed: int
    relay_failures: int
    outbox_age_s: float
    swept: Swept | None


class Jobs:
    """The store of jobs of one namespace. Everything may be called concurrently, in the loop that opened it.

    Errors of every method: `closed`, and `unavailable` after three attempts, or after the first that took seconds.
    """

    def __init__(self, driver: JobStore, *, retention: Retention | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.driver = driver
        self._clock = clock
        self.retention = retention or Retention()
        self._lifecycle = Lifecycle("jobs")
        self._lifecycle.on_close(driver.aclose)
        self._feed = Feed(driver, self._lifecycle)
        self._ends = Feed(driver, self._lifecycle, final=True)
        self._relays: list[Relay] = []
        self._created = self._changes = self._refused = self._retries = 0
        self._swept: Swept | None = None
        self._head: tuple[int, float] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str = "embedded://",
        *,
        namespace: str = "default",
        state: Path | str = ".groundplane",
        upgrade: bool = False,
        inline: bool = False,
        retention: Retention | None = None,
    ) -> AsyncIterator[Jobs]:
        """Open the store that the URL names; `embedded://` is `<state>/plane.db`.

        `upgrade` migrates an older schema (else `failed_precondition`, `schema_old`). `inline` runs short calls in the
        loop instead of a thread: less delay, for processes that do little else.
        """
        driver = await open_driver(
            url, namespace=check_name("namespace", namespace), state=Path(state), upgrade=upgrade, inline=inline
        )
        jobs = cls(driver, retention=retention)
        try:
            yield jobs
        finally:
            await jobs.aclose()

    @measured("jobs")
    async def create(self, job: NewJob, messages: Sequence[OutboxMessage] = ()) -> Created:
        """Record a job and its first messages in one transaction, durable when this returns; a relay sends them, of
        this process where one runs.

        A repeated idempotency key (of the same owner) returns the job that is there, as long as it is retained.
        Raises `conflict` (`idempotency_mismatch`) for the key with another tool or arguments, `already_exists` for
        a known id, `resource_exhausted` (`live_jobs`) where the owner has `live_max` jobs that have not ended,
        `conflict` (`term_old`) where a newer term than that of `fence` was seen, `invalid_argument`.
        """
        check_new_job(job, messages)
        self._lifecycle.check_open()
        relay = next((one for one in self._relays if one.running), None)
        start, began = self._clock.monotonic(), asyncio.get_running_loop().time()
        try:
            created = await self.driver.create(job, messages, lease_s=LEASE_OFFERED_S if relay else 0.0)
        except Unavailable:
            if self._clock.monotonic() - start > _RETRY_WITHIN_S:
                raise
            created = await self._create_again(job, messages)
        failpoints.hit("accepted")
        if created.sent:
            failpoints.hit("relayed")
        if relay is not None and created.taken:
            relay.offer(list(zip(created.taken, messages, strict=True)), began + LEASE_OFFERED_S)
        self._created += created.created
        return created

    @measured("jobs")
    async def get(self, job_id: str) -> Job:
        """The job as it stands. Raises `not_found` (`job_not_found`)."""
        check_job_id(job_id)
        return await self._call(lambda: self.driver.get(job_id))

    @measured("jobs")
    async def standing(self, job_id: str) -> Standing | None:
        """The job's state and its deadline alone; None where there is no such job."""
        check_job_id(job_id)
        return await self._call(lambda: self.driver.hops.standing(job_id))

    async def state(self, job_id: str) -> JobState | None:
        """The job's state alone; None where there is no such job."""
        standing = await self.standing(job_id)
        return standing.state if standing is not None else None

    @measured("jobs")
    async def list_jobs(self, query: JobQuery | None = None) -> JobPage:
        """Jobs newest first, without results and arguments."""
        wanted = query or JobQuery()
        check_query(wanted)
        return await self._call(lambda: self.driver.list_jobs(wanted))

    @measured("jobs")
    async def apply(self, *changes: Change) -> list[Outcome]:
        """Apply changes in order, in one transaction, each guarded by the store; durable when this returns.

        A change that comes too late is not applied and raises nothing: see its outcome, whose `detail` is
        `job_not_found`, `job_terminal`, `job_state`, `late`, `repeated` or `unknown_branch`.
        """
        check_changes(changes)
        if not changes:
            return []
        outcomes = await self._call(lambda: self.driver.apply(changes))
        self._changes += len(outcomes)
        self._refused += sum(not one.applied for one in outcomes)
        return outcomes

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """End a job as cancelled. Raises `failed_precondition` (`job_terminal`) when it has ended, `not_found`."""
        return await self._control(job_id, "cancel", reason)

    async def pause(self, job_id: str, reason: str = "") -> Job:
        """Stop a job before its next hop; its deadline stands still. Raises `failed_precondition`, `not_found`."""
        return await self._control(job_id, "pause", reason)

    async def resume(self, job_id: str, reason: str = "") -> Job:
        """Let a paused job go on, its deadline later by the pause. Raises `failed_precondition` (`question_open` where
        it waits for an answer), `not_found`.
        """
        return await self._control(job_id, "resume", reason)

    async def questions(self, job_id: str, ids: Sequence[str] | None = None) -> list[Question]:
        """The questions of a job in the order in which they were asked, answered ones too, or those of `ids` that were
        asked. Raises `not_found` (`job_not_found`).
        """
        check_job_id(job_id)
        return await self._call(lambda: self.driver.hops.questions(job_id, ids))

    async def answer(
        self, job_id: str, question_id: str, content: Any = None, *, action: AnswerAction = "accept", by: str = ""
    ) -> Job:
        """Answer a question of a job, once and for all; with the last answer the job goes on, its deadline later by the
        pause, unless somebody has paused it. Whether the content fits is not checked here. The same answer again
        changes nothing, and is no error.

        Raises `not_found` (`job_not_found`, `question_not_found`), `failed_precondition` (`question_answered` for
        another answer, `job_terminal`).
        """
        check_job_id(job_id)
        change = Answer(job_id=job_id, question_id=question_id, action=action, content=content, by=by)
        (outcome,) = await self.apply(change)
        if not outcome.applied and outcome.detail != "repeated":
            raise answer_refused(change, outcome)
        return await self.get(job_id)

    @measured("jobs")
    async def events(
        self, after: int = 0, job_id: str | None = None, limit: int = 500, *, final: bool = False
    ) -> Events:
        """Events with an id above `after`, oldest first, of one job (`not_found`) or of all, with `final` only those
        that ended a job; go on from `last_id`.

        `limit=0` reads none and tells the newest id in `last_id`.
        """
        check_page(after, limit)
        if job_id is not None:
            check_job_id(job_id)
        return await self._call(lambda: self.driver.events(after=after, job_id=job_id, limit=limit, final=final))

    def follow(self, job_id: str, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """The job's events after an id, then live ones, ending after the final one. Raises `not_found`, `closed`.

        Where events after that id are no longer retained, an event of kind `snapshot` with the job's present state
        comes first. Where the final event is not after that id, there is nothing to come and it ends at once.
        """
        return follow(self, job_id, after)

    def subscribe(self, job: Job, after: int, *, final: bool = False) -> AbstractContextManager[Subscription]:
        """The events of `job`, as it was read before, after an id: history, then live. For streams; see `follow`.

        With `final` only that which ends it: who waits for the end alone is not woken by progress.
        """
        self._lifecycle.check_open()
        return (self._ends if final else self._feed).subscribe(job, after)

    async def wait_finished(self, job_id: str, timeout_s: float | None = None) -> Job | None:
        """The job once it has ended; None after `timeout_s` seconds. Never polls. Raises `not_found`, `closed`."""
        job = await self.get(job_id)
        if job.state.terminal:
            return job
        try:
            with self.subscribe(job, job.last_event_id, final=True) as subscription:
                async with asyncio.timeout(timeout_s):
                    await subscription.batch()
        except TimeoutError:
            return None
        return await self.get(job_id)

    def watch(self, topic: Topic = "events") -> AbstractAsyncContextManager[Watch]:
        """Wait for commits of `events`, of final events alone (`ends`), or of the `outbox`, of any process."""
        if topic not in TOPICS:
            raise InvalidArgument(f"topic: {topic!r} must be one of {', '.join(TOPICS)}")
        self._lifecycle.check_open()
        return self.driver.watch(topic)

    async def run_relay(self, send: Send, *, lease_s: float = LEASE_S) -> None:
        """Relay the outbox until cancelled or closed: `send` returns when its messages are durable in their queues.

        Any number of relays may run, in any process. At least once: a repeat has the same `dedup_key`.
        """
        relay = Relay(self.driver, send, lease_s=lease_s)
        self._relays.append(relay)
        await self._until_closed(relay.run())

    def share_transactions(self, queues: object) -> bool:
        """Let a driver of queues have a job's first messages in the transaction that creates it, and its settlements
        carry changes (`carried`). False where the two do not share a file: the messages go through the outbox then.
        """
        return self.driver.hops.share_transactions(queues)

    def carried(self, *changes: Change, of_live: bool = True) -> Callable[[Any], object]:
        """Changes as `apply` takes them, for `Consumer.settle(…, carry=…)` of queues that share transactions: both or
        neither is made. With `of_live` it raises `failed_precondition` (`job_terminal`) where the job had ended before.
        """
        check_changes(changes)
        self._changes += len(changes)
        return self.driver.hops.carried(changes, of_live=of_live)

    async def run_sweeper(self, interval_s: float = SWEEP_INTERVAL_S) -> None:
        """Sweep until cancelled or closed: at the next deadline that is known, at the latest every `interval_s`."""
        await self._until_closed(self._sweep_for_ever(interval_s))

    @measured("jobs")
    async def sweep(self) -> Swept:
        """End jobs past their deadline and delete what retention lets go, now."""
        swept = await self._call(lambda: self.driver.sweep(self.retention))
        self._swept = swept
        if swept.outbox_head is None:
            self._head = None
        elif self._head is None or self._head[0] != swept.outbox_head:
            self._head = swept.outbox_head, self._clock.monotonic()
        return swept

    def standstill(self) -> str | None:
        """Why this object does not flow although nothing has failed: its relay, or the reader of its followers, has
        been deaf for `DEAF_S` seconds. None where both move; they heal by themselves.
        """
        relay_s = max((one.deaf_s() for one in self._relays), default=0.0)
        if relay_s > DEAF_S:
            return f"the outbox was not looked into for {relay_s:.0f} s"
        feed_s = max(self._feed.deaf_s(), self._ends.deaf_s())
        if feed_s > DEAF_S:
            followers = self._feed.followers + self._ends.followers
            return f"{followers} followers wait, and the log of events was not read for {feed_s:.0f} s"
        return None

    def statistics(self) -> Statistics:
        """Counters and sizes."""
        return Statistics(
            created=self._created,
            changes=self._changes,
            refused=self._refused,
            retries=self._retries,
            followers=self._feed.followers + self._ends.followers,
            delivered=self._feed.delivered + self._ends.delivered,
            relayed=sum(relay.relayed for relay in self._relays),
            relay_failures=sum(relay.failures for relay in self._relays),
            outbox_age_s=self._clock.monotonic() - self._head[1] if self._head is not None else 0.0,
            swept=self._swept,
        )

    async def aclose(self) -> None:
        """End following, relaying and sweeping, then close the driver. Idempotent, ≤ 10 s."""
        await self._lifecycle.aclose()

    def __repr__(self) -> str:
        followers = self._feed.followers + self._ends.followers
        state = "closed" if self._lifecycle.closed else f"{self._created} created, {followers} followers"
        return f"<Jobs {type(self.driver).__name__} {state}>"

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        attempt = 1
        start = self._clock.monotonic()
        while True:
            self._lifecycle.check_open()
            try:
                return await call()
            except Unavailable:
                if attempt >= _RETRY.attempts or self._clock.monotonic() - start > _RETRY_WITHIN_S:
                    raise
                self._retries += 1
                await asyncio.sleep(_RETRY.delay_s(attempt))
                attempt += 1

    async def _create_again(self, job: NewJob, messages: Sequence[OutboxMessage]) -> Created:
        """The first attempt may have been stored all the same: then its id, or its key, is taken by itself."""
        self._retries += 1
        await asyncio.sleep(_RETRY.delay_s(1))
        try:
            created = await self._call(lambda: self.driver.create(job, messages))
            own = created.created or created.job.job_id == job.job_id
            return msgspec.structs.replace(created, created=own)
        except AlreadyExists:
            found = await self.get(job.job_id)
            if found.token_hash != job.token_hash:  # somebody else's, who has the same id
                raise
            return Created(found, True)

    async def _control(self, job_id: str, action: str, reason: str) -> Job:
        check_job_id(job_id)
        change = Control(job_id=job_id, action=action, reason=reason)
        (outcome,) = await self.apply(change)
        if not outcome.applied:
            raise control_refused(change, outcome)
        return await self.get(job_id)

    async def _sweep_for_ever(self, interval_s: float) -> None:
        while True:
            wait_s = interval_s
            try:
                swept = await self.sweep()
            except GroundplaneError as error:
                if error.code == "closed":
                    raise
                _log.warning("job_sweep_failed", code=error.code, error=error.message)
            else:
                if swept.timed_out:
                    _log.info("jobs_timed_out", job_ids=swept.timed_out[:20], count=len(swept.timed_out))
                wait_s = self._until_deadline(swept.next_deadline_at, interval_s)
            await asyncio.sleep(wait_s)

    def _until_deadline(self, deadline_at: int | None, interval_s: float) -> float:
        if deadline_at is None:
            return interval_s
        left = (deadline_at - self._clock.now_ms()) / 1000
        if left <= 0:  # it has passed here, not by the clock of the store: theirs decides
            return min(interval_s, _CLOCKS_DIFFER_S)
        return min(interval_s, left + random.uniform(0.001, 0.02))

    async def _until_closed(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await self._lifecycle.run(work)
        except Closed:
            if not self._lifecycle.closed:
                raise
        finally:
            work.close()
