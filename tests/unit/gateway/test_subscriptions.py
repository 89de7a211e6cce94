"""Who is told that a resource has changed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from groundplane.gateway.mcp.subscriptions import Subscriptions

pytestmark = pytest.mark.anyio

URI = "notes://1"


class Connection:
    """What a session is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()

    async def notify(self, method: str, params: Any) -> None:
        self.told.put_nowait(params["uri"])


class Manager:
    """One session, and a store that answers when it is told to."""

    def __init__(self) -> None:
        self.held = self.made()
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    @staticmethod
    def made() -> Any:
        return SimpleNamespace(session_id="s", connection=Connection(), streams=1)

    def streaming(self) -> list[Any]:
        return [self.held]

    def holds(self, held: Any) -> bool:
        return held is self.held

    async def subscriptions(self, held: Any) -> tuple[str, ...]:
        self.asked.set()
        await self.answers.wait()
        return (URI,)


async def test_a_session_that_is_adopted_again_while_the_store_is_asked_is_told_on_its_new_connection() -> None:
    manager: Any = Manager()
    unused: Any = None
    listening: Any = SimpleNamespace(resource_updated=lambda uri: None)
    one = Subscriptions(unused, unused, listening, manager, {"note": [URI]})
    telling = asyncio.create_task(one._tell([URI]))
    await manager.asked.wait()
    one.forget("s")
    manager.held = manager.made()
    manager.answers.set()
    await telling
    await one._tell([URI])
    async with asyncio.timeout(20):
        assert await manager.held.connection.told.get() == URI
    one.forget("s")
