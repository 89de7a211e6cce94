"""One member of an election and several of them, on the embedded store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from groundplane.core.errors import Closed, Conflict, FailedPrecondition, Internal, InvalidArgument, Unavailable
from groundplane.core.fencing import Fence
from groundplane.kv import KV
from groundplane.services.leadership import POLICIES, ElectionEvent, Leadership, Policy
from groundplane.services.leadership.election import Election, Read, Record, Wait, Write, encoded
from groundplane.services.leadership.leadership import lease_clock
from groundplane.testing import eventually

pytestmark = pytest.mark.anyio

PATIENT = Policy(lease_s=30.0)
"""So long that nothing in a test ends by itself."""


@pytest.fixture
async def kv(tmp_path: Path) -> AsyncIterator[KV]:
    async with KV.open("embedded://", state=tmp_path) as kv:
        yield kv


async def _opened(stack: AsyncExitStack, kv: KV, member: str, policy: Policy = PATIENT, **more: object) -> Leadership:
    return await stack.enter_async_context(
        Leadership.open(kv, "planner", member=member, policy=policy, **more)  # type: ignore[arg-type]
    )


@pytest.mark.req("LEAD-03.3")
async def test_of_five_contenders_one_wins_and_all_know_who(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        members = [await _opened(stack, kv, f"m{number}") for number in range(5)]
        await eventually(lambda: all(one.leader() is not None for one in members))
        (active,) = [one for one in members if one.is_active]
        assert {(one.leader().member, one.leader().term) for one in members if one.leader()} == {  # type: ignore[union-attr]
            (active.member, active.term)
        }
        assert [one.leader().is_self for one in members if one.leader()].count(True) == 1  # type: ignore[union-attr]


@pytest.mark.req("LEAD-02")
async def test_the_term_is_the_revision_of_the_acquisition_and_renewals_keep_it(kv: KV) -> None:
    quick = Policy(lease_s=30.0, renew_s=0.05)
    async with Leadership.open(kv, "planner", member="a", policy=quick) as leadership:
        term = await leadership.elected()
        await eventually(lambda: leadership.statistics().renewals >= 3)
        entry = await kv.get("leader/planner")
        assert entry is not None
        assert entry.revision > term == leadership.term
        assert leadership.fence() == Fence("planner", term)
        async with Leadership.open(kv, "planner", member="standby", policy=quick) as standby:
            await eventually(lambda: standby.leader() is not None)
            heard = standby.leader()
            assert heard is not None
            assert (heard.member, heard.term) == ("a", term)
    async with Leadership.open(kv, "planner", member="b", policy=quick) as leadership:
        assert await leadership.elected() > term


@pytest.mark.req("LEAD-03.2", "LEAD-05.1")
async def test_closing_hands_over_at_once_and_everybody_is_told(kv: KV) -> None:
    told: list[ElectionEvent] = []
    async with AsyncExitStack() as stack:
        async with AsyncExitStack() as first:
            leader = await _opened(first, kv, "a")
            await leader.elected()
            standby = await _opened(stack, kv, "b", on_event=told.append)
            await eventually(lambda: standby.leader() is not None)
            assert not standby.is_active
        async with asyncio.timeout(10):  # the lease would last for thirty seconds
            await standby.elected()
    assert [(one.kind, one.leader, one.reason) for one in told] == [
        ("LeaderElected", "a", ""),
        ("LeaderLost", "a", "released"),
        ("ElectionStarted", "", ""),
        ("LeaderElected", "b", ""),
        ("LeaderLost", "b", "released"),
    ]
    terms = [one.term for one in told if one.kind == "LeaderElected"]
    assert sorted(set(terms)) == terms  # type: ignore[type-var]


@pytest.mark.req("LEAD-05.1")
@pytest.mark.parametrize(("outcome", "reason"), [("refused", "refused"), ("unanswered", "no_answer")])
def test_an_election_that_was_not_won_has_failed_and_the_next_is_another(outcome: str, reason: str) -> None:
    now, told = 0.0, []
    election = Election("a", "first life", PATIENT, lambda: now, told.append)
    for _ in range(2):
        election.saw(None, None, read=True)
        write = election.step()
        assert isinstance(write, Write)
        election.sent(write)
        getattr(election, outcome)(write)
        now += PATIENT.renew_s
    assert [(one.kind, one.reason) for one in told] == [("ElectionStarted", ""), ("ElectionFailed", reason)] * 2


@pytest.mark.req("LEAD-05.1")
def test_who_takes_over_from_a_silent_leader_tells_of_the_loss_before_the_election() -> None:
    now, told = 0.0, []
    election = Election("a", "first life", PATIENT, lambda: now, told.append)
    election.saw(7, Record(member="x", incarnation="x", attempt=1, lease_ms=30_000, term=3), read=True)
    now += 30.1
    assert isinstance(election.step(), Write)
    assert [(one.kind, one.leader, one.term, one.reason) for one in told] == [
        ("LeaderElected", "x", 3, ""),
        ("LeaderLost", "x", 3, "expired"),
        ("ElectionStarted", "", None, ""),
    ]


@pytest.mark.req("LEAD-03.2")
def test_an_answer_that_comes_after_the_news_of_a_successor_does_not_undo_it() -> None:
    election = Election("a", "first life", PATIENT, lambda: 0.0)
    election.saw(None, None, read=True)
    first = election.step()
    assert isinstance(first, Write)
    election.sent(first)
    election.written(first, 1)
    released = election.release()
    assert released is not None
    election.sent(released)
    election.saw(3, Record(member="b", incarnation="b", attempt=1, lease_ms=30_000))
    election.written(released, 2)
    leader = election.leader()
    assert leader is not None
    assert (leader.member, leader.term) == ("b", 3)


@pytest.mark.req("LEAD-03.3")
@pytest.mark.parametrize("answer", [None, 1], ids=["missing", "older"])
def test_an_answer_to_a_look_that_was_outrun_by_news_is_asked_for_anew(answer: int | None) -> None:
    """Else the key were missing for who looked just before the first leader came, until that one's next renewal."""
    there = Record(member="b", incarnation="b", attempt=1, lease_ms=30_000)
    gone = Record(member="x", incarnation="x", attempt=2, lease_ms=30_000, released=True)
    election = Election("a", "first life", PATIENT, lambda: 0.0)
    assert isinstance(election.step(), Read)
    election.saw(2, there)
    election.saw(answer, gone if answer else None, read=True)
    leader = election.leader()
    assert leader is not None
    assert (leader.member, leader.term) == ("b", 2)
    assert isinstance(election.step(), Read)
    election.saw(2, there, read=True)
    assert isinstance(election.step(), Wait)


