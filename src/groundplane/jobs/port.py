"""The port of the job store: durable records of work, their event log, their outbox.

Every change is guarded in the store itself (in SQL): a terminal state never changes, progress never decreases and never
revives a job, the loser of a race becomes an event. Times are Unix milliseconds; the store's clock decides.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, TypeAlias, get_args

import msgspec

from groundplane.core.errors import ErrorRecord
from groundplane.core.fencing import Fence


class JobState(enum.StrEnum):
    """The states of a job; the last four are terminal."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def terminal(self) -> bool:
        """Whether the state never changes again."""
        return self in _TERMINAL


_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})


class OutboxMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a queue, written with the change that causes it and relayed after it is durable.

    `taken_before` is told by `Outbox.take`: it was leased before and may have been sent, so this may be a repeat.
    """

    queue: str
    id: str
    payload: bytes
    headers: dict[str, str] = {}
    dedup_key: str
    taken_before: bool = False


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is created from. `arguments_hash` guards the idempotency key, which is scoped to `owner`.

    `live_max` is how many jobs of the owner may not have ended, this one included; None: any number. `fence` shows
    under which term of which leadership it is made: the store refuses a term that is older than one it has seen.
    """

    job_id: str
    tool: str
    route: list[str]
    arguments: Any
    arguments_hash: str
    owner: str = ""
    idempotency_key: str | None = None
    deadline_at: int | None = None
    token_hash: str = ""
    trace: str = ""
    live_max: int | None = None
    fence: Fence | None = None


QuestionKind: TypeAlias = Literal["elicit", "sample", "roots"]
AnswerAction: TypeAlias = Literal["accept", "decline", "cancel"]
QuestionState: TypeAlias = Literal["open", "answered", "closed"]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler wants to know: from a person (`elicit`), or from the client, a completion of its model (`sample`)
    or its roots.

    `schema` is what an accepted answer must fit (JSON Schema, as MCP allows for elicitation), `params` what else the
    kind needs. `closed` is a question whose job ended before it was answered. `content` is there where the action is
    `accept`, `answered_by` the principal that answered. The store sets what comes after `envelope_id`.
    """

    question_id: str
    kind: QuestionKind = "elicit"
    message: str = ""
    schema: dict[str, Any] | None = None
    params: dict[str, Any] = {}
    actor: str = ""
    envelope_id: str
    state: QuestionState = "open"
    asked_at: int = 0
    answered_at: int | None = None
    action: AnswerAction | None = None
    content: Any = None
    answered_by: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The record. `progress` is 0–100 and 100 only on success; `result` is present after success, `error` after
    failure.

    `result_key` names the blob where the end actor persisted the outcome, once it has. `aborted` is success by an early
    end of the route. `questions` are the open ones, in the order in which they were asked; a listing leaves them out.
    """

    job_id: str
    tool: str
    state: JobState
    progress: float
    message: str
    actor: str
    steps_completed: int
    total_steps: int
    result: Any = None
    error: ErrorRecord | None = None
    created_at: int
    updated_at: int
    finished_at: int | None = None
    deadline_at: int | None = None
    paused_at: int | None = None
    route: list[str]
    arguments: Any = None
    owner: str = ""
    token_hash: str = ""
    trace: str = ""
    aborted: bool = False
    result_key: str | None = None
    last_event_id: int = 0
    questions: list[Question] = []


class Standing(msgspec.Struct, frozen=True):
    """What a hop needs to know of its job. The deadline is the one that counts: pauses have moved it since the job's
    envelopes were made. None where it is not known.
    """

    state: JobState
    deadline_at: int | None = None


class Created(msgspec.Struct, frozen=True):
    """The job, and whether this call made it (False: the idempotency key was known).

    `taken` are the numbers of its messages in the outbox, where they were taken with it. `sent` says that they are in
    their queues already (see `Hops.share_transactions`).
    """

    job: Job
    created: bool
    taken: list[int] = []
    sent: bool = False


