"""The role services: an App's endpoints in a process of its own, registered, measured, drained, on real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.bus import Bus
from groundplane.core.errors import GroundplaneError
from groundplane.plane import bus_name
from groundplane.services import Registry
from groundplane.services.leadership import Leaders
from groundplane.testing import eventually, unique
from services_lab import STORES, Place, place_of

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

APP = """
import asyncio, os
from groundplane import App
from groundplane.services.leadership import Policy

app = App("desk")
feed = app.single_active("desk", policy=Policy(lease_s=30.0))

@app.rpc("desk.quote")
async def quote(symbol: str) -> dict:
    return {"symbol": symbol, "pid": os.getpid()}

@app.rpc("desk.slow")
async def slow(folder: str) -> str:
    open(os.path.join(folder, "began"), "w").close()
    while not os.path.exists(os.path.join(folder, "go")):
        await asyncio.sleep(0.01)
    return "done"

@app.rpc("desk.lead")
@feed
async def lead() -> int:
    return feed.fence().term

@app.on("orders.*")
async def seen(event) -> None:
    with open("events.txt", "a") as file:
        file.write(event.payload["id"] + "\\n")

@app.command("desk.settle")
async def settle(ctx, amount: int) -> int:
    await ctx.progress(50)
    return amount * 2
"""
EMPTY = "from groundplane import App\napp = App('empty')\n"


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    (tmp_path / "app.py").write_text(APP)
    return place_of(request, tmp_path, unique("role"))


def command(place: Place, *words: str) -> tuple[list[str], dict[str, str]]:
    options = ["--state", str(place.state), "--name", place.namespace, "--json"]
    away = {key: value for key, value in os.environ.items() if not key.startswith("GROUNDPLANE_")}
    urls = {"GROUNDPLANE_KV_URL": place.url, "GROUNDPLANE_BUS_URL": place.url}
    return [sys.executable, "-m", "groundplane.cli", *words, *options], {**away, **urls}


async def start(place: Place, *words: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    """The process, and what its ready line says."""
    arguments, environment = command(place, *words)
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, cwd=place.state.parent, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
    assert line, "it ended before it was ready"
    return process, json.loads(line)


async def run(place: Place, *words: str) -> tuple[int, str]:
    arguments, environment = command(place, *words)
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, cwd=place.state.parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@asynccontextmanager
async def caller(place: Place) -> AsyncIterator[Bus]:
    name = bus_name(place.namespace)
    async with Bus.open(place.url, state=place.state, namespace=place.namespace, name=name) as bus:
        yield bus


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        async with asyncio.timeout(30):
            await process.communicate()


def ready_file(place: Place) -> dict[str, Any]:
    return dict(json.loads((place.state / "run" / "services.ready").read_bytes()))


@pytest.mark.req("SVC-06")
async def test_endpoints_are_served_registered_measured_and_drained_in_order(place: Place, tmp_path: Path) -> None:
    assert (await run(place, "db", "upgrade"))[0] == 0
    process, ready = await start(place, "run", "app:app", "--role", "services")
    try:
        assert (ready["role"], ready["processes"]) == ("services", ["services"])
        async with caller(place) as bus, place.registry() as registry:
            answer = await bus.request("desk", "quote", {"symbol": "ACME"})
            assert (answer["symbol"], answer["pid"]) == ("ACME", ready_file(place)["pid"])
            (instance,) = await registry.instances("desk")
            assert (instance.healthy, instance.metadata) == (True, {"app": "desk"})
            direct = await bus.request("desk", "quote", {"symbol": "X"}, instance=instance.instance_id)
            assert direct["pid"] == answer["pid"]
            elected = await eventually(lambda: bus.request("desk", "lead", {}), tolerate=(GroundplaneError,))
            assert elected == await _term(registry, instance.instance_id)
            async with bus.track("desk", "settle", {"amount": 4}) as tracked:
                assert await tracked.result() == 8
            await bus.publish("orders", "placed", {"id": "o-1"})
            await eventually((tmp_path / "events.txt").exists)
            await _measured(place)
            await _drained(process, bus, registry, tmp_path)
    finally:
        await end(process)


async def _term(registry: Registry, member: str) -> int | None:
    """The term of the leader, as an onlooker knows it."""
    leaders = Leaders(registry.kv)
    watching = asyncio.create_task(leaders.run())
    try:
        found = await eventually(leaders.all, tolerate=(GroundplaneError,))
        assert [(one.name, one.leader) for one in found] == [("desk", member)]
        return found[0].term
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def _measured(place: Place) -> None:
    url = f"http://127.0.0.1:{ready_file(place)['admin_port']}"
    async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
        assert (await http.get("/readyz")).status_code == 200

        async def shown() -> bool:
            text = (await http.get("/metrics")).text
            lags = re.findall(r'subscription_messages{.*pattern="events.orders.*",state="waiting"} (\S+)', text)
            return "groundplane_bus_ready 1.0" in text and lags == ["0.0"]

        await eventually(shown)


async def _drained(process: asyncio.subprocess.Process, bus: Bus, registry: Registry, folder: Path) -> None:
    """A call that runs is answered after the signal; meanwhile the registry says SHUTDOWN, and at the end nothing."""
    call = asyncio.create_task(bus.request("desk", "slow", {"folder": str(folder)}, timeout_s=30))
    await eventually((folder / "began").exists)
    process.send_signal(signal.SIGTERM)

    async def leaving() -> bool:
        return [one.status.value for one in await registry.instances("desk")] == ["SHUTDOWN"]

    await eventually(leaving)
    (folder / "go").touch()
    assert await call == "done"
    async with asyncio.timeout(30):
        await process.communicate()
    assert process.returncode == 0
    assert await registry.instances("desk") == []


async def test_an_app_without_endpoints_has_no_role_services(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(EMPTY)
    place = Place(url="embedded://", state=tmp_path / "state", namespace="empty")
    status, said = await run(place, "run", "app:app", "--role", "services")
    assert status == 2, said
    assert "declares nothing for services" in said


async def test_dev_serves_the_endpoints_beside_the_gateway_and_shows_them(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    place = Place(url="embedded://", state=tmp_path / "state", namespace=unique("dev"))
    process, ready = await start(place, "dev", "app:app", "--port", "0")
    try:
        async with caller(place) as bus, httpx2.AsyncClient(base_url=ready["url"], timeout=30) as http:
            before = (await bus.request("desk", "quote", {"symbol": "ACME"}))["pid"]

            async def shown() -> bool:  # the gateway opens its registry in the background
                summary = (await http.get("/v1/instances/summary")).json()
                found = [(one["serviceName"], one["health"]) for one in summary.get("details", [])]
                return found == [("desk", "healthy")] and "desk" in (await http.get("/dashboard/services")).text

            await eventually(shown)
            (tmp_path / "app.py").write_text(APP.replace('"symbol": symbol', '"symbol": symbol.lower()'))

            async def reloaded() -> bool:
                answer = await bus.request("desk", "quote", {"symbol": "ACME"})
                return bool(answer["symbol"] == "acme" and answer["pid"] != before)

            await eventually(reloaded, tolerate=(GroundplaneError,), timeout_s=40)
    finally:
        await end(process)
