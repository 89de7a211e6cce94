"""NATS is killed, restarted, paused, out of reach, silent, cut off and slow while an instance tells of itself and while
a leader renews: instances come back by themselves, and at most one member is active at any moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from typing import Any

import pytest

from fault.nats_lab import AWAY, ENTERED_S, MARKS, PATIENCE_S, QUICK, patiently, rounds, running
from fault.server_lab import Backstage
from groundplane.core.errors import Conflict
from groundplane.core.retry import RetryPolicy
from groundplane.kv import KV
from groundplane.kv.port import Write, WriteOptions
from groundplane.services import Registration, RegistrationSettings, Registry, Status
from groundplane.services.leadership import Leadership
from groundplane.services.leadership.leadership import KEY_PREFIX, lease_clock
from groundplane.services.records import instance_key
from groundplane.testing import eventually, unique
from leadership_processes import Reign, judge

pytestmark = MARKS

SETTINGS = RegistrationSettings(ttl_s=60.0, heartbeat_s=0.2, failures_max=2, readiness_s=1.0)
"""An entry outlives every fault: one that is lost was not kept."""


class Tapped:
    """A driver that counts the writes that begin."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.begun = driver, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        self.begun += 1
        found: list[int] = await self.driver.write(writes, options)
        return found


@asynccontextmanager
async def tapped(url: str, namespace: str, **options: Any) -> AsyncIterator[tuple[KV, Tapped]]:
    """A bucket whose calls are not tried again, and the tap on it."""
    async with KV.open(url, namespace=namespace, **options) as kv:
        driver = Tapped(kv.driver)
        yield KV(driver, retry=RetryPolicy(attempts=1)), driver


class Holder:
    """Brings a write into its window: on its way, or done without an answer, in turn."""

    def __init__(self, backstage: Backstage, near: KV) -> None:
        self._proxy, self._near = backstage.proxy, near
        self._turns = cycle([False, True])

    async def hold(self, tap: Tapped, key: str) -> None:
        """The next write of `key` through the tap."""
        if next(self._turns):
            before = await self._revision(key)
            self._proxy.half_open("to_client")
            await eventually(lambda: self._is_past(key, before), timeout_s=ENTERED_S)
        else:
            begun = tap.begun
            self._proxy.stall("to_server")
            await eventually(lambda: tap.begun > begun, timeout_s=ENTERED_S)

    async def _revision(self, key: str) -> int:
        entry: Any = await patiently(lambda: self._near.get(key))
        return 0 if entry is None else entry.revision

    async def _is_past(self, key: str, before: int) -> bool:
        return await self._revision(key) > before


class HeartbeatWindows:
    """Rounds on one instance, with another of the same names in another plane."""

    def __init__(self, backstage: Backstage, tap: Tapped, one: Registration, planes: dict[str, Registry]) -> None:
        self._one, self._tap, self._planes = one, tap, planes
        self._holder = Holder(backstage, next(iter(planes.values())).kv)

    async def enter(self, window: str) -> None:
        await self._holder.hold(self._tap, instance_key("quotes", "a"))

    async def red(self) -> bool:
        return await self._one.check() is not None

    async def green(self) -> bool:
        return await self._one.check() is None and self._one.status is Status.ACTIVE

    async def flows(self) -> None:
        """A heartbeat passes; each plane has its own instance, and nothing else."""
        beats = self._one.statistics().heartbeats
        await eventually(lambda: self._one.statistics().heartbeats > beats, "it beats", timeout_s=PATIENCE_S)
        for plane, registry in self._planes.items():
            found: Any = await patiently(lambda registry=registry: registry.instances("quotes"))  # type: ignore[misc]
            assert [(one.instance_id, one.metadata) for one in found] == [("a", {"plane": plane})]

    async def left(self) -> None:
        statistics = self._one.statistics()
        assert statistics.recreated == 0


