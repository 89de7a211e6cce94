"""The embedded bus passes the suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from groundplane.bus import Bus
from groundplane.bus.conformance import BusConformance


@pytest.mark.req("BUS-20.1")
class TestEmbeddedBus(BusConformance):
    """Through `Bus.open`, on one state folder."""

    @pytest.fixture
    async def bus(self, tmp_path: Path) -> AsyncIterator[Bus]:
        self.state = tmp_path / "state"
        async with Bus.open(state=self.state, namespace="test", name="suite") as bus:
            yield bus

    def another_client(self, instance: str | None = None) -> AbstractAsyncContextManager[Bus]:
        return Bus.open(state=self.state, namespace="test", name="suite", instance=instance)

    def other_plane(self) -> AbstractAsyncContextManager[Bus]:
        return Bus.open(f"embedded://{self.state}", namespace="other", name="suite")
