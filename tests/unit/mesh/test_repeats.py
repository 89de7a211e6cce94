"""Repeats are dropped by the consumer where the queues do not: tried on queues that forget what they have seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundplane.core.envelope import ERROR_END, HAPPY_END, Envelope
from groundplane.core.errors import GroundplaneError, Unavailable
from groundplane.jobs.conformance.subjects import eventually
from groundplane.jobs.port import Change, JobState, Park, Progress, Standing
from groundplane.jobs.port import Outcome as ChangeOutcome
from groundplane.mesh.ledger import Ledger, open_ledger
from groundplane.mesh.ledger.port import HANDLED_WINDOW_S
from groundplane.mesh.repeats import Repeats, Sender, Window, may_repeat, needs
from groundplane.mesh.routing import Failure, Outcome, Output, Result, Router, dedup_key
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.sidecar.fan_in import FanIn
from groundplane.mesh.sidecar.gate import Gate
from groundplane.mesh.sidecar.handling import Handling, Parts, Staged
from groundplane.mesh.spec import ActorSpec
from groundplane.mesh.start import queue_specs
from groundplane.queues import Queues
from groundplane.queues.drivers import open_driver
from groundplane.queues.port import MAY_REPEAT, Capability, Carried, Delivery, OutgoingMessage, Settlement
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.metrics import ActorMetrics, CustomMetrics, new_registry

pytestmark = [pytest.mark.anyio, pytest.mark.req("MESH-12", "MESH-17")]


class Forgetful:
    """Queues as a broker has them: no repeat is dropped, and what is sent goes before the settlement."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.capabilities = driver.capabilities & ~(Capability.DEDUP | Capability.ATOMIC_SETTLE | Capability.CARRY)
        self.fail_acks = 0
        self.before_settling: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        await self._driver.send([msgspec.structs.replace(one, dedup_key=None) for one in messages])

    def consume(self, queue: str, **options: Any) -> AbstractAsyncContextManager[Any]:
        return self._consume(queue, **options)

    @asynccontextmanager
    async def _consume(self, queue: str, **options: Any) -> AsyncIterator[Any]:
        async with self._driver.consume(queue, **options) as consumer:
            yield _Consumer(self, consumer)


class _Consumer:
    def __init__(self, queues: Forgetful, inner: Any) -> None:
        self._queues = queues
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def settle(
        self, settlements: Sequence[Settlement], sends: Sequence[OutgoingMessage] = (), carry: Sequence[Carried] = ()
    ) -> None:
        await self._queues.send(sends)
        if self._queues.before_settling is not None:
            await self._queues.before_settling()
        if self._queues.fail_acks:
            self._queues.fail_acks -= 1
            raise Unavailable("broker: is away")
        await self._inner.settle(settlements)


