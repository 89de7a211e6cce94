"""BUS-01 to BUS-05, BUS-12, BUS-21: requests and answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from groundplane.bus import wire
from groundplane.bus.client import Bus
from groundplane.bus.conformance.kit import Kit, a_name, eventually, in_turn
from groundplane.bus.handlers import CallContext
from groundplane.bus.port import Message
from groundplane.core.errors import (
    DeadlineExceeded,
    GroundplaneError,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)


class Quote(msgspec.Struct):
    """A typed answer."""

    symbol: str
    price: float


async def echo(value: Any = None) -> Any:
    """Returns what it got."""
    return value


class RpcConformance(Kit):
    """Requests."""

    @pytest.mark.req("BUS-01.1")
    async def test_a_request_gets_its_typed_answer(self, bus: Bus) -> None:
        async def get(symbol: str, shift: float = 0.5) -> Quote:
            return Quote(symbol, 12 + shift)

        service = a_name()
        async with bus.serve(service, {"get": get}):
            found = await bus.request(service, "get", {"symbol": "ACME"}, result_type=Quote)
            assert found == Quote("ACME", 12.5)
            assert await bus.request(service, "get", {"symbol": "B", "shift": 1}) == {"symbol": "B", "price": 13}

    @pytest.mark.req("BUS-01.1", "BUS-12", "BUS-19")
    @pytest.mark.parametrize("codec", ["msgpack", "json"])
    async def test_an_answer_is_in_the_codec_of_its_request_and_names_it(self, bus: Bus, codec: Any) -> None:
        service = a_name()
        async with bus.serve(service, {"echo": echo}):
            request = wire.RpcRequest(message_id="r1", method="echo", params={"value": "ß漢🙂"})
            asked = Message(subject=f"rpc.{service}.echo", payload=wire.write(request, codec))
            answer = await bus.driver.request(asked, 5.0)
        response, used = wire.read(answer.payload, wire.RpcResponse)
        assert (response.success, response.result, response.error) == (True, "ß漢🙂", None)
        assert (response.correlation_id, used) == ("r1", codec)

    @pytest.mark.req("BUS-01.2", "BUS-04.1", "BUS-04.2")
    async def test_a_handlers_exception_reaches_the_caller_and_the_service_lives(self, bus: Bus) -> None:
        async def broken(kind: str) -> str:
            if kind == "plain":
                raise KeyError("no such symbol")
            if kind == "coded":
                raise NotFound("symbol: 'X' is not listed", details={"symbol": "X"})
            return "alive"

        service = a_name()
        async with bus.serve(service, {"get": broken}):
            with pytest.raises(Internal, match="no such symbol") as plain:
                await bus.request(service, "get", {"kind": "plain"})
            with pytest.raises(NotFound, match="is not listed") as coded:
                await bus.request(service, "get", {"kind": "coded"})
            assert await bus.request(service, "get", {"kind": "good"}) == "alive"
        assert (plain.value.reason, plain.value.details["type"]) == ("processing_error", "KeyError")
        assert (coded.value.code, coded.value.details, coded.value.retryable) == ("not_found", {"symbol": "X"}, False)

    @pytest.mark.req("BUS-01.2", "BUS-04.1", "BUS-04.2")
    async def test_what_cannot_be_sent_of_an_answer_is_left_out_or_told_as_the_handlers_fault(self, bus: Bus) -> None:
        async def odd(kind: str) -> Any:
            if kind == "text":
                raise ValueError("no \ud800 here")
            if kind == "details":
                raise NotFound("symbol: 'X' is not listed", details={"at": object()})
            if kind == "large":
                raise NotFound("symbol: 'X' is not listed", details={"at": "x" * bus.limits.payload_bytes_max})
            return object() if kind == "object" else float("nan")

        service = a_name()
        async with bus.serve(service, {"odd": odd}):
            for kind, error, text in (
                ("text", Internal, r"no .*ud800 here"),
                ("details", NotFound, "is not listed"),
                ("large", NotFound, "is not listed"),
                ("object", Internal, rf"^result: .*{service}\.odd.* cannot be sent"),
                ("number", Internal, "no JSON number"),
            ):
                with pytest.raises(error, match=text):
                    await bus.request(service, "odd", {"kind": kind}, codec="json" if kind == "number" else "msgpack")

    @pytest.mark.req("BUS-05", "BUS-21.2")
    async def test_an_instance_that_tells_of_itself_wrongly_is_not_asked(self, bus: Bus) -> None:
        service = a_name()
        async with self._instance(bus, service, "good"):
            await bus.request(service, "who")
            for instance, interval in (("a b", 2.0), ("*", 2.0), ("a.b", 2.0), ("", 2.0), ("mute", float("nan"))):
                told = wire.Presence(service=service, instance=instance, methods=["who"], interval=interval)
                subject = f"control.presence.{service}"
                await bus.driver.publish(Message(subject=subject, payload=wire.write(told)))
            assert {await bus.request(service, "who") for _ in range(10)} == {"good"}

    @pytest.mark.req("BUS-01.2")
    @pytest.mark.parametrize("params", [{}, {"symbol": 7}, {"symbol": "A", "unknown": 1}])
    async def test_arguments_that_do_not_fit_are_refused_by_name(self, bus: Bus, params: dict[str, Any]) -> None:
        async def get(symbol: str) -> str:
            return symbol

        service = a_name()
        async with bus.serve(service, {"get": get}):
            with pytest.raises(InvalidArgument, match=r"symbol|unknown"):
                await bus.request(service, "get", params)

    @pytest.mark.req("BUS-21.1", "BUS-21.2")
    async def test_what_is_no_message_is_answered_as_invalid_and_the_service_lives(self, bus: Bus) -> None:
        service = a_name()
        async with bus.serve(service, {"echo": echo}):
            for data in (b"", b"\xff\x00", b"{", b'{"params":7}'):
                answer = await bus.driver.request(Message(subject=f"rpc.{service}.echo", payload=data), 5.0)
                response, _ = wire.read(answer.payload, wire.RpcResponse)
                assert not response.success
                assert response.error is not None
                assert response.error.code == "invalid_argument"
            assert await bus.request(service, "echo", {"value": 1}) == 1

    @pytest.mark.req("BUS-02.1", "BUS-05")
    async def test_calls_go_to_the_instances_in_turn(self, bus: Bus) -> None:
        service = a_name()
        async with AsyncExitStack() as stack:
            for number in range(3):
                await stack.enter_async_context(self._instance(bus, service, f"i{number}"))
            await in_turn(bus, service, 3)
            assert Counter([await bus.request(service, "who") for _ in range(9)]) == {"i0": 3, "i1": 3, "i2": 3}
            many = await asyncio.gather(*(bus.request(service, "who") for _ in range(30)))
            assert Counter(many) == {"i0": 10, "i1": 10, "i2": 10}

    @pytest.mark.req("BUS-05")
    async def test_a_caller_chooses_by_key_by_name_or_at_random(self, bus: Bus) -> None:
        service = a_name()
        async with AsyncExitStack() as stack:
            for number in range(3):
                await stack.enter_async_context(self._instance(bus, service, f"i{number}"))
            await in_turn(bus, service, 3)
            for key in ("a", "b", "c", "d"):
                chosen = {await bus.request(service, "who", select="sticky", key=key) for _ in range(5)}
                assert len(chosen) == 1
            spread = {await bus.request(service, "who", select="sticky", key=str(n)) for n in range(40)}
            assert spread == {"i0", "i1", "i2"}
            assert {await bus.request(service, "who", select="random") for _ in range(60)} == {"i0", "i1", "i2"}
            assert {await bus.request(service, "who", instance="i1") for _ in range(5)} == {"i1"}
            with pytest.raises(Unavailable) as caught:
                await bus.request(service, "who", instance="gone")
            assert caught.value.reason == "no_responder"

    @pytest.mark.req("BUS-05")
    async def test_an_instance_that_left_gets_no_more_calls(self, bus: Bus) -> None:
        service = a_name()
        async with self._instance(bus, service, "stays"):
            async with self._instance(bus, service, "leaves"):
                await in_turn(bus, service, 2)
            assert {await bus.request(service, "who") for _ in range(6)} == {"stays"}

    @pytest.mark.req("BUS-02.2", "BUS-02.3")
    async def test_handlers_run_at_once_up_to_the_limit(self, bus: Bus) -> None:
        running, most, full = 0, 0, asyncio.Event()

        async def slow() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 7:
                full.set()
            await full.wait()
            await asyncio.sleep(0.01)
            running -= 1

        service = a_name()
        async with bus.serve(service, {"slow": slow}, concurrency=7):
            await asyncio.gather(*(bus.request(service, "slow", timeout_s=30) for _ in range(50)))
        assert most == 7

    @pytest.mark.req("BUS-05")
    async def test_methods_that_are_called_in_turn_each_reach_every_instance(self, bus: Bus) -> None:
        service = a_name()
        reached: dict[str, set[str]] = {"get": set(), "put": set()}

        def serve(instance: str) -> Any:
            async def who() -> str:
                return instance

            async def called(method: str) -> None:
                reached[method].add(instance)

            return bus.serve(service, {"get": called, "put": called, "who": who}, instance=instance)

        async with serve("one"), serve("two"):
            await in_turn(bus, service, 2)
            for _ in range(3):
                for method in reached:
                    await bus.request(service, method, {"method": method})
        assert reached == {"get": {"one", "two"}, "put": {"one", "two"}}

    @pytest.mark.req("BUS-03")
    async def test_nobody_there_is_told_at_once_and_not_tried_again(self, bus: Bus) -> None:
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await bus.request(a_name(), "get")
        assert (caught.value.reason, caught.value.retryable) == ("no_responder", False)
        assert time.monotonic() - began < 3

    @pytest.mark.req("BUS-03")
    async def test_a_deadline_travels_and_the_callers_end_is_the_handlers(self, bus: Bus) -> None:
        ended: list[str] = []
        left: list[float] = []

        async def silent(ctx: CallContext) -> None:
            left.append(ctx.remaining_s)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        service = a_name()
        async with bus.serve(service, {"get": silent}):
            with pytest.raises(DeadlineExceeded):
                await bus.request(service, "get", timeout_s=2.0)
            await eventually(lambda: len(ended) == 1)
            call = asyncio.create_task(bus.request(service, "get", timeout_s=30))
            await eventually(lambda: len(left) == 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await eventually(lambda: len(ended) == 2)
        assert 0 < left[0] <= 2.0
        assert 20 < left[1] <= 30

    @pytest.mark.req("BUS-03")
    async def test_a_silent_handler_fails_after_five_seconds(self, bus: Bus) -> None:
        async def silent() -> None:
            await asyncio.Event().wait()

        service = a_name()
        async with bus.serve(service, {"get": silent}):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await bus.request(service, "get")
            assert 4.5 <= time.monotonic() - began < 8

    @pytest.mark.req("BUS-03")
    async def test_a_request_that_a_handler_makes_waits_no_longer_than_its_own(self, bus: Bus) -> None:
        inner, outer = a_name(), a_name()
        allowed: list[float] = []

        async def deep(ctx: CallContext) -> None:
            allowed.append(ctx.remaining_s)

        async def shallow() -> None:
            await bus.request(inner, "get", timeout_s=60)

        async with bus.serve(inner, {"get": deep}), bus.serve(outer, {"get": shallow}):
            await bus.request(outer, "get", timeout_s=20)
        assert 0 < allowed[0] <= 20

    @pytest.mark.req("BUS-03")
    async def test_a_request_whose_caller_gave_up_long_ago_is_not_run(self, bus: Bus) -> None:
        runs: list[int] = []

        async def count() -> None:
            runs.append(1)

        service = a_name()
        async with bus.serve(service, {"get": count}):
            stale = wire.RpcRequest(message_id="r", method="get", deadline_at=1_700_000_000_000)
            asked = Message(subject=f"rpc.{service}.get", payload=wire.write(stale))
            answer, _ = wire.read((await bus.driver.request(asked, 5)).payload, wire.RpcResponse)
        assert answer.error is not None
        assert (answer.error.code, runs) == ("deadline_exceeded", [])

    @pytest.mark.req("BUS-12")
    async def test_large_payloads_arrive_and_larger_ones_are_refused_on_both_sides(self, bus: Bus) -> None:
        most = bus.limits.payload_bytes_max

        async def repeat(value: str, times: int) -> str:
            return value * times

        service = a_name()
        async with bus.serve(service, {"repeat": repeat}):
            large = "ä" * ((most - 2000) // 2)
            assert await bus.request(service, "repeat", {"value": large, "times": 1}) == large
            for value, times in (("x" * (most + 1), 1), ("x" * 1000, most // 1000 + 1)):
                with pytest.raises(InvalidArgument) as caught:
                    await bus.request(service, "repeat", {"value": value, "times": times})
                assert caught.value.reason == "payload_too_large"

    @pytest.mark.req("BUS-01.1")
    async def test_one_trace_goes_through_a_request(self, bus: Bus) -> None:
        traces: list[str] = []

        async def inner(ctx: CallContext) -> None:
            traces.append(ctx.trace_id)

        async def outer(ctx: CallContext) -> None:
            traces.append(ctx.trace_id)
            await bus.request(service, "inner")

        service = a_name()
        async with bus.serve(service, {"inner": inner, "outer": outer}):
            await bus.request(service, "outer")
        assert len(traces[0]) == 32
        assert traces[0] == traces[1]

    @pytest.mark.req("BUS-10.3")
    @pytest.mark.parametrize(
        ("service", "method", "options"),
        [
            ("a.b", "get", {}),
            ("a", "*", {}),
            ("a", "", {}),
            ("a", "get", {"instance": ">"}),
            ("a", "get", {"timeout_s": 0}),
            ("a", "get", {"timeout_s": float("nan")}),
            ("a", "get", {"select": "best"}),
            ("a", "get", {"select": "sticky"}),
            ("a", "get", {"params": [1]}),
            ("a", "get", {"params": {1: 2}}),
            ("a", "get", {"codec": "xml"}),
            ("a", "get", {"headers": {"n": 1}}),
        ],
    )
    async def test_bad_names_and_numbers_are_refused(
        self, bus: Bus, service: str, method: str, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgument):
            await bus.request(service, method, **options)

    @pytest.mark.req("BUS-22")
    async def test_calls_are_counted_by_outcome(self, bus: Bus) -> None:
        async def pick(good: bool) -> None:
            if not good:
                raise ValueError("bad")

        service = a_name()
        async with bus.serve(service, {"pick": pick}):
            await bus.request(service, "pick", {"good": True})
            with pytest.raises(GroundplaneError):
                await bus.request(service, "pick", {"good": False})
        found = bus.statistics()
        assert (found.rpc, found.served) == ({"ok": 1, "internal": 1}, {"ok": 1, "internal": 1})
        assert found.latency["rpc"].count == 2
        assert 0 < found.latency["rpc"].p50 <= found.latency["rpc"].p99

    def _instance(self, bus: Bus, service: str, instance: str) -> Any:
        async def who() -> str:
            return instance

        return bus.serve(service, {"who": who}, instance=instance)
