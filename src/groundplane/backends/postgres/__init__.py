"""PostgreSQL: one pool for each database and loop, transactions, migrations, bells.

    async with Database.open(url, [MigrationSet(component="jobs", package="…")]) as db:
        rows = await db.query(f"SELECT … FROM {db.schema}.jobs WHERE job_id = %s", (…,))
        value = await db.write(work)             # async def work(tx: Transaction): await tx.execute(…); tx.tell(…)
        async with db.listen("events") as listener:
            await listener.wait(timeout_s=1)     # rung by tx.ring("events") of any process

Guarantees: a write that returned is durable; every call ends within its timeout, also on a frozen server; a server that
comes back is used again by itself.
"""

from __future__ import annotations

import importlib

from groundplane.core.errors import FailedPrecondition

try:
    for _package in ("psycopg", "psycopg_pool"):
        importlib.import_module(_package)
except ImportError as error:
    raise FailedPrecondition(
        "postgres: postgresql:// needs the packages of the extra postgres; pip install 'groundplane[postgres]'",
        reason="missing_extra",
    ) from error

from groundplane.backends.postgres.bells import Listener
from groundplane.backends.postgres.database import Database
from groundplane.backends.postgres.engine import VERSION_MIN, Statistics
from groundplane.backends.postgres.settings import Settings, parse_url
from groundplane.backends.postgres.transaction import Bindings, Row, Statement, Transaction
from groundplane.core.migrations import Migration, MigrationSet

__all__ = [
    "VERSION_MIN",
    "Bindings",
    "Database",
    "Listener",
    "Migration",
    "MigrationSet",
    "Row",
    "Settings",
    "Statement",
    "Statistics",
    "Transaction",
    "parse_url",
]
