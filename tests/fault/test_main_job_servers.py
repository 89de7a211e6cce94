"""The main job on real servers, while the servers are killed, paused, cut off, slowed and restarted.

A round stops a process of the plane in a window of a message, puts a fault on one server while it stands there, lets
both go on, and waits until orders are served again. Customers keep ordering meanwhile; at the end the books are
audited as after kills of processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path

import httpx2
import pytest

from fault.orders import Audit, Orders
from fault.plane_lab import Lab, words
from fault.record import record
from fault.server_lab import FAULTS, OUT_OF_DISK, Backstage, Fault, behind_proxies, servers, stack_of
from fault.test_main_job_windows import PASS_THROUGH, PASS_THROUGH_BROKER
from groundplane.testing.servers.contract import Running
from pace import at_most

_ASKED = os.environ.get("GROUNDPLANE_TEST_FAULT_ROUNDS")
ROUNDS = int(_ASKED or 20) // 5
"""Of each window, as a fault of a server takes longer than a kill. Each window goes on where the one before ended."""
OUTAGE_S = float(os.environ.get("GROUNDPLANE_TEST_OUTAGE_S", "8"))
FLOWS_AGAIN_S = 5.0

WINDOWS = {**PASS_THROUGH, **PASS_THROUGH_BROKER}

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(400 + 30 * ROUNDS)]


@pytest.fixture(scope="module")
def opened(own_server_of_module: Callable[..., Running]) -> dict[str, Running]:
    return servers(own_server_of_module)


@pytest.fixture
def made(opened: dict[str, Running]) -> Iterator[dict[str, Backstage]]:
    with behind_proxies(opened) as found:
        yield found


class Rounds:
    """Faults of servers in one window, one after the other."""

    def __init__(self, lab: Lab, orders: Orders, made: dict[str, Backstage], window: str) -> None:
        self.lab = lab
        self.orders = orders
        self.done: list[str] = []
        self.recoveries_s: list[float] = []
        self._made = made
        self._owners = cycle(WINDOWS[window])

    async def one(self, fault: Fault) -> None:
        lab, owner = self.lab, next(self._owners)
        pid = await lab.stopped_at_window(owner)
        async with fault.on(self._made[fault.server]):
            lab.signal(pid, signal.SIGCONT)
        self.recoveries_s.append(await flows_again(lab, self.orders, fault.name))
        self.done.append(fault.name)
        await lab.all_ready()


async def flows_again(lab: Lab, orders: Orders, after: str) -> float:
    """Seconds until a handler is called again; returns when an order has been served."""
    begin, calls, served = time.monotonic(), lab.effects / "runs", len(orders.results)
    before = len(words(calls))
    await lab.until(lambda: len(words(calls)) > before, f"handlers are called again after {after}")
    spent_s = time.monotonic() - begin
    assert spent_s <= at_most(FLOWS_AGAIN_S), f"{spent_s:.1f} s after {after}\n{lab.logs()}"
    await lab.until(lambda: len(orders.results) > served, f"orders are served again after {after}")
    return spent_s


@pytest.mark.req("MESH-17", "QUEUE-12", "JOB-02.1", "MESH-12.2")
@pytest.mark.parametrize("window", WINDOWS)
async def test_whatever_happens_to_a_server_in_a_window_nothing_is_lost_and_no_effect_happens_twice(
    window: str, made: dict[str, Backstage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = list(WINDOWS).index(window) * ROUNDS
    stack = stack_of(made, tmp_path / "state", window.replace("_", "-"))
    async with Lab.open(tmp_path / "lab", stack=stack, failpoints=f"{window}=pause@2") as lab:
        orders = Orders(lab)
        rounds = Rounds(lab, orders, made, window)
        async with orders.coming():
            for fault in islice(cycle(FAULTS), first, first + ROUNDS):
                await rounds.one(fault)
        audit = await Audit.of(orders)
        audit.check(database_crashed="jobs killed" in rounds.done)
        assert set((await lab.stop()).values()) == {0}
        assert lab.left_behind() == []
    assert statistics.median(rounds.recoveries_s) <= FLOWS_AGAIN_S, rounds.recoveries_s  # a machine may stall in some
    slowest_s, numbers = max(rounds.recoveries_s), audit.numbers()
    victims = ", ".join(rounds.done) if len(FAULTS) > ROUNDS else f"each of {len(FAULTS)} faults in turn"
    record(
        stack="servers", window=f"{window}, servers", hits=ROUNDS, seed=first, victims=victims, slowest_s=slowest_s,
        jobs=len(audit.jobs), again=numbers["again"],
    )  # fmt: skip
    with capsys.disabled():
        print(f"\n{window}: {victims}; flowing again after at most {slowest_s:.1f} s; {numbers}")


@pytest.mark.req("QUEUE-12", "JOB-02.1", "MESH-17")
@pytest.mark.parametrize("away", [("queues",), ("jobs",), ("queues", "jobs")], ids="+".join)
async def test_servers_are_away_for_a_while_under_load_and_work_goes_on_when_they_are_back(
    away: tuple[str, ...], made: dict[str, Backstage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack_of(made, tmp_path / "state", f"away-{'-'.join(away)}")
    async with Lab.open(tmp_path / "lab", stack=stack) as lab:
        orders = Orders(lab)
        async with orders.coming():
            await lab.until(lambda: len(orders.results) >= 5, "orders are served")
            async with AsyncExitStack() as outage:
                for port in away:
                    await outage.enter_async_context(_killed(port).on(made[port]))
                await _readiness_turns_red(lab, "sidecar effect" if away == ("queues",) else "gateway")
                await asyncio.sleep(OUTAGE_S)
            spent_s = await flows_again(lab, orders, f"{OUTAGE_S:g} s without {' and '.join(away)}")
            await _readiness_is_green(lab)
        audit = await Audit.of(orders)
        audit.check(database_crashed="jobs" in away)
        assert set((await lab.stop()).values()) == {0}
        assert lab.left_behind() == []
    record(
        stack="servers", window=f"{' and '.join(away)} away for {OUTAGE_S:g} s", hits=1, seed=0, victims="killed",
        slowest_s=spent_s, jobs=len(audit.jobs), again=audit.numbers()["again"],
    )  # fmt: skip
    with capsys.disabled():
        print(f"\nwithout {away}: flowing again after {spent_s:.1f} s; {audit.numbers()}")


@pytest.mark.req("MESH-17", "QUEUE-12")
async def test_a_broker_without_room_takes_nothing_loses_nothing_and_goes_on_when_there_is_room(
    made: dict[str, Backstage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stack_of(made, tmp_path / "state", "room")
    async with Lab.open(tmp_path / "lab", stack=stack) as lab:
        orders = Orders(lab)
        async with orders.coming():
            await lab.until(lambda: len(orders.results) >= 5, "orders are served")
            async with OUT_OF_DISK.on(made["queues"]):
                await _readiness_turns_red(lab, "sidecar effect")
            spent_s = await flows_again(lab, orders, OUT_OF_DISK.name)
            await _readiness_is_green(lab)
        audit = await Audit.of(orders)
        audit.check()
        assert set((await lab.stop()).values()) == {0}
        assert lab.left_behind() == []
    record(
        stack="servers", window=OUT_OF_DISK.name, hits=1, seed=0, victims="disk alarm", slowest_s=spent_s,
        jobs=len(audit.jobs), again=audit.numbers()["again"],
    )  # fmt: skip
    with capsys.disabled():
        print(f"\n{OUT_OF_DISK.name}: flowing again after {spent_s:.1f} s; {audit.numbers()}")


def _killed(port: str) -> Fault:
    return next(one for one in FAULTS if one.name == f"{port} killed")


async def _readiness_turns_red(lab: Lab, name: str) -> None:
    assert await _until_ready_says(lab, name, 503), f"{name} still says that it is ready"


async def _readiness_is_green(lab: Lab) -> None:
    for name in lab.members:
        if name == "gateway" or name.startswith("sidecar"):
            assert await _until_ready_says(lab, name, 200), f"{name} does not say that it is ready"


async def _until_ready_says(lab: Lab, name: str, status: int, within_s: float = 15.0) -> bool:
    """Whether /readyz of the process answers with the status within the time."""
    base = lab.url if name == "gateway" else f"http://127.0.0.1:{lab.members[name].details()['admin_port']}"
    deadline = time.monotonic() + within_s
    async with httpx2.AsyncClient(base_url=base, timeout=6) as http:
        while time.monotonic() < deadline:
            if (await http.get("/readyz")).status_code == status:
                return True
            await asyncio.sleep(0.1)
    return False