@pytest.mark.req("LEAD-03.2")
async def test_who_has_resigned_is_no_candidate_for_a_lease(kv: KV) -> None:
    async with Leadership.open(kv, "planner", member="a", policy=Policy(lease_s=0.5)) as lonely:
        term = await lonely.elected()
        began = lease_clock()
        await lonely.resign()
        async with asyncio.timeout(20):
            assert await lonely.elected() > term
        assert lease_clock() - began >= 0.5


@pytest.mark.req("LEAD-03.2")
async def test_resigning_hands_over_to_another(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        await leader.elected()
        standby = await _opened(stack, kv, "b")
        await leader.resign()
        assert not leader.is_active
        async with asyncio.timeout(10):
            await standby.elected()
        told = leader.leader
        await eventually(lambda: (one := told()) is not None and one.member == "b")


@pytest.mark.req("LEAD-01.2")
async def test_a_block_is_cancelled_with_its_term_and_says_why(kv: KV) -> None:
    ended: list[str] = []
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")

        async def act() -> None:
            async with leader.acting() as fence:
                ended.append(f"began {fence.term}")
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append("cleaned up")

        work = asyncio.create_task(act())
        await eventually(lambda: bool(ended))
        term = leader.term
        await leader.resign()
        with pytest.raises(Conflict) as caught:
            await work
    assert caught.value.reason == "leadership_lost"
    assert caught.value.details == {"name": "planner", "term": term, "why": "released"}
    assert ended == [f"began {term}", "cleaned up"]
    assert work.cancelling() == 0


async def test_a_block_that_is_cancelled_from_elsewhere_is_cancelled(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        inside = asyncio.Event()

        async def act() -> None:
            async with leader.acting():
                inside.set()
                await asyncio.Event().wait()

        work = asyncio.create_task(act())
        await inside.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert leader.is_active


async def test_a_block_that_keeps_the_cancellation_to_itself_leaves_nothing_behind(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        inside = asyncio.Event()

        async def act() -> str:
            async with leader.acting():
                inside.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return "stopped"
            return "never"

        work = asyncio.create_task(act())
        await inside.wait()
        await leader.resign()
        assert await work == "stopped"
        assert work.cancelling() == 0


async def test_the_lease_is_not_released_while_a_block_still_runs(kv: KV) -> None:
    """Who cannot stop what runs must not tell the others that it has."""
    policy = Policy(lease_s=3.0)
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a", policy)
        inside, let_go = asyncio.Event(), asyncio.Event()

        async def stubborn() -> None:
            async with leader.acting():
                inside.set()
                while not let_go.is_set():
                    try:
                        await let_go.wait()
                    except asyncio.CancelledError:
                        continue

        work = asyncio.create_task(stubborn())
        await inside.wait()
        await leader.resign()
        entry = await kv.get("leader/planner")
        assert entry is not None
        assert b'"released":true' not in entry.value
        let_go.set()
        await asyncio.gather(work, return_exceptions=True)


async def test_resigning_within_a_block_is_refused(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        async with leader.acting():
            with pytest.raises(FailedPrecondition, match="within acting"):
                await leader.resign()


@pytest.mark.req("LEAD-01.2")
async def test_work_is_run_anew_in_each_term_until_it_returns(kv: KV) -> None:
    terms: list[int] = []

    async def work(fence: Fence) -> None:
        terms.append(fence.term)
        if len(terms) < 3:
            await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a", Policy(lease_s=0.2))
        leading = asyncio.create_task(leader.lead(work))
        for count in (1, 2):
            await eventually(lambda count=count: len(terms) >= count)  # type: ignore[misc]
            await leader.resign()
        await leading
    assert sorted(set(terms)) == terms
    assert len(terms) >= 3  # a machine that stalls ends terms of its own accord


@pytest.mark.req("LEAD-04.1", "LEAD-04.4")
async def test_a_standby_answers_not_active_with_the_leaders_id(kv: KV) -> None:
    async def handler(value: int) -> int:
        return value * 2

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        await leader.elected()
        standby = await _opened(stack, kv, "b")
        await eventually(lambda: standby.leader() is not None)
        with pytest.raises(Unavailable) as caught:
            await standby.guarded(handler)(21)
        assert (caught.value.reason, caught.value.retryable) == ("not_active", True)
        assert caught.value.details == {"name": "planner", "member": "b", "leader": "a"}
        with pytest.raises(Unavailable, match="ask 'a'"):
            standby.fence()
        assert await leader.guarded(handler)(21) == 42


@pytest.mark.req("LEAD-01.2", "LEAD-04.4")
async def test_a_handler_that_loses_its_term_is_cancelled_and_that_is_the_answer(kv: KV) -> None:
    inside, ended = asyncio.Event(), asyncio.Event()

    async def handler() -> None:
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        term = await leader.elected()
        answer = asyncio.create_task(leader.guarded(handler)())
        await inside.wait()
        await leader.resign()
        assert ended.is_set()
        with pytest.raises(Conflict) as caught:
            await answer
        assert (caught.value.reason, caught.value.details["term"]) == ("leadership_lost", term)


@pytest.mark.req("LEAD-04.3", "LEAD-04.4")
async def test_what_a_handler_raises_is_execution_error_and_not_retried(kv: KV) -> None:
    async def broken() -> None:
        raise ValueError("no such day")

    async def asks_another() -> None:
        raise Unavailable("x: 'y' is not active", reason="not_active", details={"leader": "z"})

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        await leader.elected()
        with pytest.raises(Internal, match="no such day") as caught:
            await leader.guarded(broken)()
        assert (caught.value.reason, caught.value.retryable) == ("execution_error", False)
        assert caught.value.details == {"name": "planner", "type": "ValueError"}
        with pytest.raises(Internal) as caught:
            await leader.guarded(asks_another)()
        assert caught.value.reason == "execution_error"
        assert caught.value.details["reason"] == "not_active"


@pytest.mark.req("LEAD-01.1")
async def test_a_record_that_says_nothing_is_waited_for_and_then_replaced(kv: KV) -> None:
    await kv.put("leader/planner", b"\xff not a record")
    async with AsyncExitStack() as stack:
        member = await _opened(stack, kv, "a", Policy(lease_s=0.3))
        async with asyncio.timeout(20):
            assert await member.elected() > 1


async def test_a_record_with_a_lease_for_ever_is_none(kv: KV) -> None:
    record = Record(member="x", incarnation="x", attempt=1, lease_ms=10**12)
    await kv.put("leader/planner", encoded(record))
    async with AsyncExitStack() as stack:
        member = await _opened(stack, kv, "a", Policy(lease_s=0.3))
        async with asyncio.timeout(20):
            assert await member.elected() > 1


@pytest.mark.req("LEAD-01.1")
async def test_a_leader_whose_record_was_taken_stops_at_once(kv: KV) -> None:
    """Nobody of ours writes over a lease that runs; whoever does all the same does not make two."""
    told: list[ElectionEvent] = []
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a", on_event=told.append)
        await leader.elected()
        usurper = Record(member="x", incarnation="x", attempt=1, lease_ms=30_000)
        await kv.put("leader/planner", encoded(usurper))
        await eventually(lambda: not leader.is_active)
        assert ("LeaderLost", "taken") in [(one.kind, one.reason) for one in told]
        found = leader.leader()
        assert found is not None
        assert found.member == "x"


async def test_a_listener_that_raises_does_not_end_the_campaign(kv: KV) -> None:
    def broken(event: ElectionEvent) -> None:
        raise RuntimeError(event.kind)

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a", Policy(lease_s=0.3), on_event=broken)
        await leader.elected()
        await eventually(lambda: leader.statistics().renewals >= 2)
        await eventually(lambda: leader.is_active)
        assert leader.complaint() is None


async def test_after_closing_every_call_is_closed_and_closing_twice_is_once(kv: KV) -> None:
    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        await leader.elected()
        standby = await _opened(stack, kv, "b")
        waiting = asyncio.create_task(standby.elected())
        await asyncio.sleep(0)
        await asyncio.gather(standby.aclose(), standby.aclose())
        with pytest.raises(Closed):
            await waiting
        for call in (standby.elected, standby.resign):
            with pytest.raises(Closed):
                await call()
        with pytest.raises(Closed):
            async with standby.acting():
                raise AssertionError("it acts after it was closed")


async def test_a_store_that_was_closed_first_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with KV.open("embedded://", state=tmp_path) as kv:
            leader = await _opened(stack, kv, "a", Policy(lease_s=0.5))
            await leader.elected()
        await eventually(lambda: leader.complaint() is not None)
        await eventually(lambda: not leader.is_active)
        with pytest.raises(Closed):
            await leader.resign()


@pytest.mark.req("LEAD-03.1")
@pytest.mark.parametrize(
    ("name", "lease_s", "renew_s"), [("aggressive", 0.8, 0.8 / 3), ("balanced", 1.5, 0.5), ("conservative", 7.0, 0.5)]
)
def test_policies_have_their_leases_and_renew_in_time(name: str, lease_s: float, renew_s: float) -> None:
    policy = POLICIES[name]
    assert (policy.lease_s, policy.renew_s) == (lease_s, renew_s)
    assert policy.renew_s * 2 <= policy.stop_s < policy.lease_s * 0.98


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lease_s": 0.01}, "lease_s"),
        ({"lease_s": float("nan")}, "lease_s"),
        ({"lease_s": True}, "lease_s"),
        ({"lease_s": 1.0, "stop_s": 0.99}, "stop_s"),
        ({"lease_s": 1.0, "renew_s": 0.5}, "renew_s"),
        ({"lease_s": 1.0, "renew_s": -1.0}, "renew_s"),
    ],
)
def test_a_policy_that_would_not_be_safe_is_refused(values: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{field}: "):
        Policy(**values)


async def test_bad_names_are_refused_before_anything_is_stored(kv: KV) -> None:
    for more, field in (({"policy": "balance"}, "policy"), ({"member": "a b"}, "member")):
        with pytest.raises(InvalidArgument, match=rf"^{field}: "):
            async with Leadership.open(kv, "planner", **more):  # type: ignore[arg-type]
                raise AssertionError("opened")
    with pytest.raises(InvalidArgument, match=r"^name: "):
        async with Leadership.open(kv, "no name"):
            raise AssertionError("opened")
    assert (await kv.keys()).items == []


@pytest.mark.req("LEAD-04.1")
async def test_whoever_waits_to_lead_or_to_hand_over_is_told_that_the_store_was_closed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with KV.open("embedded://", state=tmp_path) as kv:
            await (await _opened(stack, kv, "a")).elected()
            standby = await _opened(stack, kv, "b")
            await eventually(lambda: standby.leader() is not None)
            waiting = asyncio.create_task(standby.elected())
            await asyncio.sleep(0)
        async with asyncio.timeout(20):  # the lease would last for thirty seconds, and nobody would wake it then
            with pytest.raises(Closed):
                await waiting


@pytest.mark.req("LEAD-01.1")
async def test_a_block_begins_once_that_of_an_earlier_term_has_ended_at_whatever_moment_that_is(kv: KV) -> None:
    async def act(leader: Leadership) -> int:
        async with leader.acting() as fence:
            return fence.term

    async with AsyncExitStack() as stack:
        leader = await _opened(stack, kv, "a")
        term = await leader.elected()
        for steps in range(6):
            with leader._blocks.run(0):
                acting = asyncio.create_task(act(leader))
                for _ in range(steps):  # every moment of its way into the block is met once
                    await asyncio.sleep(0)
            async with asyncio.timeout(20):
                assert await acting == term
