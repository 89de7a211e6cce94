"""The gateway's health over HTTP: what it tells, to whom, and that it sees when it is connected and deaf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from groundplane.jobs import store
from served_gateway import House, house, tool

pytestmark = [pytest.mark.integration, pytest.mark.anyio]
_WAIT_S = 30.0


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, tool("echo"), admin_port=0) as opened:
        yield opened


async def _until(house: House, status: int, said: str = "") -> dict[str, Any]:
    """The answer of /readyz once it has this status and says this."""
    async with house.http() as http, asyncio.timeout(_WAIT_S):
        while True:
            answer = await http.get("/readyz?verbose")
            if answer.status_code == status and said in answer.text:
                found: dict[str, Any] = answer.json()
                return found
            await asyncio.sleep(0.05)


@pytest.mark.req("HEALTH-01.1")
async def test_probes_answer_with_reasons_and_latencies_on_both_ports(one: House) -> None:
    async with one.http() as http:
        assert (await http.get("/livez")).json() == (await http.get("/startupz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).json() == {
            "status": "ok", "checks": {"jobs": "ok", "flow": "ok", "tasks": "ok", "drain": "ok"},
        }  # fmt: skip
        verbose = (await http.get("/readyz?verbose")).json()["checks"]
        assert verbose["jobs"]["backend"] == "sqlite"
        async with asyncio.timeout(_WAIT_S):
            while not all(0 <= check["latency_ms"] < 1000 for check in verbose.values()):  # a machine may stall
                verbose = (await http.get("/readyz?verbose")).json()["checks"]
        whole = (await http.get("/healthz")).json()
        assert (whole["role"], whole["started"], set(whole["checks"])) == ("gateway", True, set(verbose))
        assert (await http.get("/healthz?stored")).json()["checks"].keys() == verbose.keys()
        assert (await http.get("/readyz?verbos")).status_code == 400
        admin = await http.get(f"http://127.0.0.1:{one.served.admin_port}/readyz?verbose")
        assert (admin.status_code, admin.text.startswith("jobs: ok (")) == (200, True)


def _deaf(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Callable[[], None]:
    """The method of a driver answers no more, as behind a connection that is up and dead; the result heals it."""
    healed, method = asyncio.Event(), getattr(owner, name)

    async def silent(*args: Any, **kwargs: Any) -> Any:
        await healed.wait()
        return await method(*args, **kwargs)

    monkeypatch.setattr(owner, name, silent)
    return healed.set


@pytest.mark.req("HEALTH-02")
async def test_a_relay_that_is_connected_and_deaf_turns_the_gateway_red_until_it_hears_again(
    one: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DEAF_S", 1.5)
    await _until(one, 200)
    heal = _deaf(monkeypatch, one.jobs.driver.outbox, "take")
    found = await _until(one, 503, "the outbox was not looked into for")
    assert found["details"]["checks"]["flow"]["status"] == "failed"
    assert found["details"]["checks"]["jobs"]["status"] == "ok"
    heal()
    await _until(one, 200)


@pytest.mark.req("HEALTH-02")
async def test_a_reader_of_events_that_is_connected_and_deaf_turns_the_gateway_red_until_it_reads_again(
    one: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one.http() as http:
        created = (await http.post("/v1/jobs", json={"tool": "echo", "arguments": {}})).json()
        following = asyncio.create_task(http.get(f"/v1/jobs/{created['job_id']}/result?wait=30"))
        async with asyncio.timeout(_WAIT_S):
            while one.jobs.statistics().followers == 0:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(store, "DEAF_S", 7.0)  # it reads every five seconds
        heal = _deaf(monkeypatch, one.jobs.driver, "events")
        await _until(one, 503, "1 followers wait, and the log of events was not read for")
        heal()
        await _until(one, 200)
        await one.jobs.cancel(created["job_id"])
        assert (await following).json()["state"] == "cancelled"


@pytest.mark.req("HEALTH-01.1")
async def test_a_gateway_that_drains_is_not_ready_and_still_alive(one: House) -> None:
    one.gateway.drain()
    found = await _until(one, 503, "the gateway is shutting down")
    assert found["details"]["checks"]["drain"]["reason"] == "the gateway is shutting down"
    async with one.http() as http:
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/startupz")).status_code == 200
