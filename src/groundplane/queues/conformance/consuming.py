"""Receiving and settling: QUEUE-03, 04, 06, 07, and what declared capabilities promise."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import (
    Closed,
    ErrorRecord,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from groundplane.queues import port
from groundplane.queues.client import Queues
from groundplane.queues.conformance.kit import (
    QUIET_S,
    Kit,
    a_queue,
    eventually,
    fill,
    message,
    take,
    take_all,
    take_one,
)
from groundplane.queues.port import Ack, Capability, Delivery, Nack, Reject, Settlement


class ConsumingConformance(Kit):
    """What a consumer may rely on."""

    @pytest.mark.req("QUEUE-03.1")
    async def test_no_more_than_max_in_flight_are_handed_out(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 10)
        async with queues.consume(queue, max_in_flight=3) as consumer:
            held = await take(consumer, 3)
            assert await consumer.receive(10, QUIET_S) == []
            waiting = asyncio.create_task(consumer.receive(10, 5))
            await consumer.settle([Ack(held[0]), Ack(held[1])])
            assert len(await waiting) in (1, 2)
            assert (await queues.depth(queue)).in_flight <= 3

    @pytest.mark.req("QUEUE-03.1")
    async def test_receive_gives_at_most_its_limit_and_waits_no_longer_than_told(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 5)
        async with queues.consume(queue, max_in_flight=100) as consumer:
            assert len(await consumer.receive(2, 5)) == 2
            await take(consumer, 3)
            start = time.monotonic()
            assert await consumer.receive(1, 0) == []
            assert time.monotonic() - start < 3
            start = time.monotonic()
            assert await consumer.receive(1, 0.2) == []
            assert 0.19 <= time.monotonic() - start < 3

    async def test_a_waiting_receive_is_woken_by_a_send(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            waiting = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0)
            await queues.send(message(queue, id="it"))
            assert [one.id for one in await asyncio.wait_for(waiting, 5)] == ["it"]

    async def test_two_consumers_share_a_queue_without_repeats(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 200)
        got: list[str] = []

        async def work(client: Queues) -> None:
            async with client.consume(queue, max_in_flight=7) as consumer:
                while (batch := await consumer.receive(7, QUIET_S)) or len(got) < len(sent):
                    got.extend(one.id for one in batch)
                    await consumer.settle([Ack(one) for one in batch])

        async with self.another_client() as other:
            await asyncio.gather(work(queues), work(queues), work(other))
        assert sorted(got) == sorted(sent)
        assert (await queues.depth(queue)).total == 0

    async def test_a_second_receive_at_once_is_refused(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            waiting = asyncio.create_task(consumer.receive(1))
            await asyncio.sleep(0)
            with pytest.raises(FailedPrecondition):
                await consumer.receive(1, 0)
            await fill(queues, queue, 1)
            assert len(await waiting) == 1

    @pytest.mark.req("QUEUE-04.1")
    async def test_an_acknowledged_message_is_gone_and_a_nacked_one_returns(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 2)
        async with queues.consume(queue, max_in_flight=2) as consumer:
            first, second = await take(consumer, 2)
            await consumer.ack(first)
            start = time.monotonic()
            await consumer.nack(second, 0.3)
            (again,) = await take(consumer, 1)
            assert time.monotonic() - start >= 0.298
            assert (again.id, again.attempt, again.payload) == (second.id, 2, second.payload)
            assert again.enqueued_at == second.enqueued_at
            await consumer.ack(again)
        assert (await queues.depth(queue)).total == 0

    @pytest.mark.req("QUEUE-10.2")
    async def test_a_retried_message_does_not_hold_up_those_behind_it(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        first, *rest = await fill(queues, queue, 5)
        got = []
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (retried,) = await take(consumer, 1)
            await consumer.nack(retried, 3600)
            for _ in rest:
                (one,) = await take(consumer, 1)
                got.append(one.id)
                await consumer.ack(one)
            assert (await queues.depth(queue)).delayed == 1
        assert (retried.id, got) == (first, rest)
        assert "best effort otherwise" in " ".join((port.__doc__ or "").split())

    @pytest.mark.req("QUEUE-04.1")
    async def test_many_settlements_in_one_call_each_have_their_effect(self, queues: Queues) -> None:
        queue, target = await a_queue(queues), await a_queue(queues)
        await fill(queues, queue, 6)
        async with queues.consume(queue, max_in_flight=6) as consumer:
            a, b, c, d, e, f = await take(consumer, 6)
            outcome: list[Settlement] = [
                Ack(a),
                Nack(b),
                Reject(c, "bad"),
                Nack(d, 3600),
                Nack(e, counts=False),
                Ack(f),
            ]
            await consumer.settle(outcome, [message(target)])
            depth = await queues.depth(queue)
            assert (depth.ready, depth.in_flight, depth.delayed, depth.dead) == (2, 0, 1, 1)
            assert (await queues.depth(target)).ready == 1
            again = {one.id: one.attempt for one in await take(consumer, 2)}
            assert again == {b.id: 2, e.id: 1}

    @pytest.mark.req("QUEUE-04.2")
    async def test_settling_twice_is_refused_whatever_the_settlement(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 3)
        async with queues.consume(queue, max_in_flight=3) as consumer:
            acked, nacked, rejected = await take(consumer, 3)
            await consumer.settle([Ack(acked), Nack(nacked, 3600), Reject(rejected, "bad")])
            for one in (acked, nacked, rejected):
                again: list[Settlement] = [Ack(one), Nack(one), Reject(one, "worse")]
                for settlement in again:
                    with pytest.raises(FailedPrecondition) as caught:
                        await consumer.settle([settlement])
                    assert caught.value.reason == "delivery_settled"
        depth = await queues.depth(queue)
        assert (depth.ready, depth.delayed, depth.dead) == (0, 1, 1)

    @pytest.mark.req("QUEUE-04.2")
    async def test_settling_twice_at_once_or_in_one_call_is_refused(self, queues: Queues) -> None:
        queue, target = await a_queue(queues), await a_queue(queues)
        await fill(queues, queue, 2)
        async with queues.consume(queue, max_in_flight=2) as consumer:
            first, second = await take(consumer, 2)
            calls = [consumer.settle([Ack(first)], [message(target)]) for _ in range(5)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(result is None for result in results) == 1
            assert all(isinstance(result, FailedPrecondition) for result in results if result is not None)
            with pytest.raises(FailedPrecondition):
                await consumer.settle([Ack(second), Nack(second)])
            await consumer.ack(second)
        assert (await queues.depth(target)).ready == 1

    @pytest.mark.req("QUEUE-02", "QUEUE-04.1")
    async def test_a_missing_queue_among_the_sends_leaves_everything_as_it_was(self, queues: Queues) -> None:
        queue, target = await a_queue(queues), await a_queue(queues)
        await fill(queues, queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (held,) = await take(consumer, 1)
            with pytest.raises(NotFound) as caught:
                await consumer.settle([Ack(held)], [message(target), message("no-such-queue")])
            assert caught.value.reason == "queue_not_found"
            assert (await queues.depth(queue)).in_flight == 1
            if Capability.ATOMIC_SETTLE in queues.driver.capabilities:
                assert (await queues.depth(target)).total == 0
            await consumer.ack(held)

    async def test_concurrent_settlements_do_not_fail_for_the_mistake_of_one(self, queues: Queues) -> None:
        queue, target, full = await a_queue(queues), await a_queue(queues), await a_queue(queues, depth_max=1)
        await fill(queues, full, 1)
        await fill(queues, queue, 30)
        async with queues.consume(queue, max_in_flight=30) as consumer:
            held = await take(consumer, 30)
            targets = [(target, full, "no-such-queue")[n % 3] for n in range(30)]
            calls = [consumer.settle([Ack(one)], [message(to)]) for one, to in zip(held, targets, strict=True)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [type(None), ResourceExhausted, NotFound] * 10
            depth = await queues.depth(queue)
            assert (depth.in_flight, depth.ready) == (20, 0)
        assert (await queues.depth(target)).ready == 10

    @pytest.mark.req("QUEUE-06", "QUEUE-07")
    async def test_after_the_last_attempt_a_message_is_a_dead_letter_with_its_story(self, queues: Queues) -> None:
        queue = await a_queue(queues, attempts_max=3)
        headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        await queues.send(message(queue, b"\xffdata", id="m", headers=headers))
        error = ErrorRecord("internal", "it broke", "processing_error", {"n": 1}, True, "ValueError", "Traceback …")
        attempts = []
        async with queues.consume(queue, max_in_flight=1) as consumer:
            for _ in range(3):
                (held,) = await take(consumer, 1)
                attempts.append((held.attempt, held.enqueued_at))
                await consumer.nack(held, error=error)
            assert await consumer.receive(1, QUIET_S) == []
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        (letter,) = (await queues.list_dead(queue)).items
        assert (letter.queue, letter.message_id, letter.payload) == (queue, "m", b"\xffdata")
        assert (letter.reason, letter.attempts, letter.redrives) == ("attempts_exhausted", 3, 0)
        assert (letter.error, letter.headers, letter.trace) == (error, headers, headers["traceparent"])
        assert {letter.enqueued_at} == {at for _, at in attempts}
        assert letter.enqueued_at <= letter.died_at
        assert await queues.get_dead(letter.id) == letter

    @pytest.mark.req("QUEUE-07")
    async def test_five_attempts_are_the_default(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            for _ in range(5):
                await consumer.nack((await take(consumer, 1))[0])
        depth = await queues.depth(queue)
        assert (depth.dead, depth.total) == (1, 0)

    @pytest.mark.req("QUEUE-06")
    async def test_an_attempt_that_the_sender_counted_goes_on_from_there(self, queues: Queues) -> None:
        queue = await a_queue(queues, attempts_max=3)
        await queues.send(message(queue, attempt=3), message(queue, id="beyond", attempt=4))
        async with queues.consume(queue, max_in_flight=2) as consumer:
            (held,) = await take(consumer, 1)
            assert held.attempt == 3
            await consumer.nack(held)
            assert await consumer.receive(1, QUIET_S) == []
        letters = (await queues.list_dead(queue)).items
        assert {(letter.attempts, letter.reason) for letter in letters} == {(3, "attempts_exhausted")}
        assert len(letters) == 2

    @pytest.mark.req("QUEUE-06")
    async def test_handing_back_costs_no_attempt_however_often(self, queues: Queues) -> None:
        queue = await a_queue(queues, attempts_max=2)
        await fill(queues, queue, 1)
        for _ in range(4):
            async with queues.consume(queue, max_in_flight=1) as consumer:
                (held,) = await take(consumer, 1)
                await consumer.nack(held, counts=False)
                (held,) = await take(consumer, 1)
                assert held.attempt == 1
        assert (await take_one(queues, queue)).attempt == 1

    @pytest.mark.req("QUEUE-04.1")
    async def test_a_rejected_message_is_a_dead_letter_at_once(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 1)
        error = ErrorRecord("invalid_argument", "no JSON")
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (held,) = await take(consumer, 1)
            await consumer.reject(held, "msg_parsing_error", error)
        (letter,) = (await queues.list_dead(queue)).items
        assert (letter.reason, letter.error, letter.attempts) == ("msg_parsing_error", error, 1)
        assert letter.payload == held.payload

    async def test_a_cancelled_receive_loses_nothing_and_costs_no_attempt(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 40)
        got: list[str] = []
        async with queues.consume(queue, max_in_flight=5) as consumer:
            for step in range(400):
                receiving = asyncio.create_task(consumer.receive(3, 2))
                for _ in range(step % 17):
                    await asyncio.sleep(0)
                receiving.cancel()
                try:
                    batch = await receiving
                except asyncio.CancelledError:
                    continue
                assert {one.attempt for one in batch} == {1}
                got += [one.id for one in batch]
                await consumer.settle([Ack(one) for one in batch])
                if len(got) == len(sent):
                    break
            while len(got) < len(sent):
                (one,) = await take(consumer, 1)
                assert one.attempt == 1
                got.append(one.id)
                await consumer.ack(one)
        assert got == sent
        assert (await queues.depth(queue)).total == 0

    async def test_a_cancelled_settlement_leaves_a_message_settled_or_held(self, queues: Queues) -> None:
        queue, target = await a_queue(queues), await a_queue(queues)
        await fill(queues, queue, 30)
        async with queues.consume(queue, max_in_flight=30) as consumer:
            held = await take(consumer, 30)
            for n, one in enumerate(held):
                settling = asyncio.create_task(consumer.settle([Ack(one)], [message(target, id=one.id)]))
                for _ in range(n % 12):
                    await asyncio.sleep(0)
                settling.cancel()
                await asyncio.gather(settling, return_exceptions=True)
        left = [one.id for one in await take_all(queues, queue)]
        passed = [one.id for one in await take_all(queues, target)]
        if Capability.ATOMIC_SETTLE in queues.driver.capabilities:
            assert sorted(left + passed) == sorted(one.id for one in held)
        assert {*left, *passed} == {one.id for one in held}

    async def test_a_lease_that_is_not_extended_returns_the_message(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 2)
        if Capability.LEASE not in queues.driver.capabilities:
            with pytest.raises(Unsupported):
                async with queues.consume(queue, lease_s=1):
                    pytest.fail("leases are not declared")
            return
        async with queues.consume(queue, max_in_flight=2, lease_s=2.5) as consumer:
            kept, lost = await take(consumer, 2)
            await consumer.extend([kept], 60.0)
            async with queues.consume(queue, max_in_flight=2) as other:
                until = time.monotonic() + 8
                back: list[Delivery] = []
                while not back and time.monotonic() < until:
                    back = await other.receive(1, 0.2)
                assert [(one.id, one.attempt) for one in back] == [(lost.id, 2)]
                await other.ack(back[0])
            late: list[Settlement] = [Ack(lost), Nack(lost), Reject(lost, "bad")]
            for settlement in late:
                with pytest.raises(FailedPrecondition) as caught:
                    await consumer.settle([settlement], [message(queue)])
                assert caught.value.reason == "delivery_lost"
            with pytest.raises(FailedPrecondition):
                await consumer.extend([lost], 1.0)
            await consumer.ack(kept)
        assert (await queues.depth(queue)).total == 0

    async def test_a_lost_delivery_makes_room(self, queues: Queues) -> None:
        if Capability.LEASE not in queues.driver.capabilities:
            pytest.skip("the driver does not declare LEASE")
        queue = await a_queue(queues)
        await fill(queues, queue, 1)
        async with queues.consume(queue, max_in_flight=1, lease_s=0.3) as consumer:
            (first,) = await take(consumer, 1)
            (second,) = await take(consumer, 1)
            assert (second.id, second.attempt) == (first.id, 2)
            await consumer.ack(second)

    async def test_extending_without_leases_is_refused(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 1)
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (held,) = await take(consumer, 1)
            if Capability.LEASE not in queues.driver.capabilities:
                with pytest.raises(Unsupported):
                    await consumer.extend([held], 1)
                return
            await consumer.extend([held], 0.05)
            await asyncio.sleep(0.1)
            await consumer.ack(held)
            with pytest.raises(FailedPrecondition):
                await consumer.extend([held], 1)

    @pytest.mark.parametrize(("field", "value"), [("max_in_flight", 0), ("max_in_flight", 1.5), ("lease_s", 0)])
    async def test_a_bad_limit_is_refused_by_name(self, queues: Queues, field: str, value: float) -> None:
        queue = await a_queue(queues)
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            async with queues.consume(queue, **{field: value}):  # type: ignore[arg-type]
                pytest.fail("it was accepted")
        async with queues.consume(queue) as consumer:
            with pytest.raises(InvalidArgument, match=r"^limit: "):
                await consumer.receive(0)
            with pytest.raises(InvalidArgument, match=r"^timeout_s: "):
                await consumer.receive(1, -1)

    async def test_leaving_a_consumer_hands_back_what_it_held_to_one_that_waits(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 4)
        async with self.another_client() as other, other.consume(queue, max_in_flight=9) as waiting:
            async with queues.consume(queue, max_in_flight=4) as consumer:
                held = await take(consumer, 4)
                await consumer.ack(held[1])
            got = await take(waiting, 3)
        assert [(one.id, one.attempt) for one in got] == [(sent[n], 1) for n in (0, 2, 3)]
        with pytest.raises(Closed):
            await consumer.ack(held[0])

    async def test_counters_tell_what_happened(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        before = queues.statistics()
        await fill(queues, queue, 3)
        async with queues.consume(queue, max_in_flight=3) as consumer:
            a, b, c = await take(consumer, 3)
            await consumer.settle([Ack(a), Nack(b), Reject(c, "bad")], [message(queue, delay_s=60)])
            (b,) = await take(consumer, 1)
            during = queues.statistics()
        assert during.sent - before.sent == 4
        assert during.received - before.received == 4
        assert (during.acked, during.nacked, during.rejected) == (
            before.acked + 1,
            before.nacked + 1,
            before.rejected + 1,
        )
        assert during.redelivered - before.redelivered == 1
        assert (during.consumers, queues.statistics().consumers) == (1, 0)

    async def test_depth_returns_to_nothing_after_everything_was_settled(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 50)
        await take_all(queues, queue)

        async def empty() -> bool:
            return (await queues.depth(queue)).total == 0

        await eventually(empty)
