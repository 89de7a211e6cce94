"""The one number that autoscalers look at: ready, in flight and delayed, added up and told by the admin port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from groundplane.gateway import depth
from groundplane.queues import Queues
from groundplane.queues.port import Nack, OutgoingMessage, QueueSpec
from groundplane.telemetry.admin import serve_admin
from groundplane.telemetry.health import Health
from groundplane.telemetry.metrics import new_registry
from served_gateway import house, tool

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture(params=["embedded", "rabbitmq"])
async def queues(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queues]:
    """Queues as a gateway has them, on each driver."""
    url = "embedded://" if request.param == "embedded" else request.getfixturevalue("rabbitmq_url")
    async with Queues.open(url, state=tmp_path, upgrade=True) as opened:
        await opened.declare(QueueSpec(name="double"))
        yield opened


async def _ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        answer = await http.get(path)
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()


async def _eventually(port: int, counts: dict[str, int], timeout_s: float = 10.0) -> dict[str, Any]:
    """The answer once it has these counts; brokers count a moment later than they confirm."""
    answer: dict[str, Any] = {}
    try:
        async with asyncio.timeout(timeout_s):
            while {name: answer.get(name) for name in counts} != counts:
                _, answer = await _ask(port, "/depth/double")
    except TimeoutError:
        pytest.fail(f"{counts} were not told within {timeout_s:g} s, but {answer}")
    return answer


async def test_ready_and_in_flight_and_delayed_are_one_number(queues: Queues, tmp_path: Path) -> None:
    pages = {depth.PREFIX: depth.depth_page(queues)}
    async with serve_admin("127.0.0.1", 0, new_registry(), Health("test"), pages) as port:
        assert (await _ask(port, "/depth/double"))[1]["depth"] == 0
        await queues.send(*(OutgoingMessage(queue="double", payload=b"now", id=f"n{n}") for n in range(5)))
        await queues.send(
            *(OutgoingMessage(queue="double", payload=b"later", id=f"l{n}", delay_s=600.0) for n in range(3))
        )
        async with queues.consume("double", max_in_flight=3) as consumer:
            held = []
            while len(held) < 3:
                held += await consumer.receive(3 - len(held), 10.0)
            await consumer.settle([Nack(held[0], delay_s=600.0)])
            counts = await _eventually(port, {"ready": 2, "in_flight": 2, "delayed": 4, "depth": 8})
            assert counts["queue"] == "double"
            await consumer.ack(held[1])
            await consumer.ack(held[2])
        await _eventually(port, {"ready": 2, "in_flight": 0, "delayed": 4, "depth": 6})


async def test_a_queue_that_is_not_there_is_no_zero(queues: Queues) -> None:
    pages = {depth.PREFIX: depth.depth_page(queues)}
    async with serve_admin("127.0.0.1", 0, new_registry(), Health("test"), pages) as port:
        status, answer = await _ask(port, "/depth/nobody")
        assert (status, "depth" in answer) == (404, False)
        assert "'nobody'" in answer["error"]
        assert (await _ask(port, "/depth/no%20name"))[0] == 404
        assert (await _ask(port, "/depth/"))[0] == 404


async def test_queues_that_cannot_be_asked_are_no_zero(tmp_path: Path) -> None:
    async with Queues.open("embedded://", state=tmp_path, upgrade=True) as opened:
        pages = {depth.PREFIX: depth.depth_page(opened)}
        async with serve_admin("127.0.0.1", 0, new_registry(), Health("test"), pages) as port:
            await opened.aclose()
            status, answer = await _ask(port, "/depth/double")
    assert (status, "depth" in answer) == (503, False)


async def test_a_driver_that_does_not_answer_is_told_in_time(tmp_path: Path) -> None:
    class Silent:
        async def depth(self, _queue: str) -> None:
            await asyncio.Event().wait()

    pages = {depth.PREFIX: depth.depth_page(Silent(), timeout_s=0.05)}  # type: ignore[arg-type]
    async with serve_admin("127.0.0.1", 0, new_registry(), Health("test"), pages) as port:
        status, answer = await _ask(port, "/depth/double")
    assert (status, answer["error"]) == (503, "queue: 'double' was not counted within 0.05 s")


async def test_the_gateway_tells_it_on_its_admin_port_alone(tmp_path: Path) -> None:
    async with house(tmp_path, tool("echo"), admin_port=0, admin_host="127.0.0.2") as one:
        admin_port = one.served.admin_port
        async with httpx2.AsyncClient() as http:
            found = await http.get(f"http://127.0.0.2:{admin_port}/depth/echo")
            assert found.json()["depth"] == 0
            assert (await http.get(f"{one.url}/depth/echo")).status_code == 404
            with pytest.raises(httpx2.ConnectError):
                await http.get(f"http://127.0.0.1:{admin_port}/depth/echo")
