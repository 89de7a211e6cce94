"""Health: bounded checks, what is kept of them, and what the pages say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from groundplane.core.errors import Unavailable
from groundplane.telemetry.health import STORED_S, Check, Health, backend_of
from groundplane.telemetry.health_pages import answer
from groundplane.telemetry.metrics import render
from groundplane.telemetry.process import HealthCollector, process_registry
from groundplane.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


async def _fine() -> str | None:
    return None


async def _red() -> str | None:
    return "no connection"


def _taking(seconds: float, clock: VirtualClock) -> Check:
    async def check() -> str | None:
        clock.advance(seconds)
        return None

    return check


@pytest.mark.req("HEALTH-01.1")
async def test_the_verbose_page_tells_reason_and_latency_of_each_check() -> None:
    clock = VirtualClock()
    health = Health("sidecar double", clock=clock)
    health.add("queue", _taking(0.007, clock), backend="rabbitmq")
    health.add("runtime", _red)
    status, _, body = await answer(health, "/readyz", "verbose")
    lines = dict(line.split(": ", 1) for line in body.decode().splitlines())
    assert status == 503
    assert lines["queue"].startswith("ok (")
    assert lines["runtime"].startswith("no connection (")
    assert all(line.endswith(" ms)") for line in lines.values())
    status, _, body = await answer(health, "/healthz")
    document = msgspec.json.decode(body)
    assert (status, document["status"], document["role"]) == (503, "failed", "sidecar double")
    assert document["checks"]["queue"]["status"] == "ok"
    assert document["checks"]["queue"]["latency_ms"] == pytest.approx(7.0)
    assert document["checks"]["runtime"]["reason"] == "no connection"


@pytest.mark.req("HEALTH-01.1")
async def test_startup_is_red_until_the_process_began_and_never_again() -> None:
    health = Health("ends")
    health.starting("the queues")
    assert await answer(health, "/startupz") == (503, "text/plain; charset=utf-8", b"waits for the queues\n")
    assert (await answer(health, "/readyz"))[::2] == (503, b"start: waits for the queues\n")
    assert (await answer(health, "/livez"))[::2] == (200, b"ok\n")
    health.started()
    health.add("queue", _red)
    assert (await answer(health, "/startupz"))[0] == 200
    assert (await answer(health, "/readyz"))[::2] == (503, b"queue: no connection\n")


@pytest.mark.req("HEALTH-01.1")
@pytest.mark.parametrize(
    ("backend", "took_s", "slow"),
    [("redis", 0.09, False), ("redis", 0.11, True), ("postgresql", 0.99, False), ("postgresql", 1.01, True)],
)
async def test_an_answer_over_the_usual_time_of_its_backend_is_slow_and_not_red(
    backend: str, took_s: float, slow: bool
) -> None:
    clock = VirtualClock()
    health = Health("gateway", clock=clock)
    health.add("store", _taking(took_s, clock), backend=backend)
    (verdict,) = (await health.ready()).verdicts
    assert (verdict.ok, verdict.slow, bool(verdict.reason)) == (True, slow, slow)
    assert verdict.latency_s == pytest.approx(took_s)


@pytest.mark.req("HEALTH-01.1")
async def test_a_check_that_hangs_is_red_within_its_bound() -> None:
    async def hang() -> str | None:
        await asyncio.Event().wait()
        return None

    health = Health("gateway")
    health.add("cache", hang, backend="redis")
    async with asyncio.timeout(10):
        report = await health.ready()
    assert report.failures == {"cache": "did not answer within 0.5 s"}


async def test_a_check_that_raises_is_red_with_the_reason() -> None:
    async def away() -> str | None:
        raise Unavailable("database: does not answer")

    async def broken() -> str | None:
        raise KeyError("x")

    health = Health("gateway")
    health.add("jobs", away)
    health.add("other", broken)
    assert (await health.ready()).failures == {
        "jobs": "database: does not answer",
        "other": "the check broke: KeyError: 'x'",
    }


async def test_however_many_ask_the_checks_run_once_in_a_quarter_of_a_second() -> None:
    clock, runs = VirtualClock(), 0

    async def count() -> str | None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return None

    health = Health("gateway", clock=clock)
    health.add("jobs", count)
    await asyncio.gather(*(health.ready() for _ in range(100)))
    assert runs == 1
    clock.advance(0.3)
    await health.ready()
    assert runs == 2


@pytest.mark.req("HEALTH-01.2")
async def test_results_are_kept_for_a_minute_and_told_without_asking_again() -> None:
    clock, runs = VirtualClock(), 0

    async def count() -> str | None:
        nonlocal runs
        runs += 1
        return "away" if runs == 1 else None

    health = Health("gateway", clock=clock)
    health.add("jobs", count)
    assert health.results().verdicts == []
    await health.ready()
    clock.advance(STORED_S - 1)
    status, _, body = await answer(health, "/healthz", "stored")
    assert (status, msgspec.json.decode(body)["checks"]["jobs"]["reason"]) == (503, "away")
    clock.advance(2)
    assert msgspec.json.decode((await answer(health, "/healthz", "stored"))[2])["checks"] == {}
    assert runs == 1


async def test_what_the_checks_found_is_a_metric_too() -> None:
    registry = process_registry("test", folder=Path())
    health = Health("test")
    registry.register(HealthCollector(health))
    health.add("queue", _red)
    await health.ready()
    shown = render(registry).decode()
    assert 'groundplane_health_check_ok{check="queue"} 0.0' in shown
    assert "groundplane_ready 0.0" in shown


@pytest.mark.parametrize(
    ("url", "backend"),
    [
        ("embedded://", "sqlite"),
        ("amqps://x@host/", "rabbitmq"),
        ("postgres://h/db", "postgresql"),
        ("s3://bucket", "s3"),
    ],
)
def test_the_backend_is_read_from_the_scheme(url: str, backend: str) -> None:
    assert backend_of(url) == backend
