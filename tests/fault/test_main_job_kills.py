"""The main job when handlers kill their own processes, a sidecar stands still, and the disk is full."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from fault.orders import Audit, Orders
from fault.plane_lab import Lab, words
from groundplane import Client
from groundplane.cli.processes import Program
from groundplane.mesh import launch
from stacks import Stack

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

PLACES = ("before", "inside", "between", "after")
OF_EACH_PLACE = 6
_NOTICED = ("retry", "dead_letter", "late", "late_outcome")


@pytest.mark.req("MESH-17", "QUEUE-06", "MESH-06")
@pytest.mark.parametrize("who", ["worker", "runtime"])
async def test_a_call_whose_process_was_killed_is_made_again_as_attempt_2_and_its_effects_stay_one(
    who: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"plain-{place}-{number}": place for number in range(OF_EACH_PLACE) for place in PLACES}
    async with Lab.open(tmp_path / "lab") as lab:
        orders = Orders(lab)
        async with Client(lab.url) as client, asyncio.TaskGroup() as customers:
            for name, place in names.items():
                customers.create_task(_served(orders, client, name, f"{who}:{place}"))
        audit = await Audit.of(orders)
        audit.check()
        assert Counter(place for _, place, _ in words(lab.effects / "deaths")) == dict.fromkeys(PLACES, OF_EACH_PLACE)
        charged = Counter(key for key, what, *_ in words(lab.effects / "charges") if what == "charged")
        for job_id, name in orders.accepted.items():
            assert charged[name] == (2 if names[name] == "inside" else 1)  # in doubt, and therefore repeated
            own = [event for event in audit.events if event.job_id == job_id]
            told = [
                event.data["attempt"]
                for event in own
                if event.data.get("actor") == "effect" and event.kind == "progress"
            ]
            assert told == sorted(told)
            assert set(told) == {1, 2}
            retries = [event.data for event in own if event.kind == "retry"]
            assert [(one["actor"], one["attempt"]) for one in retries] == [("effect", 1)]
            assert retries[0]["reason"] == ("runtime_crashed" if who == "worker" else "connection_error")
        assert [int(attempt) for _, attempt, _ in sorted(words(lab.effects / "runs"))] == [1, 2] * len(names)
        await lab.stop()
        assert lab.left_behind() == []
    with capsys.disabled():
        print(f"\n{who} killed by its handler: {len(names)} hits; {audit.numbers()}")


@pytest.mark.req("MESH-18", "GATE-13", "MESH-17")
async def test_gateway_sidecars_and_ends_are_replaced_in_turn_by_sigterm_and_nobody_notices(tmp_path: Path) -> None:
    async with Lab.open(tmp_path / "lab") as lab:
        orders = Orders(lab)
        async with orders.coming():
            for name in [one for one in lab.members if not one.startswith("runtime")]:
                for _ in range(2):
                    done = len(orders.results)
                    assert await lab.restart(name) == 0
                    await lab.until(lambda: len(orders.results) >= done + 4, "work flows again")  # noqa: B023
        audit = await Audit.of(orders)
        audit.check()
        served = {job.job_id for job in audit.jobs if job.state == "succeeded"}
        noticed = [event for event in audit.events if event.kind in _NOTICED and event.job_id in served]
        assert noticed == []
        assert audit.numbers()["attempt_max"] == 1  # draining costs no attempt
        await lab.stop()
        assert lab.left_behind() == []


async def _served(orders: Orders, client: Client, name: str, die: str) -> None:
    job_id = await orders.order(client, "plain", {"key": name, "die": die}, name)
    orders.results[job_id] = await client.result(job_id, timeout_s=90)


@pytest.mark.req("MESH-17", "QUEUE-12")
async def test_a_sidecar_that_stood_still_for_a_while_goes_on_where_it_stood(tmp_path: Path) -> None:
    async with Lab.open(tmp_path / "lab", failpoints="handled=pause@4") as lab:
        orders = Orders(lab)
        async with Client(lab.url) as client:
            async with orders.coming():
                pid = await lab.stopped_at_window("sidecar effect")
                for number in range(10):
                    await orders.order(client, "plain", {"key": f"plain-late-{number}"}, f"plain-late-{number}")
                waiting = orders.open_jobs()
                assert len(waiting) >= 10
                lab.signal(pid, signal.SIGCONT)
                await _collect_all(orders)
        assert lab.members["sidecar effect"].pid == pid
        audit = await Audit.of(orders)
        audit.check()
        assert audit.numbers()["attempt_max"] == 1  # it was slow, not dead: nothing was handed to anybody else


async def _collect_all(orders: Orders) -> None:
    """The results of everything that was accepted so far."""

    async def collect(client: Client, job_id: str) -> None:
        orders.results[job_id] = await client.result(job_id, timeout_s=60)

    async with Client(orders.lab.url) as client, asyncio.TaskGroup() as customers:
        for job_id in orders.open_jobs():
            customers.create_task(collect(client, job_id))


@pytest.mark.req("MESH-17", "QUEUE-12")
@pytest.mark.slow
async def test_what_a_sidecar_holds_that_stands_still_for_long_goes_to_its_replica_and_its_late_outcome_is_refused(
    tmp_path: Path,
) -> None:
    async with Lab.open(tmp_path / "lab", failpoints="handled=pause") as lab:
        orders = Orders(lab)
        async with Client(lab.url) as client:
            lab.arm("sidecar effect")
            job_id = await orders.order(client, "plain", {"key": "plain-held"}, "plain-held")
            await lab.until(lambda: bool(lab.hit_lines()), "the sidecar stands still with the outcome in its hands")
            lab.disarm("sidecar effect")
            await _add_replica(lab)
            orders.results[job_id] = await client.result(job_id, timeout_s=90)
            lab.signal(lab.members["sidecar effect"].pid, signal.SIGCONT)
            for number in range(20):
                await _served(orders, client, f"plain-{number}", "")
        audit = await Audit.of(orders)
        audit.check()
        runs = [attempt for key, attempt, _ in words(lab.effects / "runs") if key == "plain-held"]
        assert runs == ["1", "2"]
        assert "delivery_not_finished" in lab.members["sidecar effect"].log()


async def _add_replica(lab: Lab) -> None:
    """A second sidecar of `effect`, with a runtime of its own."""
    place = launch.Place.of(lab.settings)
    spec = lab.description.actors["effect"]
    socket = str(place.run / "replica.sock")
    for command in (launch.runtime(spec, place), launch.sidecar(spec, place, replica=1, socket=socket)):
        arguments = [socket if one == str(place.socket("effect")) else one for one in command.arguments]
        ready = place.ready_file(f"replica-{command.name}")
        arguments = [one.replace(str(command.ready_file), str(ready)) for one in arguments]
        await lab.add(
            Program(
                name=f"replica {command.name}",
                argv=arguments,
                environment={**command.environment, "PYTHONPATH": str(lab.description.folder)},
                ready_file=ready,
                folder=lab.description.folder,
            )
        )
    await lab.until(lambda: all(one.ready() for name, one in lab.members.items() if "replica" in name), "it is ready")


@pytest.mark.req("MESH-17", "JOB-02.2")
@pytest.mark.parametrize("small_disk", [24], indirect=True)
async def test_a_plane_on_a_full_disk_refuses_new_jobs_loses_none_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    async with Lab.open(tmp_path / "lab", stack=Stack("embedded", small_disk / "state")) as lab:
        orders = Orders(lab)
        async with orders.coming():
            await lab.until(lambda: len(orders.results) >= 5, "work flows")
            with closing(_Hog(small_disk / "hog")) as hog:
                refused = await _refused(orders, hog)
                assert refused.status_code == 503
                assert refused.headers["content-type"] == "application/problem+json"
                assert (refused.json()["code"], refused.json()["reason"]) == ("resource_exhausted", "disk_full")
                assert "free space" in refused.json()["detail"]
                async with Client(lab.url) as client:  # reading goes on
                    assert (await client.list_jobs(limit=1))["jobs"]
            await _collect_all(orders)
        audit = await Audit.of(orders)
        audit.check()
        assert {getattr(error, "code", "") for error in orders.refusals} <= {"resource_exhausted", "unavailable"}
        await lab.stop()
        assert lab.left_behind() == []


class _Hog:
    """Takes all the room there is, again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)

    def eat(self) -> None:
        try:
            while True:
                self._file.write(bytes(4096))
        except OSError:
            return

    def close(self) -> None:
        self._file.close()
        self._path.unlink()


async def _refused(orders: Orders, hog: _Hog) -> httpx2.Response:
    """Order until an order is refused; the disk is filled up before each."""
    async with httpx2.AsyncClient(base_url=orders.lab.url, timeout=30) as http:
        for number in range(2000):
            hog.eat()
            name = f"plain-{'x' * 200}-{number}"
            body = {"tool": "plain", "arguments": {"key": name}}
            response = await http.post("/v1/jobs", json=body, headers={"Idempotency-Key": name})
            if response.status_code != 202:
                return response
            orders.accepted[response.json()["job_id"]] = name
    raise AssertionError("the disk never filled")
