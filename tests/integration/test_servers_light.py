"""Each light server: installed, started, used by its client, killed, paused, restarted, stopped, and nothing left."""

from __future__ import annotations

import base64
import json
import smtplib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.testing.servers import installing, processes, wire
from groundplane.testing.servers.catalog import LIGHT
from groundplane.testing.servers.contract import Running
from groundplane.testing.servers.instance import Instance
from groundplane.testing.servers.rabbitmq import registered
from groundplane.testing.servers.smtp import Mailbox, caught
from leaks import eventually

pytestmark = [pytest.mark.integration]


@dataclass(frozen=True)
class Client:
    """What one client does with a server: leave something, and see whether it is there."""

    write: Callable[[Running, str], None]
    read: Callable[[Running], list[str]]
    options: dict[str, Any]


def _pg_write(server: Running, word: str) -> None:
    import psycopg

    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS words (word text, place vector(2))")
        connection.execute("INSERT INTO words VALUES (%s, '[1,2]')", [word])


def _pg_read(server: Running) -> list[str]:
    import psycopg

    with psycopg.connect(server.url) as connection:
        return [row[0] for row in connection.execute("SELECT word FROM words ORDER BY place <-> '[1,2]', word")]


def _pg_first(server: Running, word: str) -> None:
    import psycopg

    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _pg_write(server, word)


def _redis_write(server: Running, word: str) -> None:
    import redis

    with redis.Redis.from_url(server.url) as client:
        client.rpush("words", word)


def _redis_read(server: Running) -> list[str]:
    import redis

    with redis.Redis.from_url(server.url) as client:
        return sorted(word.decode() for word in client.lrange("words", 0, -1))


def _rabbit_write(server: Running, word: str) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("words", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "words", word.encode(), mandatory=True)


def _rabbit_read(server: Running) -> list[str]:
    import pika

    found: list[str] = []
    with pika.BlockingConnection(pika.URLParameters(server.url)) as connection:
        channel = connection.channel()
        while (got := channel.basic_get("words"))[0] is not None:
            found.append(got[2].decode())
    return sorted(found)  # nothing was acked: all are there for the next reader


def _nats(server: Running, work: Callable[[Any], Any]) -> Any:
    import asyncio

    import nats

    async def connected() -> Any:
        client = await nats.connect(server.url)
        try:
            stream = client.jetstream()
            await stream.add_stream(name="words", subjects=["words"])
            return await work(stream)
        finally:
            await client.close()

    return asyncio.run(connected())


def _nats_write(server: Running, word: str) -> None:
    _nats(server, lambda stream: stream.publish("words", word.encode()))


def _nats_read(server: Running) -> list[str]:
    async def all_of(stream: Any) -> list[str]:
        info = await stream.stream_info("words")
        return sorted([(await stream.get_msg("words", n)).data.decode() for n in range(1, info.state.messages + 1)])

    found: list[str] = _nats(server, all_of)
    return found


