"""One NATS behind one proxy, and rounds of faults on it: a message is brought into a window, a fault strikes while it
stands there, the fault ends, and all must flow again.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import pytest

from fault.record import record
from fault.server_lab import Backstage, Fault
from groundplane.core.errors import DeadlineExceeded, Unavailable
from groundplane.testing import NotInTime, eventually
from pace import at_most

ROUNDS = int(os.environ.get("GROUNDPLANE_TEST_FAULT_ROUNDS", "12"))
"""Of each window: the nine windows of `test_*_rounds` make 108."""
SEED = int(os.environ.get("GROUNDPLANE_TEST_SEED", "11"))
MARKS = [
    pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration, pytest.mark.nats, pytest.mark.slow,
    pytest.mark.timeout(200 + 20 * ROUNDS),
]  # fmt: skip
PATIENCE_S = 30.0
ENTERED_S = 6.0
"""In which a message comes into its window, unless its connection has just ended."""
FLOWS_S = 1.0
"""`at_most` this the median round flows again: 2 s where the machine has time (BUS-17)."""
AWAY = (Unavailable, DeadlineExceeded)
"""What calls may raise while the server is away; anything else is a fault of ours."""
QUICK = "?ping_interval=0.25&connect_timeout=1&request_timeout=2&reconnect_wait_max=0.2"


def _slow(one: Backstage) -> None:
    one.proxy.restore()
    one.proxy.latency(0.01, jitter_s=0.03)


def _cut(one: Backstage) -> None:
    one.proxy.cut()
    one.proxy.restore()


def _fault(name: str, begin: Callable[[Backstage], object], end: Callable[[Backstage], object]) -> Fault:
    return Fault(name, "nats", begin, end)


AWAYS = [
    _fault("killed", lambda one: one.server.kill(), lambda one: one.server.start()),
    _fault("restarted", lambda one: one.server.stop(), lambda one: one.server.start()),
    _fault("paused", lambda one: one.server.pause(), lambda one: one.server.resume()),
    _fault("unreachable", lambda one: one.proxy.down(), lambda one: one.proxy.restore()),
    _fault("silent", lambda one: one.proxy.half_open(), lambda one: one.proxy.restore()),
]
"""The server is away until the fault ends: what depends on it must say so."""
FAULTS = [*AWAYS, _fault("cut", _cut, lambda one: None), _fault("slow", _slow, lambda one: one.proxy.restore())]


class Windows(Protocol):
    """What a round is put on."""

    async def enter(self, window: str) -> None:
        """Bring a message into the window: it stands there when this returns, until the proxy is restored."""

    async def red(self) -> bool:
        """Whether readiness says that the server is away."""

    async def flows(self) -> None:
        """New work passes."""

    async def green(self) -> bool:
        """Whether readiness says that all is well."""

    async def left(self) -> None:
        """What stood in the window has ended as it should."""


class Plane(Protocol):
    """Work in one namespace."""

    async def passes(self) -> None:
        """New work passes."""


P = TypeVar("P", bound=Plane)


class TwoPlanes(Generic[P]):
    """Windows of one plane, while another works beside it under the same names. One task at a time is in a window."""

    def __init__(self, backstage: Backstage, plane: P, other: P) -> None:
        self._proxy, self._plane, self._other = backstage.proxy, plane, other
        self._armed: asyncio.Task[object] | None = None

    def _arm(self, work: Coroutine[Any, Any, object]) -> None:
        """Begin what is to stand in the window."""
        self._armed = asyncio.create_task(work)

    async def flows(self) -> None:
        await asyncio.gather(self._plane.passes(), self._other.passes())

    async def left(self) -> None:
        if self._armed is not None:
            await self._armed
        self._armed = None

    async def aclose(self) -> None:
        """For the round that failed."""
        if self._armed is not None:
            self._armed.cancel()
            await asyncio.wait([self._armed])


async def rounds(window: str, one: Windows, backstage: Backstage) -> None:
    """So many rounds in one window, every fault as often as the others; the order comes from the seed."""
    choice = random.Random(f"{SEED} {window}")
    faults, hits, took, began = list[Fault](), Counter[str](), list[float](), time.monotonic()
    for number in range(ROUNDS):
        faults = faults or choice.sample(FAULTS, len(FAULTS))
        fault = faults.pop()
        try:
            seconds = await _round(window, fault, one, backstage)
        except BaseException as error:
            error.add_note(f"round {number} of {window!r}, {fault.name}; again: GROUNDPLANE_TEST_SEED={SEED}")
            raise
        hits[fault.name] += 1
        if fault in AWAYS:
            took.append(seconds)
    assert statistics.median(took) < at_most(FLOWS_S), took
    record(
        test=f"nats {window}", rounds=ROUNDS, seed=SEED, hits=dict(hits), median_s=round(statistics.median(took), 2),
        slowest_s=round(max(took), 2), seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


async def _round(window: str, fault: Fault, one: Windows, backstage: Backstage) -> float:
    """How long it took until new work passed, from the end of the fault."""
    await _enter(window, one, backstage)
    async with fault.on(backstage):
        if fault in AWAYS:
            await eventually(one.red, "readiness is red", timeout_s=PATIENCE_S)
        else:
            await one.flows()
    backstage.proxy.restore()
    back = time.monotonic()
    await one.flows()
    seconds = time.monotonic() - back
    await eventually(one.green, "readiness is green", timeout_s=PATIENCE_S)
    await one.left()
    return seconds


async def _enter(window: str, one: Windows, backstage: Backstage) -> None:
    """Again where a machine that stood still has ended the connection, or the leadership, that was to bring the
    message: the next one does not come through the window.
    """
    for tries_left in (4, 3, 2, 1, 0):
        try:
            await one.enter(window)
        except NotInTime:
            if not tries_left:
                raise
            backstage.proxy.restore()
            await one.left()
        else:
            return


async def patiently(call: Callable[[], Awaitable[object]], what: str = "") -> object:
    """The result of a call that is made again while the server is away."""

    async def once() -> tuple[object]:
        return (await call(),)

    return (await eventually(once, what, timeout_s=PATIENCE_S, tolerate=AWAY))[0]


def under_way(opened: Any) -> bool:
    """Whether a bus or a bucket waits for an answer of the server."""
    return bool(opened.driver.native.link.statistics().requests)


@asynccontextmanager
async def running(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Works that go on until the block ends; one that fails fails the block."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
