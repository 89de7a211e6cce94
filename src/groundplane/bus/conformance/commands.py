"""BUS-13 to BUS-15, BUS-21, BUS-23: commands."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from groundplane.bus import wire
from groundplane.bus.client import Bus
from groundplane.bus.conformance.kit import GROWING, QUICK, QUIET_S, Kit, a_name, dead_letters, eventually
from groundplane.bus.handlers import CommandContext
from groundplane.bus.port import Message
from groundplane.core.errors import DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound


class CommandConformance(Kit):
    """Commands."""

    @pytest.mark.req("BUS-23.1")
    async def test_every_way_to_end_is_published_once(self, bus: Bus) -> None:
        async def work(how: str) -> str:
            if how == "failed":
                raise ValueError("no paper")
            if how != "succeeded":
                await asyncio.Event().wait()
            return how

        service, ends = a_name(), list[tuple[str, wire.CommandCallback]]()
        ways = {a_name(): way for way in ("succeeded", "failed", "cancelled", "timed_out")}

        def take(message: Message) -> None:
            ends.append((message.subject, wire.read(message.payload, wire.CommandCallback)[0]))

        async with bus.listen("commands.callback.*", take), bus.handle(service, {"work": work}):
            for command_id, way in ways.items():
                timeout_s = 0.5 if way == "timed_out" else 60
                await bus.send(service, "work", {"how": way}, command_id=command_id, max_retries=0, timeout_s=timeout_s)
            (cancelled,) = [one for one, way in ways.items() if way == "cancelled"]
            await bus.cancel(cancelled)
            await eventually(lambda: len(ends) >= len(ways))
            await asyncio.sleep(QUIET_S)
        told = sorted((subject, end.correlation_id, end.status) for subject, end in ends)
        assert told == sorted((f"commands.callback.{one}", one, way) for one, way in ways.items())

    @pytest.mark.req("BUS-13.1", "BUS-13.2")
    async def test_a_tracked_command_tells_how_far_it_is_and_how_it_ended(self, bus: Bus) -> None:
        async def render(month: int, ctx: CommandContext) -> dict[str, int]:
            for percent in (25, 50, 40, 75):
                await ctx.progress(percent, f"at {percent}")
            return {"pages": month}

        service = a_name()
        async with bus.handle(service, {"render": render}):
            async with bus.track(service, "render", {"month": 3}) as tracked:
                told = [one.percent async for one in tracked.progress()]
                assert await tracked.result() == {"pages": 3}
            assert await bus.result(tracked.command_id) == {"pages": 3}
            end = await bus.command_end(tracked.command_id)
        assert len(told) >= 5
        assert told == sorted(told)
        assert (told[0], told[-1]) == (0, 100)
        assert end is not None
        assert (end.status, end.attempts, end.correlation_id) == ("succeeded", 1, tracked.command_id)

    @pytest.mark.req("BUS-13.1", "BUS-13.2")
    async def test_an_untracked_command_is_accepted_at_once_and_its_result_read_later(self, bus: Bus) -> None:
        service = a_name()
        sent = await bus.send(service, "double", {"value": 21})
        assert (sent.service, sent.command) == (service, "double")
        with pytest.raises(NotFound):
            await bus.result(sent.command_id)

        async def double(value: int) -> int:
            return value * 2

        async with bus.handle(service, {"double": double}):
            await self._ended(bus, sent.command_id)
        assert await bus.result(sent.command_id) == 42

    @pytest.mark.req("BUS-14.1")
    async def test_a_command_over_its_timeout_says_so_and_the_next_is_done(self, bus: Bus) -> None:
        async def hang(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "done"

        service = a_name()
        async with bus.handle(service, {"hang": hang}, concurrency=1):
            began = time.monotonic()
            async with bus.track(service, "hang", {"seconds": 60}, timeout_s=0.5) as tracked:
                with pytest.raises(DeadlineExceeded, match=r"^Command timeout") as caught:
                    await tracked.result()
            took = time.monotonic() - began
            async with bus.track(service, "hang", {"seconds": 0}) as tracked:
                assert await tracked.result() == "done"
        assert caught.value.reason == "command_timeout"
        assert 0.5 <= took < 5
        end = await bus.command_end(tracked.command_id)
        assert end is not None
        assert end.status == "succeeded"

    @pytest.mark.req("BUS-14.1")
    async def test_a_command_that_nobody_handles_times_out_for_who_waits(self, bus: Bus) -> None:
        async with bus.track(a_name(), "nothing", timeout_s=0.1) as tracked:
            with pytest.raises(DeadlineExceeded, match=r"^Command timeout"):
                await tracked.result()

    @pytest.mark.req("BUS-14.2", "BUS-15.1")
    async def test_a_failing_command_is_tried_again_as_often_as_it_says_and_ends_failed(self, bus: Bus) -> None:
        attempts: list[tuple[int, float]] = []

        async def broken(ctx: CommandContext) -> None:
            attempts.append((ctx.attempt, time.monotonic()))
            raise ValueError("no paper")

        service = a_name()
        async with bus.handle(service, {"print": broken}, backoff=GROWING) as worker:
            async with bus.track(service, "print", max_retries=2) as tracked:
                with pytest.raises(Internal, match="no paper"):
                    await tracked.result()
                end = await tracked.end()
            await eventually(lambda: bus.statistics().commands.get("failed") == 1)
            page = await dead_letters(bus, worker.spec.name)
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        waits = [later - earlier for (_, earlier), (_, later) in pairwise(attempts)]
        assert all(wait >= 0.9 * least for wait, least in zip(waits, (0.05, 0.1), strict=True))
        assert (end.status, end.attempts) == ("failed", 3)
        assert end.error is not None
        assert end.error.type == "ValueError"
        assert (page[0].message_id, page[0].attempts, page[0].reason) == (
            tracked.command_id, 3, "max_retries_exhausted",
        )  # fmt: skip

    @pytest.mark.req("BUS-15.1")
    async def test_a_command_that_succeeds_at_a_later_attempt_succeeds(self, bus: Bus) -> None:
        async def flaky(ctx: CommandContext) -> int:
            if ctx.attempt < 3:
                raise ValueError("not yet")
            return ctx.attempt

        service = a_name()
        async with bus.handle(service, {"try": flaky}, backoff=QUICK):
            async with bus.track(service, "try") as tracked:
                told = [one.percent async for one in tracked.progress()]
                assert await tracked.result() == 3
        assert told == sorted(told)

    @pytest.mark.req("BUS-15.2")
    async def test_the_more_urgent_begin_first_and_the_others_after_them(self, bus: Bus) -> None:
        order: list[str] = []

        async def note(name: str) -> None:
            order.append(name)

        service = a_name()
        for priority in ("low", "normal", "high", "critical"):
            for number in range(3):
                await bus.send(service, "note", {"name": f"{priority}{number}"}, priority=priority)
        async with bus.handle(service, {"note": note}, concurrency=1):
            await eventually(lambda: len(order) == 12)
        assert order == [f"{p}{n}" for p in ("critical", "high", "normal", "low") for n in range(3)]

    @pytest.mark.req("BUS-15.3")
    async def test_cancelling_reaches_the_handler_and_the_command_ends_cancelled(self, bus: Bus) -> None:
        state: list[str] = []

        async def long() -> None:
            state.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                state.append("cancelled")
                raise

        service = a_name()
        async with bus.handle(service, {"long": long}):
            async with bus.track(service, "long") as tracked:
                await eventually(lambda: state == ["begun"])
                await bus.cancel(tracked.command_id, "not needed")
                with pytest.raises(FailedPrecondition, match="not needed") as caught:
                    await tracked.result()
                end = await tracked.end()
        assert (state, end.status, caught.value.reason) == (["begun", "cancelled"], "cancelled", "command_cancelled")

    @pytest.mark.req("BUS-15.3")
    async def test_a_command_that_is_cancelled_before_it_begins_never_begins(self, bus: Bus) -> None:
        runs: list[int] = []

        async def count() -> None:
            runs.append(1)

        service = a_name()
        sent = await bus.send(service, "count")
        await bus.cancel(sent.command_id)
        async with bus.handle(service, {"count": count}):
            end = await self._ended(bus, sent.command_id)
        assert (end.status, runs) == ("cancelled", [])

    @pytest.mark.req("BUS-15.4")
    async def test_a_command_longer_than_its_lease_never_runs_twice_at_once(self, bus: Bus) -> None:
        running, most, runs = 0, 0, 0

        async def long() -> None:
            nonlocal running, most, runs
            running += 1
            runs += 1
            most = max(most, running)
            await asyncio.sleep(4.2)
            running -= 1

        service = a_name()
        async with (
            bus.handle(service, {"long": long}, lease_s=3.0),
            bus.handle(service, {"long": long}, lease_s=3.0),
            bus.track(service, "long") as tracked,
        ):
            await tracked.result()
        assert (most, runs) == (1, 1)

    @pytest.mark.req("BUS-15.4")
    async def test_a_command_is_done_once_however_many_handle_it(self, bus: Bus) -> None:
        done: list[int] = []

        async def note(number: int) -> None:
            done.append(number)

        service = a_name()
        async with bus.handle(service, {"note": note}), bus.handle(service, {"note": note}):
            await asyncio.gather(*(bus.send(service, "note", {"number": n}) for n in range(40)))
            await eventually(lambda: len(done) >= 40)
            await asyncio.sleep(QUIET_S)
        assert sorted(done) == list(range(40))

    @pytest.mark.req("BUS-21.1", "BUS-21.2")
    async def test_what_is_no_command_is_a_dead_letter_with_its_bytes_and_the_worker_lives(self, bus: Bus) -> None:
        async def good() -> str:
            return "alive"

        service = a_name()
        timeouts = (float("nan"), float("inf"), -1.0, 1e9)
        none = [wire.write(wire.Command(message_id=a_name(), timeout=one)) for one in timeouts]
        bad = [b"\x00\xff no command", *none]
        async with bus.handle(service, {"good": good}) as worker:
            await bus.driver.append(
                [Message(subject=f"commands.{service}.good", payload=one, id=a_name()) for one in bad]
            )
            async with bus.track(service, "good") as tracked:
                assert await tracked.result() == "alive"
            letters = await dead_letters(bus, worker.spec.name, len(bad))
        assert {(one.reason, one.payload) for one in letters} == {("msg_parsing_error", one) for one in bad}

    @pytest.mark.req("BUS-14.2")
    async def test_a_command_that_nobody_knows_ends_failed_and_says_so(self, bus: Bus) -> None:
        service = a_name()
        async with bus.handle(service, {"known": asyncio.sleep}, backoff=QUICK) as worker:
            async with bus.track(service, "unknown", max_retries=0) as tracked:
                with pytest.raises(NotFound, match="unknown"):
                    await tracked.result()
            (letter,) = await dead_letters(bus, worker.spec.name)
        assert (letter.message_id, letter.reason) == (tracked.command_id, "non_retryable")

    @pytest.mark.req("BUS-13.1", "BUS-14.2")
    async def test_a_result_that_cannot_be_sent_is_a_failure_and_never_told_as_done(self, bus: Bus) -> None:
        async def odd(kind: str) -> Any:
            return object() if kind == "object" else "x" * (bus.limits.payload_bytes_max + 1)

        service = a_name()
        async with bus.handle(service, {"odd": odd}) as worker:
            for kind, code in (("object", "internal"), ("large", "invalid_argument")):
                async with bus.track(service, "odd", {"kind": kind}) as tracked:
                    told = [one.percent async for one in tracked.progress()]
                    end = await tracked.end()
                assert end.error is not None
                assert (told, end.status, end.error.code) == ([0.0], "failed", code)
                assert end.error.message.startswith(f"result: what {service}.odd returned cannot be sent")
            assert len(await dead_letters(bus, worker.spec.name, 2)) == 2
        assert bus.statistics().commands == {"failed": 2}

    @pytest.mark.req("BUS-19")
    async def test_a_command_of_a_foreign_client_needs_no_more_than_its_id_and_payload(self, bus: Bus) -> None:
        async def double(value: int) -> int:
            return value * 2

        service, command_id = a_name(), a_name()
        async with bus.handle(service, {"double": double}):
            payload = b'{"message_id":"%s","payload":{"value":4}}' % command_id.encode()
            await bus.driver.append([Message(subject=f"commands.{service}.double", payload=payload, id=command_id)])
            end = await self._ended(bus, command_id)
        assert (end.status, end.result) == ("succeeded", 8)

    @pytest.mark.req("BUS-21.1", "BUS-21.2")
    async def test_an_id_that_is_no_name_is_a_dead_letter_and_a_command_without_one_is_done(self, bus: Bus) -> None:
        done: list[int] = []

        async def note(number: int) -> None:
            done.append(number)

        service = a_name()
        async with bus.handle(service, {"note": note}, backoff=QUICK) as worker:
            for number, command_id in enumerate(("a b", "*", "a.>", "x" * 300)):
                payload = b'{"message_id":"%s","payload":{"number":%d}}' % (command_id.encode(), number)
                await bus.driver.append([Message(subject=f"commands.{service}.note", payload=payload)])
            payload = b'{"payload":{"number":7}}'
            await bus.driver.append([Message(subject=f"commands.{service}.note", payload=payload)])
            await eventually(lambda: done == [7])
            letters = await dead_letters(bus, worker.spec.name, 4)
        assert [one.reason for one in letters] == ["msg_parsing_error"] * 4
        assert done == [7]

    @pytest.mark.req("BUS-10.3", "BUS-15.2")
    @pytest.mark.parametrize(
        ("service", "command", "options"),
        [
            ("callback", "x", {}),
            ("a.b", "x", {}),
            ("a", "*", {}),
            ("a", "x", {"priority": "urgent"}),
            ("a", "x", {"max_retries": -1}),
            ("a", "x", {"timeout_s": 0}),
            ("a", "x", {"payload": [1]}),
            ("a", "x", {"payload": {1: 2}}),
            ("a", "x", {"codec": "xml"}),
            ("a", "x", {"command_id": "a b"}),
        ],
    )
    async def test_bad_commands_are_not_sent(self, bus: Bus, service: str, command: str, options: Any) -> None:
        with pytest.raises(InvalidArgument):
            await bus.send(service, command, **options)

    async def _ended(self, bus: Bus, command_id: str) -> wire.CommandCallback:
        until = time.monotonic() + 15
        while (end := await bus.command_end(command_id)) is None:
            if time.monotonic() > until:
                pytest.fail(f"the command {command_id} did not end")
            await asyncio.sleep(0.01)
        return end
