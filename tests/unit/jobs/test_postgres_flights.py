"""Calls that come together go together, and none fails by another's fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from groundplane.core.errors import Closed, InvalidArgument, Unavailable
from groundplane.jobs.drivers.postgres.flights import UNDER_WAY_MAX, Flights

pytestmark = pytest.mark.anyio


class _Airport:
    """Runs groups when it is told to, and remembers them."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = asyncio.Event()
        self.error: dict[int, Exception] = {}

    async def run(self, calls: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(calls))
        await self.go.wait()
        for one in calls:
            if one in self.error:
                raise self.error[one]
        return [one * 10 for one in calls]


async def _taken(airport: _Airport, count: int) -> None:
    async with asyncio.timeout(5):
        while len(airport.groups) < count:
            await asyncio.sleep(0)


async def _settled(calls: list[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_what_waits_while_others_are_under_way_goes_together() -> None:
    airport = _Airport()
    flights: Flights[int] = Flights(airport.run, len)
    first = [asyncio.create_task(flights.call(n)) for n in range(1)]
    await _taken(airport, 1)
    second = [asyncio.create_task(flights.call(n)) for n in range(1, 2)]
    await _taken(airport, UNDER_WAY_MAX)
    rest = [asyncio.create_task(flights.call(n)) for n in range(2, 10)]
    await asyncio.sleep(0)
    airport.go.set()
    assert await _settled([*first, *second, *rest]) == [n * 10 for n in range(10)]
    assert airport.groups == [[0], [1], list(range(2, 10))]
    await flights.aclose()


async def test_a_call_that_comes_in_the_turn_of_the_loop_in_which_all_flights_end_is_made() -> None:
    airport = _Airport()
    flights: Flights[int] = Flights(airport.run, lambda calls: 1)

    async def twice() -> list[int]:
        return [await flights.call(7), await flights.call(8)]

    first = asyncio.create_task(twice())
    rest = [asyncio.create_task(flights.call(n)) for n in range(1, UNDER_WAY_MAX)]
    await _taken(airport, UNDER_WAY_MAX)
    airport.go.set()
    async with asyncio.timeout(5):
        assert await first == [70, 80]
        await asyncio.gather(*rest)
    await flights.aclose()


async def test_a_group_is_as_large_as_is_picked_and_never_empty() -> None:
    airport = _Airport()
    airport.go.set()
    flights: Flights[int] = Flights(airport.run, lambda calls: min(3, len(calls)) if calls[0] else 0)
    calls = [asyncio.create_task(flights.call(n)) for n in range(7)]
    assert await _settled(calls) == [n * 10 for n in range(7)]
    assert sorted(map(len, airport.groups)) == [1, 3, 3]
    await flights.aclose()


async def test_the_fault_of_one_is_told_to_that_one() -> None:
    airport = _Airport()
    airport.go.set()
    airport.error[3] = InvalidArgument("value: no")
    flights: Flights[int] = Flights(airport.run, len)
    outcomes = await _settled([asyncio.create_task(flights.call(n)) for n in range(6)])
    assert [one for one in outcomes if not isinstance(one, Exception)] == [0, 10, 20, 40, 50]
    assert outcomes[3] is airport.error[3]
    await flights.aclose()


async def test_where_the_database_is_away_those_that_wait_are_told_too() -> None:
    airport = _Airport()
    flights: Flights[int] = Flights(airport.run, lambda calls: 1)
    calls = [asyncio.create_task(flights.call(n)) for n in range(6)]
    await _taken(airport, UNDER_WAY_MAX)
    airport.error = {n: Unavailable("database: away") for n in range(6)}
    airport.go.set()
    outcomes = await _settled(calls)
    assert {type(one) for one in outcomes} == {Unavailable}
    assert len(airport.groups) == UNDER_WAY_MAX
    airport.error = {}
    assert await flights.call(7) == 70
    await flights.aclose()


async def test_a_call_that_is_given_up_before_its_turn_is_not_made() -> None:
    airport = _Airport()
    flights: Flights[int] = Flights(airport.run, lambda calls: 1)
    calls = [asyncio.create_task(flights.call(n)) for n in range(4)]
    await _taken(airport, UNDER_WAY_MAX)
    calls[3].cancel()
    await asyncio.sleep(0)
    airport.go.set()
    assert (await _settled(calls))[:3] == [0, 10, 20]
    await flights.aclose()
    assert [3] not in airport.groups


async def test_closing_waits_for_those_under_way_and_refuses_others() -> None:
    airport = _Airport()
    flights: Flights[int] = Flights(airport.run, len)
    call = asyncio.create_task(flights.call(1))
    await _taken(airport, 1)
    closing = asyncio.create_task(flights.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    with pytest.raises(Closed):
        await flights.call(2)
    airport.go.set()
    await closing
    assert await call == 10
