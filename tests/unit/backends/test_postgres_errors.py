"""The error table by SQLSTATE, and each bad input at a real server: named, with what to do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from groundplane.backends.postgres import Database, MigrationSet
from groundplane.backends.postgres.errors import translate
from groundplane.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GroundplaneError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from groundplane.testing.servers.contract import Running

pytestmark = pytest.mark.anyio

NOTES = MigrationSet(
    component="notes", scripts=(("0001_create.sql", "CREATE TABLE note (id bigint PRIMARY KEY, words text)"),)
)


@pytest.mark.parametrize(
    ("state", "kind", "reason", "retryable"),
    [
        ("28P01", PermissionDenied, "", False),
        ("28000", PermissionDenied, "", False),
        ("42501", PermissionDenied, "", False),
        ("3D000", FailedPrecondition, "", False),
        ("25006", FailedPrecondition, "read_only", False),
        ("53100", ResourceExhausted, "disk_full", True),
        ("53200", ResourceExhausted, "server_exhausted", True),
        ("53300", ResourceExhausted, "server_exhausted", True),
        ("57P01", Unavailable, "", True),
        ("57P03", Unavailable, "", True),
        ("08006", Unavailable, "", True),
        ("55P03", Unavailable, "database_busy", True),
        ("57014", DeadlineExceeded, "", False),
        ("40001", Unavailable, "database_busy", True),
        ("40P01", Unavailable, "database_busy", True),
        ("23505", AlreadyExists, "", False),
        ("22021", InvalidArgument, "", False),
        ("23514", Internal, "", False),
        ("42601", Internal, "", False),
    ],
)
def test_an_sqlstate_is_one_error_of_ours(
    state: str, kind: type[GroundplaneError], reason: str, retryable: bool
) -> None:
    error = translate(psycopg.errors.lookup(state)("said the server"), "postgresql://h/d")
    assert type(error) is kind
    assert (error.reason, error.retryable) == (reason, retryable)
    assert error.message.startswith("database: 'postgresql://h/d': said the server")


def test_what_has_no_sqlstate_is_the_network_and_is_tried_again() -> None:
    error = translate(psycopg.OperationalError("server closed the connection"), "postgresql://h/d")
    assert type(error) is Unavailable


async def refused(url: str, within_s: float = 10.0, components: Any = ()) -> GroundplaneError:
    """What opening says, which must not take much longer than the connect timeout."""
    start = time.monotonic()
    with pytest.raises(GroundplaneError) as caught:
        async with Database.open(url, components):
            pass
    assert time.monotonic() - start < within_s
    return caught.value


@pytest.fixture(scope="module")
def guarded(own_server_of_module: Callable[..., Running]) -> Running:
    """A server that asks one user for a password, and trusts the others."""
    server = own_server_of_module("postgres")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE known LOGIN PASSWORD 'right'")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT CREATE ON DATABASE postgres TO reader")
    rules = server.data / "pg_hba.conf"
    rules.write_text(f"host all known 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
    return server


def _as(server: Running, user: str, database: str = "postgres") -> str:
    return f"postgresql://{user}@127.0.0.1:{server.port}/{database}"


async def test_a_wrong_password_a_missing_one_and_an_unknown_user_are_denied_by_code(guarded: Running) -> None:
    for user in ("known:wrong", "known", "nobody"):
        error = await refused(_as(guarded, user))
        assert type(error) is PermissionDenied, user
        assert error.details["sqlstate"] in ("28P01", "28000")
        assert "wrong" not in str(error)
    async with Database.open(_as(guarded, "known:right") + "?schema=public"):
        pass


async def test_a_missing_database_is_told_from_a_wrong_password(guarded: Running) -> None:
    for user in ("postgres", "known:right"):
        error = await refused(_as(guarded, user, "nowhere"))
        assert type(error) is FailedPrecondition, user
        assert error.details["sqlstate"] == "3D000"
        assert "create the database" in error.message
    assert type(await refused(_as(guarded, "known:wrong", "nowhere"))) is PermissionDenied


async def test_a_port_where_nobody_listens_and_one_that_never_answers_are_unavailable_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert type(await refused(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=60")) is Unavailable
        silent.listen()
        assert type(await refused(f"postgresql://u@127.0.0.1:{port}/d")) is Unavailable


async def test_something_else_on_the_port_is_unavailable_and_not_a_crash() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(web, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await refused(f"postgresql://u@127.0.0.1:{port}/d")
    assert type(error) is Unavailable


async def test_a_role_that_may_not_write_is_told_at_once_with_the_grant(guarded: Running) -> None:
    owner = _as(guarded, "postgres") + "?schema=guarded"
    async with Database.open(owner, [NOTES]) as db:
        await db.query("GRANT USAGE ON SCHEMA guarded TO reader")
        await db.query("GRANT SELECT ON ALL TABLES IN SCHEMA guarded TO reader")
    error = await refused(_as(guarded, "reader") + "?schema=guarded", components=[NOTES])
    assert type(error) is PermissionDenied
    assert "role 'reader' may not read and write table guarded.note; GRANT" in error.message


async def test_a_role_that_may_make_no_tables_is_told_who_may(guarded: Running) -> None:
    error = await refused(_as(guarded, "reader") + "?schema=public", components=[NOTES])
    assert type(error) is PermissionDenied
    assert "groundplane db upgrade" in error.message


async def test_a_database_that_takes_no_writes_is_told_at_once(guarded: Running) -> None:
    error = await refused(_as(guarded, "postgres") + "?options=-c%20default_transaction_read_only%3Don")
    assert type(error) is FailedPrecondition
    assert (error.reason, "default_transaction_read_only is on" in error.message) == ("read_only", True)


@pytest.mark.req("CORE-07")
async def test_an_older_server_is_refused_with_both_versions(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.backends.postgres.engine.VERSION_MIN", 99)
    error = await refused(postgres_url)
    assert (type(error), error.reason) == (FailedPrecondition, "server_too_old")
    assert error.details["needed"] == 99
    assert error.details["found"] >= 13


@pytest.mark.parametrize("package", ["psycopg", "psycopg_pool"])
def test_a_missing_package_names_the_extra_that_brings_it(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import groundplane.jobs.drivers.postgres"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'groundplane[postgres]'" in done.stderr.splitlines()[-1]
