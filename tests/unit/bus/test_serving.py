"""What a server does with requests that meet their cancelling."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from groundplane.bus import Bus, wire
from groundplane.bus.port import Message
from groundplane.testing import eventually

pytestmark = pytest.mark.anyio


@pytest.mark.req("BUS-03")
async def test_a_request_is_cancelled_although_its_cancelling_comes_in_the_same_packet(tmp_path: Path) -> None:
    async def buy() -> None:
        await asyncio.Event().wait()

    asked = wire.RpcRequest(**wire.head("caller"), target="desk", method="buy", timeout=600.0)
    cancel = wire.RpcCancel(**wire.head("caller"), correlation_id=asked.message_id)
    async with Bus.open(state=tmp_path, upgrade=True) as bus, bus.serve("desk", {"buy": buy}) as server:
        server._take("buy", Message(subject="rpc.desk.buy", payload=wire.write(asked, "msgpack")))
        server._cancel(Message(subject="control.cancel.desk", payload=wire.write(cancel, "msgpack")))
        await eventually(lambda: bus.statistics().served == {"cancelled": 1})
        assert (server._calls, server._by_id) == (set(), {})
