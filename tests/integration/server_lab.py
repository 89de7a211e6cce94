"""One server of the kit in the test of its module: brought where it may be, led through its life, gone at the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.testing.servers import installing
from groundplane.testing.servers.contract import ServerMissing
from groundplane.testing.servers.instance import Instance
from groundplane.testing.servers.ports import Ports
from groundplane.testing.servers.settings import KitSettings
from leaks import eventually


def bring(name: str) -> None:
    """Install the server where GROUNDPLANE_REQUIRE_SERVERS names it; without that, skip where it is not here."""
    if KitSettings.load().requires(name):
        installing.install(name, print)
        return
    try:
        installing.find(name)
    except ServerMissing as error:
        pytest.skip(error.message)


@contextmanager
def private(name: str, **options: Any) -> Iterator[Instance]:
    """A started instance. After the block neither its processes, nor its ports, nor its folder are there."""
    bring(name)
    with Instance.open(name, **options) as server:
        ports, folder = dict(server.ports), server.folder
        yield server
        pids = {server.pid, *(one.pid for one in server._companions)} - {0}
    left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not left, f"{name} left processes {left}"
    assert not folder.exists(), f"{name} left {folder}"
    assert not [port for port in ports.values() if listens(port)], f"{name} still listens on one of {ports}"


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, and that no outgoing connection is given."""
    held = Ports()
    try:
        return [held.take() for _ in range(count)]
    finally:
        held.release()


def listens(port: int) -> bool:
    """Whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def goes_through_its_life(server: Instance) -> None:
    """Paused, killed, started, restarted, stopped, started: the process is another one each time, the address stays."""
    url, port, first = server.url, server.port, server.pid
    assert first
    server.pause()
    assert eventually(lambda: _state(first) == "T", 5.0)
    server.resume()
    assert _state(first) != "T"
    server.kill()
    assert server.pid == 0
    assert not listens(port)
    server.start()
    second = server.pid
    server.restart()
    third = server.pid
    server.stop()
    assert server.pid == 0
    assert not listens(port)
    server.start()
    assert len({first, second, third, server.pid}) == 4
    assert server.url == url
    assert server.memory_bytes() > 1_000_000


def _state(pid: int) -> str:
    """The letter that the kernel gives a process: T while it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