class Runtime:
    """A runtime that is told what to say. `gate` holds it back."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.says: Callable[[Any], Outcome] = lambda payload: Result([Output(payload)])

    async def call(self, request: Any, *_: object) -> Outcome:
        self.calls.append(request.idempotency_key)
        await self.gate.wait()
        return self.says(request.envelope["payload"])

    async def called(self, times: int) -> bool:
        return len(self.calls) >= times


class Sidecar:
    """One actor `a` on forgetful queues: what the process puts together, without the process."""

    def __init__(
        self, queues: Queues, consumer: Any, repeats: Repeats, spec: ActorSpec, ledger: Ledger | None, reporter: Any
    ) -> None:
        registry = new_registry()
        self.runtime, self.metrics, self.queues, self.consumer = (
            Runtime(),
            ActorMetrics(registry, "a"),
            queues,
            consumer,
        )
        self.active = Active()
        staged = Staged(repeats=repeats, sender=Sender(queues))
        parts = Parts(
            router=Router(spec),
            client=self.runtime,  # type: ignore[arg-type]
            settler=Settler(consumer),
            active=self.active,
            metrics=self.metrics,
            custom=CustomMetrics(registry, "a"),
            log=get_logger("test"),
            ledger=ledger,
            reporter=reporter,
            staged=staged,
        )
        handling = Handling(parts, asyncio.Semaphore(8))
        inner = FanIn(parts, handling) if spec.join else handling
        self.gate = Gate(parts, staged, handling, inner.handle_envelope)

    async def send(self, envelope: Envelope, queue: str = "a", **more: Any) -> None:
        message = OutgoingMessage(queue=queue, id=envelope.id, payload=envelope.to_bytes(), **more)
        await self.queues.send(message)

    async def receive(self, count: int = 1) -> list[Delivery]:
        found: list[Delivery] = []
        while len(found) < count:
            found += await self.consumer.receive(count - len(found), 5.0)
        return found

    async def handled(self, count: int = 1) -> None:
        """Receive so many, and handle them one after the other."""
        for delivery in await self.receive(count):
            await self.gate.handle(delivery)

    @property
    def driver(self) -> Any:
        """The forgetful driver."""
        return self.queues.driver

    @property
    def dropped(self) -> float:
        return float(self.metrics.repeats.value)

    async def sent(self, queue: str = HAPPY_END) -> list[Delivery]:
        """What lies in a queue."""
        async with self.queues.consume(queue, max_in_flight=100) as consumer:
            found: list[Delivery] = []
            while more := await consumer.receive(100, 0):
                found += more
            return found


@asynccontextmanager
async def sidecar(
    state: Path,
    *,
    repeats: Repeats | None = None,
    spec: ActorSpec | None = None,
    ledger: Ledger | None = None,
    reporter: Any = None,
) -> AsyncIterator[Sidecar]:
    spec = spec or ActorSpec(name="a", handler="m:f")
    async with open_driver("embedded://", namespace="default", state=state, inline=False, upgrade=False) as driver:
        queues = Queues(Forgetful(driver))
        await queues.declare(*queue_specs([spec]))
        async with queues.consume("a", max_in_flight=100) as consumer:
            yield Sidecar(queues, consumer, repeats or Repeats(ledger or Window()), spec, ledger, reporter)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with open_ledger(state=tmp_path / "ledger") as ledger:
        yield ledger


async def test_only_queues_that_forget_need_it(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path) as queues:
        assert not needs(queues)
        assert needs(Queues(Forgetful(queues.driver)))


async def test_a_copy_that_says_it_may_be_one_is_acked_and_not_run(tmp_path: Path, ledger: Ledger) -> None:
    envelope = Envelope.new(["a"], 7)
    async with sidecar(tmp_path, ledger=ledger) as one:
        await one.send(envelope)
        await one.handled()
        await one.send(envelope, headers={MAY_REPEAT: "1"})
        await one.handled()
        assert (one.runtime.calls, one.dropped) == ([f"{envelope.id}:0"], 1)
        assert len(await one.sent()) == 1
        assert (await one.queues.depth("a")).total == 0


async def test_what_was_handled_before_the_process_died_is_known_to_the_next(tmp_path: Path, ledger: Ledger) -> None:
    envelope = Envelope.new(["a"], 7)
    async with sidecar(tmp_path, ledger=ledger) as one:
        await one.send(envelope)
        await one.handled()
    async with sidecar(tmp_path, ledger=ledger) as two:
        await two.send(envelope, attempt=2)
        await two.handled()
        assert (two.runtime.calls, two.dropped) == ([], 1)


async def test_first_copies_are_not_looked_up(tmp_path: Path) -> None:
    asked: list[str] = []

    class Asked(Window):
        async def handled(self, *, ask: Any = (), done: Any = ()) -> frozenset[str]:
            asked.extend(ask)
            return await super().handled(ask=ask, done=done)

    async with sidecar(tmp_path, repeats=Repeats(Asked())) as one:
        await one.send(Envelope.new(["a"], 7))
        await one.handled()
        assert asked == []
        second = Envelope.new(["a"], 8)
        await one.send(second, attempt=2)
        await one.handled()
        assert asked == [f"a/{second.id}:0"]
        assert len(one.runtime.calls) == 2


async def test_a_copy_waits_for_the_one_that_is_being_handled_and_is_dropped_then(tmp_path: Path) -> None:
    envelope = Envelope.new(["a"], 7)
    async with sidecar(tmp_path) as one:
        one.runtime.gate.clear()
        for _ in range(3):
            await one.send(envelope)
        tasks = [asyncio.create_task(one.gate.handle(delivery)) for delivery in await one.receive(3)]
        await eventually(lambda: one.runtime.called(1))
        one.runtime.gate.set()
        await asyncio.gather(*tasks)
        assert (len(one.runtime.calls), one.dropped) == (1, 2)
        assert len(await one.sent()) == 1


async def test_a_copy_runs_when_the_one_before_it_did_not_succeed(tmp_path: Path) -> None:
    envelope = Envelope.new(["a"], 7)
    spec = ActorSpec(
        name="a", handler="m:f", retry=msgspec.structs.replace(ActorSpec(name="a", handler="").retry, attempts=3)
    )
    async with sidecar(tmp_path, spec=spec) as one:
        one.runtime.gate.clear()
        for _ in range(2):
            await one.send(envelope)
        first, second = [asyncio.create_task(one.gate.handle(delivery)) for delivery in await one.receive(2)]
        await eventually(lambda: one.runtime.called(1))
        one.runtime.says = lambda _: Failure(reason="processing_error", message="once")
        one.runtime.gate.set()
        await first
        one.runtime.says = lambda payload: Result([Output(payload)])
        await second
        assert (len(one.runtime.calls), one.dropped) == (2, 0)


async def test_what_a_doubtful_delivery_sends_is_doubtful_too_and_nothing_else(tmp_path: Path) -> None:
    async with sidecar(tmp_path) as one:
        plain, doubtful = Envelope.new(["a"], 1), Envelope.new(["a"], 2)
        await one.send(plain)
        await one.send(doubtful, attempt=2)
        await one.handled(2)
        assert {delivery.id: may_repeat(delivery) for delivery in await one.sent()} == {
            plain.id: False,
            doubtful.id: True,
        }


async def test_a_dead_letter_that_is_redriven_runs_although_it_was_handled(tmp_path: Path, ledger: Ledger) -> None:
    async with sidecar(tmp_path, ledger=ledger) as one:
        one.runtime.says = lambda _: Failure(reason="processing_error", message="no")
        envelope = Envelope.new(["a"], 7)
        await one.send(envelope, headers={MAY_REPEAT: "1"})
        await one.handled()
        (letter,) = (await one.queues.list_dead("a")).items
        copy = await ledger.handled(ask=[f"a/{envelope.id}:0", f"a/{envelope.id}:0:r1"])
        assert copy == {f"a/{envelope.id}:0"}
        one.runtime.says = lambda payload: Result([Output(payload)])
        await one.queues.redrive(letter.id)
        await one.handled()
        assert (len(one.runtime.calls), one.dropped) == (2, 0)
        assert [MAY_REPEAT in delivery.headers for delivery in await one.sent()] == [True]


@pytest.mark.req("MESH-18")
async def test_a_copy_that_waited_until_the_drain_began_is_handed_back(tmp_path: Path) -> None:
    envelope = Envelope.new(["a"], 7)
    async with sidecar(tmp_path) as one:
        one.runtime.gate.clear()
        for _ in range(2):
            await one.send(envelope)
        tasks = [asyncio.create_task(one.gate.handle(delivery)) for delivery in await one.receive(2)]
        await eventually(lambda: one.runtime.called(1))
        one.active.draining = True
        one.runtime.says = lambda _: Failure(reason="runtime_crashed", message="killed")
        one.runtime.gate.set()
        await asyncio.gather(*tasks)
        assert len(one.runtime.calls) == 1
        assert sorted(delivery.attempt for delivery in await one.receive(2)) == [1, 2]


@pytest.mark.parametrize(
    ("outcome", "known"), [(Result([Output(7)]), True), (Failure(reason="processing_error", message="no"), False)]
)
async def test_a_delivery_is_recorded_before_it_is_acked_and_after_it_became_a_dead_letter(
    tmp_path: Path, ledger: Ledger, outcome: Outcome, known: bool
) -> None:
    envelope = Envelope.new(["a"], 7)
    key = f"a/{envelope.id}:0"
    async with sidecar(tmp_path, ledger=ledger) as one:
        found: list[bool] = []

        async def look() -> None:
            found.append(key in await ledger.handled(ask=[key]))

        one.driver.before_settling = look
        one.driver.fail_acks = 1
        one.runtime.says = lambda _: outcome
        await one.send(envelope)
        await one.handled()
        assert found == [known, known]
        assert await ledger.handled(ask=[key]) == {key}
        first, *again = await one.sent(HAPPY_END if known else ERROR_END)
        assert MAY_REPEAT not in first.headers
        assert [MAY_REPEAT in message.headers for message in again] == ([] if known else [True])  # with its dead letter
        assert len(one.runtime.calls) == 1


class Paused:
    """A job that is paused, and what was parked for it."""

    def __init__(self) -> None:
        self.parked: list[Park] = []

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        return Standing(JobState.PAUSED), []

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Any]:
        self.parked += [one for one in changes if isinstance(one, Park)]
        return []


class Away(Paused):
    """A job that runs, in a store that is away for the first changes it is told."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals
        self.told: list[Change] = []

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        return Standing(JobState.RUNNING), list(changes)

    async def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> None:
        return None

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        self.told += changes

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Any]:
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("jobs: away")
        self.told += changes
        return [ChangeOutcome(applied=True, state=JobState.RUNNING) for _ in changes]


