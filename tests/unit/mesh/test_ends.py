"""The end actors: what is persisted, where, and that they do not give up."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from groundplane.blobs.store import Blobs
from groundplane.core.envelope import Branch, Envelope, Route
from groundplane.core.errors import ResourceExhausted, Unavailable
from groundplane.jobs.port import Change, Finish, JobState, Outcome, Standing, Watch
from groundplane.mesh.claims import Claims
from groundplane.mesh.ends import End, error_of, inline_result, object_key, outcome_document, to_json
from groundplane.mesh.repeats import Repeats, Window
from groundplane.mesh.settling import Settler
from groundplane.mesh.sidecar.calls import Active
from groundplane.mesh.spec import Limits
from groundplane.mesh.start import JOB_TOKEN, TOLD
from groundplane.queues.client import Queues
from groundplane.queues.port import Carried, OutgoingMessage, QueueSpec
from groundplane.telemetry.logs import get_logger
from groundplane.telemetry.metrics import ActorMetrics, new_registry

pytestmark = pytest.mark.anyio

CREATED = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def _envelope(**fields: Any) -> Envelope:
    defaults: dict[str, Any] = {
        "id": "e", "route": Route(["a", "b"], 2), "payload": {"x": 1}, "created_at": CREATED, "job_id": "j",
        "headers": {"traceparent": "t", JOB_TOKEN: "secret"},
    }  # fmt: skip
    return Envelope(**{**defaults, **fields})


class _Reporter:
    """Takes what it is told; refuses as often as it is asked to."""

    def __init__(self, refusals: int = 0, carries: bool = False) -> None:
        self.told: list[Change] = []
        self.carried_: list[Change] = []
        self.tokens: list[str] = []
        self._refusals = refusals
        self._carries = carries

    async def apply(self, changes: Sequence[Change], token: str = "") -> list[Outcome]:
        if self._refusals:
            self._refusals -= 1
            raise Unavailable("store: away")
        self.told += changes
        self.tokens.append(token)
        return [Outcome(applied=True, state=JobState.SUCCEEDED) for _ in changes]

    def post(self, changes: Sequence[Change], token: str = "") -> None:
        raise NotImplementedError

    async def begin(self, changes: Sequence[Change], token: str = "") -> tuple[Standing | None, list[Change]]:
        raise NotImplementedError

    async def carried(self, changes: Sequence[Change], *, of_live: bool = True) -> Carried | None:
        assert not of_live
        return (lambda _: self.carried_.extend(changes)) if self._carries else None

    async def state(self, job_id: str, token: str = "") -> JobState | None:
        return None

    def changes(self) -> AbstractAsyncContextManager[Watch]:
        raise NotImplementedError

    async def aclose(self) -> None:
        return None


class _Full:
    """Blobs whose disk is full for the first so many objects."""

    def __init__(self, blobs: Blobs, refusals: int) -> None:
        self._blobs = blobs
        self._refusals = refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def put(self, *args: Any, **kwargs: Any) -> Any:
        if self._refusals:
            self._refusals -= 1
            raise ResourceExhausted("disk: full", reason="disk_full")
        return await self._blobs.put(*args, **kwargs)


@pytest.fixture(params=["embedded", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest) -> str:
    """The URL of the blobs."""
    return str(request.getfixturevalue("s3_url")) if request.param == "s3" else "embedded://"


async def _run(
    tmp_path: Path,
    store: str,
    envelope: Envelope | bytes,
    *,
    failed: bool = False,
    refusals: int = 0,
    joins: Sequence[str] = (),
    full: int = 0,
    carries: bool = False,
    headers: dict[str, str] | None = None,
) -> tuple[list[dict[str, Any]], _Reporter, list[int]]:
    """Deliver one message to an end until it is settled: objects, reports, attempts."""
    reporter = _Reporter(refusals, carries)
    attempts: list[int] = []
    async with Queues.open(state=tmp_path) as queues, Blobs.open(store, state=tmp_path) as disk:
        blobs: Any = _Full(disk, full)
        await queues.declare(QueueSpec(name="end"))
        data = envelope if isinstance(envelope, bytes) else envelope.to_bytes()
        await queues.send(OutgoingMessage(queue="end", payload=data, id="e", headers=headers or {}))
        async with queues.consume("end") as consumer:
            end = End(
                "end", failed=failed, prefix="out", blobs=blobs, claims=Claims(blobs, Limits()),
                settler=Settler(consumer), active=Active(), metrics=ActorMetrics(new_registry(), "end"),
                log=get_logger("test"), reporter=reporter, joins=frozenset(joins),
            )  # fmt: skip
            while (await queues.depth("end")).total:
                for delivery in await consumer.receive(1, 5.0):
                    attempts.append(delivery.attempt)
                    await end.handle(delivery)
        found = [msgspec.json.decode(await blobs.get(info.key)) async for info in blobs.list("out/")]
        dead = (await queues.depth("end")).dead
    return found, reporter, [*attempts, dead]


@pytest.mark.req("MESH-16.1")
async def test_a_result_is_persisted_reported_and_acked(tmp_path: Path, store: str) -> None:
    (found,), reporter, (attempt, dead) = await _run(tmp_path, store, _envelope())
    assert (found["payload"], found["status"], found["last_actor"], found["error"]) == (
        {"x": 1},
        "succeeded",
        "b",
        None,
    )
    (told,) = reporter.told
    assert isinstance(told, Finish)
    assert (told.job_id, told.envelope_id, told.result, told.error, told.aborted) == ("j", "e", {"x": 1}, None, False)
    assert told.result_key is not None
    assert told.result_key.endswith("/b/e.json")
    assert (reporter.tokens, attempt, dead) == (["secret"], 1, 0)
    assert "secret" not in msgspec.json.encode(found).decode()


@pytest.mark.req("MESH-16.1")
async def test_an_error_is_persisted_with_the_payload_and_fails_the_job(tmp_path: Path, store: str) -> None:
    error = {"code": "internal", "message": "m", "reason": "processing_error", "type": "ValueError"}
    envelope = _envelope(error=error, route=Route(["a", "b"], 0))
    (found,), reporter, _ = await _run(tmp_path, store, envelope, failed=True)
    assert (found["status"], found["error"]["type"], found["last_actor"]) == ("failed", "ValueError", "a")
    (told,) = reporter.told
    assert isinstance(told, Finish)
    assert told.error is not None
    assert (told.error.reason, told.result, told.holds) == ("processing_error", None, False)


@pytest.mark.req("MESH-16.2", "MESH-15.2", "MESH-12")
async def test_an_end_whose_claim_was_deleted_with_it_is_not_repeated_where_queues_repeat(
    tmp_path: Path, store: str
) -> None:
    payload = {"data": "x" * 3000}
    async with Queues.open(state=tmp_path) as queues, Blobs.open(store, state=tmp_path) as blobs:
        await queues.declare(QueueSpec(name="end"))
        claims = Claims(blobs, Limits(payload_inline_bytes_max=1000))
        _, data = await claims.outgoing(_envelope(payload=payload, job_id=None))
        for _ in range(2):  # a broker that did not see the ack hands it out again
            await queues.send(OutgoingMessage(queue="end", payload=data, id="e"))
        metrics = ActorMetrics(new_registry(), "end")
        async with queues.consume("end") as consumer:
            end = End(
                "end", failed=False, prefix="out", blobs=blobs, claims=claims, settler=Settler(consumer),
                active=Active(), metrics=metrics, log=get_logger("test"), repeats=Repeats(Window()),
            )  # fmt: skip
            for _ in range(2):
                (delivery,) = await consumer.receive(1, 5.0)
                await end.handle(delivery)
        found = [msgspec.json.decode(await blobs.get(info.key)) async for info in blobs.list("out/")]
        assert [one["payload"] for one in found] == [payload]
        assert metrics.repeats.value == 1
        assert (await queues.depth("end")).total == 0


@pytest.mark.req("MESH-16.3")
async def test_without_a_job_it_is_still_persisted(tmp_path: Path, store: str) -> None:
    (found,), reporter, _ = await _run(tmp_path, store, _envelope(job_id=None))
    assert found["payload"] == {"x": 1}
    assert reporter.told == []


@pytest.mark.req("MESH-16.2")
async def test_it_is_tried_again_without_costing_attempts_until_the_job_knows(tmp_path: Path, store: str) -> None:
    found, reporter, (*attempts, dead) = await _run(tmp_path, store, _envelope(), refusals=2)
    assert len(found) == 1
    assert len(reporter.told) == 1
    assert (attempts, dead) == ([1, 1, 1], 0)


@pytest.mark.req("MESH-16.2")
@pytest.mark.parametrize("failed", [False, True])
async def test_it_is_tried_again_without_costing_attempts_until_the_outcome_is_persisted(
    tmp_path: Path, store: str, failed: bool
) -> None:
    envelope = _envelope(error={"code": "internal", "message": "m"} if failed else None)
    found, reporter, (*attempts, dead) = await _run(tmp_path, store, envelope, failed=failed, full=2)
    assert [one["payload"] for one in found] == [{"x": 1}]
    assert (attempts, dead) == ([1, 1, 1], 0)
    assert {(type(one), one.job_id) for one in reporter.told} == {(Finish, "j")}


@pytest.mark.req("MESH-16.2")
async def test_a_result_that_is_only_in_blobs_is_told_once_it_is_there(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundplane.mesh.ends.RESULT_INLINE_BYTES_MAX", 100)
    payload = {"x": "y" * 101}
    (found,), reporter, (*attempts, _) = await _run(tmp_path, store, _envelope(payload=payload), full=1)
    (told,) = reporter.told
    assert isinstance(told, Finish)
    assert list(told.result) == ["$blob", "size"]
    assert found["payload"] == payload
    assert attempts == [1, 1]


@pytest.mark.req("MESH-16.2")
async def test_what_the_job_was_told_by_the_last_hop_is_persisted_and_filed_with_the_acknowledgement(
    tmp_path: Path,
    store: str,
) -> None:
    (found,), reporter, (*attempts, dead) = await _run(
        tmp_path, store, _envelope(), full=1, carries=True, headers={TOLD: "1"}
    )
    assert (found["payload"], attempts, dead) == ({"x": 1}, [1, 1], 0)
    assert reporter.told == []
    (filed,) = reporter.carried_
    assert isinstance(filed, Finish)
    assert filed.result_key is not None
    assert filed.result_key.endswith("/b/e.json")


@pytest.mark.req("MESH-13")
async def test_a_failed_child_holds_when_a_join_is_ahead(tmp_path: Path, store: str) -> None:
    envelope = _envelope(
        error={"code": "internal", "message": "m"}, route=Route(["a", "b", "sum"], 1), branches=[Branch("p", 0, 0, 2)]
    )
    _, reporter, _ = await _run(tmp_path, store, envelope, failed=True, joins=["sum"])
    assert isinstance(reporter.told[0], Finish)
    assert reporter.told[0].holds is True


@pytest.mark.req("MESH-15.2")
@pytest.mark.parametrize("failed", [False, True])
async def test_the_claim_of_a_success_is_released_and_that_of_a_failure_is_kept_for_its_dead_letter(
    tmp_path: Path, store: str, failed: bool
) -> None:
    async with Blobs.open(store, state=tmp_path) as blobs:
        whole = _envelope(error={"code": "internal", "message": "m"} if failed else None, payload={"big": 1})
        envelope, _ = await Claims(blobs, Limits(payload_inline_bytes_max=4)).outgoing(whole)
    claim = envelope.claim
    assert claim is not None
    (found,), _, _ = await _run(tmp_path, store, envelope, failed=failed)
    assert found["payload"] == {"big": 1}
    async with Blobs.open(store, state=tmp_path) as blobs:
        kept = [info.key async for info in blobs.list() if info.key == claim.key]
    assert kept == ([claim.key] if failed else [])


async def test_bytes_that_are_no_envelope_become_a_dead_letter_of_the_end(tmp_path: Path, store: str) -> None:
    found, reporter, (attempt, dead) = await _run(tmp_path, store, b"nonsense")
    assert (found, reporter.told, attempt, dead) == ([], [], 1, 1)


@pytest.mark.req("MESH-16.1")
async def test_the_key_has_date_hour_last_actor_and_id_and_nothing_that_climbs(tmp_path: Path) -> None:
    async with Queues.open(state=tmp_path) as queues:
        await queues.declare(QueueSpec(name="end"))
        await queues.send(OutgoingMessage(queue="end", payload=b"", id="e"))
        async with queues.consume("end") as consumer:
            (delivery,) = await consumer.receive(1, 5.0)
            plain = msgspec.structs.replace(delivery, enqueued_at=CREATED + 3 * 3_600_000)
            assert object_key("results", _envelope(), plain) == "results/2026-01-01/03/b/e.json"
            climbing = _envelope(id="../../e", route=Route(["../x"], 1))
            assert object_key("r", climbing, plain) == "r/2026-01-01/03/.._x/.._.._e.json"
            await consumer.ack(delivery)


@pytest.mark.parametrize("payload", [float("nan"), {"b": b"\xff"}, {1: 2}, [float("inf")]])
def test_what_json_cannot_carry_is_persisted_unchanged_beside_it(payload: Any) -> None:
    document = msgspec.json.decode(to_json(outcome_document(_envelope(payload=payload), payload, CREATED)))
    assert document["payload"] is None
    packed = base64.b64decode(document["payload_msgpack_base64"])
    assert msgspec.msgpack.encode(payload) == packed


def test_a_very_large_result_stays_in_blobs() -> None:
    assert inline_result("x" * 1000, "k") == "x" * 1000
    big = inline_result("x" * (16 * 1024 * 1024 + 1), "k")
    assert big["$blob"] == "k"
    assert big["size"] > 16 * 1024 * 1024


def test_an_envelope_at_the_error_end_without_an_error_is_internal() -> None:
    assert error_of(_envelope()).code == "internal"
    assert error_of(_envelope(error={"code": "unavailable", "message": "m"})).code == "unavailable"
