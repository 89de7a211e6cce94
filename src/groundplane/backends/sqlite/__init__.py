"""The embedded engine: one SQLite file, shared by all processes of a plane.

    async with Database.open(state / "plane.db", [MigrationSet(component="queues", package="…")]) as db:
        await db.write(lambda tx: tx.execute("INSERT INTO …", (…,)))
        rows = await db.read(lambda tx: tx.execute("SELECT …"))
        async with db.listen("queues/orders") as listener:
            await listener.wait(timeout_s=1)

Guarantees: a write that returned survives SIGKILL and a loss of power (`durable=False`: SIGKILL alone). Writers of
several processes take turns in the order of the kernel's queue. A waiting listener of any process is woken in well
under a millisecond after the sync, at the latest by a poll 0.25 s later. Nothing is used across a fork.

Files beside `plane.db`: `-wal` and `-shm` (SQLite's), `-lock` (the write lock among processes), `-ballast` (space held
back for essential writes on a full disk), `wake/` (sockets of listeners). Linux only, on a local disk.
"""

from __future__ import annotations

from groundplane.backends.sqlite.database import Database
from groundplane.backends.sqlite.engine import Statistics
from groundplane.backends.sqlite.merging import Merging
from groundplane.backends.sqlite.options import Options
from groundplane.backends.sqlite.transaction import Bindings, Row, Transaction, Value
from groundplane.backends.sqlite.wake import Listener
from groundplane.core.migrations import Migration, MigrationSet

__all__ = [
    "Bindings",
    "Database",
    "Listener",
    "Merging",
    "Migration",
    "MigrationSet",
    "Options",
    "Row",
    "Statistics",
    "Transaction",
    "Value",
]
