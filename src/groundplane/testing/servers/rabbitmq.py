"""RabbitMQ 3.10 with its management plugin, from Debian; each instance has a port mapper (epmd) of its own.

The node is ready when an AMQP login works and `/api/health/checks/local-alarms` is content. `url` is the virtual host
`/` as guest; `urls` name the management API as well. Data are written by quorum queues' own rules: nothing here weakens
them.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import certificates, wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Running, Server, Source
from groundplane.testing.servers.sources import Debian

GUEST = ("guest", "guest")
_HEADER = b"AMQP\x00\x00\x09\x01"
_MANAGEMENT_S = 60.0  # a virtual host is deleted queue by queue, on a slow disk at a second each


def _read(programs: Mapping[str, Path]) -> str:
    return programs["lib"].name.removeprefix("rabbitmq_server-")


class RabbitServer(Server):
    """RabbitMQ."""

    name = "rabbitmq"
    title = "RabbitMQ"
    light = True
    ports = ("amqp", "management", "distribution", "epmd", "amqps")
    accounts = ("rabbitmq",)
    stop_timeout_s = 30.0
    customary = ("RABBITMQ_URL",)
    options: ClassVar[Mapping[str, str]] = {
        "config": "Settings of rabbitmq.conf, as a mapping (vm_memory_high_watermark.absolute, disk_free_limit…).",
        "tls": "True: `url` is amqps:// and GROUNDPLANE_TEST_RABBITMQ_CA names the authority's file.",
        "plugins": "Names of plugins beside rabbitmq_management.",
    }

    def sources(self) -> Sequence[Source]:
        programs = {
            "server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
            "lib": "/usr/lib/rabbitmq/lib/rabbitmq_server-*",
            "epmd": "epmd",
        }
        return (Debian("rabbitmq-server", version="3.10", programs=programs, read=_read, size_mb=75, seconds=40),)

    def prepare(self, place: Place) -> None:
        for name in ("log", "home"):
            (place.folder / name).mkdir()
        cookie = place.folder / "home" / ".erlang.cookie"
        cookie.write_text(place.secret)
        cookie.chmod(0o400)
        if place.options.get("tls"):
            certificates.make(place.folder / "tls")

    def launch(self, place: Place) -> Sequence[Program]:
        plugins = ["rabbitmq_management", *place.options.get("plugins", ())]
        (place.folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        settings = {**_settings(place), **place.options.get("config", {})}
        lines = "".join(f"{name} = {_word(value)}\n" for name, value in settings.items())
        (place.folder / "rabbitmq.conf").write_text(lines)
        (place.folder / "env.conf").write_text("")
        epmd = {"ERL_EPMD_PORT": str(place.ports["epmd"]), "ERL_EPMD_ADDRESS": wire.HOST}
        mapper = [place.program("epmd"), "-port", str(place.ports["epmd"]), "-address", wire.HOST]
        return [
            Program(argv=mapper, companion=True),
            Program(argv=[place.program("server")], env={**epmd, **_environment(place)}),
        ]

    def check(self, place: Place) -> None:
        _login(place.ports["amqp"])
        path = "/api/health/checks/local-alarms"
        status, body = wire.http("GET", place.ports["management"], path, user=GUEST)
        if status not in (200, 503) or (status == 503 and b"alarm" not in body):
            raise NotReady(f"GET {path}: {status} {body[:200]!r}")

    def url(self, place: Place) -> str:
        if place.options.get("tls"):
            return f"amqps://guest:guest@localhost:{place.ports['amqps']}/"
        return f"amqp://guest:guest@{wire.HOST}:{place.port}/"

    def urls(self, place: Place) -> Mapping[str, str]:
        management = f"http://guest:guest@{wire.HOST}:{place.ports['management']}"
        found = {**super().urls(place), "GROUNDPLANE_TEST_RABBITMQ_MANAGEMENT_URL": management}
        if place.options.get("tls"):
            found["GROUNDPLANE_TEST_RABBITMQ_CA"] = str(place.folder / "tls" / "ca.pem")
        return found


def _settings(place: Place) -> dict[str, object]:
    found: dict[str, object] = {
        "loopback_users": "none", "management.tcp.ip": wire.HOST, "management.tcp.port": place.ports["management"],
        "log.console": True, "log.console.level": "info", "log.file": False,
        "vm_memory_high_watermark.relative": 0.6, "disk_free_limit.absolute": "50MB",
        "management.rates_mode": "none", "collect_statistics_interval": 1000,
    }  # fmt: skip
    if place.options.get("tls"):
        tls = place.folder / "tls"
        found |= {
            "listeners.ssl.default": f"{wire.HOST}:{place.ports['amqps']}",
            "ssl_options.cacertfile": tls / "ca.pem", "ssl_options.certfile": tls / "server.pem",
            "ssl_options.keyfile": tls / "server.key", "ssl_options.verify": "verify_none",
        }  # fmt: skip
    return found


def _word(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _environment(place: Place) -> dict[str, str]:
    folder = place.folder
    return {
        "HOME": str(folder / "home"), "RABBITMQ_NODENAME": f"kit{place.port}@localhost",
        "RABBITMQ_NODE_PORT": str(place.ports["amqp"]), "RABBITMQ_NODE_IP_ADDRESS": wire.HOST,
        "RABBITMQ_DIST_PORT": str(place.ports["distribution"]), "RABBITMQ_MNESIA_BASE": str(place.data),
        "RABBITMQ_LOG_BASE": str(folder / "log"), "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"), "RABBITMQ_LOGS": "-",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
    }  # fmt: skip


def _login(port: int) -> None:
    """Connection.StartOk answered by Tune: the node lets guest in."""
    with wire.dial(port) as connection:
        connection.sendall(_HEADER)
        _frame(connection)
        response = b"\0guest\0guest"
        arguments = (
            struct.pack("!I", 0) + b"\x05PLAIN" + struct.pack("!I", len(response)) + response + b"\x05en_US"
        )  # client-properties, mechanism, response, locale
        payload = struct.pack("!HH", 10, 11) + arguments
        connection.sendall(struct.pack("!BHI", 1, 0, len(payload)) + payload + b"\xce")
        method = struct.unpack("!HH", _frame(connection)[:4])
        if method != (10, 30):
            raise NotReady(f"AMQP login: answered by method {method}")


def _frame(connection: socket.socket) -> bytes:
    kind, _, size = struct.unpack("!BHI", wire.exactly(connection, 7))
    if kind != 1:
        raise NotReady(f"AMQP: frame of type {kind}")
    return wire.exactly(connection, size + 1)[:-1]


def registered(server: Running, queue: str) -> bool:
    """Whether a quorum queue (of any virtual host) would survive a kill of the node now. The node writes the name of a
    new queue to its directory up to a second after the declaration was answered; killed before, it starts with a queue
    that has no leader and no messages. A fault test waits for this before the first kill.
    """
    return any(queue.encode() in path.read_bytes() for path in server.data.glob("*/quorum/*/names.dets"))


class Management:
    """Virtual hosts by the management API, as the namespaces of tests."""

    def __init__(self, port: int, *, host: str = wire.HOST, user: tuple[str, str] = GUEST) -> None:
        self.port, self.host, self.user = port, host, user

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """One call; NotReady where it is refused."""
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        status, answer = wire.http(
            method, self.port, path, host=self.host, body=data, headers=headers, user=self.user, timeout_s=_MANAGEMENT_S
        )
        if status >= 400:
            raise NotReady(f"{method} {path}: {status} {answer[:200]!r}")
        return answer

    def create(self, vhost: str) -> None:
        self.call("PUT", f"/api/vhosts/{vhost}")

    def delete(self, vhost: str) -> None:
        self.call("DELETE", f"/api/vhosts/{vhost}")


SERVER = RabbitServer()
