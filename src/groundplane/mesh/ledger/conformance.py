"""The suite that a driver of the ledger must pass. Subclass it and give it one fixture:

class TestMyLedger(LedgerConformance):
    @pytest.fixture
    async def ledger(self):
        async with open_ledger("mine://…", namespace=unique) as ledger:  # an empty ledger for each test
            yield ledger

The tests are asynchronous: run them with AnyIO's pytest plugin on asyncio.
"""

from __future__ import annotations

import asyncio

import pytest

from groundplane.core.errors import Closed, InvalidArgument
from groundplane.mesh.ledger.port import JoinKey, Ledger, Once

KEY = JoinKey("parent", 1, "sum")


class LedgerConformance:
    """What every ledger does."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.req("MESH-17")
    async def test_an_effect_is_new_once_then_begun_then_done_with_its_first_value(self, ledger: Ledger) -> None:
        assert await ledger.once_begin("charge") == Once("new")
        assert await ledger.once_begin("charge") == Once("begun")
        await ledger.once_end("charge", {"receipt": [1, None, "ä"]})
        assert await ledger.once_begin("charge") == Once("done", {"receipt": [1, None, "ä"]})
        await ledger.once_end("charge", "another")
        assert await ledger.once_begin("charge") == Once("done", {"receipt": [1, None, "ä"]})

    @pytest.mark.req("MESH-17")
    async def test_of_many_that_begin_an_effect_at_once_one_finds_it_new(self, ledger: Ledger) -> None:
        states = await asyncio.gather(*(ledger.once_begin("same") for _ in range(20)))
        assert sorted(one.state for one in states) == ["begun"] * 19 + ["new"]

    @pytest.mark.req("MESH-17")
    async def test_an_effect_whose_value_is_null_is_done_too(self, ledger: Ledger) -> None:
        await ledger.once_begin("k")
        await ledger.once_end("k", None)
        assert await ledger.once_begin("k") == Once("done", None)

    @pytest.mark.req("MESH-13")
    async def test_children_are_counted_once_whatever_their_order(self, ledger: Ledger) -> None:
        assert (await ledger.join_add(KEY, 2, 3, b"c")).arrived == 1
        assert (await ledger.join_add(KEY, 2, 3, b"other")).arrived == 1
        assert (await ledger.join_add(KEY, 0, 3, b"a")).arrived == 2
        last = await ledger.join_add(KEY, 1, 3, b"")
        assert (last.arrived, last.total, last.released) == (3, 3, False)
        assert await ledger.join_items(KEY) == {0: b"a", 1: b"", 2: b"c"}

    @pytest.mark.req("MESH-13")
    async def test_children_that_arrive_at_once_are_all_counted_and_one_is_the_last(self, ledger: Ledger) -> None:
        states = await asyncio.gather(*(ledger.join_add(KEY, n, 30, bytes([n])) for n in range(30)))
        assert sorted(one.arrived for one in states) == list(range(1, 31))

    @pytest.mark.req("MESH-13")
    async def test_after_the_release_a_child_is_late_and_the_payloads_are_gone(self, ledger: Ledger) -> None:
        await ledger.join_add(KEY, 0, 2, b"a")
        await ledger.join_release(KEY)
        await ledger.join_release(KEY)
        late = await ledger.join_add(KEY, 1, 2, b"b")
        assert (late.arrived, late.released) == (1, True)
        assert await ledger.join_items(KEY) == {}

    @pytest.mark.req("MESH-13")
    async def test_joins_of_other_parents_hops_and_actors_are_apart(self, ledger: Ledger) -> None:
        others = [JoinKey("other", 1, "sum"), JoinKey("parent", 2, "sum"), JoinKey("parent", 1, "max")]
        for key in (KEY, *others):
            assert (await ledger.join_add(key, 0, 2, key.actor.encode())).arrived == 1
        await ledger.join_release(KEY)
        assert [len(await ledger.join_items(key)) for key in others] == [1, 1, 1]

    @pytest.mark.req("MESH-13")
    async def test_a_child_that_cannot_be_one_of_them_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(InvalidArgument, match="index"):
            await ledger.join_add(KEY, 3, 3, b"")
        assert await ledger.join_items(KEY) == {}

    async def test_a_join_that_nobody_added_to_is_empty_and_may_be_released(self, ledger: Ledger) -> None:
        assert await ledger.join_items(KEY) == {}
        await ledger.join_release(KEY)
        assert (await ledger.join_add(KEY, 0, 1, b"x")).released is False

    @pytest.mark.req("MESH-12")
    async def test_a_delivery_that_was_handled_is_known_afterwards_and_no_other(self, ledger: Ledger) -> None:
        assert await ledger.handled(ask=["double/e:0"], done=["double/e:0", "double/f:0"]) == frozenset()
        assert await ledger.handled(ask=["double/e:0", "double/f:0", "double/e:1", "other/e:0"]) == frozenset(
            {"double/e:0", "double/f:0"}
        )
        assert await ledger.handled() == frozenset()

    @pytest.mark.req("MESH-12")
    async def test_recording_a_handled_delivery_again_changes_nothing(self, ledger: Ledger) -> None:
        for _ in range(2):
            await ledger.handled(done=["a/e:0", "a/e:0", "a/f:0"])
        assert await ledger.handled(ask=["a/e:0", "a/f:0"]) == frozenset({"a/e:0", "a/f:0"})

    @pytest.mark.req("MESH-12")
    async def test_batches_that_are_recorded_at_once_in_any_order_are_all_known(self, ledger: Ledger) -> None:
        keys = [f"a/{n}:0" for n in range(200)]
        batches = [keys, keys[::-1], keys[50:150], keys[150:50:-1]]
        await asyncio.gather(*(ledger.handled(ask=keys[:10], done=batch) for batch in batches))
        assert await ledger.handled(ask=keys) == frozenset(keys)

    async def test_collecting_deletes_what_is_older_and_keeps_the_rest(self, ledger: Ledger) -> None:
        await ledger.once_begin("k")
        await ledger.join_add(KEY, 0, 2, b"a")
        assert await ledger.collect(3600.0) == 0
        assert (await ledger.once_begin("k")).state == "begun"
        assert await ledger.collect(-3600.0) == 2
        assert (await ledger.once_begin("k")).state == "new"
        assert await ledger.join_items(KEY) == {}

    async def test_a_closed_ledger_refuses_and_may_be_closed_twice(self, ledger: Ledger) -> None:
        await ledger.aclose()
        await ledger.aclose()
        with pytest.raises(Closed):
            await ledger.once_begin("k")
