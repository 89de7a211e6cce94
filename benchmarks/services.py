"""Services: looked up in a registry on NATS and in a file, and how soon another leads after a SIGKILL of the leader.

Each leader is a process of its own and is killed at a random moment; its standby is in this process. Twenty elections
run at once, each with one kill after the other.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from multiprocessing.context import ForkServerContext
from typing import cast

from benchmarks.report import Row, percentile
from groundplane.kv import KV
from groundplane.services import Discovery, Registry
from groundplane.services.leadership import POLICIES, Leadership
from groundplane.services.leadership.leadership import KEY_PREFIX
from groundplane.testing import eventually
from groundplane.testing.servers.instance import Instance

SECTION = "Services (NATS with a file-backed stream, R1; SQLite)"
KILLS = 100
AT_ONCE = 20
LOOKUPS = 2000
BARS_S = {"aggressive": 1.0, "balanced": 2.0, "conservative": 8.0}
PATIENCE_S = 60.0


def rows(rounds: int, scale: float) -> list[Row]:
    """Lookups that many rounds; `scale` × 100 kills of each policy, in one round."""
    with Instance.open("nats") as server, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_lookups({"NATS": server.url, "a file": "embedded://"}, folder, max(rounds, 3), scale))
        return found + asyncio.run(_failovers(server.url, max(5, round(KILLS * scale))))


async def _lookups(urls: dict[str, str], folder: str, rounds: int, scale: float) -> list[Row]:
    hits: dict[str, list[float]] = {where: [] for where in urls}
    misses: dict[str, list[float]] = {where: [] for where in urls}
    async with AsyncExitStack() as stack:
        opened = {}
        for where, url in urls.items():
            registry = await stack.enter_async_context(Registry.open(url, state=folder))
            for number in range(3):
                await stack.enter_async_context(registry.register("quotes", instance_id=f"i{number}"))
            opened[where] = await stack.enter_async_context(Discovery.open(registry))
        for number in range(rounds + 1):
            for where, discovery in opened.items():
                hit = await _find_ms(discovery, max(100, round(LOOKUPS * scale)), fresh=False)
                miss = await _find_ms(discovery, max(20, round(LOOKUPS * scale / 10)), fresh=True)
                if number:
                    hits[where].append(hit * 1000)
                    misses[where].append(miss)
    return [
        *(
            _row(f"Registry on {where}", "3 instances found in the cache", values, "µs")
            for where, values in hits.items()
        ),
        *(_row(f"Registry on {where}", "3 instances found past it", values, "ms") for where, values in misses.items()),
    ]


async def _find_ms(discovery: Discovery, times: int, *, fresh: bool) -> float:
    """Median milliseconds."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        found = await discovery.find("quotes", fresh=fresh)
        spent.append(time.perf_counter() - began)
        if len(found.instances) != 3:
            raise RuntimeError(f"{len(found.instances)} instances of 3 were found")
    return statistics.median(spent) * 1000


async def _failovers(url: str, kills: int) -> list[Row]:
    forks = cast(ForkServerContext, multiprocessing.get_context("forkserver"))
    forks.set_forkserver_preload([__name__])
    found: list[Row] = []
    for policy in POLICIES:
        numbers, seconds = iter(range(kills)), list[float]()
        async with KV.open(url, bucket="failover", ttl=True) as kv, asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(_killing(forks, kv, url, policy, numbers, seconds))
        for share in (0.5, 0.99):
            bar = BARS_S[policy] if share == 0.99 else None
            metric = f"another leads after a SIGKILL, p{share * 100:.0f} of {kills}"
            found.append(_row(f"Leadership, {policy}", metric, [percentile(seconds, share)], "s", bar))
    return found


async def _killing(
    forks: ForkServerContext, kv: KV, url: str, policy: str, numbers: Iterator[int], seconds: list[float]
) -> None:
    for number in numbers:
        name = f"{policy}-{number}"
        leader = forks.Process(target=_lead, args=(url, name, policy), daemon=True)
        leader.start()
        try:
            async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
                await eventually(partial(kv.get, KEY_PREFIX + name), "a leader", timeout_s=PATIENCE_S)
                standby = await stack.enter_async_context(Leadership.open(kv, name, policy=policy, member="standby"))
                await eventually(standby.leader, "that it is known", timeout_s=PATIENCE_S)
                await asyncio.sleep(random.random() * standby.policy.lease_s)
                leader.kill()
                killed = time.perf_counter()
                await standby.elected()
                seconds.append(time.perf_counter() - killed)
        finally:
            leader.kill()
            leader.join()


def _lead(url: str, name: str, policy: str) -> None:
    asyncio.run(_leading(url, name, policy))


async def _leading(url: str, name: str, policy: str) -> None:
    async with KV.open(url, bucket="failover", ttl=True) as kv:
        async with Leadership.open(kv, name, policy=policy, member="leader"):
            await asyncio.Event().wait()


def _row(subject: str, metric: str, values: list[float], unit: str, bar: float | None = None) -> Row:
    return Row(
        section=SECTION, subject=subject, metric=metric, value=statistics.median(values), unit=unit, rounds=values,
        bar=bar, better="lower",
    )  # fmt: skip
