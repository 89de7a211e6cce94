"""NATS with JetStream, built from its Go module. Many accounts: each test has subjects and streams of its own.

A node of a cluster has one account. Its peers drop a connection to a node that is frozen after three seconds: until
then they hand it a share of what its queue groups are asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import Place, Program, Server, Source
from groundplane.testing.servers.sources import Go, OnPath

ACCOUNTS = 2048
"""So many namespaces one server has: users `t0` … with the password of the same name, each in an account of its own."""


class NatsServer(Server):
    """NATS."""

    name = "nats"
    title = "NATS"
    light = True
    ports = ("client", "monitor")
    customary = ("NATS_URL",)
    options: ClassVar[Mapping[str, str]] = {
        "config": "Settings of the configuration file, as a mapping.",
        "cluster": "Makes it a node: `ports` of all nodes' routes, and `node`, its place among them (`NatsCluster`).",
    }

    def sources(self) -> Sequence[Source]:
        module = "github.com/nats-io/nats-server/v2"
        return (
            Go(module, module=module, version="v2.15.2", shown="2.15.2", program="nats-server", size_mb=20, seconds=50),
            OnPath("nats-server", minimum=(2, 11), version="2"),
        )

    def launch(self, place: Place) -> Sequence[Program]:
        settings = {
            "host": wire.HOST, "port": place.port, "http": f"{wire.HOST}:{place.ports['monitor']}",
            **(_as_node(place) if "cluster" in place.options else _alone(place)),
            "no_auth_user": "kit", **place.options.get("config", {}),
        }  # fmt: skip
        path = place.folder / "nats.conf"
        path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
        return [Program(argv=[place.program("nats-server"), "-c", str(path)])]

    def check(self, place: Place) -> None:
        wire.expect(200, place.ports["monitor"], "/healthz")

    def url(self, place: Place) -> str:
        return f"nats://{wire.HOST}:{place.port}"


def _alone(place: Place) -> dict[str, Any]:
    return {
        "accounts": {"KIT": _account("kit"), **{f"T{n}": _account(f"t{n}") for n in range(ACCOUNTS)}},
        "jetstream": {"store_dir": str(place.data), "sync_interval": "always"},
    }


def _as_node(place: Place) -> dict[str, Any]:
    ports, node = place.options["cluster"]["ports"], place.options["cluster"]["node"]
    return {
        "accounts": {"KIT": _account("kit")},
        "jetstream": {"store_dir": str(place.data)},
        "server_name": f"n{node}",
        "cluster": {
            "name": "kit", "host": wire.HOST, "port": ports[node], "ping_interval": "1s", "ping_max": 2,
            "routes": [f"nats-route://{wire.HOST}:{port}" for port in ports],
        },
    }  # fmt: skip


def _account(user: str) -> dict[str, Any]:
    return {"users": [{"user": user, "password": user}], "jetstream": "enabled"}


SERVER = NatsServer()