# Changes: what `apply` takes. `envelope_id` is the envelope (the branch) that reports.


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A hop's progress: weight 10 received, 50 processing, 10+0.9·p inside a handler, 100 completed. Pending becomes
    running.
    """

    job_id: str
    envelope_id: str
    hop: int
    hops: int
    actor: str
    weight: float
    message: str = ""
    status: str = ""
    attempt: int = 1


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """`envelope_id` is replaced by its children, in order. Repeating it with the same children changes nothing."""

    job_id: str
    envelope_id: str
    children: list[str]


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The children of `parent_id` (all, or those that arrived) are replaced by `envelope_id`, which stands for their
    parent.
    """

    job_id: str
    parent_id: str
    envelope_id: str


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """A branch has ended. The job ends when its last branch has: its result is the branch's, or those of its children
    by index.

    `holds` is true for a failed branch that a join further on the route waits for: it is recorded, and does not fail
    the job. Repeating it changes nothing but a `result_key` that was not known yet.
    """

    job_id: str
    envelope_id: str
    result: Any = None
    error: ErrorRecord | None = None
    aborted: bool = False
    result_key: str | None = None
    holds: bool = False


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """`cancel`, `pause` or `resume` by a person or a client. Pausing freezes the deadline; resuming releases what was
    parked.

    A job that waits for answers is paused already: pausing it makes it stay so after the last one, resuming it is
    refused (`question_open`).
    """

    job_id: str
    action: str
    reason: str = ""


class Park(msgspec.Struct, frozen=True, kw_only=True):
    """Keep an envelope of a paused job in the outbox, held until resume. Not paused any more: it is released at
    once.
    """

    job_id: str
    message: OutboxMessage


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The job waits for answers: it is paused, its deadline frozen, and the envelope that asks parked, in one step.

    A question whose id is known is not asked again. Where none of them is open any more the envelope is released at
    once. The last answer lets the job go on, unless somebody has paused it.
    """

    job_id: str
    questions: list[Question]
    message: OutboxMessage

    @property
    def envelope_id(self) -> str:
        """The envelope (the branch) that asks."""
        return self.questions[0].envelope_id


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a question, `by` a principal. Repeating it changes nothing; another one is refused."""

    job_id: str
    question_id: str
    action: AnswerAction = "accept"
    content: Any = None
    by: str = ""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """An event that changes nothing: a retry, a dead letter, a late outcome, a skipped envelope."""

    job_id: str
    kind: str
    data: dict[str, Any] = {}


Change: TypeAlias = Progress | Split | Joined | Finish | Control | Park | Ask | Answer | Note


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one change: whether it was applied, and the job's state after it (None: there is no such job)."""

    applied: bool
    state: JobState | None
    detail: str = ""


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the append-only log. `id` rises in the order of commit, over all jobs of the store; it is the SSE
    event id.
    """

    id: int
    job_id: str
    kind: str
    data: dict[str, Any]
    created_at: int


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """Events after an id, oldest first. `truncated` when events after that id were deleted by retention: show a
    snapshot first.
    """

    items: list[JobEvent]
    last_id: int
    truncated: bool = False


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of a listing, newest first. `cursor` comes from the page before."""

    states: list[JobState] = []
    tool: str | None = None
    owner: str | None = None
    cursor: str | None = None
    limit: int = 50


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs, newest first; `cursor` of the next page, or None at the end."""

    items: list[Job]
    cursor: str | None = None


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long things are kept, in seconds: finished jobs with their final event, other events."""

    jobs_s: float = 7 * 86400.0
    events_s: float = 86400.0


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep did, and the sizes that are exported as metrics: where counting takes long they may be of an earlier
    one. `outbox_due` are the messages that are not held (parked), `outbox_head` is the id of the oldest of them now.
    """

    timed_out: list[str]
    jobs_deleted: int
    events_deleted: int
    jobs: int
    events: int
    outbox: int
    next_deadline_at: int | None = None
    outbox_due: int = 0
    outbox_head: int | None = None


Topic: TypeAlias = Literal["events", "ends", "outbox"]
TOPICS: tuple[Topic, ...] = get_args(Topic)


class Watch(Protocol):
    """Rings when events or outbox rows were committed. A ring between two waits is never lost; spurious ones are
    allowed.
    """

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True when rung, False after `timeout_s`. One caller at a time."""
        ...


