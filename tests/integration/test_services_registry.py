"""Instances that are registered, and found, on every store of keys: heartbeats, expiry, changes from several sides."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import service_child
from groundplane.core.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from groundplane.services import (
    Cleaner,
    Definition,
    Discovery,
    DiscoverySettings,
    Instance,
    LifeState,
    RegistrationSettings,
    Registry,
    Service,
    Status,
)
from groundplane.testing import VirtualClock, eventually, together, unique
from pace import at_most
from services_lab import QUICK, STORES, Place, flaky_registry, place_of

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return place_of(request, tmp_path, unique("svc"))


@pytest.fixture
async def registry(place: Place) -> AsyncIterator[Registry]:
    async with place.registry() as opened:
        yield opened


async def ids(registry: Registry, service: str = "quotes") -> list[str]:
    return [one.instance_id for one in await registry.instances(service)]


async def status_of(registry: Registry, instance_id: str) -> Status:
    return (await registry.instance("quotes", instance_id)).status


@pytest.mark.req("SVC-01.1")
async def test_an_instance_is_visible_on_start_and_gone_on_stop(registry: Registry) -> None:
    async with registry.register("quotes", instance_id="a", version="1.4.0", metadata={"zone": "eu"}) as registration:
        found = await registry.instance("quotes", "a")
        assert (found.version, found.status, found.metadata) == ("1.4.0", Status.ACTIVE, {"zone": "eu"})
        assert (await registry.services(), registration.status) == (["quotes"], Status.ACTIVE)
    assert (await registry.services(), await registry.instances()) == ([], [])
    with pytest.raises(NotFound) as caught:
        await registry.instance("quotes", "a")
    assert caught.value.reason == "instance_not_found"
    with pytest.raises(Closed):
        await registration.beat()


@pytest.mark.req("SVC-01.1")
async def test_several_instances_of_several_services_are_told_apart(registry: Registry) -> None:
    async with (
        registry.register("quotes") as first,
        registry.register("quotes") as second,
        registry.register("quotes-eu", instance_id="a"),
    ):
        assert await ids(registry) == sorted([first.instance_id, second.instance_id])
        assert await registry.services() == ["quotes", "quotes-eu"]
        assert len(await registry.instances()) == 3


@pytest.mark.req("SVC-01.5")
async def test_the_stored_record_is_json_in_camel_case(registry: Registry) -> None:
    async with registry.register("quotes", instance_id="a") as registration:
        await registration.set_sticky_active("pricing", "STANDBY")
        await registration.set_status("STANDBY")
        entry = await registry.kv.get("instances.quotes.a")
        assert entry is not None
        record = json.loads(entry.value)
    assert {name: record[name] for name in ("serviceName", "instanceId", "version", "status", "metadata")} == {
        "serviceName": "quotes", "instanceId": "a", "version": "", "status": "STANDBY", "metadata": {},
    }  # fmt: skip
    assert (record["stickyActiveGroup"], record["stickyActiveStatus"]) == ("pricing", "STANDBY")
    assert record["lastHeartbeat"].endswith("Z")


@pytest.mark.req("SVC-01.2")
@pytest.mark.req("SVC-01.3")
async def test_an_instance_whose_process_is_killed_is_gone_with_its_ttl_and_heartbeats_keep_the_others(
    registry: Registry, place: Place
) -> None:
    ttl_s = 3.0
    arguments = [place.url, str(place.state), place.namespace, str(ttl_s), "killed"]
    command = [sys.executable, service_child.__file__, *arguments]
    settings = msgspec.structs.replace(QUICK, ttl_s=ttl_s)
    began = time.monotonic()
    async with registry.register("quotes", instance_id="kept", settings=settings) as kept:
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        assert await child.stdout.readline() == b"registered\n"
        assert await ids(registry) == ["kept", "killed"]
        async with registry.watch("quotes") as changes:
            child.kill()
            killed_at = time.monotonic()
            await child.wait()
            async with asyncio.timeout(20):
                async for change in changes:
                    if change.kind == "gone":
                        break
        assert (change.service_name, change.instance_id) == ("quotes", "killed")
        assert time.monotonic() - killed_at < ttl_s + at_most(2)  # what a store and a busy machine may take
        await eventually(lambda: kept.statistics().heartbeats > 3 and time.monotonic() - began > ttl_s + 0.5)
        assert await ids(registry) == ["kept"]
        assert (kept.statistics().recreated, kept.statistics().failures) == (0, 0)


@pytest.mark.req("SVC-01.4")
async def test_a_lost_entry_is_made_again_within_one_interval(registry: Registry) -> None:
    took: list[float] = []
    async with registry.register("quotes", instance_id="a") as registration:
        for _ in range(5):
            await registry.remove("quotes", "a")
            began = time.monotonic()
            await eventually(lambda: registry.entry("quotes", "a"))
            took.append(time.monotonic() - began)
        assert registration.statistics().recreated == 5
    assert min(took) < QUICK.heartbeat_s + 0.2
    assert await registry.instances() == []


@pytest.mark.req("SVC-01.5")
async def test_concurrent_changes_of_status_heartbeats_and_changes_from_outside_end_valid(registry: Registry) -> None:
    words = ("ACTIVE", "STANDBY")

    def mark(n: int, one: Instance) -> Instance:
        return msgspec.structs.replace(one, status=Status(words[n % 2]), metadata={**one.metadata, f"n{n}": n})

    async with registry.register("quotes", instance_id="a") as registration:
        work: list[Any] = [registration.set_status(words[n % 2]) for n in range(20)]  # type: ignore[arg-type]
        work += [registry.change("quotes", "a", lambda one, n=n: mark(n, one)) for n in range(10)]  # type: ignore[misc]
        work += [registration.beat() for _ in range(10)]
        await asyncio.gather(*work)
        await registration.beat()
        found = await registry.instance("quotes", "a")
        assert found.status in (Status.ACTIVE, Status.STANDBY)
        assert found.metadata == {f"n{n}": n for n in range(10)}
        assert registration.instance.same_as(found)
        await registration.set_status("STANDBY")
        assert await status_of(registry, "a") is Status.STANDBY


@pytest.mark.req("SVC-01.5")
async def test_an_instance_takes_over_what_was_changed_from_outside(registry: Registry) -> None:
    async with registry.register("quotes", instance_id="a") as registration:
        change = msgspec.structs.replace
        await registry.change("quotes", "a", lambda one: change(one, status=Status.STANDBY, metadata={"drained": True}))
        await registration.beat()
        assert (registration.status, registration.instance.metadata) == (Status.STANDBY, {"drained": True})
        await registry.change("quotes", "a", lambda one: change(one, status=Status.SHUTDOWN))
        await registration.beat()
        assert await status_of(registry, "a") is Status.STANDBY
    with pytest.raises(NotFound):
        await registry.change("quotes", "a", lambda one: one)


@pytest.mark.req("SVC-01.5")
async def test_a_later_registration_of_the_same_id_takes_the_entry_and_keeps_it(registry: Registry) -> None:
    async with registry.register("quotes", instance_id="a", version="2") as second_comer:
        assert await second_comer.check() is None
        async with registry.register("quotes", instance_id="a", version="3"):
            assert not await second_comer.beat()
            assert "later than this" in str(await second_comer.check())
            with pytest.raises(FailedPrecondition) as caught:
                await second_comer.set_status("STANDBY")
            assert caught.value.reason == "superseded"
            assert (await registry.instance("quotes", "a")).version == "3"
        await eventually(lambda: registry.entry("quotes", "a"))  # the earlier one comes back
        assert await eventually(second_comer.beat)
        assert (await registry.instance("quotes", "a")).version == "2"


@pytest.mark.req("SVC-01.1")
async def test_the_end_of_a_registration_leaves_the_entry_of_a_later_one(registry: Registry) -> None:
    first = registry.register("quotes", instance_id="a", version="1")
    await first.__aenter__()
    async with registry.register("quotes", instance_id="a", version="2"):
        await first.__aexit__(None, None, None)
        assert (await registry.instance("quotes", "a")).version == "2"


@pytest.mark.req("SVC-02.3")
async def test_an_instance_is_unhealthy_while_its_readiness_is_red_although_heartbeats_pass(registry: Registry) -> None:
    answers: dict[str, Any] = {"reason": None}

    async def readiness() -> str | None:
        if isinstance(answers["reason"], Exception):
            raise answers["reason"]
        if answers["reason"] == "hangs":
            await asyncio.Event().wait()
        return answers["reason"]  # type: ignore[no-any-return]

    settings = RegistrationSettings(ttl_s=600, heartbeat_s=300, readiness_s=0.2)
    async with registry.register("quotes", instance_id="a", readiness=readiness, settings=settings) as registration:
        assert await status_of(registry, "a") is Status.ACTIVE
        for reason in ("no database", RuntimeError("broken check"), "hangs"):
            answers["reason"] = reason
            assert await registration.beat()
            assert (registration.status, await status_of(registry, "a")) == (Status.UNHEALTHY, Status.UNHEALTHY)
            answers["reason"] = None
            assert await registration.beat()
            assert (registration.status, await status_of(registry, "a")) == (Status.ACTIVE, Status.ACTIVE)
    assert (registration.statistics().heartbeats >= 6, registration.statistics().failures) == (True, 0)


@pytest.mark.req("SVC-02.3")
async def test_an_instance_that_cannot_work_when_it_comes_is_never_shown_as_able(registry: Registry) -> None:
    async def red() -> str:
        return "no database"

    async with registry.watch("quotes") as changes:
        assert (await anext(changes)).kind == "synced"
        async with registry.register("quotes", instance_id="a", readiness=red):
            first = await anext(changes)
    assert first.instance is not None
    assert first.instance.status is Status.UNHEALTHY


async def _is(registry: Registry, status: Status) -> bool:
    return await status_of(registry, "a") is status


@pytest.mark.req("SVC-02.2")
async def test_three_failed_heartbeats_make_an_instance_unhealthy_and_one_that_succeeds_brings_it_back(
    tmp_path: Path,
) -> None:
    quiet = RegistrationSettings(ttl_s=600, heartbeat_s=300)
    async with flaky_registry(tmp_path, quiet) as (registry, switch):
        async with registry.register("quotes", instance_id="a") as registration:
            switch.down = True
            for beats in range(1, 5):
                assert not await registration.beat()
                expected = Status.ACTIVE if beats < 3 else Status.UNHEALTHY
                assert (registration.status, registration.statistics().failures_in_a_row) == (expected, beats)
                assert (await registration.check() is None) is (beats < 3)
            assert await registration.check() == "4 heartbeats in a row have failed: kv: does not answer [unavailable]"
            with pytest.raises(Unavailable):
                await registration.set_status("STANDBY")  # told as soon as it can be
            switch.down = False
            assert await registration.beat()
            assert (registration.status, await registration.check()) == (Status.STANDBY, None)
            assert (await registry.instance("quotes", "a")).status is Status.STANDBY


@pytest.mark.req("SVC-01.4")
async def test_what_was_said_while_the_store_was_away_outlives_an_answer_that_was_lost(tmp_path: Path) -> None:
    quiet = RegistrationSettings(ttl_s=1000.0, heartbeat_s=500.0)
    async with flaky_registry(tmp_path, quiet) as (registry, switch):
        async with registry.register("quotes", instance_id="a") as registration:
            switch.deaf = True
            assert not await registration.beat()  # ACTIVE is written, and nobody here knows
            switch.deaf, switch.down = False, True
            with pytest.raises(Unavailable):
                await registration.set_status("STANDBY")
            with pytest.raises(Unavailable):
                await registration.set_metadata({"zone": "b"})
            switch.down = False
            assert await registration.beat()
            found = await registry.instance("quotes", "a")
            assert (found.status, found.metadata) == (Status.STANDBY, {"zone": "b"})
            await registry.change("quotes", "a", lambda one: msgspec.structs.replace(one, status=Status.ACTIVE))
            assert await registration.beat()  # said once: what others say later counts
            assert await status_of(registry, "a") is Status.ACTIVE


@pytest.mark.req("SVC-02.1")
async def test_heartbeats_go_on_however_often_they_fail_and_make_an_expired_entry_again(tmp_path: Path) -> None:
    settings = RegistrationSettings(ttl_s=0.5, heartbeat_s=0.1)
    async with flaky_registry(tmp_path, settings) as (registry, switch):
        async with registry.register("quotes", instance_id="a") as registration:
            for rounds in range(1, 3):
                switch.down = True
                await eventually(lambda: registration.statistics().failures_in_a_row > 5)
                switch.error = RuntimeError("not even an error of ours")
                await eventually(lambda: registration.statistics().failures_in_a_row > 8)
                switch.down = False
                await eventually(lambda: registration.statistics().failures_in_a_row == 0)
                await eventually(lambda: _is(registry, Status.ACTIVE), tolerate=(NotFound,))  # it may expire again
                assert registration.statistics().recreated >= rounds


@pytest.mark.req("SVC-02.1")
async def test_a_store_that_is_away_at_the_end_does_not_hold_the_end_up(tmp_path: Path) -> None:
    async with flaky_registry(tmp_path, RegistrationSettings(ttl_s=3.0, heartbeat_s=0.2)) as (registry, switch):
        async with registry.register("quotes", instance_id="a"):
            switch.down = True
        switch.down = False
        assert await ids(registry) == ["a"]
        await eventually(lambda: _gone(registry))


async def _gone(registry: Registry) -> bool:
    return not await registry.instances()


async def test_registering_where_the_store_is_away_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async with flaky_registry(tmp_path) as (registry, switch):
        switch.down = True
        with pytest.raises(Unavailable):
            async with registry.register("quotes", instance_id="a"):
                pytest.fail("is not registered")
        switch.down = False
        assert await registry.instances() == []


async def test_records_that_nobody_can_read_hide_no_others(registry: Registry) -> None:
    for key, value in (("instances.quotes.bad", b"\xff"), ("instances.quotes.b", b"{}"), ("instances.x", b"{}")):
        await registry.kv.put(key, value)
    async with registry.register("quotes", instance_id="bad", version="2"):  # and one is written over
        assert await ids(registry) == ["bad"]
        assert registry.malformed == 1
        with pytest.raises(NotFound):
            await registry.instance("quotes", "b")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("service", {"service": "a.b"}),
        ("instance", {"service": "a", "instance_id": ""}),
        ("version", {"service": "a", "version": "x" * 65}),
        ("metadata", {"service": "a", "metadata": {"x": object()}}),
        ("metadata", {"service": "a", "metadata": {1: "x"}}),
    ],
)
async def test_what_cannot_be_registered_is_refused_by_field(tmp_path: Path, field: str, given: dict[str, Any]) -> None:
    async with flaky_registry(tmp_path) as (registry, switch):
        switch.down = True  # it is refused before the store is asked
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            async with registry.register(**given):
                pytest.fail("is not registered")


@pytest.mark.parametrize("status", ["UNHEALTHY", "SHUTDOWN", "active", None])
async def test_only_active_and_standby_are_said_by_hand(registry: Registry, status: Any) -> None:
    async with registry.register("quotes") as registration:
        with pytest.raises(InvalidArgument, match=r"^status: "):
            await registration.set_status(status)
        with pytest.raises(InvalidArgument, match=r"^status: "):
            await registration.set_sticky_active("group", status)


@pytest.mark.req("SVC-03.1")
@pytest.mark.req("SVC-03.2")
async def test_calls_are_spread_over_the_instances_that_are_healthy(registry: Registry) -> None:
    async with (
        registry.register("quotes", instance_id="a"),
        registry.register("quotes", instance_id="b") as leaving,
        registry.register("quotes", instance_id="c"),
        Discovery.open(registry) as discovery,
    ):
        await discovery.synced()
        chosen = [(await discovery.select("quotes")).instance_id for _ in range(9)]
        assert chosen == ["a", "b", "c"] * 3
        await leaving.drain()
        assert await status_of(registry, "b") is Status.SHUTDOWN
        found = await eventually(lambda: _found(discovery, 2))
        assert found == ["a", "c"]
        assert (await discovery.select("quotes", "preferred", preferred="b")).instance_id in ("a", "c")
    async with Discovery.open(registry, DiscoverySettings(watch=False)) as discovery:
        assert (await discovery.find("quotes")).instances == ()
        with pytest.raises(Unavailable) as caught:
            await discovery.select("quotes")
        assert caught.value.reason == "no_instance"


async def _found(discovery: Discovery, count: int, service: str = "quotes") -> list[str]:
    found = [one.instance_id for one in (await discovery.find(service)).instances]
    return found if len(found) == count else []


@pytest.mark.req("SVC-03.4")
async def test_the_watch_makes_additions_and_removals_visible_within_half_a_second(registry: Registry) -> None:
    took: list[float] = []
    async with (
        registry.register("orders", instance_id="a"),  # before the watch: no change of it is on its way any more
        Discovery.open(registry, DiscoverySettings(cache_s=60)) as discovery,
    ):
        await discovery.synced()
        assert await _found(discovery, 1, "orders")
        assert await _empty(discovery)
        for n in range(3):
            async with registry.register("quotes", instance_id=f"i{n}"):
                began = time.monotonic()
                await eventually(lambda: _found(discovery, 1))
                took.append(time.monotonic() - began)
            began = time.monotonic()
            await eventually(lambda: _empty(discovery))
            took.append(time.monotonic() - began)
        assert (await discovery.find("orders")).cached
    assert sorted(took)[len(took) // 2] < 0.5, took


async def _empty(discovery: Discovery) -> bool:
    return not (await discovery.find("quotes")).instances


@pytest.mark.req("SVC-03.5")
async def test_of_fifty_concurrent_lookups_more_than_forty_are_hits(registry: Registry) -> None:
    async with (
        registry.register("quotes", instance_id="a"),
        registry.register("quotes", instance_id="b"),
        Discovery.open(registry) as discovery,
    ):
        await discovery.synced()
        found = await together(50, lambda _: discovery.find("quotes"))
        assert {tuple(one.instance_id for one in each.instances) for each in found} == {("a", "b")}
        assert discovery.statistics().hits > 40


@pytest.mark.req("SVC-03.6")
async def test_twenty_rapid_additions_are_all_seen(registry: Registry) -> None:
    seen: list[str] = []

    async def follow(discovery: Discovery) -> None:
        async for change in discovery.changes("rapid"):
            seen.append(change.instance_id if change.kind == "present" else change.kind)

    async with Discovery.open(registry) as discovery:
        following = asyncio.create_task(follow(discovery))
        await eventually(lambda: seen == ["synced"])
        record = Instance(service_name="rapid", instance_id="i")
        for n in range(20):
            one = msgspec.structs.replace(record, instance_id=f"i{n}")
            await registry.kv.put(f"instances.rapid.i{n}", msgspec.json.encode(one), ttl_s=30.0)
        await eventually(lambda: len(seen) == 21)
        assert seen[1:] == [f"i{n}" for n in range(20)]
        assert len(await eventually(lambda: _found(discovery, 20, "rapid"))) == 20
    with pytest.raises(Closed):
        await following


@pytest.mark.req("SVC-03.3")
async def test_what_was_known_is_answered_and_marked_when_the_store_is_away(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with flaky_registry(tmp_path) as (registry, switch), registry.register("quotes", instance_id="a"):
        async with Discovery.open(registry, DiscoverySettings(watch=False), clock=clock) as discovery:
            await discovery.find("quotes")
            switch.down = True
            clock.advance(11)
            found = await discovery.find("quotes")
            assert ([one.instance_id for one in found.instances], found.stale) == (["a"], True)
            with pytest.raises(Unavailable):
                await discovery.find("orders")
            switch.down = False
            assert not (await discovery.find("quotes")).stale


@pytest.mark.req("SVC-05")
async def test_the_cleaner_removes_entries_without_a_ttl_that_stand_still_and_no_others(registry: Registry) -> None:
    clock = VirtualClock()
    cleaner = Cleaner(registry, stale_s=60, clock=clock)
    record = msgspec.json.encode(Instance(service_name="quotes", instance_id="old"))
    await registry.kv.put("instances.quotes.old", record)
    await registry.definitions.create(Definition(service_name="quotes"))
    async with registry.register("quotes", instance_id="alive") as registration:
        assert await cleaner.sweep() == []
        clock.advance(59)
        assert await cleaner.sweep() == []
        await registration.beat()
        clock.advance(1)
        (removed,) = await cleaner.sweep()
        assert (removed.instance_id, removed.idle_s, cleaner.removed) == ("old", 60, 1)
        assert await ids(registry) == ["alive"]
    assert (await registry.definitions.get("quotes")).definition.service_name == "quotes"


@pytest.mark.req("SVC-05")
async def test_an_entry_that_beats_while_it_is_swept_stays(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with flaky_registry(tmp_path) as (registry, switch):
        record = msgspec.json.encode(Instance(service_name="quotes", instance_id="late"))
        await registry.kv.put("instances.quotes.late", record)
        cleaner = Cleaner(registry, stale_s=60, clock=clock)
        await cleaner.sweep()
        clock.advance(60)
        write, beaten = switch.driver.write, []

        async def beating(writes: Any, options: Any) -> Any:
            if not beaten:
                beaten.append(await registry.kv.put("instances.quotes.late", record) if writes[0].value == b"" else 0)
            return await write(writes, options)

        switch.write = beating  # type: ignore[method-assign]
        assert await cleaner.sweep() == []
        assert await ids(registry) == ["late"]


@pytest.mark.req("SVC-05")
async def test_definitions_are_made_changed_and_deleted_by_compare_and_set(registry: Registry) -> None:
    definitions = registry.definitions
    made = await definitions.create(Definition(service_name="quotes", owner="team-a", metadata={"tier": 1}))
    with pytest.raises(AlreadyExists) as exists:
        await definitions.create(Definition(service_name="quotes"))
    assert exists.value.reason == "service_defined"
    assert await definitions.get("quotes") == made
    changed = await definitions.update(Definition(service_name="quotes", owner="team-b"), revision=made.revision)
    assert (changed.definition.owner, changed.definition.created_at) == ("team-b", made.definition.created_at)
    with pytest.raises(Conflict):
        await definitions.update(Definition(service_name="quotes"), revision=made.revision)
    with pytest.raises(Conflict):
        await definitions.delete("quotes", revision=made.revision)
    await together(5, lambda n: definitions.update(Definition(service_name="quotes", description=str(n))))
    await definitions.delete("quotes")
    for call in (
        definitions.get("quotes"),
        definitions.delete("quotes"),
        definitions.update(Definition(service_name="quotes")),
    ):
        with pytest.raises(NotFound) as missing:
            await call
        assert missing.value.reason == "service_not_found"


@pytest.mark.req("SVC-05")
async def test_definitions_come_in_pages_by_name(registry: Registry) -> None:
    for n in range(5):
        await registry.definitions.create(Definition(service_name=f"s{n}"))
    await registry.kv.put("definitions.s9", b"no json")
    first = await registry.definitions.page(limit=2)
    second = await registry.definitions.page(limit=2, cursor=first.cursor)
    assert [one.definition.service_name for one in (*first.items, *second.items)] == ["s0", "s1", "s2", "s3"]
    assert len(await registry.definitions.all()) == 5
    with pytest.raises(FailedPrecondition):
        await registry.definitions.get("s9")
    assert (await registry.definitions.update(Definition(service_name="s9", owner="me"))).definition.owner == "me"


@pytest.mark.req("SVC-06")
async def test_a_service_is_found_only_between_its_start_and_its_stop(registry: Registry) -> None:
    seen: list[str] = []

    def note(state: LifeState) -> Any:
        async def hook() -> None:
            found = await registry.instances("quotes")
            seen.append(f"{state.value} {found[0].status.value if found else '-'}")

        return (state, hook)

    states = [state for state in LifeState if state not in (LifeState.INITIALIZING, LifeState.FAILED)]
    async with Service.open(registry, "quotes", version="1", hooks=[note(state) for state in states]) as service:
        assert (service.lifecycle.state, service.registration.status) == (LifeState.STARTED, Status.ACTIVE)
    assert seen == ["STARTING -", "STARTED ACTIVE", "STOPPING SHUTDOWN", "STOPPED -"]
    assert service.lifecycle.state is LifeState.STOPPED
    with pytest.raises(FailedPrecondition):
        _ = service.registration


@pytest.mark.req("SVC-06")
async def test_a_service_whose_start_fails_is_never_found(registry: Registry) -> None:
    def broken() -> None:
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        async with Service.open(registry, "quotes", hooks=[(LifeState.STARTED, broken)]):
            pytest.fail("has not started")
    assert await registry.instances() == []
