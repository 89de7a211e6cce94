"""The event log: reading it, and its ids.

`CROSS JOIN` keeps SQLite from beginning with the jobs and sorting all of their events.
"""

from __future__ import annotations

from groundplane.backends.sqlite import Transaction
from groundplane.jobs.drivers.rows import page_of_events
from groundplane.jobs.drivers.unit import Scope
from groundplane.jobs.port import Events
from groundplane.jobs.refusals import no_job

_IDS_LEFT_OUT = 100_000


def boot(tx: Transaction) -> str | None:
    """The boot of the machine that ids were last given in."""
    rows = tx.execute("SELECT id FROM job_boot")
    return rows[0][0] if rows else None


def begin_boot(tx: Transaction, boot_id: str) -> None:
    """In a new boot: ids that a reader saw before a loss of power took their rows are not given again."""
    before = boot(tx)
    tx.execute("DELETE FROM job_boot")
    tx.execute("INSERT INTO job_boot VALUES (?)", (boot_id,))
    if before in (None, boot_id):
        return
    tx.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = 'job_events'", (_IDS_LEFT_OUT,))
    if not tx.changes():
        tx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('job_events', ?)", (_IDS_LEFT_OUT,))


def of_all(tx: Transaction, scope: Scope, after: int, limit: int, *, final: bool) -> Events:
    """Events of every job of the namespace after an id."""
    rows = tx.execute(
        "SELECT one.id, jobs.job_id, one.kind, one.data, one.created_at FROM job_events AS one "
        "CROSS JOIN jobs ON jobs.seq = one.job WHERE one.id > ? AND one.final >= ? AND jobs.namespace = ? "
        "ORDER BY one.id LIMIT ?",
        (after, final, scope.number, limit),
    )
    trimmed_to, newest = tx.execute(
        "SELECT trimmed_to, (SELECT coalesce(max(id), 0) FROM job_events) FROM job_namespaces WHERE id = ?",
        (scope.number,),
    )[0]
    return page_of_events(rows, after, limit, newest, truncated=after < trimmed_to)


def of_job(tx: Transaction, scope: Scope, job_id: str, after: int, limit: int, *, final: bool) -> Events:
    """Events of one job after an id; `not_found` for an unknown one."""
    found = tx.execute("SELECT seq, trimmed_to FROM jobs WHERE namespace = ? AND job_id = ?", (scope.number, job_id))
    if not found:
        raise no_job(job_id)
    seq, trimmed_to = found[0]
    rows = tx.execute(
        "SELECT id, ?, kind, data, created_at FROM job_events WHERE job = ? AND id > ? AND final >= ? "
        "ORDER BY id LIMIT ?",
        (job_id, seq, after, final, limit),
    )
    newest = tx.execute("SELECT coalesce(max(id), 0) FROM job_events WHERE job = ?", (seq,))[0][0]
    return page_of_events(rows, after, limit, newest, truncated=after < trimmed_to)
