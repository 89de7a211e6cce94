"""Jobs in PostgreSQL (13 or newer): one schema for any number of processes on any number of machines.

Address: `postgresql://user:password@host:port/database?schema=groundplane` (also `postgres://`); several hosts and all
options as libpq takes them, and those of `groundplane.backends.postgres.parse_url`.
Guarantee: what returned is durable; of progress alone a crash of the server may take the last 0.6 s. Events get their
ids under a lock that is held until their commit, so no reader ever skips one; no id that was seen is given again.
Limits: texts cannot hold NUL (stored as U+FFFD); transactions with events commit one after another in a namespace,
concurrent calls of a process together.
Cannot: share a transaction with queues: `hops.share_transactions` is False, `carried` is `unsupported`.
Escape hatch: `native` is the `Database`; the tables are in `groundplane/jobs/sql/postgres`.
"""

from __future__ import annotations

from groundplane.jobs.drivers.postgres.store import MIGRATIONS, PostgresJobs, open_driver

__all__ = ["MIGRATIONS", "PostgresJobs", "open_driver"]
