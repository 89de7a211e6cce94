"""The desk under load with its leader killed half-way, embedded and then on NATS: `python demo.py`, or `make demo-bus`.

With --on nats alone it uses the server at NATS_URL; without one it brings that of the kit, for the time of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from app import PRICES, Fill

from groundplane.bus import Bus, ReceivedEvent
from groundplane.core.errors import GroundplaneError
from groundplane.core.secrets import mask_url
from groundplane.core.settings import load
from groundplane.plane import Plane, installed_schemes
from groundplane.services import Registry
from groundplane.services.leadership import ask_leader

HERE = Path(__file__).resolve().parent
PROCESSES = ("quotes", "quotes", "book", "book", "book", "reports")
ORDERS = 120
BETWEEN_S = 0.03
PATIENCE_S = 60.0
GROUNDPLANE = [sys.executable, "-m", "groundplane.cli"]


class DemoFailed(Exception):
    """What the demo was to show did not happen."""


class Process:
    """An instance of a service, started as its users would start it, and what it said."""

    def __init__(self, service: str, process: asyncio.subprocess.Process) -> None:
        self.service, self.process, self.pid = service, process, process.pid
        self.said: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return any(one["event"] == "ready" for one in self.said)

    async def end(self) -> int:
        """SIGTERM, and what it ended with."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(15):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            code = await self.process.wait()
        await self._reading
        return code

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))


class Trades:
    """The trades that were told, and when."""

    def __init__(self) -> None:
        self.told: dict[str, list[Fill]] = {}
        self.first_of_term: dict[int, float] = {}

    async def seen(self, event: ReceivedEvent) -> None:
        fill = msgspec.convert(event.payload, Fill)
        known = self.told.setdefault(fill.order_id, [])
        if event.attempt == 1 or fill not in known:  # a delivery of ours that came again is no second trade
            known.append(fill)
        self.first_of_term.setdefault(fill.term, time.monotonic())


async def story(where: str, url: str) -> float:
    """Everything on one kind of storage; the seconds without a leader."""
    title(f"{where}: {mask_url(url)}")
    with tempfile.TemporaryDirectory(prefix="groundplane-desk-") as state:
        variables = {
            "GROUNDPLANE_NAME": "desk", "GROUNDPLANE_STATE": state,
            "GROUNDPLANE_BUS_URL": url, "GROUNDPLANE_KV_URL": url, "GROUNDPLANE_LOG_LEVEL": "error",
        }  # fmt: skip
        settings = load(environ=variables, schemes=installed_schemes()).settings
        async with desk_of(variables) as processes, Plane.open(settings, ports=("bus", "kv")) as plane:
            await until(
                lambda: any(said["event"] == "leading" for one in processes for said in one.said),
                "nobody leads the book", processes,
            )  # fmt: skip
            await show_services(settings, plane)
            trades = Trades()
            async with plane.bus.subscribe("trades.filled", trades.seen, group="demo", replay=True):
                failover = await trade(plane.bus, processes, trades)
                held = await report(plane.bus)
            await prove(plane, trades, held)
    return failover


@asynccontextmanager
async def desk_of(variables: dict[str, str]) -> AsyncIterator[list[Process]]:
    """The processes of the desk; at the end each is told to end, and waited for."""
    processes: list[Process] = []
    began = time.monotonic()
    try:
        for service in PROCESSES:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / "serve.py"), service,
                env={**os.environ, **variables}, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            processes.append(Process(service, process))
        await until(lambda: all(one.ready for one in processes), "not all services are ready", processes)
        say(f"{len(processes)} processes ready after {time.monotonic() - began:.1f} s")
        yield processes
    finally:
        codes = await asyncio.gather(*(one.end() for one in processes))
    if sorted(set(codes)) != [-signal.SIGKILL, 0]:
        raise DemoFailed(f"the processes ended with {codes}; all but the one that was killed should have ended with 0")


async def show_services(settings: Any, plane: Plane) -> None:
    """Who is there, and what a share costs."""
    async with Registry.open(settings.kv.reveal(), namespace=settings.name, state=settings.state) as registry:
        found = await registry.instances()
    for service in dict.fromkeys(PROCESSES):
        say(f"  {service:<8} " + ", ".join(f"{i.instance_id} {i.status}" for i in found if i.service_name == service))
    if len(found) != len(PROCESSES):
        raise DemoFailed(f"{len(found)} instances are registered, not {len(PROCESSES)}")
    for symbol in PRICES:
        quote = await plane.bus.request("quotes", "get", {"symbol": symbol})
        say(f"  quotes.get {symbol:<8} {quote['cents'] / 100:>8.2f}")
    try:
        await plane.bus.request("quotes", "get", {"symbol": "ENRON"})
    except GroundplaneError as error:
        say(f"  quotes.get ENRON    {error.code}: {error.message}")


