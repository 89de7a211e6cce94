"""Claim checks: what travels, who owns it, what is collected."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.blobs.store import Blobs
from groundplane.core.dead_letters import DeadLetter, DeadLetterPage
from groundplane.core.envelope import Claim, Envelope
from groundplane.core.errors import GroundplaneError, Internal, InvalidArgument, NotFound
from groundplane.mesh.claims import Claims, collect
from groundplane.mesh.spec import Limits

pytestmark = pytest.mark.anyio

LIMITS = Limits(payload_inline_bytes_max=1000, payload_bytes_max=10_000)


@pytest.fixture(params=["embedded", pytest.param("s3", marks=pytest.mark.integration)])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    url = request.getfixturevalue("s3_url") if request.param == "s3" else "embedded://"
    async with Blobs.open(url, state=tmp_path) as blobs:
        yield blobs


def _envelope(payload: Any, **fields: Any) -> Envelope:
    return Envelope.new(["a"], payload, **fields)


async def _keys(blobs: Blobs) -> list[str]:
    return [info.key async for info in blobs.list("claims/")]


@pytest.mark.req("MESH-15.1")
async def test_a_payload_over_the_limit_travels_as_a_claim_and_comes_back_unchanged(blobs: Blobs) -> None:
    claims = Claims(blobs, LIMITS)
    payload = {"data": "x" * 5000, "bytes": b"\xff", "null": None}
    envelope, data = await claims.outgoing(_envelope(payload))
    assert len(data) < 1000
    assert envelope.claim is not None
    assert envelope.payload is None
    again = Envelope.from_bytes(data)
    assert again.claim == envelope.claim
    assert await claims.payload(again) == payload
    (key,) = await _keys(blobs)
    assert key == envelope.claim.key
    assert key.split("/")[2] == envelope.id


@pytest.mark.req("MESH-15.1")
@pytest.mark.parametrize("size, claimed", [(900, False), (995, False), (1200, True)])
async def test_the_limit_is_about_the_payload_not_about_the_headers(blobs: Blobs, size: int, claimed: bool) -> None:
    envelope, _ = await Claims(blobs, LIMITS).outgoing(_envelope("x" * size, headers={"h": "y" * 500}))
    assert (envelope.claim is not None) == claimed


@pytest.mark.req("MESH-15.1")
async def test_a_scalar_payload_that_looks_like_text_is_resolved_too(blobs: Blobs) -> None:
    claims = Claims(blobs, Limits(payload_inline_bytes_max=1))
    for payload in ("text" * 20, 7 * [1]):
        envelope, _ = await claims.outgoing(_envelope(payload))
        assert await claims.payload(envelope) == payload


@pytest.mark.req("MESH-15.1")
async def test_a_payload_over_the_greatest_size_is_refused_by_name(blobs: Blobs) -> None:
    with pytest.raises(InvalidArgument, match="payload") as caught:
        await Claims(blobs, LIMITS).outgoing(_envelope("x" * 20_000))
    assert caught.value.reason == "payload_too_large"
    assert await _keys(blobs) == []


@pytest.mark.req("MESH-15.1")
async def test_a_claim_that_is_damaged_lost_or_elsewhere_is_an_error(blobs: Blobs) -> None:
    claims = Claims(blobs, LIMITS)
    envelope, _ = await claims.outgoing(_envelope("x" * 5000))
    assert envelope.claim is not None
    wrong: list[tuple[Claim, type[GroundplaneError]]] = [
        (Claim(envelope.claim.key, 1, "0" * 64), Internal),
        (Claim("claims/gone", 1, "c"), NotFound),
        (Claim("results/2026/secret.json", 1, "c"), InvalidArgument),
    ]
    for claim, error in wrong:
        with pytest.raises(error):
            await claims.resolve(claim)


@pytest.mark.req("MESH-15.2")
async def test_an_acked_claim_is_deleted_unless_it_moved_on(blobs: Blobs) -> None:
    claims = Claims(blobs, LIMITS)
    kept, _ = await claims.outgoing(_envelope("k" * 5000))
    gone, _ = await claims.outgoing(_envelope("g" * 5000))
    assert kept.claim is not None
    assert gone.claim is not None
    await claims.release([kept.claim, gone.claim], [kept])
    assert await _keys(blobs) == [kept.claim.key]


class _Dead:
    def __init__(self, letters: list[DeadLetter]) -> None:
        self._letters = letters

    async def list_dead(
        self, queue: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> DeadLetterPage:
        at = int(cursor or 0)
        more = str(at + 1) if at + 1 < len(self._letters) else None
        return DeadLetterPage(items=self._letters[at : at + 1], cursor=more)

    async def get_dead(self, dead_id: str) -> DeadLetter:
        raise NotFound(dead_id)

    async def redrive(self, dead_id: str, *, payload: bytes | None = None) -> None:
        raise NotFound(dead_id)

    async def purge(self, dead_ids: list[str]) -> int:
        return 0


def _letter(payload: bytes) -> DeadLetter:
    return DeadLetter(
        id="1", queue="a", message_id="m", payload=payload, headers={}, reason="r", error=None, attempts=1, redrives=0,
        enqueued_at=0, died_at=0,
    )  # fmt: skip


class _Later:
    def __init__(self, seconds: float) -> None:
        self._ms = round(seconds * 1000)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._ms

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.mark.req("MESH-15.2")
async def test_the_collector_deletes_old_claims_that_no_dead_letter_keeps(blobs: Blobs) -> None:
    claims = Claims(blobs, LIMITS)
    dead, data = await claims.outgoing(_envelope("d" * 5000))
    lost, _ = await claims.outgoing(_envelope("l" * 5000))
    await blobs.put("results/x.json", b"{}")
    source = _Dead([_letter(b"no envelope"), _letter(data)])
    assert dead.claim is not None
    assert lost.claim is not None
    assert await collect(blobs, source, older_than_s=60) == 0
    assert await collect(blobs, source, older_than_s=60, clock=_Later(61)) == 1
    assert await _keys(blobs) == [dead.claim.key]
    assert [info.key async for info in blobs.list("results/")] == ["results/x.json"]
