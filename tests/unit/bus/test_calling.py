"""The ids of what one piece of work sends: the same when it is repeated, and never those of something else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from groundplane.bus import Bus
from groundplane.core.errors import DeadlineExceeded, InvalidArgument, Unavailable, Unsupported

pytestmark = pytest.mark.anyio


async def test_repeated_work_sends_the_same_ids_in_whatever_order_and_others_where_anything_differs(
    tmp_path: Path,
) -> None:
    async with Bus.open(state=tmp_path) as bus:
        first, again, other = bus.calls("work/1"), bus.calls("work/1"), bus.calls("work/2")
        ids = [await first.publish("orders.placed", {"id": number, "of": "a"}) for number in (1, 2, 1)]
        assert len(set(ids)) == 3, "the same content, sent twice by one run, is two messages"
        repeated = [await again.publish("orders.placed", {"of": "a", "id": number}) for number in (2, 1, 1)]
        assert repeated == [ids[1], ids[0], ids[2]]
        others = [
            await again.publish("orders.placed", {"id": 3, "of": "a"}),
            await again.publish("orders.moved", {"id": 2, "of": "a"}),
            await again.publish("orders.placed", {"id": 2, "of": "a"}, version="2.0"),
            await other.publish("orders.placed", {"id": 2, "of": "a"}),
            await again.send("orders.placed", {"id": 2, "of": "a"}),
        ]
        assert len({*ids, *others}) == len(ids) + len(others)
        assert await first.publish("orders.placed", event_id="mine") == "mine"


async def test_what_could_not_be_sent_has_the_same_id_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def publish(*_: Any, event_id: str, **__: Any) -> str:
        tried.append(event_id)
        if len(tried) == 2:
            raise Unavailable("bus: away")
        return event_id

    async with Bus.open(state=tmp_path) as bus:
        monkeypatch.setattr(bus, "publish", publish)
        calls = bus.calls("work")
        await calls.publish("a.b")
        with pytest.raises(Unavailable):
            await calls.publish("a.b")
        await calls.publish("a.b")
        await calls.publish("a.b")
    assert tried[1] == tried[2]
    assert len(set(tried)) == 3


async def test_the_end_of_the_work_ends_what_it_asks(tmp_path: Path) -> None:
    async with Bus.open(state=tmp_path) as bus:

        async def silent() -> None:
            await asyncio.Event().wait()

        async with bus.serve("quotes", {"get": silent}):
            calls = bus.calls("work", until=asyncio.get_running_loop().time() + 0.2)
            with pytest.raises(DeadlineExceeded):
                await calls.call("quotes.get", timeout_s=600)


@pytest.mark.parametrize("name", ["orders", ".placed", "orders.", "", 7])
async def test_names_are_two_joined_by_a_dot(tmp_path: Path, name: Any) -> None:
    async with Bus.open(state=tmp_path) as bus:
        calls = bus.calls("work")
        for ask in (calls.call, calls.publish, calls.send):
            with pytest.raises(InvalidArgument, match="name: "):
                await ask(name)
        with pytest.raises(Unsupported, match="start_job: "):
            await calls.start_job("tool")
