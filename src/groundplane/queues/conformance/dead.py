"""Dead letters: QUEUE-07 and QUEUE-08."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import InvalidArgument, NotFound, ResourceExhausted
from groundplane.queues.client import Queues
from groundplane.queues.conformance.kit import QUIET_S, Kit, a_queue, fill, message, take, take_all, take_one
from groundplane.queues.port import MESSAGE_BYTES_MAX, Capability, Reject

_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def _bury(queues: Queues, queue: str, count: int) -> list[str]:
    """Make `count` dead letters; their ids, oldest first."""
    await queues.send(*(message(queue, b"%d" % n, headers={"traceparent": _TRACE}) for n in range(count)))
    async with queues.consume(queue, max_in_flight=count) as consumer:
        for one in await take(consumer, count):
            await consumer.reject(one, "bad")
    return [letter.id for letter in (await queues.list_dead(queue, limit=1000)).items][-count:]


class DeadLetterConformance(Kit):
    """What an operator may rely on."""

    @pytest.mark.req("QUEUE-08.1")
    async def test_dead_letters_are_listed_oldest_first_page_by_page(self, queues: Queues) -> None:
        queue, other = await a_queue(queues), await a_queue(queues)
        ids = await _bury(queues, queue, 7)
        await _bury(queues, other, 2)
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            page = await queues.list_dead(queue, cursor=cursor, limit=3)
            found += page.items
            cursor, pages = page.cursor, pages + 1
        assert pages == 3
        assert [letter.id for letter in found] == ids
        assert [letter.payload for letter in found] == [b"%d" % n for n in range(7)]
        everywhere = (await queues.list_dead(limit=1000)).items
        assert {letter.queue for letter in everywhere} >= {queue, other}
        assert (await queues.list_dead(queue, limit=7)).cursor is None

    @pytest.mark.req("QUEUE-08.1")
    async def test_dead_letters_that_do_not_exist_are_not_found(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        (dead_id,) = await _bury(queues, queue, 1)
        await queues.purge(dead_id)
        for missing in (dead_id, "no-such-letter", ""):
            with pytest.raises(NotFound):
                await queues.get_dead(missing)
            with pytest.raises(NotFound):
                await queues.redrive(missing)
        with pytest.raises(NotFound):
            await queues.list_dead("no-such-queue")
        with pytest.raises(InvalidArgument, match=r"^limit: "):
            await queues.list_dead(queue, limit=0)
        with pytest.raises(InvalidArgument, match=r"^cursor: "):
            await queues.list_dead(queue, cursor="no-such-cursor")

    @pytest.mark.req("QUEUE-08.2")
    async def test_redriving_keeps_id_trace_and_payload_and_counts_redrives(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await queues.send(message(queue, b"\xff", id="m", headers={"traceparent": _TRACE, "a": "b"}))
        for redrives in range(3):
            async with queues.consume(queue, max_in_flight=1) as consumer:
                (held,) = await take(consumer, 1)
                assert (held.id, held.payload, held.attempt, held.redrives) == ("m", b"\xff", 1, redrives)
                assert held.headers == {"traceparent": _TRACE, "a": "b"}
                await consumer.nack(held)
                (held,) = await take(consumer, 1)
                assert (held.attempt, held.redrives) == (2, redrives)
                await consumer.reject(held, "bad")
            (letter,) = (await queues.list_dead(queue)).items
            assert (letter.redrives, letter.trace, letter.enqueued_at) == (redrives, _TRACE, held.enqueued_at)
            await queues.redrive(letter.id)
            depth = await queues.depth(queue)
            assert (depth.ready, depth.dead) == (1, 0)

    @pytest.mark.req("QUEUE-08.1")
    async def test_an_edited_redrive_carries_the_new_bytes(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        first, second = await _bury(queues, queue, 2)
        await queues.redrive(first, payload=b"")
        await queues.redrive(second, payload=b"mended \x00")
        got = await take_all(queues, queue)
        assert [one.payload for one in got] == [b"", b"mended \x00"]
        assert {one.headers["traceparent"] for one in got} == {_TRACE}

    @pytest.mark.req("QUEUE-08.1", "QUEUE-11.2")
    async def test_an_edited_redrive_over_the_limit_is_refused_and_the_letter_stays(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        (dead_id,) = await _bury(queues, queue, 1)
        with pytest.raises(InvalidArgument, match=str(MESSAGE_BYTES_MAX)):
            await queues.redrive(dead_id, payload=b"x" * MESSAGE_BYTES_MAX)
        assert (await queues.get_dead(dead_id)).payload == b"0"

    @pytest.mark.req("QUEUE-08.1")
    async def test_redriving_twice_sends_once(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        (dead_id,) = await _bury(queues, queue, 1)
        results = await asyncio.gather(*(queues.redrive(dead_id) for _ in range(5)), return_exceptions=True)
        assert sum(result is None for result in results) == 1
        assert sum(isinstance(result, NotFound) for result in results) == 4
        assert len(await take_all(queues, queue)) == 1

    @pytest.mark.req("QUEUE-08.1")
    async def test_a_redriven_message_is_not_dropped_as_a_repeat(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await queues.send(message(queue, id="m", dedup_key="k"))
        async with queues.consume(queue, max_in_flight=1) as consumer:
            await consumer.reject((await take(consumer, 1))[0], "bad")
        (letter,) = (await queues.list_dead(queue)).items
        await queues.redrive(letter.id)
        assert (await take_one(queues, queue)).id == "m"

    @pytest.mark.req("QUEUE-08.1")
    async def test_all_of_a_queue_are_redriven_in_order_and_others_left(self, queues: Queues) -> None:
        queue, other = await a_queue(queues), await a_queue(queues)
        await _bury(queues, queue, 12)
        await _bury(queues, other, 1)
        assert await queues.redrive_all(queue, limit=5) == 5
        assert (await queues.depth(queue)).dead == 7
        assert await queues.redrive_all(queue) == 7
        assert await queues.redrive_all(queue) == 0
        assert [one.payload for one in await take_all(queues, queue)] == [b"%d" % n for n in range(12)]
        assert (await queues.depth(other)).dead == 1

    @pytest.mark.req("QUEUE-08.1")
    async def test_a_rate_limited_redrive_takes_its_time(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await _bury(queues, queue, 6)
        start = time.monotonic()
        assert await queues.redrive_all(queue, rate_per_s=20) == 6
        took_s = time.monotonic() - start
        assert 0.24 <= took_s < 5
        with pytest.raises(InvalidArgument, match=r"^rate_per_s: "):
            await queues.redrive_all(queue, rate_per_s=0)

    @pytest.mark.req("QUEUE-08.1")
    async def test_bulk_redrive_ends_although_what_it_sends_dies_again(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await _bury(queues, queue, 5)
        redriving = asyncio.create_task(queues.redrive_all(queue, rate_per_s=50))
        async with queues.consume(queue, max_in_flight=1) as consumer:
            for _ in range(5):
                await consumer.reject((await take(consumer, 1))[0], "still bad")
        assert await redriving == 5
        letters = (await queues.list_dead(queue)).items
        assert [(letter.reason, letter.redrives) for letter in letters] == [("still bad", 1)] * 5

    @pytest.mark.req("QUEUE-08.1")
    async def test_purged_dead_letters_are_gone_and_counted(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        ids = await _bury(queues, queue, 4)
        assert await queues.purge(ids[0], ids[2], "no-such-letter") == 2
        assert await queues.purge(ids[0]) == 0
        assert await queues.purge() == 0
        assert [letter.id for letter in (await queues.list_dead(queue)).items] == [ids[1], ids[3]]

    @pytest.mark.req("QUEUE-08.1")
    async def test_a_bulk_purge_takes_the_oldest_of_its_queue_alone(self, queues: Queues) -> None:
        queue, other = await a_queue(queues), await a_queue(queues)
        ids = await _bury(queues, queue, 4)
        await _bury(queues, other, 1)
        with pytest.raises(InvalidArgument, match=r"^limit: "):
            await queues.purge_all(queue, limit=0)
        assert await queues.purge_all(queue, limit=3) == 3
        assert [letter.id for letter in (await queues.list_dead(queue)).items] == ids[3:]
        assert await queues.purge_all(queue) == 1
        assert await queues.purge_all(queue) == 0
        assert (await queues.depth(other)).dead == 1

    @pytest.mark.req("QUEUE-08.1")
    async def test_a_full_queue_refuses_a_redrive_and_the_letter_stays_dead(self, queues: Queues) -> None:
        queue = await a_queue(queues, depth_max=1)
        (dead_id,) = await _bury(queues, queue, 1)
        await fill(queues, queue, 1)
        with pytest.raises(ResourceExhausted):
            await queues.redrive(dead_id)
        assert (await queues.depth(queue)).dead == 1
        await take_all(queues, queue)
        await queues.redrive(dead_id)
        assert (await take_one(queues, queue)).redrives == 1

    @pytest.mark.req("QUEUE-08.1")
    async def test_a_rejection_and_the_report_of_it_are_one_step(self, queues: Queues) -> None:
        queue, errors = await a_queue(queues), await a_queue(queues)
        await fill(queues, queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (held,) = await take(consumer, 1)
            with pytest.raises(NotFound):
                await consumer.settle([Reject(held, "bad")], [message("no-such-queue")])
            if Capability.ATOMIC_SETTLE in queues.driver.capabilities:
                assert (await queues.depth(queue)).dead == 0
            await consumer.settle([Reject(held, "bad")], [message(errors, held.payload)])
            assert await consumer.receive(1, QUIET_S) == []
        assert (await queues.depth(queue)).dead == 1
        assert (await queues.depth(errors)).ready == 1
