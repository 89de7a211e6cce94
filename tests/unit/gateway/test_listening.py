"""How many streams of `subscriptions/listen` are served at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError

from groundplane.gateway.mcp import listening

pytestmark = pytest.mark.anyio


async def test_streams_that_begin_at_the_same_moment_are_no_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "STREAMS_MAX", 1)
    monkeypatch.setattr(listening, "takes_tasks", lambda ctx: True)
    store, acknowledged = asyncio.Event(), asyncio.Event()

    async def read(ctx: Any, task_id: str) -> Any:
        await store.wait()
        return SimpleNamespace(job_id=task_id)

    async def follow(*given: Any) -> None:
        return

    async def send(*given: Any) -> None:
        acknowledged.set()

    monkeypatch.setattr(listening.Listening, "_follow", follow)
    unused: Any = None
    tasks: Any = SimpleNamespace(read=read)
    one = listening.Listening(unused, tasks, resources=False)
    wish = {"notifications": {"taskIds": ["t"]}}
    ctx: Any = SimpleNamespace(params=wish, request_id="r", session=SimpleNamespace(send_notification=send))
    calls = [asyncio.create_task(one(ctx, unused)) for _ in range(3)]
    await asyncio.sleep(0)
    store.set()
    await acknowledged.wait()
    one.drain()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, MCPError) for outcome in ended) == 2
