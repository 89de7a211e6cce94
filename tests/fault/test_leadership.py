"""Elections among real processes: killed, stopped, handing over. One judge looks at what all of them noted."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from groundplane.services.leadership.leadership import lease_clock
from groundplane.testing import eventually, unique
from leadership_processes import Reign, TwoActive, contenders, judge

pytestmark = [pytest.mark.anyio, pytest.mark.fault, pytest.mark.integration]

FAILOVER_S_MAX = 20.0
"""Of any one failover, on a machine that does something else now and then."""


@pytest.fixture(params=["embedded", pytest.param("nats", marks=pytest.mark.nats)])
def url(request: pytest.FixtureRequest) -> str:
    """Of the store in which the lease is."""
    if request.param == "embedded":
        return "embedded://"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.mark.req("LEAD-03.1", "LEAD-03.3", "LEAD-03.4", "LEAD-01.1")
async def test_five_contenders_have_one_winner_and_five_failovers_in_a_row_are_quick(url: str, tmp_path: Path) -> None:
    failovers = []
    async with contenders(url, tmp_path, unique("lead"), 5, "balanced") as them:
        for _ in range(5):
            leader = await them.leader()
            last = leader.reigns()[-1].term
            killed = lease_clock()
            await leader.kill()
            reign = await them.reign_after(last)
            failovers.append(reign.first - killed)
            await them.add()
            await them.ready()
        them.judge()
        assert len({reign.member for reign in them.reigns()}) >= 2
    assert sorted(failovers)[1] < 2.0, failovers  # of one that something stalls, the second best
    assert max(failovers) < FAILOVER_S_MAX, failovers


@pytest.mark.req("LEAD-01.1", "LEAD-01.2", "LEAD-02")
async def test_a_leader_that_was_stopped_past_its_lease_finds_itself_deposed_and_its_effects_refused(
    url: str, tmp_path: Path
) -> None:
    async with contenders(url, tmp_path, unique("lead"), 3, "aggressive") as them:
        for _ in range(2):
            leader = await them.leader()
            await eventually(lambda leader=leader: leader.said("effect"))  # type: ignore[misc]
            term = leader.reigns()[-1].term
            leader.signal(signal.SIGSTOP)
            await them.effect_after(term)
            leader.signal(signal.SIGCONT)
            await eventually(lambda m=leader, t=term: ["refused", t] in m.journal(), timeout_s=30)  # type: ignore[misc]
        them.judge()


@pytest.mark.req("LEAD-03.2")
async def test_a_leader_that_is_asked_to_end_hands_over_before_its_lease_does(url: str, tmp_path: Path) -> None:
    async with contenders(url, tmp_path, unique("lead"), 2, "30") as them:
        leader = await them.leader()
        leader.signal(signal.SIGINT)
        async with asyncio.timeout(20):
            await them.leader(besides=leader)
        await leader.process.wait()
        them.judge()


@pytest.mark.req("LEAD-01.1")
@pytest.mark.parametrize(
    ("reigns", "found"),
    [
        ([Reign(1, "a", 0.0, 2.0), Reign(2, "b", 1.9, 3.0)], "two were active at once"),
        ([Reign(1, "a", 0.0, 9.0), Reign(2, "b", 1.9, 3.0)], "two were active at once"),
        ([Reign(2, "a", 0.0, 1.0), Reign(1, "b", 1.9, 3.0)], "terms do not rise"),
        ([Reign(1, "a", 0.0, 1.0), Reign(1, "b", 1.9, 3.0)], "terms do not rise"),
    ],
)
def test_the_judge_sees_two_actives(reigns: list[Reign], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        judge(reigns)


@pytest.mark.req("LEAD-01.2")
async def test_the_judge_sees_members_that_do_not_stop_by_themselves(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same processes without the self-stop, whose leaders hear nothing: one that wakes up acts on."""
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import groundplane.services.leadership.election as election\n"
        "election.Election._lease_runs = lambda self: True\n"
        "election.Election._saw_leading = lambda self, *seen, **how: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    async with contenders(url, tmp_path, unique("lead"), 3, "aggressive") as them:
        leader = await them.leader()
        leader.signal(signal.SIGSTOP)
        await them.leader(besides=leader)
        leader.signal(signal.SIGCONT)
        seen = len(leader.looks())
        await eventually(lambda: len(leader.looks()) > seen + 5)
        with pytest.raises(TwoActive):
            them.judge()
