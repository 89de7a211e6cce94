"""So many at once, and the others in the order in which they came, also when some of them give up."""

from __future__ import annotations

import asyncio

import pytest

from groundplane.bus.turns import Turns

pytestmark = pytest.mark.anyio


async def test_turns_go_to_those_who_wait_in_their_order_and_none_is_lost_with_one_who_gives_up() -> None:
    turns, had = Turns(2), list[int]()

    async def wait(number: int) -> None:
        await turns.wait()
        had.append(number)

    assert turns.take()
    assert turns.take()
    assert not turns.take()
    waiting = [asyncio.create_task(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # while it waits
    await asyncio.sleep(0)
    turns.give_back()
    waiting[1].cancel()  # when it has just been given the turn: the next one gets it
    await asyncio.gather(*waiting[:3], return_exceptions=True)
    assert had == [2]
    turns.give_back()
    await waiting[3]
    assert had == [2, 3]
    turns.give_back()
    turns.give_back()
    assert turns.take()
    assert turns.take()
    assert not turns.take()
