"""One active at any moment, over thousands of schedules of faults in virtual time; and that the checker would see two.

`GROUNDPLANE_LEADERSHIP_SCHEDULES` sets how many for the decisions alone (default 1,200), a tenth of that is for whole
members with their loops, timers and handlers.
"""

from __future__ import annotations

import os
from unittest.mock import Mock

import pytest

from groundplane.services.leadership import Leadership, leadership
from groundplane.services.leadership.blocks import Blocks
from groundplane.services.leadership.election import Election
from groundplane.telemetry.logs import Logger
from leadership_loops import LoopWorld
from leadership_simulation import Campaign, TwoLed, World

SCHEDULES = int(os.environ.get("GROUNDPLANE_LEADERSHIP_SCHEDULES", "1200"))
SEEN_WITHIN = 1000


@pytest.mark.req("LEAD-01.1", "LEAD-01.2", "LEAD-02")
@pytest.mark.timeout(0)
def test_never_two_active_and_no_effect_of_an_older_term_after_one_of_a_newer() -> None:
    tally = Campaign().run(SCHEDULES)
    # the schedules are worth something: of each thing that could go wrong there was plenty
    assert tally.terms > 2 * SCHEDULES
    assert tally.own_stops > SCHEDULES / 2
    assert tally.long_pauses > SCHEDULES
    assert tally.effects > 10 * SCHEDULES
    assert tally.effects_refused > SCHEDULES / 20
    assert tally.releases > SCHEDULES / 10


@pytest.mark.req("LEAD-01.2")
def test_the_checker_sees_a_leader_that_does_not_stop_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_lease_runs", lambda self: True)
    with pytest.raises(TwoLed, match="seed"):
        Campaign().run(SEEN_WITHIN)


@pytest.mark.req("LEAD-02")
def test_the_checker_sees_a_store_that_does_not_look_at_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "admits", lambda self, fence: True)
    with pytest.raises(TwoLed, match="an effect of term"):
        Campaign().run(SEEN_WITHIN)


@pytest.mark.req("LEAD-01.1")
def test_the_checker_sees_a_lease_that_counts_from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that is made most often: an answer that was late makes the lease longer."""
    take = Election._take

    def from_now(self: Election, revision: int, record: object) -> None:
        self._sent[record.attempt] = self._clock()  # type: ignore[attr-defined]
        take(self, revision, record)  # type: ignore[arg-type]

    monkeypatch.setattr(Election, "_take", from_now)
    with pytest.raises(TwoLed, match="seed"):
        Campaign().run(SEEN_WITHIN)


@pytest.mark.req("LEAD-01.1")
def test_the_checker_sees_a_member_that_does_not_wait_the_lease_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_free_at", lambda self: self._seen_at + 0.8 * self.policy.lease_s)
    with pytest.raises(TwoLed, match="seed"):
        Campaign().run(SEEN_WITHIN)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of elections in the log are of no use to anybody."""
    monkeypatch.setattr(leadership, "_log", Mock(spec=Logger))


@pytest.mark.req("LEAD-01.1", "LEAD-01.2", "LEAD-02")
@pytest.mark.timeout(0)
@pytest.mark.usefixtures("quiet")
def test_whole_members_are_never_two_and_their_blocks_end_before_their_leases() -> None:
    schedules = max(10, SCHEDULES // 10)
    tally = Campaign(world=LoopWorld).run(schedules)
    assert tally.terms > 2 * schedules
    assert tally.own_stops > schedules / 2
    assert tally.long_pauses > schedules
    assert tally.effects > 10 * schedules
    assert tally.releases > schedules / 5


@pytest.mark.req("LEAD-01.2")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("seed", [2688])
def test_schedules_that_have_found_something_find_nothing_more(seed: int) -> None:
    """2688: a lease that was found by reading, after its answer was lost, had no timer of its own."""
    LoopWorld(seed, members=2 + seed % 3).run()


@pytest.mark.req("LEAD-01.2")
@pytest.mark.usefixtures("quiet")
def test_the_checker_sees_whole_members_that_do_not_stop_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Election, "_lease_runs", lambda self: True)
    with pytest.raises(TwoLed, match="seed"):
        Campaign(world=LoopWorld).run(SEEN_WITHIN)


@pytest.mark.req("LEAD-02")
@pytest.mark.usefixtures("quiet")
def test_the_checker_sees_whole_members_whose_store_does_not_look_at_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "admits", lambda self, fence: True)
    with pytest.raises(TwoLed, match="an effect of term"):
        Campaign(world=LoopWorld).run(SEEN_WITHIN)


@pytest.mark.req("LEAD-01.2")
@pytest.mark.usefixtures("quiet")
def test_the_checker_sees_a_block_that_is_not_cancelled_with_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blocks, "end", lambda self, term, reason: False)
    with pytest.raises(TwoLed, match="a block of"):
        Campaign(world=LoopWorld).run(SEEN_WITHIN)


@pytest.mark.req("LEAD-01.2")
@pytest.mark.usefixtures("quiet")
def test_the_checker_sees_a_campaign_that_waits_for_the_store_while_its_lease_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Leadership, "_set_stop_timer", lambda self: None)
    with pytest.raises(TwoLed, match="a block of"):
        Campaign(world=LoopWorld).run(SEEN_WITHIN)
