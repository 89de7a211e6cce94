"""The main job under `kill -9`: every process, in every window of a message.

A round stops one process in the window (a failpoint), kills somebody with SIGKILL while it stands there, and lets it
go on. Customers keep ordering meanwhile. At the end the books are audited: nothing lost, no keyed effect twice,
terminal states never change, queues and outbox empty, nothing left behind.
"""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import cycle, islice
from pathlib import Path

import pytest

from fault.orders import Audit, Orders
from fault.plane_lab import Lab
from fault.record import record
from stacks import Stack

_ASKED = os.environ.get("GROUNDPLANE_TEST_FAULT_ROUNDS")
ROUNDS = int(_ASKED or 13)
"""Of each window: eight windows make 104, on each stack."""

pytestmark = [
    pytest.mark.anyio, pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(240 + 10 * ROUNDS)
]  # fmt: skip

ACTORS = ("split", "effect", "join", "finish")
SIDECARS = tuple(f"sidecar {name}" for name in ACTORS)
PASS_THROUGH = {
    "accepted": ("gateway",),
    "relayed": ("gateway",),
    "received": (*SIDECARS, "ends"),
    "handled": SIDECARS,
    "child_sent": SIDECARS,
    "before_ack": (*SIDECARS, "ends"),
    "final_report": ("ends",),
    "joined": ("sidecar join",),
}
"""Which processes pass each window of every stack."""

PASS_THROUGH_BROKER = {"unconfirmed": ("gateway", *SIDECARS)}
"""And one that only a broker has: what was written to it is not confirmed yet."""

VICTIMS = (
    "itself", "worker", "itself", "runtime", "sidecar", "itself", "gateway",
    "worker", "itself", "runtime", "ends", "itself", "group",
)  # fmt: skip


class Rounds:
    """Kills in one window, one after the other."""

    def __init__(self, lab: Lab, orders: Orders, window: str, seed: int) -> None:
        self.lab = lab
        self.orders = orders
        self.window = window
        self.killed: list[str] = []
        self.recoveries_s: list[float] = []
        self._seed = seed
        self._choice = random.Random(seed)
        self._owners = cycle({**PASS_THROUGH, **PASS_THROUGH_BROKER}[window])
        self._before: list[set[str]] = []

    async def one(self, victim: str) -> None:
        """Stop a process in the window, kill the victim, wait until everything runs and old orders have ended."""
        lab, owner = self.lab, next(self._owners)
        pid = await lab.stopped_at_window(owner)
        killed_at = time.monotonic()
        self._before.append(self.orders.open_jobs())
        starts = {name: one.starts for name, one in lab.members.items()}
        names = self._kill(victim, owner)
        if self._choice.random() < 0.5:  # somebody that comes back finds it still standing there, or on its way
            await self._started_again(names, starts)
        lab.signal(pid, signal.SIGCONT)
        self.killed.append(victim)
        await self._started_again(names, starts)
        await lab.all_ready()
        await self._drained(self._before[-2] if len(self._before) > 1 else set())
        self.recoveries_s.append(time.monotonic() - killed_at)

    def report(self, audit: Audit) -> None:
        """Print what was done, and record it for the table of `make soak`."""
        numbers, slowest_s = audit.numbers(), max(self.recoveries_s)
        victims = ", ".join(f"{one} {self.killed.count(one)}" for one in dict.fromkeys(self.killed))
        stack, hits = self.lab.stack.name, len(self.killed)
        print(f"\n{stack} {self.window}: {hits} hits ({victims}); slowest recovery {slowest_s:.1f} s; {numbers}")
        record(
            stack=stack, window=self.window, hits=hits, seed=self._seed, victims=victims, slowest_s=slowest_s,
            jobs=len(audit.jobs), again=numbers["again"],
        )  # fmt: skip

    def _kill(self, victim: str, owner: str) -> list[str]:
        lab = self.lab
        actor = owner.removeprefix("sidecar ") if owner.startswith("sidecar ") else self._choice.choice(ACTORS)
        if victim == "group":
            lab.kill_all()
            return list(lab.members)
        if victim == "worker":
            lab.kill_worker(actor, self._choice)
            return []
        whom = {"itself": owner, "runtime": f"runtime {actor}", "sidecar": f"sidecar {self._choice.choice(ACTORS)}"}
        name = whom.get(victim, victim)
        lab.kill(name)
        return [name]

    async def _started_again(self, names: list[str], starts: dict[str, int]) -> None:
        members = self.lab.members
        await self.lab.until(lambda: all(members[one].starts > starts[one] for one in names), f"{names} run again")

    async def _drained(self, jobs: set[str]) -> None:
        await self.lab.until(lambda: not jobs & self.orders.open_jobs(), "orders of the round before have ended")


@pytest.mark.req("MESH-17", "MESH-12.2", "MESH-13", "JOB-02.1", "JOB-02.2", "JOB-03.1", "JOB-03.2", "QUEUE-12")
@pytest.mark.parametrize("window", PASS_THROUGH)
async def test_whoever_is_killed_in_a_window_nothing_is_lost_and_no_effect_happens_twice(
    window: str, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _check_survival(window, stack, tmp_path, capsys)


@pytest.mark.req("MESH-17", "QUEUE-12")
@pytest.mark.parametrize("stack", ["servers"], indirect=True)
async def test_whoever_is_killed_between_a_publishing_and_its_confirm_nothing_is_lost_and_no_effect_happens_twice(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _check_survival("unconfirmed", stack, tmp_path, capsys)


async def _check_survival(window: str, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Lab.open(tmp_path / "lab", stack=stack, failpoints=f"{window}=pause@2") as lab:
        orders = Orders(lab)
        rounds = Rounds(lab, orders, window, seed=len(window))
        async with orders.coming():
            for victim in islice(cycle(VICTIMS), ROUNDS):
                await rounds.one(victim)
        audit = await Audit.of(orders)
        audit.check()
        if stack.embedded:
            audit.check_no_call_is_doubled()
        codes = await lab.stop()
        assert set(codes.values()) == {0}
        assert lab.left_behind() == []
        hits = [line for line in lab.hit_lines() if line[0] == window]
        assert len(hits) == ROUNDS
    with capsys.disabled():
        rounds.report(audit)
