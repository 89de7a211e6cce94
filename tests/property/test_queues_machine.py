"""The embedded queues against a model: sent, taken, settled, delayed, crashed and redriven in any order."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from groundplane.core.errors import FailedPrecondition, GroundplaneError
from groundplane.queues import Ack, Consumer, Delivery, Nack, OutgoingMessage, Queues, QueueSpec, Reject, Settlement
from groundplane.queues.drivers.embedded import EmbeddedQueues

T = TypeVar("T")

ATTEMPTS_MAX = 3
HELD_MAX = 4


class HandClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000


class Known:
    """A message as the model sees it."""

    def __init__(self, number: int, due: int) -> None:
        self.number = number
        self.due = due
        self.attempt = 1
        self.redrives = 0
        self.retried = due > 0
        self.where = "queue"


class Client:
    """One opened driver with one consumer, and what it holds."""

    def __init__(self, stack: AsyncExitStack, driver: EmbeddedQueues, consumer: Consumer) -> None:
        self.stack = stack
        self.driver = driver
        self.consumer = consumer
        self.held: dict[str, Delivery] = {}


class Machine(RuleBasedStateMachine):
    """Two clients of one queue; either may close, the second may crash."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.known: dict[str, Known] = {}
        self.settled: list[tuple[int, Delivery]] = []
        self.numbers = itertools.count()
        self.clients = [self.run(self._open()) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _open(self) -> Client:
        stack = AsyncExitStack()
        opening = EmbeddedQueues.open(state=Path(self.folder.name), clock=self.clock)
        driver = await stack.enter_async_context(opening)
        queues = Queues(driver)
        await queues.declare(QueueSpec(name="q", attempts_max=ATTEMPTS_MAX))
        consumer = await stack.enter_async_context(queues.consume("q", max_in_flight=HELD_MAX))
        return Client(stack, driver, consumer)

    @property
    def queues(self) -> Queues:
        return self.clients[0].consumer._queues

    def _ready(self) -> list[str]:
        return [one for one, known in self.known.items() if known.where == "queue" and known.due <= self.clock.ms]

    @rule(delays=st.lists(st.sampled_from([0, 0, 0, 500, 5000]), min_size=1, max_size=4))
    def send(self, delays: list[int]) -> None:
        messages = []
        for delay in delays:
            number = next(self.numbers)
            self.known[str(number)] = Known(number, self.clock.ms + delay if delay else 0)
            messages.append(OutgoingMessage(queue="q", id=str(number), payload=b"%d" % number, delay_s=delay / 1000))
        self.run(self.queues.send(*messages))

    @rule(who=st.integers(0, 1), limit=st.integers(1, 5))
    def receive(self, who: int, limit: int) -> None:
        client, ready = self.clients[who], self._ready()
        got = self.run(client.consumer.receive(limit, 0))
        assert len(got) == min(limit, HELD_MAX - len(client.held), len(ready))
        fresh = []
        for one in got:
            known = self.known[one.id]
            assert one.id in ready
            assert (one.attempt, one.redrives) == (known.attempt, known.redrives)
            assert one.payload == b"%d" % known.number
            if not known.retried:
                fresh.append(known.number)
            known.where = "held"
            client.held[one.id] = one
        left = [self.known[one].number for one in self._ready() if not self.known[one].retried]
        assert fresh == sorted(fresh)
        assert not fresh or not left or max(fresh) < min(left), "a later message overtook"

    @precondition(lambda self: any(client.held for client in self.clients))
    @rule(data=st.data(), sends=st.booleans())
    def settle(self, data: st.DataObject, sends: bool) -> None:
        who = data.draw(st.sampled_from([n for n in (0, 1) if self.clients[n].held]))
        client = self.clients[who]
        chosen = data.draw(st.lists(st.sampled_from(sorted(client.held)), min_size=1, unique=True))
        settlements = [self._settlement(client.held[one], data) for one in chosen]
        outgoing = []
        if sends:
            number = next(self.numbers)
            self.known[str(number)] = Known(number, 0)
            outgoing = [OutgoingMessage(queue="q", id=str(number), payload=b"%d" % number)]
        self.run(client.consumer.settle(settlements, outgoing))
        for one in chosen:
            self.settled.append((who, client.held.pop(one)))

    def _settlement(self, delivery: Delivery, data: st.DataObject) -> Settlement:
        known = self.known[delivery.id]
        kind = data.draw(st.sampled_from(["ack", "nack", "later", "back", "reject"]))
        if kind == "ack":
            known.where = "gone"
            return Ack(delivery)
        if kind == "reject":
            known.where = "dead"
            return Reject(delivery, "bad")
        delay_ms = 700 if kind == "later" else 0
        self._return(known, counts=kind != "back", due=self.clock.ms + delay_ms)
        known.retried = True
        return Nack(delivery, delay_ms / 1000, counts=kind != "back")

    def _return(self, known: Known, *, counts: bool, due: int) -> None:
        if counts and known.attempt >= ATTEMPTS_MAX:
            known.where = "dead"
            return
        known.where, known.due = "queue", due
        known.attempt += counts
        known.retried = known.retried or counts

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        who, delivery = data.draw(st.sampled_from(self.settled))
        with pytest.raises(FailedPrecondition):
            self.run(
                self.clients[who].consumer.settle([Ack(delivery)], [OutgoingMessage(queue="q", id="x", payload=b"")])
            )

    @rule(ms=st.sampled_from([1, 499, 1000, 10_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.ms += ms

    @rule(who=st.integers(0, 1))
    def close_and_open(self, who: int) -> None:
        client = self.clients[who]
        self.run(client.stack.aclose())
        for one in client.held:
            self._return(self.known[one], counts=False, due=0)
        self._replace(who)

    @rule()
    def crash(self) -> None:
        """The second client's process ends: its lock is freed, nothing is said."""
        client = self.clients[1]
        self.run(self._crash(client))
        for one in client.held:
            self._return(self.known[one], counts=True, due=0)
        self.run(self.clients[0].driver._session.sweep(0.0))
        self._replace(1)

    async def _crash(self, client: Client) -> None:
        session, sweeping = client.driver._session, client.driver._sweeping
        assert session._file is not None
        assert sweeping is not None
        sweeping.cancel()
        await asyncio.wait([sweeping])
        session._file.forget()
        session._file = None
        client.consumer._inner._left_in_slot.clear()  # type: ignore[attr-defined]
        await client.stack.aclose()

    def _replace(self, who: int) -> None:
        self.settled = [(n, one) for n, one in self.settled if n != who]
        self.clients[who] = self.run(self._open())

    @precondition(lambda self: any(known.where == "dead" for known in self.known.values()))
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        letters = self.run(self.queues.list_dead("q")).items
        letter = data.draw(st.sampled_from(letters))
        self.run(self.queues.redrive(letter.id))
        known = self.known[letter.message_id]
        assert letter.attempts == known.attempt
        known.attempt, known.redrives, known.retried = 1, known.redrives + 1, True
        known.where, known.due = "queue", 0
        with pytest.raises(GroundplaneError):
            self.run(self.queues.redrive(letter.id))

    @invariant()
    def the_counts_are_those_of_the_model(self) -> None:
        depth = self.run(self.queues.depth("q"))
        where = [known.where for known in self.known.values()]
        assert depth.ready == len(self._ready())
        assert depth.delayed == where.count("queue") - depth.ready
        assert depth.in_flight == where.count("held") == sum(len(client.held) for client in self.clients)
        assert depth.dead == where.count("dead")

    def teardown(self) -> None:
        for client in self.clients:
            self.run(client.stack.aclose())
        self.runner.close()
        self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow
@pytest.mark.req("QUEUE-03.1", "QUEUE-04.1", "QUEUE-04.2", "QUEUE-06", "QUEUE-09", "QUEUE-10.1")
class TestQueuesKeepToTheirModel(Machine.TestCase):  # type: ignore[misc, valid-type]
    """Run by hypothesis."""
