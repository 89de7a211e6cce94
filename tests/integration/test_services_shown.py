"""Services, instances and leaders where operators look: the page, the metrics, the API; and when the store is away."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
from prometheus_client import generate_latest

from groundplane.bus import Bus
from groundplane.core.retry import RetryPolicy
from groundplane.gateway import services_observer
from groundplane.services import Directory, RegistrationSettings, Registry
from groundplane.services.leadership import Leadership, Policy
from groundplane.testing import eventually, unique
from served_gateway import VALUE, House, actors, double, house, tool
from services_lab import STORES, flaky_registry

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

QUICK = RegistrationSettings(ttl_s=30.0, heartbeat_s=0.3)
AGAIN = RetryPolicy(base_s=0.1, cap_s=0.1)


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(services_observer, "EVERY_S", 0.1)
    async with house(tmp_path, tool("sum", "double", schema=VALUE), registration=QUICK) as opened:
        yield opened


def sample(house_: House, name: str) -> dict[str, float]:
    """The samples of a metric by their labels."""
    text = generate_latest(house_.gateway.registry).decode()
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", text, re.M)
    return {labels: float(value) for labels, value in found}


async def page(http: httpx2.AsyncClient) -> str:
    answer = await http.get("/dashboard/services")
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", answer.text))


@pytest.mark.req("SVC-05")
async def test_the_page_shows_services_instances_and_leaders_without_a_script(one: House) -> None:
    async with (
        one.registry.register("quotes", instance_id="q1", version="1.4.0"),
        Leadership.open(one.registry.kv, "feed", member="q1", policy=Policy(lease_s=30)) as leadership,
        one.http() as http,
    ):
        term = await leadership.elected()

        async def shown() -> bool:
            text = await page(http)
            return f"feed q1 {term}" in text and "q1 quotes ACTIVE" in text and "quotes healthy 1 1 1.4.0" in text

        await eventually(shown)
        heard = (await http.get("/v1/leaders")).json()["leaders"]
        assert [(one["name"], one["leader"], one["term"], one["leaseS"]) for one in heard] == [("feed", "q1", term, 30)]
        assert heard[0]["since"] is not None
        await leadership.resign()
        await eventually(lambda: _nobody(http))


async def _nobody(http: httpx2.AsyncClient) -> bool:
    return "feed nobody" in await page(http)


@pytest.mark.req("BUS-22")
@pytest.mark.parametrize("store", STORES)
async def test_the_page_shows_subscriptions_and_how_far_they_are_behind(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = "embedded://" if store == "embedded" else str(request.getfixturevalue(f"{store}_url"))
    async with (
        house(tmp_path, tool("sum", "double", schema=VALUE), bus=url) as opened,
        Bus.open(url, state=tmp_path, name="shop") as bus,
        opened.http() as http,
    ):

        async def told(*wanted: dict[str, object]) -> bool:
            return bool((await http.get("/v1/subscriptions")).json() == {"subscriptions": list(wanted)})

        await eventually(told)
        assert "Subscriptions" not in await page(http)
        release = asyncio.Event()

        async def held(event: object) -> None:
            await release.wait()

        async with bus.subscribe("orders.*", held, group="billing", prefetch=1) as subscription:
            name = subscription.spec.name
            for number in range(3):
                await bus.publish("orders", "placed", {"id": number})

            async def shown(waiting: int, in_flight: int) -> bool:
                return f"{name} events.orders.* {waiting} {in_flight}" in await page(http)

            await eventually(lambda: shown(2, 1))
            one = {"consumer": name, "pattern": "events.orders.*", "waiting": 2, "inFlight": 1}
            await eventually(lambda: told(one))
            release.set()
            await eventually(lambda: shown(0, 0))


async def test_a_bus_that_is_away_is_said_beside_the_registry(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"nats://127.0.0.1:{nobody.getsockname()[1]}"
        async with house(tmp_path, tool("sum", "double", schema=VALUE), bus=away) as opened, opened.http() as http:
            async with opened.registry.register("quotes", instance_id="q1"):

                async def shown() -> bool:
                    text = await page(http)
                    return "The bus is unavailable; jobs go on without it." in text and "q1 quotes ACTIVE" in text

                await eventually(shown)
                assert (await http.get("/v1/subscriptions")).status_code == 503


@pytest.mark.req("SVC-05")
async def test_metrics_tell_instances_by_status_and_leaders_with_their_term(one: House) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(one.registry.register("quotes", instance_id="q1"))
        sick = one.registry.register("quotes", instance_id="q2", readiness=_red)
        await stack.enter_async_context(sick)
        opening = Leadership.open(one.registry.kv, "feed", member="q1", policy=Policy(lease_s=30))
        leadership = await stack.enter_async_context(opening)
        term = await leadership.elected()

        def of(status: str) -> float | None:
            return sample(one, "groundplane_service_instances").get(f'{{service="quotes",status="{status}"}}')

        await eventually(lambda: (of("ACTIVE"), of("UNHEALTHY")) == (1.0, 1.0))
        await eventually(lambda: sample(one, "groundplane_leader_term") == {'{election="feed"}': term})
        assert sample(one, "groundplane_leader") == {'{election="feed",leader="q1"}': 1.0}
        assert sample(one, "groundplane_leader_since_seconds")['{election="feed"}'] > 1.7e9
        assert sample(one, "groundplane_services_up") == {"": 1.0}
    await eventually(lambda: sample(one, "groundplane_leader") == {'{election="feed",leader=""}': 0.0})
    await eventually(lambda: sample(one, "groundplane_service_instances") == {})


async def _red() -> str:
    return "its feed is away"


async def test_a_leader_that_falls_silent_is_told_no_more_once_its_lease_is_over(one: House) -> None:
    renewed = b'{"schema":1,"member":"here","incarnation":"y","attempt":4,"lease_ms":600000,"term":70003}'
    await one.registry.kv.put("leader/till", renewed)  # first: who has heard of the other has heard of it
    silent = b'{"schema":1,"member":"gone","incarnation":"x","attempt":1,"lease_ms":600}'
    await one.registry.kv.put("leader/feed", silent)
    async with one.http() as http:
        await eventually(lambda: _nobody(http))
        assert (await http.get("/v1/leaders")).json()["leaders"] == [
            {"name": "feed", "leader": None, "term": None, "since": None, "leaseS": None},
            {"name": "till", "leader": "here", "term": 70003, "since": None, "leaseS": 600.0},
        ]


async def test_metrics_are_bounded_and_tell_what_they_leave_out(one: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services_observer, "SERVICES_MAX", 2)
    async with AsyncExitStack() as stack:
        for name in ("a", "b", "c"):
            await stack.enter_async_context(one.registry.register(name, instance_id="one"))
        await eventually(lambda: sample(one, "groundplane_services_untold").get('{kind="services"}') == 1.0)
        assert len(sample(one, "groundplane_service_instances")) == 8


@asynccontextmanager
async def away(state: Path, url: str) -> AsyncIterator[tuple[House, Directory]]:
    """A plane whose services are in a store of keys at `url`."""
    opening = partial(Registry.open, url, namespace=unique("away"), state=state)
    async with Directory.open(opening, retry=AGAIN) as directory:
        async with house(state, tool("sum", "double", schema=VALUE), directory=directory) as one:
            yield one, directory


@pytest.mark.fault
async def test_a_store_of_keys_that_is_down_at_the_start_is_said_on_its_page_and_jobs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_observer, "EVERY_S", 0.1)
    with socket.socket() as taken:  # bound, and nobody listens: refused at once
        taken.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{taken.getsockname()[1]}"
        async with away(tmp_path, url) as (one, directory), actors(one, {"double": double}), one.http() as http:
            assert "The registry is unavailable; jobs go on without it." in await page(http)
            problem = await http.get("/v1/instances/summary")
            assert (problem.status_code, problem.json()["code"]) == (503, "unavailable")
            made = await http.post("/v1/jobs", json={"tool": "sum", "arguments": {"value": 4}})
            job = f"/v1/jobs/{made.json()['job_id']}"

            async def done() -> bool:
                return bool((await http.get(job)).json()["state"] == "succeeded")

            await eventually(done)
            for path in ("/", "/dashboard/tools", "/dashboard/actors", "/dashboard/health"):
                assert (await http.get(path)).status_code == 200
            await eventually(lambda: sample(one, "groundplane_services_up") == {"": 0.0})
            assert sample(one, "groundplane_service_instances") == {}
            assert "away" in repr(directory)


@pytest.mark.fault
async def test_a_store_that_goes_and_comes_back_is_away_and_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_observer, "EVERY_S", 0.1)
    async with (
        flaky_registry(tmp_path / "keys") as (registry, store),
        Directory.open(registry) as directory,
        house(tmp_path, directory=directory) as one,
        one.http() as http,
    ):
        async with registry.register("quotes", instance_id="q1"):
            await eventually(lambda: sample(one, "groundplane_services_up") == {"": 1.0})
            store.down = True
            assert "The registry is unavailable" in await page(http)
            await eventually(lambda: sample(one, "groundplane_services_up") == {"": 0.0})
            assert sample(one, "groundplane_service_instances") == {}  # unknown, and not none
            store.down = False
            await eventually(lambda: sample(one, "groundplane_services_up") == {"": 1.0})
            assert "q1 quotes" in await page(http)


async def test_a_directory_opens_its_registry_once_the_store_is_there(tmp_path: Path) -> None:
    attempts = 0

    @asynccontextmanager
    async def opening() -> AsyncIterator[Registry]:
        nonlocal attempts
        attempts += 1
        async with Registry.open("embedded://", state=tmp_path, upgrade=attempts > 2) as registry:
            yield registry

    (tmp_path / "groundplane.db").touch()
    async with Directory.open(opening, retry=AGAIN) as directory:
        await eventually(lambda: "there" in repr(directory))
        assert await directory.registry.instances() == []


def test_the_metrics_are_in_the_table_of_metrics() -> None:
    from groundplane.cli.metric_table import metric_rows

    rows = {row.name: row for row in metric_rows()}
    assert rows["groundplane_leader"].labels == ("election", "leader")
    assert rows["groundplane_service_instances"].labels == ("service", "status")
