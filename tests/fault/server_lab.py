"""The servers of a plane, each behind a proxy, and the faults that a round puts on one of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from groundplane.testing.faults import Proxy
from groundplane.testing.servers.contract import Running
from stacks import Stack, on_servers

BUCKET = "plane"


class Backstage(NamedTuple):
    """One server and the proxy through which the plane speaks to it."""

    server: Running
    proxy: Proxy

    @property
    def url(self) -> str:
        return self.proxy.through(self.server.url)


class Fault(NamedTuple):
    """What is done to a server: at once (None), or for some seconds until it is undone."""

    name: str
    server: str
    begin: Callable[[Backstage], object]
    end: Callable[[Backstage], object] | None = None
    hold_s: float = 0.0

    @asynccontextmanager
    async def on(self, backstage: Backstage) -> AsyncIterator[None]:
        """The block runs while the fault lasts."""
        await asyncio.to_thread(self.begin, backstage)
        try:
            yield
            await asyncio.sleep(self.hold_s)
        finally:
            if self.end is not None:
                await asyncio.to_thread(self.end, backstage)


def _each(server: str, *, dead_after_s: float) -> list[Fault]:
    def fault(
        what: str, begin: Callable[[Backstage], object], end: Callable[[Backstage], object] | None, hold_s: float
    ) -> Fault:
        return Fault(f"{server} {what}", server, begin, end, hold_s)

    return [
        fault("cut", lambda one: one.proxy.cut(), None, 0),
        fault("slow", lambda one: one.proxy.latency(0.02, jitter_s=0.02), lambda one: one.proxy.restore(), 1.0),
        fault("silent", lambda one: one.proxy.half_open(), lambda one: one.proxy.restore(), dead_after_s),
        fault("unreachable", lambda one: one.proxy.down(), lambda one: one.proxy.restore(), 1.0),
        fault("killed", lambda one: one.server.kill(), lambda one: one.server.start(), 0.2),
        fault("paused", lambda one: one.server.pause(), lambda one: one.server.resume(), dead_after_s),
        fault("restarted", lambda one: one.server.restart(), None, 0),
    ]


FAULTS = [
    fault
    for together in zip(
        _each("queues", dead_after_s=5.0), _each("jobs", dead_after_s=5.0), _each("blobs", dead_after_s=2.0),
        strict=True,
    )
    for fault in together
]  # fmt: skip
"""Kinds in turn, servers in turn: the first few of any length touch every server."""


OUT_OF_DISK = Fault(
    "queues out of disk",
    "queues",
    lambda one: _disk_free_limit(one.server, "900000GB"),
    lambda one: _disk_free_limit(one.server, "50MB"),
    6.0,
)
"""The broker's alarm: it refuses publishers, and goes on serving consumers."""


def _disk_free_limit(server: Running, limit: str) -> None:
    environment = {
        **os.environ,
        "HOME": str(server.folder / "home"),
        "ERL_EPMD_PORT": str(server.ports["epmd"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONF_ENV_FILE": str(server.folder / "env.conf"),
    }
    command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "-n", f"kit{server.port}@localhost", "set_disk_free_limit", limit]
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)


def servers(own_server: Callable[[str], Running]) -> dict[str, Running]:
    """RabbitMQ, PostgreSQL and S3 of one's own, by the port of the plane that uses it."""
    return {"queues": own_server("rabbitmq"), "jobs": own_server("postgres"), "blobs": own_server("s3")}


@contextmanager
def behind_proxies(opened: dict[str, Running]) -> Iterator[dict[str, Backstage]]:
    """Each server behind a proxy."""
    with ExitStack() as stack:
        yield {
            port: Backstage(server, stack.enter_context(Proxy.to("127.0.0.1", server.port)))
            for port, server in opened.items()
        }


def stack_of(made: dict[str, Backstage], state: Path, plane: str) -> Stack:
    """The stack of the plane `plane` on these servers, through their proxies."""
    blobs = made["blobs"]
    key, secret = blobs.server.urls["AWS_ACCESS_KEY_ID"], blobs.server.urls["AWS_SECRET_ACCESS_KEY"]
    s3 = f"s3://{key}:{secret}@{BUCKET}/{plane}?endpoint=http://127.0.0.1:{blobs.proxy.port}&create=true"
    whole = on_servers(state, rabbitmq=made["queues"].url, postgres=made["jobs"].url, s3=s3)
    return Stack(whole.name, state, plane=plane, urls=whole.urls)