async def trade(bus: Bus, processes: list[Process], trades: Trades) -> float:
    """Place orders at an even pace; kill the leader when a third of them are placed; wait for the rest."""
    say(f"{ORDERS} orders, one each {BETWEEN_S * 1000:.0f} ms")
    killed_at, term = 0.0, 0
    for number in range(ORDERS):
        order = {"order_id": f"o{number}", "symbol": list(PRICES)[number % 3], "quantity": number + 1}
        if number == ORDERS // 3:
            leader, term = await leading(bus, processes)
        await bus.publish("orders", "placed", order, event_id=order["order_id"])
        if number == ORDERS // 3:
            leader.process.kill()  # it works at an order now
            killed_at = time.monotonic()
            say(f"  kill -9 {leader.pid}: the leader, in term {term}, {len(trades.told)} of {number + 1} filled")
        await asyncio.sleep(BETWEEN_S)
    await until(lambda: len(trades.told) == ORDERS, "not all orders are filled", processes)
    after = [at for one, at in trades.first_of_term.items() if one > term]
    if not after:
        raise DemoFailed("everything was filled before the leader was killed")
    failover = min(after) - killed_at
    say(f"  the next leader filled its first order {failover:.2f} s later; all are filled")
    return failover


async def leading(bus: Bus, processes: list[Process]) -> tuple[Process, int]:
    """Who leads the book, as it says itself, and its term. Whoever else is asked says whom to ask."""
    told = await ask_leader(lambda instance: bus.request("book", "leader", instance=instance))
    return next(one for one in processes if one.pid == told["pid"]), told["term"]


async def report(bus: Bus) -> dict[str, dict[str, int]]:
    """The slow command, followed."""
    async with bus.track("reports", "positions", timeout_s=60) as tracked:
        shown = [f"{one.percent:.0f} %" async for one in tracked.progress()]
        say("reports.positions  " + "  ".join(shown))
        return await tracked.result()  # type: ignore[no-any-return]


async def prove(plane: Plane, trades: Trades, held: dict[str, dict[str, int]]) -> None:
    """Orders, fills, trades and the report against each other."""
    fills: dict[str, Fill] = {}
    page = await plane.kv.keys("fills/")
    for start in range(0, len(page.items), 50):
        for entry in (await plane.kv.get_many(page.items[start : start + 50])).values():
            fills[entry.key.removeprefix("fills/")] = msgspec.json.decode(entry.value, type=Fill)
    wanted = {f"o{number}" for number in range(ORDERS)}
    expected = {symbol: {"quantity": 0, "cents": 0} for symbol in PRICES}
    for number in range(ORDERS):
        symbol = list(PRICES)[number % 3]
        expected[symbol]["quantity"] += number + 1
        expected[symbol]["cents"] += PRICES[symbol] * (number + 1)
    if set(fills) != wanted:
        raise DemoFailed(f"lost or invented: {sorted(set(fills) ^ wanted)}")
    twice = {name: told for name, told in trades.told.items() if told != [fills[name]]}
    if twice:
        raise DemoFailed(f"told twice, or otherwise than it was done: {twice}")
    if held != expected:
        raise DemoFailed(f"the report says {held}, the orders {expected}")
    terms = sorted({fill.term for fill in fills.values()})
    by = ", ".join(f"{sum(fill.term == term for fill in fills.values())} in term {term}" for term in terms)
    say(f"{ORDERS} orders, {len(fills)} fills ({by}), {len(trades.told)} trades: nothing lost, nothing done twice")


async def until(holds: Callable[[], bool], failing: str, processes: list[Process]) -> None:
    """Wait for a condition, or say what did not happen. A process that ends by itself fails the demo at once."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        for one in processes:
            if one.process.returncode not in (None, -signal.SIGKILL):
                raise DemoFailed(f"{one.service} (pid {one.pid}) ended with {one.process.returncode}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"{failing} after {PATIENCE_S:g} s")
        await asyncio.sleep(0.02)


def on_the_kits_server() -> int:
    """Run the part on NATS with a server of the kit; its exit code."""
    subprocess.run([*GROUNDPLANE, "servers", "install", "nats"], check=True)
    me = [sys.executable, str(HERE / "demo.py"), "--on", "nats"]
    return subprocess.run([*GROUNDPLANE, "servers", "run", "nats", "--", *me], check=False).returncode


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--on", choices=("embedded", "nats", "both"), default="both", help="where (default: both)")
    where = parser.parse_args().on
    try:
        if where in ("embedded", "both"):
            asyncio.run(story("Embedded", "embedded://"))
        if where in ("nats", "both"):
            url = os.environ.get("NATS_URL")
            if url is None:
                return on_the_kits_server()
            asyncio.run(story("The same on NATS", url))
    except DemoFailed as failure:
        print(f"the demo failed: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