@pytest.mark.req("SVC-02.1", "SVC-02.2", "SVC-01")
async def test_an_instance_whose_heartbeat_meets_a_fault_stays_registered(nats_backstage: Backstage) -> None:
    names, near_url = [unique("plane"), unique("plane")], nats_backstage.server.url + QUICK
    async with AsyncExitStack() as stack:
        planes, registrations, taps = {}, [], []
        for name in names:
            kv, tap = await stack.enter_async_context(
                tapped(nats_backstage.url + QUICK, name, bucket="services", ttl=True)
            )
            registering = Registry(kv, SETTINGS).register("quotes", instance_id="a", metadata={"plane": name})
            registrations.append(await stack.enter_async_context(registering))
            taps.append(tap)
            planes[name] = await stack.enter_async_context(Registry.open(near_url, namespace=name))
        await rounds("heartbeat", HeartbeatWindows(nats_backstage, taps[0], registrations[0], planes), nats_backstage)


class Election:
    """Members of one election, and what was seen of them: who was active when, and whose effects were stored."""

    def __init__(self) -> None:
        self.members: list[tuple[Leadership, KV]] = []
        self._seen: dict[tuple[str, int], list[float]] = {}
        self._effects: list[tuple[int, int]] = []

    async def look(self) -> None:
        while True:
            for member, _ in self.members:
                term, now = member.term, lease_clock()
                if term is not None and member.is_active:
                    self._seen.setdefault((member.member, term), [now, now])[1] = now
            await asyncio.sleep(0.002)

    async def acts(self) -> bool:
        """Whether an effect of the one that is active was stored; one of an older term is refused."""
        for member, kv in self.members:
            if member.is_active:
                try:
                    term = member.fence().term
                    async with asyncio.timeout(2):
                        self._effects.append((await kv.put("effect", b"%d" % term, fence=member.fence()), term))
                except (*AWAY, TimeoutError):
                    return False
                except Conflict as error:
                    if error.reason != "term_old":
                        raise
                    return False
                return True
        return False

    def judge(self) -> None:
        judge([Reign(term, name, first, last) for (name, term), (first, last) in self._seen.items()])
        terms = [term for _, term in sorted(self._effects)]
        assert terms == sorted(terms), f"an effect of an older term after one of a newer: {terms}"


class RenewWindows:
    """Rounds on whoever leads through the proxy; the member that goes past it leads while the others cannot."""

    def __init__(self, backstage: Backstage, one: Election, other: Election, taps: list[Tapped]) -> None:
        self._one, self._other, self._taps = one, other, taps
        *self._far, (self._lonely, near) = one.members
        self._proxy, self._holder = backstage.proxy, Holder(backstage, near)

    async def enter(self, window: str) -> None:
        await eventually(self._far_one_leads, "one that goes through the proxy leads", timeout_s=PATIENCE_S)
        [number] = [n for n, (member, _) in enumerate(self._far) if member.is_active] or [0]
        await self._holder.hold(self._taps[number], KEY_PREFIX + "desk")

    async def _far_one_leads(self) -> bool:
        if self._lonely.is_active:
            await self._lonely.resign()
        return any(member.is_active for member, _ in self._far)

    async def red(self) -> bool:
        return not any(member.is_active for member, _ in self._far)

    async def green(self) -> bool:
        return all(member.complaint() is None for member, _ in self._one.members)

    async def flows(self) -> None:
        await eventually(self._one.acts, "one acts", timeout_s=PATIENCE_S)
        await eventually(self._other.acts, "one acts in the other plane", timeout_s=PATIENCE_S)

    async def left(self) -> None:
        self._one.judge()


@pytest.mark.req("LEAD-01.1", "LEAD-01.2", "LEAD-02")
async def test_at_most_one_is_active_while_renewals_meet_faults(nats_backstage: Backstage) -> None:
    names, near_url = [unique("plane"), unique("plane")], nats_backstage.server.url + QUICK
    one, other = Election(), Election()
    async with AsyncExitStack() as stack:
        taps = []
        for election, name, url, member in (
            (one, names[0], nats_backstage.url + QUICK, "a"), (one, names[0], nats_backstage.url + QUICK, "b"),
            (one, names[0], near_url, "lonely"), (other, names[1], near_url, "c"),
        ):  # fmt: skip
            kv, tap = await stack.enter_async_context(tapped(url, name))
            opening = Leadership.open(kv, "desk", policy="aggressive", member=member)
            election.members.append((await stack.enter_async_context(opening), kv))
            taps.append(tap)
        async with running(one.look, other.look):
            await rounds("renew", RenewWindows(nats_backstage, one, other, taps), nats_backstage)
        one.judge()
        other.judge()
