"""The embedded ledger passes the suite of its port, and survives what the suite cannot try."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from groundplane.core.errors import InvalidArgument
from groundplane.mesh.ledger import JoinKey, Ledger, Once, open_ledger
from groundplane.mesh.ledger.conformance import LedgerConformance
from groundplane.mesh.ledger.drivers.embedded import EmbeddedLedger
from groundplane.mesh.ledger.measured import MeasuredLedger
from groundplane.mesh.ledger.port import HANDLED_WINDOW_S

pytestmark = pytest.mark.anyio


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now_ms(self) -> int:
        return round(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


class TestEmbeddedLedger(LedgerConformance):
    @pytest.fixture
    async def ledger(self, tmp_path: Path) -> AsyncIterator[Ledger]:
        async with open_ledger(state=tmp_path) as ledger:
            yield ledger


@pytest.mark.req("MESH-17")
async def test_notes_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    async with open_ledger(state=tmp_path) as ledger:
        await ledger.once_begin("k")
        await ledger.once_end("k", 7)
        await ledger.join_add(JoinKey("p", 0, "a"), 0, 2, b"x")
    async with open_ledger(f"embedded://{tmp_path}", state=Path("unused")) as again:
        assert await again.once_begin("k") == Once("done", 7)
        assert await again.join_items(JoinKey("p", 0, "a")) == {0: b"x"}


async def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    async with open_ledger(state=tmp_path, namespace="a") as one, open_ledger(state=tmp_path, namespace="b") as two:
        await one.once_begin("k")
        assert (await two.once_begin("k")).state == "new"


@pytest.mark.req("MESH-12")
async def test_a_handled_delivery_is_forgotten_after_the_window_and_its_row_is_deleted(tmp_path: Path) -> None:
    async with open_ledger(state=tmp_path) as opened:
        assert isinstance(opened, MeasuredLedger)
        ledger = opened.driver
        assert isinstance(ledger, EmbeddedLedger)
        clock = HandClock()
        ledger._clock = clock
        await ledger.handled(done=["a/old:0", "a/older:0"])
        clock.seconds += HANDLED_WINDOW_S - 1
        assert await ledger.handled(ask=["a/old:0"], done=["a/new:0"]) == {"a/old:0"}
        clock.seconds += 2
        assert await ledger.handled(ask=["a/old:0", "a/new:0"], done=["a/newest:0"]) == {"a/new:0"}
        rows = await ledger.native.read(lambda tx: tx.execute("SELECT count(*) FROM ledger_handled"))
    assert rows == [(2,)]


async def test_planes_of_one_file_do_not_know_each_others_deliveries(tmp_path: Path) -> None:
    async with open_ledger(state=tmp_path, namespace="a") as one, open_ledger(state=tmp_path, namespace="b") as two:
        await one.handled(done=["x/e:0"])
        assert await two.handled(ask=["x/e:0"]) == frozenset()


@pytest.mark.parametrize("url", ["embedded://host/folder", "embedded://?x=1", "oracle://"])
async def test_a_bad_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidArgument, match="ledger"):
        async with open_ledger(url, state=tmp_path):
            pytest.fail("opened")
