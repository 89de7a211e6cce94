"""Processes that wait for their servers, and are told to stop meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import Unavailable
from groundplane.mesh import ends_process
from groundplane.mesh.sidecar.process import EXIT_OK, ToldToStop, open_patiently

pytestmark = pytest.mark.anyio


class Away:
    """A server that is not there, and who asked for it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.told: list[str] = []

    @asynccontextmanager
    async def open(self, *given: Any, **more: Any) -> Any:
        self.asked.set()
        raise Unavailable("store: is away")
        yield

    def tell(self, error: Unavailable) -> None:
        self.told.append(error.message)


async def test_what_is_waited_for_is_told_and_a_stop_ends_the_wait_as_no_failure() -> None:
    away, stop = Away(), asyncio.Event()
    async with AsyncExitStack() as stack:
        waiting = asyncio.create_task(open_patiently(stack, "jobs", away.open, stop, 1000.0, away=away.tell))
        await away.asked.wait()
        stop.set()
        with pytest.raises(ToldToStop):
            await waiting
    assert away.told[:1] == ["store: is away"]


@pytest.mark.req("MESH-19")
async def test_a_process_that_is_told_to_stop_while_it_waits_for_its_second_server_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away()
    monkeypatch.setattr(ends_process.Jobs, "open", away.open)
    config = ends_process.EndsConfig(state=str(tmp_path), declare=True, start_timeout_s=1000.0)
    ends = ends_process.Ends(config)
    running = asyncio.create_task(ends.run())
    async with asyncio.timeout(60):
        await away.asked.wait()
        ends.stop()
        assert await running == EXIT_OK
