"""Death and restarts: QUEUE-03, 06, 07, 12."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import GroundplaneError
from groundplane.queues.client import Queues
from groundplane.queues.conformance.kit import Kit, a_queue, eventually, fill, message, take, take_all
from groundplane.queues.port import Ack


class FaultConformance(Kit):
    """What remains when something is killed. Needs the hooks `die_holding` and `restart`."""

    @pytest.mark.req("QUEUE-03.2", "QUEUE-06")
    async def test_what_a_killed_consumer_held_returns_with_its_attempt_raised(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 8)
        async with queues.consume(queue, max_in_flight=20) as consumer:
            (mine,) = await take(consumer, 1)
            held = await self.die_holding(queue, 3)
            start = time.monotonic()
            got = {one.id: one.attempt for one in await take(consumer, 7, self.death_noticed_s)}
            assert time.monotonic() - start <= self.death_noticed_s
            assert got == {one: 2 if one in held else 1 for one in sent[1:]}
            await consumer.ack(mine)

    @pytest.mark.req("QUEUE-03.2")
    async def test_a_consumer_that_opens_after_the_death_gets_them_too(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 2)
        held = await self.die_holding(queue, 2)
        async with queues.consume(queue, max_in_flight=2) as consumer:
            got = await take(consumer, 2, self.death_noticed_s)
        assert [(one.id, one.attempt) for one in got] == [(one, 2) for one in held]

    @pytest.mark.req("QUEUE-06", "QUEUE-07")
    async def test_crashes_and_retries_are_counted_alike_up_to_the_dead_letter(self, queues: Queues) -> None:
        queue = await a_queue(queues, attempts_max=3)
        await queues.send(message(queue, b"\x00poison", id="m", headers={"traceparent": "00-a-b-01"}))
        await self.die_holding(queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (second,) = await take(consumer, 1, self.death_noticed_s)
            assert second.attempt == 2
            await consumer.nack(second)
        await self.die_holding(queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:

            async def buried() -> bool:
                assert await consumer.receive(1, 0.1) == []
                return bool((await queues.list_dead(queue)).items)

            await eventually(buried, self.death_noticed_s)
        (letter,) = (await queues.list_dead(queue)).items
        assert (letter.reason, letter.attempts, letter.queue) == ("attempts_exhausted", 3, queue)
        assert (letter.payload, letter.trace) == (b"\x00poison", "00-a-b-01")
        await queues.redrive(letter.id)
        (again,) = await take_all(queues, queue)
        assert (again.attempt, again.redrives) == (1, 1)

    @pytest.mark.req("QUEUE-12", "QUEUE-01.1")
    async def test_a_restart_of_the_backend_loses_nothing_and_a_waiting_consumer_goes_on(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 20)
        async with queues.consume(queue, max_in_flight=50) as consumer:
            held = await take(consumer, 20)
            await consumer.settle([Ack(one) for one in held[:10]])
            waiting = asyncio.create_task(_survive(consumer.receive(50, 30)))
            after = await self.restart(queues)
            start = time.monotonic()
            await after.send(message(queue, id="after"))
            await asyncio.wait({waiting}, timeout=2 * self.resumes_s)  # a machine may stall
            assert waiting.done()
            assert time.monotonic() - start <= 2 * self.resumes_s
        left = {one.id: one for one in await take_all(after, queue)}
        assert left.keys() >= {*sent[10:], "after"}
        again = [left[one] for one in sent[:10] if one in left]
        assert all(one.redelivered for one in again) if self.forgets_settlements else not again

    @pytest.mark.req("QUEUE-12")
    async def test_restarts_while_messages_pass_lose_none(self, queues: Queues) -> None:
        source, target = await a_queue(queues, attempts_max=100), await a_queue(queues, attempts_max=100)
        sent: list[str] = []
        stop = asyncio.Event()
        current = await self.restart(queues)

        async def produce() -> None:
            while not stop.is_set():
                one = message(source)
                try:
                    await current.send(one)
                    sent.append(one.id)
                except GroundplaneError:
                    pass  # not acknowledged: it may be there or not
                await asyncio.sleep(0.002)

        async def pass_on() -> None:
            while not stop.is_set():
                try:
                    async with current.consume(source, max_in_flight=10) as consumer:
                        while not stop.is_set():
                            for one in await consumer.receive(5, 0.1):
                                await consumer.settle([Ack(one)], [message(target, id=one.id)])
                except GroundplaneError:
                    await asyncio.sleep(0.002)  # what it held is handed out again

        async def ten_more() -> None:
            least = len(sent) + 10

            async def are_sent() -> bool:
                return len(sent) >= least

            await eventually(are_sent, 60.0)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            group.create_task(pass_on())
            for _ in range(2):
                await ten_more()
                current = await self.restart(current)
            stop.set()
        left = [one.id for one in await take_all(current, source)]
        passed = [one.id for one in await take_all(current, target)]
        assert {*sent} <= {*left, *passed}


async def _survive(call: object) -> None:
    """A receive that goes on or says that the connection broke: both are an answer."""
    try:
        await call  # type: ignore[misc]
    except GroundplaneError:
        return
