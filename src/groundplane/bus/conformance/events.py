"""BUS-06 to BUS-11, BUS-18, BUS-21: events."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import pytest

from groundplane.bus.client import Bus
from groundplane.bus.conformance.kit import GROWING, QUICK, QUIET_S, Kit, Seen, a_name, dead_letters, eventually
from groundplane.bus.events import OutgoingEvent
from groundplane.bus.port import Lag, Message, Status
from groundplane.core.errors import InvalidArgument


class EventConformance(Kit):
    """Events."""

    @pytest.mark.req("BUS-06.1", "BUS-06.2")
    @pytest.mark.parametrize("kind", ["created", "*", ">"])
    async def test_events_come_in_order_also_those_published_while_nobody_was_there(self, bus: Bus, kind: str) -> None:
        domain, group, seen = a_name(), a_name("g"), Seen()
        async with bus.subscribe(f"{domain}.{kind}", seen, group=group):
            for number in range(10):
                await bus.publish(domain, "created", number)
            await eventually(lambda: len(seen.events) == 10)
        await bus.publish_many([OutgoingEvent(domain=domain, type="created", payload=n) for n in range(10, 15)])
        async with bus.subscribe(f"{domain}.{kind}", seen, group=group):
            await eventually(lambda: len(seen.events) == 15)
        assert seen.payloads == list(range(15))
        assert {one.attempt for one in seen.events} == {1}

    @pytest.mark.req("BUS-06.1")
    async def test_a_new_subscription_begins_now_or_with_what_is_kept(self, bus: Bus) -> None:
        domain, fresh, old = a_name(), Seen(), Seen()
        await bus.publish(domain, "created", "before")
        async with (
            bus.subscribe(f"{domain}.*", fresh, group=a_name("g")),
            bus.subscribe(f"{domain}.*", old, group=a_name("g"), replay=True),
        ):
            await bus.publish(domain, "created", "after")
            await eventually(lambda: len(old.events) == 2 and len(fresh.events) == 1)
        assert (fresh.payloads, old.payloads) == (["after"], ["before", "after"])

    @pytest.mark.req("BUS-10.2")
    async def test_only_what_fits_the_pattern_comes(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        async with bus.subscribe(f"{domain}.*.done", seen, group=a_name("g")):
            for kind in ("a.done", "a.begun", "done", "a.b.done", "c.done"):
                await bus.publish(domain, kind, kind)
            await eventually(lambda: len(seen.events) == 2)
        assert seen.payloads == ["a.done", "c.done"]

    @pytest.mark.req("BUS-07.1", "BUS-07.2")
    async def test_a_handler_that_raises_gets_it_again_after_a_while_and_then_it_is_dead(self, bus: Bus) -> None:
        domain, group = a_name(), a_name("g")
        attempts: list[tuple[int, float]] = []

        async def broken(event: Any) -> None:
            attempts.append((event.attempt, time.monotonic()))
            raise ValueError("always")

        subscribing = bus.subscribe(f"{domain}.*", broken, group=group, backoff=GROWING)
        async with subscribing as subscription:
            event_id = await bus.publish(domain, "created", {"id": 7})
            await eventually(lambda: len(attempts) == 5)
            queue = subscription.spec.name
            letters = await dead_letters(bus, queue)
        assert [attempt for attempt, _ in attempts] == [1, 2, 3, 4, 5]
        waits = [later - earlier for (_, earlier), (_, later) in pairwise(attempts)]
        assert all(wait >= 0.9 * least for wait, least in zip(waits, (0.05, 0.1, 0.2, 0.4), strict=True))
        (letter,) = letters
        assert (letter.reason, letter.attempts, letter.message_id) == ("max_retries_exhausted", 5, event_id)
        assert letter.error is not None
        assert (letter.error.type, letter.error.message) == ("ValueError", "always")
        assert b"created" in letter.payload

    @pytest.mark.req("BUS-07.1")
    async def test_the_backoff_is_one_second_doubled_up_to_a_minute_by_default(self, bus: Bus) -> None:
        async with bus.subscribe(f"{a_name()}.*", Seen(), group=a_name("g")) as subscription:
            options = subscription.options
        assert options.attempts_max == 5
        assert [options.backoff.delay_s(n) for n in (1, 2, 3, 10)] == [1, 2, 4, 60]

    @pytest.mark.req("BUS-07.1", "BUS-21.1")
    async def test_a_redriven_letter_comes_back_to_its_group_alone(self, bus: Bus) -> None:
        domain, group, other = a_name(), a_name("g"), Seen()
        seen: list[Any] = []

        async def mended(event: Any) -> None:
            seen.append(event)
            if not event.redrives:
                raise ValueError("not yet")

        async with (
            bus.subscribe(f"{domain}.*", other, group=a_name("g")),
            bus.subscribe(f"{domain}.*", mended, group=group, backoff=QUICK, attempts_max=1) as subscription,
        ):
            await bus.publish(domain, "created", 7)
            (letter,) = await dead_letters(bus, subscription.spec.name)
            await bus.dead_letters.redrive(letter.id)
            await eventually(lambda: len(seen) == 2)
            assert (seen[1].payload, seen[1].attempt, seen[1].redrives) == (7, 1, 1)
            await asyncio.sleep(QUIET_S)
        assert other.payloads == [7]

    @pytest.mark.req("BUS-21.1", "BUS-21.2")
    async def test_what_is_no_event_is_a_dead_letter_with_its_bytes_and_the_subscription_lives(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")) as subscription:
            await bus.driver.append(
                [Message(subject=f"events.{domain}.bad", payload=b"\xff\x00 no event", id=a_name())]
            )
            await bus.publish(domain, "good", 1)
            await eventually(lambda: len(seen.events) == 1)
            (letter,) = await dead_letters(bus, subscription.spec.name)
        assert (letter.reason, letter.payload) == ("msg_parsing_error", b"\xff\x00 no event")

    @pytest.mark.req("BUS-21.2")
    async def test_an_event_on_a_subject_without_a_type_and_with_foreign_headers_ends_no_subscription(
        self, bus: Bus
    ) -> None:
        domain, seen = a_name(), Seen()
        odd = {"Groundplane-Redrives": "many", "Groundplane-Stored-At": "noon", "Groundplane-Subject": "elsewhere"}
        async with bus.subscribe(domain, seen, group=a_name("g")) as subscription:
            await bus.driver.append([Message(subject=f"events.{domain}", payload=b'{"payload":1}', headers=odd)])
            await bus.driver.append([Message(subject=f"events.{domain}", payload=b'{"payload":2}', id=a_name())])
            await eventually(lambda: len(seen.events) == 2)
            assert subscription.failure is None
        assert [(one.domain, one.type, one.payload, one.redrives) for one in seen.events] == [
            (domain, "", 1, 0),
            (domain, "", 2, 0),
        ]

    @pytest.mark.req("BUS-08")
    async def test_one_of_a_group_gets_it_and_every_group_does(self, bus: Bus) -> None:
        domain, group = a_name(), a_name("g")
        one, two, other = Seen(), Seen(), Seen()
        async with (
            bus.subscribe(f"{domain}.*", one, group=group),
            bus.subscribe(f"{domain}.*", two, group=group),
            bus.subscribe(f"{domain}.*", other, group=a_name("g")),
        ):
            await bus.publish_many([OutgoingEvent(domain=domain, type="x", payload=n) for n in range(100)])
            await eventually(lambda: len(one.events) + len(two.events) >= 100 and len(other.events) >= 100)
            await asyncio.sleep(QUIET_S)
        assert sorted(one.payloads + two.payloads) == list(range(100))
        assert other.payloads == list(range(100))

    @pytest.mark.req("BUS-08")
    async def test_those_left_of_a_group_take_over(self, bus: Bus) -> None:
        domain, group, left = a_name(), a_name("g"), Seen()
        stuck: list[Any] = []

        async def hang(event: Any) -> None:
            stuck.append(event)
            await asyncio.Event().wait()

        async with self.another_client() as other:
            async with other.subscribe(f"{domain}.*", hang, group=group, prefetch=1):
                await bus.publish(domain, "x", 1)
                await eventually(lambda: len(stuck) == 1)
                closing = asyncio.create_task(other.aclose())
                async with bus.subscribe(f"{domain}.*", left, group=group):
                    await eventually(lambda: len(left.events) == 1)
                await closing
        assert left.payloads == [1]

    @pytest.mark.req("BUS-08")
    async def test_a_broadcast_reaches_every_instance(self, bus: Bus) -> None:
        domain, one, two = a_name(), Seen(), Seen()
        async with self.another_client("second") as other:
            async with (
                bus.subscribe(f"{domain}.*", one, group="all", mode="broadcast"),
                other.subscribe(f"{domain}.*", two, group="all", mode="broadcast"),
            ):
                await bus.publish(domain, "x", 1)
                await eventually(lambda: one.events and two.events)
        assert (one.payloads, two.payloads) == ([1], [1])

    @pytest.mark.req("BUS-09.1")
    async def test_a_hundred_published_at_once_are_all_delivered(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")):
            ids = await asyncio.gather(*(bus.publish(domain, "x", n) for n in range(100)))
            await eventually(lambda: len(seen.events) == 100)
        assert sorted(seen.payloads) == list(range(100))
        assert {one.id for one in seen.events} == set(ids)

    @pytest.mark.req("BUS-09.3")
    async def test_a_repeat_of_an_id_is_dropped(self, bus: Bus) -> None:
        domain, seen, event_id = a_name(), Seen(), a_name()
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")):
            for _ in range(3):
                await bus.publish(domain, "x", 1, event_id=event_id)
            twice = [OutgoingEvent(domain=domain, type="x", payload=2, id=f"{event_id}-2")] * 2
            await bus.publish_many(twice)
            await bus.publish(domain, "x", 3)
            await eventually(lambda: 3 in seen.payloads)
        assert seen.payloads == [1, 2, 3]

    @pytest.mark.req("BUS-11.1", "BUS-11.2")
    async def test_versions_are_told_and_a_handler_may_ask_for_one(self, bus: Bus) -> None:
        domain, both, second = a_name(), Seen(), Seen()
        async with (
            bus.subscribe(f"{domain}.*", both, group=a_name("g")),
            bus.subscribe(f"{domain}.*", second, group=a_name("g"), major=2),
        ):
            for version in ("1.0", "2.0", "2.1"):
                await bus.publish(domain, "x", version, version=version)
            await eventually(lambda: len(both.events) == 3 and len(second.events) == 2)
        assert [(one.version, one.major) for one in both.events] == [("1.0", 1), ("2.0", 2), ("2.1", 2)]
        assert second.payloads == ["2.0", "2.1"]

    @pytest.mark.req("BUS-12")
    async def test_events_in_json_and_msgpack_are_handled_alike(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        payload = {"text": "ß漢🙂", "n": [1, 2.5, None, True]}
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")):
            for codec in ("json", "msgpack"):
                await bus.publish(domain, "x", payload, codec=codec)
            await eventually(lambda: len(seen.events) == 2)
        assert seen.payloads == [payload, payload]

    @pytest.mark.req("BUS-18.1")
    async def test_an_event_is_written_and_read_as_cloudevent(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        passed: list[Message] = []
        async with (
            bus.listen(f"events.{domain}.>", passed.append),
            bus.subscribe(f"{domain}.>", seen, group=a_name("g")),
        ):
            event_id = await bus.publish(
                domain, "order.created", {"id": 7}, version="2.0", headers={"shop": "north"}, as_cloudevent=True
            )
            await eventually(lambda: len(seen.events) == 1 and len(passed) == 1)
            for name in ("x-shop", "type", "Shop"):
                with pytest.raises(InvalidArgument, match=rf"^headers: '{name}'"):
                    await bus.publish(domain, "x", 1, headers={name: "north"}, as_cloudevent=True)
        headers = {name.lower(): value for name, value in passed[0].headers.items()}
        found = seen.events[0].cloudevent()
        assert headers["content-type"] == "application/cloudevents+json"
        assert json.loads(passed[0].payload) == found
        assert found["shop"] == seen.events[0].headers["shop"] == "north"
        assert (seen.events[0].domain, seen.events[0].type, seen.events[0].version) == (domain, "order.created", "2.0")
        assert found["specversion"] == "1.0"
        assert (found["id"], found["type"], found["data"]) == (event_id, f"{domain}.order.created", {"id": 7})
        assert found["time"].endswith("Z")
        assert found["source"]
        assert found["traceparent"].split("-")[1] == seen.events[0].headers["traceparent"].split("-")[1]

    @pytest.mark.req("BUS-18.1", "BUS-21.1")
    async def test_a_cloudevent_of_a_foreign_client_is_an_event_and_a_broken_one_a_dead_letter(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        own = {"specversion": "1.0", "id": "e1", "source": "/shop", "type": "com.example.order"}
        sent = [
            {**own, "data": {"id": 7}, "dataversion": "3.1", "subject": "7"},
            {**own, "data_base64": "AP8=", "datacontenttype": "application/octet-stream"},
            {**own, "data_base64": "?"},
            {**own, "data": 1, "data_base64": "AP8="},
            {**own, "specversion": "0.3"},
            {"specversion": "1.0", "source": "/shop", "type": "x"},
        ]
        headers = {"Content-Type": "Application/CloudEvents+JSON; charset=utf-8"}
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")) as subscription:
            for one in sent:
                message = Message(subject=f"events.{domain}.x", payload=json.dumps(one).encode(), headers=headers)
                await bus.driver.append([message])
            letters = await dead_letters(bus, subscription.spec.name, 4)
            await eventually(lambda: len(seen.events) == 2)
        first, second = seen.events
        assert (first.id, first.source, first.domain, first.type) == ("e1", "/shop", "com", "example.order")
        assert (first.payload, first.version, first.headers["subject"]) == ({"id": 7}, "3.1", "7")
        assert second.payload == b"\x00\xff"
        assert {one.reason for one in letters} == {"msg_parsing_error"}
        assert [json.loads(one.payload) for one in letters] == sent[2:]

    @pytest.mark.req("BUS-10.3")
    @pytest.mark.parametrize(
        ("domain", "kind"), [("a.b", "x"), ("", "x"), ("a", ""), ("a", "x.*"), ("a", "x..y"), ("a", ">")]
    )
    async def test_bad_subjects_are_not_published(self, bus: Bus, domain: str, kind: str) -> None:
        with pytest.raises(InvalidArgument):
            await bus.publish(domain, kind)

    @pytest.mark.req("BUS-10.3", "BUS-11.1")
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("version", 2.0),
            ("version", "two"),
            ("event_id", 5),
            ("event_id", " a "),
            ("event_id", "a\n"),
            ("correlation_id", 5),
            ("headers", "abc"),
            ("headers", {"n": 1}),
            ("codec", "xml"),
        ],
    )
    async def test_what_a_handler_could_not_read_is_not_published(self, bus: Bus, field: str, value: Any) -> None:
        with pytest.raises(InvalidArgument, match=rf"^{field.removeprefix('event_')}: "):
            await bus.publish(a_name(), "x", **{field: value})
        assert bus.statistics().published == 0

    @pytest.mark.req("BUS-10.3", "BUS-11.2")
    @pytest.mark.parametrize(
        ("pattern", "options"),
        [
            ("*.*", {}),
            (">", {}),
            ("a.b*", {}),
            ("a.>.b", {}),
            ("a.b", {"group": "a b"}),
            ("a.b", {"mode": "all"}),
            ("a.b", {"attempts_max": 0}),
            ("a.b", {"concurrency": 0}),
            ("a.b", {"major": "2"}),
            ("a.b", {"timeout_s": -1}),
            ("a.b", {"lease_s": 0.001}),
            ("a.b", {"backoff": 1.0}),
        ],
    )
    async def test_bad_subscriptions_are_refused(self, bus: Bus, pattern: str, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument):
            async with bus.subscribe(pattern, Seen(), **options):
                pass

    @pytest.mark.req("BUS-22")
    async def test_events_are_counted_and_the_lag_of_a_subscription_is_told(self, bus: Bus) -> None:
        domain, seen = a_name(), Seen()
        async with bus.subscribe(f"{domain}.*", seen, group=a_name("g")) as subscription:
            await bus.publish(domain, "x", 1)
            await eventually(lambda: bus.statistics().events == {"ok": 1})
        await bus.publish(domain, "x", 2)
        status, lag = await _lag(bus, subscription.spec.name)
        until = time.monotonic() + 5
        while lag.in_flight and time.monotonic() < until:  # a server may count a moment later what it has settled
            status, lag = await _lag(bus, subscription.spec.name)
        assert (status.ready, lag.pattern, lag.waiting, lag.in_flight) == (True, f"events.{domain}.*", 1, 0)
        assert bus.statistics().published == 2
        assert bus.statistics().connections >= 1


async def _lag(bus: Bus, consumer: str) -> tuple[Status, Lag]:
    status, lags = await bus.status()
    (found,) = [one for one in lags if one.consumer == consumer]
    return status, found
