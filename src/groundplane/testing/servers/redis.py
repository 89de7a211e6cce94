"""Redis 7, from Debian. Keeps nothing on disk unless `append=True`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from groundplane.testing.servers import wire
from groundplane.testing.servers.contract import NotReady, Place, Program, Server, Source
from groundplane.testing.servers.sources import Debian, OnPath, version_of

DATABASES = 4096
"""So many namespaces one server has."""


def _read(programs: Mapping[str, Path]) -> str:
    return version_of([str(programs["redis-server"]), "--version"], r"v=(\d+(?:\.\d+)+)")


class RedisServer(Server):
    """Redis."""

    name = "redis"
    title = "Redis"
    light = True
    customary = ("REDIS_URL",)
    options: ClassVar[Mapping[str, str]] = {
        "append": "True: append-only file, synced before each answer; what was answered survives a kill.",
        "config": "Settings of redis.conf, as a mapping.",
    }

    def sources(self) -> Sequence[Source]:
        programs = {"redis-server": "redis-server"}
        return (
            Debian("redis-server", version="7.0", programs=programs, read=_read, size_mb=5, seconds=10),
            OnPath("redis-server", minimum=(7, 0), version="7"),
        )

    def launch(self, place: Place) -> Sequence[Program]:
        append = bool(place.options.get("append"))
        settings = {
            "port": place.port, "bind": wire.HOST, "dir": place.data, "daemonize": "no", "databases": DATABASES,
            "save": "", "appendonly": "yes" if append else "no", "appendfsync": "always",
            **place.options.get("config", {}),
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        return [Program(argv=[place.program("redis-server"), *words])]

    def check(self, place: Place) -> None:
        if wire.redis(place.port, ["PING"]) != b"+PONG":
            raise NotReady("PING: no PONG")

    def url(self, place: Place) -> str:
        return f"redis://{wire.HOST}:{place.port}/0"


SERVER = RedisServer()
