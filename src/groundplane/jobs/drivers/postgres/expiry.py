"""What passes with time: deadlines, retention, and the counts that are exported. Any replica, at any time."""

from __future__ import annotations

import functools

import msgspec

from groundplane.backends.postgres import Database, Transaction
from groundplane.core.errors import DeadlineExceeded
from groundplane.jobs.drivers.deadlines import end_overdue_job
from groundplane.jobs.drivers.postgres.applying import CLOCK, JobUnit, Moment, log, run_together
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import Retention

BATCH = 500
_EVENTS_BATCH = 5_000
_COUNT_MS = 1_000
_NOW = f"(SELECT coalesce(%(now)s::bigint, {CLOCK}))"
"""A subquery is evaluated once, and an index can be searched for it; the clock by itself is asked for every row."""


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What a look without writing found: whether there is work, when the next deadline is, and the oldest message of
    the outbox that is not held.
    """

    deadlines: bool
    jobs: bool
    events: bool
    next_deadline_at: int | None
    outbox_head: int | None


async def look(database: Database, scope: Scope, now: int | None, retention: Retention) -> Due:
    """Whether anything is to be done, so that an idle plane writes nothing."""
    rows = await database.query(
        _look(database.schema),
        {"namespace": scope.number, "now": now, "jobs": _ms(retention.jobs_s), "events": _ms(retention.events_s)},
    )
    next_deadline, deadlines, jobs, events, head = rows[0]
    return Due(
        deadlines=bool(deadlines),
        jobs=bool(jobs),
        events=bool(events),
        next_deadline_at=next_deadline,
        outbox_head=head,
    )


async def end_overdue(database: Database, scope: Scope, now: int | None) -> list[str]:
    """End jobs past their deadline: at most `BATCH`, their ids. Those that somebody works on are left for later."""
    schema = database.schema

    async def work(tx: Transaction) -> list[str]:
        rows = await tx.execute(
            f"""SELECT seq, job_id, fan_out, deadline_at, {_NOW} FROM {schema}.jobs
                WHERE namespace = %(namespace)s AND deadline_at <= {_NOW}
                  AND deadline_at IS NOT NULL AND state IN ('pending', 'running')
                ORDER BY deadline_at LIMIT {BATCH} FOR NO KEY UPDATE SKIP LOCKED""",
            {"namespace": scope.number, "now": now},
        )
        if not rows:
            return []
        moment = Moment(scope, rows[0][4])
        decisions = []
        for seq, _, fan_out, deadline_at, _ in rows:
            job = JobUnit(moment, schema)
            decisions.append((job, end_overdue_job(job, seq, deadline_at, fan_out=fan_out)))
        ended = await run_together(tx, decisions)
        log(tx, schema, moment, [job for job, _ in decisions])
        return [row[1] for row, done in zip(rows, ended, strict=True) if done]

    return await database.write(work)


async def delete_finished(database: Database, scope: Scope, now: int | None, retention: Retention) -> tuple[int, int]:
    """Delete jobs that ended long ago with all that is theirs: at most `BATCH`; how many, and how many events."""
    schema = database.schema
    rows = await database.query(
        f"""WITH doomed AS (
              SELECT seq FROM {schema}.jobs
              WHERE namespace = %(namespace)s AND finished_at IS NOT NULL
                AND finished_at < {_NOW} - %(kept)s
              ORDER BY finished_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED),
            events AS (DELETE FROM {schema}.job_events WHERE job = ANY (ARRAY (TABLE doomed)) RETURNING 1),
            branches AS (DELETE FROM {schema}.job_branches WHERE job = ANY (ARRAY (TABLE doomed))),
            questions AS (DELETE FROM {schema}.job_questions WHERE job = ANY (ARRAY (TABLE doomed))),
            parked AS (DELETE FROM {schema}.job_outbox WHERE parked_for = ANY (ARRAY (TABLE doomed))),
            gone AS (DELETE FROM {schema}.jobs WHERE seq = ANY (ARRAY (TABLE doomed)) RETURNING 1)
            SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM events)""",
        {"namespace": scope.number, "now": now, "kept": _ms(retention.jobs_s)},
    )
    return rows[0]


async def trim_events(database: Database, scope: Scope, now: int | None, retention: Retention) -> int:
    """Delete old events but final ones, from the oldest on; remember how far, for readers who come with an older id."""
    schema = database.schema

    async def work(tx: Transaction) -> int:
        page = await tx.execute(
            f"""SELECT id, job, created_at < {_NOW} - %(kept)s FROM {schema}.job_events
                WHERE namespace = %(namespace)s AND NOT final
                  AND id > (SELECT trimmed_to FROM {schema}.job_namespaces WHERE id = %(namespace)s)
                ORDER BY id LIMIT {_EVENTS_BATCH}""",
            {"namespace": scope.number, "now": now, "kept": _ms(retention.events_s)},
        )
        last: dict[int, int] = {}
        doomed: list[int] = []
        for event, job, old in page:
            if not old:
                break
            last[job] = event
            doomed.append(event)
        if not doomed:
            return 0
        jobs = list(last)
        _, gone, *_ = await tx.batch(
            [
                (
                    f'SELECT FROM {schema}.jobs WHERE seq = ANY(%s) ORDER BY job_id COLLATE "C" FOR NO KEY UPDATE',
                    (jobs,),
                ),
                (
                    f"DELETE FROM {schema}.job_events WHERE namespace = %s AND id = ANY(%s) RETURNING 1",
                    (scope.number, doomed),
                ),
                (
                    f"UPDATE {schema}.jobs SET trimmed_to = greatest(trimmed_to, last.id) "
                    "FROM unnest(%s::bigint[], %s::bigint[]) AS last (job, id) WHERE seq = last.job",
                    (jobs, list(last.values())),
                ),
                (
                    f"UPDATE {schema}.job_namespaces SET trimmed_to = greatest(trimmed_to, %s) WHERE id = %s",
                    (doomed[-1], scope.number),
                ),
            ]
        )
        return len(gone)

    return await database.write(work)


async def count(database: Database, scope: Scope) -> tuple[int, int, int, int]:
    """How many jobs, events and messages there are, and how many of those are not held. Where counting takes too long
    the server's own estimate is told, which is of all namespaces.
    """
    schema = database.schema
    try:
        _, rows = await database.query_all(
            [
                ("SELECT set_config('statement_timeout', %s, true)", (str(_COUNT_MS),)),
                (
                    f"""SELECT (SELECT count(*) FROM {schema}.jobs WHERE namespace = %(namespace)s),
                               (SELECT count(*) FROM {schema}.job_events WHERE namespace = %(namespace)s),
                               (SELECT count(*) FROM {schema}.job_outbox WHERE namespace = %(namespace)s),
                               (SELECT count(*) FROM {schema}.job_outbox
                                WHERE namespace = %(namespace)s AND NOT held)""",
                    {"namespace": scope.number},
                ),
            ]
        )
    except DeadlineExceeded:
        rows = await database.query(
            f"""SELECT (SELECT reltuples FROM pg_class WHERE oid = '{schema}.jobs'::regclass),
                       (SELECT reltuples FROM pg_class WHERE oid = '{schema}.job_events'::regclass),
                       (SELECT reltuples FROM pg_class WHERE oid = '{schema}.job_outbox'::regclass),
                       (SELECT reltuples FROM pg_class WHERE oid = '{schema}.job_outbox'::regclass)"""
        )
    jobs, events, outbox, due = (max(0, int(one)) for one in rows[0])
    return jobs, events, outbox, due


@functools.cache
def _look(schema: str) -> str:
    return f"""
        WITH clock AS (SELECT coalesce(%(now)s::bigint, {CLOCK}) AS now),
        next AS (
          SELECT min(deadline_at) AS at FROM {schema}.jobs
          WHERE namespace = %(namespace)s AND deadline_at IS NOT NULL AND state IN ('pending', 'running'))
        SELECT next.at, next.at <= clock.now,
          (SELECT min(finished_at) FROM {schema}.jobs
           WHERE namespace = %(namespace)s AND finished_at IS NOT NULL) < clock.now - %(jobs)s,
          (SELECT created_at FROM {schema}.job_events
           WHERE namespace = %(namespace)s AND NOT final
             AND id > (SELECT trimmed_to FROM {schema}.job_namespaces WHERE id = %(namespace)s)
           ORDER BY id LIMIT 1) < clock.now - %(events)s,
          (SELECT min(id) FROM {schema}.job_outbox WHERE namespace = %(namespace)s AND NOT held)
        FROM next, clock"""


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
