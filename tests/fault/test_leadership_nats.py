"""Elections on a NATS that is frozen, restarted, or out of reach for one of the members."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundplane.testing import Proxy, eventually, unique
from groundplane.testing.servers.contract import Running
from leadership_processes import contenders

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration, pytest.mark.nats]


@pytest.fixture(scope="module")
def server(own_server_of_module: Callable[..., Running]) -> Running:
    """A NATS of this module's own."""
    return own_server_of_module("nats")


@pytest.fixture
def proxy(server: Running) -> Iterator[Proxy]:
    with Proxy.to("127.0.0.1", server.port) as one:
        yield one


@pytest.mark.req("LEAD-01.1", "LEAD-01.2")
async def test_a_leader_that_is_cut_off_stops_before_the_next_begins(
    server: Running, proxy: Proxy, tmp_path: Path
) -> None:
    async with contenders(proxy.through(server.url), tmp_path, unique("lead"), 1, "aggressive") as them:
        lonely = await them.leader()
        others = [await them.add(server.url) for _ in range(2)]
        await them.ready()
        proxy.half_open()
        successor = await them.leader(besides=lonely)
        assert successor in others
        await eventually(lambda: not lonely.looks()[-1][2])
        term = lonely.reigns()[-1].term
        await them.effect_after(term)
        proxy.restore()
        await eventually(lambda: ["refused", term] in lonely.journal(), timeout_s=30)
        them.judge()


@pytest.mark.req("LEAD-01.2")
async def test_while_the_server_is_frozen_nobody_leads_and_afterwards_one_does(server: Running, tmp_path: Path) -> None:
    async with contenders(server.url, tmp_path, unique("lead"), 3, "aggressive") as them:
        leader = await them.leader()
        term = leader.reigns()[-1].term
        server.pause()
        try:
            # one that is silent for a while may still lead: each has to look
            await eventually(lambda: not any(look[2] for one in them.all for look in one.looks()[-20:]), timeout_s=30)
            seen = [len(one.looks()) for one in them.all]
            await eventually(lambda: all(len(one.looks()) > n + 20 for one, n in zip(them.all, seen, strict=True)))
            assert not any(look[2] for one, n in zip(them.all, seen, strict=True) for look in one.looks()[n:])
        finally:
            server.resume()
        assert (await them.leader()).reigns()[-1].term > term
        them.judge()


@pytest.mark.req("LEAD-01.1")
async def test_a_restart_of_the_server_does_not_end_a_long_lease(server: Running, tmp_path: Path) -> None:
    async with contenders(server.url, tmp_path, unique("lead"), 3, "30") as them:
        leader = await them.leader()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        looks = len(leader.looks())
        await eventually(lambda: len(leader.looks()) > looks + 20)
        effects = len(leader.said("effect"))
        await eventually(lambda: len(leader.said("effect")) > effects, timeout_s=30)
        assert len({reign.term for reign in them.reigns()}) == 1
        them.judge()
