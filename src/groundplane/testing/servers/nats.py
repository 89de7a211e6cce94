"""NATS with JetStream, built from its Go module. Many accounts: each test has subjects and streams of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

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
    options: ClassVar[Mapping[str, str]] = {"config": "Settings of the configuration file, as a mapping."}

    def sources(self) -> Sequence[Source]:
        module = "github.com/nats-io/nats-server/v2"
        return (
            Go(module, module=module, version="v2.15.2", shown="2.15.2", program="nats-server", size_mb=20, seconds=50),
            OnPath("nats-server", minimum=(2, 11), version="2"),
        )

    def launch(self, place: Place) -> Sequence[Program]:
        accounts = {
            f"T{n}": {"users": [{"user": f"t{n}", "password": f"t{n}"}], "jetstream": "enabled"}
            for n in range(ACCOUNTS)
        }
        accounts["KIT"] = {"users": [{"user": "kit", "password": "kit"}], "jetstream": "enabled"}
        settings = {
            "host": wire.HOST, "port": place.port, "http": f"{wire.HOST}:{place.ports['monitor']}",
            "jetstream": {"store_dir": str(place.data), "sync_interval": "always"},
            "accounts": accounts, "no_auth_user": "kit", **place.options.get("config", {}),
        }  # fmt: skip
        path = place.folder / "nats.conf"
        path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
        return [Program(argv=[place.program("nats-server"), "-c", str(path)])]

    def check(self, place: Place) -> None:
        wire.expect(200, place.ports["monitor"], "/healthz")

    def url(self, place: Place) -> str:
        return f"nats://{wire.HOST}:{place.port}"


SERVER = NatsServer()