class Outbox(Protocol):
    """The messages that wait to be relayed. Any replica may relay; repeats carry the same `dedup_key`."""

    async def take(self, limit: int, lease_s: float = 30.0) -> list[tuple[int, OutboxMessage]]:
        """Due messages, oldest first, hidden from other takers for `lease_s`. Held (parked) ones are never taken.

        `taken_before` is true of those that were leased before, here or by `JobStore.create`.
        """
        ...

    async def done(self, ids: Sequence[int]) -> None:
        """They were sent durably: delete them. Unknown ids are ignored."""
        ...


class Hops(Protocol):
    """What a hop needs: a look that costs little, and one transaction with the queues where both share a file."""

    async def standing(self, job_id: str) -> Standing | None:
        """How the job stands, at less cost than the record; None where there is no such job."""
        ...

    async def questions(self, job_id: str, ids: Sequence[str] | None = None) -> list[Question]:
        """The questions of a job in the order in which they were asked, all or those of `ids` that were.

        Raises `not_found` (reason `job_not_found`) where there is no such job.
        """
        ...

    def share_transactions(self, queues: object) -> bool:
        """From now on a job's first messages go into these queues (a driver) in the transaction that creates the job,
        and settlements of theirs may carry changes. False where that cannot be, as the two do not share a file.
        """
        ...

    def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Callable[[Any], object]:
        """The changes, for a settlement of the queues that share transactions; durable with it.

        With `of_live` it raises `failed_precondition` (`job_terminal`, the state in its details) where the job had
        ended before, which undoes the settlement too.
        """
        ...


class JobStore(Protocol):
    """One store of jobs. May be called concurrently throughout; nothing blocks but `Watch.wait`; the façade retries."""

    outbox: Outbox
    hops: Hops

    async def create(self, job: NewJob, messages: Sequence[OutboxMessage], *, lease_s: float = 0.0) -> Created:
        """The job and its first messages in one transaction; a repeated idempotency key returns the job that is there.

        With `lease_s` the messages are taken at once, as by `Outbox.take`, for the caller to relay.

        Raises `conflict` (reason `idempotency_mismatch`) for the key with another tool or `arguments_hash`,
        `already_exists` for a known `job_id`, `resource_exhausted` (reason `live_jobs`) where the owner has `live_max`
        jobs that have not ended. That is decided in the transaction: callers in several processes together never
        exceed it, and a repeat by key or id is told of the job that is there, not refused.

        Raises `conflict` (reason `term_old`) where a higher term than the job's `fence` was seen for its name, a repeat
        by key too; in the same transaction, in which the store also remembers the term, unless the call is refused.
        """
        ...

    async def get(self, job_id: str) -> Job:
        """The job. Raises `not_found` (reason `job_not_found`)."""
        ...

    async def list_jobs(self, query: JobQuery) -> JobPage:
        """Jobs newest first, without `result` and `arguments`."""
        ...

    async def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        """All changes in order in one transaction, each guarded; never raises for a lost race or a missing job: see
        the outcome. Durable when it returns; progress alone a moment later, at most 0.1 s.
        """
        ...

    async def events(self, *, after: int, job_id: str | None = None, limit: int = 500, final: bool = False) -> Events:
        """Events with an id above `after`, of one job or of all, with `final` only those that ended a job. None is ever
        skipped by a reader that continues from `last_id`. `limit=0` reads none and tells the newest id. Raises
        `not_found` for an unknown `job_id`.
        """
        ...

    def watch(self, topic: Topic = "events") -> AbstractAsyncContextManager[Watch]:
        """Wait for commits instead of polling: of `events`, of final events alone (`ends`), or of the `outbox`."""
        ...

    async def sweep(self, retention: Retention) -> Swept:
        """End jobs past their deadline (`timed_out`), delete what retention lets go, count. Any replica, at any time,
        concurrently.
        """
        ...

    async def aclose(self) -> None:
        """Close what this driver opened. Idempotent, ≤ 10 s."""
        ...
