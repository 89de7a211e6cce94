"""Looks at jobs and at the log: each one statement, and so one snapshot."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from groundplane.backends.postgres import Database
from groundplane.jobs.drivers.postgres.dialect import translated
from groundplane.jobs.drivers.rows import QUESTION, WHOLE, listing, page_of_events, question, record
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import Events, Job, JobPage, JobQuery, JobState, Question, Standing
from groundplane.jobs.refusals import no_job

_OF_JOB = 24
"""How many columns `WHOLE` has."""


async def get(database: Database, scope: Scope, job_id: str) -> Job:
    """The job, or `not_found`."""
    rows = await database.query(
        translated(f"SELECT {WHOLE} FROM jobs WHERE namespace = ? AND job_id = ?", database.schema),
        (scope.number, job_id),
    )
    if not rows:
        raise no_job(job_id)
    if rows[0][3] != JobState.PAUSED:
        return record(rows[0])
    rows = await database.query(_paused(database.schema), (scope.number, job_id))
    if not rows:
        raise no_job(job_id)
    return record(rows[0][:_OF_JOB], [row[_OF_JOB:] for row in rows if row[_OF_JOB] is not None])


async def questions(database: Database, scope: Scope, job_id: str, ids: Sequence[str] | None) -> list[Question]:
    """The questions of a job, or `not_found`."""
    wanted = {"namespace": scope.number, "job": job_id, "ids": None if ids is None else list(ids)}
    rows = await database.query(_questions(database.schema), wanted)
    if not rows:
        raise no_job(job_id)
    return [question(row) for row in rows if row[0] is not None]


async def standings(database: Database, scope: Scope, job_ids: Sequence[str]) -> list[Standing | None]:
    """The state and the deadline of each job, or None."""
    rows = await database.query(
        f"""SELECT wanted.id, own.state, own.deadline_at FROM unnest(%s::text[]) AS wanted (id) CROSS JOIN LATERAL (
              SELECT state, deadline_at FROM {database.schema}.jobs
              WHERE namespace = %s AND job_id = wanted.id OFFSET 0) AS own""",
        (list(dict.fromkeys(job_ids)), scope.number),
    )
    found = {job_id: Standing(JobState(state), deadline_at) for job_id, state, deadline_at in rows}
    return [found.get(job_id) for job_id in job_ids]


async def list_jobs(database: Database, scope: Scope, query: JobQuery) -> JobPage:
    """Newest first."""
    sql, values = listing(query, scope.number, "namespace = ?")
    rows = await database.query(translated(sql, database.schema), values)
    items = rows[: query.limit]
    return JobPage(items=[record(row) for row in items], cursor=str(items[-1][0]) if len(rows) > query.limit else None)


async def events_of_all(database: Database, scope: Scope, after: int, limit: int, *, final: bool) -> Events:
    """Events of every job of the namespace after an id."""
    rows = await database.query(
        _of_all(database.schema, final), {"namespace": scope.number, "after": after, "limit": limit}
    )
    newest, trimmed_to = rows[0][5:]
    return page_of_events(
        [row for row in rows if row[0] is not None], after, limit, newest, truncated=after < trimmed_to
    )


async def events_of_job(
    database: Database, scope: Scope, job_id: str, after: int, limit: int, *, final: bool
) -> Events:
    """Events of one job after an id; `not_found` for an unknown one."""
    rows = await database.query(
        _of_job(database.schema, final), {"namespace": scope.number, "job": job_id, "after": after, "limit": limit}
    )
    if not rows:
        raise no_job(job_id)
    newest, trimmed_to = rows[0][5:]
    return page_of_events(
        [row for row in rows if row[0] is not None], after, limit, newest, truncated=after < trimmed_to
    )


@functools.cache
def _paused(schema: str) -> str:
    """The job with its open questions, a row for each, in one snapshot."""
    own = translated(f"SELECT {WHOLE} FROM jobs WHERE namespace = ? AND job_id = ?", schema)
    return f"""
        WITH own AS ({own})
        SELECT own.*, asked.* FROM own LEFT JOIN LATERAL (
          SELECT {QUESTION}, number FROM {schema}.job_questions AS one
          WHERE one.job = own.seq AND one.state = 'open') AS asked ON TRUE
        ORDER BY asked.number"""


@functools.cache
def _questions(schema: str) -> str:
    return f"""
        SELECT asked.* FROM {schema}.jobs AS own LEFT JOIN LATERAL (
          SELECT {QUESTION}, number FROM {schema}.job_questions AS one
          WHERE one.job = own.seq AND (%(ids)s::text[] IS NULL OR one.question_id = ANY (%(ids)s::text[]))
        ) AS asked ON TRUE
        WHERE own.namespace = %(namespace)s AND own.job_id = %(job)s ORDER BY asked.number"""


@functools.cache
def _of_all(schema: str, final: bool) -> str:
    return f"""
        SELECT line.*, own.last_event, own.trimmed_to FROM {schema}.job_namespaces AS own
        LEFT JOIN LATERAL (
          SELECT one.id, (SELECT job_id FROM {schema}.jobs WHERE seq = one.job), one.kind, one.data, one.created_at
          FROM {schema}.job_events AS one
          WHERE one.namespace = own.id AND one.id > %(after)s {"AND one.final" if final else ""}
          ORDER BY one.id LIMIT %(limit)s) AS line ON TRUE
        WHERE own.id = %(namespace)s ORDER BY line.id"""


@functools.cache
def _of_job(schema: str, final: bool) -> str:
    return f"""
        SELECT line.id, own.job_id, line.kind, line.data, line.created_at,
          coalesce((SELECT max(id) FROM {schema}.job_events WHERE job = own.seq), 0), own.trimmed_to
        FROM {schema}.jobs AS own
        LEFT JOIN LATERAL (
          SELECT one.id, one.kind, one.data, one.created_at FROM {schema}.job_events AS one
          WHERE one.job = own.seq AND one.id > %(after)s {"AND one.final" if final else ""}
          ORDER BY one.id LIMIT %(limit)s) AS line ON TRUE
        WHERE own.namespace = %(namespace)s AND own.job_id = %(job)s ORDER BY line.id"""
