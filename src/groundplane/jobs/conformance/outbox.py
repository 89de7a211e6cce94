"""The outbox and its relays: with the job or not at all, at least once, under one key."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from groundplane.core.errors import NotFound, Unavailable
from groundplane.core.ids import new_id
from groundplane.jobs.conformance.subjects import OpenJobs, eventually, message, new_job
from groundplane.jobs.port import OutboxMessage
from groundplane.jobs.store import Jobs


class _Queue:
    """Where a relay sends to: a list, which can refuse."""

    def __init__(self, *errors: Exception) -> None:
        self.sent: list[OutboxMessage] = []
        self.errors = list(errors)
        self.refused: set[str] = set()

    async def send(self, messages: list[OutboxMessage]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        for one in messages:
            if one.queue in self.refused:
                raise NotFound(f"queue: {one.queue!r} is not there", reason="queue_not_found")
        self.sent += messages

    async def has(self, count: int) -> bool:
        return len(self.sent) >= count


async def _empty(jobs: Jobs) -> bool:
    return (await jobs.sweep()).outbox_head is None


class OutboxConformance:
    """What a message in the outbox may rely on."""

    @pytest.mark.req("JOB-02.1")
    async def test_messages_are_there_with_their_job_in_order_and_leased_when_taken(self, jobs: Jobs) -> None:
        await jobs.create(new_job(), [message("e1"), message("e2", "second")])
        await jobs.create(new_job(), [message("e3")])
        first = await jobs.driver.outbox.take(2)
        assert [one for _, one in first] == [message("e1"), message("e2", "second")]
        assert [one.id for _, one in await jobs.driver.outbox.take(10)] == ["e3"]
        assert await jobs.driver.outbox.take(10) == []
        assert (await jobs.sweep()).outbox == 3
        await jobs.driver.outbox.done([number for number, _ in first])
        await jobs.driver.outbox.done([number for number, _ in first])

    @pytest.mark.req("TEL-07.3")
    async def test_messages_that_nobody_relays_are_a_backlog_whose_age_grows_until_they_are_sent(
        self, jobs: Jobs
    ) -> None:
        async def waits(count: int, more_than_s: float) -> bool:
            swept = await jobs.sweep()
            return swept.outbox_due == count and jobs.statistics().outbox_age_s > more_than_s

        await jobs.create(new_job(), [message("e1"), message("e2")])
        assert await eventually(lambda: waits(2, 0.05))
        taken = await jobs.driver.outbox.take(10)
        await jobs.driver.outbox.done([taken[0][0]])
        assert await eventually(lambda: waits(1, 0.0))
        await jobs.driver.outbox.done([taken[1][0]])
        assert await eventually(lambda: waits(0, -1.0))
        assert jobs.statistics().outbox_age_s == 0.0

    @pytest.mark.req("JOB-02.2")
    async def test_a_message_whose_relay_died_is_taken_again_after_its_lease_with_the_same_key(
        self, jobs: Jobs
    ) -> None:
        await jobs.create(new_job(), [message("e1")])
        (taken,) = await jobs.driver.outbox.take(10, 0.05)
        again = await eventually(lambda: jobs.driver.outbox.take(10))
        number, first = taken
        assert again == [(number, msgspec.structs.replace(first, taken_before=True))]
        assert not first.taken_before

    @pytest.mark.req("JOB-02.2")
    async def test_a_message_that_its_creator_was_to_relay_and_did_not_may_have_been_sent(self, jobs: Jobs) -> None:
        created = await jobs.driver.create(new_job(), [message("e1")], lease_s=0.05)
        assert len(created.taken) == 1
        ((_, found),) = await eventually(lambda: jobs.driver.outbox.take(10))
        assert found.taken_before

    @pytest.mark.req("JOB-02.2")
    async def test_a_relay_sends_what_was_there_and_what_comes(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        queue = _Queue()
        await jobs.create(new_job(), [message("before")])
        async with open_jobs() as other:
            relay = asyncio.create_task(other.run_relay(queue.send))
            await eventually(lambda: queue.has(1))
            await jobs.create(new_job(), [message("after")])
            await eventually(lambda: queue.has(2))
            await eventually(lambda: _empty(jobs))
            relay.cancel()
            with pytest.raises(asyncio.CancelledError):
                await relay
        assert [one.id for one in queue.sent] == ["before", "after"]

    @pytest.mark.req("JOB-02.2")
    async def test_several_relays_send_each_message_once(self, open_jobs: OpenJobs, jobs: Jobs) -> None:
        queue = _Queue()
        ids = [new_id() for _ in range(120)]
        async with open_jobs() as second, open_jobs() as third:
            relays = [asyncio.create_task(one.run_relay(queue.send)) for one in (jobs, second, third)]
            await asyncio.gather(*(jobs.create(new_job(), [message(one)]) for one in ids))
            await eventually(lambda: _empty(jobs), 20)
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
        assert sorted(one.id for one in queue.sent) == sorted(ids)

    @pytest.mark.req("JOB-02.2")
    async def test_a_queue_that_is_away_for_a_while_loses_nothing(self, jobs: Jobs) -> None:
        queue = _Queue(Unavailable("queues: away"), Unavailable("queues: still away"))
        relay = asyncio.create_task(jobs.run_relay(queue.send))
        await jobs.create(new_job(), [message("e1")])
        await eventually(lambda: queue.has(1))
        await eventually(lambda: _empty(jobs))
        assert [one.id for one in queue.sent] == ["e1"]
        assert jobs.statistics().relay_failures == 2
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)

    @pytest.mark.req("JOB-02.2")
    async def test_a_message_that_cannot_be_sent_holds_up_no_other_and_is_kept(self, jobs: Jobs) -> None:
        queue = _Queue()
        queue.refused.add("missing")
        await jobs.create(new_job(), [message("e1"), message("bad", "missing"), message("e2")])
        relay = asyncio.create_task(jobs.run_relay(queue.send, lease_s=0.2))
        await eventually(lambda: queue.has(2))
        await jobs.create(new_job(), [message("e3")])
        await eventually(lambda: queue.has(3))
        assert (await jobs.sweep()).outbox >= 1
        queue.refused.clear()
        await eventually(lambda: queue.has(4))
        await eventually(lambda: _empty(jobs))
        assert [one.id for one in queue.sent] == ["e1", "e2", "e3", "bad"]
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
