"""Discovery over a source that the test commands: cache, watch, and what happens when the source is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from groundplane.core.errors import Closed, DeadlineExceeded, InvalidArgument, Unavailable
from groundplane.services.discovery import Discovery
from groundplane.services.port import InstanceChange, Status
from groundplane.services.settings import DiscoverySettings
from groundplane.testing import VirtualClock, eventually
from unit.services.scripted_source import ScriptedSource, instance

pytestmark = pytest.mark.anyio

QUIET = DiscoverySettings(watch=False)
FAST = DiscoverySettings(retry_base_s=0.01, retry_cap_s=0.05)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource(
        instance("quotes", "a"),
        instance("quotes", "b", Status.STANDBY),
        instance("quotes", "c", Status.UNHEALTHY),
        instance("quotes", "d", Status.SHUTDOWN),
        instance("orders", "a"),
    )


@pytest.fixture
async def quiet(source: ScriptedSource, clock: VirtualClock) -> AsyncIterator[Discovery]:
    """One that does not watch."""
    async with Discovery.open(source, QUIET, clock=clock) as discovery:
        yield discovery


@pytest.fixture
async def watching(source: ScriptedSource) -> AsyncIterator[Discovery]:
    async with Discovery.open(source, FAST) as discovery:
        await discovery.synced()
        yield discovery


async def ids(discovery: Discovery, service: str = "quotes") -> list[str]:
    return [one.instance_id for one in (await discovery.find(service)).instances]


@pytest.mark.req("SVC-03.1")
async def test_healthy_instances_alone_are_found_unless_all_are_asked_for(quiet: Discovery) -> None:
    assert await ids(quiet) == ["a", "b"]
    found = await quiet.find("quotes", healthy_only=False)
    assert [one.instance_id for one in found.instances] == ["a", "b", "c", "d"]


@pytest.mark.req("SVC-03.2")
async def test_no_healthy_instance_is_an_empty_list_and_selection_is_unavailable(
    quiet: Discovery, source: ScriptedSource
) -> None:
    source.put(instance("ill", "a", Status.UNHEALTHY))
    for service in ("ill", "nobody"):
        found = await quiet.find(service)
        assert (found.instances, found.stale) == ((), False)
        with pytest.raises(Unavailable) as caught:
            await quiet.select(service)
        assert caught.value.reason == "no_instance"


@pytest.mark.req("SVC-03.3")
async def test_a_lookup_is_cached_for_ten_seconds(
    quiet: Discovery, source: ScriptedSource, clock: VirtualClock
) -> None:
    first = await quiet.find("quotes")
    clock.advance(9.9)
    second = await quiet.find("quotes")
    assert (first.cached, second.cached, round(second.age_s, 1)) == (False, True, 9.9)
    clock.advance(0.1)
    assert not (await quiet.find("quotes")).cached
    assert source.lookups == ["quotes", "quotes"]
    assert (quiet.statistics().hits, quiet.statistics().misses) == (1, 2)


@pytest.mark.req("SVC-03.3")
async def test_the_cache_keeps_a_thousand_services_and_drops_the_one_asked_for_longest_ago(
    quiet: Discovery, source: ScriptedSource
) -> None:
    assert quiet.settings.cache_entries == 1000
    for n in range(1000):
        await quiet.find(f"s{n}")
    await quiet.find("s0")
    await quiet.find("one-more")
    assert (quiet.statistics().entries, quiet.statistics().evictions) == (1000, 1)
    assert (await quiet.find("s0")).cached
    assert not (await quiet.find("s1")).cached


@pytest.mark.req("SVC-03.3")
async def test_what_was_known_is_answered_and_marked_when_the_source_is_away(
    quiet: Discovery, source: ScriptedSource, clock: VirtualClock
) -> None:
    await quiet.find("quotes")
    source.down = True
    clock.advance(11)
    found = await quiet.find("quotes")
    assert [one.instance_id for one in found.instances] == ["a", "b"]
    assert (found.stale, found.cached, found.age_s, found.error) == (True, True, 11, "scripted: is down")
    assert quiet.statistics().stale == 1
    source.down = False
    assert not (await quiet.find("quotes")).stale


@pytest.mark.req("SVC-03.3")
async def test_a_source_that_is_away_is_an_error_where_nothing_is_known_or_that_is_too_old(
    quiet: Discovery, source: ScriptedSource, clock: VirtualClock
) -> None:
    await quiet.find("quotes")
    source.down = True
    with pytest.raises(Unavailable, match="scripted: is down"):
        await quiet.find("orders")
    clock.advance(10 + 300)
    with pytest.raises(Unavailable):
        await quiet.find("quotes")


@pytest.mark.req("SVC-03.3")
async def test_a_source_that_hangs_is_given_up(source: ScriptedSource) -> None:
    source.gate = asyncio.Event()
    async with Discovery.open(source, DiscoverySettings(watch=False, timeout_s=0.05)) as discovery:
        with pytest.raises(DeadlineExceeded, match=r"scripted: did not answer for 'quotes' within 0.05 s"):
            await discovery.find("quotes")


@pytest.mark.req("SVC-03.5")
async def test_fifty_concurrent_lookups_ask_the_source_once(quiet: Discovery, source: ScriptedSource) -> None:
    source.gate = asyncio.Event()
    asked = [asyncio.create_task(quiet.find("quotes")) for _ in range(50)]
    await eventually(lambda: source.lookups)
    source.gate.set()
    answers = await asyncio.gather(*asked)
    assert {one.instance_id for answer in answers for one in answer.instances} == {"a", "b"}
    assert (source.lookups, quiet.statistics().hits, quiet.statistics().misses) == (["quotes"], 49, 1)


async def test_a_caller_that_is_cancelled_takes_the_answer_from_nobody(
    quiet: Discovery, source: ScriptedSource
) -> None:
    source.gate = asyncio.Event()
    first, second = (asyncio.create_task(quiet.find("quotes")) for _ in range(2))
    await eventually(lambda: source.lookups)
    first.cancel()
    await asyncio.wait([first])
    source.gate.set()
    assert first.cancelled()
    assert len((await second).instances) == 2


async def test_a_fresh_lookup_asks_the_source_whatever_is_cached(quiet: Discovery, source: ScriptedSource) -> None:
    await quiet.find("quotes")
    source.put(instance("quotes", "e"))
    assert len((await quiet.find("quotes", fresh=True)).instances) == 3
    assert await ids(quiet) == ["a", "b", "e"]


@pytest.mark.req("SVC-03.3")
async def test_an_older_lookup_does_not_take_the_place_of_what_a_fresh_one_has_found(
    quiet: Discovery, source: ScriptedSource
) -> None:
    source.gate = gate = asyncio.Event()
    older = asyncio.create_task(quiet.find("quotes"))
    await eventually(lambda: source.lookups)
    source.gate = None
    source.put(instance("quotes", "e"))
    await quiet.find("quotes", fresh=True)
    gate.set()
    assert len((await older).instances) == 2
    assert (await quiet.find("quotes")).cached
    assert await ids(quiet) == ["a", "b", "e"]


async def test_an_answer_that_a_fresh_lookup_has_overtaken_is_outrun_by_a_change_too(
    watching: Discovery, source: ScriptedSource
) -> None:
    source.gate = older = asyncio.Event()
    asking = [asyncio.create_task(watching.find("quotes"))]
    await eventually(lambda: len(source.lookups) == 1)
    source.gate = asyncio.Event()
    asking.append(asyncio.create_task(watching.find("quotes", fresh=True)))
    await eventually(lambda: len(source.lookups) == 2)
    source.put(instance("quotes", "e"))
    await eventually(lambda: watching.statistics().invalidations)
    older.set()
    await asking[0]
    source.gate.set()
    source.gate = None
    assert await ids(watching) == ["a", "b", "e"]
    await asyncio.gather(*asking)


@pytest.mark.req("SVC-03.4")
async def test_a_change_invalidates_its_service_and_no_other(watching: Discovery, source: ScriptedSource) -> None:
    assert (await ids(watching), await ids(watching, "orders")) == (["a", "b"], ["a"])
    source.put(instance("quotes", "e"))
    await eventually(lambda: watching.statistics().invalidations)
    assert await ids(watching) == ["a", "b", "e"]
    assert (await watching.find("orders")).cached
    source.remove("quotes", "a")
    await eventually(lambda: watching.statistics().invalidations == 2)
    assert await ids(watching) == ["b", "e"]
    assert (await watching.find("orders")).cached


@pytest.mark.req("SVC-03.4")
async def test_heartbeats_invalidate_nothing(watching: Discovery, source: ScriptedSource) -> None:
    await watching.find("orders")
    await watching.find("quotes")
    source.put(instance("orders", "a", beat="2026-01-01T00:00:00.000Z"))
    source.put(instance("quotes", "e"))  # told after it
    await eventually(lambda: watching.statistics().invalidations)
    assert (await watching.find("orders")).cached


@pytest.mark.req("SVC-03.4")
async def test_a_watch_that_is_lost_is_begun_again_and_what_went_meanwhile_is_told(
    watching: Discovery, source: ScriptedSource
) -> None:
    await watching.find("quotes")
    await watching.find("orders")
    source.down = True
    source.lose_watches()
    await eventually(lambda: not watching.statistics().watching)
    assert "the watch of scripted is away: scripted:" in str(await watching.check())
    del source.kept["quotes", "a"]
    source.down = False
    await eventually(lambda: watching.statistics().watching)
    assert await watching.check() is None
    assert await ids(watching) == ["b"]
    assert (await watching.find("orders")).cached
    assert watching.statistics().watch_losses >= 1
    assert source.watches == 2


@pytest.mark.req("SVC-03.4")
async def test_a_watch_begins_later_where_the_source_is_away_at_first(source: ScriptedSource) -> None:
    source.down = True
    async with Discovery.open(source, FAST) as discovery:
        await eventually(lambda: discovery.statistics().watch_losses > 1)
        source.down = False
        await discovery.synced()
        assert discovery.statistics().watching


async def test_an_answer_that_is_outrun_by_a_change_is_not_kept(watching: Discovery, source: ScriptedSource) -> None:
    source.gate = asyncio.Event()
    slow = asyncio.create_task(watching.find("orders"))
    await eventually(lambda: source.lookups)
    source.put(instance("orders", "b"))
    await eventually(lambda: watching.statistics().invalidations)
    source.gate.set()
    assert [one.instance_id for one in (await slow).instances] == ["a"]
    assert await ids(watching, "orders") == ["a", "b"]


@pytest.mark.req("SVC-03.6")
async def test_twenty_rapid_additions_are_all_seen(watching: Discovery, source: ScriptedSource) -> None:
    seen: set[str] = set()

    async def follow() -> None:
        async for change in watching.changes("rapid"):
            seen.add(change.instance_id)

    following = asyncio.create_task(follow())
    await eventually(lambda: source.watches == 2)
    for n in range(20):
        source.put(instance("rapid", f"i{n}"))
    await eventually(lambda: len(seen - {""}) == 20)
    assert len(await ids(watching, "rapid")) == 20
    following.cancel()
    await asyncio.wait([following])


@pytest.mark.req("SVC-03.4")
async def test_changes_tell_what_is_there_then_what_changes_over_losses(source: ScriptedSource) -> None:
    told: list[InstanceChange] = []

    async def follow(discovery: Discovery) -> None:
        async for change in discovery.changes("quotes"):
            told.append(change)

    def kinds() -> list[str]:
        return [f"{one.kind} {one.instance_id}".strip() for one in told]

    async with Discovery.open(source, FAST) as discovery:
        following = asyncio.create_task(follow(discovery))
        await eventually(lambda: kinds() == ["present a", "present b", "present c", "present d", "synced"])
        told.clear()
        source.lose_watches()
        await eventually(lambda: kinds() == ["synced"])
        source.put(instance("quotes", "c"))
        source.remove("quotes", "d")
        await eventually(lambda: kinds() == ["synced", "present c", "gone d"])
    with pytest.raises(Closed):
        await following


@pytest.mark.req("SVC-03.3")
async def test_a_closed_discovery_answers_nobody(source: ScriptedSource) -> None:
    source.gate = asyncio.Event()
    async with Discovery.open(source, QUIET) as discovery:
        waiting = asyncio.create_task(discovery.find("quotes"))
        await eventually(lambda: source.lookups)
    for call in (waiting, discovery.find("quotes"), discovery.select("quotes"), discovery.synced()):
        with pytest.raises(Closed):
            await call
    await discovery.aclose()


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "-a", "ä", "a" * 65, None])
async def test_a_bad_name_is_refused_before_the_source_is_asked(
    quiet: Discovery, source: ScriptedSource, name: str
) -> None:
    with pytest.raises(InvalidArgument, match=r"^service: "):
        await quiet.find(name)
    assert source.lookups == []


async def test_closing_takes_no_caller_its_cancellation(source: ScriptedSource) -> None:
    async with Discovery.open(source, QUIET) as discovery:
        source.gate = asyncio.Event()
        asking = asyncio.create_task(discovery.find("quotes"))
        await eventually(lambda: source.lookups)
        closing = asyncio.create_task(discovery.aclose())
        asking.cancel()
        await asyncio.wait([asking, closing])
        assert asking.cancelled()
