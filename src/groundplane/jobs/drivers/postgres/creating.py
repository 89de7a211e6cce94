"""Creating jobs: all that wait, with their first events and messages, in one statement."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from groundplane.backends.postgres import Database, Statement
from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.core.fencing import Fence, term_old
from groundplane.jobs.drivers.postgres import sequence
from groundplane.jobs.drivers.postgres.applying import CLOCK
from groundplane.jobs.drivers.postgres.dialect import text, translated
from groundplane.jobs.drivers.rows import COUNT_LIVE, WHOLE, created_shown, fresh, record, steps_of
from groundplane.jobs.drivers.unit import Scope, as_json, pack
from groundplane.jobs.port import Created, NewJob, OutboxMessage
from groundplane.jobs.refusals import check_same_work, id_taken, too_many_live

GROUP_MAX = 200
BYTES_MAX = 4 * 1024 * 1024
_IMPATIENT: Statement = ("SELECT set_config('lock_timeout', '50', true)", ())
"""ON CONFLICT waits for whoever changes the job that has the key or the id, and that one may wait for the lock that is
held here: we let go of it, and come again.
"""


class Creation(msgspec.Struct, frozen=True):
    """A call, encoded where its own caller gets the error."""

    job: NewJob
    messages: Sequence[OutboxMessage]
    lease_ms: int
    route: bytes
    arguments: bytes
    data: str
    headers: list[bytes]

    @classmethod
    def of(cls, job: NewJob, messages: Sequence[OutboxMessage], lease_s: float) -> Creation:
        """Encode it. `invalid_argument` for what cannot be stored."""
        return cls(
            job,
            messages,
            round(lease_s * 1000),
            pack(job.route),
            pack(job.arguments),
            as_json("created", created_shown(job)),
            [pack(one.headers) for one in messages],
        )

    @property
    def weight(self) -> int:
        """Its bytes, about."""
        return len(self.arguments) + sum(len(one.payload) for one in self.messages)


def pick(calls: Sequence[Creation]) -> int:
    """How many calls go together: no id twice, not too many bytes, no two terms of one leadership."""
    ids: set[str] = set()
    terms: dict[str, int] = {}
    weight = 0
    for one in calls[:GROUP_MAX]:
        weight += one.weight
        if one.job.job_id in ids or weight > BYTES_MAX:
            break
        fence = one.job.fence
        if fence is not None and terms.setdefault(fence.name, fence.term) != fence.term:
            break
        ids.add(one.job.job_id)
    return len(ids)


async def create_together(
    database: Database, scope: Scope, now: int | None, calls: Sequence[Creation]
) -> list[Created | GroundplaneError | None]:
    """What became of each: made, known by its key, refused; None where it must be tried once more."""
    messages = [(call, at, one) for call in calls for at, one in enumerate(call.messages)]
    limits = [call.job.live_max for call in calls]
    fences = {call.job.fence.name: call.job.fence for call in calls if call.job.fence is not None}
    create = _create(database.schema, any(limits), bool(fences))
    try:
        *_, highest, made = await database.query_all(
            [
                sequence.lock(database.schema, scope.number),
                _IMPATIENT,
                *([_show(database.schema, scope, fences)] if fences else []),
                (create, {**_bindings(scope, now, calls, messages), "limits": limits}),
            ]
        )
    except Unavailable as error:
        if error.reason != "database_busy":
            raise
        return [None for _ in calls]
    database.ring(scope.topic("events"))
    rows = {row[0]: row for row in made}
    terms: dict[str, int] = dict(highest) if fences else {}
    numbers = iter(made[0][4] or [] if made else [])
    sent: dict[str, list[int]] = {}
    for call, _, _ in messages:
        if call.job.job_id in rows:
            sent.setdefault(call.job.job_id, []).append(next(numbers))
    if any(not call.lease_ms for call in calls if call.job.job_id in sent):
        database.ring(scope.topic("outbox"))
    return [
        Created(
            fresh(call.job, rows[call.job.job_id][2], rows[call.job.job_id][3]),
            True,
            sent.get(call.job.job_id, []) if call.lease_ms else [],
        )
        if call.job.job_id in rows
        else _refused(call.job, terms) or await _known(database, scope, call.job)
        for call in calls
    ]


def _show(schema: str, scope: Scope, fences: Mapping[str, Fence]) -> Statement:
    """Remember higher terms; the highest of each name. The namespace's lock is held: this and what follows are one."""
    return _show_terms(schema), {
        "namespace": scope.number,
        "names": list(fences),
        "terms": [one.term for one in fences.values()],
    }


