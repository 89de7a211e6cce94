"""Callers and the instances of a service: whom they know of, and when."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus

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
