"""Callers and the instances of a service: whom they know of, and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus, Message, wire
from groundplane.bus.presence import Directory

pytestmark = pytest.mark.anyio


@pytest.mark.req("BUS-05")
async def test_already_the_first_calls_go_to_the_instances_in_turn(tmp_path: Path) -> None:
    """Here, where all of them answer at once when the caller asks who is there."""

    def serving(bus: Bus, instance: str) -> Any:
        async def who() -> str:
            return instance

        return bus.serve("people", {"who": who}, instance=instance)

    async with Bus.open(state=tmp_path) as bus, AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(serving(bus, f"i{number}"))
        assert Counter([await bus.request("people", "who") for _ in range(9)]) == {"i0": 3, "i1": 3, "i2": 3}


@pytest.mark.req("BUS-05")
async def test_who_answers_a_moment_after_the_first_is_known_for_the_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, listening = asyncio.get_running_loop(), list[Any]()

    def here(instance: str) -> Message:
        told = wire.Presence(**wire.head("people"), service="people", instance=instance, methods=["who"], interval=2.0)
        return Message(subject="control.presence.people", payload=wire.write(told, "json"))

    async with Bus.open(state=tmp_path) as bus:
        directory, subscribe = Directory(bus._sender, "people"), bus.driver.subscribe

        async def listen(subject: str, handler: Any) -> Any:
            listening.append(handler)
            return await subscribe(subject, handler)

        async def request(asked: Message, timeout_s: float) -> Message:
            loop.call_later(0.005, listening[0], here("late"))
            return here("first")

        monkeypatch.setattr(bus.driver, "subscribe", listen)
        monkeypatch.setattr(bus.driver, "request", request)
        await directory.ask()
        chosen = {directory.choose("who", "round_robin", None, loop.time()) for _ in range(2)}
        await directory.aclose()
    assert chosen == {"first", "late"}