def _refused(new: NewJob, highest: Mapping[str, int]) -> GroundplaneError | None:
    fence = new.fence
    return term_old(fence, highest[fence.name]) if fence is not None and highest[fence.name] > fence.term else None


async def _known(database: Database, scope: Scope, new: NewJob) -> Created | GroundplaneError | None:
    """The job that has the idempotency key or the id, or that there is no room for another."""
    if new.idempotency_key is not None:
        rows = await database.query(
            translated(
                f"SELECT {WHOLE}, tool, arguments_hash FROM jobs "
                "WHERE namespace = ? AND owner = ? AND idempotency_key = ?",
                database.schema,
            ),
            (scope.number, new.owner, new.idempotency_key),
        )
        if rows:
            try:
                check_same_work(new, *rows[0][-2:])
            except GroundplaneError as error:
                return error
            return Created(record(rows[0][:-2]), False)
    rows = await database.query(
        translated("SELECT 1 FROM jobs WHERE namespace = ? AND job_id = ?", database.schema),
        (scope.number, new.job_id),
    )
    if rows:
        return id_taken(new)
    if new.live_max is None:
        return None
    count = await database.query(translated(COUNT_LIVE, database.schema), (scope.number, new.owner, new.live_max))
    return too_many_live(new) if count[0][0] >= new.live_max else None


def _bindings(
    scope: Scope, now: int | None, calls: Sequence[Creation], messages: Sequence[tuple[Creation, int, OutboxMessage]]
) -> dict[str, Any]:
    jobs = [call.job for call in calls]
    return {
        "namespace": scope.number,
        "now": now,
        "ids": [one.job_id for one in jobs],
        "tools": [one.tool for one in jobs],
        "owners": [one.owner for one in jobs],
        "keys": [one.idempotency_key for one in jobs],
        "hashes": [text(one.arguments_hash) for one in jobs],
        "steps": [steps_of(one) for one in jobs],
        "routes": [call.route for call in calls],
        "arguments": [call.arguments for call in calls],
        "deadlines": [one.deadline_at for one in jobs],
        "tokens": [text(one.token_hash) for one in jobs],
        "traces": [text(one.trace) for one in jobs],
        "datas": [call.data for call in calls],
        "fences": [one.fence.name if one.fence is not None else None for one in jobs],
        "terms": [one.fence.term if one.fence is not None else None for one in jobs],
        "of": [call.job.job_id for call, _, _ in messages],
        "leases": [call.lease_ms for call, _, _ in messages],
        "queues": [text(one.queue) for _, _, one in messages],
        "message_ids": [text(one.id) for _, _, one in messages],
        "payloads": [one.payload for _, _, one in messages],
        "headers": [call.headers[at] for call, at, _ in messages],
        "dedup_keys": [text(one.dedup_key) for _, _, one in messages],
    }


_ADMITTED = """
        (SELECT given.* FROM (SELECT given.*, row_number() OVER (PARTITION BY owner ORDER BY n) AS place FROM given
          ) AS given LEFT JOIN (
            SELECT owner, (SELECT count(*) FROM (
              SELECT 1 FROM {schema}.jobs AS job WHERE job.namespace = %(namespace)s AND job.owner = one.owner
                AND job.finished_at IS NULL LIMIT one.most) AS found) AS live
            FROM (SELECT owner, max(live_max) AS most FROM given GROUP BY owner) AS one) AS held USING (owner)
          WHERE given.live_max IS NULL OR held.live + given.place <= given.live_max) AS admitted"""
