"""A place of its own in a shared server for each test: made in milliseconds, emptied afterwards, never more than that.

| server | a namespace is | afterwards |
|---|---|---|
| postgres | a database | emptied and used again by the same process |
| rabbitmq | a virtual host | deleted |
| s3 | a bucket | deleted with its objects |
| redis | a numbered database | flushed |
| nats | an account with JetStream | not used again in this run |
| etcd | a prefix of keys | deleted |
| others | a unique word | stays |
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit, urlunsplit
from xml.etree import ElementTree

from groundplane.core.errors import FailedPrecondition, ResourceExhausted, Unavailable
from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.nats import ACCOUNTS
from groundplane.testing.servers.rabbitmq import GUEST, Management
from groundplane.testing.servers.redis import DATABASES

Ticket = Callable[[str], int]
Keep = Callable[[], bool]
_EMPTY = """
DO $$ DECLARE one record; BEGIN
  FOR one IN SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() LOOP
    PERFORM pg_terminate_backend(one.pid, 2000);
  END LOOP;
  FOR one IN SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' LOOP
    EXECUTE format('DROP EXTENSION IF EXISTS %I CASCADE', one.extname);
  END LOOP;
  FOR one IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', one.nspname);
  END LOOP;
  PERFORM lo_unlink(oid) FROM pg_largeobject_metadata;
  EXECUTE 'CREATE SCHEMA public';
END $$"""


class Namespaces:
    """Makes namespaces for the tests of one process."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._databases: dict[str, list[str]] = {}

    @contextmanager
    def of(self, server: Running, keep: Keep) -> Iterator[str]:
        """The URL of a new namespace; `keep` is asked at the end whether it stays as it is."""
        make = {
            "postgres": self._postgres, "rabbitmq": self._rabbitmq, "s3": self._s3, "redis": self._redis,
            "nats": self._nats,
        }.get(server.name)  # fmt: skip
        if make is None:
            yield server.url
            return
        with make(server, keep) as url:
            yield url

    def word(self) -> str:
        """A name that no other test of this run, and hardly one of another run, has."""
        return f"t{os.getpid():x}n{self._ticket('word')}x{secrets.token_hex(3)}"

    @contextmanager
    def _postgres(self, server: Running, keep: Keep) -> Iterator[str]:
        spare = self._databases.setdefault(server.url, [])
        name = spare.pop() if spare else ""
        if not name:
            name = self.word()
            self._sql(server.url, f'CREATE DATABASE "{name}"')
        url = urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
        yield url
        if keep():
            return
        if server.origin != "url":
            self._sql(url, _EMPTY)
            spare.append(name)
        else:  # somebody else's server: leave nothing
            self._sql(server.url, f'DROP DATABASE "{name}" WITH (FORCE)')

    def _sql(self, url: str, statement: str) -> None:
        parts = urlsplit(url)
        if parts.username == "postgres" and not parts.password:
            connection = wire.Postgres(parts.port or 5432, parts.path.lstrip("/"), host=parts.hostname or wire.HOST)
            with contextlib.closing(connection):
                connection.execute(statement)
            return
        if importlib.util.find_spec("psycopg") is None:
            raise FailedPrecondition("postgres: a server with a password needs psycopg: pip install 'psycopg[binary]'")
        import psycopg

        with psycopg.connect(url, autocommit=True) as connected:
            connected.execute(statement.encode())

    @contextmanager
    def _rabbitmq(self, server: Running, keep: Keep) -> Iterator[str]:
        parts = urlsplit(server.url)
        management = _management(server)
        name = self.word()
        management.create(name)
        yield urlunsplit(parts._replace(path=f"/{name}"))
        if not keep():
            management.delete(name)

    @contextmanager
    def _s3(self, server: Running, keep: Keep) -> Iterator[str]:
        parts = urlsplit(server.url)
        keys = (parts.username or "", parts.password or "")
        host, port = parts.hostname or wire.HOST, parts.port or 9000
        bucket = f"gp-{self.word()}"
        status, body = wire.s3("PUT", port, f"/{bucket}", keys=keys, host=host)
        if status != 200:
            raise Unavailable(f"s3: bucket {bucket!r} was not created: {status} {body[:300]!r}")
        yield f"s3://{bucket}?endpoint={quote(server.url, safe=':/@')}"
        if not keep():
            _delete_bucket(port, bucket, keys, host)

    @contextmanager
    def _redis(self, server: Running, keep: Keep) -> Iterator[str]:
        parts = urlsplit(server.url)
        number = self._ticket("redis") % (DATABASES - 1) + 1 if server.origin != "url" else _empty_database(server.url)
        yield urlunsplit(parts._replace(path=f"/{number}"))
        if not keep():
            wire.redis(parts.port or 6379, ["SELECT", str(number)], ["FLUSHDB"], url=server.url)

    @contextmanager
    def _nats(self, server: Running, keep: Keep) -> Iterator[str]:
        if server.origin in ("url", "container"):  # its accounts are not the kit's
            yield server.url
            return
        number = self._ticket("nats")
        if number >= ACCOUNTS:
            raise ResourceExhausted(f"nats: a run has {ACCOUNTS} namespaces; use own_server('nats') beyond them")
        yield f"nats://t{number}:t{number}@{wire.HOST}:{server.port}"


