"""Changes of many calls in one transaction: the decisions on each job go step by step, those on all jobs together.

The rows of all jobs are locked first, in one order for everybody, so that transactions never wait for each other in a
circle. Then every round is one message: the next statement of each decision. What needs no answer goes with the round
after it, or with the commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from groundplane.backends.postgres import Bindings, Database, Row, Statement, Transaction
from groundplane.jobs.drivers import branches, changes, unit
from groundplane.jobs.drivers.postgres import sequence
from groundplane.jobs.drivers.postgres.dialect import storable, text, translated
from groundplane.jobs.drivers.unit import FOUND, Scope, Steps, as_json
from groundplane.jobs.port import Change, Outcome, Progress

T = TypeVar("T")

GROUP_MAX = 2_000
OF_ONE_JOB_MAX = 40
_S_PER_CHANGE = 0.01
"""So much longer a call may take for each change that it makes, on a busy server too."""
CLOCK = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Moment:
    """What the units of one transaction share: the clock once it was asked, and the bells."""

    __slots__ = ("now", "outbox", "scope")

    def __init__(self, scope: Scope, now: int | None) -> None:
        self.scope = scope
        self.now = now or 0
        self.outbox = False


class JobUnit:
    """The unit of the decisions on one job, within a transaction with those on others."""

    __slots__ = ("_moment", "_schema", "events", "found", "scope", "told", "trees")

    def __init__(self, moment: Moment, schema: str, found: Row | None = None) -> None:
        self._moment = moment
        self._schema = schema
        self.scope = moment.scope
        self.found = found
        self.trees: dict[int, Any] = {}
        self.told: list[Statement] = []
        self.events: list[sequence.Event] = []

    @property
    def now(self) -> int:
        """See `Unit`."""
        return self._moment.now

    def statement(self, sql: str, bindings: Bindings) -> Statement:
        """A statement of a decision as the server takes it."""
        return translated(sql, self._schema), storable(bindings)

    def tell(self, sql: str, bindings: Bindings = ()) -> None:
        """See `Unit`."""
        self.told.append(self.statement(sql, bindings))

    def tell_each(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """See `Unit`."""
        for row in rows:
            self.tell(sql, row)

    def event(self, seq: int, kind: str, data: Mapping[str, Any], *, final: bool = False) -> None:
        """See `Unit`; it gets its id with the commit."""
        self.events.append(sequence.Event(seq, kind, text(as_json(kind, data)), final))

    def ring_outbox(self) -> None:
        """See `Unit`."""
        self._moment.outbox = True

    def find(self, job_id: str) -> Steps[Row | None]:
        """See `Unit`. The first time it is the row that was locked, later perhaps the one that was remembered."""
        found, self.found = self.found, None
        if found is not None:
            return found
        return (
            yield from unit.one(
                f"SELECT {FOUND} FROM jobs WHERE namespace = ? AND job_id = ?", self.scope.number, job_id
            )
        )

    def remember(self, job_id: str, row: Row) -> None:
        """See `Unit`."""
        self.found = row

    def told_late(self, seq: int, envelope_id: str) -> Steps[bool]:
        """See `Unit`."""
        envelope_id = text(envelope_id)
        if any(one.kind == "late" and _decode(one.data).get("envelope_id") == envelope_id for one in self.events):
            return True
        rows = yield (
            "SELECT 1 FROM job_events WHERE job = ? AND kind = 'late' "
            "AND CAST(data AS json) ->> 'envelope_id' = ? LIMIT 1",
            (seq, envelope_id),
        )
        return bool(rows)


async def run_together(tx: Transaction, decisions: Sequence[tuple[JobUnit, Steps[T]]]) -> list[T]:
    """Run decisions on different jobs, each round of them in one message; what each comes to."""
    results: dict[int, T] = {}
    answers: dict[int, list[Row] | None] = dict.fromkeys(range(len(decisions)))
    while answers:
        asked: dict[int, Statement] = {}
        for at, rows in answers.items():
            job, steps = decisions[at]
            try:
                sql, bindings = next(steps) if rows is None else steps.send(rows)
            except StopIteration as end:
                results[at] = end.value
            else:
                asked[at] = job.statement(sql, bindings)
            for statement in job.told:
                tx.tell(*statement)
            job.told.clear()
        if not asked:
            break
        answers = dict(zip(asked, await tx.batch(list(asked.values())), strict=True))
    return [results[at] for at in range(len(decisions))]


def log(tx: Transaction, schema: str, moment: Moment, units: Iterable[JobUnit]) -> None:
    """The last of a transaction: its events get their ids, and the bells ring after it."""
    events = [event for one in units for event in one.events]
    if events:
        tx.tell(*sequence.lock(schema, moment.scope.number))
        tx.tell(*sequence.append(schema, moment.scope.number, moment.now, events))
        tx.ring(moment.scope.topic("events"))
        if any(one.final for one in events):
            tx.ring(moment.scope.topic("ends"))
    if moment.outbox:
        tx.ring(moment.scope.topic("outbox"))


async def lock_jobs(
    tx: Transaction, schema: str, moment: Moment, spoken_of: Mapping[str, Iterable[str]]
) -> tuple[dict[str, Row], dict[int, branches.Tree]]:
    """The rows of the jobs by id, locked in one order for everybody, and the branches of them that are spoken of; then
    the moment of the transaction is known.

    Each is looked up by itself: for a list of them the planner scans the whole namespace while it knows no better.
    """
    namespace, pairs = moment.scope.number, [(job_id, one) for job_id, some in spoken_of.items() for one in some]
    rows, found, clock = await tx.batch(
        [
            (
                f"""SELECT own.* FROM unnest(%s::text[]) AS wanted (id) CROSS JOIN LATERAL (
                      SELECT {FOUND}, job_id FROM {schema}.jobs WHERE namespace = %s AND job_id = wanted.id
                      FOR NO KEY UPDATE) AS own""",
                (sorted(spoken_of), namespace),
            ),
            (
                f"""SELECT branch.* FROM unnest(%s::text[], %s::text[]) AS wanted (id, envelope_id)
                    CROSS JOIN LATERAL (
                      SELECT seq FROM {schema}.jobs WHERE namespace = %s AND job_id = wanted.id AND fan_out OFFSET 0
                    ) AS own CROSS JOIN LATERAL (
                      SELECT job, envelope_id, parent, position, total, state, progress FROM {schema}.job_branches
                      WHERE job = own.seq AND envelope_id = wanted.envelope_id OFFSET 0) AS branch""",
                ([job_id for job_id, _ in pairs], [one for _, one in pairs], namespace),
            ),
            (f"SELECT {CLOCK}", ()),
        ]
    )
    moment.now = moment.now or clock[0][0]
    trees: dict[int, branches.Tree] = {}
    for job, *row in found:
        trees.setdefault(job, branches.Tree()).set(branches.Branch(*row))
    return {row[-1]: row[:-1] for row in rows}, trees


class Applied(msgspec.Struct, frozen=True):
    """A call."""

    changes: Sequence[Change]

    @property
    def durable(self) -> bool:
        """Whether it waits for the disk: all but progress does."""
        return any(type(one) is not Progress for one in self.changes)


def pick(calls: Sequence[Applied]) -> int:
    """How many calls go together: what is said of one job is judged one by one, so not too much of that."""
    load = count = 0
    of_job: Counter[str] = Counter()
    for one in calls:
        load += len(one.changes)
        of_job.update({change.job_id for change in one.changes})
        if load > GROUP_MAX or any(of_job[change.job_id] > OF_ONE_JOB_MAX for change in one.changes):
            break
        count += 1
    return count


async def apply_together(
    database: Database, scope: Scope, now: int | None, calls: Sequence[Applied]
) -> list[list[Outcome]]:
    """The outcomes of each call. Changes of one job are judged in the order of the calls."""
    schema = database.schema
    by_job: dict[str, list[tuple[int, int, Change]]] = {}
    for number, call in enumerate(calls):
        for position, change in enumerate(call.changes):
            by_job.setdefault(change.job_id, []).append((number, position, change))

    spoken_of: dict[str, dict[str, None]] = {text(job_id): {} for job_id in by_job}
    for job_id, given in by_job.items():
        ids = (getattr(change, "envelope_id", "") for _, _, change in given)
        spoken_of[text(job_id)] = dict.fromkeys(text(one) for one in ids if one)

    async def work(tx: Transaction) -> list[list[Outcome]]:
        moment = Moment(scope, now)
        found, trees = await lock_jobs(tx, schema, moment, spoken_of)
        decisions = []
        for job_id, given in by_job.items():
            job = JobUnit(moment, schema, found.get(job_id))
            if job.found is not None and job.found[0] in trees:
                job.trees[job.found[0]] = trees[job.found[0]]
            decisions.append((job, changes.apply(job, [change for _, _, change in given])))
        outcomes = await run_together(tx, decisions)
        log(tx, schema, moment, [job for job, _ in decisions])
        told: list[dict[int, Outcome]] = [{} for _ in calls]
        for given, of_job in zip(by_job.values(), outcomes, strict=True):
            for (number, position, _), outcome in zip(given, of_job, strict=True):
                told[number][position] = outcome
        return [[one[at] for at in range(len(one))] for one in told]

    many = sum(len(one.changes) for one in calls)
    return await database.write(work, durable=any(one.durable for one in calls), more_s=many * _S_PER_CHANGE)


_: type[unit.Unit] = JobUnit
