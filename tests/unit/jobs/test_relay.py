"""What is offered to a relay is sent by it, without a way round through the outbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from groundplane.core.errors import GroundplaneError, InvalidArgument, ResourceExhausted, Unavailable
from groundplane.jobs import Jobs
from groundplane.jobs.conformance.subjects import eventually, message, new_job
from groundplane.jobs.port import OutboxMessage
from groundplane.jobs.relay import BATCH

pytestmark = pytest.mark.anyio


class Sent:
    """Where a relay sends to: it refuses as often as it is asked to, and lets nothing pass while its gate is shut."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.marked: list[str] = []
        self.calls = 0
        self.refusals = 0
        self.refusal: GroundplaneError = InvalidArgument("payload: no")
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, messages: list[OutboxMessage]) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        self.ids += [one.id for one in messages]
        self.marked += [one.id for one in messages if one.taken_before]

    async def has(self, *ids: str) -> bool:
        return sorted(self.ids) == sorted(ids)

    async def began(self, calls: int) -> bool:
        return self.calls >= calls


@asynccontextmanager
async def relayed(state: Path, sent: Sent) -> AsyncIterator[Jobs]:
    """A store whose relay runs and has nothing to do."""
    async with Jobs.open(state=state) as jobs:
        await jobs.create(new_job(), [message("first")])
        relay = asyncio.create_task(jobs.run_relay(sent.send))
        await eventually(lambda: sent.has("first"))
        await eventually(lambda: _empty(jobs))
        try:
            yield jobs
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is offered is never found in the outbox: its lease does not end."""
    monkeypatch.setattr("groundplane.jobs.store.LEASE_OFFERED_S", 3600.0)


async def _empty(jobs: Jobs) -> bool:
    return (await jobs.sweep()).outbox_head is None


@pytest.mark.req("JOB-02.2")
@pytest.mark.usefixtures("endless")
async def test_messages_of_a_job_made_beside_the_relay_are_sent_and_ticked_off(tmp_path: Path) -> None:
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        assert len((await jobs.create(new_job(), [message("e1"), message("e2")])).taken) == 2
        await eventually(lambda: sent.has("first", "e1", "e2"))
        await eventually(lambda: _empty(jobs))
        assert jobs.statistics().relayed == 3


@pytest.mark.req("JOB-02.2")
@pytest.mark.usefixtures("endless")
async def test_what_is_offered_while_a_send_is_under_way_is_sent_next_in_batches(tmp_path: Path) -> None:
    sent = Sent()
    ids = [f"e{number}" for number in range(BATCH + 10)]
    async with relayed(tmp_path, sent) as jobs:
        sent.gate.clear()
        await jobs.create(new_job(), [message("e")])
        await eventually(lambda: sent.began(2))
        await jobs.create(new_job(), [message(one) for one in ids[:5]])
        await jobs.create(new_job(), [message(one) for one in ids[5:]])
        sent.gate.set()
        await eventually(lambda: sent.has("first", "e", *ids))
        await eventually(lambda: _empty(jobs))
        assert sent.calls == 4
        assert sent.ids[2:] == ids


@pytest.mark.req("JOB-02.2")
async def test_what_was_offered_and_refused_is_kept_and_found_in_the_outbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.jobs.store.LEASE_OFFERED_S", 0.05)
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        sent.refusals = 1
        await jobs.create(new_job(), [message("e1")])
        await eventually(lambda: sent.has("first", "e1"))
        await jobs.create(new_job(), [message("e2")])
        await eventually(lambda: sent.has("first", "e1", "e2"))
        await eventually(lambda: _empty(jobs))
        assert jobs.statistics().relay_failures == 1


@pytest.mark.req("JOB-02.2")
async def test_what_was_sent_and_could_not_be_ticked_off_is_sent_again_under_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.jobs.store.LEASE_OFFERED_S", 0.05)
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        done, faults = jobs.driver.outbox.done, [Unavailable("file: busy", reason="database_busy")]

        async def faulty(ids: Sequence[int]) -> None:
            if faults:
                raise faults.pop()
            await done(ids)

        monkeypatch.setattr(jobs.driver.outbox, "done", faulty)
        await jobs.create(new_job(), [message("e1")])
        await eventually(lambda: sent.has("first", "e1", "e1"))
        await eventually(lambda: _empty(jobs))
        await jobs.create(new_job(), [message("e2")])
        await eventually(lambda: sent.has("first", "e1", "e1", "e2"))


@pytest.mark.req("MESH-12", "JOB-02.2")
@pytest.mark.parametrize("error", [InvalidArgument("payload: no"), Unavailable("queue: away")])
async def test_what_is_sent_again_after_a_failure_says_that_it_may_be_a_repeat(
    tmp_path: Path, error: GroundplaneError
) -> None:
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        assert sent.marked == []
        sent.refusals, sent.refusal = 1, error
        await jobs.create(new_job(), [message("one"), message("two")])
        await eventually(lambda: sent.has("first", "one", "two"))
        assert sorted(sent.marked) == ["one", "two"]


@pytest.mark.req("JOB-02.2")
async def test_what_was_offered_and_waited_for_longer_than_its_lease_is_sent_once_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have sent it meanwhile: an unmarked copy behind theirs would be taken for a first one."""
    monkeypatch.setattr("groundplane.jobs.store.LEASE_OFFERED_S", 0.3)
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        sent.gate.clear()
        await jobs.create(new_job(), [message("e0")])
        await eventually(lambda: sent.began(2))
        for number in range(1, 4):
            await jobs.create(new_job(), [message(f"e{number}")])
        ended = time.monotonic() + 0.3

        async def their_leases_ended() -> bool:
            return time.monotonic() > ended

        await eventually(their_leases_ended)
        sent.gate.set()
        await eventually(lambda: _empty(jobs))
        unmarked_late = [one for one in sent.ids[1:] if one not in sent.marked]
        assert set(sent.ids) == {"first", "e0", "e1", "e2", "e3"}
        assert unmarked_late == []


@pytest.mark.req("JOB-02.2")
async def test_a_relay_that_cannot_send_does_not_keep_what_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.jobs.store.LEASE_OFFERED_S", 0.1)
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:
        sent.refusals, sent.refusal = 10_000, Unavailable("queues: away", reason="broker_unreachable")
        for number in range(5):
            await jobs.create(new_job(), [message(f"e{number}")])
        (relay,) = jobs._relays

        async def let_go() -> bool:
            return not relay._offered

        await eventually(let_go)
        sent.refusals = 0
        await eventually(lambda: sent.has("first", *(f"e{number}" for number in range(5))))


@pytest.mark.req("JOB-02.2")
@pytest.mark.usefixtures("endless")
async def test_a_queue_that_is_full_holds_up_no_message_for_another(tmp_path: Path) -> None:
    sent = Sent()
    async with relayed(tmp_path, sent) as jobs:

        async def send(messages: list[OutboxMessage]) -> None:
            if any(one.id == "e1" for one in messages):
                raise ResourceExhausted("depth_max: full", reason="queue_full")
            await Sent.send(sent, messages)

        (relay,) = jobs._relays
        relay._send = send
        await jobs.create(new_job(), [message("e1"), message("e2")])
        await eventually(lambda: sent.has("first", "e2"))
