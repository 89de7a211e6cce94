"""The suite that every driver of the bus must pass. Subclass it with one fixture:

    from groundplane.bus import Bus
    from groundplane.bus.conformance import BusConformance

    class TestMyBus(BusConformance):
        @pytest.fixture
        async def bus(self):
            async with MyDriver.open(…) as driver:
                yield Bus(driver, name="suite")

Each test uses services and domains with names of its own. Override the hooks of `Kit` to have second clients, other
planes and dying processes tested too; a hook that is not there is a skip that names it.
"""

from __future__ import annotations

from groundplane.bus.conformance.carrying import CarryingConformance
from groundplane.bus.conformance.commands import CommandConformance
from groundplane.bus.conformance.events import EventConformance
from groundplane.bus.conformance.kit import Kit
from groundplane.bus.conformance.rpc import RpcConformance


class BusConformance(RpcConformance, EventConformance, CommandConformance, CarryingConformance):
    """Everything."""


__all__ = ["BusConformance", "Kit"]
