"""Closing: after it, at the same time, and under blocked calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from groundplane.core.errors import Closed
from groundplane.queues.client import Queues
from groundplane.queues.conformance.kit import Kit, a_queue, fill, message, take, take_all
from groundplane.queues.port import QueueSpec

_CALLS: dict[str, Callable[[Queues], Awaitable[object]]] = {
    "declare": lambda q: q.declare(QueueSpec(name="x")),
    "queues": lambda q: q.queues(),
    "send": lambda q: q.send(message("x")),
    "depth": lambda q: q.depth("x"),
    "list_dead": lambda q: q.list_dead(),
    "get_dead": lambda q: q.get_dead("1"),
    "redrive": lambda q: q.redrive("1"),
    "redrive_all": lambda q: q.redrive_all("x"),
    "purge": lambda q: q.purge("1"),
    "purge_all": lambda q: q.purge_all("x"),
    "consume": lambda q: q.consume("x").__aenter__(),
}


class ClosingConformance(Kit):
    """What whoever closes may rely on."""

    @pytest.mark.parametrize("name", _CALLS)
    async def test_every_call_after_closing_is_refused(self, queues: Queues, name: str) -> None:
        await queues.aclose()
        with pytest.raises(Closed):
            await _CALLS[name](queues)

    async def test_closing_twice_and_at_once_is_one_closing(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 1)
        await asyncio.gather(*(queues.aclose() for _ in range(4)))
        await queues.aclose()

    async def test_closing_ends_a_blocked_receive(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            blocked = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0.05)
            start = time.monotonic()
            await queues.aclose()
            with pytest.raises(Closed):
                await blocked
            assert time.monotonic() - start < 5
            with pytest.raises(Closed):
                await consumer.receive(1, 0)

    async def test_closing_a_consumer_ends_its_blocked_receive_alone(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with queues.consume(queue, max_in_flight=1) as first, queues.consume(queue, max_in_flight=1) as second:
            blocked = [asyncio.create_task(one.receive(1)) for one in (first, second)]
            await asyncio.sleep(0.05)
            await asyncio.gather(first.aclose(), first.aclose())
            with pytest.raises(Closed):
                await blocked[0]
            await fill(queues, queue, 1)
            assert len(await blocked[1]) == 1

    async def test_closing_hands_back_without_costing_an_attempt(self, queues: Queues) -> None:
        queue = await a_queue(queues, attempts_max=1)
        sent = await fill(queues, queue, 20)
        async with self.another_client() as other:
            async with other.consume(queue, max_in_flight=15) as consumer:
                await take(consumer, 15)
                await other.aclose()
        got = await take_all(queues, queue)
        assert [one.id for one in got] == sent
        assert {one.attempt for one in got} == {1}

    async def test_closing_during_calls_leaves_each_done_or_undone(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with self.another_client() as other:
            sends = [asyncio.create_task(other.send(message(queue, id=str(n)))) for n in range(50)]
            await asyncio.sleep(0)
            await other.aclose()
            results = await asyncio.gather(*sends, return_exceptions=True)
        assert all(result is None or isinstance(result, Closed) for result in results)
        got = {int(one.id) for one in await take_all(queues, queue)}
        assert {n for n, result in enumerate(results) if result is None} <= got
        assert len(got) <= 50
