"""`groundplane doctor` on real servers: each defect is found by name, in time, with what to do; looking leaves nothing.

What a server cannot be made to do (be old, have another clock, refuse to write) a relay before it does, which replaces
bytes of what passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from groundplane.backends.amqp import Address, Connection
from groundplane.cli.finding import Finding
from groundplane.cli.servers_check import examine_servers
from groundplane.core.secrets import Url
from groundplane.core.settings import Settings
from groundplane.plane import Plane
from groundplane.testing.faults.disk import NoSmallDisk, small_disk
from integration.dev_plane import groundplane

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CONNECT_S = 8.0
"""Longer than any connect timeout of the drivers, with what a loaded machine adds."""


async def _examined(state: Path, names: tuple[str, ...] = (), **urls: str) -> dict[str, Finding]:
    """What is not well, by its check; at most as long as connecting takes."""
    settings = Settings(state=state, **{port: Url(url) for port, url in urls.items()})  # type: ignore[arg-type]
    began = time.monotonic()
    found = await examine_servers(settings, names)
    assert time.monotonic() - began < CONNECT_S
    assert {one.check for one in found} >= set(urls) - {"clock"} or any(one.check == "clock" for one in found)
    wrong = {one.check: one for one in found if one.severity != "ok"}
    assert all(one.remedy and one.reason and len(one.message) > 20 for one in wrong.values()), wrong
    return wrong


@asynccontextmanager
async def _relay(
    url: str, *, answers: Callable[[bytes], bytes] = bytes, refuse: Callable[[bytes], bytes | None] = lambda _: None
) -> AsyncIterator[str]:
    """The URL of a relay before the server. What `refuse` answers is sent back instead of passing a request on."""
    place = urllib.parse.urlsplit(url)
    target = urllib.parse.urlsplit(dict(urllib.parse.parse_qsl(place.query)).get("endpoint", url))
    tasks: set[asyncio.Task[Any]] = set()

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                refused = refuse(data) if back is not writer else None
                if refused is not None:
                    back.write(refused)
                    return
                writer.write(data if back is not writer else answers(data))
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, out = await asyncio.open_connection(target.hostname, target.port)
        try:
            await asyncio.gather(passing(reader, out, writer), passing(there, writer, writer))
        except asyncio.CancelledError:
            pass  # the relay ends; a task of a stream server that ends by it would be told as a failure
        finally:
            out.close()
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield url.replace(f":{target.port}", f":{port}")
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def _with(url: str, **parts: str) -> str:
    """The URL with another user, password or path."""
    place = urllib.parse.urlsplit(url)
    user, password = parts.get("user", place.username or ""), parts.get("password", place.password or "")
    login = f"{user}:{password}@" if password else f"{user}@"
    netloc = f"{login}{place.hostname}:{parts.get('port', place.port)}"
    return urllib.parse.urlunsplit(place._replace(netloc=netloc, path=parts.get("path", place.path)))


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of somebody who takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


class TestRabbitMQ:
    async def test_a_broker_that_is_well_is_named_and_nothing_is_left_there(
        self, tmp_path: Path, rabbitmq_url: str
    ) -> None:
        assert await _examined(tmp_path, ("double",), queues=rabbitmq_url) == {}
        async with await Connection.open(Address.parse(rabbitmq_url), name="test") as connection:
            channel = await connection.channel()
            with pytest.raises(Exception, match="double"):
                await channel.declare_queue("default:double", passive=True)

    @pytest.mark.parametrize(
        "change, reason",
        [
            ({"port": "1"}, "broker_unreachable"),
            ({"password": "wrong"}, "login_refused"),
            ({"user": "nobody"}, "login_refused"),
            ({"path": "/no-such-host"}, "vhost_refused"),
        ],
    )
    async def test_what_keeps_from_logging_in_is_found(
        self, tmp_path: Path, rabbitmq_url: str, change: dict[str, str], reason: str
    ) -> None:
        found = await _examined(tmp_path, queues=_with(rabbitmq_url, **change))
        assert found["queues"].reason == reason
        assert "wrong" not in found["queues"].message.replace("wrong password", "")

    async def test_somebody_else_on_the_port_is_found(self, tmp_path: Path, rabbitmq_url: str, silent: int) -> None:
        found = await _examined(tmp_path, queues=_with(rabbitmq_url, port=str(silent)))
        assert found["queues"].reason == "broker_silent"

    async def test_a_broker_that_is_too_old_is_found(self, tmp_path: Path, rabbitmq_url: str) -> None:
        def older(data: bytes) -> bytes:
            return re.sub(rb"(version\S{5})\d\.\d\d", rb"\g<1>3.09", data)

        async with _relay(rabbitmq_url, answers=older) as url:
            found = await _examined(tmp_path, queues=url)
        assert found["queues"].reason == "server_too_old"
        assert "3.10" in found["queues"].message + found["queues"].remedy

    async def test_a_queue_that_was_made_otherwise_is_found_by_the_apps_names(
        self, tmp_path: Path, rabbitmq_url: str
    ) -> None:
        async with await Connection.open(Address.parse(rabbitmq_url), name="test") as connection:
            channel = await connection.channel()
            await channel.declare_queue("default:double")
            assert await _examined(tmp_path, queues=rabbitmq_url) == {}
            found = await _examined(tmp_path, ("double",), queues=rabbitmq_url)
        assert found["queues"].reason == "queue_exists_with_other_arguments"
        assert "default:double" in found["queues"].message

    @pytest.mark.parametrize("rights", [("", "", ".*"), (".*", "", ".*")])
    async def test_a_user_who_may_only_read_is_found(
        self, tmp_path: Path, rabbitmq_url: str, rabbitmq_server: Any, rights: tuple[str, str, str]
    ) -> None:
        settings = Settings(state=tmp_path, queues=Url(rabbitmq_url))
        async with Plane.open(settings, ports=("queues",)) as plane:
            await plane.declare([])
        vhost = urllib.parse.urlsplit(rabbitmq_url).path[1:]
        with _user(rabbitmq_server, vhost, rights) as name:
            found = await _examined(tmp_path, queues=_with(rabbitmq_url, user=name, password="reader"))
        assert found["queues"].reason == "access_refused"

    @pytest.mark.slow
    async def test_a_full_disk_of_the_broker_is_found(self, tmp_path: Path, own_server: Any) -> None:
        broker = await asyncio.to_thread(own_server, "rabbitmq", config={"disk_free_limit.absolute": "900000GB"})
        found = await _examined(tmp_path, queues=broker.url)
        assert found["queues"].reason == "broker_blocked"
        assert "disk" in found["queues"].message + found["queues"].remedy


@contextlib.contextmanager
def _user(server: Any, vhost: str, rights: tuple[str, str, str]) -> Iterator[str]:
    """A user of the broker with rights to configure, write and read."""
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    base = server.urls["GROUNDPLANE_TEST_RABBITMQ_MANAGEMENT_URL"]

    def ask(method: str, path: str, body: Any = None) -> None:
        place = urllib.parse.urlsplit(base)
        request = urllib.request.Request(f"http://{place.hostname}:{place.port}{path}", method=method)
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, request.full_url, place.username or "", place.password or "")
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        with opener.open(request, json.dumps(body).encode() if body is not None else None, timeout=10):
            pass

    ask("PUT", f"/api/users/{name}", {"password": "reader", "tags": ""})
    try:
        granted = dict(zip(("configure", "write", "read"), rights, strict=True))
        ask("PUT", f"/api/permissions/{urllib.parse.quote(vhost, safe='')}/{name}", granted)
        yield name
    finally:
        ask("DELETE", f"/api/users/{name}")


class TestPostgreSQL:
    async def test_a_database_that_is_well_is_named_and_nothing_is_left_there(
        self, tmp_path: Path, postgres_url: str
    ) -> None:
        assert await _examined(tmp_path, jobs=postgres_url, ledger=postgres_url) == {}
        with psycopg.connect(postgres_url) as connection:
            assert connection.execute("SELECT to_regnamespace('groundplane')").fetchone() == (None,)

    @pytest.mark.parametrize("port", ["jobs", "ledger"])
    async def test_what_keeps_from_connecting_is_found(
        self, tmp_path: Path, postgres_url: str, silent: int, port: str
    ) -> None:
        for change, reason, word in (
            ({"port": "1"}, "unavailable", "refused"),
            ({"port": str(silent)}, "unavailable", "timeout"),
            ({"path": "/no_such_database"}, "failed_precondition", "no_such_database"),
            ({"user": "nobody"}, "permission_denied", "nobody"),
        ):
            found = await _examined(tmp_path, **{port: _with(postgres_url, **change)})
            assert (found[port].reason, change) == (reason, change)
            assert word in found[port].message, found[port]

    async def test_a_wrong_password_is_found(self, tmp_path: Path, own_server: Any) -> None:
        server = await asyncio.to_thread(own_server, "postgres")
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
            _ask_for_passwords(Path(server.data, "pg_hba.conf"), "locked")
            connection.execute("SELECT pg_reload_conf()")
        found = await _examined(tmp_path, jobs=_with(server.url, user="locked", password="wrong-one"))
        assert found["jobs"].reason == "permission_denied"
        assert "password" in found["jobs"].message + found["jobs"].remedy
        assert "wrong-one" not in found["jobs"].message

    async def test_an_older_server_is_found(self, tmp_path: Path, postgres_url: str) -> None:
        def older(data: bytes) -> bytes:
            return re.sub(rb"(server_version\x00)\d\d", rb"\g<1>12", data)

        async with _relay(postgres_url, answers=older) as url:
            found = await _examined(tmp_path, jobs=f"{url}?sslmode=disable")
        assert found["jobs"].reason == "server_too_old"
        assert "PostgreSQL 12" in found["jobs"].message

    async def test_a_role_that_may_only_read_is_found(self, tmp_path: Path, postgres_url: str) -> None:
        settings = Settings(state=tmp_path, jobs=Url(postgres_url))
        async with Plane.open(settings, ports=("jobs",), upgrade=True):
            pass
        with _role(postgres_url) as (name, connection):
            connection.execute(f"GRANT USAGE ON SCHEMA groundplane TO {name}")
            connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA groundplane TO {name}")
            found = await _examined(tmp_path, jobs=_with(postgres_url, user=name))
        assert found["jobs"].reason == "permission_denied"
        assert "GRANT" in found["jobs"].remedy

    async def test_a_role_that_may_make_nothing_is_found(self, tmp_path: Path, postgres_url: str) -> None:
        with _role(postgres_url) as (name, _):
            found = await _examined(tmp_path, ledger=_with(postgres_url, user=name))
        assert found["ledger"].reason == "permission_denied"
        assert "may not make tables" in found["ledger"].message

    async def test_a_role_whose_sessions_are_read_only_is_found(self, tmp_path: Path, postgres_url: str) -> None:
        with _role(postgres_url) as (name, connection):
            connection.execute(f"ALTER ROLE {name} SET default_transaction_read_only = on")
            found = await _examined(tmp_path, jobs=_with(postgres_url, user=name))
        assert found["jobs"].reason == "read_only"

    async def test_data_of_a_newer_version_are_found(self, tmp_path: Path, postgres_url: str) -> None:
        settings = Settings(state=tmp_path, jobs=Url(postgres_url))
        async with Plane.open(settings, ports=("jobs",), upgrade=True):
            pass
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("INSERT INTO groundplane.groundplane_schema VALUES ('jobs', 99, 'of_tomorrow', 'x')")
        found = await _examined(tmp_path, jobs=postgres_url)
        assert found["jobs"].reason == "schema_newer"

    async def test_a_full_disk_of_the_server_is_found(self, tmp_path: Path, own_server: Any) -> None:
        server = await asyncio.to_thread(own_server, "postgres")
        with contextlib.ExitStack() as stack:
            try:
                # not below tmp_path: another pytest of this user takes away from others what they may do in its root
                place = Path(stack.enter_context(tempfile.TemporaryDirectory()), "small")
                disk = stack.enter_context(small_disk(place, size_bytes=32 * 1024 * 1024))
            except NoSmallDisk as error:
                pytest.skip(str(error))
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{_owned(disk.path, server)}'")
                connection.execute("ALTER SYSTEM SET temp_tablespaces = 'small'")
                connection.execute("SELECT pg_reload_conf()")
            assert await _examined(tmp_path, jobs=server.url) == {}
            disk.fill()
            found = await _examined(tmp_path, jobs=server.url)
            assert found["jobs"].reason == "disk_full"
            await asyncio.to_thread(server.stop)


def _ask_for_passwords(hba: Path, role: str) -> None:
    hba.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")


def _owned(path: Path, server: Any) -> Path:
    """A folder that the server may use for a tablespace."""
    folder = path / "space"
    folder.mkdir()
    status = Path(server.data).stat()
    os.chown(folder, status.st_uid, status.st_gid)
    path.parent.chmod(0o711)
    return folder


@contextlib.contextmanager
def _role(url: str) -> Iterator[tuple[str, Any]]:
    """A role without rights, and a connection of one with all."""
    name = f"doctor_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        try:
            yield name, connection
        finally:
            connection.execute(f"DROP OWNED BY {name}")
            connection.execute(f"DROP ROLE {name}")


class TestS3:
    async def test_a_bucket_that_is_well_is_named_and_nothing_is_left_there(self, tmp_path: Path, s3_url: str) -> None:
        assert await _examined(tmp_path, blobs=s3_url) == {}
        async with Plane.open(Settings(state=tmp_path, blobs=Url(s3_url)), ports=("blobs",)) as plane:
            assert (await plane.blobs.list_page("", limit=10)).items == []

    async def test_what_keeps_from_using_the_bucket_is_found(self, tmp_path: Path, s3_url: str, silent: int) -> None:
        place = urllib.parse.urlsplit(s3_url)
        endpoint = urllib.parse.urlsplit(dict(urllib.parse.parse_qsl(place.query))["endpoint"])
        bucket = place.netloc.rpartition("@")[2]
        for url, reason in (
            (s3_url.replace(f":{endpoint.port}", ":1"), "store_unreachable"),
            (s3_url.replace(f":{endpoint.port}", f":{silent}") + "&timeout=2", "store_unreachable"),
            (s3_url.replace(f"/{bucket}", "/no-such-bucket-here").replace(f"@{bucket}", "@no-such-bucket-here"),
             "bucket_not_found"),
            (_keys(s3_url, "nobody", "minioadmin"), "store_keys_refused"),
            (_keys(s3_url, None, "wrong-secret"), "store_keys_refused"),
        ):  # fmt: skip
            found = await _examined(tmp_path, blobs=url)
            assert (found["blobs"].reason, url) == (reason, url)
            assert "wrong-secret" not in found["blobs"].message

    async def test_credentials_that_may_only_read_are_found(self, tmp_path: Path, s3_url: str) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
        head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        denied = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        async with _relay(s3_url, refuse=lambda data: denied if data.startswith(b"PUT ") else None) as url:
            found = await _examined(tmp_path, blobs=url)
        assert found["blobs"].reason == "store_access_refused"

    async def test_another_clock_of_the_server_is_found(self, tmp_path: Path, s3_url: str) -> None:
        def later(data: bytes) -> bytes:
            return re.sub(rb"(Date: .*? \d{4} \d\d):(\d\d)", lambda m: m[1] + b":%02d" % ((int(m[2]) + 10) % 60), data)

        async with _relay(s3_url, answers=later) as url:
            found = await _examined(tmp_path, blobs=url)
        assert list(found) == ["clock"]
        assert found["clock"].reason == "clock_skew"
        assert re.search(r"\d+\.\d s (ahead of|behind) this machine's", found["clock"].message)


def _keys(url: str, key: str | None, secret: str) -> str:
    """The URL with other credentials, wherever they stand in it."""
    found = re.search(r"//([^:/@]+):([^@/]+)@", url)
    assert found is not None, "the kit puts the keys into the URL"
    return url.replace(f"//{found[1]}:{found[2]}@", f"//{key or found[1]}:{secret}@")


@pytest.mark.req("HEALTH-03.1", "HEALTH-03.2")
async def test_the_command_names_each_defect_of_each_port_and_exits_with_1(
    tmp_path: Path, rabbitmq_url: str, postgres_url: str, s3_url: str
) -> None:
    urls = {
        "GROUNDPLANE_QUEUES_URL": _with(rabbitmq_url, password="wrong-one"),
        "GROUNDPLANE_JOBS_URL": _with(postgres_url, path="/no_such_database"),
        "GROUNDPLANE_LEDGER_URL": postgres_url,
        "GROUNDPLANE_BLOBS_URL": s3_url,
    }
    run = await asyncio.to_thread(groundplane, "doctor", "--json", "--port", "0", folder=tmp_path, **urls)
    report = json.loads(run.stdout)
    assert (run.returncode, report["ok"]) == (1, False)
    wrong = {one["check"]: one["reason"] for one in report["findings"] if one["severity"] == "error"}
    not_there = "failed_precondition"  # the store of security follows the jobs'
    assert wrong == {"queues": "login_refused", "jobs": not_there, "security": not_there}
    well = {one["check"]: one["message"] for one in report["findings"] if one["severity"] == "ok"}
    assert well["ledger"].startswith("PostgreSQL ")
    assert well["blobs"].startswith("S3")
    assert "wrong-one" not in run.stdout + run.stderr
    healthy = {**urls, "GROUNDPLANE_QUEUES_URL": rabbitmq_url, "GROUNDPLANE_JOBS_URL": postgres_url}
    again = await asyncio.to_thread(groundplane, "doctor", "--port", "0", folder=tmp_path, **healthy)
    assert again.returncode == 0, again.stdout
    assert not any(line.startswith("error") for line in again.stdout.splitlines())
