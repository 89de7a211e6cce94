"""When the sweeper looks again."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.jobs import Jobs


class _Clock:
    def now_ms(self) -> int:
        return 1_000_000

    def monotonic(self) -> float:
        return 1_000.0


@pytest.mark.anyio
@pytest.mark.req("JOB-04.2")
@pytest.mark.parametrize(
    ("deadline_at", "least", "most"),
    [(None, 2.0, 2.0), (1_000_500, 0.5, 0.53), (9_000_000, 2.0, 2.0), (1_000_000, 0.1, 0.1), (900_000, 0.1, 0.1)],
)
async def test_it_looks_again_at_the_next_deadline_and_not_without_a_rest_where_the_stores_clock_is_behind(
    tmp_path: Path, deadline_at: int | None, least: float, most: float
) -> None:
    async with Jobs.open(state=tmp_path) as opened:
        jobs = Jobs(opened.driver, clock=_Clock())
        assert least <= jobs._until_deadline(deadline_at, 2.0) <= most
