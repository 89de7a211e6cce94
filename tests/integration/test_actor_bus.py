"""Actors that use the bus, and handlers of the bus that start jobs: real processes, embedded and on NATS, one trace."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus
from groundplane.bus.calling import IDEMPOTENCY_KEY
from groundplane.core.trace_context import parse
from groundplane.jobs import Jobs
from groundplane.jobs.port import JobQuery
from groundplane.telemetry import traces
from groundplane.testing import unique
from groundplane.testing.plugin import run_of
from groundplane.testing.servers.instance import Instance
from integration import dev_plane
from services_lab import STORES
from spans import SOON, Trace, documented, grown

pytestmark = [pytest.mark.anyio, pytest.mark.integration, pytest.mark.otlp]

APP = Path(__file__).resolve().parent.parent / "apps" / "bus_app.py"


@dataclass(frozen=True)
class Shop:
    """The app of these tests, served."""

    url: str
    otlp: str
    folder: Path
    bus: str
    name: str

    def start(self, tool: str, **arguments: Any) -> str:
        status, job = dev_plane.request(f"{self.url}/v1/jobs", {"tool": tool, "arguments": arguments})
        assert status == 202, job
        return str(job["job_id"])

    def result(self, job_id: str) -> Any:
        status, job = dev_plane.request(f"{self.url}/v1/jobs/{job_id}/result?wait=50", timeout_s=60)
        assert (status, job["state"]) == (200, "succeeded"), job
        return job["result"]

    async def jobs(self, item: str) -> set[str]:
        """The jobs that fulfil this."""
        place: Any = {"namespace": self.name, "state": self.folder / "state"}
        async with Jobs.open("embedded://", **place) as jobs:
            listed = (await jobs.list_jobs(JobQuery(tool="fulfil", limit=200))).items
            found = [await jobs.get(one.job_id) for one in listed]
            return {one.job_id for one in found if one.arguments["item"] == item}

    def lines(self, file: str, *words: str) -> list[str]:
        """Those with all of the words."""
        path = self.folder / file
        found = path.read_text().splitlines() if path.exists() else []
        return [line for line in found if all(word in line for word in words)]


@pytest.fixture(scope="module", params=STORES)
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, otlp_server: Instance
) -> Iterator[Shop]:
    folder, name = tmp_path_factory.mktemp("shop"), unique("shop")
    shutil.copy(APP, folder / "app.py")
    with ExitStack() as held:
        url = "embedded://"
        if request.param != "embedded":
            server = request.getfixturevalue(f"{request.param}_server")
            url = held.enter_context(run_of(request.config).namespaces.of(server, lambda: False))
        options = ("dev", "app:app", "--port", "0", "--name", name, "--state", folder / "state", "--json")
        variables = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_server.url, "GROUNDPLANE_BUS_URL": url}
        with dev_plane.serving(*options, folder=folder, ready=False, **variables) as running:
            ready = running.event("ready", 120.0)
            yield Shop(str(ready["url"]), otlp_server.url, folder, url, name)
            assert running.stop(timeout_s=60.0) == 0


@pytest.fixture
async def bus(shop: Shop) -> AsyncIterator[Bus]:
    async with Bus.open(shop.bus, state=shop.folder / "state", namespace=shop.name, name="test") as bus:
        yield bus


@pytest.mark.req("BUS-01", "TEL-05")
async def test_one_trace_leads_from_a_request_over_its_job_to_the_event_of_another_service(
    shop: Shop, bus: Bus
) -> None:
    trace = Trace()
    with traces.Span(parse(trace.header())):
        job = await bus.request("shop", "order", {"item": "lamp"}, timeout_s=60)
    assert shop.result(job)["item"] == "lamp"
    found = grown(
        shop.otlp,
        trace,
        "SERVER shop.order @groundplane-services-shop\n"
        "  PRODUCER create fulfil @groundplane-services-shop\n"
        "    CONSUMER process fulfil @groundplane-actor-fulfil\n"
        "      INTERNAL call fulfil @groundplane-actor-fulfil\n"
        "        CLIENT stock.take @groundplane-actor-fulfil\n"
        "          SERVER stock.take @groundplane-services-shop\n"
        "            CONSUMER process events.stock.taken @groundplane-services-shop\n"
        "            PRODUCER send events.stock.taken @groundplane-services-shop\n"
        "      PRODUCER send happy-end @groundplane-actor-fulfil\n"
        "        CONSUMER process happy-end @groundplane-ends\n"
        "          INTERNAL persist outcome @groundplane-ends\n"
        "    CLIENT send fulfil @groundplane-gateway\n",
    )
    rows = documented()
    assert [span for span in found if not any(row.describes(span) for row in rows)] == []
    assert [row for row in rows if row.of_bus and not any(row.describes(span) for span in found)] == []


@pytest.mark.req("BUS-09", "BUS-13")
async def test_an_actor_that_dies_and_comes_again_publishes_sends_and_starts_what_it_did_before_once(
    shop: Shop, bus: Bus
) -> None:
    item = "desk"
    told = shop.result(shop.start("deliver", item=item))
    assert len(set(told["events"])) == 3, "the same event, published twice by one attempt, is two"
    async with bus.track("shop", "restock", {"item": "marker"}) as last:
        await last.result()
    marker = await bus.publish("stock", "marked", {"item": item})
    dev_plane.eventually(lambda: bool(shop.lines("moved.txt", marker)), "the events do not come", 60)
    seen = Counter(line.rpartition(" ")[0] for line in shop.lines("moved.txt", item))
    assert seen == {
        f"delivered {item}": 2, f"attempted {item}-1": 1, f"attempted {item}-2": 1, f"marked {item}": 1,
        f"taken {item}": seen[f"taken {item}"],
    }  # fmt: skip
    assert {line.rpartition(" ")[2] for line in shop.lines("moved.txt", f"delivered {item}")} == set(told["events"][:2])
    restocked = await _result(bus, told["command"])
    assert await shop.jobs(item) == {told["job"], restocked}


async def _result(bus: Bus, command_id: str) -> Any:
    end = None
    while end is None:
        end = await bus.command_end(command_id)
    return end.result


async def test_a_handler_that_is_tried_again_starts_its_job_once_and_the_same_work_of_others_once(
    shop: Shop, bus: Bus
) -> None:
    async with bus.track("shop", "restock", {"item": "chair"}) as tracked:
        job = await tracked.result()
    assert await shop.jobs("chair") == {job}
    await bus.publish("returns", "sent", {"item": "shelf"})
    dev_plane.eventually(lambda: len(shop.lines("returns.txt")) == 2, "it is not tried again", 60)
    assert await shop.jobs("shelf") == set(shop.lines("returns.txt"))
    same = {IDEMPOTENCY_KEY: unique("key")}
    asked = [await bus.request("shop", "order", {"item": "rug"}, headers=same, timeout_s=60) for _ in range(2)]
    other = await bus.request("shop", "order", {"item": "rug"}, timeout_s=60)
    assert asked[0] == asked[1] != other
    assert await shop.jobs("rug") == {asked[0], other}


@pytest.mark.req("BUS-03")
async def test_the_deadline_of_a_job_bounds_the_calls_of_its_actors_and_its_end_reaches_their_handlers(
    shop: Shop,
) -> None:
    told = shop.result(shop.start("fulfil", item="vase"))
    assert 0 < told["remaining_s"] <= 5
    told = shop.result(shop.start("fulfil", item="vase", timeout_s=600.0))
    assert 5 < told["remaining_s"] <= 60, "the call waits no longer than its job"
    job = shop.start("fulfil", item="lamp", name="stock.count", timeout_s=600.0)
    dev_plane.eventually(lambda: bool(shop.lines("counting.txt", "began")), "it does not begin", 60)
    status, answer = dev_plane.request(f"{shop.url}/v1/jobs/{job}/cancel", {})
    assert status == 200, answer
    dev_plane.eventually(lambda: bool(shop.lines("counting.txt", "given up")), "it is not told", 60)


@pytest.mark.req("BUS-04", "BUS-10")
@pytest.mark.parametrize(
    ("name", "item", "wanted"),
    [
        ("stock.take", "unicorn", ["not_found", "", {"item": "unicorn"}]),
        ("stock.none", "lamp", ["unavailable", "no_responder", {}]),
        ("stock", "lamp", ["invalid_argument", "bad_subject", {}]),
    ],
)
async def test_an_actor_gets_the_errors_of_the_bus_and_of_others_with_their_code(
    shop: Shop, name: str, item: str, wanted: list[Any]
) -> None:
    code, reason, details = shop.result(shop.start("fulfil", name=name, item=item))
    assert [code, reason, {key: details[key] for key in wanted[2]}] == wanted
