"""Declaring and sending: QUEUE-01, 02, 05, 09, 11."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundplane.core.errors import InvalidArgument, NotFound, ResourceExhausted
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
from groundplane.queues.port import MESSAGE_BYTES_MAX, Ack, Capability, Nack, OutgoingMessage, QueueSpec


class SendingConformance(Kit):
    """What a sender may rely on."""

    @pytest.mark.req("QUEUE-01.1")
    async def test_what_was_sent_is_delivered_to_another_client(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with self.another_client() as other:
            await queues.send(message(queue, b"hello", id="m-1", headers={"traceparent": "00-1-2-01", "x": "ä"}))
            got = await take_one(other, queue)
        assert (got.queue, got.id, got.payload, got.attempt) == (queue, "m-1", b"hello", 1)
        assert got.headers == {"traceparent": "00-1-2-01", "x": "ä"}
        assert got.redrives == 0
        assert abs(got.enqueued_at / 1000 - time.time()) < 60

    @pytest.mark.req("QUEUE-01.2")
    async def test_a_batch_over_several_queues_arrives_whole(self, queues: Queues) -> None:
        first, second = await a_queue(queues), await a_queue(queues)
        await queues.send(*(message(first if n % 2 else second, id=f"{n}") for n in range(100)))
        assert [one.id for one in await take_all(queues, first)] == [str(n) for n in range(1, 100, 2)]
        assert [one.id for one in await take_all(queues, second)] == [str(n) for n in range(0, 100, 2)]

    @pytest.mark.req("QUEUE-01.1")
    async def test_what_is_not_urgent_comes_to_a_sleeping_consumer_soon_enough(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with queues.consume(queue) as consumer:
            waiting = asyncio.create_task(consumer.receive(1, 10.0))
            await asyncio.sleep(0)
            await queues.send(message(queue, id="later", urgent=False))
            start = time.monotonic()
            assert [one.id for one in await waiting] == ["later"]
            assert time.monotonic() - start < 8

    async def test_sending_nothing_does_nothing(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await queues.send()
        assert (await queues.depth(queue)).total == 0

    @pytest.mark.req("QUEUE-02")
    async def test_sending_to_a_queue_that_does_not_exist_is_not_found(self, queues: Queues) -> None:
        with pytest.raises(NotFound) as caught:
            await queues.send(message("no-such-queue"))
        assert caught.value.reason == "queue_not_found"
        assert "no-such-queue" in caught.value.message

    @pytest.mark.req("QUEUE-02")
    async def test_a_missing_queue_in_an_atomic_batch_sends_nothing_of_it(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        with pytest.raises(NotFound):
            await queues.send(message(queue), message("no-such-queue"), message(queue))
        if Capability.ATOMIC_SETTLE in queues.driver.capabilities:
            assert (await queues.depth(queue)).total == 0

    @pytest.mark.req("QUEUE-02")
    async def test_concurrent_senders_do_not_fail_for_the_mistake_of_one(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        calls = [queues.send(message(queue if n % 5 else "no-such-queue")) for n in range(50)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, NotFound) for result in results] == [n % 5 == 0 for n in range(50)]
        assert (await queues.depth(queue)).ready == 40

    @pytest.mark.req("QUEUE-02")
    async def test_consuming_or_counting_a_queue_that_does_not_exist_is_not_found(self, queues: Queues) -> None:
        with pytest.raises(NotFound):
            await queues.depth("no-such-queue")
        with pytest.raises(NotFound):
            async with queues.consume("no-such-queue"):
                pytest.fail("there is nothing to consume")

    @pytest.mark.req("QUEUE-05")
    @pytest.mark.parametrize("delay_s", [0.15, 0.6])
    async def test_a_delayed_message_comes_within_100_ms_after_its_time_and_not_before(
        self, queues: Queues, delay_s: float
    ) -> None:
        queue = await a_queue(queues)
        late_s: list[float] = []
        async with queues.consume(queue, max_in_flight=1) as consumer:
            while len(late_s) < 5 and min(late_s, default=1.0) > 0.1:  # a machine may stall, not each time
                start = time.monotonic()
                await queues.send(message(queue, delay_s=delay_s))
                after_send = time.monotonic()
                (delivery,) = await take(consumer, 1)
                now = time.monotonic()
                await consumer.ack(delivery)
                assert now - start >= delay_s - 0.002
                late_s.append(now - after_send - delay_s)
        assert min(late_s) <= 0.1

    @pytest.mark.req("QUEUE-05")
    async def test_delayed_messages_come_in_the_order_of_their_times_past_longer_delays(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        delays = {"late": 0.5, "soon": 0.1, "never": 3600.0, "middle": 0.3}
        before = time.monotonic()
        await queues.send(*(message(queue, id=name, delay_s=delay) for name, delay in delays.items()))
        delayed = (await queues.depth(queue)).delayed
        assert delayed == 4 or time.monotonic() - before >= delays["soon"]
        async with queues.consume(queue, max_in_flight=10) as consumer:
            assert [one.id for one in await take(consumer, 3)] == ["soon", "middle", "late"]
            assert await consumer.receive(1, 0) == []

    @pytest.mark.req("QUEUE-05")
    async def test_a_delay_survives_a_restart_of_the_backend(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        due = time.monotonic() + 1.0
        await queues.send(message(queue, id="delayed", delay_s=1.0))
        got = await take_one(await self.restart(queues), queue)
        assert got.id == "delayed"
        assert time.monotonic() >= due - 0.1

    @pytest.mark.req("QUEUE-09")
    async def test_depth_counts_ready_in_flight_delayed_and_dead(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await fill(queues, queue, 6)
        await queues.send(message(queue, delay_s=3600), message(queue, delay_s=3600))
        async with queues.consume(queue, max_in_flight=4) as consumer:
            held = await take(consumer, 4)
            await consumer.reject(held[0], "bad")
            await consumer.nack(held[1], 3600)
            await consumer.ack(held[2])
            depth = await queues.depth(queue)
            assert (depth.ready, depth.in_flight, depth.delayed, depth.dead) == (2, 1, 3, 1)
            assert depth.total == 6
        depth = await queues.depth(queue)
        assert (depth.ready, depth.in_flight) == (3, 0)

    @pytest.mark.req("QUEUE-09")
    async def test_the_oldest_age_is_that_of_what_is_ready_and_zero_without(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        await queues.send(message(queue, delay_s=3600))
        assert (await queues.depth(queue)).oldest_age_s == 0
        before = time.monotonic()
        await queues.send(message(queue))

        async def aged() -> bool:
            return (await queues.depth(queue)).oldest_age_s >= 0.2

        await eventually(aged)
        assert (await queues.depth(queue)).oldest_age_s <= time.monotonic() - before + 0.1
        async with queues.consume(queue, max_in_flight=1) as consumer:
            await take(consumer, 1)
            assert (await queues.depth(queue)).oldest_age_s == 0
        assert (await queues.depth(queue)).oldest_age_s >= 0.2

    @pytest.mark.req("QUEUE-10.1")
    async def test_one_consumer_gets_messages_in_the_order_of_sending(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent: list[str] = []
        for size in (1, 7, 50, 2, 120):
            sent += await fill(queues, queue, size)
        got: list[str] = []
        async with queues.consume(queue, max_in_flight=13) as consumer:
            while len(got) < len(sent):
                for one in await take(consumer, 1):
                    got.append(one.id)
                    await consumer.ack(one)
        assert got == sent

    @pytest.mark.req("QUEUE-10.1")
    async def test_a_new_consumer_goes_on_in_order_where_the_last_one_closed(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        sent = await fill(queues, queue, 30)
        for held in (10, 3, 20):
            async with queues.consume(queue, max_in_flight=held) as consumer:
                assert [one.id for one in await take(consumer, held)] == sent[:held]
        got = await take_all(queues, queue)
        assert [one.id for one in got] == sent
        assert {one.attempt for one in got} == {1}

    @pytest.mark.req("QUEUE-11.1")
    @pytest.mark.parametrize(
        "payload",
        [b"", b"\x00", bytes(range(256)), b"\xff\xfe\xfd", "雪 Ünïcödé 🎉".encode(), b"\r\n" * 5000],
        ids=["empty", "nul", "every-byte", "not-utf-8", "unicode", "line-ends"],
    )
    async def test_payload_bytes_come_back_unchanged(self, queues: Queues, payload: bytes) -> None:
        queue = await a_queue(queues)
        await queues.send(message(queue, payload))
        async with queues.consume(queue, max_in_flight=1) as consumer:
            (first,) = await take(consumer, 1)
            await consumer.nack(first)
            (second,) = await take(consumer, 1)
            await consumer.reject(second, "bad")
        page = await queues.list_dead(queue)
        assert first.payload == second.payload == page.items[0].payload == payload

    @pytest.mark.req("QUEUE-11.1")
    async def test_a_message_of_exactly_one_mebibyte_passes(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        fields = {"id": "m", "headers": {"name": "value"}}
        payload = bytes(range(256)) * 4096
        payload = payload[: MESSAGE_BYTES_MAX - len("m") - len("name") - len("value")]
        await queues.send(message(queue, payload, **fields))
        assert (await take_one(queues, queue)).payload == payload

    @pytest.mark.req("QUEUE-11.2")
    async def test_a_larger_message_is_refused_and_the_limit_named(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        small = message(queue)
        for fields in ({"payload": b"x" * (MESSAGE_BYTES_MAX + 1)}, {"headers": {"h": "x" * MESSAGE_BYTES_MAX}}):
            with pytest.raises(InvalidArgument) as caught:
                await queues.send(small, message(queue, **fields))
            assert str(MESSAGE_BYTES_MAX) in caught.value.message
            assert caught.value.reason == "payload_too_large"
        assert (await queues.depth(queue)).total == 0

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("queue", {"queue": "no/slash"}),
            ("queue", {"queue": ""}),
            ("payload", {"payload": "text"}),
            ("id", {"id": ""}),
            ("delay_s", {"delay_s": -0.1}),
            ("delay_s", {"delay_s": float("nan")}),
            ("attempt", {"attempt": 0}),
            ("dedup_key", {"dedup_key": ""}),
            ("headers", {"headers": {"n": 1}}),
        ],
    )
    async def test_a_bad_field_is_refused_by_name(self, queues: Queues, field: str, fields: dict[str, object]) -> None:
        queue = await a_queue(queues)
        bad: dict[str, object] = {"queue": queue, "payload": b"", "id": "x", **fields}
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            await queues.send(message(queue), OutgoingMessage(**bad))  # type: ignore[arg-type]
        assert (await queues.depth(queue)).total == 0

    async def test_what_is_no_message_is_refused(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        with pytest.raises(InvalidArgument, match=r"^messages: 'list' is no .* send\(\*messages\)"):
            await queues.send([message(queue)])  # type: ignore[arg-type]
        assert (await queues.depth(queue)).total == 0

    async def test_declaring_again_keeps_messages_and_takes_the_new_limits(self, queues: Queues) -> None:
        queue = await a_queue(queues, depth_max=5)
        sent = await fill(queues, queue, 5)
        await asyncio.gather(*(queues.declare(QueueSpec(name=queue, depth_max=6, attempts_max=2)) for _ in range(5)))
        listed = {spec.name: spec for spec in await queues.queues()}
        assert (listed[queue].depth_max, listed[queue].attempts_max) == (6, 2)
        sent += await fill(queues, queue, 1)
        assert [one.id for one in await take_all(queues, queue)] == sent

    async def test_the_declared_queues_are_listed_by_name(self, queues: Queues) -> None:
        await queues.declare(QueueSpec(name="b.two"), QueueSpec(name="a-1", attempts_max=9), QueueSpec(name="c_3"))
        listed = [spec.name for spec in await queues.queues()]
        assert listed == sorted(listed)
        assert {"a-1", "b.two", "c_3"} <= set(listed)

    @pytest.mark.parametrize(
        ("field", "fields"),
        [("name", {"name": "-x"}), ("attempts_max", {"attempts_max": 0}), ("depth_max", {"depth_max": True})],
    )
    async def test_a_bad_queue_is_refused_by_field(self, queues: Queues, field: str, fields: dict[str, object]) -> None:
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            await queues.declare(QueueSpec(**{"name": "x", **fields}))  # type: ignore[arg-type]

    async def test_a_full_queue_refuses_until_there_is_room(self, queues: Queues) -> None:
        queue = await a_queue(queues, depth_max=4)
        await fill(queues, queue, 2)
        await queues.send(message(queue, delay_s=3600))
        async with queues.consume(queue, max_in_flight=2) as consumer:
            held = await take(consumer, 2)
            with pytest.raises(ResourceExhausted) as caught:
                await fill(queues, queue, 2)
            assert caught.value.reason == "queue_full"
            assert "depth_max" in caught.value.message
            await fill(queues, queue, 1)
            with pytest.raises(ResourceExhausted):
                await fill(queues, queue, 1)
            await consumer.ack(held[0])
            await fill(queues, queue, 1)

    async def test_a_repeated_dedup_key_is_dropped_on_its_queue(self, queues: Queues) -> None:
        first, second = await a_queue(queues), await a_queue(queues)
        if Capability.DEDUP not in queues.driver.capabilities:
            pytest.skip("the driver does not declare DEDUP; consumers de-duplicate")
        key = f"{message(first).id}:1"
        await queues.send(message(first, id="1", dedup_key=key), message(first, id="2", dedup_key=key))
        await queues.send(message(first, id="3", dedup_key=key, delay_s=0.01), message(second, id="4", dedup_key=key))
        await queues.send(message(first, id="5", dedup_key="#" * 600), message(first, id="6", dedup_key="#" * 601))
        await queues.send(message(first, id="7"), message(first, id="7"))
        assert [one.id for one in await take_all(queues, first)] == ["1", "5", "6", "7", "7"]
        await queues.send(message(first, id="8", dedup_key=key), message(first, id="9"))
        assert [one.id for one in await take_all(queues, first)] == ["9"]
        assert [one.id for one in await take_all(queues, second)] == ["4"]

    async def test_a_refused_call_does_not_use_up_its_dedup_keys(self, queues: Queues) -> None:
        if Capability.DEDUP | Capability.ATOMIC_SETTLE not in queues.driver.capabilities:
            pytest.skip("the driver does not declare DEDUP and ATOMIC_SETTLE")
        queue = await a_queue(queues)
        with pytest.raises(NotFound):
            await queues.send(message(queue, dedup_key="k"), message("no-such-queue"))
        await queues.send(message(queue, id="again", dedup_key="k"))
        assert [one.id for one in await take_all(queues, queue)] == ["again"]

    @pytest.mark.req("QUEUE-14.3")
    async def test_namespaces_of_one_backend_never_mix(self, queues: Queues) -> None:
        queue = await a_queue(queues)
        async with self.other_namespace() as other:
            with pytest.raises(NotFound):
                await other.send(message(queue))
            await other.declare(QueueSpec(name=queue, attempts_max=1))
            await other.send(message(queue, id="theirs"))
            await queues.send(message(queue, id="ours"))
            async with other.consume(queue, max_in_flight=5) as consumer:
                (theirs,) = await take(consumer, 1)
                assert await consumer.receive(1, QUIET_S) == []
                await consumer.reject(theirs, "bad")
            (letter,) = (await other.list_dead()).items
            assert (await queues.list_dead()).items == []
            with pytest.raises(NotFound):
                await queues.get_dead(letter.id)
            with pytest.raises(NotFound):
                await queues.redrive(letter.id)
            assert await queues.purge(letter.id) == 0
        assert (await queues.depth(queue)).dead == 0
        assert [one.id for one in await take_all(queues, queue)] == ["ours"]

    @pytest.mark.req("QUEUE-01.1", "QUEUE-04.1")
    async def test_settling_may_send_to_any_queue_also_its_own(self, queues: Queues) -> None:
        first, second = await a_queue(queues), await a_queue(queues)
        await fill(queues, first, 3)
        async with queues.consume(first, max_in_flight=3) as consumer:
            held = await take(consumer, 3)
            sends = [message(second, id="a"), message(first, id="b"), message(second, id="c", delay_s=0.05)]
            await consumer.settle([Ack(held[0]), Nack(held[1], 0.01), Ack(held[2])], sends)
            assert {one.id for one in await take(consumer, 2)} == {"b", held[1].id}
        async with queues.consume(second, max_in_flight=3) as consumer:
            assert {one.id for one in await take(consumer, 2)} == {"a", "c"}
