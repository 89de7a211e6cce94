"""Clock and deadlines: UTC on the wire, time left where it is used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.core.clock import SYSTEM_CLOCK, from_iso, iso_z
from groundplane.core.deadline import effective_timeout_s, remaining_s


class _Clock:
    def now_ms(self) -> int:
        return 1_000_000

    def monotonic(self) -> float:
        return 0.0


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_on_the_wire_is_utc_with_a_z_and_reads_back(unix_ms: int) -> None:
    text = iso_z(unix_ms)
    assert text.endswith("Z")
    assert from_iso(text) == unix_ms


def test_a_time_with_another_offset_or_none_is_understood() -> None:
    assert from_iso("1970-01-01T01:00:01+01:00") == 1000
    assert from_iso("1970-01-01T00:00:01") == 1000


@pytest.mark.req("MESH-10")
@pytest.mark.parametrize(
    ("timeout_s", "deadline_at", "expected"),
    [(None, None, None), (5, None, 5), (None, 1_003_000, 3), (5, 1_003_000, 3), (2, 1_003_000, 2), (5, 999_000, 0)],
)
def test_the_effective_timeout_is_the_lesser_of_timeout_and_time_left(
    timeout_s: float | None, deadline_at: int | None, expected: float | None
) -> None:
    assert effective_timeout_s(timeout_s, deadline_at, _Clock()) == expected


def test_a_passed_deadline_has_a_negative_rest() -> None:
    assert remaining_s(999_500, _Clock()) == -0.5
    assert remaining_s(None) is None


def test_the_system_clock_tells_milliseconds_and_never_goes_back() -> None:
    assert SYSTEM_CLOCK.now_ms() > 1_700_000_000_000
    one, two = SYSTEM_CLOCK.monotonic(), SYSTEM_CLOCK.monotonic()
    assert two >= one
