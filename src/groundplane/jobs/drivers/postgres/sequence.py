"""The log's ids: a transaction with events takes the one lock of its namespace last, and keeps it until its commit.

So ids rise in the order of commit, and a reader that has seen an id has seen all below it. The lock, the numbering and
COMMIT go to the server in one message: no client ever holds the lock while it thinks. A crash of the server may take
events that were committed without waiting for the disk (progress), though somebody has seen them: an unlogged table
is empty after it, and then ids are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from groundplane.backends.postgres import Statement

IDS_LEFT_OUT = 100_000


class Event(NamedTuple):
    """A line for the log."""

    job: int
    kind: str
    data: str
    final: bool


def lock(schema: str, namespace: int) -> Statement:
    """Wait for the others; the statement after it sees what they committed."""
    return f"SELECT FROM {schema}.job_namespaces WHERE id = %s FOR NO KEY UPDATE", (namespace,)


def append(schema: str, namespace: int, now: int, events: Sequence[Event]) -> Statement:
    """Write events under the ids that come next; `lock` comes before it."""
    return _append(schema), {
        "namespace": namespace,
        "count": len(events),
        "now": now,
        "jobs": [one.job for one in events],
        "kinds": [one.kind for one in events],
        "datas": [one.data for one in events],
        "finals": [one.final for one in events],
    }


def numbered(schema: str, count: str) -> str:
    """Expressions of a WITH: `ids` has in `base` the last id before the next `count` (an expression in SQL)."""
    return f"""
        crash AS (INSERT INTO {schema}.job_uncrashed VALUES (%(namespace)s) ON CONFLICT DO NOTHING RETURNING 1),
        ids AS (
          UPDATE {schema}.job_namespaces
          SET last_event = last_event + {count} + CASE WHEN EXISTS (TABLE crash) THEN {IDS_LEFT_OUT} ELSE 0 END
          WHERE id = %(namespace)s RETURNING last_event - {count} AS base)"""


@functools.cache
def _append(schema: str) -> str:
    return f"""
        WITH {numbered(schema, "%(count)s::bigint")}
        INSERT INTO {schema}.job_events (namespace, id, job, kind, final, data, created_at)
        SELECT %(namespace)s, ids.base + line.n, line.job, line.kind, line.final, line.data, %(now)s
        FROM ids, unnest(%(jobs)s::bigint[], %(kinds)s::text[], %(datas)s::text[], %(finals)s::boolean[])
          WITH ORDINALITY AS line (job, kind, data, final, n)"""