"""Those for whom there is room. The namespace's lock is held, so that nobody else creates meanwhile. A repeat takes a
place too; who is left out for that alone comes again.
"""


_OF_THE_NEWEST_TERM = """
          WHERE job.fence IS NULL OR job.term >= (
            SELECT seen.term FROM {schema}.job_fences AS seen
            WHERE seen.namespace = %(namespace)s AND seen.name = job.fence)"""


@functools.cache
def _show_terms(schema: str) -> str:
    return f"""
        WITH shown AS (SELECT * FROM unnest(%(names)s::text[], %(terms)s::bigint[]) AS one (name, term)),
        raised AS (
          INSERT INTO {schema}.job_fences (namespace, name, term) SELECT %(namespace)s, name, term FROM shown
          ON CONFLICT (namespace, name) DO UPDATE SET term = excluded.term WHERE job_fences.term < excluded.term
          RETURNING name, term)
        SELECT name, max(term) FROM (
          SELECT name, term FROM raised UNION ALL
          SELECT name, fence.term FROM {schema}.job_fences AS fence JOIN shown USING (name)
          WHERE fence.namespace = %(namespace)s) AS known
        GROUP BY name"""


@functools.cache
def _create(schema: str, limited: bool, fenced: bool) -> str:
    newest = _OF_THE_NEWEST_TERM.format(schema=schema) if fenced else ""
    count = "(SELECT count(*) FROM made)"
    admitted = _ADMITTED.format(schema=schema) if limited else "given"
    return f"""
        WITH clock AS (SELECT coalesce(%(now)s::bigint, {CLOCK}) AS now),
        given AS (
          SELECT * FROM unnest(%(ids)s::text[], %(tools)s::text[], %(owners)s::text[], %(keys)s::text[],
            %(hashes)s::text[], %(steps)s::bigint[], %(routes)s::bytea[], %(arguments)s::bytea[],
            %(deadlines)s::bigint[], %(tokens)s::text[], %(traces)s::text[], %(datas)s::text[], %(limits)s::bigint[],
            %(fences)s::text[], %(terms)s::bigint[])
            WITH ORDINALITY AS job (job_id, tool, owner, key, hash, steps, route, arguments, deadline_at, token, trace,
              data, live_max, fence, term, n){newest}),
        made AS (
          INSERT INTO {schema}.jobs (namespace, job_id, tool, owner, idempotency_key, arguments_hash, total_steps,
            route, arguments, created_at, updated_at, deadline_at, token_hash, trace)
          SELECT %(namespace)s, job_id, tool, owner, key, hash, steps, route, arguments, now, now, deadline_at, token,
            trace
          FROM {admitted}, clock ORDER BY n ON CONFLICT DO NOTHING RETURNING seq, job_id, created_at),
        {sequence.numbered(schema, count)},
        logged AS (
          INSERT INTO {schema}.job_events (namespace, id, job, kind, data, created_at)
          SELECT %(namespace)s, ids.base + row_number() OVER (ORDER BY given.n), made.seq, 'created', given.data,
            made.created_at
          FROM ids, made JOIN given USING (job_id) RETURNING id, job),
        sent AS (
          INSERT INTO {schema}.job_outbox (namespace, leased_until, queue, message_id, payload, headers, dedup_key)
          SELECT %(namespace)s, CASE WHEN one.lease > 0 THEN made.created_at + one.lease ELSE 0 END, one.queue,
            one.message_id, one.payload, one.headers, one.dedup_key
          FROM unnest(%(of)s::text[], %(leases)s::bigint[], %(queues)s::text[], %(message_ids)s::text[],
            %(payloads)s::bytea[], %(headers)s::bytea[], %(dedup_keys)s::text[]) WITH ORDINALITY
            AS one (job_id, lease, queue, message_id, payload, headers, dedup_key, n)
          JOIN made USING (job_id) ORDER BY one.n RETURNING id)
        SELECT made.job_id, made.seq, made.created_at, logged.id, (SELECT array_agg(id ORDER BY id) FROM sent)
        FROM made JOIN logged ON logged.job = made.seq"""