async def test_a_handler_does_not_run_again_for_a_job_store_that_was_away_when_it_had_finished(tmp_path: Path) -> None:
    envelope = msgspec.structs.replace(Envelope.new(["a"], 7), job_id="j")
    store = Away(refusals=2)
    async with sidecar(tmp_path, reporter=store) as one:
        await one.send(envelope)
        await one.handled()
        assert len(one.runtime.calls) == 1
        assert len(await one.sent()) == 1
        weights = [change.weight for change in store.told if isinstance(change, Progress)]
        assert weights[-1] == 100.0
        assert (await one.queues.depth("a")).total == 0


async def test_what_is_parked_for_a_paused_job_is_not_taken_for_handled_and_comes_back_marked(
    tmp_path: Path, ledger: Ledger
) -> None:
    envelope = msgspec.structs.replace(Envelope.new(["a"], 7), job_id="j")
    paused = Paused()
    async with sidecar(tmp_path, ledger=ledger, reporter=paused) as one:
        await one.send(envelope)
        await one.handled()
        assert one.runtime.calls == []
        assert await ledger.handled(ask=[f"a/{envelope.id}:0"]) == frozenset()
        (parked,) = paused.parked
        assert MAY_REPEAT in parked.message.headers


async def test_a_delivery_that_cannot_be_looked_up_goes_back_and_costs_no_attempt(tmp_path: Path) -> None:
    class Away(Window):
        async def handled(self, *, ask: Any = (), done: Any = ()) -> frozenset[str]:
            raise Unavailable("ledger: is away")

    async with sidecar(tmp_path, repeats=Repeats(Away())) as one:
        await one.send(Envelope.new(["a"], 7), attempt=2)
        await one.handled()
        assert one.runtime.calls == []
        depth = await one.queues.depth("a")
        assert (depth.delayed, depth.dead) == (1, 0)
        (again,) = await one.receive()
        assert again.attempt == 2


