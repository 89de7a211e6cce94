"""What a driver promises below the façade: transient and durable messages, leases, closing, other planes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from groundplane.bus.client import Bus
from groundplane.bus.conformance.kit import QUIET_S, Kit, Seen, a_name, eventually
from groundplane.bus.port import Ack, ConsumerSpec, Message, Nack, Reject
from groundplane.core.errors import Closed, FailedPrecondition, InvalidArgument, NotFound, Unavailable


def _spec(pattern: str, **fields: Any) -> ConsumerSpec:
    return ConsumerSpec(name=fields.pop("name", None) or a_name("c"), pattern=pattern, **fields)


class CarryingConformance(Kit):
    """The port."""

    async def test_transient_messages_go_to_every_subscriber_and_to_one_of_each_group(self, bus: Bus) -> None:
        subject, driver = f"control.presence.{a_name()}", bus.driver
        got: Counter[str] = Counter()
        names = ("plain", "other", "g1", "g1", "g2")
        opened = []
        for number, name in enumerate(names):
            group = name if name.startswith("g") else ""
            key = f"{name}-{number}"
            opened.append(await driver.subscribe(subject, lambda _, key=key: got.update([key]), group=group))  # type: ignore[misc]
        for _ in range(30):
            await driver.publish(Message(subject=subject, payload=b"x"))
        await eventually(lambda: got.total() == 120)
        for one in opened:
            await one.aclose()
            await one.aclose()
        await driver.publish(Message(subject=subject, payload=b"x"))
        await asyncio.sleep(QUIET_S)
        assert (got["plain-0"], got["other-1"], got["g2-4"], got["g1-2"] + got["g1-3"]) == (30, 30, 30, 30)
        assert min(got["g1-2"], got["g1-3"]) > 0

    async def test_headers_ids_and_any_bytes_arrive_unchanged(self, bus: Bus) -> None:
        domain = a_name()
        sent = [
            Message(subject=f"events.{domain}.x", payload=bytes(range(256)), id=a_name(), headers={"k": "v w"}),
            Message(subject=f"events.{domain}.y", payload=b"", id=a_name()),
        ]
        async with bus.driver.consume(_spec(f"events.{domain}.*")) as consumer:
            await bus.driver.append(sent)
            found = await _take(consumer, 2)
            await consumer.settle([Ack(one) for one in found])
        for want, one in zip(sent, found, strict=True):
            got = one.message
            assert (got.subject, got.payload, got.id) == (want.subject, want.payload, want.id)
            assert {k: v for k, v in got.headers.items() if k in want.headers} == want.headers

    async def test_a_delivery_that_is_not_extended_comes_again_and_an_extended_one_does_not(self, bus: Bus) -> None:
        domain = a_name()
        spec = _spec(f"events.{domain}.*", lease_s=2.5)
        async with bus.driver.consume(spec) as consumer:
            await bus.driver.append([Message(subject=f"events.{domain}.x", payload=b"1", id=a_name())])
            (first,) = await _take(consumer, 1)
            for _ in range(16):  # longer than a lease, of which a stall may take nine tenths
                await asyncio.sleep(0.2)
                await consumer.extend([first])
            assert await consumer.receive(1, 0.1) == []
            (second,) = await _take(consumer, 1)
            assert (second.attempt, second.message.id) == (2, first.message.id)
            await consumer.settle([Ack(first), Ack(second)])

    async def test_settling_says_when_and_whether_it_comes_again(self, bus: Bus) -> None:
        domain = a_name()
        async with bus.driver.consume(_spec(f"events.{domain}.*")) as consumer:
            await bus.driver.append(
                [Message(subject=f"events.{domain}.x", payload=b"%d" % n, id=a_name()) for n in range(3)]
            )
            one, two, three = await _take(consumer, 3)
            await consumer.settle([Nack(one, 0.3), Ack(two), Reject(three, "bad")])
            await consumer.settle([Ack(two)])
            (again,) = await _take(consumer, 1)
            assert (again.message.payload, again.attempt) == (b"0", 2)
            await consumer.settle([Ack(again)])
            assert await consumer.receive(1, QUIET_S) == []
            letters = (await bus.dead_letters.list_dead(consumer_name(consumer))).items
        assert [(one.payload, one.reason, one.attempts) for one in letters] == [(b"2", "bad", 1)]

    async def test_what_a_consumer_holds_when_it_closes_goes_to_the_others(self, bus: Bus) -> None:
        domain, name = a_name(), a_name("c")
        spec = _spec(f"events.{domain}.*", name=name)
        async with bus.driver.consume(spec) as consumer:
            await bus.driver.append([Message(subject=f"events.{domain}.x", payload=b"1", id=a_name())])
            (held,) = await _take(consumer, 1)
        async with bus.driver.consume(spec) as consumer:
            (found,) = await _take(consumer, 1)
            assert found.message.id == held.message.id
            await consumer.settle([Ack(found)])

    @pytest.mark.req("BUS-07.1")
    @pytest.mark.parametrize("store", ["events", "commands"])
    async def test_what_is_handed_back_costs_no_attempt_however_often_and_what_failed_does(
        self, bus: Bus, store: str
    ) -> None:
        service = a_name()
        spec = _spec(f"{store}.{service}.*")
        async with bus.driver.consume(spec):
            pass  # declared; nothing is on its way when it closes
        await bus.driver.append(
            [Message(subject=f"{store}.{service}.x", payload=b"%d" % n, id=a_name()) for n in range(2)]
        )
        attempts: list[list[int]] = []
        for _ in range(3):
            async with bus.driver.consume(spec) as consumer:
                attempts.append([one.attempt for one in await _take(consumer, 2)])
        async with bus.driver.consume(spec) as consumer:
            for counts in (False, True, False, True):
                held = sorted(await _take(consumer, 2), key=lambda one: one.message.payload)
                attempts.append([one.attempt for one in held])
                await consumer.settle([Nack(held[0], counts=counts), Nack(held[1])])
            held = sorted(await _take(consumer, 2), key=lambda one: one.message.payload)
            await consumer.settle([Ack(one) for one in held])
        assert attempts == [[1, 1]] * 4 + [[1, 2], [2, 3], [2, 4]]
        assert [one.attempt for one in held] == [3, 5]

    async def test_a_cancelled_receive_loses_nothing(self, bus: Bus) -> None:
        domain = a_name()
        async with bus.driver.consume(_spec(f"events.{domain}.*")) as consumer:
            for _ in range(5):
                waiting = asyncio.create_task(consumer.receive(10))
                await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.wait([waiting])
            await bus.driver.append(
                [Message(subject=f"events.{domain}.x", payload=b"%d" % n, id=a_name()) for n in range(20)]
            )
            racing = asyncio.create_task(consumer.receive(10))
            await asyncio.sleep(0)
            racing.cancel()
            await asyncio.wait([racing])
            got = [] if racing.cancelled() else racing.result()
            got += await _take(consumer, 20 - len(got))
            assert sorted(int(one.message.payload) for one in got) == list(range(20))
            await consumer.settle([Ack(one) for one in got])

    async def test_never_more_in_flight_than_allowed(self, bus: Bus) -> None:
        domain = a_name()
        async with bus.driver.consume(_spec(f"events.{domain}.*", max_in_flight=3)) as consumer:
            await bus.driver.append([Message(subject=f"events.{domain}.x", payload=b"", id=a_name()) for _ in range(5)])
            held = await _take(consumer, 3)
            assert await consumer.receive(5, QUIET_S) == []
            await consumer.settle([Ack(one) for one in held])
            await consumer.settle([Ack(one) for one in await _take(consumer, 2)])

    async def test_one_name_has_one_pattern_and_commands_one_consumer(self, bus: Bus) -> None:
        domain, name, service = a_name(), a_name("c"), a_name()
        async with bus.driver.consume(_spec(f"events.{domain}.*", name=name)):
            with pytest.raises(FailedPrecondition) as caught:
                async with bus.driver.consume(_spec(f"events.{domain}.>", name=name)):
                    pass
            assert caught.value.reason == "subscription_differs"
        async with bus.driver.consume(_spec(f"commands.{service}.*")):
            with pytest.raises(FailedPrecondition) as caught:
                async with bus.driver.consume(_spec(f"commands.{service}.x")):
                    pass
            assert caught.value.reason == "subscription_differs"

    async def test_the_last_result_of_a_subject_is_read_again(self, bus: Bus) -> None:
        one, two, none = (f"commands.callback.{a_name()}" for _ in range(3))
        await bus.driver.append([Message(subject=one, payload=b"1", id=a_name())])
        await bus.driver.append([Message(subject=one, payload=b"2", id=a_name())])
        await bus.driver.append([Message(subject=two, payload=b"3", id=a_name())])
        found = await bus.driver.last([one, two, none])
        assert {subject: message.payload for subject, message in found.items()} == {one: b"2", two: b"3"}

    async def test_a_dead_letter_is_read_redriven_once_and_purged(self, bus: Bus) -> None:
        domain = a_name()
        async with bus.driver.consume(_spec(f"events.{domain}.*")) as consumer:
            await bus.driver.append(
                [Message(subject=f"events.{domain}.x", payload=b"%d" % n, id=a_name()) for n in range(3)]
            )
            await consumer.settle([Reject(one, "bad") for one in await _take(consumer, 3)])
            source, queue = bus.dead_letters, consumer_name(consumer)
            page = await source.list_dead(queue, limit=2)
            assert page.cursor is not None
            rest = await source.list_dead(queue, cursor=page.cursor, limit=2)
            letters = page.items + rest.items
            assert ([one.payload for one in letters], rest.cursor) == ([b"0", b"1", b"2"], None)
            assert await source.get_dead(letters[0].id) == letters[0]
            await source.redrive(letters[0].id, payload=b"mended")
            with pytest.raises(NotFound):
                await source.redrive(letters[0].id)
            (back,) = await _take(consumer, 1)
            assert (back.message.payload, back.attempt, back.redrives) == (b"mended", 1, 1)
            await consumer.settle([Ack(back)])
            assert await source.purge([letters[1].id, letters[1].id]) == 1
            with pytest.raises(NotFound):
                await source.get_dead(letters[1].id)
            with pytest.raises(NotFound):
                await source.list_dead(a_name())

    async def test_another_plane_sees_nothing_of_this_one(self, bus: Bus) -> None:
        domain, service, here, there = a_name(), a_name(), Seen(), Seen()

        async def get() -> str:
            return "here"

        async with self.other_plane() as other:
            async with (
                bus.serve(service, {"get": get}),
                bus.subscribe(f"{domain}.*", here, group="g"),
                other.subscribe(f"{domain}.*", there, group="g"),
            ):
                await bus.publish(domain, "x", 1)
                await eventually(lambda: here.payloads == [1])
                with pytest.raises(Unavailable):
                    await other.request(service, "get")
                await asyncio.sleep(QUIET_S)
        assert there.payloads == []

    async def test_two_clients_of_a_plane_meet(self, bus: Bus) -> None:
        domain, service, seen = a_name(), a_name(), Seen()

        async def get() -> str:
            return "here"

        async def double(value: int) -> int:
            return value * 2

        async with self.another_client() as other:
            async with (
                bus.serve(service, {"get": get}),
                bus.subscribe(f"{domain}.*", seen, group="g"),
                bus.handle(service, {"double": double}),
            ):
                assert await other.request(service, "get") == "here"
                await other.publish(domain, "x", 1)
                await eventually(lambda: seen.payloads == [1])
                async with other.track(service, "double", {"value": 4}) as tracked:
                    assert await tracked.result() == 8

    async def test_after_closing_every_call_says_so_and_blocked_ones_end(self, bus: Bus) -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        service = a_name()
        async with self.another_client() as other:
            async with bus.serve(service, {"hang": hang}):
                blocked = asyncio.create_task(other.request(service, "hang", timeout_s=60))
                await asyncio.sleep(QUIET_S)
                await asyncio.gather(other.aclose(), other.aclose())
                with pytest.raises(Closed):
                    await blocked
            for call in (
                other.request(service, "hang"),
                other.publish("a", "b"),
                other.send(service, "x"),
                other.command_end("x"),
                other.status(),
            ):
                with pytest.raises(Closed):
                    await call
            assert "closed" in repr(other)

    async def test_a_name_of_nobody_is_refused_when_opened(self, bus: Bus) -> None:
        with pytest.raises(InvalidArgument):
            Bus(bus.driver, name="a b")


def consumer_name(consumer: Any) -> str:
    """The name under which it consumes."""
    return str(consumer.spec.name)


async def _take(consumer: Any, count: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(count):
        if len(found) < count:
            found += await consumer.receive(count - len(found), 10.0)
    if len(found) != count:
        pytest.fail(f"{len(found)} of {count} deliveries came")
    return found