def _delete_bucket(port: int, bucket: str, keys: tuple[str, str], host: str) -> None:
    """With all that is in it: MinIO does so in one request, others object by object."""
    path = f"/{bucket}"
    forced = {"x-minio-force-delete": "true"}
    while wire.s3("DELETE", port, path, keys=keys, host=host, headers=forced)[0] == 409:
        _, listed = wire.s3("GET", port, path, keys=keys, host=host, query={"list-type": "2"})
        names = [one.text or "" for one in ElementTree.fromstring(listed).iter() if one.tag.endswith("}Key")]
        if not names:
            raise Unavailable(f"s3: bucket {bucket!r} has no objects and is not deleted: it keeps versions or uploads")
        for name in names:
            wire.s3("DELETE", port, f"{path}/{name}", keys=keys, host=host)


@contextmanager
def etcd_prefix(server: Running, word: str, keep: Keep) -> Iterator[str]:
    """A prefix of keys; everything below it is deleted afterwards."""
    prefix = f"/{word}/"
    yield prefix
    if keep():
        return
    first, last = prefix.encode(), prefix.encode()[:-1] + b"0"  # "0" follows "/"
    body = {"key": base64.b64encode(first).decode(), "range_end": base64.b64encode(last).decode()}
    host = urlsplit(server.url).hostname or wire.HOST
    wire.http("POST", server.port, "/v3/kv/deleterange", host=host, body=json.dumps(body).encode())


def _management(server: Running) -> Management:
    if server.origin != "url":
        return Management(server.ports["management"])
    given = urlsplit(os.environ.get("GROUNDPLANE_TEST_RABBITMQ_MANAGEMENT_URL", ""))
    if given.hostname is None:
        raise FailedPrecondition(
            "rabbitmq: virtual hosts of tests are made by the management API: set "
            "GROUNDPLANE_TEST_RABBITMQ_MANAGEMENT_URL=http://user:password@host:15672"
        )
    user = (given.username or GUEST[0], given.password or GUEST[1])
    return Management(given.port or 15672, host=given.hostname, user=user)


def _empty_database(url: str) -> int:
    """The first numbered database without a key, of a server that is not ours: never flush what somebody wrote."""
    port = urlsplit(url).port or 6379
    for number in range(1, 16):
        if wire.redis(port, ["SELECT", str(number)], ["DBSIZE"], url=url) == b":0":
            return number
    raise FailedPrecondition(f"redis: databases 1 to 15 of port {port} are all in use; empty one for the tests")
