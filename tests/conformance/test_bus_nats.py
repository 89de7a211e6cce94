"""The bus on NATS passes the suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest

from groundplane.bus import Bus
from groundplane.bus.conformance import BusConformance


class TestNatsBus(BusConformance):
    """Through `Bus.open`, each test in an account of its own."""

    @pytest.fixture
    async def bus(self, nats_url: str) -> AsyncIterator[Bus]:
        self.url = nats_url
        async with Bus.open(nats_url, namespace="test", name="suite") as bus:
            yield bus

    def another_client(self, instance: str | None = None) -> AbstractAsyncContextManager[Bus]:
        return Bus.open(self.url, namespace="test", name="suite", instance=instance)

    def other_plane(self) -> AbstractAsyncContextManager[Bus]:
        return Bus.open(self.url, namespace="other", name="suite")
