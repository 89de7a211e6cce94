"""The order in which a gateway stops, without a port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.gateway import GatewaySettings
from groundplane.gateway.draining import Doorkeeper, Stopping, stop_in_order

pytestmark = pytest.mark.anyio


async def ask(door: Doorkeeper, path: str = "/v1/jobs") -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of an answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await door({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.req("GATE-13")
async def test_requests_are_served_refused_with_a_hint_and_probes_answered_all_the_time() -> None:
    stopping = Stopping()
    door = Doorkeeper(answers, stopping)
    assert await ask(door) == (200, {b"x": b"y"})
    assert await stopping.check() is None
    stopping.leaving = True
    assert await ask(door) == (200, {b"x": b"y", b"connection": b"close"})
    assert await stopping.check() == "the gateway is shutting down"
    stopping.refusing = True
    status, headers = await ask(door)
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
    for probe in ("/livez", "/readyz", "/healthz", "/startupz"):
        assert (await ask(door, probe))[0] == 200


@pytest.mark.req("GATE-13")
async def test_what_was_begun_is_finished_before_anybody_is_told_to_end() -> None:
    stopping, told = Stopping(), []
    stopping.began()

    def drained() -> None:
        told.append("drain")
        asyncio.get_running_loop().call_later(0.05, stopping.ended)

    left = await stop_in_order(stopping, drain=drained, end=lambda: told.append("end"), delay_s=0.0, grace_s=30.0)
    assert told == ["drain"]
    assert 20 < left < 30


@pytest.mark.req("GATE-13")
async def test_what_does_not_finish_is_told_to_end_before_the_grace_is_over() -> None:
    stopping, told = Stopping(), []
    stopping.began()
    left = await stop_in_order(
        stopping, drain=lambda: told.append("drain"), end=lambda: told.append("end"), delay_s=0.0, grace_s=0.4
    )
    assert told == ["drain", "end"]
    assert left <= 0.2


@pytest.mark.req("GATE-13")
async def test_readiness_is_red_for_the_delay_before_anything_is_refused() -> None:
    stopping = Stopping()
    loop = asyncio.get_running_loop()
    began = loop.time()
    drained: list[float] = []
    stop = asyncio.create_task(
        stop_in_order(stopping, drain=lambda: drained.append(loop.time()), end=lambda: None, delay_s=0.2, grace_s=30.0)
    )
    while not stopping.leaving:
        await asyncio.sleep(0)
    assert not drained
    await stop
    assert drained[0] - began >= 0.2


@pytest.mark.parametrize("delay", [-1.0, 30.0])
def test_a_delay_that_leaves_nothing_of_the_grace_is_refused(delay: float) -> None:
    with pytest.raises(InvalidArgument, match=r"drain_delay_s: .* less than the grace"):
        GatewaySettings(drain_delay_s=delay)
