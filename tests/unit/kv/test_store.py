"""The façade of keys over drivers that fail, and over one that can do little."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from groundplane.core.errors import DeadlineExceeded, GroundplaneError, InvalidArgument, Unavailable, Unsupported
from groundplane.core.fencing import Fence
from groundplane.core.retry import RetryPolicy
from groundplane.kv import KV
from groundplane.kv.port import Capability, Entry, KVDriver, Write, WriteOptions

pytestmark = pytest.mark.anyio

AT_ONCE = RetryPolicy(attempts=4, base_s=0.0)


class Troubled:
    """A driver whose next calls fail."""

    def __init__(self, inner: KVDriver) -> None:
        self._inner = inner
        self.errors: list[GroundplaneError] = []
        self.done_anyway = False
        self.writes: list[WriteOptions] = []
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def get(self, keys: Sequence[str]) -> dict[str, Entry]:
        self.reads += 1
        self._fail()
        return await self._inner.get(keys)

    async def write(self, writes: Sequence[Write], options: WriteOptions) -> list[int]:
        self.writes.append(options)
        self._fail()
        return await self._inner.write(writes, options)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[KV]:
    async with KV.open(state=tmp_path, ttl=True) as opened:
        yield opened


@pytest.fixture
def driver(whole: KV) -> Any:
    return Troubled(whole.driver)


@pytest.mark.req("KV-14")
async def test_a_write_that_is_tried_again_keeps_its_id_and_says_so(driver: Troubled) -> None:
    kv = KV(driver, retry=AT_ONCE)  # type: ignore[arg-type]
    driver.errors = [Unavailable("kv: away"), Unavailable("kv: away")]
    await kv.put("a", b"1")
    await kv.put("b", b"1")
    assert [one.repeated for one in driver.writes] == [False, True, True, False]
    assert len({one.id for one in driver.writes[:3]}) == 1
    assert driver.writes[3].id != driver.writes[0].id
    assert kv.statistics().retries == 2


async def test_what_does_not_go_away_is_raised_after_the_last_attempt_and_nothing_else_is_retried(
    driver: Troubled,
) -> None:
    kv = KV(driver, retry=AT_ONCE)  # type: ignore[arg-type]
    driver.errors = [Unavailable("kv: away")] * 4
    with pytest.raises(Unavailable):
        await kv.get("a")
    assert driver.reads == 4
    driver.errors = [DeadlineExceeded("kv: not known", reason="outcome_unknown")]
    with pytest.raises(DeadlineExceeded):
        await kv.put("a", b"1")
    assert len(driver.writes) == 1


@pytest.mark.req("KV-15.3", "LEAD-02")
async def test_what_a_driver_cannot_do_is_refused_before_it_is_asked(driver: Troubled) -> None:
    driver.capabilities = Capability.NONE  # type: ignore[attr-defined]
    kv = KV(driver)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="fence: "):
        await kv.put("a", b"1", fence=Fence("leader", 1))
    with pytest.raises(Unsupported, match="ttl_s: "):
        await kv.put("a", b"1", ttl_s=1)
    assert driver.writes == []


async def test_statistics_count_keys_and_removals(whole: KV) -> None:
    await whole.put_many({"a": b"", "b": b"", "c": b""})
    await whole.get_many(["a", "x"])
    await whole.delete("a")
    await whole.delete("x")
    await whole.clear("")
    found = whole.statistics()
    assert (found.puts, found.gets, found.removals, found.retries, found.watches) == (3, 2, 3, 0, 0)
    assert "0 watches" in repr(whole)


@pytest.mark.parametrize(("field", "given"), [("url", {"url": None}), ("url", {"url": 5}), ("ttl", {"ttl": 30})])
async def test_what_opens_no_bucket_is_refused_by_field(field: str, given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        async with KV.open(**{"state": tmp_path, **given}):
            pass
    assert not (tmp_path / "plane.db").exists()


@pytest.mark.parametrize("timeout_s", [float("nan"), "1"])
async def test_a_wait_that_is_no_number_is_refused_and_not_endless(whole: KV, timeout_s: float) -> None:
    async with whole.watch() as watch:
        with pytest.raises(InvalidArgument, match=r"^timeout_s: "):
            await watch.receive(timeout_s)