async def test_one_of_many_that_cannot_be_sent_leaves_the_others_marked_and_sent(tmp_path: Path) -> None:
    async with sidecar(tmp_path) as one:
        sender = Sender(one.queues)
        outcomes = await asyncio.gather(
            *(
                sender.send([OutgoingMessage(queue=queue, id=queue, payload=b"")])
                for queue in (HAPPY_END, "missing", "error-end")
            ),
            return_exceptions=True,
        )
        await sender.aclose()
        assert [getattr(outcome, "reason", None) for outcome in outcomes] == [None, "queue_not_found", None]
        assert [delivery.headers.get(MAY_REPEAT) for delivery in await one.sent("error-end")] == ["1"]


@pytest.mark.req("MESH-13")
async def test_only_the_first_child_of_a_join_sends_its_timer_and_those_that_cannot_know(
    tmp_path: Path, ledger: Ledger
) -> None:
    spec = ActorSpec(name="a", handler="m:f", join=True)
    parent = Envelope.new(["p", "a"], 0)
    children = [parent.child(index, 4, index, msgspec.structs.replace(parent.route, current=1)) for index in range(4)]
    async with sidecar(tmp_path, spec=spec, ledger=ledger) as one:
        for child in children[:2]:
            await one.send(child)
        await one.handled(2)
        assert (await one.queues.depth("a")).delayed == 1
        await one.send(children[2], attempt=2)
        await one.handled()
        assert (await one.queues.depth("a")).delayed == 2
        await one.send(children[3])
        await one.handled()
        assert [dedup_key(Envelope.from_bytes(sent.payload)) for sent in await one.sent()] == [
            f"{one.runtime.calls[0].rpartition(':')[0]}:2"
        ]


async def test_a_window_forgets_by_time_and_by_number() -> None:
    now = 0.0
    window = Window(lambda: now, keys_max=3)
    await window.handled(done=["a"])
    now = HANDLED_WINDOW_S - 1
    assert await window.handled(ask=["a"], done=["b"]) == {"a"}
    now = HANDLED_WINDOW_S + 1
    assert await window.handled(ask=["a", "b"]) == {"b"}
    assert len(window) == 1
    await window.handled(done=["c", "d", "e"])
    assert await window.handled(ask=["b", "c", "d", "e"]) == {"c", "d", "e"}


async def test_a_look_that_fails_or_is_given_up_holds_up_no_other() -> None:
    class Slow(Window):
        def __init__(self) -> None:
            super().__init__()
            self.fault: GroundplaneError | None = Unavailable("away")
            self.gate = asyncio.Event()

        async def handled(self, *, ask: Any = (), done: Any = ()) -> frozenset[str]:
            if self.fault is not None:
                raise self.fault
            await self.gate.wait()
            return await super().handled(ask=ask, done=done)

    window = Slow()
    repeats = Repeats(window)
    with pytest.raises(Unavailable):
        await repeats.begin("k")
    window.fault = None
    given_up = asyncio.create_task(repeats.begin("k"))
    await asyncio.sleep(0)
    assert not repeats.take("k")
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    window.gate.set()
    assert await repeats.begin("k")
    repeats.end("k")
    await repeats.aclose()


def test_whatever_was_handed_out_or_sent_before_may_be_a_repeat() -> None:
    first = Delivery(tag=0, queue="a", id="e", payload=b"", headers={}, attempt=1, enqueued_at=0)
    assert not may_repeat(first)
    for change in ({"attempt": 2}, {"redelivered": True}, {"redrives": 1}, {"headers": {MAY_REPEAT: "1"}}):
        assert may_repeat(msgspec.structs.replace(first, **change))