def _s3(server: Running) -> Any:
    import boto3

    urls = server.urls
    return boto3.client(
        "s3", endpoint_url=urls["AWS_ENDPOINT_URL"], region_name=urls["AWS_REGION"],
        aws_access_key_id=urls["AWS_ACCESS_KEY_ID"], aws_secret_access_key=urls["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def _s3_write(server: Running, word: str) -> None:
    client = _s3(server)
    if not client.list_buckets()["Buckets"]:
        client.create_bucket(Bucket="words")
    client.put_object(Bucket="words", Key=word, Body=word.encode(), IfNoneMatch="*")
    client.close()


def _s3_read(server: Running) -> list[str]:
    client = _s3(server)
    names = [one["Key"] for one in client.list_objects_v2(Bucket="words")["Contents"]]
    found = sorted(client.get_object(Bucket="words", Key=name)["Body"].read().decode() for name in names)
    client.close()
    return found


def _smtp_write(server: Running, word: str) -> None:
    with smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client:
        client.sendmail("kit@test", [f"{word}@test"], f"Subject: {word}\r\n\r\nhello")


def _smtp_read(server: Running) -> list[str]:
    return sorted(str(message["Subject"]) for message in caught(server.data))


def _etcd(server: Running, what: str, **words: str) -> dict[str, Any]:
    body = {name: base64.b64encode(value.encode()).decode() for name, value in words.items()}
    status, answer = wire.http("POST", server.port, f"/v3/kv/{what}", body=json.dumps(body).encode())
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def _etcd_read(server: Running) -> list[str]:
    found = _etcd(server, "range", key="words/", range_end="words0").get("kvs", [])
    return sorted(base64.b64decode(one["value"]).decode() for one in found)


CLIENTS = {
    "postgres": Client(_pg_first, _pg_read, {}),
    "redis": Client(_redis_write, _redis_read, {"append": True}),
    "rabbitmq": Client(_rabbit_write, _rabbit_read, {}),
    "nats": Client(_nats_write, _nats_read, {}),
    "s3": Client(_s3_write, _s3_read, {}),
    "s3@versitygw": Client(_s3_write, _s3_read, {}),
    "smtp": Client(_smtp_write, _smtp_read, {}),
    "etcd": Client(lambda server, word: _etcd(server, "put", key=f"words/{word}", value=word) and None, _etcd_read, {}),
}


def _answers(server: Running) -> bool:
    """Whether the server says anything within half a second to somebody who connects and asks."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as connection:
        connection.sendall(b"PING\r\n\r\n" if server.name != "rabbitmq" else b"AMQP\x00\x00\x09\x01")
        try:
            return bool(connection.recv(1))
        except TimeoutError:
            return False


@pytest.mark.req("KIT-01.1", "KIT-01.2", "KIT-06.1")
@pytest.mark.parametrize("spec", CLIENTS)
def test_a_light_server_starts_serves_survives_kill_and_pause_and_leaves_nothing(
    spec: str, own_server: Callable[..., Running]
) -> None:
    client = CLIENTS[spec]
    server = own_server(spec, **client.options)
    assert server.ready_s > 0
    assert server.version
    assert server.memory_bytes() > 1_000_000
    assert urlsplit(server.url).port in server.ports.values()
    client.write(server, "one")
    assert client.read(server) == ["one"]

    if spec == "rabbitmq":
        assert eventually(lambda: registered(server, "words"), 10)
    before = processes.descendants([server.pid])
    server.kill()
    assert server.pid == 0
    assert server.memory_bytes() == 0
    assert not [pid for pid in before if processes.alive(pid)]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    server.start()
    assert server.pid not in (0, *before)
    assert client.read(server) == ["one"]  # what was confirmed is still there

    server.pause()
    if spec != "postgres":  # its greeting needs more than a PING
        assert not _answers(server)
    assert {_state(pid) for pid in processes.descendants([server.pid])} == {"T"}
    server.resume()
    client.write(server, "two")

    pid = server.pid
    server.restart()
    assert server.pid not in (0, pid)
    assert client.read(server) == ["one", "two"]
    server.stop()
    server.stop()
    assert server.pid == 0
    assert server.logs(5) or spec in ("smtp",)
    folder = server.folder
    assert folder.exists()
    server.end()  # type: ignore[attr-defined]
    assert not folder.exists()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.req("KIT-01.1")
@pytest.mark.parametrize("name", LIGHT)
def test_installing_what_is_there_does_nothing_and_says_so(name: str) -> None:
    if installing.plan(name).installed is None:
        pytest.skip(f"{name} is not installed: groundplane servers install {name}")
    said: list[str] = []
    first = installing.install(name, said.append)
    assert said == []
    assert first == installing.install(name, said.append)
    assert "is there already" in installing.plan(name).words


@pytest.mark.req("KIT-14.2")
@pytest.mark.parametrize(("spec", "version"), [("postgres@15", "15."), ("postgres@16", "16."), ("postgres@18", "18.")])
def test_a_version_is_chosen_by_its_number(spec: str, version: str, own_server: Callable[..., Running]) -> None:
    import psycopg

    server = own_server(spec)
    assert server.version.startswith(version)
    with psycopg.connect(server.url) as connection:
        shown = connection.execute("SHOW server_version").fetchone()
    assert shown is not None
    assert shown[0].startswith(version)


@pytest.mark.rabbitmq
def test_rabbitmq_speaks_tls_with_a_certificate_of_its_own_authority(own_server: Callable[..., Running]) -> None:
    server = own_server("rabbitmq", tls=True)
    parts = urlsplit(server.url)
    assert parts.scheme == "amqps"
    context = ssl.create_default_context(cafile=server.urls["GROUNDPLANE_TEST_RABBITMQ_CA"])
    with (
        socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        assert connection.recv(1) == b"\x01"
    stranger = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        stranger.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.rabbitmq
def test_rabbitmq_starts_with_an_alarm_when_its_limits_are_below_what_it_has(
    own_server: Callable[..., Running],
) -> None:
    server = own_server("rabbitmq", config={"disk_free_limit.absolute": "100000GB"})
    path = "/api/health/checks/local-alarms"
    status, body = wire.http("GET", server.ports["management"], path, user=("guest", "guest"))
    assert status == 503
    assert b"disk" in body


@pytest.mark.req("KIT-01.1")
def test_a_server_runs_without_a_keeper_too(tmp_path: Path) -> None:
    with Instance.open("redis", append=True) as server:
        assert wire.redis(server.port, ["SET", "a", "1"]) == b"+OK"
        server.kill()
        server.start()
        assert wire.redis(server.port, ["INCR", "a"]) == b":2"
        pid, folder = server.pid, server.folder
    assert not processes.alive(pid)
    assert not folder.exists()


@pytest.mark.req("KIT-12.1")
def test_mail_of_a_test_is_listed_filtered_and_cleared_without_that_of_others(
    mailbox: Mailbox, smtp_server: Running
) -> None:
    other = Mailbox(smtp_server, "other.test")
    with smtplib.SMTP("127.0.0.1", smtp_server.port, timeout=10) as client:
        for name, subject in (("ann", "first"), ("bob", "second"), ("ann", "third")):
            text = f"Subject: {subject}\r\nTo: {mailbox.address(name)}\r\n\r\nhello {name}"
            client.sendmail("kit@test", [mailbox.address(name)], text)
        client.sendmail("kit@test", [other.address(), mailbox.address("bob")], "Subject: both\r\n\r\n")
    assert [str(one["Subject"]) for one in mailbox.messages()] == ["first", "second", "third", "both"]
    assert [str(one["Subject"]) for one in mailbox.messages(to=mailbox.address("ann"))] == ["first", "third"]
    [second] = mailbox.messages(subject="second")
    assert second.get_content().strip() == "hello bob"
    assert second["X-Envelope-From"] == "kit@test"
    assert len(other.messages()) == 1
    assert mailbox.clear() == 4
    assert mailbox.messages() == []
    assert len(other.messages()) == 1


def test_a_recipient_that_is_refused_gets_nothing(own_server: Callable[..., Running]) -> None:
    server = own_server("smtp", reject="nobody")
    with (
        smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client,
        pytest.raises(smtplib.SMTPRecipientsRefused, match="no such mailbox"),
    ):
        client.sendmail("kit@test", ["nobody@test"], "Subject: x\r\n\r\n")
    assert caught(server.data) == []


@pytest.mark.postgres
def test_a_data_folder_that_the_server_cannot_reach_is_refused(
    own_server: Callable[..., Running], tmp_path: Path
) -> None:
    if processes.account_of(("postgres",)) is None:
        pytest.skip("the server runs as whoever runs the tests")
    tmp_path.parent.chmod(0o700)
    with pytest.raises(GroundplaneError, match=r"data: .* cannot be reached by user"):
        own_server("postgres", data=str(tmp_path))


def test_data_lie_in_the_folder_that_was_asked_for(own_server: Callable[..., Running], tmp_path: Path) -> None:
    server = own_server("redis", append=True, data=str(tmp_path))
    assert wire.redis(server.port, ["SET", "a", "1"]) == b"+OK"
    assert server.data == tmp_path
    assert list(tmp_path.iterdir())
    server.end()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir())  # somebody else's folder stays
