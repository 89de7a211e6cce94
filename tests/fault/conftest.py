"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault.server_lab import Backstage
from groundplane.testing.faults import NoSmallDisk, Proxy
from groundplane.testing.faults import small_disk as mounted
from groundplane.testing.servers.contract import Running

pytest.register_assert_rewrite("fault.orders", "fault.plane_lab")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 16 MiB, or of as many as the test says by indirect parametrization."""
    size_mib = getattr(request, "param", 16)
    try:
        with mounted(tmp_path / "small", size_bytes=size_mib * 2**20) as disk:
            yield disk.path
    except NoSmallDisk as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def nats_of_module(own_server_of_module: Callable[..., Running]) -> Running:
    """A NATS of the module's own, with one account: it starts in a third of a second."""
    return own_server_of_module("nats", config={"accounts": None, "no_auth_user": None})


@pytest.fixture
def nats_backstage(nats_of_module: Running) -> Iterator[Backstage]:
    """That NATS, and a proxy before it."""
    with Proxy.to("127.0.0.1", nats_of_module.port) as proxy:
        yield Backstage(nats_of_module, proxy)
